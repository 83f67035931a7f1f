"""Calibration: the mechanism, or the number of instances, that certifies a wanted fraction, from public numbers alone (theory section 7)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
from scipy.special import ndtri

from mucd_ray.certify.confidence import check_count, check_eta, top_two_bounds
from mucd_ray.certify.guarantees import Guarantees
from mucd_ray.errors import MucdError
from mucd_ray.mechanism.mechanism import MOST_NOISE, MOST_STEPS, Mechanism

STEPS = 100
BATCH = 1024
INSTANCES = 1000
MOST_INSTANCES = 10_000_000
CLIP_NORM = 1.0
# Below this noise multiplier subsampling wastes signal: a larger batch with more noise certifies more.
LEAST_NOISE = 4.0
# Renard's series R10 (ISO 3): the public sizes to which a dataset's size is rounded before anything is derived from it.
RENARD = (1.0, 1.25, 1.6, 2.0, 2.5, 3.15, 4.0, 5.0, 6.3, 8.0)
LEAST_NOISE_MULTIPLIER = 0.05
SOLVE = ("noise-multiplier", "steps", "sample-rate", "instances")
FRONTIER_INSTANCES = (100, 1000, 10_000)
FRONTIER_BUDGETS = (10.0, 20.0, 40.0, 80.0, 160.0, 315.0, 630.0, 1250.0, 2500.0)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A mechanism, the radius that it certifies for such a vote, and the signal budget S that it leaves to the learner.

    Attributes:
        units: N.
        radius: a certified number of changed units, at least the wanted one, and at most one unit or 0.5 % below the largest.
        fraction: the share of the units that was asked for.
        instances: P.
        agreement: the share of the instances that vote for the top action; the rest votes for one other.
        signal_budget: S = N q sqrt(T) / sigma.
        solved: which of SOLVE was found; the others were given.
    """

    mechanism: Mechanism
    units: int
    radius: int
    fraction: float
    instances: int
    agreement: float
    signal_budget: float
    solved: str


def declared_size(units: int) -> tuple[int, int]:
    """(declared N, margin): N rounded to Renard's series, and how many units may come or go without changing it.

    A run must not derive its constants from len(D), which the attacker can change. Rounding makes them the same for every
    dataset within the margin, so a certificate whose radius stays within the margin is about one fixed mechanism.
    """
    check_count(units, "units")
    decade = 10 ** math.floor(math.log10(units))
    sizes = [RENARD[-1] * decade / 10, *(size * decade for size in RENARD), RENARD[0] * decade * 10]
    at = min(range(1, len(sizes)), key=lambda i: abs(math.log(units / sizes[i])))
    low = math.sqrt(sizes[at - 1] * sizes[at])
    high = math.sqrt(sizes[at] * (sizes[at + 1] if at + 1 < len(sizes) else 12.5 * decade))
    return round(sizes[at]), max(min(units - math.ceil(low), math.floor(high) - units), 0)


def least_instances(actions: int, eta: float, agreement: float = 1.0) -> int:
    """The least P with which a vote of this agreement certifies anything: its lower bound must exceed 1/2."""
    check_count(actions, "actions", 2)
    _check_agreement(agreement)
    found = _least(lambda instances: _vote_bounds(instances, actions, check_eta(eta), agreement)[0] > 0.5, 16, 1, MOST_INSTANCES, 16)
    if found is None:
        raise MucdError(f"agreement {agreement}: not even {MOST_INSTANCES} instances show that it is above one half; use a larger one")
    return found


def plan(
    *,
    units: int,
    fraction: float | None = None,
    radius: int | None = None,
    instances: int | None = None,
    noise_multiplier: float | None = None,
    steps: int | None = None,
    sample_rate: float | None = None,
    solve: str | None = None,
    agreement: float = 1.0,
    eta: float = 0.001,
    actions: int = 2,
    threat: str = "symmetric",
    accountant: str = "tradeoff",
) -> Plan:
    """Solves for one of sigma, T, q and P, the others given, so that a vote is certified at r units, and hardly at more.

    The answer is rounded to the safe side: sigma up and q down to 4 digits, T down and P up to whole numbers. It is
    verified, and so is that the next less safe value fails, unless there is none: q = 1, T = 10^7, sigma = 0.05.

    Args:
        units: N, a public number.
        fraction: share of the units that may be changed, in (0, 1); r = ceil(fraction * units).
        radius: r itself, instead of a fraction.
        instances: P; 1000 by default.
        noise_multiplier: sigma; needed to solve for anything else.
        steps: T; 100 by default.
        sample_rate: q; by default a batch of about 1024, or larger where less than 4 sigmas of noise would do.
        solve: one of SOLVE; by default the noise multiplier or, if it is given, the one of the others that is not.
        agreement: share of the instances that vote for the top action, floor(agreement * P) of them; in (1/2, 1].

    Raises:
        MucdError: a value is outside its range, it is not clear what to solve for, or there is no solution.
    """
    check_eta(eta)
    units = check_count(units, "units", 2)
    actions = check_count(actions, "actions", 2)
    _check_agreement(agreement)
    radius = _wanted_radius(units, fraction, radius)
    given = {"noise-multiplier": noise_multiplier, "steps": steps, "sample-rate": sample_rate, "instances": instances}
    solve = _what_to_solve(solve, given)
    if solve != "instances":
        instances = INSTANCES if instances is None else check_count(instances, "instances")
        if _vote_bounds(instances, actions, eta, agreement)[0] <= 0.5:
            raise MucdError(
                f"{instances} instances cannot certify anything at eta {eta:g} and {actions} actions"
                + (f" and an agreement of {agreement:g}" if agreement < 1 else "")
                + f": at least {least_instances(actions, eta, agreement)} are needed"
            )
    question = _Question(
        units=units, radius=radius, agreement=agreement, eta=eta, actions=actions, threat=threat, accountant=accountant, instances=instances
    )
    steps = STEPS if steps is None else steps
    rate = min(1.0, BATCH / units) if sample_rate is None else sample_rate
    if solve == "noise-multiplier":
        mechanism = question.least_noise(rate, steps)
        while sample_rate is None and rate < 1 and mechanism.noise_multiplier < LEAST_NOISE:
            rate = min(1.0, 2 * rate)
            mechanism = question.least_noise(rate, steps)
        mechanism = question.least_noise(rate, steps, above=mechanism.noise_multiplier)
    elif solve == "steps":
        mechanism = question.most_steps(rate, noise_multiplier)
    elif solve == "sample-rate":
        mechanism = question.largest_rate(noise_multiplier, steps)
    else:
        mechanism = question.mechanism(rate, noise_multiplier, steps)
        instances = question.least_instances(mechanism)
    return Plan(
        mechanism=mechanism,
        units=units,
        radius=question.largest_radius(mechanism, instances, radius, least=radius),
        fraction=float(fraction) if fraction is not None else radius / units,
        instances=instances,
        agreement=agreement,
        signal_budget=mechanism.signal_budget(units),
        solved=solve,
    )


def frontier(
    *,
    units: int,
    instances: Sequence[int] = FRONTIER_INSTANCES,
    signal_budgets: Sequence[float] = FRONTIER_BUDGETS,
    steps: int | None = None,
    sample_rate: float | None = None,
    agreement: float = 1.0,
    eta: float = 0.001,
    actions: int = 2,
    threat: str = "symmetric",
    accountant: str = "tradeoff",
) -> list[dict]:
    """How much robustness a signal budget S leaves: for every S and P the certified radius of a vote, as in `plan`.

    Returns:
        one row of plain values per P and S, in this order: `instances`, `signal_budget`, `sample_rate`, `noise_multiplier`,
        `steps`, `radius` and `fraction` (the radius over N). Radii are verified, and at most one unit or 0.5 % below the largest; 0
        where nothing is certified. The sample rate is chosen as in `plan`.
    """
    check_eta(eta)
    units = check_count(units, "units", 2)
    check_count(actions, "actions", 2)
    _check_agreement(agreement)
    steps = STEPS if steps is None else check_count(steps, "steps")
    for budget in signal_budgets:
        if not (budget > 0 and math.isfinite(budget)):
            raise MucdError(f"signal budget {budget} must be a finite number above 0")
    rows = []
    for count in [check_count(count, "instances") for count in instances]:
        question = _Question(
            units=units, radius=1, agreement=agreement, eta=eta, actions=actions, threat=threat, accountant=accountant, instances=count
        )
        for budget in signal_budgets:
            rate = min(1.0, BATCH / units) if sample_rate is None else sample_rate
            while sample_rate is None and rate < 1 and units * rate * math.sqrt(steps) / budget < LEAST_NOISE:
                rate = min(1.0, 2 * rate)
            mechanism = question.mechanism(rate, units * rate * math.sqrt(steps) / budget, steps)
            found = question.largest_radius(mechanism, count, max(1, int(question.strength(count) * units / budget)), quick=True)
            while found and not question.certifies(mechanism, radius=found, instances=count):
                found -= max(1, found // 200)
            rows.append(
                {
                    "instances": count,
                    "signal_budget": float(budget),
                    "sample_rate": rate,
                    "noise_multiplier": mechanism.noise_multiplier,
                    "steps": steps,
                    "radius": found,
                    "fraction": found / units,
                }
            )
    return rows


@dataclass(frozen=True, kw_only=True)
class _Question:
    """Which vote is to be certified at which radius; every answer is a verified one."""

    units: int
    radius: int
    agreement: float
    eta: float
    actions: int
    threat: str
    accountant: str
    instances: int | None

    def mechanism(self, rate: float, sigma: float, steps: int) -> Mechanism:
        return Mechanism(sample_rate=rate, noise_multiplier=sigma, clip_norm=CLIP_NORM, steps=steps, normaliser=rate * self.units)

    def certifies(self, mechanism: Mechanism, *, radius: int | None = None, instances: int | None = None, quick: bool = False) -> bool:
        """Whether the vote is certified; `quick`: by groups of insertions and groups of removals alone, which is necessary.

        They decide a symmetric difference up to a hair, and are quicker to account.
        """
        top, runner_up = _vote_bounds(instances or self.instances, self.actions, self.eta, self.agreement)
        threats = ("insert", "remove") if quick and self.threat == "symmetric" else (self.threat,)
        at = [_guarantees(mechanism, threat, self.accountant).at(radius or self.radius) for threat in threats]
        return bool(min(g.lower(top) for g in at) > max(g.upper(runner_up) for g in at))

    def strength(self, instances: int) -> float:
        """Normal quantile of the vote's lower bound: the shift in standard deviations that it withstands."""
        return max(float(ndtri(_vote_bounds(instances, self.actions, self.eta, self.agreement)[0])), 0.01)

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
            raise MucdError(f"{self._vote()} is not certified at r = {self.radius} by any noise multiplier up to {MOST_NOISE:g}: lower the sample rate {rate:g} or the steps {steps}")
        return self.mechanism(rate, grid.value(found), steps)

    def most_steps(self, rate: float, sigma: float) -> Mechanism:
        self.mechanism(rate, sigma, 1)
        guess = self._guess(sigma) ** 2 / rate**2
        found = self._most(lambda k: self.mechanism(rate, sigma, k), guess, 1, MOST_STEPS, max(1, int(min(guess, MOST_STEPS)) // 256))
        if found is None:
            raise MucdError(
                f"{self._vote()} is not certified at r = {self.radius} after even 1 step with sample rate {rate:g} and noise multiplier {sigma:g}: "
                f"raise the noise multiplier to {self.least_noise(rate, 1).noise_multiplier:g} at least, or lower the sample rate"
            )
        return self.mechanism(rate, sigma, found)

    def largest_rate(self, sigma: float, steps: int) -> Mechanism:
        self.mechanism(1.0, sigma, steps)
        grid, least = _FOUR_DIGITS, 1 / self.units
        guess = min(max(self._guess(sigma) / math.sqrt(steps), least), 1.0)
        found = self._most(lambda k: self.mechanism(grid.value(k), sigma, steps), grid.down(guess), grid.up(least), grid.down(1.0), 8)
        if found is None:
            raise MucdError(
                f"{self._vote()} is not certified at r = {self.radius} with a batch of even one unit at noise multiplier {sigma:g} and {steps} steps: "
                f"raise the noise multiplier to {self.least_noise(min(1.0, grid.value(grid.up(least))), steps).noise_multiplier:g} at least, or take fewer steps"
            )
        return self.mechanism(grid.value(found), sigma, steps)

    def least_instances(self, mechanism: Mechanism) -> int:
        rate, sigma, steps = mechanism.sample_rate, mechanism.noise_multiplier, mechanism.steps
        low = least_instances(self.actions, self.eta, self.agreement)
        found = low
        for quick, step in ((True, max(1, low // 4)), (False, 1)):
            found = found and _least(lambda k, quick=quick: self.certifies(mechanism, instances=k, quick=quick), found, found, MOST_INSTANCES, step)
        if found is None:
            raise MucdError(
                f"a vote with agreement {self.agreement:g} is not certified at r = {self.radius} by even {MOST_INSTANCES} instances with sample rate "
                f"{rate:g}, noise multiplier {sigma:g} and {steps} steps: raise the noise multiplier, or lower the sample rate or the steps"
            )
        return found

    def largest_radius(self, mechanism: Mechanism, instances: int, start: int, *, least: int = 1, quick: bool = False) -> int:
        """A certified radius, at least `least` and at most one unit or 0.5 % below the largest, searched from `start` on; 0 if none."""

        def certified(quick: bool):
            return lambda k: self.certifies(mechanism, radius=-k, instances=instances, quick=quick)

        # The least of the negative radii.
        found = _least(certified(quick=True), -start, -self.units, -least, max(1, start // 1024))
        if found is not None and not quick:
            found = _least(certified(quick=False), found, found, -least, 1, gap=max(1, -found // 200))
        return -(found or 0)

    def _guess(self, sigma: float) -> float:
        """About q sqrt(T) of the wanted mechanism, by its Gaussian limit."""
        return self.strength(self.instances) / (self.shift() * math.sqrt(math.expm1(min(sigma**-2, 700.0))))

    def _most(self, mechanism_of: Callable[[int], Mechanism], guess: float, low: int, high: int, step: int) -> int | None:
        """Largest k in low..high whose mechanism certifies, judged first quickly and from there on fully."""
        found = int(min(max(guess, low), high))
        for quick in (True, False):
            found = _least(lambda k, quick=quick: self.certifies(mechanism_of(-k), quick=quick), -found, -high, -low, step)
            if found is None:
                return None
            found, high, step = -found, -found, 1
        return found

    def _vote(self) -> str:
        kind = "unanimous vote" if self.agreement == 1 else f"vote with agreement {self.agreement:g}"
        return f"a {kind} of {self.instances} instances"


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
            good = k
            if k == low:
                return k
        else:
            bad = k
            if k == high:
                return None
        if good is None:
            k = min(bad + step, high)
        elif bad is None:
            k = max(good - step, low)
        step *= 4
    while good - bad > gap:
        k = (good + bad) // 2
        good, bad = (k, bad) if holds(k) else (good, k)
    return good


@lru_cache(64)
def _guarantees(mechanism: Mechanism, threat: str, accountant: str) -> Guarantees:
    return Guarantees(mechanism, threat=threat, family=accountant)


@lru_cache(4096)
def _vote_bounds(instances: int, actions: int, eta: float, agreement: float) -> tuple[float, float]:
    """Bounds on the two most likely actions of a vote in which all who disagree vote for the same other action."""
    top = math.floor(Fraction(str(agreement)) * instances)
    bounds = top_two_bounds(np.array([[top, instances - top] + [0] * (actions - 2)]), eta)
    # Of two equal counts, or if the others are more, nothing is certified.
    return (float(bounds.top[0]), float(bounds.runner_up[0])) if 2 * top > instances else (0.0, 1.0)


def _check_agreement(agreement: float) -> None:
    if not 0.5 < agreement <= 1:
        raise MucdError(f"agreement {agreement} is outside (0.5, 1]: it is the share of the instances that vote for the top action")


def _wanted_radius(units: int, fraction: float | None, radius: int | None) -> int:
    if (fraction is None) == (radius is None):
        raise MucdError("a plan needs a fraction of the units or a radius, and not both: fraction 0.01 means 1 % of the units")
    if fraction is not None:
        if not 0 < fraction < 1:
            raise MucdError(f"fraction {fraction} is outside (0, 1): 0.01 means 1 % of the units")
        # As it was written: 0.07 of 100 units are 7, not 8.
        return math.ceil(Fraction(str(float(fraction))) * units)
    if check_count(radius, "radius") > units:
        raise MucdError(f"radius {radius} is above the number of units, {units}")
    return int(radius)


def _what_to_solve(solve: str | None, given: dict) -> str:
    if solve is None:
        if given["noise-multiplier"] is None:
            return "noise-multiplier"
        missing = [name for name, value in given.items() if value is None]
        if len(missing) != 1:
            what = "all four are given: leave one out" if not missing else f"say which of {', '.join(missing)} to solve for"
            raise MucdError(f"a noise multiplier of {given['noise-multiplier']} is given, and {what}")
        return missing[0]
    if solve not in SOLVE:
        raise MucdError(f"cannot solve for {solve!r}: use one of {', '.join(SOLVE)}")
    if given[solve] is not None:
        raise MucdError(f"{solve} {given[solve]} is given, and it is what to solve for: leave it out")
    if solve != "noise-multiplier" and given["noise-multiplier"] is None:
        raise MucdError(f"to solve for {solve} a noise multiplier must be given")
    return solve
