"""The command line: thin calls into the rooms, one file per group of commands. Heavy imports happen inside the commands, so that `verify` needs numpy and
scipy only. A new command is a function, its parser beside it, and a line of COMMANDS."""

import argparse
import os
import signal
import sys

from mucd_ray import __version__
from mucd_ray.cli import attacking, calculating, comparing, importing, recording, results, training
from mucd_ray.cli.options import Parser
from mucd_ray.cli.process import (
    ENDED,
    check_progress_bars,
    check_text,
    check_working_folder,
    last_words,
    only_results_on_stdout,
    open_standard_streams,
    readers_are_gone,
    signals_end_the_process,
)
from mucd_ray.errors import MucdError
from mucd_ray.progress import counting as progress_bar

__all__ = ["build_parser", "main", "progress_bar", "run_as_job"]

# The products of the accounting are small: threads of numpy's linear algebra cost more than they do. Read when numpy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

DESCRIPTION = "Certified defence of offline reinforcement learning against poisoned data."
# In the order in which --help lists them.
COMMANDS = (
    recording.add_record,
    recording.add_card,
    importing.add_import,
    importing.add_inspect,
    training.add_run,
    training.add_grow,
    training.add_certify,
    training.add_tune,
    attacking.add_attack,
    comparing.add_compare,
    results.add_watch,
    results.add_serve,
    results.add_verify,
    results.add_report,
    calculating.add_plan,
    calculating.add_tradeoff,
    calculating.add_radius,
)


def main(arguments: list[str] | None = None) -> int:
    open_standard_streams()
    received: list[int] = []
    options = None
    try:
        check_text(sys.argv[1:] if arguments is None else arguments)
        try:
            options = build_parser().parse_args(arguments)
        finally:
            sys.stdout.flush()  # of --help, which fails here and not when Python ends
        check_working_folder()
        check_progress_bars()
        with signals_end_the_process(received), only_results_on_stdout() as out:
            status = options.command(options, out)
        return status or 0
    except MucdError as error:
        if received:  # inside the user's code, whose SystemExit is a failure like any other
            return _ended(received[0])
        return last_words(2, f"error: {' '.join(str(error).split())}")
    except OSError as error:
        if isinstance(error, BrokenPipeError) and readers_are_gone():
            # As if SIGPIPE had ended it: nobody reads on, as after `| head`.
            return 128 + signal.SIGPIPE
        return last_words(2, f"error: {error.strerror or error}: {error.filename or 'a file'}; mend this and run the same command again")
    except MemoryError as error:
        return last_words(2, f"error: there is not enough memory ({error}): ask for less at a time, or use a machine with more" if str(error) else "error: there is not enough memory")
    except KeyboardInterrupt:
        return last_words(130, "interrupted; run the same command again to continue")
    except SystemExit as error:
        if received:
            return _ended(received[0])
        if options is None:  # --help, or a word that it does not know
            raise
        return last_words(2, f"error: code of yours ends the process (SystemExit: {error}): mend it")


def _ended(number: int) -> int:
    return last_words(128 + number, f"{ENDED[number]}; run the same command again to continue")


class Version(argparse.Action):
    """Of the package; then a line for each kind of installed plug-ins, none of which is imported."""

    def __call__(self, parser, *_):
        from mucd_ray.plugins import GROUPS, listed

        plugins = [f"plug-ins, {group.removeprefix('mucd_ray.')}: {', '.join(listed(kind))}" for kind, group in GROUPS.items() if listed(kind)]
        print("\n".join([f"mucd_ray {__version__}", *plugins]))
        parser.exit()


def build_parser() -> Parser:
    parser = Parser(prog="mucd", description=DESCRIPTION)
    parser.add_argument("--version", action=Version, nargs=0, default=argparse.SUPPRESS, help="show the version, and which plug-ins are installed, and exit")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    return parser


def run_as_job(command: str) -> int:
    """A command of `mucd` with the arguments of this process, as the entry point of a Ray job: run folders must be reachable from every node."""
    arguments = [command, *sys.argv[1:]]
    # Ray sets this for the entry points of jobs.
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        options = vars(build_parser().parse_args(arguments))
        for name in ("storage", "run"):
            folder = options.get(name)
            if folder is not None and "://" not in folder and not os.path.isabs(folder):
                print(
                    f"mucd: error: {folder} is relative, and a job's working directory is a copy that disappears: give an absolute path on storage that all nodes share, or a URL",
                    file=sys.stderr,
                )
                return 2
    return main(arguments)
