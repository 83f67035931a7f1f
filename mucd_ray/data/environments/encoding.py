"""Encoders that this process has loaded (`learn/encoders.py`; features by name: `features.py`): functions of one observation whose outputs take its place."""

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mucd_ray.data.environments.histograms import check_image, gradient_histograms
from mucd_ray.errors import MucdError

MOST_OUTPUTS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """Features of the package itself: `function` of one observation, and `check`, which raises MucdError for the shape of observations that it is not for."""

    function: Callable[[np.ndarray], np.ndarray]
    check: Callable[[tuple[int, ...]], None]

    @property
    def sha256(self) -> str:
        """Of the file that holds the function."""
        return hashlib.sha256(Path(inspect.getfile(self.function)).read_bytes()).hexdigest()


# By the name that `--features` takes.
SHIPPED = {"gradient-histograms": Shipped(function=gradient_histograms, check=check_image)}
# By the SHA-256 of the file, or the plug-in: [*observation_shape] -> float32 [width].
ENCODERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {}


def tried(function: Callable[[np.ndarray], np.ndarray], name: str, observation_shape: tuple[int, ...]) -> int:
    """The number of outputs, found on made-up observations.

    Raises:
        MucdError: chance or a state that outputs depend on; no outputs, or too many.
        Exception: whatever the function raises.
    """
    one, other = np.random.default_rng(0).uniform(0, 1, (2, *observation_shape)).astype(np.float32)
    first, _, again = function(one), function(other), function(one)
    if first.shape != again.shape or not np.array_equal(first, again, equal_nan=True):
        raise MucdError(f"{name} answers the same observation in two ways: remove dropout and whatever it remembers, since features must follow from one observation alone")
    if not 1 <= first.size <= MOST_OUTPUTS:
        raise MucdError(f"{name} gives {first.size} outputs: 1 to {MOST_OUTPUTS:,} are wanted")
    return first.size


def encoded(sha256: str, width: int, observations: np.ndarray) -> np.ndarray:
    """The encoder's outputs at observations [n, *observation_shape]: float32 [n, width].

    It is given one observation at a time, so that none can reach another's features, and rounding does not depend on the others. Where it fails, or gives
    another number of outputs, they are NaN: such a unit counts as one with observations that are no numbers.

    Raises:
        MucdError: this encoder is not loaded.
    """
    if sha256 not in ENCODERS:
        raise MucdError(f"the encoder {sha256[:16]}... is not loaded: give its file with --encoder FILE, or features by name with --features")
    features = np.full((len(observations), width), np.nan, np.float32)
    for row, observation in zip(features, observations):
        try:
            output = ENCODERS[sha256](observation)
        except Exception:  # the code of any model
            continue
        if output.shape == (width,):
            row[:] = output
    return features
