"""Public data on which a trainer from outside is tried: from the environment alone, never from the dataset."""

from typing import Any

import gymnasium
import numpy as np

from mucd_ray.data.environments.declared import DeclaredSpaces
from mucd_ray.data.spaces import shape_of
from mucd_ray.learn.trainers.given import GivenBag

EPISODES, MOST_STEPS, TRANSITIONS = 5, 200, 300


def made_up_bag(environment: gymnasium.Env, unit: str, mask: int | None = None) -> GivenBag:
    """A few episodes of random actions, cut after some steps; their transitions in any order, where these are the units. `mask`: where in a flattened observation stands which actions are allowed."""
    environment.action_space.seed(0)
    play = _Wandering(environment) if isinstance(environment.unwrapped, DeclaredSpaces) else environment
    actions = environment.action_space
    rows, ends = [], [0]
    for episode in range(EPISODES):
        observation, _ = play.reset(seed=episode)
        for _ in range(MOST_STEPS):
            allowed = ((np.ravel(observation)[mask : mask + int(actions.n)] > 0).astype(np.int8),) if mask is not None and isinstance(actions, gymnasium.spaces.Discrete) else ()
            action = actions.sample(*allowed)
            after, reward, terminated, truncated, _ = play.step(action)
            rows.append((observation, action, reward, after, terminated, truncated))
            observation = after
            if terminated or truncated:
                break
        ends.append(len(rows))
    kinds = (None, np.float32 if isinstance(actions, gymnasium.spaces.Box) else np.int64, np.float64, None, bool, bool)
    columns = [np.array(column, kind) for column, kind in zip(zip(*rows), kinds)]
    starts = np.array(ends)
    if unit == "transition":
        order = np.random.default_rng(0).permutation(len(rows))[:TRANSITIONS]
        columns, starts = [column[order] for column in columns], np.arange(len(order) + 1)
    names = ("observations", "actions", "rewards", "next_observations", "terminated", "truncated")
    arrays: dict[str, Any] = dict(zip(names, columns))
    return GivenBag(unit=unit, observation_space=environment.observation_space, action_space=actions, **arrays, starts=starts, units=np.arange(len(starts) - 1))


class _Wandering:
    """Stands for an environment that is not there: any observations of its space, any rewards in [0, 1], episodes of MOST_STEPS / 4 steps."""

    def __init__(self, environment: gymnasium.Env):
        space = environment.observation_space
        self.observations = made_up_observations(space, MOST_STEPS).reshape(MOST_STEPS, *shape_of(space)).astype(space.dtype)

    def reset(self, seed: int):
        self.chance, self.left = np.random.default_rng(seed), MOST_STEPS // 4
        return self.chance.choice(self.observations), {}

    def step(self, action):
        self.left -= 1
        return self.chance.choice(self.observations), float(self.chance.random()), self.left == 0, False, {}


def made_up_observations(space: gymnasium.Space, count: int = 8) -> np.ndarray:
    """Features float32 [count, d]: zeros, and some of the space."""
    assert isinstance(space, gymnasium.spaces.Box)
    drawn = np.random.default_rng(0).standard_normal((count, int(np.prod(space.shape))))
    low, high = space.low.reshape(-1).astype(float), space.high.reshape(-1).astype(float)
    bounded = (np.abs(low) < 1e6) & (np.abs(high) < 1e6)
    start, width = np.where(bounded, low, 0.0), np.where(bounded, high, 0.0) - np.where(bounded, low, 0.0)
    drawn = np.where(bounded, start + width / (1 + np.exp(-drawn)), drawn)
    drawn[0] = np.clip(0.0, low, high)
    return (np.rint(drawn) if space.dtype.kind in "iu" else drawn).astype(np.float32)
