"""A Minari dataset in any of its formats (HDF5, arrow, parquet): its folder, or the folder `data` in it, wherever it lies.

Traps: images of 32 x 32 or more are stored as JPEG, which is not what was recorded; here they are stored as they are decoded. What metadata.json names is text.
"""

from minari.dataset.minari_storage import is_image_space

from mucd_ray.data.formats.episodes import Episode, Recording, column
from mucd_ray.data.formats.metadata import FILE, read_metadata
from mucd_ray.data.formats.minari import HDF5_FILE, read_as, stored_with_keys
from mucd_ray.data.formats.source import Source
from mucd_ray.data.formats.tables import FORMATS
from mucd_ray.data.spaces import Actions, Part
from mucd_ray.errors import MucdError


def _folder(source: Source) -> str | None:
    """Where metadata.json lies: "data/" or ""."""
    found = [folder for folder in ("data/", "") if source.has(f"{folder}{FILE}") and (folder or source.has(HDF5_FILE) or source.has(f"0/{FILE}"))]
    if len(found) > 1:
        raise MucdError(f"there is a {FILE} in data/ and beside it: which is meant is not guessed, take the other away")
    return found[0] if found else None


def recognised(source: Source) -> bool:
    return _folder(source) is not None


def read(source: Source, options) -> Recording:
    folder = _folder(source)
    if folder is None:
        raise MucdError(f"{source.path} holds no data/{FILE}")
    path = source.path / folder
    metadata = read_metadata(path)
    joined, actions = read_as(metadata, ()), Actions(declared=metadata.action_space)
    files = [f"{folder}{FILE}", *(source.names(f"{folder}*/*") if metadata.data_format in FORMATS else [f"{folder}{HDF5_FILE}"])]
    for name in files:
        source.hash(name)
    episodes, steps = [], 0
    for number, stored in enumerate(stored_with_keys(path, metadata)):
        rewards, terminations, truncations = (column(stored[name], name) for name in ("rewards", "terminations", "truncations"))
        lengths = {"observations": len(stored["observations"]) - 1, "actions": len(stored["actions"]), "terminations": len(terminations), "truncations": len(truncations)}
        wrong = next((name for name, length in lengths.items() if length != len(rewards)), None)
        if wrong:
            raise MucdError(f"episode {number} has {len(rewards)} rewards and {lengths[wrong]} steps of {wrong}: it is cut off, or was changed")
        marks = (terminations != 0) | (truncations != 0)
        faults = [f"it ends at step {int(marks.argmax())}, inside it"] if marks[:-1].any() else []
        steps += len(rewards)
        episodes.append(Episode(
            observations=stored["observations"], actions=actions.rows(stored["actions"]), rewards=rewards, terminated=bool(len(rewards) and terminations[-1]), truncated=bool(len(rewards) and truncations[-1]),
            place=f"episode {number}", keys=stored["key"], faults=tuple(faults),
        ))
    if steps != metadata.steps or len(episodes) != metadata.episodes:
        raise MucdError(f"metadata.json declares {metadata.episodes} episodes of {metadata.steps} steps, its files hold {len(episodes)} of {steps}")
    # What followed from the rows once is no declaration.
    action_space = actions.space if metadata.actions_declared else None
    parts = joined.parts if joined else (Part(path=(), space=metadata.observation_space),)
    notes = tuple(f"{part.called} are stored as JPEG files, which are not exact: they are taken as they are decoded here" for part in parts if metadata.jpeg and is_image_space(part.space))
    return Recording(episodes=episodes, notes=notes, observation_space=joined.space if joined else metadata.observation_space, action_space=action_space, recorded=metadata.recorded)
