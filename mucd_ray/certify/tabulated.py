"""Outcomes guarantees as a table, for whoever certifies new states in milliseconds: the accounting is done once, in advance."""

from bisect import bisect_left

import numpy as np

from mucd_ray.certify.action import certify_scores, certify_votes
from mucd_ray.certify.confidence.bands import order_statistic_band
from mucd_ray.certify.confidence.proportions import clopper_pearson_lower, clopper_pearson_upper, vote_shares
from mucd_ray.certify.families import Pair
from mucd_ray.certify.file.evidence import LEVELS
from mucd_ray.certify.guarantees import Bounds, OutcomesGuarantee
from mucd_ray.certify.median_action import MedianActions
from mucd_ray.certify.radius import radius_ladder

# Neighbouring radii of a table differ by at most 3 %.
RADII_PER_OCTAVE = 24


class TabulatedGuarantees:
    """What `guarantees` says at some radii and probabilities, in the form in which `certify_votes`, `certify_scores` and `MedianActions` ask.

    Everything in between is rounded to the safe side: a radius up to the next one of the table, a probability down for `lower` and up
    for `upper`. Nothing is said beyond the last radius. So certified radii are those of `guarantees`, rounded down to `radii`.

    Args:
        radii: whole numbers from 0 on.
        lower_at, upper_at: probabilities [n] at which the maps will be asked.
    """

    def __init__(self, guarantees: Bounds, radii, lower_at, upper_at):
        self.largest_radius = guarantees.largest_radius
        self.radii = sorted({0, *(int(radius) for radius in radii)})
        self.lower_at, self.upper_at = (np.unique(np.concatenate([[0.0, 1.0], points])) for points in (lower_at, upper_at))
        self.lower = np.array([guarantees.at(radius).lower(self.lower_at) for radius in self.radii])
        self.upper = np.array([guarantees.at(radius).upper(self.upper_at) for radius in self.radii])

    def at(self, radius: int) -> OutcomesGuarantee:
        row = bisect_left(self.radii, radius)
        if row == len(self.radii):
            return OutcomesGuarantee(Pair(np.zeros_like, np.ones_like))
        return OutcomesGuarantee(
            Pair(
                lambda p: self.lower[row, np.searchsorted(self.lower_at, p, "right") - 1],
                lambda p: self.upper[row, np.searchsorted(self.upper_at, p, "left")],
            )
        )


def tabulated(guarantees: Bounds, kind: str, *, instances: int, outputs: int, eta: float, cap: int, radii=()) -> TabulatedGuarantees:
    """A table with which evidence of one kind ("votes", "scores" or "continuous") is certified at any state.

    Probabilities are exact, since there are only as many as counts. Radii are `radii` and a ladder up to the largest that any evidence
    can have.

    Args:
        instances, outputs: P, and the number of actions or of dimensions.
        eta, cap: those of the certificate.
    """
    cap = min(cap, guarantees.largest_radius)
    best = np.zeros((1, outputs), int)
    best[0, 0] = instances
    unanimous = np.zeros((1, outputs, LEVELS + 1), int)
    unanimous[:, :, 0] = instances
    if kind == "votes":
        largest = certify_votes(best, guarantees, eta=eta, cap=cap).radius
        counts, (_, of_top, of_runner_up) = np.arange(instances + 1), vote_shares(eta, outputs)
        top = clopper_pearson_lower(counts, instances, of_top)
        lower_at, upper_at = top, np.concatenate([1.0 - top, clopper_pearson_upper(counts, instances, of_runner_up)])
    elif kind == "scores":
        unanimous[0, 0] = np.bincount([LEVELS], minlength=LEVELS + 1) * instances
        largest = certify_scores(unanimous, guarantees, eta=eta, cap=cap).radius
        upper_at = order_statistic_band(instances, eta / (2 * outputs))
        lower_at = 1.0 - upper_at
    else:
        largest = MedianActions(unanimous, guarantees, eta=eta).radii(0.5 / LEVELS, cap)
        lower_at, upper_at = 1.0 - order_statistic_band(instances, eta / (2 * outputs)), np.zeros(0)
    ladder = radius_ladder(max(int(largest[0]), 1), RADII_PER_OCTAVE)
    return TabulatedGuarantees(guarantees, [radius for radius in {*ladder, *radii} if radius <= cap], lower_at, upper_at)
