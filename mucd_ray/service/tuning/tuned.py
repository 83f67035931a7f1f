"""tuned.json: constants that `mucd tune` has found, and on what. They are public constants of a run; the noise follows from the declared size."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass

from mucd_ray.certify.file.evidence import TUNED_ON_THIS_DATASET
from mucd_ray.certify.rounding import exactly
from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.errors import MucdError
from mucd_ray.files import MOST_JSON_BYTES, read_file, read_json
from mucd_ray.learn.learner import Learner, LocalUpdate
from mucd_ray.mechanism.gaussian.mechanism import Mechanism
from mucd_ray.mechanism.units import UNITS
from mucd_ray.words import counted

FORMAT = "mucd-tuned/1"
TRUSTED, SIMULATOR = "trusted dataset", "simulator"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """On what constants were tuned: a dataset that the user trusts, or one recorded in the simulator for the purpose.

    Attributes:
        kind: TRUSTED or SIMULATOR.
        name, fingerprint, units: of that dataset.
        trials: how many configurations were tried.
    """

    kind: str
    name: str
    fingerprint: str
    units: int
    trials: int


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What was found: everything that a run needs but its size.

    Attributes:
        signal_budget: S = N q sqrt(T) / sigma, the same whatever N is.
    Raises:
        MucdError: a value is outside its range.
    """

    environment: str
    unit: str
    learner: Learner
    sample_rate: float
    steps: int
    clip_norm: float
    signal_budget: float
    how: Origin

    def __post_init__(self):
        if not (self.signal_budget > 0 and math.isfinite(self.signal_budget)):
            raise MucdError(f"signal budget {self.signal_budget} must be a finite number above 0")
        if self.how.kind not in (TRUSTED, SIMULATOR):
            raise MucdError(f"tuned on {self.how.kind!r}: it must be a {TRUSTED} or a {SIMULATOR}")
        if self.unit not in UNITS:
            raise MucdError(f"unit {self.unit!r} is unknown: use one of {', '.join(UNITS)}")

    def mechanism(self, units: int) -> Mechanism:
        """The mechanism for a dataset of this declared size."""
        return Mechanism(
            unit=self.unit, sample_rate=self.sample_rate, noise_multiplier=units * self.sample_rate * math.sqrt(self.steps) / self.signal_budget,
            clip_norm=self.clip_norm, steps=self.steps, normaliser=self.sample_rate * units,
        )

    def condition(self, dataset: OfflineDataset) -> str | None:
        """What a claim about `dataset` depends on. One of the same name may be the trusted one after an attack."""
        same = dataset.fingerprint() == self.how.fingerprint or (self.how.kind == TRUSTED and dataset.name == self.how.name)
        return TUNED_ON_THIS_DATASET if same else None

    def note(self, dataset: OfflineDataset) -> str:
        """The sentence for a certificate."""
        text = (
            f"Learner, sample rate, steps and clip norm were tuned in {counted(self.how.trials, 'trial')} on {self.how.name} ({counted(self.how.units, self.unit)}, "
            f"sha256 {self.how.fingerprint[:16]}); the noise multiplier follows from them, the declared size and a signal budget of {exactly(self.signal_budget)}. "
        )
        if self.condition(dataset):
            return text + "That is this dataset, or one of its name: the claim is conditional on that choice."
        if self.how.kind == SIMULATOR:
            return text + "That was recorded in the simulator for the purpose, without looking at the dataset of this certificate."
        return text + "The user declared that dataset trusted: the claim holds if an attacker can change nothing in it and it was chosen without looking at the dataset of this certificate."

    def to_dict(self) -> dict:
        return {"format": FORMAT} | json.loads(json.dumps(asdict(self)))

    def key(self) -> str:
        """Names this configuration, whatever else is the same."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]


def read_tuned(path: str) -> Tuned:
    """Raises MucdError unless the file is one that `mucd tune` wrote."""
    try:
        values = read_json(read_file(path, MOST_JSON_BYTES), "it")
        if values.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        local = LocalUpdate(**values["learner"]["local"])
        return Tuned(**values | {"learner": Learner(**values["learner"] | {"local": local}), "how": Origin(**values["how"])})
    except OSError as error:
        raise MucdError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, MucdError) as error:
        raise MucdError(f"{path} is not what `mucd tune` writes ({error}): give its tuned.json") from None
