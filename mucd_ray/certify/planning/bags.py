"""Planning a bag or a partition: which sizes certify a vote at a wanted radius, from public numbers alone. Closed forms, milliseconds."""

from collections.abc import Callable

import numpy as np

from mucd_ray.certify.action import action_radii
from mucd_ray.certify.closed_form import guarantees_of
from mucd_ray.certify.planning.calibration import vote_bounds
from mucd_ray.errors import MucdError
from mucd_ray.mechanism.bag import Bag
from mucd_ray.mechanism.kinds import AnyMechanism
from mucd_ray.words import counted, plural


def certified_radius(mechanism: AnyMechanism, *, units: int, instances: int, eta: float, actions: int, threat: str, agreement: float = 1.0) -> int:
    """Largest r at which such a vote is certified; -1 if not even at r = 0. `agreement`: share of the instances that vote for the top action."""
    top, runner_up = vote_bounds(instances, actions, eta, agreement)
    guarantees = guarantees_of(mechanism, units=units, threat=threat)
    return int(action_radii(np.array([top]), np.array([runner_up]), guarantees, min(units, guarantees.largest_radius))[0])


def bag_of(size: int, *, unit: str, draws: str, units: int) -> Bag:
    """A bag of `size` units, on average where draws are Poisson: their rate follows from the declared number `units`."""
    if draws == "poisson":
        return Bag(unit=unit, draws=draws, sample_rate=min(1.0, size / units))
    return Bag(unit=unit, draws=draws, bag_size=size)


def largest_bag(*, units: int, radius: int, instances: int, eta: float, actions: int, threat: str, unit: str, draws: str = "fixed", agreement: float = 1.0) -> Bag:
    """The bag of most units with which a vote is still certified at `radius` changed units: more units learn better and withstand less.

    Raises:
        MucdError: not even bags of one unit certify that.
    """

    def certifies(size: int) -> bool:
        bag = bag_of(size, unit=unit, draws=draws, units=units)
        return certified_radius(bag, units=units, instances=instances, eta=eta, actions=actions, threat=threat, agreement=agreement) >= radius

    size = _largest(certifies, units)
    if not size:
        raise MucdError(
            f"not even bags of one {unit} certify a vote of {counted(instances, 'instance')} at r = {radius} of {units} {plural(unit)}: ask for a smaller fraction, or for more instances"
        )
    return bag_of(size, unit=unit, draws=draws, units=units)


def _largest(holds: Callable[[int], bool], most: int) -> int:
    """Largest whole number in 1..most at which a property that falls holds; 0 if it does not hold at 1."""
    low, high = 0, 1
    while high <= most and holds(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
