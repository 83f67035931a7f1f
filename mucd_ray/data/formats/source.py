"""What `mucd import` is given, a file or a folder of a stranger's: every byte that a reader takes from it is counted, bounded and part of its hash."""

import contextlib
import hashlib
import math
import os
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np

from mucd_ray.data.formats.child import Child
from mucd_ray.data.formats.hdf5 import Hdf5File
from mucd_ray.errors import MucdError
from mucd_ray.files import open_file, printable, read_file, read_json, read_npy

# Of one file, and of all that a source's files unpack to.
MOST_FILE_BYTES = 1 << 33
MOST_UNPACKED_BYTES = 1 << 33
MOST_FILES = 1 << 20
MOST_MEMBERS = 1 << 12
BYTES_AT_A_TIME = 1 << 22


class Source:
    """A file, or a folder whose files are named relative to it. Links to the source itself are the user's and are followed, those that lead out of it are refused.

    Attributes:
        path: as it was given, resolved.
        left: bytes that may still be unpacked.
    """

    def __init__(self, path):
        try:
            self.path = Path(path).resolve(strict=True)
        except (OSError, RuntimeError, ValueError) as error:
            raise MucdError(f"{printable(path)} cannot be read ({getattr(error, 'strerror', None) or 'no such file'}): give a file or a folder") from None
        self.is_folder, self.left, self._hashes, self._child = self.path.is_dir(), MOST_UNPACKED_BYTES, {}, None
        if not self.is_folder and not self.path.is_file():
            raise MucdError(f"{printable(path)} is not a regular file: give a file or a folder")

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *error) -> None:
        if self._child is not None:
            self._child.__exit__()

    @property
    def name(self) -> str:
        return self.path.name

    def names(self, pattern: str) -> list[str]:
        """Files of a folder that match a pattern of pathlib's, sorted; hidden ones are passed over."""
        found = []
        for path in self.path.glob(pattern):
            if not path.name.startswith(".") and not path.is_dir():
                found.append(str(path.relative_to(self.path)))
            if len(found) > MOST_FILES:
                raise MucdError(f"{self.path} holds more than {MOST_FILES:,} files {pattern}")
        return sorted(found)

    def has(self, name: str) -> bool:
        return self.is_folder and (self.path / name).is_file()

    def head(self, size: int) -> bytes:
        """The first bytes of a file; none of a folder."""
        if self.is_folder:
            return b""
        with open(self.path, "rb") as file:
            return file.read(size)

    def digest(self) -> str:
        """SHA-256 of all that was read: of a file its own; of a folder that of the lines "sha256  name" of the files, as sha256sum prints them sorted by name."""
        if not self.is_folder:
            return self._hashes.get("") or self.hash("")
        return hashlib.sha256("".join(f"{self._hashes[name]}  {name}\n" for name in sorted(self._hashes)).encode()).hexdigest()

    @property
    def files(self) -> int:
        """How many were read."""
        return len(self._hashes)

    def read(self, name: str = "", most_bytes: int = MOST_FILE_BYTES) -> bytes:
        content = read_file(self._located(name), most_bytes, within=self.path if self.is_folder else None)
        self._hashes[name] = hashlib.sha256(content).hexdigest()
        return content

    def json(self, name: str, most_bytes: int = 1 << 26) -> dict:
        values = read_json(self.read(name, most_bytes), self._located(name), most_bytes=most_bytes)
        if not isinstance(values, dict):
            raise MucdError(f"{self._located(name)} is not a JSON object")
        return values

    def take(self, size: int, what: str) -> None:
        """Count bytes that will be unpacked, before they are."""
        self.left -= size
        if self.left < 0:
            raise MucdError(f"up to {what} its data unpack to more than {MOST_UNPACKED_BYTES:,} bytes: import it in several parts")

    @contextlib.contextmanager
    def hdf5(self, name: str = ""):
        path = self._located(name)
        self.hash(name)
        with h5py.File(path, "r") as file:
            yield Hdf5File(file, path.stat().st_size)

    def parquet_schema(self, name: str = "") -> tuple[dict[str, str], int]:
        """({column: "number", "list", "text" or "other"}, rows) of a parquet file; of columns of one name the last, which cannot be read."""
        answer, _ = self._parquet(name, None)
        if not all(isinstance(column, list) and len(column) == 2 and all(isinstance(text, str) for text in column) for column in answer["schema"]):
            raise ValueError("the process that read it gives no schema")
        return dict(answer["schema"]), int(answer["rows"])

    def parquet(self, name: str, columns: list[str]) -> dict[str, np.ndarray | list[str]]:
        """Columns of a parquet file: numbers [N] or [N, k], or texts."""
        answer, arrays = self._parquet(name, columns)
        self.take(int(answer["unpacked"]), name or self.name)
        return {column: _texts(arrays[column], arrays[f"{column}-ends"]) if f"{column}-ends" in arrays else arrays[column] for column in columns}

    def _parquet(self, name: str, columns: list[str] | None):
        self._child = self._child or Child()
        content = self.read(name)
        try:
            return self._child.ask({"format": "table", "columns": columns, "left": self.left}, content, 0 if columns is None else self.left)
        except ValueError as error:
            raise MucdError(f"{self._located(name)} cannot be read ({printable(error)})") from None

    def npz(self) -> dict[str, np.ndarray]:
        """Arrays of numbers of a .npz archive. Raises MucdError for anything else in it: nothing is unpickled."""
        self.hash("")
        arrays = {}
        with zipfile.ZipFile(self.path) as archive:
            members = archive.infolist()
            if len(members) > MOST_MEMBERS or len({member.filename for member in members}) < len(members):
                raise MucdError(f"{self.path} has two members of one name, or more than {MOST_MEMBERS:,}: write it anew with numpy.savez")
            self.take(sum(member.file_size for member in members), self.name)
            for member in members:
                if not member.filename.endswith(".npy") or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise MucdError(f"{self.path} holds {printable(member.filename)}, which numpy.savez does not write")
                with archive.open(member) as file:
                    content = file.read(member.file_size)
                arrays[member.filename.removesuffix(".npy")] = read_npy(content, f"{printable(member.filename)} in {self.path}", most_bytes=MOST_UNPACKED_BYTES)
        return arrays

    def npz_names(self) -> set[str]:
        with zipfile.ZipFile(self.path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}

    def gzipped_npy(self, name: str) -> np.ndarray:
        """The array of a .npy file that is packed by gzip."""
        content, worker, parts = self.read(name), zlib.decompressobj(wbits=31), []
        while content and not worker.eof:
            part = worker.decompress(content, BYTES_AT_A_TIME)
            self.take(len(part), name)
            parts.append(part)
            content = worker.unconsumed_tail
        if not worker.eof:
            raise MucdError(f"{self._located(name)} is cut off: fetch it again")
        return read_npy(b"".join(parts), self._located(name), most_bytes=MOST_UNPACKED_BYTES)

    def _located(self, name: str) -> Path:
        return self.path / name if name else self.path

    def hash(self, name: str) -> str:
        """SHA-256 of a file that something else reads; it becomes part of `digest`."""
        digest = hashlib.sha256()
        with open_file(self._located(name), MOST_FILE_BYTES, self.path if self.is_folder else None) as file:
            for _ in range(math.ceil(os.fstat(file.fileno()).st_size / BYTES_AT_A_TIME)):
                digest.update(file.read(BYTES_AT_A_TIME))
        self._hashes[name] = digest.hexdigest()
        return self._hashes[name]


def _texts(content: np.ndarray, ends: np.ndarray) -> list[str]:
    known: dict[str, str] = {}
    whole, texts, start = content.tobytes(), [], 0
    for end in ends.tolist():
        try:
            text = whole[start:end].decode()
        except UnicodeDecodeError:
            raise MucdError(f"{printable(whole[start:end])[:60]} is not text in UTF-8: write the texts anew, since two of them might become one") from None
        # Equal texts are one object.
        texts.append(known.setdefault(text, text))
        start = end
    return texts
