"""Exact values where there are some, and coverage measured by simulation, point masses and ties included."""

import numpy as np
import pytest
from scipy.stats import binom

from mucd_ray.certify.confidence import clopper_pearson_lower, clopper_pearson_upper, top_two_bounds
from mucd_ray.errors import MucdError

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
