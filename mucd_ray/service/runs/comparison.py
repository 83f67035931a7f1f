"""`mucd compare DATASET --defences ...`: every defence trained on one dataset with the same network, states and evaluation, side by side at the same r."""

import json
import math
import re
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from mucd_ray.certify.rounding import confidence_percent, exactly, percent_down, round_down, tenths_down
from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.errors import MucdError
from mucd_ray.files import as_expected
from mucd_ray.mechanism.bag import Bag
from mucd_ray.mechanism.bag_then_noise import BagThenNoise
from mucd_ray.mechanism.gaussian.mechanism import Mechanism
from mucd_ray.mechanism.kinds import to_values
from mucd_ray.mechanism.neighbours import Neighbours
from mucd_ray.mechanism.partition import Partition
from mucd_ray.mechanism.units import UNITS
from mucd_ray.progress import bar
from mucd_ray.report.plots import compared_defences, share_certified
from mucd_ray.service.runs.cells import Cell, Defence, check_same, make_cell, settings_of
from mucd_ray.service.runs.commands import asked, resources_of
from mucd_ray.service.runs.settings import RunSettings
from mucd_ray.service.runs.summary import ACCURACY_RADII, certified_accuracy
from mucd_ray.service.storage.store import RunStore
from mucd_ray.service.workers.cluster import joined
from mucd_ray.words import counted

STUDY, STATES, COST = "compare.json", "states.json", "cost.json"
# A median action may move by so much of its range.
TOLERANCE = "0.1"
# The mechanisms that this package adds to what was known; all others are peers and simple methods.
OURS = (Mechanism.kind, Bag.kind, BagThenNoise.kind)
# The voted policy of a run is the policy of these rules.
VOTES = ("parl", "fa")
# Options that move no number, or are told otherwise.
NOT_TOLD = ("command", "storage", "json", "actors", "device", "address", "instances_per_actor", "gpus_per_actor", "gpu_type", "wait_for_nodes", "lease", "runtime_env")
SEES = {"raw": "raw observations", "card": "features of the environment's card"}
COLUMNS = ("defence", "deployed", "mean return", "voted", "states", "certified", "median r", "largest r", "seconds", "instance-steps")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What `mucd compare --defences` is asked for.

    Attributes:
        dataset: Minari id.
        defences: with their options; `unit` in these is None where nothing is said of it.
    """

    dataset: str
    defences: tuple[Defence, ...]
    storage: str


def compare_defences(comparison: Comparison) -> dict:
    """Train and certify every defence that the folder lacks, and compare all of them -> the results, as --json prints them.

    Raises:
        MucdError: what a run refuses, of any defence, before anything is trained; or a folder that holds another comparison.
    """
    first = comparison.defences[0].options
    request, dataset, _ = asked(first)
    defences, settings = [], {}
    for defence in comparison.defences:
        settled, settings[defence.name] = _checked(defence, comparison, dataset)
        defences.append(settled)
    store, options = RunStore(comparison.storage), defences[0].options
    check_same(store, STUDY, {"dataset": comparison.dataset, "fingerprint": dataset.fingerprint(), "unit": options.unit, "threat": options.threat, "eta": options.eta}, "defences side by side")
    cells = {run.name: run for defence in defences for run in _runs(defence)}
    given = options.states_file is not None or options.trusted_states is not None or dataset.test is not None
    chooser = None if given else _chooser(store, cells)
    missing = [name for name in sorted(cells, key=lambda name: name != chooser) if not _is_finished(_cell(comparison, cells[name]), cells[name])]
    if missing:
        with joined(replace(resources_of(first), imports=request.environment.imports)), bar("defences", "run", total=len(missing)) as shown:
            for name in missing:
                _make(_cell(comparison, cells[name]), cells[name], dataset, None if chooser in (None, name) else RunStore(f"{comparison.storage}/{chooser}").states())
                shown.update()
    with as_expected(comparison.storage, "choose another --storage"):
        results = _results(comparison, defences, dataset, settings, chooser)
    store.storage.replace("results.json", json.dumps(results, indent=1).encode())
    store.storage.replace("compare.png", compared_defences(**_figure(results)))
    return results


def _checked(defence: Defence, comparison: Comparison, dataset: OfflineDataset) -> tuple[Defence, RunSettings]:
    """With the unit, and the policy whose return is certified, filled in, and its settings. Raises MucdError where it does not fit."""
    plays = dataset.test is None and not defence.options.no_environment
    options = Namespace(**vars(defence.options) | {"unit": defence.options.unit or ("trajectory" if dataset.test is None else "transition")})
    if not plays:
        options = Namespace(**vars(_without_vote(options)) | {"rollouts": None})
    settings, choices = settings_of(replace(defence, options=options), dataset)
    if choices.policy == "vote":
        try:
            replace(choices, rule=None, window=None).check(settings)
        except MucdError:
            # Where the vote has no return that is certified, it has none here.
            options = _without_vote(options)
    return replace(defence, options=options), settings


def _without_vote(options: Namespace) -> Namespace:
    return Namespace(**vars(options) | {"policy": "instance", "nodes": None} | ({} if options.rule else {"episodes": None}))


def _chooser(store: RunStore, cells: dict[str, Defence]) -> str:
    """Whose held-out instances, or episodes, choose the states of all: the first defence of the first call."""
    told = store.read_json(STATES)
    if isinstance(told, dict) and isinstance(name := told.get("from"), str) and re.fullmatch("[a-z-]{1,40}", name) and (name in cells or RunStore(f"{store.location}/{name}").read_json(COST)):
        return name
    name = next(iter(cells))
    store.write_json(STATES, {"from": name})
    return name


def _runs(defence: Defence) -> list[Defence]:
    """What is to be made of it, in order: the run that trains its policies, then the certificate of a vote rule."""
    if defence.options.rule is None:
        return [defence]
    options = Namespace(**vars(defence.options) | {"rule": None, "window": None})
    return [replace(defence, name=defence.trained, options=options if options.policy == "vote" else _without_vote(options)), defence]


def _cell(comparison: Comparison, defence: Defence) -> Cell:
    return Cell(run=f"{comparison.storage}/{defence.trained}", certificate=f"{comparison.storage}/{defence.name}")


def _is_finished(cell: Cell, defence: Defence) -> bool:
    """Raises MucdError where it was made with other options."""
    store, asked_for = RunStore(cell.certificate), _told(defence)
    told = store.read_json(COST)
    if told is None:
        return False
    found = told.get("options") if isinstance(told, dict) else None
    if not isinstance(found, dict):
        raise MucdError(f"{store.file(COST)} does not say with which options {defence.name} was made: delete {store.location}, and it is made again")
    if different := sorted(name for name in asked_for if found.get(name) != asked_for[name]):
        raise MucdError(f"{store.location} holds {defence.name} with another {', '.join(different).replace('_', ' ')}: use the same, or another --storage")
    return True


def _told(defence: Defence) -> dict:
    """The options that it has, as they are read from a file."""
    return json.loads(json.dumps({name: value for name, value in vars(defence.options).items() if name not in NOT_TOLD}))


def _make(cell: Cell, defence: Defence, dataset: OfflineDataset, states: np.ndarray | None) -> None:
    store = RunStore(cell.certificate)
    continued, began = bool(store.storage.names()), time.monotonic()
    make_cell(cell, defence, dataset, states)
    store.write_json(COST, {"options": _told(defence), "seconds": round(time.monotonic() - began, 3), "complete": not continued})


def _results(comparison: Comparison, defences: list[Defence], dataset: OfflineDataset, settings: dict[str, RunSettings], chooser: str | None) -> dict:
    certificates = {defence.name: _certificate(_cell(comparison, defence), defence, settings[defence.name]) for defence in defences}
    seen = {certificate["context"]["states_sha256"] for certificate in certificates.values()}
    if len(seen) > 1:
        raise MucdError(f"the defences in {comparison.storage} are certified at different states: choose a new folder with --storage")
    first, options = certificates[defences[0].name], defences[0].options
    rows = {defence.name: _row(comparison, defence, certificates[defence.name], settings[defence.name]) for defence in defences}
    largest = max([1, *(row["max_radius"] or 0 for row in rows.values()), *(row["half_kept"] or 0 for row in rows.values())])
    radii = [radius for power in range(10) for radius in (10**power, 2 * 10**power, 5 * 10**power) if radius <= largest]
    if dataset.test is not None:
        radii = list(ACCURACY_RADII[1:])
    for row in rows.values():
        row["at"] = {"radius": radii} | {name: curve and [_at(curve, radius) for radius in radii] for name, curve in row["curves"].items()}
    baselines = first["context"]["baselines"] or {}
    results = {
        "dataset": comparison.dataset, "unit": options.unit, "units": dataset.count(options.unit), "threat": options.threat, "eta": options.eta, "return_range": first["inputs"]["return_range"],
        "radii": radii,
        "states": {"sha256": seen.pop(), "chosen_by": first["context"]["states_chosen_by"] if chooser is None else f"{chooser} ({_context(comparison, chooser)['states_chosen_by']})"},
        "yardsticks": {name: baselines[key] for name, key in (("best constant action", "best_constant_return"), ("behaviour policy", "behaviour")) if baselines.get(key) is not None},
        "defences": rows, "table": f"{comparison.storage}/results.json", "figure": f"{comparison.storage}/compare.png",
    }
    return results | {"words": in_words(results)}


def _certificate(cell: Cell, defence: Defence, settings: RunSettings) -> dict:
    """Raises MucdError where it is none of this defence on this dataset."""
    certificate = cell.read()
    inputs, dataset = certificate["inputs"], certificate["context"]["dataset"]
    found = (inputs["mechanism"], inputs.get("rule", {}).get("name"), inputs["threat"], inputs["eta"], dataset["sha256"])
    if found != (to_values(settings.mechanism), defence.options.rule, defence.options.threat, defence.options.eta, settings.fingerprint):
        raise MucdError(f"{cell.certificate}/certificate.json is not that of {defence.name} on {settings.dataset}: delete {cell.certificate}, and run the same command again")
    return certificate


def _context(comparison: Comparison, name: str) -> dict:
    return Cell(run="", certificate=f"{comparison.storage}/{name}").read()["context"]


def _row(comparison: Comparison, defence: Defence, certificate: dict, settings: RunSettings) -> dict:
    """What a certificate says of its defence. `curves`: by what they are about, {"radius": [K], "value": [K], "beyond": what is known at larger r}; None where nothing is claimed."""
    inputs, results = certificate["inputs"], certificate["results"]
    rule, policy, low = results.get("rule"), results["policy"], (inputs["return_range"] or [0.0])[0]
    where, radii = _radii(results, rule)
    certified = radii[radii >= 1]
    at, shares = share_certified(radii) if len(radii) else (np.zeros(1), np.zeros(1))
    # A rule's policy is the voted one of its run where nothing but the votes at the state counts.
    voted_in = results if rule is None else _cell(comparison, replace(defence, name=defence.trained)).read()["results"] if rule["name"] in VOTES else {}
    voted, median = voted_in.get("voted"), certificate["context"].get("median_action_return")
    played = rule or policy

    def curve(of: dict | None, name: str = "bound") -> dict | None:
        return None if of is None else {"radius": of["curve"]["radius"], "value": of["curve"][name], "beyond": low}

    kept = curve(played)
    mean = played and played["unpoisoned_mean"]
    cell = _cell(comparison, defence)
    return {
        "certificate": f"{cell.certificate}/certificate.json", "mechanism": inputs["mechanism"], "instances": results["instances"],
        "sees": SEES.get(settings.features_source["source"], settings.features_source["source"]),
        "deployed": _deployed(inputs, rule), "mean": mean, "standard_error": _standard_error(inputs, rule), "voted_mean": voted["unpoisoned_mean"] if voted else median,
        "states": len(radii), "states_where": where,
        "certified_share": len(certified) / len(radii) if len(radii) else None, "median_radius": float(np.median(certified)) if len(certified) else None, "max_radius": int(certified.max()) if len(certified) else None,
        "half_kept": None if kept is None or mean is None else max((r for r, bound in zip(kept["radius"], kept["value"]) if bound >= low + 0.5 * (mean - low)), default=None),
        "curves": {
            "certified": {"radius": at.tolist(), "value": shares.tolist(), "beyond": 0.0} if len(radii) else None,
            "bound": kept, "voted_expected": curve(voted), "voted_played": curve(voted, "played"),
        },
        "certified_accuracy": certified_accuracy(certificate) if "labels_sha256" in certificate["context"] and inputs["actions"]["reference"] is not None else None,
        "promise": _promise(inputs, results, rule, settings),
        "cost": _cost(comparison, defence, certificate),
    }


def _radii(results: dict, rule: dict | None) -> tuple[str, np.ndarray]:
    """(at which states, certified radii there, -1 where there is none); none at all where actions are not certified."""
    if rule is not None:
        return f"on the way of its own {counted(rule['episodes'], 'episode')}", np.concatenate(rule["radius"])
    action = results["action"]
    if action is None:
        return "", np.zeros(0, int)
    part = action["per_state"]
    radii = part["tolerance"][TOLERANCE]["radius"] if "tolerance" in part else part["radius"]
    return "shared by all", np.array([-1 if radius is None else radius for radius in radii])


def _at(curve: dict, radius: int) -> float:
    """The value at the least listed radius that is no smaller: a bound at r also holds at every smaller one."""
    place = int(np.searchsorted(curve["radius"], radius))
    return curve["value"][place] if place < len(curve["radius"]) else curve["beyond"]


def _standard_error(inputs: dict, rule: dict | None) -> float | None:
    """Of the mean return of what is deployed."""
    returns = inputs["returns"] if rule is None else [episode["return"] for episode in inputs["rule"]["episodes"]]
    return float(np.std(returns, ddof=1) / math.sqrt(len(returns))) if len(returns) > 1 else None


def _deployed(inputs: dict, rule: dict | None) -> str:
    if rule is not None:
        return f"vote rule {rule['name']}"
    return "vote of neighbours" if inputs["mechanism"]["kind"] == Neighbours.kind else "random instance"


def _promise(inputs: dict, results: dict, rule: dict | None, settings: RunSettings) -> dict:
    """What is claimed, of which policy, how surely; and what is not."""
    surely, kind = f"with probability {confidence_percent(inputs['eta'])} %", inputs["mechanism"]["kind"]
    episodes = counted(len(inputs["returns"]) if rule is None else rule["episodes"], "episode")
    if rule is not None:
        return {
            "actions": "of the rule's policy, at each state on its way if the episode came there in the same way: certain, no matter of chance", "return": f"of the rule's policy in its own {episodes} with public seeds: certain",
            "not": "other episodes, states elsewhere, what follows an action that changed",
        }
    exact = kind == Neighbours.kind or results["action"] is not None and results["action"]["kind"] == "exact"
    voters = {Neighbours.kind: "nearest units", Partition.kind: "parts' policies"}.get(kind, "instances")
    actions = f"of the vote of all {voters}, at each state by itself: " + ("certain, no matter of chance" if exact else surely)
    if kind == Neighbours.kind:
        return {"actions": actions, "return": f"of the vote in its own {episodes}: certain" if settings.plays else None, "not": "other episodes"}
    where = "the vote's return, but where a column says so" if results.get("voted") else "the vote's return"
    return {"actions": actions if results["action"] else None, "return": f"of one instance drawn at random, expected: {surely}" if results["policy"] else None, "not": where}


def _cost(comparison: Comparison, defence: Defence, certificate: dict) -> dict:
    """Seconds of training, evaluation and certificate, a rule's with those of the run that it shares; `complete`: none are missing of an attempt that was cut off. Instances times steps of the optimiser, those held out and yardsticks left out."""
    parts = [RunStore(f"{comparison.storage}/{name}").read_json(COST) for name in dict.fromkeys((defence.trained, defence.name))]
    told = [part for part in parts if part is not None]
    mechanism, fit, instances = certificate["inputs"]["mechanism"], certificate["context"]["fit"], certificate["results"]["instances"]
    if mechanism["kind"] == Neighbours.kind:
        steps = 0
    elif fit is None:
        steps = instances * mechanism["steps"]
    else:
        # Each part's policy is trained once, and instances are draws of them.
        steps = (mechanism["parts"] if mechanism["kind"] == Partition.kind else instances) * fit["steps"]
    return {"seconds": sum(part["seconds"] for part in told), "complete": len(told) == len(parts) and all(part["complete"] for part in told), "shared_with": None if defence.name == defence.trained else defence.trained, "instance_steps": steps}


def in_words(results: dict) -> list[str]:
    """Who is ahead at which r, and where a peer or a simple method is; all from the numbers of `results`."""
    rows, radii = results["defences"], results["radii"]
    low, high = results["return_range"] or (0.0, 1.0)
    bound = partial(round_down, digits=4, width=high - low)
    lines = []
    for name, verb, least, told in (("certified", "most states", 0.0, _percent), ("bound", "most return", low, bound)):
        by_radius = {radius: {row: found[name][k] for row, found in ((row, rows[row]["at"]) for row in rows) if found[name] is not None} for k, radius in enumerate(radii)}
        for winners, at in _runs_of_winners(by_radius, least):
            values = ", ".join(told(by_radius[radius][winners[0]]) for radius in at)
            line = f"at r = {_listed(at)} {_listed(winners)} {'certifies' if len(winners) == 1 else 'certify'} {verb} ({values})"
            own = [max((by_radius[radius][row] for row in by_radius[radius] if _is_ours(rows[row])), default=None) for radius in at]
            if not any(_is_ours(rows[row]) for row in winners) and None not in own:
                line += f": a peer or simple method, ahead of {_listed([row for row in rows if _is_ours(rows[row])])} ({', '.join(told(value) for value in own if value is not None)})"
            if name == "certified" and any(rows[row]["deployed"].startswith("vote rule") for row in winners):
                line += "; a rule's states are those on its own way"
            lines.append(line)
        if any(row["at"][name] is not None for row in rows.values()) and not any(value > least for values in by_radius.values() for value in values.values()):
            lines.append(f"no defence certifies any {'state' if name == 'certified' else 'return above the least'} at r = {radii[0]} or more")
    earning = {name: row["mean"] for name, row in rows.items() if row["mean"] is not None}
    if earning:
        most = max(earning.values())
        first = [name for name, mean in earning.items() if mean == most]
        line = f"largest mean return of what is deployed, on the data as they are: {_listed(first)} ({_mean(rows[first[0]])})"
        voting = {name: row["voted_mean"] for name, row in rows.items() if row["voted_mean"] is not None}
        if voting and max(voting.values()) > most:
            line += f"; the voted policy of {_listed([name for name, mean in voting.items() if mean == max(voting.values())])} earns more ({max(voting.values()):.4g})"
        lines.insert(0, line)
    for name, value in results["yardsticks"].items():
        better = [row for row, mean in earning.items() if mean < value]
        beyond = 1 + max((radius for row in rows.values() if (curve := row["curves"]["bound"]) for radius, least in zip(curve["radius"], curve["value"]) if least >= value), default=-1)
        ahead = [f"than {_listed(better)} on the data as they are"] if better else []
        ahead += [f"than every certified bound from r = {beyond} on"] if name == "best constant action" else []
        if ahead:
            lines.append(f"the {name}{', which no poison changes,' if name == 'best constant action' else ''} earns {value:.4g}: more {' and '.join(ahead)}")
    return lines


def _is_ours(row: dict) -> bool:
    return row["mechanism"]["kind"] in OURS


def _runs_of_winners(by_radius: dict[int, dict[str, float]], least: float) -> list[tuple[tuple[str, ...], list[int]]]:
    """(who has the largest value, at which radii), where it is above the least."""
    found: list[tuple[tuple[str, ...], list[int]]] = []
    for radius, values in by_radius.items():
        most = max(values.values(), default=least)
        if most <= least:
            continue
        winners = tuple(name for name, value in values.items() if value == most)
        if found and found[-1][0] == winners:
            found[-1][1].append(radius)
        else:
            found.append((winners, [radius]))
    return found


def _percent(share: float) -> str:
    return f"{percent_down(share)} %"


def _listed(words: Sequence) -> str:
    *others, last = map(str, words)
    return f"{', '.join(others)} and {last}" if others else last


def _figure(results: dict) -> dict[str, Any]:
    """What `compared_defences` draws."""
    rows = results["defences"]
    return {
        "shares": {name: row["curves"]["certified"] for name, row in rows.items() if row["curves"]["certified"]},
        "bounds": {name: row["curves"]["bound"] for name, row in rows.items() if row["curves"]["bound"]},
        "means": {name: row["mean"] for name, row in rows.items() if row["mean"] is not None},
        "constant": results["yardsticks"].get("best constant action"), "units": results["units"], "unit": UNITS[results["unit"]],
    }


def in_a_table(results: dict) -> str:
    """For people; bounds and shares are rounded down, --json has them whole."""
    rows, radii = results["defences"], results["radii"]
    low, high = results["return_range"] or (0.0, 1.0)
    bound = partial(round_down, digits=4, width=high - low)
    lines = [
        f"{results['dataset']}: {counted(results['units'], results['unit'])}, {results['threat']} threat, r counts {UNITS[results['unit']]}, eta {exactly(results['eta'])}; states of {results['states']['chosen_by']}",
        "",
        *_columns([COLUMNS, *(_cells(name, row) for name, row in rows.items())], left=2),
    ]

    def block(title: str, name: str, told) -> None:
        shown = [(row_name, *map(told, row["at"][name])) for row_name, row in rows.items() if row["at"][name] is not None]
        if shown:
            lines.extend(["", *_columns([(title, *(f"r = {radius}" for radius in radii)), *shown], left=1)])

    block("states certified at", "certified", _percent)
    block("return at least, of what is deployed", "bound", bound)
    block("expected return of the vote at least", "voted_expected", bound)
    right = [(name, *map(_percent, row["certified_accuracy"].values())) for name, row in rows.items() if row["certified_accuracy"]]
    if right:
        lines += ["", *_columns([("certified accuracy at", *(f"r = {radius}" for radius in ACCURACY_RADII)), *right], left=1)]
    promised: dict[str, list[str]] = {}
    for name, row in rows.items():
        promised.setdefault(_promised(row), []).append(name)
    lines += ["", *(f"{', '.join(names)}: {text}" for text, names in promised.items())]
    lines += ["", *(f"- {line}" for line in results["words"]), f"results  {results['table']}", f"figure   {results['figure']}"]
    return "\n".join(lines)


def _cells(name: str, row: dict) -> tuple[str, ...]:
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.4g}"

    cost, radius = row["cost"], row["median_radius"]
    return (
        name, row["deployed"], "-" if row["mean"] is None else _mean(row), number(row["voted_mean"]), f"{row['states']}{' own' if row['deployed'].startswith('vote rule') else ''}",
        "-" if row["certified_share"] is None else f"{percent_down(row['certified_share'])} %", "none" if radius is None else tenths_down(radius), "none" if row["max_radius"] is None else str(row["max_radius"]),
        f"{'' if cost['complete'] else '>= '}{cost['seconds']:.0f}", f"{cost['instance_steps']:,}",
    )


def _mean(row: dict) -> str:
    return f"{row['mean']:.4g}" + ("" if row["standard_error"] is None else f" ± {row['standard_error']:.2g}")


def _promised(row: dict) -> str:
    promise = row["promise"]
    told = [f"{what} {promise[what]}" for what in ("actions", "return") if promise[what]]
    return f"{'; '.join(told)}. Not: {promise['not']}. Sees {row['sees']}."


def _columns(rows: list[tuple[str, ...]], left: int) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) if n < left else cell.rjust(width) for n, (cell, width) in enumerate(zip(row, widths))).rstrip() for row in rows]
