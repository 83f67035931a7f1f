"""Votes in bundles: how many bundles an attacker must own before an action can win. A bundle is whatever falls to the attacker as a whole: all votes of one policy
in a window of steps (TPARL), or of all policies that a bucket of units is spread over (Finite Aggregation)."""

import numpy as np

from mucd_ray.mechanism.work import spend

# Numbers in a temporary array.
ENTRIES_AT_A_TIME = 1 << 22


def pooled_sizes(counts: np.ndarray, totals: np.ndarray, most: int) -> np.ndarray:
    """A lower bound on the number of bundles that must change before each action can win: [S, n, A] and [S, A] -> int64 [S, A], 0 for the winner.

    Bundle i has `most` votes, counts[i, a] of them for a, and totals[a] are all votes for a; the most votes win, ties go to the lowest action. Where bundles overlap, a vote
    stands in several. If all votes of the bundles of a set B go to a, which is the best that their owner can do for a, then a gains on a' at most

        sum over i in B of g_i(a') = most - counts[i, a] + counts[i, a'],        and needs N_a' - N_a + [a' < a].

    So p bundles are too few if for some set of rivals the p largest sums of g_i over these rivals do not reach the sum of what is needed. Every single rival is tried, and
    for every m the m rivals of whom most is needed. With bundles of one vote this is exact (`votes.sizes`); without overlaps the least size of all actions but the
    winner is exact: with B's votes given to the action that attains it, the winner has lost.

    n + 1 stands for what not even all bundles can bring about.
    """
    states, bundles, actions = counts.shape
    spend(16 * counts.size * actions)
    step = max(1, ENTRIES_AT_A_TIME // (bundles * actions))
    parts = [slice(start, start + step) for start in range(0, states, step)]
    return np.concatenate([_sizes(counts[part].astype(np.int64), totals[part].astype(np.int64), most) for part in parts]) if parts else np.zeros((0, actions), np.int64)


def _sizes(counts: np.ndarray, totals: np.ndarray, most: int) -> np.ndarray:
    found = np.zeros(totals.shape, np.int64)
    for action in range(totals.shape[1]):
        rivals = np.delete(np.arange(totals.shape[1]), action)
        needed = totals[:, rivals] - totals[:, [action]] + (rivals < action)
        gains = most - counts[:, :, [action]] + counts[:, :, rivals]
        order = np.argsort(-needed, axis=1, kind="stable")
        together = np.cumsum(np.take_along_axis(gains, order[:, None], 2), 2)
        single, several = least_owners(gains, needed), least_owners(together, np.cumsum(np.take_along_axis(needed, order, 1), 1))
        found[:, action] = np.maximum(single, several).max(1)
    return found


def least_owners(gains: np.ndarray, needed: np.ndarray) -> np.ndarray:
    """The least p whose p largest gains reach what is needed: gains >= 0 [S, n, K], needed [S, K] -> [S, K], 0 where nothing is, n + 1 where all do not reach it."""
    reached = np.cumsum(-np.sort(-gains, axis=1), axis=1)
    return np.where(needed > 0, 1 + (reached < needed[:, None]).sum(1), 0)
