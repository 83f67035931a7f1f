"""Tiny environments with observations and actions of every kind: who moves towards the target earns a point a step."""

import warnings

import gymnasium as gym
import numpy as np

STEPS = 10


class _Room(gym.Env):
    """A place and a target on a line, in -1..1; `_moved` says how far an action goes, `_seen` what is seen of both."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.target = self.np_random.uniform(-1, 1, 2)
        return self._seen(), {}

    def step(self, action):
        assert action in self.action_space, action
        move = self._moved(action)
        earned = float(move * (self.target - self.place) > 0)
        self.place = float(np.clip(self.place + move, -1, 1))
        if earned:
            self.target = self.np_random.uniform(-1, 1)
        return self._seen(), earned, False, False, {}


class Rooms(_Room):
    """Dict within Dict, a Tuple, a text, whole numbers; two whole numbers as the action."""

    observation_space = gym.spaces.Dict({
        "way": gym.spaces.Dict({"to": gym.spaces.Box(-2, 2, (1,), np.float64), "sign": gym.spaces.Discrete(2, start=5)}),
        "near": gym.spaces.Tuple([gym.spaces.MultiDiscrete([3, 2], start=[1, 0]), gym.spaces.MultiBinary(2)]),
        "count": gym.spaces.Box(0, 1000, (2, 2), np.int64),
        "note": gym.spaces.Text(10),
    })
    action_space = gym.spaces.MultiDiscrete([3, 2], start=[1, 0])

    def _seen(self):
        way = self.target - self.place
        return {
            "way": {"to": np.array([way]), "sign": np.int64(5 + (way > 0))},
            "near": (np.array([1 + (way > -0.5) + (way > 0.5), way > 0]), np.array([way > 0, way < 0], np.int8)),
            "count": np.full((2, 2), int(100 * abs(way))),
            "note": "left" if way < 0 else "right",
        }

    def _moved(self, action):
        return (action[0] - 2) * (0.3 if action[1] else 0.1)


class Pictures(_Room):
    """A Dict with an image, channels last; two bits as the action."""

    observation_space = gym.spaces.Dict({"image": gym.spaces.Box(0, 255, (8, 9, 3), np.uint8), "name": gym.spaces.Text(4)})
    action_space = gym.spaces.MultiBinary(2)

    def _seen(self):
        image = np.zeros((8, 9, 3), np.uint8)
        image[:, int(4 * (self.place + 1)), 0] = image[:, int(4 * (self.target + 1)), 1] = 255
        return {"image": image, "name": "room"}

    def _moved(self, action):
        return 0.2 * (int(action[1]) - int(action[0]))


class Cells(_Room):
    """The number of a cell, from -4 on; a matrix as the action."""

    observation_space = gym.spaces.Discrete(9, start=-4)
    action_space = gym.spaces.Box(-1, 1, (2, 2), np.float32)

    def _seen(self):
        return int(np.rint(2 * (self.target - self.place)))

    def _moved(self, action):
        return 0.2 * float(action[0, 1] + action[1, 0])


class Doors(_Room):
    """An observation beside a mask of actions, as PettingZoo has it; who takes an action that is not allowed has broken the rules. Where a step leads out of -1..1 it is not allowed."""

    observation_space = gym.spaces.Dict({"observation": gym.spaces.Box(-2, 2, (2,), np.float32), "action_mask": gym.spaces.Box(0, 1, (4,), np.int8)})
    action_space = gym.spaces.Discrete(4, start=3)
    moves = (-0.6, -0.2, 0.2, 0.6)

    def allowed(self):
        return np.array([abs(self.place + move) <= 1 for move in self.moves], np.int8)

    def _seen(self):
        return {"observation": np.array([self.place, self.target - self.place], np.float32), "action_mask": self.allowed()}

    def step(self, action):
        assert self.allowed()[action - 3], "not allowed"
        return super().step(action)

    def _moved(self, action):
        return self.moves[action - 3]


class Levers(_Room):
    """Three levers of eleven positions each: 1331 combinations, too many to be one action."""

    observation_space = gym.spaces.Box(-2, 2, (2,), np.float32)
    action_space = gym.spaces.MultiDiscrete([11, 11, 11], start=[-5, -5, -5])

    def _seen(self):
        return np.array([self.place, self.target - self.place], np.float32)

    def _moved(self, action):
        return 0.03 * float(np.sum(action))


class Switches(Levers):
    """Ten switches, five for each direction."""

    action_space = gym.spaces.MultiBinary(10)

    def _moved(self, action):
        return 0.1 * (int(action[:5].sum()) - int(action[5:].sum()))


CARD = {"center": [0], "scale": [1], "clip": 1e6, "indices": [], "return_range": [0, STEPS], "source": "A tiny room of the tests."}
SHAPES = {"Rooms-v0": [14], "Pictures-v0": [8, 9, 3], "Cells-v0": [], "Doors-v0": [6], "Levers-v0": [2], "Switches-v0": [2]}
for name in SHAPES:
    gym.register(f"own_spaces/{name}", f"own_spaces:{name[:-3]}", max_episode_steps=STEPS)


def card(name: str) -> dict:
    return CARD | {"env_id": f"own_spaces:own_spaces/{name}", "observation_shape": SHAPES[name]}


def stacked(values: list):
    """Many observations as Minari wants them: of dictionaries a dictionary of arrays."""
    if isinstance(values[0], dict):
        return {key: stacked([value[key] for value in values]) for key in values[0]}
    if isinstance(values[0], tuple):
        return tuple(stacked([value[place] for value in values]) for place in range(len(values[0])))
    return values if isinstance(values[0], str) else np.stack(values)


def record(name: str, dataset: str, episodes: int, data_format: str = "hdf5", start: int = 0) -> None:
    """A real Minari dataset of good and random actions, as Minari itself writes it."""
    import minari
    from minari.data_collector import EpisodeBuffer

    environment, rng, buffers = gym.make(f"own_spaces/{name}", disable_env_checker=True), np.random.default_rng(start), []
    environment.action_space.seed(start)
    for episode in range(start, start + episodes):
        observation, _ = environment.reset(seed=episode)
        observations, steps, ended = [observation], [], False
        while not ended:
            room = environment.unwrapped
            masked = (room.allowed(),) if hasattr(room, "allowed") else ()
            action = max((environment.action_space.sample(*masked) for _ in range(1 if rng.random() < 0.3 else 6)), key=lambda action: room._moved(action) * (room.target - room.place))
            observation, reward, terminated, truncated, _ = environment.step(action)
            observations.append(observation)
            steps.append((action, reward, terminated, truncated))
            ended = terminated or truncated
        actions, rewards, terminations, truncations = map(np.stack, zip(*steps))
        buffers.append(EpisodeBuffer(observations=stacked(observations), actions=actions, rewards=rewards, terminations=terminations, truncations=truncations))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minari.create_dataset_from_buffers(dataset, buffers, env=environment, data_format=data_format)
    environment.close()
