"""The bodies of the commands `run`, `grow`, `certify` and `report`: from options to a run folder and what is printed."""

import json
import os
import shlex
import sys
from dataclasses import replace
from typing import Any

import yaml

from mucd_ray.certify.rounding import exactly
from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.data.environments.cards import CARDS, EnvironmentCard, card_named, plugged_cards
from mucd_ray.data.environments.features import load_features_of, may_see
from mucd_ray.data.environments.own import UserEnvironment, declared_card
from mucd_ray.data.formats.minari import load_dataset, local_datasets
from mucd_ray.errors import MucdError
from mucd_ray.evaluate.evaluators import evaluator
from mucd_ray.files import MOST_JSON_BYTES, as_expected, printable, read_file
from mucd_ray.learn.algorithms import NAMES
from mucd_ray.learn.encoders import encoder_hash, load_encoder, read_encoder
from mucd_ray.learn.learner import Learner, LocalUpdate
from mucd_ray.learn.trainers.outside import outside, sha256_of
from mucd_ray.mechanism.evaluator import Evaluator
from mucd_ray.mechanism.gaussian.mechanism import Mechanism
from mucd_ray.mechanism.kinds import WITH_NOISE
from mucd_ray.mechanism.neighbours import Neighbours
from mucd_ray.mechanism.outside import Outside, option_of
from mucd_ray.modules import import_modules
from mucd_ray.plugins import choices, find
from mucd_ray.service.runs.choices import INFERENCES, Choices
from mucd_ray.service.runs.driver import certify, train
from mucd_ray.service.runs.mechanisms import DEFAULT_LEARNERS, DEFAULT_RATES, settled
from mucd_ray.service.runs.neighbours import card_with_metric, certify_neighbours
from mucd_ray.service.runs.session import Request, execute, read_dataset, request_card, usual_learner
from mucd_ray.service.runs.settings import RunSettings, check_imports
from mucd_ray.service.runs.summary import describe, finish, write_report
from mucd_ray.service.storage.store import RunStore
from mucd_ray.service.tuning.tuned import read_tuned
from mucd_ray.service.workers.cluster import Resources
from mucd_ray.words import counted

# What `mucd run` may be given instead of --tuned.
CONSTANTS = (
    "unit", "mechanism", "bag_size", "draws", "parts", "spread", "neighbours", "metric", "train_steps", "batch_size", "top_share", "entries", "mirrored", "fraction", "sample_rate", "noise_multiplier", "steps", "clip_norm", "algorithm", "constant", "network", "hidden", "random_features", "bandwidth",
    "optimiser", "learning_rate", "momentum", "average", "cap", "local_steps", "local_learning_rate", "min_return",
)


def _check_no_file(name: str) -> None:
    """Raise MucdError where what should be a dataset's id is a path."""
    if os.path.exists(os.path.expanduser(name)) and name not in local_datasets():
        raise MucdError(f"{printable(name)} is a file: mucd import {printable(name)} --dataset NAME first, such as --dataset mine/log-v0, and run that")


def start_run(options, out) -> int:
    _check_no_file(options.dataset)
    request, dataset, choices = asked(options)
    return _print(execute(request, options.storage, choices=choices, resources=resources_of(options), seed=options.seed, dataset=dataset), options, out)


def asked(options, dataset: OfflineDataset | None = None) -> tuple[Request, OfflineDataset, Choices]:
    """What the options of `mucd run` ask for; of this dataset in the place of the one they name, if it is given."""
    import_modules(options.imports or ())
    trainer = _trainer(options)
    if options.tuned:
        twice = ["--" + name.replace("_", "-") for name in CONSTANTS if getattr(options, name) is not None and not (name == "algorithm" and trainer)]
        if twice:
            raise MucdError(f"--tuned {options.tuned} sets {twice[0]}: leave one of the two out")
    card, of_card = card_named(options.card) if options.card else (None, None)
    names = ("algorithm", "network", "random_features", "bandwidth", "optimiser", "learning_rate", "momentum", "average")
    given: dict[str, Any] = {name: getattr(options, name) for name in names if name != "algorithm" or trainer is None}
    given |= {"hidden": None if options.hidden is None else _widths(options.hidden), "constants": _constants(options.constant), "local": _local_update(options)}
    given = {name: value for name, value in given.items() if value is not None}
    if given.get("algorithm") == "dt":
        given.setdefault("network", "transformer")
    if given.get("network", "dense") != "dense":
        given.setdefault("hidden", ())
    fit = {"steps": options.train_steps, "batch": options.batch_size, "top_share": options.top_share, "entries": options.entries, "mirrored": options.mirrored}
    fit = {name: value for name, value in fit.items() if value is not None}
    request = Request(
        dataset=options.dataset,
        instances=options.instances,
        card=card,
        plugins=tuple(plugin for plugin in (trainer and trainer.kind == "plug-in" and find("trainer", trainer.name), of_card) if plugin),
        environment=UserEnvironment.of(options),
        fraction=0.01 if options.fraction is None else options.fraction,
        units=options.units,
        sample_rate=options.sample_rate,
        noise_multiplier=options.noise_multiplier,
        steps=options.steps,
        clip_norm=options.clip_norm,
        mechanism=options.mechanism,
        bag_size=options.bag_size,
        draws=options.draws,
        parts=options.parts,
        spread=options.spread,
        neighbours=options.neighbours,
        metric=options.metric,
        fit=fit or None,
        trainer=trainer,
        evaluator=_evaluator(options),
        tuned=read_tuned(options.tuned) if options.tuned else None,
        unit=options.unit,
        source_key=options.source_key,
        observation_keys=options.observation_keys or (),
        chosen=options.chosen,
        rollouts=options.rollouts,
        discount=options.discount,
        states_file=options.states_file,
        trusted_states=options.trusted_states,
        no_environment=options.no_environment,
        trusted=options.trusted,
        history=options.history,
        encoder=read_encoder(options.encoder) if options.encoder else None,
        features=options.features,
        **_numbers_of_states(options),
    )
    dataset, choices = read_dataset(request) if dataset is None else dataset, _choices(options)
    if given:
        request = replace(request, learner=_learner(request, given, dataset, choices.accountant))
    return request, dataset, choices


def _numbers_of_states(options) -> dict[str, Any]:
    """`states` and `held_out` of a request, those that are given. Raises MucdError where what chooses the states makes nothing of them."""
    given = {name: value for name in ("states", "held_out") if (value := getattr(options, name)) is not None}
    if options.states_file is not None and "states" in given:
        raise MucdError(f"--states {options.states} and --states-file {options.states_file} are given: all states of a file are voted on, leave --states out")
    chosen = "--states-file" if options.states_file is not None else "--trusted-states" if options.trusted_states is not None else None
    if chosen and "held_out" in given:
        raise MucdError(f"--held-out {options.held_out} and {chosen} are given: either chooses the states, leave one of the two out")
    if options.mechanism == Neighbours.kind and "held_out" in given:
        raise MucdError(f"--held-out {options.held_out} counts instances that are trained, and with neighbours nothing is: leave it out")
    return given


def _learner(request: Request, given: dict, dataset: OfflineDataset, accountant: str) -> Learner:
    """The learner with these fields, and the rest as is usual with the mechanism, which the given ones may imply, and the environment."""
    noisy = replace(DEFAULT_LEARNERS[Mechanism.kind], **{name: value for name, value in given.items() if name == "local"})
    mechanism = settled(replace(request, learner=noisy), dataset.trajectories, accountant).mechanism
    if mechanism in WITH_NOISE and "algorithm" in given:
        given = {"learning_rate": DEFAULT_RATES.get(given["algorithm"], DEFAULT_LEARNERS[mechanism].learning_rate)} | given
    if mechanism not in DEFAULT_LEARNERS:
        return replace(DEFAULT_LEARNERS[Mechanism.kind], **given)
    return replace(usual_learner(replace(request, mechanism=mechanism), request_card(replace(request, mechanism=mechanism), dataset), given.get("network", "dense")), **given)


def grow_run(options, out) -> int:
    store = RunStore.open(options.run)
    settings = store.settings()
    if settings.mechanism.kind == Neighbours.kind:
        raise MucdError(f"{store.location} is a run of neighbours, which trains no instances: nothing can grow; start a new run for more episodes (--rollouts)")
    _may_play(store, options)
    _may_train(store, settings, options)
    _may_score(store, settings, options.evaluator)
    choices, resources = _choices(options, _certified(store)), resources_of(options)
    dataset = load_dataset(settings.dataset, source_key=settings.source_key, observation_keys=settings.card.observation_keys)
    return _print(finish(store, train(store, dataset, options.instances, choices, resources)), options, out)


def _may_play(store: RunStore, options) -> None:
    """Raise MucdError unless environment and encoder of a run folder are the user's word; the encoder is ready then."""
    settings, said = store.settings(), UserEnvironment.of(options)
    check_imports(store, settings, said.imports)
    import_modules(said.imports)
    if settings.plays:
        _check_card(store, settings, options.card, said)
    if may_see(store.location, settings.card, options.features):
        load_features_of(settings.card)
    elif settings.card.encoder is not None:
        content = check_encoder(store.location, settings.card, options.encoder)
        load_encoder(content, settings.card.observation_shape)
        store.write_encoder(content)


def _may_train(store: RunStore, settings: RunSettings, options) -> None:
    """Raise MucdError unless the trainer of a run folder, if it is from outside the package, is the user's word: what a folder names is no reason to import or to start it."""
    ours, given = settings.trainer, {"--trainer": options.trainer, "--trainer-command": options.trainer_command}
    for option, name in given.items():
        if name is not None and (ours is None or (ours.option, ours.name) != (option, name)):
            began = "leave it out" if ours is None else f"it began with {ours.option} {ours.name!r}"
            raise MucdError(f"{option} {name!r:.100} is not that of {store.location}: {began}")
    if ours is not None and given[ours.option] is None:
        raise MucdError(f"{store.location} has a trainer from outside the package, which is started only on your word: add {ours.option} {shlex.quote(printable(ours.name))}")


def _may_score(store: RunStore, settings: RunSettings, name: str | None) -> None:
    """Raise MucdError unless the evaluator of a run folder is the user's word: what a folder brings along is no reason to call it."""
    if settings.evaluator is None:
        if name is not None:
            raise MucdError(f"--evaluator {name}: {store.location} began without an evaluator; leave it out")
        return
    if name is None:
        raise MucdError(f"{store.location} has scores of an evaluator, which is called only on your word: give it as you began the run, --evaluator NAME")
    if (name, sha256_of("evaluator", name)) != (settings.evaluator.name, settings.evaluator.sha256):
        raise MucdError(f"--evaluator {name} is not that of {store.location}, or its file has changed: give the one with which the run began")


def _check_card(store: RunStore, settings: RunSettings, path: str | None, said: UserEnvironment) -> None:
    """Raise MucdError unless the card of a run folder is a shipped one, or one of a plug-in for which nothing is imported, the user's, in the file or plug-in `path`, or of what a registered environment declares, each with what the user says beside.

    A card says which module is imported, and its arguments may name files or other environments: what a folder brings along is no reason to make it.
    """
    card = replace(settings.card.without_history(), encoder=None, named_features=None).without_learning()

    def is_of(given: EnvironmentCard) -> bool:
        metric = [card_with_metric(given, settings.mechanism.metric)] if isinstance(settings.mechanism, Neighbours) and given.env_id == card.env_id else []
        return card in [_as_seen(like.without_learning(), card) for like in (given, given.raw(), *metric)]

    if path is not None:
        if not is_of(said.of_card(card_named(path)[0])):
            raise MucdError(f"card {path} is not that of {store.location}: give the one with which the run began")
        return
    if any(is_of(said.of_card(shipped)) for shipped in (*CARDS, *plugged_cards(card.env_id).values()) if said.make_kwargs in (None, shipped.make_kwargs)):
        return
    # By the name alone: the module in an id of the folder is not imported, and its arguments are compared only.
    scaled = settings.mechanism.kind in WITH_NOISE or settings.mechanism.kind == Neighbours.kind
    if said.return_range is not None and is_of(declared_card(card.env_id, said, scaled=scaled and card != card.raw(), observation_keys=card.observation_keys)):
        return
    for shipped in (shipped for shipped in CARDS if shipped.env_id == card.env_id):
        changed = UserEnvironment(
            max_episode_steps=None if card.max_episode_steps == shipped.max_episode_steps else card.max_episode_steps,
            return_range=None if (card.return_range, card.clip_returns) == (shipped.return_range, shipped.clip_returns) else card.return_range,
        )
        if is_of(changed.of_card(shipped)):
            raise MucdError(f"{store.location} began with the shipped card of {card.env_id} and {_changes(changed)} beside it, and you name {_changes(said)}: name the same, which is taken only on your word")
    raise MucdError(
        f"{store.location} has no shipped card but one of its own, whose environment is {card.env_id!r:.100}, and which is made only on your word: give the file with "
        "which you began the run, --card FILE, or --return-range, --max-episode-steps and --make-kwargs as you gave them then"
    )


def _changes(said: UserEnvironment) -> str:
    """What the user says about an environment beside its card, as options."""
    ranged = said.return_range and ",".join(map(exactly, said.return_range))
    options = {"--max-episode-steps": said.max_episode_steps, "--return-range": ranged, "--make-kwargs": said.make_kwargs and json.dumps(said.make_kwargs)}
    return " ".join(f"{option} {value}" for option, value in options.items() if value is not None) or "nothing"


def _as_seen(given: EnvironmentCard, card: EnvironmentCard) -> EnvironmentCard:
    """A card with the keys and the shape of observations of a run's: those may be options of that run. Not one whose transform is of its own shape."""
    if given.transform is not None or given.env_id != card.env_id:
        return given
    try:
        return replace(given, observation_keys=card.observation_keys, observation_shape=card.observation_shape)
    except MucdError:
        return given


def check_encoder(run: str, card: EnvironmentCard, path: str | None) -> bytes:
    """The content of the user's file `path`. Raises MucdError unless it is the encoder of this run's card: what a folder brings along is no reason to run it."""
    if path is None:
        raise MucdError(f"policies of {run} see observations through an encoder, which is run only on your word: give the file with which you began the run, --encoder FILE")
    content, (sha256, _) = read_encoder(path), card.encoder or ("", 0)
    if encoder_hash(content) != sha256:
        raise MucdError(f"encoder {path} is not that of {run}: give the file whose SHA-256 begins with {sha256[:16]}")
    return content


def certify_run(options, out) -> int:
    store, choices = RunStore.open(options.run), _choices(options)
    if choices.policy == "vote" or choices.rule is not None:
        _may_play(store, options)
    if store.settings().mechanism.kind == Neighbours.kind:
        return _print(finish(store, certify_neighbours(store, choices)), options, out)
    return _print(finish(store, certify(store, choices)), options, out)


def report_run(options, out) -> None:
    store = RunStore.open(options.run)
    certificate = store.certificate()
    if certificate is None:
        raise MucdError(f"{options.run} has no certificate.json: make it with `mucd certify {options.run}`")
    with as_expected(store.file("certificate.json"), f"make it again with `mucd certify {options.run}`"):
        path = write_report(store, certificate)
    out(json.dumps({"report": path}) if options.json else path)


def tune_constants(options, out) -> None:
    from mucd_ray.service.tuning.tune import describe_study, study

    if options.actors < 1:
        raise MucdError(f"--trainers-per-trial {options.actors} must be at least 1")
    results = study(options, resources_of(options), _trainer(options))
    with as_expected(f"{options.storage}/results.json", "delete it and run the same command again"):
        text = json.dumps(results) if options.json else describe_study(results)
    out(text)


def _print(summary: dict, options, out) -> int:
    """Exit status: 1 if training went on for a goal and the budget ended without it."""
    out(json.dumps(summary) if options.json else describe(summary))
    if summary["goal"] is None or summary["goal"]["met"]:
        return 0
    print(
        f"mucd: goal {summary['goal']['text']} is not met with {counted(summary['instances'], 'instance')}: go on with `mucd grow {summary['run']} --until ... --instances N`",
        file=sys.stderr,
    )
    return 1


def _certified(store: RunStore) -> dict:
    """The choices of the run's certificate; {} if it has none."""
    certificate = store.read_json("certificate.json")
    if certificate is None:
        return {}
    try:
        inputs = certificate["inputs"]
        kind = inputs["actions"] and inputs["actions"]["kind"]
        return {name: inputs[name] for name in ("eta", "threat", "accountant", "band")} | ({"inference": kind} if kind in INFERENCES else {}) | (
            {"policy": "vote", "episodes": len(inputs["voted"]["episodes"]), "never": inputs["voted"].get("never")} if "voted" in inputs else {}
        ) | ({"rule": inputs["rule"]["name"], "episodes": len(inputs["rule"]["episodes"])} | {name: inputs["rule"][name] for name in ("window", "never")} if "rule" in inputs else {})
    except (KeyError, TypeError):
        raise MucdError(f"{store.file('certificate.json')} is not a certificate: make it again with `mucd certify {store.location}`") from None


def _choices(options, defaults: dict | None = None) -> Choices:
    """Those of `run` and `grow` have `until`, those of `certify` have `looks`. `defaults` are for options that are None."""
    goal = getattr(options, "until", None)
    looks = getattr(options, "looks", "fixed" if goal is None else "anytime")
    given = {name: getattr(options, name) for name in ("eta", "threat", "accountant", "band", "inference")}
    given |= {name: getattr(options, name, None) for name in ("policy", "episodes", "nodes", "rule", "window", "never")}
    given = (defaults or {}) | {name: value for name, value in given.items() if value is not None}
    voted = given.get("policy") == "vote"
    if options.episodes is not None and not voted and "rule" not in given:
        raise MucdError("--episodes is for --policy vote, or mucd certify --rule: give both, or leave it out")
    if options.nodes is not None and not voted:
        raise MucdError("--nodes is for --policy vote: give both, or leave it out")
    return Choices(**given, looks=looks, goal=goal)


def resources_of(options) -> Resources:
    if options.actors is not None and options.actors < 1:
        raise MucdError(f"--actors {options.actors} must be at least 1")
    return Resources(
        address=options.address, actors=options.actors, block=options.instances_per_actor, device=options.device, gpus_per_actor=options.gpus_per_actor,
        gpu_type=options.gpu_type, wait_for_nodes=options.wait_for_nodes, lease=options.lease, runtime_env=_runtime_env(getattr(options, "runtime_env", None)),
        imports=tuple(options.imports or ()),
    )


def _runtime_env(path: str | None) -> dict | None:
    if path is None:
        return None
    try:
        values = yaml.safe_load(read_file(path, MOST_JSON_BYTES))
    except (OSError, yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise MucdError(f"--runtime-env {path} cannot be read ({printable(error)}): give a YAML or JSON file as for `ray job submit --runtime-env`") from None
    if not isinstance(values, dict):
        raise MucdError(f"--runtime-env {path} must hold an object, such as pip: [d3rlpy]")
    return values


def _trainer(options) -> Outside | None:
    """The trainer from outside that these options name; None: the package's own."""
    command, name = options.trainer_command, options.algorithm
    if command is not None and name is not None:
        raise MucdError(f"--trainer {name} and --trainer-command are given: leave one of the two out")
    limits = {"seconds": options.train_seconds, "memory": options.train_memory, "bag_format": options.bag_format}
    limits = {field: value for field, value in limits.items() if value is not None}
    if command is None and "bag_format" in limits:
        raise MucdError(f"--bag-format {options.bag_format} is for --trainer-command: a function is given arrays, and the package's learners read none; leave it out")
    kind = "command" if command is not None else "function" if ":" in (name or "") else "plug-in" if name is not None and find("trainer", name, NAMES) else None
    if kind is None:
        if name is not None and not {part.strip() for part in name.split(",")} <= set(NAMES):
            raise MucdError(f"algorithm {printable(name)!r} is unknown: use one of {choices('trainer', NAMES)}, or a function of yours, package.module:function or path/to/file.py:function")
        if limits:
            raise MucdError(f"--train-{next(iter(limits))} is for a trainer of yours: give --trainer package.module:function or --trainer-command")
        return None
    if options.mechanism in WITH_NOISE:
        raise MucdError(f"{option_of(kind)} {name or command} is not trained with noise, which would have to be added inside it: add --mechanism bag or partition")
    return outside(kind, name or command, **limits)


def _evaluator(options) -> Evaluator | None:
    if options.evaluator is None:
        for name in ("score_range", "evaluator_seconds"):
            if getattr(options, name) is not None:
                raise MucdError(f"--{name.replace('_', '-')} is for --evaluator: give both, or leave it out")
        return None
    if options.score_range is None:
        raise MucdError(f"--evaluator {options.evaluator} needs --score-range LO,HI, a public range that every score lies in; what is outside it counts as LO")
    try:
        low, high = map(float, options.score_range.split(","))
    except ValueError:
        raise MucdError(f"--score-range {options.score_range!r} must be two numbers with a comma between, such as 0,1 (of a negative one: --score-range=-1,1)") from None
    return evaluator(options.evaluator, low, high, **({} if options.evaluator_seconds is None else {"seconds": options.evaluator_seconds}))


def _constants(given: list[str] | None) -> dict[str, float] | None:
    """["alpha=2", ...] -> {"alpha": 2.0, ...}."""
    constants = {}
    for text in given or []:
        name, _, value = text.partition("=")
        if name in constants:
            raise MucdError(f"--constant {name} is given twice: give it once")
        try:
            constants[name] = float(value)
        except ValueError:
            raise MucdError(f"--constant {text!r} must be NAME=NUMBER, such as alpha=2") from None
    return constants or None


def _local_update(options) -> LocalUpdate | None:
    given = {"cap": options.cap, "steps": options.local_steps, "learning_rate": options.local_learning_rate, "min_return": options.min_return}
    given = {name: value for name, value in given.items() if value is not None}
    if given and options.unit == "transition":
        raise MucdError("--cap, --local-steps, --local-learning-rate and --min-return are about trajectories: add --unit trajectory, or source")
    return LocalUpdate(**given) if given else None


def _widths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise MucdError(f"--hidden {text!r} must be whole numbers with commas between, such as 64,64") from None
