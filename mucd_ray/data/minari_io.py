"""Reading Minari datasets."""

import os

import gymnasium as gym
import minari
import numpy as np
from minari.storage import get_dataset_path

from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.errors import MucdError


def local_datasets() -> list[str]:
    """Ids of the Minari datasets under `MINARI_DATASETS_PATH` (default ~/.minari/datasets), sorted as Minari does."""
    return list(minari.list_local_datasets())


def load_dataset(dataset_id: str) -> OfflineDataset:
    """Read a local Minari dataset; nothing is downloaded.

    Raises:
        MucdError: unknown id, unreadable files, observations that are not one array, or a fault found by `OfflineDataset.validate`.
    """
    if not os.path.isdir(get_dataset_path(dataset_id) / "data"):
        known = ", ".join(local_datasets()) or "none"
        raise MucdError(
            f"dataset {dataset_id!r} is not among the local Minari datasets ({known}) in {get_dataset_path()}: "
            "set MINARI_DATASETS_PATH to its folder, or make one with `mucd record`"
        )
    try:
        source = minari.load_dataset(dataset_id)
        episodes = list(source.iterate_episodes())
    except (OSError, KeyError, ValueError, AssertionError) as error:
        raise MucdError(f"dataset {dataset_id!r} cannot be read ({error}): record it again or restore its folder") from error
    if not isinstance(source.observation_space, gym.spaces.Box | gym.spaces.Discrete | gym.spaces.MultiDiscrete | gym.spaces.MultiBinary):
        raise MucdError(f"dataset {dataset_id!r} has observations in {source.observation_space}: only observations that are one array are supported")
    if not episodes or not sum(len(episode) for episode in episodes):
        raise MucdError(f"dataset {dataset_id!r} is empty: record or choose one with at least one transition")

    def joined(field, part=slice(None)):
        return np.concatenate([np.asarray(getattr(episode, field))[part] for episode in episodes])

    spec = source.env_spec
    return OfflineDataset.from_arrays(
        name=dataset_id,
        env_id=spec.id if spec else None,
        env_kwargs=dict(spec.kwargs) if spec else None,
        observations=joined("observations", slice(None, -1)),
        next_observations=joined("observations", slice(1, None)),
        actions=joined("actions"),
        rewards=joined("rewards"),
        terminations=joined("terminations"),
        truncations=joined("truncations"),
        trajectory_starts=np.cumsum([0] + [len(episode) for episode in episodes]),
        action_space=source.action_space,
        observation_space=source.observation_space,
    )
