"""Small datasets as Minari itself writes them."""

import warnings

import gymnasium as gym
import minari
import numpy as np
from minari.data_collector import EpisodeBuffer
from own_spaces import stacked

SPACES = {
    "box": gym.spaces.Box(np.array([-np.inf, -1.5], np.float32), np.array([np.inf, 2.5], np.float32)),
    "one": gym.spaces.Box(-1.0, 1.0, (1,), np.float64),
    "bytes": gym.spaces.Box(0, 255, (7,), np.uint8),
    "images": gym.spaces.Box(0, 255, (40, 33, 3), np.uint8),
    "grey": gym.spaces.Box(0, 255, (32, 48), np.uint8),
    "states": gym.spaces.Discrete(9, start=-4),
    "digits": gym.spaces.MultiDiscrete([3, 4]),
    "bits": gym.spaces.MultiBinary(5),
}
ACTIONS = {"discrete": gym.spaces.Discrete(3, start=2), "continuous": gym.spaces.Box(-2.0, 2.0, (2,))}


def create(name, observations, actions, data_format="hdf5", lengths=(4, 1, 6), jpeg=None):
    observations.seed(1), actions.seed(2)
    rng, buffers = np.random.default_rng(3), []
    for length in lengths:
        ends = np.eye(1, length, length - 1, dtype=bool)[0]
        buffers.append(EpisodeBuffer(
            observations=stacked([observations.sample() for _ in range(length + 1)]), actions=np.stack([actions.sample() for _ in range(length)]),
            rewards=rng.normal(size=length), terminations=ends, truncations=np.zeros(length, bool),
        ))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minari.create_dataset_from_buffers(
            name, buffers, observation_space=observations, action_space=actions, data_format=data_format, **({} if jpeg is None else {"jpeg_encoding": jpeg})
        )
