"""Drawing an instance's bag: which units it is trained on, in an order that says nothing about the order of the data; and its units by themselves."""

import numpy as np

from mucd_ray.learn import streams as purposes
from mucd_ray.learn.streams import Streams, poisson_sample
from mucd_ray.learn.units import Units
from mucd_ray.mechanism.bag import Bag


def draw_bag(bag: Bag, units: int, instance: int, streams: Streams) -> np.ndarray:
    """Indices int64 [k] of the units in this instance's bag; they repeat where `bag` draws with replacement, and there may be none if it is Poisson.

    The order is random, so that the law of what a learner is given depends on the set of units alone, not on where they stand in a
    file. All else that the instance draws comes from other streams: what they hold does not depend on the number of units.
    """
    generator = streams.generator(instance, 0, purposes.BAG)
    if bag.sample_rate is not None:
        return generator.permutation(poisson_sample(generator, units, bag.sample_rate))
    if bag.draws == "replacement":
        return generator.integers(units, size=bag.bag_size)
    return generator.choice(units, bag.bag_size, replace=False)


def units_of(units: Units, bag: np.ndarray) -> Units:
    """The units of a bag, in its order, as data of their own.

    An empty bag has one unit whose vector is always zero, so that steps with noise add up noise alone: a default policy instead would tell an empty bag from
    one with a single unit without any noise, and void the guarantee.
    """
    lengths = units.lengths[bag]
    rows = np.concatenate([np.arange(start, start + length) for start, length in zip(units.starts[bag], lengths)] or [np.zeros(0, np.int64)]).astype(np.int64)
    nothing = not len(rows)
    # A first row stands where there is none: no unit has it, or one whose features are no numbers, which counts as zero.
    rows = np.zeros(1, np.int64) if nothing else rows
    if not len(bag):
        lengths = np.array([1 if units.unit == "transition" else 0])
    arrays = {name: array[rows] if len(array) else array for name in ("features", "next_features", "actions", "rewards", "keeps", "ends") for array in [getattr(units, name)]}
    if nothing:
        arrays["features"] = np.full_like(arrays["features"], np.nan)
    return Units(unit=units.unit, **arrays, starts=np.cumsum(lengths) - lengths, lengths=lengths)
