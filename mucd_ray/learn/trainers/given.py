"""What a trainer from outside is given: the trajectories of one bag or part as numpy arrays, and nothing else.

As a file, `bag.npz` holds the flat arrays of `GivenBag` by their names, with `starts` and `units`, and `observation_space`, `action_space` and `unit` as texts (spaces in Minari's JSON).
"""

import functools
import io
from dataclasses import dataclass

import gymnasium
import numpy as np
from minari.serialization import deserialize_space, serialize_space

ARRAYS = ("observations", "actions", "rewards", "next_observations", "terminated", "truncated", "starts", "units")


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectory:
    """T steps of one episode; read-only.

    Attributes:
        observations: [T + 1, *shape], the last one included, as recorded.
        actions: int64 [T] as the space declares them, int64 [T, k] of several components, each counted from 0, or float32 [T, k].
        rewards: float64 [T].
        terminations, truncations: bool [T].
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray

    def __len__(self) -> int:
        """T."""
        return len(self.rewards)


@dataclass(frozen=True, kw_only=True, eq=False)
class GivenBag:
    """The n transitions of a bag in M trajectories, one after the other, in an order that says nothing about that of the data; read-only. Where units are transitions,
    each is a trajectory of one step.

    Attributes:
        unit: what the bag is made of: "transition", "trajectory", ...
        observation_space, action_space: the environment's.
        observations, next_observations: [n, *shape], as recorded.
        actions: int64 [n] as the space declares them, int64 [n, k] of several components, each counted from 0, or float32 [n, k].
        rewards: float64 [n].
        terminated, truncated: bool [n].
        starts: int64 [M + 1], first rows of the trajectories, and n.
        units: int64 [M], of which of the bag's units each trajectory is, counted from 0 in their order.
    """

    unit: str
    observation_space: gymnasium.Space
    action_space: gymnasium.Space
    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_observations: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    starts: np.ndarray
    units: np.ndarray

    def __post_init__(self):
        for name in ARRAYS:
            getattr(self, name).flags.writeable = False

    def __len__(self) -> int:
        """n, the number of transitions."""
        return len(self.rewards)

    @functools.cached_property
    def trajectories(self) -> list[Trajectory]:
        return [self._trajectory(slice(start, end)) for start, end in zip(self.starts[:-1].tolist(), self.starts[1:].tolist())]

    def _trajectory(self, rows: slice) -> Trajectory:
        observations = np.concatenate([self.observations[rows], self.next_observations[rows][-1:]])
        observations.flags.writeable = False
        return Trajectory(
            observations=observations, actions=self.actions[rows], rewards=self.rewards[rows], terminations=self.terminated[rows], truncations=self.truncated[rows]
        )

    def to_npz(self) -> bytes:
        file = io.BytesIO()
        texts = {"unit": self.unit, "observation_space": serialize_space(self.observation_space), "action_space": serialize_space(self.action_space)}
        np.savez(file, **{name: getattr(self, name) for name in ARRAYS}, **texts)
        return file.getvalue()

    @classmethod
    def from_npz(cls, content: bytes) -> "GivenBag":
        """What `to_npz` wrote; nothing is unpickled."""
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            spaces = {name: deserialize_space(str(file[name])) for name in ("observation_space", "action_space")}
            return cls(unit=str(file["unit"]), **spaces, **{name: file[name] for name in ARRAYS})
