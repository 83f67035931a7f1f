"""From P trained instances to probabilities: confidence bounds that hold with probability at least 1 - eta.

Instances are independent draws of the training M(D), so counts are multinomial and returns independent. Every bound is
one-sided and valid for any distribution, ties and point masses included.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import betaincinv
from scipy.stats import poisson

from mucd_ray.errors import MucdError

# The exact band uses all order statistics up to this many, and beyond a fixed selection of about as many.
BAND_INDICES = 1000
NEGLIGIBLE = 1e-22
# Below it 1 - eta loses digits.
LEAST_ETA = 1e-10


def check_eta(eta: float) -> float:
    if not LEAST_ETA <= eta < 1:
        raise MucdError(f"eta {eta} is outside [{LEAST_ETA:g}, 1): it is the probability that a statement may be wrong, for example 0.001")
    return eta


def clopper_pearson_lower(count, trials: int, eta: float):
    """Lower bound on a binomial probability, exceeded by chance with probability at most eta (Clopper & Pearson 1934)."""
    count = np.asarray(count, dtype=float)
    return np.where(count > 0, betaincinv(np.maximum(count, 1), trials - count + 1, eta), 0.0)


def clopper_pearson_upper(count, trials: int, eta: float):
    count = np.asarray(count, dtype=float)
    return 1.0 - clopper_pearson_lower(trials - count, trials, eta)


@dataclass(frozen=True, kw_only=True)
class TopTwo:
    """Per state: the action with most votes (the lowest index of ties), a lower bound on its probability, and an upper bound on
    the probability of every other action. Arrays of shape [S]."""

    action: np.ndarray
    top: np.ndarray
    runner_up: np.ndarray


def top_two_bounds(counts: np.ndarray, eta: float) -> TopTwo:
    """Simultaneous bounds for each row of votes [S, A]; each row's bounds hold together with probability 1 - eta.

    SimuEM (Jia et al. 2020, AAAI 2021, arXiv 2008.04495) spends eta/A on each action. Which action is on top depends on the same
    votes, so either of an action's two bounds may come to be used and both must be paid for: eta/(2A). With two actions the
    upper bound on one is the lower bound on the other, and eta/A suffices.
    """
    check_eta(eta)
    counts = np.asarray(counts)
    if counts.ndim != 2 or counts.shape[1] < 2 or np.any(counts < 0) or np.any(counts.sum(axis=1) != counts[0].sum()):
        raise MucdError(f"votes of shape {counts.shape} must be one row of counts per state, at least 2 actions, with equal sums")
    states, actions = counts.shape
    trials = int(counts[0].sum())
    share = eta / actions if actions == 2 else eta / (2 * actions)
    action = counts.argmax(axis=1)
    top = clopper_pearson_lower(counts[np.arange(states), action], trials, share)
    others = counts.copy()
    others[np.arange(states), action] = -1
    runner_up = clopper_pearson_upper(others.max(axis=1), trials, share)
    return TopTwo(action=action, top=top, runner_up=np.minimum(runner_up, 1.0 - top))


def dkw_band(samples: int, eta: float) -> np.ndarray:
    """Upper bounds [P] on P(R < x_(k)), k = 1..P, for the sorted sample (Dvoretzky-Kiefer-Wolfowitz; Massart 1990, eta <= 1/2)."""
    check_eta(eta)
    slack = math.sqrt(math.log(1 / min(eta, 0.5)) / (2 * samples))
    return np.minimum(np.arange(samples) / samples + slack, 1.0)


@lru_cache(32)
def _order_statistic_levels(samples: int, eta: float) -> np.ndarray:
    index = _indices(samples)

    def levels(local):
        return betaincinv(index, samples - index + 1, 1 - local)

    # Bisect the common local level; `low` always keeps a coverage of at least 1 - eta.
    low, high = math.log(eta / samples), math.log(eta)
    for _ in range(30):
        middle = (low + high) / 2
        if _stays_below(index, levels(math.exp(middle)), samples) >= 1 - eta:
            low = middle
        else:
            high = middle
    bounds = levels(math.exp(low))
    return bounds[np.searchsorted(index, np.arange(1, samples + 1))]


def order_statistic_band(samples: int, eta: float) -> np.ndarray:
    """Upper bounds [P] on P(R < x_(k)), k = 1..P, exact for continuous R and relatively accurate for small k.

    The k-th smallest of P uniform numbers has a Beta(k, P-k+1) law; all are bounded by their quantiles at one common local
    level, chosen so that all bounds hold together with probability 1 - eta exactly (one-sided Berk-Jones band; Berk & Jones
    1979; Moscovich, Nadler & Spiegelman 2016). With R = F^{-1}(U), P(R < x_(k)) <= U_(k) for any distribution of R.
    """
    return _order_statistic_levels(samples, check_eta(eta))


BANDS = {"order-statistic": order_statistic_band, "dkw": dkw_band}


def _indices(samples: int) -> np.ndarray:
    """Ranks at which the band is pinned: all, or a fixed choice that is dense at small ranks."""
    if samples <= BAND_INDICES:
        return np.arange(1, samples + 1)
    dense = np.arange(1, BAND_INDICES // 2 + 1)
    sparse = np.rint(np.geomspace(dense[-1] + 1, samples, BAND_INDICES // 2))
    return np.unique(np.concatenate([dense, sparse])).astype(int)


def _stays_below(index: np.ndarray, levels: np.ndarray, samples: int) -> float:
    """P(U_(k) <= level_k for all pinned k): at least k of the points lie below level_k.

    The empirical process is a Poisson process conditioned on its total (Khmaladze & Shinjikashvili 2001); what is cut off
    the Poisson increments lowers the result, the safe side.
    """
    first, mass = 0, np.ones(1)
    previous = 0.0
    for k, level in zip(index, levels, strict=True):
        mean = samples * (level - previous)
        reach = int(mean + 12 * math.sqrt(mean) + 30)
        mass = np.convolve(mass, _poisson_masses(mean, reach))
        cut = max(0, k - first)
        mass, first = mass[cut : cut + samples + 1 - max(first, k)], max(first, k)
        mass = mass[: max(1, len(mass) - np.count_nonzero(mass[::-1].cumsum() < NEGLIGIBLE))]
        previous = level
    counts = first + np.arange(len(mass))
    return float(mass @ poisson.pmf(samples - counts, samples * (1 - previous)) / poisson.pmf(samples, samples))


def _poisson_masses(mean: float, reach: int) -> np.ndarray:
    k = np.arange(reach + 1)
    return np.exp(k * math.log(mean) - mean - _log_factorials(reach)) if mean > 0 else (k == 0).astype(float)


@lru_cache(4096)
def _log_factorials(reach: int) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, reach + 1)))])
