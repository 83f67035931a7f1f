"""Exact values where there are some, and coverage measured by simulation, point masses and ties included."""

import numpy as np
import pytest

from mucd_ray.certify.bands import BANDS, order_statistic_band
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
