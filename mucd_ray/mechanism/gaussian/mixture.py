"""One step of the mechanism seen by an attacker: a pair of scalar Gaussian mixtures, and its discretised likelihood ratios.

With `removed` units that D has and D' lacks, and `inserted` units that D' has and D lacks, one step on D against one step on
D' is dominated by (Schuchardt et al. 2024, arXiv 2403.04867, Theorem 3.8)

    P = sum_k Binom(k; removed, q) N(+k, sigma^2)        Q = sum_k Binom(k; inserted, q) N(-k, sigma^2)

in units of the clip norm. p(x)/q(x) increases with x, since p/phi is a mixture of the increasing exp(kx/sigma^2) and q/phi of
the decreasing exp(-kx/sigma^2); the same holds when far binomial tails are left out.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr
from scipy.stats import binom

from mucd_ray.mechanism.work import spend

# Mixture components lighter than LIGHTEST are left out: together at most LEFT_OUT. With up to 10^8 units, the deviation is below
# 5000 and the lightest kept component at least 8 deviations out or among the first few, so that from there on the weights fall by a
# factor of at most 1 - 1/1000 each, and both tails hold less than 2000 LIGHTEST.
# Cells beyond TAIL_SIGMAS of the outermost centres are not formed. What is left out of P counts as infinite loss: the safe side.
LIGHTEST = 1e-20
LEFT_OUT = 1e-16
TAIL_SIGMAS = 8.5
# Entries of the [cells, components] tables that are formed at a time.
TABLE_ENTRIES = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """sum_k weights[k] N(centres[k], sigma^2), all in units of the clip norm; the weights may sum to a little under 1."""

    centres: np.ndarray
    weights: np.ndarray
    sigma: float

    @classmethod
    def of_units(cls, units: int, sample_rate: float, sigma: float, sign: int) -> "Mixture":
        """The mixture that `units` aligned units produce, each sampled with probability `sample_rate`."""
        # By Bernstein's inequality less than e^-70 lies outside mean +- reach.
        mean, reach = units * sample_rate, 12 * np.sqrt(units * sample_rate * (1 - sample_rate)) + 60
        k = np.arange(max(0, int(mean - reach)), min(units, int(mean + reach)) + 1)
        spend(20 * len(k))
        weights = binom.pmf(k, units, sample_rate)
        kept = weights > LIGHTEST
        return cls(centres=sign * k[kept].astype(float), weights=weights[kept], sigma=sigma)

    def support(self) -> tuple[float, float]:
        margin = TAIL_SIGMAS * self.sigma
        return self.centres.min() - margin, self.centres.max() + margin

    def masses(self, edges: np.ndarray) -> np.ndarray:
        """Probability of each cell between consecutive increasing `edges` [n+1] -> [n], accurate in both tails."""
        middle = min(int(np.searchsorted(edges, self.weights @ self.centres)), len(edges) - 1)
        below = self._distribution(edges[: middle + 1], +1)
        above = self._distribution(edges[middle:], -1)
        return np.maximum(np.concatenate([np.diff(below), -np.diff(above)]), 0.0)

    def _distribution(self, x: np.ndarray, sign: int) -> np.ndarray:
        """P(X <= x) for sign +1, P(X > x) for sign -1: [n] -> [n]."""
        spend(2 * len(x) * len(self.centres))
        result = np.empty(len(x))
        for part in _parts(len(x), len(self.centres)):
            result[part] = ndtr(sign * (x[part, None] - self.centres) / self.sigma) @ self.weights
        return result

    def above(self, x: float) -> float:
        """P(X > x), components that were left out not counted."""
        return float(ndtr((self.centres - x) / self.sigma) @ self.weights)

    def tail_mass(self, edges: np.ndarray) -> float:
        """Upper bound on the probability outside [edges[0], edges[-1]], left-out components included."""
        left = ndtr((edges[0] - self.centres) / self.sigma) @ self.weights
        return float(left + self.above(edges[-1]) + LEFT_OUT)

    def log_ratio_to_noise(self, x: np.ndarray) -> np.ndarray:
        """log of this density over that of N(0, sigma^2), at x [n] -> [n]."""
        spend(2 * len(x) * len(self.centres))
        result = np.empty(len(x))
        log_weights = np.log(self.weights) - self.centres**2 / (2 * self.sigma**2)
        for part in _parts(len(x), len(self.centres)):
            exponents = x[part, None] * (self.centres / self.sigma**2) + log_weights
            largest = exponents.max(axis=1, keepdims=True)
            result[part] = np.log(np.exp(exponents - largest).sum(axis=1)) + largest[:, 0]
        return result


def _parts(rows: int, columns: int):
    size = max(1, TABLE_ENTRIES // max(1, columns))
    return (slice(start, start + size) for start in range(0, rows, size))
