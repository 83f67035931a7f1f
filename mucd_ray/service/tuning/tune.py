"""`mucd tune`: a study on Ray Tune. Optuna proposes constants, ASHA stops the poor half of the trials at every rung.

    question.json   what is searched        trials/KEY      run folders, one per trial        data/   what --simulate recorded
    tune/           what Ray Tune writes, which nobody reads: a study goes on from the run folders of its trials
    results.json, trials.csv, tuned.json, pareto.png        made at the end        failures.txt   of trials, if any
"""

import contextlib
import csv
import hashlib
import io
import itertools
import json
import logging
import os
import secrets
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path

import gymnasium
import numpy as np
import optuna
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from mucd_ray.certify.confidence.proportions import LARGEST
from mucd_ray.certify.planning.calibration import MOST_INSTANCES
from mucd_ray.certify.planning.plan import frontier, plan
from mucd_ray.certify.rounding import exactly, percent_down
from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.data.environments.cards import card_named
from mucd_ray.data.environments.own import UserEnvironment, card_of
from mucd_ray.data.environments.recorded_in import name_of
from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.data.recording.behaviours import behaviour_for
from mucd_ray.data.recording.given import given_policy
from mucd_ray.data.recording.record import record
from mucd_ray.errors import MucdError
from mucd_ray.files import MOST_JSON_BYTES, open_unlinked, read_file, read_json
from mucd_ray.learn.problem import action_shape
from mucd_ray.learn.scores import components_of
from mucd_ray.mechanism.bag import Bag
from mucd_ray.mechanism.bag_then_noise import BagThenNoise
from mucd_ray.mechanism.gaussian.mechanism import Mechanism
from mucd_ray.mechanism.kinds import WITH_NOISE
from mucd_ray.mechanism.outside import Outside
from mucd_ray.mechanism.partition import Partition
from mucd_ray.modules import import_modules
from mucd_ray.report import plots
from mucd_ray.service.runs.mechanisms import DEFAULT_UNITS
from mucd_ray.service.runs.settings import code_digest
from mucd_ray.service.runs.work import open_nursery
from mucd_ray.service.storage.storage import open_storage
from mucd_ray.service.tuning.spaces import ALL, SPACES, certified_noise, certified_units
from mucd_ray.service.tuning.trial import Question, begun_points, bundles, run_trial
from mucd_ray.service.tuning.tuned import SIMULATOR, TRUSTED, Origin, content_of
from mucd_ray.service.workers.cluster import Resources, joined, slot_for
from mucd_ray.words import counted, harmless

QUESTION, DATA, RECORDING, FAILURES = "question.json", "data", "simulated-v0", "failures.txt"
METRIC = "bound_at_target"
FRACTION = 0.01
TRIAL_FAILURES = 2
MOST_TRIALS, MOST_LISTED = 1_000_000, 16
# The folder of a trial is not its working directory; Ctrl-C ends the study like any command; Tune's tables name folders that are gone at the end.
TUNE = {"RAY_CHDIR_TO_TRIAL_DIR": "0", "TUNE_DISABLE_SIGINT_HANDLER": "1", "RAY_AIR_NEW_OUTPUT": "0"}
OUTLOOK = ("instances", "mean_return", "fraction_keeping_half", METRIC)
# Without --algorithm: with noise cloning, on bags every one of these. Those that need bounds of the actions are left out where there are none.
ON_BAGS = {True: ("bc", "iql", "cql"), False: ("bc", "iql", "td3-bc")}
# How the constants are headed in the table for people.
HEADINGS = {"sample_rate": "q", "steps": "T", "clip_norm": "C", "bag_size": "units", "noise_multiplier": "sigma", "train_steps": "steps", "batch_size": "batch"}


def tuning_data(options, folder: Path) -> tuple[str, OfflineDataset]:
    """(kind, dataset): the one that the user trusts, or one that is recorded in the simulator into the study's own folder.

    A recording among the user's datasets would be trusted by its name alone, and anybody who can write there can make one of that name.
    """
    if (options.tune_on is None) == (options.simulate is None):
        raise MucdError("tune on data that you trust, --tune-on DATASET, or on the simulator, --simulate ENV_ID: exactly one of them")
    check_numbers(options)
    if options.tune_on is not None:
        if (options.behaviour, options.policy, options.transitions) != (None, None, None):
            raise MucdError("--behaviour, --policy and --transitions are about --simulate: leave them out with --tune-on")
        keys = card_named(options.card)[0].observation_keys if options.card else ()
        return TRUSTED, load_dataset(options.tune_on, source_key=options.source_key, observation_keys=keys)
    if options.source_key is not None:
        raise MucdError("a simulator records no sources: with --source-key tune on data that you trust, --tune-on DATASET")
    transitions, said = 20_000 if options.transitions is None else options.transitions, UserEnvironment.of(options)
    policy = given_policy(options.policy, options.simulate) if options.policy is not None else None
    named = options.behaviour if policy else behaviour_for(options.simulate, options.behaviour).name
    # Far from the small seeds that people record with.
    how = [options.simulate, f"{policy.description} {said}" if policy else named, transitions, options.seed]
    digest = hashlib.sha256(" ".join(map(str, ["mucd tuning", *how])).encode()).hexdigest()
    name = f"tuning/{name_of(options.simulate).split('/')[-1].lower()}-{digest[:8]}-v0"
    _check_folder(folder)
    dataset = _recorded_before(folder)
    if dataset is None:
        print(f"mucd: recording {counted(transitions, 'transition', form=',')} of {options.simulate} as {name}", file=sys.stderr)
        record(options.simulate, named, transitions, (1 << 32) + int(digest[8:15], 16), RECORDING, root=folder / DATA, overwrite=True, policy=policy, said=said)
        dataset = load_dataset(RECORDING, folder / DATA)
    return SIMULATOR, replace(dataset, name=name)


def _recorded_before(folder: Path) -> OfflineDataset | None:
    """The study's recording, if it is the one on which the study began."""
    question = folder / QUESTION
    if not question.exists() or not (folder / DATA / RECORDING).exists():
        return None
    with contextlib.suppress(MucdError, AttributeError):
        dataset = load_dataset(RECORDING, folder / DATA)
        how = read_json(read_file(question, MOST_JSON_BYTES), question).get("how")
        return dataset if isinstance(how, dict) and how.get("fingerprint") == dataset.fingerprint() else None
    return None


def check_numbers(options) -> None:
    """Raise MucdError where one is outside its range, before anything is recorded."""
    for name, least, most in (("trials", 1, MOST_TRIALS), ("most_instances", 4, MOST_INSTANCES), ("seed", 0, LARGEST), ("instances", 1, MOST_INSTANCES), ("units", 1, LARGEST)):
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            raise MucdError(f"--{name.replace('_', '-')} {value} must be at least {least}, and at most {most:,}")


def make_question(options, kind: str, dataset: OfflineDataset, trainer: Outside | None = None) -> Question:
    """Raises MucdError: the options do not fit each other or the data."""
    check_numbers(options)
    if dataset.env_id is None and not options.card:
        raise MucdError(f"dataset {dataset.name} does not say in which environment it was recorded: describe it with --card FILE")
    said, given = UserEnvironment.of(options), card_named(options.card)[0] if options.card else None
    env_id = given.env_id if given else dataset.env_id
    assert env_id is not None
    card = card_of(
        env_id, said, given, scaled=options.mechanism in WITH_NOISE, observation_shape=dataset.observations.shape[1:], action_space=dataset.action_space,
    )
    kind_of, noise = options.mechanism, options.mechanism == Mechanism.kind
    unit = options.unit or ("source" if options.source_key is not None else DEFAULT_UNITS[kind_of])
    if (unit == "source") != (options.source_key is not None):
        raise MucdError(f"--unit {unit} and --source-key {options.source_key}: sources have a key, --source-key NAME, and nothing else has")
    size = dataset.count(unit)
    units = size if options.units is None else options.units
    actions, discrete = action_shape(dataset.action_space)
    components = components_of(dataset.action_space)
    of_vote = max(components, default=actions) if discrete else 2
    if not noise and options.signal_budget is not None:
        raise MucdError(f"--signal-budget {options.signal_budget:g} is about noise: give --fraction with --mechanism {kind_of}")
    fraction, budget = _target(options, units, of_vote) if noise else (FRACTION if options.fraction is None else options.fraction, None)
    certified = None if noise else certified_units(kind_of, units=units, fraction=fraction, unit=unit, instances=options.instances, actions=of_vote)
    of_noise = {"units": units, "fraction": fraction, "unit": unit, "instances": options.instances, "actions": of_vote}
    inside = float(f"{certified_noise(certified, **of_noise):.4g}") if certified is not None and kind_of == BagThenNoise.kind else None
    bounded = not isinstance(dataset.action_space, gymnasium.spaces.Box) or np.isfinite([dataset.action_space.low, dataset.action_space.high]).all()
    entries, histories = _listed(options, "entries", (ALL,)), _listed(options, "history", ())
    for name, values in (("entries", entries), ("history", histories)):
        if values and kind_of not in (Bag.kind, Partition.kind):
            raise MucdError(f"--{name} {getattr(options, name)} is for --mechanism bag or partition, not for {kind_of}: leave it out")
    if entries and trainer is not None:
        raise MucdError(f"--entries {options.entries} says nothing to {trainer.option} {trainer.name}: leave it out, and choose entries in the trainer")
    algorithms = () if trainer else _algorithms(options, kind_of in WITH_NOISE, ON_BAGS[discrete] if bounded and not components else ("bc",))
    question = Question(
        environment=card.env_id, mechanism=kind_of, unit=unit, algorithms=algorithms, card=card.to_dict(), units=units, fraction=fraction, signal_budget=budget,
        entries=entries, histories=tuple(map(int, histories)), certified_units=certified, certified_noise=inside, discrete=discrete, source_key=options.source_key, trainer=trainer,
        how=Origin(kind=kind, name=dataset.name, fingerprint=content_of(dataset), units=size, trials=options.trials), instances=options.instances,
        most_instances=options.most_instances, seed=options.seed, code=code_digest(), imports=said.imports,
    )
    # Whatever is wrong with all trials is said before one begins.
    listed = {"algorithm": algorithms if kind_of not in WITH_NOISE else (), "entries": question.entries, "history": question.histories}
    for point in itertools.product(*([(name, value) for value in values] for name, values in listed.items() if values)):
        question.settings(question.tuned(question.start() | dict(point)), dataset)
    return question


def _algorithms(options, noise: bool, usual: tuple[str, ...]) -> tuple[str, ...]:
    if options.algorithm is None:
        return ("bc",) if noise else usual
    names = tuple(name.strip() for name in options.algorithm.split(","))
    if len(set(names)) < len(names):
        raise MucdError(f"--algorithm {options.algorithm} names one twice: name each once")
    if noise and len(names) > 1:
        raise MucdError(f"--algorithm {options.algorithm}: with noise a study is about one algorithm, give one")
    return names


def _listed(options, name: str, words: tuple[str, ...]) -> tuple[str, ...]:
    """Numbers, or these words, with commas between."""
    given = getattr(options, name)
    values = () if given is None else tuple(value.strip() for value in given.split(","))
    if not all(value in words or value.isascii() and value.isdigit() and 1 <= len(value) <= 9 for value in values):
        raise MucdError(f"--{name} {given:.100} must be whole numbers{''.join(f' or {word}' for word in words)} with commas between, such as 1,2,4")
    if len(set(values)) < len(values):
        raise MucdError(f"--{name} {given:.100} names one twice: name each once")
    if len(values) > MOST_LISTED:
        raise MucdError(f"--{name} names {len(values)} to choose from: name at most {MOST_LISTED}")
    return values


def _target(options, units: int, actions: int) -> tuple[float, float]:
    """(fraction, S): each follows from the other, as for a unanimous vote."""
    if options.signal_budget is None:
        fraction = FRACTION if options.fraction is None else options.fraction
        return fraction, float(f"{plan(units=units, fraction=fraction, instances=options.instances, actions=actions).signal_budget:.6g}")
    if options.fraction is not None:
        raise MucdError(f"--fraction {exactly(options.fraction)} and --signal-budget {exactly(options.signal_budget)}: either follows from the other, give one")
    row = frontier(units=units, instances=[options.instances], signal_budgets=[options.signal_budget], actions=actions)[0]
    if row["radius"] < 1:
        raise MucdError(f"with a signal budget of {exactly(options.signal_budget)} {counted(options.instances, 'instance')} certify nothing: give a smaller one, or more --instances")
    return row["fraction"], options.signal_budget


def study(options, resources: Resources, trainer: Outside | None = None) -> dict:
    """The whole of `mucd tune`; returns the results as in results.json. A study that was killed goes on, a finished one is only told."""
    if "://" in options.storage:
        raise MucdError(f"--storage {options.storage}: a study needs a folder that every node reaches, not a URL")
    folder = Path(options.storage).absolute()
    import_modules(UserEnvironment.of(options).imports)
    kind, dataset = tuning_data(options, folder)
    question = make_question(options, kind, dataset, trainer)
    if trainer is not None and not (folder / QUESTION).exists():
        open_nursery(question.settings(question.tuned(question.start()), dataset), "cpu")
    _check_same(folder, question)
    if (folder / "results.json").exists():
        return read_json(read_file(folder / "results.json", MOST_JSON_BYTES), folder / "results.json")
    os.environ |= TUNE
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Whole traces of trials that fail, of which `Tell` says what went wrong.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    with joined(resources):
        slot, actors = slot_for(resources), resources.actors
        assert actors is not None
        if slot.count() < actors and not resources.wait_for_nodes:
            raise MucdError(
                f"a trial takes {counted(actors, 'trainer')}, and the cluster has room for {slot.count()}: give a smaller --trainers-per-trial, or --wait-for-nodes if an "
                "autoscaler brings more"
            )
        trial = tune.with_parameters(run_trial, question=question, folder=str(folder), slot=slot, resources=resources, dataset=dataset)
        name = f"{os.getpid()}-{secrets.token_hex(4)}"
        try:
            grid = _tuner(folder, name, question, tune.with_resources(trial, bundles(slot, actors))).fit()
        finally:
            shutil.rmtree(folder / "tune" / name, ignore_errors=True)
    rows = [_row(question, grid[number]) for number in range(len(grid))]
    return _finish(folder, question, sorted(rows, key=lambda row: (row[METRIC] is not None, row["instances"], row[METRIC] or 0.0), reverse=True))


def _check_folder(folder: Path) -> None:
    """Raise MucdError unless a study may be there: a folder that holds one, is empty or missing, or only has the recording that comes first."""
    if folder.is_dir() and not (folder / QUESTION).exists() and {entry.name for entry in folder.iterdir()} - {DATA}:
        raise MucdError(f"{folder} is not empty and holds no study: choose a new folder with --storage")


def _check_same(folder: Path, question: Question) -> None:
    file, text = folder / QUESTION, json.dumps(question.to_dict(), indent=1)
    storage = open_storage(str(folder))
    _check_folder(folder)
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        storage.create(QUESTION, text.encode())
    try:
        there, ours = read_json(read_file(file, MOST_JSON_BYTES), file), json.loads(text)
        names = [name for name in ours if there.get(name) != ours[name]]
    except (MucdError, AttributeError):
        raise MucdError(f"{file} cannot be read: start a new study in another --storage") from None
    if names:
        raise MucdError(f"{folder} holds a study of another question ({', '.join(names).replace('_', ' ')}): ask the same again, or choose another --storage")


def _tuner(folder: Path, name: str, question: Question, trainable) -> tune.Tuner:
    """The search from its beginning: the points that trials have begun with come first, in their order, and cost nothing up to where those got.

    Tune's own way to go on unpickles files that a kill may leave half written.
    """
    begun = begun_points(folder, question)
    points = begun + [point for point in [question.start()] if question.tuned(point).key() not in {question.tuned(other).key() for other in begun}]
    return tune.Tuner(
        trainable,
        param_space=question.space(),
        tune_config=tune.TuneConfig(
            metric=METRIC, mode="max", num_samples=question.how.trials, reuse_actors=False,
            # Another seed than before, whose proposals are among the points.
            search_alg=OptunaSearch(points_to_evaluate=points, seed=(question.seed + 1_000_003 * len(begun)) % 2**32),
            scheduler=ASHAScheduler(time_attr="instances", grace_period=question.rungs[0], max_t=question.most_instances, reduction_factor=2),
        ),
        run_config=tune.RunConfig(
            name=name, storage_path=str(folder / "tune"), verbose=0, failure_config=tune.FailureConfig(max_failures=TRIAL_FAILURES), callbacks=[Tell(question.how.trials, folder / FAILURES)],
        ),
    )


class Tell(tune.Callback):
    """Says on standard error what each trial reports, or why it failed. It has no state that a study that goes on would lose.

    Args:
        file: to which whole traces are added.
    """

    def __init__(self, trials: int, file: Path):
        self.trials, self.file = trials, file

    def on_trial_result(self, iteration, trials, trial, result, **info):
        print(
            f"trial {trials.index(trial) + 1} of {self.trials} ({result['key']}), {result['instances']} instances: mean return {result['mean_return']:.5g}, "
            f"outlook at the target {result[METRIC]:.5g} (not certified)",
            file=sys.stderr,
        )

    def on_trial_error(self, iteration, trials, trial, **info):
        trace = str(trial.get_error()).strip()
        where = f"the whole trace is in {self.file}"
        try:
            with open_unlinked(self.file, os.O_APPEND) as file:
                file.write(f"trial {trials.index(trial) + 1}\n{trace}\n\n".encode())
        except OSError as error:
            where = f"{self.file} takes no traces: {error.strerror or error}"
        print(f"trial {trials.index(trial) + 1} of {self.trials} failed: {harmless(_reason(trace))} ({where})", file=sys.stderr)


def _reason(trace: str) -> str:
    """Its last line, which says what went wrong."""
    return trace.strip().splitlines()[-1].removeprefix(f"{MucdError.__module__}.{MucdError.__name__}: ")


def _row(question: Question, result) -> dict:
    """A trial as plain data, with None where it failed before its first rung."""
    tuned, found, point = question.tuned(result.config), result.metrics or {}, question.rounded(result.config)
    row = {"key": tuned.key()} | {name: found.get(name) for name in OUTLOOK} | {name: point[name] for name in SPACES[question.mechanism].kinds if name in point}
    row |= {"failure": _reason(str(result.error)) if result.error else None, "instances": row["instances"] or 0}
    return row | {"tuned": tuned.to_dict()}


def _finish(folder: Path, question: Question, rows: list[dict]) -> dict:
    """Write what a study leaves behind; `rows`: best first."""
    best = rows[0]
    if best[METRIC] is None:
        raise MucdError(f"every trial failed, the first one so: {best['failure']}; mend this and run the same command again")
    storage = open_storage(str(folder))
    table = io.StringIO()
    columns = [name for name in best if name != "tuned"]
    writer = csv.DictWriter(table, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    storage.replace("trials.csv", table.getvalue().encode())
    known = [row for row in rows if row[METRIC] is not None]
    storage.replace("pareto.png", plots.pareto(
        mean=np.array([row["mean_return"] for row in known]), fraction=np.array([row["fraction_keeping_half"] for row in known]),
        complete=np.array([row["instances"] == best["instances"] for row in known]), best=0, instances=question.instances,
    ))
    storage.replace("tuned.json", json.dumps(best["tuned"], indent=1).encode())
    results = {
        "tuned": str(folder / "tuned.json"), "trials_csv": str(folder / "trials.csv"), "pareto": str(folder / "pareto.png"), "certified": False,
        "how": asdict(question.how), "mechanism": question.mechanism, "signal_budget": question.signal_budget, "fraction": question.fraction, "units": question.units, "instances": question.instances,
        "trials": [{name: row[name] for name in columns} for row in rows],
    }
    # Last: it is what makes a study finished.
    storage.replace("results.json", json.dumps(results, indent=1).encode())
    return results


def describe_study(results: dict) -> str:
    """The results for people."""
    how = results["how"]
    budget = f"mechanism {results['mechanism']}" if results["signal_budget"] is None else f"signal budget {results['signal_budget']:g}"
    constants = [name for name in results["trials"][0] if name not in ("key", *OUTLOOK, "failure")]
    rows = [("trial", "instances", "mean return", "keeps half up to", "bound at target", *(HEADINGS.get(name, name.replace("_", " ")) for name in constants))]
    for row in results["trials"]:
        if row[METRIC] is None:
            rows.append((row["key"], "failed", *["-"] * (3 + len(constants))))
            continue
        rows.append((
            row["key"], str(row["instances"]), f"{row['mean_return']:.2f}", f"{percent_down(row['fraction_keeping_half'])} %", f"{row[METRIC]:.2f}",
            *(str(row[name]) if isinstance(row[name], (str, bool)) else exactly(row[name]) for name in constants),
        ))
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows]
    return "\n".join([
        f"tuned on {how['name']} ({how['kind']}), {budget}, target {percent_down(results['fraction'])} % of {results['units']}",
        *lines,
        f"not certified: bounds are what {counted(results['instances'], 'instance')} would give if they earned what the few of a trial do",
        f"tuned        {results['tuned']}    use it with: mucd run DATASET --tuned {results['tuned']}",
        f"plot         {results['pareto']}",
    ])
