"""D4RL's HDF5: flat arrays observations, actions, rewards, terminals, and perhaps timeouts and next_observations.

Traps: rewards and marks may be columns [N, 1]; medium-replay files do not mark every end, so an episode also ends where the next observation is not the next row's; without
timeouts, --max-episode-steps cuts; the last row before a time limit has no next observation unless the file holds it. infos/ and metadata/ are not read.
"""

from mucd_ray.data.formats.column_map import places_of
from mucd_ray.data.formats.episodes import Recording, Rows, counted_ends, cut, ends_of
from mucd_ray.data.formats.source import Source
from mucd_ray.errors import MucdError

MAGIC = b"\x89HDF\r\n\x1a\n"


def is_hdf5(source: Source) -> bool:
    return source.head(8) == MAGIC


def recognised(source: Source) -> bool:
    if not is_hdf5(source):
        return False
    with source.hdf5() as content:
        return {"observations", "actions", "terminals"} <= content.names(content.file)


def read(source: Source, options) -> Recording:
    with source.hdf5() as content:
        names = content.names(content.file)
        missing = {"observations", "actions", "rewards", "terminals"} - names
        if missing:
            raise MucdError(f"it lacks {', '.join(sorted(missing))}, which D4RL's files have")
        table = {name: content.array(content.file, name) for name in ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations") if name in names}
    rows = Rows(
        observations=table["observations"], actions=table["actions"], rewards=table["rewards"], terminated=table["terminals"], truncated=table.get("timeouts"),
        next_observations=table.get("next_observations"),
    )
    stops = ends_of(rows, options.max_episode_steps)
    episodes, notes = cut(rows, stops, places_of(stops), last_row="drop")
    if rows.truncated is None and rows.next_observations is None and options.max_episode_steps is None:
        notes.append(f"it has neither timeouts nor next_observations: only terminals end an episode, the longest has {max(map(len, episodes))} steps; give --max-episode-steps where the environment has a time limit")
    unmarked = sum(not (table["terminals"][stop - 1] or rows.truncated is not None and rows.truncated[stop - 1]) for stop in stops[:-1].tolist())
    if unmarked and options.max_episode_steps is None:
        notes.append(f"{unmarked} ends are not marked: the next observation there is not that of the next row")
    return Recording(episodes=episodes, notes=(*notes, *counted_ends(rows, stops, options.max_episode_steps)))
