"""The formats that `mucd import` reads: a line each. A new one is a file with `recognised(source)` and `read(source, options) -> Recording`, and a line here."""

from collections.abc import Callable
from dataclasses import dataclass

from mucd_ray.data.formats import csv_log, d3rlpy, d4rl, dqn_replay, lerobot, minari_folder, npz, ogbench, parquet_log, rlds, rllib, robomimic
from mucd_ray.data.formats.episodes import Recording
from mucd_ray.data.formats.source import Source
from mucd_ray.errors import MucdError
from mucd_ray.files import printable
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


def read_source(source: Source, name: str | None, options: ReadOptions) -> tuple[str, Recording]:
    """(format, what it holds), of the named format or the first that recognises it.

    Raises:
        MucdError: no format fits, an option that it does not understand, or a file that is damaged or not what it should be; the line names the place.
    """
    known = {format.name: format for format in FORMATS}
    if name is not None and name not in known:
        raise MucdError(f"format {printable(name)!r} is unknown: give one of {', '.join(known)}")
    try:
        format = known[name] if name else next((format for format in _fitting(options) if format.recognised(source)), None)
        if format is None:
            raise MucdError(f"none of the formats {', '.join(known)} fits: name one with --format, or give a file of one of them")
        for option, value in vars(options).items():
            if value is not None and option not in format.options:
                raise MucdError(f"--{option.replace('_', '-')}{' with names' if option == 'actions' else ''} says nothing to the format {format.name}: leave it out, or name another one with --format")
        return format.name, format.read(source, options)
    except MucdError as error:
        # Names of columns and keys are the file's.
        text = harmless(" ".join(str(error).split()))[:MOST_WORDS]
        raise MucdError(text if text.startswith(str(source.path)) else f"{source.path}: {text}") from None
    except MemoryError:
        raise
    except Exception as error:  # parsers of hostile bytes raise anything
        raise MucdError(f"{source.path} cannot be read{f' as {name}' if name else ''} ({printable(error) or type(error).__name__}): it is damaged, or not what it seems") from error


def _fitting(options: ReadOptions) -> tuple[Format, ...]:
    """With a map of columns, only tables: the user says what the file is."""
    return tuple(format for format in FORMATS if options.columns is None or "columns" in format.options)
