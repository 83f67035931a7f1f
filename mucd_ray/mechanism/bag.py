"""Bagging: every instance trains on a bag of its own, by any learner whatever.

All that a learner does with its bag (deep networks, its own statistics, filtering, early stopping) is post-processing of the draw, so the
guarantee needs the law of the bag alone.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mucd_ray.errors import MucdError
from mucd_ray.mechanism.units import UNITS
from mucd_ray.mechanism.work import spend

DRAWS = ("fixed", "replacement", "poisson")
# A Poisson bag is empty, but for one draw in a thousand million, below this rate times the number of units that a file can hold.
LEAST_RATE = 1e-9
# Relative allowance for floating-point error in the probabilities below, far above that of any sum of 10^8 logarithms that is not negligible.
ROUNDING = 1e-12
# Below it doubles have ever fewer digits, and rounding may exceed that allowance: what is less counts as zero.
LEAST = 1e-300
# So many pairs of logarithms are added at most. Wherever the sum is not below -50, and so negligible, this is within 1e-12 of all of them.
TERMS = 1 << 13


@dataclass(frozen=True, kw_only=True)
class Bag:
    """Every instance draws a bag of units, independently of all others, and is A(bag, fresh randomness).

    Attributes:
        unit: what is drawn and what an attacker changes: "transition" or "trajectory".
        draws: "fixed": exactly `bag_size` different units, every set of that many as likely as any other; "replacement": `bag_size` draws, each of
            them any unit; "poisson": every unit by itself with probability `sample_rate`.
        bag_size: k >= 1, where `draws` is "fixed" or "replacement".
        sample_rate: q in (0, 1], where `draws` is "poisson". A public constant: q = k / N of a declared size, never of the true one.

    Formal guarantees: let D have n units, D' lack b of them and have a others. "All units of the bag are common to D and D'" has
    probability c_b under D and c_a under D' (`common`), and given it both bags have one and the same law. So whatever A is,

        P[M(D') in S] >= c_a max(0, p - 1 + c_b) / c_b    whenever P[M(D) in S] = p,

    and no more can be said without knowing A. For the random draws of Jia et al. 2021 (arXiv 2008.04495, draws with replacement) this is their
    certificate.

    Raises:
        MucdError: a field is outside its range, or missing, or of another kind of draw.
    """

    kind: ClassVar[str] = "bag"
    unit: str = "trajectory"
    draws: str = "fixed"
    bag_size: int | None = None
    sample_rate: float | None = None

    def __post_init__(self):
        if self.unit not in UNITS:
            raise MucdError(f"unit {self.unit!r} is unknown: use one of {', '.join(UNITS)}")
        if self.draws not in DRAWS:
            raise MucdError(f"draws {self.draws!r} are unknown: use one of {', '.join(DRAWS)}")
        if (self.sample_rate is None) == (self.draws == "poisson") or (self.bag_size is None) != (self.draws == "poisson"):
            raise MucdError(f"bags of {self.draws} draws have a {'sample rate and no bag size' if self.draws == 'poisson' else 'bag size and no sample rate'}: give that one alone")
        if self.bag_size is not None and not (isinstance(self.bag_size, int) and self.bag_size >= 1):
            raise MucdError(f"bag size {self.bag_size} must be a whole number, at least 1")
        if self.sample_rate is not None and not LEAST_RATE <= self.sample_rate <= 1:
            raise MucdError(f"sample rate {self.sample_rate} is outside [{LEAST_RATE:g}, 1]: it is the probability that a unit joins a bag")

    def check(self, units: int) -> None:
        """Raise MucdError unless bags can be drawn from this many units."""
        if self.bag_size is not None and not self.bag_size <= units:
            raise MucdError(f"bag size {self.bag_size} is above the number of {UNITS[self.unit]}, {units}: use at most that")

    def units_in_bag(self, units: int) -> float:
        """Units in a bag drawn from so many, on average."""
        return self.bag_size or units * (self.sample_rate or 0.0)

    def common(self, units: int, inserted: int, removed: int) -> tuple[float, float]:
        """(c_b, c_a), rounded down: the probabilities under D, of `units` units, and under D' that a bag holds common units alone."""
        kept, size = units - removed, self.bag_size or 0
        if kept < (1 if self.draws == "replacement" else size):
            return 0.0, 0.0

        def without(changed: int) -> float:
            if self.sample_rate is not None:
                log = _times(changed, self.sample_rate)
            elif self.draws == "replacement":
                log = size * float(_log_others(changed, kept + changed))
            else:
                log = _log_share(kept + changed, changed, size)
            value = math.exp(log) * (1 - ROUNDING) if log else 1.0
            return value if value >= LEAST else 0.0

        return without(removed), without(inserted)

    def lower(self, p: np.ndarray, units: int, inserted: int, removed: int) -> np.ndarray:
        """Least probability under D' of events with these probabilities under D, [n] -> [n]; see the class."""
        under_d, under_other = self.common(units, inserted, removed)
        if not under_d:
            return np.zeros_like(p)
        lower = under_other * np.maximum(0.0, (p - 1 + under_d) / under_d - ROUNDING * (under_d < 1))
        return np.where(lower >= LEAST, lower, 0.0)


def _times(count: int, sample_rate: float) -> float:
    """log (1 - q)^count."""
    return count * math.log1p(-sample_rate) if sample_rate < 1 else (-math.inf if count else 0.0)


def _log_others(some: int, units: np.ndarray | int) -> np.ndarray:
    """log (1 - some / units), accurate wherever the ratio is: near 1 the whole numbers are subtracted first."""
    share = some / np.asarray(units)
    return np.where(share < 0.5, np.log1p(-np.minimum(share, 0.5)), np.log((units - some) / units))


def _log_share(units: int, changed: int, size: int) -> float:
    """log C(units - changed, size) / C(units, size), the probability that none of `changed` units is in a set of `size` of them; or a little less.

    It is symmetric in `changed` and `size`, so the shorter of the two products is taken. Its logarithms are a concave sequence: where there are
    very many, every run of them is at least its length times the mean of its two ends.
    """
    few, many = sorted((changed, size))
    if few + many > units:
        return -math.inf
    run = max(1, -(-few // TERMS))
    spend(8 * (few // run))
    first = np.arange(0, few, run)
    last = np.minimum(first + run, few) - 1
    ends = _log_others(many, units - first) + _log_others(many, units - last)
    return float(((last - first + 1) * ends).sum()) / 2
