"""Bags have the law that the accounting states, and say nothing about how many units there are or where they stand."""

import itertools

import numpy as np
import pytest
from problems import problem
from scipy.stats import binom, chisquare

from mucd_ray.learn.ensemble import train_block
from mucd_ray.learn.streams import Streams
from mucd_ray.learn.trainers.bags import draw_bag, units_of
from mucd_ray.learn.units import Units
from mucd_ray.mechanism.bag import Bag
from mucd_ray.mechanism.gaussian.mechanism import Mechanism

STREAMS = Streams(b"the secret of these tests")


def test_every_ordered_bag_is_as_likely_as_any_other():
    drawn = [tuple(draw_bag(Bag(bag_size=2), 4, instance, STREAMS)) for instance in range(6000)]
    counts = [drawn.count(pair) for pair in itertools.permutations(range(4), 2)]
    assert sum(counts) == 6000 and chisquare(counts).pvalue > 1e-4


def test_draws_with_replacement_are_independent_and_uniform():
    drawn = [tuple(draw_bag(Bag(bag_size=2, draws="replacement"), 3, instance, STREAMS)) for instance in range(6000)]
    counts = [drawn.count(pair) for pair in itertools.product(range(3), repeat=2)]
    assert sum(counts) == 6000 and chisquare(counts).pvalue > 1e-4


def test_poisson_bags_hold_every_unit_by_itself_and_may_be_empty():
    bags = [draw_bag(Bag(draws="poisson", sample_rate=0.3), 5, instance, STREAMS) for instance in range(6000)]
    sizes = np.bincount([len(bag) for bag in bags], minlength=6)
    assert chisquare(sizes, 6000 * binom.pmf(range(6), 5, 0.3)).pvalue > 1e-4
    first = [bag[0] for bag in bags if len(bag) == 2]
    assert chisquare(np.bincount(first, minlength=5)).pvalue > 1e-4, "the order of a bag is random"


@pytest.mark.parametrize("bag", [Bag(bag_size=3), Bag(bag_size=3, draws="replacement"), Bag(draws="poisson", sample_rate=0.2)])
def test_a_bag_is_its_instance_and_nobody_elses(bag):
    again = [[draw_bag(bag, 30, instance, Streams(b"the secret of these tests")) for instance in order] for order in ([7, 8], [8, 7])]
    assert np.array_equal(again[0][0], again[1][1]) and np.array_equal(again[0][1], again[1][0])
    assert not np.array_equal(again[0][0], again[0][1])


def units(unit="trajectory", rows=60, seed=0):
    rng = np.random.default_rng(seed)
    features, actions = rng.standard_normal((rows, 3)).astype(np.float32), rng.integers(0, 2, rows)
    if unit == "transition":
        return Units.transitions(features, actions)
    lengths = np.full(rows // 5, 5)
    return Units(unit=unit, features=features, next_features=features[:0], actions=actions, rewards=np.zeros(rows, np.float32), keeps=np.ones(rows, np.float32), starts=np.cumsum(lengths) - lengths, lengths=lengths)


@pytest.mark.parametrize("unit", ["transition", "trajectory"])
def test_what_is_trained_on_a_bag_is_a_function_of_its_units_and_an_empty_one_gives_noise_alone(unit):
    """A default policy for an empty bag would tell it from a bag of one unit, however much noise there is."""
    asked = problem("bc", True, inputs=3, actions=2, learning_rate=0.5)
    mechanism = Mechanism(unit=unit, sample_rate=0.6, noise_multiplier=2.0, clip_norm=1.0, steps=6, normaliser=2.0)

    def trained(of, bag, engine="fused"):
        return train_block(problem=asked, mechanism=mechanism, units=units_of(of, np.array(bag, int)), instances=[5], streams=STREAMS, engine=engine)["0.weight"].numpy()

    data, other = units(unit), units(unit, seed=1)
    for name in ("features", "actions"):
        getattr(other, name)[: 15 if unit == "trajectory" else 3] = getattr(data, name)[: 15 if unit == "trajectory" else 3]
    assert np.array_equal(trained(data, [2, 0, 1]), trained(other, [2, 0, 1])) and not np.array_equal(trained(data, [2, 0, 4]), trained(other, [2, 0, 4]))
    nothing = units(unit)
    nothing.features[:] = np.nan
    for engine in ("fused", "torch"):
        noise = trained(data, [], engine)
        assert np.array_equal(noise, trained(other, [], engine)) and np.array_equal(noise, trained(nothing, [3, 7], engine))
        assert np.isfinite(noise).all() and noise.std() > 0
    # A trajectory that counts as zero has no rows.
    if unit == "trajectory":
        data.lengths[:] = 0
        assert np.array_equal(trained(data, [1, 2]), trained(data, []))
