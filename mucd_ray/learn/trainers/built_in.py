"""The built-in trainer: any algorithm of the registry on one bag, with statistics of that bag, without clipping and without noise.

What is done here to a bag is covered by the guarantee of bagging whatever it is: it is a function of the bag and of fresh randomness. So
observations are taken as they were recorded and normalised by the bag's own mean and deviation, and trajectories that earned little may
be left out, or trusted less. The released policy takes raw observations: the normalisation is folded into its first layer.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mucd_ray.errors import MucdError
from mucd_ray.learn import streams as purposes
from mucd_ray.learn.algorithm import Algorithm
from mucd_ray.learn.algorithms import bc
from mucd_ray.learn.convolutional import channel_moments, image_shape, of_every_entry, on_raw_images
from mucd_ray.learn.decision_transformer import alike_in_steps, on_raw_past
from mucd_ray.learn.engines.plain import module_shapes, module_views, train_plain
from mucd_ray.learn.engines.precision import require_float32_products
from mucd_ray.learn.engines.stacked import UnitsOnDevice, train_stacked
from mucd_ray.learn.ensemble import GPU_BLOCK, acting_parameters, fused_trains, in_blocks
from mucd_ray.learn.learner import MOST_STEPS
from mucd_ray.learn.networks import stacked_layers
from mucd_ray.learn.nonprivate import Unprotected
from mucd_ray.learn.problem import Problem
from mucd_ray.learn.streams import Streams
from mucd_ray.learn.transformer import alike, on_raw_steps
from mucd_ray.learn.units import Units
from mucd_ray.mechanism.components import blocks
from mucd_ray.mechanism.gaussian.mechanism import NoisySteps

# A feature whose deviation in a bag is below this share of its size is constant there, and ignored by the policy.
CONSTANT = 1e-6
# Rows of a bag at which it is found out which entries of an observation move a policy.
PROBED = 1000
# Modules that are stacked at a time on a GPU: their activations are large.
MODULE_BLOCK = 64


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a policy is fitted to a bag; optimiser, learning rate, hidden layers and averaging are the `Learner`'s.

    Attributes:
        steps: of the optimiser, each on about `batch` transitions of the bag.
        batch: expected size of a minibatch; a bag with fewer transitions is taken whole.
        top_share: share in (0, 1] of the bag's trajectories that are kept, those with the largest returns, at least one. Only where units
            are trajectories or sources.
        graded: whether clones of discrete actions trust the bag's trajectories by the rank of their returns, all of them but the worst: see `noise_rates`. Not where
            units are transitions.
        entries: how many entries of an observation a policy looks at, chosen bag by bag (`_chosen_entries`); None: all of them.
        mirrored: whether the mirror image of every trajectory is learned from, too: needs `Problem.mirror`.
        normalise: whether observations are centred and scaled by the bag's own statistics.

    Raises:
        MucdError: a field is outside its range.
    """

    steps: int = 3000
    batch: int = 128
    top_share: float = 1.0
    graded: bool = False
    entries: int | None = None
    mirrored: bool = False
    normalise: bool = True

    def __post_init__(self):
        for name in ("steps", "batch", "entries"):
            value = getattr(self, name)
            if (type(value) is not int or not 1 <= value <= MOST_STEPS) and (name, value) != ("entries", None):
                raise MucdError(f"{name} {str(value)[:60]} of training on a bag must be a whole number, at least 1 and at most {MOST_STEPS:,}")
        for name in ("graded", "mirrored", "normalise"):
            if type(getattr(self, name)) is not bool:
                raise MucdError(f"{name} {getattr(self, name)!r} must be true or false")
        if not 0 < self.top_share <= 1:
            raise MucdError(f"top share {self.top_share} is outside (0, 1]: 0.5 keeps the better half of each bag")
        if self.graded and self.top_share < 1:
            raise MucdError(f"top share {self.top_share} and graded trajectories exclude each other: leave one of them out")


def fit_policies(
    *, problem: Problem, fit: Fit, units: Units, bags: Iterable[np.ndarray], instances: Iterable[int], streams: Streams, device: str = "cpu",
    progress: Callable[[], None] | None = None,
) -> dict[str, Tensor]:
    """One policy per bag: parameters of the acting networks on raw observations, stacked [P, ...] as from `train_block`.

    Args:
        units: all of the data; only the rows of a bag's own units are read for it.
        bags: indices of units, one array for each instance.
        instances: their numbers, the keys of all randomness in `streams`.
        device: a torch device; on others than CPUs all policies are trained at once, and networks that are not dense everywhere by `fit_stacked`.
        progress: called after every instance, or every step of many.

    A bag without a transition gives a policy whose parameters are NaN, and so does training that overflows: it takes the default action everywhere
    (`evaluate/policies.py`). Nothing is drawn again.

    Of algorithms that are told the return of a whole trajectory, the last feature of `units`, the policy is told a constant of its bag: networks are linear in it at their first
    layer, so it becomes part of the parameters.
    """
    if torch.device(device).type != "cpu" or problem.module_factory is not None:
        return fit_stacked(problem=problem, fit=fit, units=units, bags=bags, instances=instances, streams=streams, device=device, progress=progress)
    torch.set_num_threads(1)
    units, trained = _as_shown(units, problem, fit), []
    for bag, instance in zip(bags, instances, strict=True):
        trained.append(_fit(problem, fit, units, bag, instance, streams))
        if progress is not None:
            progress()
    return {name: torch.stack([policy[name] for policy in trained]) for name in trained[0]}


def fit_stacked(
    *, problem: Problem, fit: Fit, units: Units, bags: Iterable[np.ndarray], instances: Iterable[int], streams: Streams, device: str,
    progress: Callable[[], None] | None = None, captured: bool | None = None,
) -> dict[str, Tensor]:
    """The same as a stack of models on any device (`engines/plain.py`), where their draws are the same and results agree to rounding.

    Raises:
        MucdError: there is no memory for one model, or products on the device are coarser than float32.
    """
    place, instances = torch.device(device), list(instances)
    require_float32_products(place)
    if place.type == "cpu":
        torch.set_num_threads(1)
    is_module = problem.module_factory is not None
    bags, units = list(bags), _as_shown(units, problem, fit)
    problem, lessons = _as_asked(problem, fit), [_lesson(units, bag, fit) for bag in bags]
    rows = [rows for rows, _ in lessons]
    moments = [_view(problem, fit, units, of_bag, rewards, instance, streams) for (of_bag, rewards), instance in zip(lessons, instances)]
    of_entries = [(of_every_entry(center, problem.shape), of_every_entry(scale, problem.shape)) for center, scale in moments] if problem.learner.network == "convolutional" else moments
    data, flat = UnitsOnDevice(units, place, padded=True), torch.full((len(rows), problem.parameter_count), torch.nan)

    def train(part: list[int]) -> Tensor:
        return train_plain(
            problem, data, [rows[p] for p in part], [of_entries[p] for p in part], steps=fit.steps, batch=fit.batch, instances=[instances[p] for p in part], streams=streams,
            rewards=[lessons[p][1] for p in part] if fit.graded else None, progress=progress, captured=captured,
        )

    empty = [p for p, of_bag in enumerate(rows) if not len(of_bag)]
    if len(empty) < len(rows):
        # Empty ones learn from any row, and then are none: how many models are multiplied at once, which decides a device's rounding, must not tell how many bags are empty.
        for p in empty:
            rows[p], lessons[p] = np.zeros(1, np.int64), (rows[p], np.zeros(1, np.float32))
        block = (1 if place.type == "cpu" else MODULE_BLOCK) if is_module else GPU_BLOCK
        flat = in_blocks(train, list(range(len(rows))), block, place)[:, : problem.parameter_count]
        flat[empty] = torch.nan
    trained = {name: part.contiguous() for name, part in module_views(module_shapes(problem), flat).items()} if is_module else acting_parameters(problem, flat)
    return _released(problem, trained, moments, [_target(problem, units, bag) for bag in bags])


def _fit(problem: Problem, fit: Fit, units: Units, bag: np.ndarray, instance: int, streams: Streams) -> dict[str, Tensor]:
    problem, (rows, rewards) = _as_asked(problem, fit), _lesson(units, bag, fit)
    center, scale = _view(problem, fit, units, rows, rewards, instance, streams)
    if len(rows):
        trained = _trained(problem, fit, fit.steps, _normalised(units, rows, rewards, center, scale), instance, streams)
    else:
        trained = acting_parameters(problem, torch.full((1, problem.parameter_count), torch.nan))
    return {name: stacked[0] for name, stacked in _released(problem, trained, [(center, scale)], [_target(problem, units, bag)]).items()}


def rows_of(units: Units, bag: np.ndarray, top_share: float = 1.0) -> np.ndarray:
    """Rows of the data in the bag, unit after unit, int64 [B]; of all its trajectories only the best share, by the sum of their rewards."""
    starts, lengths = _trajectories(units, bag)
    if top_share < 1 and units.unit != "transition" and len(starts):
        order = np.argsort(_returns(units, starts, lengths), kind="stable")[::-1]
        best = np.sort(order[: max(1, math.ceil(top_share * len(starts)))])
        starts, lengths = starts[best], lengths[best]
    return _rows(starts, lengths)


def noise_rates(returns: np.ndarray) -> np.ndarray:
    """For each trajectory the assumed probability that one of its actions was drawn at random: the squared share of all others [n] that earned more.

    The best one is taken at its word (0), the worst one says nothing (1) unless all are equal. Ranks, since returns have outliers; the square, since in what is
    recorded, too, good demonstrations are more alike than bad ones.
    """
    better = len(returns) - np.searchsorted(np.sort(returns), returns, side="right")
    return (better / max(len(returns) - 1, 1)) ** 2


@dataclass(frozen=True, kw_only=True)
class _OfMixedQuality(Problem):
    """The same problem, where a transition's noise rate stands in the place of its reward."""

    @functools.cached_property
    def algorithm(self) -> Algorithm:
        return bc.of_components(self.components, mixture=True) if self.components else bc.DISCRETE_MIXTURE


@dataclass(frozen=True, kw_only=True)
class _Told(Problem):
    """The same problem, where networks take the return of a whole trajectory, the last feature."""

    told: ClassVar[int] = 1


def _as_asked(problem: Problem, fit: Fit) -> Problem:
    if problem.algorithm.conditioned and not fit.graded:
        return _Told(**{field.name: getattr(problem, field.name) for field in fields(Problem)})
    if not fit.graded:
        return problem
    if not problem.discrete or problem.learner.algorithm != "bc":
        raise MucdError(f"graded trajectories are for clones of discrete actions, not for {problem.learner.algorithm}: use the top share")
    return _OfMixedQuality(**{field.name: getattr(problem, field.name) for field in fields(Problem)})


def _as_shown(units: Units, problem: Problem, fit: Fit) -> Units:
    """The same units; their mirror images, if they are asked for, are the second half of the rows and belong to no unit."""
    if not fit.mirrored:
        return units
    if problem.mirror is None:
        raise MucdError("mirrored trajectories need a mirror: give mirror_observation and mirror_actions in the environment's card")
    width = len(problem.mirror.observation)
    seen = {name: getattr(units, name) for name in ("features", "next_features")}
    # Beside an observation's features a trajectory's return may stand, which its image has, too.
    images = {name: np.concatenate([problem.mirror.observations(flat[:, :width]), flat[:, width:]], axis=1) for name, flat in seen.items()}
    images |= {"actions": problem.mirror.images_of_actions(units.actions), "rewards": units.rewards, "keeps": units.keeps, "ends": units.ends}
    both: dict[str, Any] = {name: np.concatenate([getattr(units, name), of_image]) for name, of_image in images.items()}
    if units.unit == "transition":
        both |= {"starts": np.arange(2 * len(units)), "lengths": np.ones(2 * len(units), np.int64)}
    return replace(units, **both)


def _lesson(units: Units, bag: np.ndarray, fit: Fit) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the data to learn from [B], and their rewards float32 [B], or what stands in their place."""
    rows, rewards = _of_bag(units, bag, fit)
    return (np.concatenate([rows, rows + len(units.features) // 2]), np.tile(rewards, 2)) if fit.mirrored else (rows, rewards)


def _of_bag(units: Units, bag: np.ndarray, fit: Fit) -> tuple[np.ndarray, np.ndarray]:
    if not fit.graded:
        rows = rows_of(units, bag, fit.top_share)
        return rows, units.rewards[rows]
    if units.unit == "transition":
        return units.starts[bag], np.zeros(len(bag), np.float32)
    starts, lengths = _trajectories(units, bag)
    rates = noise_rates(_returns(units, starts, lengths))
    used = rates < 1.0
    return _rows(starts[used], lengths[used]), np.repeat(rates[used], lengths[used]).astype(np.float32)


def _rows(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    parts = [np.arange(start, start + length) for start, length in zip(starts, lengths)]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _returns(units: Units, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Of trajectories, float64 [n]; what is no number counts as the worst."""
    with np.errstate(over="ignore", invalid="ignore"):
        returns = np.array([units.rewards[start : start + length].sum(dtype=np.float64) for start, length in zip(starts, lengths)])
    return np.where(np.isnan(returns), -np.inf, returns)


def _trajectories(units: Units, bag: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First rows and lengths of the trajectories in the bag, unit after unit; those of a source are found by their ends."""
    starts, lengths = units.starts[bag], units.lengths[bag]
    if not len(units.ends) or not len(bag):
        return starts, lengths
    ends = [start + 1 + np.flatnonzero(units.ends[start : start + length]) for start, length in zip(starts, lengths)]
    starts = np.concatenate([np.append(start, of_source[:-1])[: len(of_source)] for start, of_source in zip(starts, ends)])
    return starts, np.concatenate(ends) - starts


def _moments(problem: Problem, features: np.ndarray, rows: np.ndarray, normalise: bool) -> tuple[np.ndarray, np.ndarray]:
    """Center and scale, float64 [d] or of images [channels], of a bag's rows: (x - center) / scale is what is learned from."""
    is_image = problem.learner.network == "convolutional"
    width = image_shape(problem.shape)[0] if is_image else features.shape[1]
    center, scale = np.zeros(width), np.ones(width)
    if normalise and len(rows):
        with np.errstate(over="ignore", invalid="ignore"):
            if is_image:
                center, scale = channel_moments(lambda part: features[rows[part]], len(rows), problem.shape)
            else:
                of_bag = features[rows]
                center, scale = of_bag.mean(0, dtype=np.float64), of_bag.std(0, dtype=np.float64)
            if problem.algorithm.recalls:
                center, scale = alike_in_steps(center, scale, problem.history)
            elif problem.learner.network == "transformer":
                center, scale = alike(center, scale, problem.history, problem.told)
            scale = np.where(scale <= CONSTANT * np.abs(center), np.inf, scale)
    return center, scale


def _view(problem: Problem, fit: Fit, units: Units, rows: np.ndarray, rewards: np.ndarray, instance: int, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
    """Center and scale as from `_moments`; entries that are not chosen have an infinite scale, as constant ones have."""
    center, scale = _moments(problem, units.features, rows, fit.normalise)
    if fit.entries is None or not len(rows):
        return center, scale
    if problem.module_factory is not None:
        raise MucdError(f"{fit.entries} entries cannot be chosen for a {problem.learner.network} network, which looks at whole observations: leave them out")
    return center, np.where(_chosen_entries(problem, fit, _normalised(units, rows, rewards, center, scale), instance, streams), scale, np.inf)


def _chosen_entries(problem: Problem, fit: Fit, units: Units, instance: int, streams: Streams) -> np.ndarray:
    """Which of the bag's normalised features are learned from, bool [d]: what says nothing is soon mistaken for a cause where demonstrations are few.

    Recursive feature elimination (Guyon et al. 2002): a policy is trained for a fourth of the steps, and the half of its features that moves it least is left out,
    until `entries` are left. How far one moves it is the mean squared change of what it prefers when the feature's values are permuted (Breiman 2001).
    """
    assert fit.entries is not None
    chosen, of_all = np.any(units.features, axis=0), units
    for elimination in range(len(chosen)):
        count = int(chosen.sum())
        if count <= fit.entries:
            break
        features, next_features = (np.where(chosen, values, np.float32(0)) for values in (of_all.features, of_all.next_features))
        units = replace(of_all, features=features, next_features=next_features)
        trained = _trained(problem, fit, math.ceil(fit.steps / 4), units, instance, streams)
        generator = streams.generator(instance, elimination, purposes.SUBSET)
        x = units.features[generator.integers(len(units), size=min(PROBED, len(units)))]
        moves = _moves(problem, trained, x, x[generator.permutation(len(x))])
        best = np.argsort(np.where(chosen & ~np.isnan(moves), -moves, np.inf), kind="stable")
        chosen = np.isin(np.arange(len(chosen)), best[: max(fit.entries, math.ceil(count / 2))])
    return chosen


def _moves(problem: Problem, policy: dict[str, Tensor], x: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Mean squared change, float64 [d], of a policy's outputs at x [n, d] when a feature has its value of other [n, d] instead; of scores, up to what all actions, or all values of a component, share."""
    (first, bias), *later = [(weight[0].numpy(), bias[0].numpy()) for weight, bias in stacked_layers(problem.network, policy)]

    def preferred(total: np.ndarray) -> np.ndarray:
        for weight, bias in later:
            total = np.maximum(total, 0.0) @ weight + bias
        outputs = problem.preferences(total)
        parts = blocks(outputs, problem.components) if problem.components else [outputs]
        return np.concatenate([part - part.mean(-1, keepdims=True) for part in parts], -1) if problem.discrete else outputs

    with np.errstate(over="ignore", invalid="ignore"):
        total = x @ first + bias
        outputs = preferred(total)
        return np.array([np.square(preferred(total + (new - old)[:, None] * weight) - outputs).mean(dtype=np.float64) for old, new, weight in zip(x.T, other.T, first)])


def _normalised(units: Units, rows: np.ndarray, rewards: np.ndarray, center: np.ndarray, scale: np.ndarray) -> Units:
    """The bag's rows as units of their own, with normalised features."""
    with np.errstate(over="ignore", invalid="ignore"):
        x, next_x = (((part[rows] if len(part) else part) - center) / scale for part in (units.features, units.next_features))
        x, next_x = x.astype(np.float32), next_x.astype(np.float32)
    return Units.transitions(x, units.actions[rows], next_features=next_x, rewards=rewards, keeps=units.keeps[rows])


def _trained(problem: Problem, fit: Fit, steps: int, units: Units, instance: int, streams: Streams) -> dict[str, Tensor]:
    """A policy [1, ...] of normalised features after so many steps."""
    size = min(fit.batch, len(units))
    mechanism = Unprotected(sample_rate=size / len(units), steps=steps, normaliser=size)
    return acting_parameters(problem, torch.from_numpy(_train(problem, mechanism, units, instance, streams))[None])


def _train(problem: Problem, mechanism: NoisySteps, units: Units, instance: int, streams: Streams) -> np.ndarray:
    """Flat parameters of all networks, float32 [parameter_count]."""
    if fused_trains(problem):
        # Numba takes a second to import, which processes that do not train should not pay.
        from mucd_ray.learn.engines.fused.engine import FusedTrainer

        return FusedTrainer(problem, mechanism, units, streams).train(instance)
    return train_stacked(problem, mechanism, UnitsOnDevice(units, torch.device("cpu")), [instance], streams)[0].numpy()


def _target(problem: Problem, units: Units, bag: np.ndarray) -> float:
    """The return that a policy is asked for, one that a trajectory of its bag has earned; NaN where none is there, and where networks are told none."""
    starts, lengths = _trajectories(units, bag)
    returns = units.features[starts[lengths > 0], -1]
    return float(np.quantile(returns, problem.constants["target"], method="higher")) if problem.told and len(returns) else math.nan


def _released(problem: Problem, trained: dict[str, Tensor], moments: Sequence[tuple[np.ndarray, np.ndarray]], targets: Sequence[float]) -> dict[str, Tensor]:
    """The same policies [P, ...] of raw observations, which have learned from normalised ones by these moments; what they are told is their target."""
    centers, scales = (np.stack(values) for values in zip(*moments))
    if problem.told:
        with np.errstate(invalid="ignore"):
            centers[:, -1] -= targets  # what they are told is then 0
    if problem.module_factory is None:
        policies = _on_raw_observations(trained, centers, scales)
        return policies | {"0.weight": policies["0.weight"][:, : policies["0.weight"].shape[1] - problem.told].contiguous()}
    if problem.algorithm.recalls:
        return on_raw_past(trained, centers, scales)
    return (on_raw_images if problem.learner.network == "convolutional" else on_raw_steps)(trained, centers, scales)


def _on_raw_observations(policies: dict[str, Tensor], center: np.ndarray, scale: np.ndarray) -> dict[str, Tensor]:
    """The same policies [P, ...] of raw observations: W ((x - c) / s) + b = (W / s) x + (b - (W / s) c) with c, s float64 [P, d], computed in float64."""
    weight = policies["0.weight"].double() / torch.from_numpy(scale)[:, :, None]
    bias = policies["0.bias"].double() - (torch.from_numpy(center)[:, None] @ weight)[:, 0]
    return policies | {"0.weight": weight.float(), "0.bias": bias.float()}
