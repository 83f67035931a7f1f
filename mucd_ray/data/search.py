"""Linear controllers by random search: the recipe behind the weights in halfcheetah.json. `python -m mucd_ray.data.search FILE` (80 s).

Augmented random search (Mania, Guy, Recht 2018, "Simple random search provides a competitive approach to reinforcement learning",
algorithm 2, V2-t): every round tries opposite perturbations of the weights for one episode each, and steps along the best of them.
"""

import json
import sys

import gymnasium as gym
import numpy as np

from mucd_ray.data.environments import make_environment

SEED, ROUNDS, CHECKPOINTS = 13, 480, (30, 80, 160, 300, 480)
DIRECTIONS, BEST, STEP, SPREAD = 8, 4, 0.02, 0.03
HORIZON = 200  # steps of an episode that count here: shorter episodes, more rounds
DECIMALS = 4
SHA256 = "60a94e1c5723a32961e182e0ed20003b7e962f597e3f4edb5dc9557376ea9bcf"  # of halfcheetah.json


def linear_search(environment: gym.Env, seed: int, rounds: int, checkpoints: tuple[int, ...], progress=None) -> list[dict]:
    """Controllers action = clip(weights @ observation + bias) after some of the rounds.

    Args:
        environment: with a one-dimensional Box for observations [d] and for actions [k].
        seed: of the perturbations and of the episodes.
        rounds: each plays 2 * DIRECTIONS episodes.
        checkpoints: rounds after which the controller is kept.
        progress: called as progress(round, mean return of its episodes).
    Returns:
        {"round", "weights" [k][d], "bias" [k]}, rounded to DECIMALS digits.
    """
    rng = np.random.default_rng(seed)
    weights = np.zeros((environment.action_space.shape[0], environment.observation_space.shape[0]))
    count, mean, squares = 1, np.zeros(weights.shape[1]), np.ones(weights.shape[1])
    kept = []
    for number in range(1, rounds + 1):
        scale, directions = np.sqrt(squares / count), rng.standard_normal((DIRECTIONS, *weights.shape))
        returns, seen = np.zeros((DIRECTIONS, 2)), []
        for row, direction in enumerate(directions):
            start = int(rng.integers(2**31))
            for column, sign in enumerate((1, -1)):
                trial = (weights + sign * SPREAD * direction) / scale
                returns[row, column], observations = _episode(environment, trial, -trial @ mean, start)
                seen.append(observations)
        chosen = np.argsort(-returns.max(1))[:BEST]
        change = (returns[chosen, 0] - returns[chosen, 1]) @ directions[chosen].reshape(BEST, -1)
        weights = weights + STEP / (BEST * returns[chosen].std()) * change.reshape(weights.shape)
        if number in checkpoints:
            kept.append({"round": number, "weights": (weights / scale).round(DECIMALS).tolist(), "bias": (-weights / scale @ mean).round(DECIMALS).tolist()})
        for observations in seen:  # running mean and squared deviations
            total, gap = count + len(observations), observations.mean(0) - mean
            squares = squares + ((observations - observations.mean(0)) ** 2).sum(0) + gap**2 * count * len(observations) / total
            mean, count = mean + gap * len(observations) / total, total
        if progress:
            progress(number, returns.mean())
    return kept


def _episode(environment, weights, bias, seed):
    space, total, done, observations = environment.action_space, 0.0, False, []
    observation, _ = environment.reset(seed=seed)
    while not done and len(observations) < HORIZON:
        observations.append(observation)
        action = np.clip(weights @ observation + bias, space.low, space.high).astype(space.dtype)
        observation, reward, terminated, truncated, _ = environment.step(action)
        total, done = total + reward, terminated or truncated
    return total, np.array(observations)


if __name__ == "__main__":
    found = linear_search(make_environment("HalfCheetah-v5"), SEED, ROUNDS, CHECKPOINTS, lambda number, value: print(number, round(value), flush=True))
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump(found, file)
