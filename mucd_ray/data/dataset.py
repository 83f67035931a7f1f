"""The offline dataset: flat arrays with trajectory boundaries."""

import hashlib
from dataclasses import dataclass, replace

import gymnasium as gym
import numpy as np

from mucd_ray.data.spaces import Actions, Observations
from mucd_ray.errors import MucdError
from mucd_ray.plugins import Plugin

# The order in which `fingerprint` reads the arrays.
_ARRAYS = ("observations", "next_observations", "actions", "rewards", "terminations", "truncations", "trajectory_starts")


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledStates:
    """States to be classified and their true labels, which nobody can have poisoned: observations [S, *observation_shape], labels int64 [S], as actions are."""

    observations: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class OfflineDataset:
    """N transitions (s, a, r, s', terminated, truncated) in M trajectories, as recorded: no scaling, no filtering.

    Attributes:
        name: Minari id or the user's label.
        env_id, env_kwargs: Gymnasium id of the environment that was recorded and the arguments of its `make`, if known.
        env_max_episode_steps, env_wrappers: its time limit, if any, and the names of the wrappers around it, if known.
        observations, next_observations: [N, *observation_shape], dtype as recorded; those of a Dict or Tuple space as `data/spaces.py` joins their parts.
        actions: int64 [N] for a Discrete space (values as the space declares them, `start` included), int64 [N, k] for a MultiDiscrete one, whose k components are each voted on by themselves, float32 [N, k]
            for a Box.
        rewards: float64 [N].
        terminations, truncations: bool [N].
        trajectory_starts: int64 [M+1], offsets of the trajectories: the first is 0, the last is N.
        action_space, observation_space: the spaces of these arrays: those that the dataset declares, where they are of one array, and of one whole number or one row of numbers.
        observation_parts: `Observations.words` of the space that it declares, where that is a Dict or Tuple; else nothing.
        declared_actions: the space that it declares, where that is another: MultiDiscrete, MultiBinary or a Box of other than one dimension; else None.
        sources: int64 [M], which source each trajectory is from: numbers from 0 in the order in which they first appear. Trajectories of a source need not be
            neighbours. None where no source key was asked for.
        action_mask: where the mask of its actions begins in an observation (`Observations.mask`), if they have one.
        actions_declared: false where the action space follows from the rows, as of an imported file: then no constant may be taken from it, an environment's counts.
        imported_by: the plug-in that read it from another format, as it says itself; else None.
        test: of labelled images those whose classification is certified; else None. No part of what can be poisoned, hence of `fingerprint`.
    """

    name: str
    env_id: str | None
    observations: np.ndarray
    next_observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray
    trajectory_starts: np.ndarray
    action_space: gym.Space
    observation_space: gym.Space
    env_kwargs: dict | None = None
    env_max_episode_steps: int | None = None
    env_wrappers: tuple[str, ...] = ()
    sources: np.ndarray | None = None
    observation_parts: tuple[str, ...] = ()
    declared_actions: gym.Space | None = None
    action_mask: int | None = None
    actions_declared: bool = True
    imported_by: Plugin | None = None
    test: LabelledStates | None = None

    @classmethod
    def from_arrays(
        cls, *, observations, next_observations, actions, rewards, terminations, truncations, action_space, observation_space,
        trajectory_starts=None, name="arrays", env_id=None, env_kwargs=None, env_max_episode_steps=None, env_wrappers=(),
        source_keys=None, actions_declared=True, observation_parts=(), action_mask=None, test=None,
    ) -> "OfflineDataset":
        """Build and validate a dataset from flat arrays (shapes as in the class; rewards, terminations, truncations and discrete actions may be columns [N, 1]).

        `source_keys` are M texts or whole numbers, which say from whom each trajectory is: those with equal ones are one source, and one with None is a source by itself.
        Observations of a Dict or Tuple space are dictionaries or tuples of arrays; `observation_parts` are for those that are joined already. Actions are as in the space, whatever it is.
        Without `trajectory_starts` a trajectory ends where `terminations` or `truncations` is set, and at the last transition.

        Raises:
            MucdError: a space that is not supported (`data/spaces.py`), an array has another shape or does not hold numbers, or `validate` finds a fault.
        """
        terminations, truncations = _flags(terminations, "terminations"), _flags(truncations, "truncations")
        if trajectory_starts is None:
            ends = np.flatnonzero(terminations | truncations) + 1
            trajectory_starts = np.unique(np.concatenate([[0], ends, [len(terminations)]]))
        if isinstance(observation_space, gym.spaces.Dict | gym.spaces.Tuple):
            joined = Observations.of(observation_space)
            observations, next_observations = (joined.rows(joined.columns(values)) for values in (observations, next_observations))
            observation_space, observation_parts = joined.space, joined.words
            action_mask = joined.mask(Actions(declared=action_space).count)
        declared = Actions(declared=action_space)
        dataset = cls(
            name=name,
            env_id=env_id,
            env_kwargs=env_kwargs,
            env_max_episode_steps=env_max_episode_steps,
            env_wrappers=tuple(env_wrappers),
            observations=_rows(observations, "observations"),
            next_observations=_rows(next_observations, "next observations"),
            actions=_as_declared(declared.rows(_rows(actions, "actions")), declared.space),
            rewards=as_column(rewards, "rewards").astype(np.float64),
            terminations=terminations,
            truncations=truncations,
            trajectory_starts=np.asarray(trajectory_starts, np.int64),
            action_space=declared.space,
            observation_space=observation_space,
            sources=None if source_keys is None else _numbered(source_keys),
            observation_parts=tuple(observation_parts),
            declared_actions=None if declared.is_plain else action_space,
            action_mask=action_mask,
            actions_declared=actions_declared,
            test=test,
        )
        dataset.validate()
        return dataset

    def __len__(self) -> int:
        """N, the number of transitions."""
        return len(self.rewards)

    @property
    def trajectories(self) -> int:
        """M, the number of trajectories."""
        return len(self.trajectory_starts) - 1

    @property
    def trajectory_returns(self) -> np.ndarray:
        """Undiscounted return of every trajectory, float64 [M]."""
        with np.errstate(over="ignore", invalid="ignore"):
            return np.add.reduceat(self.rewards, self.trajectory_starts[:-1])

    def count(self, unit: str) -> int:
        """Number of its transitions, trajectories or sources. Raises MucdError where it has no sources."""
        if unit == "source":
            if self.sources is None:
                raise MucdError(f"dataset {self.name} was read without a source key, and has no sources: say which key tells the source of a trajectory")
            return int(self.sources.max()) + 1
        return self.trajectories if unit == "trajectory" else len(self)

    def one_hot(self) -> "OfflineDataset":
        """The same transitions, where observations in a Discrete or MultiDiscrete space are one-hot."""
        joined = Observations.of(self.observation_space)
        return replace(
            self, observations=joined.rows([self.observations]), next_observations=joined.rows([self.next_observations]), observation_space=joined.space, observation_parts=joined.words
        )

    def with_history(self, history: int) -> "OfflineDataset":
        """The same transitions, where every (next) observation stands with those before it in its own trajectory: [N, history, *observation_shape], oldest first.

        At a trajectory's beginning its first observation stands for those that are missing, as in Gymnasium's FrameStackObservation. A map of each trajectory by itself.
        """
        if history == 1:
            return self
        first = np.repeat(self.trajectory_starts[:-1], np.diff(self.trajectory_starts))
        rows = np.maximum(np.arange(len(self))[:, None] + np.arange(1 - history, 1), first[:, None])
        return replace(
            self,
            observations=self.observations[rows],
            next_observations=np.concatenate([self.observations[rows[:, 1:]], self.next_observations[:, None]], axis=1),
        )

    def fingerprint(self) -> str:
        """SHA-256 (hex) over the dtype, shape and bytes of every array: equal for equal data, whatever the file it came from.

        Of sources it covers which trajectories are from the same one, not what they are called; a dataset that was read without them has the same as ever.
        """
        digest = hashlib.sha256()
        for name in (*_ARRAYS, *([] if self.sources is None else ["sources"])):
            _update(digest, name, getattr(self, name))
        return digest.hexdigest()

    def trajectory_digests(self) -> list[bytes]:
        """SHA-256 of every trajectory's content, M of them: wherever it stands in the file and whoever it is from."""
        digests = []
        for start, end in zip(self.trajectory_starts[:-1].tolist(), self.trajectory_starts[1:].tolist()):
            digest = hashlib.sha256()
            for name in _ARRAYS[:-1]:
                _update(digest, name, getattr(self, name)[start:end])
            digests.append(digest.digest())
        return digests

    def validate(self) -> None:
        """Check everything that training relies on.

        Raises:
            MucdError: no transitions; arrays of unequal length or of a non-numeric dtype; boundaries that do not cut 0..N into
                non-empty trajectories, or an end of episode inside one; NaN or inf in observations or rewards; actions outside
                the action space.
        """
        lengths = {name: len(getattr(self, name)) for name in _ARRAYS[:-1]}
        if not len(self):
            raise MucdError(f"dataset {self.name} is empty: record or choose one with at least one transition")
        if len(set(lengths.values())) > 1:
            raise MucdError(f"dataset {self.name} has arrays of different lengths {lengths}: give one row per transition")
        if self.observations.shape != self.next_observations.shape:
            shapes = f"{self.observations.shape[1:]} and {self.next_observations.shape[1:]}"
            raise MucdError(f"dataset {self.name}: observations and next observations have different shapes {shapes}: give both as recorded")
        self._validate_boundaries()
        if self.sources is not None and self.sources.shape != (self.trajectories,):
            raise MucdError(f"dataset {self.name}: {len(self.sources)} source keys for {self.trajectories} trajectories: give one for each, None for one without")
        for name in ("observations", "next_observations", "rewards"):
            self._validate_finite(name)
        self._validate_actions()

    def fits_actions(self, space: gym.Space) -> bool:
        """Whether its action space is this one; where it was not declared, whether it may be, and then all actions must lie in it (MucdError)."""
        if self.actions_declared:
            return self.action_space == space
        ours = self.action_space
        if type(ours) is not type(space) or ours.shape != space.shape or isinstance(ours, gym.spaces.Discrete) and isinstance(space, gym.spaces.Discrete) and ours.start != space.start:
            return False
        self._validate_actions(space)
        return True

    def _validate_boundaries(self):
        starts = self.trajectory_starts
        if len(starts) < 2 or starts[0] != 0 or starts[-1] != len(self) or np.any(np.diff(starts) < 1):
            raise MucdError(
                f"dataset {self.name}: trajectory starts must increase strictly from 0 to the number of transitions {len(self)}, "
                f"got {np.array2string(starts, threshold=6)}"
            )
        ends = self.terminations | self.truncations
        ends[starts[1:] - 1] = False
        if ends.any():
            raise MucdError(f"dataset {self.name}: transition {int(np.argmax(ends))} ends an episode inside a trajectory: start a new trajectory after it")

    def _validate_finite(self, name):
        array = getattr(self, name)
        if array.dtype.kind not in "fiub":
            raise MucdError(f"dataset {self.name}: {name} have dtype {array.dtype}: give numbers")
        if array.dtype.kind != "f":
            return
        bad = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
        if bad.any():
            raise MucdError(
                f"dataset {self.name}: {name.replace('_', ' ')} are NaN or inf in {int(bad.sum())} of {len(bad)} rows, first in row {int(np.argmax(bad))}: "
                "drop or repair these transitions"
            )

    def _validate_actions(self, space=None):
        space, actions = space or self.action_space, self.actions
        if isinstance(space, gym.spaces.Discrete):
            bad = (actions < int(space.start)) | (actions > int(space.start) + int(space.n) - 1)
        elif isinstance(space, gym.spaces.MultiDiscrete):
            bad = ((actions < 0) | (actions >= space.nvec)).any(axis=1)
        else:
            # Rounding to float32 may move an action that sits on the bound by one unit in the last place; a bound may lie beyond float32.
            with np.errstate(over="ignore"):
                low, high = np.nextafter(np.float32(space.low), -np.inf), np.nextafter(np.float32(space.high), np.inf)
            bad = ~(np.isfinite(actions) & (actions >= low) & (actions <= high)).all(axis=1)
        if bad.any():
            row = int(np.argmax(bad))
            raise MucdError(
                f"dataset {self.name}: {int(bad.sum())} of {len(bad)} actions are outside {space}, first in row {row} ({actions[row]}): "
                "correct them or declare the space that was recorded"
            )


def _update(digest, name: str, values: np.ndarray) -> None:
    """Hash an array's name, dtype, shape and bytes."""
    array = np.ascontiguousarray(values)
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    digest.update(f"{name} {array.dtype.str} {array.shape};".encode())
    digest.update(array.data.cast("B"))


def _numbered(keys) -> np.ndarray:
    """Numbers of the sources of trajectories with these keys, in the order in which they first appear; each without a key (None) has its own."""
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(object() if key is None else key, len(numbers)) for key in keys], np.int64)


def _rows(values, name: str) -> np.ndarray:
    """An array of one row per transition."""
    try:
        array = np.asarray(values)
    except (ValueError, TypeError) as error:
        raise MucdError(f"{name} are not one array ({error}): give one row per transition") from None
    if not array.ndim:
        raise MucdError(f"{name} are not one array of one row per transition: dictionaries and tuples are for observations in Dict and Tuple spaces")
    return array


def as_column(values, name: str) -> np.ndarray:
    """One number per transition, [N]; a column [N, 1] is the same. Raises MucdError for anything else: other shapes would be broadcast silently."""
    array = _rows(values, name)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or array.dtype.kind not in "fiub" and array.size:
        raise MucdError(f"{name} of shape {array.shape} and dtype {array.dtype}: give one number per transition")
    return array


def _flags(values, name: str) -> np.ndarray:
    array = as_column(values, name)
    if not ((array == 0) | (array == 1)).all():
        raise MucdError(f"{name} must be true or false, or 0 or 1")
    return array.astype(bool)


def _as_declared(actions: np.ndarray, space: gym.Space) -> np.ndarray:
    """Actions in the dtype and shape of the class docstring; a value is never changed, only its dtype."""
    if isinstance(space, gym.spaces.Discrete):
        if actions.ndim == 2 and actions.shape[1] == 1:
            actions = actions[:, 0]
        whole = actions.dtype.kind in "iub" and actions.ndim == 1
        if not whole or actions.dtype.kind == "u" and (actions > np.iinfo(np.int64).max).any():
            raise MucdError(f"actions of shape {actions.shape} and dtype {actions.dtype} do not fit {space}: give one integer per transition")
        return actions.astype(np.int64)
    if isinstance(space, gym.spaces.MultiDiscrete) and actions.shape[1:] == space.shape and actions.dtype.kind in "iub":
        # What int64 does not hold becomes negative, which is no action.
        return actions.astype(np.int64)
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1 and actions.shape[1:] == space.shape and actions.dtype.kind in "fiub":
        with np.errstate(over="ignore"):
            rounded = actions.astype(np.float32)
        bad = ~np.all(np.isfinite(rounded), axis=1)
        if bad.any():
            row = int(np.argmax(bad))
            raise MucdError(
                f"{int(bad.sum())} of {len(bad)} actions are NaN, inf or beyond what float32 holds (3.4e38), first in row {row} ({actions[row]}): drop or repair these transitions"
            )
        return rounded
    raise MucdError(f"actions of shape {actions.shape} and dtype {actions.dtype} in {space} are not supported: give numbers in the shape of the action space")
