"""Vote rules against all changes of at most K policies in tiny cases, and where public code gets them wrong."""

import itertools

import numpy as np
import pytest

from mucd_ray.certify.votes import parl_radius, sizes


def winner(votes, actions):
    return int(np.bincount(votes, minlength=actions).argmax())


def least_changes(votes, actions):
    """By exhaustion: the least number of policies whose votes must be replaced so that each action wins."""
    found = [None] * actions
    for changed in range(len(votes) + 1):
        for which in itertools.combinations(range(len(votes)), changed):
            for new in itertools.product(range(actions), repeat=changed):
                poisoned = list(votes)
                for policy, vote in zip(which, new):
                    poisoned[policy] = vote
                action = winner(poisoned, actions)
                found[action] = changed if found[action] is None else found[action]
    return found


@pytest.mark.parametrize("policies,actions", [(1, 2), (2, 2), (5, 2), (7, 2), (1, 3), (4, 3), (5, 3), (4, 4)])
def test_exact_over_all_votes_and_all_changes(policies, actions):
    for votes in itertools.combinations_with_replacement(range(actions), policies):
        counts, truth = np.bincount(votes, minlength=actions), least_changes(votes, actions)
        assert sizes(counts).tolist() == truth
        assert parl_radius(counts) == min(size for action, size in enumerate(truth) if action != winner(votes, actions)) - 1


@pytest.mark.parametrize("counts,action,size", [((18, 11, 1), 2, 10), ((13, 5, 13, 19), 1, 8), ((26, 23, 24, 23, 4), 4, 17)])
def test_where_public_code_overestimates(counts, action, size):
    """COPA's code gives 11, 10 and 20."""
    assert sizes(np.array(counts))[action] == size


def test_rows_of_any_shape_and_the_next_action_agree_with_the_radius():
    counts = np.random.default_rng(0).integers(0, 60, (4, 5, 6))
    found = sizes(counts)
    others = np.where(found == 0, np.iinfo(int).max, found)
    assert ((found == 0).sum(-1) == 1).all() and np.array_equal(others.min(-1) - 1, parl_radius(counts))
    assert np.array_equal(found[2, 3], sizes(counts[2, 3]))
