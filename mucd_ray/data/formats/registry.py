"""The formats that `mucd import` reads: a line each. A new one is a file with `recognised(source)` and `read(source, options) -> Recording`, and a line here; or a `Format` that another
package brings as a plug-in (docs/plugins.md)."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import gymnasium as gym
import numpy as np

from mucd_ray import plugins
from mucd_ray.data.formats import csv_log, d3rlpy, d4rl, dqn_replay, lerobot, minari_folder, npz, ogbench, parquet_log, rlds, rllib, robomimic
from mucd_ray.data.formats.episodes import Episode, Recording
from mucd_ray.data.formats.metadata import Recorded
from mucd_ray.data.formats.source import Source
from mucd_ray.errors import MucdError
from mucd_ray.files import printable
from mucd_ray.modules import told
from mucd_ray.plugins import Plugin
from mucd_ray.words import harmless

MOST_WORDS = 1000


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """What the user says of a file.

    Attributes:
        columns: {role: names or patterns} of a table (column_map.py), or None for what is usual.
        observation_keys: which of several observations, in which order; None for all vectors, sorted.
        max_episode_steps: after which an episode ends where nothing marks it.
        actions: names of actions that a table holds as texts, in the order in which they are counted.
    """

    columns: dict[str, list[str]] | None = None
    observation_keys: tuple[str, ...] | None = None
    max_episode_steps: int | None = None
    actions: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format.

    Attributes:
        name: for --format.
        recognised: whether a source looks like one, from its names and first bytes.
        read: its episodes.
        options: fields of ReadOptions that it understands.
    """

    name: str
    recognised: Callable[[Source], bool]
    read: Callable[[Source, ReadOptions], Recording]
    options: tuple[str, ...] = ()


# In the order in which they are tried: what is more particular first.
FORMATS = (
    Format(name="lerobot", recognised=lerobot.recognised, read=lerobot.read, options=("observation_keys",)),
    Format(name="minari", recognised=minari_folder.recognised, read=minari_folder.read),
    Format(name="rlds", recognised=rlds.recognised, read=rlds.read, options=("observation_keys",)),
    Format(name="dqn-replay", recognised=dqn_replay.recognised, read=dqn_replay.read),
    Format(name="rllib", recognised=rllib.recognised, read=rllib.read),
    Format(name="robomimic", recognised=robomimic.recognised, read=robomimic.read, options=("observation_keys",)),
    Format(name="d3rlpy", recognised=d3rlpy.recognised, read=d3rlpy.read, options=("max_episode_steps",)),
    Format(name="d4rl", recognised=d4rl.recognised, read=d4rl.read, options=("max_episode_steps",)),
    Format(name="ogbench", recognised=ogbench.recognised, read=ogbench.read),
    Format(name="npz", recognised=npz.recognised, read=npz.read, options=("columns", "max_episode_steps")),
    Format(name="parquet", recognised=parquet_log.recognised, read=parquet_log.read, options=("columns", "max_episode_steps", "actions")),
    Format(name="csv", recognised=csv_log.recognised, read=csv_log.read, options=("columns", "max_episode_steps", "actions")),
)

# By whose rules their files could be read, too.
MORE_GENERAL = {"rllib": "parquet", "d3rlpy": "d4rl", "ogbench": "npz"}


def read_source(source: Source, name: str | None, options: ReadOptions) -> tuple[str, Recording, Plugin | None]:
    """(format, what it holds, the plug-in that reads it), of the named format or the first that recognises it: those of plug-ins come last, and only where their modules are imported already.

    Raises:
        MucdError: no format fits, an option that it does not understand, or a file that is damaged or not what it should be; the line names the place.
    """
    known = {format.name: format for format in FORMATS}
    plugin = None if name is None else plugins.find("format", name, known)
    if name is not None and plugin is not None:
        known[name] = _format_of(plugin.load(), name)
    elif name is not None and name not in known:
        raise MucdError(f"format {printable(name)!r} is unknown: give one of {plugins.choices('format', known)}")
    try:
        format = known[name] if name else _recognised(source, options)
        if format is None:
            raise MucdError(f"none of the formats {', '.join(known)} fits: name one with --format{_of_plugins()}, or give a file of one of them")
        if plugin is None and format not in FORMATS:
            plugin = plugins.find("format", format.name)
        for option, value in vars(options).items():
            if value is not None and option not in format.options:
                raise MucdError(f"--{option.replace('_', '-')}{' with names' if option == 'actions' else ''} says nothing to the format {format.name}: leave it out, or name another one with --format")
        recording = format.read(source, options)
        if plugin is not None:
            _check(recording)
        return format.name, recording, plugin
    except MucdError as error:
        # Names of columns and keys are the file's.
        text = harmless(" ".join(str(error).split()))[:MOST_WORDS]
        raise MucdError(text if text.startswith(str(source.path)) else f"{source.path}: {text}") from None
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:  # parsers of hostile bytes, and plug-ins, raise anything
        if plugin is not None:
            raise MucdError(f"{source.path} cannot be read: the plug-in {plugin} fails ({told(error)})") from None
        raise MucdError(f"{source.path} cannot be read{f' as {name}' if name else ''} ({printable(error) or type(error).__name__}): it is damaged, or not what it seems") from error


def _recognised(source: Source, options: ReadOptions) -> Format | None:
    """The one that fits. Raises MucdError for several: a file that somebody has added would decide which is read, and the others would vanish."""
    found = [format for format in _fitting(options) if _recognises(format, source)]
    others = [format.name for format in found[1:] if format in FORMATS and format.name != MORE_GENERAL.get(found[0].name)]
    if others:
        raise MucdError(f"it looks like {found[0].name} and like {' and '.join(others)}: name the right one with --format, and look whether somebody has added files")
    return found[0] if found else None


def _fitting(options: ReadOptions) -> tuple[Format, ...]:
    """With a map of columns, only tables: the user says what the file is."""
    return tuple(format for format in (*FORMATS, *_imported()) if options.columns is None or "columns" in format.options)


def _recognises(format: Format, source: Source) -> bool:
    try:
        return bool(format.recognised(source))
    except (Exception, SystemExit) as error:
        if format in FORMATS:
            raise
        raise MucdError(f"the plug-in format {format.name} fails to tell whether it is one of its files ({told(error)}): mend it, or name a format with --format") from None


def _imported() -> list[Format]:
    """Those of plug-ins whose modules have been imported. Nobody has asked for one that is broken, or has the name of another."""
    formats = []
    for name, given in plugins.at_hand("format"):
        with contextlib.suppress(MucdError):
            plugins.find("format", name, {format.name for format in FORMATS})
            formats.append(_format_of(given, name))
    return formats


def _of_plugins() -> str:
    installed = plugins.listed("format")
    return f", also of plug-ins: {', '.join(installed)}" if installed else ""


def _format_of(given, name: str) -> Format:
    known = vars(ReadOptions())
    if not isinstance(given, Format) or not callable(given.read) or not callable(given.recognised) or not isinstance(given.options, tuple) or not all(isinstance(option, str) and option in known for option in given.options):
        raise MucdError(f"the plug-in format {printable(name)} is no Format of mucd_ray.data.formats.registry with recognised(source), read(source, options) and names of options that there are: mend it")
    return replace(given, name=name)


def _check(recording) -> None:
    """Raise TypeError where a plug-in gives something else than it should."""
    if not isinstance(recording, Recording):
        raise TypeError(f"it gives a {type(recording).__name__} instead of a Recording")
    kinds = {"observation_space": gym.Space | None, "action_space": gym.Space | None, "recorded": Recorded | None, "notes": tuple, "episodes": list}
    wrong = [name for name, kind in kinds.items() if not isinstance(getattr(recording, name), kind)]
    if isinstance(recording.recorded, Recorded) and not isinstance(recording.recorded.env_id, str):
        wrong.append("recorded")
    if wrong or not all(isinstance(note, str) for note in recording.notes) or not all(isinstance(episode, Episode) for episode in recording.episodes):
        raise TypeError(f"{wrong[0] if wrong else 'notes or episodes'} of its Recording is of another type than it should be")
    for number, episode in enumerate(recording.episodes):
        observations, actions, rewards = episode.observations, episode.actions, episode.rewards
        arrays = all(isinstance(array, np.ndarray) and array.ndim for array in (observations, actions, rewards))
        if not arrays or rewards.ndim != 1 or rewards.dtype.kind not in "biuf" or not len(observations) - 1 == len(actions) == len(rewards):
            raise TypeError(f"episode {number} does not have arrays of T + 1 observations, T actions and T rewards")
        words = isinstance(episode.place, str) and all(isinstance(fault, str) for fault in episode.faults)
        if not words or {type(episode.terminated), type(episode.truncated)} != {bool} or episode.terminated and episode.truncated or not isinstance(episode.keys, dict) or not all(isinstance(key, str) and (isinstance(value, str) or isinstance(value, int) and abs(value) < 1 << 63) for key, value in episode.keys.items()):
            raise TypeError(f"terminated, truncated, place, keys or faults of episode {number} are of other types than they should be")
