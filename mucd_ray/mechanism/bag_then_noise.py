"""Bag, then noise ("sub-training" of the seed paper Antidote): every instance draws a bag of its own and trains on it by steps with noise."""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from mucd_ray.errors import MucdError
from mucd_ray.mechanism.bag import Bag
from mucd_ray.mechanism.gaussian.accounting import MOST_UNITS, GroupAccountant
from mucd_ray.mechanism.gaussian.loss_distribution import TradeoffCurve
from mucd_ray.mechanism.gaussian.mechanism import Mechanism
from mucd_ray.mechanism.gaussian.mixture import Mixture
from mucd_ray.mechanism.work import spend

DRAWS = ("poisson", "fixed")
# Numbers of changed units that a bag has more rarely than this are left out of a sum: the safe side.
LIGHTEST = 1e-13
# Allowance for floating-point error in the weights w_K and in sums over them; relative.
ROUNDING = 1e-9
# Up to this many changed units in a bag each number has a curve of its own; larger ones share that of the next number of a ladder, at most 1/128 larger: f_K falls with K.
LADDER = 128
# Where curves are added up: probabilities, evenly spread by their logarithm and by that of their complement. Between them the sum is bounded from below.
_HALF = np.geomspace(1e-9, 0.5, 1024)
GRID = np.concatenate([[0.0], _HALF, 1.0 - _HALF[-2::-1], [1.0]])
# How many curves are kept in memory; each takes 64 KiB or less.
CURVES_KEPT = 1024
# Thresholds of the attack that adds up all noisy sums.
THRESHOLDS = 2000
# Where its sum may have more values than about this, no attack at all stands for it.
MOST_SHIFTS = 1 << 19


@dataclass(frozen=True, kw_only=True)
class BagThenNoise:
    """Every instance draws a bag of units, independently of all others, and trains on it by the sampled Gaussian mechanism.

    Attributes:
        unit: what is drawn, what one vector belongs to and what an attacker changes: "transition" or "trajectory".
        draws: "poisson": every unit by itself with probability `bag_rate`; "fixed": exactly `bag_size` different units.
        bag_size, bag_rate: of the bag, as in `Bag`: k where `draws` is "fixed", q0 where it is "poisson".
        sample_rate, noise_multiplier, clip_norm, steps, normaliser: of the steps on the bag, as in `Mechanism`. None of them, nor anything else, may follow
            from a bag: its size, its statistics, or that it is empty, when the steps add up noise alone.

    Formal guarantees: let D have n units, D' lack b of them and have a others, and C be the n - b common ones. Let w_K be the probability that K of a units are
    in a bag drawn from C and these (`changed_in_bag`), and f_K the trade-off curve of the steps for K inserted units (K replaced ones where the bag's size is
    fixed, since they take the places of others). With h(p) = sum_K w_K f_K(p), f_0(p) = p,

        P[M(C with the units) in S] >= h(P[M(C) in S])

    for every S, and D -> C -> D' composes the inverse of such a map for b and one for a (docs/theorems.md, "A bag, then noise").

    Raises:
        MucdError: a field is outside its range, or missing, or of another kind of draw.
    """

    kind: ClassVar[str] = "bag-then-noise"
    unit: str = "trajectory"
    draws: str = "poisson"
    bag_size: int | None = None
    bag_rate: float | None = None
    sample_rate: float
    noise_multiplier: float
    clip_norm: float
    steps: int
    normaliser: float

    def __post_init__(self):
        if self.draws not in DRAWS:
            raise MucdError(f"draws {self.draws!r} do not go with noise inside the bag: use one of {', '.join(DRAWS)}")
        _ = self.bag, self.noise

    @property
    def bag(self) -> Bag:
        """How a bag is drawn."""
        return Bag(unit=self.unit, draws=self.draws, bag_size=self.bag_size, sample_rate=self.bag_rate)

    @property
    def noise(self) -> Mechanism:
        """What is done on it."""
        return Mechanism(
            unit=self.unit, sample_rate=self.sample_rate, noise_multiplier=self.noise_multiplier, clip_norm=self.clip_norm, steps=self.steps, normaliser=self.normaliser
        )

    def check(self, units: int) -> None:
        """Raise MucdError unless bags can be drawn from this many units."""
        self.bag.check(units)

    def units_in_bag(self, units: int) -> float:
        """Units in a bag drawn from so many, on average."""
        return self.bag.units_in_bag(units)

    def signal_budget(self, units: int) -> float:
        """S = k q sqrt(T) / sigma, that of one instance's bag of k units."""
        return self.noise.signal_budget(1) * self.units_in_bag(units)

    def changed_in_bag(self, changed: int, units: int) -> tuple[int, np.ndarray]:
        """(least K, w [m]): the probabilities, rounded down, that a bag drawn from `units` units has K, K + 1, ... of `changed` of them.

        Binom(changed, q0) or hypergeometric. By Bernstein's inequality less than e^-70 lies outside mean +- reach; that the hypergeometric law is no wider than
        the binomial one with the same mean is Theorem 4 of Hoeffding 1963.
        """
        size = self.bag_size or 0
        if self.bag_rate is not None:
            trials, share, least = changed, self.bag_rate, 0
        else:
            trials, share, least = min(changed, size), max(changed, size) / units, max(0, changed + size - units)
        mean, reach = trials * share, 12 * np.sqrt(trials * share * max(0.0, 1 - share)) + 60
        first, last = max(least, int(mean - reach)), min(trials, int(mean + reach) + 1)
        if share == 1.0:
            first = last = trials
        k = np.arange(first, last, dtype=float)
        spend(20 * (len(k) + 1))
        # log w_{K+1} / w_K.
        with np.errstate(divide="ignore"):
            if self.bag_rate is not None:
                steps = np.log((changed - k) / (k + 1)) + np.log(share) - np.log1p(-share)
            else:
                steps = np.log((changed - k) / (k + 1)) + np.log((size - k) / (units - changed - size + k + 1))
        logs = np.concatenate([[0.0], np.cumsum(steps)])
        weights = np.exp(logs - logs.max())
        return first, weights * ((1 - ROUNDING) / weights.sum())


class BagThenNoiseAccountant:
    """Accounting of a bag, then noise, for any group of units; curves are cached in memory."""

    def __init__(self, mechanism: BagThenNoise):
        self.mechanism, self.inner = mechanism, GroupAccountant(mechanism.noise)
        self._on_grid = lru_cache(CURVES_KEPT)(self._inner_on_grid)
        self.insertion = lru_cache(CURVES_KEPT)(self._insertion)
        self.removal = lru_cache(CURVES_KEPT)(self._removal)

    def lower(self, p: np.ndarray, units: int, inserted: int, removed: int) -> np.ndarray:
        """Least probability under D' of events with these probabilities under D, of `units` units, any shape -> the same; see `BagThenNoise`."""
        common = units - removed
        if common < (self.mechanism.bag_size or 0):
            return np.zeros_like(p)
        # Where the size of a bag is not fixed, the number of units plays no role.
        of_d, of_other = (0, 0) if self.mechanism.draws == "poisson" else (units, common + inserted)
        if removed:
            p = self.removal(removed, of_d)(p)
        return self.insertion(inserted, of_other)(p) if inserted else p

    def _insertion(self, changed: int, units: int) -> TradeoffCurve:
        """A lower bound on h: from a probability without these units to one with them, of which there are `units` in all."""
        first, weights = self.mechanism.changed_in_bag(changed, units)
        kept = np.flatnonzero(weights > LIGHTEST)
        sizes, group = np.unique(_up(first + kept), return_inverse=True)
        spend(len(sizes) * len(GRID))
        return _below(GRID, np.bincount(group, weights[kept]) @ np.array([self._on_grid(int(size)) for size in sizes]))

    def _removal(self, changed: int, units: int) -> TradeoffCurve:
        """From a probability with these units to one without them: p <= 1 - h(1 - p') for the complement, hence p' >= 1 - h^-1(1 - p)."""
        h = self.insertion(changed, units)
        # Of points with equal values the last: h^-1(y) is the largest x with h(x) <= y.
        kept = np.append(np.diff(h.under_q) > 0, True)
        return TradeoffCurve(under_p=1.0 - h.under_q[kept][::-1], under_q=1.0 - h.under_p[kept][::-1])

    def _inner_on_grid(self, changed: int) -> np.ndarray:
        """f_K at GRID."""
        if changed == 0:
            return GRID
        removed = changed if self.mechanism.draws == "fixed" else 0
        return np.zeros(len(GRID)) if changed + removed > MOST_UNITS else self.inner.curve(changed, removed)(GRID)

    def attainable(self, units: int, inserted: int, removed: int) -> TradeoffCurve:
        """Upper bound on any guarantee: the operating curve of an attack that adds up all noisy sums.

        Removed units push one way, inserted ones the other way, and the rest not at all: the sum is N(0, T sigma^2), shifted by how often they were sampled.
        """
        under_d, under_other = self._shifts(removed, units, +1), self._shifts(inserted, units - removed + inserted, -1)
        if under_d is None or under_other is None:
            return TradeoffCurve(under_p=np.array([0.0, 1.0]), under_q=np.array([0.0, 1.0]))
        spend(2 * THRESHOLDS * (len(under_d.centres) + len(under_other.centres)))
        (low, _), (_, high) = under_other.support(), under_d.support()
        x = np.linspace(high, low, THRESHOLDS)
        above = [np.array([mixture.above(t) for t in x]) for mixture in (under_d, under_other)]
        return TradeoffCurve(under_p=np.append(above[0], 1.0), under_q=np.append(above[1], 1.0))

    def _shifts(self, changed: int, units: int, sign: int) -> Mixture | None:
        """The law of the sum: K changed units in the bag are sampled Binom(K T, q) times. None: it has too many values."""
        rate, steps = self.mechanism.sample_rate, self.mechanism.steps
        sigma = self.mechanism.noise_multiplier * np.sqrt(steps)
        if not changed:
            return Mixture(centres=np.zeros(1), weights=np.ones(1), sigma=sigma)
        first, of_bag = self.mechanism.changed_in_bag(changed, units)
        kept = np.flatnonzero(of_bag > LIGHTEST)
        if len(kept) * (steps + 24 * np.sqrt((first + kept[-1]) * steps * rate * (1 - rate)) + 121) > MOST_SHIFTS:
            return None
        times = [Mixture.of_units(int(first + k) * steps, rate, sigma, 1) for k in kept]
        start = int(min(mixture.centres[0] for mixture in times))
        weights = np.zeros(int(max(mixture.centres[-1] for mixture in times)) - start + 1)
        for weight, mixture in zip(of_bag[kept], times, strict=True):
            weights[mixture.centres.astype(int) - start] += weight * mixture.weights
        kept = np.flatnonzero(weights > LIGHTEST)
        return Mixture(centres=sign * (start + kept).astype(float), weights=weights[kept] / weights.sum(), sigma=sigma)


def _up(units: np.ndarray) -> np.ndarray:
    """Each of these whole numbers [n], or the next one of a ladder whose steps are at most 1/LADDER of it."""
    step = 2 ** np.maximum(0, np.floor(np.log2(np.maximum(units, 1) / LADDER)).astype(int))
    return -(-units // step) * step


def _below(x: np.ndarray, y: np.ndarray) -> TradeoffCurve:
    """A curve that is nowhere above a convex, increasing function with the values y [n] at x [n], y[0] >= 0.

    A convex function lies above its chords where these are extended: in every cell above the chord of the cell before and that of the cell after.
    """
    width, rise = np.diff(x), np.diff(y)
    before, after = np.concatenate([[0.0], (rise / width)[:-1]]), (rise / width)[1:]
    with np.errstate(invalid="ignore", divide="ignore"):
        meet = np.where(after > before[:-1], (after * width[:-1] - rise[:-1]) / (after - before[:-1]), 0.0)
    # Nothing follows the last cell.
    meet = np.append(np.clip(meet, 0.0, width[:-1]), width[-1])
    points = np.stack([x[:-1], x[:-1] + meet]).T.reshape(-1), np.stack([y[:-1], y[:-1] + before * meet]).T.reshape(-1)
    return TradeoffCurve(under_p=points[0], under_q=np.maximum.accumulate(points[1]))
