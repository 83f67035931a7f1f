"""The public randomness of training, as plain data."""

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

from mucd_ray.errors import MucdError
from mucd_ray.mechanism.units import UNITS

# The range in which the accounting was tested. Below the least rate a unit's whole effect, T q, drowns in the allowance for
# floating-point error.
LEAST_RATE = 1e-9
LEAST_NOISE, MOST_NOISE, MOST_STEPS = 0.01, 1e9, 10_000_000
# Products in float32 stay far from the numbers that have fewer digits.
LEAST_SCALE, MOST_SCALE = 1e-12, 1e12


class NoisySteps(Protocol):
    """What training reads of a `Mechanism`."""

    @property
    def unit(self) -> str: ...
    @property
    def sample_rate(self) -> float: ...
    @property
    def noise_multiplier(self) -> float: ...
    @property
    def clip_norm(self) -> float: ...
    @property
    def steps(self) -> int: ...
    @property
    def normaliser(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """T steps of the Poisson-subsampled Gaussian mechanism.

    At each step every unit joins the batch independently with probability `sample_rate`; the vectors of the sampled units are
    clipped to L2 norm `clip_norm` and summed; N(0, (noise_multiplier * clip_norm)^2 I) is added; the sum is divided by
    `normaliser`. All fields are public constants of a run: none of them may be computed from the data.

    Attributes:
        unit: what one vector belongs to and what an attacker changes: "transition" or "trajectory".
        sample_rate: q in (0, 1].
        noise_multiplier: sigma > 0, standard deviation of the noise in units of `clip_norm`.
        clip_norm: C > 0.
        steps: T >= 1.
        normaliser: divisor of the noisy sum, > 0. It rescales the learning rate and has no effect on any guarantee.

    Raises:
        MucdError: a field is outside its range.
    """

    kind: ClassVar[str] = "gaussian"
    unit: str = "transition"
    sample_rate: float
    noise_multiplier: float
    clip_norm: float
    steps: int
    normaliser: float

    def __post_init__(self):
        if self.unit not in UNITS:
            raise MucdError(f"unit {self.unit!r} is unknown: use one of {', '.join(UNITS)}")
        if not 0 < self.sample_rate <= 1:
            raise MucdError(f"sample rate {self.sample_rate} is outside (0, 1]: it is the probability that a unit joins a batch")
        if self.sample_rate < LEAST_RATE:
            raise MucdError(f"sample rate {self.sample_rate} is below {LEAST_RATE:g}, the least that is accounted for: use larger batches")
        for name in ("noise_multiplier", "clip_norm", "normaliser"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise MucdError(f"{name.replace('_', ' ')} {value} must be a finite number above 0")
        for name in ("clip_norm", "normaliser"):
            if not LEAST_SCALE <= getattr(self, name) <= MOST_SCALE:
                raise MucdError(f"{name.replace('_', ' ')} {getattr(self, name)} is outside [{LEAST_SCALE:g}, {MOST_SCALE:g}], where float32 is exact enough")
        if not LEAST_NOISE <= self.noise_multiplier <= MOST_NOISE:
            raise MucdError(f"noise multiplier {self.noise_multiplier} is outside [{LEAST_NOISE:g}, {MOST_NOISE:g}], the range that is accounted for")
        if not 1 <= self.steps <= MOST_STEPS or int(self.steps) != self.steps:
            raise MucdError(f"steps {self.steps} must be a whole number in 1..{MOST_STEPS}")

    def signal_budget(self, units: int) -> float:
        """S = N q sqrt(T) / sigma: the signal-to-noise ratio that N aligned units give the learner (theory section 7)."""
        return units * self.sample_rate * math.sqrt(self.steps) / self.noise_multiplier
