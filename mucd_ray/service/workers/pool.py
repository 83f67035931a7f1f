"""A driver-side pool of trainers: one actor per slot, as many as the cluster has room for, watched by a lease on progress.

Actors are never restarted by Ray: one that dies, or that makes no progress for the length of a lease, is replaced here and its call is
made again elsewhere. Nothing is lost by that but the unfinished call.
"""

import contextlib
import os
import re
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mucd_ray.errors import MucdError

# A call that raises, or actors that do not start, this many times stop the run with the text of the failure.
ATTEMPTS = 3
# Actors die for reasons that are not the call's, too: nodes leave, and spot machines leave often.
DEATHS = 12
# Seconds between looks at the number of slots, and at every trainer's progress at most.
LOOK_EVERY = 2.0
LONGEST_PAUSE = 60.0
# Leases that a call may take whose lease has expired: each time twice as long, since a busy machine is no fault of the call.
LONGEST_LEASE = 8
# Seconds, or a lease if that is longer, that a start may take where there is room: it imports packages and fetches and reads the data.
START_PATIENCE = 600.0
# Seconds that one that gets ready may answer nothing. Its answers come from a thread of their own, which a large library that is being loaded from a slow disk holds up.
ANSWER_PATIENCE = 120.0
# Seconds without any trainer after which it is said for what they wait.
SILENCE = 30.0
# Seconds that an idle one has to answer when another one of its node has died.
IDLE_PATIENCE = 15.0


@dataclass(frozen=True)
class Call:
    """A method of the actor and its arguments; `key` tells what failed and how often, whatever became of the call."""

    method: str
    arguments: tuple = ()

    def __str__(self):
        return f"{self.method}({', '.join(map(str, self.arguments))})"


@dataclass(eq=False)
class _Worker:
    """An actor: without a place until there is room for it, then getting ready until it is alive, then idle, or busy with a call.

    Attributes:
        born: reply to the question where it is, then to `prepare`.
        answered: when it last answered anything while it gets ready.
        suspected: idle, and another one of its node has died: it gets no call before it has answered.
    """

    actor: ray.actor.ActorHandle
    born: ray.ObjectRef
    alive: bool = False
    place: tuple[str, int] | None = None
    call: Call | None = None
    reply: ray.ObjectRef | None = None
    probe: ray.ObjectRef | None = None
    suspected: bool = False
    ticks: int = -1
    began: float = 0.0
    made: float = field(default_factory=time.monotonic)
    progressed: float = field(default_factory=time.monotonic)
    answered: float = field(default_factory=time.monotonic)


class Pool:
    """Runs calls on actors that `make_actor` makes, `slots()` of them at most.

    An actor has the methods `prepare()`, called first, and, in a concurrency group of their own, `place() -> (node id, process id)` and
    `progress() -> int`, a number that grows while it works. Its constructor does nothing that may fail or take long.

    Attributes:
        upcoming: calls that will be made later, for which actors may start now.
        start_patience: seconds that a start may take.
        answer_patience: seconds that one that gets ready may answer nothing.
        failures: how often what happened: trainer_died, training_failed, start_failed, lease_expired.
    """

    def __init__(self, make_actor: Callable[[], ray.actor.ActorHandle], slots: Callable[[], int], lease: float):
        self.make_actor, self.slots, self.lease = make_actor, slots, lease
        self.workers: list[_Worker] = []
        self.waiting: deque[Call] = deque()
        self.failures: Counter[str] = Counter()
        self.upcoming, self.start_patience, self.answer_patience = 0, START_PATIENCE, ANSWER_PATIENCE
        self._failed: Counter[Call] = Counter()
        self._expired: Counter[Call] = Counter()
        self._failed_starts, self._pause_until, self._looked, self._wanted = 0, 0.0, -LOOK_EVERY, 0
        self._placed, self._told = time.monotonic(), False

    @property
    def alive(self) -> int:
        return sum(worker.alive for worker in self.workers)

    @property
    def wanted(self) -> int:
        return len(self.workers)

    def run(self, calls: Iterable[Call], *, is_done: Callable[[Call], bool] = lambda call: False, halve: Callable[[Call], list[Call]] = lambda call: [call]) -> Iterator[tuple[Call, Any, float] | None]:
        """Make every call; yields (call, value, seconds it took) in order of completion, and None at least every LOOK_EVERY seconds.

        Args:
            is_done: asked before a call is made: whether somebody else has done it meanwhile; it is then left out.
            halve: what to make instead of a call that killed its actor twice: smaller ones, in case it was too large for it.
        Raises:
            MucdError: a call raised ATTEMPTS times, or its actor died DEATHS times; no actor starts.
        """
        self.waiting.extend(calls)
        while self.waiting or any(worker.call for worker in self.workers):
            self._look()
            self._assign(is_done)
            references = {reference: worker for worker in self.workers for reference in (worker.reply, worker.probe, None if worker.alive else worker.born) if reference}
            ready = self._ready(list(references))
            for reference in ready:
                worker = references[reference]
                if worker not in self.workers:
                    continue
                if reference == worker.probe:
                    self._probed(worker, reference)
                elif reference == worker.born:
                    self._started(worker)
                else:
                    result = self._finished(worker, reference, halve)
                    if result is not None:
                        yield result
            yield None

    def _ready(self, references: list) -> list:
        """All that are ready, after waiting for the first at most LOOK_EVERY seconds."""
        if not references:
            time.sleep(0.1)
            return []
        ready, others = ray.wait(references, num_returns=1, timeout=LOOK_EVERY, fetch_local=False)
        if ready and others:
            ready += ray.wait(others, num_returns=len(others), timeout=0, fetch_local=False)[0]
        return ready

    def _look(self) -> None:
        """Every few seconds: as many actors as there are slots and calls, and a glance at every busy one's progress."""
        now = time.monotonic()
        if now - self._looked >= LOOK_EVERY:
            self._looked, self._wanted = now, max(1, self.slots())
            for worker in self.workers[:]:
                self._watch(worker, now)
            self._tell_waiting(now)
        busy = sum(worker.call is not None for worker in self.workers)
        wanted = min(self._wanted, len(self.waiting) + busy + self.upcoming)
        if now >= self._pause_until:
            for _ in range(wanted - len(self.workers)):
                actor = self.make_actor()
                self.workers.append(_Worker(actor, actor.place.remote()))
        if not self.waiting and not self.upcoming:
            # An actor that still waits for room would ask an autoscaler for a node that nobody needs.
            for worker in [worker for worker in self.workers if not worker.alive]:
                self._drop(worker)

    def _tell_waiting(self, now: float) -> None:
        """Once, if none has found a place for a while: for what they wait."""
        if not self.workers or any(worker.place for worker in self.workers):
            self._placed = now
        elif now - self._placed > SILENCE and not self._told:
            self._told = True
            free = ray.available_resources()
            print(
                f"mucd: no trainer has found room for {SILENCE:g} seconds (free now: {free.get('CPU', 0):g} CPU, {free.get('GPU', 0):g} GPU; --actors, --device and --gpus-per-actor "
                "say what is asked for): waiting until other work ends or a node comes",
                file=sys.stderr,
            )

    def _watch(self, worker: _Worker, now: float) -> None:
        """Ask a busy one how far it is, and replace what stands still. One without a place waits for room, or its process is stuck: a new one does as well."""
        still = now - worker.progressed
        if worker.call is not None:
            lease = self.lease * min(2 ** self._expired[worker.call], LONGEST_LEASE)
            if still > lease:
                print(f"mucd: a trainer made no progress at {worker.call} for {lease:g} seconds: it is replaced", file=sys.stderr)
                self.failures["lease_expired"] += 1
                # Longer the next time, in case it is only slow.
                self._expired[worker.call] += 1
                self._replace(worker, worker.call, MucdError(f"no progress for {lease:g} seconds (--lease)"), lambda call: [call])
            elif worker.probe is None:
                worker.probe = worker.actor.progress.remote()
        elif worker.suspected:
            if still > IDLE_PATIENCE:
                self._drop(worker)
                end_process(worker.place)
        elif not worker.alive and worker.place is not None and now - worker.answered > self.answer_patience:
            # It is stopped, or its node is gone. Longer the next time, in case it is only slow.
            self._not_started(worker, MucdError(f"no answer for {self.answer_patience:g} seconds while it got ready"))
            self.answer_patience *= 2
        elif not worker.alive and still > max(self.lease, self.start_patience):
            if worker.place is None:
                # Longer and longer: whatever is slow, such as fetching large data, would begin anew.
                self.start_patience *= 2
                self._drop(worker)
            else:
                self._not_started(worker, MucdError(f"not ready after {still:.0f} seconds"))
        elif not worker.alive and worker.place is not None and worker.probe is None:
            worker.probe = worker.actor.progress.remote()

    def _probed(self, worker: _Worker, reference: ray.ObjectRef) -> None:
        worker.probe = None
        try:
            ticks = ray.get(reference)
        except RayError:
            # A busy one's reply tells what became of it, and that of one that gets ready.
            if worker.call is None and worker.alive:
                self._drop(worker)
            return
        worker.answered = time.monotonic()
        worker.suspected = False
        if ticks != worker.ticks:
            worker.ticks, worker.progressed = ticks, time.monotonic()

    def _assign(self, is_done: Callable[[Call], bool]) -> None:
        if not self.alive:
            # Others may do all of it before there is room for a trainer here.
            self.waiting = deque(call for call in self.waiting if not is_done(call))
        for worker in self.workers:
            if worker.alive and worker.call is None and not worker.suspected:
                while self.waiting and is_done(self.waiting[0]):
                    self.waiting.popleft()
                if not self.waiting:
                    return
                worker.call, worker.began = self.waiting.popleft(), time.monotonic()
                worker.progressed = worker.began
                worker.reply = getattr(worker.actor, worker.call.method).remote(*worker.call.arguments)

    def _started(self, worker: _Worker) -> None:
        try:
            value = ray.get(worker.born)
        except RayError as error:
            self._not_started(worker, error)
            return
        if worker.place is None:
            worker.place, worker.progressed, worker.answered = value, time.monotonic(), time.monotonic()
            worker.born = worker.actor.prepare.remote()
        else:
            worker.alive, self._failed_starts = True, 0

    def _not_started(self, worker: _Worker, error: Exception) -> None:
        self._drop(worker)
        self.failures["start_failed"] += 1
        # Those that were made together, maybe on one node that is gone, count as one.
        if worker.made < self._pause_until:
            return
        self._failed_starts += 1
        if self._failed_starts >= ATTEMPTS and not self.alive:
            raise MucdError(f"no trainer starts; {ATTEMPTS} in a row failed: {text_of(error)}") from None
        if self._failed_starts in (1, ATTEMPTS):
            print(f"mucd: a trainer did not start, and is tried again: {text_of(error)}", file=sys.stderr)
        self._pause_until = time.monotonic() + min(LONGEST_PAUSE, 0.1 * 4 ** min(self._failed_starts, 5))

    def _finished(self, worker: _Worker, reference: ray.ObjectRef, halve) -> tuple[Call, Any, float] | None:
        call = worker.call
        assert call is not None
        try:
            value = ray.get(reference)
        except RayTaskError as error:
            if isinstance(error.cause, MucdError):
                raise error.cause from None
            self.failures["training_failed"] += 1
            worker.call = worker.reply = None
            self._failed[call] += DEATHS // ATTEMPTS
            self._again(call, f"training failed {ATTEMPTS} times", error, lambda call: [call])
            return None
        except RayError as error:
            self.failures["trainer_died"] += 1
            if self.failures["trainer_died"] == 1:
                print(f"mucd: a trainer died at {call}, which is done again: {text_of(error)}", file=sys.stderr)
            self._replace(worker, call, error, halve)
            return None
        worker.call = worker.reply = None
        return call, value, time.monotonic() - worker.began

    def _replace(self, worker: _Worker, call: Call, error: Exception, halve) -> None:
        self._drop(worker)
        for other in self.workers:
            # Its node may be gone, and each of them would lose this call once more.
            if other.alive and other.call is None and other.place and worker.place and other.place[0] == worker.place[0]:
                other.suspected, other.probe, other.progressed = True, other.probe or other.actor.progress.remote(), time.monotonic()
        self._failed[call] += 1
        self._again(call, f"a trainer died {DEATHS} times", error, halve)

    def _again(self, call: Call, words: str, error: Exception, halve) -> None:
        if self._failed[call] >= DEATHS:
            raise MucdError(f"{words} at {call}: {text_of(error)}") from None
        # First, since others may wait for it.
        self.waiting.extendleft(reversed(halve(call) if self._failed[call] == 2 and isinstance(error, RayActorError) else [call]))

    def _drop(self, worker: _Worker) -> None:
        self.workers.remove(worker)
        ray.kill(worker.actor)
        if worker.call is not None or not worker.alive:
            end_process(worker.place)

    def close(self) -> None:
        for worker in self.workers[:]:
            self._drop(worker)


def end_process(place: tuple[str, int] | None) -> None:
    """Kill an actor's process; one that is stopped does not hear Ray, and keeps its slot."""
    if place is not None:
        node, process = place
        _end_process.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(process)


@ray.remote(num_cpus=0, max_retries=0)
def _end_process(process: int) -> None:
    """Kill a worker process of Ray's on this node, if it is still there."""
    with contextlib.suppress(OSError):
        if Path(f"/proc/{process}/cmdline").read_bytes().startswith(b"ray::"):
            os.kill(process, signal.SIGKILL)


def text_of(error: Exception) -> str:
    """The reason, which stands at the end of Ray's text, which is coloured, unless it is one of our own."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, MucdError):
        return str(error.cause)
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|\^{2,}", "", str(error)).split())[-500:]
