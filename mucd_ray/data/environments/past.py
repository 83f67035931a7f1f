"""What policies see that recall an episode: its last steps, each with the action before it and all rewards before it."""

from dataclasses import replace

import gymnasium as gym
import numpy as np

from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.data.spaces import shape_of

# Of a step: 1 since it is there, the sum of the rewards before it, the action before it, the flattened observation.
THERE, EARNED, ACTION = 0, 1, 2


def action_width(space: gym.Space) -> int:
    """Numbers of an action in a step: one for each discrete action, or those that a continuous one has."""
    return int(space.n) if isinstance(space, gym.spaces.Discrete) else int(np.prod(shape_of(space)))


def action_numbers(space: gym.Space, actions: np.ndarray) -> np.ndarray:
    """Actions [N] or [N, k] as steps hold them, float32 [N, A]: of a discrete one 1 in its own place, of a continuous one its numbers."""
    if isinstance(space, gym.spaces.Discrete):
        return (np.asarray(actions)[:, None] == space.start + np.arange(space.n)).astype(np.float32)
    return np.asarray(actions, np.float32).reshape(len(actions), -1)


class Past(gym.Wrapper):
    """Observations float32 [history, 2 + A + entries]: the last `history` steps of the episode, oldest first; a step that it has not had yet is all zeros, and so is the action before
    the first one. Rewards are summed up in float32, so that what is seen is all that is kept."""

    def __init__(self, environment: gym.Env, history: int):
        super().__init__(environment)
        self._actions = action_width(environment.action_space)
        self._steps = np.zeros((history, ACTION + self._actions + int(np.prod(shape_of(environment.observation_space)))), np.float32)
        self._earned = np.float32(0)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, self._steps.shape, np.float32)

    def reset(self, **options):
        observation, info = self.env.reset(**options)
        self._steps, self._earned = np.zeros_like(self._steps), np.float32(0)
        return self._seen(np.zeros(self._actions, np.float32), observation), info

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        with np.errstate(over="ignore", invalid="ignore"):
            self._earned += np.float32(reward)
        return self._seen(action_numbers(self.env.action_space, np.asarray(action)[None])[0], observation), reward, terminated, truncated, info

    def _seen(self, action: np.ndarray, observation: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            step = np.concatenate([[1, self._earned], action, np.asarray(observation).reshape(-1)]).astype(np.float32)
        self._steps = np.concatenate([self._steps[1:], step[None]])
        return self._steps.copy()


def with_past(dataset: OfflineDataset, history: int) -> OfflineDataset:
    """The same transitions with (next) observations as `Past` gives them, [N, history, 2 + A + entries], of each trajectory by itself."""
    starts, space = dataset.trajectory_starts, dataset.action_space
    actions, entries = action_width(space), int(np.prod(dataset.observations.shape[1:]))
    # A trajectory has a step more than transitions.
    firsts = starts[:-1] + np.arange(len(starts) - 1)
    at = np.arange(len(dataset)) + np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    steps = np.zeros((len(dataset) + len(firsts), ACTION + actions + entries), np.float32)
    steps[:, THERE] = 1
    with np.errstate(over="ignore", invalid="ignore"):
        for first, start, end in zip(firsts, starts[:-1], starts[1:]):
            steps[first + 1 : first + 1 + end - start, EARNED] = np.cumsum(dataset.rewards[start:end].astype(np.float32), dtype=np.float32)
        steps[at + 1, ACTION : ACTION + actions] = action_numbers(space, dataset.actions)
        steps[at, ACTION + actions :] = dataset.observations.reshape(len(dataset), -1)
        last = dataset.next_observations.reshape(len(dataset), -1).astype(np.float32)
    firsts = np.repeat(firsts, np.diff(starts))[:, None]

    def seen(now: np.ndarray) -> np.ndarray:
        rows = now[:, None] + np.arange(1 - history, 1)
        return np.where((rows >= firsts)[..., None], steps[np.maximum(rows, firsts)], np.float32(0))

    following = seen(at + 1)
    following[:, -1, ACTION + actions :] = last
    return replace(dataset, observations=seen(at), next_observations=following)
