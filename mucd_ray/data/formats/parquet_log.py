"""A parquet file with a row for each step: columns of numbers or of lists of numbers, named as usual or by a column map (NeoRL2's obs_0, obs_1, ..., too)."""

from mucd_ray.data.formats.column_map import recording_of, resolved
from mucd_ray.data.formats.episodes import Recording
from mucd_ray.data.formats.source import Source


def recognised(source: Source) -> bool:
    return source.head(4) == b"PAR1"


def read(source: Source, options) -> Recording:
    schema, _ = source.parquet_schema()
    found = resolved(options.columns, [name for name, kind in schema.items() if kind != "other"])
    table = source.parquet("", list(dict.fromkeys(name for columns in found.values() for name in columns)))
    return recording_of(table, found, most_steps=options.max_episode_steps, actions=options.actions)
