"""Planning a bag or a partition: which sizes certify a vote at a wanted radius, from public numbers alone; and all mechanisms side by side."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from mucd_ray.certify.action import action_radii
from mucd_ray.certify.closed_form import guarantees_of
from mucd_ray.certify.confidence.proportions import LARGEST, check_count
from mucd_ray.certify.planning.calibration import vote_bounds
from mucd_ray.certify.planning.plan import plan
from mucd_ray.errors import MucdError
from mucd_ray.mechanism.bag import Bag
from mucd_ray.mechanism.gaussian.mechanism import Mechanism
from mucd_ray.mechanism.kinds import AnyMechanism, to_values
from mucd_ray.mechanism.partition import Partition
from mucd_ray.words import counted, plural


def certified_radius(mechanism: AnyMechanism, *, units: int, instances: int, eta: float, actions: int, threat: str, agreement: float = 1.0) -> int:
    """Largest r at which such a vote is certified; -1 if not even at r = 0. `agreement`: share of the instances that vote for the top action."""
    top, runner_up = vote_bounds(instances, actions, eta, agreement)
    guarantees = guarantees_of(mechanism, units=units, threat=threat)
    return int(action_radii(np.array([top]), np.array([runner_up]), guarantees, min(units, guarantees.largest_radius))[0])


def bag_of(size: int, *, unit: str, draws: str, units: int) -> Bag:
    """A bag of `size` units, on average where draws are Poisson: their rate follows from the declared number `units`."""
    if draws == "poisson":
        check_count(size, "bag size", 1, LARGEST)
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


def fewest_parts(*, units: int, radius: int, instances: int, eta: float, actions: int, threat: str, unit: str, agreement: float = 1.0) -> Partition:
    """The partition of fewest, hence largest, parts with which a vote is still certified at `radius` changed units.

    Raises:
        MucdError: not even one part for each unit certifies that.
    """
    asked = {"units": units, "instances": instances, "eta": eta, "actions": actions, "threat": threat, "agreement": agreement}
    # The radius grows with the number of parts.
    most = _largest(lambda parts: certified_radius(Partition(unit=unit, parts=parts), **asked) < radius, units)
    if most == units:
        raise MucdError(f"not even one part for each of {units} {plural(unit)} certifies a vote of {counted(instances, 'instance')} at r = {radius}: ask for a smaller fraction")
    return Partition(unit=unit, parts=most + 1)


# What to take for a unit, and why.
ADVICE = {
    "trajectory": (Bag.kind, "a bag of whole trajectories teaches any learner, without noise and on raw observations; noise costs what many parameters need"),
    "source": (Bag.kind, "a bag of whole sources teaches any learner all that its sources recorded, without noise; noise has few sources to average over"),
    "transition": (Mechanism.kind, "noise averages over all transitions, which a bag of that size hardly sees; it needs few parameters and good public features"),
}


def compare(*, units: int, radius: int, unit: str, instances: int, eta: float, actions: int, threat: str, agreement: float = 1.0) -> dict:
    """What every mechanism leaves to the learner if a vote of this agreement is to be certified at `radius` changed units.

    Returns:
        plain values: `recommended` (a kind), `why` (a sentence), and `mechanisms`, one object per kind with `kind`, `mechanism` (its public constants; None
        where it cannot certify that, then `refused` says why), `radius` (what it certifies), and `units_per_policy`, the number of units that one policy learns from: all of them,
        through noise, under `gaussian`.
    """
    asked = {"units": units, "radius": radius, "instances": instances, "eta": eta, "actions": actions, "threat": threat, "agreement": agreement}
    makers = {
        Mechanism.kind: lambda: (replace(plan(**asked).mechanism, unit=unit), units),
        Bag.kind: lambda: ((bag := largest_bag(**asked, unit=unit)), bag.bag_size),
        Partition.kind: lambda: ((partition := fewest_parts(**asked, unit=unit)), units / partition.parts),
    }
    rows, of_vote = [], {name: value for name, value in asked.items() if name != "radius"}
    for kind, make in makers.items():
        try:
            mechanism, learned_from = make()
            rows.append({"kind": kind, "mechanism": to_values(mechanism), "radius": certified_radius(mechanism, **of_vote), "units_per_policy": learned_from, "refused": None})
        except MucdError as error:
            rows.append({"kind": kind, "mechanism": None, "radius": None, "units_per_policy": None, "refused": str(error)})
    recommended, why = ADVICE[unit]
    if all(row["mechanism"] is None for row in rows if row["kind"] == recommended):
        recommended, why = None, f"{recommended}, the usual choice, cannot certify that"
    return {"recommended": recommended, "why": why, "mechanisms": rows}


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
