"""Simultaneous confidence bands on the distribution of returns: bounds that hold together with probability at least 1 - eta.

Returns are independent draws, one per instance. Every band is one-sided and valid for any distribution, ties and point masses included.
"""

import math
from functools import lru_cache

import numpy as np
from scipy.special import betainccinv
from scipy.stats import poisson

from mucd_ray.certify.confidence.proportions import check_count, check_eta
from mucd_ray.mechanism.work import spend

# The exact band uses all order statistics up to this many, and beyond a fixed selection of about as many.
BAND_INDICES = 1000
NEGLIGIBLE = 1e-22
# More than the relative error of the coverage per sample. Below it the band falls back to a share of eta for each rank.
ROUNDING = 1e-14


def dkw_band(samples: int, eta: float) -> np.ndarray:
    """Upper bounds [P] on P(R < x_(k)), k = 1..P, for the sorted sample (Dvoretzky-Kiefer-Wolfowitz; Massart 1990, eta <= 1/2)."""
    samples = check_count(samples, "samples")
    check_eta(eta)
    slack = math.sqrt(math.log(1 / min(eta, 0.5)) / (2 * samples))
    return np.minimum(np.arange(samples) / samples + slack, 1.0)


@lru_cache(32)
def _order_statistic_levels(samples: int, eta: float) -> np.ndarray:
    index = _indices(samples)

    def levels(local):
        return betainccinv(index, samples - index + 1, local)

    # Bisect the common local level; `low` always keeps a coverage of at least 1 - eta, at first because the ranks' shares add up.
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
    return _order_statistic_levels(check_count(samples, "samples"), check_eta(eta))


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
        spend(20 * reach + len(mass) * reach / 8)
        mass = np.convolve(mass, _poisson_masses(mean, reach))
        cut = max(0, k - first)
        mass, first = mass[cut : cut + samples + 1 - max(first, k)], max(first, k)
        mass = mass[: max(1, len(mass) - np.count_nonzero(mass[::-1].cumsum() < NEGLIGIBLE))]
        previous = level
    counts = first + np.arange(len(mass))
    coverage = mass @ poisson.pmf(samples - counts, samples * (1 - previous)) / poisson.pmf(samples, samples)
    return float(coverage) - ROUNDING * samples


def _poisson_masses(mean: float, reach: int) -> np.ndarray:
    k = np.arange(reach + 1)
    return np.exp(k * math.log(mean) - mean - _log_factorials(reach)) if mean > 0 else (k == 0).astype(float)


@lru_cache(4096)
def _log_factorials(reach: int) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, reach + 1)))])
