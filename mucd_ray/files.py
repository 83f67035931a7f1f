"""Bytes from outside: JSON and .npy, read so that no file of an attacker takes more than its own size (docs/files.md); and files that the user names, written whole."""

import contextlib
import io
import json
import math
import os
import re
import stat
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mucd_ray.errors import MucdError
from mucd_ray.words import harmless

MOST_JSON_BYTES = 1 << 26
MOST_DEPTH = 64
# Lists and objects: an empty one takes twenty times its text.
MOST_LISTS = 1 << 20
# Longest whole number, in digits: more than any of 64 bits, and no float overflows.
MOST_DIGITS = 300
MOST_ARRAY_BYTES = 1 << 32
# Larger whole numbers are no doubles, and may overflow where one is expected.
LARGEST_WHOLE = 1 << 53

# Of JSON without escapes; a text that does not end goes to the end, or every quotation mark would be tried as a beginning.
_TEXT = re.compile(r'"[^"]*(?:"|\Z)')
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class TooLarge(MucdError):
    """A file of more bytes than are read of its kind; none of them was."""


def read_file(path, most_bytes: int, within: Path | None = None) -> bytes:
    """The content of a regular file; arguments and errors are those of `open_file`."""
    with open_file(path, most_bytes, within) as file:
        return file.read(os.fstat(file.fileno()).st_size)


@contextlib.contextmanager
def open_file(path, most_bytes: int, within: Path | None = None) -> Iterator[BinaryIO]:
    """A regular file, to be read.

    Args:
        within: a folder; a file that is a link to somewhere outside it is refused.
    Raises:
        MucdError: no regular file (a pipe or a device may never end), one outside `within`, or one of more than `most_bytes` (TooLarge).
        OSError: it is missing or cannot be read.
    """
    if within is not None:
        check_within(path, within)
    # A pipe without a writer would wait for one.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise MucdError(f"{path} is not a regular file: give one")
        if status.st_size > most_bytes:
            raise TooLarge(f"{path} has {status.st_size:,} bytes, at most {most_bytes:,} are read: it is not what it should be")
        yield file


def open_unlinked(path, flags: int) -> BinaryIO:
    """A file to write to, made where there is none, in a folder that a stranger may have filled.

    Args:
        flags: of `os.open`.
    Raises:
        OSError: it is a link, a pipe, a device, or cannot be opened.
    """
    number = os.open(path, flags | os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(f"{path} is not a regular file: remove it")
    return open(number, "wb")


def write_file(path, content: bytes, *, new: bool = False) -> None:
    """Write a file that the user named, whole or not at all; with `new` only if there is none.

    Raises:
        MucdError: it cannot be written, or is there already.
    """
    path = Path(path)
    try:
        if not new and path.exists() and not path.is_file():  # a pipe, say
            path.write_bytes(content)
            return
        final = path if new else path.resolve()
        part = final if new else final.with_name(f".{final.name}.{os.getpid()}")
        with open(part, "xb", buffering=0) as file:
            try:
                rest = memoryview(content)
                while rest:
                    rest = rest[file.write(rest) :]
                if not new:
                    os.replace(part, final)
            except BaseException:
                part.unlink()
                raise
    except OSError as error:
        raise MucdError(f"{path} cannot be written ({error.strerror or error}): choose another place") from None


def check_within(path, folder: Path) -> None:
    """Raise MucdError where `path` leads out of `folder`, by links or otherwise."""
    try:
        inside = Path(path).resolve().is_relative_to(Path(folder).resolve())
    except RuntimeError:
        raise MucdError(f"{path} is a link that leads back to itself: put the file itself there") from None
    if not inside:
        raise MucdError(f"{path} leads out of {folder}: links out of a folder are not followed, put the file itself there")


def read_json(content: bytes | str, name, *, most_bytes: int = MOST_JSON_BYTES, infinities: bool = False):
    """The value of a JSON text.

    Args:
        name: what errors call it.
        infinities: whether Infinity and -Infinity may stand for numbers, as Python writes the bounds of a space.
    Raises:
        MucdError: no UTF-8 or no JSON; more than `most_bytes`; a key twice in an object; lists and objects more than MOST_DEPTH deep, or more than
            MOST_LISTS; NaN, or a number that no float holds.
    """
    if len(content) > most_bytes:
        raise MucdError(f"{name} has {len(content):,} bytes, at most {most_bytes:,} are read: it is not what it should be")

    def constant(text):
        if infinities and text != "NaN":
            return float(text)
        raise ValueError(f"{text} is not a number")

    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
        _check_depth(text)
        return json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=constant, parse_int=_whole, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise MucdError(f"{name} is not JSON as it should be: {printable(error)}") from None


def _check_depth(text: str) -> None:
    depth = 0
    outside = _TEXT.sub("", text.replace(r"\\", "").replace(r'\"', ""))
    brackets = outside.encode("utf-8", "surrogatepass").translate(None, _NO_BRACKETS)
    if brackets.count(b"[") + brackets.count(b"{") > MOST_LISTS:
        raise ValueError(f"it has more than {MOST_LISTS:,} lists and objects")
    for bracket in brackets:
        depth += 1 if bracket in b"[{" else -1
        if depth > MOST_DEPTH:
            raise ValueError(f"lists and objects are nested more than {MOST_DEPTH} deep")


def _without_duplicates(pairs):
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("duplicate key in an object")
    return values


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is too large for a double")
    return value


@contextlib.contextmanager
def as_expected(name, fix: str):
    """Around code that takes a JSON value of this package's own making apart: one that was made by somebody else is refused in a line."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise MucdError(f"{name} is not as this version writes it ({type(error).__name__}: {printable(error)}): {fix}") from None


NAMES: dict[typing.Any, str] = {
    str: "text", bool: "true or false", int: "a whole number", float: "a finite number", int | None: "a whole number or null", float | None: "a number or null", str | None: "text or null",
    tuple[int, ...]: "a list of whole numbers", tuple[float, ...]: "a list of numbers", tuple[float, float]: "two numbers", tuple[str, ...]: "a list of texts",
}


def check_types(kind: type, values: dict) -> dict:
    """The fields of the dataclass `kind` as JSON holds them, each of the type that is declared for it: lists for tuples, true and false for nothing but booleans.

    Raises:
        TypeError: one is of another type; missing and unknown fields are left to the class.
    """
    hints = typing.get_type_hints(kind)
    for field in fields(kind):
        if field.name in values and not fits(values[field.name], hints[field.name]):
            raise TypeError(f"{field.name} {quoted(values[field.name])} must be {NAMES.get(hints[field.name], 'another kind of value')}")
    return values


def fits(value, wanted) -> bool:
    """Whether a JSON value, or an object already made of one, is of the annotated type. JSON writes 1.0 and 1 alike; true is no number."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, argument) for argument in arguments)
    if wanted in (int, float):
        return abs(value) <= LARGEST_WHOLE if type(value) is int else type(value) is wanted
    if origin is tuple:
        one_type = arguments[1:] == (Ellipsis,)
        return isinstance(value, list | tuple) and (one_type or len(value) == len(arguments)) and all(map(fits, value, arguments[:1] * len(value) if one_type else arguments))
    if origin in (dict, Mapping):
        return isinstance(value, Mapping) and all(fits(held, arguments[1]) for held in value.values())
    if is_dataclass(wanted) and isinstance(value, Mapping):
        return True  # checked where it is made
    return isinstance(value, wanted) and not (isinstance(value, bool) and wanted is not bool)


def quoted(value) -> str:
    """The beginning of a value in words."""
    try:
        return printable(repr(value)[:100])
    except Exception:  # of thousands of digits, say, or of a class of the user's
        return f"of type {type(value).__name__}"


def printable(value) -> str:
    """At most 200 characters of a text, without control sequences: parsers quote what they read."""
    return harmless(str(value)[:200].replace("\n", " "))


def read_npy(content: bytes, name, *, most_bytes: int = MOST_ARRAY_BYTES) -> np.ndarray:
    """The array of a .npy file of numbers; nothing is unpickled, and nothing is allocated before the header fits the bytes there are.

    Raises:
        MucdError: no .npy file, another dtype than booleans, integers and floats, a shape that is not that of the bytes, or too many of them.
    """
    if len(content) > most_bytes:
        raise MucdError(f"{name} has {len(content):,} bytes, at most {most_bytes:,} are read: it is not what it should be")
    try:
        shape, fortran, dtype, start = _npy_header(content)
        if dtype.kind not in "fiub" or dtype.itemsize > 8:
            raise ValueError(f"its dtype is {dtype}: only numbers are read")
        size = math.prod(shape) * dtype.itemsize
        if not all(length >= 0 for length in shape) or size != len(content) - start:
            raise ValueError(f"its header says {printable(shape)} and {dtype}, which is not {len(content) - start} bytes")
        return np.frombuffer(content, dtype, offset=start).reshape(shape, order="F" if fortran else "C").copy()
    except Exception as error:  # numpy reads the header as Python, and raises anything
        raise MucdError(f"{name} cannot be read ({printable(error)}): give a .npy file with one array of numbers") from None


def _npy_header(content: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """(shape, whether in Fortran's order, dtype, where the numbers begin)."""
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"its format version is {version}")
    return *readers[version](file), file.tell()
