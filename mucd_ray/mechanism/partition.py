"""Partition: units are sorted into parts by a public hash of their content, and one policy is trained on each part, without any chance."""

import hashlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mucd_ray.errors import MucdError
from mucd_ray.mechanism.units import UNITS
from mucd_ray.mechanism.work import spend

# Allowance for floating-point error in the bound below.
ROUNDING = 1e-15
# Parts times spread: what a table of the parts of every bucket may hold.
MOST_REACHED = 1 << 24


@dataclass(frozen=True, kw_only=True)
class Partition:
    """One policy per part of the data; M(D) is one of these policies, drawn at random.

    Attributes:
        unit: what is sorted into parts and what an attacker changes: "transition" or "trajectory".
        parts: u >= 1, a public constant. Some parts may be empty: they have the public default policy.
        spread: d parts hold each unit. Units are sorted into u buckets by their hash, and bucket h belongs to the parts `reached()[h]`.

    Formal guarantees: a unit belongs to d parts, by its own content alone, and a part's policy is a function of the units in it (a set: their
    order and what else is in the data have no influence) and of public constants. So a inserted and b removed units change at most d (a + b)
    of the u policies, and

        P[M(D') in S] >= p - d (a + b) / u    whenever P[M(D) in S] = p.

    With d = 1 this is the partition of DPA (Levine and Feizi 2021, arXiv 2006.14768) and COPA (Wu et al. 2022, arXiv 2203.08398), read as a random policy; with more that of
    Finite Aggregation (Wang, Levine and Feizi 2022, arXiv 2202.02628, with u = kd).

    Raises:
        MucdError: a field is outside its range.
    """

    kind: ClassVar[str] = "partition"
    unit: str = "trajectory"
    parts: int
    spread: int = 1

    def __post_init__(self):
        if self.unit not in UNITS:
            raise MucdError(f"unit {self.unit!r} is unknown: use one of {', '.join(UNITS)}")
        if not (isinstance(self.parts, int) and self.parts >= 1):
            raise MucdError(f"parts {self.parts} must be a whole number, at least 1")
        if not (isinstance(self.spread, int) and 1 <= self.spread <= self.parts and (self.spread == 1 or self.parts * self.spread <= MOST_REACHED)):
            raise MucdError(f"spread {self.spread} must be a whole number from 1 to the number of parts, {self.parts}, and parts times spread at most {MOST_REACHED:,}")

    def reached(self) -> np.ndarray:
        """The parts that hold the units of each bucket, int64 [u, d]: bucket h and d - 1 public shifts of it, those of the numbers below u with the least hashes."""
        spend(100 * self.parts + self.parts * self.spread)
        shifts = sorted(range(1, self.parts), key=lambda shift: hashlib.sha256(f"{self.parts};{shift}".encode()).digest())[: self.spread - 1] if self.spread > 1 else []
        return (np.arange(self.parts)[:, None] + [0, *shifts]) % self.parts

    def check(self, units: int) -> None:
        """Raise MucdError where there are more parts than units."""
        if self.parts > units:
            raise MucdError(f"{self.parts} parts of {units} {UNITS[self.unit]} would mostly be empty: use at most one part per {self.unit}")

    def lower(self, p: np.ndarray, units: int, inserted: int, removed: int) -> np.ndarray:
        """Least probability under D' of events with these probabilities under D, [n] -> [n]; see the class. `units` plays no role."""
        return np.maximum(0.0, p - self.spread * (inserted + removed) / self.parts - ROUNDING)
