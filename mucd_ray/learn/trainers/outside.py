"""Trainers from outside: a Python function or a command of the user's as the learner, in a process of its own (nursery.py).

A learner that raises, hangs, eats memory, dies, or returns what is no policy is a result, not an accident: it is the policy of the default action. It is counted, and never
trained again or drawn anew: else one poisoned unit would choose among instances, or stop the run. What happens without a bag (a module that cannot be imported) stops it.
"""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

import gymnasium
import numpy as np
from minari.serialization import serialize_space

from mucd_ray.errors import MucdError
from mucd_ray.files import printable, read_json
from mucd_ray.learn.scores import width_of
from mucd_ray.learn.trainers.artifacts import MOST_BYTES
from mucd_ray.learn.trainers.given import GivenBag
from mucd_ray.learn.trainers.made_up import made_up_bag, made_up_observations
from mucd_ray.learn.trainers.nursery import FRAME, frame
from mucd_ray.mechanism.outside import Outside, check_name, option_of
from mucd_ray.words import harmless

# Seconds that a nursery may take to import what the trainer needs, and to end a learner.
START_PATIENCE, END_PATIENCE = 600.0, 60.0
MOST_HEADER = 1 << 20
# What a function is called with that is no trainer.
TAKES = {"evaluator": "(policy, seed)"}
# How a learner may fail, in the order of its number in a run folder; 0 is a policy.
FAILURES = ("", "empty bag", "raised", "no policy", "died", "too slow", "too much memory", "acts nowhere")
EMPTY, RAISED, NO_POLICY, DIED, SLOW, MEMORY, NOWHERE = range(1, 8)


def outside(kind: str, name: str, **limits) -> Outside:
    """A trainer with the hash of its files, which nobody has imported yet; `limits` are further fields of `Outside`.

    Raises:
        MucdError: there is no such module or file, or a limit is outside its range.
    """
    return Outside(kind=kind, name=name, sha256=sha256_of(kind, name), **limits)


def sha256_of(kind: str, name: str) -> str:
    """Of the file, or of the files, of a trainer or an evaluator. Raises MucdError where there are none."""
    check_name(kind, name)
    process = NurseryProcess(kind, name, named_only=True)
    process.close()
    return process.sha256


class NurseryProcess:
    """The nursery's process and the line to it; MucdError where it does not get ready."""

    def __init__(self, kind: str, name: str, named_only: bool = False, progress: Callable[[], None] | None = None):
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Hashes of texts that differ from process to process would make trainers differ, too.
        environment = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"} | os.environ
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "mucd_ray.learn.trainers.nursery", str(theirs.fileno())], pass_fds=[theirs.fileno()], env=environment,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            )
        try:
            self.tell({"kind": kind, "name": name, "named_only": named_only})
            answer = self.answer(START_PATIENCE, progress)
            option = option_of(kind)
            if answer is None:
                raise MucdError(f"{option} {name} ends the process that imports it, or does not let it start in {START_PATIENCE:g} seconds: mend it")
            if "refused" in answer:
                raise MucdError(harmless(" ".join(str(answer["refused"]).split())))
            if "error" in answer:
                raise MucdError(f"{option} {name} cannot be used ({printable(answer['error'])}): it must be importable here or from PYTHONPATH, and take {TAKES.get(kind, '(bag, seed, device)')}")
            self.sha256 = str(answer.get("sha256"))
        except BaseException:
            self.close()
            raise

    def tell(self, message: dict | bytes, descriptors: tuple[int, ...] = ()) -> None:
        """A message, and descriptors with it; one that is gone is found out later."""
        with contextlib.suppress(OSError):
            socket.send_fds(self.control, [message if isinstance(message, bytes) else json.dumps(message).encode()], list(descriptors))

    def answer(self, patience: float, progress: Callable[[], None] | None = None) -> dict | None:
        """None where it is gone, or says nothing."""
        end = time.monotonic() + patience
        while (left := end - time.monotonic()) > 0:
            if select.select([self.control], [], [], min(1.0, left))[0]:
                with contextlib.suppress(OSError, MucdError):
                    content = self.control.recv(MOST_HEADER)
                    values = read_json(content, "it") if content else None
                    return values if isinstance(values, dict) else None
                return None
            if progress is not None:
                progress()
        return None

    def close(self) -> None:
        self.control.close()
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)


class Nursery:
    """Makes learners, one at a time; to be closed. First it lets the trainer make a policy of a public made-up bag.

    Args:
        environment: that in which policies act.
        unit: what bags are made of.
        device: "cpu" or "cuda", which the trainer is told.
        progress: called again and again while anything lasts.

    Raises:
        MucdError: the trainer cannot be imported, does not take (bag, seed, device), makes no policy of a made-up bag, or its files are not those with which the run began.
    """

    def __init__(self, trainer: Outside, environment: gymnasium.Env, unit: str, device: str = "cpu", progress: Callable[[], None] | None = None, mask: int | None = None):
        self.trainer, self.spaces, self.device, self.progress = trainer, (environment.observation_space, environment.action_space), device, progress
        self._modules: list[str] = []
        self._process = self._start()
        try:
            with self.learner(made_up_bag(environment, unit, mask), 0, trial=True) as learner:
                if learner.failure:
                    raise MucdError(f"{trainer.option} {trainer.name} makes no policy of a made-up bag of random actions in this environment: {learner.why}")
                self._modules = learner.modules
            self._preload()
        except BaseException:
            self.close()
            raise

    def _start(self) -> NurseryProcess:
        process = NurseryProcess(self.trainer.kind, self.trainer.name, progress=self.progress)
        if process.sha256 != self.trainer.sha256:
            process.close()
            raise MucdError(f"the files of trainer {self.trainer.name} are not those with which the run began, or not the same on every node: restore them, or start a new run folder")
        return process

    def _preload(self) -> None:
        """What the trainer imports as it goes is imported once."""
        for start in range(0, len(self._modules), 200):
            self._process.tell({"modules": self._modules[start : start + 200]})
            self._process.answer(START_PATIENCE, self.progress)

    def close(self) -> None:
        self._process.close()

    def __enter__(self) -> "Nursery":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    @contextlib.contextmanager
    def learner(self, bag: GivenBag, seed: int, trial: bool = False) -> Iterator["Learner"]:
        """Trained on this bag, and acting until the end of the context. Whatever becomes of it, nothing is raised.

        Args:
            seed: in [0, 2^32).
        """
        if not len(bag):
            yield Learner(None, self, failure=EMPTY)
            return
        if self._process.process.poll() is not None:
            # The last learner has killed it.
            self._process.close()
            self._process = self._start()
            self._preload()
        with tempfile.TemporaryDirectory(prefix="mucd-learner-", ignore_cleanup_errors=True) as folder:
            learner = Learner(asked(self._process, self.trainer.memory, folder), self)
            try:
                learner.train(bag, seed, trial)
                yield learner
            finally:
                learner.close()


def asked(process: NurseryProcess, memory: float, folder: str) -> "Line":
    ours, theirs = socket.socketpair()
    process.tell({"memory": memory, "folder": folder}, (theirs.fileno(),))
    theirs.close()
    return Line(ours, process)


class Line:
    """The line to a learner, which may do anything: every wait ends, and every answer has a size."""

    def __init__(self, connection: socket.socket, process: NurseryProcess):
        self.connection, self.process = connection, process
        self.ended: dict | None = None
        connection.setblocking(False)

    def ask(self, request: bytes, most: int, deadline: float, progress: Callable[[], None] | None) -> tuple[dict, bytes] | int:
        """Its answer, of a body of at most `most` bytes; or of what it failed."""
        waiting, parts, wanted = memoryview(request), bytearray(), FRAME.size
        sizes: tuple[int, ...] = ()
        while len(parts) < wanted or waiting:
            if time.monotonic() > deadline:
                return SLOW
            readable, writable, _ = select.select([self.connection, self.process.control], [self.connection] if waiting else [], [], 1.0)
            try:
                if writable:
                    waiting = waiting[self.connection.send(waiting[: 1 << 20]) :]
                if self.connection in readable:
                    part = self.connection.recv(min(1 << 20, wanted - len(parts)) or 1)
                    if not part:
                        return self._why()
                    parts += part
                elif self.process.control in readable:
                    return self._why()
            except BlockingIOError:
                pass
            except OSError:
                return self._why()
            if not sizes and len(parts) >= FRAME.size:
                sizes = FRAME.unpack(parts[: FRAME.size])
                wanted += sum(sizes)
                if sizes[0] > MOST_HEADER or sizes[1] > most or len(parts) > wanted:
                    return NO_POLICY
            if progress is not None:
                progress()
        try:
            header = read_json(bytes(parts[FRAME.size : FRAME.size + sizes[0]]), "it", most_bytes=MOST_HEADER)
        except MucdError:
            return NO_POLICY
        return (header, bytes(parts[FRAME.size + sizes[0] :])) if isinstance(header, dict) else NO_POLICY

    def _why(self) -> int:
        """Of what it ended."""
        self.ended = self.process.answer(1.0)
        if self.ended is None:
            # It hung up, and lives on.
            self.process.tell(b"end")
            self.ended = self.process.answer(END_PATIENCE) or {"by": "gone"}
        return MEMORY if self.ended.get("by") == "memory" else DIED

    def close(self) -> None:
        """It ends, with all that it has started."""
        self.connection.close()
        if self.ended is None:
            self.process.tell(b"end")
            self.ended = self.process.answer(END_PATIENCE) or {"by": "gone"}
        if self.ended["by"] == "gone":
            # Who has killed the nursery may have left others.
            self.process.close()


class Learner:
    """One policy from outside (`Policies` of evaluate/policies.py, of length 1).

    Attributes:
        failure: why it is the default policy, a number of FAILURES; 0 if it is not.
        why: the same in words, which may be the learner's own.
        content: TorchScript or ONNX, b"" where the policy cannot be stored.
        began: whether it has made a policy, which may have failed since.
    """

    def __init__(self, line: Line | None, nursery: Nursery, failure: int = 0):
        self.line, self.nursery, self.failure, self.content = line, nursery, failure, b""
        self.why, self.left, self.began = FAILURES[failure], nursery.trainer.seconds, False
        self.told: str | None = None
        self.modules: list[str] = []
        self.width = width_of(nursery.spaces[1])

    def __len__(self) -> int:
        return 1

    def train(self, bag: GivenBag, seed: int, trial: bool) -> None:
        header = {"seed": seed, "device": self.nursery.device, "tell_modules": trial, "bag_format": self.nursery.trainer.bag_format}
        request = frame(header, bag.to_npz())
        assert self.line is not None
        answer = self.line.ask(request, MOST_BYTES, time.monotonic() + self.nursery.trainer.seconds, self.nursery.progress)
        if isinstance(answer, int):
            self._fail(answer)
        elif answer[0].get("error") is not None:
            self._fail(RAISED, answer[0]["error"])
        else:
            self.content, self.modules = answer[1], [str(name) for name in answer[0].get("modules") or []]
            if np.isnan(self.outputs(made_up_observations(self.nursery.spaces[0]), np.zeros(1, int))).all() and not self.failure:
                self._fail(NOWHERE, self.told)
            self.began = not self.failure

    def outputs(self, features: np.ndarray, index: np.ndarray) -> np.ndarray:
        """See `Policies`: float32 [S, d] -> float64 [S, A or k]; `index` is all zeros. NaN where it fails, and everywhere once it has died or its time is up."""
        if self.failure or self.line is None:
            return np.full((len(features), self.width), np.nan)
        began = time.monotonic()
        answer = ask_actions(self.line, np.zeros(len(features), np.int32), features, self.width, began + self.left, self.nursery.progress)
        self.left -= time.monotonic() - began
        if isinstance(answer, int):
            self._fail(answer)
            return np.full((len(features), self.width), np.nan)
        outputs, self.told = answer
        return outputs

    def _fail(self, failure: int, words: str | None = None) -> None:
        ended = self.line and self.line.ended or {}
        if failure == DIED and "signal" in ended:
            words = f"signal {ended['signal']}"
        self.failure, self.content = failure, b""
        self.why = FAILURES[failure] + (f" ({printable(words)})" if words else "")

    def close(self) -> None:
        if self.line is not None:
            self.line.close()



def ask_actions(line: Line, index: np.ndarray, features: np.ndarray, width: int, deadline: float, progress: Callable[[], None] | None) -> tuple[np.ndarray, str | None] | int:
    """(what policies index[s] prefer at features[s], float64 [S, width]; words about the first failure), or of what the process failed."""
    rows = np.ascontiguousarray(features, np.float32)
    request = frame({"rows": len(rows), "width": width}, np.ascontiguousarray(index, np.int32).tobytes() + rows.tobytes())
    answer = line.ask(request, 8 * width * len(rows), deadline, progress)
    if isinstance(answer, int):
        return answer
    if len(answer[1]) != 8 * width * len(rows):
        return NO_POLICY
    return np.frombuffer(answer[1], np.float64).reshape(len(rows), width), answer[0].get("error") if isinstance(answer[0].get("error"), str) else None


class StoredPolicies:
    """P policies from outside by their bytes, all in one process: for who answers with a finished run. b"" is the policy of the default action.

    A process that dies is an error here, never a vote: it would change what was certified.

    Raises:
        MucdError: they cannot be loaded.
    """

    def __init__(self, contents: list[bytes], observation_space: gymnasium.Space, action_space: gymnasium.Space, memory: float):
        self.contents, self.spaces = contents, (observation_space, action_space)
        # Of one learner, and what all of them may unpack to.
        self.memory = memory + 32e-9 * sum(map(len, contents))
        self.width = width_of(action_space)
        self.place = np.cumsum([bool(content) for content in contents]) - 1
        self.line: Line | None = None
        self._lock = threading.Lock()
        if any(contents):
            self._load()

    def __len__(self) -> int:
        return len(self.contents)

    def _load(self) -> Line:
        self.folder = tempfile.TemporaryDirectory(prefix="mucd-policies-", ignore_cleanup_errors=True)
        self.process = NurseryProcess("stored", "stored policies")
        line = self.line = asked(self.process, self.memory, self.folder.name)
        kept = [content for content in self.contents if content]
        spaces = dict(zip(("observation_space", "action_space"), map(serialize_space, self.spaces)))
        answer = line.ask(frame({"sizes": list(map(len, kept))} | spaces, b"".join(kept)), 0, time.monotonic() + START_PATIENCE, None)
        if isinstance(answer, int) or answer[0].get("error") is not None:
            self.close()
            why = FAILURES[answer] if isinstance(answer, int) else printable(answer[0]["error"])
            raise MucdError(f"the stored policies cannot be loaded ({why}): use the packages with which they were trained, with the extra onnx for ONNX")
        return line

    def outputs(self, features: np.ndarray, index: np.ndarray) -> np.ndarray:
        index = np.broadcast_to(index, len(features))
        found = np.full((len(features), self.width), np.nan)
        acting = np.array([bool(self.contents[policy]) for policy in index])
        if acting.any():
            # Threads of a server ask one after the other.
            with self._lock:
                found[acting] = self._asked(self.place[index[acting]], features[acting])
        return found

    def _asked(self, index: np.ndarray, features: np.ndarray) -> np.ndarray:
        answer = ask_actions(self.line or self._load(), index, features, self.width, time.monotonic() + START_PATIENCE, None)
        if isinstance(answer, int):
            self.close()
            raise MucdError(f"the process of the stored policies has failed ({FAILURES[answer]}): ask again")
        return answer[0]

    def outputs_of_all(self, features: np.ndarray) -> np.ndarray:
        index = np.repeat(np.arange(len(self)), len(features))
        return self.outputs(np.tile(features, (len(self), 1)), index).reshape(len(self), len(features), self.width)

    def close(self) -> None:
        if self.line is not None:
            self.line.close()
            self.process.close()
            self.folder.cleanup()
            self.line = None
