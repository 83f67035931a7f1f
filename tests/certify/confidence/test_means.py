"""Closed forms, coverage measured by simulation, also when one stops at will, and that the bounds are worth their name."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from mucd_ray.certify.confidence.means import MEANS, STAKES, mean_lower
from mucd_ray.certify.confidence.proportions import clopper_pearson_lower

DISTRIBUTIONS = {  # name: (draw, mean)
    "coin": (lambda rng, shape: (rng.random(shape) < 0.5).astype(float), 0.5),
    "close to 1": (lambda rng, shape: (rng.random(shape) < 0.97).astype(float), 0.97),
    "close to 0": (lambda rng, shape: (rng.random(shape) < 0.03).astype(float), 0.03),
    "uniform": (lambda rng, shape: rng.random(shape), 0.5),
    "narrow": (lambda rng, shape: 0.8 + 0.02 * (rng.random(shape) - 0.5), 0.8),
    "point mass": (lambda rng, shape: np.full(shape, 0.9), 0.9),
    "rare disaster": (lambda rng, shape: np.where(rng.random(shape) < 0.01, 0.0, 0.9), 0.891),
    "rare jackpot": (lambda rng, shape: np.where(rng.random(shape) < 0.01, 1.0, 0.1), 0.109),
    "ties": (lambda rng, shape: rng.integers(0, 3, shape) / 2, 0.5),
}


def assert_covers(failed: int, runs: int, eta: float):
    """Fewer failures than a method that fails with probability eta exactly exceeds once in a million tests."""
    assert failed <= binom.isf(1e-6, runs, eta), f"{failed} of {runs} failed, eta {eta}"


@pytest.mark.parametrize("method", MEANS)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("instances", [10, 150])
def test_every_bound_covers_every_distribution(method, name, instances):
    draw, mean = DISTRIBUTIONS[name]
    runs, eta = 200, 0.2
    samples = draw(np.random.default_rng(5), (runs, instances))
    assert_covers(sum(mean_lower(x, eta, method) > mean for x in samples), runs, eta)


@pytest.mark.parametrize("method, share", [("hoeffding", 0.03), ("betting", 0.03)])
def test_coverage_is_measured_where_bounds_do_fail(method, share):
    """A bound that never fails would pass every test of coverage, and be of little use."""
    draw, mean = DISTRIBUTIONS["coin"]
    samples = draw(np.random.default_rng(6), (500, 150))
    assert np.mean([mean_lower(x, 0.3, method) > mean for x in samples]) > share


@pytest.mark.parametrize("name", ["coin", "close to 1", "rare disaster"])
def test_betting_covers_whoever_stops_at_the_best_moment_and_fixed_bounds_do_not(name):
    """The rule: after every further few instances look, and stop as soon as the bound is above the true mean."""
    draw, mean = DISTRIBUTIONS[name]
    runs, eta = 200, 0.1
    looks = np.unique(np.geomspace(20, 2000, 40).astype(int))
    samples = draw(np.random.default_rng(7), (runs, looks[-1]))
    assert_covers(sum(any(mean_lower(x[:n], eta, "betting") > mean for n in looks[::-13]) for x in samples), runs, eta)

    # All that is asked of the values by the fixed bound is whether they are above a threshold: exact for 0 and 1.
    hits = np.cumsum(samples > 0.5, axis=1)[:, looks - 1]
    share = mean / samples.max()
    fixed = np.stack([clopper_pearson_lower(hits[:, i], int(n), eta) > share for i, n in enumerate(looks)], axis=1)
    assert_covers(fixed[:, -1].sum(), runs, eta)
    assert fixed.any(axis=1).sum() > binom.isf(1e-6, runs, eta)


def test_hoeffding_does_not_cover_whoever_stops_at_will():
    draw, mean = DISTRIBUTIONS["coin"]
    runs, eta = 400, 0.4
    looks = np.unique(np.geomspace(1, 2000, 60).astype(int))
    samples = draw(np.random.default_rng(8), (runs, looks[-1]))
    assert sum(any(mean_lower(x[:n], eta, "hoeffding") > mean for n in looks) for x in samples) > binom.isf(1e-6, runs, eta)
    assert_covers(sum(mean_lower(x, eta, "betting") > mean for x in samples), runs, eta)


def test_betting_never_loses_by_growing():
    rng = np.random.default_rng(9)
    values = np.concatenate([rng.beta(8, 2, 300), np.zeros(50), rng.beta(8, 2, 300)])
    bounds = [mean_lower(values[:n], 0.01, "betting") for n in range(1, len(values) + 1, 13)]
    assert np.all(np.diff(bounds) >= -1e-8) and bounds[-1] > bounds[0]


def wealth(values, mean):
    """The average gambler's wealth after every value, by its definition."""
    stakes = STAKES[:, None]
    gamblers = np.cumprod(1 - stakes + stakes * values / mean, axis=1)
    weights = 1 / np.sqrt(np.arange(1, len(STAKES) + 1))
    return weights @ gamblers / weights.sum()


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_betting_bound_is_where_the_wealth_reaches_one_over_eta(name):
    values = DISTRIBUTIONS[name][0](np.random.default_rng(10), 60)
    bound = mean_lower(values, 0.05, "betting")
    if bound > 0:
        assert wealth(values, bound).max() >= 20 > wealth(values, bound + 1e-7).max()
        assert np.all(np.diff([wealth(values, m).max() for m in np.linspace(bound, 1, 50)]) <= 0)
    # The expected wealth after one value is 1 when the mean is right: exact for two values, 0 and 1.
    for m in (0.1, 0.5, 0.99):
        assert m * wealth(np.ones(1), m)[0] + (1 - m) * wealth(np.zeros(1), m)[0] == pytest.approx(1.0)


def test_closed_forms():
    values = np.array([0.2, 0.4, 0.9, 1.0] * 100)
    assert mean_lower(values, 0.01, "hoeffding") == pytest.approx(0.625 - math.sqrt(math.log(100) / 800), abs=1e-8)
    variance = values.var(ddof=1)
    expected = 0.625 - math.sqrt(2 * variance * math.log(200) / 400) - 7 * math.log(200) / (3 * 399)
    assert mean_lower(values, 0.01, "empirical-bernstein") == pytest.approx(expected, abs=1e-8)
    # One value, always the whole stake and its lesser shares: at most the certainty that Clopper and Pearson have.
    assert mean_lower([1.0], 0.3, "betting") < 0.3


@pytest.mark.parametrize("name, gain", [("close to 1", 1.9), ("uniform", 1.5), ("narrow", 5.0), ("rare disaster", 2.5), ("point mass", 6.0)])
def test_betting_is_tighter_than_hoeffding(name, gain):
    draw, _ = DISTRIBUTIONS[name]
    values = draw(np.random.default_rng(11), 1000)
    distance = {method: values.mean() - mean_lower(values, 0.001, method) for method in MEANS}
    assert distance["hoeffding"] > gain * distance["betting"]
    assert distance["betting"] < distance["empirical-bernstein"]


def test_unanimous_values_come_close_to_the_exact_bound():
    for instances in (100, 1000, 10_000):
        exact = -math.log(clopper_pearson_lower(instances, instances, 0.001))
        assert exact < -math.log(mean_lower(np.ones(instances), 0.001, "betting")) < 1.25 * exact


@pytest.mark.parametrize("method", MEANS)
def test_extremes(method):
    assert mean_lower(np.zeros(500), 0.001, method) == 0
    assert mean_lower([1.0], 0.001, method) < 0.002
    assert mean_lower(np.full(50, 1e-12), 0.001, method) <= 1e-12
    assert 0.99 < mean_lower(np.ones(1_000_000 if method != "betting" else 10_000), 0.001, method) < 1
    assert mean_lower(np.ones(10), 0.999, method) < 1


def test_many_values_come_near_their_mean():
    values = np.random.default_rng(12).random(100_000)
    assert values.mean() - 0.01 < mean_lower(values, 0.001, "betting") < values.mean()
