"""Exact values where there are some, and coverage measured by simulation, point masses and ties included."""

import numpy as np
import pytest
from scipy.stats import binom

from mucd_ray.certify.confidence import (
    BANDS,
    clopper_pearson_lower,
    clopper_pearson_upper,
    order_statistic_band,
    top_two_bounds,
)
from mucd_ray.errors import MucdError

DISTRIBUTIONS = {
    "uniform": lambda rng, n: rng.random(n),
    "point mass": lambda rng, n: np.ones(n),
    "two points": lambda rng, n: (rng.random(n) < 0.97).astype(float),
    "ties": lambda rng, n: rng.poisson(3.0, n).astype(float),
    "rare disaster": lambda rng, n: np.where(rng.random(n) < 0.01, -500.0, np.round(rng.normal(-80, 5, n))),
}


def test_a_unanimous_count_has_the_closed_form():
    assert clopper_pearson_lower(1000, 1000, 0.001) == pytest.approx(0.001 ** (1 / 1000))
    assert clopper_pearson_upper(0, 50, 0.01) == pytest.approx(1 - 0.01 ** (1 / 50))
    assert clopper_pearson_lower(0, 50, 0.01) == 0 and clopper_pearson_upper(50, 50, 0.01) == 1


@pytest.mark.parametrize("p", [0.02, 0.5, 0.9, 0.999])
def test_clopper_pearson_covers_exactly_as_promised(p):
    counts = np.arange(201)
    weights = binom.pmf(counts, 200, p)
    assert weights @ (clopper_pearson_lower(counts, 200, 0.01) > p) <= 0.01
    assert weights @ (clopper_pearson_upper(counts, 200, 0.01) < p) <= 0.01


@pytest.mark.parametrize("p", [[0.5, 0.5], [0.34, 0.33, 0.33], [0.9, 0.06, 0.04], [0.25] * 4])
def test_top_two_bounds_hold_together(p):
    rng = np.random.default_rng(3)
    counts, p, eta = rng.multinomial(60, p, size=20_000), np.array(p), 0.05
    bounds = top_two_bounds(counts, eta)
    top = p[bounds.action]
    others = np.where(np.arange(len(p)) == bounds.action[:, None], -1.0, p).max(axis=1)
    # An action that is not the runner-up of the votes is bounded too: the bound is on all others.
    wrong = (bounds.top > top) | (bounds.runner_up < others)
    assert wrong.mean() <= eta + 3 * np.sqrt(eta / len(counts))
    assert np.all(bounds.top + bounds.runner_up <= 1 + 1e-12) or len(p) > 2


def test_ties_go_to_the_lowest_action_and_certify_nothing():
    bounds = top_two_bounds([[50, 50], [0, 100]], 0.01)
    assert bounds.action.tolist() == [0, 1]
    assert bounds.top[0] < bounds.runner_up[0] and bounds.top[1] > bounds.runner_up[1]


@pytest.mark.parametrize("counts", [[[3, 4], [5, 1]], [[7]], [[-1, 8]]])
def test_counts_that_do_not_add_up_are_refused(counts):
    with pytest.raises(MucdError, match="votes of shape"):
        top_two_bounds(counts, 0.01)


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
