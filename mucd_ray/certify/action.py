"""Action level: the majority action at a state cannot be changed by up to `radius` changed units."""

from dataclasses import dataclass

import numpy as np

from mucd_ray.certify.confidence import TopTwo, top_two_bounds
from mucd_ray.certify.guarantees import Guarantees
from mucd_ray.certify.radius import largest_radii

ABSTAIN = -1


@dataclass(frozen=True, kw_only=True)
class ActionCertificate:
    """Per state [S]: the majority action, its certified radius (ABSTAIN where the votes do not even certify r = 0), the bounds."""

    action: np.ndarray
    radius: np.ndarray
    top: np.ndarray
    runner_up: np.ndarray


def action_radii(top: np.ndarray, runner_up: np.ndarray, guarantees: Guarantees, cap: int) -> np.ndarray:
    """Largest r <= cap with lower_r(top) > upper_r(runner_up) per state [S] -> [S]; ABSTAIN where none (theory section 6)."""
    pairs, inverse = np.unique(np.stack([top, runner_up], axis=1), axis=0, return_inverse=True)

    def holds(radius):
        guarantee = guarantees.at(radius)
        return guarantee.lower(pairs[:, 0]) > guarantee.upper(pairs[:, 1])

    return largest_radii(holds, cap)[inverse.reshape(-1)]


def certify_actions(counts: np.ndarray, guarantees: Guarantees, *, eta: float, cap: int) -> ActionCertificate:
    """Certify every row of votes [S, A]. Each state's statement holds with probability 1 - eta; pass eta/S for all together."""
    bounds: TopTwo = top_two_bounds(counts, eta)
    radius = action_radii(bounds.top, bounds.runner_up, guarantees, cap)
    return ActionCertificate(action=bounds.action, radius=radius, top=bounds.top, runner_up=bounds.runner_up)
