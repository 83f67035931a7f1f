"""How much a calculation may spend, in elementary operations: the same inputs are refused, or not, on every machine and under any load.

An operation is one exponential, distribution function or product of a table, about ten nanoseconds of one core. Everything whose size
inputs decide asks here before it begins; outside `limited_to` nothing is counted.
"""

import contextlib
from contextvars import ContextVar

from mucd_ray.errors import MucdError

_left: ContextVar[list[float] | None] = ContextVar("left", default=None)


class TooMuchWork(MucdError):
    """What is asked for needs more operations than were allowed."""


@contextlib.contextmanager
def limited_to(operations: float):
    """Within it, `spend` raises TooMuchWork once more than that many operations have been asked for; or those that are left of an outer limit."""
    outer = _left.get()
    operations = operations if outer is None else min(operations, outer[0])
    left = [operations, operations]
    before = _left.set(left)
    try:
        yield
    finally:
        _left.reset(before)
        if outer is not None:
            outer[0] -= operations - max(0.0, left[0])


def spend(operations: float) -> None:
    """To be called before so many operations are done."""
    left = _left.get()
    if left is not None:
        left[0] -= operations
        if left[0] < 0:
            raise TooMuchWork(f"this needs more than {left[1]:.3g} operations")
