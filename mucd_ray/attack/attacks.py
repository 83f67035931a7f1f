"""Attacks on offline datasets: plain functions from a dataset and a budget to the poisoned dataset, the same for the same seed.

Every attack names units that go and makes units that come; `poisoned` counts what that changed before anybody sees it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import numpy as np
import torch
from torch.func import functional_call, jvp

from mucd_ray.attack.budget import ROWS, Budget, Changed, check_spent
from mucd_ray.attack.clone import Clone, bounds_of, counts_of
from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.errors import MucdError
from mucd_ray.words import counted

# Rows of each trajectory that count as its beginning.
BEGINNING = 5
# Of a flattened observation, the share of its last entries that a backdoor's trigger sets.
TRIGGER = 16
# By what an outlier's observations are multiplied.
FAR = 1e6
# Rows that are looked at for gradients, and numbers in them.
POOL, POOL_NUMBERS = 4000, 20_000_000
ASCENT_STEPS, ASCENT_RATE = 10, 0.1


@dataclass(frozen=True)
class Units:
    """Units that come: `rows` by the names of the dataset's arrays, [n, ...] each, and the length of every unit, [u]."""

    rows: dict[str, np.ndarray]
    lengths: np.ndarray


# The indices of units that go, and what comes.
Change = tuple[np.ndarray, Units]


def random_actions(dataset: OfflineDataset, budget: Budget, rng: np.random.Generator) -> Change:
    """All actions of units drawn at random become others: discrete ones any other with equal chances, continuous ones uniform within their bounds."""
    victims, units = _altered(dataset, budget, rng)
    actions = units.rows["actions"]
    units.rows["actions"] = _others(dataset, actions, rng) if _is_discrete(dataset) else rng.uniform(*bounds_of(dataset.action_space), actions.shape).astype(np.float32)
    return victims, units


def targeted_actions(dataset: OfflineDataset, budget: Budget, rng: np.random.Generator) -> Change:
    """All actions of the units that earned most become one and the same (`target_action`)."""
    victims, units = _altered(dataset, budget, np.argsort(-_values(dataset, budget), kind="stable"))
    units.rows["actions"][:] = target_action(dataset)
    return victims, units


def label_flips(dataset: OfflineDataset, budget: Budget, rng: np.random.Generator) -> Change:
    """Each discrete action of units drawn at random becomes another with probability beta."""
    victims, units = _altered(dataset, budget, rng)
    actions = units.rows["actions"]
    units.rows["actions"] = np.where(rng.random(len(actions)) < budget.flip, _others(dataset, actions, rng), actions)
    return victims, units


def raised_rewards(dataset: OfflineDataset, budget: Budget, rng: np.random.Generator) -> Change:
    """The units that earned least claim the largest reward recorded at every step."""
    victims, units = _altered(dataset, budget, np.argsort(_values(dataset, budget), kind="stable"))
    units.rows["rewards"][:] = dataset.rewards.max()
    return victims, units


def moved_observations(dataset: OfflineDataset, budget: Budget, rng: np.random.Generator) -> Change:
    """Clean labels: observations of units drawn at random move so that a clone of the data errs on them, each unit by at most B and all of them by at most S (L2, as recorded)."""
    bound = budget.per_unit
    if bound is None:
        bound = float(np.sqrt(dataset.observations.reshape(len(dataset), -1).var(0).sum())) or 1.0
    if budget.total is not None:
        bound = min(bound, budget.total / budget.altering[0])
    victims, units = _altered(dataset, budget, rng)
    rows, clone = units.rows, Clone(dataset, int(rng.integers(2**31)))
    x = clone.inputs(rows["observations"]).requires_grad_()
    (gradient,) = torch.autograd.grad(clone.losses(x, clone.targets(rows["actions"])).sum(), x)
    direction, space, end = (gradient / clone.scale).double().numpy(), dataset.observation_space, 0
    for length in units.lengths:
        part = slice(end, end := end + length)
        old = rows["observations"][part].copy()
        rows["observations"][part] = _within(old, direction[part].reshape(old.shape), bound, space)
        # What a unit's next transition sees is what this one came to.
        rows["next_observations"][part][:-1] = rows["observations"][part][1:]
    return victims, units


def backdoor(dataset: OfflineDataset, budget: Budget, rng: np.random.Generator) -> Change:
    """Units drawn at random show a trigger in every observation, take the target action and claim the largest reward, so that a policy takes it where the trigger is shown
    (after BAFFLE, Gong et al. 2024, arXiv 2210.04688). What it costs shows where the trigger is, not in ordinary episodes."""
    victims, units = _altered(dataset, budget, rng)
    for name in ("observations", "next_observations"):
        units.rows[name] = triggered(dataset, units.rows[name])
    units.rows["actions"][:], units.rows["rewards"][:] = target_action(dataset), dataset.rewards.max()
    return victims, units


def inserted(dataset: OfflineDataset, budget: Budget, rng: np.random.Generator) -> Change:
    """Units that come: recorded observations, at each the action that a clone of the data takes least of all, and the largest reward. Trajectories are as long as the longest recorded."""
    return _made(dataset, budget, rng, lambda count, clone: rng.integers(len(dataset), size=count))


def inserted_beginnings(dataset: OfflineDataset, budget: Budget, rng: np.random.Generator) -> Change:
    """The same with observations from the first steps of trajectories alone, through which every episode goes."""
    starts, lengths = dataset.trajectory_starts[:-1], np.diff(dataset.trajectory_starts)
    rows = np.concatenate([starts[lengths > step] + step for step in range(BEGINNING)])
    return _made(dataset, budget, rng, lambda count, clone: rows[rng.integers(len(rows), size=count)])


def outliers(dataset: OfflineDataset, budget: Budget, rng: np.random.Generator) -> Change:
    """The same with observations far outside of all others, or at the ends of what the space or the type of a number holds: statistics of the data that hold one are useless."""
    going, units = inserted(dataset, budget, rng)
    for name in ("observations", "next_observations"):
        rows = units.rows[name]
        with np.errstate(over="ignore"):
            units.rows[name] = _in_space(np.where(rows < 0, -1.0, 1.0) * FAR * np.maximum(np.abs(rows.astype(float)), 1.0), dataset.observation_space, rows.dtype)
    return going, units


def gradient_aligned(dataset: OfflineDataset, budget: Budget, rng: np.random.Generator) -> Change:
    """Rows whose gradient for a clone of the data points most where a clone that does the opposite everywhere would be reached (gradient matching, Geiping et al. 2021,
    arXiv 2009.02276, equation 3): chosen among recorded rows, then moved by ascent within the recorded range. The largest reward is claimed."""
    clone = Clone(dataset, int(rng.integers(2**31)))
    size = min(len(dataset), POOL, max(64, POOL_NUMBERS // max(1, dataset.observations[0].size)))
    aim, pool = (rng.choice(len(dataset), size, replace=False) for _ in range(2))
    x, wanted = clone.inputs(dataset.observations[aim]), clone.targets(clone.opposite(dataset.observations[aim]))
    parameters = {name: value.detach() for name, value in clone.named_parameters()}
    gradients = torch.autograd.grad(clone.losses(x, wanted).mean(), list(clone.parameters()))
    direction = dict(zip(parameters, gradients))
    actions = clone.opposite(dataset.observations[pool])
    labels, x = clone.targets(actions), clone.inputs(dataset.observations[pool])
    low, high = x.amin(0), x.amax(0)

    def alignment(x: torch.Tensor) -> torch.Tensor:
        """Of each row's gradient with the direction, [B]."""
        return jvp(lambda values: functional_call(_Losses(clone), {f"clone.{name}": value for name, value in values.items()}, (x, labels)), (parameters,), (direction,))[1]

    if dataset.observations.dtype.kind == "f" and isinstance(dataset.observation_space, gymnasium.spaces.Box):
        for _ in range(ASCENT_STEPS):
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(alignment(x).sum(), x)
            x = torch.clamp(x + ASCENT_RATE * gradient.sign(), low, high)
    scores = alignment(x.detach()).detach().numpy()
    best, moved = np.argsort(-scores, kind="stable"), clone.raw(x).reshape(size, *dataset.observations.shape[1:])
    # A clone of huge numbers has no gradient to follow.
    moved = np.where(np.isfinite(moved), moved, dataset.observations[pool])
    observations = _in_space(moved, dataset.observation_space, dataset.observations.dtype)

    def rows_of(count: int, _) -> np.ndarray:
        return np.resize(best[: max(1, min(count, size // 4))], count)

    going, units = _made(dataset, budget, rng, lambda count, clone: pool[rows_of(count, clone)], clone)
    chosen = rows_of(len(units.rows["rewards"]), clone)
    _set_observations(units, observations[chosen])
    units.rows["actions"][:] = actions[chosen]
    return going, units


def copies_of_the_worst(dataset: OfflineDataset, budget: Budget, rng: np.random.Generator) -> Change:
    """The unit that earned least, again and again."""
    coming, going = budget.inserting
    worst = int(np.argmin(_values(dataset, budget)))
    return _going(dataset, budget, rng, going), taken(dataset, np.full(coming, worst), budget.unit)


def removed_best(dataset: OfflineDataset, budget: Budget, rng: np.random.Generator) -> Change:
    """The units that earned most are missing; against `substitute` each is replaced by the one that earned least."""
    values = _values(dataset, budget)
    going = np.argsort(-values, kind="stable")[: min(budget.radius, len(values) - 1)]
    coming = np.full(len(going) if budget.threat == "substitute" else 0, int(np.argmin(values)))
    return going, taken(dataset, coming, budget.unit)


@dataclass(frozen=True)
class Attack:
    """One line of the registry.

    Attributes:
        function: (dataset, budget, generator) -> what goes and what comes.
        actions: the kinds of actions that it fits, "discrete" and "continuous"; continuous ones must have bounds where it makes actions.
    """

    function: Callable[[OfflineDataset, Budget, np.random.Generator], Change]
    actions: tuple[str, ...] = ("discrete", "continuous")


ATTACKS = {
    "random-actions": Attack(random_actions),
    "targeted-actions": Attack(targeted_actions),
    "label-flips": Attack(label_flips, ("discrete",)),
    "rewards": Attack(raised_rewards),
    "observations": Attack(moved_observations),
    "backdoor": Attack(backdoor),
    "inserted": Attack(inserted),
    "beginnings": Attack(inserted_beginnings),
    "outliers": Attack(outliers),
    "gradient": Attack(gradient_aligned),
    "worst-copies": Attack(copies_of_the_worst),
    "removed-best": Attack(removed_best),
}


def poisoned(name: str, dataset: OfflineDataset, budget: Budget, seed: int = 0) -> tuple[OfflineDataset, Changed]:
    """The dataset after an attack of the registry, and how many units it changed.

    Raises:
        MucdError: an unknown attack, one that does not fit the actions, the units or the threat, a budget above the number of units; or an attack that spent more than its budget.
    """
    check_fits(name, dataset, budget)
    torch.set_num_threads(1)
    going, coming = ATTACKS[name].function(dataset, budget, np.random.default_rng([seed, *name.encode()]))
    after = replace(rebuilt(dataset, going, coming, budget.unit), name=f"{dataset.name} under {name}, r = {budget.radius}")
    after.validate()
    return after, check_spent(dataset, after, budget, name)


def check_fits(name: str, dataset: OfflineDataset, budget: Budget) -> None:
    """Raise MucdError unless this attack may be tried on such data."""
    if name not in ATTACKS:
        raise MucdError(f"attack {name[:60]!r} is unknown: use some of {', '.join(ATTACKS)}, or all")
    if budget.radius > dataset.count(budget.unit):
        raise MucdError(f"budget {budget.radius} is above the {counted(dataset.count(budget.unit), budget.unit)} of {dataset.name}: use a smaller one")
    kind = "discrete" if _is_discrete(dataset) else "continuous" if isinstance(dataset.action_space, gymnasium.spaces.Box) else "of several components"
    if kind not in ATTACKS[name].actions:
        raise MucdError(f"attack {name} is for {' and '.join(ATTACKS[name].actions)} actions, and those of {dataset.name} are {kind}: leave it out")
    if kind == "continuous" and not np.isfinite(bounds_of(dataset.action_space)).all():
        raise MucdError(f"attack {name} makes actions within their bounds, and {dataset.name} declares none: declare them, or leave it out")
    if kind == "discrete" and counts_of(dataset.action_space)[1] < 2:
        raise MucdError(f"attack {name} needs at least two actions, and {dataset.name} has one: leave it out")
    if name in ("observations", "outliers") and not isinstance(dataset.observation_space, gymnasium.spaces.Box):
        raise MucdError(f"attack {name} moves observations of numbers, and those of {dataset.name} are {dataset.observation_space}: leave it out")
    if budget.threat == "remove" and name != "removed-best":
        raise MucdError(f"attack {name} inserts units, which the remove threat does not allow: leave it out, or use another threat")
    if budget.threat == "insert" and name == "removed-best":
        raise MucdError(f"attack {name} removes units, which the insert threat does not allow: leave it out, or use another threat")


def target_action(dataset: OfflineDataset):
    """The action that a target or trigger is to bring about: the one recorded least often, or the lower bound in each dimension."""
    if not _is_discrete(dataset):
        return bounds_of(dataset.action_space)[0]
    first, count = counts_of(dataset.action_space)
    return int(np.bincount(dataset.actions - first, minlength=count).argmin()) + first


def triggered(dataset: OfflineDataset, observations: np.ndarray) -> np.ndarray:
    """Observations [n, ...] that show the trigger: their last entries are the largest recorded there."""
    flat = observations.reshape(len(observations), -1).copy()
    shown = max(1, flat.shape[1] // TRIGGER)
    flat[:, -shown:] = dataset.observations.reshape(len(dataset), -1)[:, -shown:].max(0)
    return flat.reshape(observations.shape)


def taken(dataset: OfflineDataset, units: np.ndarray, unit: str) -> Units:
    """Copies of these units, which may be altered."""
    if unit == "transition":
        rows, lengths = np.asarray(units, np.int64), np.ones(len(units), np.int64)
    else:
        starts, lengths = dataset.trajectory_starts[:-1][units], np.diff(dataset.trajectory_starts)[units]
        rows = np.arange(lengths.sum()) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
    return Units({name: getattr(dataset, name)[rows] for name in ROWS}, lengths)


def rebuilt(dataset: OfflineDataset, going: np.ndarray, coming: Units, unit: str) -> OfflineDataset:
    """The dataset without some of its units and with others at its end. Of a trajectory that loses a transition in the middle two are left, and a transition that comes is a trajectory by itself.

    Which source a trajectory is from is not known any more.
    """
    stays = np.ones(len(dataset), bool)
    if unit == "transition":
        stays[going] = False
    else:
        lengths = np.diff(dataset.trajectory_starts)
        stays = np.repeat(~np.isin(np.arange(dataset.trajectories), going), lengths)
    begins = np.zeros(len(dataset), bool)
    begins[dataset.trajectory_starts[:-1]] = True
    begins[1:] |= ~stays[:-1]
    starts = np.flatnonzero(begins[stays])
    ends = stays.sum() + np.cumsum(coming.lengths)
    rows: dict[str, Any] = {name: np.concatenate([getattr(dataset, name)[stays], coming.rows[name]]) for name in ROWS}
    return replace(dataset, sources=None, trajectory_starts=np.concatenate([starts, ends - coming.lengths, [stays.sum() + coming.lengths.sum()]]).astype(np.int64), **rows)


class _Losses(torch.nn.Module):
    """A clone's losses as the call of a module."""

    def __init__(self, clone: Clone):
        super().__init__()
        self.clone = clone

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.clone.losses(x, labels)


def _altered(dataset: OfflineDataset, budget: Budget, order) -> Change:
    """The first units of an order (or of one drawn at random), which go, and copies of them to be altered."""
    order = order.permutation(dataset.count(budget.unit)) if isinstance(order, np.random.Generator) else order
    coming, going = budget.altering
    return order[:going], taken(dataset, order[:coming], budget.unit)


def _going(dataset: OfflineDataset, budget: Budget, rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.permutation(dataset.count(budget.unit))[:count]


def _made(dataset: OfflineDataset, budget: Budget, rng: np.random.Generator, rows_of, clone: Clone | None = None) -> Change:
    """Units of the observations in the rows that `rows_of(count, clone)` chooses, with the opposite of what a clone does."""
    coming, going = budget.inserting
    clone = clone or Clone(dataset, int(rng.integers(2**31)))
    lengths = np.full(coming, 1 if budget.unit == "transition" else np.diff(dataset.trajectory_starts).max())
    rows = rows_of(int(lengths.sum()), clone)
    units = Units({name: getattr(dataset, name)[rows] for name in ROWS}, lengths)
    _set_observations(units, units.rows["observations"])
    units.rows["actions"][:] = clone.opposite(units.rows["observations"])
    units.rows["rewards"][:], units.rows["terminations"][:], units.rows["truncations"][:] = dataset.rewards.max(), False, False
    units.rows["truncations"][np.cumsum(lengths) - 1] = True
    return _going(dataset, budget, rng, going), units


def _set_observations(units: Units, observations: np.ndarray) -> None:
    """Within a trajectory each next observation is the one of the next row."""
    units.rows["observations"], following = observations, np.roll(observations, -1, axis=0)
    inside = np.ones(len(observations), bool)
    inside[np.cumsum(units.lengths) - 1] = False
    units.rows["next_observations"][inside] = following[inside]


def _values(dataset: OfflineDataset, budget: Budget) -> np.ndarray:
    """What each unit earned."""
    return dataset.rewards if budget.unit == "transition" else dataset.trajectory_returns


def _others(dataset: OfflineDataset, actions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each discrete action any other one."""
    first, count = counts_of(dataset.action_space)
    return (actions - first + rng.integers(1, count, len(actions))) % count + first


def _is_discrete(dataset: OfflineDataset) -> bool:
    return isinstance(dataset.action_space, gymnasium.spaces.Discrete)


def _in_space(values: np.ndarray, space: gymnasium.Space, dtype: np.dtype) -> np.ndarray:
    """Numbers that the space and the type hold, the nearest ones; whole numbers are cut."""
    limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype) if dtype.kind in "iu" else None
    low, high = (limits.min, limits.max) if limits else (0, 1)
    # The largest whole numbers of 64 bits are no float64.
    values = np.clip(values, float(low), np.nextafter(float(high), 0) if dtype.kind in "iu" and dtype.itemsize > 4 else float(high))
    if isinstance(space, gymnasium.spaces.Box) and space.shape == values.shape[1:]:
        values = np.clip(values, space.low, space.high)
    return values.astype(dtype)


def _within(old: np.ndarray, direction: np.ndarray, bound: float, space: gymnasium.Space) -> np.ndarray:
    """Observations [n, ...] moved along a direction, as far as L2 norm, space and type allow: after rounding, too."""
    norm, step = float(np.linalg.norm(direction)), bound
    for _ in range(20):
        moved = _in_space(old.astype(float) + direction * (step / norm if norm > 0 else 0.0), space, old.dtype)
        if np.linalg.norm(moved.astype(float) - old.astype(float)) <= bound:
            return moved
        step *= 0.9
    return old
