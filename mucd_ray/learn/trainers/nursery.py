"""The process in which trainers from outside run: it imports what they need once, and forks a learner for every bag. `outside.py` is the other end.

    python -m mucd_ray.learn.trainers.nursery FD

A learner gets one bag and one seed, and nothing of the run: neither its secret nor where it lies. It trains, then answers what its policy does at observations. It has a session, a
time limit, limits on memory and files, and dies with all that it has started. What it dies of is told and concerns nobody else.
"""

import contextlib
import ctypes
import hashlib
import importlib
import importlib.util
import inspect
import io
import json
import os
import random
import resource
import select
import shlex
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import cast

import numpy as np

from mucd_ray import plugins
from mucd_ray.errors import MucdError
from mucd_ray.learn.trainers.artifacts import from_bytes, given_dtype, policy_of
from mucd_ray.learn.trainers.bag_files import WRITERS
from mucd_ray.learn.trainers.given import GivenBag
from mucd_ray.modules import named_module

FRAME = struct.Struct("!IQ")
MOST_TEXT = 300
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
# Seconds between two looks at the memory of a learner and all that it has started.
WEIGH_EVERY = 0.5
# Bytes of observations about which an evaluator may ask at once.
MOST_QUESTION = 1 << 28
# Of what a command prints, the end that is kept.
TAIL = 2000
# Characters of it that are told. The exception comes last, and whoever tells it keeps the first 200 of all (`files.printable`).
LAST_WORDS = 160


# Messages between a learner and outside.py: a JSON header and bytes.


def frame(header: dict, body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return FRAME.pack(len(text), len(body)) + text + body


def receive(connection: socket.socket) -> tuple[dict, bytes]:
    """Raises EOFError where the other end has gone."""
    text, body = FRAME.unpack(_exactly(connection, FRAME.size))
    return json.loads(_exactly(connection, text)), _exactly(connection, body)


def _exactly(connection: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = connection.recv(min(size, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def text_of(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:MOST_TEXT]


# The nursery


def main(control: socket.socket) -> None:
    """Told once of what kind the trainer is and what it is called, it answers with the hash of its files; then every message asks for a learner, which "end" ends, or for modules to
    be imported, which learners would import one by one otherwise."""
    _prctl(PR_SET_CHILD_SUBREAPER)
    task = json.loads(control.recv(1 << 16))
    if task["kind"] == "plug-in" and sys.path[0] == os.getcwd():
        # It stands first because of how this process was started; where a plug-in was found what is installed does.
        sys.path.append(sys.path.pop(0))
    try:
        digest = file_digest(task["kind"], task["name"])
        train = None if task["named_only"] else TRAINERS[task["kind"]](task["name"])
    except BaseException as error:  # a module may raise anything while it is imported
        control.send(json.dumps({"refused": str(error)} if isinstance(error, MucdError) else {"error": text_of(error)}).encode())
        return
    control.send(json.dumps({"sha256": digest}).encode())
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1 << 16, 1)
        if not message:
            return
        if message == b"end":
            # It had ended by itself, and that was told.
            continue
        ask = json.loads(message)
        if "modules" in ask:
            for name in ask["modules"]:
                with contextlib.suppress(BaseException):
                    importlib.import_module(name)
            control.send(b"{}")
            continue
        learner = os.fork()
        if not learner:
            try:
                control.close()
                _confine(ask)
                (_be_evaluator if task["kind"] == "evaluator" else _be_learner)(socket.socket(fileno=descriptors[0]), train, ask)
            finally:
                os._exit(0)
        os.close(descriptors[0])
        control.send(json.dumps(_watch(control, learner, ask["memory"])).encode())


def _watch(control: socket.socket, learner: int, memory: float) -> dict:
    """Until the learner ends, eats too much or is to end; then it and all that it has started are gone. What it ended of."""
    ended: dict = {}
    weighed = time.monotonic()
    while not ended:
        if select.select([control], [], [], 0.02)[0]:
            ended = {"by": "order"}
            if not control.recv(1 << 16):
                break
        with contextlib.suppress(ChildProcessError):
            pid, status = os.waitpid(learner, os.WNOHANG)
            if pid:
                ended = {"by": "signal", "signal": os.WTERMSIG(status)} if os.WIFSIGNALED(status) else {"by": "exit", "status": os.WEXITSTATUS(status)}
        if time.monotonic() - weighed > WEIGH_EVERY and not ended:
            weighed = time.monotonic()
            if sum(_anonymous_bytes(process) for process in _descendants()) > memory * 1e9:
                ended = {"by": "memory"}
    _end_all()
    return ended


def _end_all() -> None:
    """Kill whatever has come from the learner; orphans have become children of this process."""
    while True:
        for process in _descendants():
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.001)


def _descendants() -> list[int]:
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                # After the name, which may hold anything: state, parent.
                parents[int(entry)] = int(Path(f"/proc/{entry}/stat").read_bytes().rpartition(b")")[2].split()[1])
    found: list[int] = []
    generation = {os.getpid()}
    while generation:
        generation = {process for process, parent in parents.items() if parent in generation}
        found += generation
    return found


def _anonymous_bytes(process: int) -> int:
    """Memory of a process that is not of files."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        _, resident, shared, *_ = map(int, Path(f"/proc/{process}/statm").read_bytes().split())
        return (resident - shared) * resource.getpagesize()
    return 0


def _prctl(option: int, value: int = 1) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


# A learner


def _confine(ask: dict) -> None:
    """A session, limits and a folder of its own for this process."""
    os.setsid()
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with contextlib.suppress(OSError):
        # Before the processes that wait for it.
        Path("/proc/self/oom_score_adj").write_text("1000")
    most = int(ask["memory"] * 1e9)
    for limit, value in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, most), (resource.RLIMIT_DATA, most)):
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
    os.environ["TMPDIR"] = tempfile.tempdir = ask["folder"]
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)


def _be_learner(connection: socket.socket, train, ask: dict) -> None:
    """Train on what comes first, then answer what is preferred at observations until the other end has gone."""
    header, body = receive(connection)
    known = set(sys.modules)
    try:
        policies, spaces, content = train(header, body, ask["folder"])
    except BaseException as error:  # SystemExit, too
        connection.sendall(frame({"error": text_of(error)}))
        return
    modules = [name for name in sys.modules if name not in known] if header.get("tell_modules") else []
    connection.sendall(frame({"error": None, "modules": modules}, content))
    while True:
        header, body = receive(connection)
        connection.sendall(_answer(policies, spaces, header, body))


def _answer(policies: list, spaces: tuple, header: dict, body: bytes) -> bytes:
    """What policy index[s] prefers at row s, each by itself: int32 [n], float32 [n, d] -> float64 [n, width]. Where it fails, NaN."""
    observation_space, action_space = spaces
    rows, width = header["rows"], header["width"]
    index = np.frombuffer(body, np.int32, rows)
    shape, dtype = (rows, 1, *observation_space.shape), given_dtype(observation_space)
    observations = np.frombuffer(body, np.float32, offset=index.nbytes).reshape(shape).astype(dtype)
    answer, error = np.full((rows, width), np.nan), None
    for row in range(rows):
        try:
            preferred = policies[index[row]](observations[row])
            if np.isfinite(preferred).all():
                answer[row] = preferred
            else:
                error = error or "its policy answers what is not finite"
        except BaseException as raised:
            error = error or text_of(raised)
    return frame({"error": error}, answer.tobytes())


def _trained(train, header: dict, bag: GivenBag) -> tuple:
    spaces = bag.observation_space, bag.action_space
    act, content = policy_of(train(bag, header["seed"], header["device"]), *spaces)
    return [act], spaces, content


def function_trainer(name: str):
    """A function of the user's module, "package.module:function" or "path/to/file.py:function", imported here.

    Raises:
        Exception: whatever the import raises; no such function, or one that does not take (bag, seed, device).
    """
    return _trainer_of(_function(name, None, 0, "cpu"))


def plugin_trainer(name: str):
    """The same of an installed plug-in, by its name."""
    return _trainer_of(_taking(_plugin(name).load(), None, 0, "cpu"))


def _trainer_of(function):
    def train(header: dict, body: bytes, folder: str) -> tuple:
        _seed_generators(header["seed"])
        return _trained(function, header, GivenBag.from_npz(body))

    return train


def _function(name: str, *arguments):
    """Raises whatever its import does; AttributeError, TypeError where it does not take such arguments."""
    where, _, called = name.rpartition(":")
    return _taking(getattr(named_module(where), called), *arguments)


def _taking(function, *arguments):
    inspect.signature(function).bind(*arguments)
    return function


def _plugin(name: str) -> plugins.Plugin:
    plugin = plugins.find("trainer", name)
    if plugin is None:
        raise MucdError(f"trainer {name} is no installed plug-in: install its package on every node")
    return plugin


def _seed_generators(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def command_trainer(command: str):
    """A command with {bag}, {out} and maybe {seed} and {device}: a folder that holds the bag, and where to write the policy, {out} itself or with an ending."""
    words = shlex.split(command)

    def train(header: dict, body: bytes, folder: str) -> tuple:
        bag, out = Path(folder, "bag"), Path(folder, "out", "policy")
        bag.mkdir()
        out.parent.mkdir()
        given_bag = GivenBag.from_npz(body)
        WRITERS[header["bag_format"]](given_bag, bag)
        given = {"{bag}": bag, "{out}": out, "{seed}": header["seed"], "{device}": header["device"]}
        os.environ["MINARI_DATASETS_PATH"] = str(bag)
        _run([_filled(word, given) for word in words])
        found = sorted(out.parent.glob("policy*"))
        if len(found) != 1:
            raise FileNotFoundError(f"the command wrote {len(found)} files at {{out}}: one is wanted")
        return _trained(lambda *_: found[0], header, given_bag)

    return train


def _filled(word: str, given: dict) -> str:
    for name, value in given.items():
        word = word.replace(name, str(value))
    return word


def _run(words: list[str]) -> None:
    """Run a command; raise RuntimeError with the end of what it printed where it fails."""
    # Without a buffer, whose lock a reader would hold while the pipe is closed.
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0) as process:
        tail = bytearray()

        def read() -> None:
            # Also what it leaves running may write: nothing waits for the end of that.
            with contextlib.suppress(ValueError, OSError):  # closed meanwhile
                while part := cast(io.RawIOBase, process.stdout).read(1 << 16):
                    tail.extend(part)
                    del tail[:-TAIL]

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        status = process.wait()
        reader.join(timeout=1.0)
        if status:
            how = f"signal {-status}" if status < 0 else f"exit status {status}"
            raise RuntimeError(f"{how}: {' '.join(bytes(tail).decode(errors='replace').split())[-LAST_WORDS:]}")


def stored_policies(name: str):
    """No trainer: policies from their bytes, one after the other, all in this process."""

    def read(header: dict, body: bytes, folder: str) -> tuple:
        spaces = _spaces(header)
        ends = np.cumsum(header["sizes"])
        return [from_bytes(body[end - size : end], spaces[1]) for end, size in zip(ends.tolist(), header["sizes"])], spaces, b""

    return read


# An evaluator


class AskedPolicy:
    """What an evaluator is given: a policy, which acts in another process.

    Attributes:
        observation_space, action_space: Gymnasium spaces, of what it is asked and of what it answers.
    """

    def __init__(self, connection: socket.socket, spaces: tuple):
        self._connection = connection
        self.observation_space, self.action_space = spaces

    def act(self, observations) -> np.ndarray:
        """Actions int64 [n] as the space counts them, or [n, *shape of a continuous action], at observations [n, *shape]; of a single observation [*shape] its one action.

        Raises:
            ValueError: observations of another shape, that are no numbers, or too many at once.
        """
        observations, shape = np.asarray(observations), self.observation_space.shape
        if observations.shape == shape:
            return self.act(observations[None])[0]
        if observations.shape[1:] != shape or observations.dtype.kind not in "fiub":
            raise ValueError(f"observations of shape {observations.shape} and dtype {observations.dtype} are not numbers of shape [n, {', '.join(map(str, shape))}]")
        if observations.nbytes > MOST_QUESTION:
            raise ValueError(f"observations of {observations.nbytes} bytes are too many at once: ask about fewer")
        self._connection.sendall(frame({"shape": observations.shape, "dtype": observations.dtype.str}, np.ascontiguousarray(observations).tobytes()))
        _, body = receive(self._connection)
        return np.frombuffer(body, self.action_space.dtype).reshape(len(observations), *self.action_space.shape).copy()


def evaluator(name: str):
    """A function of the user's module, as `function_trainer`, that takes (policy, seed)."""
    return _function(name, None, 0)


def _be_evaluator(connection: socket.socket, score, ask: dict) -> None:
    """One score of the policy at the other end, by the seed that comes first."""
    header, _ = receive(connection)
    _seed_generators(header["seed"])
    try:
        value = struct.pack("!d", float(score(AskedPolicy(connection, _spaces(header)), header["seed"])))
    except BaseException as error:  # SystemExit, too
        connection.sendall(frame({"error": text_of(error)}))
        return
    connection.sendall(frame({"error": None}, value))


def _spaces(header: dict) -> tuple:
    from minari.serialization import deserialize_space

    return deserialize_space(header["observation_space"]), deserialize_space(header["action_space"])


TRAINERS = {"function": function_trainer, "plug-in": plugin_trainer, "command": command_trainer, "stored": stored_policies, "evaluator": evaluator}


def file_digest(kind: str, name: str) -> str:
    """SHA-256 of the file that holds the function, of the plug-in, or of all files that the command names, in their order. Raises OSError or ValueError where there is none."""
    if kind == "command":
        words = shlex.split(name)
        found = [Path(word) for word in words if "{" not in word and Path(word).is_file()]
        return hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in found)).hexdigest()
    if kind == "stored":
        return ""
    if kind == "plug-in":
        return _plugin(name).sha256
    where = name.rpartition(":")[0]
    if not where.endswith(".py"):
        spec = importlib.util.find_spec(where)
        if spec is None or not spec.origin or not os.path.isfile(spec.origin):
            raise ModuleNotFoundError(f"there is no module {where}")
        where = spec.origin
    return hashlib.sha256(Path(where).read_bytes()).hexdigest()


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
