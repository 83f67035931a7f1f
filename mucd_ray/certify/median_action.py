"""Action level, continuous: where the median action of an ensemble trained on D' must lie, dimension by dimension.

For a dimension let t+ be such that lower_r(P_D(a <= t+)) > 1/2. Then more than half of the instances trained on any D' within r of D
act at or below t+, so every median of theirs is at most t+; likewise t- from the other side (theory section 6). t+ and t- are order
statistics of the instances' actions, and the order statistic depends on r and the number of instances alone.
"""

import math

import numpy as np

from mucd_ray.certify.confidence.bands import order_statistic_band
from mucd_ray.certify.confidence.proportions import check_eta
from mucd_ray.certify.guarantees import Bounds
from mucd_ray.certify.radius import largest_radii
from mucd_ray.mechanism.work import spend


class MedianActions:
    """Intervals of the median action at S states with d dimensions, in levels of the action range.

    Args:
        histogram: levels of the instances' actions, [S, d, K+1].
        eta: each state's intervals, in all dimensions and for all r, hold together with probability 1 - eta; pass eta/S for all states.
    """

    def __init__(self, histogram: np.ndarray, guarantees: Bounds, *, eta: float):
        self.guarantees, self.instances = guarantees, int(histogram[0, 0].sum())
        self.levels = histogram.shape[2] - 1
        self.cumulative = np.cumsum(histogram, axis=2)
        # P(a > the j-th smallest action) <= beyond[P - j]; two sides in each dimension.
        self.beyond = order_statistic_band(self.instances, check_eta(eta) / (2 * histogram.shape[1]))

    def rank(self, radius: int) -> int:
        """The least j for which more than half of the instances under D' act at or below the j-th smallest action; P + 1 if none."""
        lower = self.guarantees.at(radius).lower
        low, high = 1, self.instances + 1
        while low < high:
            middle = (low + high) // 2
            if lower(1.0 - self.beyond[self.instances - middle]) > 0.5:
                high = middle
            else:
                low = middle + 1
        return low

    def interval(self, radius: int) -> tuple[np.ndarray, np.ndarray]:
        """(lower, upper) ends [S, d] as shares of the action range, 0 to 1; the whole range where nothing is certified."""
        lower, upper = self._ends(radius)
        return lower / self.levels, upper / self.levels

    def half_width(self, radius: int) -> np.ndarray:
        """Half-widths [S, d] as shares of the action range, at most 0.5."""
        lower, upper = self._ends(radius)
        return (upper - lower) / (2 * self.levels)

    def radii(self, tolerance: float, cap: int) -> np.ndarray:
        """Largest r <= cap at which all dimensions' half-widths are at most `tolerance` of the range -> [S]; -1 where none."""
        widest = math.floor(2 * tolerance * self.levels + 1e-9)

        def within(radius):
            lower, upper = self._ends(radius)
            return (upper - lower <= widest).all(axis=1)

        return largest_radii(within, min(cap, self.guarantees.largest_radius))

    def median(self) -> np.ndarray:
        """The median action of the instances on D, [S, d], as a share of the range: the middle of its level's cell."""
        return np.minimum(self._level((self.instances + 1) // 2) + 0.5, self.levels) / self.levels

    def _ends(self, radius: int) -> tuple[np.ndarray, np.ndarray]:
        """The interval's ends in levels, each the outer end of its level's cell: the safe side."""
        rank = self.rank(radius)
        if rank > self.instances:
            shape = self.cumulative.shape[:2]
            return np.zeros(shape, int), np.full(shape, self.levels)
        return self._level(self.instances + 1 - rank), np.minimum(self._level(rank) + 1, self.levels)

    def _level(self, rank: int) -> np.ndarray:
        """Level of the rank-th smallest action, [S, d]."""
        spend(self.cumulative.size)
        return (self.cumulative < rank).sum(axis=2)
