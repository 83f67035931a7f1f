"""What a Minari dataset says about itself, read as text: nothing that it names is made, imported or called.

Minari's own reader makes the environment that the metadata describe where they lack a space, and its description may name any function.
"""

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np

from mucd_ray.data.spaces import Unread
from mucd_ray.errors import MucdError
from mucd_ray.files import read_file, read_json
from mucd_ray.plugins import Plugin, from_values

FILE = "metadata.json"
MOST_BYTES = 1 << 24
# Entries of one observation or action.
MOST_ENTRIES = 1 << 24
MOST_TEXT = 200
# What `mucd import` says of a dataset, in it its word that the action space follows from the rows, and which plug-in read the file.
IMPORTED, UNDECLARED, READER = "mucd_import", "actions_undeclared", "reader"
_INTEGERS = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_FLOATS = ("float16", "float32", "float64")


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """The environment in which a dataset says that it was recorded: words to compare, never to act on.

    Attributes:
        env_id: Gymnasium id, perhaps with the module that registers it: "module:Name-v0".
        kwargs: arguments with which it was made.
        max_episode_steps: its time limit, or None.
        wrappers: names of the wrappers that were put around it, innermost first.
    """

    env_id: str
    kwargs: dict
    max_episode_steps: int | None = None
    wrappers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What is read of metadata.json; what else stands there is ignored.

    Attributes:
        dataset_id, minari_version, data_format: texts.
        episodes, steps: totals.
        observation_space: of one array, or a Dict or Tuple, in which `Unread` stands for what is no space of numbers.
        action_space: of one array.
        jpeg: whether observations of images are stored as JPEG files.
        recorded: where it was recorded, if it says so.
        actions_declared: false where the action space follows from the rows (`mucd import`).
        imported_by: the plug-in that read it from another format, as it says itself.
    """

    dataset_id: str
    minari_version: str
    data_format: str
    episodes: int
    steps: int
    observation_space: gym.Space
    action_space: gym.Space
    jpeg: bool
    recorded: Recorded | None
    actions_declared: bool = True
    imported_by: Plugin | None = None


def read_metadata(folder: Path) -> Metadata:
    """The metadata in a dataset's folder `data`.

    Raises:
        MucdError: they are missing, no JSON, or not as `Metadata` wants them.
    """
    path = folder / FILE
    values = raw_metadata(folder)
    recorded, imported = values.get("env_spec"), values.get(IMPORTED)
    imported = imported if isinstance(imported, dict) else {}
    return Metadata(
        dataset_id=_text(values, "dataset_id", path),
        minari_version=_text(values, "minari_version", path),
        data_format=_text(values, "data_format", path),
        episodes=_count(values, "total_episodes", path),
        steps=_count(values, "total_steps", path),
        observation_space=_space(values, "observation_space", path),
        action_space=_space(values, "action_space", path),
        jpeg=_flag(values, "jpeg_encoding", path),
        recorded=None if recorded is None else _recorded(_inner(values, "env_spec", path), path),
        actions_declared=imported.get(UNDECLARED) is not True,
        imported_by=_reader(imported.get(READER)),
    )


def _reader(values) -> Plugin | None:
    """The plug-in of this description; None where it is none."""
    with contextlib.suppress(MucdError):
        return next((plugin for plugin in from_values([values]) if plugin.kind == "format"), None)
    return None


def raw_metadata(folder: Path) -> dict:
    """The object in metadata.json, none of it checked."""
    path = folder / FILE
    try:
        values = read_json(read_file(path, MOST_BYTES, within=folder.parent), path, most_bytes=MOST_BYTES)
    except OSError as error:
        raise MucdError(f"{path} cannot be read ({error.strerror})") from None
    if not isinstance(values, dict):
        raise MucdError(f"{path} is not a JSON object")
    return values


def _wrong(path, name: str, wanted: str) -> MucdError:
    return MucdError(f"{path}: {name} must be {wanted}; nothing is guessed from the rest, record the dataset again or mend the file")


def _text(values: dict, name: str, path) -> str:
    text = values.get(name)
    if not isinstance(text, str) or not 0 < len(text) <= MOST_TEXT or not text.isprintable():
        raise _wrong(path, name, f"a printable text of at most {MOST_TEXT} characters")
    return text


def _count(values: dict, name: str, path) -> int:
    number = values.get(name)
    if type(number) is not int or not 0 <= number < 1 << 40:
        raise _wrong(path, name, "a whole number from 0 on")
    return number


def _flag(values: dict, name: str, path) -> bool:
    if type(values.get(name, True)) is not bool:
        raise _wrong(path, name, "true or false")
    return values.get(name, True)


def _inner(values: dict, name: str, path) -> dict:
    """Minari stores spaces and environments as JSON texts within the JSON."""
    text = values.get(name)
    inner = read_json(text, f"{name} in {path}", most_bytes=MOST_BYTES, infinities=True) if isinstance(text, str) else None
    if not isinstance(inner, dict):
        raise _wrong(path, name, "given, as the JSON text of an object")
    return inner


def _recorded(spec: dict, path) -> Recorded:
    kwargs, limit, wrappers = spec.get("kwargs", {}), spec.get("max_episode_steps"), spec.get("additional_wrappers", [])
    if not isinstance(kwargs, dict) or not all(len(name) <= MOST_TEXT and name.isprintable() for name in kwargs):
        raise _wrong(path, "kwargs of env_spec", "an object with printable keys")
    if limit is not None and not (type(limit) is int and limit >= 1):
        raise _wrong(path, "max_episode_steps of env_spec", "a whole number, at least 1, or null")
    if not isinstance(wrappers, list) or not all(isinstance(wrapper, dict) for wrapper in wrappers):
        raise _wrong(path, "additional_wrappers of env_spec", "a list of objects")
    for wrapper in wrappers:
        inner = wrapper.get("kwargs")
        steps = inner.get("max_episode_steps") if isinstance(inner, dict) and wrapper.get("name") == "TimeLimit" else None
        if type(steps) is int and steps >= 1:
            limit = min(limit or steps, steps)
    return Recorded(
        env_id=_text(spec, "id", path), kwargs=kwargs, max_episode_steps=limit, wrappers=tuple(_text(wrapper, "name", path) for wrapper in wrappers)
    )


def read_space(text: str, name: str, path) -> gym.Space:
    """A space from `minari.serialization.serialize_space`'s text, by anybody. Raises MucdError, which names `name` and `path`."""
    return _space({name: text}, name, path)


def _space(values: dict, name: str, path) -> gym.Space:
    """A space as `minari.serialization.serialize_space` writes it."""
    return _parsed(_inner(values, name, path), name, path)


def _parsed(space, name: str, path) -> gym.Space:
    kind = space.get("type") if isinstance(space, dict) else None
    if name == "observation_space" and isinstance(kind, str) and kind in ("Dict", "Tuple"):
        inner = space.get("subspaces")
        # Of each in turn: JSON is nested no deeper than `read_json` allows.
        if kind == "Dict" and isinstance(inner, dict):
            return gym.spaces.Dict({key: _parsed(value, name, path) for key, value in inner.items()})
        if kind == "Tuple" and isinstance(inner, list):
            return gym.spaces.Tuple([_parsed(value, name, path) for value in inner])
        raise _wrong(path, name, f"a {kind} space as Minari writes it")
    if name == "observation_space" and isinstance(kind, str) and kind in _NO_NUMBERS:
        return Unread(kind)
    if not isinstance(kind, str) or kind not in _SPACES:
        if isinstance(kind, str) and kind in ("Dict", "Tuple", *_NO_NUMBERS):
            raise MucdError(f"{path}: actions in a space of type {kind} are not supported: {', '.join(_SPACES)} are")
        raise _wrong(path, name, f"a space of type {', '.join(_SPACES)}")
    try:
        return _SPACES[kind](space)
    except (KeyError, ValueError, TypeError, OverflowError, AssertionError) as error:
        raise _wrong(path, name, f"a {kind} space as Minari writes it ({str(error)[:MOST_TEXT]})") from None


def _box(space: dict) -> gym.Space:
    dtype, shape = _dtype(space["dtype"], _INTEGERS + _FLOATS), _shape(space["shape"])
    return gym.spaces.Box(_numbers(space["low"], shape, dtype), _numbers(space["high"], shape, dtype), shape, dtype)


def _discrete(space: dict) -> gym.Space:
    n, start = space["n"], space["start"]
    if not (type(n) is type(start) is int and 1 <= n < 1 << 31 and abs(start) < 1 << 31):
        raise ValueError("n or start")
    return gym.spaces.Discrete(n, start=start)


def _multi_discrete(space: dict) -> gym.Space:
    dtype = _dtype(space["dtype"], _INTEGERS)
    nvec = _array(space["nvec"])
    _shape(list(nvec.shape))
    return gym.spaces.MultiDiscrete(_numbers(space["nvec"], nvec.shape, dtype), dtype, start=_numbers(space["start"], nvec.shape, dtype))


def _multi_binary(space: dict) -> gym.Space:
    n = space["n"]
    shape = _shape(n if isinstance(n, list) else [n])
    return gym.spaces.MultiBinary(list(shape) if isinstance(n, list) else n)


_NO_NUMBERS = ("Text", "Sequence", "Graph", "OneOf")
_SPACES = {"Box": _box, "Discrete": _discrete, "MultiDiscrete": _multi_discrete, "MultiBinary": _multi_binary}


def _dtype(name, known: tuple[str, ...]) -> np.dtype:
    if name not in known:
        raise ValueError("dtype")
    return np.dtype(name)


def _shape(shape) -> tuple[int, ...]:
    if not (isinstance(shape, list) and len(shape) <= 8 and all(type(length) is int and 0 <= length <= MOST_ENTRIES for length in shape)):
        raise ValueError("shape")
    if math.prod(shape) > MOST_ENTRIES:
        raise ValueError(f"more than {MOST_ENTRIES:,} entries")
    return tuple(shape)


def _numbers(values, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Numbers of exactly this shape that the dtype holds."""
    found = _array(values)
    if found.shape != shape or found.size and found.dtype.kind not in "biuf":
        raise ValueError(f"no numbers of shape {shape}")
    with np.errstate(over="ignore", invalid="ignore"):
        cast = found.astype(dtype)
    if dtype.kind == "f":
        held = not np.isnan(cast).any() and (np.isfinite(found) == np.isfinite(cast)).all()
    else:
        held = (cast == found).all()
    if not held:
        raise ValueError(f"a number that {dtype} does not hold")
    return cast


def _array(values) -> np.ndarray:
    """Nested lists of numbers alone: among texts, numpy gives each the room of the longest."""
    left = [values]
    while left:
        value = left.pop()
        if isinstance(value, list):
            left.extend(value)
        elif type(value) not in (bool, int, float):
            raise ValueError("something else than numbers")
    return np.array(values)
