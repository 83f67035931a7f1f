"""Lower confidence bounds on the mean of independent values in [0, 1], one per instance, in the order of the instances.

Every bound holds with probability at least 1 - eta for any distribution on [0, 1]. `hoeffding` and `empirical-bernstein` are for a
number of values that was fixed before looking at them. `betting` holds for all numbers of values together, so one may add
instances one by one and stop at any time, by any rule. Results are rounded down.
"""

import math

import numpy as np
from scipy.optimize import brentq

from mucd_ray.certify.confidence.proportions import check_eta
from mucd_ray.certify.rounding import exactly
from mucd_ray.errors import MucdError
from mucd_ray.mechanism.work import spend

# Shares of the wealth that are put at stake. All of it is best while every value is 1, less where values vary; 1/128 still suits
# tens of thousands of values. They and their weights are fixed, so that a bet never depends on how many values follow.
STAKES = np.array([1.0, 0.95, 0.8, *(0.5 ** np.arange(1, 8))])
WEIGHTS = 1 / np.sqrt(np.arange(1, len(STAKES) + 1))
LOG_WEIGHTS = np.log(WEIGHTS / WEIGHTS.sum())
# Far above the errors of the sums below, far below what matters: of a bound, and of the logarithm of a gambler's wealth.
ROUNDING = 1e-9
WEALTH_ROUNDING = 1e-6


def hoeffding(values, eta: float) -> float:
    """mean - sqrt(log(1/eta) / (2 P)) (Hoeffding 1963, Theorem 1)."""
    values = _checked(values, eta)
    return _rounded_down(_mean(values) - math.sqrt(math.log(1 / eta) / (2 * len(values))))


def empirical_bernstein(values, eta: float) -> float:
    """mean - sqrt(2 V log(2/eta) / P) - 7 log(2/eta) / (3 (P - 1)), V the sample variance (Maurer & Pontil 2009, Theorem 4)."""
    values = _checked(values, eta)
    count = len(values)
    if count == 1:
        return 0.0
    mean = _mean(values)
    variance = math.fsum((values - mean) ** 2) / (count - 1)
    spread = math.log(2 / eta)
    return _rounded_down(mean - math.sqrt(2 * variance * spread / count) - 7 * spread / (3 * (count - 1)))


def betting(values, eta: float) -> float:
    """The least mean m on which a gambler has not at any time multiplied the stake by 1/eta (Waudby-Smith & Ramdas 2024).

    Whoever stakes the share c of the wealth on values above m has, after t values, the wealth

        K_t(m) = prod_{i <= t} (1 - c + c x_i / m) = prod_{i <= t} (1 + lambda (x_i - m)),  lambda = c/m <= 1/m,

    which is never negative and, if the mean is at most m, a supermartingale; so is an average of several such gamblers with
    fixed weights. By Ville's inequality its wealth ever reaches 1/eta with probability at most eta. Every factor falls with
    m, so the means that are ever refuted are all those below one number: the bound. It never falls as values are added.
    (The capital process of Section 4, equation 14, for constant bets that are truncated at 1/m, mixed over a grid.)
    """
    values = _checked(values, eta)
    needed = math.log(1 / eta) + WEALTH_ROUNDING

    def excess(mean: float) -> float:
        """log of the largest wealth so far, over what is needed to refute `mean`."""
        spend(3 * len(STAKES) * len(values))
        with np.errstate(divide="ignore"):
            growth = np.log(np.multiply.outer(STAKES, values / mean) + (1 - STAKES)[:, None])
        np.cumsum(growth, axis=1, out=growth)
        growth += LOG_WEIGHTS[:, None]
        best = growth.max(axis=0)
        return float((best + np.log(np.exp(growth - best).sum(axis=0))).max()) - needed

    low = _mean(values) / 2
    while low > ROUNDING and excess(low) < 0:
        low /= 2
    if low <= ROUNDING:
        return 0.0
    # Nobody wins against m = 1, so the bound lies between.
    bound, step = brentq(excess, low, 1.0, xtol=ROUNDING), ROUNDING
    while excess(bound) < 0:
        bound, step = bound - step, 2 * step
    return _rounded_down(bound)


MEANS = {"hoeffding": hoeffding, "empirical-bernstein": empirical_bernstein, "betting": betting}


def mean_lower(values, eta: float, method: str = "betting") -> float:
    """Lower bound, in [0, 1], on the mean of the distribution of which `values` [P] are independent draws.

    Raises:
        MucdError: no values, a value that is not in [0, 1], an eta outside its range, an unknown method.
    """
    if method not in MEANS:
        raise MucdError(f"bound on the mean {method!r} is unknown: use one of {', '.join(MEANS)}")
    return MEANS[method](values, eta)


def _checked(values, eta: float) -> np.ndarray:
    check_eta(eta)
    try:
        values = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise MucdError("values for a bound on a mean must be numbers in [0, 1]") from None
    if values.ndim != 1 or len(values) == 0:
        raise MucdError(f"values of shape {values.shape} must be a list of one number per instance, at least one")
    outside = ~((values >= 0) & (values <= 1))
    if outside.any():
        raise MucdError(f"value {exactly(values[outside][0])} is outside [0, 1]: rescale by the declared public range first")
    return values


def _mean(values: np.ndarray) -> float:
    return math.fsum(values) / len(values)


def _rounded_down(bound: float) -> float:
    return max(0.0, bound - ROUNDING)
