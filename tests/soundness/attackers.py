"""Attackers that attain the worst case: in a simulated scalar mechanism, and as canary units that the real engine trains on.

A mechanism is at its worst if all that an attacker removed or inserted pushes along one line: `removed` units that D has and D'
lacks by +C each, `inserted` units that D' has and D lacks by -C each. Steps on D then add Binom(removed, q) and steps on D' subtract
Binom(inserted, q), in units of C, from noise of standard deviation sigma; other units cancel out. The attacker ranks outputs by
their likelihood ratio (Neyman and Pearson), and every output of a policy is a function of that rank.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.special import logsumexp, ndtr
from scipy.stats import binom

from mucd_ray.learn.ensemble import train_block
from mucd_ray.learn.learner import Learner, LocalUpdate
from mucd_ray.learn.problem import Problem
from mucd_ray.learn.streams import Streams
from mucd_ray.learn.units import Units
from mucd_ray.mechanism.gaussian.mechanism import Mechanism

TABLE = 20_001


def mechanism(sample_rate: float, sigma: float, steps: int) -> Mechanism:
    return Mechanism(sample_rate=sample_rate, noise_multiplier=sigma, clip_norm=1.0, steps=steps, normaliser=1.0)


@dataclass(frozen=True)
class Attack:
    """One attack on T steps. For a single step its effect is known exactly, for several from `runs` simulated trainings.

    An instance trained on D is at rank v in [0, 1], uniformly: v = 0 speaks most for D, v = 1 most for D'.
    """

    sample_rate: float
    sigma: float
    steps: int
    inserted: int
    removed: int
    runs: int = 1_000_000

    def outputs(self, rng, shape) -> tuple[np.ndarray, np.ndarray]:
        """Log-likelihood ratio of D to D' of trainings on D, and of trainings on D': two arrays [shape]."""
        ratios = []
        for units, sign in ((self.removed, +1), (self.inserted, -1)):
            total = np.zeros(shape)
            for _ in range(self.steps):
                x = rng.normal(0.0, self.sigma, shape)
                if units:
                    x += sign * rng.binomial(units, self.sample_rate, shape)
                total += self._log_ratio(x)
            ratios.append(total)
        return ratios[0], ratios[1]

    def ranks(self, rng, shape) -> np.ndarray:
        """Ranks of instances trained on D, each simulated step by step."""
        thresholds, under_d, _ = self._curve
        return np.interp(self.outputs(rng, shape)[0], thresholds[::-1], under_d[::-1])

    def poisoned(self, p):
        """P_D'(rank <= p), where P_D(rank <= p) = p: what is left of an event of probability p."""
        _, under_d, under_d_prime = self._curve
        return np.interp(p, under_d, under_d_prime)

    def critical(self, level: float = 0.5) -> float:
        """The p of which the attack leaves `level`."""
        _, under_d, under_d_prime = self._curve
        return float(np.interp(level, under_d_prime, under_d))

    def expectation(self, output) -> float:
        """E_D'[output(rank)]."""
        _, under_d, under_d_prime = self._curve
        p = np.unique(np.concatenate([under_d, np.linspace(0.0, 1.0, TABLE)]))
        return float(output((p[1:] + p[:-1]) / 2) @ np.diff(np.interp(p, under_d, under_d_prime)))

    def total_variation(self) -> float:
        _, under_d, under_d_prime = self._curve
        return float(np.max(under_d - under_d_prime))

    @cached_property
    def _curve(self):
        """(thresholds of the log-likelihood ratio, falling; probabilities above them under D and under D', increasing from 0 to 1)."""
        if self.steps == 1:
            reach = 9 * self.sigma
            x = np.linspace(-self.inserted - reach, self.removed + reach, TABLE)[::-1]
            thresholds = self._exact_log_ratio(x)
            under_d, under_d_prime = (self._above(x, units, sign) for units, sign in ((self.removed, +1), (self.inserted, -1)))
        else:
            on_d, on_d_prime = (np.sort(ratios)[::-1] for ratios in self.outputs(np.random.default_rng(0), self.runs))
            thresholds = on_d[:: self.runs // TABLE]
            under_d = np.arange(self.runs)[:: self.runs // TABLE] / self.runs
            under_d_prime = np.searchsorted(-on_d_prime, -thresholds) / self.runs
        # A rank of 0 or 1 must be reached, and equal thresholds must not repeat.
        thresholds, first = np.unique(-thresholds, return_index=True)
        pad = [np.r_[0.0, values[first], 1.0] for values in (under_d, under_d_prime)]
        return np.r_[np.inf, -thresholds, -1e300], *pad

    def _above(self, x, units, sign):
        k = np.arange(units + 1)
        return ndtr((sign * k - x[:, None]) / self.sigma) @ binom.pmf(k, units, self.sample_rate)

    def _log_ratio(self, x):
        low, high, values = self._table
        return np.interp(x, np.linspace(low, high, len(values)), values)

    @cached_property
    def _table(self):
        low, high = -self.inserted - 9 * self.sigma, self.removed + 9 * self.sigma
        return low, high, self._exact_log_ratio(np.linspace(low, high, 4001))

    def _exact_log_ratio(self, x):
        parts = []
        for units, sign in ((self.removed, +1), (self.inserted, -1)):
            k = np.arange(units + 1)
            exponents = (2 * sign * k * x[:, None] - k**2) / (2 * self.sigma**2)
            parts.append(logsumexp(exponents, axis=1, b=binom.pmf(k, units, self.sample_rate)))
        return parts[0] - parts[1]


@dataclass(frozen=True)
class Canaries:
    """An end-to-end attack on the real engine: canary units among ordinary ones, and trained policies as all that the auditor sees.

    Canaries have no features, so their whole clipped gradient lies on the two biases, along one line whatever the parameters are: one
    recorded action pushes one way, the other action the other way. Ordinary units have large features; their clipped gradients hardly
    touch the biases. The auditor looks at the difference of the two biases, which adds up the noisy sums of all steps.

    With `length` > 1 the units are trajectories of so many transitions, two of which take part in a step, and make two local steps.
    """

    mechanism: Mechanism = Mechanism(sample_rate=0.2, noise_multiplier=2.0, clip_norm=0.1, steps=5, normaliser=10.0)
    ordinary: int = 40
    length: int = 1

    @property
    def problem(self) -> Problem:
        return Problem(learner=Learner(learning_rate=0.01, local=LocalUpdate(cap=2, steps=2)), inputs=2, actions=2, discrete=True)

    def dataset(self, pushing: int, pulling: int, feature: float = 0.0) -> Units:
        """Ordinary units, and canaries of which `pushing` raise and `pulling` lower what the auditor looks at."""
        rng, count = np.random.default_rng(0), self.ordinary
        canaries = pushing + pulling
        features = np.vstack([100 * rng.normal(size=(count, 2)), np.full((canaries, 2), feature)]).astype(np.float32)
        actions = np.r_[np.arange(count) % 2, np.ones(pushing), np.zeros(pulling)].astype(np.int64)
        if self.length == 1:
            return Units.transitions(features, actions)
        rows = Units.transitions(features.repeat(self.length, axis=0), actions.repeat(self.length)).arrays()
        starts = np.arange(count + canaries) * self.length
        return Units(unit="trajectory", **rows | {"starts": starts, "lengths": np.full(len(starts), self.length)})

    def train(self, units: Units, instances: int, secret: bytes, engine: str = "fused") -> np.ndarray:
        """What the auditor looks at, of every instance: [instances]."""
        parameters = train_block(
            problem=self.problem, mechanism=replace(self.mechanism, unit=units.unit), units=units,
            instances=range(instances), streams=Streams(secret * 32), engine=engine,
        )
        bias = parameters["0.bias"].numpy()
        return bias[:, 1] - bias[:, 0]
