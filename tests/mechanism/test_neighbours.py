"""The vote of nearest units against exhaustion: all insertions, removals and replacements of a few votes in a row."""

import itertools

import numpy as np
import pytest

from mucd_ray.errors import MucdError
from mucd_ray.mechanism.kinds import from_values, to_values
from mucd_ray.mechanism.neighbours import COSTS, Neighbours, unanimous_radius

ACTIONS = 3
GROUPS = {
    "symmetric": lambda r: [(a, r - a) for a in range(r + 1)],
    "insert": lambda r: [(r, 0)],
    "remove": lambda r: [(0, r)],
    "substitute": lambda r: [(r, r)],
}


def chosen(votes, neighbours):
    counts = [votes[:neighbours].count(action) for action in range(ACTIONS)]
    return counts.index(max(counts))


def poisoned(votes, inserted, removed):
    """Every row of votes that these changes can make of a tuple: insertions take any place and any vote."""
    for kept in itertools.combinations(range(len(votes)), len(votes) - removed):
        rows = {tuple(votes[place] for place in kept)}
        for _ in range(inserted):
            rows = {row[:place] + (vote,) + row[place:] for row in rows for place in range(len(row) + 1) for vote in range(ACTIONS)}
        yield from rows


def truth(votes, neighbours, threat, most):
    """Least number of changes that make each action win, most + 1 where none up to `most` does."""
    sizes = [most + 1] * ACTIONS
    for radius in range(most, -1, -1):
        for group in GROUPS[threat](radius):
            if group[1] <= len(votes):
                for row in set(poisoned(votes, *group)):
                    sizes[chosen(row, neighbours)] = radius
    return sizes


@pytest.mark.parametrize("threat", COSTS)
def test_sizes_and_radii_are_exact(threat):
    """Of all rows of votes of 4 units (with three actions, K = 1 to 4), and of a sample of 6; with fewer than 2 K units all are recorded."""
    rng = np.random.default_rng(0)
    cases = [(votes, neighbours) for votes in itertools.product(range(ACTIONS), repeat=3) for neighbours in (1, 2, 3)]
    cases += [(tuple(rng.integers(0, ACTIONS, 6).tolist()), neighbours) for neighbours in (2, 3) for _ in range(6)]
    for votes, neighbours in cases:
        most = min(2, neighbours)
        mechanism = Neighbours(neighbours=neighbours)
        recorded = np.array([votes[: mechanism.recorded]])
        sizes, radius = mechanism.sizes(recorded, ACTIONS, threat)[0], mechanism.radii(recorded, ACTIONS, (threat,))[0, 0]
        true = truth(votes, neighbours, threat, most)
        winner = chosen(votes, neighbours)
        assert np.minimum(sizes, most + 1).tolist() == true, (votes, neighbours)
        assert mechanism.actions(recorded, ACTIONS)[0] == winner and sizes[winner] == 0
        assert min(radius, most) == min(true[:winner] + true[winner + 1 :]) - 1, (votes, neighbours)


@pytest.mark.parametrize("threat", COSTS)
def test_the_radius_is_one_below_the_least_size(threat):
    rng = np.random.default_rng(1)
    for actions in (2, 5):
        votes = rng.integers(0, actions, (300, 40))
        votes[:150] = np.where(rng.random((150, 40)) < 0.7, 1, votes[:150])
        for neighbours in (7, 20):
            mechanism = Neighbours(neighbours=neighbours)
            seen = votes[:, : mechanism.recorded]
            sizes = np.sort(mechanism.sizes(seen, actions, threat), axis=1)[:, 1]
            assert np.array_equal(mechanism.radii(seen, actions, (threat,))[0], sizes - 1)


def test_a_unanimous_vote():
    """Ties against it: action 1 against 0. What `unanimous_radius` says of leads holds of votes that lead by as much at every s."""
    for neighbours in (1, 2, 9, 100):
        mechanism = Neighbours(neighbours=neighbours)
        assert mechanism.radii(np.ones((1, mechanism.recorded), int), 2)[0, 0] == unanimous_radius(neighbours)
        assert mechanism.radii(np.ones((1, mechanism.recorded), int), 2, ("substitute",))[0, 0] == unanimous_radius(neighbours, threat="substitute")
    mechanism = Neighbours(neighbours=1000)
    for lead, block in ((0.2, [1, 1, 1, 0, 0]), (0.5, [1, 1, 1, 0])):
        votes = np.tile(block, 2000 // len(block) + 1)[None, : mechanism.recorded]
        for threat, radius in zip(COSTS, mechanism.radii(votes, 2, tuple(COSTS))[:, 0], strict=True):
            assert radius >= unanimous_radius(1000, lead, threat) and (threat == "remove" or radius < unanimous_radius(1000, lead, threat) + 4)


def test_bad_input():
    for wrong in ({"neighbours": 0}, {"neighbours": 1 << 21}, {"neighbours": 3, "metric": "data"}, {"neighbours": 3, "unit": "frame"}):
        with pytest.raises(MucdError):
            Neighbours(**wrong)
    with pytest.raises(MucdError, match="more than the 10 transitions"):
        Neighbours(neighbours=11).check(10)
    mechanism = Neighbours(neighbours=11, unit="trajectory", metric="bounds")
    assert from_values(to_values(mechanism)) == mechanism
