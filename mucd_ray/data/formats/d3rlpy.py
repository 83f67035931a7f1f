"""d3rlpy's HDF5. Version 2: observations_{i}, actions_{i}, rewards_{i}, terminated_{i} and num_episodes. Version 1: flat observations, actions, rewards, terminals and episode_terminals.

Traps: observations that are tuples are observations_{i}_{j}, which are put side by side; an episode has as many observations as actions, so that the last row is a transition only where the episode terminated (d3rlpy itself makes L - 1 of L rows otherwise); rewards are columns [L, 1].
"""

import itertools
import math

import numpy as np

from mucd_ray.data.formats.column_map import places_of
from mucd_ray.data.formats.d4rl import is_hdf5
from mucd_ray.data.formats.episodes import Episode, Recording, Rows, counted_ends, cut, ends_of
from mucd_ray.data.formats.source import Source
from mucd_ray.errors import MucdError


def recognised(source: Source) -> bool:
    if not is_hdf5(source):
        return False
    with source.hdf5() as content:
        names = content.names(content.file)
        return {"num_episodes", "columns"} <= names or {"observations", "terminals", "episode_terminals"} <= names or {"observations", "terminals", "discrete_action"} <= names


def read(source: Source, options) -> Recording:
    with source.hdf5() as content:
        return _second(content) if content.has(content.file, "num_episodes") else _first(content, options)


def _second(content) -> Recording:
    names = content.names(content.file)
    count = int(content.number(content.file, "num_episodes"))
    here = sum(name.startswith("actions_") for name in names)
    if count != here or not count:
        raise MucdError(f"num_episodes is {count}, and it has the actions of {here} episodes: it is cut off, or was changed")
    notes: dict = {}
    episodes = []
    for number in range(count):
        arrays = {name: content.array(content.file, f"{name}_{number}") for name in ("actions", "rewards")} | {"observations": _observations(content, names, number)}
        terminated = np.zeros(len(arrays["actions"]), bool)
        if not len(terminated):
            episodes.append(Episode(
                observations=np.empty((0, 1), np.float32), actions=arrays["actions"], rewards=np.empty(0), terminated=False, truncated=True, place=f"episode {number}", keys={},
            ))
            continue
        terminated[-1] = bool(content.number(content.file, f"terminated_{number}"))
        try:
            rows = Rows(**arrays, terminated=terminated)
        except MucdError as error:
            raise MucdError(f"episode {number}: {error}") from None
        found, told = cut(rows, [len(rows)], [f"episode {number}"], last_row="drop")
        episodes += found
        for text in told:
            kind = text.partition("trajectories ")[2]
            notes[kind] = notes.get(kind, 0) + 1
    return Recording(episodes=episodes, notes=tuple(f"{times} of {count} trajectories {kind}" for kind, times in notes.items()))


def _observations(content, names: set[str], number: int) -> np.ndarray:
    """Of one episode: [L, *shape], or of a tuple its parts in one row each."""
    if f"observations_{number}_0" not in names:
        return content.array(content.file, f"observations_{number}")
    parts, here = [], itertools.takewhile(names.__contains__, (f"observations_{number}_{place}" for place in itertools.count()))
    for name in here:
        parts.append(content.array(content.file, name))
        if len(parts[-1]) != len(parts[0]):
            raise MucdError(f"{name} has {len(parts[-1])} rows, observations_{number}_0 {len(parts[0])}: it is cut off, or was changed")
    return np.concatenate([part.reshape(len(part), math.prod(part.shape[1:])) for part in parts], axis=1)


def _first(content, options) -> Recording:
    names = content.names(content.file)
    arrays = {name: content.array(content.file, name) for name in ("observations", "actions", "rewards", "terminals")}
    ends = content.array(content.file, "episode_terminals") if "episode_terminals" in names else None
    rows = Rows(observations=arrays["observations"], actions=arrays["actions"], rewards=arrays["rewards"], terminated=arrays["terminals"], truncated=ends)
    stops = ends_of(rows, options.max_episode_steps)
    episodes, notes = cut(rows, stops, places_of(stops), last_row="drop")
    if ends is None and options.max_episode_steps is None:
        notes.append(f"it has no episode_terminals: only terminals end an episode, the longest has {max(map(len, episodes))} steps; give --max-episode-steps where the environment has a time limit")
    return Recording(episodes=episodes, notes=(*notes, *counted_ends(rows, stops, options.max_episode_steps)))
