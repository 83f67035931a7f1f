"""Exact values where there are some, and coverage, exact or measured by simulation."""

import numpy as np
import pytest
from scipy.special import gammaln, xlogy
from scipy.stats import binom

from mucd_ray.certify.confidence.proportions import clopper_pearson_lower, clopper_pearson_upper, order_p_value, top_two_bounds
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


def all_votes(trials, actions):
    """Every count of so many votes, [n, actions]."""
    if actions == 1:
        return np.array([[trials]])
    return np.concatenate([np.insert(all_votes(trials - first, actions - 1), 0, first, axis=1) for first in range(trials + 1)])


def all_kinds_of_probabilities(actions):
    """[n, actions]: ties of the first, of the second, of all, sharp and flat ones, those at which many actions may win by chance."""
    rng = np.random.default_rng(actions)
    shapes = [np.full(actions, 1 / actions), np.eye(actions)[0], np.append([0.5, 0.5], np.zeros(actions - 2))]
    for lead in np.linspace(0.01, 0.99, 99):
        shapes += [np.append(lead, np.full(actions - 1, (1 - lead) / (actions - 1))), np.append([lead, (1 - lead)], np.zeros(actions - 2))]
        shapes += [np.append([lead / 2, lead / 2], np.full(actions - 2, (1 - lead) / (actions - 2)))]
    shapes += [rng.dirichlet(np.full(actions, alpha)) for alpha in (0.2, 1.0, 5.0, 100.0) for _ in range(100)]
    return np.array([row[order] for row in shapes for order in (slice(None), slice(None, None, -1))])


@pytest.mark.parametrize("trials, actions", [(1, 3), (7, 3), (24, 3), (5, 4), (13, 4), (9, 5)])
def test_votes_among_three_or_more_actions_cover_exactly(trials, actions):
    """The multinomial is summed, not simulated: bounds fail together with probability at most eta, and a significant winner that is not the first at most as often as is paid for."""
    counts, p = all_votes(trials, actions), all_kinds_of_probabilities(actions)
    weights = np.exp(gammaln(trials + 1) - gammaln(counts + 1).sum(1) + xlogy(counts[None], p[:, None]).sum(-1))
    assert weights.sum(axis=1) == pytest.approx(1.0)
    ordered = np.sort(counts, axis=1)
    p_value = order_p_value(ordered[:, -1], ordered[:, -2])
    of_winner = p[:, counts.argmax(axis=1)]
    for eta in (0.9, 0.5, 0.2, 0.05, 0.001):
        bounds = top_two_bounds(counts, eta)
        others = np.where(np.arange(actions) == bounds.action[:, None], -1.0, p[:, None, :]).max(axis=2)
        wrong = (bounds.top > of_winner + 1e-12) | (bounds.runner_up < others - 1e-12)
        assert (weights * wrong).sum(axis=1).max() <= eta
        # The first of a tie may be either: counted as wrong unless it is one fixed action of them.
        not_first = p.argmax(axis=1)[:, None] != counts.argmax(axis=1)
        assert (weights * (not_first & (p_value <= eta))).sum(axis=1).max() <= eta


def test_without_the_test_of_the_order_the_same_shares_would_fail():
    """Four equal actions: some one of them looks better than it is too often for two intervals to be enough."""
    counts, eta = all_votes(13, 4), 0.9
    weights = np.exp(gammaln(14) - gammaln(counts + 1).sum(1) - 13 * np.log(4))
    top = clopper_pearson_lower(counts.max(axis=1), 13, eta / 2)
    runner_up = clopper_pearson_upper(np.sort(counts, axis=1)[:, -2], 13, eta / 4)
    assert weights @ ((top > 0.25) | (runner_up < 0.25)) > eta


def test_a_clear_vote_costs_no_more_for_more_actions():
    two, many = (top_two_bounds([[1000] + [0] * (actions - 1)], 0.001) for actions in (2, 18))
    assert two.top == many.top == pytest.approx(0.0005 ** (1 / 1000)) and two.runner_up == pytest.approx(1 - 0.0005 ** (1 / 1000))
    assert many.runner_up == two.runner_up
    # The lead of 12 : 1 among 20 has the two-sided p-value 2 * 14 / 2^13.
    assert order_p_value(12, 1) == pytest.approx(28 / 2**13) and top_two_bounds([[12, 1, 4, 3]], 4 * 28 / 2**13 - 1e-9).top == 0
    assert order_p_value(5, 5) == 1 and order_p_value(0, 0) == 1


def test_ties_go_to_the_lowest_action_and_certify_nothing():
    bounds = top_two_bounds([[50, 50], [0, 100]], 0.01)
    assert bounds.action.tolist() == [0, 1]
    assert top_two_bounds([[40, 40, 20]], 0.01).top == 0
    assert bounds.top[0] < bounds.runner_up[0] and bounds.top[1] > bounds.runner_up[1]


@pytest.mark.parametrize("counts", [[[3, 4], [5, 1]], [[7]], [[-1, 8]]])
def test_counts_that_do_not_add_up_are_refused(counts):
    with pytest.raises(MucdError, match="votes of shape|count -1 is not"):
        top_two_bounds(counts, 0.01)


def assert_covers(failed: int, runs: int, eta: float):
    """Fewer failures than a method that fails with probability eta exactly exceeds once in a million tests."""
    assert failed <= binom.isf(1e-6, runs, eta), f"{failed} of {runs} failed, eta {eta}"


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.97, 0.9999])
@pytest.mark.parametrize("trials", [1, 12, 3000])
def test_clopper_pearson_covers_close_to_zero_and_one_and_is_not_wasteful(p, trials):
    counts, eta = np.arange(trials + 1), 0.1
    weights = binom.pmf(counts, trials, p)
    below = weights @ (clopper_pearson_lower(counts, trials, eta) > p)
    above = weights @ (clopper_pearson_upper(counts, trials, eta) < p)
    assert max(below, above) <= eta + 1e-12
    if trials == 3000 and 0.1 <= p <= 0.97:
        assert min(below, above) > 0.8 * eta


def test_states_that_are_voted_on_by_the_same_instances_hold_together():
    """Whether an instance errs at one state goes with whether it errs at the others; with eta/S for each, no state is wrong."""
    rng, states, instances, runs, eta = np.random.default_rng(4), 20, 100, 2000, 0.2
    for shared in (0.0, 0.5, 1.0):
        own, common = rng.random((runs, instances, states)), rng.random((runs, instances, 1))
        mix = np.where(rng.random((runs, instances, states)) < shared, common, own)
        top = (mix < 0.8).sum(axis=1)
        counts = np.stack([top, instances - top], axis=-1)

        def wrong(eta_each, counts=counts):
            bounds = top_two_bounds(counts.reshape(-1, 2), eta_each)
            truth = np.where(bounds.action == 0, 0.8, 0.2)
            return ((bounds.top > truth) | (bounds.runner_up < 1 - truth)).reshape(runs, states)

        assert_covers(wrong(eta / states).any(axis=1).sum(), runs, eta)
        assert_covers(wrong(eta)[:, 0].sum(), runs, eta)
        if shared == 0:
            # Without sharing eta out the states are not all right together.
            assert wrong(eta).any(axis=1).sum() > binom.isf(1e-6, runs, eta)


@pytest.mark.parametrize("count, trials", [(-1, 10), (11, 10), (2.5, 10), (float("nan"), 10), (3, 10.0), (3, float("nan")), (3, -1), ("3", 10)])
def test_counts_that_are_no_counts_are_refused(count, trials):
    for bound in (clopper_pearson_lower, clopper_pearson_upper):
        with pytest.raises(MucdError, match="count|trials"):
            bound(count, trials, 0.01)


@pytest.mark.parametrize("counts", [[[float("nan"), 1.0]], [[0.5, 9.5]], [], [[]], [3, 4], [[1, 2], [3]], [["a", "b"]]])
def test_votes_that_are_no_votes_are_refused(counts):
    with pytest.raises(MucdError, match="votes|count"):
        top_two_bounds(counts, 0.01)


@pytest.mark.parametrize("eta", [0.0, 1.0, -0.1, float("nan")])
def test_eta_outside_its_range_is_refused(eta):
    with pytest.raises(MucdError, match="eta"):
        top_two_bounds([[7, 1]], eta)
    with pytest.raises(MucdError, match="eta"):
        clopper_pearson_lower(3, 7, eta)
