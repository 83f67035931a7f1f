"""The work itself, without Ray: what one trainer does for a block of instances. Deterministic in (settings, secret, instance)."""

import gymnasium
import numpy as np

from mucd_ray.certify.file.evidence import levels
from mucd_ray.errors import MucdError
from mucd_ray.evaluate.policies import StackedPolicies, trained_policies
from mucd_ray.evaluate.rollouts import Progress, constant_returns, rollout_returns
from mucd_ray.evaluate.votes import actions_at, clipped_actions_at, counts, probabilities_at
from mucd_ray.learn.ensemble import train_block
from mucd_ray.learn.nonprivate import PUBLIC, train_nonprivate
from mucd_ray.learn.streams import ROLLOUT, Streams
from mucd_ray.learn.trainers.bags import draw_bag
from mucd_ray.learn.trainers.built_in import fit_policies
from mucd_ray.learn.trainers.parts import draw_part, units_by_part
from mucd_ray.learn.units import Units
from mucd_ray.mechanism.bag import Bag
from mucd_ray.mechanism.gaussian.mechanism import Mechanism
from mucd_ray.mechanism.partition import Partition
from mucd_ray.service.runs.settings import RunSettings
from mucd_ray.service.storage.store import Block

# Instances from here on never vote: they choose the states that the others vote on.
HELD_OUT = 1 << 40
STATES_PER_HELD_OUT = 64
BASELINE_SEEDS = range(16)
# Losses on a distribution of returns (C51, QR-DQN) take fifty times as long for a transition as others.
DISTRIBUTION_BASELINE_SEEDS = range(4)
# Modules take minutes where dense networks take seconds.
MODULE_BASELINE_SEEDS = range(2)


def train_and_evaluate(
    settings: RunSettings, secret: bytes, units: Units, states: np.ndarray, instances: range, device: str, progress: Progress | None = None
) -> Block:
    """Train instances, record what they do at `states` and play their episodes; `progress` is called again and again meanwhile.

    Raises:
        MucdError: a return outside the declared range, so that no certificate could be based on it.
    """
    policies, parameters = _train(settings, secret, units, instances, device, progress)
    returns = rollout_returns(policies, settings.card, _rollout_seeds(secret, instances, settings.rollouts), discount=settings.discount, progress=progress)
    check_returns(settings, returns)
    at_states = settings.card.features(states)
    votes = actions_at(policies, at_states) if settings.actions else np.zeros((len(instances), 0), np.int16)
    return Block(first=instances[0], returns=returns, actions=votes, levels=_levels(settings, policies, at_states), parameters=parameters)


def _levels(settings: RunSettings, policies: StackedPolicies, at_states: np.ndarray) -> np.ndarray:
    if settings.actions:
        return levels(probabilities_at(policies, at_states), 0.0, 1.0)
    if settings.action_bounds is None:
        return np.zeros((len(policies), len(at_states), 0), np.uint8)
    low, high = (np.array(bounds) for bounds in settings.action_bounds)
    space = gymnasium.spaces.Box(low, high, dtype=np.float64)
    return levels(clipped_actions_at(policies, at_states, space), low, high)


def check_returns(settings: RunSettings, returns: np.ndarray) -> None:
    low, high = settings.return_range
    outside = ~((returns >= low) & (returns <= high))
    if outside.any():
        fields = "return_range" if settings.discount == 1 else "reward_range and max_episode_steps"
        raise MucdError(
            f"a return of {returns[outside][0]} in {settings.card.env_id} is outside the declared range [{low}, {high}]: "
            f"correct {fields} in the card and start a new run"
        )


def choose_states(settings: RunSettings, secret: bytes, units: Units, device: str, progress: Progress | None = None) -> np.ndarray:
    """States [S, *observation_shape] met by held-out instances, which do not vote: independent of every vote."""
    instances = range(HELD_OUT, HELD_OUT + settings.held_out)
    policies, _ = _train(settings, secret, units, instances, device, progress)
    _, kept = rollout_returns(policies, settings.card, _rollout_seeds(secret, instances, 1), keep_states=STATES_PER_HELD_OUT, progress=progress)
    kept = kept.reshape(-1, *kept.shape[2:])
    rng = np.random.default_rng(settings.states)
    return kept[rng.choice(len(kept), size=settings.states, replace=len(kept) < settings.states)]


def baselines(settings: RunSettings, units: Units, states: np.ndarray, progress: Progress | None = None) -> dict:
    """Unprotected policies: mean returns of the same learner without privacy, and of every constant action; and `reference`, the
    action that most of the former prefer at each state [S] (the lowest of ties; None if actions are continuous). Without a transition to learn from, the former are missing."""
    problem = settings.problem
    if problem.module_factory is not None:
        seeds, effort = list(MODULE_BASELINE_SEEDS), {"steps": 300, "batch": 64, "learning_rate": 0.001}
    else:
        distribution = problem.discrete and problem.network.outputs > problem.actions
        seeds, effort = list(DISTRIBUTION_BASELINE_SEEDS if distribution else BASELINE_SEEDS), {}
    found, reference = {}, None
    # Without any transition there is nothing to compare with; the private mechanism trains on noise alone.
    if units.lengths.any():
        if settings.fit is None:
            parameters = train_nonprivate(problem=problem, units=units, seeds=seeds, progress=progress, **effort)
        else:
            everything = np.arange(len(units))
            parameters = fit_policies(problem=problem, fit=settings.fit, units=units, bags=[everything] * len(seeds), instances=seeds, streams=PUBLIC, progress=progress)
        policies = trained_policies(problem, parameters)
        found["non_private"] = float(rollout_returns(policies, settings.card, np.array(seeds), discount=settings.discount, progress=progress).mean())
        if settings.actions:
            reference = counts(actions_at(policies, settings.card.features(states)), settings.actions).argmax(1).tolist()
    environment = settings.card.make()
    constants = constant_returns(settings.card, environment.action_space, episodes=4, seed=0, discount=settings.discount, progress=progress)
    environment.close()
    best = max(constants, key=constants.get)
    return found | {"best_constant_action": best, "best_constant_return": constants[best], "reference": reference}


def _train(settings, secret, units, instances, device, progress):
    problem = settings.problem
    parameters = TRAINING[settings.mechanism.kind](settings, Streams(secret), units, instances, device, progress)
    return trained_policies(problem, parameters), {name: tensor.numpy() for name, tensor in parameters.items()}


def _train_with_noise(settings, streams, units, instances, device, progress):
    return train_block(problem=settings.problem, mechanism=settings.mechanism, units=units, instances=instances, streams=streams, device=device, progress=progress)


def _train_on_bags(settings, streams, units, instances, device, progress):
    bags = (draw_bag(settings.mechanism, len(units), instance, streams) for instance in instances)
    return fit_policies(problem=settings.problem, fit=settings.fit, units=units, bags=bags, instances=instances, streams=streams, progress=progress)


def _train_on_parts(settings, streams, units, instances, device, progress):
    """Each instance is the policy of a part that it draws. A part's policy knows no secret: it is trained from public randomness, as the same policy whoever draws it."""
    parts, drawn = units_by_part(settings.mechanism, units), [draw_part(settings.mechanism, instance, streams) for instance in instances]
    wanted = sorted(set(drawn))
    trained = fit_policies(problem=settings.problem, fit=settings.fit, units=units, bags=[parts[part] for part in wanted], instances=wanted, streams=PUBLIC, progress=progress)
    rows = np.searchsorted(wanted, drawn)
    return {name: stacked[rows] for name, stacked in trained.items()}


TRAINING = {Mechanism.kind: _train_with_noise, Bag.kind: _train_on_bags, Partition.kind: _train_on_parts}


def _rollout_seeds(secret: bytes, instances: range, rollouts: int) -> np.ndarray:
    """Environment seeds [P, rollouts], of every instance from its own stream."""
    streams, seeds = Streams(secret), []
    for instance in instances:
        stream = streams.generator(instance, 0, ROLLOUT)
        seeds.append([stream.integers(1 << 31) for _ in range(rollouts)])
    return np.array(seeds)
