"""Episodes of Minari's other formats, arrow and parquet: one file per episode, of plain columns, read by a child process (`columns.py`)."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np

from mucd_ray.data.formats.jpeg import decoded
from mucd_ray.data.formats.metadata import Metadata
from mucd_ray.data.spaces import Part
from mucd_ray.errors import MucdError
from mucd_ray.files import read_file, read_json

FORMATS = ("arrow", "parquet")
COLUMNS = ("observations", "actions", "rewards", "terminations", "truncations")
MOST_FILE_BYTES = 1 << 33
# Of all episodes' parquet columns and images, in all: beyond it small files could fill the memory.
MOST_UNPACKED_BYTES = 1 << 33
MOST_ANSWER = 1 << 16
MOST_JPEG_HEADER = 1 << 16
MOST_METADATA_BYTES = 1 << 16
# What a child may take beside a few times the bytes of a file and of its rows.
SPARE_BYTES, SPARE_SECONDS, BYTES_PER_SECOND = 1 << 30, 60, 1 << 22
PROGRAM = Path(__file__).with_name("columns.py")


class Tables:
    """Reads the episodes of a dataset; a context manager, since its child process has to end.

    Args:
        folder: the dataset's folder `data`.
        parts: of observations; a single one without a path is the whole.
        images: which of them are JPEG files.
    """

    def __init__(self, folder: Path, metadata: Metadata, parts: tuple[Part, ...], images: list[bool]):
        self.folder, self.metadata, self.left = folder, metadata, MOST_UNPACKED_BYTES
        # By the column in which a part is, and the fields within it.
        self.parts = {"/".join(["observations", part.name] if part.path else ["observations"]): (part.space, image) for part, image in zip(parts, images, strict=True)}
        # Not beside its own folder's files, which have names of packages. Of what its libraries print nothing is read.
        self.child = subprocess.Popen(
            [sys.executable, "-P", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system"},
        )

    def __enter__(self) -> "Tables":
        return self

    def __exit__(self, *error) -> None:
        self.child.kill()
        self.child.communicate()

    def episode(self, number: int) -> dict[str, np.ndarray]:
        """The arrays of an episode: of observations a list of their parts, T + 1 of each, and T of everything else.

        Raises:
            MucdError, OSError, ValueError: the file is missing, leads elsewhere, ends the process that reads it, or holds anything but these
                columns as plain numbers.
        """
        name = f"part-0.{self.metadata.data_format}"
        others = sorted({path.name for path in (self.folder / str(number)).iterdir()} - {name, "metadata.json"})
        if others:
            raise MucdError(f"the folder of episode {number} holds {others[0][:100]!r} beside {name}: one file per episode is read")
        table = self._columns(read_file(self.folder / str(number) / name, MOST_FILE_BYTES, within=self.folder))
        # Minari fills up the last row of all but the observations.
        arrays = {column: table[column][:-1] for column in COLUMNS[1:]}
        arrays["actions"] = arrays["actions"].reshape(-1, *self.metadata.action_space.shape)
        return arrays | {
            "observations": [
                self._images(table[name], table[f"{name}-ends"], space.shape) if image else table[name].reshape(-1, *space.shape) for name, (space, image) in self.parts.items()
            ]
        }

    def _columns(self, content: bytes) -> dict[str, np.ndarray]:
        spaces = {name: space for name, (space, _) in self.parts.items()} | {"actions": self.metadata.action_space}
        wanted = {name: [str(space), None if isinstance(space, gym.spaces.Discrete) else math.prod(space.shape), False] for name, space in spaces.items()}
        wanted |= {name: ["", None, False] for name in COLUMNS[2:]}
        most_bytes = min(self.left, (self.metadata.steps + 1) * 8 * sum(entries or 1 for _, entries, _ in wanted.values()))
        images = {name: space for name, (space, image) in self.parts.items() if image}
        for name, space in images.items():
            wanted[name][2] = True
            # A JPEG file is smaller than what it shows, but for its headers.
            most_bytes += (self.metadata.steps + 1) * (MOST_JPEG_HEADER + 2 * math.prod(space.shape))
        most_bytes = min(self.left, most_bytes)
        work = 2 * len(content) + 3 * most_bytes
        seconds = SPARE_SECONDS + work // BYTES_PER_SECOND
        question = {
            "format": self.metadata.data_format, "size": len(content), "columns": wanted, "most_rows": self.metadata.steps + 1, "left": most_bytes if images else self.left,
            "memory": SPARE_BYTES + work, "seconds": seconds,
        }
        try:
            self.child.stdin.write(json.dumps(question).encode() + b"\n")
            self.child.stdin.write(content)
            self.child.stdin.flush()
            line = self.child.stdout.readline(MOST_ANSWER)
            if not line:
                raise EOFError
            answer = read_json(line, "the answer")
            if "error" in answer:
                raise ValueError(answer["error"])
            self._take(answer["unpacked"])
            return {name: self._array(np.dtype(dtype), shape, work) for name, (dtype, shape) in answer["columns"].items()}
        except (EOFError, BrokenPipeError):
            ended = -self.child.wait()
            cause = f"took more than {seconds} seconds" if ended == signal.SIGXCPU else f"ended by {signal.Signals(ended).name if ended > 0 else 'itself'}"
            raise ValueError(f"a file is damaged: the process that read it with pyarrow {cause}") from None

    def _array(self, dtype: np.dtype, shape: list[int], most_bytes: int) -> np.ndarray:
        # A child that ran the file's code would say anything.
        if dtype.kind not in "biuf" or math.prod(shape) * dtype.itemsize > most_bytes:
            raise ValueError(f"the process that read it gives {dtype} {shape}")
        array = np.empty(shape, dtype)
        size = self.child.stdout.readinto(memoryview(array.reshape(-1)).cast("B")) if array.size else 0
        if size < array.nbytes:
            raise EOFError
        return array

    def _take(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise ValueError(f"its episodes unpack to more than {MOST_UNPACKED_BYTES:,} bytes in all")

    def _images(self, content: np.ndarray, ends: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        self._take(len(ends) * math.prod(shape))
        images, start = np.empty((len(ends), *shape), np.uint8), 0
        for row, end in enumerate(ends):
            images[row], start = decoded(content[start:end].tobytes(), shape), end
        return images


def episode_metadata(folder: Path, number: int) -> dict:
    """What Minari keeps beside the table of an episode, none of it checked; {} if nothing.

    Raises:
        MucdError, OSError: no JSON object, or a file elsewhere.
    """
    path = folder / str(number) / "metadata.json"
    if not path.exists():
        return {}
    values = read_json(read_file(path, MOST_METADATA_BYTES, within=folder), path)
    if not isinstance(values, dict):
        raise MucdError(f"{path} is not a JSON object")
    return values
