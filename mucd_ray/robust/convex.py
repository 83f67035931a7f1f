"""Poisoned SGD on a convex problem: logistic regression over a ball, its excess risk, and bounds on it with all constants (docs/robust.md proves them)."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from mucd_ray.errors import MucdError

# ln(1 + exp(-y <w, x>)) has a derivative along x of at most 1, which changes by at most a quarter of what y <w, x> does.
SMOOTHNESS = 0.25


@dataclass(frozen=True, kw_only=True)
class Problem:
    """F(w) = mean of ln(1 + exp(-y <w, x>)) over a finite population, drawn from with equal chances; over w of norm at most `radius`.

    Attributes:
        samples: [N, d], of L2 norm at most 1.
        labels: [N], -1 or 1.
        radius: R > 0.

    Raises:
        MucdError: a field is outside its range.
    """

    samples: np.ndarray
    labels: np.ndarray
    radius: float

    def __post_init__(self):
        if self.samples.ndim != 2 or self.labels.shape != self.samples.shape[:1] or not len(self.labels) or not (np.abs(self.labels) == 1).all():
            raise MucdError(f"samples {self.samples.shape} with labels {self.labels.shape} do not fit: [N, d] with labels of -1 and 1 [N] are wanted")
        if not (np.linalg.norm(self.samples, axis=1) <= 1 + 1e-12).all() or not 0 < self.radius < math.inf:
            raise MucdError(f"samples must be of norm at most 1, and the radius {self.radius} positive: divide the samples by the largest norm")

    def risk(self, weights: np.ndarray) -> float:
        """F at w [d]."""
        return float(np.logaddexp(0, -self.labels * (self.samples @ weights)).mean())

    def gradient(self, weights: np.ndarray) -> np.ndarray:
        """That of F at w [d]: [d]."""
        return gradients(weights, self.samples, self.labels).mean(axis=0)

    def least_risk(self, steps: int = 20_000) -> float:
        """A lower bound on F(w*), by what convexity leaves after projected gradient descent: F(w*) >= F(w) - <grad F(w), w> - R |grad F(w)|."""
        weights = np.zeros(self.samples.shape[1])
        for _ in range(steps):
            weights = self.within(weights - self.gradient(weights) / SMOOTHNESS)
        gradient = self.gradient(weights)
        return self.risk(weights) - float(gradient @ weights) - self.radius * float(np.linalg.norm(gradient))

    def within(self, weights: np.ndarray) -> np.ndarray:
        """The nearest point of the ball."""
        return weights * min(1.0, self.radius / max(float(np.linalg.norm(weights)), 1e-300))


def gradients(weights: np.ndarray, samples: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Of ln(1 + exp(-y <w, x>)) with respect to w [d], at samples [n, d] with labels [n]: [n, d]."""
    return -(labels * expit(-labels * (samples @ weights)))[:, None] * samples


def poisoned_sgd(problem: Problem, drawn: np.ndarray, samples: np.ndarray, labels: np.ndarray, rate: float) -> tuple[np.ndarray, float]:
    """Projected SGD from 0 over poisoned samples [n, d] with labels [n], in whose places the clean ones are those of the population in rows `drawn` [n].

    Returns the mean of the n iterates before their steps, and the sum of the norms of zeta_i, the gradient of the poisoned sample less that of the clean one at the same iterate.
    """
    weights, total, changes = np.zeros(samples.shape[1]), np.zeros(samples.shape[1]), 0.0
    for row, x, y in zip(drawn, samples, labels):
        total += weights
        clean, seen = gradients(weights, np.stack([problem.samples[row], x]), np.array([problem.labels[row], y]))
        changes += float(np.linalg.norm(seen - clean))
        weights = problem.within(weights - rate * seen)
    return total / len(drawn), changes


@dataclass(frozen=True, kw_only=True)
class ExcessRisk:
    """Bounds on F(mean of the iterates) - F(w*) of SGD from 0 with a fixed rate, over a ball, on n samples of norm at most 1, of which an attacker moves each by at most B and all by at most S, and flips k labels.

    Attributes:
        samples: n.
        radius: R of the ball.
        rate: eta > 0; None: R / sqrt(n).
        per_sample: B.
        total: S.
        flips: k.

    Formal guarantees: the bounds hold on average over the clean samples, or, with `delta`, with probability at least 1 - delta.

    Raises:
        MucdError: a field is outside its range.
    """

    samples: int
    radius: float
    rate: float | None = None
    per_sample: float = 0.0
    total: float = 0.0
    flips: float = 0.0

    def __post_init__(self):
        if self.samples < 1 or not 0 < self.radius < math.inf or not (self.rate is None or self.rate > 0):
            raise MucdError(f"{self.samples} samples, radius {self.radius} and rate {self.rate} do not fit: all must be positive numbers")
        if not all(0 <= value < math.inf for value in (self.per_sample, self.total, self.flips)):
            raise MucdError(f"B = {self.per_sample}, S = {self.total} and k = {self.flips} must be numbers of at least 0")

    @property
    def step(self) -> float:
        return self.radius / math.sqrt(self.samples) if self.rate is None else self.rate

    @property
    def gradient_changes(self) -> float:
        """At most this is the sum of the norms of all zeta_i: (1 + R / 4) S + k (1 + B)."""
        return (1 + SMOOTHNESS * self.radius) * self.total + self.flips * (1 + self.per_sample)

    def online(self, delta: float | None = None) -> float:
        """Against an attacker who knows all that was drawn so far, but not what comes: R^2 / (2 eta n) + eta (1 + B)^2 / 2 + 2 R Z / n, Z = `gradient_changes`."""
        optimisation = self.radius**2 / (2 * self.step * self.samples) + self.step * (1 + self.per_sample) ** 2 / 2
        return optimisation + 2 * self.radius * self.gradient_changes / self.samples + self._chance(delta)

    def offline(self, delta: float | None = None) -> float:
        """Against one who poisons the whole sample at once, knowing all of it: R^2 / (2 eta n) + eta / 2 + eta Z, Z = `gradient_changes`.

        Raises:
            MucdError: a rate above 8, for which steps may drive two iterates apart.
        """
        if self.step > 2 / SMOOTHNESS:
            raise MucdError(f"rate {self.step} is above {2 / SMOOTHNESS:g}: take a smaller one")
        return self.radius**2 / (2 * self.step * self.samples) + self.step / 2 + self.step * self.gradient_changes + self._chance(delta)

    def _chance(self, delta: float | None) -> float:
        """Azuma and Hoeffding, for a sum of n terms each of which lies, given the past, in an interval of length 4 R."""
        if delta is None:
            return 0.0
        if not 0 < delta < 1:
            raise MucdError(f"delta {delta} is outside (0, 1): it is the probability that the bound may be wrong, for example 0.001")
        return 4 * self.radius * math.sqrt(math.log(1 / delta) / (2 * self.samples))
