"""Runs of nearest neighbours: nothing is trained, so one process plays the episodes, asks the data at the states, and certifies, without Ray.

The run folder holds neighbours.json beside settings, states and baselines: what the policy did, against every threat, so that `mucd certify` needs no data.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import gymnasium
import numpy as np

from mucd_ray.certify.file.certificate import make_certificate, make_inputs
from mucd_ray.certify.file.evidence import MOST_COUNTS, neighbour_votes, neighbours_evidence
from mucd_ray.certify.rounding import exactly
from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.data.environments.cards import EnvironmentCard
from mucd_ray.data.environments.declared import DeclaredCard
from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.errors import MucdError
from mucd_ray.evaluate.rollouts import rollout_returns
from mucd_ray.files import as_expected
from mucd_ray.learn.neighbours import Nearest
from mucd_ray.learn.units import Units, make_units
from mucd_ray.mechanism.neighbours import COSTS, Neighbours
from mucd_ray.progress import bar, stage
from mucd_ray.report.warnings import early_warnings
from mucd_ray.service.runs.about import CARD, context
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.driver import recorded_values, write_labels
from mucd_ray.service.runs.settings import RunSettings, check_code
from mucd_ray.service.runs.voting import with_votes
from mucd_ray.service.runs.work import baselines, best_constant, check_returns, rollout_seeds
from mucd_ray.service.storage.store import RunStore

# Episodes, where --rollouts does not say how many.
EPISODES = 100
FILE = "neighbours.json"
WIDEST_BOUND = 1e18


def card_with_metric(card: EnvironmentCard, metric: str) -> EnvironmentCard:
    """The card whose features are what distances are between; see `Neighbours`."""
    if metric == "declared":
        return card
    environment = card.make()
    space = environment.observation_space
    environment.close()
    low, high = (np.asarray(bound, np.float64).reshape(-1) for bound in (space.low, space.high)) if isinstance(space, gymnasium.spaces.Box) else (np.zeros(1), np.ones(1))
    bounded = (abs(low) <= WIDEST_BOUND) & (abs(high) <= WIDEST_BOUND) & (low < high)
    scale = np.where(bounded, np.where(bounded, high, 1.0) - np.where(bounded, low, 0.0), 1.0)
    return replace(card.raw(), scale=tuple(scale.tolist()) if (scale != scale[0]).any() else (float(scale[0]),))


class NeighbourPolicy:
    """The policy, for episodes played side by side; remembers the least radius on the path of each.

    Args:
        actions: how many there are.
        episodes: how many.
    """

    def __init__(self, nearest: Nearest, mechanism: Neighbours, actions: int, episodes: int):
        self.nearest, self.mechanism, self.actions, self.episodes = nearest, mechanism, actions, episodes
        self.path_radii = np.full((len(COSTS), episodes), mechanism.neighbours)

    def __len__(self) -> int:
        return self.episodes

    def outputs(self, features: np.ndarray, index: np.ndarray) -> np.ndarray:
        """One-hot scores [n, A] of the voted actions at features [n, d] in the episodes `index` [n]."""
        votes = self.nearest.votes_at(features, self.mechanism.recorded)
        for least, radii in zip(self.path_radii, self.mechanism.radii(votes, self.actions, tuple(COSTS))):
            np.minimum.at(least, index, radii)
        return np.eye(self.actions)[self.mechanism.actions(votes, self.actions)]


def sizes_at(settings: RunSettings, nearest: Nearest, threat: str = "symmetric") -> Callable[[np.ndarray], np.ndarray]:
    """A function from states [n, *observation_shape] to the least number of changed units with which each action could be the one chosen, int [n, A]: 0 for the
    action itself, K + 1 where no K units suffice."""
    mechanism = settings.mechanism_of(Neighbours)
    return lambda states: mechanism.sizes(nearest.votes_at(settings.card.features(states), mechanism.recorded), settings.actions, threat)


def run_neighbours(store: RunStore, dataset: OfflineDataset, choices: Choices, states: np.ndarray | None = None) -> dict:
    """Play, vote and certify whatever the run folder lacks; returns the certificate.

    Args:
        states: the user's states [S, *observation_shape]; by default they are drawn from the policy's own episodes.
    Raises:
        MucdError: another dataset or other code than the run began with, or a return outside the declared range.
    """
    settings = store.settings()
    choices.check(settings)
    mechanism = settings.mechanism_of(Neighbours)
    units, nearest = _units(store, settings, dataset)
    write_labels(store, settings, dataset)
    if store.read_json(FILE) is None:
        if len(nearest) < mechanism.neighbours:
            print(f"mucd: only {len(nearest)} units vote, fewer than {mechanism.neighbours}: all of them do everywhere", file=sys.stderr)
        compared: dict | None = None
        if store.baselines() is None:
            compared = best_constant(settings) | recorded_values(settings, dataset)
            for text in early_warnings(compared):
                print(f"warning: {text}", file=sys.stderr)
        policy = NeighbourPolicy(nearest, mechanism, settings.actions, settings.rollouts)
        returns, met = np.zeros(0), None
        if settings.rollouts:
            with bar("playing", "step") as shown:
                returns, met = _play(policy, settings, store.secret(), states is None, shown.update)
            check_returns(settings, returns)
        states = met if states is None else states
        states = store.fixed_states() if states is None else store.write_states(states)
        with stage("votes at states"):
            votes = nearest.votes_at(settings.card.features(states), mechanism.recorded)
        if compared is not None:
            with stage("baselines"):
                store.write_json("baselines.json", baselines(settings, units, states) | compared)
        radii = dict(zip(COSTS, policy.path_radii.tolist()))
        store.write_json(FILE, {"identity": store.identity, "states": store.states_hash(), "returns": returns.tolist(), "path_radii": radii, "votes": neighbours_evidence(votes, settings.actions)["votes"]})
    return certify_neighbours(store, choices, lambda: nearest)


def _units(store: RunStore, settings: RunSettings, dataset: OfflineDataset) -> tuple[Units, Nearest]:
    """Raises MucdError where dataset or code is not that with which the run began."""
    check_code(settings)
    if dataset.fingerprint() != settings.fingerprint:
        raise MucdError(f"dataset {settings.dataset} has changed since the run in {store.location} began: restore it, or start a new run folder")
    settings.card.check(dataset)
    units = make_units(dataset, settings.card, settings.problem, settings.mechanism.unit)
    return units, Nearest(units)


def recorded_units(store: RunStore) -> Nearest:
    """The units of the run's dataset, read anew. Raises MucdError where it, or the code, is not that with which the run began."""
    settings = store.settings()
    return _units(store, settings, load_dataset(settings.dataset, source_key=settings.source_key, observation_keys=settings.card.observation_keys))[1]


def _play(policy: NeighbourPolicy, settings: RunSettings, secret: bytes, keep: bool, progress) -> tuple[np.ndarray, np.ndarray | None]:
    """(returns [E], S of the states met, if they are to be kept)."""
    seeds = rollout_seeds(secret, range(settings.rollouts), 1)
    if not keep:
        return rollout_returns(policy, settings.card, seeds, discount=settings.discount, progress=progress), None
    each = -(-settings.states // settings.rollouts)
    returns, met = rollout_returns(policy, settings.card, seeds, keep_states=each, discount=settings.discount, progress=progress)
    return returns, met.reshape(-1, *met.shape[2:])[: settings.states]


def certify_neighbours(store: RunStore, choices: Choices, nearest: Callable[[], Nearest] | None = None) -> dict:
    """Certify what the run folder holds; write certificate.json.

    Args:
        nearest: gives the units of the data, for which only episodes of the voted policy that are not stored yet ask; by default they are read anew.
    Raises:
        MucdError: it is not finished, or holds what another run did; or what `recorded_units` raises, with the certificate without the voted policy written.
    """
    settings, found = store.settings(), store.read_json(FILE)
    choices.check(settings)
    if found is None:
        raise MucdError(f"{store.location} is not finished: continue it with `mucd run`")
    with as_expected(store.file(FILE), "delete it, and `mucd run` makes it again"):
        if (found["identity"], found["states"]) != (store.identity, store.states_hash()):
            raise MucdError(f"{store.file(FILE)} belongs to another run, or to other states than {store.file('states.npy')}: restore them, or start a new run folder")
        inputs = make_inputs(
            mechanism=settings.mechanism, units=settings.units, returns=found["returns"], path_radii=found["path_radii"][choices.threat], return_range=settings.return_range,
            discount=settings.discount, clipped=settings.card.clip_returns, condition=settings.condition, threat=choices.threat, radius_cap=settings.radius_cap(choices.threat),
            eta=choices.eta, band=choices.band, rollouts=1 if settings.plays else 0, declared=None if settings.plays else cast(DeclaredCard, settings.card).declared,
            features=None if settings.card.encoder is None else settings.features_source,
            actions=neighbours_evidence(neighbour_votes(found), settings.actions, (store.baselines() or {}).get("reference")),
        )
    with stage("certificate"):
        certificate = make_certificate(inputs, assumptions=_assumptions(settings, choices), context=_context(store, settings))
    store.write_json("certificate.json", certificate)
    if choices.policy == "instance":
        return certificate
    return with_votes(store, certificate, choices, lambda: sizes_at(settings, nearest() if nearest else recorded_units(store), choices.threat))


def _assumptions(settings: RunSettings, choices: Choices) -> list[str]:
    card = settings.card
    features = "the features of the environment card" if card.encoder is None else "what takes the place of observations"
    notes = [
        settings.size_note(choices.threat),
        f"Distances are between {features if settings.mechanism_of(Neighbours).metric == 'declared' else 'plain observations, each entry over its declared range'}. "
        f"{CARD[settings.plays]}: {card.source}",
        *settings.assumptions,
    ]
    if not settings.rollouts:
        return notes
    low, high = settings.played_range
    return [*notes, f"Every episode's return {'is clipped into' if card.clip_returns else 'lies in'} the public range [{exactly(low)}, {exactly(high)}]."]


def _context(store: RunStore, settings: RunSettings) -> dict:
    """That of other runs; its learner and fit are of the policy trained on all data that stands beside."""
    by = {} if settings.states_sha256 else {"states_chosen_by": "the policy's own episodes"}
    return context(store, settings) | by | {"parameters": 0, "failures": 0, "failures_by_cause": {}}


def check_neighbours(settings: RunSettings) -> None:
    """Raise MucdError where a vote of neighbours cannot be taken, or its counts not be held."""
    if not settings.actions:
        raise MucdError(f"neighbours vote on discrete actions, and those of {settings.dataset} are continuous: use --mechanism bag")
    if settings.components:
        raise MucdError(f"neighbours vote on one action, and those of {settings.dataset} have {len(settings.components)} components, which are too many combinations to be one: use --mechanism bag, partition or gaussian")
    neighbours = settings.mechanism_of(Neighbours).neighbours
    if neighbours * settings.actions > MOST_COUNTS:
        raise MucdError(f"{neighbours} neighbours with {settings.actions} actions are more than can be counted: use at most {MOST_COUNTS // settings.actions}")
