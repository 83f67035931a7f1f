"""A bag, then noise, against its limits (one step, whole bags, no noise), exact mixtures, and attackers with every bag enumerated."""

import itertools
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from mucd_ray.errors import MucdError
from mucd_ray.mechanism.bag_then_noise import BagThenNoise, BagThenNoiseAccountant, _below, _up
from mucd_ray.mechanism.gaussian.accounting import GroupAccountant
from mucd_ray.mechanism.kinds import from_values, to_values
from mucd_ray.mechanism.work import TooMuchWork, limited_to

P = np.concatenate([[0.0, 1e-6, 1e-4, 0.01], np.linspace(0.05, 0.95, 19), [0.99, 0.9999, 1 - 1e-6]])


def mechanism(**changes):
    return BagThenNoise(**{"bag_rate": 0.05, "sample_rate": 0.3, "noise_multiplier": 1.5, "clip_norm": 1.0, "steps": 1, "normaliser": 1.0} | changes)


def fixed(size, **changes):
    return mechanism(draws="fixed", bag_size=size, bag_rate=None, **changes)


@pytest.mark.parametrize("changes", [{}, {"bag_rate": 0.2, "noise_multiplier": 3.0}, {"bag_rate": 0.02, "sample_rate": 1.0, "noise_multiplier": 0.7}])
@pytest.mark.parametrize("changed", [1, 7, 60])
def test_one_step_is_the_gaussian_mechanism_with_the_product_of_the_rates(changes, changed):
    asked = mechanism(**changes)
    accountant = BagThenNoiseAccountant(asked)
    pure = GroupAccountant(replace(asked.noise, sample_rate=asked.bag_rate * asked.sample_rate))
    for group in ((changed, 0), (0, changed)):
        found = accountant.lower(P, 1000, *group)
        assert np.all(found <= pure.attainable(*group)(P) + 1e-12)
        assert found == pytest.approx(pure.curve(*group)(P), abs=2e-4)


@pytest.mark.parametrize("changed", [1, 5, 24])
def test_a_bag_of_all_units_is_the_gaussian_mechanism(changed):
    accountant = BagThenNoiseAccountant(mechanism(bag_rate=1.0, sample_rate=1.0, noise_multiplier=40.0, steps=100))
    exact = norm.cdf(norm.ppf(P) - changed * 10 / 40)
    for group in ((changed, 0), (0, changed)):
        found = accountant.lower(P, 1000, *group)
        assert np.all(found <= exact + 1e-12) and found == pytest.approx(exact, abs=1e-4)


@pytest.mark.parametrize("asked", [mechanism(sample_rate=1.0, noise_multiplier=0.01), fixed(50, sample_rate=1.0, noise_multiplier=0.01)], ids=str)
@pytest.mark.parametrize("group", [(3, 0), (0, 3), (25, 5), (400, 0)])
def test_without_noise_nothing_but_the_bag_counts(asked, group):
    found, bag = BagThenNoiseAccountant(asked).lower(P, 1000, *group), asked.bag.lower(P, 1000, *group)
    assert np.all(found <= bag + 1e-11) and found == pytest.approx(bag, abs=1e-8)


@pytest.mark.parametrize("rate, sigma, steps", [(1.0, 4.0, 10), (1.0, 1.2, 1)])
@pytest.mark.parametrize("changed", [1, 12, 60])
def test_with_all_of_the_bag_in_every_step_the_bound_is_attained(rate, sigma, steps, changed):
    """Thresholds on the sum are the best tests for every number of changed units at once: quadrature of the mixture is exact."""
    asked = mechanism(sample_rate=rate, noise_multiplier=sigma, steps=steps, bag_rate=0.1)
    accountant, mu = BagThenNoiseAccountant(asked), math.sqrt(steps) / sigma
    weights = [math.comb(changed, k) * 0.1**k * 0.9 ** (changed - k) for k in range(changed + 1)]

    def with_units(p):
        return sum(weight * norm.cdf(norm.ppf(p) - k * mu) for k, weight in enumerate(weights))

    inserted = accountant.lower(P, 1000, changed, 0)
    assert np.all(inserted <= with_units(P) + 1e-12) and inserted == pytest.approx(with_units(P), abs=1e-4)
    removed = accountant.lower(1.0 - with_units(1.0 - P), 1000, 0, changed)
    assert np.all(removed <= P + 1e-12) and removed == pytest.approx(P, abs=2e-4)
    p = np.linspace(0.01, 0.99, 99)
    assert accountant.attainable(1000, changed, 0)(p) == pytest.approx(with_units(p), abs=1e-4)


BAGS = {"poisson": lambda units, rate: [(c, rate ** len(c) * (1 - rate) ** (units - len(c))) for k in range(units + 1) for c in itertools.combinations(range(units), k)],
        "fixed": lambda units, size: [(c, 1 / math.comb(units, size)) for c in itertools.combinations(range(units), size)]}  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    draws=st.sampled_from(["poisson", "fixed"]), pushes=st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.7, 1.0]), min_size=9, max_size=9), common=st.integers(2, 4),
    inserted=st.integers(0, 3), removed=st.integers(0, 2), sigma=st.sampled_from([0.3, 1.0, 3.0]), seed=st.integers(0, 10**6),
)
def test_no_attacker_gets_below_the_bound(draws, pushes, common, inserted, removed, sigma, seed):
    """Every bag of small data sets, units that push a scalar sum anywhere, and events that are unions of intervals: exact probabilities."""
    asked = fixed(2, sample_rate=1.0, noise_multiplier=sigma) if draws == "fixed" else mechanism(bag_rate=0.4, sample_rate=1.0, noise_multiplier=sigma)
    ends = np.concatenate([[-np.inf], np.sort(np.random.default_rng(seed).normal(0, 2, 20)), [np.inf]])

    def cells(units):
        """Probabilities of the cells between `ends`."""
        total = np.zeros(len(ends) - 1)
        for bag, probability in BAGS[draws](len(units), asked.bag_size or asked.bag_rate):
            total += probability * np.diff(norm.cdf((ends - sum(units[i] for i in bag)) / sigma))
        return total

    shared, gone, new = pushes[:common], pushes[4 : 4 + removed], pushes[6 : 6 + inserted]
    under_d, under_other = cells([*shared, *gone]), cells([*shared, *new])
    order = np.argsort(under_other / np.maximum(under_d, 1e-300))
    p = np.cumsum(under_d[order])
    bound = BagThenNoiseAccountant(asked).lower(np.minimum(p, 1.0), common + removed, inserted, removed)
    assert np.all(bound <= np.cumsum(under_other[order]) + 1e-12)


@pytest.mark.parametrize("asked, changed, units", [(mechanism(bag_rate=0.3), 40, 100), (mechanism(bag_rate=1.0), 7, 100), (fixed(13), 40, 100), (fixed(90), 40, 100), (fixed(3), 97, 100), (fixed(5), 2, 7)])
def test_how_many_changed_units_a_bag_has(asked, changed, units):
    if asked.draws == "poisson":
        rate = Fraction(asked.bag_rate)
        exact = [math.comb(changed, k) * rate**k * (1 - rate) ** (changed - k) for k in range(changed + 1)]
    else:
        size = asked.bag_size
        exact = [Fraction(math.comb(changed, k) * (math.comb(units - changed, size - k) if k <= size else 0), math.comb(units, size)) for k in range(changed + 1)]
    first, weights = asked.changed_in_bag(changed, units)
    for k, weight in enumerate(exact):
        found = weights[k - first] if first <= k < first + len(weights) else 0.0
        assert Fraction(found) <= weight and found == pytest.approx(float(weight), rel=1e-8, abs=1e-25)


def test_many_units_take_bounded_work_and_round_to_the_safe_side():
    sizes = np.arange(1, 10**6, 7)
    assert np.all((_up(sizes) >= sizes) & (_up(sizes) <= sizes * (1 + 1 / 128))) and len(np.unique(_up(sizes))) < 2000
    first, weights = mechanism(bag_rate=0.5).changed_in_bag(10**8, 10**9)
    assert len(weights) < 130_000 and 1 - 2e-9 < weights.sum() < 1 and abs(first + weights @ np.arange(len(weights)) - 5e7) < 1
    with pytest.raises(TooMuchWork), limited_to(1e6):
        BagThenNoiseAccountant(mechanism(bag_rate=0.5)).lower(P, 10**9, 10**8, 0)
    # A ladder of numbers of changed units, each standing for smaller ones.
    accountant = BagThenNoiseAccountant(mechanism(sample_rate=1.0, noise_multiplier=300.0, bag_rate=0.5))
    found, (first, weights) = accountant.lower(P, 10**4, 600, 0), accountant.mechanism.changed_in_bag(600, 10**4)
    exact = sum(weight * norm.cdf(norm.ppf(P) - (first + k) / 300) for k, weight in enumerate(weights))
    assert np.all(found <= exact + 1e-8) and found == pytest.approx(exact, abs=2e-3)


@given(st.lists(st.floats(0.01, 1.0), min_size=3, max_size=12), st.lists(st.floats(0.0, 3.0), min_size=12, max_size=12))
def test_a_convex_function_is_bounded_from_below_between_its_points(widths, slopes):
    x = np.concatenate([[0.0], np.cumsum(widths)]) / sum(widths)
    slopes = np.cumsum(slopes[: len(widths)])
    y = np.concatenate([[0.0], np.cumsum(slopes * np.diff(x))])
    # Every second point, and the piecewise linear function between.
    kept = np.union1d(np.arange(0, len(x), 2), [len(x) - 1])
    below, fine = _below(x[kept], y[kept]), np.linspace(0, 1, 501)
    assert np.all(np.interp(fine, below.under_p, below.under_q) <= np.interp(fine, x, y) + 1e-12)
    assert np.interp(x[kept][:-1], below.under_p, below.under_q) == pytest.approx(y[kept][:-1], abs=1e-12)


def test_as_plain_values_and_back():
    for asked in (mechanism(), fixed(7)):
        assert from_values(to_values(asked)) == asked and to_values(asked)["kind"] == "bag-then-noise"
    assert mechanism(steps=4, noise_multiplier=2.0).signal_budget(1000) == pytest.approx(1000 * 0.05 * 0.3 * 2 / 2)
    with pytest.raises(MucdError, match="exactly the fields"):
        from_values(to_values(mechanism()) | {"parts": 3})


@pytest.mark.parametrize("values, complaint", [
    ({"draws": "replacement", "bag_size": 3, "bag_rate": None}, "draws 'replacement' do not go with noise"), ({"bag_rate": None}, "sample rate and no bag size"), ({"bag_rate": 2.0}, "sample rate 2.0"),
    ({"bag_size": 3}, "alone"), ({"sample_rate": 0.0}, "sample rate 0.0"), ({"noise_multiplier": math.nan}, "noise multiplier nan"), ({"unit": "row"}, "unit 'row'"), ({"steps": 0}, "steps 0"),
])  # fmt: skip
def test_bad_values_are_refused(values, complaint):
    with pytest.raises(MucdError, match=complaint):
        mechanism(**values)


def test_a_data_set_too_small_for_the_bag_leaves_nothing():
    assert not BagThenNoiseAccountant(fixed(5)).lower(P, 7, 0, 3).any()
    with pytest.raises(MucdError, match="bag size 8"):
        fixed(8).check(7)
