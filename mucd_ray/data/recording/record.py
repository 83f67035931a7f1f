"""Recording real Minari datasets with scripted behaviour policies."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
from minari.data_collector import EpisodeBuffer
from minari.storage import get_dataset_path

from mucd_ray.data.environments.cards import known_card
from mucd_ray.data.environments.frames import SIDE, STACK, AtariFrames
from mucd_ray.data.environments.make import limited, make_environment, spec_of
from mucd_ray.data.environments.own import UserEnvironment
from mucd_ray.data.formats.writing import target_folder, write_dataset
from mucd_ray.data.recording.behaviours import Behaviour, behaviour_for
from mucd_ray.errors import MucdError

# The source key of recordings by several operators.
OPERATOR = "operator"


def record(
    env_id: str,
    behaviour: str | None,
    transitions: int,
    seed: int,
    dataset_id: str,
    noise: tuple[float, ...] | None = None,
    *,
    frames: bool = False,
    operators: int | None = None,
    policy: Behaviour | None = None,
    said: UserEnvironment = UserEnvironment(),
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    root: Path | None = None,
) -> dict:
    """Run a behaviour policy in the real environment and write whole episodes as a Minari dataset (HDF5, float32/uint8 as observed).

    Every run of len(noise) episodes has each noise level once, in random order; episodes are added until there are at least `transitions`
    transitions. Everything follows from `seed`. The dataset appears under its id only when complete; a killed recording leaves none.

    Args:
        env_id: an environment with a shipped behaviour; with a `policy` any.
        behaviour: its name, or None for the environment's first.
        transitions: at least this many, in whole episodes.
        seed: a whole number, at least 0.
        dataset_id: Minari id "(namespace/)name-v0".
        noise: noise levels (see `Behaviour`), instead of the behaviour's own.
        frames: store small grey frames of an Atari game (mucd_ray/data/environments/frames.py); the behaviour acts on the emulator's RAM all the same.
        operators: so many operators take turns, of whom each has one of the noise levels in all episodes, of which each has at least one; the key `OPERATOR` of an episode says whose it is. None: no such key.
        policy: takes the place of the behaviour (`given_policy`).
        said: how the environment is made, if not as its shipped card says; whoever calls imports its modules.
        overwrite: replace an existing dataset of this id.
        progress: called as progress(transitions so far, wanted) after each episode.
        root: the folder of the datasets, by default Minari's.
    Returns:
        Plain values: dataset_id, path, env_id, behaviour, seed, transitions, trajectories, mean_return, return_by_noise.
    Raises:
        MucdError: bad arguments, an existing id without `overwrite`, or a folder that cannot be written.
    """
    if policy is not None and behaviour is not None:
        raise MucdError(f"--behaviour {behaviour} and --policy {policy.name}: leave one of them out")
    chosen = policy or behaviour_for(env_id, behaviour)
    levels = chosen.noise if noise is None else tuple(noise)
    if transitions < 1 or seed < 0:
        raise MucdError(f"transitions {transitions} and seed {seed}: give at least 1 transition and a seed of at least 0")
    if not levels or not all(0 <= level <= 1 for level in levels):
        raise MucdError(f"noise {levels} must be one or more levels in [0, 1]")
    if operators is not None and not 1 <= operators <= transitions:
        raise MucdError(f"operators {operators}: give at least 1, and at most as many as transitions")
    path = target_folder(dataset_id, overwrite, root or get_dataset_path())
    environment = _made(env_id, chosen, frames, said)
    try:
        turns = levels if operators is None else [levels[operator % len(levels)] for operator in range(operators)]
        episodes, taken = _episodes(environment, chosen, turns, transitions, operators or 0, seed, progress)
        metadata = [{"noise": float(turns[turn])} | ({} if operators is None else {OPERATOR: f"operator-{turn}"}) for turn in taken]
        _write(environment, chosen, episodes, metadata, dataset_id, path, overwrite)
    finally:
        environment.close()
    returns, drawn = np.array([episode.rewards.sum() for episode in episodes]), np.array([values["noise"] for values in metadata])
    return {
        "dataset_id": dataset_id,
        "path": str(path),
        "env_id": env_id,
        "behaviour": chosen.name,
        "seed": seed,
        "transitions": sum(len(episode) for episode in episodes),
        "trajectories": len(episodes),
        "mean_return": float(returns.mean()),
        "return_by_noise": {str(level): float(returns[drawn == level].mean()) for level in sorted(set(drawn))},
    }


def _made(env_id: str, behaviour: Behaviour, frames: bool, said: UserEnvironment) -> gym.Env:
    """As the shipped card, or that of a plug-in, makes it, which `mucd run` would take; else as it is registered."""
    if behaviour.make_kwargs is not None and said.make_kwargs not in (None, behaviour.make_kwargs):
        raise MucdError(f"--make-kwargs {said.make_kwargs} are not those of the behaviour {behaviour.name}, {behaviour.make_kwargs}: choose another behaviour, or leave them out")
    shape = (STACK, SIDE, SIDE)
    wanted = said.make_kwargs if behaviour.make_kwargs is None else behaviour.make_kwargs
    card, _ = known_card(env_id, shape if frames else None, make_kwargs=wanted)
    if frames and (card is None or card.observation_shape != shape):
        raise MucdError(f"{env_id} has no recording of frames: leave out --frames, or choose an Atari game")
    if card is not None and wanted in (None, card.make_kwargs):
        return said.of_card(card).make()
    environment = limited(make_environment(env_id, **(wanted or {})), env_id, said.max_episode_steps)
    if environment.observation_space.shape is None:
        environment.close()
        raise MucdError(f"observations of {env_id} are a {type(environment.observation_space).__name__}, not one array: record it with Minari's DataCollector, or wrap the environment")
    return environment


def _episodes(environment: gym.Env, behaviour: Behaviour, turns, transitions: int, least: int, seed: int, progress):
    """Whole episodes, at least so many transitions and episodes, as (buffers, which of the noise levels `turns` each has). Episode k depends on (seed, k) alone, beside its level."""
    order = np.random.default_rng([seed, 0])
    episodes: list[EpisodeBuffer] = []
    taken: list[int] = []
    total = 0
    while total < transitions or len(episodes) < least:
        if len(episodes) % len(turns) == 0:
            upcoming = list(order.permutation(len(turns)))
        taken.append(int(upcoming.pop()))
        rng = np.random.default_rng([seed, 1, len(episodes)])
        policy = behaviour.policy(float(turns[taken[-1]]), environment.action_space, rng)
        episodes.append(_episode(environment, policy, int(rng.integers(2**31)), isinstance(environment, AtariFrames) and not behaviour.sees_recorded))
        total += len(episodes[-1])
        if progress:
            progress(total, transitions)
    return episodes, taken


def _episode(environment: gym.Env, policy, seed: int, sees_ram: bool) -> EpisodeBuffer:
    observation, _ = environment.reset(seed=seed)
    observations, actions, rewards = [observation], [], []
    terminated = truncated = False
    while not (terminated or truncated):
        actions.append(policy(cast(Any, environment.unwrapped).ale.getRAM() if sees_ram else observation))
        observation, reward, terminated, truncated, _ = environment.step(actions[-1])
        observations.append(observation)
        rewards.append(float(reward))
    # Every step but the last neither terminated nor truncated.
    flags = np.zeros((2, len(rewards)), bool)
    flags[:, -1] = terminated, truncated
    stacked = np.stack(observations)
    if not (np.isfinite(stacked).all() and np.isfinite(rewards).all()):
        raise MucdError(f"environment {spec_of(environment).id} gives NaN or inf among its observations or rewards: mend it; nothing is recorded")
    return EpisodeBuffer(seed=seed, observations=stacked, actions=np.array(actions), rewards=np.array(rewards, np.float64), terminations=flags[0], truncations=flags[1])


def _write(environment, behaviour, episodes, metadata, dataset_id, path, overwrite) -> None:
    continuous = isinstance(environment.action_space, gym.spaces.Box)
    noise = "standard deviation of Gaussian noise, in half ranges of an action," if continuous else "probability of a uniformly random action"
    description = f"{behaviour.description}; {noise} per episode: {sorted({values['noise'] for values in metadata})}"
    write_dataset(
        dataset_id, path, episodes, observation_space=environment.observation_space, action_space=environment.action_space, env_spec=_spec(environment),
        metadata={"algorithm_name": behaviour.name, "description": description}, episode_metadata=metadata, overwrite=overwrite,
    )


def _spec(environment: gym.Env):
    """What a dataset says about its environment: of a function or a class that is registered itself, its name."""
    spec = spec_of(environment)
    if not callable(spec.entry_point):
        return spec
    return dataclasses.replace(spec, entry_point=f"{spec.entry_point.__module__}:{getattr(spec.entry_point, '__qualname__', type(spec.entry_point).__qualname__)}")
