"""Every poisoning of tiny datasets, whose units are sorted into parts by the real hash: actions of two components, and a learner that each part drives as it likes."""

import itertools

import numpy as np

from mucd_ray.certify.action import certify_exact
from mucd_ray.certify.closed_form import guarantees_of
from mucd_ray.certify.components import by_component
from mucd_ray.learn.trainers.parts import units_by_part
from mucd_ray.learn.units import Units
from mucd_ray.mechanism.components import best
from mucd_ray.mechanism.partition import Partition

COMPONENTS, PARTS, UNITS, MOST = (2, 3), 4, 6, 2
# What a unit may be: (what it looks like, the values of its action).
CONTENTS = [(float(look), (first, second)) for look in range(2) for first in range(2) for second in range(3)]


def voted(content):
    """Votes [1, 5] of the parts' policies at the only state there is: what most of a part's units did, component by component; nothing is the lowest value of both."""
    looks, actions = (np.array(part) for part in zip(*content))
    parts = units_by_part(Partition(parts=PARTS, unit="transition"), Units.transitions(looks[:, None].astype(np.float32), actions))
    policies = [[np.bincount(actions[part, number], minlength=values).argmax() for number, values in enumerate(COMPONENTS)] for part in parts]
    return np.concatenate([np.bincount([policy[number] for policy in policies], minlength=values) for number, values in enumerate(COMPONENTS)])[None]


def poisoned(content, removed, inserted):
    """Every dataset that lacks so many of these units and has so many others."""
    for kept in {tuple(kept) for kept in itertools.combinations(content, len(content) - removed)}:
        for new in itertools.combinations_with_replacement(CONTENTS, inserted):
            yield [*kept, *new]


def test_no_poisoning_within_the_radius_moves_any_component():
    rng, certified = np.random.default_rng(0), []
    for _ in range(60):
        content = sorted(CONTENTS[number] for number in rng.choice(len(CONTENTS), UNITS, p=np.array([0.6, *[0.4 / 11] * 11])))
        votes = voted(content)
        for threat, changes in (("symmetric", lambda r: [(removed, r - removed) for removed in range(r + 1)]), ("substitute", lambda r: [(r, r)])):
            guarantees = guarantees_of(Partition(parts=PARTS, unit="transition"), units=UNITS, threat=threat)
            radius = int(by_component(certify_exact, votes, COMPONENTS, guarantees, eta=0.5, cap=MOST).radius.min())
            certified.append(radius)
            for r in range(1, radius + 1):
                for removed, inserted in changes(r):
                    assert all((best(voted(other), COMPONENTS) == best(votes, COMPONENTS)).all() for other in poisoned(content, removed, inserted))
    assert min(certified) == 0 and max(certified) == 2
