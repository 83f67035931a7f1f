"""The kinds of mechanism, each a frozen description in plain values. A new one is one file and one line here."""

from dataclasses import asdict, fields

from mucd_ray.errors import MucdError
from mucd_ray.files import NAMES, fits, quoted
from mucd_ray.mechanism.bag import Bag
from mucd_ray.mechanism.bag_then_noise import BagThenNoise
from mucd_ray.mechanism.gaussian.mechanism import Mechanism
from mucd_ray.mechanism.neighbours import Neighbours
from mucd_ray.mechanism.partition import Partition

KINDS = {kind.kind: kind for kind in (Mechanism, Bag, BagThenNoise, Partition, Neighbours)}
AnyMechanism = Mechanism | Bag | BagThenNoise | Partition | Neighbours
# Those whose steps add noise to clipped vectors of units.
WithNoise = Mechanism | BagThenNoise
WITH_NOISE = (Mechanism.kind, BagThenNoise.kind)
# Fields that are left out where they have these values: files made before they were there have them, too.
UNSAID = {Partition.kind: {"spread": 1}}


def to_values(mechanism: AnyMechanism) -> dict:
    """Plain JSON values, the name of the kind among them; `from_values` inverts it."""
    unsaid = UNSAID.get(mechanism.kind, {})
    return {"kind": mechanism.kind} | {name: value for name, value in asdict(mechanism).items() if name not in unsaid or value != unsaid[name]}


def from_values(values: dict) -> AnyMechanism:
    """A mechanism from `to_values`.

    Raises:
        MucdError: an unknown kind, other fields than its own, or one that is ill-typed or outside its range.
    """
    if not isinstance(values, dict) or not isinstance(values.get("kind"), str) or values["kind"] not in KINDS:
        raise MucdError(f"a mechanism must be an object whose kind is one of {', '.join(KINDS)}")
    kind, given = KINDS[values["kind"]], UNSAID.get(values["kind"], {}) | {name: value for name, value in values.items() if name != "kind"}
    if set(given) != {field.name for field in fields(kind)}:
        raise MucdError(f"a mechanism of kind {kind.kind} has exactly the fields {', '.join(field.name for field in fields(kind))}")
    for field in fields(kind):
        if not fits(given[field.name], field.type):
            raise MucdError(f"mechanism: {field.name} {quoted(given[field.name])} must be {NAMES[field.type]}")
    return kind(**given)
