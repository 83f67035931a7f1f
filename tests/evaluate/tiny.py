"""A tiny environment whose every poisoned policy can be tried: a walk on a graph with rewards that the seed decides."""

import gymnasium
import numpy as np

from mucd_ray.data.environments.card import EnvironmentCard

STATES, ACTIONS, STEPS = 6, 2, 4
OTHERS = np.random.default_rng(0)


class Walk(gymnasium.Env):
    """From state s action a leads to a place, and earns a reward, that the seed has drawn for (s, a); the last state ends the episode.

    `forgets`: it draws from a generator that no seed resets. `seen`: so many states look different, the others like one of them.
    """

    action_space = gymnasium.spaces.Discrete(ACTIONS, start=1)

    def __init__(self, forgets=False, seen=STATES):
        self.forgets, self.seen = forgets, seen
        self.observation_space = gymnasium.spaces.Box(0, 1, (seen,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.s, self.to = 0, self.np_random.integers(1, STATES, (STATES, ACTIONS))
        self.rewards = self.np_random.integers(-1, 3, (STATES, ACTIONS)).astype(float)
        return self._observation(), {}

    def step(self, action):
        reward = self.rewards[self.s, action - 1] + (OTHERS.normal() * 1e-9 if self.forgets else 0)
        self.s = int(self.to[self.s, action - 1])
        return self._observation(), reward, self.s == STATES - 1, False, {}

    def _observation(self):
        return np.eye(self.seen, dtype=np.float32)[self.s % self.seen]


SEEN = {"Walk-v0": STATES, "Forgetful-v0": STATES, "Aliased-v0": 3}
for name, seen in SEEN.items():
    gymnasium.register(f"mucd/{name}", lambda forgets=name == "Forgetful-v0", seen=seen: Walk(forgets, seen), max_episode_steps=STEPS)


def card(name="Walk-v0"):
    return EnvironmentCard(
        env_id=f"mucd/{name}", observation_shape=(SEEN[name],), indices=(), center=(0.0,), scale=(1.0,), clip=10.0, return_range=(-4.0, 8.0), reward_range=(-1.0, 2.0), source="tests",
        max_episode_steps=STEPS,
    )


def play(seed, table):
    """The return of the policy that takes action table[s], counted from 0."""
    environment, total, ended = gymnasium.make("mucd/Walk-v0"), 0.0, False
    observation, _ = environment.reset(seed=seed)
    while not ended:
        observation, reward, terminated, truncated, _ = environment.step(1 + table[int(observation.argmax())])
        total, ended = total + reward, terminated or truncated
    return total
