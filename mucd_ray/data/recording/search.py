"""Linear controllers by random search: the recipes behind halfcheetah.json (two minutes of one core) and hopper.json (40 seconds).
`python -m mucd_ray.data.recording.search ENVIRONMENT FILE`

Evolution strategies (Salimans et al. 2017, "Evolution strategies as a scalable alternative to reinforcement learning") climb the mean
return over errors of the weights, of a linear controller of standardised observations (Mania et al. 2018, "Simple random search of static
linear policies is competitive for reinforcement learning"). HalfCheetah's errors are large, so that what is found still runs when its weights
are only roughly known, as they are after learning with noise; and a second stage goes on in the few principal components of what the first one's
controller sees, scaled to variance 1: a policy of these has few parameters, and an error in any of them moves actions about as much.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass

import gymnasium as gym
import numpy as np

from mucd_ray.data.environments.make import make_environment
from mucd_ray.data.spaces import shape_of

EPISODES, STEPS = 5, 1000  # the components come from EPISODES of STEPS at each of LEVELS
LEVELS = (0.0, 0.1, 0.2, 0.4)
CLIP = 3.0  # components are limited to [-CLIP, CLIP]
DECIMALS = 6


@dataclass(frozen=True, kw_only=True)
class Search:
    """The constants of one search.

    Attributes:
        seed: of the errors, the noise and the episodes.
        rounds: of either stage.
        directions: errors tried in a round, each with both signs.
        horizon: steps of an episode, which ends early where the environment ends it.
        standing: what a step earns for not falling, taken off: a controller that only stands would be a summit.
        noise: standard deviations of the actions' Gaussian noise, of which each direction draws one.
        gain: greatest Frobenius norm of the weights.
        start: of the first weights, in units of that.
        gains: random factors of them in the second stage.
        spread, step: size of the errors in units of `gain`; step of a round in units of that over sqrt(8).
        components: kept by the second stage; 0: no second stage.
        sha256: of the shipped file.
    """

    seed: int
    rounds: tuple[int, int]
    directions: int = 12
    horizon: int
    standing: float = 0.0
    noise: tuple[float, ...] = (0.0,)
    gain: float = 3.0
    start: float
    gains: tuple[float, float] = (0.75, 1.33)
    spread: float
    step: float
    components: int = 0
    sha256: str


SEARCHES = {
    "HalfCheetah-v5": Search(
        seed=1, rounds=(200, 40), horizon=200, start=0.3, spread=0.3, step=0.96, components=4,
        sha256="b6a82cbb9e3577696bc08bb71d94e844f34a1d29eef0267b95c09c538dc4fb8f",
    ),
    "Hopper-v5": Search(
        seed=2, rounds=(60, 0), horizon=1000, standing=1.0, noise=(0.0, 0.1, 0.2), start=0.0, spread=0.1, step=1.7,
        sha256="e7f9758b76dffbd112aa7efb6f522a5856a8612c7d471206efb63671b65b7dd3",
    ),
}

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

    def folded(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights [k][d] and bias [k] of plain observations, from those [k][d + 1] of standardised ones."""
        by_entry = weights[:, :-1] / np.sqrt(self.squares / self.count)
        return by_entry, weights[:, -1] - by_entry @ self.mean

    def controller(self, weights: np.ndarray) -> Controller:
        by_entry, bias = self.folded(weights)
        return lambda observation: by_entry @ observation + bias


class Principal:
    """The first principal components of standardised observations, scaled to variance 1, and controllers of them."""

    def __init__(self, observations: np.ndarray, components: int):
        self.center, scale = observations.mean(0), observations.std(0)
        variances, axes = np.linalg.eigh(np.cov((observations - self.center).T / scale[:, None]))
        self.components = (axes / np.sqrt(variances)).T[: -components - 1 : -1] / scale

    def of(self, observations: np.ndarray) -> np.ndarray:
        """[..., d] -> [..., components]."""
        return np.clip((observations - self.center) @ self.components.T, -CLIP, CLIP)

    def controller(self, weights: np.ndarray) -> Controller:
        return lambda observation: weights[:, :-1] @ self.of(observation) + weights[:, -1]

    def fitted(self, observations: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Least squares weights [k][components + 1], the bias last."""
        rows = self.of(observations)
        return np.linalg.lstsq(np.column_stack([rows, np.ones(len(rows))]), actions, rcond=None)[0].T


def linear_search(search: Search, environment: gym.Env, progress: Callable[[float], None] | None = None) -> dict:
    """A linear controller of `environment`, whose observations are [d] and actions [k], each in [-1, 1].

    Args:
        progress: called with the mean return of a round's episodes.
    Returns:
        Rounded to DECIMALS digits: after one stage {"weights" [k][d], "bias" [k]}, of action = clip(weights @ observation + bias, -1, 1); after two
        {"center" [d], "components" [components][d], "weights" [k][components], "bias" [k]}, of action = clip(weights @ z + bias, -1, 1) and
        z = clip(components @ (observation - center), -CLIP, CLIP).
    """
    (width,), (torques,) = shape_of(environment.observation_space), shape_of(environment.action_space)
    rng = np.random.default_rng(search.seed)
    standardised, weights = Standardised(width), rng.standard_normal((torques, width + 1))
    weights *= search.gain / np.linalg.norm(weights) * search.start
    for _ in range(search.rounds[0]):
        weights, value, seen = _round(search, environment, standardised, weights, rng)
        for observations in seen:
            standardised.add(observations)
        if progress:
            progress(value)
    if search.components:
        found = _second_stage(search, environment, standardised.controller(weights), progress)
    else:
        by_entry, bias = standardised.folded(weights)
        found = {"weights": by_entry, "bias": bias}
    return {name: values.round(DECIMALS).tolist() for name, values in found.items()}


def _second_stage(search: Search, environment, first: Controller, progress) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([search.seed, 2])
    episodes = [_episode(search, environment, first, int(rng.integers(2**31)), STEPS, level, rng) for level in LEVELS * EPISODES]
    observations = np.concatenate([seen for _, seen in episodes])
    principal = Principal(observations, search.components)
    weights = principal.fitted(observations, np.clip([first(observation) for observation in observations], -1, 1))
    weights *= search.gain / np.linalg.norm(weights)
    for _ in range(search.rounds[1]):
        weights, value, _ = _round(search, environment, principal, weights, rng, search.gains)
        if progress:
            progress(value)
    return {"center": principal.center, "components": principal.components, "weights": weights[:, :-1], "bias": weights[:, -1]}


def _round(search: Search, environment, coordinates: Standardised | Principal, weights, rng, gains=None) -> tuple[np.ndarray, float, list[np.ndarray]]:
    """One step uphill: new weights [k][d + 1], the bias last, and the mean return and the observations of the episodes."""
    spread, seen = search.spread * search.gain / np.sqrt(weights.size), []
    directions, returns = rng.standard_normal((search.directions, *weights.shape)), np.zeros((search.directions, 2))
    for row, direction in enumerate(directions):
        start, gain = int(rng.integers(2**31)), rng.uniform(*gains) if gains else 1.0
        level = search.noise[start % len(search.noise)]
        for column, sign in enumerate((1, -1)):
            controller = coordinates.controller(gain * (weights + sign * spread * direction))
            # Both signs meet the same noise.
            returns[row, column], observations = _episode(search, environment, controller, start, search.horizon, level, np.random.default_rng(start))
            seen.append(observations)
    slope = np.tensordot(returns[:, 0] - returns[:, 1], directions, 1) / (search.directions * (returns.std() + 1e-9))
    weights = weights + search.step * spread * slope / np.sqrt(8)
    return weights * min(1.0, search.gain / np.linalg.norm(weights)), returns.mean(), seen


def _episode(search: Search, environment, controller: Controller, seed: int, steps: int, level: float, rng) -> tuple[float, np.ndarray]:
    """(Return without what standing earns, observations [steps][d]) of at most the first `steps` steps of an episode, with noise `level` on its actions."""
    observations: list[np.ndarray] = []
    total, ended = 0.0, False
    observation, _ = environment.reset(seed=seed)
    while not ended and len(observations) < steps:
        observations.append(observation)
        action = np.clip(controller(observation), -1, 1)
        action = np.clip(action + level * rng.standard_normal(action.shape), -1, 1)
        observation, reward, ended, _, _ = environment.step(action.astype(np.float32))
        total += reward - search.standing
    return total, np.array(observations)


if __name__ == "__main__":
    env_id, path = sys.argv[1:]
    found = linear_search(SEARCHES[env_id], make_environment(env_id), lambda value: print(round(value), flush=True))
    with open(path, "w", encoding="utf-8") as file:
        json.dump(found, file)
