"""`mucd plan`, `tradeoff` and `radius`: the mathematics by itself, without a dataset."""

import contextlib
import json
import sys

from mucd_ray.cli.options import add_accountant, add_command, add_threat, path
from mucd_ray.errors import MucdError
from mucd_ray.words import counted, plural

# What a question may spend, times the user's patience (mechanism/work.py).
MOST_OPERATIONS = 1e9


def add_plan(commands):
    sub = add_command(
        commands, "plan", plan,
        "The mechanism, or the number of instances, that certifies a vote when a wanted number of units may be changed. Of the gaussian one, one of noise multiplier, "
        "steps, sample rate and instances is solved for and rounded to the safe side; the others are given, or have defaults. With --unit it stands beside bags and partitions.",
        "mucd plan --units 20000 --fraction 0.01 --instances 1000",
    )
    sub.add_argument("--units", type=int, required=True, help="N, a public number")
    sub.add_argument("--unit", choices=["transition", "trajectory", "source"], help="what the units are; all mechanisms are then compared for them, and one is recommended")
    target = sub.add_mutually_exclusive_group()
    target.add_argument("--fraction", type=float, help="share of the units that may be changed: 0.01 means 1 %%")
    target.add_argument("--radius", type=int, help="number of units that may be changed, instead of a fraction")
    sub.add_argument("--solve", choices=["noise-multiplier", "steps", "sample-rate", "instances"], help="what to solve for (default: the noise multiplier or, if it is given, what is not)")
    sub.add_argument("--noise-multiplier", type=float, help="sigma; needed to solve for anything else")
    sub.add_argument("--steps", type=int, help="T (default: 100)")
    sub.add_argument("--sample-rate", type=float, help="q (default: a batch of about 1024)")
    sub.add_argument("--instances", type=int, help="P (default: 1000)")
    sub.add_argument("--agreement", type=float, default=1.0, help="share of the instances that vote for the top action; all others vote for one other action")
    sub.add_argument("--frontier", type=path, metavar="FILE.png", help="also plot the certified share of the data against the signal budget for 100, 1000 and 10000 instances")
    sub.add_argument("--actions", type=int, default=2, help="number of discrete actions")
    sub.add_argument("--eta", type=float, default=0.001, help="probability that a statement may be wrong")
    _add_patience(sub)
    add_threat(sub)


def _add_patience(sub):
    sub.add_argument("--patience", type=float, default=1.0, metavar="N", help="spend up to N times the usual work (some ten seconds of a core) where many steps ask for more")


@contextlib.contextmanager
def _limited(options):
    """Within it, no more is spent than the user has patience for."""
    from mucd_ray.mechanism.work import TooMuchWork, limited_to

    if not 0 < options.patience <= 1e6:
        raise MucdError(f"patience {options.patience} is outside (0, 1e6]: 10 allows ten times the usual work")
    try:
        with limited_to(MOST_OPERATIONS * options.patience):
            yield
    except TooMuchWork as error:
        raise TooMuchWork(f"{error}: ask for fewer steps or units, or allow N times that by --patience N") from None


def plan(options, out):
    from dataclasses import asdict, replace

    from mucd_ray.certify.rounding import exactly, percent_down, round_down

    asked = {name: getattr(options, name) for name in ("units", "eta", "actions", "threat", "accountant", "steps", "sample_rate", "agreement")}
    lines, result, answer = [], {}, None
    questions = (options.fraction, options.radius, options.solve, options.noise_multiplier)
    if any(value is not None for value in questions) or not options.frontier:
        answer = _planned(options, asked)
    if answer:
        mechanism = replace(answer.mechanism, unit=options.unit or answer.mechanism.unit)
        vote = "unanimous vote" if answer.agreement == 1 else f"vote with an agreement of {exactly(answer.agreement)}"
        lines.append(
            f"sample rate {exactly(mechanism.sample_rate)}, noise multiplier {exactly(mechanism.noise_multiplier)}, steps {mechanism.steps}: a {vote} of "
            f"{counted(answer.instances, 'instance')} is certified up to r = {answer.radius} of {counted(answer.units, mechanism.unit)} ({percent_down(answer.radius / answer.units)} %); "
            f"signal budget S = {round_down(answer.signal_budget, 4)}"
        )
        result = asdict(answer) | asdict(mechanism)
    if options.unit:
        compared = _compare(options, answer)
        lines += _in_words(compared, options)
        result |= compared | {"unit": options.unit}
    if options.frontier:
        rows = _frontier(options, asked)
        result |= {"frontier": rows, "frontier_file": options.frontier}
        counts = list(dict.fromkeys(row["instances"] for row in rows))
        lines.append(f"{'S':>8}" + "".join(f"  {f'P = {count}':>12}" for count in counts) + "   certified share of the data")
        for budget in dict.fromkeys(row["signal_budget"] for row in rows):
            lines.append(f"{exactly(budget):>8}" + "".join(f"  {percent_down(row['radius'] / options.units):>10} %" for row in rows if row["signal_budget"] == budget))
        lines.append(f"plotted in {options.frontier}")
    out(json.dumps(result) if options.json else "\n".join(lines))
    _warn_unsound(options.accountant)


def _planned(options, asked: dict):
    """The gaussian mechanism; None where there is none and the other kinds stand beside it, with what is against it."""
    from mucd_ray.certify.planning.plan import plan as make_plan
    from mucd_ray.mechanism.work import TooMuchWork

    try:
        with _limited(options):
            return make_plan(
                **asked, fraction=options.fraction, radius=options.radius, instances=options.instances, noise_multiplier=options.noise_multiplier,
                solve=options.solve,
            )
    except TooMuchWork:
        raise
    except MucdError:
        # What stands beside it says the same of a mechanism of which nothing was asked; of what was given it knows nothing.
        given = (options.solve, options.noise_multiplier, options.steps, options.sample_rate)
        if not options.unit or any(value is not None for value in given) or options.accountant != "tradeoff":
            raise


def _compare(options, answer) -> dict:
    """`answer`: the gaussian mechanism, as it was planned with what was given; None without one."""
    from mucd_ray.certify.confidence.proportions import LARGEST, check_count, check_eta
    from mucd_ray.certify.planning.bags import compare
    from mucd_ray.certify.planning.calibration import MOST_INSTANCES
    from mucd_ray.certify.planning.plan import INSTANCES, wanted_radius

    asked = {name: getattr(options, name) for name in ("units", "unit", "eta", "actions", "threat", "agreement")}
    check_count(options.units, "units", 1, LARGEST)
    check_count(options.actions, "actions", 2, LARGEST)
    check_eta(options.eta)
    if options.instances is not None:
        check_count(options.instances, "instances", 1, MOST_INSTANCES)
    if not 0.5 < options.agreement <= 1:
        raise MucdError(f"agreement {options.agreement} is outside (0.5, 1]: 1 is a unanimous vote")
    # The rows are certified by trade-off curves, under which another accountant's plan may hold at less.
    gaussian = answer.mechanism if answer and options.accountant == "tradeoff" else None
    instances = answer.instances if answer else INSTANCES if options.instances is None else options.instances
    with _limited(options):
        return compare(**asked, radius=wanted_radius(options.units, options.fraction, options.radius), instances=instances, gaussian=gaussian)


def _in_words(compared: dict, options) -> list[str]:
    from mucd_ray.certify.rounding import exactly

    words = {
        "gaussian": lambda row: f"all of {counted(options.units, options.unit)}, through noise (as above)",
        "bag": lambda row: f"{counted(row['units_per_policy'], options.unit)} in each bag (--mechanism bag --bag-size {row['mechanism']['bag_size']})",
        "bag-then-noise": lambda row: (
            f"{row['units_per_policy']:.4g} {plural(options.unit)} in a bag on average, through noise (--mechanism bag-then-noise --bag-size {row['units_per_policy']:.0f}: noise multiplier "
            f"{row['mechanism']['noise_multiplier']:g}, signal budget S = {row['signal_budget']:.4g})"
        ),
        "neighbours": lambda row: f"nothing is trained: the {row['units_per_policy']} nearest {plural(options.unit)} vote (--mechanism neighbours --neighbours {row['units_per_policy']}), and an action is certified "
        f"at that r where it leads by a {'fifth' if options.threat == 'substitute' else 'ninth'} of the votes nearby, at {row['radius']} where {'all agree' if options.agreement == 1 else f'a share of {exactly(options.agreement)} agrees'}",
        "partition": lambda row: f"one of {row['mechanism']['parts']} parts, {row['units_per_policy']:.3g} {plural(options.unit)} on average",
    }
    lines = ["what one policy learns from, if a vote is to be certified at that r:"]
    lines += [f"  {row['kind']:10s} {row['refused'] or words[row['kind']](row)}" for row in compared["mechanisms"]]
    return [*lines, f"take {compared['recommended'] or 'none'}: {compared['why']}"]


def _frontier(options, asked: dict) -> list[dict]:
    """Computes the frontier and writes its plot."""
    from dataclasses import replace
    from pathlib import Path

    import numpy as np

    from mucd_ray.certify.planning.plan import FRONTIER_INSTANCES, frontier
    from mucd_ray.files import write_file
    from mucd_ray.report import plots

    file = Path(options.frontier)
    if file.suffix.lower() != ".png" or not file.parent.is_dir():
        raise MucdError(f"--frontier {file} must be the name of a .png file in a folder that exists")
    with _limited(options):
        rows = frontier(**asked, instances=sorted({*FRONTIER_INSTANCES, *([] if options.instances is None else [options.instances])}))
    curves: dict[str, list[float]] = {}
    for row in rows:
        curves.setdefault(counted(row["instances"], "instance"), []).append(row["fraction"])
    budgets = np.array(list(dict.fromkeys(row["signal_budget"] for row in rows)))
    look = replace(plots.WIDE, warning="not sound: the published rule" if options.accountant == "published" else "")
    write_file(file, plots.frontier(signal_budget=budgets, fraction={label: np.array(shares) for label, shares in curves.items()}, look=look))
    return rows


def add_tradeoff(commands):
    sub = add_command(commands, "tradeoff", tradeoff, "Bounds under D' of events whose probability under D is known.", "mucd tradeoff --sample-rate 0.002 --noise-multiplier 3 --steps 1000 --inserted 50 --removed 0 --probability 0.9 0.99")
    _add_mechanism(sub)
    sub.add_argument("--units", type=int, help="N, of all mechanisms but gaussian")
    sub.add_argument("--inserted", type=int, required=True, help="units in D' that are not in D")
    sub.add_argument("--removed", type=int, required=True, help="units in D that are not in D'")
    sub.add_argument("--probability", type=float, nargs="+", required=True, help="probabilities under D")
    _add_patience(sub)
    add_accountant(sub)


def tradeoff(options, out):
    from mucd_ray.certify.rounding import exactly, probability_down, probability_up

    with _limited(options):
        guarantee = _guarantees(options).group(options.inserted, options.removed)
        lower, upper = guarantee.lower(options.probability), guarantee.upper(options.probability)
    if options.json:
        out(json.dumps({"lower": lower.tolist(), "upper": upper.tolist()}))
    else:
        bounds = zip(options.probability, lower, upper, strict=True)
        rows = [("under D", "lower", "upper"), *((exactly(p), probability_down(a), probability_up(b)) for p, a, b in bounds)]
        widths = [max(10, *map(len, column)) for column in zip(*rows)]
        out("\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows))
    _warn_unsound(options.accountant)


def add_radius(commands):
    sub = add_command(commands, "radius", radius, "Certified radius of an action from bounds on the two largest vote shares.", "mucd radius --sample-rate 0.002 --noise-multiplier 3 --steps 1000 --top 0.99 --runner-up 0.01")
    _add_mechanism(sub)
    sub.add_argument("--top", type=float, required=True, help="lower bound on the top action's probability")
    sub.add_argument("--runner-up", type=float, required=True, help="upper bound on any other action's probability")
    sub.add_argument("--units", type=int, help="N, of all mechanisms but gaussian; no radius above this is searched (default: 10000000 with gaussian)")
    _add_patience(sub)
    add_threat(sub)


def radius(options, out):
    import numpy as np

    from mucd_ray.certify.action import action_radii
    from mucd_ray.certify.confidence.proportions import LARGEST, check_count

    for name, value in (("top", options.top), ("runner-up", options.runner_up)):
        if not 0 <= value <= 1:
            raise MucdError(f"{name} {value} is outside [0, 1]: it is a probability")
    # Nothing else has more than what the top action leaves.
    runner_up = min(options.runner_up, 1.0 - options.top)
    if runner_up > options.top:
        raise MucdError(f"runner-up {options.runner_up} is above top {options.top}: the top action has the larger probability")
    if options.mechanism == "neighbours":
        return _radius_of_neighbours(options, options.top - runner_up, out)
    options.units = MOST_UNITS if options.units is None and options.mechanism == "gaussian" else options.units
    with _limited(options):
        guarantees = _guarantees(options, threat=options.threat)
        cap = min(check_count(options.units, "units", 1, LARGEST), guarantees.largest_radius)
        found = int(action_radii(np.array([options.top]), np.array([runner_up]), guarantees, cap)[0])
    if options.json:
        out(json.dumps({"radius": None if found < 0 else found, "floor": found == cap}))
    elif found < 0:
        out("abstain: the two probabilities do not certify even r = 0")
    else:
        end = "the search ends at --units" if cap == options.units else "no larger group is accounted for"
        out(f"r = {found}" + (f" at least: {end}" if found == cap else ""))
    _warn_unsound(options.accountant)


def _radius_of_neighbours(options, lead: float, out):
    """Of a vote where the first action leads by this share among every number of nearest units."""
    from mucd_ray.certify.confidence.proportions import check_count
    from mucd_ray.mechanism.neighbours import Neighbours, unanimous_radius

    _check_given(options)
    if options.units is not None:
        check_count(options.units, "units", options.neighbours)
    if options.threat != "symmetric":
        raise MucdError(f"threat {options.threat!r} of neighbours depends on the votes themselves: --threat symmetric has a rule, `mucd certify` counts every other")
    found = unanimous_radius(Neighbours(neighbours=options.neighbours).neighbours, lead)
    cap = found if options.units is None else min(found, options.units)
    out(json.dumps({"radius": cap, "floor": False}) if options.json else f"r = {cap}, where the first action leads by this share among every number of nearest units from K - r to K + r")


# The options that each kind of mechanism takes; all of them must be given but those with a default.
MECHANISM_OPTIONS = {
    "gaussian": ("sample_rate", "noise_multiplier", "steps"), "bag": ("units", "bag_size", "draws"),
    "bag-then-noise": ("units", "bag_size", "draws", "sample_rate", "noise_multiplier", "steps"), "partition": ("units", "parts"), "neighbours": ("neighbours",),
}
MOST_UNITS = 10_000_000


def _add_mechanism(sub):
    sub.add_argument("--mechanism", default="gaussian", choices=list(MECHANISM_OPTIONS), help="noise in every step, a bag for every instance, noise in every step on such a bag, one policy per part, or votes of nearest units")
    sub.add_argument("--sample-rate", type=float, help="q, of gaussian; of the bag's units, with bag-then-noise")
    sub.add_argument("--noise-multiplier", type=float, help="sigma, of gaussian and bag-then-noise")
    sub.add_argument("--steps", type=int, help="T, of gaussian and bag-then-noise")
    sub.add_argument("--bag-size", type=int, metavar="K", help="units in a bag, at most --units")
    sub.add_argument("--draws", choices=["fixed", "replacement", "poisson"], help="of bags: exactly K units without or with replacement, or K on average (default: fixed; poisson with bag-then-noise, which may also have fixed)")
    sub.add_argument("--parts", type=int, metavar="U", help="parts of a partition")
    sub.add_argument("--neighbours", type=int, metavar="K", help="nearest units that vote")


def _guarantees(options, threat="symmetric"):
    """Those of the mechanism that the options name; MucdError where one is missing, or is another mechanism's."""
    from mucd_ray.certify.closed_form import guarantees_of
    from mucd_ray.certify.confidence.proportions import LARGEST, check_count
    from mucd_ray.certify.planning.bags import bag_of, bag_then_noise_of
    from mucd_ray.mechanism.gaussian.mechanism import Mechanism
    from mucd_ray.mechanism.partition import Partition

    kind = options.mechanism
    _check_given(options)
    if kind == "neighbours":
        raise MucdError("neighbours leave nothing to chance, so that no probability is traded: ask `mucd radius --mechanism neighbours` for what a lead of votes withstands")
    if kind == "gaussian":
        mechanism = Mechanism(sample_rate=options.sample_rate, noise_multiplier=options.noise_multiplier, steps=options.steps, clip_norm=1.0, normaliser=1.0)
    else:
        if options.units is None:
            raise MucdError(f"--mechanism {kind} needs --units: give the number of units of the dataset")
        check_count(options.units, "units", 1, LARGEST)
        draws = options.draws or ("poisson" if kind == "bag-then-noise" else "fixed")
        if kind == "partition":
            mechanism = Partition(parts=options.parts)
        else:
            mechanism = bag_of(options.bag_size, unit="trajectory", draws=draws, units=options.units)
        if kind == "bag-then-noise":
            mechanism = bag_then_noise_of(mechanism, units=options.units, noise_multiplier=options.noise_multiplier, sample_rate=options.sample_rate, steps=options.steps)
    return guarantees_of(mechanism, units=options.units, threat=threat, family=options.accountant)


def _check_given(options) -> None:
    """Raise MucdError where an option of the mechanism is missing, or is another mechanism's."""
    kind = options.mechanism
    for name in {name for names in MECHANISM_OPTIONS.values() for name in names} - {"units"}:
        given, wanted = getattr(options, name) is not None, name in MECHANISM_OPTIONS[kind]
        if given and not wanted:
            raise MucdError(f"--{name.replace('_', '-')} {getattr(options, name)} is not an option of --mechanism {kind}: leave it out")
        if wanted and not given and name != "draws":
            raise MucdError(f"--mechanism {kind} needs --{name.replace('_', '-')}: give it")


def _warn_unsound(accountant: str) -> None:
    if accountant == "published":
        print("mucd: the published rule is not sound: these numbers are for comparison only", file=sys.stderr)
