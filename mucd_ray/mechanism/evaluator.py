"""An evaluator of the user's as plain data: what a certificate says of the score that takes the place of a return."""

import math
import re
from dataclasses import asdict, dataclass, fields

from mucd_ray.errors import MucdError
from mucd_ray.mechanism.outside import LEAST_SECONDS, MOST_SECONDS, check_name


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """A function score(policy, seed) -> number in a public range.

    Attributes:
        name: "package.module:function" or "path/to/file.py:function".
        sha256: of the file that holds it.
        low, high: the range. What is outside it, or no number, or does not come in time, counts as `low`.
        seconds: that a score may take: public, and part of what the score is.
        memory: GB that it may take with all that it starts; the same.

    Raises:
        MucdError: a field is outside its range.
    """

    name: str
    sha256: str
    low: float
    high: float
    seconds: float = 60.0
    memory: float = 8.0

    def __post_init__(self):
        check_name("evaluator", self.name)
        if not isinstance(self.sha256, str) or not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise MucdError(f"evaluator {self.name}: {self.sha256!r:.100} is no SHA-256")
        for name in ("low", "high", "seconds", "memory"):
            if type(value := getattr(self, name)) not in (int, float) or not math.isfinite(value):
                raise MucdError(f"evaluator {self.name}: {name} {value!r:.60} must be a finite number")
        if not self.low < self.high:
            raise MucdError(f"--score-range {self.low},{self.high} must begin below its end: 0,1 for a share of successes, say")
        if not LEAST_SECONDS <= self.seconds <= MOST_SECONDS:
            raise MucdError(f"--evaluator-seconds {self.seconds} is outside [{LEAST_SECONDS:g}, {MOST_SECONDS:g}]: use one of these")
        if not 0.5 <= self.memory <= 1e6:
            raise MucdError(f"evaluator {self.name}: memory {self.memory} GB is outside [0.5, 1e6]")


to_values = asdict


def from_values(values) -> Evaluator:
    """An evaluator from its fields as JSON values, which anybody may have written. Raises MucdError."""
    names = [field.name for field in fields(Evaluator)]
    if not isinstance(values, dict) or set(values) != set(names):
        raise MucdError(f"evaluator must be an object with exactly the fields {', '.join(names)}")
    return Evaluator(**values)
