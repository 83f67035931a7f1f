"""Where the state of a run lives: named files in a local folder or under an fsspec URL such as s3://bucket/run.

Everything rests on one primitive, `create`: a file comes into being whole or not at all, and of several writers the first wins. A local
folder has hard links for it, an object store conditional writes. A place that has neither is refused before anything is trained.
"""

import contextlib
import errno
import os
import secrets
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from mucd_ray.errors import MucdError
from mucd_ray.files import TooLarge, check_within, open_file, read_file

# fsspec file systems whose `pipe_file(mode="create")` is one conditional request. On the others it looks first and writes then.
CONDITIONAL_WRITES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"}
PROBE_WRITERS = 4


class Storage(Protocol):
    """Files by name; a name may have folders, such as blocks/b. All methods raise OSError if the place fails."""

    location: str
    absolute: str  # the same from any folder

    def create(self, name: str, content: bytes, private: bool = False) -> bool:
        """Write a file unless it exists, durably; whether this call made it. `private`: readable by the owner alone, where there are owners."""

    def replace(self, name: str, content: bytes) -> None:
        """Write a file, or write it anew, in one step."""

    def read(self, name: str, most_bytes: int) -> bytes:
        """Raises FileNotFoundError, and MucdError for what is no file of this folder or (TooLarge) has more bytes: a sparse file costs its maker none."""

    def beginning(self, name: str, most_bytes: int) -> tuple[int, bytes]:
        """(how many bytes the file has, the first of them); errors are those of `read`, for a file of any size."""

    def exists(self, name: str) -> bool: ...

    def is_private(self, name: str) -> bool:
        """Whether only this user can read the file, as far as the place itself can tell."""

    def names(self, folder: str = "") -> list[str]:
        """Names of the files and folders in a folder, sorted; [] if it is missing."""

    def move(self, name: str, to: str) -> None: ...

    def remove(self, name: str) -> None:
        """Removing what is not there changes nothing."""


def open_storage(location) -> Storage:
    """The storage at a local path or an fsspec URL; nothing is written yet.

    Raises:
        MucdError: an unknown kind of URL, a missing package for it, or one without atomic commits.
    """
    text = str(location)
    protocol, separator, rest = text.partition("://")
    if not separator or protocol in ("file", "local"):
        try:
            # Shells expand ~ only at the beginning of a word.
            return LocalStorage(Path(rest if separator else text).expanduser())
        except RuntimeError as error:
            raise MucdError(f"--storage {text}: {error}: write the folder's path without ~") from None
    if protocol not in CONDITIONAL_WRITES:
        raise MucdError(
            f"--storage {text}: {protocol} is not known for atomic first-writer-wins commits that all processes see: use a local path or one of {', '.join(sorted(CONDITIONAL_WRITES))}"
        )
    # To an object store a//b and a/b are different folders, and its file system lists the second when it is asked for the first.
    parts = [part for part in rest.split("/") if part]
    if not parts or {".", ".."} & set(parts):
        raise MucdError(f"--storage {text}: its path must be a bucket and names of folders, such as {protocol}://bucket/run")
    text = f"{protocol}://{'/'.join(parts)}"
    import fsspec

    try:
        filesystem, root = fsspec.core.url_to_fs(text)
    except (ImportError, ValueError) as error:
        raise MucdError(f"--storage {text} cannot be used ({error}): install that package on every node, or use a local path or another URL") from None
    return ObjectStorage(text, filesystem, root.rstrip("/"))


class LocalStorage:
    """A folder: files are written to a temporary name, flushed, and linked or renamed to their own."""

    def __init__(self, path: Path):
        self.path, self.location, self.absolute = path, str(path), str(path.resolve())

    def create(self, name: str, content: bytes, private: bool = False) -> bool:
        final = self.path / name
        with self._written(final, content, 0o600 if private else 0o644) as temporary:
            try:
                os.link(temporary, final)
            except FileExistsError:
                return False
            finally:
                _flush(final.parent)
        return True

    def replace(self, name: str, content: bytes) -> None:
        final = self.path / name
        with self._written(final, content, 0o644) as temporary:
            os.replace(temporary, final)

    def read(self, name: str, most_bytes: int) -> bytes:
        return read_file(self.path / name, most_bytes, within=self.path)

    def beginning(self, name: str, most_bytes: int) -> tuple[int, bytes]:
        with open_file(self.path / name, sys.maxsize, within=self.path) as file:
            return os.fstat(file.fileno()).st_size, file.read(most_bytes)

    def exists(self, name: str) -> bool:
        return (self.path / name).exists()

    def is_private(self, name: str) -> bool:
        status = os.stat(self.path / name)
        return not status.st_mode & 0o077 and status.st_uid == os.geteuid()

    def names(self, folder: str = "") -> list[str]:
        try:
            return sorted(name for name in os.listdir(self.path / folder) if not name.startswith(".tmp-"))
        except FileNotFoundError:
            return []

    def move(self, name: str, to: str) -> None:
        for file in (self.path / name, self.path / to):
            check_within(file.parent, self.path)
        os.replace(self.path / name, self.path / to)

    def remove(self, name: str) -> None:
        check_within((self.path / name).parent, self.path)
        (self.path / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _written(self, final: Path, content: bytes, mode: int) -> Iterator[Path]:
        # A folder `plots` that somebody sent may lead to the files of another run.
        check_within(final.parent, self.path)
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = final.parent / f".tmp-{os.getpid()}-{secrets.token_hex(8)}"
        try:
            with open(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class ObjectStorage:
    """An object store, by its fsspec file system. Credentials and endpoint come from the environment, as the package of that store wants them;
    who may read a bucket is decided there."""

    def __init__(self, location: str, filesystem, root: str):
        self.location = self.absolute = location
        self.filesystem, self.root = filesystem, root

    def create(self, name: str, content: bytes, private: bool = False) -> bool:
        try:
            self._call("pipe_file", name, content, mode="create")
        except FileExistsError:
            return False
        return True

    def replace(self, name: str, content: bytes) -> None:
        self._call("pipe_file", name, content)

    def read(self, name: str, most_bytes: int) -> bytes:
        size = self._call("size", name)
        if size is not None and size > most_bytes:
            raise TooLarge(f"{self.location}/{name} has {size:,} bytes, at most {most_bytes:,} are read: it is not what it should be")
        return self._call("cat_file", name)

    def beginning(self, name: str, most_bytes: int) -> tuple[int, bytes]:
        size = self._call("size", name) or 0
        # Of an empty object no range can be asked for.
        return size, self._call("cat_file", name, start=0, end=min(size, most_bytes)) if size else b""

    def exists(self, name: str) -> bool:
        return self._call("exists", name)

    def is_private(self, name: str) -> bool:
        return True

    def names(self, folder: str = "") -> list[str]:
        try:
            found = self._call("ls", folder, detail=False)
        except FileNotFoundError:
            return []
        # An empty object named like the folder itself is how consoles make one.
        own = self._path(folder).rstrip("/")
        return sorted({path.rstrip("/").rpartition("/")[2] for path in found if path.rstrip("/") != own})

    def move(self, name: str, to: str) -> None:
        self._call("mv", name, self._path(to))

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._call("rm_file", name)

    def _call(self, method: str, name: str, *arguments, **options):
        # Listings are cached, and others write here, too.
        self.filesystem.invalidate_cache()
        try:
            return getattr(self.filesystem, method)(self._path(name), *arguments, **options)
        except OSError:
            raise
        except Exception as error:  # every store has its own kinds
            raise OSError(errno.EIO, reason(error), f"{self.location}/{name}") from error

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root


def check_commits(storage: Storage) -> None:
    """Raise MucdError unless the place can be written, of several writers of one new file exactly one wins, and listings show what was written."""
    name, won = f"probe-{secrets.token_hex(8)}", []

    def write():
        try:
            won.append(storage.create(name, secrets.token_bytes(64)))
        except Exception as error:  # every store has its own
            won.append(error)

    threads = [threading.Thread(target=write) for _ in range(PROBE_WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        listed = name in storage.names()
    except Exception as error:
        won.append(error)
    with contextlib.suppress(Exception):
        storage.remove(name)
    for result in won:
        if isinstance(result, Exception):
            raise MucdError(f"run folder {storage.location} cannot be written ({reason(result)}): {_fix(result)}")
    if won.count(True) != 1:
        raise MucdError(f"{storage.location} has no atomic commits ({won.count(True)} of {len(won)} writers of one file won): choose another --storage")
    if not listed:
        raise MucdError(f"{storage.location} does not list what was just written there: choose another --storage")


def reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) if isinstance(error, OSError) else None) or " ".join(str(error).split())[:200] or type(error).__name__


def _fix(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
        return "it has no hard links, hence no atomic commits, or forbids them; choose another --storage"
    return "choose another with --storage"
