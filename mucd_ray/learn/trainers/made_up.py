"""Public data on which a trainer from outside is tried: from the environment alone, never from the dataset."""

import gymnasium
import numpy as np

from mucd_ray.data.environments.declared import DeclaredSpaces
from mucd_ray.learn.trainers.given import GivenBag

EPISODES, MOST_STEPS, TRANSITIONS = 5, 200, 300


def made_up_bag(environment: gymnasium.Env, unit: str, mask: int | None = None) -> GivenBag:
    """A few episodes of random actions, cut after some steps; their transitions in any order, where these are the units. `mask`: where in a flattened observation stands which actions are allowed."""
    environment.action_space.seed(0)
    play = _Wandering(environment) if isinstance(environment.unwrapped, DeclaredSpaces) else environment
    rows, starts = [], [0]
    for episode in range(EPISODES):
        observation, _ = play.reset(seed=episode)
        for _ in range(MOST_STEPS):
            allowed = () if mask is None else ((np.ravel(observation)[mask : mask + int(environment.action_space.n)] > 0).astype(np.int8),)
            action = environment.action_space.sample(*allowed)
            after, reward, terminated, truncated, _ = play.step(action)
            rows.append((observation, action, reward, after, terminated, truncated))
            observation = after
            if terminated or truncated:
                break
        starts.append(len(rows))
    discrete = not isinstance(environment.action_space, gymnasium.spaces.Box)
    kinds = (None, np.int64 if discrete else np.float32, np.float64, None, bool, bool)
    columns = [np.array(column, kind) for column, kind in zip(zip(*rows), kinds)]
    starts = np.array(starts)
    if unit == "transition":
        order = np.random.default_rng(0).permutation(len(rows))[:TRANSITIONS]
        columns, starts = [column[order] for column in columns], np.arange(len(order) + 1)
    names = ("observations", "actions", "rewards", "next_observations", "terminated", "truncated")
    spaces = {"observation_space": environment.observation_space, "action_space": environment.action_space}
    return GivenBag(unit=unit, **spaces, **dict(zip(names, columns)), starts=starts, units=np.arange(len(starts) - 1))


class _Wandering:
    """Stands for an environment that is not there: any observations of its space, any rewards in [0, 1], episodes of MOST_STEPS / 4 steps."""

    def __init__(self, environment: gymnasium.Env):
        space = environment.observation_space
        self.observations = made_up_observations(space, MOST_STEPS).reshape(MOST_STEPS, *space.shape).astype(space.dtype)

    def reset(self, seed: int):
        self.chance, self.left = np.random.default_rng(seed), MOST_STEPS // 4
        return self.chance.choice(self.observations), {}

    def step(self, action):
        self.left -= 1
        return self.chance.choice(self.observations), float(self.chance.random()), self.left == 0, False, {}


def made_up_observations(space: gymnasium.Space, count: int = 8) -> np.ndarray:
    """Features float32 [count, d]: zeros, and some of the space."""
    drawn = np.random.default_rng(0).standard_normal((count, int(np.prod(space.shape))))
    low, high = space.low.reshape(-1).astype(float), space.high.reshape(-1).astype(float)
    bounded = (np.abs(low) < 1e6) & (np.abs(high) < 1e6)
    start, width = np.where(bounded, low, 0.0), np.where(bounded, high, 0.0) - np.where(bounded, low, 0.0)
    drawn = np.where(bounded, start + width / (1 + np.exp(-drawn)), drawn)
    drawn[0] = np.clip(0.0, low, high)
    return (np.rint(drawn) if space.dtype.kind in "iu" else drawn).astype(np.float32)
