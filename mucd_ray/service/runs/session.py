"""From what a user asks for to the settings of a run, and the whole of a run."""

import hashlib
import math
import sys
from dataclasses import asdict, dataclass, replace
from fractions import Fraction

import gymnasium
import numpy as np
from minari.serialization import serialize_space

from mucd_ray.certify.confidence.looks import effective_eta
from mucd_ray.certify.confidence.proportions import LARGEST
from mucd_ray.certify.planning.size import declared_size
from mucd_ray.certify.rounding import exactly
from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.data.environments.cards import CARDS, EnvironmentCard, known_card
from mucd_ray.data.environments.declared import DeclaredCard
from mucd_ray.data.environments.encoding import SHIPPED
from mucd_ray.data.environments.features import load_features
from mucd_ray.data.environments.own import UserEnvironment, card_of
from mucd_ray.data.environments.past import action_width
from mucd_ray.data.environments.plain import declared_spaces
from mucd_ray.data.environments.recorded_in import name_of
from mucd_ray.data.formats.labelled import content_of_test
from mucd_ray.data.formats.minari import load_dataset, source_keys
from mucd_ray.data.spaces import ACTION_MASK, Actions, Observations, only
from mucd_ray.errors import MucdError
from mucd_ray.files import MOST_ARRAY_BYTES, read_file, read_npy
from mucd_ray.learn.algorithms import algorithm_for
from mucd_ray.learn.encoders import load_encoder
from mucd_ray.learn.learner import Learner, LocalUpdate
from mucd_ray.learn.problem import action_shape
from mucd_ray.learn.scores import components_of
from mucd_ray.learn.trainers.built_in import Fit
from mucd_ray.mechanism.evaluator import Evaluator
from mucd_ray.mechanism.gaussian.mechanism import Mechanism
from mucd_ray.mechanism.kinds import WITH_NOISE, AnyMechanism
from mucd_ray.mechanism.neighbours import Neighbours
from mucd_ray.mechanism.outside import Outside
from mucd_ray.modules import import_modules
from mucd_ray.plugins import Plugin
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.driver import check_instances, train
from mucd_ray.service.runs.mechanisms import CONDITIONAL, DEFAULT_LEARNERS, check_options, default_fit, planned, settled
from mucd_ray.service.runs.neighbours import EPISODES, card_with_metric, check_neighbours, run_neighbours
from mucd_ray.service.runs.settings import MOST, WITH_HISTORY, RunSettings, check_history, code_digest, constants_of, package_version
from mucd_ray.service.runs.summary import finish
from mucd_ray.service.runs.work import open_nursery, open_scorer
from mucd_ray.service.storage.store import RunStore
from mucd_ray.service.tuning.tuned import AnyTuned, content_of
from mucd_ray.service.workers.cluster import Resources

DEFAULT_LEARNER_NOTE = "The learner's settings are the package's defaults, chosen on simulator recordings with other seeds, never on this dataset."
CARD_LEARNER_NOTE = "But these of the learner's settings are what the environment's card declares: {constants}."
SEED_NOTE = "The secret was derived from a number given by the user (--seed): the claim holds only if no attacker knows or guesses it."
LOCAL_NOTE = "Of a {unit} with more than {cap} transitions, {cap} evenly spaced ones from a random start take part in a step."
ENCODER_NOTE = (
    "Every observation is replaced by the outputs of an encoder from outside, which is given one observation at a time and must be a function of it alone. It was given by the user. "
    f"{CONDITIONAL}"
)
FEATURES_NOTE = (
    "Every observation is replaced by the features {name}{of}, which are given one observation at a time and must be functions of it alone. They were named by the user. "
    f"{CONDITIONAL}"
)
HISTORY_NOTE = (
    "Policies see the last {history} observations of an episode, oldest first; learners, too, are given each with those before it in its own trajectory. "
    "{how}"
)
RANGE_NOTE = f"The range into which returns are clipped was given by the user. {CONDITIONAL}"
STEPS_NOTE = f"Episodes are cut after {{steps}} steps, a number that was given by the user. {CONDITIONAL}"
KEYS_NOTE = f"Policies see nothing of an observation but {{keys}}: these keys were chosen by the user. {CONDITIONAL}"
GIVEN_NOTE = f"This number was given by the user. {CONDITIONAL}"
PAST_NOTE = (
    "Policies see the last {history} steps of an episode, oldest first, each with the action and the sum of all rewards before it; learners are given the same of every trajectory by itself, and "
    "its whole return. {how}"
)
STATES_NOTE = "The states were drawn at random, by a public generator, from the dataset {name} (SHA-256 of its content {sha256}), which the user trusts."
TEST_NOTE = "The states are the test images that came with the dataset, and what counts as right are their labels (SHA-256 of both {sha256}): both are the user's word, and no part of what an attacker changed."
WIDEST_BOUND = 1e18
# Of one observation that may be served by its keys: the settings hold the bounds of each.
MOST_NAMED_ENTRIES = 1 << 12
# Up to so many times the wanted radius half of a good return may be kept: of a claim that ends before that the user is told.
FURTHER = 4
USER_LEARNER_NOTE = f"The learner's settings were given by the user. {CONDITIONAL}"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a run is asked for. `None` means: the package's default, which for mechanism and unit may follow from how many trajectories there are (`settled`), or planned from the declared size and the fraction; `fit` holds fields of `Fit` by name.
    `encoder` the content of the encoder's file; `features` the name of a plug-in in its place. `plugins`: those that trainer and card are. `observation_keys` stand in the place of the card's. With `no_environment` nothing is played, and of a `card` what is about observations alone is taken.

    `tuned` takes the place of mechanism, unit, fraction, bag_size, parts, fit, sample_rate, noise_multiplier, steps, clip_norm and learner; a `trainer` and a `source_key` stand beside it.
    """

    dataset: str
    instances: int = 1000
    card: EnvironmentCard | None = None
    environment: UserEnvironment = UserEnvironment()
    mechanism: str | None = None
    unit: str | None = None
    source_key: str | None = None
    observation_keys: tuple[str, ...] = ()
    fraction: float = 0.01
    units: int | None = None
    sample_rate: float | None = None
    noise_multiplier: float | None = None
    steps: int | None = None
    clip_norm: float | None = None
    bag_size: int | None = None
    parts: int | None = None
    spread: int | None = None
    draws: str | None = None
    neighbours: int | None = None
    metric: str | None = None
    fit: dict | None = None
    learner: Learner | None = None
    trainer: Outside | None = None
    evaluator: Evaluator | None = None
    tuned: AnyTuned | None = None
    chosen: str | None = None
    rollouts: int | None = None
    discount: float = 1.0
    states: int = 200
    states_file: str | None = None
    trusted_states: str | None = None
    no_environment: bool = False
    held_out: int = 16
    trusted: str | None = None
    history: int = 1
    encoder: bytes | None = None
    features: str | None = None
    plugins: tuple[Plugin, ...] = ()


def make_settings(request: Request, dataset: OfflineDataset, choices: Choices) -> tuple[RunSettings, np.ndarray | None]:
    """(settings, the user's states or None). Nothing but how many units and trajectories there are is read from the dataset."""
    request = _of_labelled(request, dataset)
    tuned, said = request.tuned, request.environment
    import_modules(said.imports)
    if tuned is not None:
        if request.mechanism not in (None, tuned.kind):
            raise MucdError(f"--tuned holds constants of the {tuned.kind} mechanism: leave it or --mechanism {request.mechanism} out")
        if request.trainer != tuned.trainer:
            raise MucdError(_other_trainer(tuned.trainer))
        if request.history not in (1, tuned.history):
            raise MucdError(f"--tuned sets the history {tuned.history}: leave --history {request.history} out")
        fit = None if tuned.fit is None else asdict(tuned.fit)
        request = replace(request, mechanism=tuned.kind, unit=tuned.unit, learner=tuned.learner, fit=fit, history=tuned.history)
    chosen = settled(request, dataset.trajectories, choices.accountant)
    request = replace(request, mechanism=chosen.mechanism, unit=chosen.unit)
    check_options(request)
    check_history(request.history, chosen.mechanism, chosen.unit)
    _check_source(request)
    if request.trainer is not None and request.encoder is not None:
        raise MucdError(f"--encoder is for the package's learners, {request.trainer.option} {request.trainer.name} gets observations as they were recorded: let it use the encoder itself")
    if request.features is not None and request.encoder is not None:
        raise MucdError(f"--features {request.features} and --encoder both say what takes the place of observations: leave one of the two out")
    card, used = request_card(request, dataset), (*request.plugins, *_plugin_of_card(request, dataset))
    card.check(dataset)
    if request.encoder is None and card.encoder is not None:
        raise MucdError(f"the card of {card.env_id} has an encoder, which is run only on your word: give its file, --encoder FILE, or --features NAME of a plug-in, and leave it out of the card")
    if request.encoder is not None:
        card = replace(card.raw(), encoder=load_encoder(request.encoder, card.observation_shape))
    if request.features is not None:
        plugin, encoder = load_features(request.features, card.observation_shape)
        card, used = replace(card.raw(), encoder=encoder, named_features=request.features), (*used, *([plugin] if plugin else []))
    actions, discrete = action_shape(dataset.action_space)
    if request.mechanism == Neighbours.kind:
        card = card_with_metric(card, request.metric or "declared")
    elif request.mechanism not in WITH_NOISE:
        recalling = request.learner if request.learner is not None and request.trainer is None and algorithm_for(request.learner.algorithm, discrete, components_of(dataset.action_space)).recalls else None
        if recalling is not None and not dataset.actions_declared:
            raise MucdError(f"policies of {recalling.algorithm} recall actions, and those of {dataset.name} are read off its rows: declare them, `mucd import --environment ID` or --actions N, and import it again")
        card = card.raw() if card.encoder else card.raw().one_hot()
        card = card.with_past(request.history, actions) if recalling is not None else card.with_history(request.history)
    if tuned is not None and name_of(tuned.environment) != name_of(card.env_id):
        raise MucdError(f"these constants were tuned for {tuned.environment}, and {dataset.name} is of {card.env_id}: tune for that environment")
    observation_space, action_space = _spaces(card)
    actions, discrete = action_shape(action_space)
    components = components_of(action_space)
    mask = _mask(card, dataset, actions) if discrete and not components and request.mechanism in WITH_HISTORY and card.encoder is None else None
    action_bounds = _action_bounds(action_space)
    if request.mechanism not in (*WITH_NOISE, Neighbours.kind) and request.learner is not None and request.learner.local != LocalUpdate():
        raise MucdError(f"local steps, their cap and a least return are for --mechanism {' or '.join(WITH_NOISE)}: other learners have --train-steps and --top-share")
    learner = with_public_constants(request.learner or usual_learner(request, card), card, discrete, action_bounds is not None, components)
    if request.trainer is not None and (request.learner is not None or request.fit):
        raise MucdError(f"options of the package's learners say nothing to {request.trainer.option} {request.trainer.name}: leave them out, and write constants into the trainer")
    if not 0 < request.fraction < 1:
        raise MucdError(f"fraction {exactly(request.fraction)} is outside (0, 1): use for example 0.01 for 1 %")
    size = dataset.count(chosen.unit)
    states, states_from = _states(request, card, dataset)
    if states is not None:
        # `serve` asks for observations in this dtype: one of a file of whole numbers, say, must hold them all.
        states = states.astype(np.result_type(states, observation_space.dtype))
    if request.units is not None and not 2 <= request.units <= LARGEST:
        raise MucdError(f"units {request.units}: declare at least 2 and at most {LARGEST:,}, about the size of the dataset")
    declared, margin = declared_size(size) if request.units is None else (request.units, None)
    mechanism: AnyMechanism
    if tuned is not None:
        mechanism, notes, follows = tuned.mechanism(declared), (tuned.note(dataset), *([USER_LEARNER_NOTE] if tuned.trainer else [])), tuned.follows_size
        if not isinstance(mechanism, Mechanism):
            mechanism.check(size)
        margin = margin if follows else None
    else:
        mechanism, how, follows = planned(request, choices, declared, size, max(components, default=actions) if discrete else 2, chosen.usual)
        margin = margin if follows else None
        learner_note = USER_LEARNER_NOTE if request.learner or request.fit or request.trainer else DEFAULT_LEARNER_NOTE
        notes = (how,) if request.mechanism == Neighbours.kind else (how, learner_note)
    labels = content_of_test(dataset.test) if dataset.test is not None and request.trusted_states is None and request.states_file is None else None
    settings = RunSettings(
        dataset=dataset.name,
        labels_sha256=labels,
        fingerprint=dataset.fingerprint(),
        units=size,
        card=card,
        actions=actions if discrete else 0,
        dimensions=0 if discrete else actions,
        action_bounds=action_bounds,
        mechanism=mechanism,
        learner=learner,
        trainer=request.trainer,
        evaluator=request.evaluator,
        observation_dtype=str(observation_space.dtype) if request.trainer and request.features is None else "float32",
        components=components or None,
        first_action=int(action_space.start) if isinstance(action_space, gymnasium.spaces.Discrete) else 0,
        declared_actions=_declared_actions(card, dataset),
        declared_observations=_declared_observations(card),
        mask=mask,
        fit=None if request.mechanism in WITH_NOISE or request.trainer else _fit(request, learner, card, discrete),
        declared_size=declared if follows else None,
        size_margin=margin,
        choice_margin=chosen.margin,
        rollouts=(0 if request.no_environment and request.evaluator is None else EPISODES if request.mechanism == Neighbours.kind else 1) if request.rollouts is None else request.rollouts,
        discount=request.discount,
        states=len(states) if states is not None else request.states,
        held_out=request.held_out,
        states_sha256=hashlib.sha256(np.ascontiguousarray(states).tobytes()).hexdigest() if states is not None else None,
        states_from=states_from,
        source_key=request.source_key,
        code=code_digest(),
        imports=said.imports,
        plugins=(*used, *([] if dataset.imported_by is None else [dataset.imported_by])),
        version=package_version(),
        condition=tuned.condition(dataset) if tuned is not None else None,
        trusted=None if request.trusted is None else _trusted(request.trusted, dataset, card),
        assumptions=(
            *notes,
            *([LOCAL_NOTE.format(unit=request.unit, cap=learner.local.cap)] if request.unit != "transition" and request.mechanism in WITH_NOISE else []),
            *([] if learner.local.min_return is None else [f"Trajectories that earned less than {exactly(learner.local.min_return)} count as zero; this constant is public."]),
            *([] if request.card is None or request.card in CARDS else [f"The environment card was given by the user. {CONDITIONAL}"]),
            *([] if said.return_range is None else [RANGE_NOTE]),
            *([] if said.max_episode_steps is None else [STEPS_NOTE.format(steps=said.max_episode_steps)]),
            *([] if request.encoder is None else [ENCODER_NOTE]),
            *([] if request.features is None else [FEATURES_NOTE.format(name=request.features, of="" if request.features in SHIPPED else " of a plug-in")]),
            *([KEYS_NOTE.format(keys=", ".join(card.observation_keys))] if request.observation_keys else []),
            *(
                [(PAST_NOTE if card.recalled else HISTORY_NOTE).format(history=request.history, how="This number was tuned with the other constants." if tuned else GIVEN_NOTE)]
                if card.recalled or request.history > 1 else []
            ),
            *([STATES_NOTE.format(name=states_from[0], sha256=states_from[1])] if states_from else []),
            *([TEST_NOTE.format(sha256=labels)] if labels else []),
            *([f"About the choice of constants the user says: {request.chosen}"] if request.chosen else []),
        ),
    )
    if settings.card_note:
        settings = replace(settings, assumptions=(*settings.assumptions, CARD_LEARNER_NOTE.format(constants=settings.card_note)))
    settings.radius_cap(choices.threat)
    if request.mechanism == Neighbours.kind:
        check_neighbours(settings)
    choices.check(settings)
    wanted, cap = math.ceil(Fraction(str(request.fraction)) * declared), settings.radius_cap(choices.threat)
    from_fraction = request.noise_multiplier is None and (request.bag_size is None or request.mechanism in WITH_NOISE) and request.parts is None and request.neighbours is None and tuned is None
    if cap < min(FURTHER * wanted, size):
        why = "the rounded size would change: declare a size with --units that does not depend on the data, such as how many were planned before recording"
        if cap != replace(settings, choice_margin=None).radius_cap(choices.threat):
            why = f"trajectories could be so many, or so few, that the unit would be another: choose it yourself, --unit {settings.mechanism.unit}"
        asked = f"the wanted fraction {exactly(request.fraction)} is r = {wanted}, but " if from_fraction and wanted > cap else ""
        print(f"mucd: {asked}no radius above {cap} will be claimed, beyond which {why}", file=sys.stderr)
    if discrete and mask is None and _tells_masks(card):
        print(f"mucd: {card.env_id} tells which actions are allowed (action_mask), which is not used: policies choose among all, and what it does with one that is not allowed counts (docs/spaces.md, \"Masked actions\")", file=sys.stderr)
    effective_eta(choices.eta, choices.looks, request.instances)
    return settings, states


def _of_labelled(request: Request, dataset: OfflineDataset) -> Request:
    """Labelled images are no episodes: nothing is played, and one image is a unit. Raises MucdError for another unit."""
    if dataset.test is None:
        return request
    if request.unit not in (None, "transition"):
        raise MucdError(f"{dataset.name} holds labelled images, each of which is a unit: leave --unit {request.unit} out")
    return replace(request, no_environment=True, unit="transition")


def _other_trainer(tuned: Outside | None) -> str:
    """What is named by a file alone is not run."""
    if tuned is None:
        return "--tuned holds constants of the package's learners: leave trainers of your own out"
    return f"--tuned holds constants for {tuned.option} {tuned.name}, run only on your word: give it with the same files and limits as in the study"


def _fit(request: Request, learner: Learner, card: EnvironmentCard, discrete: bool) -> Fit:
    asked = request.fit or {}
    assert request.mechanism is not None and request.unit is not None
    if asked.get("mirrored") and card.encoder is not None:
        raise MucdError("mirrored trajectories are of raw observations, whose mirror says nothing of an encoder's outputs: leave --mirrored out")
    usual = {} if "top_share" in asked else default_fit(request.unit, learner.algorithm, discrete)
    mirrored = card.mirror is not None and card.encoder is None and request.mechanism != Neighbours.kind
    entries = constants_of(card, request.mechanism, learner.network).get("entries")
    fit = Fit(**{"mirrored": mirrored, "entries": entries} | usual | asked)
    # A trainer would say so, too, but only after the run folder is made.
    if fit.mirrored and card.mirror is None:
        raise MucdError(f"--mirrored needs a mirror, and the card of {card.env_id} has none: leave it out, or give mirror_observation and mirror_actions in a card, --card FILE")
    if fit.entries is not None and learner.network != "dense":
        raise MucdError(f"{fit.entries} entries cannot be chosen for a {learner.network} network, which looks at whole observations: leave --entries out")
    if fit.entries is not None and fit.entries > card.width:
        raise MucdError(f"entries {fit.entries} is above the {card.width} of an observation: use fewer, or leave --entries out")
    return fit


def _check_source(request: Request) -> None:
    """Raise MucdError unless a source key is given for sources, and for nothing else."""
    if request.unit != "source" and request.source_key is not None:
        raise MucdError(f"source key {request.source_key!r:.100} is for --unit source, not for {request.unit}: leave it out")
    if request.unit == "source" and request.source_key is None:
        raise MucdError(f"--unit source needs --source-key NAME, the key that tells the source of a trajectory; {source_keys(request.dataset)}")


def _trusted(name: str, dataset: OfflineDataset, card: EnvironmentCard) -> tuple[str, str]:
    """(name, content hash) of the user's trusted data, recorded in the same environment."""
    trusted = _trusted_data(name, card)
    if _is_the_same(trusted, dataset):
        raise MucdError(f"the trusted dataset {name} is the one to be certified: if you trust all of it, no certificate is needed")
    return trusted.name, trusted.fingerprint()


def _trusted_data(name: str, card: EnvironmentCard) -> OfflineDataset:
    """A dataset that the user trusts, read as the one to be certified. Raises MucdError where it declares something else than the card of this run."""
    trusted = load_dataset(name, observation_keys=card.observation_keys)
    card.check(trusted)
    if card.recalled and action_width(trusted.action_space) != card.recalled[0]:
        raise MucdError(f"actions of {name} are read off its rows, and policies recall actions: declare them, `mucd import --environment ID` or --actions N, and import it again")
    return trusted


def _is_the_same(trusted: OfflineDataset, dataset: OfflineDataset) -> bool:
    """Whether both have the same content, whichever key tells the sources of one."""
    return content_of(trusted) == content_of(dataset)


def with_public_constants(learner: Learner, card: EnvironmentCard, discrete: bool, bounded: bool, components: tuple[int, ...] = ()) -> Learner:
    """The learner with those constants of its algorithm that follow from the environment and were not given: v_min and v_max, the range
    of discounted sums of scaled rewards, and whether actions are censored at their bounds."""
    algorithm = algorithm_for(learner.algorithm, discrete, components)
    constants = algorithm.filled(learner.constants)  # defaults are written down, too
    found = {"censored": float(bounded)} if "censored" in constants else {}
    if {"v_min", "v_max"} & set(algorithm.constants) - set(constants):
        low, high = card.discounted_range(max(constants["discount"], 1e-6))
        found |= {"v_min": low / card.reward_scale, "v_max": high / card.reward_scale}
    return replace(learner, constants={**constants, **found, **learner.constants})


def _spaces(card: EnvironmentCard) -> tuple[gymnasium.Space, gymnasium.Space]:
    """Of observations and actions of the environment."""
    environment = card.make()
    environment.close()
    return environment.observation_space, environment.action_space


def _mask(card: EnvironmentCard, dataset: OfflineDataset, actions: int) -> int | None:
    """Where in a flattened observation that policies see the mask of its actions begins (`Observations.mask`): in the last of a history. None without one, and for policies that recall actions."""
    if isinstance(card, DeclaredCard):
        first = dataset.action_mask
    else:
        environment = card.make()
        environment.close()
        space, _ = declared_spaces(environment)
        first = Observations.of(space, card.observation_keys).mask(actions) if isinstance(space, gymnasium.spaces.Dict) else None
    return None if first is None or card.recalled else first + math.prod(card.observation_shape) // card.history * (card.history - 1)


def _tells_masks(card: EnvironmentCard) -> bool:
    """Whether there is a mask of actions, by Gymnasium's convention or by PettingZoo's among the keys that policies see."""
    environment = card.make()
    try:
        space, _ = declared_spaces(environment)
        if isinstance(space, gymnasium.spaces.Dict) and any(part.path == (ACTION_MASK,) for part in Observations.of(space, card.observation_keys).parts):
            return True
        return ACTION_MASK in environment.reset(seed=0)[1]
    except Exception:  # whoever plays episodes says so
        return False
    finally:
        environment.close()


def _declared_actions(card: EnvironmentCard, dataset: OfflineDataset) -> str | None:
    """The action space that the environment declares, in Minari's JSON, where actions are counted otherwise; None where they are not."""
    space = dataset.declared_actions
    if space is None:
        environment = card.make()
        environment.close()
        _, space = declared_spaces(environment)
    return None if Actions(declared=space).is_plain else serialize_space(space)


def _declared_observations(card: EnvironmentCard) -> str | None:
    """The Dict space of one observation with the keys that policies see, in Minari's JSON; None of other spaces, of large ones, and with history."""
    environment = card.make()
    environment.close()
    space, _ = declared_spaces(environment)
    if not isinstance(space, gymnasium.spaces.Dict) or card.history > 1 or math.prod(card.observation_shape) > MOST_NAMED_ENTRIES:
        return None
    return serialize_space(only(space, Observations.of(space, card.observation_keys).parts))


def _action_bounds(space: gymnasium.Space) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Public (low [d], high [d]) of the environment's continuous actions; None if they are discrete, or unbounded to all intents."""
    if not isinstance(space, gymnasium.spaces.Box):
        return None
    low, high = (bound.astype(float).reshape(-1) for bound in (space.low, space.high))
    # Learners compute in float32, in which a wider range has no width.
    if not ((low < high).all() and (np.abs(np.array([low, high])) <= WIDEST_BOUND).all()):
        return None
    return tuple(low.tolist()), tuple(high.tolist())


def request_card(request: Request, dataset: OfflineDataset) -> EnvironmentCard:
    """The card of a `Request` that knows its mechanism, before anything is taken from it or added, of the keys of observations that are asked for; without an environment what the dataset declares. Raises MucdError as `card_of`."""
    if request.no_environment:
        if request.environment != UserEnvironment():
            raise MucdError("--import, --make-kwargs, --max-episode-steps and --return-range are about an environment: leave them out with --no-environment")
        _check_without_environment(request)
        return replace(DeclaredCard.of(dataset, request.card), observation_keys=_keys(request))
    scaled = request.mechanism in WITH_NOISE or request.mechanism == Neighbours.kind and request.metric in (None, "declared")
    env_id = request.card.env_id if request.card else _environment_of(dataset)
    card = card_of(env_id, request.environment, request.card, scaled=scaled, observation_shape=dataset.observations.shape[1:], action_space=dataset.action_space, observation_keys=request.observation_keys)
    return card.of_keys(request.observation_keys) if request.observation_keys else card


def _plugin_of_card(request: Request, dataset: OfflineDataset) -> list[Plugin]:
    """That of the card that `request_card` finds by the environment's id, if it is one's."""
    if request.no_environment or request.card is not None:
        return []
    card, plugin = known_card(_environment_of(dataset), dataset.observations.shape[1:], dataset.action_space, request.environment.make_kwargs)
    return [] if plugin is None or card is None or request.environment.make_kwargs not in (None, card.make_kwargs) else [plugin]


def usual_learner(request: Request, card: EnvironmentCard, network: str = "dense") -> Learner:
    """The learner where the user says nothing but perhaps the network; `request` knows its mechanism."""
    assert request.mechanism is not None
    learner, own = DEFAULT_LEARNERS[request.mechanism], request.trainer is None and request.encoder is None and request.features is None
    return replace(learner, learning_rate=constants_of(card, request.mechanism, network).get("learning_rate", learner.learning_rate)) if own else learner


def _environment_of(dataset: OfflineDataset) -> str:
    if dataset.env_id is None:
        raise MucdError(f"dataset {dataset.name} does not say in which environment it was recorded: describe it with --card FILE, import it with --environment ID, or certify actions without one (--no-environment)")
    return dataset.env_id


def _check_without_environment(request: Request) -> None:
    """Raise MucdError where something is asked for that only episodes could tell."""
    if request.evaluator is not None:
        return
    if request.trusted is not None:
        raise MucdError(f"--trusted {request.trusted} is to show what a policy earns, which without an environment nobody knows: leave it out (or mean --trusted-states?)")
    if request.rollouts is not None:
        raise MucdError("--rollouts are played in the environment: leave it out with --no-environment")


def _states(request: Request, card: EnvironmentCard, dataset: OfflineDataset) -> tuple[np.ndarray | None, tuple[str, str] | None]:
    """(the user's states or None, (name, content hash) of the dataset from which they were drawn or None)."""
    if request.trusted_states is None and request.states_file is None and dataset.test is not None:
        return dataset.test.observations, None
    if request.trusted_states is None:
        return _states_of_file(request.states_file, card), None
    if request.states_file is not None:
        raise MucdError("--states-file and --trusted-states both say at which states actions are certified: leave one of the two out")
    if not 1 <= request.states <= MOST:
        raise MucdError(f"states {request.states} must be at least 1, and at most {MOST:,}")
    trusted = _trusted_data(request.trusted_states, card)
    if _is_the_same(trusted, dataset):
        raise MucdError(
            f"--trusted-states {request.trusted_states} is the dataset to be certified: whoever poisons it would choose the states at which the claim is made; name one that you trust, or give --states-file"
        )
    observations = card.as_seen(trusted).observations
    rows = np.random.default_rng(request.states).permutation(len(observations))[: request.states]
    return np.ascontiguousarray(observations[np.sort(rows)]), (trusted.name, trusted.fingerprint())


def _states_of_file(path: str | None, card: EnvironmentCard) -> np.ndarray | None:
    if path is None:
        return None
    try:
        states = read_npy(read_file(path, MOST_ARRAY_BYTES), "it")
    except (OSError, MucdError) as error:
        raise MucdError(f"states file {path} cannot be read ({error}): give a .npy array of observations") from None
    if states.shape[1:] != tuple(card.observation_shape):
        raise MucdError(f"states file {path} of shape {states.shape} must be a list of observations of shape {tuple(card.observation_shape)}")
    if states.dtype.kind not in "fiub" or not len(states) or not np.isfinite(states).all():
        raise MucdError(f"states file {path} must hold at least one observation and finite numbers only")
    card.features(states)
    return states


def read_dataset(request: Request) -> OfflineDataset:
    """The dataset of a request, with its source key and keys of observations. Raises MucdError as `load_dataset`."""
    return load_dataset(request.dataset, source_key=request.source_key, observation_keys=_keys(request))


def _keys(request: Request) -> tuple[str, ...]:
    return tuple(sorted(set(request.observation_keys or (request.card.observation_keys if request.card else ()))))


def execute(
    request: Request, storage: str, *, choices: Choices = Choices(), resources: Resources = Resources(), seed: int | None = None, dataset: OfflineDataset | None = None
) -> dict:
    """The whole of `mucd run`: load unless `dataset` is there, settle, train, certify, report. `storage`: a local path or fsspec URL. Returns the summary."""
    dataset = read_dataset(request) if dataset is None else dataset
    settings, states = make_settings(request, dataset, choices)
    secret = None if seed is None else hashlib.sha256(f"mucd seed {seed}".encode()).digest()
    if seed is not None:
        settings = replace(settings, assumptions=(*settings.assumptions, SEED_NOTE))
    if request.mechanism != Neighbours.kind:
        check_instances(settings, choices, request.instances)
    if settings.trainer is not None and resources.runtime_env is None and not RunStore(storage).exists():
        # Before anything is written; with another environment only the trainers can tell.
        open_nursery(settings, "cpu")
    if settings.evaluator is not None and resources.runtime_env is None:
        open_scorer(settings).try_out()
    store = RunStore.create_or_open(storage, settings, secret)
    if request.encoder is not None:
        store.write_encoder(request.encoder)
    if request.mechanism == Neighbours.kind:
        return finish(store, run_neighbours(store, dataset, choices, states))
    return finish(store, train(store, dataset, request.instances, choices, replace(resources, imports=request.environment.imports), states))
