"""The offline dataset: flat arrays with trajectory boundaries."""

import hashlib
from dataclasses import dataclass

import gymnasium as gym
import numpy as np

from mucd_ray.errors import MucdError

# The order in which `fingerprint` reads the arrays.
_ARRAYS = ("observations", "next_observations", "actions", "rewards", "terminations", "truncations", "trajectory_starts")


@dataclass(frozen=True, kw_only=True, eq=False)
class OfflineDataset:
    """N transitions (s, a, r, s', terminated, truncated) in M trajectories, as recorded: no scaling, no filtering.

    Attributes:
        name: Minari id or the user's label.
        env_id, env_kwargs: Gymnasium id of the environment that was recorded and the arguments of its `make`, if known.
        observations, next_observations: [N, *observation_shape], dtype as recorded.
        actions: int64 [N] for a Discrete space (values as the space declares them, `start` included), float32 [N, k] for a Box.
        rewards: float64 [N].
        terminations, truncations: bool [N].
        trajectory_starts: int64 [M+1], offsets of the trajectories: the first is 0, the last is N.
        action_space, observation_space: the spaces that the dataset declares.
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

    @classmethod
    def from_arrays(
        cls, *, observations, next_observations, actions, rewards, terminations, truncations, action_space, observation_space,
        trajectory_starts=None, name="arrays", env_id=None, env_kwargs=None,
    ) -> "OfflineDataset":
        """Build and validate a dataset from flat arrays (shapes as in the class).

        Without `trajectory_starts` a trajectory ends where `terminations` or `truncations` is set, and at the last transition.

        Raises:
            MucdError: the action space is neither Discrete nor a one-dimensional Box, or `validate` finds a fault.
        """
        terminations, truncations = np.asarray(terminations, bool), np.asarray(truncations, bool)
        if trajectory_starts is None:
            ends = np.flatnonzero(terminations | truncations) + 1
            trajectory_starts = np.unique(np.concatenate([[0], ends, [len(terminations)]]))
        dataset = cls(
            name=name,
            env_id=env_id,
            env_kwargs=env_kwargs,
            observations=np.asarray(observations),
            next_observations=np.asarray(next_observations),
            actions=_as_declared(np.asarray(actions), action_space),
            rewards=np.asarray(rewards, np.float64),
            terminations=terminations,
            truncations=truncations,
            trajectory_starts=np.asarray(trajectory_starts, np.int64),
            action_space=action_space,
            observation_space=observation_space,
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

    def fingerprint(self) -> str:
        """SHA-256 (hex) over the dtype, shape and bytes of every array: equal for equal data, whatever the file it came from."""
        digest = hashlib.sha256()
        for name in _ARRAYS:
            array = np.ascontiguousarray(getattr(self, name))
            array = array.astype(array.dtype.newbyteorder("<"), copy=False)
            digest.update(f"{name} {array.dtype.str} {array.shape};".encode())
            digest.update(memoryview(array).cast("B"))
        return digest.hexdigest()

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
        for name in ("observations", "next_observations", "rewards"):
            self._validate_finite(name)
        self._validate_actions()

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

    def _validate_actions(self):
        space, actions = self.action_space, self.actions
        if isinstance(space, gym.spaces.Discrete):
            bad = (actions < space.start) | (actions >= space.start + space.n)
        else:
            # Rounding to float32 may move an action that sits on the bound by one unit in the last place.
            low, high = np.nextafter(np.float32(space.low), -np.inf), np.nextafter(np.float32(space.high), np.inf)
            bad = ~((actions >= low) & (actions <= high)).all(axis=1)
        if bad.any():
            row = int(np.argmax(bad))
            raise MucdError(
                f"dataset {self.name}: {int(bad.sum())} of {len(bad)} actions are outside {space}, first in row {row} ({actions[row]}): "
                "correct them or declare the space that was recorded"
            )


def _as_declared(actions: np.ndarray, space: gym.Space) -> np.ndarray:
    """Actions in the dtype and shape of the class docstring; a value is never changed, only its dtype."""
    if isinstance(space, gym.spaces.Discrete):
        if actions.ndim == 2 and actions.shape[1] == 1:
            actions = actions[:, 0]
        whole = actions.astype(np.int64) if actions.dtype.kind in "iub" else None
        if whole is None or actions.ndim != 1:
            raise MucdError(f"actions of shape {actions.shape} and dtype {actions.dtype} do not fit {space}: give one integer per transition")
        return whole
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1 and actions.shape[1:] == space.shape:
        return actions.astype(np.float32)
    raise MucdError(f"actions of shape {actions.shape} in {space} are not supported: use a Discrete or a one-dimensional Box action space")
