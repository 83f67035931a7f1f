"""Histograms of gradients of an image by itself (Dalal and Triggs 2005), for `--features gradient-histograms`.

Their constants were chosen on training images of Fashion-MNIST, by the share that the nearest of the others certify (docs/results.md).
"""

import functools

import numpy as np

from mucd_ray.errors import MucdError

CELL, DIRECTIONS = 4, 16
# Of the entries, which share out evenly what strong edges would take (Arandjelovic and Zisserman 2012 take .5), and of a cell's surroundings where they are nearly flat.
POWER, FLAT = 0.7, 0.01
MOST_CHANNELS = 4
BYTE = 255


def check_image(shape: tuple[int, ...]) -> None:
    """Raise MucdError unless observations of this shape are images [H, W], [C, H, W] or [H, W, C] of at most `MOST_CHANNELS` channels and at least one cell."""
    sides = shape if len(shape) == 2 else shape[1:] if len(shape) == 3 and shape[0] <= MOST_CHANNELS else shape[:2] if len(shape) == 3 and shape[2] <= MOST_CHANNELS else ()
    if len(sides) != 2 or min(sides) < CELL:
        raise MucdError(f"--features gradient-histograms is for images [height, width], maybe of 1 to {MOST_CHANNELS} channels, and observations have the shape {list(shape)}: leave it out")


def gradient_histograms(image: np.ndarray) -> np.ndarray:
    """float32 [H // 4 * W // 4 * 16] of an image of bytes, [H, W], [C, H, W] or [H, W, C].

    Of the square roots of all bytes, which see dark cloth as well as bright, the channel with the strongest gradient counts at every pixel; its size goes to the nearest two of 16 directions (with their sign) and of the cells of 4 x 4 pixels about it, bilinearly. A cell is
    divided by the length of its 3 x 3 neighbourhood, and entries are raised to the power .7. Entries lie in [0, 1].
    """
    channels = image[None] if image.ndim == 2 else image if image.shape[0] <= MOST_CHANNELS else np.moveaxis(image, -1, 0)
    padded = np.pad(np.sqrt(channels.astype(np.float64) / BYTE), ((0, 0), (1, 1), (1, 1)), mode="edge")
    down, across = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2, (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2
    strongest = np.hypot(down, across).argmax(0)[None]
    down, across = np.take_along_axis(down, strongest, 0)[0], np.take_along_axis(across, strongest, 0)[0]
    turn = np.arctan2(down, across) / (2 * np.pi) % 1 * DIRECTIONS
    lower, share = np.floor(turn).astype(int) % DIRECTIONS, turn % 1
    size = np.hypot(down, across)
    of_direction = np.zeros((DIRECTIONS, *size.shape))
    rows, columns = np.indices(size.shape)
    of_direction[lower, rows, columns] = size * (1 - share)
    of_direction[(lower + 1) % DIRECTIONS, rows, columns] = size * share
    cells = _windows(size.shape[0]) @ of_direction @ _windows(size.shape[1]).T
    energy = np.pad((cells**2).sum(0), 1)
    around = sum(energy[i : i + cells.shape[1], j : j + cells.shape[2]] for i in range(3) for j in range(3))
    return ((cells / np.sqrt(around + FLAT * CELL**2)) ** POWER).transpose(1, 2, 0).reshape(-1).astype(np.float32)


@functools.cache
def _windows(length: int) -> np.ndarray:
    """How much each pixel of a row counts for each cell, [length // 4, length]: a triangle twice as wide as a cell."""
    centres = np.arange(length // CELL) * CELL + (CELL - 1) / 2
    return np.maximum(0, 1 - abs(np.arange(length) - centres[:, None]) / CELL)
