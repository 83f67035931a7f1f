"""Where a study searches: for each kind of mechanism the constants, their ranges, the package's defaults, and what a point of the search stands for."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ray import tune

from mucd_ray.certify.planning.bags import fewest_parts, largest_bag, least_noise_in_bags, usual_bag_size
from mucd_ray.certify.planning.plan import wanted_radius
from mucd_ray.learn.learner import Learner
from mucd_ray.learn.trainers.built_in import Fit
from mucd_ray.mechanism.bag import Bag
from mucd_ray.mechanism.bag_then_noise import BagThenNoise
from mucd_ray.mechanism.gaussian.mechanism import Mechanism
from mucd_ray.mechanism.partition import Partition
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.mechanisms import DEFAULT_CLIP_NORM, DEFAULT_LEARNER, DEFAULT_RATES, PLAIN_LEARNER, default_fit
from mucd_ray.service.tuning.tuned import Tuned, TunedBag, TunedNoisyBag

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
# Among numbers of entries.
ALL = "all"
# Bags and parts from a quarter of the units that a certified vote allows at the target up to this many times as many: the bound on the return decides.
SMALLER, LARGER = 4, 4
# Noise inside bags from a part of what certifies a vote on the usual bag up to a few times as much.
LESS_NOISE, MORE_NOISE = 4, 4


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


def _noise_learner(question, point: dict) -> Learner:
    return replace(DEFAULT_LEARNER, algorithm=question.algorithms[0], hidden=HIDDEN[point["hidden"]], learning_rate=point["learning_rate"], average=point["average"])


def _noise_tuned(question, point: dict) -> Tuned:
    return Tuned(
        environment=question.environment, unit=question.unit, learner=_noise_learner(question, point), sample_rate=point["sample_rate"], steps=int(point["steps"]), clip_norm=point["clip_norm"],
        signal_budget=question.signal_budget, how=question.how,
    )


def certified_units(kind: str, *, units: int, fraction: float, unit: str, instances: int, actions: int) -> int:
    """Units in the largest bag, or in the largest part, with which a unanimous vote is certified at the target; of bags with noise inside those of the usual bag.

    Raises:
        MucdError: there is none.
    """
    asked: dict[str, Any] = {"units": units, "radius": wanted_radius(units, fraction), "unit": unit, "instances": instances, "eta": Choices().eta, "actions": actions, "threat": Choices().threat}
    if kind == BagThenNoise.kind:
        return usual_bag_size(**asked)
    return int(largest_bag(**asked).units_in_bag(units)) if kind == Bag.kind else units // fewest_parts(**asked).parts


def _sizes(question) -> tuple[int, int]:
    """(least, most) units in a bag or part: the tuning data and the data to be certified must have that many."""
    most = min(question.how.units, question.units)
    return max(1, min(question.certified_units // SMALLER, most)), max(1, min(question.certified_units * LARGER, most))


def _bag_where(question) -> dict:
    space = {
        "bag_size": _size_of_bag(question),
        "algorithm": tune.choice(list(question.algorithms)),
        "train_steps": tune.lograndint(TRAIN_STEPS[0], TRAIN_STEPS[1] + 1),
        "batch_size": tune.choice(list(BATCHES)),
        "graded": tune.choice([True, False]),
        "top_share": tune.uniform(LEAST_TOP_SHARE, 1.0),
        "learning_rate": tune.loguniform(*RATES),
        "hidden": tune.choice(list(WIDTHS)),
    }
    of_what_is_seen = {"entries": question.entries, "history": question.histories}
    seen = {name: tune.choice(list(values)) for name, values in of_what_is_seen.items() if values}
    if question.trainer is not None:
        return {"bag_size": space["bag_size"]} | seen
    if question.unit == "transition":
        del space["top_share"]
    if question.unit == "transition" or not question.discrete or "bc" not in question.algorithms:
        del space["graded"]
    return space | seen


def _size_of_bag(question):
    least, most = _sizes(question)
    return tune.lograndint(least, most + 1)


def _bag_start(question) -> dict:
    size = min(question.certified_units, _sizes(question)[1])
    seen = {"entries": question.entries[:1], "history": question.histories[:1]}
    seen = {name: value for name, values in seen.items() for value in values}
    if question.trainer is not None:
        return {"bag_size": size} | seen
    algorithm = question.algorithms[0]
    usual = Fit(**default_fit(question.unit, algorithm, question.discrete))
    point = {
        "bag_size": size, "algorithm": algorithm, "train_steps": usual.steps, "batch_size": usual.batch, "graded": usual.graded,
        "top_share": usual.top_share, "learning_rate": min(max(question.card.get("learning_rate", PLAIN_LEARNER.learning_rate), RATES[0]), RATES[1]), "hidden": "64,64",
    }
    return {name: (point | seen)[name] for name in _bag_where(question)}


def _bag_tuned(question, point: dict) -> TunedBag:
    sizes = {"kind": question.mechanism, "bag_size": point["bag_size"], "history": point.get("history", 1)}
    if question.trainer is not None:
        return TunedBag(environment=question.environment, unit=question.unit, learner=None, fit=None, trainer=question.trainer, how=question.how, **sizes)
    # Grades take the place of a share, and are of clones alone: what a point says beside that is not looked at.
    graded = point.get("graded", False) and point["algorithm"] == "bc"
    chosen = {"entries": None if point["entries"] == ALL else int(point["entries"])} if "entries" in point else {}
    learner = replace(PLAIN_LEARNER, algorithm=point["algorithm"], hidden=WIDTHS[point["hidden"]], learning_rate=point["learning_rate"])
    return TunedBag(
        environment=question.environment, unit=question.unit, learner=learner, how=question.how, **sizes,
        fit=Fit(
            steps=point["train_steps"], batch=point["batch_size"], graded=graded, top_share=1.0 if graded else point.get("top_share", 1.0), **question.of_card | chosen,
        ),
    )


def _noisy_bag_where(question) -> dict:
    noise = _noise_where(question)
    return {
        "bag_size": _size_of_bag(question),
        "noise_multiplier": tune.loguniform(question.certified_noise / LESS_NOISE, question.certified_noise * MORE_NOISE),
    } | {name: noise[name] for name in ("steps", "clip_norm", "learning_rate", "average", "hidden")}


def _noisy_bag_start(question) -> dict:
    noise = _noise_start(question)
    return {"bag_size": min(question.certified_units, _sizes(question)[1]), "noise_multiplier": question.certified_noise} | {
        name: noise[name] for name in ("steps", "clip_norm", "learning_rate", "average", "hidden")
    }


def _noisy_bag_tuned(question, point: dict) -> TunedNoisyBag:
    return TunedNoisyBag(
        environment=question.environment, unit=question.unit, learner=_noise_learner(question, point), bag_size=point["bag_size"], noise_multiplier=point["noise_multiplier"],
        steps=int(point["steps"]), clip_norm=point["clip_norm"], how=question.how,
    )


def certified_noise(bag_size: int, *, units: int, fraction: float, unit: str, instances: int, actions: int) -> float:
    """The least noise with which a unanimous vote on bags of this size is certified at the target. Raises MucdError: there is none."""
    asked: dict[str, Any] = {"units": units, "radius": wanted_radius(units, fraction), "unit": unit, "instances": instances, "eta": Choices().eta, "actions": actions, "threat": Choices().threat}
    return least_noise_in_bags(Bag(unit=unit, bag_size=bag_size), **asked).noise_multiplier


ON_BAGS = Space(
    where=_bag_where, start=_bag_start, tuned=_bag_tuned,
    kinds={"bag_size": int, "algorithm": str, "train_steps": int, "batch_size": int, "graded": bool, "top_share": float, "learning_rate": float, "hidden": str, "entries": str, "history": int},
)
SPACES = {
    Mechanism.kind: Space(
        where=_noise_where, start=_noise_start, tuned=_noise_tuned,
        kinds={"sample_rate": float, "steps": int, "clip_norm": float, "learning_rate": float, "average": float, "hidden": str},
    ),
    BagThenNoise.kind: Space(
        where=_noisy_bag_where, start=_noisy_bag_start, tuned=_noisy_bag_tuned,
        kinds={"bag_size": int, "noise_multiplier": float, "steps": int, "clip_norm": float, "learning_rate": float, "average": float, "hidden": str},
    ),
    Bag.kind: ON_BAGS,
    Partition.kind: ON_BAGS,
}
