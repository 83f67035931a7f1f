"""tuned.json: constants that `mucd tune` has found, and on what. They are public constants of a run; noise by a signal budget and the number of parts follow from the declared size."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from mucd_ray.certify.confidence.proportions import LARGEST, check_count
from mucd_ray.certify.file.evidence import TUNED_ON_THIS_DATASET
from mucd_ray.certify.planning.bags import bag_then_noise_of
from mucd_ray.certify.rounding import exactly
from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.data.environments.card import MOST_HISTORY
from mucd_ray.data.formats.metadata import MOST_TEXT
from mucd_ray.errors import MucdError
from mucd_ray.files import MOST_JSON_BYTES, check_types, printable, read_file, read_json
from mucd_ray.learn.learner import Learner, LocalUpdate
from mucd_ray.learn.trainers.built_in import Fit
from mucd_ray.mechanism import outside
from mucd_ray.mechanism.bag import Bag
from mucd_ray.mechanism.bag_then_noise import BagThenNoise
from mucd_ray.mechanism.gaussian.mechanism import MOST_STEPS, Mechanism
from mucd_ray.mechanism.outside import Outside
from mucd_ray.mechanism.partition import Partition
from mucd_ray.mechanism.units import UNITS
from mucd_ray.words import counted

TRUSTED, SIMULATOR = "trusted dataset", "simulator"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """On what constants were tuned: a dataset that the user trusts, or one recorded in the simulator for the purpose.

    Attributes:
        kind: TRUSTED or SIMULATOR.
        name, fingerprint, units: of that dataset; the fingerprint is `content_of` it.
        trials: how many configurations were tried.

    Raises:
        MucdError: a value of another type, or a text that a certificate cannot repeat.
    """

    kind: str
    name: str
    fingerprint: str
    units: int
    trials: int

    def __post_init__(self):
        for name in ("kind", "name", "fingerprint"):
            value = getattr(self, name)
            if not (isinstance(value, str) and value.isprintable() and len(value) <= MOST_TEXT):
                raise MucdError(f"{name} {printable(value)!r} must be a printable text of at most {MOST_TEXT} characters")
        for name in ("units", "trials"):
            check_count(getattr(self, name), name, 1, LARGEST)


def content_of(dataset: OfflineDataset) -> str:
    """Its fingerprint, whichever key tells its sources: tuned by one key it is the same data under another."""
    return replace(dataset, sources=None).fingerprint()


@dataclass(frozen=True, kw_only=True)
class Found:
    """What every study finds: all that a run needs but its size and what its kind of mechanism adds.

    Raises:
        MucdError: a value is outside its range.
    """

    format: ClassVar[str]
    environment: str
    unit: str
    learner: Learner | None
    how: Origin

    def __post_init__(self):
        if (self.learner is None) != (self.trainer is not None):
            raise MucdError("a learner of the package goes with no trainer from outside, and one of the two must be there")
        if self.how.kind not in (TRUSTED, SIMULATOR):
            raise MucdError(f"tuned on {self.how.kind!r}: it must be a {TRUSTED} or a {SIMULATOR}")
        if self.unit not in UNITS:
            raise MucdError(f"unit {self.unit!r} is unknown: use one of {', '.join(UNITS)}")

    def condition(self, dataset: OfflineDataset) -> str | None:
        """What a claim about `dataset` depends on. One of the same name may be the trusted one after an attack."""
        same = content_of(dataset) == self.how.fingerprint or (self.how.kind == TRUSTED and dataset.name == self.how.name)
        return TUNED_ON_THIS_DATASET if same else None

    def note(self, dataset: OfflineDataset) -> str:
        """The sentence for a certificate."""
        what, follows = self._in_words()
        text = f"{what} tuned in {counted(self.how.trials, 'trial')} on {self.how.name} ({counted(self.how.units, self.unit)}, sha256 {self.how.fingerprint[:16]}){follows}. "
        if self.condition(dataset):
            return text + "That is this dataset, or one of its name: the claim is conditional on that choice."
        if self.how.kind == SIMULATOR:
            return text + "That was recorded in the simulator for the purpose, without looking at the dataset of this certificate."
        return text + "The user declared that dataset trusted: the claim holds if an attacker can change nothing in it and it was chosen without looking at the dataset of this certificate."

    def _in_words(self) -> tuple[str, str]:
        """(what was tuned, what follows from it)."""
        raise NotImplementedError

    def to_dict(self) -> dict:
        trainer = vars(self).get("trainer")
        return {"format": self.format} | json.loads(json.dumps(asdict(self) | ({"trainer": outside.to_values(trainer)} if trainer else {})))

    def key(self) -> str:
        """Names this configuration, whatever else is the same."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]


def _check_numbers(found: Found, *names: str) -> None:
    for name in names:
        if type(getattr(found, name)) not in (int, float):
            raise MucdError(f"{name.replace('_', ' ')} {printable(getattr(found, name))!r} must be a number")


@dataclass(frozen=True, kw_only=True)
class Tuned(Found):
    """Constants of training with noise.

    Attributes:
        signal_budget: S = N q sqrt(T) / sigma, the same whatever N is.
    """

    format: ClassVar[str] = "mucd-tuned/1"
    kind: ClassVar[str] = Mechanism.kind
    fit: ClassVar[None] = None
    trainer: ClassVar[None] = None
    history: ClassVar[int] = 1
    follows_size: ClassVar[bool] = True
    sample_rate: float
    steps: int
    clip_norm: float
    signal_budget: float

    def __post_init__(self):
        super().__post_init__()
        _check_numbers(self, "sample_rate", "clip_norm", "signal_budget")
        check_count(self.steps, "steps", 1, MOST_STEPS)
        if not (self.signal_budget > 0 and math.isfinite(self.signal_budget)):
            raise MucdError(f"signal budget {self.signal_budget} must be a finite number above 0")

    def mechanism(self, units: int) -> Mechanism:
        """The mechanism for a dataset of this declared size."""
        return Mechanism(
            unit=self.unit, sample_rate=self.sample_rate, noise_multiplier=units * self.sample_rate * math.sqrt(self.steps) / self.signal_budget,
            clip_norm=self.clip_norm, steps=self.steps, normaliser=self.sample_rate * units,
        )

    def _in_words(self) -> tuple[str, str]:
        return "Learner, sample rate, steps and clip norm were", f"; the noise multiplier follows from them, the declared size and a signal budget of {exactly(self.signal_budget)}"


@dataclass(frozen=True, kw_only=True)
class TunedBag(Found):
    """Constants of training on bags, or on parts.

    Attributes:
        kind: "bag" or "partition".
        bag_size: units in a bag, or in a part on average.
        fit: how a policy is fitted to it; None where `trainer` is not.
        trainer: from outside, of which the size and the history alone are tuned.
        history: how many observations policies see.
    """

    format: ClassVar[str] = "mucd-tuned-bag/1"
    kind: str
    bag_size: int
    fit: Fit | None
    trainer: Outside | None = None
    history: int = 1

    def __post_init__(self):
        super().__post_init__()
        check_count(self.history, "history", 1, MOST_HISTORY)
        if (self.fit is None) != (self.trainer is not None):
            raise MucdError("how a policy is fitted goes with no trainer from outside, and one of the two must be there")
        if self.kind not in (Bag.kind, Partition.kind):
            raise MucdError(f"mechanism {self.kind!r} has no bags or parts: use {Bag.kind} or {Partition.kind}")
        if type(self.bag_size) is not int or self.bag_size < 1:
            raise MucdError(f"bag size {self.bag_size} must be a whole number, at least 1")

    @property
    def follows_size(self) -> bool:
        """Whether anything follows from the declared size: a bag's own size does not."""
        return self.kind == Partition.kind

    def mechanism(self, units: int) -> Bag | Partition:
        """The mechanism for a dataset of this declared size."""
        return Bag(unit=self.unit, bag_size=self.bag_size) if self.kind == Bag.kind else Partition(unit=self.unit, parts=-(-units // self.bag_size))

    def to_dict(self) -> dict:
        # One without a trainer or a history is written as before there were any.
        before = {"trainer": None, "history": 1}
        return {name: value for name, value in super().to_dict().items() if name not in before or value != before[name]}

    def _in_words(self) -> tuple[str, str]:
        what = {Bag.kind: ("bag size", "a bag"), Partition.kind: ("number of units in a part", "them")}[self.kind]
        follows = "" if self.kind == Bag.kind else f"; the number of parts follows from the declared size and {counted(self.bag_size, self.unit)} in each"
        seen = "" if self.history == 1 else ", and how many observations policies see,"
        if self.trainer:
            return f"The {what[0]}{seen} {'were' if seen else 'was'}", follows
        return f"Learner, {what[0]} and how a policy is fitted to {what[1]}{seen} were", follows


@dataclass(frozen=True, kw_only=True)
class TunedNoisyBag(Found):
    """Constants of training with noise on bags of exactly so many units; nothing follows from any size.

    Attributes:
        bag_size: units in a bag, all of which take part in every step where they are not too many (`bag_then_noise_of`).
        noise_multiplier, steps, clip_norm: of the steps on it.
    """

    format: ClassVar[str] = "mucd-tuned-noisy-bag/1"
    kind: ClassVar[str] = BagThenNoise.kind
    fit: ClassVar[None] = None
    trainer: ClassVar[None] = None
    history: ClassVar[int] = 1
    follows_size: ClassVar[bool] = False
    bag_size: int
    noise_multiplier: float
    steps: int
    clip_norm: float

    def __post_init__(self):
        super().__post_init__()
        if type(self.bag_size) is not int or self.bag_size < 1:
            raise MucdError(f"bag size {self.bag_size} must be a whole number, at least 1")
        _check_numbers(self, "noise_multiplier", "clip_norm")
        check_count(self.steps, "steps", 1, MOST_STEPS)
        _ = self.mechanism(self.bag_size)

    def mechanism(self, units: int) -> BagThenNoise:
        """The mechanism, whatever the size."""
        bag = Bag(unit=self.unit, bag_size=self.bag_size)
        return bag_then_noise_of(bag, units=units, noise_multiplier=self.noise_multiplier, steps=self.steps, clip_norm=self.clip_norm)

    def _in_words(self) -> tuple[str, str]:
        return "Learner, bag size, noise multiplier, steps and clip norm were", ""


AnyTuned = Tuned | TunedBag | TunedNoisyBag
FORMATS = {kind.format: kind for kind in (Tuned, TunedBag, TunedNoisyBag)}


def read_tuned(path: str) -> AnyTuned:
    """Raises MucdError unless the file is one that `mucd tune` wrote."""
    try:
        values = read_json(read_file(path, MOST_JSON_BYTES), "it")
        kind = FORMATS.get(values.pop("format"))
        if kind is None:
            raise ValueError(f"its format is not {' or '.join(FORMATS)}")
        learner = None if values["learner"] is None else Learner(**check_types(Learner, values["learner"] | {"local": LocalUpdate(**check_types(LocalUpdate, values["learner"]["local"]))}))
        read: dict[str, Any] = {"fit": None if values["fit"] is None else Fit(**check_types(Fit, values["fit"]))} if "fit" in values else {}
        read |= {"trainer": outside.from_values(values["trainer"])} if "trainer" in values else {}
        return kind(**check_types(kind, values | read | {"learner": learner, "how": Origin(**check_types(Origin, values["how"]))}))
    except OSError as error:
        raise MucdError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, MucdError) as error:
        raise MucdError(f"{path} is not what `mucd tune` writes ({error}): give its tuned.json") from None
