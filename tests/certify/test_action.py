import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from mucd_ray.certify.action import ABSTAIN, action_radii, certify_scores, certify_votes
from mucd_ray.certify.file.evidence import LEVELS, histogram, levels
from mucd_ray.certify.guarantees import FAMILIES, Guarantees
from mucd_ray.certify.radius import largest_radii, radius_ladder
from mucd_ray.mechanism.gaussian.mechanism import Mechanism


def guarantees(q=1.0, sigma=100.0, steps=4, **options):
    return Guarantees(Mechanism(sample_rate=q, noise_multiplier=sigma, clip_norm=1.0, steps=steps, normaliser=1.0), **options)


def test_without_subsampling_radii_have_the_closed_form():
    """lower > upper iff r sqrt(T)/sigma < (z(top) - z(runner_up)) / 2."""
    top, runner_up = np.array([0.6, 0.9, 0.99, 0.55, 0.5]), np.array([0.3, 0.1, 0.01, 0.45, 0.5])
    exact = (norm.ppf(top) - norm.ppf(runner_up)) / 2 * 100 / 2
    found = action_radii(top, runner_up, guarantees(), cap=10_000)
    assert found[-1] == ABSTAIN
    assert np.all(found[:-1] <= np.floor(exact[:-1])) and np.all(found[:-1] >= np.floor(exact[:-1] - 0.05))


def test_radii_agree_with_a_linear_search_and_respect_the_cap():
    subsampled = guarantees(q=0.01, sigma=3.0, steps=300)
    top, runner_up = np.array([0.999, 0.97, 0.7]), np.array([0.001, 0.02, 0.25])
    found = action_radii(top, runner_up, subsampled, cap=500)
    for radius, p1, p2 in zip(found, top, runner_up, strict=True):
        assert all(subsampled.at(r).lower(p1) > subsampled.at(r).upper(p2) for r in range(radius + 1))
        assert not subsampled.at(int(radius) + 1).lower(p1) > subsampled.at(int(radius) + 1).upper(p2)
    assert action_radii(top, runner_up, subsampled, cap=5).tolist() == [5, 5, 5]


@pytest.mark.parametrize("family", FAMILIES)
def test_more_agreement_never_certifies_less(family):
    counts = np.array([[k, 400 - k, 0] for k in range(200, 401, 25)])
    bounds = guarantees(q=0.05, sigma=4.0, steps=50, family=family)
    certificate = certify_votes(counts, bounds, eta=0.01, cap=1000)
    assert certificate.radius[0] == ABSTAIN and np.all(np.diff(certificate.radius) >= 0) and certificate.radius[-1] > 0
    stricter = certify_votes(counts, bounds, eta=0.0001, cap=1000)
    assert np.all(stricter.radius <= certificate.radius)


def scores(rng, instances, actions=2):
    """Without subsampling an instance is its noise z; the scores Phi(1 - z) and 1 - Phi(1 - z) follow the attacker's best direction."""
    top = norm.cdf(1 - rng.normal(size=(instances, 1)))
    rest = (1 - top) / (actions - 1)
    return np.stack([top, *[rest] * (actions - 1)], axis=2)


def test_score_radii_never_pass_the_true_one_and_come_near_it():
    """Under D' z is shifted by r sqrt(T)/sigma, and both expected scores are equal at a shift of 1: at r = 50."""
    rng, eta, runs, gaussian = np.random.default_rng(11), 0.1, 200, guarantees()
    found = [int(certify_scores(histogram(levels(scores(rng, 80), 0, 1)), gaussian, eta=eta, cap=200).radius[0]) for _ in range(runs)]
    assert np.mean(np.array(found) >= 50) <= eta
    assert int(certify_scores(histogram(levels(scores(rng, 20_000), 0, 1)), gaussian, eta=eta, cap=200).radius[0]) in range(43, 50)


def test_score_bounds_hold_the_true_expectations_under_d():
    rng, eta, failed, gaussian = np.random.default_rng(12), 0.1, 0, guarantees()
    top = norm.cdf(1 / np.sqrt(2))  # E Phi(1 - z)
    for _ in range(400):
        bounds = certify_scores(histogram(levels(scores(rng, 60, actions=3), 0, 1)), gaussian, eta=eta, cap=1)
        failed += bounds.top[0] > top or bounds.runner_up[0] < (1 - top) / 2
    assert failed / 400 <= eta


def test_certain_scores_certify_like_unanimous_votes_up_to_the_levels():
    certain = np.zeros((1, 2, LEVELS + 1), int)
    certain[0, 0, LEVELS] = certain[0, 1, 0] = 500
    by_scores = certify_scores(certain, guarantees(), eta=0.002, cap=1000).radius[0]
    by_votes = certify_votes(np.array([[500, 0]]), guarantees(), eta=0.001, cap=1000).radius[0]
    assert 0 <= by_votes - by_scores <= 0.1 * by_votes
    tie = np.zeros((1, 2, LEVELS + 1), int)
    tie[..., LEVELS // 2] = 500
    assert certify_scores(tie, guarantees(), eta=0.01, cap=1000).radius[0] == ABSTAIN


@pytest.mark.parametrize("family", FAMILIES)
def test_more_confident_scores_never_certify_less(family):
    rng = np.random.default_rng(2)
    y = np.stack([rng.beta(k, 2, 300) for k in (3, 6, 12, 40)], axis=1)
    counts = histogram(levels(np.stack([y, 1 - y], axis=2), 0, 1))
    radius = certify_scores(counts, guarantees(q=0.05, sigma=4.0, steps=50, family=family), eta=0.01, cap=1000).radius
    assert np.all(np.diff(radius) >= 0) and radius[-1] > 0


@settings(max_examples=60, deadline=None)
@given(truth=st.lists(st.integers(-1, 700), min_size=1, max_size=12), cap=st.integers(1, 600))
def test_the_search_finds_every_largest_radius(truth, cap):
    truth = np.array(truth)
    assert np.array_equal(largest_radii(lambda r: truth >= r, cap), np.minimum(truth, cap))


def test_the_ladder_is_increasing_and_ends_at_the_cap():
    for cap in (1, 7, 1000, 123_456):
        ladder = radius_ladder(cap)
        assert ladder[0] == 0 and ladder[-1] == cap and np.all(np.diff(ladder) > 0)


def test_scores_are_certified_alike_however_many_states_are_looked_at_together(monkeypatch):
    rng = np.random.default_rng(5)
    counts = rng.multinomial(300, rng.dirichlet(np.ones(LEVELS + 1), size=(7, 3)))
    counts[:5, 1] = rng.multinomial(300, np.repeat([0.0, 1 / 51], [150, 51]), size=5)
    whole = certify_scores(counts, guarantees(), eta=0.01, cap=1000)
    monkeypatch.setattr("mucd_ray.certify.action.ENTRIES_AT_A_TIME", 2 * 3 * LEVELS)
    parts = certify_scores(counts, guarantees(), eta=0.01, cap=1000)
    assert all(np.array_equal(getattr(whole, name), getattr(parts, name)) for name in ("action", "radius", "top", "runner_up"))
    assert (whole.radius[:5] > 0).all() and (whole.radius[5:] == ABSTAIN).all()
