"""The command line: thin calls into the rooms. Heavy imports happen inside the commands, so that `verify` needs numpy and scipy only."""

import argparse
import contextlib
import json
import os
import select
import signal
import sys
import threading

from mucd_ray.errors import MucdError
from mucd_ray.words import counted, harmless

# The products of the accounting are small: threads of numpy's linear algebra cost more than they do. Read when numpy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

ENDED = {signal.SIGTERM: "terminated", signal.SIGHUP: "the terminal hung up"}
DESCRIPTION = "Certified defence of offline reinforcement learning against poisoned data."


def main(arguments: list[str] | None = None) -> int:
    _open_standard_streams()
    received = []
    try:
        try:
            options = build_parser().parse_args(arguments)
        finally:
            sys.stdout.flush()  # of --help, which fails here and not when Python ends
        with _signals_end_the_process(received), _only_results_on_stdout() as out:
            status = options.command(options, out)
        return status or 0
    except MucdError as error:
        return _end(2, f"error: {' '.join(str(error).split())}")
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _readers_are_gone():
            # As if SIGPIPE had ended it: nobody reads on, as after `| head`.
            return 128 + signal.SIGPIPE
        return _end(2, f"error: {error.strerror or error}: {error.filename or 'a file'}; mend this and run the same command again")
    except MemoryError as error:
        return _end(2, f"error: there is not enough memory ({error}): ask for less at a time, or use a machine with more" if str(error) else "error: there is not enough memory")
    except KeyboardInterrupt:
        return _end(130, "interrupted; run the same command again to continue")
    except SystemExit as stop:
        if not received:
            raise
        return _end(128 + received[0], f"{ENDED[received[0]]}; run the same command again to continue")


def _end(status: int, words: str) -> int:
    """Say why on standard error, unless nobody is there to read it."""
    with contextlib.suppress(OSError):
        print(harmless(f"mucd: {words}"), file=sys.stderr)
    return status


def _open_standard_streams() -> None:
    """Standard streams that are closed (`>&-`) lead to /dev/null, instead of to the next file that is opened."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            with contextlib.suppress(OSError):
                os.fstat(number)
                continue
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            setattr(sys, name, open(number, "r" if name == "stdin" else "w", closefd=False))


def _readers_are_gone() -> bool:
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
def _signals_end_the_process(received: list):
    """SIGTERM and SIGHUP, unless it is ignored (`nohup`), raise SystemExit, so that Ray's processes end, too. They are written down in `received`, since
    inside a call of Ray's every SystemExit becomes another one."""
    if threading.current_thread() is not threading.main_thread():
        yield  # where signals are somebody else's business
        return

    def end(number, frame):
        received.append(number)
        sys.exit(128 + number)

    before = {number: signal.signal(number, end) for number in ENDED if signal.getsignal(number) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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


@contextlib.contextmanager
def _only_results_on_stdout():
    """Libraries and Ray's processes print to stderr; yields a function that prints to the real standard output.

    What it prints may come from files that anybody has written: only `control` reaches the terminal as it is.
    """
    sys.stdout.flush()
    real = os.dup(1)
    os.dup2(2, 1)

    def out(text: str, control: str = "") -> None:
        rest = memoryview((control + harmless(text) + "\n").encode())
        while rest:
            rest = rest[os.write(real, rest) :]

    try:
        yield out
    finally:
        sys.stdout.flush()
        os.dup2(real, 1)
        os.close(real)


@contextlib.contextmanager
def progress_bar(what: str, unit: str):
    """Yields progress(done, total), which draws a bar on standard error from its first call on."""
    from tqdm import tqdm

    bar = None

    def progress(done: int, total: int) -> None:
        nonlocal bar
        bar = bar or tqdm(total=total, unit=unit, desc=what, file=sys.stderr, dynamic_ncols=True)
        bar.update(min(done, total) - bar.n)

    try:
        yield progress
    finally:
        if bar is not None:
            bar.close()


def record(options, out):
    if options.list:
        return _list_recordings(options, out)
    with progress_bar("recording", "transition") as progress:
        if options.recipe:
            from mucd_ray.data.recording.recipes import make

            others = ("environment", "dataset", "behaviour", "transitions", "noise", "seed", "frames")
            if any(getattr(options, name) not in (None, False) for name in others):
                raise MucdError(f"--recipe {options.recipe} names a whole dataset: leave out the environment and all that would make another one")
            summary = make(options.recipe, overwrite=options.overwrite, progress=progress)
        else:
            from mucd_ray.data.recording.record import record as record_dataset

            if not options.environment or not options.dataset:
                raise MucdError("record needs an environment and --dataset ID, for example: mucd record Acrobot-v1 --dataset acrobot/mixed-v0, or --recipe ID")
            summary = record_dataset(
                options.environment, options.behaviour, 20_000 if options.transitions is None else options.transitions, options.seed or 0, options.dataset,
                tuple(options.noise) if options.noise else None, frames=options.frames, overwrite=options.overwrite, progress=progress,
            )
    text = (
        f"{summary['dataset_id']}: {counted(summary['transitions'], 'transition')} in {counted(summary['trajectories'], 'trajectory')} of {summary['env_id']}, "
        f"mean return {summary['mean_return']:.2f}\nin {summary['path']}"
    )
    if options.recipe:
        declared = summary["declared_checksum"]
        told = "none is declared" if declared is None else "as declared" if declared == summary["checksum"] else f"declared is {declared}"
        text += f"\nchecksum {summary['checksum']} ({told})"
        if declared not in (None, summary["checksum"]):
            print(
                f"mucd: {options.recipe} is not byte for byte the declared one: Box2D, MuJoCo and other floating-point results differ across processors and "
                "versions; the dataset is sound, but figures published for this recipe may differ slightly",
                file=sys.stderr,
            )
    out(json.dumps(summary) if options.json else text)


def _list_recordings(options, out):
    from mucd_ray.data.recording.behaviours import behaviour_catalogue
    from mucd_ray.data.recording.recipes import recipe_catalogue

    recipes, behaviours = recipe_catalogue(), behaviour_catalogue()
    if options.json:
        out(json.dumps({"recipes": recipes, "behaviours": behaviours}))
        return
    rows = [("recipe", "environment", "behaviour", "transitions", "mean return", "seconds", "MB")]
    for recipe in recipes:
        known = ("?" if recipe[name] is None else f"{recipe[name]:{form}}" for name, form in (("mean_return", ".1f"), ("seconds", ".0f"), ("megabytes", ".0f")))
        rows.append((recipe["dataset"], _environment(recipe), recipe["behaviour"], f"{recipe['size'] or recipe['transitions']:,}", *known))
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) if n < 3 else cell.rjust(width) for n, (cell, width) in enumerate(zip(row, widths))) for row in rows]
    lines += ["", "? not made here yet", "", "record one with `mucd record --recipe ID` and train on it with `mucd run ID --storage runs/NAME`, for example:"]
    lines += ["mucd record --recipe lunarlander/continuous-v0", "mucd run lunarlander/continuous-v0 --storage runs/lander", "", "behaviours (noise levels, of which each episode draws one):"]
    lines += [f"{row['name']}, {_environment(row)}: {row['description']} ({', '.join(f'{level:g}' for level in row['noise'])})" for row in behaviours]
    out("\n".join(lines))


def _environment(row: dict) -> str:
    arguments = ", ".join(f"{name}={value}" for name, value in row["make_kwargs"].items())
    return row["env_id"] + (f" ({arguments})" if arguments else "")


def run(options, out):
    from mucd_ray.service.runs.commands import start_run

    return start_run(options, out)


def grow(options, out):
    from mucd_ray.service.runs.commands import grow_run

    return grow_run(options, out)


def certify(options, out):
    from mucd_ray.service.runs.commands import certify_run

    return certify_run(options, out)


def report(options, out):
    from mucd_ray.service.runs.commands import report_run

    report_run(options, out)


def tune(options, out):
    from mucd_ray.service.runs.commands import tune_constants

    tune_constants(options, out)


def compare(options, out):
    from mucd_ray.service.runs.compare import compare_runs, side_by_side

    rows = compare_runs(options.runs)
    out(json.dumps(rows) if options.json else side_by_side(rows))


def watch(options, out):
    from mucd_ray.service.watching.watch import watch_run

    watch_run(options, out)


def serve(options, out):
    from mucd_ray.service.serving.serve import serve_run

    serve_run(options.run, host=options.host, port=options.port, replicas=options.replicas, address=options.address, out=out)


def verify(options, out):
    from mucd_ray.certify.file.certificate import STANDING_ASSUMPTIONS, read_certificate
    from mucd_ray.certify.file.certificate import verify as find_mismatches

    certificate = read_certificate(options.certificate, options.patience)
    mismatches = find_mismatches(certificate, options.patience)
    if options.json:
        out(json.dumps({"valid": not mismatches, "mismatches": mismatches}))
    elif mismatches:
        out("\n".join(["INVALID", *mismatches[:20], *([f"and {len(mismatches) - 20} more"] if len(mismatches) > 20 else [])]))
    else:
        out("\n".join(["VALID: every number follows from the evidence in the file (the evidence itself, and which mechanism, unit and returns it is about, is taken as it is).", *certificate["claim"], "Assumptions of every certificate:", *certificate["assumptions"][: len(STANDING_ASSUMPTIONS)], *_words_of_the_maker(certificate["assumptions"][len(STANDING_ASSUMPTIONS) :])]))
    return 1 if mismatches else 0


def _words_of_the_maker(assumptions: list[str]) -> list[str]:
    """Each marked by itself: a sentence of the maker's may look like one of ours."""
    return ["Further assumptions, in the words of the certificate's maker, which nothing checks:", *(f"> {text}" for text in assumptions)] if assumptions else []


def plan(options, out):
    from dataclasses import asdict

    from mucd_ray.certify.planning.plan import plan as make_plan
    from mucd_ray.certify.rounding import exactly, percent_down

    asked = {name: getattr(options, name) for name in ("units", "eta", "actions", "threat", "accountant", "steps", "sample_rate", "agreement")}
    lines, result = [], {}
    questions = (options.fraction, options.radius, options.solve, options.noise_multiplier)
    if any(value is not None for value in questions) or not options.frontier:
        answer = make_plan(
            **asked, fraction=options.fraction, radius=options.radius, instances=options.instances, noise_multiplier=options.noise_multiplier,
            solve=options.solve,
        )
        mechanism = answer.mechanism
        vote = "unanimous vote" if answer.agreement == 1 else f"vote with an agreement of {exactly(answer.agreement)}"
        lines.append(
            f"sample rate {exactly(mechanism.sample_rate)}, noise multiplier {exactly(mechanism.noise_multiplier)}, steps {mechanism.steps}: a {vote} of "
            f"{counted(answer.instances, 'instance')} is certified up to r = {answer.radius} of {counted(answer.units, mechanism.unit)} ({percent_down(answer.radius / answer.units)} %); "
            f"signal budget S = {answer.signal_budget:.4g}"
        )
        result = asdict(answer) | asdict(mechanism)
    if options.frontier:
        rows = _frontier(options, asked)
        result |= {"frontier": rows, "frontier_file": options.frontier}
        counts = list(dict.fromkeys(row["instances"] for row in rows))
        lines.append(f"{'S':>8}" + "".join(f"  {f'P = {count}':>12}" for count in counts) + "   certified share of the data")
        for budget in dict.fromkeys(row["signal_budget"] for row in rows):
            lines.append(f"{exactly(budget):>8}" + "".join(f"  {percent_down(row['radius'] / options.units):>10} %" for row in rows if row["signal_budget"] == budget))
        lines.append(f"plotted in {options.frontier}")
    out(json.dumps(result) if options.json else "\n".join(lines))
    _warn_unsound(options.accountant)


def _frontier(options, asked: dict) -> list[dict]:
    """Computes the frontier and writes its plot."""
    from dataclasses import replace
    from pathlib import Path

    import numpy as np

    from mucd_ray.certify.planning.plan import FRONTIER_INSTANCES, frontier
    from mucd_ray.report import plots

    file = Path(options.frontier)
    if file.suffix.lower() != ".png" or not file.parent.is_dir():
        raise MucdError(f"--frontier {file} must be the name of a .png file in a folder that exists")
    rows = frontier(**asked, instances=sorted({*FRONTIER_INSTANCES, *([] if options.instances is None else [options.instances])}))
    curves = {}
    for row in rows:
        curves.setdefault(counted(row["instances"], "instance"), []).append(row["fraction"])
    budgets = np.array(list(dict.fromkeys(row["signal_budget"] for row in rows)))
    look = replace(plots.WIDE, warning="not sound: the published rule" if options.accountant == "published" else "")
    try:
        file.write_bytes(plots.frontier(signal_budget=budgets, fraction={label: np.array(shares) for label, shares in curves.items()}, look=look))
    except OSError as error:
        raise MucdError(f"--frontier {file} cannot be written: {error.strerror}") from None
    return rows


def tradeoff(options, out):
    from mucd_ray.certify.guarantees import Guarantees
    from mucd_ray.certify.rounding import exactly, probability_down, probability_up

    guarantee = Guarantees(_mechanism(options), family=options.accountant).group(options.inserted, options.removed)
    lower, upper = guarantee.lower(options.probability), guarantee.upper(options.probability)
    if options.json:
        out(json.dumps({"lower": lower.tolist(), "upper": upper.tolist()}))
    else:
        bounds = zip(options.probability, lower, upper, strict=True)
        rows = [("under D", "lower", "upper"), *((exactly(p), probability_down(a), probability_up(b)) for p, a, b in bounds)]
        widths = [max(10, *map(len, column)) for column in zip(*rows)]
        out("\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows))
    _warn_unsound(options.accountant)


def radius(options, out):
    import numpy as np

    from mucd_ray.certify.action import action_radii
    from mucd_ray.certify.confidence.proportions import LARGEST, check_count
    from mucd_ray.certify.guarantees import Guarantees

    for name, value in (("top", options.top), ("runner-up", options.runner_up)):
        if not 0 <= value <= 1:
            raise MucdError(f"{name} {value} is outside [0, 1]: it is a probability")
    # Nothing else has more than what the top action leaves.
    runner_up = min(options.runner_up, 1.0 - options.top)
    if runner_up > options.top:
        raise MucdError(f"runner-up {options.runner_up} is above top {options.top}: the top action has the larger probability")
    guarantees = Guarantees(_mechanism(options), threat=options.threat, family=options.accountant)
    cap = min(check_count(options.units, "units", 1, LARGEST), guarantees.largest_radius)
    found = int(action_radii(np.array([options.top]), np.array([runner_up]), guarantees, cap)[0])
    if options.json:
        out(json.dumps({"radius": None if found < 0 else found, "floor": found == cap}))
    elif found < 0:
        out("abstain: the two probabilities do not certify even r = 0")
    else:
        end = "the search ends at --units" if cap == options.units else "no larger group is accounted for"
        out(f"r = {found}" + (f" at least: {end}" if found == cap else ""))
    _warn_unsound(options.accountant)


def _mechanism(options):
    from mucd_ray.mechanism.gaussian.mechanism import Mechanism

    return Mechanism(
        sample_rate=options.sample_rate, noise_multiplier=options.noise_multiplier, steps=options.steps, clip_norm=1.0, normaliser=1.0
    )


def _warn_unsound(accountant: str) -> None:
    if accountant == "published":
        print("mucd: the published rule is not sound: these numbers are for comparison only", file=sys.stderr)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, unless there is none or the text tells it itself."""

    def _get_help_string(self, action):
        told = action.default in (None, False) or "(default" in (action.help or "")
        return action.help if told else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Bad arguments are one line, like all other bad input."""

    def error(self, message):
        self.exit(2, harmless(f"mucd: error: {' '.join(message.split())}; see `{self.prog} --help`") + "\n")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="mucd", description=DESCRIPTION)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name, function, help, example):
        sub = commands.add_parser(name, help=help, description=help, epilog=f"example: {example}", formatter_class=HelpFormatter)
        sub.set_defaults(command=function)
        sub.add_argument("--json", action="store_true", help="print one JSON object")
        return sub

    sub = command("record", record, "Record a real Minari dataset with a named behaviour policy.", "mucd record Acrobot-v1 --dataset acrobot/mixed-v0")
    sub.add_argument("environment", nargs="?", help="Gymnasium id")
    sub.add_argument("--list", action="store_true", help="list the recipes (with size, mean return and time to make) and the behaviours")
    sub.add_argument("--recipe", metavar="ID", help="make this listed dataset, exactly")
    sub.add_argument("--dataset", help="Minari id to write, such as acrobot/mixed-v0")
    sub.add_argument("--behaviour", help="behaviour policy (default: the environment's first)")
    sub.add_argument("--transitions", type=int, help="at least this many, in whole episodes (default: 20000)")
    sub.add_argument("--noise", type=float, nargs="+", help="noise levels, one drawn per episode: probability of a random action or, for continuous actions, standard deviation in half ranges (default: the behaviour's)")
    sub.add_argument("--seed", type=int, help="seed of behaviour and environment (default: 0)")
    sub.add_argument("--frames", action="store_true", help="of an Atari game, store small grey frames instead of RAM")
    sub.add_argument("--overwrite", action="store_true", help="replace an existing dataset of this id")

    sub = command("run", run, "Train an ensemble on a dataset, certify it and write a run folder.", "mucd run acrobot/mixed-v0 --storage runs/acrobot --fraction 0.01")
    sub.add_argument("dataset", help="Minari dataset id (local, or under MINARI_DATASETS_PATH)")
    sub.add_argument("--storage", "--out", type=_path, required=True, help="run folder, a local path or an fsspec URL such as s3://bucket/run; an unfinished run there is continued")
    sub.add_argument("--instances", type=int, default=1000, help="P, the number of instances")
    sub.add_argument("--card", type=_path, help="JSON file with the environment's public facts (default: the shipped card)")
    sub.add_argument("--unit", choices=["transition", "trajectory"], help="what an attacker changes, and what the certificate counts (default: transition)")
    sub.add_argument("--tuned", type=_path, metavar="FILE", help="tuned.json of `mucd tune`: sets unit, mechanism and learner")
    group = sub.add_argument_group("mechanism (public constants; by default planned from the declared size and the wanted fraction)")
    group.add_argument("--fraction", type=float, help="share of the units that a unanimous vote should withstand (default: 0.01)")
    group.add_argument("--units", type=int, help="declared size of the dataset (default: its size rounded to 1, 1.25, 1.6, 2, ... times a power of ten)")
    group.add_argument("--sample-rate", type=float, help="q (default: a batch of about 1024)")
    group.add_argument("--noise-multiplier", type=float, help="sigma; with it q and steps must be given and nothing is planned (default: planned)")
    group.add_argument("--steps", type=int, help="T (default: 100)")
    group.add_argument("--clip-norm", type=float, help="C (default: 0.1)")
    group = sub.add_argument_group("learner (public constants)")
    group.add_argument("--algorithm", help="offline learner, see docs/algorithms.md (default: bc, behaviour cloning)")
    group.add_argument("--constant", action="append", metavar="NAME=NUMBER", help="a constant of the algorithm, such as alpha=2; may be repeated")
    group.add_argument("--network", help="dense, or convolutional for recorded frames (default: dense)")
    group.add_argument("--hidden", help="widths of hidden layers, such as 64,64 (default: none, a linear policy)")
    group.add_argument("--random-features", type=int, metavar="M", help="replace observations by M public random Fourier features (default: 0, as they are)")
    group.add_argument("--bandwidth", type=float, help="distance over which random features change (default: 1)")
    group.add_argument("--optimiser", help="sgd or adam (default: sgd)")
    group.add_argument("--learning-rate", type=float, help="(default: 30) for bc and cql; 0.3 to 10 for the others")
    group.add_argument("--momentum", type=float, help="of sgd (default: 0)")
    group.add_argument("--average", type=float, help="share of the final iterates that is averaged (default: 0.5)")
    group.add_argument("--cap", type=int, help="with --unit trajectory: most transitions of one trajectory that a step looks at (default: 200)")
    group.add_argument("--local-steps", type=int, help="with --unit trajectory: gradient steps of a trajectory's own update (default: 1)")
    group.add_argument("--local-learning-rate", type=float, help="of these steps (default: 0.1)")
    group.add_argument("--min-return", type=float, help="with --unit trajectory: trajectories that earned less count as zero; a public constant")
    group.add_argument("--chosen", help="one sentence for the certificate: how you chose these constants")
    _add_until(sub)
    group = sub.add_argument_group("evaluation")
    group.add_argument("--rollouts", type=int, default=1, help="episodes per instance; its return is their mean")
    group.add_argument("--discount", type=float, default=1.0, help="a reward after t steps counts discount^t; below 1 the card must bound rewards and episode length, or clip returns (then the discounted sum is clipped)")
    group.add_argument("--states", type=int, default=200, help="number of states to vote on, chosen by held-out instances")
    group.add_argument("--states-file", type=_path, help=".npy file of observations to vote on instead")
    group.add_argument("--held-out", type=int, default=16, help="instances that choose the states and do not vote")
    group.add_argument("--seed", type=int, help="reproducible randomness, for tests: the certificate holds only if no attacker knows it (default: a secret)")
    _add_choices(sub)
    _add_resources(sub)

    sub = command("grow", grow, "Add instances to a run and certify it again.", "mucd grow runs/acrobot --instances 3000")
    sub.add_argument("run", type=_path, help="run folder")
    sub.add_argument("--instances", type=int, required=True, help="new total number of instances")
    sub.add_argument("--card", type=_path, help="the file with which the run began, if that was no shipped card: a run folder alone makes no environment")
    _add_until(sub)
    _add_choices(sub, of_run=True)
    _add_resources(sub)

    sub = command("certify", certify, "Certify the finished instances of a run, without training.", "mucd certify runs/acrobot --threat insert --eta 0.01")
    sub.add_argument("run", type=_path, help="run folder")
    sub.add_argument("--looks", default="fixed", choices=["fixed", "anytime"], help="anytime certifies the largest complete number of the public series 100, 160, 250, ...; fixed one that was asked for")
    _add_choices(sub)

    sub = command(
        "tune", tune,
        "Search public constants of learner and mechanism under a signal budget, on data that is not the data to be certified. The same command continues a search that was killed.",
        "mucd tune --simulate Acrobot-v1 --storage runs/tuning --fraction 0.01 && mucd run acrobot/mixed-v0 --storage runs/tuned --tuned runs/tuning/tuned.json",
    )
    sub.add_argument("--storage", type=_path, required=True, help="folder of the study, reachable from every node")
    sub.add_argument("--tune-on", metavar="DATASET", help="Minari dataset that you trust: no attacker can change it")
    sub.add_argument("--simulate", metavar="ENV_ID", help="record fresh data in this environment instead")
    sub.add_argument("--behaviour", help="behaviour policy of --simulate (default: the environment's first)")
    sub.add_argument("--transitions", type=int, help="of --simulate (default: 20000)")
    sub.add_argument("--card", type=_path, help="JSON file with the environment's public facts (default: the shipped card)")
    sub.add_argument("--unit", choices=["transition", "trajectory"], help="what an attacker changes (default: transition)")
    sub.add_argument("--algorithm", default="bc", help="offline learner, see docs/algorithms.md")
    sub.add_argument("--units", type=int, help="size of the dataset that will be certified (default: that of the tuning data)")
    sub.add_argument("--fraction", type=float, help="share of the units at which the certified return shall be large; the signal budget is planned from it (default: 0.01)")
    sub.add_argument("--signal-budget", type=float, help="S = N q sqrt(T) / sigma instead")
    sub.add_argument("--instances", type=int, default=1000, help="P that the certificate will have")
    sub.add_argument("--trials", type=int, default=32, help="configurations to try, the package's defaults first")
    sub.add_argument("--most-instances", type=int, default=64, help="of a trial; half of the trials end at an eighth, a quarter and a half of them")
    sub.add_argument("--seed", type=int, default=0, help="of the search")
    _add_resources(sub, per_trial=True)

    sub = command("compare", compare, "Certified runs side by side.", "mucd compare runs/acrobot runs/tuned")
    sub.add_argument("runs", type=_path, nargs="+", metavar="RUN", help="run folder, or its URL")

    sub = command("watch", watch, "Show how a run is going: instances, rate, trainers, current bounds.", "mucd watch runs/acrobot")
    sub.add_argument("run", type=_path, help="run folder, or its URL")
    sub.add_argument("--once", action="store_true", help="show it once instead of until the run ends")

    sub = command("serve", serve, "Answer observations over HTTP with the ensemble's action and its certified radius (extra `serve`).", "mucd serve runs/acrobot --port 8000")
    sub.add_argument("run", type=_path, help="run folder with a certificate")
    sub.add_argument("--host", default="127.0.0.1", help="address to listen at; anybody who reaches it may ask")
    sub.add_argument("--port", type=int, default=8000)
    sub.add_argument("--replicas", type=int, default=1, help="copies of the ensemble, one CPU each")
    sub.add_argument("--address", help="Ray cluster to join, on whose head node it listens (default: RAY_ADDRESS, or a local Ray)")

    sub = command("verify", verify, "Re-derive every number of a certificate from its evidence; exit status 1 on any mismatch.", "mucd verify runs/acrobot/certificate.json")
    sub.add_argument("certificate", type=_path, help="certificate.json")
    sub.add_argument("--patience", type=float, default=1.0, metavar="N", help="spend up to N times the usual work (some ten minutes of a core, 64 MiB) on a file that asks for more")

    sub = command("report", report, "Write report.html and the plots of a certified run.", "mucd report runs/acrobot")
    sub.add_argument("run", type=_path, help="run folder")

    sub = command(
        "plan", plan,
        "The mechanism, or the number of instances, that certifies a vote when a wanted number of units may be changed. One of noise multiplier, "
        "steps, sample rate and instances is solved for and rounded to the safe side; the others are given, or have defaults.",
        "mucd plan --units 20000 --fraction 0.01 --instances 1000",
    )
    sub.add_argument("--units", type=int, required=True, help="N, a public number")
    target = sub.add_mutually_exclusive_group()
    target.add_argument("--fraction", type=float, help="share of the units that may be changed: 0.01 means 1 %%")
    target.add_argument("--radius", type=int, help="number of units that may be changed, instead of a fraction")
    sub.add_argument("--solve", choices=["noise-multiplier", "steps", "sample-rate", "instances"], help="what to solve for (default: the noise multiplier or, if it is given, what is not)")
    sub.add_argument("--noise-multiplier", type=float, help="sigma; needed to solve for anything else")
    sub.add_argument("--steps", type=int, help="T (default: 100)")
    sub.add_argument("--sample-rate", type=float, help="q (default: a batch of about 1024)")
    sub.add_argument("--instances", type=int, help="P (default: 1000)")
    sub.add_argument("--agreement", type=float, default=1.0, help="share of the instances that vote for the top action; all others vote for one other action")
    sub.add_argument("--frontier", type=_path, metavar="FILE.png", help="also plot the certified share of the data against the signal budget for 100, 1000 and 10000 instances")
    sub.add_argument("--actions", type=int, default=2, help="number of discrete actions")
    sub.add_argument("--eta", type=float, default=0.001, help="probability that a statement may be wrong")
    _add_threat(sub)

    sub = command("tradeoff", tradeoff, "Bounds under D' of events whose probability under D is known.", "mucd tradeoff --sample-rate 0.002 --noise-multiplier 3 --steps 1000 --inserted 50 --removed 0 --probability 0.9 0.99")
    _add_mechanism(sub)
    sub.add_argument("--inserted", type=int, required=True, help="units in D' that are not in D")
    sub.add_argument("--removed", type=int, required=True, help="units in D that are not in D'")
    sub.add_argument("--probability", type=float, nargs="+", required=True, help="probabilities under D")
    _add_accountant(sub)

    sub = command("radius", radius, "Certified radius of an action from bounds on the two largest vote shares.", "mucd radius --sample-rate 0.002 --noise-multiplier 3 --steps 1000 --top 0.99 --runner-up 0.01")
    _add_mechanism(sub)
    sub.add_argument("--top", type=float, required=True, help="lower bound on the top action's probability")
    sub.add_argument("--runner-up", type=float, required=True, help="upper bound on any other action's probability")
    sub.add_argument("--units", type=int, default=10_000_000, help="no radius above this is searched")
    _add_threat(sub)
    return parser


def _path(text: str) -> str:
    """Shells do not expand the ~ of --option=~/file."""
    return os.path.expanduser(text)


def _add_mechanism(sub):
    sub.add_argument("--sample-rate", type=float, required=True, help="q")
    sub.add_argument("--noise-multiplier", type=float, required=True, help="sigma")
    sub.add_argument("--steps", type=int, required=True, help="T")


def _add_accountant(sub, default=lambda value: value):
    sub.add_argument("--accountant", default=default("tradeoff"), choices=["tradeoff", "rdp", "rdp-mirrored", "adp", "adp-group", "published"], help="outcomes guarantee; published is not sound")


def _add_threat(sub, default=lambda value: value):
    sub.add_argument("--threat", default=default("symmetric"), choices=["symmetric", "insert", "remove", "substitute"], help="how D' may differ from D")
    _add_accountant(sub, default)


def _add_until(sub):
    sub.add_argument(
        "--until",
        metavar="GOAL",
        help="stop as soon as a certificate says so, such as return>=0.5@0.01: half of the mean return kept with 1 %% of the units poisoned (also actions>=0.9@1%%, "
        "absolute-return>=-200@0.01); looked at at 100, 160, 250, 400, 630, 1000, 1600, ... instances; --instances is the budget; exit status 1 if it ends first",
    )


def _add_choices(sub, of_run=False):
    """With `of_run` options that are left out are None: what the run's certificate has."""
    group = sub.add_argument_group("certificate" + (" (default: each as in the run's certificate.json)" if of_run else ""))

    def default(value):
        return None if of_run else value

    group.add_argument("--eta", type=float, default=default(0.001), help="probability that a statement may be wrong")
    group.add_argument("--band", default=default("order-statistic"), choices=["order-statistic", "dkw"], help="confidence band on the distribution of returns")
    group.add_argument("--inference", default=default("votes"), choices=["votes", "scores"], help="certify discrete actions by the instances' votes or by their mean probability scores")
    _add_threat(group, default)


def _add_resources(sub, per_trial=False):
    group = sub.add_argument_group("resources")
    group.add_argument("--instances-per-actor", type=int, help="instances that an actor trains at a time; changes speed only (default: 32 on a CPU, 1024 on a GPU)")
    if per_trial:
        group.add_argument("--trainers-per-trial", dest="actors", metavar="N", type=int, default=1, help="trainers of each trial, one CPU or GPU share each")
    else:
        group.add_argument("--actors", type=int, help="number of trainers; those without room wait for it, so that an autoscaler sees them (default: one per CPU or GPU share, following the cluster)")
    group.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"], help="auto takes GPUs if Ray has some")
    group.add_argument("--gpus-per-actor", type=float, default=1.0, help="share of a GPU per trainer")
    group.add_argument("--gpu-type", help="kind of GPU as Ray names it, such as H100 (default: any)")
    group.add_argument("--wait-for-nodes", action="store_true", help=("" if per_trial else "with --actors: ") + "do not refuse what the cluster lacks now, an autoscaler will bring it")
    group.add_argument("--lease", type=float, default=600.0, help="seconds without progress after which a trainer counts as stuck; longer than training one instance takes")
    group.add_argument("--address", help="Ray cluster to join (default: RAY_ADDRESS, or a local Ray)")


if __name__ == "__main__":
    sys.exit(main())
