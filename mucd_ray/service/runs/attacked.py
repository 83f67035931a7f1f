"""`mucd attack`: poison a dataset, train a defence on it again with fresh secrets, and hold what comes of it against the clean run's certificate."""

import json
import sys
import tempfile
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
from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.errors import MucdError
from mucd_ray.files import as_expected
from mucd_ray.mechanism.kinds import from_values
from mucd_ray.mechanism.neighbours import Neighbours
from mucd_ray.progress import bar
from mucd_ray.report.plots import attacked_returns
from mucd_ray.service.runs.commands import asked, resources_of
from mucd_ray.service.runs.session import execute
from mucd_ray.service.storage.store import RunStore
from mucd_ray.service.workers.cluster import joined
from mucd_ray.words import counted

UNDEFENDED = "undefended"
# A median action has stayed where it is within this share of its range.
STAYED = 0.1
STUDY, CLEAN, TOLD = "attack.json", "clean", "poison.json"
COLUMNS = ("defence", "attack", "r", "units in/out", "mean return", "clean", "lost", "at most", "certified", "actions kept", "certified")


@dataclass(frozen=True, kw_only=True)
class Study:
    """What `mucd attack` is asked for.

    Attributes:
        dataset: Minari id.
        defences: by name the options of `mucd run` with which each of them is trained; `UNDEFENDED` among them.
        attacks: names of the registry; None: all that fit.
        budgets: r, each.
        budget: B, S, beta, unit and threat; its radius is not read.
        eta: of the certificates; the tests against them share one more.
    """

    dataset: str
    defences: dict[str, Namespace]
    attacks: tuple[str, ...] | None
    budgets: tuple[int, ...]
    budget: Budget
    storage: str
    seed: int
    eta: float


def attack(study: Study) -> dict:
    """Train and measure every cell that the folder lacks, and compare all of them -> the results, as --json prints them.

    Raises:
        MucdError: what a run or an attack refuses, before anything is trained; or a folder that holds another study.
    """
    first = next(iter(study.defences.values()))
    request, clean, _ = asked(first)
    attacks = _fitting(study, clean)
    store = RunStore(study.storage)
    _check_same(store, study, clean)
    cells = [(defence, name, radius) for defence in study.defences for name in attacks for radius in study.budgets]
    with joined(replace(resources_of(first), imports=request.environment.imports)), bar("runs", "run", total=len(cells) + len(study.defences)) as shown:
        for defence, options in study.defences.items():
            _run(study, clean, options, defence, f"{study.storage}/{defence}/{CLEAN}", None)
            shown.update()
        for name in attacks:
            for radius in study.budgets:
                for defence, options in study.defences.items():
                    folder = f"{study.storage}/{defence}/{name}-{radius}"
                    if RunStore(folder).read_json(TOLD) is None:
                        after, changed = poisoned(name, clean, replace(study.budget, radius=radius), study.seed)
                        _run(study, after, options, defence, folder, RunStore(f"{study.storage}/{defence}/{CLEAN}").states())
                        RunStore(folder).write_json(TOLD, asdict(changed))
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


def _check_same(store: RunStore, study: Study, clean: OfflineDataset) -> None:
    """Raise MucdError where the folder holds something else; defences, attacks and budgets may come later."""
    budget = {name: value for name, value in asdict(study.budget).items() if name != "radius"}
    wanted = {"dataset": study.dataset, "fingerprint": clean.fingerprint(), "seed": study.seed, "eta": study.eta, "budget": budget}
    found = store.read_json(STUDY)
    if found is None and store.storage.names():
        raise MucdError(f"{store.location} is not empty and holds no attacks: choose a new folder with --storage")
    if found is not None and found != wanted:
        different = sorted(key for key in wanted if not isinstance(found, dict) or found.get(key) != wanted[key])
        raise MucdError(f"{store.location} holds attacks with another {', '.join(different)}: use the same, or another --storage")
    store.write_json(STUDY, wanted)


def _run(study: Study, dataset: OfflineDataset, options: Namespace, defence: str, folder: str, states: np.ndarray | None) -> None:
    """Train and certify as `mucd run` does, with a secret of its own; at the states of the clean run, if they are given."""
    if defence == UNDEFENDED:
        # Every instance trains on all units there are, which promises nothing.
        size = dataset.count(study.budget.unit)
        options = Namespace(**vars(options) | {"bag_size": size, "units": max(size, 2)})
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        if states is not None:
            np.save(file, states, allow_pickle=False)
            file.flush()
            options = Namespace(**vars(options) | {"states_file": file.name, "states": None})
        request, _, choices = asked(options, dataset)
        execute(request, folder, choices=choices, resources=resources_of(options), dataset=dataset)


def _results(study: Study, clean: OfflineDataset, cells: list[tuple[str, str, int]]) -> dict:
    before = {defence: _certificate(f"{study.storage}/{defence}/{CLEAN}") for defence in study.defences}
    bounds = {(defence, radius): certified_mean(before[defence], radius) for defence in study.defences for radius in study.budgets}
    share = study.eta / max(1, len(cells))
    rows = []
    for defence, name, radius in cells:
        folder = f"{study.storage}/{defence}/{name}-{radius}"
        rows.append(
            {"defence": defence, "attack": name, "radius": radius, "changed": RunStore(folder).read_json(TOLD)}
            | compared(before[defence], _certificate(folder), radius, bounds[defence, radius], share)
        )
    return {
        "dataset": study.dataset, "unit": study.budget.unit, "units": clean.count(study.budget.unit), "threat": study.budget.threat, "eta": study.eta, "eta_of_each_test": share,
        "clean": {
            name: {"mean": found["results"]["policy"]["unpoisoned_mean"], "mechanism": found["inputs"]["mechanism"], "curve": {key: found["results"]["policy"]["curve"][key] for key in ("radius", "bound")}}
            for name, found in before.items()
        },
        "rows": rows,
        "beaten": [words(row) for row in rows if row["beaten"]],
        "table": f"{study.storage}/results.json", "figure": f"{study.storage}/attack.png",
    }


def certified_mean(certificate: dict, radius: int) -> float:
    """The certified lower bound on the expected return at this very r, valid with probability 1 - eta at all r together; the least return where nothing is claimed.

    Of neighbours, whose certificate speaks of its own episodes: a lower confidence bound, over their seeds, on the mean of what each of them is certified to earn.
    """
    inputs, results = certificate["inputs"], certificate["results"]
    mechanism, (low, high), returns = from_values(inputs["mechanism"]), inputs["return_range"], np.array(inputs["returns"])
    if isinstance(mechanism, Neighbours):
        least = np.where(np.array(inputs["path_radii"]) >= radius, returns, low) if radius <= inputs["radius_cap"] else np.full(len(returns), low)
        return low + (high - low) * mean_lower(np.clip((least - low) / (high - low), 0.0, 1.0), inputs["eta"])
    guarantees = guarantees_of(mechanism, units=inputs["units"], threat=inputs["threat"], family=inputs["accountant"])
    if radius > min(inputs["radius_cap"], guarantees.largest_radius):
        return low
    return expected_return_bound(return_band(returns, (low, high), eta=results["eta"], method=inputs["band"]), guarantees, radius)


def compared(before: dict, after: dict, radius: int, bound: float, eta: float) -> dict:
    """What an attack did to the mean return and to the actions, and whether it beat what was certified: each of the two tests is wrong with probability `eta`, given the certificate holds."""
    low, high = before["inputs"]["return_range"]
    returns, clean = np.array(after["inputs"]["returns"]), before["results"]["policy"]["unpoisoned_mean"]
    most = high - (high - low) * mean_lower(np.clip((high - returns) / (high - low), 0.0, 1.0), eta)
    mean, reference = float(returns.mean()), (before["context"].get("normalised") or {}).get("random", low)
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


def words(row: dict) -> str:
    """A beaten bound in a line."""
    which = f"{row['attack']} with r = {row['radius']} against {row['defence']}"
    if row["flips"]:
        return f"{which} changed the action at {counted(row['flips'], 'state')} where it was certified"
    return f"{which}: the mean return is at most {row['at_most']:.6g}, and at least {row['certified']:.6g} was certified"


def _certificate(folder: str) -> dict:
    certificate = RunStore.open(folder).certificate()
    if certificate is None:
        raise MucdError(f"{folder} has no certificate.json: delete the folder, and run the same command again")
    if certificate["results"]["policy"] is None:
        raise MucdError("attacks are measured by returns: give an environment")
    return certificate


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
