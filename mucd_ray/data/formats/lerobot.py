"""LeRobot v2 and v3: meta/info.json, data in parquet (v2: a file an episode; v3: many episodes in a file), lengths in meta/episodes.

Traps: one row an action and no final observation; rows are grouped by episode_index; next.done often marks the end of a recording rather than a termination (next.truncated tells, where it
is there); many datasets have no rewards. Normalisation statistics (meta/stats.json, meta/episodes_stats.jsonl) and videos are never opened, and data_path, a pattern of the file's own, is not followed.
"""

import numpy as np

from mucd_ray.data.formats.column_map import USUAL, by_number, natural
from mucd_ray.data.formats.episodes import Recording, Rows, cut, joined, with_fault
from mucd_ray.data.formats.source import Source
from mucd_ray.errors import MucdError
from mucd_ray.files import printable, read_json

INFO = "meta/info.json"
OBSERVED = ("observation.state", "observation.environment_state")
PLAIN = {"rewards": "next.reward", "terminated": "next.done", "truncated": "next.truncated"}
MOST_LINES_BYTES = 1 << 28


def recognised(source: Source) -> bool:
    return source.has(INFO)


def read(source: Source, options) -> Recording:
    info = source.json(INFO)
    version = info.get("codebase_version")
    if not isinstance(version, str) or version[:3] not in ("v2.", "v3."):
        raise MucdError(f"{INFO} says codebase_version {printable(version)[:60]!r}: v2 and v3 are read")
    second = version.startswith("v2.")
    files = sorted(source.names("data/chunk-*/episode_*.parquet" if second else "data/chunk-*/file-*.parquet"), key=natural)
    if not files:
        raise MucdError(f"{source.path} has no data/chunk-*/{'episode_*' if second else 'file-*'}.parquet, as {version} keeps them")
    parts: list[dict] = []
    keys: tuple[str, ...] = ()
    for name in files:
        schema, _ = source.parquet_schema(name)
        found = _observation_keys(schema, options.observation_keys)
        # One file, in v2 one episode, must not decide what is read of the others.
        if parts and found != keys:
            raise MucdError(f"{name} has the observations {', '.join(found)}, {files[0]} {', '.join(keys)}: name those to read with --observation-keys")
        keys = found
        columns = [*keys, "action", "episode_index", "frame_index", *(column for column in (*PLAIN.values(), "next.success", "task_index", *USUAL["source"]) if column in schema)]
        missing = [column for column in columns if schema.get(column, "other") == "other"]
        if missing:
            raise MucdError(f"{name} lacks the column {printable(missing[0])}, or it is no column of numbers")
        parts.append(source.parquet(name, list(dict.fromkeys(columns))))
        if second and np.any(parts[-1]["episode_index"] != int(name.rpartition("_")[2].removesuffix(".parquet"))):
            raise MucdError(f"{name} holds rows of another episode_index than its name says")
    if len({frozenset(part) for part in parts}) > 1:
        raise MucdError("its files have different columns")
    table = {name: joined([part[name] for part in parts], name) for name in parts[0]}
    recording = _episodes(table, keys)
    _check_counts(source, info, second, recording)
    return recording


def _observation_keys(schema: dict[str, str], wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    there = sorted(name for name, kind in schema.items() if name.startswith("observation.") and kind in ("list", "number"))
    if wanted is None:
        found = tuple(name for name in OBSERVED if name in there) or tuple(there)
        if not found:
            raise MucdError(f"it has no {' or '.join(OBSERVED)}: observations of images alone are not read")
        return found
    named = tuple(name if name.startswith("observation.") else f"observation.{name}" for name in wanted)
    missing = [name for name in named if name not in there]
    if missing:
        raise MucdError(f"--observation-keys {printable(missing[0])}: its columns of numbers are {', '.join(printable(name)[:60] for name in there) or 'none'}")
    return named


def _episodes(table: dict, keys: tuple[str, ...]) -> Recording:
    ids, frames = table["episode_index"], table["frame_index"]
    if ids.dtype.kind not in "iu" or frames.dtype.kind not in "iu":
        raise MucdError("episode_index and frame_index must be whole numbers in every row")
    stops, places = by_number(ids, "episode_index")
    observed = [table[key] for key in keys]
    rows = Rows(
        observations=observed[0] if len(observed) == 1 else np.concatenate([part.reshape(len(part), -1) for part in observed], axis=1), actions=table["action"], times=frames,
        sources={name: table[name] for name in ("task_index", *USUAL["source"]) if name in table}, **_ends(table, stops),
        rewards=table.get(PLAIN["rewards"]),
    )
    episodes, notes = cut(rows, stops.tolist(), places)
    starts = [0, *stops[:-1].tolist()]
    for number, (start, stop) in enumerate(zip(starts, stops.tolist())):
        if (frames[start:stop] != np.arange(stop - start)).any():
            row = int(np.argmax(frames[start:stop] != np.arange(stop - start)))
            episodes[number] = with_fault(episodes[number], f"frame_index is {frames[start + row]} in its row {row}: frames are missing, or twice there")
    told = [f"observations are {', '.join(keys)}"]
    if PLAIN["terminated"] in table and PLAIN["truncated"] not in table:
        told.append("next.done counts as terminated; LeRobot also sets it where a recording merely stops")
    return Recording(episodes=episodes, notes=(*told, *notes))


def _ends(table: dict, stops: np.ndarray) -> dict:
    """Marks of ends; where nothing else is said, success at the last row terminates."""
    found = {role: table[PLAIN[role]] for role in ("terminated", "truncated") if PLAIN[role] in table}
    if "truncated" in found and "terminated" in found:
        # next.done is either.
        found["terminated"] = np.asarray(found["terminated"]) * (np.asarray(found["truncated"]) == 0)
    if "terminated" not in found and "next.success" in table:
        found["terminated"] = np.zeros(len(table["next.success"]), bool)
        found["terminated"][stops - 1] = table["next.success"][stops - 1] == 1
    return found


def _check_counts(source: Source, info: dict, second: bool, recording: Recording) -> None:
    """Raise MucdError where what meta/ declares is not what the rows are."""
    rows = sum(map(len, recording.episodes))
    for name, found in (("total_episodes", len(recording.episodes)), ("total_frames", rows)):
        if info.get(name) != found:
            raise MucdError(f"{INFO} declares {name} {printable(info.get(name))[:60]}, its files hold {found}: some are missing, or were changed")
    declared = _lengths(source, second)
    for episode in recording.episodes:
        number = int(episode.place.split()[1])
        if declared is not None and declared.get(number) != len(episode):
            raise MucdError(f"meta/episodes says that episode {number} has {declared.get(number)} rows, it has {len(episode)}")


def _lengths(source: Source, second: bool) -> dict[int, int] | None:
    """{episode_index: length} as meta/ declares it, if it does."""
    if second:
        if not source.has("meta/episodes.jsonl"):
            return None
        found = {}
        for number, line in enumerate(source.read("meta/episodes.jsonl", MOST_LINES_BYTES).splitlines()):
            if line.strip():
                values = read_json(line, f"line {number + 1} of meta/episodes.jsonl")
                if not isinstance(values, dict) or type(values.get("episode_index")) is not int or type(values.get("length")) is not int:
                    raise MucdError(f"line {number + 1} of meta/episodes.jsonl has no episode_index and length")
                found[values["episode_index"]] = values["length"]
        return found
    files = sorted(source.names("meta/episodes/chunk-*/file-*.parquet"), key=natural)
    parts = [source.parquet(name, ["episode_index", "length"]) for name in files]
    return {int(number): int(length) for part in parts for number, length in zip(part["episode_index"], part["length"])} if parts else None
