"""A parquet file, or a folder of them in the order of their names, with a row for each step: columns of numbers or of lists of numbers, named as usual or by a column map (NeoRL2's obs_0, obs_1, ..., too)."""

from mucd_ray.data.formats.column_map import natural, recording_of, resolved
from mucd_ray.data.formats.episodes import Recording, joined
from mucd_ray.data.formats.source import Source
from mucd_ray.errors import MucdError


def _files(source: Source) -> list[str]:
    return sorted(source.names("*.parquet"), key=natural) if source.is_folder else [""]


def recognised(source: Source) -> bool:
    return bool(_files(source)) if source.is_folder else source.head(4) == b"PAR1"


def read(source: Source, options) -> Recording:
    files = _files(source)
    schemas = [source.parquet_schema(name)[0] for name in files]
    if not files or any(schema != schemas[0] for schema in schemas):
        raise MucdError(f"{source.path} holds {'files with different columns' if files else 'no parquet files'}")
    found = resolved(options.columns, [name for name, kind in schemas[0].items() if kind != "other"])
    columns = list(dict.fromkeys(name for columns in found.values() for name in columns))
    parts = [source.parquet(name, columns) for name in files]
    table = {name: joined([part[name] for part in parts], name) for name in columns}
    return recording_of(table, found, most_steps=options.max_episode_steps, actions=options.actions)
