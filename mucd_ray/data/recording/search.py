"""A linear controller of HalfCheetah by random search: the recipe behind halfcheetah.json. `python -m mucd_ray.data.recording.search FILE` (two minutes of one core).

Evolution strategies (Salimans et al. 2017, "Evolution strategies as a scalable alternative to reinforcement learning") climb the mean
return over large relative errors of the weights, so what they find still runs when its weights are only roughly known, as they are
after learning with noise. The first stage searches in standardised observations. The second one goes on in the few principal components
of what the first one's controller sees, scaled to variance 1: a policy of these has few parameters, and an error in any of them moves
actions about as much.
"""

import json
import sys
from collections.abc import Callable

import gymnasium as gym
import numpy as np

from mucd_ray.data.environments.make import make_environment

SEED, ROUNDS = 1, (200, 40)  # of either stage
DIRECTIONS, HORIZON = 12, 200  # errors tried in a round, each with both signs for the first HORIZON steps of an episode
GAIN, GAINS = 3.0, (0.75, 1.33)  # greatest Frobenius norm of the weights, and random factors of them in the second stage
SPREAD, STEP = 0.3, 0.96  # size of the errors in units of GAIN; step of a round in units of that over sqrt(8)
COMPONENTS, CLIP = 4, 3.0  # kept, and limited to [-CLIP, CLIP]
NOISE, EPISODES, STEPS = (0.0, 0.1, 0.2, 0.4), 5, 1000  # the components come from EPISODES of STEPS at each of these levels
DECIMALS = 6
SHA256 = "b6a82cbb9e3577696bc08bb71d94e844f34a1d29eef0267b95c09c538dc4fb8f"  # of halfcheetah.json

Controller = Callable[[np.ndarray], np.ndarray]


class Standardised:
    """Observations seen so far: their mean and variance, and controllers of standardised observations."""

    def __init__(self, width: int):
        self.count, self.mean, self.squares = 1, np.zeros(width), np.ones(width)

    def add(self, observations: np.ndarray) -> None:
        """Observations [n][width] of one episode."""
        new, gap = len(observations), observations.mean(0) - self.mean
        total = self.count + new
        self.squares = self.squares + ((observations - observations.mean(0)) ** 2).sum(0) + gap**2 * self.count * new / total
        self.mean, self.count = self.mean + gap * new / total, total

    def controller(self, weights: np.ndarray) -> Controller:
        by_entry = weights[:, :-1] / np.sqrt(self.squares / self.count)
        bias = weights[:, -1] - by_entry @ self.mean
        return lambda observation: by_entry @ observation + bias


class Principal:
    """The first principal components of standardised observations, scaled to variance 1, and controllers of them."""

    def __init__(self, observations: np.ndarray):
        self.center, scale = observations.mean(0), observations.std(0)
        variances, axes = np.linalg.eigh(np.cov((observations - self.center).T / scale[:, None]))
        self.components = (axes / np.sqrt(variances)).T[: -COMPONENTS - 1 : -1] / scale

    def of(self, observations: np.ndarray) -> np.ndarray:
        """[..., 17] -> [..., COMPONENTS]."""
        return np.clip((observations - self.center) @ self.components.T, -CLIP, CLIP)

    def controller(self, weights: np.ndarray) -> Controller:
        return lambda observation: weights[:, :-1] @ self.of(observation) + weights[:, -1]

    def fitted(self, observations: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Least squares weights [6][COMPONENTS + 1], the bias last."""
        rows = self.of(observations)
        return np.linalg.lstsq(np.column_stack([rows, np.ones(len(rows))]), actions, rcond=None)[0].T


def linear_search(environment: gym.Env, seed: int, rounds: tuple[int, int], progress: Callable[[float], None] | None = None) -> dict:
    """The controller action = clip(weights @ z + bias, -1, 1) of z = clip(components @ (observation - center), -CLIP, CLIP).

    Args:
        environment: HalfCheetah.
        seed: of the errors, the noise and the episodes.
        rounds: of both stages, each round with 2 * DIRECTIONS episodes.
        progress: called with the mean return of a round's episodes.
    Returns:
        {"center" [17], "components" [COMPONENTS][17], "weights" [6][COMPONENTS], "bias" [6]}, rounded to DECIMALS digits.
    """
    rng = np.random.default_rng(seed)
    standardised, weights = Standardised(17), rng.standard_normal((6, 18))
    weights *= GAIN / np.linalg.norm(weights) * 0.3
    for _ in range(rounds[0]):
        weights, value, seen = _round(environment, standardised, weights, rng)
        for observations in seen:
            standardised.add(observations)
        if progress:
            progress(value)
    return _second_stage(environment, standardised.controller(weights), seed, rounds[1], progress)


def _second_stage(environment, first: Controller, seed: int, rounds: int, progress) -> dict:
    rng = np.random.default_rng([seed, 2])
    episodes = [_episode(environment, first, int(rng.integers(2**31)), STEPS, lambda: level * rng.standard_normal(6)) for level in NOISE * EPISODES]
    observations = np.concatenate([seen for _, seen in episodes])
    principal = Principal(observations)
    weights = principal.fitted(observations, np.clip([first(observation) for observation in observations], -1, 1))
    weights *= GAIN / np.linalg.norm(weights)
    for _ in range(rounds):
        weights, value, _ = _round(environment, principal, weights, rng, GAINS)
        if progress:
            progress(value)
    found = {"center": principal.center, "components": principal.components, "weights": weights[:, :-1], "bias": weights[:, -1]}
    return {name: values.round(DECIMALS).tolist() for name, values in found.items()}


def _round(environment, coordinates: Standardised | Principal, weights, rng, gains=None) -> tuple[np.ndarray, float, list[np.ndarray]]:
    """One step uphill: new weights [6][d + 1], the bias last, and the mean return and the observations of the episodes."""
    spread, seen = SPREAD * GAIN / np.sqrt(weights.size), []
    directions, returns = rng.standard_normal((DIRECTIONS, *weights.shape)), np.zeros((DIRECTIONS, 2))
    for row, direction in enumerate(directions):
        start, gain = int(rng.integers(2**31)), rng.uniform(*gains) if gains else 1.0
        for column, sign in enumerate((1, -1)):
            controller = coordinates.controller(gain * (weights + sign * spread * direction))
            returns[row, column], observations = _episode(environment, controller, start, HORIZON)
            seen.append(observations)
    slope = np.tensordot(returns[:, 0] - returns[:, 1], directions, 1) / (DIRECTIONS * (returns.std() + 1e-9))
    weights = weights + STEP * spread * slope / np.sqrt(8)
    return weights * min(1.0, GAIN / np.linalg.norm(weights)), returns.mean(), seen


def _episode(environment, controller: Controller, seed: int, steps: int, noise=None) -> tuple[float, np.ndarray]:
    """(Return, observations [steps][17]) of the first steps of an episode, which never ends early."""
    total, observations = 0.0, []
    observation, _ = environment.reset(seed=seed)
    for _ in range(steps):
        observations.append(observation)
        action = np.clip(controller(observation), -1, 1)
        if noise:
            action = np.clip(action + noise(), -1, 1)
        observation, reward, _, _, _ = environment.step(action.astype(np.float32))
        total += reward
    return total, np.array(observations)


if __name__ == "__main__":
    found = linear_search(make_environment("HalfCheetah-v5"), SEED, ROUNDS, lambda value: print(round(value), flush=True))
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump(found, file)
