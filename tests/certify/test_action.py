import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from mucd_ray.certify.action import ABSTAIN, action_radii, certify_actions
from mucd_ray.certify.guarantees import FAMILIES, Guarantees
from mucd_ray.certify.radius import largest_radii, radius_ladder
from mucd_ray.mechanism.mechanism import Mechanism


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
    certificate = certify_actions(counts, guarantees(q=0.05, sigma=4.0, steps=50, family=family), eta=0.01, cap=1000)
    assert certificate.radius[0] == ABSTAIN and np.all(np.diff(certificate.radius) >= 0) and certificate.radius[-1] > 0
    stricter = certify_actions(counts, guarantees(q=0.05, sigma=4.0, steps=50, family=family), eta=0.0001, cap=1000)
    assert np.all(stricter.radius <= certificate.radius)


@settings(max_examples=60, deadline=None)
@given(truth=st.lists(st.integers(-1, 700), min_size=1, max_size=12), cap=st.integers(1, 600))
def test_the_search_finds_every_largest_radius(truth, cap):
    truth = np.array(truth)
    assert np.array_equal(largest_radii(lambda r: truth >= r, cap), np.minimum(truth, cap))


def test_the_ladder_is_increasing_and_ends_at_the_cap():
    for cap in (1, 7, 1000, 123_456):
        ladder = radius_ladder(cap)
        assert ladder[0] == 0 and ladder[-1] == cap and np.all(np.diff(ladder) > 0)
