"""Nearest neighbours on a supervised table: the share of Fashion-MNIST's test images whose class is right and certified at r changed training images.

    apt-get install dataset-fashion-mnist
    python jobs/fashion_mnist.py [--folder FOLDER] [--test 10000] [--validation 1000] [--json]

A unit is a training image; its vote is its label. `pixels`: distance of plain images. `gradients`: distance of histograms of gradients (Dalal and Triggs 2005; square
roots of counts, as in Arandjelović and Zisserman 2012), where a training image stands for itself and four copies shifted by a pixel: its nearest copy votes, so it is one
unit still. K is the one of a few with which most of the last training images are certified at r = 80 by the others; the features were chosen on training images, too. Exact
search: some 10 ms of a core for each image.
"""

import argparse
import gzip
import json
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from mucd_ray.learn.neighbours import Nearest
from mucd_ray.learn.units import Units
from mucd_ray.mechanism.neighbours import Neighbours

CLASSES, SIDE, BINS, CELL = 10, 28, 9, 4
NEIGHBOURS = (200, 400, 600, 800, 1200, 2000)
RADII = (0, 20, 40, 80, 160, 320)
# At this radius K is chosen.
WANTED = 80
SHIFTS = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))


def read(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(images uint8 [n, 28, 28], labels int64 [n]) of the files in the IDX format."""
    images, labels = (gzip.decompress((folder / f"{name}-{kind}-ubyte.gz").read_bytes()) for kind in ("images-idx3", "labels-idx1"))
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, SIDE, SIDE), np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)


def pixels(images: np.ndarray) -> np.ndarray:
    return (images.reshape(len(images), -1) / 255).astype(np.float32)


def gradients(images: np.ndarray) -> np.ndarray:
    """Of every image by itself: 7 x 7 cells of 9 directions, square roots, of length 1; float32 [n, 441]."""
    features = np.empty((len(images), (SIDE // CELL) ** 2 * BINS), np.float32)
    for start in range(0, len(images), 1000):
        padded = np.pad(images[start : start + 1000] / 255, ((0, 0), (1, 1), (1, 1)), mode="edge")
        across, down = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2], padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
        place = np.arctan2(down, across) % np.pi / np.pi * BINS
        below, above = np.floor(place).astype(int) % BINS, place % 1
        size, directions = np.hypot(across, down)[..., None], np.arange(BINS)
        weights = size * ((below[..., None] == directions) * (1 - above[..., None]) + ((below[..., None] + 1) % BINS == directions) * above[..., None])
        cells = weights.reshape(len(padded), SIDE // CELL, CELL, SIDE // CELL, CELL, BINS).sum((2, 4)).reshape(len(padded), -1)
        features[start : start + 1000] = np.sqrt(cells / np.maximum(cells.sum(1, keepdims=True), 1e-9))
    return features


def shifted(images: np.ndarray) -> np.ndarray:
    """Every image and its copies, one after the other: [5 n, 28, 28]."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)), mode="edge")
    copies = [padded[:, 1 + down : 1 + down + SIDE, 1 + across : 1 + across + SIDE] for down, across in SHIFTS]
    return np.stack(copies, axis=1).reshape(-1, SIDE, SIDE)


def table(features: np.ndarray, labels: np.ndarray) -> Units:
    """Units of as many rows as there are per label."""
    rows, copies = len(features), len(features) // len(labels)
    return Units(
        unit="trajectory", features=features, next_features=features[:0], actions=np.repeat(labels, copies), rewards=np.zeros(rows, np.float32), keeps=np.ones(rows, np.float32),
        starts=np.arange(0, rows, copies), lengths=np.full(len(labels), copies),
    )


def certified(part: np.ndarray) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """(class, radius against insertions and removals) of these images for every K."""
    votes, found = _nearest.votes_at(_images[part], 2 * max(_neighbours)), {}
    for count in _neighbours:
        mechanism = Neighbours(neighbours=count)
        rows = [votes[start : start + 20, : mechanism.recorded] for start in range(0, len(votes), 20)]
        found[count] = [np.concatenate(answers) for answers in zip(*((mechanism.actions(row, CLASSES), mechanism.radii(row, CLASSES)[0]) for row in rows))]
    return found


def result(nearest: Nearest, images: np.ndarray, truth: np.ndarray, neighbours: tuple[int, ...]) -> dict[int, dict]:
    """For every K the shares of images (their features [n, d]) that are right and certified at RADII, and the median radius."""
    global _nearest, _images, _neighbours  # read by the processes that are forked here
    _nearest, _images, _neighbours = nearest, images, neighbours
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        parts = list(pool.map(certified, np.array_split(np.arange(len(images)), max(1, len(images) // 50))))
    found = {}
    for count in neighbours:
        classes, radii = (np.concatenate([part[count][k] for part in parts]) for k in range(2))
        found[count] = {"accuracy": {str(r): float(np.mean((classes == truth) & (radii >= r))) for r in RADII}, "median_radius": float(np.median(radii))}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--features", choices=["pixels", "gradients"], help="one of them alone (default: both)")
    parser.add_argument("--test", type=int, default=10_000, help="how many test images, the first ones")
    parser.add_argument("--train", type=int, default=60_000, help="how many training images, the first ones")
    parser.add_argument("--validation", type=int, default=1000, help="how many training images, the last ones, choose K")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    (images, labels), (test, truth) = read(options.folder, "train"), read(options.folder, "t10k")
    images, labels, test, truth = images[: options.train], labels[: options.train], test[: options.test], truth[: options.test]
    lines = ["| features | images | K | " + " | ".join(f"r = {radius}" for radius in RADII) + " | median r |", "|" + "---|" * (len(RADII) + 4)]
    results = []
    for name, features, data in (("pixels", pixels, lambda part: part), ("gradients", gradients, shifted)):
        if options.features not in (None, name):
            continue
        last = np.arange(len(images) - options.validation, len(images))
        rest = np.arange(len(images) - options.validation)
        validation = result(Nearest(table(features(data(images[rest])), labels[rest])), features(images[last]), labels[last], NEIGHBOURS)
        best = max(NEIGHBOURS, key=lambda count: validation[count]["accuracy"][str(WANTED)])
        tested = result(Nearest(table(features(data(images)), labels)), features(test), truth, (best,))
        for part, number, found in (("validation", len(last), validation), ("test", len(test), tested)):
            for count, values in found.items():
                results.append({"features": name, "part": part, "images": number, "neighbours": count} | values)
                shares = " | ".join(f"{100 * share:.1f}" for share in values["accuracy"].values())
                lines.append(f"| {name} | {part}, {number:,} | {count} | {shares} | {values['median_radius']:g} |")
        if not options.json:
            print("\n".join(lines), flush=True)
            lines = []
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
