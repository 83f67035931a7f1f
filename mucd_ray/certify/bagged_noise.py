"""Outcomes guarantees of a bag, then noise: every split of every group, by composing curves along D -> common units -> D'."""

from functools import lru_cache

import numpy as np

from mucd_ray.certify.confidence.proportions import check_count
from mucd_ray.certify.families import IDENTITY, mirrored, worst
from mucd_ray.certify.guarantees import LARGEST_RADIUS, SPLITS, THREATS, OutcomesGuarantee, split_profile, split_runs
from mucd_ray.errors import MucdError
from mucd_ray.mechanism.bag_then_noise import BagThenNoise, BagThenNoiseAccountant
from mucd_ray.mechanism.gaussian.accounting import MOST_UNITS


class BaggedNoiseGuarantees:
    """What `Guarantees` is for the sampled Gaussian mechanism, for a `BagThenNoise`.

    Bounds fall with the number of inserted and with that of removed units, so groups smaller than r are covered. Of a symmetric difference every split is:
    past SPLITS a run of neighbouring ones by the most inserted and the most removed units of any of them.

    Raises:
        MucdError: an unknown threat, an accountant that is not the exact one, or a mechanism that these units do not allow.
    """

    family = "tradeoff"

    def __init__(self, mechanism: BagThenNoise, *, units: int, threat: str = "symmetric", family: str = "tradeoff"):
        if threat not in THREATS:
            raise MucdError(f"threat {threat!r} is unknown: use one of {', '.join(THREATS)}")
        if family != self.family:
            raise MucdError(f"accountant {family!r} is for the gaussian mechanism: a {mechanism.kind} has one guarantee, {self.family!r}")
        mechanism.check(units)
        self.mechanism, self.units, self.threat = mechanism, units, threat
        self.accountant = BagThenNoiseAccountant(mechanism)
        self.at = lru_cache(None)(self._at)

    def group(self, inserted: int, removed: int) -> OutcomesGuarantee:
        """The guarantee for exactly this group."""
        inserted, removed = check_count(inserted, "inserted", 0), check_count(removed, "removed", 0)
        if inserted == removed == 0:
            return OutcomesGuarantee(IDENTITY)
        if removed > self.units:
            raise MucdError(f"{removed} units cannot be removed from {self.units}: ask for at most that many")
        if inserted + removed > MOST_UNITS:
            raise MucdError(f"a group of {inserted + removed} units is above {MOST_UNITS}, the most that is accounted for: ask for a smaller radius")
        return OutcomesGuarantee(mirrored(lambda p: self.accountant.lower(p, self.units, inserted, removed)))

    def _at(self, radius: int) -> OutcomesGuarantee:
        if radius < 0:
            raise MucdError(f"radius {radius} is negative")
        radius = int(radius)
        mixed = [(radius - low, high) for low, high in split_runs(radius, SPLITS)] if self.threat == "symmetric" else []
        pairs = [self.group(inserted, min(removed, self.units)).pair for inserted, removed in [*PURE_GROUPS[self.threat](radius), *mixed]]
        return OutcomesGuarantee(worst(pairs))

    def least(self, radius: int, value) -> float:
        """As `ClosedFormGuarantees.least`, of the worst split at every probability."""
        return value(self.at(radius).lower)

    @property
    def largest_radius(self) -> int:
        """Beyond it nothing is accounted for, and nothing is claimed."""
        return LARGEST_RADIUS[self.threat]

    errs = "safe side: an attack that adds up all noisy sums leaves at most this much more probability than the reported bound, at 1999 probabilities from 0.0005 to 0.9995"

    def discretisation_error(self, radius: int) -> float:
        """How far above `at(radius).lower` an attack that can be run stays at most, over 1999 evenly spread probabilities."""
        p = np.linspace(0.0, 1.0, 2001)[1:-1]
        groups = [(inserted, min(removed, self.units)) for inserted, removed in PURE_GROUPS[self.threat](int(radius))]
        attained = np.minimum.reduce([self.accountant.attainable(self.units, *group)(p) for group in groups])
        return float(np.max(attained - self.at(radius).lower(p)))

    def split_profile(self, radius: int, probability: float, splits: int = 9) -> dict:
        """As `Guarantees.split_profile`."""
        return split_profile(self, radius, probability, splits)


# The groups (inserted, removed) of each threat, all but the mixed ones of a symmetric difference.
PURE_GROUPS = {
    "insert": lambda r: [(r, 0)],
    "remove": lambda r: [(0, r)],
    "substitute": lambda r: [(r, r)],
    "symmetric": lambda r: [(r, 0), (0, r)],
}
