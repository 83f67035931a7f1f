"""RLlib's tabular parquet: eps_id, agent_id, obs, actions, rewards, new_obs, terminateds, truncateds, t, one row a step; one file or a folder of them.

Traps: the order of rows means nothing, so rows are grouped by eps_id and sorted by t; an episode may be spread over files.
"""

import numpy as np

from mucd_ray.data.formats.episodes import Recording, Rows, cut, joined, with_fault
from mucd_ray.data.formats.source import Source
from mucd_ray.errors import MucdError
from mucd_ray.files import printable

NEEDED = ("eps_id", "obs", "actions", "rewards", "t")
OPTIONAL = ("new_obs", "terminateds", "truncateds", "agent_id")


def _files(source: Source) -> list[str]:
    return source.names("*.parquet") if source.is_folder else [""]


def recognised(source: Source) -> bool:
    if source.is_folder:
        files = _files(source)
        return bool(files) and {"eps_id", "obs", "actions"} <= set(source.parquet_schema(files[0])[0])
    return source.head(4) == b"PAR1" and {"eps_id", "obs", "actions"} <= set(source.parquet_schema()[0])


def read(source: Source, options) -> Recording:
    parts = []
    for name in _files(source):
        schema, _ = source.parquet_schema(name)
        missing = [column for column in NEEDED if column not in schema]
        if missing:
            raise MucdError(f"{name or source.name} lacks the column {missing[0]}, which RLlib's tabular files have")
        for column in ("obs", "new_obs", "actions"):
            if schema.get(column, "list") not in ("number", "list"):
                raise MucdError(f"column {column} of {name or source.name} is packed, or no lists of numbers: write it so (in RLlib: output_compress_columns=[])")
        parts.append(source.parquet(name, [*NEEDED, *(column for column in OPTIONAL if schema.get(column, "other") != "other")]))
    if not parts:
        raise MucdError(f"{source.path} holds no parquet files")
    if len({frozenset(part) for part in parts}) > 1:
        raise MucdError("its files have different columns")
    table = {name: joined([part[name] for part in parts], name) for name in parts[0]}
    agents = set(table.get("agent_id", ()))
    if len(agents) > 1:
        raise MucdError(f"it has {len(agents)} agents: only data of one agent are supported")
    ids, times = table["eps_id"], table["t"]
    if isinstance(times, list) or times.ndim != 1 or not np.isfinite(times).all() or not isinstance(ids, list) and (ids.ndim != 1 or not np.isfinite(ids).all()):
        raise MucdError("eps_id and t must be there in every row, t as a number")
    # Episodes in the order in which they first appear, so that ids, which are drawn at random, order nothing.
    numbers: dict = {}
    number = np.array([numbers.setdefault(key, len(numbers)) for key in (ids if isinstance(ids, list) else ids.tolist())], np.int64)
    order = np.lexsort((times, number))
    stops = np.append(np.flatnonzero(np.diff(number[order])) + 1, len(order))
    rows = Rows(
        observations=table["obs"][order], actions=table["actions"][order], rewards=table["rewards"][order],
        next_observations=table["new_obs"][order] if "new_obs" in table else None, times=times[order],
        **{ours: table[theirs][order] for ours, theirs in (("terminated", "terminateds"), ("truncated", "truncateds")) if theirs in table},
    )
    places = [f"episode {printable(ids[order[stop - 1]])[:60]}" for stop in stops.tolist()]
    episodes, notes = cut(rows, stops.tolist(), places)
    starts, ordered = [0, *stops[:-1].tolist()], times[order]
    for index, (start, stop) in enumerate(zip(starts, stops.tolist())):
        jumps = np.flatnonzero(np.diff(ordered[start:stop]) > 1)
        if len(jumps):
            episodes[index] = with_fault(episodes[index], f"rows are missing after t = {ordered[start + jumps[0]]}")
    return Recording(episodes=episodes, notes=("rows are grouped by eps_id and sorted by t", *notes))
