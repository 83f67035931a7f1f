"""What every instance would do at given states."""

import numpy as np

from mucd_ray.evaluate.policies import StackedPolicies


def actions_at(policies: StackedPolicies, features: np.ndarray) -> np.ndarray:
    """Greedy action, counted from 0, of each of P policies at each of S states: float32 [S, inputs] -> int16 [P, S].

    Each policy is evaluated on its own, so its votes do not depend on the block it is in.
    """
    actions = np.empty((len(policies), len(features)), np.int16)
    for policy in range(len(policies)):
        actions[policy] = policies.act(features, np.array([policy]))
    return actions


def counts(actions: np.ndarray, n_actions: int) -> np.ndarray:
    """Votes for each action: int [P, S] -> int64 [S, n_actions]; every row sums to P."""
    return np.stack([(actions == action).sum(0, dtype=np.int64) for action in range(n_actions)], axis=1)
