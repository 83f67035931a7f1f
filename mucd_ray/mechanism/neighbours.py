"""Nearest neighbours: nothing is trained; at a state the nearest units of the data vote on the action, without any chance."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mucd_ray.errors import MucdError
from mucd_ray.mechanism.units import UNITS
from mucd_ray.mechanism.work import spend

METRICS = ("declared", "bounds")
# Every table of votes has 2 K + 1 rows of one count per action.
MOST_NEIGHBOURS = 1 << 17
# What no change within the recorded votes brings about.
NEVER = np.int64(1) << 60

# Changed units that an attacker pays for a' insertions and b' removals among the nearest, p = a' + b' and j = b' - a', where it can have them at all.
COSTS = {
    "symmetric": lambda p, j: p,
    "insert": lambda p, j: np.where(p == -j, p, NEVER),
    "remove": lambda p, j: np.where(p == j, p, NEVER),
    "substitute": lambda p, j: (p + abs(j)) // 2,
}


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """At a state every unit has one vote, the action of its own transition nearest to the state; the K nearest units decide by most votes.

    Units are ordered by distance and then by their content (`learn/neighbours.py`), so that of units that D and D' share the order is the same in
    both. Ties of votes go to the lowest action. Where there are fewer than K units, all vote.

    Attributes:
        unit: what votes and what an attacker changes, a name of `UNITS`.
        neighbours: K >= 1, a public constant.
        metric: Euclidean distance of observations scaled by public constants, "declared" by the environment's card (its features) or by the "bounds" of the
            environment's observations (the plain observations, each entry over its range where that is finite). Never by statistics of the data.

    Formal guarantees: let n(s) be the votes of the s nearest units of D. D' has a units that D lacks and lacks b units of D; let a' <= a and b' <= b of them be
    among the nearest, so that the K nearest of D' are the first s = K + b' - a' of D (all, if it has no more) less b' plus a'. A vote changes by one with each. Hence
    action t can win under D' only if insertions for t and removals of others suffice at one such s:

        sum over c != t of max(0, n_c(s) - n_t(s) + [c < t] - a')  <=  b'.

    The least a' + b' (for replaced units max(a', b'), for one-sided threats with the other one 0) is `sizes`. The winner w stays where for all of them
    n_w(s) - n_c(s) - [c < w] >= a' + b' for every c != w: `radii`. Both are attained if units may be inserted as near as one likes.

    Raises:
        MucdError: a field is outside its range.
    """

    kind: ClassVar[str] = "neighbours"
    unit: str = "transition"
    neighbours: int
    metric: str = "declared"

    def __post_init__(self):
        if self.unit not in UNITS:
            raise MucdError(f"unit {self.unit!r} is unknown: use one of {', '.join(UNITS)}")
        if not (isinstance(self.neighbours, int) and 1 <= self.neighbours <= MOST_NEIGHBOURS):
            raise MucdError(f"neighbours {self.neighbours} must be a whole number from 1 to {MOST_NEIGHBOURS:,}")
        if self.metric not in METRICS:
            raise MucdError(f"metric {self.metric!r} is unknown: use one of {', '.join(METRICS)}")

    def check(self, units: int) -> None:
        """Raise MucdError where more are to vote than there are."""
        if self.neighbours > units:
            raise MucdError(f"{self.neighbours} neighbours are more than the {units} {UNITS[self.unit]}: use at most that many")

    @property
    def recorded(self) -> int:
        """How many of the nearest units' votes decide every radius up to K, 2 K; all, if there are no more. No vote can be certified beyond K // 2, but against removals alone."""
        return 2 * self.neighbours

    def actions(self, votes: np.ndarray, actions: int) -> np.ndarray:
        """The action at every state, counted from 0: votes [n, L] of the nearest units, nearest first -> int64 [n]."""
        return np.stack([(votes[:, : self.neighbours] == action).sum(1) for action in range(actions)], axis=1).argmax(1)

    def radii(self, votes: np.ndarray, actions: int, threats: tuple[str, ...] = ("symmetric",)) -> np.ndarray:
        """Largest r up to K at which the action stays, against each threat: votes [n, L] -> int64 [threats, n].

        Args:
            votes: of the L = min(units, `recorded`) nearest units of every state, nearest first, each an action counted from 0.
            actions: A, how many there are.
        """
        j, counts = self._windows(votes, actions)
        winner = self.actions(votes, actions)
        rows = np.arange(len(votes))
        # n_w - n_c - [c < w] at every s, and the least number of changes, of the parity of j, that is above it for some c.
        margins = np.take_along_axis(counts, winner[:, None, None], axis=2) - counts - (np.arange(actions) < winner[:, None])[:, None]
        margins[rows, :, winner] = NEVER
        above = np.maximum(margins.min(axis=2) + 1, abs(j))
        changes = above + (above - j) % 2
        return np.stack([np.minimum(COSTS[threat](changes, j).min(axis=1) - 1, self.neighbours) for threat in threats])

    def most_radius(self, units: int, threat: str) -> int:
        """Largest r, up to K, at which any action of so many units can stay: that where all of them vote for the lowest, which wins ties."""
        return int(self.radii(np.zeros((1, min(units, self.recorded)), np.int64), 2, (threat,))[0, 0])

    def sizes(self, votes: np.ndarray, actions: int, threat: str = "symmetric") -> np.ndarray:
        """Least number of changed units with which each action could be the one chosen, at most K + 1: votes [n, L] -> int64 [n, A]. 0 for the action itself.

        "At most K + 1": what takes more than K is not told apart. Arguments as of `radii`.
        """
        j, counts = self._windows(votes, actions)
        sizes = np.empty((len(votes), actions), np.int64)
        for target in range(actions):
            behind = counts - counts[:, :, target, None] + (np.arange(actions) < target)
            others = -np.sort(-np.delete(behind, target, axis=2), axis=2)
            # The sum of positive parts is the greatest, over m, sum of the m largest less m a'; with no m it says that b' is not below 0.
            inserted = np.maximum(0, -j)[None]
            for m in range(1, actions):
                inserted = np.maximum(inserted, -((j - others[:, :, :m].sum(axis=2)) // (m + 1)))
            sizes[:, target] = COSTS[threat](2 * inserted + j, j).min(axis=1)
        sizes = np.minimum(sizes, self.neighbours + 1)
        sizes[np.arange(len(votes)), self.actions(votes, actions)] = 0
        return sizes

    def _windows(self, votes: np.ndarray, actions: int) -> tuple[np.ndarray, np.ndarray]:
        """(j = -K..K [2K+1], votes of the nearest min(K + j, L) units [n, 2K+1, A])."""
        j = np.arange(-self.neighbours, self.neighbours + 1)
        spend(4 * len(votes) * len(j) * actions**2)
        counts = np.zeros((len(votes), votes.shape[1] + 1, actions), np.int64)
        np.cumsum(votes[:, :, None] == np.arange(actions), axis=1, out=counts[:, 1:])
        return j, counts[:, np.minimum(self.neighbours + j, votes.shape[1])]


def unanimous_radius(neighbours: int, lead: float = 1.0, threat: str = "symmetric") -> int:
    """Largest r that is certified where the first action leads by this share of the votes among every number s of nearest units, ties against it.

    lead (K - r) - 1 >= r, or lead K - 1 >= 2 r where each of r replaced units takes a vote from it and gives one to another. With K = 10 r a lead of a ninth, or of a
    fifth, and one vote, suffices.
    """
    return max(int((lead * neighbours - 1) // (2 if threat == "substitute" else 1 + lead)), 0)
