"""The run folder: the only place where a run's state lives. Everything in it is checked when read, nothing is unpickled.

    settings.json   what the run is            secret          the key of all randomness, readable by its owner alone
    encoder         the file whose outputs replace observations, if there is one
    states.npy      the states voted on        baselines.json  unprotected policies, for comparison
    targets/        the numbers of instances that were asked for, each written before it was trained
    looks/          the numbers of instances at which results decided whether to go on, each written before the look
    blocks/         finished instances, one self-describing file per block
    parts/          of a partition: the policies of its parts, which instances are draws of, in blocks of the same kind
    voted/          episodes of the voted policy, followed wherever poisoned votes could lead
    search.json     how many nodes that were, and how long it took
    rules/          episodes of the policies of vote rules, with all votes
    failures/       for people: of what trainers from outside failed, one example for each cause
    drivers/        who is working on the run, each file renewed while its driver lives
    live.json       progress and bounds while the run goes on
    certificate.json, summary.json, report.html, plots/      made from the above, replaced at will

Of a block, the first commit wins (storage.py): a reader never sees half a file. Attempts that overlap in other blocks do no harm: an instance's
content does not depend on who trained it, except in its last bits on another kind of processor, and of several copies one counts for everything
(`copies_that_count`).
"""

import contextlib
import hashlib
import io
import json
import math
import re
import secrets
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from mucd_ray.certify.file.certificate import parse_certificate
from mucd_ray.certify.file.evidence import LEVELS
from mucd_ray.errors import MucdError
from mucd_ray.evaluate.evaluators import CAUSES
from mucd_ray.files import MOST_ARRAY_BYTES, MOST_JSON_BYTES, TooLarge, printable, read_json, read_npy
from mucd_ray.learn.encoders import MOST_ENCODER_BYTES
from mucd_ray.learn.trainers.artifacts import MOST_BYTES
from mucd_ray.learn.trainers.outside import FAILURES
from mucd_ray.service.runs.settings import RunSettings
from mucd_ray.service.storage.storage import LocalStorage, check_commits, open_storage, reason

MOST_HEADER_BYTES = 1 << 20
MOST_SECRET_BYTES = 1 << 10
# Of the words of a failure, which are printed as one line.
MOST_WORDS_BYTES = 1 << 13
# Of .npy, before the numbers.
MOST_NPY_HEADER = 1 << 16
# Bytes of the longest number in a block.
WIDEST = 8
# Why an instance of the package's own trainers is the default policy.
NOT_FINITE = "not finite"
BLOCK = re.compile(r"block-([0-9]{8})-([0-9]{6})\.safetensors\Z")
# Of instances, as a file of `targets` or `looks` is named.
NUMBER = re.compile(r"[0-9]{8}\Z")
MOST_INSTANCES = 99_999_999
# What a start that was killed may leave behind: it comes before settings.json, which makes the folder a run.
# Beside what file systems and desktops leave in any folder.
BEGINNINGS = re.compile(r"(secret|secret\.sha256|probe-[0-9a-f]+|lost\+found|\.DS_Store)$")
# Which consoles of object stores make beforehand.
EMPTY_FOLDERS = ("blocks", "parts", "targets", "looks")
# A start beside this one has this long from its secret to its settings.
SECONDS_TO_SETTINGS = 10


@dataclass(frozen=True)
class Block:
    """Results of consecutive instances.

    returns: float64 [n].   actions: int16 [n, S], the votes ([n, 0] if continuous, [n, S, k] of k components).   parameters: [n, ...] by name.
    levels: uint8 [n, S, D] (certify/file/evidence.py): of every action's probability, or of every dimension of a continuous action
    (D = 0 if its space is unbounded).
    Where the trainer is from outside there are no parameters, but contents: TorchScript or ONNX of every policy, b"" where it cannot be stored; and failed: uint8 [n], why it is
    the default policy (learn/trainers/outside.py), 0 if it is not.
    With an evaluator returns are its scores; and unscored: uint8 [n], why a score counts as the least (evaluate/evaluators.py), 0 if it does not.
    """

    first: int
    returns: np.ndarray
    actions: np.ndarray
    levels: np.ndarray
    parameters: dict[str, np.ndarray]
    contents: tuple[bytes, ...] = ()
    failed: np.ndarray | None = None
    unscored: np.ndarray | None = None
    # By cause, of the first that failed so, in the learner's own words: for people, kept beside the blocks.
    words: dict[str, str] = field(default_factory=dict)

    @property
    def instances(self) -> range:
        return range(self.first, self.first + len(self.returns))

    def causes(self) -> list[str]:
        """Why each instance is the policy of the default action; "" if it is not."""
        if self.failed is not None:
            return [FAILURES[number] for number in self.failed.tolist()]
        finite = np.ones(len(self.returns), bool)
        for values in self.parameters.values():
            finite &= np.isfinite(values).reshape(len(values), -1).all(1)
        return ["" if good else NOT_FINITE for good in finite.tolist()]


class RunStore:
    """One run folder, open for reading and writing; at a local path or an fsspec URL."""

    def __init__(self, location, folder: str = "blocks"):
        self.storage = open_storage(location)
        self.location, self.folder = self.storage.location, folder

    def of_parts(self) -> "RunStore":
        """The same run, where the blocks are those of the parts of a partition: numbers of instances are numbers of parts."""
        return RunStore(self.storage.location, "parts")

    @property
    def path(self) -> Path:
        """The folder of a local run."""
        return cast(LocalStorage, self.storage).path

    def file(self, name: str) -> str:
        """A file of the run, as a user would write it."""
        return f"{self.location}/{name}"

    @classmethod
    def create_or_open(cls, location, settings: RunSettings, secret: bytes | None = None) -> "RunStore":
        """The run at `location` if it has these settings, else a new one in an empty or missing folder.

        Args:
            secret: the randomness key of a new run; drawn from the operating system if None.
        Raises:
            MucdError: the folder holds something else, another run, cannot be written, or has no atomic commits.
        """
        store = cls(location)
        try:
            if not store.exists():
                foreign = not all(BEGINNINGS.match(name) or name in EMPTY_FOLDERS and not store.storage.names(name) for name in store.storage.names())
                # Another process may have made it a run folder since the look above.
                if foreign and not store.exists():
                    raise MucdError(f"{store.location} is not empty and not a run folder: choose a new folder with --storage")
                content = json.dumps(settings.to_dict(), indent=1).encode()
                RunSettings.from_dict(read_json(content, "what this run is asked for"))  # a folder that could not be read again is none
                check_commits(store.storage)
                drawn = (secret or secrets.token_bytes(32)).hex().encode()
                if not store.storage.create("secret", drawn, private=True) and not store._is_begun_elsewhere():
                    # That of a start that was killed; or of somebody who put it there and knows it.
                    store.storage.remove("secret")
                    store.storage.remove("secret.sha256")
                    store.storage.create("secret", drawn, private=True)
                store.storage.create("secret.sha256", _secret_hash(store.storage.read("secret", MOST_SECRET_BYTES)), private=True)
                store.storage.create("settings.json", content)
        except OSError as error:
            raise MucdError(f"run folder {store.location} cannot be written ({reason(error)}): choose another with --storage") from None
        store._check_same(settings, secret)
        return store

    def _is_begun_elsewhere(self) -> bool:
        """Whether the start whose secret is there already makes the folder a run."""
        until = time.monotonic() + SECONDS_TO_SETTINGS
        while not self.exists() and time.monotonic() < until:
            time.sleep(0.1)
        return self.exists()

    @classmethod
    def open(cls, location) -> "RunStore":
        store = cls(location)
        if not store.exists():
            raise MucdError(f"{location} is not a run folder (it has no settings.json): make one with `mucd run DATASET --storage {location}`")
        return store

    def exists(self) -> bool:
        return self.storage.exists("settings.json")

    def settings(self) -> RunSettings:
        version = None
        try:
            values = read_json(self.storage.read("settings.json", MOST_JSON_BYTES), "it")
            version = values.get("version")
            return RunSettings.from_dict(values)
        except (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, MucdError) as error:
            # Fields come and go with versions.
            named = isinstance(version, str) and version
            known = f"restore it, or go on with version {printable(version)} of the package, which wrote it" if named else "restore it, or use the version that wrote it"
            raise MucdError(f"{self.file('settings.json')} cannot be read ({printable(error)}): {known}, or start a new run folder") from None

    @cached_property
    def _settings(self) -> RunSettings:
        """Which never change."""
        return self.settings()

    @cached_property
    def identity(self) -> str:
        """Hash of the settings: every block carries it."""
        return self._settings.identity()

    def secret(self) -> bytes:
        """The key of all randomness. Raises MucdError unless only its owner can read it."""
        path = self.file("secret")
        try:
            if not self.storage.is_private("secret"):
                raise MucdError(f"{path} is not private to this user: an attacker may know it; start a new run folder, or chmod 600 it if you are sure")
            text = self.storage.read("secret", MOST_SECRET_BYTES)
            if self.storage.read("secret.sha256", MOST_SECRET_BYTES) != _secret_hash(text):
                raise MucdError(f"{path} is not the one with which the run began: restore it, or start a new run folder")
            return bytes.fromhex(text.decode())
        except (OSError, ValueError, TooLarge) as error:
            raise MucdError(f"{path} cannot be read ({error}): without it the run cannot go on") from None

    def _check_same(self, settings: RunSettings, secret: bytes | None):
        differences = self.settings().differences(settings)
        # Sentences follow from the other settings.
        differences = [text for text in differences if not text.startswith("assumptions")] or differences
        if secret is not None and secret != self.secret():
            differences.append("seed: another one there")
        if differences:
            raise MucdError(
                f"{self.location} holds a run with other settings ({'; '.join(differences[:3])}): use the same ones, or another --storage; "
                "`mucd grow` adds instances, `mucd certify` takes another eta or threat"
            )

    # targets, looks, states and derived files

    def add_target(self, instances: int) -> None:
        """Record a number of instances before training it: only such numbers are certified, whatever happens to be stored.

        Which instances of an interrupted run are finished depends on how long their episodes took, hence on their returns.
        """
        self.storage.create(f"targets/{instances:08d}", b"")

    def targets(self) -> list[int]:
        return self._numbers("targets")

    def add_look(self, instances: int) -> None:
        """Record that the results of this many instances are about to be looked at, to go on or stop."""
        self.storage.create(f"looks/{instances:08d}", b"")

    def looks(self) -> list[int]:
        return self._numbers("looks")

    def _numbers(self, folder: str) -> list[int]:
        return sorted(int(name) for name in self.storage.names(folder) if NUMBER.match(name) and int(name))

    def write_encoder(self, content: bytes) -> None:
        """Keep the file of the card's encoder with the run: trainers on other nodes, and who serves it, need it."""
        self.storage.create("encoder", content)

    def encoder(self) -> bytes:
        """The file of the card's encoder. Raises MucdError if it is missing or another one."""
        try:
            content = self.storage.read("encoder", MOST_ENCODER_BYTES)
        except OSError as error:
            raise MucdError(f"{self.file('encoder')} cannot be read ({reason(error)}): run the same command again, with --encoder FILE") from None
        except TooLarge as error:
            raise MucdError(f"{error}: delete it, and run the same command again, with --encoder FILE") from None
        wanted = self._settings.card.encoder
        if wanted is None or hashlib.sha256(content).hexdigest() != wanted[0]:
            raise MucdError(f"{self.file('encoder')} is not the encoder with which the run began: delete it, and run the same command again")
        return content

    def states(self) -> np.ndarray | None:
        try:
            settings = self._settings
            most = min(settings.states * math.prod(settings.card.observation_shape) * WIDEST, MOST_ARRAY_BYTES) + MOST_NPY_HEADER
            states = read_npy(self.storage.read("states.npy", most), "it")
            if states.shape != (settings.states, *settings.card.observation_shape):
                raise ValueError(f"it holds no {settings.states} observations of shape {tuple(settings.card.observation_shape)}")
            return states
        except FileNotFoundError:
            return None
        except (OSError, ValueError, MucdError) as error:
            raise MucdError(f"{self.file('states.npy')} cannot be read ({error}): restore it; the votes belong to these states") from None

    def write_states(self, states: np.ndarray) -> np.ndarray:
        """Fix the states that are voted on; the first writer wins, and what is stored is returned."""
        file = io.BytesIO()
        np.save(file, states, allow_pickle=False)
        self.storage.create("states.npy", file.getvalue())
        return self.fixed_states()

    def fixed_states(self) -> np.ndarray:
        """Of a run whose states are fixed. Raises MucdError where they are missing."""
        states = self.states()
        if states is None:
            raise MucdError(f"{self.file('states.npy')} is missing: restore it; the votes belong to these states")
        return states

    @cached_property
    def _states_hash(self) -> str:
        states = self.fixed_states()
        return hashlib.sha256(f"{states.dtype.str} {states.shape};".encode() + np.ascontiguousarray(states).tobytes()).hexdigest()

    def states_hash(self) -> str:
        """Hash of the states that votes belong to, "" before they are chosen; every block carries it."""
        return "" if "_states_hash" not in vars(self) and self.states() is None else self._states_hash

    def certificate(self) -> dict | None:
        """The run's certificate as it stands, None if there is none. Raises MucdError if it cannot be one."""
        try:
            return parse_certificate(self.storage.read("certificate.json", MOST_JSON_BYTES), self.file("certificate.json"))
        except FileNotFoundError:
            return None

    def write_json(self, name: str, value) -> None:
        """Replace a derived file in one step."""
        text = json.dumps(value, indent=1, allow_nan=False)
        # Rows of numbers stand in a line each: votes would fill most of a file with spaces. A line break is never inside a text.
        text = re.sub(r'\[\n([^][{}"]*)\]', lambda row: f"[{' '.join(row[1].split())}]", text)
        if len(content := text.encode()) > MOST_JSON_BYTES:
            raise MucdError(f"{self.file(name)} would have {len(content):,} bytes, and no such file may have more than {MOST_JSON_BYTES:,}: certify fewer --episodes, or follow fewer --nodes")
        self.storage.replace(name, content)

    def read_json(self, name: str, most_bytes: int = MOST_JSON_BYTES):
        try:
            return read_json(self.storage.read(name, most_bytes), "it")
        except FileNotFoundError:
            return None
        except MucdError as error:
            raise MucdError(f"{self.file(name)} cannot be read ({error}): delete it, and `mucd run` makes it again") from None

    def baselines(self) -> dict | None:
        """baselines.json: finite numbers by name, `best_constant_action` (a name), why there is none (NAME_failure) and `reference` (a list of numbers, of several components one of such lists, or None); None if it is not there."""
        values = self.read_json("baselines.json")
        if values is None:
            return None
        fits = dict.fromkeys(("best_constant_action", "non_private_failure", "trusted_failure"), lambda value: isinstance(value, str)) | {
            "reference": lambda value: value is None or (isinstance(value, list) and all(map(_are_numbers, value)) if self._settings.components else _are_numbers(value))
        }
        if not isinstance(values, dict) or not all(fits.get(name, _is_number)(value) for name, value in values.items()):
            raise MucdError(f"{self.file('baselines.json')} is not as this version writes it: delete it, and `mucd run` makes it again")
        return values

    # blocks

    def commit(self, block: Block) -> str:
        """Store a finished block; returns its name. Storing it again, or elsewhere at the same time, changes nothing."""
        name = block_name(block.instances)
        tensors = {f"parameters.{key}": value for key, value in block.parameters.items()}
        if block.failed is not None:
            sizes = np.array([len(content) for content in block.contents], np.int64)
            tensors |= {"policies.bytes": np.frombuffer(b"".join(block.contents), np.uint8), "policies.sizes": sizes, "policies.failed": block.failed}
        tensors |= {"returns": block.returns, "actions": block.actions, "levels": block.levels} | ({} if block.unscored is None else {"unscored": block.unscored})
        metadata = {"run": self.identity, "states": self.states_hash()}
        metadata["digest"] = _digest(tensors, block.first, metadata, self.folder)
        self.storage.create(f"{self.folder}/{name}", save(tensors, metadata))
        for cause, words in block.words.items():
            self.storage.create(f"failures/{cause.replace(' ', '-')}", words.encode()[:MOST_WORDS_BYTES])
        return name

    def failure_words(self) -> dict[str, str]:
        """Why a learner, or a score, failed, one for each cause; they may be anybody's words."""
        found = {}
        for cause in (*FAILURES[1:], *(f"score {cause}" for cause in CAUSES[1:])):
            try:
                found[cause] = printable(self.storage.read(f"failures/{cause.replace(' ', '-')}", MOST_WORDS_BYTES).decode(errors="replace"))
            except FileNotFoundError:
                continue
            except TooLarge as error:
                found[cause] = printable(error)
        return found

    def names(self) -> list[str]:
        return [name for name in self.storage.names(self.folder) if BLOCK.match(name)]

    def read(self, name: str) -> Block | None:
        """A block, or None if its file is gone or damaged; a damaged file is moved aside, so that its instances are trained again.

        Raises:
            MucdError: the block belongs to another run, or was written by an earlier version.
        """
        file, instances = f"{self.folder}/{name}", instances_of(name)
        try:
            found = self._parsed(file, instances)
        except FileNotFoundError:
            return None
        if isinstance(found, str):
            self._set_aside(file, len(instances), found)
            return None
        metadata, tensors = found
        if metadata.get("run") != self.identity:
            raise MucdError(f"{self.file(file)} belongs to another run: move it away")
        if metadata.get("states") != self.states_hash():
            raise MucdError(f"{self.file(file)} holds votes on other states than {self.file('states.npy')}: restore that file, or start a new run folder")
        parameters = {key.removeprefix("parameters."): value for key, value in tensors.items() if key.startswith("parameters.")}
        stored: dict[str, Any] = {name: tensors[name] for name in ("returns", "actions", "levels", *(["unscored"] if self._settings.evaluator else []))}
        if self._settings.trainer is None:
            return Block(first=instances.start, **stored, parameters=parameters)
        ends, whole = np.cumsum(tensors["policies.sizes"]).tolist(), tensors["policies.bytes"].tobytes()
        contents = tuple(whole[end - size : end] for end, size in zip(ends, tensors["policies.sizes"].tolist()))
        return Block(first=instances.start, **stored, parameters={}, contents=contents, failed=tensors["policies.failed"])

    def _parsed(self, file: str, instances: range) -> tuple[dict[str, str], dict[str, np.ndarray]] | str:
        """(metadata, arrays) of a block whose digest fits; a hash of its content where it is damaged, since that content is to be gone before it is read again."""
        content = b""
        try:
            content = self._content(file, len(instances))
            metadata, tensors = _metadata(content), _tensors(content, len(instances), self._settings)
            if "sha256" in metadata:
                raise MucdError(f"{self.file(file)} was written by an earlier version of the package: go on with that version, or start a new run folder")
            if metadata.get("digest") != _digest(tensors, instances.start, metadata, self.folder):
                raise ValueError("checksum")
            return metadata, tensors
        except (SafetensorError, ValueError, KeyError, AttributeError, TypeError, TooLarge):
            # Before anything else in the header is believed: a flipped bit is no other run.
            return _content_hash(content)

    def _content(self, file: str, count: int) -> bytes:
        """All of a block of so many instances, in a name that is anybody's. Raises TooLarge or ValueError where it is larger than such a block, by the settings, or not as large as its header says."""
        size, head = self.storage.beginning(file, 8 + MOST_HEADER_BYTES)
        if size <= len(head):
            return head
        if _size(head) != size:
            raise ValueError("other sizes")
        return self.storage.read(file, self._most_bytes(count))

    def _most_bytes(self, count: int) -> int:
        """The most that a block of so many instances takes, see `Block`."""
        settings = self._settings
        each = 2 * WIDEST + settings.states * (2 * max(1, len(settings.components or ())) + settings.columns)
        if settings.trainer is not None:
            each += WIDEST + MOST_BYTES
        else:
            problem = settings.problem
            # Of modules a generous bound, since their sizes are known only when they are made, as an attacker's settings may want them.
            made = problem.module_factory is None
            each += WIDEST * (problem.network.parameter_count if made else (1 << 22) + 64 * (problem.inputs + 1) * (problem.network.outputs + 1))
        return 8 + MOST_HEADER_BYTES + count * each

    def _set_aside(self, file: str, count: int, seen: str) -> None:
        """Move a damaged file away, unless another reader has, and a good one is there again."""
        with contextlib.suppress(FileNotFoundError):
            try:
                found = _content_hash(self._content(file, count))
            except (ValueError, TooLarge):
                found = _content_hash(b"")
            if found == seen:
                self.storage.move(file, file.replace(".safetensors", ".damaged"))

    def missing(self, instances: int, block_size: int) -> list[range]:
        """Blocks of at most `block_size` instances that cover all of 0..instances-1 not yet stored. Damaged files are found here."""
        done = np.zeros(instances, dtype=bool)
        for name in self.names():
            if (block := self.read(name)) is not None:
                done[block.first : block.first + len(block.returns)] = True
        return split(done, block_size)

    def stored_instances(self) -> int:
        """Number of instances 0, 1, ... that are stored without a gap."""
        end = 0
        for name in self.names():
            instances = instances_of(name)
            if instances.start > end:
                break
            end = max(end, instances.stop)
        return end


def block_name(instances: range) -> str:
    return f"block-{instances.start:08d}-{len(instances):06d}.safetensors"


def instances_of(name: str) -> range:
    """The instances of a block, by its name."""
    match = BLOCK.match(name)
    assert match is not None
    first, count = map(int, match.groups())
    return range(first, first + count)


def copies_that_count(blocks: Iterable[tuple[str, Block | None]]) -> Iterator[tuple[str, Block, list[int]]]:
    """Which copy of an instance counts, for votes, levels, returns and parameters alike: that in the block whose name comes first, whatever was stored first.

    Args:
        blocks: names and blocks in the order of names; those that cannot be read are None.
    Yields:
        name, block, and the places in it of those of its instances that no earlier block holds.
    """
    seen: set[int] = set()
    for name, block in blocks:
        if block is not None:
            yield name, block, [place for place, instance in enumerate(block.instances) if instance not in seen]
            seen.update(block.instances)


def split(done: np.ndarray, block_size: int) -> list[range]:
    """Blocks of at most `block_size` consecutive instances that are not done; `done`: bool [instances]."""
    wanted, blocks = np.flatnonzero(~done), []
    for run in np.split(wanted, np.flatnonzero(np.diff(wanted) > 1) + 1):
        blocks += [range(int(part[0]), int(part[-1]) + 1) for part in np.split(run, range(block_size, len(run), block_size)) if len(part)]
    return blocks


def _is_number(value) -> bool:
    return type(value) in (int, float)


def _are_numbers(value) -> bool:
    return isinstance(value, list) and all(map(_is_number, value))


def _secret_hash(text: bytes) -> bytes:
    return hashlib.sha256(b"mucd run secret " + text).hexdigest().encode()


def _content_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _size(head: bytes) -> int:
    """How many bytes a safetensors file that begins so says that it has. Raises ValueError."""
    (length,) = struct.unpack("<Q", head[:8])
    try:
        header = read_json(head[8 : 8 + length], "header", most_bytes=MOST_HEADER_BYTES)
        return 8 + length + max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    except (MucdError, LookupError, AttributeError, TypeError) as error:
        raise ValueError(error) from None


def _metadata(content: bytes) -> dict[str, str]:
    """The texts in the header of a safetensors file: its length as 8 bytes, then JSON. Raises ValueError."""
    if len(content) < 8:
        raise ValueError("no header")
    (length,) = struct.unpack("<Q", content[:8])
    try:
        return read_json(content[8 : 8 + length], "header", most_bytes=MOST_HEADER_BYTES).get("__metadata__", {})
    except MucdError as error:
        raise ValueError(error) from None


def _tensors(content: bytes, count: int, settings: RunSettings) -> dict[str, np.ndarray]:
    """The arrays of a block of so many instances. Raises ValueError where they are not of the kinds and shapes in `Block`."""
    tensors = load(content)
    kinds = {name: (tensors[name].dtype, tensors[name].shape) for name in ("returns", "actions", "levels")}
    voted = (settings.states if settings.actions else 0, *([len(settings.components)] if settings.components else []))
    if kinds != {"returns": (np.float64, (count,)), "actions": (np.int16, (count, *voted)), "levels": (np.uint8, (count, settings.states, settings.columns))}:
        raise ValueError("other arrays")
    if (tensors["levels"] > LEVELS).any():
        raise ValueError("other levels")
    if any(name.startswith("parameters.") and (tensor.dtype.kind != "f" or not tensor.ndim or len(tensor) != count) for name, tensor in tensors.items()):
        raise ValueError("other parameters")
    if settings.trainer is not None:
        _check_policies(tensors, count)
    if settings.evaluator is not None:
        unscored = tensors["unscored"]
        if (unscored.dtype, unscored.shape) != (np.uint8, (count,)) or (unscored >= len(CAUSES)).any():
            raise ValueError("other scores")
    return tensors


def _check_policies(tensors: dict[str, np.ndarray], count: int) -> None:
    sizes, failed = tensors["policies.sizes"], tensors["policies.failed"]
    kinds = [(array.dtype, array.ndim) for array in (tensors["policies.bytes"], sizes, failed)]
    if kinds != [(np.uint8, 1), (np.int64, 1), (np.uint8, 1)] or not len(sizes) == len(failed) == count:
        raise ValueError("other policies")
    if (sizes < 0).any() or (sizes > MOST_BYTES).any() or sizes.sum() != len(tensors["policies.bytes"]) or (failed >= len(FAILURES)).any():
        raise ValueError("other policies")


def _digest(tensors: dict[str, np.ndarray], first: int, metadata: dict[str, str], folder: str = "blocks") -> str:
    """Hash of a block's content, of what it belongs to, and of the number of its first instance: a copy under another name, or in another folder, is damaged."""
    digest = hashlib.sha256(f"{'' if folder == 'blocks' else folder + '; '}first {first}; run {metadata['run']}; states {metadata['states']};".encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {array.dtype.str} {array.shape};".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
