"""Encoders that this process has loaded (`learn/encoders.py`): functions of one observation whose outputs take its place."""

from collections.abc import Callable

import numpy as np

from mucd_ray.errors import MucdError

# By the SHA-256 of the file: [*observation_shape] -> float32 [width].
ENCODERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {}


def encoded(sha256: str, width: int, observations: np.ndarray) -> np.ndarray:
    """The encoder's outputs at observations [n, *observation_shape]: float32 [n, width].

    It is given one observation at a time, so that none can reach another's features, and rounding does not depend on the others. Where it fails, or gives
    another number of outputs, they are NaN: such a unit counts as one with observations that are no numbers.

    Raises:
        MucdError: this encoder is not loaded.
    """
    if sha256 not in ENCODERS:
        raise MucdError(f"the encoder {sha256[:16]}... is not loaded: give its file with --encoder FILE")
    features = np.full((len(observations), width), np.nan, np.float32)
    for row, observation in zip(features, observations):
        try:
            output = ENCODERS[sha256](observation)
        except Exception:  # the code of any model
            continue
        if output.shape == (width,):
            row[:] = output
    return features
