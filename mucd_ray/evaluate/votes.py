"""What every instance would do at given states. Each policy is evaluated on its own, so nothing here depends on the block it is in."""

import gymnasium
import numpy as np

from mucd_ray.evaluate.policies import Policies, clipped_actions, greedy_actions, softmax_probabilities


def actions_at(policies: Policies, features: np.ndarray, components: tuple[int, ...] = ()) -> np.ndarray:
    """Greedy action, counted from 0, of each of P policies at each of S states: float32 [S, inputs] -> int16 [P, S], or of several components [P, S, k]."""
    actions = np.empty((len(policies), len(features), *([len(components)] if components else [])), np.int16)
    for policy in range(len(policies)):
        actions[policy] = greedy_actions(policies.outputs(features, np.array([policy])), components)
    return actions


def probabilities_at(policies: Policies, features: np.ndarray, components: tuple[int, ...] = ()) -> np.ndarray:
    """Softmax probability of every discrete action, or of every value of each component: float32 [S, inputs] -> float64 [P, S, A]."""
    return np.stack([softmax_probabilities(policies.outputs(features, np.array([policy])), components) for policy in range(len(policies))])


def clipped_actions_at(policies: Policies, features: np.ndarray, action_space: gymnasium.spaces.Box) -> np.ndarray:
    """Continuous actions as the environment takes them: float32 [S, inputs] -> [P, S, k], within the space's bounds."""
    return np.stack([clipped_actions(action_space, policies.outputs(features, np.array([policy]))) for policy in range(len(policies))])


def counts(actions: np.ndarray, n_actions: int, components: tuple[int, ...] = ()) -> np.ndarray:
    """Votes for each action: int [P, S] -> int64 [S, n_actions]; every row sums to P. Of several components, int [P, S, k], those for each value, component after component: each component's sum to P."""
    if components:
        return np.concatenate([counts(actions[..., number], values) for number, values in enumerate(components)], axis=1)
    return np.stack([(actions == action).sum(0, dtype=np.int64) for action in range(n_actions)], axis=1)
