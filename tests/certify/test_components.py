"""The joint claim about several components: exact for exact votes, right often enough for sampled ones, and nothing less than each component by itself with its share of eta."""

import itertools
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mucd_ray.certify.action import certify_exact, certify_scores, certify_votes
from mucd_ray.certify.closed_form import guarantees_of
from mucd_ray.certify.components import by_component
from mucd_ray.certify.votes import POLICIES_PER_UNIT
from mucd_ray.mechanism.bag import Bag
from mucd_ray.mechanism.components import best, blocks
from mucd_ray.mechanism.partition import Partition

EXACT = guarantees_of(Partition(parts=9), units=90, threat="symmetric")


def counted(vectors, components):
    """Votes [1, n_1 + ... + n_k] of policies that vote for vectors of values."""
    return np.concatenate([np.bincount([vector[number] for vector in vectors], minlength=values) for number, values in enumerate(components)])[None]


@pytest.mark.parametrize("components, policies", [((2, 3), 4), ((3, 2), 3), ((2, 2, 2), 3), ((1, 3), 4)])
def test_every_poisoning_of_exact_votes(components, policies):
    """All votes of a few policies, all changes of some of them: the vector stays up to the radius, and some change of one more policy makes another."""
    vectors = list(itertools.product(*map(range, components)))
    for votes in itertools.combinations_with_replacement(vectors, policies):
        counts = counted(votes, components)
        winner = best(counts, components)[0]
        radius = int(by_component(certify_exact, counts, components, EXACT, eta=0.5, cap=policies).radius.min())

        def survives(changed):
            """Whether no votes of `changed` policies, whichever they are, make another vector."""
            kept = {tuple(sorted(votes[policy] for policy in range(policies) if policy not in poisoned)) for poisoned in itertools.combinations(range(policies), changed)}
            return all((best(counted((*rest, *new), components)[0], components) == winner).all() for rest in kept for new in itertools.combinations_with_replacement(vectors, changed))

        assert survives(radius) and (radius == policies or not survives(radius + 1))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(0, 2**32 - 1), st.sampled_from(sorted(POLICIES_PER_UNIT)))
def test_a_component_is_certified_as_it_would_be_alone_with_its_share_of_eta(components, seed, threat):
    rng, components = np.random.default_rng(seed), tuple(components)
    guarantees = guarantees_of(Bag(bag_size=5), units=200, threat=threat)
    votes = np.stack([counted([[rng.choice(n, p=rng.dirichlet(np.full(n, 0.1))) if n > 1 else 0 for n in components] for _ in range(60)], components)[0] for _ in range(3)])
    found = by_component(certify_votes, votes, components, guarantees, eta=0.01, cap=50)
    for number, part in enumerate(blocks(votes, components)):
        # A single value is as sure as a unanimous vote of two: never the least.
        alone = certify_votes(part if part.shape[1] > 1 else np.column_stack([part, 0 * part]), guarantees, eta=0.01 / len(components), cap=50)
        assert all(np.array_equal(getattr(found, name)[:, number], getattr(alone, name)) for name in ("action", "radius", "top", "runner_up"))
        assert part.shape[1] > 1 or (found.radius[:, number] == found.radius.max()).all() or len(set(components)) == 1 or (found.radius[:, [number]] >= found.radius).all()
    assert np.array_equal(found.action, best(votes, components))


def test_scores_of_components():
    rng = np.random.default_rng(0)
    levels = rng.integers(100, 201, (2, 80, 1))
    histogram = np.zeros((2, 5, 201), int)
    for state, instance in np.ndindex(2, 80):
        for value, level in enumerate((200 - levels[state, instance, 0], levels[state, instance, 0], 0, 200, 200)):
            histogram[state, value, level] += 1
    guarantees = guarantees_of(Bag(bag_size=5), units=200, threat="insert")
    found = by_component(certify_scores, histogram, (2, 2, 1), guarantees, eta=0.01, cap=50)
    assert found.action.tolist() == [[1, 1, 0]] * 2 and np.array_equal(found.radius[:, 1], found.radius[:, 2])
    assert np.array_equal(found.radius[:, 0], certify_scores(histogram[:, :2], guarantees, eta=0.01 / 3, cap=50).radius) and (found.radius[:, 0] < found.radius[:, 1]).all()


@pytest.mark.parametrize("together", [True, False], ids=["of one draw", "independent"])
def test_an_attacker_of_bags_is_right_too_seldom(together):
    """Bags of 3 of 60 units, 8 components of two values. Whoever inserts r units makes every instance whose bag holds one of them take the other value in all components. The probabilities of the values under D are
    a hair below what withstands `within` + 1 units: every certificate that claims so many is wrong. With eta / 8 for each component none of the radii is wrong often enough, whether components hang together or not;
    with all of eta for each of independent ones some are."""
    components, units, instances, eta, within, trials = 8, 60, 120, 0.2, 3, 3000
    guarantees = guarantees_of(Bag(bag_size=3), units=units, threat="insert")
    untouched = comb(units, 3) / comb(units + within + 1, 3)
    p = 0.5 / untouched - 1e-9
    assert p * untouched < 0.5 <= p * comb(units, 3) / comb(units + within, 3)
    rng = np.random.default_rng(1)
    draws = rng.random((trials, instances, 1 if together else components))
    votes = np.broadcast_to((draws < p).sum(1), (trials, components))
    counts = np.stack([votes, instances - votes], axis=2).reshape(trials, -1)

    def wrong(share):
        found = by_component(certify_votes, counts, (2,) * components, guarantees, eta=share, cap=units)
        return float((found.radius.min(1) > within).mean()), float((found.radius > within).any(1).mean())

    joint, some = wrong(eta)
    error = 4 * np.sqrt(eta * (1 - eta) / trials)
    # The joint radius is wrong only if all components' are; these hold together, too, and are listed.
    assert joint <= some <= eta + error
    if not together:
        assert wrong(eta * components)[1] > 1.5 * eta
