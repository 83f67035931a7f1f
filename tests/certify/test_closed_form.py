"""Bags and partitions as guarantees: the contract of all guarantees, simulated attackers that attain the bound, and votes of Jia et al."""

from itertools import combinations, product

import numpy as np
import pytest
from scipy.stats import binomtest

from mucd_ray.certify.action import certify_votes
from mucd_ray.certify.closed_form import ClosedFormGuarantees, guarantees_of
from mucd_ray.certify.guarantees import THREATS
from mucd_ray.certify.planning.bags import bag_of
from mucd_ray.certify.policy import ReturnBand
from mucd_ray.errors import MucdError
from mucd_ray.learn.streams import Streams
from mucd_ray.learn.trainers.bags import draw_bag
from mucd_ray.mechanism.bag import Bag
from mucd_ray.mechanism.partition import Partition

P = np.concatenate([[0.0, 1e-4, 0.01], np.linspace(0.05, 0.95, 19), [0.99, 0.9999, 1.0]])
MECHANISMS = [Bag(bag_size=3), Bag(bag_size=3, draws="replacement"), Bag(draws="poisson", sample_rate=0.03), Bag(bag_size=100), Partition(parts=40), Partition(parts=60, spread=3)]


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
        assert np.all(lower <= lower_before + 1e-11) and np.all(upper >= upper_before - 1e-11)
        lower_before, upper_before = lower, upper
        if radius == 0:
            assert np.array_equal(lower, P) and np.array_equal(upper, P)


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=str)
def test_a_symmetric_difference_covers_every_split(mechanism):
    guarantees = ClosedFormGuarantees(mechanism, units=100)
    for radius in (1, 2, 7, 29):
        splits = guarantees.split_profile(radius, 0.99, splits=radius + 1)
        assert len(splits["bound"]) == radius + 1
        for removed in range(radius + 1):
            assert np.all(guarantees.at(radius).lower(P) <= guarantees.group(radius - removed, removed).lower(P) + 1e-11)


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=str)
def test_the_least_value_over_splits_is_that_of_one_of_them(mechanism):
    """No more than any split's, no less than with the worst split at every probability, and exactly the worst one's where all of them are looked at."""
    guarantees, rng = ClosedFormGuarantees(mechanism, units=100), np.random.default_rng(0)
    gained = 0.0
    for radius in (0, 1, 3, 12, 30, 90, 130):
        for shape in (0.3, 1.0, 3.0):
            # A band whose mass lies low, or high.
            band = ReturnBand(threshold=np.sort(rng.uniform(0, 1, 50)), probability=np.sort(rng.uniform(0, 1, 50) ** shape)[::-1], floor=0.0)
            splits = [band.expected_return(guarantees.group(radius - removed, removed).lower) for removed in range(min(radius, 100) + 1)]
            found, pointwise = guarantees.least(radius, band.expected_return), band.expected_return(guarantees.at(radius).lower)
            assert pointwise <= found <= min(splits) + 1e-12
            if radius <= 12:
                assert found >= min(splits) - 1e-12
            gained = max(gained, found - pointwise)
    # A part counts changes of either kind alike, and of a bag of everything removals leave nothing.
    assert gained > 0.01 or mechanism in MECHANISMS[3:]
    for threat in ("insert", "remove", "substitute"):
        of_threat = ClosedFormGuarantees(mechanism, units=100, threat=threat)
        assert of_threat.least(5, band.expected_return) == band.expected_return(of_threat.at(5).lower)


@pytest.mark.parametrize("bag", [Bag(bag_size=2), Bag(bag_size=3), Bag(bag_size=2, draws="replacement"), Bag(draws="poisson", sample_rate=0.4)], ids=str)
def test_the_expected_return_of_every_poisoning_of_a_tiny_dataset_is_covered(bag):
    """All bags of all D' are enumerated; returns of bags are the attacker's, who also chooses which units are his."""
    units, rng, closest = 5, np.random.default_rng(1), np.inf
    everything = range(units + 3)

    def law(numbers):
        """(bag, its probability) for every bag."""
        if bag.draws == "fixed":
            bags = list(combinations(numbers, bag.bag_size))
            return [(chosen, 1 / len(bags)) for chosen in bags]
        if bag.draws == "replacement":
            return [(chosen, len(numbers) ** -bag.bag_size) for chosen in product(numbers, repeat=bag.bag_size)]
        q = bag.sample_rate
        return [(chosen, q ** len(chosen) * (1 - q) ** (len(numbers) - len(chosen))) for size in range(len(numbers) + 1) for chosen in combinations(numbers, size)]

    for attempt in range(6):
        # From returns that are alike to a few that are all there is; zero as soon as one of the attacker's units is in the bag.
        returns = {chosen: float(rng.uniform() ** (1, 1, 4, 4, 12, 12)[attempt]) for numbers in [range(units)] for chosen, _ in law(numbers)}

        def mean(numbers):
            return sum(returns.get(chosen, 0.0) * probability for chosen, probability in law(numbers))

        values = np.array(sorted(set(returns.values())))
        survival = np.array([sum(p for chosen, p in law(range(units)) if returns[chosen] >= value) for value in values])
        band = ReturnBand(threshold=values, probability=np.minimum(survival, 1.0), floor=0.0)
        guarantees = ClosedFormGuarantees(bag, units=units)
        for size in range(bag.bag_size or 1, units + 3):
            for numbers in combinations(everything, size):
                radius = len(set(numbers) ^ set(range(units)))
                bound = guarantees.least(radius, band.expected_return)
                assert mean(numbers) >= bound - 1e-12
                closest = min(closest, mean(numbers) - bound) if radius else closest
    assert closest < 1e-6


@pytest.mark.parametrize("bag", [Bag(bag_size=4), Bag(bag_size=4, draws="replacement"), Bag(draws="poisson", sample_rate=0.1)], ids=str)
@pytest.mark.parametrize("inserted,removed", [(3, 0), (0, 3), (2, 2)])
def test_an_attacker_who_draws_real_bags_attains_the_bound_and_never_beats_it(bag, inserted, removed):
    """The learner does what he wants as soon as a unit of his is in the bag."""
    units, trials, streams = 40, 20_000, Streams(b"the secret of these tests")
    # The first units are removed; numbers from 1000 on stand for inserted ones.
    of_d, of_other = np.arange(units), np.concatenate([np.arange(removed, units), 1000 + np.arange(inserted)])

    def holds(numbers, instance):
        """The event: no inserted unit is in the bag."""
        chosen = numbers[draw_bag(bag, len(numbers), instance, streams)]
        return not (chosen >= 1000).any()

    assert all(holds(of_d, i) for i in range(1000))
    found = sum(holds(of_other, trials + i) for i in range(trials))
    # It has probability 1 under D, and c_a under D'.
    bound = float(ClosedFormGuarantees(bag, units=units).group(inserted, removed).lower(1.0))
    assert binomtest(found, trials, bound).pvalue > 1e-4


def test_a_larger_majority_of_smaller_bags_withstands_more():
    votes = np.array([[1000, 0, 0]])
    radii = [certify_votes(votes, guarantees_of(Bag(bag_size=k), units=976), eta=0.001, cap=976).radius[0] for k in (2, 3, 5, 10, 50)]
    assert radii == sorted(radii, reverse=True) and radii[0] > 300 and radii[-1] > 10
    # p1 = .9924 of 1000 unanimous votes: lower(p1) > 1/2 ends where C(n, k) p1 / C(n + r, k) or (p1 - 1 + c)/c falls to it.
    assert certify_votes(votes, guarantees_of(Partition(parts=976), units=976), eta=0.001, cap=976).radius[0] == int(976 * (2 * 0.0005 ** (1 / 1000) - 1) / 2)


def test_what_does_not_fit_is_refused():
    with pytest.raises(MucdError, match="accountant 'rdp'"):
        guarantees_of(Bag(bag_size=3), units=100, family="rdp")
    with pytest.raises(MucdError, match="bag size 101"):
        guarantees_of(Bag(bag_size=101), units=100)
    with pytest.raises(MucdError, match="threat 'all'"):
        guarantees_of(Bag(bag_size=3), units=100, threat="all")
    with pytest.raises(MucdError, match="101 units cannot be removed"):
        guarantees_of(Bag(bag_size=3), units=100).group(0, 101)
    for group in ((10**23, 0), (0, 10**23)):
        with pytest.raises(MucdError, match="1" + "0" * 23):
            guarantees_of(Bag(bag_size=3), units=100).group(*group)
    with pytest.raises(MucdError, match="bag size 1000"):
        bag_of(10**400, unit="trajectory", draws="poisson", units=100)
