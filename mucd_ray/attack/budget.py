"""What an attacker may change, counted as a certificate counts it: units removed from D and units inserted into D'."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mucd_ray.certify.guarantees import THREATS
from mucd_ray.certify.rounding import exactly
from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.errors import MucdError
from mucd_ray.words import counted

UNITS = ("transition", "trajectory")
# The arrays of one row per transition, in which a transition is all that it is.
ROWS = ("observations", "next_observations", "actions", "rewards", "terminations", "truncations")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """At most `radius` units, as r of a certificate counts them against this threat; and how far a unit may be moved, by the attacks that move some.

    Attributes:
        radius: r, at least 1. Against the symmetric difference a changed unit is one removed and one inserted: it costs 2. Against `substitute` it costs 1.
        unit: "transition" or "trajectory".
        threat: as of `mucd certify`.
        per_unit: B, the largest L2 norm of what is added to a unit's observations, all its rows together; None: as far as observations lie from their mean.
        total: S, the largest sum of these norms over all units; None: no limit but B and r.
        flip: beta, the probability with which each label of a touched unit is flipped.

    Raises:
        MucdError: a field is outside its range.
    """

    radius: int
    unit: str = "trajectory"
    threat: str = "symmetric"
    per_unit: float | None = None
    total: float | None = None
    flip: float = 0.5

    def __post_init__(self):
        if type(self.radius) is not int or self.radius < 1:
            raise MucdError(f"budget {str(self.radius)[:60]} must be a whole number of units, at least 1")
        if self.unit not in UNITS:
            raise MucdError(f"attacks on units of one {str(self.unit)[:60]} are unknown: use one of {', '.join(UNITS)}")
        if self.threat not in THREATS:
            raise MucdError(f"threat {self.threat!r} is unknown: use one of {', '.join(THREATS)}")
        for name, value in (("per unit (B)", self.per_unit), ("in total (S)", self.total)):
            if value is not None and not 0 < value <= 1e300:
                raise MucdError(f"the bound {name} on observations, {exactly(value)}, must be a positive number")
        if not 0 < self.flip <= 1:
            raise MucdError(f"the probability {exactly(self.flip)} of flipping a label must be in (0, 1]")

    @property
    def inserting(self) -> tuple[int, int]:
        """How many units an attack that inserts may insert, and how many it must remove for that. Not against `remove`."""
        return {"symmetric": (self.radius, 0), "insert": (self.radius, 0), "substitute": (self.radius, self.radius)}[self.threat]

    @property
    def altering(self) -> tuple[int, int]:
        """How many altered units an attack may insert, and how many of the originals it may remove. Where r is odd, or nothing may be removed, one or all stand beside their originals."""
        return (self.radius - self.radius // 2, self.radius // 2) if self.threat == "symmetric" else self.inserting


@dataclass(frozen=True)
class Changed:
    """How two datasets differ: the two halves of the symmetric difference of their multisets of units."""

    inserted: int
    removed: int

    def radius(self, threat: str) -> int | None:
        """The least r of this threat within which D' is; None if it is within none."""
        return {
            "symmetric": self.inserted + self.removed,
            "insert": None if self.removed else self.inserted,
            "remove": None if self.inserted else self.removed,
            "substitute": self.inserted if self.inserted == self.removed else None,
        }[threat]


def changed(before: OfflineDataset, after: OfflineDataset, unit: str) -> Changed:
    """Count the units that D' has and D lacks, and the other way round, copies counted as often as they are there; where units stand says nothing."""
    old, new = Counter(contents(before, unit)), Counter(contents(after, unit))
    return Changed(inserted=(new - old).total(), removed=(old - new).total())


def contents(dataset: OfflineDataset, unit: str) -> Iterator[bytes] | list[bytes]:
    """Of every unit something that is equal for equal units alone."""
    if unit == "trajectory":
        return dataset.trajectory_digests()
    arrays = [np.ascontiguousarray(getattr(dataset, name)).reshape(len(dataset), -1) for name in ROWS]
    return (b"".join(array[row].tobytes() for array in arrays) for row in range(len(dataset)))


def check_spent(before: OfflineDataset, after: OfflineDataset, budget: Budget, attack: str) -> Changed:
    """What an attack has changed. Raises MucdError where that is more than its budget, or of another kind than its threat."""
    found = changed(before, after, budget.unit)
    spent = found.radius(budget.threat)
    if spent is None or spent > budget.radius:
        raise MucdError(
            f"attack {attack} inserted {counted(found.inserted, budget.unit)} and removed {found.removed}, which the {budget.threat} threat with r = {budget.radius} does not allow: this is a fault of the attack"
        )
    return found
