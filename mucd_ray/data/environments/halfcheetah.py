"""HalfCheetah in the few coordinates in which it was taught to run: what a controller and a card's features are made of."""

import functools
import json
from pathlib import Path

import numpy as np


@functools.cache
def _found() -> dict[str, np.ndarray]:
    """What `python -m mucd_ray.data.recording.search` finds, and describes."""
    values = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return {name: np.array(value) for name, value in values.items()}


def running_components(observations: np.ndarray) -> np.ndarray:
    """Four linear coordinates, of about mean 0 and variance 1 and uncorrelated while the cheetah runs.

    Args:
        observations: [..., 17], of HalfCheetah-v5.
    Returns:
        float64 [..., 4].
    """
    found = _found()
    centred = np.asarray(observations, dtype=float) - found["center"]
    # Sums of products, entry by entry: a matrix product may round differently from one batch size to the next.
    return (centred[..., None, :] * found["components"]).sum(-1)


def run(observation: np.ndarray) -> np.ndarray:
    """The linear controller of these coordinates, limited to [-3, 3]: observation [17] -> torques [6], each in [-1, 1]."""
    found = _found()
    return np.clip(found["weights"] @ np.clip(running_components(observation), -3, 3) + found["bias"], -1, 1)
