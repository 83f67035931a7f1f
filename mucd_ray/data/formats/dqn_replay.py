"""The DQN Replay Dataset: $store$_observation_ckpt.N.gz with action, reward and terminal beside it, each a .npy packed by gzip; a folder of them, perhaps in replay_logs/.

Traps: observations are single frames (give `mucd run` --history 4); Dopamine puts three rows of zeros before every episode, which are no transitions; time limits are not marked; the last
episode of a checkpoint is cut off.
"""

from dataclasses import replace

import numpy as np

from mucd_ray.data.formats.column_map import natural
from mucd_ray.data.formats.episodes import Recording, Rows, cut
from mucd_ray.data.formats.source import Source
from mucd_ray.errors import MucdError

FIELDS = ("observation", "action", "reward", "terminal")
# The stack of four frames less one.
PADDING = 3


def _checkpoints(source: Source) -> list[str]:
    """Names of the files of observations; those of the other fields differ in one word."""
    found = [source.names(f"{folder}$store$_observation_ckpt.*.gz") for folder in ("", "replay_logs/")]
    if all(found):
        raise MucdError("there are checkpoints in replay_logs/ and beside it: which are meant is not guessed, take the others away")
    return sorted(found[0] + found[1], key=natural)


def recognised(source: Source) -> bool:
    return source.is_folder and bool(_checkpoints(source))


def read(source: Source, options) -> Recording:
    episodes, left_out, notes = [], 0, ["time limits are not marked: an episode ends at terminal, or where its checkpoint does"]
    for name in _checkpoints(source):
        number = name.rpartition("ckpt.")[2].removesuffix(".gz")
        arrays = {}
        for field in FIELDS:
            other = name.replace("_observation_", f"_{field}_")
            if not number.isdigit() or not source.has(other):
                raise MucdError(f"{other} is missing: a checkpoint has {', '.join(FIELDS)}")
            arrays[field] = source.gzipped_npy(other)
        try:
            rows = Rows(observations=arrays["observation"], actions=arrays["action"], rewards=arrays["reward"], terminated=arrays["terminal"])
        except MucdError as error:
            raise MucdError(f"checkpoint {number}: {error}") from None
        ends, kept, start = np.append(np.flatnonzero(arrays["terminal"][:-1]) + 1, len(rows)).tolist(), np.ones(len(rows), bool), 0
        for stop in ends:
            for row in range(start, min(start + PADDING, stop)):
                if rows.observations[row].any() or rows.actions[row] or arrays["reward"][row] or arrays["terminal"][row]:
                    break
                kept[row] = False
            start = stop
        left_out += int((~kept).sum())
        if not kept.any():
            raise MucdError(f"checkpoint {number} holds nothing but zeros")
        stops = np.concatenate([[0], np.cumsum(kept)])[ends].tolist()
        rows = Rows(observations=rows.observations[kept], actions=rows.actions[kept], rewards=arrays["reward"][kept], terminated=arrays["terminal"][kept])
        found, told = cut(rows, stops, [f"checkpoint {number}, episode {index}" for index in range(len(stops))])
        episodes += [replace(episode, keys={"checkpoint": number}) for episode in found]
        notes += [f"checkpoint {number}: {text}" for text in told]
    if left_out:
        notes.append(f"{left_out} rows of zeros before episodes are Dopamine's padding, and left out")
    return Recording(episodes=episodes, notes=tuple(notes))
