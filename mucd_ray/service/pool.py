"""A driver-side pool of trainers: one actor per slot, work requeued when an actor dies, start failures reported with their text."""

import re
from collections import Counter, deque
from collections.abc import Callable

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from mucd_ray.errors import MucdError

# A block that fails, or actors that do not start, this many times stop the run with the text of the failure.
ATTEMPTS = 3


class Pool:
    """Runs calls on `slots` actors made by `make_actor`. Actors are never restarted by Ray: a dead one is replaced here."""

    def __init__(self, make_actor: Callable[[], ray.actor.ActorHandle], slots: int):
        self.make_actor = make_actor
        self.idle = deque(make_actor() for _ in range(slots))
        self.running: dict[ray.ObjectRef, tuple] = {}

    def map(self, calls: list[tuple[str, tuple]], on_result: Callable[[int, object], None]) -> None:
        """Run every (method, arguments); `on_result(index, value)` in order of completion.

        Raises:
            MucdError: a call failed, or its actor died, ATTEMPTS times.
        """
        waiting, failures = deque(range(len(calls))), Counter()
        while waiting or self.running:
            while waiting and self.idle:
                actor, index = self.idle.popleft(), waiting.popleft()
                method, arguments = calls[index]
                self.running[getattr(actor, method).remote(*arguments)] = (actor, index)
            ready, _ = ray.wait(list(self.running), num_returns=1, timeout=5.0)
            for reference in ready:
                actor, index = self.running.pop(reference)
                try:
                    value = ray.get(reference)
                except RayTaskError as error:
                    self.idle.append(actor)
                    self._failed(failures, index, calls[index], error.cause, waiting)
                    continue
                except RayError as error:
                    ray.kill(actor)
                    self.idle.append(self.make_actor())
                    self._failed(failures, index, calls[index], error, waiting)
                    continue
                self.idle.append(actor)
                on_result(index, value)

    def close(self) -> None:
        for actor in [*self.idle, *(actor for actor, _ in self.running.values())]:
            ray.kill(actor)

    @staticmethod
    def _failed(failures: Counter, index: int, call, error: Exception, waiting: deque) -> None:
        if isinstance(error, MucdError):
            raise error
        failures[index] += 1
        if failures[index] >= ATTEMPTS:
            # The reason stands at the end of Ray's text, which is coloured.
            text = " ".join(re.sub(r"\x1b\[[0-9;]*m|\^{2,}", "", str(error)).split())
            kind = "a trainer died" if isinstance(error, RayActorError) else "training failed"
            raise MucdError(f"{kind} {ATTEMPTS} times at {call[0]}{call[1]}: {text[-500:]}")
        waiting.append(index)
