"""A CSV file (commas, semicolons or tabs) with a header and a row for each step, named as usual or by a column map."""

import csv
import io

import numpy as np

from mucd_ray.data.formats.column_map import NAMED, recording_of, resolved
from mucd_ray.data.formats.episodes import Recording
from mucd_ray.data.formats.source import Source
from mucd_ray.errors import MucdError
from mucd_ray.files import LARGEST_WHOLE, printable

MOST_COLUMNS = 1 << 14
ROWS_AT_A_TIME = 1 << 12
MOST_HEADER_BYTES = 1 << 20
DELIMITERS = ",;\t"


def recognised(source: Source) -> bool:
    return source.path.suffix.lower() in (".csv", ".tsv") and not source.is_folder


def read(source: Source, options) -> Recording:
    """Numbers are read as doubles, actions as whole numbers where all of them are written so; an empty cell is NaN. Cells of columns that are not asked for are not looked at."""
    content = source.read()
    header = content[:MOST_HEADER_BYTES].partition(b"\n")[0].decode("utf-8", "replace")
    lines = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", errors="strict", newline="")
    # Of the header alone, and the comma where it has as many of others.
    reader = csv.reader(lines, delimiter=max(DELIMITERS, key=header.count), strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
        if not names or len(names) > MOST_COLUMNS or len(set(names)) < len(names):
            raise MucdError(f"{source.name} must begin with a line of at most {MOST_COLUMNS:,} different names of columns")
        found = resolved(options.columns, names)
        places = {name: names.index(name) for columns in found.values() for name in columns}
        texts = set(found.get("source", ())) | set(found.get("episode", ())) | set(found["action"] if options.actions else ())
        table = _columns(reader, source, len(names), places, texts, set(found["action"]))
    except UnicodeDecodeError as error:
        raise MucdError(f"{source.name} is not text in UTF-8 ({error.reason} at byte {error.start})") from None
    except csv.Error as error:
        raise MucdError(f"{source.name} line {reader.line_num}: {error}") from None
    return recording_of(table, found, most_steps=options.max_episode_steps, actions=options.actions)


def _columns(reader, source: Source, width: int, places: dict[str, int], texts: set[str], whole: set[str]) -> dict:
    """{name: numbers, or texts}. Rows are parsed a few at a time: a cell as text takes twenty times its number."""
    parts: dict[str, list] = {name: [] for name in places}
    known: dict[str, str] = {}
    rows, line = [], (header := reader.line_num)
    for row in reader:
        if reader.line_num > line + 1:
            raise MucdError(f"{source.name} lines {line + 1} to {reader.line_num} are one cell in quotes: a row that could swallow those of others is not read, write each in a line of its own")
        line = reader.line_num
        if len(row) != width:
            if not row:
                continue
            raise MucdError(f"{source.name} line {reader.line_num} has {len(row)} cells, the header {width}: it may be cut off")
        rows.append((reader.line_num, row))
        if len(rows) == ROWS_AT_A_TIME:
            _parse(rows, source, places, texts, whole, parts, known)
            rows = []
    _parse(rows, source, places, texts, whole, parts, known)
    if reader.line_num == header:
        raise MucdError(f"{source.name} has no rows")
    return {name: _joined(columns, name in texts) for name, columns in parts.items()}


def _parse(rows, source, places, texts, whole, parts, known) -> None:
    for name, place in places.items():
        if name in texts:
            # Equal texts are one object.
            parts[name].append([known.setdefault(row[place], row[place]) for _, row in rows])
            continue
        values = []
        for line, row in rows:
            try:
                values.append(_number(row[place], name in whole))
            except ValueError:
                raise MucdError(f"{source.name} line {line}, column {printable(name)}: {printable(row[place])[:60]!r} is no number{NAMED if name in whole else ''}") from None
        kind = np.int64 if name in whole and all(type(value) is int for value in values) else np.float64
        parts[name].append(np.array(values, kind))


def _number(text: str, whole: bool) -> float | int:
    text = text.strip()
    if not text:
        return float("nan")
    if "_" in text:
        raise ValueError
    if whole and len(text) <= 20 and text.lstrip("+-").isdecimal():
        if abs(int(text)) > LARGEST_WHOLE:
            raise ValueError  # beside a fraction in another row it would be rounded, and not without one
        return int(text)
    truth = {"true": 1.0, "false": 0.0}.get(text.lower())
    return float(text) if truth is None else truth


def _joined(columns: list, texts: bool):
    if texts:
        return [text for column in columns for text in column]
    filled = [column for column in columns if len(column)]
    return np.concatenate(filled) if filled else np.empty(0)
