"""A bag, then noise, as guarantees: the contract of all guarantees, every split, and simulated attackers on real bags and real noise."""

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from mucd_ray.certify.bagged_noise import BaggedNoiseGuarantees
from mucd_ray.certify.closed_form import guarantees_of
from mucd_ray.certify.guarantees import THREATS
from mucd_ray.errors import MucdError
from mucd_ray.mechanism.bag_then_noise import BagThenNoise
from mucd_ray.mechanism.gaussian.accounting import MOST_UNITS
from mucd_ray.mechanism.work import TooMuchWork, limited_to

P = np.concatenate([[0.0, 1e-4, 0.01], np.linspace(0.05, 0.95, 19), [0.99, 0.9999, 1.0]])
INNER = {"sample_rate": 0.5, "noise_multiplier": 2.0, "clip_norm": 1.0, "steps": 5, "normaliser": 1.0}
MECHANISMS = [BagThenNoise(bag_rate=0.03, **INNER), BagThenNoise(draws="fixed", bag_size=3, **INNER)]


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=str)
@pytest.mark.parametrize("threat", THREATS)
def test_contract(mechanism, threat):
    guarantees = guarantees_of(mechanism, units=100, threat=threat)
    lower_before = upper_before = P
    for radius in (0, 1, 2, 5, 50, 97, 98, 100, 150):
        lower, upper = guarantees.at(radius).lower(P), guarantees.at(radius).upper(P)
        assert np.all((0 <= lower) & (lower <= P) & (P <= upper) & (upper <= 1))
        assert np.all(np.diff(lower) >= -1e-12) and np.all(np.diff(upper) >= -1e-12)
        assert np.allclose(upper, 1 - guarantees.at(radius).lower(1 - P))
        assert np.all(lower <= lower_before + 1e-8) and np.all(upper >= upper_before - 1e-8)
        lower_before, upper_before = lower, upper
        if radius == 0:
            assert np.array_equal(lower, P) and np.array_equal(upper, P)


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=str)
def test_a_symmetric_difference_covers_every_split(mechanism):
    guarantees = BaggedNoiseGuarantees(mechanism, units=400)
    for radius in (1, 2, 7, 29, 300):
        lower = guarantees.at(radius).lower(P)
        for removed in range(0, radius + 1, max(1, radius // 30)):
            assert np.all(lower <= guarantees.group(radius - removed, removed).lower(P) + 1e-8)
    profile = guarantees.split_profile(7, 0.99, splits=8)
    assert profile["removed"] == list(range(8)) and min(profile["bound"]) >= guarantees.at(7).lower(0.99) - 1e-8
    assert 0 <= guarantees.discretisation_error(7) < 1


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=str)
@pytest.mark.parametrize("inserted, removed", [(20, 0), (0, 20), (12, 8)])
def test_simulated_attackers_stay_above_the_bound_and_some_come_near(mechanism, inserted, removed):
    """His units push along one line; of the rest none does. The event is a threshold on the sum of what is released, under D of a known probability."""
    rng, trials, units = np.random.default_rng(3), 100_000, 100

    def sums(changed, others, sign):
        total = others + changed
        size = rng.binomial(changed, 0.03, trials) if mechanism.draws == "poisson" else rng.hypergeometric(changed, others, 3, trials) if changed else np.zeros(trials, int)
        return sign * rng.binomial(size * 5, 0.5) + rng.normal(0, 2 * np.sqrt(5), trials), total

    under_d, total = sums(removed, units - removed, +1)
    under_other, _ = sums(inserted, units - removed, -1)
    assert total == units
    for level in (0.02, 0.3, 0.6, 0.9, 0.98):
        threshold = np.quantile(under_d, 1 - level)
        p = binomtest(int((under_d > threshold).sum()), trials).proportion_ci(0.9999).low
        bound = float(guarantees_of(mechanism, units=units).group(inserted, removed).lower(p))
        attained = binomtest(int((under_other > threshold).sum()), trials)
        assert attained.proportion_ci(0.9999).high >= bound
        if mechanism.draws == "poisson":
            assert attained.proportion_ci(0.9999).low <= bound + 0.04


def test_noise_and_bag_together_withstand_more_than_either_where_they_are_alike():
    """Equal noise on the same expected bag; a pure bag of that size; unanimous votes of 1000."""
    shared = {"sample_rate": 1.0, "noise_multiplier": 4.0, "clip_norm": 1.0, "steps": 100, "normaliser": 1.0}
    both = BagThenNoise(bag_rate=0.02, **shared)
    gaussian = norm.ppf(0.9924) * 4 / (0.02 * 10)
    top = np.array([0.9924])
    insertions = guarantees_of(both, units=1000, threat="insert")
    radius = max(r for r in range(1, 100) if insertions.at(r).lower(top) > insertions.at(r).upper(1 - top))
    bag = max(r for r in range(1, 100) if both.bag.lower(top, 1000, r, 0) > 0.5)
    assert radius > 1.1 * gaussian and radius > 1.5 * bag


def test_what_does_not_fit_is_refused():
    for changes, complaint in (({"family": "rdp"}, "accountant 'rdp'"), ({"threat": "all"}, "threat 'all'"), ({"units": 2}, "bag size 3")):
        with pytest.raises(MucdError, match=complaint):
            BaggedNoiseGuarantees(MECHANISMS[1], **{"units": 100} | changes)
    guarantees = BaggedNoiseGuarantees(MECHANISMS[0], units=100)
    for group, complaint in (((0, 101), "101 units cannot be removed"), ((10**9, 0), f"above {MOST_UNITS}"), ((10**23, 0), "1" + "0" * 23), ((-1, 0), "-1")):
        with pytest.raises(MucdError, match=complaint):
            guarantees.group(*group)


@pytest.mark.parametrize("changes, units, radius", [
    ({"bag_rate": 0.5, "steps": 10**7, "noise_multiplier": 1e6}, 2**53, 10**8), ({"bag_rate": 0.5, "noise_multiplier": 0.01}, 2**53, 9 * 10**7), ({"bag_rate": 1e-9, "sample_rate": 1e-9}, 2**53, 10**8),
    ({"draws": "fixed", "bag_rate": None, "bag_size": 2**52, "noise_multiplier": 1e9}, 2**53, 10**7), ({"draws": "fixed", "bag_rate": None, "bag_size": 2**53}, 2**53, 1), ({"bag_rate": 1.0, "steps": 10**7}, 100, 100),
])  # fmt: skip
def test_whatever_a_file_asks_for_takes_bounded_work(changes, units, radius):
    guarantees = BaggedNoiseGuarantees(BagThenNoise(**INNER | {"bag_rate": 0.1} | changes), units=units)
    try:
        with limited_to(3e8):
            lower = guarantees.group(radius, 0).lower(P)
            assert np.all((0 <= lower) & (lower <= P)) and 0 <= guarantees.accountant.attainable(units, radius, 0)(0.5) <= 0.5
            guarantees.at(min(radius, guarantees.largest_radius)).lower(P)
    except TooMuchWork:
        pass
