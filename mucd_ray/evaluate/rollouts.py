"""Episodes of every policy in the real environment."""

import math
from collections.abc import Callable
from typing import overload

import gymnasium
import numpy as np
import torch

from mucd_ray.data.environments.card import EnvironmentCard, check_discount
from mucd_ray.errors import MucdError
from mucd_ray.evaluate.policies import Policies, StackedPolicies, environment_actions
from mucd_ray.learn.networks import Network
from mucd_ray.learn.problem import action_shape
from mucd_ray.learn.scores import components_of
from mucd_ray.words import counted

# Called again and again while work goes on.
Progress = Callable[[], None]


@overload
def rollout_returns(policies: Policies, card: EnvironmentCard, seeds: np.ndarray, slots: int = ..., *, progress: Progress | None = ..., discount: float = ...) -> np.ndarray: ...
@overload
def rollout_returns(policies: Policies, card: EnvironmentCard, seeds: np.ndarray, slots: int = ..., *, keep_states: int, progress: Progress | None = ..., discount: float = ...) -> tuple[np.ndarray, np.ndarray]: ...
def rollout_returns(
    policies: Policies,
    card: EnvironmentCard,
    seeds: np.ndarray,
    slots: int = 64,
    keep_states: int = 0,
    progress: Progress | None = None,
    discount: float = 1.0,
):
    """Return sum_t discount^t r_t of each policy: of one episode, or the mean over m episodes; every episode's return is clipped first
    where the card says so (`clip_returns`).

    Each episode starts with its own seed in its own environment, so results depend neither on `slots` nor on which policies
    are evaluated together.

    Args:
        seeds: integers >= 0, [P] or [P, m]: the environment seeds of each policy's episodes.
        slots: environments that are kept busy; one that finishes takes the next episode.
        keep_states: observations to keep per policy, drawn uniformly (with replacement only if the episode is shorter) from
            those it acted on, by a public generator seeded with the episode's seed. Only with one episode per policy.
        progress: called after each step of the environments.
        discount: in (0, 1].

    Returns:
        float64 [P]; with `keep_states` also the raw observations [P, keep_states, *observation_shape].

    Raises:
        MucdError: the number of seeds is not that of the policies, there is no slot, the environment has no time limit, or a reward leaves the
            card's reward_range, on which the range of discounted returns rests.
    """
    seeds = np.asarray(seeds)
    if len(seeds) != len(policies):
        raise MucdError(f"{counted(len(seeds), 'seed')} for {counted(len(policies), 'policy')}: give one seed per policy")
    if slots < 1:
        raise MucdError(f"slots {slots} must be at least 1")
    check_discount(discount)
    seeds = seeds.reshape(len(policies), -1)
    if not seeds.shape[1] or keep_states and seeds.shape[1] > 1:
        raise MucdError(f"{counted(seeds.shape[1], 'episode')} per policy: give at least one seed each, and exactly one where states are kept")
    episodes, owners = seeds.reshape(-1), np.repeat(np.arange(len(policies)), seeds.shape[1])
    if not keep_states and card.env_id in NATIVE and card.is_as_registered:
        return means(card.clipped(NATIVE[card.env_id](policies, card, episodes, owners, progress, discount)), seeds.shape)
    returns, kept = slot_queue(policies, card, episodes, owners, slots, keep_states, progress, discount)
    returns = means(card.clipped(returns), seeds.shape)
    return (returns, kept) if keep_states else returns


def means(returns: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Mean over each policy's episodes, [P m] -> [P]; rounding never moves it out of their range. NaN where a return is not finite."""
    returns = returns.reshape(shape)
    means = np.array([math.fsum(episodes) if np.isfinite(episodes).all() else np.nan for episodes in returns]) / shape[1]
    return np.clip(means, returns.min(1), returns.max(1))


def slot_queue(policies, card, seeds, owners, slots, keep_states=0, progress=None, discount=1.0):
    """Returns [E] of episodes with `seeds` [E] by the policies `owners` [E], and kept states [E, ...] or None: in single environments,
    stepped in turn so that all policies act in one call."""
    environments = [card.make() for _ in range(min(slots, len(seeds)))]
    action_space = environments[0].action_space
    returns, kept = np.zeros(len(seeds)), [None] * len(seeds)
    waiting, busy = iter(range(len(seeds))), []

    def start(environment):
        number = next(waiting, None)
        if number is not None:
            observation, _ = environment.reset(seed=int(seeds[number]))
            busy.append([environment, number, observation, 1.0, [observation]])

    try:
        for environment in environments:
            start(environment)
        while busy:
            observations = np.stack([episode[2] for episode in busy])
            index = np.array([owners[episode[1]] for episode in busy])
            outputs = policies.outputs(card.features(observations), index)
            playing, busy = busy, []
            for episode, action in zip(playing, environment_actions(action_space, outputs)):
                environment, number, _, weight, seen = episode
                observation, reward, terminated, truncated, _ = environment.step(action)
                returns[number] += weight * float(reward)
                check_reward(card, reward)
                if not (terminated or truncated):
                    episode[2:4] = observation, weight * discount
                    if keep_states:
                        seen.append(observation)
                    busy.append(episode)
                    continue
                if keep_states:
                    kept[number] = _sample_states(seen, keep_states, int(seeds[number]))
                start(environment)
            if progress is not None:
                progress()
    finally:
        for environment in environments:
            environment.close()
    return returns, np.stack(kept) if keep_states else None


def check_reward(card: EnvironmentCard, reward: float) -> None:
    if card.reward_range is not None and not card.reward_range[0] <= reward <= card.reward_range[1]:
        raise MucdError(f"a reward of {reward} in {card.env_id} is outside the card's reward_range {card.reward_range}: correct the card")


def _sample_states(seen: list[np.ndarray], count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, count])
    chosen = rng.choice(len(seen), size=count, replace=len(seen) < count)
    return np.stack([seen[step] for step in chosen])


def cartpole_returns(policies, card, seeds, owners, progress=None, discount=1.0):
    """The returns of `slot_queue` in gymnasium's native vector CartPole, all episodes at once."""
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
    returns, running, weight = np.zeros(len(seeds)), np.ones(len(seeds), bool), 1.0
    actions = np.zeros(len(seeds), np.int64)
    while running.any():
        outputs = policies.outputs(card.features(observations[running]), owners[running])
        actions[running] = environment_actions(single.action_space, outputs)
        observations, rewards, terminated, truncated, _ = environments.step(actions)
        # A finished environment starts again by itself; what it does then is ignored.
        returns[running] += weight * rewards[running].astype(float)
        weight *= discount
        for reward in (rewards[running].min(), rewards[running].max()):
            check_reward(card, reward)
        running &= ~(terminated | truncated)
        if progress is not None:
            progress()
    environments.close()
    single.close()
    return returns


NATIVE = {"CartPole-v1": cartpole_returns}


def constant_returns(
    card: EnvironmentCard, action_space: gymnasium.Space, episodes: int, seed: int, discount: float = 1.0, progress: Progress | None = None, masked: Callable[[Policies], Policies] = lambda policies: policies,
) -> dict[str, float]:
    """Mean (discounted) return over `episodes` episodes of every policy that always takes the same action.

    Keys are the actions as text; for a Box space they are its bounds (the finite ones) and its centre, or zero if unbounded; for actions of several components the lowest, the middle and the highest value of all. `masked` makes policies act as they may (`MaskedPolicies`, say).

    Raises:
        MucdError: the action space is not supported.
    """
    names, policies = constant_policies(card, action_space)
    seeds = np.tile(np.arange(seed, seed + episodes), (len(names), 1))
    returns = rollout_returns(masked(policies), card, seeds, discount=discount, progress=progress)
    return dict(zip(names, returns.tolist()))


def constant_policies(card: EnvironmentCard, action_space: gymnasium.Space) -> tuple[list[str], StackedPolicies]:
    """Names of constant actions as in `constant_returns`, and the policies that always take them. Raises MucdError as it does."""
    constants = _constants(action_space)
    outputs, _ = action_shape(action_space)
    network = Network(inputs=card.width, outputs=outputs)
    biases = torch.tensor(np.stack(list(constants.values())), dtype=torch.float32)
    parameters = {"0.weight": torch.zeros(len(biases), network.inputs, outputs), "0.bias": biases}
    return list(constants), StackedPolicies(network, parameters)


def _constants(action_space: gymnasium.Space) -> dict[str, np.ndarray]:
    """Network outputs [out] of each constant action."""
    if isinstance(action_space, gymnasium.spaces.Discrete):
        return {str(int(action_space.start) + action): np.eye(int(action_space.n))[action] for action in range(int(action_space.n))}
    if components := components_of(action_space):
        values = {"low": [0] * len(components), "centre": [values // 2 for values in components], "high": [values - 1 for values in components]}
        return {name: np.concatenate([np.eye(count)[value] for count, value in zip(components, chosen)]) for name, chosen in values.items()}
    action_shape(action_space)
    assert isinstance(action_space, gymnasium.spaces.Box)
    low, high = action_space.low.flatten(), action_space.high.flatten()
    bounded = np.isfinite(low) & np.isfinite(high)
    centre = np.where(bounded, (np.where(bounded, low, 0) + np.where(bounded, high, 0)) / 2, 0.0)
    return {"low": np.where(bounded, low, 0.0), "centre": centre, "high": np.where(bounded, high, 0.0)}
