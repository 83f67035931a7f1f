"""Finite Aggregation (Wang, Levine and Feizi 2022, arXiv 2202.02628): units are sorted into kd buckets, and each of kd policies learns from d buckets, so that parts are
larger and a changed unit reaches d policies, but few sets of d."""

import numpy as np

from mucd_ray.certify.rules.pooled import ENTRIES_AT_A_TIME, pooled_sizes
from mucd_ray.mechanism.work import spend


def finite_aggregation(votes: np.ndarray, actions: int, reached: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The action with the most votes at every state, the lowest of ties, and sizes, by the votes [S, kd] -> int64 [S], [S, A].

    sizes[s, a] changed buckets at least are needed before a can win: Theorem 2 there for the least of them. A policy that two changed buckets share counts
    twice, so this is a lower bound, exact for d = 1.

    Args:
        reached: the d policies that learn from each bucket, int [kd, d].
    """
    step = max(1, ENTRIES_AT_A_TIME // (votes.shape[1] * actions))
    found = [_aggregated(votes[start : start + step], actions, reached) for start in range(0, len(votes), step)]
    return np.concatenate([chosen for chosen, _ in found]), np.concatenate([sizes for _, sizes in found])


def _aggregated(votes: np.ndarray, actions: int, reached: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    spend(4 * votes.size * actions * reached.shape[1])
    of_policies = votes[:, :, None] == np.arange(actions)
    totals, counts = of_policies.sum(1), np.zeros(of_policies.shape, np.int64)
    for policies in reached.T:
        counts += of_policies[:, policies]
    return totals.argmax(1), pooled_sizes(counts, totals, reached.shape[1])
