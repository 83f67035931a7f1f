"""Where a study searches: for each kind of mechanism the constants, their ranges, the package's defaults, and what a point of the search stands for."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from ray import tune

from mucd_ray.certify.planning.bags import fewest_parts, largest_bag
from mucd_ray.certify.planning.plan import wanted_radius
from mucd_ray.learn.trainers.built_in import Fit
from mucd_ray.mechanism.bag import Bag
from mucd_ray.mechanism.gaussian.mechanism import Mechanism
from mucd_ray.mechanism.partition import Partition
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.mechanisms import DEFAULT_CLIP_NORM, DEFAULT_LEARNER, DEFAULT_RATES, PLAIN_LEARNER, default_fit
from mucd_ray.service.tuning.tuned import Tuned, TunedBag

HIDDEN = {"linear": (), "32": (32,), "64,64": (64, 64)}
# Units in a step, as expected: from 64 times fewer up to this many, or all.
MOST_BATCH = 8192
STEPS = 10, 400
# On bags, networks without noise.
WIDTHS = {"32": (32,), "64,64": (64, 64), "128,128": (128, 128)}
BATCHES = (32, 64, 128, 256)
TRAIN_STEPS = 300, 10_000
RATES = 1e-4, 1e-2
LEAST_TOP_SHARE = 0.1
# Bags and parts from a quarter of the units that a certified vote allows at the target up to this many times as many: the bound on the return decides.
SMALLER, LARGER = 4, 4


@dataclass(frozen=True, kw_only=True)
class Space:
    """How one kind of mechanism is searched; every function is given the study's `Question`.

    Attributes:
        where: from a question to ranges, in the terms of Ray Tune, by name.
        start: from a question to its first point, the package's defaults.
        tuned: from a question and a point, rounded to what can be written down, to constants of a run.
        kinds: types of the values by name.
    """

    where: Callable
    start: Callable
    tuned: Callable
    kinds: dict[str, type]


def _noise_rate(question) -> float:
    return DEFAULT_RATES.get(question.algorithms[0], DEFAULT_LEARNER.learning_rate)


def _noise_where(question) -> dict:
    most, rate = min(1.0, MOST_BATCH / question.units), _noise_rate(question)
    return {
        "sample_rate": tune.loguniform(most / 64, most),
        "steps": tune.lograndint(STEPS[0], STEPS[1] + 1),
        "clip_norm": tune.loguniform(DEFAULT_CLIP_NORM / 10, DEFAULT_CLIP_NORM * 100),
        "learning_rate": tune.loguniform(rate / 30, rate * 10),
        "average": tune.uniform(0.0, 1.0),
        "hidden": tune.choice(list(HIDDEN)),
    }


def _noise_start(question) -> dict:
    return {
        "sample_rate": min(1.0, MOST_BATCH / question.units) / 8, "steps": 100, "clip_norm": DEFAULT_CLIP_NORM, "learning_rate": _noise_rate(question),
        "average": DEFAULT_LEARNER.average, "hidden": "linear",
    }


def _noise_tuned(question, point: dict) -> Tuned:
    learner = replace(
        DEFAULT_LEARNER, algorithm=question.algorithms[0], hidden=HIDDEN[point["hidden"]], learning_rate=point["learning_rate"], average=point["average"],
    )
    return Tuned(
        environment=question.environment, unit=question.unit, learner=learner, sample_rate=point["sample_rate"], steps=int(point["steps"]), clip_norm=point["clip_norm"],
        signal_budget=question.signal_budget, how=question.how,
    )


def certified_units(kind: str, *, units: int, fraction: float, unit: str, instances: int, actions: int) -> int:
    """Units in the largest bag, or in the largest part, with which a unanimous vote is certified at the target.

    Raises:
        MucdError: there is none.
    """
    asked = {"units": units, "radius": wanted_radius(units, fraction), "unit": unit, "instances": instances, "eta": Choices().eta, "actions": actions, "threat": Choices().threat}
    return largest_bag(**asked).bag_size if kind == Bag.kind else units // fewest_parts(**asked).parts


def _sizes(question) -> tuple[int, int]:
    """(least, most) units in a bag or part: the tuning data and the data to be certified must have that many."""
    most = min(question.how.units, question.units)
    return max(1, min(question.certified_units // SMALLER, most)), max(1, min(question.certified_units * LARGER, most))


def _bag_where(question) -> dict:
    least, most = _sizes(question)
    space = {
        "bag_size": tune.lograndint(least, most + 1),
        "algorithm": tune.choice(list(question.algorithms)),
        "train_steps": tune.lograndint(TRAIN_STEPS[0], TRAIN_STEPS[1] + 1),
        "batch_size": tune.choice(list(BATCHES)),
        "top_share": tune.uniform(LEAST_TOP_SHARE, 1.0),
        "learning_rate": tune.loguniform(*RATES),
        "hidden": tune.choice(list(WIDTHS)),
    }
    if question.unit == "transition":
        del space["top_share"]
    return space


def _bag_start(question) -> dict:
    algorithm, most = question.algorithms[0], _sizes(question)[1]
    point = {
        "bag_size": min(question.certified_units, most), "algorithm": algorithm, "train_steps": Fit().steps, "batch_size": Fit().batch,
        "top_share": default_fit(question.unit, algorithm, discrete=False).get("top_share", 1.0), "learning_rate": PLAIN_LEARNER.learning_rate, "hidden": "64,64",
    }
    return {name: point[name] for name in _bag_where(question)}


def _bag_tuned(question, point: dict) -> TunedBag:
    learner = replace(PLAIN_LEARNER, algorithm=point["algorithm"], hidden=WIDTHS[point["hidden"]], learning_rate=point["learning_rate"])
    return TunedBag(
        environment=question.environment, unit=question.unit, learner=learner, kind=question.mechanism, bag_size=point["bag_size"],
        fit=Fit(steps=point["train_steps"], batch=point["batch_size"], top_share=point.get("top_share", 1.0)), how=question.how,
    )


ON_BAGS = Space(
    where=_bag_where, start=_bag_start, tuned=_bag_tuned,
    kinds={"bag_size": int, "algorithm": str, "train_steps": int, "batch_size": int, "top_share": float, "learning_rate": float, "hidden": str},
)
SPACES = {
    Mechanism.kind: Space(
        where=_noise_where, start=_noise_start, tuned=_noise_tuned,
        kinds={"sample_rate": float, "steps": int, "clip_norm": float, "learning_rate": float, "average": float, "hidden": str},
    ),
    Bag.kind: ON_BAGS,
    Partition.kind: ON_BAGS,
}
