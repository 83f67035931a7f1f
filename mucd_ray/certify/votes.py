"""Votes of which every one is known: how many policies must change before another action wins. Exact, without any confidence level.

Each of u policies votes for one action, and the action with the most votes is taken, the lowest of ties (DPA, Levine and Feizi 2021, arXiv
2006.14768; per state: PARL, COPA, Wu et al. 2022, arXiv 2203.08398). An attacker who changes a policy may choose its vote.
"""

import numpy as np

from mucd_ray.mechanism.kinds import AnyMechanism
from mucd_ray.mechanism.partition import Partition
from mucd_ray.mechanism.work import spend

# Policies of a partition that one change of a unit can reach, where units are in one part each: what is replaced leaves one part and joins another.
POLICIES_PER_UNIT = {"symmetric": 1, "insert": 1, "remove": 1, "substitute": 2}


def policies_per_unit(mechanism: AnyMechanism, threat: str) -> int:
    """Of any partition; a unit that is spread over several parts reaches as many policies."""
    return POLICIES_PER_UNIT[threat] * (mechanism.spread if isinstance(mechanism, Partition) else 1)


def parl_radius(counts: np.ndarray) -> np.ndarray:
    """The most policies that may change whichever way while the winner stays: votes [..., A] -> [...], A >= 2.

    K = floor((n_top - max over a != top of (n_a + [a < top])) / 2), COPA's Theorem 1 with every tie counted. K + 1 is the least `sizes` of another action.
    """
    counts = np.asarray(counts)
    top = counts.argmax(-1)[..., None]
    rivals = counts + (np.arange(counts.shape[-1]) < top)
    np.put_along_axis(rivals, top, -1, -1)
    return (np.take_along_axis(counts, top, -1)[..., 0] - rivals.max(-1)) // 2


def sizes(counts: np.ndarray) -> np.ndarray:
    """The least number of policies whose change can make each action win: votes [..., A] -> [..., A], 0 for the winner.

    With p votes moved to it, action a has n_a + p, and every other a' must come down to n_a + p - [a' < a]: p suffice iff
    sum over a' of max(0, n_a' - (n_a + p - [a' < a])) <= p. The sum falls with p. Fewer changed policies than that cannot make the policy
    choose a here, however they vote.
    """
    counts = np.asarray(counts).astype(np.int64)
    actions = counts.shape[-1]
    before, itself = np.arange(actions) < np.arange(actions)[:, None], np.eye(actions, dtype=bool)
    # The bound for p = 0, [..., a, a'].
    excess = np.where(itself, -(2**62), counts[..., None, :] - counts[..., :, None] + before)
    low, high = np.zeros_like(counts), np.broadcast_to(counts.sum(-1, keepdims=True), counts.shape).copy()
    while np.any(low < high):
        spend(excess.size)
        middle = (low + high) // 2
        enough = np.maximum(0, excess - middle[..., None]).sum(-1) <= middle
        high, low = np.where(enough, middle, high), np.where(enough, low, middle + 1)
    return low
