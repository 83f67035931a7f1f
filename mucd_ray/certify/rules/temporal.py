"""Votes over the last steps of an episode: TPARL, with a window of fixed length, and DPARL, which chooses the window at every step (COPA, Wu et al. 2022, arXiv 2203.08398,
Sections 4.2 and 4.3). Both are functions of what every policy votes at the states seen so far; a policy that is changed may have changed its votes at all of them."""

import numpy as np

from mucd_ray.certify.rules.pooled import ENTRIES_AT_A_TIME, least_owners, pooled_sizes
from mucd_ray.mechanism.work import spend


def window_counts(votes: np.ndarray, actions: int, window: int) -> np.ndarray:
    """How often every policy voted for every action in the last `window` steps, of all steps that have so many behind them: [window - 1 + S, u] -> int64 [S, u, A]."""
    spend(4 * votes.size * actions)
    counts = np.empty((len(votes) - window + 1, votes.shape[1], actions), np.int64)
    now = np.zeros(counts.shape[1:], np.int64)
    for step, voted in enumerate(votes):
        now += voted[:, None] == np.arange(actions)
        if step >= window:
            now -= votes[step - window][:, None] == np.arange(actions)
        if step >= window - 1:
            counts[step - window + 1] = now
    return counts


def tparl(votes: np.ndarray, actions: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    """The action with the most votes of the last steps, and sizes, by the votes [T, u] along an episode -> int64 [T], [T, A].

    sizes[t, a] changed policies at least are needed before a can win at step t (COPA, Theorem 2, for the least of them, which is exact).
    """
    chosen, sizes = [], []
    for recent, length in _groups(votes, actions, window):
        counts = window_counts(recent, actions, length)
        totals = counts.sum(1)
        chosen.append(totals.argmax(1))
        sizes.append(pooled_sizes(counts, totals, length))
    return np.concatenate(chosen), np.concatenate(sizes)


def _groups(votes: np.ndarray, actions: int, window: int, lengths: int = 1):
    """(Votes [length - 1 + S, u], length): of S steps in a row whose windows are of one length, and of the steps that these reach back; counts of so many lengths are held at a time."""
    steps, policies = votes.shape
    group = max(1, ENTRIES_AT_A_TIME // (max(policies, actions) * actions * lengths))
    first = 0
    while first < steps:
        length = min(first + 1, window)
        end = first + (group if length == window else 1)
        yield votes[first - length + 1 : end], length
        first = end


def dparl(votes: np.ndarray, actions: int, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """The action of the window w <= min(t + 1, `longest`) in which the first leads the second by most votes per step, the shortest of ties; otherwise as `tparl`.

    For a to be chosen from a window w, which need not be the one that is chosen now, w' with the winner a*, two things must come about, each of which asks for a number of
    changed policies: a wins in w (`pooled_sizes`), and w leads by more per step than w'. Since the lead in w is at most that of a over any one rival b, and that in w' at
    least that of a* over the best of the others, c, the second needs for some c and all b

        w' (N^w_a - N^w_b) - w (N^w'_a* - N^w'_c) >= [w > w'],

    of which a changed policy can bring its greatest value less its present one (COPA, Theorem 3, whose published code takes a wrong tie term). Lower bounds, not exact.
    """
    found = [_dparl(recent, actions, length) for recent, length in _groups(votes, actions, longest, longest)]
    return np.concatenate([chosen for chosen, _ in found]), np.concatenate([sizes for _, sizes in found])


def _dparl(votes: np.ndarray, actions: int, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Of all steps but the first longest - 1."""
    spend(20 * longest * actions**2 * votes.size)
    # By the length of the window, from 1 on.
    counts = [window_counts(votes[longest - length :], actions, length) for length in range(1, longest + 1)]
    totals = [of_policies.sum(1) for of_policies in counts]
    present, winner = leading_window(np.stack(totals))
    sizes = np.full(totals[0].shape, np.iinfo(np.int64).max)
    for length in range(1, longest + 1):
        winning = pooled_sizes(counts[length - 1], totals[length - 1], length)
        for now in range(1, longest + 1):
            at = np.flatnonzero(present == now)
            if now != length and len(at):
                overtaking = _overtaking(counts[length - 1][at], counts[now - 1][at], totals[length - 1][at], totals[now - 1][at], length, now, winner[at])
                winning[at] = np.maximum(winning[at], overtaking)
        sizes = np.minimum(sizes, winning)
    sizes[np.arange(len(winner)), winner] = 0
    return winner, sizes


def leading_window(totals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The length of the window in which the first leads the second by most votes per step, the shortest of ties, and the first there, by the votes in the windows of the last 1, 2, ... steps:
    int64 [W, S, A] -> [S], [S]."""
    ordered = np.sort(totals, axis=2)
    leads = ordered[:, :, -1] - ordered[:, :, -2]
    present, lead = np.ones(totals.shape[1], np.int64), leads[0].copy()
    for length in range(2, len(totals) + 1):
        longer = leads[length - 1] * present > lead * length
        present, lead = np.where(longer, length, present), np.where(longer, leads[length - 1], lead)
    return present, totals[present - 1, np.arange(len(present))].argmax(1)


def _overtaking(counts, counts_now, totals, totals_now, length: int, now: int, winner: np.ndarray) -> np.ndarray:
    """For every action the least number of changed policies with which a window of this length, won by it, could lead by more per step than the one of length `now` that
    `winner` [S] won: counts [S, u, A] and totals [S, A] of both -> [S, A]."""
    actions = totals.shape[1]
    rows, each = np.arange(len(winner)), np.eye(actions, dtype=np.int64)
    # What one vote is worth in the present window against each c, by the action voted for, [S, c, A]; and the present votes, [S, u, c].
    here = length * (each - each[winner][:, None])
    worth_here = length * (counts_now - np.take_along_axis(counts_now, winner[:, None, None], 2))
    needed_here = length * (totals_now[rows, winner][:, None] - totals_now) + (length > now)
    alone = (max(length, now) - min(length, now)) * (now if length > now else length)
    found = np.zeros(totals.shape, np.int64)
    for action in range(actions):
        best = np.where(np.arange(actions) == action, -1, totals).argmax(1)
        for behind in (best, winner):
            there = now * (each[action] - each[behind])
            worth_there = now * (counts[:, :, [action]] - np.take_along_axis(counts, behind[:, None, None], 2))
            gains = min(length, now) * (there[:, None] + here).max(2)[:, None] + alone - worth_there - worth_here
            needed = needed_here - now * (totals[:, action] - totals[rows, behind])[:, None]
            owners = least_owners(gains, needed)
            owners[rows, winner] = np.iinfo(np.int64).max
            # An action is not behind itself.
            found[:, action] = np.maximum(found[:, action], np.where(behind == action, 0, owners.min(1)))
    return found
