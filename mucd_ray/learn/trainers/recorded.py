"""The dataset as trainers from outside get it: rows as recorded, and which of them belong to a unit."""

from dataclasses import dataclass
from typing import ClassVar

import gymnasium
import numpy as np

from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.learn.trainers.given import GivenBag
from mucd_ray.learn.units import by_source

COLUMNS = ("observations", "next_observations", "actions", "rewards", "terminations", "truncations")


@dataclass(frozen=True, kw_only=True, eq=False)
class Recorded:
    """N transitions of U units, as `OfflineDataset` has them. Never written to.

    Attributes:
        ends: bool [N], whether a row is the last of its trajectory; every row where units are transitions.
        starts, lengths: int64 [U]: unit u has the rows starts[u] ... starts[u] + lengths[u] - 1.
    """

    CONTENT: ClassVar[tuple[str, ...]] = (*COLUMNS, "ends")
    ARRAYS: ClassVar[tuple[str, ...]] = (*CONTENT, "starts", "lengths")

    unit: str
    observations: np.ndarray
    next_observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray
    ends: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, dataset: OfflineDataset, unit: str) -> "Recorded":
        """Raises MucdError where sources are wanted and the dataset was read without them."""
        if unit == "source":
            rows, starts, ends = by_source(dataset, np.ones(dataset.trajectories, bool))
            lengths = np.diff(np.append(starts, len(dataset)))
            return cls(unit=unit, **{name: getattr(dataset, name)[rows] for name in COLUMNS}, ends=ends, starts=starts, lengths=lengths)
        starts = np.arange(len(dataset) + 1) if unit == "transition" else dataset.trajectory_starts
        ends = np.isin(np.arange(len(dataset)), starts[1:] - 1)
        return cls(unit=unit, **{name: getattr(dataset, name) for name in COLUMNS}, ends=ends, starts=starts[:-1], lengths=np.diff(starts))

    def __len__(self) -> int:
        """U, the number of units."""
        return len(self.starts)

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in self.ARRAYS}

    def bag(self, units: np.ndarray, observation_space: gymnasium.Space, action_space: gymnasium.Space) -> GivenBag:
        """The bag of these units, in their order; nothing else of the data is in it."""
        of_unit = [np.arange(start, start + length) for start, length in zip(self.starts[units], self.lengths[units])]
        of_row = np.repeat(np.arange(len(units)), self.lengths[units])
        rows = np.concatenate([np.zeros(0, np.int64), *of_unit])
        last = np.flatnonzero(self.ends[rows])
        return GivenBag(
            unit=self.unit, observation_space=observation_space, action_space=action_space,
            observations=self.observations[rows], actions=self.actions[rows], rewards=self.rewards[rows], next_observations=self.next_observations[rows],
            terminated=self.terminations[rows], truncated=self.truncations[rows], starts=np.append(0, last + 1), units=of_row[last],
        )
