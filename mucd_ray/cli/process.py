"""A command as a process: standard streams that may be closed, signals that end it, a last line that says why."""

import contextlib
import importlib
import os
import select
import signal
import sys
import threading

from mucd_ray.errors import MucdError
from mucd_ray.words import harmless

# Of the last line; what is longer quotes something that no reader needs in full.
MOST_WORDS = 2000
ENDED: dict[int, str] = {signal.SIGTERM: "terminated", signal.SIGHUP: "the terminal hung up"}


def open_standard_streams() -> None:
    """Standard streams that are closed (`>&-`) lead to /dev/null, instead of to the next file that is opened."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            with contextlib.suppress(OSError):
                os.fstat(number)
                continue
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            setattr(sys, name, open(number, "r" if name == "stdin" else "w", closefd=False))


def check_text(arguments: list[str]) -> None:
    """Raise MucdError for an argument with bytes that are no UTF-8, which neither files of JSON nor Ray can hold."""
    for argument in arguments:
        if any("\ud800" <= character <= "\udfff" for character in argument):
            raise MucdError(f"{harmless(argument)[:200]} on the command line is no text in UTF-8: rename what it names")


def check_working_folder() -> None:
    """Raise MucdError where the working folder was removed meanwhile: libraries that are loaded from there end the process, and Ray's do not start."""
    try:
        os.getcwd()
    except OSError as error:
        raise MucdError(f"the working folder cannot be found ({error.strerror}): it was removed or moved; cd to one that exists") from None


def check_progress_bars() -> None:
    """Raise MucdError where the environment gives the package of progress bars what it does not understand: it fails wherever it is loaded."""
    names = [name for name in os.environ if name.startswith("TQDM_")]
    try:
        names and importlib.import_module("tqdm")
    except (TypeError, ValueError) as error:
        raise MucdError(f"{' or '.join(names)} in the environment is no value for a progress bar ({error}): unset it") from None


def readers_are_gone() -> bool:
    """Whether standard output or error is a pipe that nobody reads; such a one then leads to /dev/null, where Python's last words go."""
    gone = False
    for number in (1, 2):
        watch = select.poll()
        watch.register(number, 0)
        if any(event & select.POLLERR for _, event in watch.poll(0)):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, number)
            os.close(null)
            gone = True
    return gone


@contextlib.contextmanager
def signals_end_the_process(received: list):
    """SIGTERM and SIGHUP, unless it is ignored (`nohup`), raise SystemExit, so that Ray's processes end, too. They are written down in `received`, since
    inside a call of Ray's every SystemExit becomes another one. What a signal raises while a library calls back, as HDF5's does, or in a destructor, Python
    cannot pass on: then the signal is sent again, also SIGINT."""
    if threading.current_thread() is not threading.main_thread():
        yield  # where signals are somebody else's business
        return

    def end(number, frame):
        received.append(number)
        sys.exit(128 + number)

    def again(unraisable):
        if unraisable.exc_type is KeyboardInterrupt or unraisable.exc_type is SystemExit and received:
            number = signal.SIGINT if unraisable.exc_type is KeyboardInterrupt else received[-1]
            # A little later: raised in here it would be lost, too.
            timer = threading.Timer(0.02, signal.pthread_kill, (threading.main_thread().ident, number))
            timer.daemon = True
            timer.start()
        else:
            hook(unraisable)

    hook, sys.unraisablehook = sys.unraisablehook, again
    before = {number: signal.signal(number, end) for number in ENDED if signal.getsignal(number) is not signal.SIG_IGN}
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def only_results_on_stdout():
    """Libraries and Ray's processes print to stderr; yields a function that prints to the real standard output.

    What it prints may come from files that anybody has written: only `control` reaches the terminal as it is. Its `on_terminal` says whether there is one.
    """
    sys.stdout.flush()
    real = os.dup(1)
    os.dup2(2, 1)

    def out(text: str, control: str = "") -> None:
        rest = memoryview((control + harmless(text) + "\n").encode())
        while rest:
            rest = rest[os.write(real, rest) :]

    out.on_terminal = os.isatty(real)
    try:
        yield out
    finally:
        sys.stdout.flush()
        os.dup2(real, 1)
        os.close(real)


def last_words(status: int, words: str) -> int:
    """Say why on standard error, unless nobody is there to read it; the beginning, which names the value, and the end, which names the fix."""
    if len(words) > MOST_WORDS:
        words = f"{words[: MOST_WORDS // 2]} [...] {words[-MOST_WORDS // 2 :]}"
    with contextlib.suppress(OSError):
        print(harmless(f"mucd: {words}"), file=sys.stderr)
    return status
