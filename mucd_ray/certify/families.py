"""Families of outcomes guarantees of one group: from an accountant and a group (inserted, removed) to two maps.

`lower(p) <= P[M(D') in S] <= upper(p)` for every event S with P[M(D) in S] = p, where D' is D with the group's units inserted
and removed. P and Q stand for the dominating pair of D and D'; "forward" is D(P||Q), "backward" D(Q||P).

    tradeoff      the exact Neyman-Pearson curve of the composed pair: nothing tighter can be said from (q, sigma, T, r) and p
    rdp           Hoelder's inequality, sup over alpha, in the form of the seeds (Equation 8), from the exact mixture's divergences
    rdp-mirrored  the same inequality for the event and for its complement: the strongest reading of the divergences
    adp           (eps, delta) pairs with eps >= 0 in the form of the seeds (Equation 7), from the exact profile of the group
    adp-group     the same from the exact profile of a single unit, by generic group privacy
    published     the seeds' Theorem 8, which replaces q by 1-(1-q)^r and leaves sigma alone. NOT SOUND; for comparison only

The seeds' equations are those of "Enhancing the Antidote", Definition 7 and Lemma 9.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mucd_ray.mechanism.gaussian.accounting import GroupAccountant
from mucd_ray.mechanism.gaussian.loss_distribution import LossDistribution, TradeoffCurve, pessimistic
from mucd_ray.mechanism.work import spend

# From probabilities [n] to bounds [n].
Bound = Callable[[np.ndarray], np.ndarray]

# Orders close to 1 carry the bound where the mixture's high orders explode.
RENYI_ORDERS = 1 + np.geomspace(0.01, 255, 120)
# Relative allowance for floating-point error in the moments of one step.
MOMENT_ROUNDING = 1e-12
# Values of k eps at which generic group privacy is evaluated: past the last, e^{-k eps} leaves nothing of any probability.
GROUP_LOSSES = np.concatenate([[0.0], np.geomspace(1e-4, 40.0, 160)])


@dataclass(frozen=True)
class Pair:
    """Increasing maps with lower(p) <= P[M(D') in S] <= upper(p) whenever P[M(D) in S] = p; they need not be clipped to [0, 1]."""

    lower: Bound
    upper: Bound


IDENTITY = Pair(lambda p: p, lambda p: p)


def mirrored(lower: Bound) -> Pair:
    """Both maps from `lower` alone: what holds for the complement of an event bounds the event from above."""
    return Pair(lower, lambda p: 1.0 - lower(1.0 - p))


def worst(pairs: list[Pair]) -> Pair:
    """The maps that hold whichever of the groups is the true one."""
    return Pair(
        lambda p: np.minimum.reduce([pair.lower(p) for pair in pairs]),
        lambda p: np.maximum.reduce([pair.upper(p) for pair in pairs]),
    )


def tradeoff(accountant: GroupAccountant, inserted: int, removed: int) -> Pair:
    return mirrored(accountant.curve(inserted, removed))


def rdp(accountant: GroupAccountant, inserted: int, removed: int) -> Pair:
    """lower(p) = sup e^{-eps} p^{alpha/(alpha-1)}, forward; upper(p) = inf (e^{eps} p)^{(alpha-1)/alpha}, backward."""
    forward, backward = _divergences(accountant, inserted, removed)
    return Pair(_hoelder_below(*forward), _hoelder_above(*backward))


def rdp_mirrored(accountant: GroupAccountant, inserted: int, removed: int) -> Pair:
    """`rdp` of the event or one minus `rdp` of its complement, whichever says more."""
    direct = rdp(accountant, inserted, removed)
    return mirrored(lambda p: np.maximum(direct.lower(p), 1.0 - direct.upper(1.0 - p)))


def adp(accountant: GroupAccountant, inserted: int, removed: int) -> Pair:
    """lower(p) = sup e^{-eps}(p - delta), forward; upper(p) = inf e^{eps} p + delta, backward; over eps >= 0."""
    return tangents(accountant.curve(inserted, removed))


def adp_group(accountant: GroupAccountant, inserted: int, removed: int) -> Pair:
    """k = inserted + removed single steps along D -> ... -> D', each (eps, delta(eps)): Vadhan 2017, Lemma 2.2, with its sum exact.

    P(S) <= e^{eps} P_1(S) + delta <= ... <= e^{k eps} Q(S) + delta (e^{k eps} - 1)/(e^{eps} - 1), for the two roles alike:
    delta is the larger of the two single-unit profiles, so it does not matter which units are inserted and which removed.
    """
    units = inserted + removed
    eps = GROUP_LOSSES / units
    delta = np.maximum(accountant.curve(1, 0).profile(eps), accountant.curve(0, 1).profile(eps))
    # delta_k e^{-k eps} = delta (e^{-eps} + ... + e^{-k eps}), which cannot overflow.
    with np.errstate(invalid="ignore", divide="ignore"):
        terms = np.where(eps > 0, np.exp(-eps) * np.expm1(-GROUP_LOSSES) / np.expm1(-eps), float(units))
    decay, growth, shift = np.exp(-GROUP_LOSSES), np.exp(GROUP_LOSSES), delta * terms

    def below(p):
        spend(p.size * len(eps))
        return (np.multiply.outer(p, decay) - shift).max(axis=-1)

    def above(p):
        spend(p.size * len(eps))
        return ((p[..., None] + shift) * growth).min(axis=-1)

    return Pair(below, above)


def published(accountant: GroupAccountant, inserted: int, removed: int) -> Pair:
    """Unsound: several poisoned units of one batch are taken to move the sum by one clip norm only (seeds, Theorem 8).

    Both roles have the divergence of the mixture from the noise, the larger one (Mironov, Talwar and Zhang 2019, Theorem 5).
    """
    mechanism = accountant.mechanism
    rate = -np.expm1((inserted + removed) * np.log1p(-mechanism.sample_rate)) if mechanism.sample_rate < 1 else 1.0
    loss = pessimistic(inserted=0, removed=1, sample_rate=rate, sigma=mechanism.noise_multiplier, steps=mechanism.steps)
    divergence = _divergence(loss, mechanism.steps)
    return Pair(_hoelder_below(*divergence), _hoelder_above(*divergence))


FAMILIES = {
    "tradeoff": tradeoff,
    "rdp": rdp,
    "rdp-mirrored": rdp_mirrored,
    "adp": adp,
    "adp-group": adp_group,
    "published": published,
}


def tangents(curve: TradeoffCurve) -> Pair:
    """What tangents with eps >= 0 see of a convex curve: past slope 1 it goes on as a line, p - TV or p + TV."""
    distance = curve.under_p - curve.under_q
    at = int(np.argmax(distance))
    return slopes_at_most_one(curve, curve.under_p[at], distance[at])


def slopes_at_most_one(curve: Bound, turn, total_variation) -> Pair:
    """The same for a curve whose slope passes 1 at `turn`, where it is `total_variation` below the diagonal.

    With `turn` anywhere else and a `total_variation` that is no less than the true one, both maps still hold.
    """

    def lower(p):
        return np.where(p <= turn, curve(p), p - total_variation)

    def upper(p):
        return np.where(1.0 - p > turn, 1.0 - curve(1.0 - p), p + total_variation)

    return Pair(lower, upper)


def _divergences(accountant: GroupAccountant, inserted: int, removed: int):
    # Reflecting the line turns the pair (Q, P) of a group into the pair (P, Q) of the group with the two numbers exchanged.
    groups = (inserted, removed), (removed, inserted)
    return [_divergence(accountant.step_loss(*group), accountant.mechanism.steps) for group in groups]


def _divergence(loss: LossDistribution, steps: int) -> tuple[np.ndarray, float]:
    """eps [orders], T times the divergence of the part with finite loss, and the probability of infinite loss in T steps."""
    eps = steps * (loss.renyi_divergence(RENYI_ORDERS) + MOMENT_ROUNDING / (RENYI_ORDERS - 1))
    with np.errstate(divide="ignore"):
        return eps, float(-np.expm1(steps * np.log1p(-min(loss.infinite, 1.0))))


def _hoelder_below(eps: np.ndarray, infinite: float) -> Bound:
    """Q(S) >= e^{-eps} P(S)^{alpha/(alpha-1)} with eps = D_alpha(P||Q) (Mironov 2017, Proposition 10)."""
    powers = RENYI_ORDERS / (RENYI_ORDERS - 1)

    def below(p):
        spend(p.size * len(powers))
        with np.errstate(divide="ignore"):
            log_p = np.log(np.maximum(p - infinite, 0.0))
        return np.exp((np.multiply.outer(log_p, powers) - eps).max(axis=-1))

    return below


def _hoelder_above(eps: np.ndarray, infinite: float) -> Bound:
    """Q(S) <= (e^{eps} P(S))^{(alpha-1)/alpha} with eps = D_alpha(Q||P) (the same, roles exchanged)."""
    powers = (RENYI_ORDERS - 1) / RENYI_ORDERS

    def above(p):
        spend(p.size * len(powers))
        with np.errstate(divide="ignore"):
            log_p = np.log(p)
        return np.exp(np.minimum(((log_p[..., None] + eps) * powers).min(axis=-1), 0.0)) + infinite

    return above
