"""Action level, discrete: the ensemble's action at a state cannot be changed by up to `radius` changed units.

Two inference rules ("Enhancing the Antidote", Definitions 1 and 2, certified as in its Theorem 10): `certify_votes` compares the
probabilities that a trained instance takes an action, `certify_scores` the expected probability scores.
"""

from dataclasses import dataclass

import numpy as np

from mucd_ray.certify.closed_form import AnyGuarantees
from mucd_ray.certify.confidence.bands import order_statistic_band
from mucd_ray.certify.confidence.proportions import check_eta, top_two_bounds
from mucd_ray.certify.guarantees import Bounds
from mucd_ray.certify.radius import largest_radii
from mucd_ray.certify.votes import parl_radius, policies_per_unit
from mucd_ray.mechanism.work import spend

ABSTAIN = -1
# Numbers that a temporary array of `certify_scores` holds at most, or those of one state.
ENTRIES_AT_A_TIME = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ActionCertificate:
    """Per state [S]: the ensemble's action; its certified radius, ABSTAIN where not even r = 0 is certified; and the confidence
    bounds under D, from below for this action and from above for every other one."""

    action: np.ndarray
    radius: np.ndarray
    top: np.ndarray
    runner_up: np.ndarray


def action_radii(top: np.ndarray, runner_up: np.ndarray, guarantees: Bounds, cap: int) -> np.ndarray:
    """Largest r <= cap with lower_r(top) > upper_r(runner_up) per state [S] -> [S]; ABSTAIN where none (theory section 6).

    As everywhere, nothing above `guarantees.largest_radius` is asked for: a radius that reaches it is a floor.
    """
    pairs, inverse = np.unique(np.stack([top, runner_up], axis=1), axis=0, return_inverse=True)

    def holds(radius):
        guarantee = guarantees.at(radius)
        return guarantee.lower(pairs[:, 0]) > guarantee.upper(pairs[:, 1])

    return largest_radii(holds, min(cap, guarantees.largest_radius))[inverse.reshape(-1)]


def certify_votes(counts: np.ndarray, guarantees: Bounds, *, eta: float, cap: int) -> ActionCertificate:
    """Certify every row of votes [S, A]. Each state's statement holds with probability 1 - eta; pass eta/S for all together."""
    bounds = top_two_bounds(counts, eta)
    radius = action_radii(bounds.top, bounds.runner_up, guarantees, cap)
    return ActionCertificate(action=bounds.action, radius=radius, top=bounds.top, runner_up=bounds.runner_up)


def certify_exact(counts: np.ndarray, guarantees: AnyGuarantees, *, eta: float, cap: int) -> ActionCertificate:
    """Certify every row of votes [S, A] of all parts of a partition. Nothing is sampled: the radii are certain, and `eta` plays no role.

    Of units that are spread over several parts each, a radius counts all of them as lost (`rules.finite_aggregation` knows more, from the votes of each policy).
    """
    ordered = np.sort(counts, axis=1) / counts[0].sum()
    radius = np.minimum(parl_radius(counts) // policies_per_unit(guarantees.mechanism, guarantees.threat), cap)
    return ActionCertificate(action=counts.argmax(axis=1), radius=radius, top=ordered[:, -1], runner_up=ordered[:, -2])


def certify_scores(histogram: np.ndarray, guarantees: Bounds, *, eta: float, cap: int) -> ActionCertificate:
    """Certify the action with the largest expected score from score levels [S, A, K+1]; confidence as in `certify_votes`.

    E_{D'}[y] >= integral over t in [0, 1] of lower_r(P(y > t)), and the same with upper_r from above (theory section 6, probability
    scores). Which action has the largest mean is seen in the same data, so a band from either side is paid for every action.
    """
    states, actions, ends = histogram.shape
    levels, instances = ends - 1, int(histogram[0, 0].sum())
    action = (histogram @ np.arange(ends)).argmax(axis=1)
    # P(y below the c-th smallest score) <= unseen[c] for every c at once; nothing is known of what lies above all scores.
    unseen = np.append(order_statistic_band(instances, check_eta(eta) / (2 * actions)), 1.0)
    # For k = 1..K: scores below k/K, and scores of at least (K-k)/K. Either way a level stands for the end of its cell that is safe.
    below = np.cumsum(histogram, axis=2, dtype=np.int32)[..., :-1]
    of_top = below[np.arange(states), action]
    chunk = max(1, ENTRIES_AT_A_TIME // (actions * levels))
    parts = [slice(start, start + chunk) for start in range(0, states, chunk)]

    def above(part: slice) -> np.ndarray:
        reverse = below[part][..., -2::-1]
        return instances - np.concatenate([reverse, np.zeros((*reverse.shape[:2], 1), np.int32)], axis=2)

    seen = np.zeros(instances + 1, bool)
    for counts in (of_top, *map(above, parts)):
        seen[counts] = True
    lower, upper = np.zeros((2, instances + 1))

    def bounds(radius):
        spend(histogram.size)
        guarantee = guarantees.at(radius)
        lower[seen], upper[seen] = guarantee.lower(1.0 - unseen[seen]), guarantee.upper(unseen[seen])
        ceilings = np.concatenate([upper[above(part)].mean(axis=2) for part in parts])
        ceilings[np.arange(states), action] = -1.0
        return lower[of_top].mean(axis=1), ceilings.max(axis=1)

    def holds(radius):
        top, others = bounds(radius)
        return top > others

    top, runner_up = bounds(0)
    return ActionCertificate(action=action, radius=largest_radii(holds, min(cap, guarantees.largest_radius)), top=top, runner_up=runner_up)
