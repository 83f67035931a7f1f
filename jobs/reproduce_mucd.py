"""The results table (docs/results.md): the seeds' algorithms and the best simple learner on Freeway, Breakout and HalfCheetah, poisoned by
transition or by trajectory, certified soundly beside what the published rule would have claimed.

`python jobs/reproduce_mucd.py` takes hours on two cores and goes on where it was stopped; `--smoke` takes minutes and shows that it runs.
Every constant below was chosen on recordings with another seed than the ones that are certified, or not tuned at all.
"""

import argparse
import json
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("MINARI_DATASETS_PATH", str(Path("runs/datasets").resolve()))

from mucd_ray.cli import progress_bar
from mucd_ray.data.formats.minari import local_datasets
from mucd_ray.data.recording.recipes import RECIPES, make
from mucd_ray.data.recording.record import record
from mucd_ray.errors import MucdError
from mucd_ray.learn.learner import Learner, LocalUpdate
from mucd_ray.mechanism.gaussian.mechanism import UNITS
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.session import Request, execute
from mucd_ray.service.runs.tally import Tally
from mucd_ray.service.storage.store import RunStore
from mucd_ray.service.workers.actors import certificate_of

TUNING_SEED = 101
FRACTIONS = (0.01, 0.02, 0.05, 0.0717, 0.1, 0.2)
TABLE_BEGINS = "<!-- What follows is written by jobs/reproduce_mucd.py -->"
PUBLISHED = {
    ("Freeway", "transition"): "DQN, sigma = 2: return 16.6, mean radius 145.5 of 2M",
    ("Freeway", "trajectory"): "DQN, sigma = 2: return 16.6, mean radius 58.7 of 976, half kept up to 7.17 %",
    ("Breakout", "trajectory"): "half kept up to 2.05 % of 3,648",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table. The noise multiplier follows from the signal budget S = N q sqrt(T) / sigma."""

    game: str
    unit: str
    signal_budget: float
    learner: Learner
    clip_norm: float
    steps: int
    sample_rate: float
    instances: int = 1000

    @property
    def name(self) -> str:
        return f"{self.game.lower()}-{self.unit}-{self.learner.algorithm}"


@dataclass(frozen=True, kw_only=True)
class Game:
    """A large recording, and how many units of each kind are declared as its public size."""

    name: str
    dataset: str
    units: dict[str, int]


def linear(algorithm: str, learning_rate: float, *, average: float = 0.5, min_return: float | None = None, cap: int = 50, **constants) -> Learner:
    local = LocalUpdate(cap=cap, min_return=min_return)
    return Learner(algorithm=algorithm, learning_rate=learning_rate, average=average, constants=constants, local=local)


GAMES = {
    game.name: game
    for game in (
        Game(name="Freeway", dataset="freeway/large-v0", units={"transition": 2_000_000, "trajectory": 977}),
        Game(name="Breakout", dataset="breakout/large-v0", units={"transition": 2_000_000, "trajectory": 2500}),
        Game(name="HalfCheetah", dataset="halfcheetah/large-v0", units={"transition": 2_000_000, "trajectory": 2000}),
    )
}
SAMPLE_RATE = {"trajectory": 0.25, "transition": 0.005}


def rows_of(game: str, unit: str, signal_budget: float, *learners: Learner, clip_norm: float = 0.1, instances: int = 200) -> list[Row]:
    return [
        Row(game=game, unit=unit, signal_budget=signal_budget, learner=learner, clip_norm=clip_norm, steps=50, sample_rate=SAMPLE_RATE[unit], instances=instances)
        for learner in learners
    ]


# For the same S, large batches with much noise and few steps certify most. A linear learner of values starts at 0: it learns most where the rate is so
# small that its own values hardly count, or where the part that clones has most of the clip; C51's atoms reach far below 0, since it starts at their middle.
ROWS = (
    *rows_of("Freeway", "trajectory", 8, linear("bc", 10.0), instances=500),
    *rows_of("Freeway", "trajectory", 8, linear("cql", 10.0, alpha=10.0), linear("iql", 3.0, policy_weight=10.0, beta=0.1)),
    *rows_of("Freeway", "trajectory", 8, linear("dqn", 0.01, discount=0.9, target_rate=1.0), clip_norm=0.02),
    *rows_of("Freeway", "trajectory", 8, linear("c51", 0.3, atoms=11, v_min=-3.0, v_max=1.0, discount=0.5)),
    *rows_of("Freeway", "transition", 8, linear("bc", 10.0), instances=500),
    *rows_of("Freeway", "transition", 8, linear("cql", 10.0, alpha=10.0), linear("iql", 10.0, policy_weight=10.0, beta=0.1)),
    *rows_of("Freeway", "transition", 100, linear("dqn", 3.0, target_rate=1.0), linear("c51", 3.0, atoms=11, v_min=-3.0, v_max=1.0, discount=0.5)),
    *rows_of("Breakout", "trajectory", 12, linear("bc", 10.0), instances=300),
    *rows_of("Breakout", "trajectory", 12, linear("cql", 1.0), linear("iql", 1.0, policy_weight=10.0, beta=0.3)),
    *rows_of("Breakout", "trajectory", 24, linear("dqn", 0.03, discount=0.9, target_rate=1.0), clip_norm=0.02),
    *rows_of("Breakout", "trajectory", 24, linear("c51", 0.3, atoms=11, v_min=-3.0, v_max=1.0, discount=0.5)),
    *rows_of("Breakout", "transition", 25, linear("bc", 10.0), instances=300),
    *rows_of("Breakout", "transition", 25, linear("cql", 10.0, alpha=10.0), linear("iql", 10.0, policy_weight=10.0, beta=0.1)),
    *rows_of("Breakout", "transition", 100, linear("dqn", 0.3, target_rate=1.0), linear("c51", 3.0, atoms=11, v_min=-3.0, v_max=1.0, discount=0.5)),
    *(
        Row(game="HalfCheetah", unit=unit, signal_budget=budget, learner=learner, clip_norm=0.1, steps=1, sample_rate=rate, instances=300)
        for unit, rate, learner, budget in (
            ("trajectory", 0.5, linear("bc", 60.0, average=0.0, cap=200), 50),
            ("trajectory", 0.5, linear("iql", 120.0, average=0.0, cap=200, policy_weight=10.0, expectile=0.5), 100),
            ("trajectory", 0.5, linear("td3-bc", 60.0, average=0.0, cap=200), 60),
            ("transition", 0.005, linear("bc", 70.0, average=0.0), 60),
            ("transition", 0.005, linear("iql", 200.0, average=0.0, policy_weight=1.0), 100),
            ("transition", 0.005, linear("td3-bc", 90.0, average=0.0), 60),
        )
    ),
)


def request_of(row: Row, dataset: str, units: int, instances: int) -> Request:
    return Request(
        dataset=dataset,
        instances=instances,
        unit=row.unit,
        units=units,
        sample_rate=row.sample_rate,
        noise_multiplier=round(units * row.sample_rate * math.sqrt(row.steps) / row.signal_budget, 3),
        steps=row.steps,
        clip_norm=row.clip_norm,
        learner=row.learner,
        chosen=f"All constants were chosen on recordings with seed {TUNING_SEED}, or not tuned; the certified recording has seed {RECIPES[GAMES[row.game].dataset].seed}.",
    )


def measure(row: Row, dataset: str, units: int, instances: int, out: Path) -> dict:
    """Train and certify one row; the numbers of the table."""
    execute(request_of(row, dataset, units, instances), str(out))
    store = RunStore.open(out)
    sound = json.loads((out / "certificate.json").read_text())
    choices = vars(Choices(accountant="published"))
    published = certificate_of(store.settings(), Tally(store, instances).evidence(), choices, None, [], {})
    return numbers(row, sound) | {"published_keeps_half": published["results"]["policy"]["keeps"]["0.5"]["fraction"]}


def numbers(row: Row, certificate: dict) -> dict:
    policy, action, baselines = certificate["results"]["policy"], certificate["results"]["action"], certificate["context"]["baselines"]
    curve = policy["curve"]
    scope = action["per_state"] if action["kind"] != "continuous" else action["per_state"]["tolerance"]["0.1"]
    radii = [radius or 0 for radius in scope["radius"]]
    return {
        "game": row.game, "unit": row.unit, "algorithm": row.learner.algorithm, "instances": certificate["results"]["instances"],
        "units": certificate["inputs"]["units"], "unpoisoned": policy["unpoisoned_mean"],
        "non_private": baselines["non_private"], "behaviour": baselines["behaviour"], "best_constant": baselines["best_constant_return"],
        "kind": action["kind"], "mean_radius": sum(radii) / len(radii), "median_radius": sorted(radii)[len(radii) // 2], "max_radius": max(radii),
        "stability": {f"{f:g}": sum(r >= f * certificate["inputs"]["units"] for r in radii) / len(radii) for f in FRACTIONS},
        "bounds": {f"{f:g}": bound_at(curve, f) for f in FRACTIONS},
        "keeps_half": policy["keeps"]["0.5"],
        "mechanism": certificate["inputs"]["mechanism"],
    }


def bound_at(curve: dict, fraction: float) -> float | None:
    """The certified return at the first radius of the curve that is at least this fraction of the data; None beyond the curve."""
    return next((bound for share, bound in zip(curve["fraction"], curve["bound"]) if share >= fraction), None)


def table(rows: list[dict]) -> str:
    """Markdown of the rows."""
    lines = []
    for game in GAMES:
        of_game = [row for row in rows if row["game"] == game]
        if not of_game:
            continue
        first = of_game[0]
        lines += [
            f"## {game}", "",
            f"Behaviour policy {first['behaviour']:.4g}, best constant action {first['best_constant']:.4g}.", "",
            "| unit | algorithm | P | return | without privacy | action radius mean / median / max | "
            + " | ".join(f"return at {100 * f:g} %" for f in FRACTIONS) + " | keeps half up to | `published` would claim | MuCD published |",
            "|" + "---|" * (9 + len(FRACTIONS)),
        ]
        for row in of_game:
            bounds = " | ".join("-" if row["bounds"][f"{f:g}"] is None else f"{row['bounds'][f'{f:g}']:.4g}" for f in FRACTIONS)
            lines.append(
                f"| {row['units']} {UNITS[row['unit']]} | {row['algorithm']} | {row['instances']} | {row['unpoisoned']:.4g} | {row['non_private']:.4g} | "
                f"{row['mean_radius']:.1f} / {row['median_radius']} / {row['max_radius']} | {bounds} | {100 * row['keeps_half']['fraction']:.2f} % (return >= "
                f"{row['keeps_half']['bound']:.4g}) | {100 * row['published_keeps_half']:.2f} % | {PUBLISHED.get((game, row['unit']), '')} |"
            )
        lines += ["", "Stability ratio (share of states whose action is certified) at the same fractions:", ""]
        lines += ["| unit | algorithm | " + " | ".join(f"{100 * f:g} %" for f in FRACTIONS) + " |", "|" + "---|" * (2 + len(FRACTIONS))]
        lines += [f"| {row['unit']} | {row['algorithm']} | " + " | ".join(f"{row['stability'][f'{f:g}']:.3f}" for f in FRACTIONS) + " |" for row in of_game]
        lines.append("")
    return "\n".join(lines)


def smoke_dataset(game: Game) -> tuple[str, dict[str, int]]:
    """A small recording of the same behaviour: (dataset, declared sizes)."""
    recipe, dataset = RECIPES[game.dataset], game.dataset.replace("large", "smoke")
    if dataset not in local_datasets():
        record(recipe.env_id, recipe.behaviour, 6000, TUNING_SEED, dataset)
    return dataset, {"transition": 6000, "trajectory": 8}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="small recordings and few instances: shows that everything runs")
    parser.add_argument("--out", default="runs/reproduce", help="folder of the runs; finished rows there are kept")
    parser.add_argument("--only", default="", help="rows whose name contains this, such as freeway-trajectory")
    parser.add_argument("--instances", type=int, help="instead of each row's own number")
    parser.add_argument("--finished", action="store_true", help="train nothing: write the table of the rows that are finished")
    parser.add_argument("--table", help="file to write (default: docs/results.md; with --smoke, results.md in the folder)")
    options = parser.parse_args()
    out = Path(options.out + ("-smoke" if options.smoke else ""))
    rows, chosen = [], [row for row in ROWS if options.only in row.name]
    try:
        if not chosen:
            raise MucdError(f"--only {options.only!r} fits no row: the rows are {', '.join(row.name for row in ROWS)}")
        Path(os.environ["MINARI_DATASETS_PATH"]).mkdir(parents=True, exist_ok=True)
        for row in chosen:
            game, result = GAMES[row.game], out / row.name / "row.json"
            if options.finished and not result.exists():
                continue
            dataset, units = smoke_dataset(game) if options.smoke else (game.dataset, game.units)
            if dataset not in local_datasets():
                with progress_bar(f"recording {dataset}", "transition") as progress:
                    make(dataset, progress=progress)
            if not result.exists():
                print(f"{row.name}", file=sys.stderr)
                instances = options.instances or (40 if options.smoke else row.instances)
                values = measure(row, dataset, units[row.unit], instances, out / row.name)
                result.write_text(json.dumps(values, indent=1))
            rows.append(json.loads(result.read_text()))
    except MucdError as error:
        print(f"reproduce_mucd: error: {error}", file=sys.stderr)
        return 2
    file = Path(options.table or (out / "results.md" if options.smoke else "docs/results.md"))
    intro = file.read_text().split(TABLE_BEGINS)[0] if file.exists() and not options.smoke else ""
    file.write_text(f"{intro}{TABLE_BEGINS}\n\n{table(rows)}")
    print(f"{len(rows)} rows in {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
