"""The law of bags against exhaustive enumeration, all splits against the pure ones, and every learner against the bound."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mucd_ray.errors import MucdError
from mucd_ray.mechanism import bag
from mucd_ray.mechanism.bag import Bag, _log_share
from mucd_ray.mechanism.partition import Partition
from mucd_ray.mechanism.work import TooMuchWork, limited_to

P = np.linspace(0, 1, 201)


def laws(draws, size, rate, units):
    """Probability of every bag (a sorted tuple) of the units, exactly."""
    units = list(units)
    if draws == "fixed":
        bags = list(itertools.combinations(units, size))
        return {bag: Fraction(1, len(bags)) for bag in bags}
    law = {}
    if draws == "replacement":
        for drawn in itertools.product(units, repeat=size):
            bag = tuple(sorted(drawn))
            law[bag] = law.get(bag, 0) + Fraction(1, len(units) ** size)
        return law
    for inside in itertools.product((0, 1), repeat=len(units)):
        law[tuple(u for u, taken in zip(units, inside) if taken)] = math.prod(rate if taken else 1 - rate for taken in inside)
    return law


def bag_of(draws, size, rate):
    return Bag(draws=draws, sample_rate=float(rate)) if draws == "poisson" else Bag(draws=draws, bag_size=size)


def neyman_pearson(under_d, under_other, p):
    """The least probability under D' of anything, a randomised learner included, that has probability p under D: exact."""
    cost, left = Fraction(0), Fraction(p)
    for drawn in sorted(under_d, key=lambda drawn: under_other.get(drawn, 0) / under_d[drawn]):
        taken = min(left, under_d[drawn])
        cost, left = cost + taken * under_other.get(drawn, 0) / under_d[drawn], left - taken
    return cost


@pytest.mark.parametrize("draws", ["fixed", "replacement", "poisson"])
@pytest.mark.parametrize("units, size, inserted, removed", [(5, 2, 1, 0), (5, 2, 0, 1), (5, 2, 1, 1), (6, 3, 2, 1), (6, 1, 1, 3), (4, 3, 0, 2), (5, 4, 2, 0), (4, 2, 3, 2)])
def test_no_learner_does_worse_than_the_bound_and_one_attains_it(draws, units, size, inserted, removed):
    rate = Fraction(size, units)
    names = [f"d{i}" for i in range(units)]
    under_d = laws(draws, size, rate, names)
    under_other = laws(draws, size, rate, [*names[removed:], *(f"n{i}" for i in range(inserted))])
    mechanism = bag_of(draws, size, rate)
    for p in (Fraction(k, 20) for k in range(21)):
        exact = float(neyman_pearson(under_d, under_other, p))
        bound = float(mechanism.lower(np.array([float(p)]), units, inserted, removed)[0])
        assert bound <= exact + 1e-15
        assert bound == pytest.approx(exact, abs=1e-10)


@given(
    draws=st.sampled_from(["fixed", "replacement", "poisson"]), units=st.integers(2, 60), share=st.floats(0.01, 1.0), radius_share=st.floats(0, 1),
)
def test_the_worst_split_of_a_symmetric_difference_is_a_pure_one(draws, units, share, radius_share):
    """The proof is in docs/theorems.md; this tries all splits."""
    size = max(1, int(share * units))
    mechanism = bag_of(draws, size, size / units)
    radius = int(radius_share * units)
    pure = np.minimum(mechanism.lower(P, units, radius, 0), mechanism.lower(P, units, 0, radius))
    for removed in range(radius + 1):
        for inserted in {radius - removed, max(0, radius - removed - 1)}:
            assert np.all(mechanism.lower(P, units, inserted, removed) >= pure - 1e-11)


def test_the_splits_of_a_large_dataset_too():
    for units, size, radius in ((2_000_000, 5000, 300), (976, 10, 500), (976, 3, 975), (50, 50, 7)):
        mechanism = Bag(bag_size=size)
        pure = np.minimum(mechanism.lower(P, units, radius, 0), mechanism.lower(P, units, 0, radius))
        for removed in range(0, radius + 1, max(1, radius // 50)):
            assert np.all(mechanism.lower(P, units, radius - removed, removed) >= pure - 1e-11)


@pytest.mark.parametrize("units, changed, size", [(10**15, 1, 10**15 - 3), (2**53, 2, 2**53 - 3), (10, 3, 4), (1000, 17, 300), (976, 500, 10), (100_000, 1000, 2000), (12, 12, 1), (12, 6, 6)])
def test_shares_without_changed_units_are_exact(units, changed, size):
    few, many = sorted((changed, size))
    exact = Fraction(math.comb(units - many, few), math.comb(units, few))
    found = math.exp(_log_share(units, changed, size))
    assert found == pytest.approx(float(exact), rel=1e-12, abs=0)


def test_shares_of_files_of_any_size_take_bounded_work_and_err_to_the_safe_side(monkeypatch):
    with limited_to(2e5):
        assert _log_share(2**54, 2**53, 2**53) < -1e15
        # Stirling's series: (m k / n) (1 + (m + k) / 2n + ...)
        assert _log_share(2**53, 10**7, 10**7) == pytest.approx(-(10**14) / 2**53, rel=1e-8)
        with pytest.raises(TooMuchWork):
            _log_share(2**53, 10**8, 10**8), _log_share(2**53, 10**9, 10**9)
    exact = _log_share(100_000, 1000, 2000)
    monkeypatch.setattr(bag, "TERMS", 100)
    assert exact * (1 + 1e-6) < _log_share(100_000, 1000, 2000) < exact


@pytest.mark.parametrize("units,inserted,removed,size,p", [(28, 24, 6, 1000, 1.0), (20, 13, 8, 1000, 1.0), (60, 59, 0, 1000, 1e-20), (100, 1, 0, 10, 1e-320)])
def test_bounds_too_small_for_all_digits_of_a_double_are_rounded_down(units, inserted, removed, size, p):
    """Exact: of 28 units 6 are replaced by 24 others, and a thousand draws are common ones with probability 4.62e-321, which no double is."""
    kept = units - removed
    under_d, under_other = Fraction(kept, units) ** size, Fraction(kept, kept + inserted) ** size
    mechanism = Bag(draws="replacement", bag_size=size)
    assert all(Fraction(found) <= exact for found, exact in zip(mechanism.common(units, inserted, removed), (under_d, under_other)))
    bound = mechanism.lower(np.array([p]), units, inserted, removed)[0]
    assert 0 <= Fraction(bound) <= under_other * max(Fraction(0), Fraction(p) - 1 + under_d) / under_d


def test_a_rare_bag_without_changed_units_has_its_exact_probability():
    """log1p(-x) would lose it where x is nearly 1."""
    for draws in ("fixed", "replacement"):
        (under_d, _), units = Bag(draws=draws, bag_size=1).common(10**15, 0, 10**15 - 3), 10**15
        assert under_d == pytest.approx(3 / units, rel=2e-12, abs=0) and under_d < 3 / units


@given(st.integers(2, 40), st.integers(0, 40), st.integers(0, 39), st.integers(1, 12), st.floats(0.3, 1), st.floats(0, 0.5))
def test_draws_with_replacement_certify_what_is_published(units, inserted, removed, size, top, second):
    """Jia et al. 2021 (arXiv 2008.04495), Theorem 1: certified if and only if (n'/n)^k - 2 (m/n)^k + 1 - p1 + p2 < 0."""
    common = max(units - removed, 1)
    removed, second = units - common, min(second, 1 - top)
    published = ((common + inserted) / units) ** size - 2 * (common / units) ** size + 1 - top + second
    low, high = Bag(draws="replacement", bag_size=size).lower(np.array([top, 1 - second]), units, inserted, removed)
    if abs(published) > 1e-9:
        assert (low > 1 - high) == (published < 0)


def test_partition_reaches_as_many_parts_as_units():
    mechanism = Partition(parts=8)
    assert np.allclose(mechanism.lower(np.array([1.0, 0.5, 0.1]), 100, 2, 1), [0.625, 0.125, 0.0])


@given(st.floats(0, 1), st.integers(1, 1000), st.integers(0, 1000))
def test_the_bound_of_a_partition_is_rounded_down(p, parts, changed):
    bound = float(Partition(parts=parts).lower(np.array([p]), 1000, changed, 0)[0])
    assert Fraction(bound) <= max(Fraction(0), Fraction(p) - Fraction(changed, parts)) < Fraction(bound) + Fraction(1, 10**14)


@pytest.mark.parametrize(
    "values, complaint",
    [
        ({"bag_size": 0}, "bag size 0"), ({"bag_size": 2.5}, "bag size 2.5"), ({}, "bag size and no sample rate"), ({"bag_size": 3, "draws": "all"}, "draws 'all'"),
        ({"bag_size": 3, "sample_rate": 0.1}, "alone"), ({"draws": "poisson", "bag_size": 3}, "sample rate"), ({"draws": "poisson", "sample_rate": 1.5}, "1.5"),
        ({"draws": "poisson", "sample_rate": float("nan")}, "nan"), ({"bag_size": 3, "unit": "row"}, "unit 'row'"),
    ],
)
def test_bad_bags_are_refused(values, complaint):
    with pytest.raises(MucdError, match=complaint):
        Bag(**values)


def test_more_units_in_a_bag_than_there_are_is_refused():
    with pytest.raises(MucdError, match="bag size 11"):
        Bag(bag_size=11).check(10)
    with pytest.raises(MucdError, match="11 parts"):
        Partition(parts=11).check(10)
