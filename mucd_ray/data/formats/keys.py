"""Source keys: who made a trajectory, as it was recorded beside it.

Minari keeps such things with an episode's metadata (attributes of its HDF5 group, metadata.json in its arrow or parquet folder) and in HDF5 among
its infos, one value per step. A key is a text or a whole number; a number and its text are the same key.
"""

import hashlib

import numpy as np

from mucd_ray.data.formats.metadata import MOST_TEXT
from mucd_ray.errors import MucdError
from mucd_ray.files import printable

# What Minari itself writes beside every episode.
OWN = ("id", "seed", "total_steps")
# Of a trajectory in which a key has several values.
SEVERAL = "(several values)"
# Of what is no text and no whole number.
NO_KEY = "\0"
HASHED = "sha256 "
# How many episodes are looked at for the names of keys, and how many names are told.
MOST_LOOKED_AT, MOST_TOLD = 100, 12


def kept_key(values) -> str | int | None:
    """The same of what is imported, as an attribute can hold it. Nothing is dropped, or a contributor's trajectories would each count as a source of their own: what is too long or not printable
    is told apart by its hash, and in the place of several values, or of what is no text and no whole number, stands what `only_key` refuses."""
    keys = {_as_text(value) for value in values} - {""}
    if len(keys) != 1 or NO_KEY in keys:
        return SEVERAL if keys else None
    key = keys.pop()
    if len(key) <= MOST_TEXT and key.isprintable() and not key.startswith(HASHED):
        return key
    return f"{HASHED}{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()}"


def only_key(values, name: str, episode: int) -> str | None:
    """The key of an episode from all that is recorded under its name; None if that is nothing or empty.

    Raises:
        MucdError: a value is neither a whole number nor a printable text of at most MOST_TEXT characters, or there are several.
    """
    keys = {key for key in (_as_text(value) for value in values) if key}
    if len(keys) > 1:
        raise MucdError(f"episode {episode} has two values of {printable(name)}, in its metadata and among its infos: correct them, or give another source key")
    if SEVERAL in keys:
        raise MucdError(f"{printable(name)} of episode {episode} is not the same in all its steps, so that nothing says whose it is: give another source key, or record it again")
    if any(len(key) > MOST_TEXT or not key.isprintable() for key in keys):
        raise MucdError(f"{printable(name)} of episode {episode} is no source key: give one that is a whole number or a printable text of at most {MOST_TEXT} characters")
    return keys.pop() if keys else None


def _as_text(value) -> str:
    """"" for nothing, and a text that is not printable for what is no text and no whole number."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, (bool, int, np.bool_, np.integer)):
        return str(int(value))
    return value if isinstance(value, str) else "" if value is None else NO_KEY


def told(names) -> str:
    """Which of these keys, the names of what its episodes have, a user may mean: in words."""
    shown = [printable(name)[:60] for name in sorted(set(names) - set(OWN))]
    if not shown:
        return "its episodes have none"
    return f"its episodes have the keys {', '.join(shown[:MOST_TOLD])}" + (", ..." if len(shown) > MOST_TOLD else "")
