"""Environments as policies see them: observations that are one array, actions that are one whole number or one row of numbers (data/spaces.py)."""

import gymnasium as gym

from mucd_ray.data.spaces import Actions, Observations


class PlainSpaces(gym.Wrapper):
    """An environment whose observations and actions are those of `data/spaces.py`.

    Args:
        observations: how its observations become arrays; None: they are left alone.
        actions: how its actions are counted.
    """

    def __init__(self, environment: gym.Env, observations: Observations | None, actions: Actions):
        super().__init__(environment)
        self.observations, self.actions = observations, actions
        self.observation_space = environment.observation_space if observations is None else observations.space
        self.action_space = actions.space

    def reset(self, **options):
        observation, info = self.env.reset(**options)
        return self._seen(observation), info

    def step(self, action):
        observation, *others = self.env.step(self.actions.original(action))
        return self._seen(observation), *others

    def _seen(self, observation):
        return observation if self.observations is None else self.observations.one(observation)


def plain(environment: gym.Env, keys: tuple[str, ...], shape: tuple[int, ...] | None) -> gym.Env:
    """The environment with plain spaces: itself if it has them.

    Args:
        keys: of its observations, as of `Observations.of`.
        shape: that observations shall have. Whole numbers of a Discrete or MultiDiscrete space whose own shape this is are left as they are, and are one-hot otherwise.
    Raises:
        MucdError: spaces that are not supported.
    """
    space, actions = environment.observation_space, Actions(declared=environment.action_space)
    as_they_are = isinstance(space, gym.spaces.Box) or isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete) and space.shape == shape
    observations = None if as_they_are and not keys else Observations.of(space, keys)
    return environment if observations is None and actions.is_plain else PlainSpaces(environment, observations, actions)


def declared_spaces(environment: gym.Env) -> tuple[gym.Space, gym.Space]:
    """Of observations and actions, as the environment itself declares them, below `PlainSpaces`."""
    outer = environment
    while isinstance(outer, gym.Wrapper):
        if isinstance(outer, PlainSpaces):
            return outer.env.observation_space, outer.env.action_space
        outer = outer.env
    return environment.observation_space, environment.action_space
