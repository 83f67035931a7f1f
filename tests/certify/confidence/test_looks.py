"""The schedule, and by simulation that it covers whatever the stopping rule."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from mucd_ray.certify.confidence.looks import LOOKS, effective_eta, looks_up_to
from mucd_ray.certify.confidence.proportions import LEAST_ETA, clopper_pearson_lower
from mucd_ray.errors import MucdError


def test_looks_are_the_rounded_values_of_the_standard():
    assert looks_up_to(100_000) == [
        100, 160, 250, 400, 630, 1000, 1600, 2500, 4000, 6300, 10_000, 16_000, 25_000, 40_000, 63_000, 100_000,
    ]  # fmt: skip
    assert looks_up_to(99) == looks_up_to(0) == []
    assert looks_up_to(100) == looks_up_to(159) == [100]


@given(st.integers(100, 10**12))
def test_a_larger_budget_only_adds_looks(budget):
    looks = looks_up_to(budget)
    assert looks == looks_up_to(2 * budget)[: len(looks)] and looks[-1] <= budget < 1.61 * looks[-1]


def test_a_fixed_number_of_instances_spends_all_of_eta():
    assert all(effective_eta(0.01, "fixed", n) == 0.01 for n in (1, 7, 100, 12_345))


def test_all_looks_together_spend_no_more_than_eta():
    looks = looks_up_to(10**9)
    shares = [effective_eta(0.01, "anytime", n) for n in looks]
    assert shares[0] == 0.005 and shares[1] == pytest.approx(0.01 / 6)
    assert sum(shares) == pytest.approx(0.01 * (1 - 1 / (len(looks) + 1)))
    assert effective_eta(0.001, "anytime", np.int64(100)) == 0.0005


@pytest.mark.parametrize("instances, nearest", [(99, "at 100"), (101, "at 100 or 160"), (999, "at 630 or 1000"), (1001, "at 1000 or 1600")])
def test_another_number_names_the_nearest_looks(instances, nearest):
    with pytest.raises(MucdError, match=f"{instances} instances: certify {nearest}$"):
        effective_eta(0.01, "anytime", instances)


@pytest.mark.parametrize("instances", [100.0, 1.5, float("nan"), -1, "100", None, True])
def test_numbers_that_are_no_counts_are_refused(instances):
    for looks in LOOKS:
        with pytest.raises(MucdError, match="instances"):
            effective_eta(0.01, looks, instances)
    with pytest.raises(MucdError, match="budget"):
        looks_up_to(instances)


def test_other_bad_input_is_refused():
    with pytest.raises(MucdError, match="looks 'sometimes' is unknown: use one of fixed, anytime"):
        effective_eta(0.01, "sometimes", 100)
    with pytest.raises(MucdError, match="eta"):
        effective_eta(0.0, "anytime", 100)
    with pytest.raises(MucdError, match="larger eta"):
        effective_eta(2 * LEAST_ETA, "anytime", 1000)


@pytest.mark.parametrize("p", [0.5, 0.97])
def test_whoever_stops_at_the_best_look_is_covered_by_the_shares_and_not_by_eta_at_every_look(p):
    rng, eta, runs = np.random.default_rng(0), 0.1, 20_000
    looks = np.array(looks_up_to(100_000))
    counts = np.cumsum(rng.binomial(np.diff(looks, prepend=0), p, size=(runs, len(looks))), axis=1)

    def failed(eta_of):
        """The rule: go on until the bound is above the truth."""
        return np.any([clopper_pearson_lower(counts[:, i], int(n), eta_of(int(n))) > p for i, n in enumerate(looks)], axis=0).sum()

    assert 0 < failed(lambda n: effective_eta(eta, "anytime", n)) <= binom.isf(1e-6, runs, eta)
    assert failed(lambda n: eta) > 2 * eta * runs
