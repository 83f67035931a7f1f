"""Finite Aggregation (Wang, Levine and Feizi 2022, arXiv 2202.02628): units are sorted into kd buckets, and each of kd policies learns from d buckets, so that parts are
larger and a changed unit reaches d policies, but few sets of d."""

import numpy as np

from mucd_ray.certify.rules.pooled import pooled_sizes


def finite_aggregation(votes: np.ndarray, actions: int, reached: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The action with the most votes at every state, the lowest of ties, and sizes, by the votes [S, kd] -> int64 [S], [S, A].

    sizes[s, a] changed buckets at least are needed before a can win: Theorem 2 there for the least of them. A policy that two changed buckets share counts
    twice, so this is a lower bound, exact for d = 1.

    Args:
        reached: the d policies that learn from each bucket, int [kd, d].
    """
    of_policies = votes[:, :, None] == np.arange(actions)
    totals = of_policies.sum(1)
    counts = sum(of_policies[:, reached[:, shift]].astype(np.int64) for shift in range(reached.shape[1]))
    return totals.argmax(1), pooled_sizes(counts, totals, reached.shape[1])
