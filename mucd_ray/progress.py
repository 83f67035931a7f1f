"""How far a command is, on standard error: bars for what is counted, and lines for what only takes a while."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

# Seconds between two states of a bar where nobody sees it move: a log gets a line each.
LOG_EVERY = 60.0


def bar(what: str, unit: str, total: int | None = None):
    """A bar of the package `tqdm`; close it, or use it as a context."""
    # In every process that starts, this one takes longer than the rest of this file.
    from tqdm import tqdm

    return tqdm(total=total, unit=unit, desc=what, file=sys.stderr, dynamic_ncols=True, mininterval=0.1 if _is_terminal() else LOG_EVERY)


@contextlib.contextmanager
def counting(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Yields progress(done, total), which draws a bar from its first call on."""
    shown = None

    def progress(done: int, total: int) -> None:
        nonlocal shown
        shown = shown or bar(what, unit, total)
        shown.update(min(done, total) - shown.n)

    try:
        yield progress
    finally:
        if shown is not None:
            shown.close()


@contextlib.contextmanager
def stage(what: str) -> Iterator[None]:
    """On a terminal a line that says what is being done, and at its end how long that took; elsewhere nothing."""
    if not _is_terminal():
        yield
        return
    began, said = time.monotonic(), f"{what} ..."
    # What else is said meanwhile takes its place.
    _say(said, end="\r")
    try:
        yield
    except BaseException:
        _say(" " * len(said), end="\r")
        raise
    _say(f"{what}: {time.monotonic() - began:.1f} s", end="\n")


def _say(text: str, end: str) -> None:
    with contextlib.suppress(OSError):
        print(text, end=end, file=sys.stderr, flush=True)


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()
