"""The solver behind `plan.py`: which mechanism, or how many instances, certify a vote at a radius. Every answer is a verified one."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
from scipy.special import ndtri

from mucd_ray.certify.confidence.proportions import check_count, check_eta, top_two_bounds
from mucd_ray.certify.guarantees import Guarantees
from mucd_ray.certify.rounding import exactly
from mucd_ray.errors import MucdError
from mucd_ray.mechanism.gaussian.mechanism import MOST_NOISE, MOST_STEPS, Mechanism
from mucd_ray.words import counted

MOST_INSTANCES = 10_000_000
LEAST_NOISE_MULTIPLIER = 0.05
CLIP_NORM = 1.0


def least_instances(actions: int, eta: float, agreement: float = 1.0) -> int:
    """The least P with which a unanimous vote certifies anything: its lower bound must exceed 1/2.

    With less agreement one such P, at which one less fails: floor(agreement * P) votes are not always the same share.
    """
    check_count(actions, "actions", 2)
    check_agreement(agreement)
    found = _least(lambda instances: vote_bounds(instances, actions, check_eta(eta), agreement)[0] > 0.5, 16, 1, MOST_INSTANCES, 16)
    if found is None:
        raise MucdError(f"agreement {agreement}: not even {MOST_INSTANCES} instances show that it is above one half; use a larger one")
    return found


@dataclass(frozen=True, kw_only=True)
class Question:
    """Which vote is to be certified at which radius; every answer is a verified one. `instances`: 0 where their number is asked for."""

    units: int
    radius: int
    agreement: float
    eta: float
    actions: int
    threat: str
    accountant: str
    instances: int

    def mechanism(self, rate: float, sigma: float, steps: int) -> Mechanism:
        return Mechanism(sample_rate=rate, noise_multiplier=sigma, clip_norm=CLIP_NORM, steps=steps, normaliser=rate * self.units)

    def certifies(self, mechanism: Mechanism, *, radius: int | None = None, instances: int | None = None, quick: bool = False) -> bool:
        """Whether the vote is certified; `quick`: by groups of insertions and groups of removals alone, which is necessary.

        They decide a symmetric difference up to a hair, and are quicker to account.
        """
        top, runner_up = vote_bounds(instances or self.instances, self.actions, self.eta, self.agreement)
        threats = ("insert", "remove") if quick and self.threat == "symmetric" else (self.threat,)
        at = [_guarantees(mechanism, threat, self.accountant).at(radius or self.radius) for threat in threats]
        return bool(min(g.lower(top) for g in at) > max(g.upper(runner_up) for g in at))

    def strength(self, instances: int) -> float:
        """Normal quantile of the vote's lower bound: the shift in standard deviations that it withstands."""
        return max(float(ndtri(vote_bounds(instances, self.actions, self.eta, self.agreement)[0])), 0.01)

    def shift(self) -> float:
        """Number of clip norms by which the threat moves the sum if all changed units are sampled."""
        return self.radius * (2 if self.threat == "substitute" else 1)

    def least_noise(self, rate: float, steps: int, above: float | None = None) -> Mechanism:
        """Judged quickly; or fully, if it is already known that the answer is not below `above`."""
        _, grid = self.mechanism(rate, 1.0, steps), _FOUR_DIGITS
        low, high = grid.up(above or LEAST_NOISE_MULTIPLIER), grid.down(MOST_NOISE)
        guess = math.log1p((self.strength(self.instances) / (self.shift() * rate)) ** 2 / steps) ** -0.5
        start = grid.up(above or min(max(guess, LEAST_NOISE_MULTIPLIER), MOST_NOISE))
        found = _least(
            lambda k: self.certifies(self.mechanism(rate, grid.value(k), steps), quick=above is None), start, low, high, 8 if above is None else 1
        )
        if found is None:
            raise MucdError(f"{self._vote()} is not certified at r = {self.radius} by any noise multiplier up to {MOST_NOISE:g}: lower the sample rate {exactly(rate)} or the steps {steps}")
        return self.mechanism(rate, grid.value(found), steps)

    def most_steps(self, rate: float, sigma: float) -> Mechanism:
        self.mechanism(rate, sigma, 1)
        guess = self._guess(sigma) ** 2 / rate**2
        found = self._most(lambda k: self.mechanism(rate, sigma, k), guess, 1, MOST_STEPS, max(1, int(min(guess, MOST_STEPS)) // 256))
        if found is None:
            raise MucdError(
                f"{self._vote()} is not certified at r = {self.radius} after even 1 step with sample rate {exactly(rate)} and noise multiplier {exactly(sigma)}: "
                f"raise the noise multiplier to {exactly(self.least_noise(rate, 1).noise_multiplier)} at least, or lower the sample rate"
            )
        return self.mechanism(rate, sigma, found)

    def largest_rate(self, sigma: float, steps: int) -> Mechanism:
        self.mechanism(1.0, sigma, steps)
        grid, least = _FOUR_DIGITS, 1 / self.units
        guess = min(max(self._guess(sigma) / math.sqrt(steps), least), 1.0)
        found = self._most(lambda k: self.mechanism(grid.value(k), sigma, steps), grid.down(guess), grid.up(least), grid.down(1.0), 8)
        if found is None:
            raise MucdError(
                f"{self._vote()} is not certified at r = {self.radius} with a batch of even one unit at noise multiplier {exactly(sigma)} and {counted(steps, 'step')}: "
                f"raise the noise multiplier to {exactly(self.least_noise(min(1.0, grid.value(grid.up(least))), steps).noise_multiplier)} at least, or take fewer steps"
            )
        return self.mechanism(grid.value(found), sigma, steps)

    def least_instances(self, mechanism: Mechanism) -> int:
        rate, sigma, steps = mechanism.sample_rate, mechanism.noise_multiplier, mechanism.steps
        low = least_instances(self.actions, self.eta, self.agreement)
        found: int | None = low
        for quick, step in ((True, max(1, low // 4)), (False, 1)):
            found = found and _least(lambda k: self.certifies(mechanism, instances=k, quick=quick), found, found, MOST_INSTANCES, step)
        if found is None:
            raise MucdError(
                f"a vote with agreement {exactly(self.agreement)} is not certified at r = {self.radius} by even {MOST_INSTANCES} instances with sample rate "
                f"{exactly(rate)}, noise multiplier {exactly(sigma)} and {counted(steps, 'step')}: raise the noise multiplier, or lower the sample rate or the steps"
            )
        return found

    def largest_radius(self, mechanism: Mechanism, instances: int, start: int, *, least: int = 1, quick: bool = False) -> int:
        """A certified radius, at least `least` and at most one unit or 0.5 % below the largest that is accounted for, searched from `start` on; 0 if none."""

        def certified(quick: bool):
            return lambda k: self.certifies(mechanism, radius=-k, instances=instances, quick=quick)

        # The least of the negative radii.
        found = _least(certified(quick=True), -start, -min(self.units, _guarantees(mechanism, self.threat, self.accountant).largest_radius), -least, max(1, start // 1024))
        if found is not None and not quick:
            found = _least(certified(quick=False), found, found, -least, 1, gap=max(1, -found // 200))
        return -(found or 0)

    def _guess(self, sigma: float) -> float:
        """About q sqrt(T) of the wanted mechanism, by its Gaussian limit."""
        return self.strength(self.instances) / (self.shift() * math.sqrt(math.expm1(min(sigma**-2, 700.0))))

    def _most(self, mechanism_of: Callable[[int], Mechanism], guess: float, low: int, high: int, step: int) -> int | None:
        """Largest k in low..high whose mechanism certifies, judged first quickly and from there on fully."""
        start = int(min(max(guess, low), high))
        for quick in (True, False):
            found = _least(lambda k: self.certifies(mechanism_of(-k), quick=quick), -start, -high, -low, step)
            if found is None:
                return None
            start, high, step = -found, -found, 1
        return start

    def _vote(self) -> str:
        kind = "unanimous vote" if self.agreement == 1 else f"vote with agreement {exactly(self.agreement)}"
        return f"a {kind} of {counted(self.instances, 'instance')}"


class _FourDigits:
    """Numbers of four digits, 1.000e-12 to 9.999e12, in increasing order: the k-th is (1000 + k mod 9000) 10^(k div 9000 - 15)."""

    def value(self, k: int) -> float:
        decade, digits = divmod(k, 9000)
        return float(f"{1000 + digits}e{decade - 15}")

    def up(self, value: float) -> int:
        """Index of the least such number that is at least `value`."""
        k = self._near(value) - 2
        while self.value(k) < value:
            k += 1
        return k

    def down(self, value: float) -> int:
        k = self.up(value)
        return k if self.value(k) == value else k - 1

    @staticmethod
    def _near(value: float) -> int:
        decade = math.floor(math.log10(value))
        return 9000 * (decade + 12) + int(value / 10.0 ** (decade - 3)) - 1000


_FOUR_DIGITS = _FourDigits()


def _least(holds: Callable[[int], bool], start: int, low: int, high: int, step: int, gap: int = 1) -> int | None:
    """Least k in low..high with holds(k), a property that rises with k; None if it is false at `high`.

    Gallops from `start` with growing steps, then bisects: what is returned holds, and `gap` less does not.
    """
    good = bad = None
    k = min(max(start, low), high)
    while good is None or bad is None:
        if holds(k):
            if k == low:
                return k
            good, k = k, max(k - step, low)
        else:
            if k == high:
                return None
            bad, k = k, min(k + step, high)
        step *= 4
    while good - bad > gap:
        k = (good + bad) // 2
        good, bad = (k, bad) if holds(k) else (good, k)
    return good


@lru_cache(64)
def _guarantees(mechanism: Mechanism, threat: str, accountant: str) -> Guarantees:
    return Guarantees(mechanism, threat=threat, family=accountant)


@lru_cache(4096)
def vote_bounds(instances: int, actions: int, eta: float, agreement: float) -> tuple[float, float]:
    """Bounds on the two most likely actions of a vote in which all who disagree vote for the same other action."""
    top = math.floor(Fraction(str(agreement)) * instances)
    # Three actions or more are alike.
    bounds = top_two_bounds(np.array([[top, instances - top, 0][: min(actions, 3)]]), eta)
    # Of two equal counts, or if the others are more, nothing is certified.
    return (float(bounds.top[0]), float(bounds.runner_up[0])) if 2 * top > instances else (0.0, 1.0)


def check_agreement(agreement: float) -> None:
    if not 0.5 < agreement <= 1:
        raise MucdError(f"agreement {agreement} is outside (0.5, 1]: it is the share of the instances that vote for the top action")
