"""An environment and policies as a user writes them, in a file outside the package: walk right along a corridor; a step costs 1, the end earns 10."""

import gymnasium as gym
import numpy as np


class Corridor(gym.Env):
    reward_range = (-1.0, 10.0)

    def __init__(self, length=10, render_mode=None):
        self.length = length
        self.observation_space = gym.spaces.Box(np.array([-1.0, -np.inf], np.float32), np.array([31.0, np.inf], np.float32))
        self.action_space = gym.spaces.Discrete(2)

    def _seen(self):
        return np.array([self.place, self.length - self.place], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(0, 3))
        return self._seen(), {}

    def step(self, action):
        self.place = max(0, self.place + (1 if action == 1 else -1))
        ends = self.place >= self.length
        return self._seen(), 10.0 if ends else -1.0, ends, False, {}


class Told(gym.Env):
    """Observations that are not one array."""

    observation_space = gym.spaces.Dict({"words": gym.spaces.Text(5)})
    action_space = gym.spaces.Discrete(2)


class Broken(Corridor):
    """What an environment may do wrong, in its third step."""

    def __init__(self, how):
        super().__init__()
        self.how, self.steps = how, 0

    def step(self, action):
        self.steps += 1
        observation, reward, ends, cut, info = super().step(action)
        if self.steps == 3:
            if self.how == "leaves":
                raise SystemExit(0)
            if self.how == "raises":
                raise ValueError("one\ntwo")
            return {
                "shape": (observation[:1], reward, ends, cut, info), "rewards": (observation, np.ones(3), ends, cut, info), "words": (observation, "much", ends, cut, info),
                "ends": (observation, reward, np.zeros(2, bool), cut, info), "four": (observation, reward, ends, info), "nan": (observation * np.nan, reward, ends, cut, info),
                "nan reward": (observation, np.nan, ends, cut, info), "nothing": None,
            }[self.how]
        return observation, reward, ends, cut, info


gym.register("Broken-v0", entry_point=Broken, max_episode_steps=40)
gym.register("Corridor-v0", entry_point=Corridor, max_episode_steps=40, reward_threshold=3.0)
gym.register("Endless-v0", entry_point=Corridor)
gym.register("Told-v0", entry_point=Told, max_episode_steps=5)


def right(observation):
    observation[:] = 0  # of its own copy
    return np.array([1.0])


def breaks(observation):
    return observation[7]


def leaves(observation):
    raise SystemExit(3)


def half(observation):
    return 0.5


class Hesitant:
    """Goes back at every third step of an episode."""

    def reset(self):
        self.steps = 0

    def act(self, observation):
        self.steps += 1
        return 0 if self.steps % 3 == 0 else 1


number = 3
