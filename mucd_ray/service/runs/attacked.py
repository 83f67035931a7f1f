"""`mucd attack`: poison a dataset, train a defence on it again with fresh secrets, and hold what comes of it against the clean run's certificate."""

import json
import sys
from argparse import Namespace
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import binom

from mucd_ray.attack.attacks import ATTACKS, check_fits, poisoned
from mucd_ray.attack.budget import Budget
from mucd_ray.certify.closed_form import guarantees_of
from mucd_ray.certify.confidence.means import mean_lower
from mucd_ray.certify.policy import expected_return_bound, return_band
from mucd_ray.certify.rules import RULES
from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.errors import MucdError
from mucd_ray.files import as_expected
from mucd_ray.mechanism.kinds import from_values
from mucd_ray.mechanism.neighbours import Neighbours
from mucd_ray.mechanism.partition import Partition
from mucd_ray.progress import bar
from mucd_ray.report.plots import attacked_returns
from mucd_ray.service.runs.cells import Cell, Defence, check_same, make_cell, settings_of
from mucd_ray.service.runs.commands import asked, resources_of
from mucd_ray.service.storage.store import RunStore
from mucd_ray.service.workers.cluster import joined
from mucd_ray.words import counted

UNDEFENDED = "undefended"
# A median action has stayed where it is within this share of its range.
STAYED = 0.1
# Of the mean of the same returns, as a share of their range.
ROUNDING = 1e-9
STUDY, CLEAN, TOLD = "attack.json", "clean", "poison.json"
COLUMNS = ("defence", "attack", "r", "units in/out", "mean return", "clean", "lost", "at most", "certified", "actions kept", "certified")


@dataclass(frozen=True, kw_only=True)
class Study:
    """What `mucd attack` is asked for.

    Attributes:
        dataset: Minari id.
        defences: by name; `UNDEFENDED` among them.
        attacks: names of the registry; None: all that fit.
        budgets: r, each.
        budget: B, S, beta, unit and threat; its radius is not read.
        eta: of the certificates; the tests against them share one more.
    """

    dataset: str
    defences: dict[str, Defence]
    attacks: tuple[str, ...] | None
    budgets: tuple[int, ...]
    budget: Budget
    storage: str
    seed: int
    eta: float

    def cell(self, defence: Defence, name: str) -> Cell:
        """`CLEAN`, or attack and r."""
        return Cell(run=f"{self.storage}/{defence.trained}/{name}", certificate=f"{self.storage}/{defence.name}/{name}")

    def certificate(self, defence: str, name: str) -> dict:
        """Raises MucdError where it has none, or one without returns."""
        certificate = self.cell(self.defences[defence], name).read()
        if certificate["results"]["policy"] is None:
            raise MucdError("attacks are measured by returns: give an environment")
        return certificate


def attack(study: Study) -> dict:
    """Train and measure every cell that the folder lacks, and compare all of them -> the results, as --json prints them.

    Raises:
        MucdError: what a run or an attack refuses, before anything is trained; or a folder that holds another study.
    """
    first = next(iter(study.defences.values())).options
    request, clean, _ = asked(first)
    attacks = _fitting(study, clean)
    for defence in study.defences.values():
        settings_of(_of_size(study, clean, defence), clean)
    store = RunStore(study.storage)
    # Defences, attacks and budgets may come later.
    budget = {name: value for name, value in asdict(study.budget).items() if name != "radius"}
    check_same(store, STUDY, {"dataset": study.dataset, "fingerprint": clean.fingerprint(), "seed": study.seed, "eta": study.eta, "budget": budget}, "attacks")
    cells = [(defence, name, radius) for defence in study.defences for name in attacks for radius in study.budgets]
    with joined(replace(resources_of(first), imports=request.environment.imports)), bar("runs", "run", total=len(cells) + len(study.defences)) as shown:
        for defence in study.defences.values():
            _run(study, clean, defence, CLEAN, None)
            shown.update()
        for name in attacks:
            for radius in study.budgets:
                for defence in study.defences.values():
                    told = RunStore(study.cell(defence, f"{name}-{radius}").certificate)
                    if told.read_json(TOLD) is None:
                        after, changed = poisoned(name, clean, replace(study.budget, radius=radius), study.seed)
                        _run(study, after, defence, f"{name}-{radius}", RunStore(study.cell(defence, CLEAN).run).states())
                        told.write_json(TOLD, asdict(changed))
                    shown.update()
    with as_expected(study.storage, "choose another --storage"):
        results = _results(study, clean, cells)
    store.storage.replace("results.json", json.dumps(results, indent=1).encode())
    store.storage.replace("attack.png", attacked_returns(panels=[_panel(results, name) for name in study.defences], units=clean.count(study.budget.unit), unit=_plural(study)))
    return results


def _fitting(study: Study, clean: OfflineDataset) -> tuple[str, ...]:
    """The attacks to try. Raises MucdError where one that is named does not fit, or none does."""
    refused: list[MucdError] = []

    def fits(name: str) -> bool:
        try:
            for radius in study.budgets:
                check_fits(name, clean, replace(study.budget, radius=radius))
        except MucdError as error:
            if study.attacks is not None or max(study.budgets) > clean.count(study.budget.unit):
                raise
            refused.append(error)
            return False
        return True

    found = tuple(name for name in (ATTACKS if study.attacks is None else study.attacks) if fits(name))
    if not found:
        raise refused[0]
    return found


def _run(study: Study, dataset: OfflineDataset, defence: Defence, cell: str, states: np.ndarray | None) -> None:
    """Train and certify; at the states of the clean run, if they are given."""
    make_cell(study.cell(defence, cell), _of_size(study, dataset, defence), dataset, states)


def _of_size(study: Study, dataset: OfflineDataset, defence: Defence) -> Defence:
    """Undefended every instance trains on all units there are, which promises nothing."""
    size = dataset.count(study.budget.unit)
    return replace(defence, options=Namespace(**vars(defence.options) | {"bag_size": size, "units": max(size, 2)})) if defence.name == UNDEFENDED else defence


def _results(study: Study, clean: OfflineDataset, cells: list[tuple[str, str, int]]) -> dict:
    before = {defence: study.certificate(defence, CLEAN) for defence in study.defences}
    bounds = {(defence, radius): certified_mean(before[defence], radius, len(study.budgets)) for defence in study.defences for radius in study.budgets}
    # Of every cell returns and actions are tested.
    share = study.eta / max(1, 2 * len(cells))
    rows = []
    for defence, name, radius in cells:
        cell = f"{name}-{radius}"
        rows.append(
            {"defence": defence, "attack": name, "radius": radius, "changed": _changed(RunStore(study.cell(study.defences[defence], cell).certificate))}
            | compared(before[defence], study.certificate(defence, cell), radius, bounds[defence, radius], share)
        )
    return {
        "dataset": study.dataset, "unit": study.budget.unit, "units": clean.count(study.budget.unit), "threat": study.budget.threat, "eta": study.eta, "eta_of_each_test": share,
        "clean": {
            name: {"mean": deployed["unpoisoned_mean"], "mechanism": found["inputs"]["mechanism"], "curve": {key: deployed["curve"][key] for key in ("radius", "bound")}}
            for name, found in before.items() if (deployed := _deployed(found))
        },
        "rows": rows,
        "beaten": [words(row) for row in rows if row["beaten"]],
        "table": f"{study.storage}/results.json", "figure": f"{study.storage}/attack.png",
    }


def _changed(store: RunStore) -> dict:
    """What an attack did. Raises MucdError where the folder says something else."""
    found = store.read_json(TOLD)
    if not isinstance(found, dict) or set(found) != {"inserted", "removed"} or not all(type(value) is int and value >= 0 for value in found.values()):
        raise MucdError(f"{store.file(TOLD)} is not as this version writes it: delete the folder, and run the same command again")
    return found


def certified_mean(certificate: dict, radius: int, budgets: int = 1) -> float:
    """The certified lower bound on the expected return at this very r, valid with probability 1 - eta at all r together; the least return where nothing is claimed.

    Of neighbours, whose certificate speaks of its own episodes: a lower confidence bound, over their seeds, on the mean of what each of them is certified to earn, at so many `budgets` together. Of a vote rule: its episodes, whose seeds are public, themselves.
    """
    inputs, results = certificate["inputs"], certificate["results"]
    if "rule" in results:
        kept = np.array([min(radii) >= radius for radii in results["rule"]["radius"]])
        return float(np.where(kept, [episode["return"] for episode in inputs["rule"]["episodes"]], inputs["return_range"][0]).mean())
    mechanism, (low, high), returns = from_values(inputs["mechanism"]), inputs["return_range"], np.array(inputs["returns"])
    if isinstance(mechanism, Neighbours):
        least = np.where(np.array(inputs["path_radii"]) >= radius, returns, low) if radius <= inputs["radius_cap"] else np.full(len(returns), low)
        return low + (high - low) * mean_lower(np.clip((least - low) / (high - low), 0.0, 1.0), inputs["eta"] / budgets)
    guarantees = guarantees_of(mechanism, units=inputs["units"], threat=inputs["threat"], family=inputs["accountant"])
    if radius > min(inputs["radius_cap"], guarantees.largest_radius):
        return low
    return expected_return_bound(return_band(returns, (low, high), eta=results["eta"], method=inputs["band"]), guarantees, radius)


def _deployed(certificate: dict) -> dict:
    """Of whose policy the mean return and its bound are shown."""
    return certificate["results"].get("rule") or certificate["results"]["policy"]


def compared(before: dict, after: dict, radius: int, bound: float, eta: float) -> dict:
    """What an attack did to the mean return and to the actions, and whether it beat what was certified: each of the two tests is wrong with probability `eta`, given the certificate holds."""
    low, high = before["inputs"]["return_range"]
    mean, clean, reference = _deployed(after)["unpoisoned_mean"], _deployed(before)["unpoisoned_mean"], (before["context"].get("normalised") or {}).get("random", low)
    if "rule" in before["results"]:
        # The same episodes again: nothing of them is left to chance.
        most = mean + ROUNDING * (high - low)
        kept, certified, flips = _rule_actions(before, after, radius)
    else:
        returns = np.array(after["inputs"]["returns"])
        most = high - (high - low) * mean_lower(np.clip((high - returns) / (high - low), 0.0, 1.0), eta)
        kept, certified, flips = _actions(before, after, radius, eta)
    return {
        "mean": mean, "clean_mean": clean, "lost": (clean - mean) / (clean - reference) if clean > reference else None, "lost_from": reference, "at_most": most, "certified": bound,
        "actions_kept": kept, "actions_certified": certified, "flips": flips, "beaten": most < bound or flips > 0,
    }


def _actions(before: dict, after: dict, radius: int, eta: float) -> tuple[float | None, float | None, int]:
    """(share of states whose action stayed, share certified at r, certified states whose action surely changed)."""
    clean, dirty = before["results"].get("action"), after["results"].get("action")
    if clean is None or dirty is None:
        return None, None, 0
    if clean["kind"] == "continuous":
        low, high = (np.array(before["inputs"]["actions"][end]) for end in ("low", "high"))
        moved = np.abs(np.array(dirty["median"]) - np.array(clean["median"])) / (high - low)
        return float((moved <= STAYED).all(-1).mean()), None, 0
    same = np.array(clean["action"]) == np.array(dirty["action"])
    certified = np.array([-1 if r is None else r for r in clean["family_wise"]["radius"]]) >= radius
    share = float(np.mean([r is not None and r >= radius for r in clean["per_state"]["radius"]]))
    if clean["kind"] != "votes":
        # Nothing is left to chance: any flip is one too many. Of scores no count tells an expected score.
        return float(same.mean()), share, int((certified & ~same).sum()) if clean["kind"] in ("exact", "neighbours") else 0
    counts = np.array(after["inputs"]["actions"]["counts"])
    own = counts[np.arange(len(counts)), clean["action"]]
    # Under the claim a vote for another action or for this one is for this one with more than one half.
    surely = binom.sf(counts - 1, counts + own[:, None], 0.5) < eta / counts.size
    surely[np.arange(len(counts)), clean["action"]] = False
    return float(same.mean()), share, int((certified & surely.any(1)).sum())


def _rule_actions(before: dict, after: dict, radius: int) -> tuple[float | None, float | None, int]:
    """(share of steps before which the episode has gone the same way, share of states certified at r, episodes whose first action that changed was certified)."""
    results, same, flips = before["results"]["rule"], 0, 0
    for ours, theirs, radii in zip(_chosen(before), _chosen(after), results["radius"], strict=True):
        common = min(len(ours), len(theirs))
        changed = np.flatnonzero(ours[:common] != theirs[:common])
        # One that is longer goes on after the same actions, which the environment does not do.
        first = int(changed[0]) if len(changed) else common
        same += first
        flips += first < len(radii) and radii[first] >= radius or not len(changed) and len(ours) != len(theirs)
    radii = np.concatenate(results["radius"])
    return same / len(radii), float(np.mean(radii >= radius)), int(flips)


def _chosen(certificate: dict) -> list[np.ndarray]:
    """The actions [T] of a rule in each of its episodes."""
    rule, mechanism = certificate["inputs"]["rule"], from_values(certificate["inputs"]["mechanism"])
    assert isinstance(mechanism, Partition)
    reached = mechanism.reached()
    return [RULES[rule["name"]].decide(np.array(episode["votes"]), np.array(episode.get("preferences", [])), rule["actions"], rule["window"], reached)[0] for episode in rule["episodes"]]


def words(row: dict) -> str:
    """A beaten bound in a line."""
    which = f"{row['attack']} with r = {row['radius']} against {row['defence']}"
    if row["flips"]:
        return f"{which} changed the action at {counted(row['flips'], 'state')} where it was certified"
    return f"{which}: the mean return is at most {row['at_most']:.6g}, and at least {row['certified']:.6g} was certified"


def _panel(results: dict, defence: str) -> dict[str, Any]:
    """What `attacked_returns` draws of one defence."""
    rows = [row for row in results["rows"] if row["defence"] == defence]
    curve, clean = results["clean"][defence]["curve"], results["clean"][defence]["mean"]
    certified = dict(zip(curve["radius"], curve["bound"])) | {row["radius"]: row["certified"] for row in rows}
    means: dict[str, dict[int, float]] = {}
    for row in rows:
        means.setdefault(row["attack"], {0: clean})[row["radius"]] = row["mean"]
    return {"name": defence, "clean": clean, "certified": None if defence == UNDEFENDED else certified, "means": means}


def _plural(study: Study) -> str:
    return {"transition": "transitions", "trajectory": "trajectories"}[study.budget.unit]


def side_by_side(results: dict) -> str:
    """The table for people; bounds are rounded to what is read, --json has them whole."""
    def percent(share: float | None) -> str:
        return "-" if share is None else f"{100 * share:.0f} %"

    rows = [COLUMNS]
    for row in results["rows"]:
        changed, promises = row["changed"], row["defence"] != UNDEFENDED
        rows.append((
            row["defence"], row["attack"], str(row["radius"]), f"+{changed['inserted']} -{changed['removed']}", f"{row['mean']:.4g}", f"{row['clean_mean']:.4g}", percent(row["lost"]), f"{row['at_most']:.4g}",
            f"{row['certified']:.4g}" if promises else "nothing", percent(row["actions_kept"]), percent(row["actions_certified"]) if promises else "nothing",
        ))
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) if n < 2 else cell.rjust(width) for n, (cell, width) in enumerate(zip(row, widths))).rstrip() for row in rows]
    return "\n".join([*lines, *(f"BOUND BEATEN: {text}" for text in results["beaten"]), f"results  {results['table']}", f"figure   {results['figure']}"])


def tell_beaten(results: dict) -> int:
    """Exit status: 1, and a line for each on standard error, if a bound was beaten."""
    for text in results["beaten"]:
        print(f"mucd: BOUND BEATEN, which is a fault of this package: {text}", file=sys.stderr)
    return 1 if results["beaten"] else 0
