import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from mucd_ray.certify.guarantees import FAMILIES, Guarantees
from mucd_ray.certify.policy import ReturnBand, ceiling_band, expected_return_bound, mean_route_bound, radius_keeping, return_band
from mucd_ray.errors import MucdError
from mucd_ray.mechanism.gaussian.mechanism import Mechanism

GAUSSIAN = Guarantees(Mechanism(sample_rate=1.0, noise_multiplier=100.0, clip_norm=1.0, steps=1, normaliser=1.0))


def test_the_bound_is_the_integral_of_the_lowered_survival_function():
    threshold = np.linspace(0.05, 10, 200)
    survival = np.exp(-threshold / 4)
    band = ReturnBand(threshold=threshold, probability=survival, floor=0.0)

    def step(t):
        return survival[np.searchsorted(threshold, t)]

    exact, _ = quad(lambda t: norm.cdf(norm.ppf(step(t)) - 30 / 100), 0, 10, limit=500, points=threshold[:-1])
    assert expected_return_bound(band, GAUSSIAN, 30) == pytest.approx(exact, rel=1e-3)
    assert expected_return_bound(band, GAUSSIAN, 30) <= exact + 1e-6
    assert expected_return_bound(band, GAUSSIAN, 0) == pytest.approx(np.diff(threshold, prepend=0) @ survival)


@pytest.mark.parametrize("shift", [0.0, -1000.0, 7.5])
def test_the_bound_moves_with_the_scale_of_returns(shift):
    returns = np.random.default_rng(0).normal(50, 10, 300).clip(0, 100)
    bands = [return_band(x, r, eta=0.01, method="order-statistic") for x, r in ((returns, (0, 100)), (returns + shift, (shift, 100 + shift)))]
    bounds = [expected_return_bound(band, GAUSSIAN, 40) for band in bands]
    assert bounds[1] == pytest.approx(bounds[0] + shift)


def test_the_certified_mean_covers_the_poisoned_mean():
    """D: returns of skilled instances; D': the worst event of the Gaussian mechanism turned into the worst returns."""
    rng, radius, failed = np.random.default_rng(5), 60, 0
    for _ in range(400):
        # Instance = its noise z; the return falls with z. Under D', z is shifted by r/sigma: the attainable worst case.
        returns = np.round(100 * norm.cdf(-rng.normal(0, 1, 60)), 0)
        band = return_band(returns, (0, 100), eta=0.1, method="order-statistic")
        bound = expected_return_bound(band, GAUSSIAN, radius)
        poisoned_mean = 100 * norm.cdf(-radius / 100 / np.sqrt(2))  # E of 100 Phi(-(z + r/sigma)), rounding aside
        failed += bound > poisoned_mean + 0.5
    assert failed / 400 <= 0.1


def test_equal_returns_and_a_single_return_are_handled():
    band = return_band(np.full(1000, 500.0), (0, 500), eta=0.001, method="order-statistic")
    assert band.threshold.tolist() == [500.0] and band.probability[0] > 0.988
    one = return_band(np.array([3.0]), (0, 5), eta=0.05, method="order-statistic")
    assert expected_return_bound(one, GAUSSIAN, 0) == pytest.approx(3 * 0.05)


def test_radius_keeping_is_the_last_radius_that_keeps():
    returns = np.random.default_rng(2).normal(-90, 20, 500).clip(-500, 0)
    band = return_band(returns, (-500, 0), eta=0.001, method="order-statistic")
    radius = radius_keeping(0.5, returns.mean(), band, GAUSSIAN, cap=10_000)
    wanted = -500 + 0.5 * (returns.mean() + 500)
    assert expected_return_bound(band, GAUSSIAN, radius) >= wanted > expected_return_bound(band, GAUSSIAN, radius + 1)
    assert radius_keeping(1.0, returns.mean(), band, GAUSSIAN, cap=10) == -1
    nothing = return_band(np.full(500, -500.0), (-500, 0), eta=0.001, method="order-statistic")
    assert radius_keeping(0.5, -500.0, nothing, GAUSSIAN, cap=10) == -1


def test_quantiles_and_upper_bounds_cover_the_poisoned_returns():
    """Return = -z; under D' z is shifted either way by s = r/sigma, so that the median is at worst -s and the mean at best +s."""
    rng, eta, radius, failed = np.random.default_rng(8), 0.1, 60, np.zeros(3)
    lower = GAUSSIAN.at(radius).lower
    medians, ceilings = [], []
    for _ in range(400):
        returns = (-rng.normal(size=120)).clip(-4, 4)
        band = return_band(returns, (-4, 4), eta=eta, method="order-statistic")
        ceiling = ceiling_band(returns, (-4, 4), eta=eta, method="order-statistic")
        medians.append(band.quantile(0.5, lower))
        ceilings.append(-ceiling.expected_return(lower))
        failed += [medians[-1] > -radius / 100, band.quantile(0.1, lower) > norm.ppf(0.1) - radius / 100, ceilings[-1] < radius / 100]
    assert np.all(failed / 400 <= eta)
    assert np.mean(medians) > -1.3 and np.mean(ceilings) < 1.4


def test_a_quantile_that_is_not_certified_is_the_floor():
    band = return_band(np.linspace(0, 1, 50), (-3, 2), eta=0.01, method="order-statistic")
    assert band.quantile(0.5, GAUSSIAN.at(10_000).lower) == -3
    assert band.quantile(0.5, GAUSSIAN.at(0).lower) <= 0.5 and band.quantile(0.1, GAUSSIAN.at(0).lower) <= band.quantile(0.5, GAUSSIAN.at(0).lower)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_mean_route_never_says_more_than_the_whole_distribution(family):
    """Jensen: for a known distribution of returns the integral of lower(G) is at least lower of the mean."""
    guarantees = Guarantees(Mechanism(sample_rate=0.02, noise_multiplier=4.0, clip_norm=1.0, steps=60, normaliser=1.0), threat="insert", family=family)
    threshold = np.linspace(0.01, 1, 400)
    for survival in (1 - threshold, np.where(threshold <= 0.9, 0.97, 0.0), np.exp(-((threshold / 0.8) ** 8))):
        band = ReturnBand(threshold=threshold, probability=survival, floor=0.0)
        mean = float(np.diff(threshold, prepend=0) @ survival)
        for radius in (1, 10, 40):
            lower = guarantees.at(radius).lower
            # Each curve is convex up to the steps of its own grid.
            assert mean_route_bound(mean, (0.0, 1.0), lower) <= band.expected_return(lower) + 1e-3


@pytest.mark.parametrize("returns, message", [([], "no returns"), ([1.0, 6.0], "6.0 is outside"), ([np.nan], "nan is outside"), ([-np.inf], "outside")])
def test_bad_returns_are_refused(returns, message):
    with pytest.raises(MucdError, match=message):
        return_band(np.array(returns), (0, 5), eta=0.01, method="order-statistic")
