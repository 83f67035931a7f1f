"""Exact values where there are some, and coverage measured by simulation, point masses and ties included."""

import math

import numpy as np
import pytest
from scipy.special import betainccinv
from scipy.stats import binom

from mucd_ray.certify.confidence.bands import BANDS, dkw_band, order_statistic_band
from mucd_ray.certify.confidence.looks import effective_eta, looks_up_to
from mucd_ray.errors import MucdError

DISTRIBUTIONS = {
    "uniform": lambda rng, n: rng.random(n),
    "point mass": lambda rng, n: np.ones(n),
    "two points": lambda rng, n: (rng.random(n) < 0.97).astype(float),
    "ties": lambda rng, n: rng.poisson(3.0, n).astype(float),
    "rare disaster": lambda rng, n: np.where(rng.random(n) < 0.01, -500.0, np.round(rng.normal(-80, 5, n))),
}


def test_the_order_statistic_band_is_exact_for_uniform_numbers():
    rng, eta = np.random.default_rng(0), 0.1
    for samples in (1, 2, 7, 60):
        uniform = np.sort(rng.random((100_000, samples)), axis=1)
        covered = np.mean(np.all(uniform <= order_statistic_band(samples, eta), axis=1))
        assert covered == pytest.approx(1 - eta, abs=4 * np.sqrt(eta / 100_000))


@pytest.mark.parametrize("method", BANDS)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_bands_cover_every_distribution(method, name):
    rng, eta, samples, runs = np.random.default_rng(1), 0.1, 80, 4000
    draw = DISTRIBUTIONS[name]
    population = np.sort(draw(rng, 400_000))
    level = BANDS[method](samples, eta)
    failed = 0
    for _ in range(runs):
        x = np.sort(draw(rng, samples))
        below = np.searchsorted(population, x, side="left") / len(population)
        # Of equal values the first has the highest bound, and it is the one that is used.
        _, first = np.unique(x, return_index=True)
        failed += np.any(below[first] > level[first] + 1e-12)
    assert failed / runs <= eta + 4 * np.sqrt(eta / runs) + 0.004  # the population itself is a sample


def test_the_order_statistic_band_is_far_better_near_one():
    for samples in (1000, 5000):
        best = {name: 1 - band(samples, 0.001)[0] for name, band in BANDS.items()}
        assert best["order-statistic"] > 1 - 12 / samples
        assert best["dkw"] < 1 - 1.5 / np.sqrt(samples)


@pytest.mark.parametrize("eta", [0.0, 1.0, -0.1, float("nan")])
def test_eta_outside_its_range_is_refused(eta):
    for band in BANDS.values():
        with pytest.raises(MucdError, match="eta"):
            band(10, eta)


@pytest.mark.parametrize("method", BANDS)
@pytest.mark.parametrize("samples", [1, 12, 150])
def test_the_failures_of_uniform_numbers_are_no_more_than_eta_and_not_far_fewer(method, samples):
    """A failure count above the limit would come by chance once in a million tests."""
    rng, eta, runs = np.random.default_rng(2), 0.2, 20_000
    failed = np.any(np.sort(rng.random((runs, samples)), axis=1) > BANDS[method](samples, eta), axis=1).sum()
    assert failed <= binom.isf(1e-6, runs, eta)
    assert failed >= (binom.ppf(1e-6, runs, eta) if method == "order-statistic" else 0.05 * runs)


@pytest.mark.parametrize("method", BANDS)
def test_whoever_picks_the_best_of_several_looks_is_covered_by_the_shares_of_the_looks_only(method):
    rng, eta, runs = np.random.default_rng(3), 0.2, 4000
    looks = looks_up_to(1000)
    uniform = rng.random((runs, looks[-1]))

    def failed(eta_of):
        return np.any([np.any(np.sort(uniform[:, :n], axis=1) > BANDS[method](n, eta_of(n)), axis=1) for n in looks], axis=0).sum()

    assert failed(lambda n: effective_eta(eta, "anytime", n)) <= binom.isf(1e-6, runs, eta)
    assert failed(lambda n: eta) > binom.isf(1e-6, runs, eta)


@pytest.mark.parametrize("eta", [1e-10, pytest.param(1e-3, marks=pytest.mark.slow), pytest.param(0.3, marks=pytest.mark.slow)])
def test_huge_samples_and_tiny_eta(eta):
    samples = 100_000
    for name, band in BANDS.items():
        bounds = band(samples, eta)
        assert bounds.shape == (samples,) and np.all(np.diff(bounds) >= 0) and 0 < bounds[0] and bounds[-1] <= 1, name
        # No band can beat the bound of one rank alone, nor need it be worse than a share of eta for each rank.
        k = np.array([1, 2, 10, 1000, 50_000, 100_000])
        assert np.all(bounds[k - 1] >= np.where(k == samples, 0, betainccinv(k, samples - k + 1, min(eta, 0.5))) - 1e-12)
    pinned = [1, 2, 10, 100]
    shares = betainccinv(pinned, samples - np.array(pinned) + 1, eta / samples)
    assert np.all(order_statistic_band(samples, eta)[np.array(pinned) - 1] <= shares * (1 + 1e-9))


def test_dkw_has_its_closed_form_and_stops_at_the_condition_of_its_theorem():
    assert dkw_band(50, 0.01)[9] == pytest.approx(9 / 50 + math.sqrt(math.log(100) / 100))
    # Massart's constant is proved for eta <= 1/2 only: a larger eta buys nothing more.
    np.testing.assert_array_equal(dkw_band(50, 0.9), dkw_band(50, 0.5))
    assert dkw_band(50, 0.4)[0] < dkw_band(50, 0.3)[0]


@pytest.mark.parametrize("samples", [0, -3, 2.5, 10.0, float("nan"), None])
def test_numbers_of_samples_that_are_none_are_refused(samples):
    for band in BANDS.values():
        with pytest.raises(MucdError, match="samples"):
            band(samples, 0.01)
