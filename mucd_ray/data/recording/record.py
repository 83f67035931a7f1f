"""Recording real Minari datasets with scripted behaviour policies."""

from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import numpy as np
from minari.data_collector import EpisodeBuffer
from minari.storage import get_dataset_path

from mucd_ray.data.environments.cards import card_for
from mucd_ray.data.environments.frames import SIDE, STACK, AtariFrames
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
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    root: Path | None = None,
) -> dict:
    """Run a behaviour policy in the real environment and write whole episodes as a Minari dataset (HDF5, float32/uint8 as observed).

    Every run of len(noise) episodes has each noise level once, in random order; episodes are added until there are at least `transitions`
    transitions. Everything follows from `seed`. The dataset appears under its id only when complete; a killed recording leaves none.

    Args:
        env_id: an environment with a shipped card and behaviour.
        behaviour: its name, or None for the environment's first.
        transitions: at least this many, in whole episodes.
        seed: a whole number, at least 0.
        dataset_id: Minari id "(namespace/)name-v0".
        noise: noise levels (see `Behaviour`), instead of the behaviour's own.
        frames: store small grey frames of an Atari game (mucd_ray/data/environments/frames.py); the behaviour acts on the emulator's RAM all the same.
        operators: so many operators take turns, of whom each has one of the noise levels in all episodes, of which each has at least one; the key `OPERATOR` of an episode says whose it is. None: no such key.
        overwrite: replace an existing dataset of this id.
        progress: called as progress(transitions so far, wanted) after each episode.
        root: the folder of the datasets, by default Minari's.
    Returns:
        Plain values: dataset_id, path, env_id, behaviour, seed, transitions, trajectories, mean_return, return_by_noise.
    Raises:
        MucdError: bad arguments, an existing id without `overwrite`, or a folder that cannot be written.
    """
    chosen = behaviour_for(env_id, behaviour)
    levels = chosen.noise if noise is None else tuple(noise)
    if transitions < 1 or seed < 0:
        raise MucdError(f"transitions {transitions} and seed {seed}: give at least 1 transition and a seed of at least 0")
    if not levels or not all(0 <= level <= 1 for level in levels):
        raise MucdError(f"noise {levels} must be one or more levels in [0, 1]")
    if operators is not None and not 1 <= operators <= transitions:
        raise MucdError(f"operators {operators}: give at least 1, and at most as many as transitions")
    path = target_folder(dataset_id, overwrite, root or get_dataset_path())
    shape = (STACK, SIDE, SIDE)
    card = card_for(env_id, shape if frames else None, make_kwargs=chosen.make_kwargs)
    if frames and card.observation_shape != shape:
        raise MucdError(f"{env_id} has no recording of frames: leave out --frames, or choose an Atari game")
    environment = card.make()
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


def _episodes(environment: gym.Env, behaviour: Behaviour, turns, transitions: int, least: int, seed: int, progress):
    """Whole episodes, at least so many transitions and episodes, as (buffers, which of the noise levels `turns` each has). Episode k depends on (seed, k) alone, beside its level."""
    order = np.random.default_rng([seed, 0])
    episodes, taken, total = [], [], 0
    while total < transitions or len(episodes) < least:
        if len(episodes) % len(turns) == 0:
            upcoming = list(order.permutation(len(turns)))
        taken.append(int(upcoming.pop()))
        rng = np.random.default_rng([seed, 1, len(episodes)])
        policy = behaviour.policy(float(turns[taken[-1]]), environment.action_space, rng)
        episodes.append(_episode(environment, policy, int(rng.integers(2**31))))
        total += len(episodes[-1])
        if progress:
            progress(total, transitions)
    return episodes, taken


def _episode(environment: gym.Env, policy, seed: int) -> EpisodeBuffer:
    observation, _ = environment.reset(seed=seed)
    observations, actions, rewards, ended = [observation], [], [], (False, False)
    sees_ram = isinstance(environment, AtariFrames)
    while not any(ended):
        actions.append(policy(environment.unwrapped.ale.getRAM() if sees_ram else observation))
        observation, reward, *ended, _ = environment.step(actions[-1])
        observations.append(observation)
        rewards.append(reward)
    # Every step but the last neither terminated nor truncated.
    flags = np.zeros((2, len(rewards)), bool)
    flags[:, -1] = ended
    return EpisodeBuffer(
        seed=seed,
        observations=np.stack(observations),
        actions=np.array(actions),
        rewards=np.array(rewards, np.float64),
        terminations=flags[0],
        truncations=flags[1],
    )


def _write(environment, behaviour, episodes, metadata, dataset_id, path, overwrite) -> None:
    continuous = isinstance(environment.action_space, gym.spaces.Box)
    noise = "standard deviation of Gaussian noise, in half ranges of an action," if continuous else "probability of a uniformly random action"
    description = f"{behaviour.description}; {noise} per episode: {sorted({values['noise'] for values in metadata})}"
    write_dataset(
        dataset_id, path, episodes, observation_space=environment.observation_space, action_space=environment.action_space, env_spec=environment.spec,
        metadata={"algorithm_name": behaviour.name, "description": description}, episode_metadata=metadata, overwrite=overwrite,
    )
