"""Which columns of a table are what: `--columns 'obs=f1:f2:f3,action=act,reward=r,episode=ep'`, names or patterns (obs=f*)."""

import fnmatch
import re

import numpy as np

from mucd_ray.data.formats.episodes import Recording, Rows, counted_ends, cut, ends_of
from mucd_ray.data.formats.metadata import MOST_TEXT
from mucd_ray.errors import MucdError
from mucd_ray.files import printable

# Names that are tried in turn where no map is given.
USUAL = {
    "obs": ("observations", "observation", "obs", "observation.state", "state", "states", "obs_*", "observation_*", "state_*"),
    "next_obs": ("next_observations", "next_observation", "next_obs", "next_state", "next_obs_*", "next_observation_*", "next_state_*"),
    "action": ("actions", "action", "act", "action_*", "act_*"),
    "reward": ("rewards", "reward", "next.reward"),
    "terminated": ("terminated", "terminateds", "terminations", "terminals", "terminal", "dones", "done"),
    "truncated": ("truncated", "truncateds", "truncations", "timeouts", "timeout"),
    "episode": ("episode", "episode_id", "episode_index", "eps_id", "trajectory", "trajectory_id"),
    "time": (),
    "source": ("contributor", "operator", "source", "uploader", "collector"),
}
MOST_NAMES_TOLD = 20
NAMED = ", or actions whose names are declared in their order, such as --actions off,low,high"


def parse(text: str) -> dict[str, list[str]]:
    """{role: names or patterns} of the text of --columns.

    Raises:
        MucdError: an unknown role, one twice, none for observations or actions.
    """
    roles = {}
    for part in text.split(","):
        role, equals, names = part.strip().partition("=")
        if role not in USUAL or not equals or not all(names.split(":")) or role in roles:
            raise MucdError(f"--columns {printable(part)!r} is not ROLE=NAME:NAME:..., each once, with a role of {', '.join(USUAL)}")
        roles[role] = names.split(":")
    for role in ("obs", "action"):
        if role not in roles:
            raise MucdError(f"--columns must say which columns are {role}: such as 'obs=f*,action=act,reward=r,episode=ep'")
    return roles


def resolved(roles: dict[str, list[str]] | None, names: list[str]) -> dict[str, list[str]]:
    """{role: names of columns, in order}: of the map, where a pattern stands for the names that it fits, by the numbers in them (f2 before f10); without one, what is usual.

    Raises:
        MucdError: a column that is not there, stands for two things, or is none of what must be there.
    """
    if roles is None:
        found = {role: next((columns for pattern in patterns if (columns := _fitting(pattern, names))), []) for role, patterns in USUAL.items()}
    else:
        found = {role: [name for pattern in patterns for name in _one_or_more(role, pattern, names)] for role, patterns in roles.items()}
    for role in ("obs", "action"):
        if not found.get(role):
            shown = ", ".join(printable(name)[:60] for name in names[:MOST_NAMES_TOLD]) + (", ..." if len(names) > MOST_NAMES_TOLD else "")
            raise MucdError(f"which of its columns {shown or '(none)'} are the {role}? Say so with --columns 'obs=f1:f2,action=a,reward=r,episode=e' (patterns such as f* are allowed)")
    for role in ("reward", "terminated", "truncated", "episode", "time"):
        if len(found.get(role, ())) > 1:
            raise MucdError(f"--columns: {role} must be one column, not {', '.join(map(printable, found[role]))}")
    every = [name for columns in found.values() for name in columns]
    if len(set(every)) < len(every) and roles is not None:
        raise MucdError(f"--columns: {printable(next(name for name in every if every.count(name) > 1))} stands for two things")
    return {role: columns for role, columns in found.items() if columns}


def _one_or_more(role: str, pattern: str, names: list[str]) -> list[str]:
    found = _fitting(pattern, names)
    if not found:
        shown = ", ".join(printable(name)[:60] for name in names[:MOST_NAMES_TOLD]) + (", ..." if len(names) > MOST_NAMES_TOLD else "")
        raise MucdError(f"--columns {role}={printable(pattern)}: there is no such column; it has {shown or 'none'}")
    return found


def _fitting(pattern: str, names: list[str]) -> list[str]:
    if pattern in names:
        return [pattern]
    return sorted((name for name in names if fnmatch.fnmatchcase(name, pattern)), key=natural) if "*" in pattern or "?" in pattern else []


def natural(name: str) -> list:
    """A key that sorts numbers in names as numbers: demo_10 after demo_9."""
    return [(0, int(part[:300]), "") if part.isascii() and part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name)]


def recording_of(table: dict, found: dict[str, list[str]], *, most_steps: int | None = None, actions: tuple[str, ...] | None = None) -> Recording:
    """The episodes of a table {column: array [N, ...] or N texts} whose columns were resolved; `actions` are the names that stand for actions, in their order."""
    if actions is not None:
        table = table | {name: _counted(table[name], name, actions) for name in found["action"]}
    def one(role):
        return _numbers(table, found[role], role) if role in found else None

    rows = Rows(
        observations=_numbers(table, found["obs"], "obs"), actions=_numbers(table, found["action"], "action"), rewards=one("reward"), terminated=one("terminated"),
        truncated=one("truncated"), next_observations=one("next_obs"), times=one("time"), sources={name: _keys(table[name], name) for name in found.get("source", ())},
    )
    if "episode" in found:
        name = found["episode"][0]
        stops, places = by_number(table[name], name)
        if most_steps is not None:
            raise MucdError(f"--max-episode-steps {most_steps}: column {printable(name)} says where episodes end, leave it out")
    else:
        if rows.terminated is None and rows.truncated is None and rows.next_observations is None and most_steps is None:
            raise MucdError("nothing says where its episodes end: name a column with --columns episode=NAME, terminated=NAME or truncated=NAME, or give --max-episode-steps")
        stops = ends_of(rows, most_steps)
        places = places_of(stops)
    episodes, notes = cut(rows, stops, places)
    told = "; ".join(f"{role}: {', '.join(printable(column)[:60] for column in columns[:MOST_NAMES_TOLD])}" for role, columns in found.items())
    named = () if actions is None else (f"actions are counted from 0: {', '.join(actions)}",)
    return Recording(episodes=episodes, notes=(f"columns read: {told}", *named, *notes, *counted_ends(rows, stops, most_steps)))


def places_of(stops) -> list[str]:
    starts = [0, *stops[:-1].tolist()] if len(stops) else []
    return [f"episode {number} (rows {start} to {stop - 1})" for number, (start, stop) in enumerate(zip(starts, stops.tolist()))]


def by_number(ids, name: str) -> tuple[np.ndarray, list[str]]:
    """(stops, places) of rows that say which episode they are of. Raises MucdError where rows of one are not together."""
    if isinstance(ids, np.ndarray):
        if ids.ndim != 1 or ids.dtype.kind == "f" and not np.isfinite(ids).all():
            raise MucdError(f"column {printable(name)} must have one number or text a row that says which episode the row is of, row {int(np.argmin(np.isfinite(ids).reshape(len(ids), -1).all(axis=1)))} has none")
        ids = [int(value) if float(value).is_integer() else value for value in ids.tolist()]
    changes = [row for row in range(1, len(ids)) if ids[row] != ids[row - 1]]
    seen: dict = {}
    starts = [0, *changes]
    for start in starts:
        if ids[start] in seen:
            raise MucdError(f"rows of episode {printable(ids[start])} are not together: they begin in row {seen[ids[start]]} and again in row {start}; sort the file by episode and time")
        seen[ids[start]] = start
    stops = np.array([*changes, len(ids)], np.int64)
    return stops, [f"episode {printable(ids[start])} (rows {start} to {stop - 1})" for start, stop in zip(starts, stops.tolist())]


def _numbers(table: dict, names: list[str], role: str) -> np.ndarray:
    parts = []
    for name in names:
        values = table[name]
        if not isinstance(values, np.ndarray) or values.dtype.kind not in "biuf":
            raise MucdError(f"column {printable(name)}, which is {role}, holds texts: only numbers are read{NAMED if role == 'action' else ''}")
        parts.append(values)
    if len(parts) == 1:
        return parts[0]
    try:
        return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)
    except ValueError:
        raise MucdError(f"the columns of {role} have different lengths {[len(part) for part in parts]}") from None


def _counted(values, name: str, actions: tuple[str, ...]) -> np.ndarray:
    """int64 [N]: which of the actions each text names."""
    numbers = {text: number for number, text in enumerate(actions)}
    if isinstance(values, np.ndarray):
        raise MucdError(f"column {printable(name)} holds numbers: say how many actions there are, --actions N")
    for row, text in enumerate(values):
        if text.strip() not in numbers:
            raise MucdError(f"column {printable(name)}: {printable(text)[:60]!r} in row {row} is none of the actions {', '.join(map(printable, actions))}")
    return np.array([numbers[text.strip()] for text in values], np.int64)


def _keys(values, name: str):
    """Texts and whole numbers that may tell a source; a text that cannot be one is refused."""
    if isinstance(values, np.ndarray):
        if values.ndim != 1:
            raise MucdError(f"column {printable(name)} is no source: it must have one text or whole number a row")
        return values
    for row, text in enumerate(values):
        if len(text) > MOST_TEXT or not text.isprintable():
            raise MucdError(f"column {printable(name)} is no source: row {row} is no printable text of at most {MOST_TEXT} characters")
    return [text or None for text in values]
