"""Drawing an instance's bag: which units it is trained on, in an order that says nothing about the order of the data."""

import numpy as np

from mucd_ray.learn import streams as purposes
from mucd_ray.learn.streams import Streams, poisson_sample
from mucd_ray.mechanism.bag import Bag


def draw_bag(bag: Bag, units: int, instance: int, streams: Streams) -> np.ndarray:
    """Indices int64 [k] of the units in this instance's bag; they repeat where `bag` draws with replacement, and there may be none if it is Poisson.

    The order is random, so that the law of what a learner is given depends on the set of units alone, not on where they stand in a
    file. All else that the instance draws comes from other streams: what they hold does not depend on the number of units.
    """
    generator = streams.generator(instance, 0, purposes.BAG)
    if bag.draws == "fixed":
        return generator.choice(units, bag.bag_size, replace=False)
    if bag.draws == "replacement":
        return generator.integers(units, size=bag.bag_size)
    return generator.permutation(poisson_sample(generator, units, bag.sample_rate))
