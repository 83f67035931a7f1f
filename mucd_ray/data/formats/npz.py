"""Arrays of one .npz archive, a row for each step, named as usual or by a column map."""

from mucd_ray.data.formats.column_map import recording_of, resolved
from mucd_ray.data.formats.episodes import Recording
from mucd_ray.data.formats.source import Source


def recognised(source: Source) -> bool:
    return source.head(4) == b"PK\x03\x04"


def read(source: Source, options) -> Recording:
    table = source.npz()
    return recording_of(table, resolved(options.columns, list(table)), most_steps=options.max_episode_steps)
