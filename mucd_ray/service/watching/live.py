"""What a driver tells while it works: that it is there, how far the run is, and the bounds at the last look."""

import contextlib
import os
import secrets
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator

from mucd_ray.errors import MucdError
from mucd_ray.files import fits, printable
from mucd_ray.service.storage.storage import LocalStorage, reason
from mucd_ray.service.storage.store import RunStore
from mucd_ray.service.watching.metrics import RunMetrics

# A driver that has not been seen for longer counts as gone.
GONE_AFTER = 60.0
RENEW_EVERY = 10.0
MOST_RECORD_BYTES = 1 << 12
# Of a record of drivers/, which anybody who shares the folder may have written.
RECORD = {"host": str, "process": int, "started": float, "seen": float, "wanted": int}
# The rate is that of the last so many seconds.
RATE_WINDOW = 120.0


class Live:
    """A driver's presence in the run folder (drivers/ID.json) and its news (live.json), both renewed now and then and never relied upon."""

    def __init__(self, store: RunStore, wanted: int):
        self.store, self.wanted = store, wanted
        self.name = f"drivers/{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}.json"
        self.started, self.renewed, self.published = time.time(), 0.0, 0.0
        self.publish_every = 1.0 if isinstance(store.storage, LocalStorage) else RENEW_EVERY
        self.history: deque[tuple[float, int]] = deque()
        self.bounds: dict | None = None
        self.counted: Counter[str] = Counter()
        self.metrics, self.complained, self.measured = RunMetrics(store.location), False, True

    @contextlib.contextmanager
    def tolerated(self) -> Iterator[None]:
        """Storage that fails inside is no reason to stop; said once. Trainers whose blocks cannot be stored say it, too, and stop the run."""
        try:
            yield
        except OSError as error:
            if not self.complained:
                print(f"mucd: {self.store.location} cannot be reached for news ({reason(error)}): training goes on", file=sys.stderr)
            self.complained = True

    @contextlib.contextmanager
    def _measuring(self) -> Iterator[None]:
        """Nor is a metric that Ray does not take; said once."""
        try:
            yield
        except Exception as error:  # Ray raises bare ones, too
            if self.measured:
                print(f"mucd: Prometheus is not told of {self.store.location} ({printable(error)}): training goes on", file=sys.stderr)
            self.measured = False

    def renew(self) -> None:
        """Be seen."""
        now = time.time()
        if now - self.renewed >= RENEW_EVERY:
            self.renewed = now
            record = {"host": socket.gethostname(), "process": os.getpid(), "started": self.started, "seen": now, "wanted": self.wanted}
            with self.tolerated():
                self.store.write_json(self.name, record)

    def others(self) -> list[dict]:
        """Records of the other drivers that are at work on this run."""
        return [record for name, record in _records(self.store) if name != self.name]

    def publish(self, done: int, trainers: dict[str, int], failures: dict[str, int], *, end: bool = False) -> None:
        """Write live.json, and tell Prometheus, unless that was just done; `end` writes it anyway.

        Args:
            done: instances that are stored.
            trainers: {"alive": int, "wanted": int}.
            failures: how often what happened, since this driver began.
        """
        now = time.time()
        if not end and now - self.published < self.publish_every:
            return
        self.published = now
        self.history.append((now, done))
        while len(self.history) > 2 and now - self.history[0][0] > RATE_WINDOW:
            self.history.popleft()
        with self._measuring():
            self._measure(done, trainers, failures)
        rate = self.rate()
        news = {
            "updated": now, "finished": end, "instances_done": done, "instances_wanted": self.wanted, "instances_per_second": rate,
            "seconds_left": (self.wanted - done) / rate if rate else None, "trainers": trainers, "failures": dict(failures), "bounds": self.bounds,
        }
        with self.tolerated():
            self.store.write_json("live.json", news)

    def trained(self, instances: int, seconds: float) -> None:
        """One of this driver's trainers has stored a block, so many seconds after it got it."""
        with self._measuring():
            self.metrics.count("mucd_instances_trained_total", instances)
            self.metrics.observe("mucd_block_seconds", seconds)

    def _measure(self, done: int, trainers: dict[str, int], failures: dict[str, int]) -> None:
        self.metrics.set("mucd_instances_done", done)
        self.metrics.set("mucd_instances_wanted", self.wanted)
        for state, number in trainers.items():
            self.metrics.set("mucd_trainers", number, state=state)
        for kind, number in failures.items():
            if number > self.counted[kind]:
                self.metrics.count("mucd_failures_total", number - self.counted[kind], kind=kind)
                self.counted[kind] = number
        if self.bounds is not None:
            self.metrics.set("mucd_mean_return", self.bounds["mean_return"])
            self.metrics.set("mucd_bound_instances", self.bounds["instances"])
            for share, entry in self.bounds["keeps"].items():
                self.metrics.set("mucd_certified_fraction", entry["fraction"], share=share)

    def rate(self) -> float:
        """Instances per second lately."""
        (start, first), (stop, last) = (self.history[0], self.history[-1]) if self.history else ((0.0, 0), (0.0, 0))
        return (last - first) / (stop - start) if stop > start else 0.0

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.store.storage.remove(self.name)


def drivers(store: RunStore) -> list[dict]:
    """Records of the drivers at work on a run: host, process, started, seen (seconds since the epoch), wanted."""
    return [record for _, record in _records(store)]


def _records(store: RunStore) -> list[tuple[str, dict]]:
    found = []
    for name in store.storage.names("drivers"):
        record = store.read_json(f"drivers/{name}", MOST_RECORD_BYTES)
        if record is None:
            continue
        if not (isinstance(record, dict) and all(fits(record.get(field), kind) for field, kind in RECORD.items()) and record["host"].isprintable()):
            raise MucdError(f"{store.file(f'drivers/{printable(name)}')} is not the record of a driver: delete it")
        # Nor has one been seen that will be: clocks differ by seconds.
        if abs(time.time() - record["seen"]) < GONE_AFTER:
            found.append((f"drivers/{name}", record))
    return found
