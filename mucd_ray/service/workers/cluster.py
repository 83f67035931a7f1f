"""Joining or starting Ray, and what it can run."""

import contextlib
import logging
import os
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray

from mucd_ray.errors import MucdError
from mucd_ray.service.workers.local_ray import local_ray

# Ray's own defaults notice a partition after five minutes.
KEEPALIVE = {"RAY_grpc_client_keepalive_time_ms": "10000", "RAY_grpc_client_keepalive_timeout_ms": "5000"}
LEAST_LEASE = 5.0
# RFC 9113, section 3.4: the client's preface and an empty SETTINGS frame; the server's first frame is one, too.
SETTINGS_FRAME = b"\x04"
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + SETTINGS_FRAME + b"\0\0\0\0\0"
# What a block's name has room for.
MOST_INSTANCES_A_BLOCK = 999_999


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Where a run runs.

    Attributes:
        address: Ray cluster to join; None: RAY_ADDRESS, or a local Ray.
        actors: number of trainers, those that find no room wait for it; None: one per CPU (or GPU share), following the cluster as it changes.
        block: instances that a trainer trains at a time; None: chosen for the device.
        device: "auto", "cpu" or "cuda"; auto takes GPUs if the cluster has some.
        gpus_per_actor: share of a GPU per trainer, in (0, 1].
        gpu_type: kind of GPU, as Ray names it (such as H100); None: any.
        wait_for_nodes: do not refuse what the cluster lacks now: an autoscaler will bring it.
        lease: seconds without progress after which a trainer counts as stuck.
        runtime_env: Ray's runtime environment of all processes of this run; None: that of the job, if any.
        imports: modules that the user named, which every process of the run imports before it makes an environment.
    """

    address: str | None = None
    actors: int | None = None
    block: int | None = None
    device: str = "auto"
    gpus_per_actor: float = 1.0
    gpu_type: str | None = None
    wait_for_nodes: bool = False
    lease: float = 600.0
    runtime_env: dict | None = None
    imports: tuple[str, ...] = ()

    def __post_init__(self):
        if not 0 < self.gpus_per_actor <= 1:
            raise MucdError(f"GPUs per actor {self.gpus_per_actor} is outside (0, 1]: 0.25 puts four actors on a GPU")
        if not self.lease >= LEAST_LEASE:
            raise MucdError(f"lease {self.lease:g} is shorter than {LEAST_LEASE:g} seconds: use at least twice the time that training one instance takes")
        if self.block is not None and not 1 <= self.block <= MOST_INSTANCES_A_BLOCK:
            raise MucdError(f"--instances-per-actor {self.block} is outside [1, {MOST_INSTANCES_A_BLOCK}]: use one of these, or leave it out")
        if self.wait_for_nodes and self.actors is None:
            raise MucdError("waiting for nodes needs to know for how many: give --actors N beside --wait-for-nodes")
        if self.gpu_type and self.device == "cpu":
            raise MucdError(f"GPU type {self.gpu_type} does not go with --device cpu: leave one of them out")


@dataclass(frozen=True)
class Slot:
    """What one trainer takes: `options` for Ray, and whether it is a GPU."""

    gpus: float
    gpu_type: str | None

    @property
    def options(self) -> dict:
        kind = {"accelerator_type": self.gpu_type} if self.gpu_type else {}
        return {"num_cpus": 1, "num_gpus": self.gpus} | kind

    def count(self) -> int:
        """How many of them the cluster has now, in use or not."""
        total = ray.cluster_resources()
        room = total.get("CPU", 0)
        if self.gpus:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            # Shares of different GPUs do not add up.
            fitting = [node for node in nodes if not self.gpu_type or f"accelerator_type:{self.gpu_type}" in node]
            room = min(room, sum(int(node.get("GPU", 0)) * int(1 / self.gpus + 1e-9) for node in fitting))
        return int(room)


def slot_for(resources: Resources) -> Slot:
    """What each trainer takes. An impossible request fails here instead of pending for ever.

    Raises:
        MucdError: no GPU, or none of the kind, and nobody said that an autoscaler brings one.
    """
    available = ray.cluster_resources()
    kinds = sorted(name.partition(":")[2] for name in available if name.startswith("accelerator_type:"))
    wants_gpu = resources.device == "cuda" or bool(resources.gpu_type)
    if resources.device == "cpu" or not (available.get("GPU") or wants_gpu):
        return Slot(0.0, None)
    if wants_gpu and not resources.wait_for_nodes:
        if not available.get("GPU"):
            raise MucdError("the cluster has no GPU: leave --device at auto, add a node with one, or say --wait-for-nodes if an autoscaler brings them")
        if resources.gpu_type and resources.gpu_type not in kinds:
            raise MucdError(f"the cluster has no GPU of type {resources.gpu_type} (it has {', '.join(kinds) or 'none with a type'}): ask for one of these, or say --wait-for-nodes")
    return Slot(resources.gpus_per_actor, resources.gpu_type)


@contextlib.contextmanager
def joined(resources: Resources) -> Iterator[None]:
    """Join the cluster that the address, RAY_ADDRESS or a Ray job names; otherwise start a local Ray and stop it at the end.

    Raises:
        MucdError: no cluster answers there, it wants another token, or a local Ray does not start.
    """
    address = resources.address or os.environ.get("RAY_ADDRESS") or "local"
    remedy = "leave --address out" if resources.address else "unset RAY_ADDRESS, which names it,"
    if address != "local":
        check_reachable(address, remedy)
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    for name, value in KEEPALIVE.items():
        os.environ.setdefault(name, value)
    options = {"log_to_driver": False, "logging_level": logging.ERROR} | ({} if resources.runtime_env is None else {"runtime_env": resources.runtime_env})
    with _signals_raise() as connected, local_ray(**options) if address == "local" else _connected(address, remedy, options):
        connected()
        yield


# Signals that are blocked while Ray starts; processes begin with what their parent blocks.
_blocked: set[signal.Signals] = set()
os.register_at_fork(after_in_child=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, _blocked))


@contextlib.contextmanager
def _signals_raise() -> Iterator[Callable[[], None]]:
    """SIGINT, SIGTERM and SIGHUP raise, unless somebody handles or ignores them: by default the latter two would leave processes of a local Ray behind.

    Yields a function to call once Ray is connected: the first signal until then is held back, since a Ray whose start was cut off crashes when Python ends. And Ray's own
    handler prints a trace and aborts after three seconds, where Python's lets what is open be closed. While it starts, Ray sets handlers of its own for SIGTERM: until then that is blocked,
    in this thread and in those that Ray starts from it, but not in its processes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = {number: handler for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if (handler := signal.getsignal(number)) is not None}
    wanted: dict[int, Any] = {number: _end if handler is signal.SIG_DFL else handler for number, handler in before.items()}
    held: list[int] = []

    def set_handlers(handlers: dict) -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def hold(number: int, frame) -> None:
        set_handlers(wanted)
        held.append(number)
        with contextlib.suppress(OSError):
            os.write(2, b"mucd: ends as soon as Ray has started; a second signal ends it at once\n")

    def connected() -> None:
        set_handlers(wanted)
        unblock()
        if held:
            wanted[held[0]](held[0], None)

    def unblock() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _blocked)
        _blocked.clear()

    set_handlers({number: hold for number, handler in wanted.items() if callable(handler)})
    _blocked.update({signal.SIGTERM} - signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}))
    try:
        yield connected
    finally:
        set_handlers(before)
        unblock()


def _end(number: int, frame) -> None:
    sys.exit(128 + number)


@contextlib.contextmanager
def _connected(address: str, remedy: str, options: dict) -> Iterator[None]:
    try:
        ray.init(address=address, **options)
    except Exception as error:  # Ray raises bare ones, too
        text = " ".join(str(error).split())[:300]
        if "token" in text.lower() or "unauthenticated" in text.lower():
            raise MucdError(f"the Ray cluster at {address} refuses the token ({text}): set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to its token") from None
        raise MucdError(f"no Ray cluster answers at {address} ({text}): start one there, or {remedy} for a local Ray") from None
    try:
        yield
    finally:
        ray.shutdown()


def check_reachable(address: str, remedy: str = "leave the address out") -> None:
    """Ray itself keeps trying for many minutes where nobody answers, or where one side speaks TLS and the other does not."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    host = host.strip("[]")
    if not port.isdigit():
        return
    try:
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
                _check_tls(connection, address)
            else:
                _check_plain(connection, address)
    except (OSError, ValueError, OverflowError) as error:
        raise MucdError(f"no Ray cluster answers at {address} ({error}): start one there, or {remedy} for a local Ray") from None


def _check_tls(connection: socket.socket, address: str) -> None:
    try:
        context = ssl.create_default_context(cafile=os.environ.get("RAY_TLS_CA_CERT"))
        context.check_hostname = False
        context.load_cert_chain(os.environ.get("RAY_TLS_SERVER_CERT", ""), os.environ.get("RAY_TLS_SERVER_KEY"))
        context.wrap_socket(connection).close()
    except OSError as error:
        raise MucdError(f"no TLS with {address} ({error}): set RAY_USE_TLS as on its nodes, and RAY_TLS_CA_CERT, RAY_TLS_SERVER_CERT and RAY_TLS_SERVER_KEY to files that go with theirs") from None


def _check_plain(connection: socket.socket, address: str) -> None:
    """A gRPC server without TLS answers the opening of HTTP/2 with its settings; one with TLS does not take it for a greeting."""
    try:
        connection.sendall(HTTP2_PREFACE)
        answer = connection.recv(4)
    except TimeoutError:
        # A busy head; one with TLS would have hung up.
        return
    except ConnectionError:
        answer = b""
    if answer[3:4] != SETTINGS_FRAME:
        raise MucdError(f"what answers at {address} is no Ray cluster without TLS: set RAY_USE_TLS=1 and the RAY_TLS_ files if its nodes have them, or mend the address")
