"""Writing a Minari dataset whole or not at all."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import gymnasium as gym
import minari
import numpy as np
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_dataset import parse_dataset_id
from minari.dataset.minari_storage import MinariStorage
from minari.namespace import NAMESPACE_METADATA_FILENAME

from mucd_ray.data.formats.metadata import MOST_TEXT
from mucd_ray.errors import MucdError
from mucd_ray.files import open_unlinked

_ASIDE = ".mucd-record-"  # hidden names: Minari does not list them


def target_folder(dataset_id: str, overwrite: bool, root: Path) -> Path:
    """Final folder of a dataset, before anything is made. Raises MucdError for a malformed id, and where it exists without `overwrite`."""
    try:
        parse_dataset_id(dataset_id)
        if len(dataset_id) > MOST_TEXT:
            raise ValueError("too long")
    except (ValueError, TypeError) as error:
        raise MucdError(
            f"dataset id {dataset_id!r} is malformed: use (namespace/)name-v0 with a namespace of at least two letters, for example acrobot/mixed-v0"
        ) from error
    path = root / dataset_id
    if path.exists() and not overwrite:
        raise MucdError(f"dataset {dataset_id!r} exists in {path}: choose another id, or pass --overwrite to replace it")
    return path


def write_dataset(
    dataset_id: str, path: Path, episodes: list[EpisodeBuffer], *, observation_space: gym.Space, action_space: gym.Space, metadata: dict, episode_metadata: list[dict],
    env_spec=None, overwrite: bool = False,
) -> None:
    """Write into a hidden folder beside the target, then rename: the id never shows a part of a dataset.

    Args:
        path: from `target_folder`.
        metadata: what metadata.json says besides the spaces and totals.
        episode_metadata: attributes of each episode: texts and numbers.
    Raises:
        MucdError: the folder cannot be written, or holds something else than what was written.
    """
    payload = sum(episode.observations.nbytes + episode.actions.nbytes + 18 * len(episode) for episode in episodes)
    with folder_written_whole(dataset_id, path, overwrite=overwrite, payload=2 * payload + 20_000 * len(episodes)) as data:
        storage = MinariStorage.new(data, observation_space, action_space, env_spec, jpeg_encoding=False)
        storage.update_metadata({"dataset_id": dataset_id, "minari_version": minari.__version__, **metadata})
        storage.update_episodes(episodes)
        storage.update_episode_metadata(episode_metadata)
        _check_written(data, episodes)


@contextlib.contextmanager
def folder_written_whole(dataset_id: str, path: Path, *, overwrite: bool, payload: int) -> Iterator[Path]:
    """Yields a folder `data`, to be filled, that is not there yet where Minari's storage makes it; what it holds at the end is the dataset's.

    Args:
        path: from `target_folder`.
        payload: bytes that there must be room for.
    Raises:
        MucdError: the folder cannot be written.
    """
    try:
        _make_namespaces(path, len(Path(dataset_id).parts) - 1)
        with _only_writer(path.parent):
            aside = Path(tempfile.mkdtemp(prefix=_ASIDE, dir=path.parent))
            _check_room(aside, payload)
            yield aside / "data"
            if overwrite and path.exists():
                os.rename(path, tempfile.mkdtemp(prefix=_ASIDE, dir=path.parent))
            os.chmod(aside, 0o777 & ~_umask())
            os.rename(aside, path)
    except (OSError, RuntimeError, ValueError) as error:  # h5py raises all of them
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise MucdError(f"dataset {dataset_id!r} cannot be written ({reason}): set MINARI_DATASETS_PATH to a writable folder with free space") from error


def _make_namespaces(path: Path, depth: int) -> None:
    """The folders above a dataset, each marked as Minari marks a namespace. Minari's own way looks at all others, and fails on strangers among them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for folder in path.parents[:depth]:
        with contextlib.suppress(FileExistsError), open(folder / NAMESPACE_METADATA_FILENAME, "x") as file:
            file.write("{}")


def _check_room(folder: Path, payload: int) -> None:
    """Raise OSError where so many bytes would not fit: on a full disk HDF5 drops data silently, or crashes the interpreter."""
    probe = folder / "room"
    with open(probe, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, payload)
    probe.unlink()


def _check_written(data: Path, episodes: list[EpisodeBuffer]) -> None:
    """Raise OSError unless the files hold exactly these episodes."""
    stored = MinariStorage.read(data).get_episodes(range(len(episodes)))
    for episode, found in zip(episodes, stored, strict=True):
        for field in ("observations", "actions", "rewards", "terminations", "truncations"):
            if not np.array_equal(getattr(episode, field), found[field]):
                raise OSError(f"{field} of an episode read back differently")


@contextlib.contextmanager
def _only_writer(folder: Path):
    """Hold the folder's lock; on both sides of the work, hidden folders are leavings (of a killed recording, or replaced) and go."""

    def sweep():
        for leaving in folder.glob(f"{_ASIDE}*"):
            shutil.rmtree(leaving, ignore_errors=True)

    with open_unlinked(folder / ".mucd-lock", 0) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sweep()
        try:
            yield
        finally:
            sweep()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
