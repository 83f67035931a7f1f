"""HalfCheetah in the few coordinates in which it was taught to run: what a controller and a card's features are made of."""

import numpy as np

from mucd_ray.data.environments.weights import shipped_weights


def running_components(observations: np.ndarray) -> np.ndarray:
    """Four linear coordinates, of about mean 0 and variance 1 and uncorrelated while the cheetah runs.

    Args:
        observations: [..., 17], of HalfCheetah-v5.
    Returns:
        float64 [..., 4].
    """
    found = shipped_weights("halfcheetah")
    centred = np.asarray(observations, dtype=float) - found["center"]
    # Sums of products, entry by entry: a matrix product may round differently from one batch size to the next.
    return (centred[..., None, :] * found["components"]).sum(-1)


def run(observation: np.ndarray) -> np.ndarray:
    """The linear controller of these coordinates, limited to [-3, 3]: observation [17] -> torques [6], each in [-1, 1]."""
    found = shipped_weights("halfcheetah")
    return np.clip(found["weights"] @ np.clip(running_components(observation), -3, 3) + found["bias"], -1, 1)
