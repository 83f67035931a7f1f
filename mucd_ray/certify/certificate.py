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
from decimal import ROUND_FLOOR, Context
from pathlib import Path

import numpy as np

from mucd_ray.certify.action import ABSTAIN, ActionCertificate, certify_actions
from mucd_ray.certify.bands import BANDS
from mucd_ray.certify.confidence import check_eta
from mucd_ray.certify.guarantees import FAMILIES, READINGS, THREATS, Guarantees
from mucd_ray.certify.policy import expected_return_bound, radius_keeping, return_band
from mucd_ray.certify.radius import radius_ladder
from mucd_ray.errors import MucdError
from mucd_ray.mechanism.mechanism import UNITS, Mechanism

FORMAT = "mucd-certificate/1"
SHARES_KEPT = (0.9, 0.75, 0.5)
FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.0717, 0.1, 0.2)
# The curve ends where the bound has lost this share of the unpoisoned mean.
CURVE_END = 0.02
RELATIVE_TOLERANCE = 1e-7
KEYS = {"format", "claim", "inputs", "results", "assumptions", "context", "sha256"}
LARGEST = 2**53
# These are made by every certificate; further ones are about the run.
STANDING_ASSUMPTIONS = (
    "The attacker does not know the run's secret, from which all noise and all samples are derived.",
    "Gaussian noise and sums are computed in float32; the guarantees are those of exact real arithmetic.",
    "Neither this run nor this certificate was chosen among several by looking at results.",
    "D' ranges over the datasets that the package accepts: finite values, actions inside the declared space.",
)


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
    _check_types(inputs)
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
    certified = certificate.radius[certificate.radius >= 1]
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
    """The claim in words: what may change, how much, what stays true, with which probability. Numbers are rounded to the safe side."""
    mechanism, policy = inputs["mechanism"], results["policy"]
    kind, units, confidence = UNITS[mechanism["unit"]], inputs["units"], f"{100 * (1 - inputs['eta']):.12g}"
    sentences = []
    if not results["sound"]:
        sentences.append("NOT SOUND: this certificate uses the published accounting rule, which is known to be wrong; it is for comparison only.")
    sentences.append(
        f"Compared are training on the dataset D of this certificate ({units} {kind}) and training on any dataset D' that "
        f"{THREATS[inputs['threat']].format(units=kind)}; {READINGS[inputs['threat']].format(units=kind)}. "
        "Training is the randomised mechanism recorded here, with randomness that the attacker does not know."
    )
    half, floor = policy["keeps"]["0.5"], inputs["return_range"][0]
    if half["radius"] >= 1:
        sentences.append(
            f"Policy level: for every D' with r = {half['radius']} ({round_down(100 * half['fraction'], 3)} % of D), the expected return of one trained "
            f"instance is at least {round_down(half['bound'])}; on D itself the mean over {results['instances']} instances is "
            f"{policy['unpoisoned_mean']:.6g} and the least possible return {floor:g}. The bounds for all r hold together with probability at least {confidence} %."
        )
    else:
        sentences.append(f"Policy level: no radius keeps half of the mean's height above the least possible return {floor:g}.")
    if "action" in results:
        action = results["action"]
        for key, scope in (("per_state", "for each state by itself"), ("family_wise", "for all states together")):
            part = action[key]
            median = "none" if part["median_radius"] is None else f"{part['median_radius']:g}"
            sentences.append(
                f"Action level: at {round_down(100 * part['certified_share'], 4)} % of {action['states']} states the majority action of the ensemble stays the "
                f"most probable one up to that state's radius, which is at least 1 (median {median}, largest {part['max_radius']}); {scope}, with probability "
                f"at least {confidence} %."
            )
        sentences.append(f"The policy level and the actions at all states hold together with probability at least {100 * (1 - 2 * inputs['eta']):.12g} %.")
    return sentences


def round_down(value: float, digits: int = 6) -> str:
    """`value` with that many significant digits, never above it."""
    return f"{Context(prec=digits, rounding=ROUND_FLOOR).create_decimal_from_float(value).normalize():f}"


def make_certificate(inputs: dict, *, assumptions: list[str], context: dict) -> dict:
    results = compute_results(inputs)
    body = {
        "format": FORMAT,
        "claim": claim_sentences(inputs, results),
        "inputs": inputs,
        "results": results,
        "assumptions": [*STANDING_ASSUMPTIONS, *assumptions],
        "context": context,
    }
    body = json.loads(json.dumps(body, allow_nan=False))
    return body | {"sha256": content_hash(body)}


def content_hash(certificate: dict) -> str:
    body = {key: value for key, value in certificate.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


def read_certificate(path) -> dict:
    """A certificate as it stands in the file. Raises MucdError unless it is JSON without duplicate keys, NaN or infinities."""
    try:
        certificate = json.loads(Path(path).read_text(), object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
    except OSError as error:
        raise MucdError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise MucdError(f"{path} is not JSON: {error}") from None
    if not isinstance(certificate, dict) or certificate.get("format") != FORMAT:
        raise MucdError(f"{path} is not a certificate of format {FORMAT}")
    return certificate


def _without_duplicates(pairs):
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError(f"duplicate key among {', '.join(key for key, _ in pairs)}")
    return values


def _refuse_constant(name):
    raise ValueError(f"{name} is not a number")


def verify(certificate: dict) -> list[str]:
    """Mismatches between what the certificate says and what follows from its inputs; empty if it holds.

    The evidence itself, `context` and the assumptions about the run cannot be checked from the file; their hash is.
    """
    if set(certificate) != KEYS:
        return [f"keys: a certificate has {', '.join(sorted(KEYS))}, this one {', '.join(sorted(certificate))}"]
    try:
        results = json.loads(json.dumps(compute_results(certificate["inputs"]), allow_nan=False))
        expected = {"claim": claim_sentences(certificate["inputs"], results), "results": results}
        found_hash = content_hash(certificate)
    except (MucdError, KeyError, TypeError, ValueError, IndexError, ArithmeticError) as error:
        return [f"inputs: {type(error).__name__}: {error}"]
    mismatches = []
    for key, value in expected.items():
        mismatches += _differences(value, certificate[key], key)
    if list(STANDING_ASSUMPTIONS) != certificate["assumptions"][: len(STANDING_ASSUMPTIONS)]:
        mismatches.append("assumptions: those that every certificate makes are missing")
    if certificate["sha256"] != found_hash:
        mismatches.append("sha256: the content was changed after the certificate was made")
    return mismatches


def _check_types(inputs: dict) -> None:
    """Inputs come from a file that anybody may have written: exactly these keys, and whole or real numbers where they belong."""
    expected = {"mechanism", "threat", "accountant", "eta", "band", "units", "radius_cap", "votes", "returns", "return_range"}
    if not isinstance(inputs, dict) or set(inputs) != expected:
        raise MucdError(f"inputs must have exactly the keys {', '.join(sorted(expected))}")
    if not isinstance(inputs["mechanism"], dict):
        raise MucdError("mechanism must hold the fields of a mechanism")
    votes, returns = inputs["votes"], inputs["returns"]
    if not (isinstance(votes, list) and all(isinstance(row, list) for row in votes) and isinstance(returns, list)):
        raise MucdError("votes must be a list of lists of counts, and returns a list of numbers")
    whole = [inputs["units"], inputs["radius_cap"], inputs["mechanism"].get("steps"), *(count for row in votes for count in row)]
    real = [inputs["eta"], *returns, *inputs["return_range"], *(v for k, v in inputs["mechanism"].items() if k not in ("unit", "steps"))]
    for value in whole:
        if type(value) is not int or not 0 <= value <= LARGEST:
            raise MucdError(f"{value!r} must be a whole number from 0 to 2^53")
    for value in real:
        if type(value) not in (int, float) or not math.isfinite(value):
            raise MucdError(f"{value!r} must be a finite number")
    if len(inputs["return_range"]) != 2:
        raise MucdError(f"return range {inputs['return_range']} must be two numbers")


def _differences(expected, found, path: str) -> list[str]:
    if isinstance(expected, dict) and isinstance(found, dict) and expected.keys() == found.keys():
        return [m for key in sorted(expected) for m in _differences(expected[key], found[key], f"{path}.{key}")]
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        return [m for i, (a, b) in enumerate(zip(expected, found, strict=True)) for m in _differences(a, b, f"{path}[{i}]")]
    if type(expected) is type(found) is float and math.isclose(expected, found, rel_tol=RELATIVE_TOLERANCE, abs_tol=1e-12):
        return []
    same = type(expected) is type(found) and expected == found
    return [] if same else [f"{path}: the evidence gives {expected!r}, the certificate says {found!r}"]


def check_choices(threat: str, accountant: str, band: str) -> None:
    """Fail early, before anything is trained, on a threat model, accountant or band that does not exist."""
    for name, value, known in (("threat", threat, THREATS), ("accountant", accountant, FAMILIES), ("band", band, BANDS)):
        if value not in known:
            raise MucdError(f"{name} {value!r} is unknown: use one of {', '.join(known)}")
