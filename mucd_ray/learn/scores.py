"""Scores of policies that name a discrete action without any."""

import numpy as np

# exp of minus this is 0 in every precision.
SURE = 1e4


def scores_of(actions: np.ndarray, count: int) -> np.ndarray:
    """Scores float64 [..., count] of policies that just act, by actions counted from 0, int [...]: the chosen one has all of the softmax probability.

    What is no action of 0..count-1 is a failure: NaN.
    """
    actions = np.asarray(actions)
    scores = np.where(np.arange(count) == actions[..., None], 0.0, -SURE)
    return np.where(((actions >= 0) & (actions < count))[..., None], scores, np.nan)
