"""What a reader of a format gives: episodes as they were recorded, each with its place in the file and whatever is wrong with it.

A fault of an episode follows from that episode alone. So leaving out all episodes that have one (`--drop-invalid`) is a map of each unit by itself: it commutes with
inserting, removing and replacing units (docs/soundness.md). What concerns several episodes (rows that interleave, counts that contradict each other, two
shapes) is no fault of one of them: a reader raises MucdError.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import gymnasium as gym
import numpy as np

from mucd_ray.data.formats.keys import SEVERAL
from mucd_ray.data.formats.metadata import Recorded
from mucd_ray.errors import MucdError
from mucd_ray.files import printable
from mucd_ray.words import counted

# How far a recorded next observation may be from the next row's observation: some recorders write them in two precisions.
ABSOLUTE, RELATIVE = 1e-6, 1e-5
# Compared as doubles, which take more than what is recorded.
ENTRIES_AT_A_TIME = 1 << 22


@dataclass(frozen=True, kw_only=True, eq=False)
class Episode:
    """T transitions in turn.

    Attributes:
        observations: [T + 1, *shape]; the last is the one after the last action.
        actions: [T] or [T, k].
        rewards: [T].
        terminated, truncated: how it ended; at most one of them is true, and neither where the file does not say.
        place: where it stands in the file, for people.
        keys: {name: text or whole number} that may tell its source.
        faults: what is wrong with it, besides its numbers.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool
    truncated: bool
    place: str
    keys: dict
    faults: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rewards)


@dataclass(frozen=True, kw_only=True, eq=False)
class Recording:
    """What a file holds.

    Attributes:
        episodes: in the order of the file.
        notes: what the reader made of it that a user should know, each a sentence.
        observation_space, action_space: where the format declares them.
        recorded: the environment that the file names, as text.
    """

    episodes: list[Episode]
    notes: tuple[str, ...] = ()
    observation_space: gym.Space | None = None
    action_space: gym.Space | None = None
    recorded: Recorded | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """N rows of a flat file: [N, ...] each. Whatever it lacks is None.

    Attributes:
        times: strictly increasing within an episode.
        sources: {name: N texts or whole numbers}.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray | None = None
    terminated: np.ndarray | None = None
    truncated: np.ndarray | None = None
    next_observations: np.ndarray | None = None
    times: np.ndarray | None = None
    sources: dict | None = None

    def __post_init__(self):
        lengths = {name: len(values) for name, values in vars(self).items() if isinstance(values, np.ndarray)}
        if len(set(lengths.values())) > 1:
            raise MucdError(f"its arrays have different lengths {lengths}: they must have a row for each step")
        if not len(self.observations):
            raise MucdError("it has no rows")
        if self.next_observations is not None and self.next_observations.shape != self.observations.shape:
            raise MucdError(f"observations have shape {self.observations.shape}, next observations {self.next_observations.shape}")
        for name in ("rewards", "terminated", "truncated", "times"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, column(getattr(self, name), name))
        for name in ("terminated", "truncated"):
            values = getattr(self, name)
            if values is not None and not ((values == 0) | (values == 1)).all():
                raise MucdError(f"{name} must be 0 or 1, or true or false, row {int(np.argmin((values == 0) | (values == 1)))} is neither")

    def __len__(self) -> int:
        return len(self.observations)


def column(values: np.ndarray, name: str) -> np.ndarray:
    """Numbers [N] of a column [N] or [N, 1]."""
    values = np.asarray(values)
    values = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    if values.ndim != 1 or values.dtype.kind not in "biuf":
        raise MucdError(f"{name} have shape {values.shape} and dtype {values.dtype}: there must be one number a row")
    return values


def ends_of(rows: Rows, most_steps: int | None = None) -> np.ndarray:
    """Where episodes of rows that only mark their ends stop, int64 [M]: after a row with an end mark, where the next observation is not the next row's observation, after `most_steps`, and at the last row."""
    ends = np.zeros(len(rows), bool)
    for marks in (rows.terminated, rows.truncated):
        if marks is not None:
            ends |= marks.astype(bool)
    ends |= broken(rows)
    ends[-1] = True
    stops = np.flatnonzero(ends) + 1
    if most_steps is not None:
        starts = np.concatenate([[0], stops[:-1]])
        stops = np.concatenate([[*range(start + most_steps, stop, most_steps), stop] for start, stop in zip(starts.tolist(), stops.tolist())])
    return stops.astype(np.int64)


def counted_ends(rows: Rows, stops: np.ndarray, most_steps: int | None) -> list[str]:
    """A note on those of the ends of `ends_of` that counting steps alone has set; [] without one."""
    if most_steps is None:
        return []
    marked = ends_of(rows)
    of_each = np.bincount(np.searchsorted(marked, stops))  # trajectories up to each marked end
    if of_each.max() < 2:
        return []
    return [
        f"{counted(len(stops) - len(marked), 'end')} {'is' if len(stops) - len(marked) == 1 else 'are'} set by counting {most_steps} steps alone: one row more or less in the file moves all that follow up to the next end that it "
        f"marks, and changes up to {of_each.max()} of {counted(len(stops), 'trajectory')}, which a certificate counts as so many"
    ]


def broken(rows: Rows) -> np.ndarray:
    """After which rows the next row goes on elsewhere, bool [N]; nowhere without next observations, and not where either is no number."""
    apart = np.zeros(len(rows), bool)
    if rows.next_observations is None:
        return apart
    at_a_time = max(1, ENTRIES_AT_A_TIME // max(1, math.prod(rows.observations.shape[1:])))
    for start in range(0, len(rows) - 1, at_a_time):
        stop = min(start + at_a_time, len(rows) - 1)
        after, before = (array.reshape(stop - start, -1).astype(np.float64) for array in (rows.observations[start + 1 : stop + 1], rows.next_observations[start:stop]))
        with np.errstate(invalid="ignore", over="ignore"):
            apart[start:stop] = (np.abs(after - before) > ABSOLUTE + RELATIVE * np.abs(before)).any(axis=1)
    return apart


def cut(rows: Rows, stops: Iterable[int], places: list[str], *, last_row: str = "repeat") -> tuple[list[Episode], list[str]]:
    """Episodes of consecutive rows, the m-th up to stops[m], and notes.

    Args:
        last_row: what an episode that neither terminated nor has a next observation makes of its last row: "repeat" keeps the transition, its observation standing for the next one,
            too; "drop" takes it for the final observation alone, as the readers of D4RL and d3rlpy do.
    """
    episodes, start, repeated, dropped, apart = [], 0, 0, 0, broken(rows)
    for stop, place in zip(stops, places, strict=True):
        part, count = slice(start, stop), stop - start
        terminated = bool(count and rows.terminated is not None and rows.terminated[stop - 1])
        faults = []
        inside = slice(start, max(stop - 1, start))
        for name in ("terminated", "truncated"):
            marks = getattr(rows, name)
            if marks is not None and marks[inside].any():
                faults.append(f"{name} at step {int(np.argmax(marks[inside]))}, inside it")
        if apart[inside].any():
            faults.append(f"the next observation of step {int(np.argmax(apart[inside]))} is not the observation of the step after it")
        if rows.times is not None and count > 1:
            steps = np.diff(rows.times[part].astype(np.float64))
            if not (steps > 0).all():
                faults.append(f"time goes back or stands still after step {int(np.argmin(steps > 0))}")
        observations, end = rows.observations[part], stop
        if rows.next_observations is not None:
            observations = np.concatenate([observations, rows.next_observations[max(stop - 1, start) : stop]])
        elif count and (terminated or last_row == "repeat"):
            observations, repeated = np.concatenate([observations, observations[-1:]]), repeated + 1
        elif count:
            end, dropped = stop - 1, dropped + 1
        part = slice(start, end)
        episodes.append(Episode(
            observations=observations, actions=rows.actions[part], rewards=np.zeros(max(end - start, 0)) if rows.rewards is None else rows.rewards[part],
            terminated=terminated, truncated=not terminated, place=place, faults=tuple(faults),
            keys={name: key for name, values in (rows.sources or {}).items() if count and (key := key_of(values[start:stop])) is not None},
        ))
        start = stop
    notes = []
    if rows.rewards is None:
        notes.append("it has no rewards: all are 0")
    if repeated:
        notes.append(f"{repeated} of {len(episodes)} trajectories have no observation after their last action: the one before it stands for it, too")
    if dropped:
        notes.append(f"{dropped} of {len(episodes)} trajectories end without termination and without a next observation: their last row is the final observation alone, its action and reward are left out")
    return episodes, notes


def key_of(values) -> str | int | None:
    """What a column says of the source of an episode with these rows: a text or whole number, SEVERAL where they differ, None where it says nothing (NaN)."""
    first = values[0]
    if any(value != first and (value == value or first == first) for value in values):
        return SEVERAL
    if isinstance(first, np.floating):
        return None if np.isnan(first) else int(first) if float(first).is_integer() and abs(first) < 1 << 53 else repr(float(first))
    return int(first) if isinstance(first, (np.integer, np.bool_)) else first


def with_fault(episode: Episode, fault: str) -> Episode:
    return replace(episode, faults=(*episode.faults, fault))


def joined(parts: list, name: str):
    """One column of what several files hold, an array or texts. Raises MucdError where its shape or type differs: one file must not change what the others hold."""
    if all(isinstance(part, list) for part in parts):
        return [text for part in parts for text in part]
    kinds = sorted({"texts" if isinstance(part, list) else f"{part.dtype}{list(part.shape[1:])}" for part in parts})
    if len(kinds) > 1:
        raise MucdError(f"column {printable(name)} has other shapes or types in some files than in others: {', '.join(kinds)}")
    return np.concatenate(parts)
