"""robomimic's HDF5: data/demo_i with actions, rewards, dones, obs/<key> and perhaps next_obs/<key>.

Traps: demos are in the order of their numbers (demo_10 after demo_9); observations are the keys of obs/ side by side, sorted or as --observation-keys says; images are
skipped; `dones` may be 1 at success and at the end alike, so a demo has terminated where its last `done` is 1. The filters of mask/ in which a demo is, but for train and valid, are its key `mask`.
"""

import math

import gymnasium as gym
import numpy as np

from mucd_ray.data.formats.column_map import natural
from mucd_ray.data.formats.d4rl import is_hdf5
from mucd_ray.data.formats.episodes import Episode, Recording, Rows, cut
from mucd_ray.data.formats.hdf5 import Hdf5File
from mucd_ray.data.formats.source import Source
from mucd_ray.errors import MucdError
from mucd_ray.files import printable, read_json


def recognised(source: Source) -> bool:
    if not is_hdf5(source):
        return False
    with source.hdf5() as content:
        return content.has(content.file, "data") and any(name.startswith("demo_") for name in content.names(content.group(content.file, "data")))


def read(source: Source, options) -> Recording:
    with source.hdf5() as content:
        data = content.group(content.file, "data")
        names = sorted(content.names(data), key=natural)
        notes: list[str] = []
        masks, keys, episodes = _masks(content, set(names)), None, []
        for name in names:
            demo = content.group(data, name)
            found = _observation_keys(content, demo, options.observation_keys)
            # One demo must not decide what is read of the others.
            if keys is not None and found != keys:
                raise MucdError(f"{name} has the observations {', '.join(found)}, {names[0]} {', '.join(keys)}: name those to read with --observation-keys")
            keys = found
            episodes.append(_episode(content, demo, name, keys, masks.get(name), notes))
        total = content.attribute(data, "total")
        rows = sum(map(len, episodes))
        if total is not None and total != rows:
            raise MucdError(f"data declares total {total}, its {len(names)} demos have {rows} rows: it is cut off, or was changed")
        environment = _environment(content.attribute(data, "env_args"))
    actions = next((episode.actions.shape[1:] for episode in episodes if len(episode)), ())
    told = [f"observations are {', '.join(keys or ())}, side by side", *dict.fromkeys(notes)]
    if environment:
        told.append(f"the file says that it was recorded in {environment}")
    told.append("actions are declared in [-1, 1], as robomimic has them")
    space = gym.spaces.Box(-1.0, 1.0, actions, np.float32) if len(actions) == 1 else None
    return Recording(episodes=episodes, notes=tuple(told), action_space=space)


def _observation_keys(content: Hdf5File, demo, wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    group = content.group(demo, "obs")
    there = content.names(group)
    if wanted is not None:
        missing = [name for name in wanted if name not in there]
        if missing:
            raise MucdError(f"--observation-keys {printable(missing[0])}: {demo.name}/obs has {', '.join(printable(name)[:60] for name in sorted(there))}")
        return wanted
    vectors = tuple(name for name in sorted(there) if content.rank(group, name) <= 2)
    if not vectors:
        raise MucdError(f"{demo.name}/obs holds no vectors ({', '.join(printable(name)[:60] for name in sorted(there))}): name one key with --observation-keys")
    return vectors


def _episode(content: Hdf5File, demo, name: str, keys: tuple[str, ...], masks: str | None, notes: list[str]) -> Episode:
    there = content.names(demo)
    actions = content.array(demo, "actions")
    declared = content.attribute(demo, "num_samples")
    if declared is not None and declared != len(actions):
        raise MucdError(f"{demo.name} declares num_samples {declared} and has {len(actions)} actions: it is cut off, or was changed")
    if not len(actions):
        return Episode(observations=np.empty((0, 1), np.float32), actions=actions, rewards=np.empty(0), terminated=False, truncated=True, place=name, keys={})
    try:
        rows = Rows(
            observations=_side_by_side(content, demo, "obs", keys), actions=actions, rewards=content.array(demo, "rewards") if "rewards" in there else None,
            terminated=_last_alone(content.array(demo, "dones")) if "dones" in there else None,
            next_observations=_side_by_side(content, demo, "next_obs", keys) if "next_obs" in there else None,
        )
    except MucdError as error:
        raise MucdError(f"{demo.name}: {error}") from None
    episodes, told = cut(rows, [len(rows)], [name])
    notes += [text if "rewards" in text else "demos have no next_obs: their last observation stands for the one after it, too" for text in told]
    return Episode(**vars(episodes[0]) | {"keys": {"mask": masks} if masks else {}})


def _last_alone(dones: np.ndarray) -> np.ndarray:
    """Success may be marked at several steps before a demo ends."""
    found = np.zeros(len(dones), bool)
    if len(dones):
        found[-1] = bool(np.asarray(dones).reshape(len(dones), -1)[-1, 0])
    return found


def _side_by_side(content: Hdf5File, demo, group: str, keys: tuple[str, ...]) -> np.ndarray:
    parts = [content.array(content.group(demo, group), key) for key in keys]
    if len(parts) == 1:
        return parts[0]
    if len({len(part) for part in parts}) > 1:
        raise MucdError(f"{group} has keys of different lengths: {', '.join(f'{printable(key)} {len(part)}' for key, part in zip(keys, parts))}")
    return np.concatenate([part.reshape(len(part), math.prod(part.shape[1:])) for part in parts], axis=1)


def _masks(content: Hdf5File, names: set[str]) -> dict[str, str]:
    """{demo: its filters, joined}."""
    if not content.has(content.file, "mask"):
        return {}
    found: dict[str, list[str]] = {}
    group = content.group(content.file, "mask")
    for filter_name in sorted(content.names(group)):
        if filter_name in ("train", "valid") or filter_name.endswith(("_train", "_valid")):
            continue
        for demo in content.texts(group, filter_name):
            if demo not in names:
                raise MucdError(f"mask/{printable(filter_name)} names {printable(demo)[:60]!r}, which is no demo of data")
            found.setdefault(demo, []).append(filter_name)
    return {demo: ",".join(name.replace("\\", "\\\\").replace(",", "\\,") for name in filters) for demo, filters in found.items()}


def _environment(text) -> str | None:
    """The name in env_args, as a word; nothing is made of it."""
    if not isinstance(text, str):
        return None
    values = read_json(text, "env_args of data")
    name = values.get("env_name") if isinstance(values, dict) else None
    return printable(name) if isinstance(name, str) else None
