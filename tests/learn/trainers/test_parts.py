"""Parts follow from the content of units alone: an insertion moves nobody, and the order of the data is nobody's."""

import numpy as np
import pytest
from problems import problem, take, trajectories
from scipy.stats import chisquare

from mucd_ray.learn.streams import Streams
from mucd_ray.learn.trainers.parts import draw_part, units_by_part
from mucd_ray.learn.units import Units
from mucd_ray.mechanism.partition import Partition

PARTS = Partition(parts=5)


SPREAD = Partition(parts=7, spread=3)


def contents(units: Units, partition=PARTS):
    """Rewards of every unit in every part, in its order."""
    return [[units.rewards[units.starts[u] : units.starts[u] + units.lengths[u]].tolist() for u in part] for part in units_by_part(partition, units)]


@pytest.fixture(scope="module")
def units():
    return trajectories(problem(), np.random.default_rng(0).integers(1, 6, 60), np.random.default_rng(1))


def test_every_unit_is_in_one_part(units):
    parts = units_by_part(PARTS, units)
    assert sorted(np.concatenate(parts)) == list(range(60))
    assert chisquare([len(part) for part in parts]).pvalue > 1e-4


def test_order_of_the_data_and_other_units_move_nobody(units):
    before = contents(units)
    shuffled = np.random.default_rng(2).permutation(60)
    assert contents(take(units, shuffled)) == before
    without = contents(take(units, shuffled[1:]))
    assert sum(a != b for a, b in zip(before, without)) == 1
    with_more = contents(take(units, [*shuffled, shuffled[3]]))
    assert sum(a != b for a, b in zip(before, with_more)) == 1


def test_units_that_are_spread_are_in_the_parts_of_their_bucket_and_move_nobody_else(units):
    parts, reached = units_by_part(SPREAD, units), SPREAD.reached()
    # As public constants do, these never change: a run that began goes on with them.
    assert reached[0].tolist() == [0, 5, 1] and reached.shape == (7, 3) and all(len(set(row)) == 3 for row in reached.tolist())
    buckets = [frozenset(part for part, held in enumerate(parts) if unit in held) for unit in range(60)]
    assert set(buckets) <= set(map(frozenset, reached.tolist())) and len(set(buckets)) > 4
    before, without = contents(units, SPREAD), contents(take(units, range(1, 60)), SPREAD)
    assert {part for part, (a, b) in enumerate(zip(before, without)) if a != b} == buckets[0]


def test_parts_are_drawn_uniformly_whatever_the_data_are():
    streams = Streams(b"the secret of these tests")
    drawn = [draw_part(PARTS, instance, streams) for instance in range(2000)]
    assert chisquare(np.bincount(drawn, minlength=5)).pvalue > 1e-4
