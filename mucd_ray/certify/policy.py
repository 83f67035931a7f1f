"""Policy level: the return of a policy trained on any D' within r units of D, in expectation and in quantiles."""

from dataclasses import dataclass

import numpy as np

from mucd_ray.certify.closed_form import AnyGuarantees
from mucd_ray.certify.confidence.bands import BANDS
from mucd_ray.certify.radius import largest_radii
from mucd_ray.errors import MucdError

SHARES_KEPT = (0.9, 0.75, 0.5)


@dataclass(frozen=True, kw_only=True)
class ReturnBand:
    """A simultaneous lower confidence band on G(t) = P(return >= t): G(t) >= probability[k] for t <= threshold[k].

    `threshold` [K] increases, `probability` [K] falls; `floor` is the public least return.
    """

    threshold: np.ndarray
    probability: np.ndarray
    floor: float

    def expected_return(self, lower) -> float:
        """floor + integral of lower(G(t)) dt: a lower bound on the expected return under D' (theory section 6)."""
        return float(self.floor + np.diff(self.threshold, prepend=self.floor) @ lower(self.probability))

    def quantile(self, level: float, lower) -> float:
        """The largest t with lower(G(t)) >= 1 - level: under D' at least the share 1 - level of policies earn it or more."""
        reached = np.count_nonzero(lower(self.probability) >= 1.0 - level)
        return float(self.threshold[reached - 1]) if reached else self.floor


def return_band(returns: np.ndarray, return_range: tuple[float, float], *, eta: float, method: str) -> ReturnBand:
    """The band of one return per instance [P]; it holds with probability 1 - eta for all thresholds together.

    Raises:
        MucdError: no return, a return that is not finite or outside the declared range, an unknown method.
    """
    returns = np.asarray(returns, dtype=float)
    low, high = return_range
    if method not in BANDS:
        raise MucdError(f"confidence band {method!r} is unknown: use one of {', '.join(BANDS)}")
    if returns.ndim != 1:
        raise MucdError(f"returns of shape {returns.shape} must be one number per instance")
    if len(returns) == 0:
        raise MucdError("there are no returns: train at least one instance first")
    outside = ~((returns >= low) & (returns <= high))
    if outside.any():
        raise MucdError(f"return {returns[outside][0]} is outside the declared range [{low}, {high}]: declare the true bounds of every possible return")
    returns = np.sort(returns)
    probability = 1.0 - BANDS[method](len(returns), eta)
    # Of equal returns the first has the highest bound, and the later ones say nothing more.
    threshold, first = np.unique(returns, return_index=True)
    return ReturnBand(threshold=threshold, probability=probability[first], floor=low)


def ceiling_band(returns: np.ndarray, return_range: tuple[float, float], *, eta: float, method: str) -> ReturnBand:
    """The band of the negated returns: a lower bound from it is, negated, an upper bound on returns."""
    low, high = return_range
    return return_band(-np.asarray(returns, dtype=float), (-high, -low), eta=eta, method=method)


def expected_return_bound(band: ReturnBand, guarantees: AnyGuarantees, radius: int) -> float:
    """Lower bound on E[return] of M(D') for every D' within `radius` of D."""
    return guarantees.least(radius, band.expected_return)


def mean_route_bound(mean: float, return_range: tuple[float, float], lower) -> float:
    """Lower bound on E[return] under D' from a lower confidence bound `mean` on E[return] under D alone.

    The seeds' route (MuCD, arXiv 2505.20621), e^{-eps}(J - b delta) for returns in [0, b], is this for `adp`. For every family: lower
    is convex, so by Jensen's inequality the integral of lower(G(t)) over the range is at least lower of the mean of G.
    """
    low, high = return_range
    return float(low + (high - low) * lower((mean - low) / (high - low)))


def radius_keeping(share: float, unpoisoned: float, band: ReturnBand, guarantees: AnyGuarantees, cap: int) -> int:
    """Largest r <= cap whose bound keeps `share` of the unpoisoned mean above the floor; -1 if not even r = 0 does, or if there is nothing to keep."""
    if unpoisoned <= band.floor:
        return -1
    wanted = band.floor + share * (unpoisoned - band.floor)
    return int(largest_radii(lambda r: np.array([expected_return_bound(band, guarantees, r) >= wanted]), min(cap, guarantees.largest_radius))[0])


def shares_kept(unpoisoned: float, band: ReturnBand, guarantees: AnyGuarantees, cap: int, units: int) -> dict[str, dict]:
    """By share of SHARES_KEPT: the `radius` of `radius_keeping`, the `fraction` of the units that is, and the `bound` on the expected return there."""
    keeps = {}
    for share in SHARES_KEPT:
        radius = radius_keeping(share, unpoisoned, band, guarantees, cap)
        bound = expected_return_bound(band, guarantees, max(radius, 0))
        keeps[f"{share:g}"] = {"radius": radius, "fraction": max(radius, 0) / units, "bound": bound}
    return keeps
