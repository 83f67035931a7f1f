"""Spaces of dictionaries, tuples, categories and several whole numbers as learners take them: an observation as one array of numbers, an action as one whole number or as one row of numbers.

Everything here is a public function of one observation or one action alone, the same for recorded and for live ones: a changed unit stays one changed unit.
"""

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import gymnasium as gym
import numpy as np

from mucd_ray.errors import MucdError

# Above it there are too few votes for each of them.
MOST_JOINT_ACTIONS = 512
# Of all components together, where each is voted on by itself.
MOST_VALUES = 1 << 12
MOST_PARTS, MOST_DEPTH = 1 << 10, 8
# The key of an observation under which environments tell which actions are allowed, as PettingZoo has it.
ACTION_MASK = "action_mask"
# Of one observation.
MOST_ENTRIES = 1 << 24
# A claim repeats the keys that were chosen: one must not be able to be a sentence.
CHOSEN_KEY = re.compile(r"[\w./:-]{1,200}")
# Of whole numbers: sums of two do not overflow.
_LARGEST = 1 << 61
_MOST_SHOWN = 300
_SUPPORTED = (gym.spaces.Box, gym.spaces.Discrete, gym.spaces.MultiDiscrete, gym.spaces.MultiBinary)


class Unread(gym.Space):
    """Stands for a space of which nothing is known but its kind."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """One array of an observation.

    Attributes:
        path: what leads to it: keys of Dict spaces and places in Tuple spaces; nothing where it is the whole observation.
        space: Box, Discrete, MultiDiscrete or MultiBinary.
    """

    path: tuple[str | int, ...]
    space: gym.Space

    @property
    def name(self) -> str:
        return "/".join(map(str, self.path))

    @property
    def called(self) -> str:
        return f"observations of key {self.name}" if self.path else "observations"

    @functools.cached_property
    def categories(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(how many values each of its whole numbers may have, the lowest of them), int64 [k] both, where they become one-hot."""
        if not isinstance(self.space, gym.spaces.Discrete | gym.spaces.MultiDiscrete):
            return None
        return _sizes(self.space)

    @functools.cached_property
    def width(self) -> int:
        """Numbers that it becomes."""
        return math.prod(shape_of(self.space)) if self.categories is None else int(self.categories[0].sum())

    @property
    def dtype(self) -> np.dtype:
        return self.space.dtype if isinstance(self.space, gym.spaces.Box) else np.dtype(np.uint8)

    @property
    def words(self) -> str:
        """What of its space decides how it is read."""
        kind, shape = type(self.space).__name__, tuple(map(int, shape_of(self.space)))
        return f"{self.name}: {kind} {shape}" if self.categories is None else f"{self.name}: {kind} {shape} of {self.categories[0].tolist()} from {self.categories[1].tolist()}"

    def array(self, values) -> np.ndarray:
        """Observations [N, *shape] in its dtype (categories as they are). Raises MucdError for another shape, or for what the dtype does not hold."""
        array = _numbers(values, self)
        if array.ndim == 2 and array.shape[1] == 1 and not self.space.shape:
            array = array[:, 0]
        if array.dtype.kind not in "fiub" or not array.ndim or array.shape[1:] != self.space.shape:
            raise MucdError(f"{self.called} have shape {array.shape[1:]} and dtype {array.dtype}, their space has shape {self.space.shape}: record them as they are declared")
        if self.categories is not None:
            return array
        with np.errstate(over="ignore", invalid="ignore"):
            cast = array.astype(self.dtype)
        if self.dtype.kind != "f" and not (cast == array).all() or not isinstance(self.space, gym.spaces.Box) and (cast > 1).any():
            raise MucdError(f"{self.called} are not in their space, {self.words}: correct them, or declare the space that was recorded")
        return cast

    def declared(self, values) -> np.ndarray:
        """The same in the dtype that the space declares: an episode that was stored in another one must not change those beside it. Raises MucdError as `entries`."""
        array = self.array(values)
        if self.categories is not None:
            _places(array.reshape(len(array), -1), *self.categories, self.called)
        return array.astype(self.space.dtype, copy=False)

    def entries(self, values) -> np.ndarray:
        """The same as rows [N, width], of categories one-hot. Raises MucdError as `array`, and for what is no category."""
        array = self.array(values)
        rows = array.reshape(len(array), -1)
        if self.categories is None:
            return rows
        places, sizes = _places(rows, *self.categories, self.called), self.categories[0]
        one_hot = np.zeros((len(rows), self.width), np.uint8)
        np.put_along_axis(one_hot, places + (np.cumsum(sizes) - sizes), 1, axis=1)
        return one_hot


@dataclass(frozen=True, kw_only=True, eq=False)
class Observations:
    """How observations become one array each: their parts one after the other, those of a Dict in the order of its sorted keys, those of a Tuple by their place, as
    `gymnasium.spaces.utils.flatten` does; Discrete and MultiDiscrete ones one-hot. A single part that is an array keeps its shape.

    Attributes:
        parts: in this order.
    """

    parts: tuple[Part, ...]

    @classmethod
    def of(cls, space: gym.Space, keys: tuple[str, ...] = ()) -> "Observations":
        """Of all parts of a space, or of those under the chosen `keys`: "key", or "key/inner key" within it.

        Raises:
            MucdError: there is no such key, a part is in another space than Box, Discrete, MultiDiscrete and MultiBinary, or there are too many or none.
        """
        found = []
        for path, inner in _parts(space, ()):
            found.append((path, inner))
            if len(found) > MOST_PARTS:
                raise MucdError(f"observations have more than {MOST_PARTS:,} parts: choose some of their keys with --observation-keys")
        wanted = [tuple(key.split("/")) for key in keys]
        for key, names in zip(keys, wanted):
            if not any(_is_under(path, names) for path, _ in found):
                there = ", ".join("/".join(map(str, path)) for path, _ in found if path)
                raise MucdError(f"observations have no key {key!r:.100}" + (f", they have {there:.{_MOST_SHOWN}}" if there else ": they are one array, leave --observation-keys out"))
        chosen = [(path, inner) for path, inner in found if not wanted or any(_is_under(path, names) for names in wanted)]
        if not chosen:
            raise MucdError("observations have no parts: there is nothing to learn from")
        parts = tuple(_part(path, inner) for path, inner in chosen)
        if (entries := sum(part.width for part in parts)) > MOST_ENTRIES:
            raise MucdError(f"observations become {entries:,} numbers, at most {MOST_ENTRIES:,} are taken: choose some of their keys with --observation-keys")
        return cls(parts=parts)

    @property
    def keeps_shape(self) -> bool:
        return len(self.parts) == 1 and self.parts[0].categories is None

    @functools.cached_property
    def space(self) -> gym.spaces.Box:
        """What they become elements of: one part's own shape, or [sum of widths]."""
        dtype = np.result_type(*(part.dtype for part in self.parts))
        bounds = []
        for low_or_high, of_others in (("low", 0), ("high", 1)):
            bounds.append(np.concatenate([
                (getattr(part.space, low_or_high).reshape(-1) if isinstance(part.space, gym.spaces.Box) else np.full(part.width, of_others)).astype(dtype) for part in self.parts
            ]))
        shape = shape_of(self.parts[0].space) if self.keeps_shape else (len(bounds[0]),)
        return gym.spaces.Box(bounds[0].reshape(shape), bounds[1].reshape(shape), shape, dtype)

    def mask(self, actions: int) -> int | None:
        """In a joined and flattened observation the first of the `actions` entries of its key `action_mask`, which are above 0 where an action is allowed; None where there is no such key with one number for each."""
        start = 0
        for part in self.parts:
            if part.path == (ACTION_MASK,) and part.categories is None and part.width == actions:
                return start
            start += part.width
        return None

    @property
    def words(self) -> tuple[str, ...]:
        """What of the space decides how observations are read: equal for spaces that are read alike."""
        return tuple(part.words for part in self.parts)

    def rows(self, arrays: list) -> np.ndarray:
        """N observations [N, *space.shape] from the arrays [N, *shape] of the parts, in their order. Raises MucdError for one that does not fit its space, or the others."""
        arrays = [_numbers(array, part) for part, array in zip(self.parts, arrays, strict=True)]
        lengths = [len(array) if array.ndim else 0 for array in arrays]
        if len(set(lengths)) > 1:
            short = next(place for place, length in enumerate(lengths) if length != lengths[0])
            raise MucdError(f"there are {lengths[0]} {self.parts[0].called} and {lengths[short]} {self.parts[short].called}: record them together")
        if self.keeps_shape:
            return self.parts[0].array(arrays[0])
        joined, start = np.empty((lengths[0], *self.space.shape), self.space.dtype), 0
        for part, array in zip(self.parts, arrays):
            joined[:, start : start + part.width] = part.entries(array)
            start += part.width
        return joined

    def columns(self, values) -> list:
        """The arrays of the parts within nested dictionaries and tuples. Raises MucdError where one is missing."""
        return [_within(values, part) for part in self.parts]

    def one(self, observation) -> np.ndarray:
        """One observation as the environment gives it, as an array of `space`. Raises MucdError where it is not in its space."""
        return self.rows([_numbers(value, part)[None] for part, value in zip(self.parts, self.columns(observation), strict=True)])[0]


@dataclass(frozen=True, kw_only=True, eq=False)
class Actions:
    """How actions become one whole number or one row of numbers each: those of MultiDiscrete and MultiBinary spaces the number of their combination, as
    `np.ravel_multi_index` counts them, or where there are too many of these a row of whole numbers counted from 0; those of a Box of any shape one row.

    Attributes:
        declared: the space of the environment.

    Raises:
        MucdError: another space, or too many values.
    """

    declared: gym.Space

    def __post_init__(self):
        if not isinstance(self.declared, _SUPPORTED):
            kind = getattr(self.declared, "kind", type(self.declared).__name__)
            raise MucdError(f"actions in a space of type {kind} are not supported: Discrete, MultiDiscrete, MultiBinary and Box are")
        if self.are_several and not self.is_joint and float(np.sum(_sizes(self.declared)[0], dtype=float)) > MOST_VALUES:
            raise MucdError(
                f"actions in {shown(self.declared)} have more than {MOST_JOINT_ACTIONS} combinations, and their components more than {MOST_VALUES:,} values in all, each of which would be voted "
                "on: fix some of the components in the environment, or give some of them coarser steps"
            )

    @property
    def are_several(self) -> bool:
        """Whether an action is several whole numbers."""
        return isinstance(self.declared, gym.spaces.MultiDiscrete | gym.spaces.MultiBinary)

    @functools.cached_property
    def is_joint(self) -> bool:
        """Whether these become the number of their combination."""
        return self.are_several and float(np.sum(np.log2(_sizes(self.declared)[0].astype(float)))) <= math.log2(MOST_JOINT_ACTIONS) + 1e-6

    @property
    def components(self) -> tuple[int, ...]:
        """Otherwise how many values each of them may have; () where actions are not several whole numbers that are each voted on by themselves."""
        return tuple(_sizes(self.declared)[0].tolist()) if self.are_several and not self.is_joint else ()

    @functools.cached_property
    def is_plain(self) -> bool:
        """Whether nothing is to be done."""
        if self.are_several:
            return not self.is_joint and self.declared == self._of_components
        return isinstance(self.declared, gym.spaces.Discrete) or isinstance(self.declared, gym.spaces.Box) and len(self.declared.shape) == 1

    @property
    def _of_components(self) -> gym.spaces.MultiDiscrete:
        return gym.spaces.MultiDiscrete(list(self.components))

    @functools.cached_property
    def space(self) -> gym.Space:
        """What they become elements of: Discrete, a MultiDiscrete of one dimension that counts from 0, or a Box of one dimension."""
        if self.components:
            return self._of_components
        if self.is_joint:
            return gym.spaces.Discrete(int(np.prod(_sizes(self.declared)[0])))
        if self.is_plain or not isinstance(self.declared, gym.spaces.Box):
            return self.declared
        return gym.spaces.Box(self.declared.low.reshape(-1), self.declared.high.reshape(-1), dtype=self.declared.dtype)

    @property
    def count(self) -> int:
        """Of discrete ones that are voted on as a whole; 0 of others."""
        return int(self.space.n) if isinstance(self.space, gym.spaces.Discrete) else 0

    def rows(self, values: np.ndarray) -> np.ndarray:
        """Recorded actions [N, *shape] as int64 [N], int64 [N, k] of components or numbers [N, k]; what is plain is given back as it is. Raises MucdError for another shape, or for what is no action."""
        if self.is_plain and not self.components:
            return values
        shape = shape_of(self.declared)
        if values.shape[1:] != shape or values.dtype.kind not in "fiub":
            raise MucdError(f"actions of shape {values.shape[1:]} and dtype {values.dtype} do not fit {shown(self.declared)}: give one of shape {shape} per transition")
        flat = values.reshape(len(values), -1)
        if not self.are_several:
            return flat
        places = _places(flat, *_sizes(self.declared), "actions")
        return places @ self._strides if self.is_joint else places

    def original(self, action):
        """An action of `space` as one of the environment's."""
        if self.is_plain:
            return action
        if not self.are_several:
            return np.asarray(action, self.declared.dtype).reshape(self.declared.shape)
        sizes, start = _sizes(self.declared)
        places = int(action) // self._strides % sizes if self.is_joint else np.asarray(action)
        return (start + places).astype(self.declared.dtype).reshape(self.declared.shape)

    @functools.cached_property
    def _strides(self) -> np.ndarray:
        """How many combinations of later components there are, int64 [k]."""
        sizes, _ = _sizes(self.declared)
        return np.concatenate([np.cumprod(sizes[:0:-1])[::-1], [1]]).astype(np.int64)


def only(space: gym.Space, parts: tuple[Part, ...], path: tuple = ()) -> gym.Space:
    """A space with these parts of it alone; in a Tuple something else keeps the place of the others."""
    chosen = {part.path[: len(path) + 1][-1] for part in parts if part.path[: len(path)] == path and len(part.path) > len(path)}
    if isinstance(space, gym.spaces.Dict):
        return gym.spaces.Dict({key: only(inner, parts, (*path, key)) for key, inner in space.spaces.items() if key in chosen})
    if isinstance(space, gym.spaces.Tuple):
        return gym.spaces.Tuple([only(inner, parts, (*path, place)) if place in chosen else gym.spaces.Text(1) for place, inner in enumerate(space.spaces)])
    return space


def shape_of(space: gym.Space) -> tuple[int, ...]:
    """That of the elements of a space that is no Dict, no Tuple, and no other without one."""
    assert space.shape is not None
    return space.shape


def shown(space: gym.Space) -> str:
    """The beginning of a space's text, in one line."""
    return f"{' '.join(str(space).split()):.{_MOST_SHOWN // 2}}"


def _parts(space: gym.Space, path: tuple) -> Iterator[tuple[tuple, gym.Space]]:
    """(path, space) of everything in a space that is no Dict and no Tuple, in the order of `Observations`."""
    inner: list[tuple[str | int, gym.Space]]
    if isinstance(space, gym.spaces.Tuple):
        inner = list(enumerate(space.spaces))
    elif isinstance(space, gym.spaces.Dict):
        if not all(isinstance(key, str) and 0 < len(key) <= 200 and key.isprintable() and "/" not in key for key in space.spaces):
            raise MucdError("keys of observations must be printable texts of at most 200 characters, without a slash")
        inner = [(key, space.spaces[key]) for key in sorted(space.spaces)]
    else:
        yield path, space
        return
    if len(path) == MOST_DEPTH:
        raise MucdError(f"observations are nested more than {MOST_DEPTH} deep: flatten them in the environment")
    for key, within in inner:
        yield from _parts(within, (*path, key))


def _part(path: tuple, space: gym.Space) -> Part:
    part = Part(path=path, space=space)
    if not isinstance(space, _SUPPORTED):
        kind = getattr(space, "kind", type(space).__name__)
        raise MucdError(f"{part.called} are in a space of type {kind}, which is not supported: Box, Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple of them are" + (
            "; choose other keys with --observation-keys" if path else ""
        ))
    if isinstance(space, gym.spaces.Box) and space.dtype.kind not in "fiub":
        raise MucdError(f"{part.called} have dtype {space.dtype}: only numbers are supported")
    if part.categories is not None and float(np.sum(part.categories[0], dtype=float)) > MOST_ENTRIES:
        raise MucdError(f"{part.called} would become more than {MOST_ENTRIES:,} numbers, one for each category: leave them out, or encode them in the environment")
    return part


def _is_under(path: tuple, names: tuple[str, ...]) -> bool:
    return tuple(map(str, path[: len(names)])) == names


def _within(values, part: Part):
    for key in part.path:
        try:
            values = values[key]
        except (LookupError, TypeError):
            raise MucdError(f"{part.called} are missing in an observation: it must be in the space that is declared") from None
    return values


def _numbers(values, part: Part) -> np.ndarray:
    try:
        return np.asarray(values)
    except (ValueError, TypeError, OverflowError) as error:
        raise MucdError(f"{part.called} are not one array ({error!s:.100}): give them in the shape of their space") from None


def _sizes(space: gym.Space) -> tuple[np.ndarray, np.ndarray]:
    """(number of values, lowest one) of every whole number in a Discrete, MultiDiscrete or MultiBinary space, int64 [k] both."""
    if isinstance(space, gym.spaces.MultiBinary):
        return np.full(math.prod(space.shape), 2), np.zeros(math.prod(space.shape), np.int64)
    assert isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete)
    sizes, start = (np.asarray(value).reshape(-1) for value in (space.n if isinstance(space, gym.spaces.Discrete) else space.nvec, space.start))
    if any((row > _LARGEST).any() or (row < -_LARGEST).any() for row in (sizes, start)):
        raise MucdError(f"{shown(space)} has whole numbers beyond {_LARGEST:,}: use smaller ones")
    return sizes.astype(np.int64), start.astype(np.int64)


def _places(rows: np.ndarray, sizes: np.ndarray, start: np.ndarray, called: str) -> np.ndarray:
    """Whole numbers [N, k] counted from the lowest, int64. Raises MucdError where one is outside."""
    whole = (rows == np.rint(rows)) if rows.dtype.kind == "f" else np.ones(rows.shape, bool)
    # Compared before they are cast, so that none wraps around.
    bad = ~(whole & (rows >= start) & (rows <= start + (sizes - 1))).all(axis=1)
    if bad.any():
        row = int(np.argmax(bad))
        raise MucdError(f"{int(bad.sum())} of {len(rows)} {called} are outside their space, first in row {row} ({rows[row]!s:.100}): correct them, or declare the space that was recorded")
    return rows.astype(np.int64) - start
