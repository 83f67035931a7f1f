"""Outcomes guarantees of mechanisms that have them in closed form: bags and partitions, whatever the learner is."""

import heapq
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from mucd_ray.certify.bagged_noise import BaggedNoiseGuarantees
from mucd_ray.certify.confidence.proportions import LARGEST, check_count
from mucd_ray.certify.families import IDENTITY, mirrored, worst
from mucd_ray.certify.guarantees import THREATS, Guarantees, OutcomesGuarantee, split_profile
from mucd_ray.errors import MucdError
from mucd_ray.mechanism.bag import ROUNDING, Bag
from mucd_ray.mechanism.bag_then_noise import BagThenNoise
from mucd_ray.mechanism.gaussian.mechanism import Mechanism
from mucd_ray.mechanism.kinds import AnyMechanism
from mucd_ray.mechanism.work import spend

# What any radius takes beside its logarithms: some tenths of a millisecond of Python.
RADIUS_OPERATIONS = 30_000
# Runs of splits that `least` looks at.
RUNS = 64


class ClosedFormGuarantees:
    """What `Guarantees` is for the sampled Gaussian mechanism, for a `Bag` or a `Partition`.

    The number of units of D is known and enters; that of D' follows from the group. Of a symmetric difference of r units the worst split is
    one of the two pure ones (docs/theorems.md, "Which split of a bag is worst"), and fewer than r changed units are no worse.

    Raises:
        MucdError: an unknown threat, an accountant that is not the exact one, or a mechanism that these units do not allow.
    """

    family = "tradeoff"

    def __init__(self, mechanism, *, units: int, threat: str = "symmetric", family: str = "tradeoff"):
        if threat not in THREATS:
            raise MucdError(f"threat {threat!r} is unknown: use one of {', '.join(THREATS)}")
        if family != self.family:
            raise MucdError(f"accountant {family!r} is for the gaussian mechanism: a {mechanism.kind} has one exact guarantee, {self.family!r}")
        mechanism.check(units)
        self.mechanism, self.units, self.threat = mechanism, units, threat
        self.at = lru_cache(None)(self._at)

    def group(self, inserted: int, removed: int) -> OutcomesGuarantee:
        """The guarantee for exactly this group."""
        inserted, removed = check_count(inserted, "inserted", 0, 2 * LARGEST), check_count(removed, "removed", 0)
        if inserted == removed == 0:
            return OutcomesGuarantee(IDENTITY)
        if removed > self.units:
            raise MucdError(f"{removed} units cannot be removed from {self.units}: ask for at most that many")
        return OutcomesGuarantee(mirrored(lambda p: self.mechanism.lower(p, self.units, inserted, removed)))

    def _at(self, radius: int) -> OutcomesGuarantee:
        if radius < 0:
            raise MucdError(f"radius {radius} is negative")
        radius = int(radius)
        spend(RADIUS_OPERATIONS)
        return OutcomesGuarantee(worst([self.group(*group).pair for group in PURE_GROUPS[self.threat](radius, min(radius, self.units))]))

    def least(self, radius: int, value: Callable[[Callable[[np.ndarray], np.ndarray]], float]) -> float:
        """A lower bound on value(lower) over the maps `lower` of every group within `radius`, each by itself; `value` must not fall where `lower` rises.

        A dataset D' has one split, and `at` is the worst one at every probability anew: the least value over splits is no less than its value, and more where the
        worst split of small probabilities is not that of large ones. A run of splits is bounded by the most inserted and the most removed units of any of them; the run
        that looks worst is halved, until it is a single split or RUNS of them were looked at.
        """
        pointwise = value(self.at(radius).lower)
        if self.threat != "symmetric" or self.mechanism.kind != Bag.kind or radius < 1:
            return pointwise

        def run(fewest: int, most: int) -> tuple[float, int, int]:
            spend(RADIUS_OPERATIONS)
            return value(self.group(most, radius - fewest).lower), fewest, most

        runs = [run(radius - min(radius, self.units), radius)]
        while runs[0][1] < runs[0][2] and len(runs) < RUNS:
            _, fewest, most = heapq.heappop(runs)
            middle = (fewest + most) // 2
            heapq.heappush(runs, run(fewest, middle))
            heapq.heappush(runs, run(middle + 1, most))
        return max(pointwise, runs[0][0])

    @property
    def largest_radius(self) -> int:
        """Beyond it nothing is left to claim: a part or a common unit is needed."""
        return 2 * self.units

    errs = "safe side: an allowance for floating-point error; a learner exists that leaves no more than the exact bound"

    def discretisation_error(self, radius: int) -> float:
        """How far the bounds lie below the exact ones at most, in floating point; the exact ones are attained by some learner."""
        return 2 * ROUNDING

    def split_profile(self, radius: int, probability: float, splits: int = 9) -> dict:
        """As `Guarantees.split_profile`."""
        return split_profile(self, radius, probability, splits)


# The groups (inserted, removed) that hold the worst one of each threat, from r and from the most units that can be removed.
PURE_GROUPS = {
    "insert": lambda r, most: [(r, 0)],
    "remove": lambda r, most: [(0, most)],
    "substitute": lambda r, most: [(most, most)],
    "symmetric": lambda r, most: [(r, 0), (r - most, most)],
}


AnyGuarantees = Guarantees | BaggedNoiseGuarantees | ClosedFormGuarantees


def guarantees_of(mechanism: AnyMechanism, *, units: int, threat: str = "symmetric", family: str = "tradeoff") -> AnyGuarantees:
    """The outcomes guarantees of a mechanism of any kind, for a dataset of so many units."""
    if isinstance(mechanism, Mechanism):
        return Guarantees(mechanism, threat=threat, family=family)
    if isinstance(mechanism, BagThenNoise):
        return BaggedNoiseGuarantees(mechanism, units=units, threat=threat, family=family)
    return ClosedFormGuarantees(mechanism, units=units, threat=threat, family=family)
