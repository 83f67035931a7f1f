"""OGBench's npz: observations, actions, terminals, T + 1 rows a trajectory.

Traps: terminals mark a trajectory's last *observation*, whose action is a dummy; they are ends, not terminations. There are no rewards; files that were relabelled have them, and `masks`,
which are 0 where a task is done: only one at a trajectory's last action makes it terminated.
"""

import numpy as np

from mucd_ray.data.formats.column_map import places_of
from mucd_ray.data.formats.episodes import Episode, Recording, column
from mucd_ray.data.formats.source import Source
from mucd_ray.errors import MucdError


def recognised(source: Source) -> bool:
    """By names of members that no other archive of arrays has, or by having neither rewards nor marks of time limits."""
    if source.head(4) != b"PK\x03\x04":
        return False
    names = source.npz_names()
    return {"observations", "actions", "terminals"} <= names and (bool(names & {"qpos", "masks", "button_states"}) or not names & {"rewards", "timeouts", "truncations", "next_observations"})


def read(source: Source, options) -> Recording:
    table = source.npz()
    missing = {"observations", "actions", "terminals"} - set(table)
    if missing:
        raise MucdError(f"it lacks {', '.join(sorted(missing))}, which OGBench's files have")
    ends, masks = column(table["terminals"], "terminals"), column(table["masks"], "masks") if "masks" in table else None
    rewards = column(table["rewards"], "rewards") if "rewards" in table else None
    lengths = {name: len(table[name]) for name in ("observations", "actions", "terminals", "rewards", "masks") if name in table}
    if len(set(lengths.values())) > 1:
        raise MucdError(f"its arrays have different lengths {lengths}: they must have a row for each step")
    if not len(ends) or not ends[-1]:
        raise MucdError("its last row does not end a trajectory: it is cut off, or no file of OGBench's")
    stops = np.flatnonzero(ends) + 1
    episodes, start, inside = [], 0, 0
    for stop, place in zip(stops.tolist(), places_of(stops)):
        part = slice(start, stop - 1)
        zero = np.zeros(stop - 1 - start, bool) if masks is None else masks[part] == 0
        terminated = bool(np.any(zero) and zero[-1])
        inside += bool(np.any(zero[:-1]))
        episodes.append(Episode(
            observations=table["observations"][start:stop], actions=table["actions"][part], rewards=np.zeros(stop - 1 - start) if rewards is None else rewards[part],
            terminated=terminated, truncated=not terminated, place=place, keys={},
        ))
        start = stop
    notes = ["the last row of each trajectory is its final observation, whose action is a dummy and left out"]
    if rewards is None:
        notes.append("it has no rewards: all are 0")
    if inside:
        notes.append(f"masks are 0 inside {inside} trajectories, which go on: they are not taken for ends")
    return Recording(episodes=episodes, notes=tuple(notes))
