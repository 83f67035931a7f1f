"""Run-Off Election (Rezaei, Banihashem, Chegini and Feizi 2023, arXiv 2302.02300): the two actions with the most votes stand again, and every policy votes for the one that it
scores higher. A policy that would lose the first vote still has a say in the second."""

import numpy as np

from mucd_ray.mechanism.work import spend


def preferences_of(scores: np.ndarray) -> np.ndarray:
    """How many policies prefer one action to another, [u, S, A] -> int64 [S, A, A]: a to b, where a scores higher, or as high and a < b.

    Outputs that are not all finite count as those of the policy that prefers the lowest action, as `greedy_actions` has it.
    """
    actions = scores.shape[-1]
    scores = np.where(np.isfinite(scores).all(-1, keepdims=True), scores, -np.arange(actions, dtype=float))
    found = np.zeros((scores.shape[1], actions, actions), np.int64)
    for policy in scores:
        higher, lower = policy[:, :, None], policy[:, None]
        found += (higher > lower) | (higher == lower) & (np.arange(actions)[:, None] < np.arange(actions))
    return found


def run_off(counts: np.ndarray, preferences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The elected action, and sizes, by the votes [S, A] and how many policies prefer a to b [S, A, A] -> int64 [S], [S, A].

    sizes[s, a] changed policies at least are needed before a can be elected. Then a stands in the second vote, with some b, and wins it: every other e is behind both a and b,
    and at least as many prefer a to b as b to a. A change brings a and b together at most 3 votes nearer to e and each of them at most 2, and moves a run-off by at most 2;
    so the largest of these numbers is needed, for the best b. The least size of all but the elected action is no less than the radius of the paper (Theorem 4.4) plus one.
    """
    states, actions = counts.shape
    spend(16 * states * actions**3)
    counts, preferences = counts.astype(np.int64), preferences.astype(np.int64)
    before = np.arange(actions)[:, None] < np.arange(actions)
    # What a lacks to be ahead of e, [S, e, a], and to win against b, [S, b, a].
    ahead = np.maximum(0, counts[:, :, None] - counts[:, None] + before)
    against = np.maximum(0, preferences - preferences.transpose(0, 2, 1) + before)
    sizes = np.full((states, actions), np.iinfo(np.int64).max)
    for a in range(actions):
        for b in (b for b in range(actions) if b != a):
            others = [e for e in range(actions) if e not in (a, b)]
            lacks = np.stack([ahead[:, others, a], ahead[:, others, b]])
            first = np.maximum(_half(lacks.max(0)), -(-lacks.sum(0) // 3)).max(1, initial=0)
            sizes[:, a] = np.minimum(sizes[:, a], np.maximum(first, _half(against[:, b, a])))
    return elected(counts, preferences), sizes


def _half(lack: np.ndarray) -> np.ndarray:
    return -(-lack // 2)


def elected(counts: np.ndarray, preferences: np.ndarray) -> np.ndarray:
    """The winner of the second vote, ties to the lowest in both: [S, A], [S, A, A] -> [S]."""
    states = np.arange(len(counts))
    first = counts.argmax(1)
    others = counts.copy()
    others[states, first] = -1
    low, high = np.minimum(first, others.argmax(1)), np.maximum(first, others.argmax(1))
    return np.where(preferences[states, low, high] >= preferences[states, high, low], low, high)
