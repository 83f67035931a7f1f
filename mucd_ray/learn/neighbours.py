"""Exact search for the nearest units: whose votes they are depends on the state, on the units' own content, and on nothing else."""

import hashlib

import numpy as np

from mucd_ray.errors import MucdError
from mucd_ray.learn.trainers.parts import content_digest
from mucd_ray.learn.units import Units

# Numbers in a temporary array of distances.
ENTRIES_AT_A_TIME = 1 << 22
HALF_UNIT = 2.0**-53


class Nearest:
    """The units of a dataset, to be asked for those nearest to a state.

    The distance of a unit is that of its nearest transition, the first of them where several are as near, whose action is the unit's vote. Units as near as one another are
    ordered by a hash of their content; of units of one content every further copy has a hash of its own, so that copies do not vote as a block.
    A unit without transitions (one that earned less than a public threshold) never votes, nor does one with an entry that is not finite.

    Distances are *defined* as computed here in float64, difference by difference, square by square, added feature by feature: each of these operations is
    rounded by itself (IEEE 754), whatever stands beside it. A matrix product, whose rounding depends on the place, only finds candidates, with a bound on
    its error; so no insertion or removal can change the order of other units.

    Raises:
        MucdError: continuous actions.
    """

    def __init__(self, units: Units):
        if units.actions.ndim != 1:
            raise MucdError("neighbours vote on discrete actions, and these are continuous: use --mechanism bag")
        broken = np.concatenate([[0], np.cumsum(~np.isfinite(units.features).all(axis=1))])
        voters = np.flatnonzero((units.lengths > 0) & (broken[units.starts + units.lengths] == broken[units.starts]))
        self.lengths = units.lengths[voters]
        self.starts = np.cumsum(self.lengths) - self.lengths
        rows = np.repeat(units.starts[voters] - self.starts, self.lengths) + np.arange(self.lengths.sum())
        self.features, self.votes = units.features[rows].astype(np.float64), units.actions[rows]
        self.unit_of_row = np.repeat(np.arange(len(voters)), self.lengths)
        self.keys = _keys([content_digest(units, int(units.starts[voter]), int(units.lengths[voter])) for voter in voters])
        self.norms = (self.features**2).sum(1)
        # Of a norm plus a norm: three sums of d terms, each rounded at most d + 4 times, relative to at most twice these norms; doubled.
        self.error = 8 * (self.features.shape[1] + 4) * HALF_UNIT

    def __len__(self) -> int:
        """How many units vote."""
        return len(self.starts)

    def votes_at(self, states: np.ndarray, most: int) -> np.ndarray:
        """Votes of the min(`most`, units) nearest units of every state, nearest first: features [n, d] -> int64 [n, L].

        Raises:
            MucdError: a state that is not finite.
        """
        if not np.isfinite(states).all():
            raise MucdError("a state has entries that are not finite, to which nothing is near: give finite ones")
        states, most = states.astype(np.float64), min(most, len(self))
        found = np.zeros((len(states), most), np.int64)
        if most:
            step = max(1, ENTRIES_AT_A_TIME // len(self.features))
            for start in range(0, len(states), step):
                self._search(states[start : start + step], found[start : start + step])
        return found

    def _search(self, states: np.ndarray, found: np.ndarray) -> None:
        most = found.shape[1]
        around, sums = (-2 * states) @ self.features.T, self.norms + (states**2).sum(1)[:, None]
        around += sums
        sums *= self.error
        lower, upper = around - sums, around + sums
        of_units = (np.minimum.reduceat(bound, self.starts, axis=1) for bound in (lower, upper)) if len(self.features) > len(self) else (lower, upper)
        for state, row_lower, unit_lower, unit_upper, votes in zip(states, lower, *of_units, found):
            # At least `most` units are as near as this.
            limit = np.partition(unit_upper, most - 1)[most - 1]
            reach = np.where(unit_lower <= limit, unit_upper, -np.inf)
            rows = np.flatnonzero(row_lower <= reach[self.unit_of_row])
            units = self.unit_of_row[rows]
            # Where a unit has one row to choose, and its bounds meet no other unit's, any number between them orders it.
            distances, unsure = row_lower[rows], ~self._alone(units, unit_lower, unit_upper)
            distances[unsure] = self._distances(rows[unsure], state)
            order = np.lexsort((rows, distances, units))
            nearest = order[np.diff(units[order], prepend=-1) > 0]
            ballots = self.votes[rows[nearest]]
            # Votes last: should two hashes be equal, content still decides.
            votes[:] = ballots[np.lexsort((ballots, self.keys[units[nearest]], distances[nearest]))[:most]]

    @staticmethod
    def _alone(units: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
        """Which of these rows are the only one of their unit, whose bounds [lower, upper] are apart from those of all other units here; `units` of the rows, ascending."""
        present, counts = np.unique(units, return_counts=True)
        order = np.argsort(lower[present])
        apart = lower[present[order]][1:] > np.maximum.accumulate(upper[present[order]])[:-1]
        alone = np.empty(len(present), bool)
        alone[order] = np.append(True, apart) & np.append(apart, True)
        return np.repeat(alone & (counts == 1), counts)

    def _distances(self, rows: np.ndarray, state: np.ndarray) -> np.ndarray:
        squares = np.ascontiguousarray(((self.features[rows] - state) ** 2).T)
        total = np.zeros(len(rows))
        for terms in squares:
            total += terms
        return total


def _keys(digests: list[bytes]) -> np.ndarray:
    """A number for every unit from its content, and from how many units before it have the same: uint64 [U]."""
    seen: dict[bytes, int] = {}
    keys = np.empty(len(digests), np.uint64)
    for unit, digest in enumerate(digests):
        copy = seen[digest] = seen.get(digest, -1) + 1
        keys[unit] = int.from_bytes((hashlib.sha256(digest + copy.to_bytes(8, "big")).digest() if copy else digest)[:8], "big")
    return keys
