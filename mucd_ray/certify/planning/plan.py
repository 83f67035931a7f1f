"""Calibration: the mechanism, or the number of instances, that certifies a wanted fraction, from public numbers alone (theory section 7)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from mucd_ray.certify.confidence.proportions import LARGEST, check_count, check_eta
from mucd_ray.certify.planning.calibration import MOST_INSTANCES, Question, check_agreement, least_instances, vote_bounds
from mucd_ray.certify.rounding import exactly
from mucd_ray.errors import MucdError
from mucd_ray.mechanism.gaussian.mechanism import Mechanism
from mucd_ray.words import counted

STEPS = 100
BATCH = 1024
INSTANCES = 1000
# Below this noise multiplier subsampling wastes signal: a larger batch with more noise certifies more.
LEAST_NOISE = 4.0
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
    units = check_count(units, "units", 2, LARGEST)
    actions = check_count(actions, "actions", 2, LARGEST)
    check_agreement(agreement)
    radius = wanted_radius(units, fraction, radius)
    given = {"noise-multiplier": noise_multiplier, "steps": steps, "sample-rate": sample_rate, "instances": instances}
    solve = _what_to_solve(solve, given)
    if solve != "instances":
        instances = INSTANCES if instances is None else check_count(instances, "instances", 1, MOST_INSTANCES)
        if vote_bounds(instances, actions, eta, agreement)[0] <= 0.5:
            raise MucdError(
                f"{counted(instances, 'instance')} cannot certify anything at eta {exactly(eta)} and {actions} actions"
                + (f" and an agreement of {exactly(agreement)}" if agreement < 1 else "")
                + f": {'at least ' if agreement == 1 else ''}{least_instances(actions, eta, agreement)} are {'needed' if agreement == 1 else 'enough'}"
            )
    question = Question(
        units=units, radius=radius, agreement=agreement, eta=eta, actions=actions, threat=threat, accountant=accountant, instances=instances or 0
    )
    steps = STEPS if steps is None else steps
    rate = min(1.0, BATCH / units) if sample_rate is None else sample_rate
    if noise_multiplier is None:
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
    instances = question.instances or question.least_instances(mechanism)
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
    units = check_count(units, "units", 2, LARGEST)
    check_count(actions, "actions", 2, LARGEST)
    check_agreement(agreement)
    steps = STEPS if steps is None else check_count(steps, "steps")
    for budget in signal_budgets:
        if not (budget > 0 and math.isfinite(budget)):
            raise MucdError(f"signal budget {budget} must be a finite number above 0")
    rows = []
    for count in [check_count(count, "instances", 1, MOST_INSTANCES) for count in instances]:
        question = Question(
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


def wanted_radius(units: int, fraction: float | None, radius: int | None = None) -> int:
    """r = ceil(fraction * units), or the given radius; MucdError unless exactly one of them is given and lies in its range."""
    if (fraction is None) == (radius is None):
        raise MucdError("a plan needs a fraction of the units or a radius, and not both: fraction 0.01 means 1 % of the units")
    if fraction is not None:
        if not 0 < fraction < 1:
            raise MucdError(f"fraction {fraction} is outside (0, 1): 0.01 means 1 % of the units")
        # As it was written: 0.07 of 100 units are 7, not 8.
        return math.ceil(Fraction(str(float(fraction))) * units)
    radius = check_count(radius, "radius")
    if radius > units:
        raise MucdError(f"radius {radius} is above the number of units, {units}")
    return radius


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
