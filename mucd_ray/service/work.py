"""The work itself, without Ray: what one trainer does for a block of instances. Deterministic in (settings, secret, instance)."""

import numpy as np

from mucd_ray.evaluate.policies import StackedPolicies
from mucd_ray.evaluate.rollouts import constant_returns, rollout_returns
from mucd_ray.evaluate.votes import actions_at
from mucd_ray.learn.ensemble import train_block
from mucd_ray.learn.nonprivate import train_nonprivate
from mucd_ray.learn.streams import ROLLOUT, Streams
from mucd_ray.service.settings import RunSettings
from mucd_ray.service.store import Block

# Instances from here on never vote: they choose the states that the others vote on.
HELD_OUT = 1 << 40
STATES_PER_HELD_OUT = 64
BASELINE_SEEDS = range(16)


def train_and_evaluate(settings: RunSettings, secret: bytes, features, targets, states: np.ndarray, instances: range, device: str) -> Block:
    """Train instances, let them vote at `states` and play one episode each."""
    policies, parameters = _train(settings, secret, features, targets, instances, device)
    returns = rollout_returns(policies, settings.card, _rollout_seeds(secret, instances))
    votes = actions_at(policies, settings.card.features(states)) if settings.actions else np.zeros((len(instances), 0), np.int16)
    return Block(first=instances[0], returns=returns, actions=votes, parameters=parameters)


def choose_states(settings: RunSettings, secret: bytes, features, targets, device: str) -> np.ndarray:
    """States [S, *observation_shape] met by held-out instances, which do not vote: independent of every vote."""
    instances = range(HELD_OUT, HELD_OUT + settings.held_out)
    policies, _ = _train(settings, secret, features, targets, instances, device)
    _, kept = rollout_returns(policies, settings.card, _rollout_seeds(secret, instances), keep_states=STATES_PER_HELD_OUT)
    kept = kept.reshape(-1, *kept.shape[2:])
    rng = np.random.default_rng(settings.states)
    return kept[rng.choice(len(kept), size=settings.states, replace=len(kept) < settings.states)]


def baselines(settings: RunSettings, features, targets) -> dict:
    """Mean returns of unprotected policies: the same learner without privacy, and every constant action."""
    seeds = list(BASELINE_SEEDS)
    parameters = train_nonprivate(
        network=settings.network, algorithm=settings.learner.algorithm, features=features, actions=targets, seeds=seeds
    )
    returns = rollout_returns(StackedPolicies(settings.network, parameters), settings.card, np.array(seeds))
    environment = settings.card.make()
    constants = constant_returns(settings.card, environment.action_space, episodes=4, seed=0)
    environment.close()
    best = max(constants, key=constants.get)
    return {"non_private": float(returns.mean()), "best_constant_action": best, "best_constant_return": constants[best]}


def _train(settings, secret, features, targets, instances, device):
    parameters = train_block(
        network=settings.network,
        learner=settings.learner,
        mechanism=settings.mechanism,
        features=features,
        actions=targets,
        instances=instances,
        streams=Streams(secret),
        device=device,
    )
    return StackedPolicies(settings.network, parameters), {name: tensor.numpy() for name, tensor in parameters.items()}


def _rollout_seeds(secret: bytes, instances: range) -> np.ndarray:
    streams = Streams(secret)
    return np.array([streams.generator(instance, 0, ROLLOUT).integers(1 << 31) for instance in instances])
