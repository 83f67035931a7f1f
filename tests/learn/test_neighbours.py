"""The search against brute force, and whole policies against exhaustion over all poisonings of tiny datasets."""

import itertools

import numpy as np
import pytest

from mucd_ray.errors import MucdError
from mucd_ray.learn.neighbours import Nearest
from mucd_ray.learn.units import Units
from mucd_ray.mechanism.neighbours import Neighbours


def units_of(trajectories) -> Units:
    """Of lists of (features, action); rewards are 0."""
    rows = [row for trajectory in trajectories for row in trajectory]
    lengths = np.array([len(trajectory) for trajectory in trajectories])
    count = len(rows)
    return Units(
        unit="trajectory", features=np.array([np.atleast_1d(x) for x, _ in rows], np.float32), next_features=np.zeros((0, np.size(rows[0][0])), np.float32),
        actions=np.array([a for _, a in rows]), rewards=np.zeros(count, np.float32), keeps=np.ones(count, np.float32), starts=np.cumsum(lengths) - lengths, lengths=lengths,
    )


def tiny(name):
    """(all contents that a unit may have, states): two places and a state between them, so that distances tie."""
    transitions = [[((x,), a)] for x in (0.0, 1.0, 2.0) for a in range(3)]
    steps = [row for unit in transitions[:6] for row in unit if row[1] < 2]
    contents = {"transition": transitions, "trajectory": [[row] for row in steps] + [list(pair) for pair in itertools.product(steps, repeat=2)]}
    return contents[name], np.array([[0.0], [0.5], [1.0]], np.float32)


@pytest.mark.parametrize("kind", ["transition", "trajectory"])
@pytest.mark.parametrize("threat", ["symmetric", "substitute"])
def test_no_poisoning_within_the_radius_changes_an_action(kind, threat):
    """All insertions of any content and all removals: actions stay within the radius, and no action is chosen below its size."""
    contents, states = tiny(kind)
    rng, chosen, certified = np.random.default_rng(2), {}, 0

    def actions_of(data, mechanism):
        # Of the same units in another order it is the same policy: asserted here, and used.
        key = (tuple(sorted(data)), mechanism.neighbours)
        if key not in chosen:
            votes = [Nearest(units_of([contents[i] for i in order])).votes_at(states, mechanism.recorded) for order in (sorted(data), sorted(data)[::-1])]
            assert np.array_equal(*votes)
            chosen[key] = mechanism.actions(votes[0], 3)
        return chosen[key]

    for _ in range(8):
        data = rng.integers(0, len(contents), 6).tolist()
        data[:3] = data[:1] * 3
        mechanism = Neighbours(neighbours=int(rng.integers(2, 5)), unit=kind)
        votes = Nearest(units_of([contents[i] for i in data])).votes_at(states, mechanism.recorded)
        radii, sizes = mechanism.radii(votes, 3, (threat,))[0], mechanism.sizes(votes, 3, threat)
        before = actions_of(data, mechanism)
        certified += int((radii >= 1).sum())
        groups = [(1, 0), (0, 1), (2, 0), (1, 1), (0, 2)] if threat == "symmetric" else [(1, 1)]
        for inserted, removed in groups:
            radius = inserted + removed if threat == "symmetric" else inserted
            for kept in itertools.combinations(data, len(data) - removed):
                for new in itertools.combinations_with_replacement(range(len(contents)), inserted):
                    after = actions_of((*kept, *new), mechanism)
                    assert (sizes[range(3), after] <= radius).all()
                    assert (after == before)[radii >= radius].all()
    assert certified >= 4


def brute_force(trajectories, state, most):
    """Units by the distance of their nearest transition, in plain Python floats; distances that tie are not expected."""
    order = []
    for trajectory in trajectories:
        distances = [sum((float(np.float32(a)) - float(b)) ** 2 for a, b in zip(x, state)) for x, _ in trajectory]
        nearest = int(np.argmin(distances))
        order.append((distances[nearest], trajectory[nearest][1]))
    return [vote for _, vote in sorted(order)][:most]


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_the_search_is_exact(size):
    """Also where the matrix product has no digit left to tell rows apart: far from zero, and beside one row of an enormous norm."""
    rng = np.random.default_rng(3)
    trajectories = [[(size + rng.normal(size=5), int(rng.integers(4))) for _ in range(rng.integers(1, 6))] for _ in range(200)]
    trajectories[7] = [(np.full(5, 3e38), 0)]
    nearest = Nearest(units_of(trajectories))
    states = (size + rng.normal(size=(20, 5))).astype(np.float32)
    found = nearest.votes_at(states, 60)
    assert [row.tolist() for row in found] == [brute_force(trajectories, state, 60) for state in states]
    assert np.array_equal(found, np.concatenate([nearest.votes_at(state[None], 60) for state in states]))
    assert nearest.votes_at(states, 500).shape == (20, 200)


def test_copies_do_not_vote_as_a_block():
    """At one place, 300 copies of each of two contents: among the first 100 both vote, and a copy more moves no vote of others but one."""
    trajectories = [[((0.0,), 0)]] * 300 + [[((0.0,), 1)]] * 300
    votes = Nearest(units_of(trajectories)).votes_at(np.zeros((1, 1), np.float32), 600)[0]
    assert 30 < votes[:100].sum() < 70
    more = Nearest(units_of([*trajectories, [((0.0,), 1)]])).votes_at(np.zeros((1, 1), np.float32), 601)[0]
    assert any(np.array_equal(np.delete(more, place), votes) for place in np.flatnonzero(more))


def test_units_without_transitions_or_with_broken_ones_never_vote():
    units = units_of([[((0.0,), 0)], [((0.1,), 1)], [((0.2,), 2)]])
    filtered = Units(unit="trajectory", **units.arrays() | {"lengths": np.array([1, 0, 1])})
    assert Nearest(filtered).votes_at(np.zeros((1, 1), np.float32), 9).tolist() == [[0, 2]]
    broken = Units(unit="trajectory", **units.arrays() | {"features": np.array([[0.0], [np.nan], [0.2]], np.float32)})
    assert Nearest(broken).votes_at(np.zeros((1, 1), np.float32), 9).tolist() == [[0, 2]]
    empty = Units(unit="trajectory", **units.arrays() | {"lengths": np.array([0, 0, 0])})
    assert Nearest(empty).votes_at(np.zeros((1, 1), np.float32), 9).shape == (1, 0)


def test_bad_input():
    units = units_of([[((0.0,), 0)]])
    with pytest.raises(MucdError, match="not finite"):
        Nearest(units).votes_at(np.array([[np.nan]], np.float32), 1)
    with pytest.raises(MucdError, match="continuous"):
        Nearest(Units(unit="trajectory", **units.arrays() | {"actions": np.zeros((1, 2), np.float32)}))
