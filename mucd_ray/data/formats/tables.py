"""Episodes of Minari's other formats, arrow and parquet: one file per episode, of plain columns."""

import math
import struct
from pathlib import Path

import gymnasium as gym
import numpy as np

from mucd_ray.data.formats.jpeg import decoded
from mucd_ray.data.formats.metadata import Metadata
from mucd_ray.errors import MucdError
from mucd_ray.files import read_file, read_json

FORMATS = ("arrow", "parquet")
COLUMNS = ("observations", "actions", "rewards", "terminations", "truncations")
MOST_FILE_BYTES = 1 << 33
# Of all episodes' parquet columns and images, in all: beyond it small files could fill the memory.
MOST_UNPACKED_BYTES = 1 << 33
MOST_HEADER_BYTES = 1 << 20
MOST_METADATA_BYTES = 1 << 16
# Rows are unpacked so many bytes at a time, as their space declares them.
BYTES_AT_A_TIME = 1 << 26
# Texts of bytes have no declared length: one that is stored once may be meant by every row.
IMAGES_AT_A_TIME = 16


class Allowance:
    """What the files of one dataset may still unpack to."""

    def __init__(self):
        self.left = MOST_UNPACKED_BYTES

    def take(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise ValueError(f"its episodes unpack to more than {MOST_UNPACKED_BYTES:,} bytes in all")


def read_table(folder: Path, number: int, metadata: Metadata, image: bool, allowance: Allowance) -> dict[str, np.ndarray]:
    """The arrays of an episode: T + 1 observations and T of everything else.

    Args:
        folder: the dataset's folder `data`.
        image: whether observations are JPEG files.
        allowance: one for all episodes.
    Raises:
        MucdError, OSError, ValueError: the file is missing, leads elsewhere, or holds anything but these columns as plain numbers; or whatever
            pyarrow raises on damage.
    """
    name = f"part-0.{metadata.data_format}"
    others = sorted({path.name for path in (folder / str(number)).iterdir()} - {name, "metadata.json"})
    if others:
        raise MucdError(f"the folder of episode {number} holds {others[0][:100]!r} beside {name}: one file per episode is read")
    content = read_file(folder / str(number) / name, MOST_FILE_BYTES, within=folder)
    table = _arrow(content, metadata) if metadata.data_format == "arrow" else _parquet(content, metadata, image, allowance)
    # Minari fills up the last row of all but the observations.
    arrays = {column: _numbers(table[column], gym.spaces.Discrete(2))[:-1] for column in COLUMNS[2:]}
    arrays["actions"] = _numbers(table["actions"], metadata.action_space)[:-1]
    observations = table["observations"]
    return arrays | {"observations": _images(observations, metadata.observation_space.shape, allowance) if image else _numbers(observations, metadata.observation_space)}


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


def _arrow(content: bytes, metadata: Metadata) -> dict:
    """Its columns, whose buffers lie in `content`. The footer is not believed: the messages before it are read in turn."""
    import pyarrow

    if content[:8] != b"ARROW1\0\0":
        raise ValueError("no arrow file")
    messages = pyarrow.ipc.MessageReader.open_stream(pyarrow.py_buffer(content)[8:])
    first = messages.read_next_message()
    # pyarrow takes what it is given for a schema, and the process ends where it is none.
    if first.type != "schema":
        raise ValueError(f"its first message is of type {first.type}, not a schema")
    schema = pyarrow.ipc.read_schema(first)
    batches = []
    for message in _until_end(messages):
        if message.type != "record batch" or _is_compressed(message.metadata.to_pybytes()):
            raise ValueError("its arrow messages must be plain, without compression and dictionaries")
        batches.append(pyarrow.ipc.read_record_batch(message, schema))
        batches[-1].validate(full=True)
    return _columns(pyarrow.Table.from_batches(batches, schema), metadata)


def _until_end(messages):
    while True:
        try:
            yield messages.read_next_message()
        except StopIteration:
            return


def _is_compressed(header: bytes) -> bool:
    """Whether a record batch says that its buffers are compressed: the fourth field of the third field of the message (format/Message.fbs)."""

    def field(table: int, number: int) -> int | None:
        vtable = table - struct.unpack_from("<i", header, table)[0]
        if 4 + 2 * number >= struct.unpack_from("<H", header, vtable)[0]:
            return None
        offset = struct.unpack_from("<H", header, vtable + 4 + 2 * number)[0]
        return table + offset if offset else None

    batch = field(struct.unpack_from("<I", header)[0], 2)
    return batch is None or field(batch + struct.unpack_from("<I", header, batch)[0], 3) is not None


def _parquet(content: bytes, metadata: Metadata, image: bool, allowance: Allowance) -> dict:
    """Its columns, after the sizes that the file declares. Those are of encoded values: a million equal ones are a few bytes, so rows are counted as they come."""
    import pyarrow
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(
        pyarrow.BufferReader(content), pre_buffer=False, thrift_string_size_limit=MOST_HEADER_BYTES, thrift_container_size_limit=MOST_HEADER_BYTES
    )
    found = file.metadata
    entries = max(math.prod(metadata.observation_space.shape), math.prod(metadata.action_space.shape), 1)
    for group in (found.row_group(index) for index in range(found.num_row_groups)):
        for column in (group.column(index) for index in range(group.num_columns)):
            if not 0 <= column.total_uncompressed_size <= MOST_UNPACKED_BYTES or column.path_in_schema.split(".")[0] in COLUMNS and column.num_values > group.num_rows * entries:
                raise ValueError("its columns declare more values than its rows hold")
    if found.num_rows > metadata.steps + 1:
        raise ValueError(f"it declares {found.num_rows:,} rows, the dataset {metadata.steps:,} steps")
    rows, batches = max(BYTES_AT_A_TIME // (8 * entries), 1), []
    for batch in file.iter_batches(min(rows, IMAGES_AT_A_TIME) if image else rows, columns=list(COLUMNS), use_threads=False):
        allowance.take(batch.nbytes)
        batches.append(batch)
    return _columns(pyarrow.Table.from_batches(batches, batches[0].schema if batches else pyarrow.schema([])), metadata)


def _columns(table, metadata: Metadata) -> dict:
    """{name: array}, each column once and in one piece."""
    if table.num_rows > metadata.steps + 1 or any(table.column_names.count(name) != 1 for name in COLUMNS):
        raise ValueError(f"it must have the columns {', '.join(COLUMNS)} once each, and no more rows than the dataset has steps")
    columns = {name: table.column(name).combine_chunks() for name in COLUMNS}
    # Without any row pyarrow leaves a column of no pieces.
    return {name: column.combine_chunks() if hasattr(column, "chunks") else column for name, column in columns.items()}


def _numbers(column, space: gym.Space) -> np.ndarray:
    """A column of numbers, or of lists of numbers in the space's shape."""
    import pyarrow

    is_list = not isinstance(space, gym.spaces.Discrete)
    if is_list:
        if not pyarrow.types.is_fixed_size_list(column.type) or column.type.list_size != math.prod(space.shape) or column.null_count:
            raise ValueError(f"a column of type {column.type} where {space} was declared")
        rows, column = len(column), column.flatten()
    types = pyarrow.types
    if not (types.is_integer(column.type) or types.is_floating(column.type) or types.is_boolean(column.type)) or column.null_count:
        raise ValueError(f"a column of type {column.type}, or with gaps: only numbers are read")
    array = column.to_numpy(zero_copy_only=False)
    return array.reshape(rows, *space.shape) if is_list else array


def _images(column, shape: tuple[int, ...], allowance: Allowance) -> np.ndarray:
    import pyarrow

    if not pyarrow.types.is_binary(column.type) or column.null_count:
        raise ValueError(f"a column of type {column.type} is no list of JPEG files")
    allowance.take(len(column) * math.prod(shape))
    images = np.empty((len(column), *shape), np.uint8)
    for row, content in enumerate(column):
        images[row] = decoded(content.as_py(), shape)
    return images
