"""An action that is never taken in a whole episode, against all poisonings of tiny partitions."""

import itertools

import gymnasium
import numpy as np
import pytest

from mucd_ray.certify.forbidden import avoided_radius, is_avoided
from mucd_ray.certify.voted_return import END, ExactVotes, Rows, Tree
from tests.evaluate.test_search import counts_of, followed
from tests.evaluate.tiny import ACTIONS, STATES, STEPS

NEVER, POLICIES, RADII = 1, 5, [0, 1, 2]


def takes_it(seed, table):
    """Whether the policy that takes action table[s] takes the forbidden one on its way."""
    environment = gymnasium.make("mucd/Walk-v0")
    observation, _ = environment.reset(seed=seed)
    while table[state := int(observation.argmax())] != NEVER:
        observation, _, terminated, truncated, _ = environment.step(1 + table[state])
        if terminated or truncated:
            return False
    return True


def test_no_poisoning_takes_an_action_that_the_tree_keeps_out():
    """All tables of all choices of r policies of five, most of which do not vote for it; and hardly any episode that could be certified is not."""
    tables = np.array([[*table, 0] for table in itertools.product(range(ACTIONS), repeat=STATES - 1)])
    certified, could = 0, 0
    for case in range(12):
        policies = (np.random.default_rng(case).random((POLICIES, STATES)) < 0.15).astype(int)
        tree, rows = followed(counts_of(policies), case, RADII)
        taken = {tuple(table): takes_it(case, table) for table in tables}
        for radius in RADII:
            reached = set()
            for changed in itertools.combinations(range(POLICIES), radius):
                kept = np.delete(policies, changed, 0)
                # What the changed ones vote at a state is free: as many of them as one likes vote for the action.
                for new in itertools.product(range(radius + 1), repeat=STATES - 1):
                    votes = kept[:, :-1].sum(0) + np.array(new)
                    reached.add((*(votes * 2 > POLICIES).astype(int).tolist(), 0))
            free, found = not any(taken[table] for table in reached), is_avoided(tree, rows, radius, NEVER, STEPS)
            assert free or not found
            certified, could = certified + found, could + free
        assert avoided_radius(tree, rows, RADII, NEVER, STEPS) == max([-1, *(r for r in RADII if is_avoided(tree, rows, r, NEVER, STEPS))])
    assert certified > 8 and certified >= could - 1


@pytest.mark.parametrize("steps,avoided", [
    ([{0: (0.0, 1)}, {0: (0.0, END)}], True), ([{0: (0.0, 1)}, {}], False), ([{0: (0.0, 1)}, {1: (0.0, END)}], False), ([{0: (0.0, 1)}, {0: (0.0, END), 1: (0.0, END)}], True),
])  # fmt: skip
def test_what_was_not_followed_certifies_nothing(steps, avoided):
    """All five vote for action 0, so that within one changed policy nothing else is possible; of three it is."""
    tree, rows = Tree(rows=[0, 0], steps=steps), Rows(ExactVotes("symmetric"), ACTIONS, [[5, 0]])
    assert is_avoided(tree, rows, 1, NEVER, STEPS) is avoided and not is_avoided(tree, rows, 3, NEVER, STEPS)
    assert not is_avoided(tree, rows, 1, NEVER, 1) and avoided_radius(tree, rows, [0, 1, 2, 3], NEVER, STEPS) == (2 if avoided else -1)
