"""Reading Minari datasets, each of which may be an attacker's: by a reader of our own, see docs/files.md."""

import contextlib
import math
import os
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
from minari import supported_dataset_versions
from minari.dataset.minari_dataset import DATASET_ID_RE, parse_dataset_id
from minari.dataset.minari_storage import is_image_space
from minari.storage import get_dataset_path

from mucd_ray.data.dataset import OfflineDataset, as_column
from mucd_ray.data.formats.hdf5 import MOST_UNPACKED_BYTES, Hdf5File
from mucd_ray.data.formats.keys import MOST_LOOKED_AT, OWN, SEVERAL, kept_key, only_key, told
from mucd_ray.data.formats.labelled import is_labelled, labelled_metadata, load_labelled
from mucd_ray.data.formats.metadata import MOST_TEXT, Metadata, raw_metadata, read_metadata
from mucd_ray.data.formats.tables import FORMATS, Tables, episode_metadata
from mucd_ray.data.spaces import Actions, Observations, Part, Unread, shape_of
from mucd_ray.errors import MucdError
from mucd_ray.files import check_within, printable

HDF5_FILE = "main_data.hdf5"
MOST_FOLDERS_DEEP = 8


def local_datasets() -> list[str]:
    """Ids of the Minari datasets under `MINARI_DATASETS_PATH` (default ~/.minari/datasets), sorted as Minari does; other folders are passed over."""
    found: list[str] = []
    root = get_dataset_path()
    _find(root, "", found, set())
    return sorted(found, key=_sort_key)


def _sort_key(dataset_id: str) -> tuple[str, str, int]:
    namespace, name, version = parse_dataset_id(dataset_id)
    return namespace or "", name, version


def _find(root: Path, prefix: str, found: list[str], seen: set[str]) -> None:
    folder = root / prefix
    if len(Path(prefix).parts) > MOST_FOLDERS_DEEP or os.path.realpath(folder) in seen:
        return
    seen.add(os.path.realpath(folder))
    if (folder / "data").is_dir():
        if _is_named(root, prefix):
            found.append(prefix)
        return
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return
    for name in names:
        _find(root, f"{prefix}/{name}" if prefix else name, found, seen)


def _is_named(root: Path, dataset_id: str) -> bool:
    """Whether this folder is a dataset of this id, with a version."""
    match = DATASET_ID_RE.fullmatch(dataset_id)
    try:
        folder = root / dataset_id
        return bool(match and match["version"]) and (labelled_metadata(folder) if is_labelled(folder) else raw_metadata(folder / "data")).get("dataset_id") == dataset_id
    except MucdError:
        return False


def load_dataset(dataset_id: str, root: Path | None = None, source_key: str | None = None, observation_keys: tuple[str, ...] = ()) -> OfflineDataset:
    """Read a local Minari dataset; nothing is downloaded, and nothing that it names is made, imported or called.

    Args:
        root: the folder of the datasets, by default Minari's.
        source_key: name of the episode's metadata, or of infos that are one value all through an episode (HDF5 alone), which tells the source of each trajectory.
        observation_keys: of observations in a Dict or Tuple space, as of `Observations.of`; nothing else of them is read. By default all are.
    Raises:
        MucdError: unknown id, files that are damaged or not what they should be, spaces that are not supported (`data/spaces.py`), or a fault found by
            `OfflineDataset.validate`; no episode with the source key, or one where it is no text and no whole number.
    """
    if is_labelled(folder := check_is_local(dataset_id, root)):
        if source_key is not None or observation_keys:
            raise MucdError(f"dataset {dataset_id!r} holds labelled images, which have neither source keys nor keys of observations: leave --source-key and --observation-keys out")
        with _one_line(dataset_id):
            return load_labelled(folder, dataset_id)
    with _opened(dataset_id, root) as (folder, metadata):
        read = read_as(metadata, observation_keys)
        episodes = _episodes(folder, metadata, source_key, read)
        if source_key is not None and all(episode["key"] is None for episode in episodes):
            raise MucdError(f"dataset {dataset_id!r}: no episode has the source key {printable(source_key)!r}; {told(_key_names(folder, metadata))}")

    def joined(field, part=slice(None)):
        return np.concatenate([episode[field][part] for episode in episodes])

    recorded = metadata.recorded
    dataset = OfflineDataset.from_arrays(
        name=dataset_id,
        env_id=recorded and recorded.env_id,
        env_kwargs=recorded and recorded.kwargs,
        env_max_episode_steps=recorded and recorded.max_episode_steps,
        env_wrappers=recorded.wrappers if recorded else (),
        observations=joined("observations", slice(None, -1)),
        next_observations=joined("observations", slice(1, None)),
        actions=joined("actions"),
        rewards=joined("rewards"),
        terminations=joined("terminations"),
        truncations=joined("truncations"),
        trajectory_starts=np.cumsum([0] + [len(episode["rewards"]) for episode in episodes]),
        action_space=metadata.action_space,
        actions_declared=metadata.actions_declared,
        observation_space=read.space if read else metadata.observation_space,
        observation_parts=read.words if read else (),
        action_mask=read.mask(Actions(declared=metadata.action_space).count) if read else None,
        source_keys=None if source_key is None else [episode["key"] for episode in episodes],
    )
    return replace(dataset, imported_by=metadata.imported_by)


def recorded_environment(dataset_id: str, root: Path | None = None) -> str | None:
    """The id of the environment in which a local Minari dataset says it was recorded; None where there is no such dataset.

    Raises:
        MucdError: it is damaged, or does not say.
    """
    if not DATASET_ID_RE.fullmatch(dataset_id) or not ((get_dataset_path(dataset_id) if root is None else root / dataset_id) / "data").is_dir():
        return None
    with _opened(dataset_id, root) as (_, metadata):
        if metadata.recorded is None or metadata.recorded.env_id is None:
            raise MucdError("it does not say in which environment it was recorded: name that instead")
        return metadata.recorded.env_id


def source_keys(dataset_id: str, root: Path | None = None) -> str:
    """In words, which source keys the first episodes of a local Minari dataset have. Raises MucdError as `load_dataset`."""
    with _opened(dataset_id, root) as (folder, metadata):
        return told(_key_names(folder, metadata))


def check_is_local(dataset_id: str, root: Path | None = None) -> Path:
    """The folder of a local dataset. Raises MucdError for an id that is malformed, or of none."""
    if len(dataset_id) > MOST_TEXT or not DATASET_ID_RE.fullmatch(dataset_id):
        raise MucdError(f"dataset id {dataset_id[:MOST_TEXT]!r} is malformed: use (namespace/)name-v0, the name of a folder under MINARI_DATASETS_PATH")
    path = get_dataset_path(dataset_id) if root is None else root / dataset_id
    if not (path / "data").is_dir():
        known = ", ".join(local_datasets()) or "none"
        raise MucdError(
            f"dataset {dataset_id!r} is not among the local Minari datasets ({known}) in {get_dataset_path()}: "
            "set MINARI_DATASETS_PATH to its folder, or make one with `mucd record`"
        )
    return path


@contextlib.contextmanager
def _opened(dataset_id: str, root: Path | None):
    """(folder of the data, metadata) of a dataset, once it is known to be one; what fails inside is one line about it."""
    path = check_is_local(dataset_id, root)
    with _one_line(dataset_id):
        check_within(path / "data", path)
        if is_labelled(path):
            raise MucdError("it holds labelled images, not episodes")
        metadata = read_metadata(path / "data")
        if metadata.minari_version not in supported_dataset_versions:
            raise MucdError(f"it was written by Minari {metadata.minari_version}, which this version does not read")
        if not metadata.episodes or not metadata.steps:
            raise MucdError(f"dataset {dataset_id!r} is empty: record or choose one with at least one transition")
        yield path / "data", metadata


@contextlib.contextmanager
def _one_line(dataset_id: str):
    try:
        yield
    except MucdError as error:
        if str(error).startswith("dataset "):
            raise
        raise MucdError(f"dataset {dataset_id!r} cannot be read: {error}") from None
    except Exception as error:  # parsers of hostile bytes raise anything
        raise MucdError(f"dataset {dataset_id!r} cannot be read ({printable(error) or type(error).__name__}): record it again or restore its folder") from error


def read_as(metadata: Metadata, keys: tuple[str, ...]) -> Observations | None:
    """How observations are joined from their parts; None where they are one array. Raises MucdError for spaces that are not supported, and for more than is taken."""
    if not keys and not isinstance(metadata.observation_space, gym.spaces.Dict | gym.spaces.Tuple):
        if isinstance(metadata.observation_space, Unread):
            Observations.of(metadata.observation_space)
        return None
    joined = Observations.of(metadata.observation_space, keys)
    size = (metadata.steps + metadata.episodes) * math.prod(joined.space.shape) * joined.space.dtype.itemsize
    if size > MOST_UNPACKED_BYTES:
        raise MucdError(f"its observations become {size:,} bytes, at most {MOST_UNPACKED_BYTES:,} are taken: choose some of their keys with --observation-keys")
    return joined


def _episodes(folder: Path, metadata: Metadata, source_key: str | None, read: Observations | None) -> list[dict]:
    """The arrays of every episode, their lengths checked against each other and the totals, and its `key`, None without one."""
    episodes: list[dict] = []
    steps = 0
    for number, episode in enumerate(_stored(folder, metadata, _one_key(folder, source_key), read)):
        for name in ("rewards", "terminations", "truncations"):
            episode[name] = as_column(episode[name], name)
        _in_declared_dtypes(episode, number, metadata, read)
        for name in ("observations", "actions"):
            if episodes and episode[name].shape[1:] != episodes[0][name].shape[1:]:
                raise MucdError(f"{name} of episode {number} have shape {episode[name].shape[1:]}, those before {episodes[0][name].shape[1:]}: record it again or restore its folder")
        length = len(episode["rewards"])
        steps += length
        wanted = {"observations": length + 1, "actions": length, "terminations": length, "truncations": length}
        wrong = [name for name, rows in wanted.items() if len(episode[name]) != rows]
        if wrong or steps > metadata.steps:
            fault = f"{length} rewards and {len(episode[wrong[0]])} {wrong[0]}" if wrong else f"more steps than the {metadata.steps} that the metadata declare"
            raise MucdError(f"episode {number} has {fault}: record it again or restore its folder")
        episodes.append(episode)
    if steps != metadata.steps:
        raise MucdError(f"its {len(episodes)} episodes have {steps} steps, the metadata declare {metadata.steps}: record it again or restore its folder")
    return episodes


def _in_declared_dtypes(episode: dict, number: int, metadata: Metadata, read: Observations | None) -> None:
    """Arrays of an episode in the dtype of their space: which one it was stored in must say nothing about the others, as numpy's joint dtype would."""
    if read is None:
        try:
            episode["observations"] = Part(path=(), space=metadata.observation_space).declared(episode["observations"])
        except MucdError as error:
            raise MucdError(f"episode {number}: {error}") from None
    space, actions = metadata.action_space, episode["actions"]
    if isinstance(space, gym.spaces.Box) and actions.dtype.kind in "fiub":
        with np.errstate(over="ignore", invalid="ignore"):
            # Of whole numbers in the end, too, float32 is what is kept.
            episode["actions"] = actions.astype(space.dtype if space.dtype.kind == "f" else np.float32)
    elif isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete | gym.spaces.MultiBinary) and actions.dtype.kind in "fu":
        # Beside those of another episode in int64 they would be float64, which does not hold every one of these.
        with np.errstate(invalid="ignore"):
            episode["actions"] = actions.astype(np.int64)
        if not np.array_equal(episode["actions"], actions):
            raise MucdError(f"episode {number}: actions {actions.dtype} must be whole numbers of 64 bits: record it again, or leave it out")


def stored_with_keys(folder: Path, metadata: Metadata):
    """Yields the arrays of each episode, their lengths unchecked, with "key": {name: key} of all that may tell its source.

    Raises:
        MucdError, ValueError, OSError or whatever a parser raises: files that are damaged or not what they should be.
    """
    def keys(number, content=None, group=None):
        if content is None:
            found = {name: kept_key([value]) for name, value in episode_metadata(folder, number).items() if name not in OWN}
        else:
            found = {name: of_group(content, group, name) for name in sorted(content.all_names(group) - set(OWN))}
        return {name: key for name, key in found.items() if key}

    def of_group(content, group, name):
        try:
            return kept_key(content.keys(group, name))
        except MucdError:  # among its infos it differs from step to step, or is something else than a key
            return SEVERAL

    yield from _stored(folder, metadata, keys, read_as(metadata, ()))


def _one_key(folder: Path, source_key: str | None):
    """A function that gives an episode's key of this name; None without one."""
    def key(number, content=None, group=None):
        if source_key is None:
            return None
        values = [episode_metadata(folder, number).get(source_key)] if content is None else content.keys(group, source_key)
        return only_key(values, source_key, number)

    return key


def _stored(folder: Path, metadata: Metadata, key_of, read: Observations | None):
    """Yields the arrays of each episode as they are stored, and its `key`: key_of(number) of a table, key_of(number, file, group) of HDF5."""
    parts = read.parts if read else (Part(path=(), space=metadata.observation_space),)
    images = [metadata.jpeg and is_image_space(part.space) for part in parts]
    if metadata.jpeg and is_image_space(metadata.action_space):
        raise MucdError("its actions are stored as JPEG images, which are not exact: record them with jpeg_encoding=False")

    def joined(arrays: list) -> np.ndarray:
        return read.rows(arrays) if read else arrays[0]

    if metadata.data_format in FORMATS:
        _check_counted(sum(entry.name.isdigit() for entry in os.scandir(folder)), metadata)
        with Tables(folder, metadata, parts, images) as tables:
            for number in range(metadata.episodes):
                try:
                    episode = tables.episode(number)
                except (ValueError, OSError) as error:
                    raise MucdError(f"episode {number}: {printable(error)}") from None
                yield episode | {"observations": joined(episode["observations"]), "key": key_of(number)}
        return
    with _hdf5(folder, metadata) as content:
        _check_counted(sum(name.startswith("episode_") for name in content.file), metadata)
        for number in range(metadata.episodes):
            group = content.group(content.file, f"episode_{number}")
            episode = {name: content.array(group, name) for name in ("actions", "rewards", "terminations", "truncations")}
            episode["observations"] = joined([_part_of(content, group, part, image) for part, image in zip(parts, images)])
            yield episode | {"key": key_of(number, content, group)}


def _check_counted(stored: int, metadata: Metadata) -> None:
    """Raise MucdError unless metadata.json counts what is stored: the others would vanish without a word."""
    if stored != metadata.episodes:
        raise MucdError(f"metadata.json declares {metadata.episodes} episodes, and {stored} are stored: record it again or restore its folder")


def _part_of(content: Hdf5File, episode: h5py.Group, part: Part, image: bool) -> np.ndarray:
    """One part of an episode's observations, in the groups in which Minari puts it."""
    parent, *names = ["observations", *(f"_index_{key}" if isinstance(key, int) else key for key in part.path)]
    for name in names:
        episode, parent = content.group(episode, parent), name
    return content.images(episode, parent, shape_of(part.space)) if image else content.array(episode, parent)


def _key_names(folder: Path, metadata: Metadata) -> set[str]:
    """Names of what could be a source key in the first episodes."""
    numbers = range(min(metadata.episodes, MOST_LOOKED_AT))
    if metadata.data_format in FORMATS:
        found = [episode_metadata(folder, number) for number in numbers]
        return {name for values in found for name, value in values.items() if isinstance(value, (str, int))}
    with _hdf5(folder, metadata) as content:
        return set().union(*(content.key_names(content.group(content.file, f"episode_{number}")) for number in numbers))


@contextlib.contextmanager
def _hdf5(folder: Path, metadata: Metadata):
    if metadata.data_format != "hdf5":
        raise MucdError(f"its data format {metadata.data_format!r} is unknown: use hdf5, {' or '.join(FORMATS)}")
    path = folder / HDF5_FILE
    check_within(path, folder)
    if not path.is_file():
        raise MucdError(f"{path} is missing or no regular file")
    with h5py.File(path, "r") as file:
        yield Hdf5File(file, path.stat().st_size)
