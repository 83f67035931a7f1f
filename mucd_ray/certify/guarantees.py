"""Outcomes guarantees: from the probability of an event under D to bounds on its probability under D'.

A guarantee for a group of changed units is an increasing function `lower(p)` with P[M(D') in S] >= lower(P[M(D) in S]) for every
event S; `upper(p) = 1 - lower(1 - p)` (seeds: "Enhancing the Antidote", Definition 7). Four families, each one function from
an accountant and a group (inserted, removed) to `lower`:

    tradeoff   the exact Neyman-Pearson curve of the composed pair: nothing tighter can be said from (q, sigma, T, r) and p
    rdp        sup over alpha of e^{-eps(alpha)} p^{alpha/(alpha-1)}, and its mirror image, from the exact mixture's divergences
    adp        sup over eps >= 0 of e^{-eps}(p - delta(eps)), from the exact privacy profile
    published  the seeds' Theorem 8, which replaces q by 1-(1-q)^r and leaves sigma alone. NOT SOUND; for comparison only
"""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mucd_ray.errors import MucdError
from mucd_ray.mechanism.accounting import GroupAccountant
from mucd_ray.mechanism.loss_distribution import LossDistribution, TradeoffCurve, pessimistic
from mucd_ray.mechanism.mechanism import Mechanism

LowerBound = Callable[[np.ndarray], np.ndarray]

# Orders close to 1 carry the bound where the mixture's high orders explode.
RENYI_ORDERS = 1 + np.geomspace(0.01, 255, 120)
# Splits of a symmetric difference are covered by at most this many groups; past it a group's bound is that of its union, which
# costs at most r / SPLITS units of radius.
SPLITS = 256
RENYI_SPLITS = 128
# Sizes per octave of the pure groups from which chains are built.
ANCHORS_PER_OCTAVE = 4
ADP_GRID = 512


def tradeoff(accountant: GroupAccountant, inserted: int, removed: int) -> LowerBound:
    return accountant.curve(inserted, removed)


def adp(accountant: GroupAccountant, inserted: int, removed: int) -> LowerBound:
    return _slope_at_most_one(accountant.curve(inserted, removed))


def rdp(accountant: GroupAccountant, inserted: int, removed: int) -> LowerBound:
    forward = accountant.step_loss(inserted, removed)
    # Reflecting the line turns the pair (Q, P) of a group into the pair (P, Q) of the group with the two numbers exchanged.
    backward = accountant.step_loss(removed, inserted)
    return _renyi_bound(accountant.mechanism.steps, forward, backward)


def published(accountant: GroupAccountant, inserted: int, removed: int) -> LowerBound:
    """Unsound: several poisoned units of one batch are taken to move the sum by one clip norm only (seeds, Theorem 8)."""
    mechanism = accountant.mechanism
    rate = -np.expm1((inserted + removed) * np.log1p(-mechanism.sample_rate)) if mechanism.sample_rate < 1 else 1.0
    loss = pessimistic(inserted=0, removed=1, sample_rate=rate, sigma=mechanism.noise_multiplier)
    return _renyi_bound(mechanism.steps, loss, loss)


FAMILIES = {"tradeoff": tradeoff, "rdp": rdp, "adp": adp, "published": published}


def _renyi_bound(steps: int, forward: LossDistribution, backward: LossDistribution) -> LowerBound:
    """Hoelder's inequality both ways, with eps(alpha) = T D_alpha of the parts with finite loss (Mironov 2017, Proposition 10):

    Q(S) >= e^{-eps} P(S)^{alpha/(alpha-1)}, and, with D_alpha(Q||P) and the complement of S,
    1 - Q(S) <= (e^{eps} (1 - P(S)))^{(alpha-1)/alpha}.
    """
    powers = RENYI_ORDERS / (RENYI_ORDERS - 1)
    left_out_p, left_out_q = (-np.expm1(steps * np.log1p(-loss.infinite)) for loss in (forward, backward))
    eps_forward, eps_backward = (steps * loss.renyi_divergence(RENYI_ORDERS) for loss in (forward, backward))

    def lower(p):
        with np.errstate(divide="ignore"):
            log_p, log_rest = np.log(np.maximum(p - left_out_p, 0.0)), np.log(1.0 - p)
        direct = np.exp((np.multiply.outer(log_p, powers) - eps_forward).max(axis=-1))
        complement = np.exp(np.minimum(((log_rest[..., None] + eps_backward) / powers).min(axis=-1), 0.0))
        return np.maximum(direct, 1.0 - complement - left_out_q)

    return lower


def _slope_at_most_one(curve: TradeoffCurve) -> LowerBound:
    """The part of a convex curve that tangents e^{-eps}(p - delta) with eps >= 0 can see: past slope 1 it goes on as a line."""
    distance = curve.under_p - curve.under_q
    at = int(np.argmax(distance))
    turn, total_variation = curve.under_p[at], distance[at]

    def lower(p):
        p = np.asarray(p, dtype=float)
        return np.where(p <= turn, curve(p), np.maximum(p - total_variation, 0.0))

    return lower


@dataclass(frozen=True)
class OutcomesGuarantee:
    """lower(p) <= P[M(D') in S] <= upper(p) whenever P[M(D) in S] = p; arguments and results have the same shape."""

    bound: LowerBound

    def lower(self, p):
        p = np.asarray(p, dtype=float)
        if np.any((p < 0) | (p > 1) | np.isnan(p)):
            raise MucdError(f"probability {p[(p < 0) | (p > 1) | np.isnan(p)].flat[0]} is outside [0, 1]")
        return np.clip(self.bound(p.reshape(-1)).reshape(p.shape), 0.0, p)

    def upper(self, p):
        p = np.asarray(p, dtype=float)
        return np.maximum(1.0 - self.lower(1.0 - p), p)


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


class Guarantees:
    """Outcomes guarantees of one mechanism against one threat model, for every radius r.

    The group of D' against D is: `insert` (r, 0), `remove` (0, r), `substitute` (r, r), and for `symmetric` every split
    inserted + removed = r. Groups smaller than r are covered because the bounds fall with either number.

    Every split of a symmetric difference is covered. The two pure ones are accounted exactly. A mixed one is bounded, for
    `tradeoff` and `adp`, by composing pure curves along D -> remove -> insert -> D' (trade-off functions compose); in all cases
    tried this bound is above the pure ones, which proves that they are the worst, or at most 0.2 units below (docs/theorems.md).
    For `rdp` mixed splits are accounted by their own mixture pair.
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
        """The guarantee for exactly this group."""
        if inserted == removed == 0:
            return OutcomesGuarantee(lambda p: p)
        return OutcomesGuarantee(FAMILIES[self.family](self.accountant, inserted, removed))

    def _at(self, radius: int) -> OutcomesGuarantee:
        """The guarantee that holds for every D' within `radius` of D."""
        if radius < 0:
            raise MucdError(f"radius {radius} is negative")
        if radius == 0 or self.threat == "insert" or (self.family == "published" and self.threat != "substitute"):
            return self.group(radius, 0)
        if self.threat == "remove":
            return self.group(0, radius)
        if self.threat == "substitute":
            return self.group(radius, radius)
        pure = [self.group(radius, 0).bound, self.group(0, radius).bound]
        mixed = self._mixed_pairs(radius) if self.family == "rdp" else self._chains(radius)
        return OutcomesGuarantee(lambda p: np.minimum.reduce([bound(p) for bound in (*pure, *mixed)]))

    def _mixed_pairs(self, radius: int) -> list[LowerBound]:
        return [self.group(radius - low, high).bound for low, high in _cover(radius, RENYI_SPLITS)]

    def _chains(self, radius: int) -> list[LowerBound]:
        """One function: the least bound over all mixed splits, by chains of pure curves."""
        pairs = _cover(radius, SPLITS)
        removals = _chain_links(np.array([high for _, high in pairs]))
        insertions = _chain_links(radius - np.array([low for low, _ in pairs]))
        curve = self.accountant.curve

        def chains(p):
            """Bounds of all chains, [splits, n]."""
            value = np.tile(p, (len(pairs), 1))
            for part, rows in removals:
                value[rows] = curve(0, part)(value[rows])
            for part, rows in insertions:
                value[rows] = curve(part, 0)(value[rows])
            return value

        if not pairs:
            return []
        if self.family != "adp":
            return [lambda p: chains(p).min(axis=0)]

        # A chain is convex, so between grid points it lies at most one grid step further from the diagonal.
        grid = np.linspace(0.0, 1.0, ADP_GRID + 1)

        def slopes_at_most_one(p):
            on_grid, at_p = chains(grid), chains(p)
            at = np.argmax(grid - on_grid, axis=1)
            total_variation = (grid - on_grid).max(axis=1) + 1 / ADP_GRID
            return np.where(p <= grid[at][:, None], at_p, np.maximum(p - total_variation[:, None], 0.0)).min(axis=0)

        return [slopes_at_most_one]


def _cover(radius: int, groups: int) -> list[tuple[int, int]]:
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
