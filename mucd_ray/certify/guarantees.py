"""Outcomes guarantees: from the probability of an event under D to bounds on its probability under D'.

`lower(p) <= P[M(D') in S] <= upper(p)` for every event S with P[M(D) in S] = p, and every D' that a threat model allows
(seeds: "Enhancing the Antidote", Definition 7). Which bounds hold for one group of changed units is in `families.py`.
"""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from mucd_ray.certify.confidence.proportions import check_count
from mucd_ray.certify.families import FAMILIES, IDENTITY, Pair, mirrored, slopes_at_most_one, worst
from mucd_ray.errors import MucdError
from mucd_ray.mechanism.gaussian.accounting import MOST_UNITS, GroupAccountant
from mucd_ray.mechanism.gaussian.mechanism import Mechanism

# Splits of a symmetric difference are covered by at most this many groups; past it a group's bound is that of its union, which
# costs at most r / SPLITS units of radius.
SPLITS = 256
RENYI_SPLITS = 64
# The largest radius that is searched: there the union of any such group of splits has no more units than are accounted for.
LARGEST_RADIUS = {"symmetric": MOST_UNITS - MOST_UNITS // 50, "insert": MOST_UNITS, "remove": MOST_UNITS, "substitute": MOST_UNITS // 2}
# Sizes per octave of the pure groups from which chains are built.
ANCHORS_PER_OCTAVE = 4
ADP_GRID = 512
# Chains that fall short of the pure splits by more than this are replaced by exact pairs; at how many even levels of p and of the
# bound this is looked at, and how far from 0 and 1.
SLACK = 5e-4
GRID = 64
LEAST_PROBABILITY = 1e-4
# Probabilities at which a bound is evaluated at a time: all splits of each are in memory together.
POINTS_AT_A_TIME = 1 << 14


@dataclass(frozen=True)
class OutcomesGuarantee:
    """lower(p) <= P[M(D') in S] <= upper(p) whenever P[M(D) in S] = p; arguments and results have the same shape."""

    pair: Pair

    def lower(self, p):
        p = _probabilities(p)
        return np.clip(_in_parts(self.pair.lower, p), 0.0, p)

    def upper(self, p):
        p = _probabilities(p)
        return np.clip(_in_parts(self.pair.upper, p), p, 1.0)


def _in_parts(bound, p: np.ndarray) -> np.ndarray:
    flat = p.reshape(-1)
    parts = [bound(flat[start : start + POINTS_AT_A_TIME]) for start in range(0, max(len(flat), 1), POINTS_AT_A_TIME)]
    return np.concatenate(parts).reshape(p.shape)


def _probabilities(p) -> np.ndarray:
    p = np.asarray(p, dtype=float)
    if np.any(outside := ~((p >= 0) & (p <= 1))):
        raise MucdError(f"probability {p[outside].flat[0]} is outside [0, 1]")
    return p


# What D' may be, seen from D. One-sided threats have a direction: if D is the poisoned set, what was done to it is the reverse.
THREATS = {
    "symmetric": "differs from D by up to r {units} inserted or removed in total",
    "insert": "is D with up to r {units} inserted",
    "remove": "is D with up to r {units} removed",
    "substitute": "is D with up to r {units} replaced by others",
}
# Which of the two datasets an attacker may have made.
READINGS = {
    "symmetric": "D may be the poisoned set and D' the clean one, or the other way round",
    "insert": "D' is the poisoned set of an attacker who inserts; if D itself may hold inserted {units}, certify against `remove`",
    "remove": "D' is the poisoned set of an attacker who removes, or the clean one if an attacker inserted {units} into D",
    "substitute": "D may be the poisoned set and D' the clean one, or the other way round",
}


class Bounds(Protocol):
    """What certificates of actions ask of the guarantees of a mechanism of any kind, or of a table of them."""

    @property
    def at(self) -> Callable[[int], OutcomesGuarantee]:
        """The guarantee that holds for every D' within a radius."""

    @property
    def largest_radius(self) -> int:
        """Beyond it nothing is claimed."""


class Guarantees:
    """Outcomes guarantees of one mechanism against one threat model, for every radius r.

    The group of D' against D is: `insert` (r, 0), `remove` (0, r), `substitute` (r, r), and for `symmetric` every split
    inserted + removed = r. Groups smaller than r are covered because the bounds fall with either number.

    Every split of a symmetric difference is covered: the lower map is the least, the upper map the greatest over all splits. The
    two pure ones are accounted exactly. A mixed one is bounded, for `tradeoff` and `adp`, by composing pure curves along D ->
    remove -> insert -> D' (trade-off functions compose), and where that falls short of the pure ones by its own mixture pair or
    that of a run of splits around it. For `rdp` and `rdp-mirrored` all mixed splits are accounted by the pairs of runs. `adp-group`
    and `published` depend on the number of units alone. That a pure split is the worst is never assumed (docs/theorems.md).
    """

    def __init__(self, mechanism: Mechanism, *, threat: str = "symmetric", family: str = "tradeoff"):
        if threat not in THREATS:
            raise MucdError(f"threat {threat!r} is unknown: use one of {', '.join(THREATS)}")
        if family not in FAMILIES:
            raise MucdError(f"accountant {family!r} is unknown: use one of {', '.join(FAMILIES)}")
        self.mechanism, self.threat, self.family = mechanism, threat, family
        self.accountant = GroupAccountant(mechanism)
        self.at = lru_cache(None)(self._at)

    def group(self, inserted: int, removed: int) -> OutcomesGuarantee:
        """The guarantee for exactly this group.

        Raises:
            MucdError: a negative number, or more units than are accounted for.
        """
        inserted, removed = check_count(inserted, "inserted", 0), check_count(removed, "removed", 0)
        if inserted + removed > MOST_UNITS:
            raise MucdError(f"a group of {inserted + removed} units is above {MOST_UNITS}, the most that is accounted for: ask for a smaller radius")
        return OutcomesGuarantee(self._pair(inserted, removed))

    @property
    def largest_radius(self) -> int:
        """Beyond it nothing is accounted for, and nothing is claimed."""
        return LARGEST_RADIUS[self.threat]

    def _pair(self, inserted: int, removed: int) -> Pair:
        return IDENTITY if inserted == removed == 0 else FAMILIES[self.family](self.accountant, inserted, removed)

    def _at(self, radius: int) -> OutcomesGuarantee:
        """The guarantee that holds for every D' within `radius` of D."""
        if radius < 0:
            raise MucdError(f"radius {radius} is negative")
        if radius == 0 or self.threat == "insert":
            return self.group(radius, 0)
        if self.threat == "remove":
            return self.group(0, radius)
        if self.threat == "substitute":
            return self.group(radius, radius)
        mixed = MIXED_SPLITS[self.family]
        if mixed is None:
            return self.group(radius, 0)
        return OutcomesGuarantee(worst([self._pair(radius, 0), self._pair(0, radius), *mixed(self, radius)]))

    def least(self, radius: int, value) -> float:
        """As `ClosedFormGuarantees.least`, of the worst split at every probability."""
        return value(self.at(radius).lower)

    # What `discretisation_error` says, in words.
    errs = "safe side: an attack that can be run leaves at most this much more probability than the reported bound, at 1999 probabilities from 0.0005 to 0.9995"

    def discretisation_error(self, radius: int) -> float:
        """How far above `at(radius).lower` an attack that can be run stays at most, over 1999 evenly spread probabilities.

        No guarantee that holds can be better by more there. For a symmetric difference the attacks are those of the pure splits, and
        the proof for the mixed ones is part of the distance.
        """
        pure = {"insert": [(radius, 0)], "remove": [(0, radius)], "substitute": [(radius, radius)], "symmetric": [(radius, 0), (0, radius)]}
        p = np.linspace(0.0, 1.0, 2001)[1:-1]
        attained = np.minimum.reduce([self.accountant.attainable(*group)(p) for group in pure[self.threat]])
        return float(np.max(attained - self.at(radius).lower(p)))

    def split_profile(self, radius: int, probability: float, splits: int = 9) -> dict:
        """See `split_profile`."""
        return split_profile(self, radius, probability, splits)

    def _mixed_pairs(self, radius: int) -> list[Pair]:
        return [self._pair(radius - low, high) for low, high in split_runs(radius, RENYI_SPLITS)]

    def _chained(self, radius: int) -> list[Pair]:
        chains = self._chains(radius)
        return self._refined(radius, mirrored(chains), SLACK) if chains else []

    def _chained_tangents(self, radius: int) -> list[Pair]:
        chains = self._chains(radius)
        if not chains:
            return []
        # A chain is convex, so between grid points it lies at most one grid step further from the diagonal.
        grid = np.linspace(0.0, 1.0, ADP_GRID + 1)
        distance = grid - chains(grid)
        turn, total_variation = grid[np.argmax(distance, axis=1)], distance.max(axis=1) + 1 / ADP_GRID
        return self._refined(radius, slopes_at_most_one(chains, turn[:, None], total_variation[:, None]), SLACK + 1 / ADP_GRID)

    def _refined(self, radius: int, chains: Pair, slack: float) -> list[Pair]:
        """All mixed splits: by `chains`, [n] -> [groups, n], where these suffice, elsewhere also by exact pairs of runs of splits.

        What is no lower than the pure splits, less `slack` and less 1/SPLITS of the radius, at the points of `_grid` suffices. This
        decides how the splits are covered, and so how tight the bound is; that it holds does not depend on it.
        """
        groups = np.array(split_runs(radius, SPLITS))
        grid = self._grid(radius)
        larger = min(radius + radius // SPLITS, MOST_UNITS)
        pure = worst([self._pair(larger, 0), self._pair(0, larger)])
        least, most = pure.lower(grid) - slack, pure.upper(grid) + slack
        lower = chains.lower(grid)
        # The grid is its own mirror image.
        upper = 1.0 - lower[:, ::-1] if self.family == "tradeoff" else chains.upper(grid)
        proved = np.all((lower >= least) & (upper <= most), axis=1)
        runs = []

        def cover(low: int, high: int):
            """Of all that remove low..high units, the pair with the most inserted and the most removed ones dominates every one."""
            middle = (low + high) // 2
            if radius - low + high > MOST_UNITS:
                cover(low, middle)
                cover(middle + 1, high)
                return
            exact = self._pair(radius - low, high)
            rows = np.flatnonzero((groups[:, 0] <= high) & (groups[:, 1] >= low))
            below = np.maximum(exact.lower(grid), lower[rows].min(axis=0))
            above = np.minimum(exact.upper(grid), upper[rows].max(axis=0))
            if high - low < max(1, radius // SPLITS) or np.all((below >= least) & (above <= most)):
                runs.append((rows, exact))
            else:
                cover(low, middle)
                cover(middle + 1, high)

        edges = np.flatnonzero(np.diff(np.concatenate([[True], proved, [True]])))
        for first, end in zip(edges[::2], edges[1::2], strict=True):
            cover(int(groups[first, 0]), int(groups[end - 1, 1]))

        # Where chains prove everything no rows are copied.
        kept = slice(None) if proved.all() else proved

        def lower_map(p):
            values = chains.lower(p)
            parts = [np.maximum(exact.lower(p), values[rows].min(axis=0)) for rows, exact in runs]
            return np.minimum.reduce([values[kept].min(axis=0, initial=1.0), *parts])

        def upper_map(p):
            values = chains.upper(p)
            parts = [np.minimum(exact.upper(p), values[rows].max(axis=0)) for rows, exact in runs]
            return np.maximum.reduce([values[kept].max(axis=0, initial=0.0), *parts])

        return [Pair(lower_map, upper_map)]

    def _grid(self, radius: int) -> np.ndarray:
        """Probabilities spread evenly, and so that the bounds of the pure splits are; with every p also 1 - p."""
        even = np.linspace(0.0, 1.0, GRID + 1)
        curves = self.accountant.curve(radius, 0), self.accountant.curve(0, radius)
        p = np.concatenate([even, *(np.interp(even, curve.under_q, curve.under_p) for curve in curves)])
        half = np.unique(np.clip(np.minimum(p, 1.0 - p), LEAST_PROBABILITY, 0.5))
        return np.concatenate([half, 1.0 - half[::-1]])

    def _chains(self, radius: int):
        """The bounds of all mixed splits, by chains of pure curves: one function from p [n] to [splits, n]; None at r = 1."""
        pairs = split_runs(radius, SPLITS)
        removals = _chain_links(np.array([high for _, high in pairs], dtype=int))
        insertions = _chain_links(radius - np.array([low for low, _ in pairs], dtype=int))
        curve = self.accountant.curve

        def chains(p):
            value = np.tile(p, (len(pairs), 1))
            for part, rows in removals:
                value[rows] = curve(0, part)(value[rows])
            for part, rows in insertions:
                value[rows] = curve(part, 0)(value[rows])
            return value

        return chains if pairs else None


def split_profile(guarantees, radius: int, probability: float, splits: int = 9) -> dict:
    """How the lower bound at `probability` depends on the split of a symmetric difference, to see which split is worst.

    Args:
        guarantees: of any kind of mechanism, against the threat `symmetric`.
        radius: number of changed units, r >= 1.
        splits: how many evenly spread splits, >= 2; both pure ones are always among them.

    Returns:
        plain values: `radius`, `probability`, lists `inserted`, `removed` and `bound` of equal length in the order of
        `removed`, and `exact`: true, every bound is that of the split's own group, not of a chain.

    Raises:
        MucdError: another threat than `symmetric` (it has one split only), or a value outside its range.
    """
    if guarantees.threat != "symmetric":
        raise MucdError(f"threat {guarantees.threat!r} has one split only: ask for the profile of `symmetric`")
    if radius < 1 or splits < 2:
        raise MucdError(f"radius {radius} must be at least 1 and splits {splits} at least 2")
    removed = [int(k) for k in np.unique(np.rint(np.linspace(0, radius, splits)).astype(int))]
    return {
        "radius": int(radius),
        "probability": float(probability),
        "inserted": [int(radius) - k for k in removed],
        "removed": removed,
        "bound": [float(guarantees.group(int(radius) - k, k).lower(probability)) for k in removed],
        "exact": True,
    }


# How a family covers the mixed splits of a symmetric difference; None where only the number of units counts.
MIXED_SPLITS = {
    "tradeoff": Guarantees._chained,
    "rdp": Guarantees._mixed_pairs,
    "rdp-mirrored": Guarantees._mixed_pairs,
    "adp": Guarantees._chained_tangents,
    "adp-group": None,
    "published": None,
}


def split_runs(radius: int, groups: int) -> list[tuple[int, int]]:
    """Intervals [low, high] of the number removed that together hold 1 .. radius-1; of length 1 where radius <= groups."""
    edges = np.unique(np.linspace(1, radius, min(radius, groups + 1)).astype(int))
    return [(int(a), int(b) - 1) for a, b in zip(edges[:-1], edges[1:], strict=True)]


# Sizes from one fixed ladder, so that all groups of all radii share their curves.
_LADDER = sorted({round(2 ** (k / ANCHORS_PER_OCTAVE)) for k in range(32 * ANCHORS_PER_OCTAVE)})


def _chain_links(units: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Each of `units` [n] as a sum of few different ladder sizes: [(size, rows that have it)], largest first."""
    left, links = units.copy(), []
    for size in reversed(_LADDER[: bisect_right(_LADDER, units.max(initial=0))]):
        rows = np.flatnonzero(left >= size)
        left[rows] -= size
        if len(rows):
            links.append((size, rows))
    assert not left.any()
    return links
