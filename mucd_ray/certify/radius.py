"""Search for the largest radius at which a property that falls with r still holds."""

import math
from collections.abc import Callable

import numpy as np

# Shares of the data at which every curve is evaluated.
FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.0717, 0.1, 0.2)


def largest_radii(holds: Callable[[int], np.ndarray], cap: int) -> np.ndarray:
    """Largest r in 0..cap with holds(r), for many items at once: holds(r) is a boolean array [n], falling in r -> [n].

    An item that fails already at r = 0 gets -1. Every evaluation serves all items, and nothing is assumed of r between two
    evaluated radii but that the property falls.
    """
    at_zero = np.asarray(holds(0), dtype=bool)
    low = np.where(at_zero, 0, -1)
    high = np.where(at_zero, cap + 1, 0)

    def evaluate(radius: int):
        good = holds(radius)
        low[good & (low < radius)] = radius
        high[~good & (high > radius)] = radius

    radius = 1
    while radius <= cap and np.any(high == cap + 1):
        evaluate(radius)
        if not np.any(low == radius):
            break
        radius *= 2
    while np.any(open_items := high - low > 1):
        item = int(np.argmax(open_items))
        evaluate(int(low[item] + high[item]) // 2)
    return low


def radius_ladder(cap: int, per_octave: int = 12) -> np.ndarray:
    """0, 1, 2, ... then geometrically spaced radii up to and including `cap`."""
    steps = np.rint(2 ** (np.arange(64 * per_octave) / per_octave))
    return np.unique(np.concatenate([[0], steps[steps < cap], [cap]])).astype(int)


def named_radii(last: int, extra: list[int], units: int, cap: int) -> np.ndarray:
    """0, 1, 2, ... up to `last`, ever sparser, with `extra` and the radii of the named fractions: what a curve is evaluated at."""
    named = [min(cap, math.ceil(fraction * units)) for fraction in FRACTIONS]
    radii = np.unique(np.concatenate([radius_ladder(last), extra, named])).astype(int)
    return radii[radii >= 0]
