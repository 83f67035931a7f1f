"""Actions of several whole numbers, which are too many combinations to vote on: each number, a component, is voted on by itself.

Everywhere `components` are public: how many values each of the k components of an action may have, (n_1, ..., n_k). What policies say of all values, scores, levels or votes, stands
component after component in n_1 + ... + n_k entries. () is no components: one action, or a row of real numbers.
"""

import numpy as np


def blocks(values: np.ndarray, components: tuple[int, ...], axis: int = -1) -> list[np.ndarray]:
    """The part of each component of values [..., n_1 + ... + n_k, ...] along an axis: k views [..., n_c, ...]."""
    return np.split(values, np.cumsum(components)[:-1], axis)


def best(values: np.ndarray, components: tuple[int, ...] = ()) -> np.ndarray:
    """The value of each component with the largest entry, the lowest of ties: [..., n_1 + ... + n_k] -> int64 [..., k]; without components [..., A] -> [...]."""
    if not components:
        return values.argmax(-1)
    return np.stack([block.argmax(-1) for block in blocks(values, components)], -1)
