"""Episodes of Minari's other formats, arrow and parquet: one file per episode, of plain columns, read by a child process (`columns.py`)."""

import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from mucd_ray.data.formats.child import Child
from mucd_ray.data.formats.jpeg import decoded
from mucd_ray.data.formats.metadata import Metadata
from mucd_ray.data.spaces import Part, shape_of
from mucd_ray.errors import MucdError
from mucd_ray.files import read_file, read_json

FORMATS = ("arrow", "parquet")
COLUMNS = ("observations", "actions", "rewards", "terminations", "truncations")
MOST_FILE_BYTES = 1 << 33
# Of all episodes' parquet columns and images, in all: beyond it small files could fill the memory.
MOST_UNPACKED_BYTES = 1 << 33
MOST_JPEG_HEADER = 1 << 16
MOST_METADATA_BYTES = 1 << 16


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
        self.reader = Child()
        self.child = self.reader.process

    def __enter__(self) -> "Tables":
        return self

    def __exit__(self, *error) -> None:
        self.reader.__exit__()

    def episode(self, number: int) -> dict[str, Any]:
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
        arrays["actions"] = arrays["actions"].reshape(-1, *shape_of(self.metadata.action_space))
        return arrays | {
            "observations": [
                self._images(table[name], table[f"{name}-ends"], shape_of(space)) if image else table[name].reshape(-1, *shape_of(space)) for name, (space, image) in self.parts.items()
            ]
        }

    def _columns(self, content: bytes) -> dict[str, np.ndarray]:
        spaces = {name: space for name, (space, _) in self.parts.items()} | {"actions": self.metadata.action_space}
        wanted: dict[str, list] = {name: [str(space), None if isinstance(space, gym.spaces.Discrete) else math.prod(shape_of(space)), False] for name, space in spaces.items()}
        wanted |= {name: ["", None, False] for name in COLUMNS[2:]}
        most_bytes = min(self.left, (self.metadata.steps + 1) * 8 * sum(entries or 1 for _, entries, _ in wanted.values()))
        images = {name: space for name, (space, image) in self.parts.items() if image}
        for name, space in images.items():
            wanted[name][2] = True
            # A JPEG file is smaller than what it shows, but for its headers.
            most_bytes += (self.metadata.steps + 1) * (MOST_JPEG_HEADER + 2 * math.prod(shape_of(space)))
        most_bytes = min(self.left, most_bytes)
        question = {"format": self.metadata.data_format, "columns": wanted, "most_rows": self.metadata.steps + 1, "left": most_bytes if images else self.left}
        answer, arrays = self.reader.ask(question, content, most_bytes)
        self._take(answer["unpacked"])
        return arrays

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
