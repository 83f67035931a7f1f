"""Planning a bag, with or without noise, or a partition: which sizes certify a vote at a wanted radius, from public numbers alone; and all mechanisms side by side."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from mucd_ray.certify.action import action_radii
from mucd_ray.certify.closed_form import guarantees_of
from mucd_ray.certify.confidence.proportions import LARGEST, check_count
from mucd_ray.certify.planning.calibration import LEAST_NOISE_MULTIPLIER, vote_bounds
from mucd_ray.certify.planning.plan import BATCH, STEPS, plan
from mucd_ray.errors import MucdError
from mucd_ray.mechanism.bag import Bag
from mucd_ray.mechanism.bag_then_noise import BagThenNoise
from mucd_ray.mechanism.gaussian.mechanism import MOST_NOISE, Mechanism
from mucd_ray.mechanism.kinds import AnyMechanism, WithNoise, to_values
from mucd_ray.mechanism.neighbours import Neighbours, unanimous_radius
from mucd_ray.mechanism.partition import Partition
from mucd_ray.mechanism.units import UNITS
from mucd_ray.words import counted, plural

# The bag is this many times as large as one that would withstand the wanted radius without noise: with much larger ones the noise that they need leaves less signal.
LARGER = 2
# Noise multipliers are found up to this share of them.
PRECISION = 1e-3


def certified_radius(mechanism: AnyMechanism, *, units: int, instances: int, eta: float, actions: int, threat: str, agreement: float = 1.0) -> int:
    """Largest r at which such a vote is certified; -1 if not even at r = 0. `agreement`: share of the instances that vote for the top action."""
    top, runner_up = vote_bounds(instances, actions, eta, agreement)
    guarantees = guarantees_of(mechanism, units=units, threat=threat)
    return int(action_radii(np.array([top]), np.array([runner_up]), guarantees, min(units, guarantees.largest_radius))[0])


def bag_of(size: int, *, unit: str, draws: str, units: int) -> Bag:
    """A bag of `size` units, on average where draws are Poisson: their rate follows from the declared number `units`. Raises MucdError where that is less than the size."""
    if draws == "poisson":
        if check_count(size, "bag size", 1, LARGEST) > units:
            raise MucdError(f"bag size {size} is above the number of {UNITS[unit]}, {units}, from which the rate of Poisson draws follows: use at most that")
        return Bag(unit=unit, draws=draws, sample_rate=size / units)
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


def bag_then_noise_of(bag: Bag, *, units: int, noise_multiplier: float, sample_rate: float | None = None, steps: int | None = None, clip_norm: float = 1.0) -> BagThenNoise:
    """That bag, then noise: by default 100 steps on all of its units, or on about 1024 of them.

    Args:
        units: the declared number of units, from which the normaliser follows, where the bag's size varies.
    """
    size = bag.units_in_bag(units)
    rate = min(1.0, BATCH / size) if sample_rate is None else sample_rate
    return BagThenNoise(
        unit=bag.unit, draws=bag.draws, bag_size=bag.bag_size, bag_rate=bag.sample_rate, sample_rate=rate, noise_multiplier=noise_multiplier, clip_norm=clip_norm,
        steps=STEPS if steps is None else steps, normaliser=rate * size,
    )


def usual_bag_size(*, units: int, radius: int, instances: int, eta: float, actions: int, threat: str, unit: str, agreement: float = 1.0) -> int:
    """LARGER times the bag that would do without noise, or all units."""
    bag = largest_bag(units=units, radius=radius, instances=instances, eta=eta, actions=actions, threat=threat, agreement=agreement, unit=unit)
    return min(units, int(LARGER * bag.units_in_bag(units)))


def least_noise_in_bags(
    bag: Bag, *, units: int, radius: int, instances: int, eta: float, actions: int, threat: str, unit: str, agreement: float = 1.0,
    sample_rate: float | None = None, steps: int | None = None, clip_norm: float = 1.0,
) -> BagThenNoise:
    """The least noise, up to 0.1 % and four digits, with which a vote on such bags is certified at `radius` changed units.

    Raises:
        MucdError: no noise certifies that.
    """

    top, runner_up = (np.array([bound]) for bound in vote_bounds(instances, actions, eta, agreement))

    def certified(sigma: float) -> BagThenNoise | None:
        mechanism = bag_then_noise_of(bag, units=units, noise_multiplier=sigma, sample_rate=sample_rate, steps=steps, clip_norm=clip_norm)
        at = guarantees_of(mechanism, units=units, threat=threat).at(radius)
        return mechanism if at.lower(top) > at.upper(runner_up) else None

    high = 1.0
    while (best := certified(high)) is None:
        high *= 4
        if high > MOST_NOISE:
            raise MucdError(f"a vote of {counted(instances, 'instance')} on bags is not certified at r = {radius} of {counted(units, unit)} with any noise: ask for a smaller fraction, or for more instances")
    low = high / 4 if high > 1 else LEAST_NOISE_MULTIPLIER
    while high > low * (1 + PRECISION):
        middle = float(f"{math.sqrt(low * high):.4g}")
        if not low < middle < high:
            break
        found = certified(middle)
        low, high, best = (low, middle, found) if found else (middle, high, best)
    return best


def fewest_parts(*, units: int, radius: int, instances: int, eta: float, actions: int, threat: str, unit: str, agreement: float = 1.0) -> Partition:
    """The partition of fewest, hence largest, parts with which a vote is still certified at `radius` changed units.

    Raises:
        MucdError: not even one part for each unit certifies that.
    """

    def too_few(parts: int) -> bool:
        return certified_radius(Partition(unit=unit, parts=parts), units=units, instances=instances, eta=eta, actions=actions, threat=threat, agreement=agreement) < radius

    # The radius grows with the number of parts.
    most = _largest(too_few, units)
    if most == units:
        raise MucdError(f"not even one part for each of {units} {plural(unit)} certifies a vote of {counted(instances, 'instance')} at r = {radius}: ask for a smaller fraction")
    return Partition(unit=unit, parts=most + 1)


# Neighbours for each changed unit: an action is certified where it leads by a ninth of the votes among the nearest nine tenths, by a fifth of all where units are replaced.
NEIGHBOURS_PER_UNIT = 10


def enough_neighbours(*, units: int, radius: int, unit: str, metric: str = "declared") -> Neighbours:
    """Ten nearest units for each changed one (`unanimous_radius`): more withstand more, and are less near.

    Raises:
        MucdError: there are not so many units.
    """
    if NEIGHBOURS_PER_UNIT * radius > units:
        raise MucdError(f"{NEIGHBOURS_PER_UNIT} neighbours for each of {counted(radius, 'changed ' + unit)} are more than {units}: ask for a smaller fraction, or give --neighbours")
    return Neighbours(unit=unit, neighbours=NEIGHBOURS_PER_UNIT * radius, metric=metric)


# What to take for a unit, and why.
ADVICE = {
    "trajectory": (Bag.kind, "a bag of whole trajectories teaches any learner, without noise and on raw observations; noise costs what many parameters need"),
    "source": (Bag.kind, "a bag of whole sources teaches any learner all that its sources recorded, without noise; noise has few sources to average over"),
    "transition": (Mechanism.kind, "noise averages over all transitions, which a bag of that size hardly sees; it needs few parameters and good public features"),
}


def compare(*, units: int, radius: int, unit: str, instances: int, eta: float, actions: int, threat: str, agreement: float = 1.0, gaussian: Mechanism | None = None) -> dict:
    """What every mechanism leaves to the learner if a vote of this agreement is to be certified at `radius` changed units.

    Args:
        gaussian: the one with noise on all units, where it is already planned.
    Returns:
        plain values: `recommended` (a kind), `why` (a sentence), and `mechanisms`, one object per kind with `kind`, `signal_budget` (S, where there is noise, else None), `mechanism` (its public constants; None
        where it cannot certify that, then `refused` says why), `radius` (what it certifies), and `units_per_policy`, the number of units that one policy learns from: all of them,
        through noise, under `gaussian`; so many on average, and through noise, under `bag-then-noise`; those that vote under `neighbours`.
    """
    asked: dict[str, Any] = {"units": units, "radius": radius, "instances": instances, "eta": eta, "actions": actions, "threat": threat, "agreement": agreement}
    makers: dict[str, Callable[[], tuple[AnyMechanism, float]]] = {
        Mechanism.kind: lambda: (replace(gaussian or plan(**asked).mechanism, unit=unit), units),
        Bag.kind: lambda: ((bag := largest_bag(**asked, unit=unit)), bag.units_in_bag(units)),
        BagThenNoise.kind: lambda: ((noisy := least_noise_in_bags(bag_of(usual_bag_size(**asked, unit=unit), unit=unit, draws="poisson", units=units), **asked, unit=unit)), noisy.units_in_bag(units)),
        Neighbours.kind: lambda: ((neighbours := enough_neighbours(units=units, radius=radius, unit=unit)), neighbours.neighbours),
        Partition.kind: lambda: ((partition := fewest_parts(**asked, unit=unit)), units / partition.parts),
    }
    rows, of_vote = [], {name: value for name, value in asked.items() if name != "radius"}
    for kind, make in makers.items():
        try:
            mechanism, learned_from = make()
            certified = unanimous_radius(mechanism.neighbours, 2 * agreement - 1, threat) if isinstance(mechanism, Neighbours) else certified_radius(mechanism, **of_vote)
            rows.append({"kind": kind, "mechanism": to_values(mechanism), "radius": certified, "units_per_policy": learned_from, "refused": None})
            rows[-1]["signal_budget"] = mechanism.signal_budget(units) if isinstance(mechanism, WithNoise) else None
        except MucdError as error:
            rows.append({"kind": kind, "mechanism": None, "radius": None, "units_per_policy": None, "refused": str(error), "signal_budget": None})
    usual, why = ADVICE[unit]
    if all(row["mechanism"] is None for row in rows if row["kind"] == usual):
        return {"recommended": None, "why": f"{usual}, the usual choice, cannot certify that", "mechanisms": rows}
    return {"recommended": usual, "why": why, "mechanisms": rows}


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
