"""Bags have the law that the accounting states, and say nothing about how many units there are or where they stand."""

import itertools

import numpy as np
import pytest
from scipy.stats import binom, chisquare

from mucd_ray.learn.streams import Streams
from mucd_ray.learn.trainers.bags import draw_bag
from mucd_ray.mechanism.bag import Bag

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
