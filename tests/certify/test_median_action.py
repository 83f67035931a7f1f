import numpy as np
import pytest
from scipy.stats import binom, norm

from mucd_ray.certify.file.evidence import histogram, levels
from mucd_ray.certify.guarantees import FAMILIES, Guarantees
from mucd_ray.certify.median_action import MedianActions
from mucd_ray.mechanism.gaussian.mechanism import Mechanism

# Without subsampling, r units shift the noise of an instance by r/100 in the worst case.
GAUSSIAN = Guarantees(Mechanism(sample_rate=1.0, noise_multiplier=100.0, clip_norm=1.0, steps=1, normaliser=1.0))


def actions_of(noise, low=-4.0, high=4.0):
    """One state, one dimension: the action is the instance's noise, so the attacker's best direction moves it."""
    return histogram(levels(noise[:, None, None], low, high))


def ends(actions, radius):
    lower, upper = actions.interval(radius)
    return -4 + 8 * lower.item(), -4 + 8 * upper.item()


@pytest.mark.parametrize("radius", [0, 30, 100])
def test_the_interval_holds_the_median_under_every_shift_and_is_no_wider_than_it_must_be(radius):
    rng, eta, failed = np.random.default_rng(3), 0.1, 0
    for _ in range(200):
        lower, upper = ends(MedianActions(actions_of(rng.normal(size=100)), GAUSSIAN, eta=eta), radius)
        # Both directions must be inside: the attacker may push either way.
        failed += not (lower <= -radius / 100 and radius / 100 <= upper)
    assert failed <= binom.isf(1e-4, 200, eta)
    lower, upper = ends(MedianActions(actions_of(rng.normal(size=30_000)), GAUSSIAN, eta=eta), radius)
    assert upper == pytest.approx(radius / 100, abs=0.11) and lower == pytest.approx(-radius / 100, abs=0.11)


def test_the_rank_has_the_closed_form_of_the_gaussian():
    actions = MedianActions(actions_of(np.zeros(5000)), GAUSSIAN, eta=0.01)
    for radius in (1, 40, 150):
        rank = actions.rank(radius)
        needed = norm.cdf(radius / 100)  # lower_r(p) > 1/2 iff p > Phi(r/sigma)
        assert 1 - actions.beyond[5000 - rank] > needed > 1 - actions.beyond[5000 - rank + 1] - 2e-4
    assert actions.rank(1000) == 5001 and actions.interval(1000)[0].item() == 0 and actions.interval(1000)[1].item() == 1


def test_ties_at_the_ends_of_the_range_stay_inside_it():
    low_end, high_end = (MedianActions(actions_of(np.full(500, end)), GAUSSIAN, eta=0.01) for end in (-4.0, 4.0))
    assert ends(low_end, 50) == (-4, pytest.approx(-4 + 8 / 200)) and ends(high_end, 50) == (4, 4)
    assert high_end.half_width(50).item() == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_widths_grow_with_r_and_radii_are_the_last_within_tolerance(family):
    rng = np.random.default_rng(5)
    mechanism = Mechanism(sample_rate=0.05, noise_multiplier=4.0, clip_norm=1.0, steps=50, normaliser=1.0)
    values = rng.normal(scale=[[[0.1, 0.3]], [[0.5, 0.2]], [[0.05, 0.05]]], size=(3, 400, 2)).transpose(1, 0, 2)
    actions = MedianActions(histogram(levels(values, -1, 1)), Guarantees(mechanism, family=family), eta=0.01)
    widths = np.stack([actions.half_width(r) for r in range(12)])
    assert np.all(np.diff(widths, axis=0) >= 0)
    found = actions.radii(0.1, cap=1000)
    for state, radius in enumerate(found):
        assert radius < 0 or np.all(actions.half_width(int(radius))[state] <= 0.1)
        assert np.any(actions.half_width(int(radius) + 1)[state] > 0.1)
    assert found[2] >= found[1]
