"""The dataset as a learner reads it: one row per transition, and which rows belong to a unit."""

from dataclasses import dataclass, field

import gymnasium
import numpy as np

from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.data.environments.cards import EnvironmentCard
from mucd_ray.errors import MucdError
from mucd_ray.learn.learner import Learner
from mucd_ray.learn.problem import Problem
from mucd_ray.mechanism.gaussian.mechanism import NoisySteps

ARRAYS = ("features", "next_features", "actions", "rewards", "keeps", "starts", "lengths", "ends")


@dataclass(frozen=True, kw_only=True, eq=False)
class Units:
    """N transitions of U units. Never written to.

    Attributes:
        unit: "transition", "trajectory" or "source".
        features: float32 [N, d], what networks take, of algorithms that are told the return of a whole trajectory with that in the last column; a non-finite row makes its unit count as zero. Or uint8 [N, d]: images as they were recorded, for
            plain training alone.
        next_features: float32 [N, d], or [0, d] where the algorithm does not look ahead.
        actions: int64 [N] counted from 0, int64 [N, k] of several components, each counted from 0, or float32 [N, k] as `Problem.scaled_actions` gives them.
        rewards, keeps: float32 [N]: reward over the card's public scale; 0 where the episode terminated, else 1.
        starts, lengths: int64 [U]: unit u has the rows starts[u] ... starts[u] + lengths[u] - 1. A length of 0 is a unit whose vector is
            always zero.
        ends: bool [N], whether a row is the last of its trajectory, where units are sources; [0] where a unit holds no more than one trajectory.

    Raises:
        MucdError: arrays of unequal length or of the wrong type, or a transition that belongs to two units.
    """

    unit: str
    features: np.ndarray
    next_features: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    keeps: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    ends: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))

    def __post_init__(self):
        rows = len(self.features)
        if not rows or not len(self.starts):
            raise MucdError("there are no transitions to learn from: give at least one")
        if self.features.ndim != 2 or self.next_features.dtype != self.features.dtype or any(
            getattr(self, name).dtype not in kinds for name, kinds in (("features", (np.float32, np.uint8)), ("rewards", (np.float32,)), ("keeps", (np.float32,)))
        ):
            raise MucdError(f"features are {self.features.dtype} {self.features.shape}: float32 [N, d] is wanted, as for next features, rewards and keeps")
        if len(self.next_features) not in (0, rows) or any(len(getattr(self, name)) != rows for name in ("actions", "rewards", "keeps")):
            raise MucdError(f"{rows} feature rows, {len(self.actions)} actions, {len(self.rewards)} rewards: give one of each per transition")
        if len(self.starts) != len(self.lengths) or self.starts.min() < 0 or self.lengths.min() < 0 or (self.starts + self.lengths).max() > rows:
            raise MucdError(f"the units' rows leave the {rows} transitions: give starts and lengths inside")
        if self.next_features.shape[1:] != self.features.shape[1:]:
            raise MucdError(f"next features of shape {self.next_features.shape} must be as wide as features of shape {self.features.shape}")
        if self.unit == "transition" and not (np.array_equal(self.starts, np.arange(rows)) and np.all(self.lengths == 1)):
            raise MucdError("units of one transition must be all rows in their order: use Units.transitions")
        if self.ends.dtype != bool or len(self.ends) != (rows if self.unit == "source" else 0) or not self.ends[self._last_rows()].all():
            raise MucdError(f"{len(self.ends)} ends of trajectories for {rows} rows of units of one {self.unit}: sources have one per row, true at their last rows, other units none")
        if self._rows_are_shared():
            raise MucdError("a transition belongs to two units, so that changing it would move two clipped vectors: give trajectories that do not overlap")

    def _rows_are_shared(self) -> bool:
        starts, lengths = self.starts[self.lengths > 0], self.lengths[self.lengths > 0]
        order = np.argsort(starts)
        return bool(np.any(starts[order][1:] < (starts + lengths)[order][:-1]))

    def _last_rows(self) -> np.ndarray:
        """Last row of every source that has any."""
        return (self.starts + self.lengths - 1)[self.lengths > 0] if len(self.ends) else np.zeros(0, np.int64)

    def __len__(self) -> int:
        """U, the number of units."""
        return len(self.starts)

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything but the name of the unit, by name."""
        return {name: getattr(self, name) for name in ARRAYS}

    @classmethod
    def transitions(cls, features, actions, *, next_features=None, rewards=None, keeps=None) -> "Units":
        """Every row its own unit; what is left out is zero rewards, no next features, no end of an episode."""
        rows = len(features)
        return cls(
            unit="transition", features=features, next_features=features[:0] if next_features is None else next_features, actions=actions,
            rewards=np.zeros(rows, np.float32) if rewards is None else rewards, keeps=np.ones(rows, np.float32) if keeps is None else keeps,
            starts=np.arange(rows), lengths=np.ones(rows, np.int64),
        )


def check_unit(learner: Learner, unit: str) -> None:
    """Raise MucdError unless the learner is sound at this unit."""
    if unit == "transition" and learner.local.min_return is not None:
        raise MucdError("a least return needs --unit trajectory: one changed reward moves the return of every transition of a trajectory")


def check(problem: Problem, mechanism: NoisySteps, units: Units) -> None:
    """Raise MucdError unless the mechanism's unit, shapes and action values fit one another."""
    if mechanism.unit != units.unit:
        raise MucdError(f"the mechanism's unit is a {mechanism.unit}, the data has units of one {units.unit}: make both the same")
    width, rows = problem.learner.random_features or problem.inputs, len(units.features)
    if units.features.shape[1] != width or units.features.dtype != np.float32:
        raise MucdError(f"features are {units.features.dtype} {units.features.shape}: the network wants float32 [N, {width}]")
    if problem.algorithm.looks_ahead and len(units.next_features) != rows:
        raise MucdError(f"algorithm {problem.learner.algorithm!r} looks ahead: give the next observation's features of all {rows} transitions")
    actions = units.actions
    if problem.components:
        if actions.shape != (rows, len(problem.components)) or not np.issubdtype(actions.dtype, np.integer) or (actions < 0).any() or (actions >= problem.components).any():
            raise MucdError(f"actions are {actions.dtype} {actions.shape}: those of {len(problem.components)} components are integers [N, {len(problem.components)}], each counted from 0 and below its number of values")
    elif problem.discrete:
        if actions.ndim != 1 or not np.issubdtype(actions.dtype, np.integer):
            raise MucdError(f"actions are {actions.dtype} {actions.shape}: discrete ones are integers [N]")
        if actions.min() < 0 or actions.max() >= problem.actions:
            raise MucdError(f"actions lie in [{actions.min()}, {actions.max()}]: the network has actions 0..{problem.actions - 1}")
    elif actions.shape != (rows, problem.actions) or actions.dtype != np.float32:
        raise MucdError(f"actions are {actions.dtype} {actions.shape}: the network wants float32 [N, {problem.actions}]")


def make_units(dataset: OfflineDataset, card: EnvironmentCard, problem: Problem, unit: str) -> Units:
    """The dataset's units: everything is a public function of one transition, or of one trajectory or source where that is the unit.

    Raises:
        MucdError: a least return is wanted of transitions: one changed reward would then move all transitions of its trajectory. Or sources are wanted, and
            the dataset was read without them.
    """
    check_unit(problem.learner, unit)
    local, starts = problem.learner.local, dataset.trajectory_starts

    def features_of(observations: np.ndarray) -> np.ndarray:
        # A byte for each entry instead of four, where images are taken as they are.
        as_they_are = problem.learner.network == "convolutional" and observations.dtype == np.uint8 and card == card.raw() and card.encoder is None
        return observations.reshape(len(observations), -1) if as_they_are else problem.embed(card.features(observations))

    features = features_of(dataset.observations)
    with np.errstate(over="ignore"):
        rewards = (dataset.rewards / card.reward_scale).astype(np.float32)
        if problem.algorithm.conditioned:
            # Beside recalled steps, which hold rewards as they were.
            scale = 1.0 if problem.algorithm.recalls else card.reward_scale
            returns = np.repeat(dataset.trajectory_returns / scale, np.diff(starts))
            features = np.column_stack([features, returns.astype(np.float32)])
    arrays = {
        "features": features,
        "next_features": features_of(dataset.next_observations) if problem.algorithm.looks_ahead else features[:0],
        "actions": dataset.actions if problem.components else dataset.actions - int(dataset.action_space.start) if isinstance(dataset.action_space, gymnasium.spaces.Discrete) else problem.scaled_actions(dataset.actions),
        "rewards": rewards,
        "keeps": (~dataset.terminations).astype(np.float32),
    }
    if unit == "transition":
        starts, lengths = np.arange(len(dataset)), np.ones(len(dataset), np.int64)
        return Units(unit=unit, **arrays, starts=starts, lengths=lengths)
    lengths = np.diff(starts)
    counting = lengths if local.min_return is None else np.where(dataset.trajectory_returns >= local.min_return, lengths, 0)
    if unit == "trajectory":
        return Units(unit=unit, **arrays, starts=starts[:-1].astype(np.int64), lengths=counting.astype(np.int64))
    rows, starts, ends = by_source(dataset, counting > 0)
    return Units(
        unit=unit,
        **{name: array[rows] if len(array) else array for name, array in arrays.items()},
        starts=starts,
        lengths=np.bincount(_sources(dataset), weights=counting).astype(np.int64),
        ends=ends,
    )


def by_source(dataset: OfflineDataset, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the data source by source, int64 [N]; the first of each source among them, int64 [U]; and which are the last of a trajectory, bool [N].

    Args:
        counts: bool [M], whether a trajectory counts; those of a source that do come first.
    """
    starts, lengths = dataset.trajectory_starts, np.diff(dataset.trajectory_starts)
    order = _order_by_source(dataset, counts)
    ends = np.cumsum(lengths[order])
    rows = np.arange(len(dataset)) + np.repeat(starts[:-1][order] - ends + lengths[order], lengths[order])
    of_sources = np.bincount(_sources(dataset), weights=lengths).astype(np.int64)
    return rows, np.cumsum(of_sources) - of_sources, np.isin(np.arange(len(dataset)), ends - 1)


def _order_by_source(dataset: OfflineDataset, counts: np.ndarray) -> list[int]:
    """The trajectories, source by source; of each first those that count, and these in the order of their content's hash.

    So what a source is does not follow from where its trajectories stand in the file, and nothing of other sources moves it.
    """
    sources, digests = _sources(dataset), dataset.trajectory_digests()
    return sorted(range(dataset.trajectories), key=lambda index: (sources[index], not counts[index], digests[index]))


def _sources(dataset: OfflineDataset) -> np.ndarray:
    """The source of every trajectory, int64 [M]. Raises MucdError where the dataset was read without them."""
    dataset.count("source")
    assert dataset.sources is not None
    return dataset.sources
