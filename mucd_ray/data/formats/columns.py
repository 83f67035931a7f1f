"""A program of its own: it is given arrow and parquet files and gives back their columns as plain numbers.

pyarrow ends the process on some damaged files. So it runs here, in a child of `tables.py`, within bounds of memory and time. This file imports
nothing of the package. A question is a line of JSON and a file's bytes; an answer is a line of JSON, {"error": text} or
{"columns": {name: [dtype, shape]}, "unpacked": bytes}, and the bytes of the columns one after the other. A column of images is one of bytes
and, with "-ends" after its name, where each of them ends.
"""

import json
import resource
import struct
import sys

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet

MOST_HEADER_BYTES = 1 << 20
# Rows are unpacked so many bytes at a time, as their space declares them.
BYTES_AT_A_TIME = 1 << 26
# Texts of bytes have no declared length: one that is stored once may be meant by every row.
IMAGES_AT_A_TIME = 16
MOST_TEXT_BYTES = 800


def main() -> None:
    """Answer questions until there are none.

    A question has: "format"; "size" of the file in bytes; "columns", {name: [text of the space, numbers in a row or None for a scalar,
    whether it is an image]}, where "column/field" is a field of a column of structures; "most_rows"; "left", bytes that may be unpacked; "memory" and "seconds", that the answer may take.
    Of the format "table", a parquet file of which nothing is declared, "columns" are names, or None: then the answer is {"schema": [[name, kind], ...]}.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while line := sys.stdin.buffer.readline():
        question = json.loads(line)
        _limit(resource.RLIMIT_AS, _mapped() + question["memory"])
        used = resource.getrusage(resource.RUSAGE_SELF)
        _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + question["seconds"])
        try:
            content = sys.stdin.buffer.read(question["size"])
            columns, told = _table(content, question) if question["format"] == "table" else _read(question, content)
            answer = {"columns": {name: [array.dtype.str, array.shape] for name, array in columns.items()}, **told}
        except Exception as error:  # pyarrow raises anything on damage
            columns, answer = {}, {"error": (str(error) or type(error).__name__)[:500]}
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        for array in columns.values():
            sys.stdout.buffer.write(array.data.cast("B") if array.size else b"")
        sys.stdout.buffer.flush()


def _limit(what: int, most: int) -> None:
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _mapped() -> int:
    """Bytes of addresses that are taken; where no one tells, none are limited."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 1 << 62


def _read(question: dict, content: bytes) -> tuple[dict[str, np.ndarray], dict]:
    table, unpacked = _arrow(content) if question["format"] == "arrow" else _parquet(content, question)
    wanted, arrays = question["columns"], {}
    if unpacked > question["left"]:
        return {}, {"unpacked": unpacked}
    if table.num_rows > question["most_rows"] or any(table.column_names.count(name) != 1 for name in _columns(wanted)):
        raise ValueError(f"it must have the columns {', '.join(wanted)} once each, and no more rows than the dataset has steps")
    for name, (space, entries, image) in wanted.items():
        column, *fields = name.split("/")
        column = table.column(column).combine_chunks()
        # Without any row pyarrow leaves a column of no pieces.
        column = column.combine_chunks() if hasattr(column, "chunks") else column
        for field in fields:
            column = _field(column, field)
        if image:
            arrays[name], arrays[f"{name}-ends"] = _images(column)
        else:
            arrays[name] = _numbers(column, space, entries)
    return arrays, {"unpacked": unpacked}


def _columns(wanted) -> list[str]:
    return list(dict.fromkeys(name.split("/")[0] for name in wanted))


def _field(column: pyarrow.Array, name: str) -> pyarrow.Array:
    if not pyarrow.types.is_struct(column.type) or column.null_count or [field.name for field in column.type].count(name) != 1:
        raise ValueError(f"a column of type {str(column.type)[:200]}, or with gaps, where one with the field {name} was declared")
    return column.field(name)


def _arrow(content: bytes) -> tuple[pyarrow.Table, int]:
    """Its table, whose buffers lie in `content`. The footer is not believed: the messages before it are read in turn."""
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
    return pyarrow.Table.from_batches(batches, schema), 0


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


def _parquet(content: bytes, question: dict) -> tuple[pyarrow.Table, int]:
    """Its table, after the sizes that the file declares. Those are of encoded values: a million equal ones are a few bytes, so rows are counted as they come."""
    file = _opened(content)
    found, wanted = file.metadata, question["columns"]
    # As parquet calls them: a key with a dot may be taken for two, and then more is read than is wanted.
    names = [name.replace("/", ".") for name in wanted]
    prefixes = tuple(f"{name}." for name in names)
    entries = max(entries or 1 for _, entries, _ in wanted.values())
    for group in (found.row_group(index) for index in range(found.num_row_groups)):
        for column in (group.column(index) for index in range(group.num_columns)):
            if not 0 <= column.total_uncompressed_size <= question["left"] or f"{column.path_in_schema}.".startswith(prefixes) and column.num_values > group.num_rows * entries:
                raise ValueError("its columns declare more values than its rows hold")
    if found.num_rows > question["most_rows"]:
        raise ValueError(f"it declares {found.num_rows:,} rows, the dataset {question['most_rows'] - 1:,} steps")
    rows, batches, unpacked = max(BYTES_AT_A_TIME // (8 * entries), 1), [], 0
    if any(image for _, _, image in wanted.values()):
        rows = min(rows, IMAGES_AT_A_TIME)
    for batch in file.iter_batches(rows, columns=names, use_threads=False):
        unpacked += batch.nbytes
        if unpacked > question["left"]:
            break
        batches.append(batch)
    return pyarrow.Table.from_batches(batches, batches[0].schema if batches else pyarrow.schema([])), unpacked


def _opened(content: bytes) -> pyarrow.parquet.ParquetFile:
    return pyarrow.parquet.ParquetFile(
        pyarrow.BufferReader(content), pre_buffer=False, thrift_string_size_limit=MOST_HEADER_BYTES, thrift_container_size_limit=MOST_HEADER_BYTES
    )


def _table(content: bytes, question: dict) -> tuple[dict[str, np.ndarray], dict]:
    """Columns of a file of which nothing is declared: numbers [N], lists of equally many numbers [N, k], or texts, as bytes and where each ends."""
    file, wanted = _opened(content), question["columns"]
    schema, groups = file.schema_arrow, [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
    if wanted is None:
        return {}, {"schema": [[field.name, _kind(field.type)] for field in schema], "rows": file.metadata.num_rows}
    for name in wanted:
        if schema.names.count(name) != 1:
            raise ValueError(f"it must have the column {name} once")
    columns = [group.column(index) for group in groups for index in range(group.num_columns)]
    declared = sum(8 * column.num_values for column in columns if any(f"{column.path_in_schema}.".startswith(f"{name}.") for name in wanted))
    if declared < 0 or declared > question["left"]:
        raise ValueError(f"its columns declare {declared:,} bytes, at most {question['left']:,} are read")
    rows, batches, unpacked = max(1, min(file.metadata.num_rows, BYTES_AT_A_TIME * file.metadata.num_rows // max(declared, 1))), [], 0
    for batch in file.iter_batches(rows, columns=wanted, use_threads=False):
        unpacked += batch.nbytes
        if unpacked > question["left"]:
            raise ValueError(f"its columns unpack to more than {question['left']:,} bytes")
        batches.append(batch)
    if not batches:
        raise ValueError("it has no rows")
    table, arrays = pyarrow.Table.from_batches(batches), {}
    for name in wanted:
        column, kind = table.column(name), _kind(schema.field(name).type)
        if kind == "text":
            arrays[name], arrays[f"{name}-ends"] = _texts(name, column, question["left"])
        elif kind == "list":
            arrays[name] = _lists(name, column)
        elif kind == "number":
            # A gap becomes NaN, and would make another type of whole numbers: one row must not change the others.
            if column.null_count and not pyarrow.types.is_floating(column.type):
                raise ValueError(f"column {name} of type {column.type} has gaps: fill them, or store it as floats")
            arrays[name] = np.ascontiguousarray(column.to_numpy())
        else:
            raise ValueError(f"column {name} of type {schema.field(name).type}: only numbers, lists of numbers and texts are read")
    return arrays, {"unpacked": unpacked}


def _kind(of) -> str:
    """"number", "list" of numbers, "text" or "other"."""
    types = pyarrow.types
    if types.is_integer(of) or types.is_floating(of) or types.is_boolean(of):
        return "number"
    if types.is_list(of) or types.is_large_list(of) or types.is_fixed_size_list(of):
        return "list" if _kind(of.value_type) == "number" else "other"
    if types.is_dictionary(of):
        return "text" if _kind(of.value_type) == "text" else "other"
    return "text" if types.is_string(of) or types.is_large_string(of) else "other"


def _lists(name: str, column: pyarrow.ChunkedArray) -> np.ndarray:
    lengths = pyarrow.compute.list_value_length(column).to_numpy()
    values = pyarrow.compute.list_flatten(column)
    if values.null_count and not pyarrow.types.is_floating(values.type):
        raise ValueError(f"column {name} of type {column.type} has gaps: fill them, or store it as floats")
    if column.null_count or not len(lengths) or (lengths != lengths[0]).any() or lengths[0] < 1:
        wrong = next((row for row, length in enumerate(lengths) if not length == lengths[0] or length < 1), 0)
        raise ValueError(f"column {name} has lists of different lengths, or none, first in row {wrong}")
    return np.ascontiguousarray(values.to_numpy()).reshape(len(lengths), int(lengths[0]))


def _texts(name: str, column: pyarrow.ChunkedArray, left: int) -> tuple[np.ndarray, np.ndarray]:
    if pyarrow.types.is_dictionary(column.type):
        # One text may be meant by every row: the longest decides what all could take.
        longest = max(((pyarrow.compute.max(pyarrow.compute.binary_length(chunk.dictionary)).as_py() or 0) for chunk in column.chunks), default=0)
        if longest > MOST_TEXT_BYTES or longest * len(column) > left:
            raise ValueError(f"column {name} holds texts of more than {MOST_TEXT_BYTES} bytes, or unpacks to more than {left:,}")
        column = column.cast(column.type.value_type)
    if (pyarrow.compute.max(pyarrow.compute.binary_length(column)).as_py() or 0) > MOST_TEXT_BYTES:
        raise ValueError(f"column {name} holds texts of more than {MOST_TEXT_BYTES} bytes")
    texts = column.cast(pyarrow.large_string()).fill_null("").combine_chunks()
    texts = texts.combine_chunks() if hasattr(texts, "chunks") else texts
    ends = np.cumsum(pyarrow.compute.binary_length(texts).to_numpy(zero_copy_only=False), dtype=np.int64)
    _, offsets, content = texts.buffers()
    start = int(np.frombuffer(offsets, np.int64)[texts.offset])
    return np.frombuffer(content, np.uint8)[start : start + int(ends[-1])] if content and ends[-1] else np.empty(0, np.uint8), ends


def _numbers(column: pyarrow.Array, space: str, entries: int | None) -> np.ndarray:
    """A column of numbers, or of lists of so many."""
    types, rows = pyarrow.types, len(column)
    if entries is not None:
        if not types.is_fixed_size_list(column.type) or column.type.list_size != entries or column.null_count:
            raise ValueError(f"a column of type {column.type} where {space} was declared")
        column = column.flatten()
    if not (types.is_integer(column.type) or types.is_floating(column.type) or types.is_boolean(column.type)) or column.null_count:
        raise ValueError(f"a column of type {column.type}, or with gaps: only numbers are read")
    array = np.ascontiguousarray(column.to_numpy(zero_copy_only=False))
    return array if entries is None else array.reshape(rows, entries)


def _images(column: pyarrow.Array) -> tuple[np.ndarray, np.ndarray]:
    if not pyarrow.types.is_binary(column.type) or column.null_count:
        raise ValueError(f"a column of type {column.type} is no list of JPEG files")
    files = [row.as_py() for row in column]
    return np.frombuffer(b"".join(files), np.uint8), np.cumsum([len(file) for file in files], dtype=np.int64)


if __name__ == "__main__":
    main()
