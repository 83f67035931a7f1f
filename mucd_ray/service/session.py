"""From what a user asks for to settings, and from a finished run to what the user sees."""

import hashlib
import json
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import gymnasium
import numpy as np

from mucd_ray.certify.claim import round_down
from mucd_ray.certify.looks import effective_eta
from mucd_ray.certify.plan import plan
from mucd_ray.certify.size import declared_size
from mucd_ray.data.cards import EnvironmentCard, card_for, load_card
from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.data.minari_io import load_dataset
from mucd_ray.errors import MucdError
from mucd_ray.learn.algorithms import algorithm_for
from mucd_ray.learn.learner import Learner, LocalUpdate
from mucd_ray.learn.problem import action_shape
from mucd_ray.mechanism.mechanism import UNITS, Mechanism
from mucd_ray.report.report import write_report
from mucd_ray.service.run import Choices, Resources, certify, train
from mucd_ray.service.settings import RunSettings
from mucd_ray.service.store import RunStore

# Chosen on simulator recordings (Acrobot, CartPole) with seeds that no shipped example certifies.
DEFAULT_LEARNER = Learner(algorithm="bc", hidden=(), optimiser="sgd", learning_rate=30.0, average=0.5)
DEFAULT_CLIP_NORM = 0.1
DEFAULT_LEARNER_NOTE = "The learner's settings are the package's defaults, chosen on simulator recordings with other seeds, never on this dataset."
LOCAL_NOTE = "Of a trajectory with more than {cap} transitions, {cap} evenly spaced ones from a random start take part in a step."
CONDITIONAL = "The claim is conditional on what the user gave: it holds as stated if it was not chosen by looking at this dataset."
USER_LEARNER_NOTE = f"The learner's settings were given by the user. {CONDITIONAL}"


SCOPES = {"per_state": "each state", "family_wise": "all states"}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a run is asked for. `None` means: the package's default, or planned from the declared size and the fraction."""

    dataset: str
    instances: int = 1000
    card: EnvironmentCard | None = None
    unit: str = "transition"
    fraction: float = 0.01
    units: int | None = None
    sample_rate: float | None = None
    noise_multiplier: float | None = None
    steps: int | None = None
    clip_norm: float | None = None
    learner: Learner | None = None
    chosen: str | None = None
    rollouts: int = 1
    discount: float = 1.0
    states: int = 200
    states_file: str | None = None
    held_out: int = 16


def make_settings(request: Request, dataset: OfflineDataset, choices: Choices) -> tuple[RunSettings, np.ndarray | None]:
    """(settings, the user's states or None). Nothing but the number of units is read from the dataset, and that only rounded."""
    card = request.card or card_for(_environment_of(dataset))
    card.check(dataset)
    actions, discrete = action_shape(dataset.action_space)
    learner = with_value_range(request.learner or DEFAULT_LEARNER, card, discrete)
    size = dataset.trajectories if request.unit == "trajectory" else len(dataset)
    states = _states(request.states_file, card)
    if request.units is not None and request.units < 2:
        raise MucdError(f"units {request.units}: declare at least 2, about the size of the dataset")
    declared, margin = declared_size(size) if request.units is None else (request.units, None)
    mechanism, how = _mechanism(request, choices, declared, actions if discrete else 2)
    settings = RunSettings(
        dataset=dataset.name,
        fingerprint=dataset.fingerprint(),
        units=size,
        card=card,
        actions=actions if discrete else 0,
        dimensions=0 if discrete else actions,
        action_bounds=_action_bounds(card),
        mechanism=mechanism,
        learner=learner,
        declared_size=declared,
        size_margin=margin,
        rollouts=request.rollouts,
        discount=request.discount,
        states=len(states) if states is not None else request.states,
        held_out=request.held_out,
        states_sha256=hashlib.sha256(np.ascontiguousarray(states).tobytes()).hexdigest() if states is not None else None,
        assumptions=(
            how,
            USER_LEARNER_NOTE if request.learner else DEFAULT_LEARNER_NOTE,
            *([LOCAL_NOTE.format(cap=learner.local.cap)] if request.unit == "trajectory" else []),
            *([] if _is_shipped(card) else [f"The environment card was given by the user. {CONDITIONAL}"]),
            *([f"About the choice of constants the user says: {request.chosen}"] if request.chosen else []),
        ),
    )
    settings.radius_cap(choices.threat)
    choices.check(settings)
    wanted, cap = math.ceil(request.fraction * declared), settings.radius_cap(choices.threat)
    if request.noise_multiplier is None and wanted > cap:
        print(
            f"mucd: the wanted fraction {request.fraction:g} is r = {wanted}, but no radius above {cap} will be claimed, where the rounded size would change: "
            "ask for a smaller fraction, or declare a size with --units that does not depend on the data",
            file=sys.stderr,
        )
    effective_eta(choices.eta, choices.looks, request.instances)
    return settings, states


def with_value_range(learner: Learner, card: EnvironmentCard, discrete: bool) -> Learner:
    """The learner with its constants v_min and v_max, where it has them and they were not given: the public range of discounted sums of scaled rewards."""
    algorithm = algorithm_for(learner.algorithm, discrete)
    constants = algorithm.filled(learner.constants)
    lacking = [name for name in ("v_min", "v_max") if name in constants and constants[name] is None]
    if not lacking:
        return learner
    bounds = dict(zip(("v_min", "v_max"), (bound / card.reward_scale for bound in card.discounted_range(constants["discount"]))))
    return replace(learner, constants=learner.constants | {name: bounds[name] for name in lacking})


def _is_shipped(card: EnvironmentCard) -> bool:
    try:
        return card == card_for(card.env_id)
    except MucdError:
        return False


def _action_bounds(card: EnvironmentCard) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Public (low [d], high [d]) of the environment's continuous actions; None if they are discrete or unbounded."""
    environment = card.make()
    space = environment.action_space
    environment.close()
    if not isinstance(space, gymnasium.spaces.Box):
        return None
    low, high = (bound.astype(float).reshape(-1) for bound in (space.low, space.high))
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
        return None
    return tuple(low.tolist()), tuple(high.tolist())


def _environment_of(dataset: OfflineDataset) -> str:
    if dataset.env_id is None:
        raise MucdError(f"dataset {dataset.name} does not say in which environment it was recorded: describe it with --card FILE")
    return dataset.env_id


def _mechanism(request: Request, choices: Choices, declared: int, actions: int) -> tuple[Mechanism, str]:
    clip_norm = DEFAULT_CLIP_NORM if request.clip_norm is None else request.clip_norm
    if request.noise_multiplier is not None:
        if request.sample_rate is None or request.steps is None:
            raise MucdError("--noise-multiplier needs --sample-rate and --steps beside it; or leave it out, and it is planned from --fraction")
        mechanism = Mechanism(
            unit=request.unit, sample_rate=request.sample_rate, noise_multiplier=request.noise_multiplier, clip_norm=clip_norm,
            steps=request.steps, normaliser=request.sample_rate * declared,
        )
        return mechanism, f"The mechanism was given by the user. {CONDITIONAL}"
    eta = effective_eta(choices.eta, choices.looks, request.instances)
    answer = plan(
        units=declared, fraction=request.fraction, instances=request.instances, eta=eta, actions=actions, threat=choices.threat,
        accountant="tradeoff", sample_rate=request.sample_rate, **({} if request.steps is None else {"steps": request.steps}),
    )
    mechanism = replace(answer.mechanism, unit=request.unit, clip_norm=clip_norm)
    given = [name for name in ("sample_rate", "steps", "clip_norm") if getattr(request, name) is not None]
    return mechanism, (
        f"The mechanism was planned from the declared size {declared}, the wanted fraction {request.fraction:g}, {request.instances} instances and "
        f"eta {eta:g} alone" + (f", with {', '.join(given).replace('_', ' ')} given by the user. {CONDITIONAL}" if given else ".")
    )


def _states(path: str | None, card: EnvironmentCard) -> np.ndarray | None:
    if path is None:
        return None
    try:
        states = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise MucdError(f"states file {path} cannot be read ({error}): give a .npy array of observations") from None
    if not isinstance(states, np.ndarray):
        raise MucdError(f"states file {path} holds several arrays: give a .npy array of observations")
    if states.ndim != 1 + len(card.observation_shape):
        raise MucdError(f"states file {path} of shape {states.shape} must be a list of observations of shape {tuple(card.observation_shape)}")
    if states.dtype.kind not in "fiub" or not len(states) or not np.isfinite(states).all():
        raise MucdError(f"states file {path} must hold at least one observation and finite numbers only")
    card.features(states)
    return states


def execute(request: Request, out: str, *, choices: Choices = Choices(), resources: Resources = Resources(), seed: int | None = None) -> dict:
    """The whole of `mucd run`: load, settle, train, certify, report. Returns the summary."""
    dataset = load_dataset(request.dataset)
    settings, states = make_settings(request, dataset, choices)
    secret = None if seed is None else hashlib.sha256(f"mucd seed {seed}".encode()).digest()
    if seed is not None:
        note = "The secret was derived from a number given by the user (--seed): the claim holds only if no attacker knows or guesses it."
        settings = replace(settings, assumptions=(*settings.assumptions, note))
    store = RunStore.create_or_open(out, settings, secret)
    return finish(store, train(store, dataset, request.instances, choices, resources, states))


def finish(store: RunStore, certificate: dict) -> dict:
    """Report and summary of a certified run."""
    write_report(store.path)
    summary = summarise(store, certificate)
    store.write_json("summary.json", summary)
    return summary


def summarise(store: RunStore, certificate: dict) -> dict:
    results, inputs = certificate["results"], certificate["inputs"]
    policy, action = results["policy"], results.get("action")
    summary = {
        "run": str(store.path),
        "certificate": str(store.path / "certificate.json"),
        "report": str(store.path / "report.html"),
        "instances": results["instances"],
        "units": inputs["units"],
        "unit": inputs["mechanism"]["unit"],
        "threat": inputs["threat"],
        "accountant": inputs["accountant"],
        "sound": results["sound"],
        "eta": inputs["eta"],
        "signal_budget": results["signal_budget"],
        "unpoisoned_mean": policy["unpoisoned_mean"],
        "rollouts": inputs["rollouts"],
        "discount": inputs["discount"],
        "keeps": {share: entry | {"median": _median_at(policy["curve"], entry["radius"])} for share, entry in policy["keeps"].items()},
        "baselines": certificate["context"]["baselines"],
        "looks": inputs["looks"],
        # A number of instances beside which others were asked for or looked at may have been chosen by results.
        "conditional": inputs["looks"] == "fixed" and bool(set(store.targets()) - {results["instances"]} or store.looks()),
        "goal": results["goal"] and results["goal"] | {"text": inputs["goal"]},
    }
    if action:
        summary["action"] = {"kind": action["kind"]} | {scope: _action_summary(action[scope]) for scope in SCOPES}
    return summary


def _median_at(curve: dict, radius: int) -> float | None:
    """The bound on the median return under D' at this radius."""
    return curve["quantiles"]["0.5"][curve["radius"].index(radius)] if radius >= 0 else None


def _action_summary(part: dict) -> dict:
    """Shares of the states that are certified at r >= 1, and their radii; for continuous actions by tolerance."""
    keys = ("certified_share", "median_radius", "max_radius")
    if "tolerance" in part:
        return {"tolerance": {share: {key: entry[key] for key in keys} for share, entry in part["tolerance"].items()}}
    accuracy, at = part["curve"]["certified_accuracy"], part["curve"]["radius"].index(1)
    return {key: part[key] for key in keys} | {"certified_accuracy": None if accuracy is None else accuracy[at]}


def describe(summary: dict) -> str:
    """The summary for people."""
    kind, baselines = UNITS[summary["unit"]], summary["baselines"] or {}
    lines = [
        f"{summary['instances']} instances; {summary['units']} {kind}; {summary['threat']} threat; {summary['accountant']} accounting; eta {summary['eta']:g}"
        + (", at all looks together" if summary["looks"] == "anytime" else ""),
        f"mean return, unpoisoned  {summary['unpoisoned_mean']:10.2f}" + _episodes(summary),
    ]
    names = {"non_private": "without privacy", "behaviour": "behaviour policy", "best_constant_return": "best constant action"}
    lines += [f"{names[key]:24s} {baselines[key]:10.2f}" for key in names if key in baselines]
    for share, entry in summary["keeps"].items():
        if entry["radius"] >= 0:
            lines.append(
                f"certified: keeps {100 * float(share):.0f} % up to r = {entry['radius']} {kind} ({round_down(100 * entry['fraction'], 3)} %), "
                f"expected return at least {round_down(entry['bound'], 5)}, median at least {round_down(entry['median'], 5)}"
            )
        else:
            lines.append(f"certified: keeping {100 * float(share):.0f} % is not certified at any r")
    for scope, name in SCOPES.items() if "action" in summary else ():
        lines += _describe_actions(summary["action"][scope], name)
    if summary["goal"]:
        goal = summary["goal"]
        lines.append(
            f"goal {goal['text']}: {'met' if goal['met'] else 'NOT met'} with {summary['instances']} instances; certified at r = {goal['radius']} is "
            f"{round_down(goal['certified'], 4)}, wanted {goal['wanted']:g}"
        )
    if not summary["sound"]:
        lines.insert(0, "NOT SOUND: published accounting, for comparison only")
    if summary["conditional"]:
        lines.append("on condition  that the number of instances was not chosen by looking at results; --looks anytime needs no such condition")
    return "\n".join([*lines, f"certificate  {summary['certificate']}", f"report       {summary['report']}"])


def _episodes(summary: dict) -> str:
    parts = [f"{summary['rollouts']} episodes each"] if summary["rollouts"] > 1 else []
    parts += [f"discount {summary['discount']:g}"] if summary["discount"] < 1 else []
    return f"  ({', '.join(parts)})" if parts else ""


def _radius(radius: float | None) -> str:
    return "none" if radius is None else f"{radius:g}"


def _describe_actions(part: dict, name: str) -> list[str]:
    if "tolerance" in part:
        return [
            f"certified median actions ({name}): in an interval {200 * float(share):g} % of the range wide at {round_down(100 * entry['certified_share'], 4)} % of states, "
            f"median r = {_radius(entry['median_radius'])}, largest {_radius(entry['max_radius'])}"
            for share, entry in part["tolerance"].items()
        ]
    line = f"certified actions ({name}): stable at {round_down(100 * part['certified_share'], 4)} % of states, median r = {_radius(part['median_radius'])}, largest {_radius(part['max_radius'])}"
    if part["certified_accuracy"] is not None:
        line += f"; certified and as without privacy at {round_down(100 * part['certified_accuracy'], 4)} %"
    return [line]


# The commands of the command line


def start_run(options, out) -> int:
    names = ("algorithm", "random_features", "bandwidth", "optimiser", "learning_rate", "momentum", "average")
    given = {name: getattr(options, name) for name in names}
    given |= {"hidden": None if options.hidden is None else _widths(options.hidden), "constants": _constants(options.constant), "local": _local_update(options)}
    given = {name: value for name, value in given.items() if value is not None}
    request = Request(
        dataset=options.dataset,
        instances=options.instances,
        card=load_card(options.card) if options.card else None,
        fraction=options.fraction,
        units=options.units,
        sample_rate=options.sample_rate,
        noise_multiplier=options.noise_multiplier,
        steps=options.steps,
        clip_norm=options.clip_norm,
        learner=replace(DEFAULT_LEARNER, **given) if given else None,
        unit=options.unit,
        chosen=options.chosen,
        rollouts=options.rollouts,
        discount=options.discount,
        states=options.states,
        states_file=options.states_file,
        held_out=options.held_out,
    )
    return _print(execute(request, options.out, choices=_choices(options), resources=_resources(options), seed=options.seed), options, out)


def grow_run(options, out) -> int:
    store = RunStore.open(options.run)
    choices, resources = _choices(options), _resources(options)
    dataset = load_dataset(store.settings().dataset)
    return _print(finish(store, train(store, dataset, options.instances, choices, resources)), options, out)


def certify_run(options, out) -> int:
    store = RunStore.open(options.run)
    return _print(finish(store, certify(store, _choices(options))), options, out)


def report_run(options, out) -> None:
    store = RunStore.open(options.run)
    if not (Path(options.run) / "certificate.json").exists():
        raise MucdError(f"{options.run} has no certificate.json: make it with `mucd certify {options.run}`")
    path = write_report(store.path)
    out(json.dumps({"report": str(path)}) if options.json else str(path))


def _print(summary: dict, options, out) -> int:
    """Exit status: 1 if training went on for a goal and the budget ended without it."""
    out(json.dumps(summary) if options.json else describe(summary))
    if summary["goal"] is None or summary["goal"]["met"]:
        return 0
    print(
        f"mucd: goal {summary['goal']['text']} is not met with {summary['instances']} instances: go on with `mucd grow {summary['run']} --until ... --instances N`",
        file=sys.stderr,
    )
    return 1


def _choices(options) -> Choices:
    """Those of `run` and `grow` have `until`, those of `certify` have `looks`."""
    goal = getattr(options, "until", None)
    looks = getattr(options, "looks", "fixed" if goal is None else "anytime")
    return Choices(
        eta=options.eta, threat=options.threat, accountant=options.accountant, band=options.band, inference=options.inference, looks=looks, goal=goal
    )


def _resources(options) -> Resources:
    for name in ("instances_per_actor", "actors"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise MucdError(f"--{name.replace('_', '-')} {value} must be at least 1")
    return Resources(
        address=options.address, actors=options.actors, block=options.instances_per_actor, device=options.device, gpus_per_actor=options.gpus_per_actor
    )


def _constants(given: list[str] | None) -> dict[str, float] | None:
    """["alpha=2", ...] -> {"alpha": 2.0, ...}."""
    constants = {}
    for text in given or []:
        name, _, value = text.partition("=")
        try:
            constants[name] = float(value)
        except ValueError:
            raise MucdError(f"--constant {text!r} must be NAME=NUMBER, such as alpha=2") from None
    return constants or None


def _local_update(options) -> LocalUpdate | None:
    given = {"cap": options.cap, "steps": options.local_steps, "learning_rate": options.local_learning_rate, "min_return": options.min_return}
    given = {name: value for name, value in given.items() if value is not None}
    if given and options.unit == "transition":
        raise MucdError("--cap, --local-steps, --local-learning-rate and --min-return are about trajectories: add --unit trajectory")
    return LocalUpdate(**given) if given else None


def _widths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise MucdError(f"--hidden {text!r} must be whole numbers with commas between, such as 64,64") from None
