"""Every number of a certificate, as a pure function of its inputs."""

import math
from collections.abc import Collection
from functools import partial

import numpy as np

from mucd_ray.certify.action import ABSTAIN, ActionCertificate, certify_exact, certify_scores, certify_votes
from mucd_ray.certify.closed_form import AnyGuarantees, guarantees_of
from mucd_ray.certify.components import by_component
from mucd_ray.certify.confidence.bands import BANDS
from mucd_ray.certify.confidence.looks import LOOKS, effective_eta
from mucd_ray.certify.confidence.means import MEANS, mean_lower
from mucd_ray.certify.confidence.proportions import LEAST_ETA, check_eta
from mucd_ray.certify.file.evidence import check_inputs, instances_of
from mucd_ray.certify.file.neighbours import neighbour_results
from mucd_ray.certify.file.rules import rule_results
from mucd_ray.certify.file.voted import voted_results
from mucd_ray.certify.guarantees import FAMILIES, THREATS
from mucd_ray.certify.median_action import MedianActions
from mucd_ray.certify.planning.goal import Goal
from mucd_ray.certify.policy import ceiling_band, expected_return_bound, mean_route_bound, radius_keeping, return_band, shares_kept
from mucd_ray.certify.radius import FRACTIONS, named_radii
from mucd_ray.certify.rounding import exactly
from mucd_ray.errors import MucdError
from mucd_ray.mechanism.kinds import WithNoise, from_values
from mucd_ray.mechanism.neighbours import Neighbours
from mucd_ray.mechanism.work import spend
from mucd_ray.words import counted

QUANTILES = (0.1, 0.25, 0.5)
# Half-widths of the interval of a median action, as shares of the action range.
TOLERANCES = (0.05, 0.1, 0.25)
# A curve over r ends where the bound has lost this share of the unpoisoned mean.
CURVE_END = 0.02
# The probability under D at which the splits of a symmetric difference are compared.
SPLIT_PROBABILITY = 0.99
# The betting bound holds at every number of instances at once; the other bounds pay for every look.
ANYTIME_MEANS = ("betting",)


def check_choices(threat: str, accountant: str, band: str, looks: str = "fixed") -> None:
    """Fail early, before anything is trained, on a threat model, accountant, band or way to look that does not exist."""
    known: dict[str, tuple[str, Collection[str]]] = {"threat": (threat, THREATS), "accountant": (accountant, FAMILIES), "band": (band, BANDS), "looks": (looks, LOOKS)}
    for name, (value, choices) in known.items():
        if value not in choices:
            raise MucdError(f"{name} {value!r} is unknown: use one of {', '.join(choices)}")


def compute_results(inputs: dict) -> dict:
    """Every number of the certificate, from `inputs` alone. Raises MucdError for inputs that no certificate can be based on."""
    check_inputs(inputs)
    check_choices(inputs["threat"], inputs["accountant"], inputs["band"], inputs["looks"])
    mechanism = from_values(inputs["mechanism"])
    if isinstance(mechanism, Neighbours):
        return neighbour_results(inputs, mechanism)
    returns, instances = np.array(inputs["returns"], dtype=float), instances_of(inputs)
    eta = effective_eta(check_eta(inputs["eta"]), inputs["looks"], instances)
    guarantees = guarantees_of(mechanism, units=inputs["units"], threat=inputs["threat"], family=inputs["accountant"])
    policy = _policy_results(inputs, returns, guarantees, eta) if inputs["rollouts"] else None
    results = {
        "sound": inputs["accountant"] != "published",
        "instances": instances,
        "eta": eta,
        "signal_budget": mechanism.signal_budget(inputs["units"]) if isinstance(mechanism, WithNoise) else None,
        "policy": policy,
        "action": None,
        "goal": None,
    }
    if inputs["actions"] is not None:
        kind = inputs["actions"]["kind"]
        results["action"] = {"kind": kind} | ACTION_RESULTS[kind](inputs, guarantees, eta)
    if inputs.get("voted") is not None:
        results["voted"] = voted_results(inputs, guarantees, eta, _cap(inputs, guarantees))
    if "rule" in inputs:
        results["rule"] = rule_results(inputs, _cap(inputs, guarantees))
    if inputs["goal"] is not None:
        results["goal"] = _goal_results(inputs, returns, guarantees, eta, results["action"])
    results["accounting"] = _accounting_results(guarantees, policy["keeps"]["0.5"]["radius"] if policy else 1)
    return results


def _policy_results(inputs, returns, guarantees, eta) -> dict:
    units, cap, return_range = inputs["units"], _cap(inputs, guarantees), inputs["return_range"]
    low, high = return_range
    bands = {name: return_band(returns, return_range, eta=eta, method=name) for name in BANDS}
    band, ceiling = bands[inputs["band"]], ceiling_band(returns, return_range, eta=eta, method=inputs["band"])
    scaled = np.clip((returns - low) / (high - low), 0.0, 1.0)
    means = {name: low + (high - low) * mean_lower(scaled, inputs["eta"] if name in ANYTIME_MEANS else eta, name) for name in MEANS}
    mean = float(returns.mean())
    keeps = shares_kept(mean, band, guarantees, cap, units)
    last = max(1, radius_keeping(CURVE_END, mean, band, guarantees, cap))
    radii = named_radii(last, [entry["radius"] for entry in keeps.values()], units, cap)
    points = np.unique(np.concatenate([*(b.probability for b in (*bands.values(), ceiling)), [(m - low) / (high - low) for m in means.values()]]))
    lowered = [_table(points, guarantees.at(int(r)).lower) for r in radii]
    bounds = {name: [expected_return_bound(b, guarantees, int(r)) for r in radii] for name, b in bands.items()}
    return {
        "unpoisoned_mean": mean,
        "unpoisoned_standard_error": float(returns.std(ddof=1) / math.sqrt(len(returns))) if len(returns) > 1 else None,
        "unpoisoned_mean_bound": means,
        "keeps": keeps,
        "curve": {
            "radius": radii.tolist(),
            "fraction": (radii / units).tolist(),
            "bound": bounds[inputs["band"]],
            "ceiling": [-expected_return_bound(ceiling, guarantees, int(r)) for r in radii],
            "quantiles": {f"{level:g}": [band.quantile(level, lower) for lower in lowered] for level in QUANTILES},
            "bound_by_route": bounds
            | {name: [mean_route_bound(m, return_range, lower) for lower in lowered] for name, m in means.items()},
        },
    }


def _cap(inputs, guarantees) -> int:
    """No radius above it is asked for."""
    return min(inputs["radius_cap"], guarantees.largest_radius)


def _table(points: np.ndarray, function):
    """`function` at any of `points` (sorted, [n]), each computed once for all who ask."""
    values = function(points)

    def at(p):
        spend(8 * np.size(p))
        return values[np.searchsorted(points, p)]

    return at


def _discrete(certify, key: str):
    def results(inputs, guarantees, eta) -> dict:
        evidence = np.array(inputs["actions"][key])
        reference, components = inputs["actions"]["reference"], tuple(inputs["actions"].get("components", ()))
        of_all = partial(by_component, certify, components=components) if components else certify
        scopes = {
            scope: of_all(evidence, guarantees=guarantees, eta=_shared(eta, states, len(components)), cap=_cap(inputs, guarantees))
            for scope, states in (("per_state", 1), ("family_wise", len(evidence)))
        }
        action = scopes["per_state"].action
        agrees = None if reference is None else (action == np.array(reference)).reshape(len(evidence), -1).all(1)
        return {
            "states": len(evidence),
            "action": action.tolist(),
            "agreement": None if agrees is None else float(agrees.mean()),
            **{scope: _discrete_scope(certificate, agrees, inputs, _cap(inputs, guarantees)) for scope, certificate in scopes.items()},
        }

    return results


def _shared(eta: float, states: int, components: int = 0) -> float:
    """What is left for one state; components share it once more, each for itself."""
    if eta / (states * max(components, 1)) < LEAST_ETA:
        by = f"{counted(states, 'state')} of {counted(components, 'component')}" if components else counted(states, "state")
        raise MucdError(f"eta {exactly(eta)} shared by {by} is below {LEAST_ETA:g} for each: use a larger eta or fewer states")
    return eta / states


def _discrete_scope(certificate: ActionCertificate, agrees: np.ndarray | None, inputs, cap: int) -> dict:
    # Of several components all must stay: the least radius is that of the action. ABSTAIN is less than any.
    radius = certificate.radius if certificate.radius.ndim == 1 else certificate.radius.min(1)
    certified = radius[radius >= 1]
    radii = named_radii(int(max(radius.max(), 1)), [], inputs["units"], cap)
    spend(len(radii) * len(radius))
    return {
        "radius": _radii(radius),
        **({} if certificate.radius.ndim == 1 else {"component_radius": [_radii(row) for row in certificate.radius]}),
        "top_lower": certificate.top.tolist(),
        "runner_up_upper": certificate.runner_up.tolist(),
        "certified_share": len(certified) / len(radius),
        "mean_radius": float(certified.mean()) if len(certified) else None,
        "median_radius": float(np.median(certified)) if len(certified) else None,
        "max_radius": int(certified.max()) if len(certified) else None,
        "curve": {
            "radius": radii.tolist(),
            "fraction": (radii / inputs["units"]).tolist(),
            "stability_ratio": [float(np.mean(radius >= r)) for r in radii],
            "certified_accuracy": None if agrees is None else [float(np.mean((radius >= r) & agrees)) for r in radii],
        },
    }


def _radii(radius: np.ndarray) -> list[int | None]:
    return [None if r == ABSTAIN else int(r) for r in radius]


def _continuous(inputs, guarantees, eta) -> dict:
    evidence = inputs["actions"]
    counts, low, high = np.array(evidence["histogram"]), np.array(evidence["low"]), np.array(evidence["high"])
    scopes = {"per_state": eta, "family_wise": _shared(eta, len(counts))}
    medians = {scope: MedianActions(counts, guarantees, eta=share) for scope, share in scopes.items()}
    return {
        "states": len(counts),
        "dimensions": counts.shape[1],
        "median": (low + (high - low) * medians["per_state"].median()).tolist(),
        **{scope: _continuous_scope(median, low, high, inputs) for scope, median in medians.items()},
    }


def _continuous_scope(actions: MedianActions, low, high, inputs) -> dict:
    cap, units = _cap(inputs, actions.guarantees), inputs["units"]
    tolerance: dict[str, dict] = {}
    for share in TOLERANCES:
        radius = actions.radii(share, cap)
        certified = radius[radius >= 1]
        tolerance[f"{share:g}"] = {
            "radius": [None if r < 0 else int(r) for r in radius],
            "certified_share": len(certified) / len(radius),
            "median_radius": float(np.median(certified)) if len(certified) else None,
            "max_radius": int(certified.max()) if len(certified) else None,
        }
    last = max(1, *(entry["max_radius"] or 1 for entry in tolerance.values()))
    radii = named_radii(last, [], units, cap)
    widths = [actions.half_width(int(r)) for r in radii]
    at = [int(r) for r in np.unique([0, *(min(cap, math.ceil(fraction * units)) for fraction in FRACTIONS)])]
    ends = [actions.interval(r) for r in at]
    return {
        "tolerance": tolerance,
        "curve": {
            "radius": radii.tolist(),
            "fraction": (radii / units).tolist(),
            "median_half_width": [float(np.median(width)) for width in widths],
            "largest_half_width": [float(width.max()) for width in widths],
        },
        "interval": {
            "radius": at,
            "low": [(low + (high - low) * lower).tolist() for lower, _ in ends],
            "high": [(low + (high - low) * upper).tolist() for _, upper in ends],
        },
    }


ACTION_RESULTS = {"votes": _discrete(certify_votes, "counts"), "exact": _discrete(certify_exact, "counts"), "scores": _discrete(certify_scores, "histogram"), "continuous": _continuous}


def _goal_results(inputs, returns, guarantees, eta, action) -> dict:
    goal = Goal.parse(inputs["goal"])
    goal.check(inputs["units"], _cap(inputs, guarantees), discrete=action is not None and action["kind"] != "continuous")
    radius = goal.radius(inputs["units"])
    if goal.name != "actions" and not inputs["rollouts"]:
        raise MucdError(f"goal {goal.name} is about returns, and there are none")
    if goal.name == "actions":
        reached = action["family_wise"]["radius"]
        value = float(np.mean([r is not None and r >= radius for r in reached]))
    else:
        band = return_band(returns, inputs["return_range"], eta=eta, method=inputs["band"])
        value = expected_return_bound(band, guarantees, radius)
        if goal.name == "return":
            floor, mean = inputs["return_range"][0], float(returns.mean())
            value = (value - floor) / (mean - floor) if mean > floor else 0.0
    return {"name": goal.name, "wanted": goal.least, "fraction": goal.fraction, "radius": radius, "certified": value, "met": value >= goal.least}


def _accounting_results(guarantees: AnyGuarantees, radius: int) -> dict:
    """At the radius that keeps half: how far above the reported bound an attack of a pure group stays, which bounds what any tighter
    computation could gain; and the bounds of single splits of a symmetric difference, each by its own accounting."""
    radius = max(1, radius)
    return {
        "radius": radius,
        "discretisation_error": guarantees.discretisation_error(radius),
        "errs": guarantees.errs,
        "splits": guarantees.split_profile(radius, SPLIT_PROBABILITY) if guarantees.threat == "symmetric" else None,
    }
