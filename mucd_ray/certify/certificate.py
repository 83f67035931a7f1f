"""The certificate file: inputs, results that are a pure function of them, and the claim in words.

    {"format", "claim": [sentences], "inputs": {...}, "results": {...}, "assumptions": [...], "context": {...}, "sha256"}

`inputs` holds the mechanism, the threat model and the evidence (votes, returns). `results` and `claim` are computed from `inputs`
alone, with numpy and scipy, so anybody can check them with `verify`, without the data, torch or Ray. `context` tells where the
evidence comes from (dataset and its hash, baselines, software); `sha256` covers everything else in canonical JSON.
"""

import hashlib
import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np

from mucd_ray.certify.action import ABSTAIN, ActionCertificate, certify_actions
from mucd_ray.certify.confidence import BANDS, check_eta
from mucd_ray.certify.guarantees import FAMILIES, THREATS, Guarantees
from mucd_ray.certify.policy import expected_return_bound, radius_keeping, return_band
from mucd_ray.certify.radius import radius_ladder
from mucd_ray.errors import MucdError
from mucd_ray.mechanism.mechanism import UNITS, Mechanism

FORMAT = "mucd-certificate/1"
SHARES_KEPT = (0.9, 0.75, 0.5)
FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.0717, 0.1, 0.2)
# The curve ends where the bound has lost this share of the unpoisoned mean.
CURVE_END = 0.02
RELATIVE_TOLERANCE = 1e-6


def make_inputs(
    *,
    mechanism: Mechanism,
    units: int,
    votes: np.ndarray,
    returns: np.ndarray,
    return_range: tuple[float, float],
    eta: float = 0.001,
    threat: str = "symmetric",
    accountant: str = "tradeoff",
    band: str = "order-statistic",
    radius_cap: int | None = None,
) -> dict:
    """What the results depend on, as plain JSON values.

    Args:
        units: N, the number of units of the dataset; radii are also reported as fractions of it.
        votes: counts of the instances' actions, [S, A], every row summing to the number of instances.
        returns: one rollout return per instance, [P].
        return_range: public least and greatest return.
        radius_cap: no radius above it is claimed; at most N, which is the default.
    """
    return {
        "mechanism": asdict(mechanism),
        "threat": threat,
        "accountant": accountant,
        "eta": eta,
        "band": band,
        "units": int(units),
        "radius_cap": int(units if radius_cap is None else radius_cap),
        "votes": np.asarray(votes).astype(int).tolist(),
        "returns": np.asarray(returns, dtype=float).tolist(),
        "return_range": [float(x) for x in return_range],
    }


def compute_results(inputs: dict) -> dict:
    """Every number of the certificate, from `inputs` alone. Raises MucdError for inputs that no certificate can be based on."""
    mechanism = Mechanism(**inputs["mechanism"])
    eta, units, cap = check_eta(inputs["eta"]), inputs["units"], inputs["radius_cap"]
    votes, returns = np.asarray(inputs["votes"], dtype=int), np.asarray(inputs["returns"], dtype=float)
    if not 1 <= cap <= units:
        raise MucdError(f"radius cap {cap} is outside 1..{units}, the number of units of the dataset")
    if votes.size and votes[0].sum() != len(returns):
        raise MucdError(f"{votes[0].sum()} instances voted but {len(returns)} have a return: evidence must come from the same instances")
    guarantees = Guarantees(mechanism, threat=inputs["threat"], family=inputs["accountant"])
    results = {
        "sound": inputs["accountant"] != "published",
        "instances": len(returns),
        "signal_budget": mechanism.signal_budget(units),
        "policy": _policy_results(inputs, returns, guarantees, units, cap),
    }
    if votes.size:
        per_state = certify_actions(votes, guarantees, eta=eta, cap=cap)
        family_wise = certify_actions(votes, guarantees, eta=eta / len(votes), cap=cap)
        results["action"] = {
            "states": len(votes),
            "action": per_state.action.tolist(),
            "per_state": _action_results(per_state),
            "family_wise": _action_results(family_wise),
        }
    results["accounting"] = _accounting_results(guarantees, results["policy"])
    return results


def _policy_results(inputs, returns, guarantees, units, cap) -> dict:
    bands = {name: return_band(returns, inputs["return_range"], eta=inputs["eta"], method=name) for name in BANDS}
    band = bands[inputs["band"]]
    mean = float(returns.mean())
    keeps = {}
    for share in SHARES_KEPT:
        radius = radius_keeping(share, mean, band, guarantees, cap)
        keeps[f"{share:g}"] = {
            "radius": radius,
            "fraction": max(radius, 0) / units,
            "bound": expected_return_bound(band, guarantees, max(radius, 0)),
        }
    last = max(1, radius_keeping(CURVE_END, mean, band, guarantees, cap))
    named = [min(cap, math.ceil(fraction * units)) for fraction in FRACTIONS]
    radii = np.unique(np.concatenate([radius_ladder(last), [entry["radius"] for entry in keeps.values()], named]))
    radii = radii[radii >= 0]
    return {
        "unpoisoned_mean": mean,
        "unpoisoned_standard_error": float(returns.std(ddof=1) / math.sqrt(len(returns))) if len(returns) > 1 else None,
        "keeps": keeps,
        "curve": {
            "radius": radii.tolist(),
            "fraction": (radii / units).tolist(),
            "bound": [expected_return_bound(band, guarantees, int(r)) for r in radii],
            "bound_by_band": {name: [expected_return_bound(b, guarantees, int(r)) for r in radii] for name, b in bands.items()},
        },
    }


def _action_results(certificate: ActionCertificate) -> dict:
    certified = certificate.radius[certificate.radius != ABSTAIN]
    return {
        "radius": [None if r == ABSTAIN else int(r) for r in certificate.radius],
        "top_lower": certificate.top.tolist(),
        "runner_up_upper": certificate.runner_up.tolist(),
        "certified_share": len(certified) / len(certificate.radius),
        "mean_radius": float(certified.mean()) if len(certified) else None,
        "median_radius": float(np.median(certified)) if len(certified) else None,
        "max_radius": int(certified.max()) if len(certified) else None,
    }


def _accounting_results(guarantees: Guarantees, policy: dict) -> dict:
    """The discretisation error at the radius that keeps half, for the pure groups (brackets of `loss_distribution.py`)."""
    radius = max(1, policy["keeps"]["0.5"]["radius"])
    groups = {"insert": [(radius, 0)], "remove": [(0, radius)], "substitute": [(radius, radius)]}.get(
        guarantees.threat, [(radius, 0), (0, radius)]
    )
    return {
        "radius": radius,
        "discretisation_error": max(guarantees.accountant.discretisation_error(*group) for group in groups),
        "errs": "safe side: the exact bound is at least the reported one and at most this much above it, in probability",
    }


def claim_sentences(inputs: dict, results: dict) -> list[str]:
    """The claim in words: what may change, how much, what stays true, with which probability."""
    mechanism, policy = inputs["mechanism"], results["policy"]
    kind, units, confidence = UNITS[mechanism["unit"]], inputs["units"], 100 * (1 - inputs["eta"])
    sentences = []
    if not results["sound"]:
        sentences.append("NOT SOUND: this certificate uses the published accounting rule, which is known to be wrong; it is for comparison only.")
    sentences.append(
        f"Compared are training on the dataset D of this certificate ({units} {kind}) and training on any dataset D' that "
        f"{THREATS[inputs['threat']].format(units=kind)}; D may be the poisoned set and D' the clean one, or the other way round. "
        "Training is the randomised mechanism recorded here, with randomness that the attacker does not know."
    )
    half = policy["keeps"]["0.5"]
    if half["radius"] >= 1:
        sentences.append(
            f"Policy level: for every D' with r = {half['radius']} ({100 * half['fraction']:.3g} % of D), the expected return of one trained instance "
            f"is at least {half['bound']:.6g}; on D itself the mean over {results['instances']} instances is {policy['unpoisoned_mean']:.6g} "
            f"and the least possible return {inputs['return_range'][0]:g}. The bounds for all r hold together with probability at least {confidence:g} %."
        )
    else:
        sentences.append("Policy level: no radius keeps half of the unpoisoned mean.")
    if "action" in results:
        action = results["action"]
        for key, scope in (("per_state", "for each state by itself"), ("family_wise", "for all states together")):
            part = action[key]
            median = "none" if part["median_radius"] is None else f"{part['median_radius']:g}"
            sentences.append(
                f"Action level: at {100 * part['certified_share']:.4g} % of {action['states']} states the majority action of the ensemble stays the "
                f"most probable one up to that state's radius (median {median}, largest {part['max_radius']}); {scope}, with probability at least {confidence:g} %."
            )
    return sentences


def make_certificate(inputs: dict, *, assumptions: list[str], context: dict) -> dict:
    results = compute_results(inputs)
    body = {
        "format": FORMAT,
        "claim": claim_sentences(inputs, results),
        "inputs": inputs,
        "results": results,
        "assumptions": assumptions,
        "context": context,
    }
    body = json.loads(json.dumps(body, allow_nan=False))
    return body | {"sha256": content_hash(body)}


def content_hash(certificate: dict) -> str:
    body = {key: value for key, value in certificate.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


def read_certificate(path) -> dict:
    try:
        certificate = json.loads(Path(path).read_text())
    except OSError as error:
        raise MucdError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise MucdError(f"{path} is not JSON: {error}") from None
    if not isinstance(certificate, dict) or certificate.get("format") != FORMAT:
        raise MucdError(f"{path} is not a certificate of format {FORMAT}")
    return certificate


def verify(certificate: dict) -> list[str]:
    """Mismatches between what the certificate says and what follows from its inputs; empty if it holds."""
    try:
        results = json.loads(json.dumps(compute_results(certificate["inputs"]), allow_nan=False))
        expected = {"claim": claim_sentences(certificate["inputs"], results), "results": results}
    except (MucdError, KeyError, TypeError, ValueError, IndexError) as error:
        return [f"inputs: {type(error).__name__}: {error}"]
    mismatches = []
    for key, value in expected.items():
        mismatches += _differences(value, certificate.get(key), key)
    if certificate.get("sha256") != content_hash(certificate):
        mismatches.append("sha256: the content was changed after the certificate was made")
    return mismatches


def _differences(expected, found, path: str) -> list[str]:
    if isinstance(expected, dict) and isinstance(found, dict):
        keys = sorted(expected.keys() | found.keys())
        return [m for k in keys for m in _differences(expected.get(k), found.get(k), f"{path}.{k}")]
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        return [m for i, (a, b) in enumerate(zip(expected, found, strict=True)) for m in _differences(a, b, f"{path}[{i}]")]
    numbers = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in (expected, found))
    if numbers and math.isclose(expected, found, rel_tol=RELATIVE_TOLERANCE, abs_tol=1e-12):
        return []
    return [] if expected == found else [f"{path}: the evidence gives {expected!r}, the certificate says {found!r}"]


def check_choices(threat: str, accountant: str, band: str) -> None:
    """Fail early, before anything is trained, on a threat model, accountant or band that does not exist."""
    for name, value, known in (("threat", threat, THREATS), ("accountant", accountant, FAMILIES), ("band", band, BANDS)):
        if value not in known:
            raise MucdError(f"{name} {value!r} is unknown: use one of {', '.join(known)}")
