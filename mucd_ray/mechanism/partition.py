"""Partition: units are sorted into parts by a public hash of their content, and one policy is trained on each part, without any chance."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mucd_ray.errors import MucdError
from mucd_ray.mechanism.units import UNITS

# Allowance for floating-point error in the bound below.
ROUNDING = 1e-15


@dataclass(frozen=True, kw_only=True)
class Partition:
    """One policy per part of the data; M(D) is one of these policies, drawn at random.

    Attributes:
        unit: what is sorted into parts and what an attacker changes: "transition" or "trajectory".
        parts: u >= 1, a public constant. Some parts may be empty: they have the public default policy.

    Formal guarantees: a unit belongs to one part, by its own content alone, and a part's policy is a function of the units in it (a set: their
    order and what else is in the data have no influence) and of public constants. So a inserted and b removed units change at most a + b
    of the u policies, and

        P[M(D') in S] >= p - (a + b) / u    whenever P[M(D) in S] = p.

    This is the partition of DPA (Levine and Feizi 2021, arXiv 2006.14768) and COPA (Wu et al. 2022, arXiv 2203.08398), read as a random policy.

    Raises:
        MucdError: a field is outside its range.
    """

    kind: ClassVar[str] = "partition"
    unit: str = "trajectory"
    parts: int

    def __post_init__(self):
        if self.unit not in UNITS:
            raise MucdError(f"unit {self.unit!r} is unknown: use one of {', '.join(UNITS)}")
        if not (isinstance(self.parts, int) and self.parts >= 1):
            raise MucdError(f"parts {self.parts} must be a whole number, at least 1")

    def check(self, units: int) -> None:
        """Raise MucdError where there are more parts than units."""
        if self.parts > units:
            raise MucdError(f"{self.parts} parts of {units} {UNITS[self.unit]} would mostly be empty: use at most one part per {self.unit}")

    def lower(self, p: np.ndarray, units: int, inserted: int, removed: int) -> np.ndarray:
        """Least probability under D' of events with these probabilities under D, [n] -> [n]; see the class. `units` plays no role."""
        return np.maximum(0.0, p - (inserted + removed) / self.parts - ROUNDING)
