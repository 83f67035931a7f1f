"""The weights of shipped controllers, found by `python -m mucd_ray.data.recording.search`, which says how."""

import functools
import json
from pathlib import Path

import numpy as np


@functools.cache
def shipped_weights(name: str) -> dict[str, np.ndarray]:
    """The arrays of NAME.json beside this file."""
    values = json.loads(Path(__file__).with_name(f"{name}.json").read_text(encoding="utf-8"))
    return {key: np.array(value) for key, value in values.items()}
