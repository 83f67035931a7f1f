"""The work itself, without Ray: what one trainer does for a block of instances. Deterministic in (settings, secret, instance), but for trainers from outside."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, cast

import gymnasium
import numpy as np
import torch

from mucd_ray.certify.file.evidence import levels
from mucd_ray.errors import MucdError
from mucd_ray.evaluate.evaluators import Scorer
from mucd_ray.evaluate.policies import Policies, trained_policies
from mucd_ray.evaluate.rollouts import Progress, constant_policies, constant_returns, rollout_returns
from mucd_ray.evaluate.votes import actions_at, clipped_actions_at, counts, probabilities_at
from mucd_ray.learn.ensemble import train_block
from mucd_ray.learn.nonprivate import PUBLIC, train_nonprivate
from mucd_ray.learn.streams import OUTSIDE, ROLLOUT, Streams
from mucd_ray.learn.trainers.bags import draw_bag, units_of
from mucd_ray.learn.trainers.built_in import fit_policies
from mucd_ray.learn.trainers.outside import FAILURES, Learner, Nursery
from mucd_ray.learn.trainers.parts import draw_part, units_by_part
from mucd_ray.learn.trainers.recorded import Recorded
from mucd_ray.learn.units import Units
from mucd_ray.mechanism.bag import Bag
from mucd_ray.mechanism.bag_then_noise import BagThenNoise
from mucd_ray.mechanism.components import best
from mucd_ray.mechanism.gaussian.mechanism import Mechanism
from mucd_ray.mechanism.partition import Partition
from mucd_ray.service.runs.settings import RunSettings
from mucd_ray.service.storage.store import Block

# From numbers of parts to the parameters of their policies, stacked [n, ...].
Parts = Callable[[list[int]], dict[str, torch.Tensor]]
# Instances from here on never vote: they choose the states that the others vote on.
HELD_OUT = 1 << 40
STATES_PER_HELD_OUT = 64
BASELINE_SEEDS = range(16)
# Losses on a distribution of returns (C51, QR-DQN) take fifty times as long for a transition as others.
DISTRIBUTION_BASELINE_SEEDS = range(4)
# Modules take minutes where dense networks take seconds.
MODULE_BASELINE_SEEDS = range(2)
# Steps of the environment that they may take in all, beyond one episode of each policy, and most episodes.
BASELINE_STEPS, MODULE_BASELINE_STEPS, MOST_BASELINE_EPISODES = 1 << 16, 1 << 14, 256


def train_and_evaluate(
    settings: RunSettings, secret: bytes, units: Units | Recorded, states: np.ndarray, instances: range, device: str, progress: Progress | None = None, parts: Parts | None = None
) -> Block:
    """Train instances, record what they do at `states` and play their episodes; `progress` is called again and again meanwhile.

    Args:
        parts: of a partition: the policies of parts that are trained already, by their numbers; by default those that are drawn are trained.
    Raises:
        MucdError: a return outside the declared range, so that no certificate could be based on it.
    """
    if isinstance(units, Recorded):
        return _from_outside(settings, secret, units, states, instances, device, progress)
    policies, parameters = _train(settings, secret, units, instances, device, progress, parts)
    return Block(first=instances[0], **_evaluated(settings, secret, policies, states, instances, progress), parameters=parameters, words=_score_words(settings))


def train_parts(settings: RunSettings, units: Units, states: np.ndarray, parts: range, device: str, progress: Progress | None = None) -> Block:
    """The policies of parts of a partition, from public randomness, and what they do at `states`; they play no episode, and all returns are 0."""
    parameters = _fit_parts(settings, units, list(parts), device, progress)
    stored = {name: tensor.numpy() for name, tensor in parameters.items()}
    unscored = None if settings.evaluator is None else np.zeros(len(parts), np.uint8)
    return Block(first=parts[0], returns=np.zeros(len(parts)), unscored=unscored, **_at_states(settings, trained_policies(settings.problem, parameters), states), parameters=stored)


def _evaluated(settings: RunSettings, secret: bytes, policies: Policies, states: np.ndarray, instances: range, progress: Progress | None) -> dict[str, Any]:
    return _returns(settings, secret, policies, instances, progress) | _at_states(settings, policies, states)


def _returns(settings: RunSettings, secret: bytes, policies: Policies, instances: range, progress: Progress | None) -> dict[str, np.ndarray]:
    """{"returns"}, all 0 where nothing is played; with an evaluator its scores, and "unscored"."""
    if not settings.rollouts:
        return {"returns": np.zeros(len(instances))}
    seeds, policies = rollout_seeds(secret, instances, settings.rollouts), settings.masked(policies)
    if settings.evaluator is not None:
        return dict(zip(("returns", "unscored"), open_scorer(settings, progress).scores(policies, settings.card, seeds)))
    returns = rollout_returns(policies, settings.card, seeds, discount=settings.discount, progress=progress)
    check_returns(settings, returns)
    return {"returns": returns}


def _at_states(settings: RunSettings, policies: Policies, states: np.ndarray) -> dict[str, Any]:
    at_states, policies = settings.card.features(states), settings.masked(policies)
    votes = actions_at(policies, at_states, settings.components or ()) if settings.actions else np.zeros((len(policies), 0), np.int16)
    return {"actions": votes, "levels": _levels(settings, policies, at_states)}


def _from_outside(settings, secret, units, states, instances, device, progress) -> Block:
    """One instance after the other: a policy lives in its learner's process, which takes part in nothing else."""
    words: dict[str, str] = {}
    done, contents, failed = [], [], []
    for instance, learner in _learners(settings, secret, units, instances, device, progress):
        found = _evaluated(settings, secret, learner, states, range(instance, instance + 1), progress)
        if learner.failure and learner.began:
            # It died, or its time was up, while it acted: then it is the default policy from its first action on.
            found = _evaluated(settings, secret, learner, states, range(instance, instance + 1), progress)
        done.append(found)
        contents.append(learner.content)
        failed.append(learner.failure)
        if learner.failure:
            words.setdefault(FAILURES[learner.failure], f"instance {instance}: {learner.why}")
    together = {name: np.concatenate([found[name] for found in done]) for name in done[0]}
    return Block(first=instances[0], **together, parameters={}, contents=tuple(contents), failed=np.array(failed, np.uint8), words=words | _score_words(settings))


def _learners(settings: RunSettings, secret: bytes, units: Recorded, instances: range, device: str, progress: Progress | None) -> Iterator[tuple[int, Learner]]:
    """The policy of each instance, by its own bag or the part that it draws, and a seed of its own: all that its learner gets."""
    nursery, streams, mechanism = open_nursery(settings, device, progress), Streams(secret), settings.mechanism
    if isinstance(mechanism, Partition):
        partition, parts = mechanism, units_by_part(mechanism, units)
        bags = (parts[draw_part(partition, instance, streams)] for instance in instances)
    else:
        bag = settings.mechanism_of(Bag)
        bags = (draw_bag(bag, len(units), instance, streams) for instance in instances)
    for instance, drawn in zip(instances, bags):
        seed = int(streams.generator(instance, 0, OUTSIDE).integers(1 << 32))
        with nursery.learner(units.bag(drawn, *nursery.spaces), seed) as learner:
            yield instance, learner


# One at a time in a process: it imports what the trainer needs once for all blocks.
_nurseries: dict[tuple[str, str], Nursery] = {}


def open_nursery(settings: RunSettings, device: str, progress: Progress | None = None) -> Nursery:
    """Raises MucdError where the trainer makes no policy of a public made-up bag."""
    key = settings.identity(), device
    if key not in _nurseries:
        while _nurseries:
            _nurseries.popitem()[1].close()
        assert settings.trainer is not None
        environment = settings.card.make()
        if settings.card.encoder is not None:
            outputs = gymnasium.spaces.Box(-np.inf, np.inf, (settings.card.width,), np.float32)
            environment = gymnasium.wrappers.TransformObservation(environment, settings.card.features, outputs)
        try:
            _nurseries[key] = Nursery(settings.trainer, environment, settings.mechanism.unit, device, progress, settings.mask)
        finally:
            environment.close()
    _nurseries[key].progress = progress
    return _nurseries[key]


_scorers: dict[str, Scorer] = {}


def open_scorer(settings: RunSettings, progress: Progress | None = None) -> Scorer:
    """The one of this process. Raises MucdError where the evaluator cannot be imported, or is not the one with which the run began."""
    key = settings.identity()
    if key not in _scorers:
        while _scorers:
            _scorers.popitem()[1].close()
        assert settings.evaluator is not None
        environment = settings.card.make()
        try:
            _scorers[key] = Scorer(settings.evaluator, (environment.observation_space, environment.action_space), progress)
        finally:
            environment.close()
    _scorers[key].progress = progress
    return _scorers[key]


def _score_words(settings: RunSettings) -> dict[str, str]:
    """Why scores failed, the first by each cause."""
    return {} if settings.evaluator is None else {f"score {cause}": words for cause, words in open_scorer(settings).words.items()}


def _levels(settings: RunSettings, policies: Policies, at_states: np.ndarray) -> np.ndarray:
    if settings.actions:
        return levels(probabilities_at(policies, at_states, settings.components or ()), 0.0, 1.0)
    if settings.action_bounds is None:
        return np.zeros((len(policies), len(at_states), 0), np.uint8)
    low, high = settings.action_limits
    space = gymnasium.spaces.Box(low, high, dtype=np.float64)
    return levels(clipped_actions_at(policies, at_states, space), low, high)


def check_returns(settings: RunSettings, returns: np.ndarray) -> None:
    low, high = settings.played_range
    outside = ~((returns >= low) & (returns <= high))
    if outside.any():
        fields = "return_range" if settings.discount == 1 else "reward_range and max_episode_steps"
        raise MucdError(
            f"a return of {returns[outside][0]} in {settings.card.env_id} is outside the declared range [{low}, {high}]: "
            f"correct {fields} in the card and start a new run"
        )


def choose_states(settings: RunSettings, secret: bytes, units: Units | Recorded, device: str, progress: Progress | None = None) -> np.ndarray:
    """States [S, *observation_shape] met by held-out instances, which do not vote: independent of every vote."""
    instances = range(HELD_OUT, HELD_OUT + settings.held_out)
    if isinstance(units, Recorded):
        learners = _learners(settings, secret, units, instances, device, progress)
        kept = np.concatenate([_met(settings, secret, learner, range(instance, instance + 1), progress) for instance, learner in learners])
    else:
        policies, _ = _train(settings, secret, units, instances, device, progress)
        kept = _met(settings, secret, policies, instances, progress)
    rng = np.random.default_rng(settings.states)
    return kept[rng.choice(len(kept), size=settings.states, replace=len(kept) < settings.states)]


def _met(settings: RunSettings, secret: bytes, policies: Policies, instances: range, progress: Progress | None) -> np.ndarray:
    """States that these policies meet, [n, *observation_shape]."""
    _, kept = rollout_returns(settings.masked(policies), settings.card, rollout_seeds(secret, instances, 1), keep_states=STATES_PER_HELD_OUT, progress=progress)
    return kept.reshape(-1, *kept.shape[2:])


def baselines(settings: RunSettings, units: Units | Recorded, states: np.ndarray, progress: Progress | None = None, trusted: Units | Recorded | None = None) -> dict:
    """What is compared with, but for constant actions (`best_constant`): where nothing is played `reference` alone, of discrete actions.

    Unprotected policies: mean returns of the same learner without privacy, on all data and on the `trusted` ones alone (with NAME_standard_error and NAME_episodes); and
    `reference`, the action that most of those on all data prefer at each state [S], or the values of its components [S, k] (the lowest of ties; None if actions are continuous). Without a transition to
    learn from, the former are missing; of a trainer from outside that fails on them there are words instead, NAME_failure."""
    found: dict = {}
    reference = None
    if not settings.rollouts:
        return {"reference": _reference(settings, units, states, progress) if settings.actions and units.lengths.any() else None}
    for name, data in (("non_private", units), ("trusted", trusted)):
        # Without any transition there is nothing to compare with; the private mechanism trains on noise alone.
        if data is None or not data.lengths.any():
            continue
        with _of_all(settings, data, progress) as policies:
            played = _played(settings, policies, progress)
            voted = _preferred(settings, policies, states) if settings.actions and name == "non_private" else reference
            if played is None:
                found[f"{name}_failure"] = cast(Learner, policies).why
            else:
                found |= {f"{name}{what}": value for what, value in played.items()}
                reference = voted
    return found | {"reference": reference}


def best_constant(settings: RunSettings, progress: Progress | None = None) -> dict:
    """The constant action that earns most, or scores most, and how much: what every policy is compared with, known without any data; {} where nothing is played."""
    if not settings.rollouts:
        return {}
    environment = settings.card.make()
    if settings.evaluator is None:
        constants = constant_returns(settings.card, environment.action_space, episodes=4, seed=0, discount=settings.discount, progress=progress, masked=settings.masked)
    else:
        names, policies = constant_policies(settings.card, environment.action_space)
        scores, _ = open_scorer(settings, progress).scores(settings.masked(policies), settings.card, np.zeros((len(names), 1), int))
        constants = dict(zip(names, scores.tolist()))
    environment.close()
    best = max(constants, key=constants.__getitem__)
    return {"best_constant_action": best, "best_constant_return": constants[best]}


def _reference(settings: RunSettings, units: Units | Recorded, states: np.ndarray, progress: Progress | None) -> list | None:
    with _of_all(settings, units, progress) as policies:
        preferred = _preferred(settings, policies, states)
        return None if getattr(policies, "failure", 0) else preferred


def _preferred(settings: RunSettings, policies: Policies, states: np.ndarray) -> list:
    """The action that most of the policies prefer at each state [S]; of several components the values, [S, k]."""
    components = settings.components or ()
    return best(counts(actions_at(settings.masked(policies), settings.card.features(states), components), settings.actions, components), components).tolist()


@contextlib.contextmanager
def _of_all(settings: RunSettings, units: Units | Recorded, progress: Progress | None) -> Iterator[Policies]:
    """Policies of the same learner from all of these units, with public seeds: of a trainer from outside one, which may have failed."""
    everything = np.arange(len(units))
    if isinstance(units, Recorded):
        nursery = open_nursery(settings, "cpu", progress)
        with nursery.learner(units.bag(everything, *nursery.spaces), 0) as learner:
            yield learner
        return
    problem = settings.problem
    effort: dict[str, Any] = {}
    if problem.module_factory is not None:
        seeds, effort = list(MODULE_BASELINE_SEEDS), {"steps": 300, "batch": 64, "learning_rate": 0.001}
    else:
        distribution = problem.discrete and problem.network.outputs > problem.actions
        seeds = list(DISTRIBUTION_BASELINE_SEEDS if distribution else BASELINE_SEEDS)
    if settings.fit is None:
        parameters = train_nonprivate(problem=problem, units=units, seeds=seeds, progress=progress, **effort)
    else:
        parameters = fit_policies(problem=problem, fit=settings.fit, units=units, bags=[everything] * len(seeds), instances=seeds, streams=PUBLIC, progress=progress)
    yield trained_policies(problem, parameters)


class _EachEpisode:
    """`times` copies of each policy, one for each of its episodes, whose returns are then told one by one; counts the steps that they take."""

    def __init__(self, policies: Policies, times: int):
        self.policies, self.times, self.steps = policies, times, 0

    def __len__(self) -> int:
        return len(self.policies) * self.times

    def outputs(self, features: np.ndarray, index: np.ndarray) -> np.ndarray:
        self.steps += len(features)
        return self.policies.outputs(features, index // self.times)


def _played(settings: RunSettings, policies: Policies, progress: Progress | None) -> dict[str, float] | None:
    """{"": mean return, "_standard_error": of it, "_episodes": how many}, of as many episodes of each policy as BASELINE_STEPS allow; None where a trainer from outside has failed.

    The standard error is that of policies as draws, or that of episodes where it is larger.
    """
    number = len(policies)
    if settings.evaluator is not None:
        scores, _ = open_scorer(settings, progress).scores(settings.masked(policies), settings.card, np.arange(number)[:, None])
        error = {"_standard_error": float(scores.std(ddof=1) / number**0.5)} if number > 1 else {}
        return None if getattr(policies, "failure", 0) else {"": float(scores.mean()), "_episodes": number} | error

    def returns(rounds: range) -> tuple[np.ndarray, int]:
        """([policies, rounds], steps taken)."""
        each = _EachEpisode(settings.masked(policies), len(rounds))
        seeds = np.arange(number)[:, None] + number * np.array(rounds)
        return rollout_returns(each, settings.card, seeds.reshape(-1), discount=settings.discount, progress=progress).reshape(number, -1), each.steps

    # One policy of a trainer from outside plays what others play together.
    first = len(BASELINE_SEEDS) if number == 1 else 1
    found, steps = returns(range(first))
    if getattr(policies, "failure", 0):
        return None
    most = MODULE_BASELINE_STEPS if settings.problem.module_factory is not None else BASELINE_STEPS
    rounds = min(MOST_BASELINE_EPISODES // number, first * most // max(1, steps))
    if rounds > first:
        more, _ = returns(range(first, rounds))
        # Its time to act may be up meanwhile.
        found = found if getattr(policies, "failure", 0) else np.concatenate([found, more], axis=1)
    errors = [values.std(ddof=1) / len(values) ** 0.5 for values in (found.mean(1), found.reshape(-1)) if len(values) > 1]
    return {"": float(found.mean()), "_standard_error": float(max(errors)), "_episodes": found.size}


def _train(settings, secret, units, instances, device, progress, parts=None):
    problem, train = settings.problem, TRAINING[settings.mechanism.kind]
    given = (parts,) if settings.mechanism.kind == Partition.kind else ()
    parameters = train(settings, Streams(secret), units, instances, device, progress, *given)
    return trained_policies(problem, parameters), {name: tensor.numpy() for name, tensor in parameters.items()}


def _train_with_noise(settings, streams, units, instances, device, progress):
    return train_block(problem=settings.problem, mechanism=settings.mechanism, units=units, instances=instances, streams=streams, device=device, progress=progress)


def _train_on_bags(settings, streams, units, instances, device, progress):
    bags = (draw_bag(settings.mechanism, len(units), instance, streams) for instance in instances)
    return fit_policies(problem=settings.problem, fit=settings.fit, units=units, bags=bags, instances=instances, streams=streams, device=device, progress=progress)


def _train_on_bags_with_noise(settings, streams, units, instances, device, progress):
    trained = []
    for instance in instances:
        bag = units_of(units, draw_bag(settings.mechanism.bag, len(units), instance, streams))
        trained.append(train_block(problem=settings.problem, mechanism=settings.mechanism.noise, units=bag, instances=[instance], streams=streams, device=device, progress=progress))
    return {name: torch.cat([policy[name] for policy in trained]) for name in trained[0]}


def _train_on_parts(settings, streams, units, instances, device, progress, parts):
    """Each instance is the policy of a part that it draws. A part's policy knows no secret: it is trained from public randomness, as the same policy whoever draws it."""
    drawn = [draw_part(settings.mechanism, instance, streams) for instance in instances]
    wanted = sorted(set(drawn))
    trained = _fit_parts(settings, units, wanted, device, progress) if parts is None else parts(wanted)
    rows = np.searchsorted(wanted, drawn)
    return {name: stacked[rows] for name, stacked in trained.items()}


def _fit_parts(settings, units, parts, device, progress):
    of_part = units_by_part(settings.mechanism, units)
    return fit_policies(problem=settings.problem, fit=settings.fit, units=units, bags=[of_part[part] for part in parts], instances=parts, streams=PUBLIC, device=device, progress=progress)


TRAINING = {Mechanism.kind: _train_with_noise, Bag.kind: _train_on_bags, BagThenNoise.kind: _train_on_bags_with_noise, Partition.kind: _train_on_parts}


def rollout_seeds(secret: bytes, instances: range, rollouts: int) -> np.ndarray:
    """Environment seeds [P, rollouts], of every instance from its own stream."""
    streams, seeds = Streams(secret), []
    for instance in instances:
        stream = streams.generator(instance, 0, ROLLOUT)
        seeds.append([stream.integers(1 << 31) for _ in range(rollouts)])
    return np.array(seeds)
