"""What policies do where only some actions are allowed: every mask, and outputs of every kind."""

import itertools

import numpy as np

from mucd_ray.evaluate.policies import MaskedPolicies, greedy_actions, outputs_of_all, softmax_probabilities
from mucd_ray.learn.scores import scores_of

MASKS = np.array(list(itertools.product((0, 1), repeat=3)), np.float32)
VALUES = (-3.4e38, -1.0, 0.0, 2.0, 3.4e38, np.nan, np.inf)


class Fixed:
    """Two policies that prefer the same everywhere, the second the other way round."""

    def __init__(self, outputs):
        self.each = np.array([outputs, outputs[::-1]])

    def __len__(self):
        return 2

    def outputs(self, features, index):
        return np.broadcast_to(self.each[index], (len(features), self.each.shape[1]))


def preferred(outputs, mask):
    """The rule, plainly."""
    allowed = [action for action in range(3) if mask[action]] or [0, 1, 2]
    return max(allowed, key=lambda action: (outputs[action], -action)) if np.isfinite(outputs).all() else allowed[0]


def test_every_mask_and_all_kinds_of_outputs():
    features = np.concatenate([np.full((8, 2), 9, np.float32), MASKS], axis=1)
    for outputs in itertools.product(VALUES, repeat=3):
        policies = MaskedPolicies(Fixed(np.array(outputs, np.float32)), 2)
        found = policies.outputs(features, np.array([0]))
        chosen = greedy_actions(found)
        assert chosen.tolist() == [preferred(np.array(outputs, np.float32), mask) for mask in MASKS], outputs
        together = outputs_of_all(policies, features)
        assert together.shape == (2, 8, 3) and np.array_equal(together[0], found) and np.array_equal(together[1], policies.outputs(features, np.array([1])))
        probabilities = softmax_probabilities(found)
        assert (probabilities[1:][MASKS[1:] == 0] == 0).all() and np.allclose(probabilities.sum(1), 1) and (probabilities[np.arange(8), chosen] == probabilities.max(1)).all()


def test_probabilities_are_those_of_the_allowed_actions():
    outputs = np.array([0.3, -1.0, 2.0])
    (found,) = softmax_probabilities(MaskedPolicies(Fixed(outputs), 0).outputs(np.array([[1, 1, 0]], np.float32), np.array([0])))
    assert np.allclose(found, [*np.exp(outputs[:2]) / np.exp(outputs[:2]).sum(), 0])


def test_an_action_that_is_not_allowed_is_replaced_by_the_lowest_that_is():
    for action, mask in itertools.product(range(3), MASKS[1:]):
        found = MaskedPolicies(Fixed(scores_of(np.array(action), 3)), 0).outputs(mask[None], np.array([0]))
        assert greedy_actions(found) == [action if mask[action] else np.argmax(mask)]
