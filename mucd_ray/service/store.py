"""The run folder: the only place where a run's state lives. Everything in it is checked when read, nothing is unpickled.

    settings.json   what the run is            secret          the key of all randomness, mode 0600
    states.npy      the states voted on        baselines.json  unprotected policies, for comparison
    targets/        the numbers of instances that were asked for, each written before it was trained
    looks/          the numbers of instances at which results decided whether to go on, each written before the look
    blocks/         finished instances, one self-describing file per block
    certificate.json, report.html, plots/      made from the above, replaced at will

A block is written to a temporary name, flushed, and linked to its final name: the first commit wins, a reader never sees half a
file, and attempts that overlap do no harm, since an instance's content does not depend on who trained it.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mucd_ray.errors import MucdError
from mucd_ray.service.settings import RunSettings

BLOCK = re.compile(r"block-(\d{8})-(\d{6})\.safetensors$")


@dataclass(frozen=True)
class Block:
    """Results of consecutive instances.

    returns: float64 [n].   actions: int16 [n, S], the votes ([n, 0] if continuous).   parameters: [n, ...] by name.
    levels: uint8 [n, S, D] (certify/evidence.py): of every action's probability, or of every dimension of a continuous action
    (D = 0 if its space is unbounded).
    """

    first: int
    returns: np.ndarray
    actions: np.ndarray
    levels: np.ndarray
    parameters: dict[str, np.ndarray]

    @property
    def instances(self) -> range:
        return range(self.first, self.first + len(self.returns))


class RunStore:
    """One run folder, open for reading and writing."""

    def __init__(self, path):
        self.path = Path(path)
        self.blocks = self.path / "blocks"

    @classmethod
    def create_or_open(cls, path, settings: RunSettings, secret: bytes | None = None) -> "RunStore":
        """The run at `path` if it has these settings, else a new one in an empty or missing folder.

        Args:
            secret: the randomness key of a new run; drawn from the operating system if None.
        Raises:
            MucdError: the folder holds something else, another run, or cannot be written.
        """
        store = cls(path)
        if store.exists():
            store._check_same(settings, secret)
            return store
        try:
            store.path.mkdir(parents=True, exist_ok=True)
            # What a start that was killed leaves behind: it comes before settings.json, which makes the folder a run.
            foreign = any(name not in ("blocks", "targets", "looks", "secret", "secret.sha256") and not name.startswith(".tmp-") for name in os.listdir(store.path))
            # Another process may have made it a run folder since the look above.
            if foreign and not store.exists():
                raise MucdError(f"{store.path} is not empty and not a run folder: choose a new folder with --out")
            store.blocks.mkdir(exist_ok=True)
            (store.path / "targets").mkdir(exist_ok=True)
            (store.path / "looks").mkdir(exist_ok=True)
            store._first_write("secret", (secret or secrets.token_bytes(32)).hex().encode(), mode=0o600)
            store._first_write("secret.sha256", _secret_hash((store.path / "secret").read_text()), mode=0o600)
            store._first_write("settings.json", json.dumps(settings.to_dict(), indent=1).encode())
        except OSError as error:
            raise MucdError(f"run folder {store.path} cannot be written ({error.strerror}): choose another with --out") from None
        store._check_same(settings, secret)
        return store

    @classmethod
    def open(cls, path) -> "RunStore":
        store = cls(path)
        if not store.exists():
            raise MucdError(f"{path} is not a run folder (it has no settings.json): make one with `mucd run DATASET --out {path}`")
        return store

    def exists(self) -> bool:
        return (self.path / "settings.json").is_file()

    def settings(self) -> RunSettings:
        try:
            return RunSettings.from_dict(json.loads((self.path / "settings.json").read_text()))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise MucdError(f"{self.path / 'settings.json'} cannot be read ({error}): restore it, or start a new run folder") from None

    @cached_property
    def identity(self) -> str:
        """Hash of the settings, which never change: every block carries it."""
        return self.settings().identity()

    def secret(self) -> bytes:
        """The key of all randomness. Raises MucdError unless only its owner can read it."""
        try:
            status = os.stat(self.path / "secret")
            if status.st_mode & 0o077 or status.st_uid != os.geteuid():
                raise MucdError(f"{self.path / 'secret'} is not private to this user: an attacker may know it; start a new run folder, or chmod 600 it if you are sure")
            text = (self.path / "secret").read_text()
            if (self.path / "secret.sha256").read_bytes() != _secret_hash(text):
                raise MucdError(f"{self.path / 'secret'} is not the one with which the run began: restore it, or start a new run folder")
            return bytes.fromhex(text)
        except (OSError, ValueError) as error:
            raise MucdError(f"{self.path / 'secret'} cannot be read ({error}): without it the run cannot go on") from None

    def _check_same(self, settings: RunSettings, secret: bytes | None):
        differences = self.settings().differences(settings)
        # Sentences follow from the other settings.
        differences = [text for text in differences if not text.startswith("assumptions")] or differences
        if secret is not None and secret != self.secret():
            differences.append("seed: another one there")
        if differences:
            raise MucdError(f"{self.path} holds a run with other settings ({'; '.join(differences[:3])}): use the same ones, or another --out; `mucd grow` adds instances, `mucd certify` takes another eta or threat")

    # targets, states and baselines

    def add_target(self, instances: int) -> None:
        """Record a number of instances before training it: only such numbers are certified, whatever happens to be stored.

        Which instances of an interrupted run are finished depends on how long their episodes took, hence on their returns.
        """
        self._first_write(f"targets/{instances:08d}", b"")

    def targets(self) -> list[int]:
        return self._numbers("targets")

    def add_look(self, instances: int) -> None:
        """Record that the results of this many instances are about to be looked at, to go on or stop."""
        self._first_write(f"looks/{instances:08d}", b"")

    def looks(self) -> list[int]:
        return self._numbers("looks")

    def _numbers(self, folder: str) -> list[int]:
        return sorted(int(name) for name in os.listdir(self.path / folder) if name.isdigit() and int(name))

    def states(self) -> np.ndarray | None:
        path = self.path / "states.npy"
        if not path.exists():
            return None
        try:
            return np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise MucdError(f"{path} cannot be read ({error}): restore it; the votes belong to these states") from None

    def write_states(self, states: np.ndarray) -> np.ndarray:
        """Fix the states that are voted on; the first writer wins, and what is stored is returned."""
        with _temporary(self.path) as temporary:
            with open(temporary, "wb") as file:
                np.save(file, states, allow_pickle=False)
            _link(temporary, self.path / "states.npy")
        return self.states()

    def states_hash(self) -> str:
        """Hash of the states that votes belong to; every block carries it."""
        states = self.states()
        return "" if states is None else hashlib.sha256(f"{states.dtype.str} {states.shape};".encode() + np.ascontiguousarray(states).tobytes()).hexdigest()

    def write_json(self, name: str, value) -> None:
        """Replace a derived file in one step."""
        self.write_text(name, json.dumps(value, indent=1, allow_nan=False))

    def write_text(self, name: str, text: str) -> None:
        with _temporary(self.path) as temporary:
            temporary.write_text(text)
            os.replace(temporary, self.path / name)

    def read_json(self, name: str):
        path = self.path / name
        try:
            return json.loads(path.read_text(), parse_constant=_refuse_constant) if path.exists() else None
        except ValueError as error:
            raise MucdError(f"{path} cannot be read ({error}): delete it, and `mucd run` makes it again") from None

    def _first_write(self, name: str, content: bytes, mode: int = 0o644) -> None:
        with _temporary((self.path / name).parent) as temporary:
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, mode))
            temporary.write_bytes(content)
            _link(temporary, self.path / name)

    # blocks

    def commit(self, block: Block) -> str:
        """Store a finished block; returns its name. Storing it again, or elsewhere at the same time, changes nothing."""
        name = f"block-{block.first:08d}-{len(block.returns):06d}.safetensors"
        tensors = {f"parameters.{key}": value for key, value in block.parameters.items()}
        tensors |= {"returns": block.returns, "actions": block.actions, "levels": block.levels}
        metadata = {"sha256": _digest(tensors, block.first), "run": self.identity, "states": self.states_hash()}
        with _temporary(self.blocks) as temporary:
            temporary.write_bytes(save(tensors, metadata))
            _link(temporary, self.blocks / name)
        return name

    def names(self) -> list[str]:
        return sorted(name for name in os.listdir(self.blocks) if BLOCK.match(name))

    def read(self, name: str) -> Block | None:
        """A block, or None if its file is damaged; a damaged file is moved aside, so that its instances are trained again.

        Raises:
            MucdError: the block belongs to another run.
        """
        path = self.blocks / name
        try:
            with safe_open(path, "np") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}
            first, count = (int(part) for part in BLOCK.match(name).groups())
            if metadata.get("sha256") != _digest(tensors, first) or len(tensors["returns"]) != count:
                raise ValueError("checksum")
        except (SafetensorError, ValueError, KeyError):
            os.replace(path, path.with_suffix(".damaged"))
            return None
        if metadata.get("run") != self.identity:
            raise MucdError(f"{path} belongs to another run: move it away")
        if metadata.get("states") != self.states_hash():
            raise MucdError(f"{path} holds votes on other states than {self.path / 'states.npy'}: restore that file, or start a new run folder")
        parameters = {key.removeprefix("parameters."): value for key, value in tensors.items() if key.startswith("parameters.")}
        return Block(first=first, returns=tensors["returns"], actions=tensors["actions"], levels=tensors["levels"], parameters=parameters)

    def missing(self, instances: int, block_size: int) -> list[range]:
        """Blocks of at most `block_size` instances that cover all of 0..instances-1 not yet stored. Damaged files are found here."""
        done = np.zeros(instances, dtype=bool)
        for name in self.names():
            if (block := self.read(name)) is not None:
                done[block.first : block.first + len(block.returns)] = True
        wanted, blocks = np.flatnonzero(~done), []
        for run in np.split(wanted, np.flatnonzero(np.diff(wanted) > 1) + 1):
            blocks += [range(int(part[0]), int(part[-1]) + 1) for part in np.split(run, range(block_size, len(run), block_size)) if len(part)]
        return blocks

    def stored_instances(self) -> int:
        """Number of instances 0, 1, ... that are stored without a gap."""
        end = 0
        for name in self.names():
            first, count = (int(part) for part in BLOCK.match(name).groups())
            if first > end:
                break
            end = max(end, first + count)
        return end


def _refuse_constant(name: str):
    raise ValueError(f"{name} is not a number")


def _secret_hash(text: str) -> bytes:
    return hashlib.sha256(b"mucd run secret " + text.encode()).hexdigest().encode()


@contextlib.contextmanager
def _temporary(folder: Path):
    path = folder / f".tmp-{os.getpid()}-{secrets.token_hex(8)}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _link(temporary: Path, final: Path) -> None:
    """Make a written file durable and give it its name, unless the name is taken."""
    for path in (temporary, temporary.parent):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    with contextlib.suppress(FileExistsError):
        os.link(temporary, final)
    descriptor = os.open(final.parent, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _digest(tensors: dict[str, np.ndarray], first: int) -> str:
    """Hash of a block's content and of the number of its first instance: a copy under another name is damaged."""
    digest = hashlib.sha256(f"first {first};".encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {array.dtype.str} {array.shape};".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
