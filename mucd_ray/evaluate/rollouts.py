"""One episode per policy in the real environment."""

from collections.abc import Callable

import gymnasium
import numpy as np
import torch

from mucd_ray.data.cards import EnvironmentCard
from mucd_ray.errors import MucdError
from mucd_ray.evaluate.policies import StackedPolicies, environment_actions
from mucd_ray.learn.losses import policy_outputs
from mucd_ray.learn.networks import Network

Progress = Callable[[int], None]


def rollout_returns(
    policies: StackedPolicies,
    card: EnvironmentCard,
    seeds: np.ndarray,
    slots: int = 64,
    keep_states: int = 0,
    progress: Progress | None = None,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Undiscounted return of one episode of each policy.

    Each episode starts with its own seed in its own environment, so results depend neither on `slots` nor on which policies
    are evaluated together.

    Args:
        seeds: integers >= 0 [P], the environment seed of each policy's episode.
        slots: environments that are kept busy; one that finishes takes the next policy.
        keep_states: observations to keep per policy, drawn uniformly (with replacement only if the episode is shorter) from
            those it acted on, by a public generator seeded with the episode's seed.
        progress: called with the number of finished episodes.

    Returns:
        float64 [P]; with `keep_states` also the raw observations [P, keep_states, *observation_shape].

    Raises:
        MucdError: the number of seeds is not that of the policies, or there is no slot.
    """
    if len(seeds) != len(policies):
        raise MucdError(f"{len(seeds)} seeds for {len(policies)} policies: give one seed per policy")
    if slots < 1:
        raise MucdError(f"slots {slots} must be at least 1")
    if not keep_states and card.env_id in NATIVE and not card.make_kwargs:
        return NATIVE[card.env_id](policies, card, seeds, progress)
    return slot_queue(policies, card, seeds, slots, keep_states, progress)


def slot_queue(policies, card, seeds, slots, keep_states=0, progress=None):
    """`rollout_returns` in single environments, stepped in turn so that all policies act in one call."""
    environments = [card.make() for _ in range(min(slots, len(seeds)))]
    action_space = environments[0].action_space
    returns, kept = np.zeros(len(seeds)), [None] * len(seeds)
    waiting, finished, busy = iter(range(len(seeds))), 0, []

    def start(environment):
        policy = next(waiting, None)
        if policy is not None:
            observation, _ = environment.reset(seed=int(seeds[policy]))
            busy.append([environment, policy, observation, [observation]])

    try:
        for environment in environments:
            start(environment)
        while busy:
            observations = np.stack([observation for _, _, observation, _ in busy])
            index = np.array([policy for _, policy, _, _ in busy])
            outputs = policies.outputs(card.features(observations), index)
            playing, busy = busy, []
            for episode, action in zip(playing, environment_actions(action_space, outputs)):
                environment, policy, _, seen = episode
                observation, reward, terminated, truncated, _ = environment.step(action)
                returns[policy] += reward
                if not (terminated or truncated):
                    episode[2] = observation
                    if keep_states:
                        seen.append(observation)
                    busy.append(episode)
                    continue
                if keep_states:
                    kept[policy] = _sample_states(seen, keep_states, int(seeds[policy]))
                finished += 1
                if progress is not None:
                    progress(finished)
                start(environment)
    finally:
        for environment in environments:
            environment.close()
    return (returns, np.stack(kept)) if keep_states else returns


def _sample_states(seen: list[np.ndarray], count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, count])
    chosen = rng.choice(len(seen), size=count, replace=len(seen) < count)
    return np.stack([seen[step] for step in chosen])


def cartpole_returns(policies, card, seeds, progress=None):
    """`rollout_returns` in gymnasium's native vector CartPole, all policies at once."""
    environments = gymnasium.make_vec(card.env_id, num_envs=len(seeds), vectorization_mode="vector_entry_point")
    environments.reset(seed=0)
    single = card.make()
    starts = []
    for seed in seeds:
        single.reset(seed=int(seed))
        starts.append(single.unwrapped.state)
    # The vector environment draws all initial states from one seed; these are the ones of the single environments.
    environments.unwrapped.state = np.stack(starts, axis=1)
    observations = environments.unwrapped.state.T.astype(np.float32)
    returns, running, index = np.zeros(len(seeds)), np.ones(len(seeds), bool), np.arange(len(seeds))
    actions = np.zeros(len(seeds), np.int64)
    while running.any():
        outputs = policies.outputs(card.features(observations[running]), index[running])
        actions[running] = environment_actions(single.action_space, outputs)
        observations, rewards, terminated, truncated, _ = environments.step(actions)
        # A finished environment starts again by itself; what it does then is ignored.
        returns[running] += rewards[running]
        running &= ~(terminated | truncated)
        if progress is not None:
            progress(int((~running).sum()))
    environments.close()
    single.close()
    return returns


NATIVE = {"CartPole-v1": cartpole_returns}


def constant_returns(card: EnvironmentCard, action_space: gymnasium.Space, episodes: int, seed: int) -> dict[str, float]:
    """Mean return over `episodes` episodes of every policy that always takes the same action.

    Keys are the actions as text; for a Box space they are its bounds (the finite ones) and its centre, or zero if unbounded.

    Raises:
        MucdError: the action space is not supported.
    """
    constants = _constants(action_space)
    outputs = policy_outputs(action_space)
    network = Network(inputs=len(card.indices), outputs=outputs)
    biases = torch.tensor(np.repeat(list(constants.values()), episodes, axis=0), dtype=torch.float32)
    parameters = {"0.weight": torch.zeros(len(biases), network.inputs, outputs), "0.bias": biases}
    seeds = np.tile(np.arange(seed, seed + episodes), len(constants))
    returns = rollout_returns(StackedPolicies(network, parameters), card, seeds)
    return dict(zip(constants, returns.reshape(len(constants), episodes).mean(1).tolist()))


def _constants(action_space: gymnasium.Space) -> dict[str, np.ndarray]:
    """Network outputs [out] of each constant action."""
    if isinstance(action_space, gymnasium.spaces.Discrete):
        return {str(int(action_space.start) + action): np.eye(int(action_space.n))[action] for action in range(int(action_space.n))}
    policy_outputs(action_space)
    low, high = action_space.low.flatten(), action_space.high.flatten()
    bounded = np.isfinite(low) & np.isfinite(high)
    centre = np.where(bounded, (np.where(bounded, low, 0) + np.where(bounded, high, 0)) / 2, 0.0)
    return {"low": np.where(bounded, low, 0.0), "centre": centre, "high": np.where(bounded, high, 0.0)}
