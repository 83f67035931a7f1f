"""The table on raw observations (docs/results.md): every mechanism and several learners on what a sensor gives, without features out of the controller that made the data.

`python jobs/raw_observations.py` records the data, trains and certifies row after row, and writes the table; it goes on where it was stopped. Hours on two cores:
`--only lunarlander` does a part, `--smoke` takes minutes and shows that it runs, `--finished` trains nothing and writes the table of what is there.
Every constant was chosen on recordings with other seeds, or is the package's default.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

os.environ.setdefault("MINARI_DATASETS_PATH", str(Path("runs/datasets").resolve()))

from mucd_ray.certify.rounding import percent_down
from mucd_ray.cli import progress_bar
from mucd_ray.data.environments.cards import card_for
from mucd_ray.data.formats.minari import load_dataset, local_datasets
from mucd_ray.data.recording.behaviours import BEHAVIOURS
from mucd_ray.data.recording.record import record
from mucd_ray.errors import MucdError
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.mechanisms import DEFAULT_LEARNER, DEFAULT_RATES, PLAIN_LEARNER
from mucd_ray.service.runs.session import Request, execute

TABLE_BEGINS, TABLE_ENDS = "<!-- Written by jobs/raw_observations.py -->", "<!-- End of what jobs/raw_observations.py writes -->"
BAG_SIZES = (3, 5, 10, 20, 50)
VOTED_EPISODES = 40


@dataclass(frozen=True, kw_only=True)
class Data:
    """A recording, by a scripted behaviour of mixed quality.

    Attributes:
        title: of its part of the table.
        behaviour, transitions, seed: arguments of `mucd record`.
        parts: numbers of parts of a partition: about N, N / 3 and N / 10 of its trajectories, public constants.
        learners: beside cloning.
        instances: P of a row that says nothing else.
        continuous: of continuous actions no neighbours vote, and learners of values train an actor beside critics, a hundred times as long: of them there are 100 instances.
        fit, learning_rate: of clones on bags and parts, where they are not the defaults: chosen on recordings with seed 101 (docs/results.md, "RAM: what was tried").
        rollouts: episodes of an instance, whose mean is its return.
        scaling: where the shipped card has features of its own in the place of observations: (center, scale) of every entry for learners under noise, public constants.
    """

    title: str
    behaviour: str
    transitions: int
    seed: int
    parts: tuple[int, ...]
    learners: tuple[str, ...]
    instances: int = 300
    continuous: bool = False
    fit: dict | None = None
    learning_rate: float | None = None
    rollouts: int | None = None
    scaling: tuple[float, float] | None = None


DATA = {
    "lunarlander": Data(title="LunarLander-v3 (8 numbers)", behaviour="lunarlander-land", transitions=200_000, seed=11, parts=(1000, 333, 100), learners=("cql", "iql")),
    "continuous": Data(title="LunarLander-v3, continuous (8 numbers)", behaviour="lunarlander-continuous-land", transitions=200_000, seed=11, parts=(480, 160, 48), learners=("iql", "td3-bc"), continuous=True),
    "halfcheetah": Data(title="HalfCheetah-v5 (17 numbers)", behaviour="halfcheetah-run", transitions=400_000, seed=11, parts=(400, 133, 40), learners=("iql", "td3-bc"), continuous=True, scaling=(0.0, 3.0)),
    "hopper": Data(title="Hopper-v5 (11 numbers)", behaviour="hopper-hop", transitions=400_000, seed=11, parts=(550, 183, 55), learners=("iql", "td3-bc"), continuous=True),
    "freeway": Data(title="Freeway (128 bytes of RAM)", behaviour="freeway-lookahead", transitions=614_400, seed=2026, parts=(300, 100, 30), learners=("cql", "iql"), scaling=(128.0, 64.0)),
    "breakout": Data(title="Breakout (128 bytes of RAM)", behaviour="breakout-follow", transitions=600_000, seed=2026, parts=(800, 267, 80), learners=("cql", "iql"), instances=200, fit={"entries": 6}, learning_rate=0.003, rollouts=3, scaling=(128.0, 64.0)),
    "acrobot": Data(title="Acrobot-v1 (6 numbers)", behaviour="acrobot-swing", transitions=60_000, seed=11, parts=(300, 100, 30), learners=("cql", "iql")),
    "highway": Data(title="highway-fast-v0 (25 numbers)", behaviour="highway-drive", transitions=10_000, seed=11, parts=(560, 187, 56), learners=("cql",), instances=100, scaling=(0.0, 0.3)),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: a mechanism with its size (units in a bag, parts, neighbours; None is planned for 1 %), and a learner."""

    data: str
    mechanism: str
    unit: str
    size: int | None = None
    algorithm: str = "bc"
    instances: int | None = None

    @property
    def name(self) -> str:
        return "-".join(str(part) for part in (self.data, self.unit, self.mechanism, self.size, self.algorithm) if part is not None)


def rows_of(name: str) -> list[Row]:
    """What is asked of every recording, what matters most first."""
    data = DATA[name]
    bags = [Row(data=name, mechanism="bag", unit="trajectory", size=size) for size in BAG_SIZES]
    return [
        *bags,
        *(replace(bags[2], algorithm=algorithm, instances=100 if data.continuous else None) for algorithm in data.learners),
        *(Row(data=name, mechanism="partition", unit="trajectory", size=parts) for parts in data.parts),
        *([] if data.continuous else [Row(data=name, mechanism="neighbours", unit="trajectory", size=20)]),
        Row(data=name, mechanism="bag", unit="transition", size=50),
        Row(data=name, mechanism="gaussian", unit="transition"),
        Row(data=name, mechanism="gaussian", unit="trajectory"),
    ]


# Those that the project set itself as goals, with more instances: fewer leave wider bands.
GOALS = (
    Row(data="lunarlander", mechanism="bag", unit="trajectory", size=11, instances=1000),
    Row(data="halfcheetah", mechanism="bag", unit="trajectory", size=5, instances=1000),
    Row(data="freeway", mechanism="bag", unit="trajectory", size=3, instances=1000),
    Row(data="breakout", mechanism="bag", unit="trajectory", size=5, instances=400),
)
ROWS = (*GOALS, *(row for name in DATA for row in rows_of(name) if row.name not in {goal.name for goal in GOALS}))
SIZES = {"bag": "bag_size", "partition": "parts", "neighbours": "neighbours"}


def request_of(row: Row, dataset: str, instances: int) -> Request:
    asked = {SIZES[row.mechanism]: row.size} if row.size is not None else {}
    learner, noisy, data = None, row.mechanism == "gaussian", DATA[row.data]
    if row.algorithm == "bc" and not noisy and row.mechanism != "neighbours":
        asked |= {"fit": data.fit, "learner": None if data.learning_rate is None else replace(PLAIN_LEARNER, learning_rate=data.learning_rate)}
    if row.algorithm != "bc":
        learner = replace(DEFAULT_LEARNER if noisy else PLAIN_LEARNER, algorithm=row.algorithm, **({"learning_rate": DEFAULT_RATES[row.algorithm]} if noisy else {}))
    if row.mechanism != "neighbours":
        asked["instances"] = instances
    if row.mechanism == "neighbours" and data.scaling is not None:
        asked["metric"] = "bounds"  # of plain observations
    if noisy and data.scaling is not None:
        center, scale = data.scaling
        loaded = load_dataset(dataset)
        shipped = card_for(loaded.env_id, loaded.observations.shape[1:], loaded.action_space)
        asked["card"] = replace(shipped.raw(), center=(center,), scale=(scale,), clip=3.0, source="Raw observations, each entry scaled by public constants.")
    return Request(
        dataset=dataset, mechanism=row.mechanism, unit=row.unit, rollouts=20 if row.mechanism == "neighbours" else data.rollouts,
        chosen="Sizes were decided before anything was certified, the rest are the package's defaults or were chosen on recordings with other seeds.",
        **{"learner": learner} | asked,
    )


def measure(row: Row, dataset: str, instances: int, out: Path) -> dict:
    """Train and certify one row; the numbers of the table."""
    began = time.monotonic()
    # What the vote, or the median action, earns, without following what poison could make of it: that is another table.
    choices = Choices() if row.mechanism == "neighbours" else Choices(policy="vote", episodes=VOTED_EPISODES, nodes=0)
    summary = execute(request_of(row, dataset, instances), str(out), choices=choices)
    action = summary["action"]["per_state"]
    return asdict(row) | {
        "instances": summary["instances"],
        "units": summary["units"],
        "mean": summary["unpoisoned_mean"],
        "voted": summary.get("voted", {}).get("mean"),
        "voted_error": summary.get("voted", {}).get("standard_error"),
        "keeps": {share: entry["fraction"] if entry["radius"] >= 0 else None for share, entry in summary["keeps"].items()},
        "yardsticks": summary["yardsticks"],
        "non_private": summary["baselines"].get("non_private"),
        "median_radius": (action["tolerance"]["0.1"] if "tolerance" in action else action)["median_radius"],
        "seconds": time.monotonic() - began,
        "failures": summary["failures"],
    }


WORDS = {"bag": "bags of {} {}", "partition": "{} parts of {}", "neighbours": "{} nearest {}", "gaussian": "noise on all {1}"}
MANY = {"trajectory": "trajectories", "transition": "transitions"}


def table(rows: list[dict]) -> str:
    """Markdown of the rows."""
    lines = []
    for name, data in DATA.items():
        of_data = sorted((row for row in rows if row["data"] == name), key=lambda row: (row["unit"], row["mechanism"], row["algorithm"] != "bc", row["algorithm"], row["size"] or 0))
        if not of_data:
            continue
        first = of_data[0]
        trajectories = next((row["units"] for row in of_data if row["unit"] == "trajectory"), "?")
        against = {key: entry["return"] for key, entry in first["yardsticks"].items()}
        lines += [
            f"### {data.title}", "",
            f"{trajectories} trajectories, `mucd record {BEHAVIOURS[data.behaviour].env_id} --behaviour {data.behaviour} --transitions {data.transitions} --seed {data.seed}`; behaviour policy "
            f"{against['behaviour']:.4g}, best constant action {against['best_constant_return']:.4g}.", "",
            "| mechanism | learner | P | mean return | the vote, or median, earns | keeps 90 % up to | 75 % | 50 % | above the best constant action up to | above the behaviour policy up to | median action radius | minutes |",
            "|" + "---|" * 12,
        ]
        lines += [_line(row) for row in of_data] + [""]
    return "\n".join(lines)


def _line(row: dict) -> str:
    keeps = (_percent(row["keeps"][share]) for share in ("0.9", "0.75", "0.5"))
    above = (_percent(None if (largest := row["yardsticks"][name]["radius"]) is None else largest / row["units"]) for name in ("best_constant_return", "behaviour"))
    voted = "" if row["voted"] is None else f"{row['voted']:.4g}" + ("" if row["voted_error"] is None else f" ± {row['voted_error']:.2g}")
    radius = "-" if row["median_radius"] is None else f"{row['median_radius']} ({_percent(row['median_radius'] / row['units'])})"
    learner, instances = ("-", "-") if row["mechanism"] == "neighbours" else (row["algorithm"], row["instances"])
    return (
        f"| {WORDS[row['mechanism']].format(row['size'], MANY[row['unit']])} | {learner} | {instances} | {row['mean']:.4g} | {voted} | " + " | ".join((*keeps, *above))
        + f" | {radius} | {row['seconds'] / 60:.1f} |"
    )


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{percent_down(fraction)} %"


def recording(name: str, smoke: bool) -> str:
    """The recording's name; it is made if it is not there."""
    data, dataset = DATA[name], f"{name}/{'smoke' if smoke else 'raw'}-v0"
    if dataset not in local_datasets():
        with progress_bar(f"recording {dataset}", "transition") as progress:
            record(BEHAVIOURS[data.behaviour].env_id, data.behaviour, min(data.transitions, 4000 if smoke else data.transitions), data.seed + smoke, dataset, progress=progress)
    return dataset


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="small recordings and few instances: shows that everything runs")
    parser.add_argument("--out", default="runs/raw", help="folder of the runs; finished rows there are kept")
    parser.add_argument("--only", action="append", default=[], help="rows whose name begins with this, such as lunarlander-trajectory-bag; may be given several times")
    parser.add_argument("--instances", type=int, help="instead of each row's own number")
    parser.add_argument("--finished", action="store_true", help="train nothing: write the table of the rows that are finished")
    parser.add_argument("--table", help="file to write (default: docs/results.md; with --smoke, results.md in the folder)")
    options = parser.parse_args()
    out = Path(options.out + ("-smoke" if options.smoke else ""))
    chosen = [row for row in ROWS if not options.only or any(row.name.startswith(part) for part in options.only)]
    try:
        if not chosen:
            raise MucdError(f"--only {', '.join(options.only)} fits no row: the rows are {', '.join(row.name for row in ROWS)}")
        Path(os.environ["MINARI_DATASETS_PATH"]).mkdir(parents=True, exist_ok=True)
        for row in [] if options.finished else chosen:
            result = out / row.name / "row.json"
            if result.exists():
                continue
            dataset = recording(row.data, options.smoke)
            if row.mechanism == "partition" and options.smoke or (row.size or 0) > load_dataset(dataset).count(row.unit) // 2 and row.mechanism != "partition":
                print(f"{row.name}: too large for this recording, left out", file=sys.stderr)
                continue
            print(row.name, file=sys.stderr)
            values = measure(row, dataset, options.instances or (40 if options.smoke else row.instances or DATA[row.data].instances), out / row.name)
            result.write_text(json.dumps(values, indent=1))
    except MucdError as error:
        print(f"raw_observations: error: {error}", file=sys.stderr)
        return 2
    rows = [json.loads(file.read_text()) for row in ROWS if (file := out / row.name / "row.json").exists()]
    file = Path(options.table or (out / "results.md" if options.smoke else "docs/results.md"))
    before, _, rest = (file.read_text() if file.exists() and not options.smoke else "").partition(TABLE_BEGINS)
    file.write_text(f"{before}{TABLE_BEGINS}\n\n{table(rows)}\n{TABLE_ENDS}{rest.partition(TABLE_ENDS)[2]}")
    print(f"{len(rows)} rows in {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
