"""By which numbers policies say what they prefer, and the scores of those that name a discrete action without any."""

import gymnasium
import numpy as np

from mucd_ray.data.spaces import shape_of

# exp of minus this is 0 in every precision.
SURE = 1e4


def components_of(space: gymnasium.Space) -> tuple[int, ...]:
    """How many values each component of its actions may have; () where they have none."""
    return tuple(space.nvec.tolist()) if isinstance(space, gymnasium.spaces.MultiDiscrete) else ()


def width_of(space: gymnasium.Space) -> int:
    """Numbers by which a policy says what it prefers: a score for each discrete action, or for each value of each component, or those of a continuous action."""
    if isinstance(space, gymnasium.spaces.Discrete):
        return int(space.n)
    return sum(components_of(space)) or int(np.prod(shape_of(space)))


def scores_of(actions: np.ndarray, count: int) -> np.ndarray:
    """Scores float64 [..., count] of policies that just act, by actions counted from 0, int [...]: the chosen one has all of the softmax probability.

    What is no action of 0..count-1 is a failure: NaN.
    """
    actions = np.asarray(actions)
    scores = np.where(np.arange(count) == actions[..., None], 0.0, -SURE)
    return np.where(((actions >= 0) & (actions < count))[..., None], scores, np.nan)
