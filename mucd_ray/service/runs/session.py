"""From what a user asks for to the settings of a run, and the whole of a run."""

import hashlib
import math
import sys
from dataclasses import dataclass, replace
from fractions import Fraction

import gymnasium
import numpy as np

from mucd_ray.certify.confidence.looks import effective_eta
from mucd_ray.certify.planning.size import declared_size
from mucd_ray.certify.rounding import exactly
from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.data.environments.cards import CARDS, EnvironmentCard, card_for
from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.errors import MucdError
from mucd_ray.files import MOST_ARRAY_BYTES, read_file, read_npy
from mucd_ray.learn.algorithms import algorithm_for
from mucd_ray.learn.learner import Learner, LocalUpdate
from mucd_ray.learn.problem import action_shape
from mucd_ray.learn.trainers.built_in import Fit
from mucd_ray.mechanism.gaussian.mechanism import Mechanism
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.driver import train
from mucd_ray.service.runs.mechanisms import CONDITIONAL, DEFAULT_LEARNERS, DEFAULT_UNITS, check_options, default_top_share, planned
from mucd_ray.service.runs.settings import RunSettings, code_digest, package_version
from mucd_ray.service.runs.summary import finish
from mucd_ray.service.storage.store import RunStore
from mucd_ray.service.tuning.tuned import Tuned
from mucd_ray.service.workers.cluster import Resources

DEFAULT_LEARNER_NOTE = "The learner's settings are the package's defaults, chosen on simulator recordings with other seeds, never on this dataset."
SEED_NOTE = "The secret was derived from a number given by the user (--seed): the claim holds only if no attacker knows or guesses it."
LOCAL_NOTE = "Of a trajectory with more than {cap} transitions, {cap} evenly spaced ones from a random start take part in a step."
WIDEST_BOUND = 1e18
USER_LEARNER_NOTE = f"The learner's settings were given by the user. {CONDITIONAL}"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a run is asked for. `None` means: the package's default, or planned from the declared size and the fraction; `fit` holds fields of `Fit` by name.

    `tuned` takes the place of unit, fraction, sample_rate, noise_multiplier, steps, clip_norm and learner.
    """

    dataset: str
    instances: int = 1000
    card: EnvironmentCard | None = None
    mechanism: str = Mechanism.kind
    unit: str | None = None
    fraction: float = 0.01
    units: int | None = None
    sample_rate: float | None = None
    noise_multiplier: float | None = None
    steps: int | None = None
    clip_norm: float | None = None
    bag_size: int | None = None
    parts: int | None = None
    draws: str | None = None
    fit: dict | None = None
    learner: Learner | None = None
    tuned: Tuned | None = None
    chosen: str | None = None
    rollouts: int = 1
    discount: float = 1.0
    states: int = 200
    states_file: str | None = None
    held_out: int = 16


def make_settings(request: Request, dataset: OfflineDataset, choices: Choices) -> tuple[RunSettings, np.ndarray | None]:
    """(settings, the user's states or None). Nothing but the number of units is read from the dataset, and that only rounded."""
    tuned = request.tuned
    check_options(request)
    request = replace(request, unit=request.unit or DEFAULT_UNITS[request.mechanism])
    if tuned is not None:
        if request.mechanism != Mechanism.kind:
            raise MucdError(f"--tuned holds constants of the {Mechanism.kind} mechanism: leave it or --mechanism {request.mechanism} out")
        request = replace(request, unit=tuned.unit, learner=tuned.learner)
    card = request.card or card_for(_environment_of(dataset), dataset.observations.shape[1:], dataset.action_space)
    card.check(dataset)
    shipped = card in CARDS
    if request.mechanism != Mechanism.kind:
        card = card.raw()
    if tuned is not None and tuned.environment != card.env_id:
        raise MucdError(f"these constants were tuned for {tuned.environment}, and {dataset.name} is of {card.env_id}: tune for that environment")
    actions, discrete = action_shape(dataset.action_space)
    action_bounds = _action_bounds(card)
    if request.mechanism != Mechanism.kind and request.learner is not None and request.learner.local != LocalUpdate():
        raise MucdError(f"local steps, their cap and a least return are for --mechanism {Mechanism.kind}: other learners have --train-steps and --top-share")
    if request.mechanism != Mechanism.kind and request.learner is not None and request.learner.network != "dense":
        raise MucdError(f"network {request.learner.network!r} is trained by --mechanism {Mechanism.kind} alone so far: use a dense one")
    learner = with_public_constants(request.learner or DEFAULT_LEARNERS[request.mechanism], card, discrete, action_bounds is not None)
    if not 0 < request.fraction < 1:
        raise MucdError(f"fraction {exactly(request.fraction)} is outside (0, 1): use for example 0.01 for 1 %")
    size = dataset.trajectories if request.unit == "trajectory" else len(dataset)
    states = _states(request.states_file, card)
    if request.units is not None and request.units < 2:
        raise MucdError(f"units {request.units}: declare at least 2, about the size of the dataset")
    declared, margin = declared_size(size) if request.units is None else (request.units, None)
    if tuned is not None:
        mechanism, notes, follows = tuned.mechanism(declared), (tuned.note(dataset),), True
    else:
        mechanism, how, follows = planned(request, choices, declared, size, actions if discrete else 2)
        margin = margin if follows else None
        notes = how, USER_LEARNER_NOTE if request.learner or request.fit else DEFAULT_LEARNER_NOTE
    settings = RunSettings(
        dataset=dataset.name,
        fingerprint=dataset.fingerprint(),
        units=size,
        card=card,
        actions=actions if discrete else 0,
        dimensions=0 if discrete else actions,
        action_bounds=action_bounds,
        mechanism=mechanism,
        learner=learner,
        fit=None if request.mechanism == Mechanism.kind else Fit(**{"top_share": default_top_share(request.unit, learner.algorithm)} | (request.fit or {})),
        declared_size=declared if follows else None,
        size_margin=margin,
        rollouts=request.rollouts,
        discount=request.discount,
        states=len(states) if states is not None else request.states,
        held_out=request.held_out,
        states_sha256=hashlib.sha256(np.ascontiguousarray(states).tobytes()).hexdigest() if states is not None else None,
        code=code_digest(),
        version=package_version(),
        condition=tuned.condition(dataset) if tuned is not None else None,
        assumptions=(
            *notes,
            *([LOCAL_NOTE.format(cap=learner.local.cap)] if request.unit == "trajectory" and request.mechanism == Mechanism.kind else []),
            *([] if learner.local.min_return is None else [f"Trajectories that earned less than {exactly(learner.local.min_return)} count as zero; this constant is public."]),
            *([] if shipped else [f"The environment card was given by the user. {CONDITIONAL}"]),
            *([f"About the choice of constants the user says: {request.chosen}"] if request.chosen else []),
        ),
    )
    settings.radius_cap(choices.threat)
    choices.check(settings)
    wanted, cap = math.ceil(Fraction(str(request.fraction)) * declared), settings.radius_cap(choices.threat)
    if request.noise_multiplier is None and request.bag_size is None and request.parts is None and tuned is None and wanted > cap:
        print(
            f"mucd: the wanted fraction {exactly(request.fraction)} is r = {wanted}, but no radius above {cap} will be claimed, where the rounded size would change: "
            "ask for a smaller fraction, or declare a size with --units that does not depend on the data",
            file=sys.stderr,
        )
    effective_eta(choices.eta, choices.looks, request.instances)
    return settings, states


def with_public_constants(learner: Learner, card: EnvironmentCard, discrete: bool, bounded: bool) -> Learner:
    """The learner with those constants of its algorithm that follow from the environment and were not given: v_min and v_max, the range
    of discounted sums of scaled rewards, and whether actions are censored at their bounds."""
    constants = algorithm_for(learner.algorithm, discrete).filled(learner.constants)  # defaults are written down, too
    found = {"censored": float(bounded)} if "censored" in constants else {}
    if constants.get("v_min", 0) is None or constants.get("v_max", 0) is None:
        low, high = card.discounted_range(max(constants["discount"], 1e-6))
        found |= {"v_min": low / card.reward_scale, "v_max": high / card.reward_scale}
    return replace(learner, constants=constants | found | learner.constants)


def _action_bounds(card: EnvironmentCard) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Public (low [d], high [d]) of the environment's continuous actions; None if they are discrete, or unbounded to all intents."""
    environment = card.make()
    space = environment.action_space
    environment.close()
    if not isinstance(space, gymnasium.spaces.Box):
        return None
    low, high = (bound.astype(float).reshape(-1) for bound in (space.low, space.high))
    # Learners compute in float32, in which a wider range has no width.
    if not ((low < high).all() and (np.abs(np.array([low, high])) <= WIDEST_BOUND).all()):
        return None
    return tuple(low.tolist()), tuple(high.tolist())


def _environment_of(dataset: OfflineDataset) -> str:
    if dataset.env_id is None:
        raise MucdError(f"dataset {dataset.name} does not say in which environment it was recorded: describe it with --card FILE")
    return dataset.env_id


def _states(path: str | None, card: EnvironmentCard) -> np.ndarray | None:
    if path is None:
        return None
    try:
        states = read_npy(read_file(path, MOST_ARRAY_BYTES), "it")
    except (OSError, MucdError) as error:
        raise MucdError(f"states file {path} cannot be read ({error}): give a .npy array of observations") from None
    if states.ndim != 1 + len(card.observation_shape):
        raise MucdError(f"states file {path} of shape {states.shape} must be a list of observations of shape {tuple(card.observation_shape)}")
    if states.dtype.kind not in "fiub" or not len(states) or not np.isfinite(states).all():
        raise MucdError(f"states file {path} must hold at least one observation and finite numbers only")
    card.features(states)
    return states


def execute(request: Request, storage: str, *, choices: Choices = Choices(), resources: Resources = Resources(), seed: int | None = None) -> dict:
    """The whole of `mucd run`: load, settle, train, certify, report. `storage`: a local path or fsspec URL. Returns the summary."""
    dataset = load_dataset(request.dataset)
    settings, states = make_settings(request, dataset, choices)
    secret = None if seed is None else hashlib.sha256(f"mucd seed {seed}".encode()).digest()
    if seed is not None:
        settings = replace(settings, assumptions=(*settings.assumptions, SEED_NOTE))
    store = RunStore.create_or_open(storage, settings, secret)
    return finish(store, train(store, dataset, request.instances, choices, resources, states))
