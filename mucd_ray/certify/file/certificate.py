"""The certificate file: inputs, results that are a pure function of them, and the claim in words (docs/certificate.md lists every field).

    {"format", "claim": [sentences], "inputs": {...}, "results": {...}, "assumptions": [...], "context": {...}, "sha256"}

`inputs` holds the mechanism, the threat model and the evidence (returns, votes, histograms). `results` and `claim` are computed from
`inputs` alone, with numpy and scipy, so anybody can check them with `verify`, without the data, torch or Ray. `context` tells where the
evidence comes from (dataset and its hash, baselines, software); `sha256` covers everything else in canonical JSON.
"""

import hashlib
import json
import math
import re

import numpy as np
from numpy.typing import ArrayLike

from mucd_ray.certify.file.claim import claim_sentences
from mucd_ray.certify.file.results import compute_results
from mucd_ray.certify.file.rules import DETERMINISTIC
from mucd_ray.certify.rounding import exactly
from mucd_ray.errors import MucdError
from mucd_ray.files import read_file, read_json
from mucd_ray.mechanism import evaluator as evaluators
from mucd_ray.mechanism import outside
from mucd_ray.mechanism.evaluator import Evaluator
from mucd_ray.mechanism.kinds import AnyMechanism, to_values
from mucd_ray.mechanism.neighbours import Neighbours
from mucd_ray.mechanism.outside import Outside
from mucd_ray.mechanism.work import TooMuchWork, limited_to

FORMAT = "mucd-certificate/7"
# What `verify` spends on a file from anybody, times its patience: bytes read, and operations (mechanism/work.py; up to some ten minutes of a core).
MOST_BYTES = 64 << 20
MOST_OPERATIONS = 1e11
# Processors differ in the last digits of exp and log, which T-fold composition amplifies. Bounds agree if they differ by at most
# TOLERANCE + T * TOLERANCE_PER_STEP, of the return range or of 1; counts, radii and shares are the same everywhere.
TOLERANCE = 1e-6
TOLERANCE_PER_STEP = 1e-11
# A goal's share may differ by at most so many times that.
MOST_GOAL_SCALE = 1e3
RETURNS = re.compile(r"results\.(policy\.(unpoisoned|curve\.(bound|ceiling|quantiles)|keeps\..*\.bound)|rule\.(unpoisoned|curve\.bound)|voted\.(unpoisoned|curve\.(bound|played)|keeps.*\.bound))")
GOAL = re.compile(r"results\.goal\.certified")
PROBABILITIES = re.compile(r"results\.(action\..*\.(top_lower|runner_up_upper)|accounting\.(discretisation_error|splits\.bound))")
KEYS = {"format", "claim", "inputs", "results", "assumptions", "context", "sha256"}
# These are made by every certificate; further ones are about the run.
RANDOMNESS = {
    "gaussian": "Gaussian noise and sums are computed in float32; the guarantees are those of exact real arithmetic.",
    "bag": "What an instance is depends on its own bag and on fresh randomness alone; no instance was dropped, trained on another bag, or chosen among several.",
    "bag-then-noise": "What an instance is depends on its own bag, through noisy sums alone, and on fresh randomness; no instance was dropped, trained on another bag, or chosen among "
    "several. Gaussian noise and sums are computed in float32; the guarantees are those of exact real arithmetic.",
    "neighbours": "Distances are computed in float64, each by itself in one order of operations, so that the order of two units does not depend on others.",
    "partition": "What a part's policy is depends on the units of the part and on public constants alone. D' has at least as many units as there are parts; fewer are refused.",
}
# Those of a kind of unit.
OF_UNITS = {
    "source": [
        "Source keys are taken as they were recorded: every source under whose key an attacker could write counts among the r that he changes, and so does every source that he makes "
        "up, by a new key or a trajectory without one."
    ],
}
# Where the trainer is from outside.
RANDOMNESS_OUTSIDE = {
    "bag": "What an instance is depends on its own bag and on randomness of its own alone; no instance was dropped, trained on another bag, or chosen among several.",
    "partition": "What an instance is depends on the units of the part that it drew and on randomness of its own alone; none was dropped, trained on another part, or chosen among several. D' has at "
    "least as many units as there are parts; fewer are refused.",
}
OUTSIDE = (
    "The trainer {name} keeps nothing from one training to the next and reads nothing of the data but what it is given. Its instances are not bit-for-bit reproducible: they may depend on software, the machine, and "
    "its load. The limits of {seconds} seconds and {memory} GB are part of the learner, and no training reached them because of what was trained beside it. Where an instance was trained more than once, "
    "since a machine was lost or two drivers shared the work, the copy that counts was not chosen by what it holds."
)
EVALUATOR = (
    "The evaluator {name} depends on the policy's answers, on its seed, and on public or trusted things alone: it reads nothing of D, and keeps nothing from one score to the next. An estimate from D itself would be the "
    "attacker's, too. No score reached the limits of {seconds} seconds and {memory} GB because of what was scored beside it. Scores may differ from one machine to the next: where an instance was scored more than "
    "once, since a machine was lost or two drivers shared the work, the copy that counts was not chosen by what it holds."
)
STANDING_ASSUMPTIONS = (
    "The attacker does not know the run's secret, from which all noise and all samples are derived.",
    "Neither this run nor this certificate was chosen among several by looking at results.",
    "D' ranges over the datasets that the package accepts: finite values, actions inside the declared space.",
)
WITHOUT_CHANCE = (
    "The number of neighbours, the metric and every other constant were chosen without looking at D.",
    "An episode of the environment goes the same way again if its seed and the actions are the same.",
    STANDING_ASSUMPTIONS[-1],
)


def make_inputs(
    *,
    mechanism: AnyMechanism,
    units: int,
    returns: ArrayLike,
    return_range: tuple[float, float] | None,
    actions: dict | None = None,
    voted: dict | None = None,
    eta: float = 0.001,
    threat: str = "symmetric",
    accountant: str = "tradeoff",
    band: str = "order-statistic",
    looks: str = "fixed",
    goal: str | None = None,
    rollouts: int = 1,
    discount: float = 1.0,
    clipped: bool = False,
    condition: str | None = None,
    radius_cap: int | None = None,
    trainer: Outside | None = None,
    features: dict | None = None,
    path_radii: list[int] | None = None,
    instances: int | None = None,
    declared: dict | None = None,
    evaluator: Evaluator | None = None,
    rule: dict | None = None,
) -> dict:
    """What the results depend on, as plain JSON values.

    Args:
        units: N, the number of units of the dataset; radii are also reported as fractions of it.
        returns: per instance, in their order, the mean return of its `rollouts` episodes, discounted by `discount` per step, [P].
        return_range: public least and greatest return; None where `rollouts` is 0 and nothing is certified but actions: then there are no returns.
        clipped: whether every episode's return was clipped into that range.
        actions: evidence at states, made by one of the functions of `evidence.py`; None for the policy level alone.
        looks: "fixed" if P was chosen before training; "anytime" if training may have stopped, or may go on, depending on results.
        voted: evidence about episodes of the voted policy, made by `voted_evidence` (certify/file/voted.py).
        goal: what training went on for, in the words of `goal.py`.
        condition: what the claim depends on that nothing accounts for, one of CONDITIONS in `evidence.py`.
        radius_cap: no radius above it is claimed; at most N, which is the default.
        trainer: from outside; None: the package's own learner.
        features: what policies see: {"source": one of FEATURES in `evidence.py`, "card": name of the environment, "encoder": SHA-256 or None}.
        path_radii: of neighbours alone, per return of one episode: the largest r at which every action of the episode is certified, [P].
        instances: P, where there are no returns that tell it.
        declared: of a dataset without an environment, what it declares of observations and actions: {"observation_shape", "actions", "dimensions", "sha256"}.
        rule: episodes of a vote rule, {"name", "window", "never", "actions", "episodes"} (docs/certificate.md; certify/file/rules.py).
        evaluator: of the user's, whose scores the returns are; None: they were earned in an environment.
    """
    known = {"features": features, "instances": instances, "declared": declared, "evaluator": evaluator and evaluators.to_values(evaluator), "rule": rule}
    known = {name: value for name, value in known.items() if value is not None}
    return known | {
        "mechanism": to_values(mechanism),
        "trainer": None if trainer is None else outside.to_values(trainer),
        "threat": threat,
        "accountant": accountant,
        "eta": eta,
        "looks": looks,
        "band": band,
        "goal": goal,
        "units": int(units),
        "radius_cap": int(units if radius_cap is None else radius_cap),
        "returns": np.asarray(returns, dtype=float).tolist(),
        "return_range": return_range and [float(x) for x in return_range],
        "rollouts": int(rollouts),
        "discount": float(discount),
        "clipped": bool(clipped),
        "condition": condition,
        "actions": actions,
    } | ({} if path_radii is None else {"path_radii": [int(radius) for radius in path_radii]}) | ({} if voted is None else {"voted": voted})


def make_certificate(inputs: dict, *, assumptions: list[str], context: dict) -> dict:
    results = compute_results(inputs)
    body = {
        "format": FORMAT,
        "claim": claim_sentences(inputs, results),
        "inputs": inputs,
        "results": results,
        "assumptions": [*standing_assumptions(inputs), *assumptions],
        "context": context,
    }
    body = json.loads(json.dumps(body, allow_nan=False))
    return body | {"sha256": content_hash(body)}


def standing_assumptions(inputs: dict) -> list[str]:
    """What every certificate of these inputs assumes; what follows it is the maker's own."""
    mechanism, trainer = inputs["mechanism"], inputs["trainer"]
    kind, further = mechanism["kind"], [*OF_UNITS.get(mechanism["unit"], [])]
    if "rule" in inputs:
        further.append(DETERMINISTIC)
    if "evaluator" in inputs:
        further.append(EVALUATOR.format(name=inputs["evaluator"]["name"], **_limits(inputs["evaluator"])))
    if trainer is None:
        without_chance = [*(WITHOUT_CHANCE if inputs["rollouts"] else WITHOUT_CHANCE[::2]), *([STANDING_ASSUMPTIONS[1]] if "voted" in inputs else [])]
        return [*(without_chance if kind == Neighbours.kind else STANDING_ASSUMPTIONS), RANDOMNESS[kind], *further]
    return [*STANDING_ASSUMPTIONS, RANDOMNESS_OUTSIDE[kind], OUTSIDE.format(name=trainer["name"], **_limits(trainer)), *further]


def _limits(of: dict) -> dict[str, str]:
    return {name: exactly(of[name]) for name in ("seconds", "memory")}


def content_hash(certificate: dict) -> str:
    body = {key: value for key, value in certificate.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


def read_certificate(path, patience: float = 1.0) -> dict:
    """A certificate as it stands in the file.

    Raises:
        MucdError: more than `patience` times MOST_BYTES; not JSON without duplicate keys, NaN and infinities; another format.
    """
    most = int(MOST_BYTES * _checked_patience(patience))
    try:
        content = read_file(path, most)
    except OSError as error:
        raise MucdError(f"cannot read {path}: {error.strerror}") from None
    return parse_certificate(content, path, most)


def _checked_patience(patience: float) -> float:
    if not 0 < patience <= 1e6:
        raise MucdError(f"patience {patience} is outside (0, 1e6]: 10 allows ten times the usual work")
    return patience


def parse_certificate(content: bytes, path, most_bytes: int = MOST_BYTES) -> dict:
    """A certificate from the content of a file; `path` is named in errors. Raises MucdError as `read_certificate`."""
    certificate = read_json(content, path, most_bytes=most_bytes)
    found = certificate.get("format") if isinstance(certificate, dict) else None
    if isinstance(found, str) and found.startswith(FORMAT.split("/")[0] + "/") and found != FORMAT:
        raise MucdError(f"{path} has format {found[:60]!r}, this version reads {FORMAT}: make it again from its run folder with `mucd certify`")
    if found != FORMAT:
        raise MucdError(f"{path} is not a certificate of format {FORMAT}")
    return certificate


def verify(certificate: dict, patience: float = 1.0) -> list[str]:
    """Mismatches between what the certificate says and what follows from its inputs; empty if it holds.

    Raises:
        TooMuchWork: its inputs need more than `patience` times MOST_OPERATIONS; nothing is then known about it.

    The evidence itself, what it was said to be (mechanism, unit, range and clipping of returns), `context` and the assumptions about the run cannot be checked from the file; their hash is.
    """
    if set(certificate) != KEYS:
        return [f"keys: a certificate has {', '.join(sorted(KEYS))}, this one {_shown(sorted(certificate))}"]
    if certificate["format"] != FORMAT:
        return [f"format: {_shown(certificate['format'])} is not {FORMAT}"]
    inputs, assumptions = certificate["inputs"], certificate["assumptions"]
    try:
        found_hash = content_hash(certificate)
    except (TypeError, ValueError, RecursionError) as error:
        return [f"sha256: this is no JSON and has no hash: {error}"]
    try:
        with limited_to(MOST_OPERATIONS * _checked_patience(patience)):
            results = json.loads(json.dumps(compute_results(inputs), allow_nan=False))
    except TooMuchWork as error:
        raise TooMuchWork(f"to derive this certificate's numbers again {error}: --patience N allows N times {MOST_OPERATIONS:.3g}, up to some ten minutes of a core") from None
    except (MucdError, KeyError, TypeError, ValueError, IndexError, ArithmeticError, RecursionError) as error:
        return [f"inputs: {type(error).__name__}: {str(error)[:1000]}"]
    tolerance = TOLERANCE + TOLERANCE_PER_STEP * inputs["mechanism"].get("steps", 1)
    width = inputs["return_range"][1] - inputs["return_range"][0] if inputs["rollouts"] else 0.0
    tolerances = {RETURNS: tolerance * width, PROBABILITIES: tolerance, GOAL: tolerance * _goal_scale(inputs, results, width)}
    mismatches = _differences(results, certificate["results"], "results", tolerances)
    # Numbers that agree but for their last digits may be written differently: the words follow from the certificate's own.
    own = results if mismatches else certificate["results"]
    mismatches += _differences(claim_sentences(inputs, own), certificate["claim"], "claim", {})
    if not (isinstance(assumptions, list) and all(isinstance(text, str) and text.isprintable() for text in assumptions)):
        mismatches.append("assumptions: must be a list of printable sentences")
    elif (standing := standing_assumptions(inputs)) != assumptions[: len(standing)]:
        mismatches.append("assumptions: those that every certificate makes are missing")
    if certificate["sha256"] != found_hash:
        mismatches.append("sha256: the content was changed after the certificate was made")
    return mismatches


def _goal_scale(inputs: dict, results: dict, width: float) -> float:
    """How far the goal's value moves if the bound on the return moves by the return range."""
    name = results["goal"]["name"] if results["goal"] else None
    if name in (None, "actions"):
        return 0.0
    above = results["policy"]["unpoisoned_mean"] - inputs["return_range"][0]
    # Of a mean that hardly earns anything a share of it would move by any amount.
    return width if name == "absolute-return" else min(width / above, MOST_GOAL_SCALE) if above > 0 else 0.0


def _differences(expected, found, path: str, tolerances: dict[re.Pattern, float]) -> list[str]:
    if isinstance(expected, dict) and isinstance(found, dict) and expected.keys() == found.keys():
        return [m for key in sorted(expected) for m in _differences(expected[key], found[key], f"{path}.{key}", tolerances)]
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        return [m for i, (a, b) in enumerate(zip(expected, found, strict=True)) for m in _differences(a, b, f"{path}[{i}]", tolerances)]
    if type(expected) is type(found) is float:
        allowed = next((tolerance for pattern, tolerance in tolerances.items() if pattern.match(path)), 0.0)
        if math.isclose(expected, found, rel_tol=1e-12, abs_tol=allowed):
            return []
    same = type(expected) is type(found) and expected == found
    return [] if same else [f"{path}: the evidence gives {_shown(expected)}, the certificate says {_shown(found)}"]


def _shown(value, most: int = 1000) -> str:
    """The beginning of what a file may have made of any length: longer than every sentence of a claim."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."
