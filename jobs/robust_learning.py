"""Robust learning: how wide a network withstands poison (docs/results.md, "Robust learning: width"; docs/robust.md says what it means).

    apt-get install dataset-fashion-mnist
    nice python jobs/robust_learning.py [--folder FOLDER] [--out FOLDER] [--seed N] [--finished] [--smoke]

Two-layer networks of each width learn two classes of images by one pass of SGD, from clean and from poisoned images, and are tested on clean ones; beside it, SGD on a convex problem
against its bounds. Goes on where it was stopped, width by width and seed by seed, and writes table and figure of what is finished. An hour of a core for three seeds.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from mucd_ray.attack.attacks import poisoned
from mucd_ray.attack.budget import Budget
from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.data.formats.labelled import LabelledImages, read_idx_folder
from mucd_ray.errors import MucdError
from mucd_ray.robust.convex import ExcessRisk, Problem, poisoned_sgd
from mucd_ray.robust.network import Online, initial, trained
from mucd_ray.robust.poison import OnlineAttack, check_moved, negated_loss

TABLE_BEGINS, TABLE_ENDS = "<!-- Written by jobs/robust_learning.py -->", "<!-- End of what jobs/robust_learning.py writes -->"
# Sandals against sneakers. Budgets were chosen on training images, the last 2,000 of these two classes held out.
CLASSES = (5, 7)
WIDTHS, SEEDS = (10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000), (0, 1, 2)
RATE, SURROGATE_WIDTH, SURROGATE_PASSES = 1.0, 100, 5
# B, in lengths of an image; S = C sqrt(n); beta.
PER_SAMPLE, TOTAL, FLIP = 0.1, 10.0, 0.4
# An attacker who moves along costs two products with all weights for every sample.
WIDEST_ONLINE = 10_000


@dataclass(frozen=True, kw_only=True)
class Data:
    """Images of norm 1 as rows, float32 [n, d], with labels of -1 and 1."""

    samples: Tensor
    labels: Tensor


def data_of(part: LabelledImages, most: int | None) -> Data:
    chosen = np.isin(part.labels, CLASSES)
    samples = torch.from_numpy(part.images[chosen].reshape(chosen.sum(), -1).astype(np.float32))
    labels = torch.from_numpy(np.where(part.labels[chosen] == CLASSES[0], -1, 1).astype(np.float32))
    return Data(samples=(samples / samples.norm(dim=1, keepdim=True).clamp_min(1e-6))[:most], labels=labels[:most])


Poisoned = tuple[Data, Online | None]


def clean(data: Data, seed: int) -> Poisoned:
    return data, None


def negated(data: Data, seed: int, **budget: float) -> Poisoned:
    """Regimes A and B: samples moved against a network of their own that has learned the clean ones."""
    surrogate = initial(SURROGATE_WIDTH, data.samples.shape[1], 1000 + seed)
    for _ in range(SURROGATE_PASSES):
        surrogate, _ = trained(surrogate, data.samples, data.labels, rate=RATE)
    return Data(samples=negated_loss(surrogate, data.samples, data.labels, rate=PER_SAMPLE / 4, **budget), labels=data.labels), None


def flipped(data: Data, seed: int) -> Poisoned:
    """Regime C, by the attack room's label flips."""
    count = len(data.labels)
    ends, observations = np.ones(count, bool), data.samples.numpy()
    dataset = OfflineDataset.from_arrays(
        name="pair", observations=observations, next_observations=observations, actions=((data.labels + 1) / 2).long().numpy(), rewards=np.zeros(count), terminations=ends, truncations=~ends,
        trajectory_starts=np.arange(count + 1), action_space=gymnasium.spaces.Discrete(2), observation_space=gymnasium.spaces.Box(0, 1, observations.shape[1:], np.float32),
    )
    after, _ = poisoned("label-flips", dataset, Budget(radius=count, unit="transition", threat="substitute", flip=FLIP), seed)
    return Data(samples=torch.from_numpy(after.observations), labels=torch.from_numpy(2 * after.actions.astype(np.float32) - 1)), None


def online(data: Data, seed: int) -> Poisoned:
    return data, OnlineAttack(per_sample=PER_SAMPLE, total=TOTAL * len(data.labels) ** 0.5)


def conditions(count: int) -> dict[str, Callable[[Data, int], Poisoned]]:
    """Of `count` samples."""
    return {
        "clean": clean,
        "regime-a": partial(negated, total=TOTAL * count**0.5),
        "regime-b": partial(negated, per_sample=PER_SAMPLE),
        "regime-c": flipped,
        "online": online,
    }


NAMES = {
    "clean": "clean", "regime-a": f"A: S = {TOTAL:g} √n", "regime-b": f"B = {PER_SAMPLE:g}", "regime-c": f"C: β = {FLIP:g}", "online": f"online, B = {PER_SAMPLE:g}, S = {TOTAL:g} √n",
}


def learn(train: Data, test: Data, widths: tuple[int, ...], seed: int, out: Path) -> None:
    """Every row of one seed that is not finished."""
    settings = {"samples": len(train.labels), "test": len(test.labels), "rate": RATE, "budgets": [PER_SAMPLE, TOTAL, FLIP]}
    order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(seed))
    shuffled = Data(samples=train.samples[order], labels=train.labels[order])
    poison: dict[str, Poisoned] = {}
    for width in widths:
        for name, attack in conditions(len(order)).items():
            file = out / f"{name}-{width}-{seed}.json"
            if (name == "online" and width > WIDEST_ONLINE) or (file.exists() and json.loads(file.read_text())["settings"] == settings):
                continue
            began = time.monotonic()
            if name not in poison or name == "online":
                poison[name] = attack(shuffled, seed)
            data, moves = poison[name]
            network, seen = trained(initial(width, data.samples.shape[1], 10 + seed), data.samples, data.labels, rate=RATE, online=moves)
            row = {"settings": settings, "condition": name, "width": width, "seed": seed, "accuracy": network.accuracy(test.samples, test.labels)}
            if name != "regime-c":
                spent = check_moved(
                    shuffled.samples, seen, per_sample=PER_SAMPLE if name in ("regime-b", "online") else None, total=TOTAL * len(order) ** 0.5 if name in ("regime-a", "online") else None
                )
                row |= {"B": spent.per_sample, "S": spent.total}
            _write(file, row | {"seconds": time.monotonic() - began})
            print(f"{name}, width {width}, seed {seed}: {row['accuracy']:.4f} in {time.monotonic() - began:.0f} s", flush=True)


def _write(file: Path, content: dict) -> None:
    """Whole, or not at all."""
    beside = file.with_suffix(f".{os.getpid()}")
    beside.write_text(json.dumps(content))
    beside.replace(file)


def convex(train: Data, seeds: int, out: Path, *, radius: float = 5.0, most: int = 2000, delta: float = 0.01) -> None:
    """Logistic regression over a ball, the first images as the population: the largest and the mean excess risk of poisoned SGD over seeds, beside the bounds."""
    if (out / "convex.json").exists():
        return
    problem = Problem(samples=train.samples[:most].double().numpy() * (1 - 1e-6), labels=train.labels[:most].double().numpy(), radius=radius)
    least, n, rows = problem.least_risk(5000), len(problem.labels), []
    towards = problem.gradient(np.zeros(problem.samples.shape[1]))
    towards /= np.linalg.norm(towards)
    for per_sample, total, flips in ((0.0, 0.0, 0), (0.5, n**0.5, 0), (0.5, 4 * n**0.5, 0), (0.0, 0.0, int(n**0.5)), (0.0, 0.0, int(4 * n**0.5))):
        bound, excesses = ExcessRisk(samples=n, radius=radius, per_sample=per_sample, total=total, flips=flips), []
        for seed in range(seeds):
            drawn = np.random.default_rng(seed).integers(n, size=n)
            samples, labels = problem.samples[drawn].copy(), problem.labels[drawn].copy()
            count = int(total / per_sample) if per_sample else 0
            samples[:count] += per_sample * labels[:count, None] * towards
            labels[:flips] *= -1
            excesses.append(problem.risk(poisoned_sgd(problem, drawn, samples, labels, bound.step)[0]) - least)
        rows.append({"B": per_sample, "S": total, "k": flips, "mean": float(np.mean(excesses)), "largest": max(excesses), "online": bound.online(), "online_delta": bound.online(delta), "offline": bound.offline()})
        if np.mean(excesses) > bound.online() or max(excesses) > bound.online(delta):
            raise MucdError(f"BOUND BEATEN: {rows[-1]}: this is a fault of the package")
    _write(out / "convex.json", {"samples": n, "radius": radius, "seeds": seeds, "delta": delta, "rows": rows})


def finished(out: Path) -> dict[str, dict[int, list[float]]]:
    """Accuracies of all seeds by condition and width."""
    found: dict[str, dict[int, list[float]]] = {name: {} for name in NAMES}
    for file in sorted(out.glob("*-*-*.json")):
        row = json.loads(file.read_text())
        found[row["condition"]].setdefault(row["width"], []).append(row["accuracy"])
    return found


def table(found: dict[str, dict[int, list[float]]], out: Path) -> str:
    """What is finished, as Markdown."""
    widths = sorted({width for of in found.values() for width in of})
    lines = ["| width | " + " | ".join(NAMES.values()) + " | seeds |", "|" + "---|" * (len(NAMES) + 2)]
    for width in widths:
        cells = [f"{100 * np.mean(of[width]):.1f} ({100 * min(of[width]):.1f} to {100 * max(of[width]):.1f})" if width in of else "" for of in found.values()]
        lines.append(f"| {width:,} | " + " | ".join(cells) + f" | {max(len(of.get(width, [])) for of in found.values())} |")
    if (out / "convex.json").exists():
        known = json.loads((out / "convex.json").read_text())
        sure = f"{100 * (1 - known['delta']):g} %"
        lines += ["", f"| B | S | k | mean excess risk | bound on the mean | largest of {known['seeds']} | {sure} bound | bound against foresight |", "|" + "---|" * 8]
        lines += [f"| {row['B']:g} | {row['S']:.4g} | {row['k']} | " + " | ".join(f"{row[name]:.3f}" for name in ("mean", "online", "largest", "online_delta", "offline")) + " |" for row in known["rows"]]
    return "\n".join(lines) + "\n"


def figure(found: dict[str, dict[int, list[float]]], file: Path) -> None:
    plot = Figure(figsize=(7, 4.2), layout="constrained")
    axes = plot.subplots()
    for (name, of), colour in zip(found.items(), ("#009E73", "#0072B2", "#E69F00", "#D55E00", "#CC79A7")):
        if of:
            widths = sorted(of)
            axes.plot(widths, [100 * np.mean(of[width]) for width in widths], marker="o", markersize=4, color=colour, label=NAMES[name])
            axes.fill_between(widths, [100 * min(of[width]) for width in widths], [100 * max(of[width]) for width in widths], color=colour, alpha=0.15, linewidth=0)
    axes.set(xscale="log", xlabel="width m", ylabel="clean test accuracy, %")
    axes.grid(color="#dddddd")
    axes.legend(fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    plot.savefig(file, dpi=110, metadata={"Software": None})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="/usr/share/datasets/fashion-mnist", help="IDX files (default: those of Debian's dataset-fashion-mnist)")
    parser.add_argument("--out", default="runs/robust", help="folder of finished rows")
    parser.add_argument("--seed", action="append", type=int, choices=SEEDS, help="this seed; may be given several times (default: all)")
    parser.add_argument("--finished", action="store_true", help="train nothing: write table and figure of what is finished")
    parser.add_argument("--smoke", action="store_true", help="two widths on 300 images in seconds; with --out of its own")
    parser.add_argument("--table", default="docs/results.md", help="file to write")
    parser.add_argument("--figure", default="docs/robust/width.png", help="file to write")
    options = parser.parse_args()
    out = Path(options.out)
    try:
        if not options.finished:
            out.mkdir(parents=True, exist_ok=True)
            torch.set_num_threads(1)
            parts = read_idx_folder(Path(options.folder))
            train, test = (data_of(parts[part], 300 if options.smoke else None) for part in ("train", "test"))
            convex(train, 3 if options.smoke else 50, out)
            for seed in options.seed or SEEDS:
                learn(train, test, WIDTHS[:2] if options.smoke else WIDTHS, seed, out)
        found = finished(out)
        if not any(found.values()):
            raise MucdError(f"{out} holds no finished row: run without --finished first")
    except MucdError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    file = Path(options.table)
    before, _, rest = (file.read_text() if file.exists() else "").partition(TABLE_BEGINS)
    file.write_text(f"{before}{TABLE_BEGINS}\n\n{table(found, out)}\n{TABLE_ENDS}{rest.partition(TABLE_ENDS)[2]}")
    figure(found, Path(options.figure))
    print(f"{sum(len(of) for of in found.values())} cells in {file}, and {options.figure}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
