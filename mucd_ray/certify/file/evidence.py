"""What a certificate is based on, as plain data: counts on public grids, one return per instance, and strict checks of both.

Values that an instance produces at a state (probability scores, continuous actions) are recorded as one of LEVELS + 1 levels of
their public range, so that evidence is a histogram of whole numbers. Rounding to a level is post-processing; every bound takes
the end of the level's cell that errs to the safe side.
"""

import re
import sys

import numpy as np
from numpy.typing import ArrayLike

from mucd_ray.errors import MucdError
from mucd_ray.mechanism import evaluator, outside
from mucd_ray.mechanism.components import blocks
from mucd_ray.mechanism.kinds import WITH_NOISE, from_values
from mucd_ray.mechanism.neighbours import Neighbours
from mucd_ray.words import NO_ENVIRONMENT, counted

# A level is 0.5 % of the range.
LEVELS = 200
LARGEST = 2**53
LARGEST_REAL = sys.float_info.max
# What a claim may depend on that nothing accounts for.
TUNED_ON_THIS_DATASET = "tuned-on-this-dataset"
CONDITIONS = (TUNED_ON_THIS_DATASET,)
# Ranges of returns and actions: sums over them must not overflow, nor lose the digits in which a bound is rounded down.
LARGEST_VALUE, LEAST_WIDTH = 1e100, 1e-6
KEYS = {
    "mechanism", "trainer", "threat", "accountant", "eta", "looks", "band", "goal", "units", "radius_cap", "returns", "return_range", "rollouts", "discount", "clipped", "condition",
    "actions", "voted", "features", "path_radii", "instances", "declared", "evaluator", "rule",
}
# Certificates made before it was written down, or that are not about it, lack it.
OPTIONAL = {"features", "path_radii", "voted", "instances", "declared", "evaluator", "rule"}
# What policies see, in the words of the claim.
FEATURES = {
    "raw": "raw observations of {card}", "card": "public features of the card of {card}",
    "privileged": "features of the card of {card} out of the controller, or the model of the environment, that made the data (privileged: they show the mechanism, not what others would get)",
    "encoder": "the outputs of an encoder from outside at raw observations of {card} (SHA-256 of its file: {encoder})",
    "shipped": "the features {name} of mucd_ray at raw observations of {card} (SHA-256 of their file: {encoder})",
    "plug-in": "the features {name} of a plug-in from outside at raw observations of {card} (SHA-256 of its package: {encoder})",
}
# Actions of neighbours' votes as one sign each.
SIGNS = "0123456789abcdefghijklmnopqrstuvwxyz"
_SIGN_BYTES = np.frombuffer(SIGNS.encode(), np.uint8)
_VALUE_OF_BYTE = np.full(256, -1, np.int64)
_VALUE_OF_BYTE[_SIGN_BYTES] = np.arange(len(SIGNS))
# Of observations, that policies see.
MOST_KEYS = 1 << 10
# A claim repeats the name: it must not be able to be a sentence.
NAME, HASH = re.compile(r"[\w./:-]{1,200}"), re.compile("[0-9a-f]{64}")
ACTION_KEYS = {
    "votes": {"kind", "counts", "reference"},
    "exact": {"kind", "counts", "reference"},
    "scores": {"kind", "histogram", "reference"},
    "continuous": {"kind", "histogram", "low", "high"},
    "neighbours": {"kind", "votes", "actions", "reference"},
}
# What a dataset without an environment declares.
DECLARED_KEYS = {"observation_shape", "actions", "dimensions", "sha256"}
# Neighbours times actions: counts of votes that are held for one state.
MOST_COUNTS = 1 << 18
# Of one number, so that no sum of them overflows.
LARGEST_COUNT = 1 << 32
MOST_INSTANCES = 10**8


# Kinds with counts of votes.
VOTES = ("votes", "exact")
# Kinds whose actions may be of several components, each of which is voted on by itself; and how many values these may have in all.
OF_COMPONENTS, MOST_VALUES = (*VOTES, "scores"), 1 << 12


def levels(values: np.ndarray, low, high) -> np.ndarray:
    """floor(LEVELS (y - low)/(high - low)), so that level k holds low + [k, k+1) (high - low)/LEVELS: any shape -> uint8, same shape.

    `low` and `high` are broadcast. Values outside the range get its end; what is not a finite number gets level 0.
    """
    scaled = LEVELS * ((np.asarray(values, dtype=float) - low) / (np.asarray(high, dtype=float) - low))
    return np.where(np.isfinite(scaled), np.clip(scaled, 0, LEVELS), 0).astype(np.uint8)


def histogram(level: np.ndarray) -> np.ndarray:
    """Counts of the levels of P instances: [P, S, D] -> int64 [S, D, LEVELS + 1]; every cell's counts sum to P."""
    instances, states, outputs = level.shape
    columns = np.arange(states * outputs) * (LEVELS + 1)
    counts = np.bincount((columns + level.reshape(instances, -1)).ravel(), minlength=states * outputs * (LEVELS + 1))
    return counts.reshape(states, outputs, LEVELS + 1)


def votes_evidence(counts: np.ndarray, reference: ArrayLike | None = None, components: tuple[int, ...] = ()) -> dict:
    """Votes [S, A] of the instances; `reference` [S]: the actions against which accuracy is counted. Of several `components` A is how many values these have in all, and references are [S, k]."""
    return {"kind": "votes", "counts": _whole(counts), "reference": None if reference is None else _whole(reference)} | _components(components)


def exact_evidence(counts: np.ndarray, reference: ArrayLike | None = None, components: tuple[int, ...] = ()) -> dict:
    """Votes [S, A] of all parts of a partition: none is sampled."""
    return votes_evidence(counts, reference, components) | {"kind": "exact"}


def scores_evidence(counts: np.ndarray, reference: ArrayLike | None = None, components: tuple[int, ...] = ()) -> dict:
    """Histogram [S, A, LEVELS + 1] of the levels in [0, 1] of the instances' probability scores."""
    return {"kind": "scores", "histogram": _whole(counts), "reference": None if reference is None else _whole(reference)} | _components(components)


def _components(components: tuple[int, ...]) -> dict:
    return {"components": _whole(components)} if components else {}


def continuous_evidence(counts: np.ndarray, low, high) -> dict:
    """Histogram [S, d, LEVELS + 1] of the levels in [low, high] (each [d], public) of the instances' actions."""
    return {"kind": "continuous", "histogram": _whole(counts), "low": np.asarray(low, dtype=float).tolist(), "high": np.asarray(high, dtype=float).tolist()}


def _check_features(features) -> None:
    if not isinstance(features, dict) or set(features) - {"history", "keys", "mask", "steps", "name"} != {"source", "card", "encoder"} or features["source"] not in tuple(FEATURES):
        raise MucdError(f"features {_shown(features)} must have source (one of {', '.join(FEATURES)}), card and encoder")
    if "history" in features and not (type(features["history"]) is int and 2 <= features["history"] <= MOST_COUNTS and features["source"] == "raw"):
        raise MucdError(f"history {_shown(features['history'])} of the features must be a whole number of raw observations, at least 2, or left out")
    if "steps" in features and not (type(features["steps"]) is int and 1 <= features["steps"] <= MOST_COUNTS and features["source"] == "raw" and "history" not in features):
        raise MucdError(f"steps {_shown(features['steps'])} of the features must be a whole number of recalled ones, at least 1, of raw observations without a history, or left out")
    if "keys" in features and not (isinstance(features["keys"], list) and 0 < len(features["keys"]) <= MOST_KEYS and all(isinstance(key, str) and NAME.fullmatch(key) for key in features["keys"]) and len(set(features["keys"])) == len(features["keys"])):
        raise MucdError(f"keys {_shown(features['keys'])} of the features must be names of parts of an observation, each given once, or left out")
    if ("name" in features) != (features["source"] in ("plug-in", "shipped")) or "name" in features and not (isinstance(features["name"], str) and NAME.fullmatch(features["name"])):
        raise MucdError(f"name {_shown(features.get('name'))} of the features must be theirs where the source is a plug-in or the package, else left out")
    if "mask" in features and not (features["mask"] is True and features["source"] == "raw"):
        raise MucdError(f"mask {_shown(features['mask'])} of the features must be true, of raw observations, or left out")
    card, encoder = features["card"], features["encoder"]
    if not (isinstance(card, str) and NAME.fullmatch(card)):
        raise MucdError(f"card {_shown(card)} of the features must be the id of an environment")
    if (features["source"] in ("encoder", "plug-in", "shipped")) != (encoder is not None) or encoder is not None and not (isinstance(encoder, str) and HASH.fullmatch(encoder)):
        raise MucdError(f"encoder {_shown(encoder)} of the features must be a SHA-256 where the source is an encoder, a plug-in or the package, else null")


def neighbours_evidence(votes: np.ndarray, actions: int, reference: ArrayLike | None = None) -> dict:
    """Votes [S, L] of the nearest units at every state, nearest first, among so many actions: of at most 36, each state's as a text of one sign for each, which are a fraction of the bytes."""
    rows = np.asarray(votes)
    return {"kind": "neighbours", "votes": _whole(rows) if actions > len(SIGNS) else [row.tobytes().decode() for row in _SIGN_BYTES[rows]], "actions": int(actions), "reference": None if reference is None else _whole(reference)}


def neighbour_votes(evidence: dict) -> np.ndarray:
    """Votes [S, L] of checked evidence, or of what may become such. Raises MucdError where they are none."""
    rows = evidence["votes"]
    if not isinstance(rows, list) or not rows or not isinstance(rows[0], str):
        return checked_array("votes", rows, 2)
    if not all(isinstance(row, str) and row.isascii() and len(row) == len(rows[0]) for row in rows) or not rows[0]:
        raise MucdError("votes must be texts of one sign for each unit, all equally long and not empty")
    votes = _VALUE_OF_BYTE[np.frombuffer("".join(rows).encode(), np.uint8)]
    if votes.min() < 0:
        raise MucdError(f"votes must be signs of {SIGNS}, which count from 0")
    return votes.reshape(len(rows), -1)


def instances_of(inputs: dict) -> int:
    """P: as many as there are returns, or as is said where there are none. 0 for neighbours that play no episodes."""
    return inputs["instances"] if "instances" in inputs else len(inputs["returns"])


def _whole(values) -> list:
    values = np.asarray(values)
    if not np.array_equal(values, np.rint(values)):
        raise MucdError(f"counts {values[values != np.rint(values)].flat[0]} must be whole numbers")
    return values.astype(int).tolist()


def check_inputs(inputs: dict) -> None:
    """Inputs may come from a file that anybody has written: exactly the known keys, and whole or real numbers where they belong.

    Raises:
        MucdError: naming the value and what it must be.
    """
    if not isinstance(inputs, dict) or not KEYS - OPTIONAL <= set(inputs) <= KEYS:
        raise MucdError(f"inputs must have exactly the keys {', '.join(sorted(KEYS))}")
    mechanism = from_values(inputs["mechanism"])
    if inputs["trainer"] is not None:
        outside.from_values(inputs["trainer"])
        if mechanism.kind in (*WITH_NOISE, Neighbours.kind):
            raise MucdError("the mechanism of a trainer from outside is a bag or a partition")
        if any(isinstance(part, dict) and part.get("kind") == "exact" for part in (inputs["actions"], inputs.get("voted"))):
            raise MucdError("exact votes are those of policies that are trained once for each part, without chance: a trainer from outside trains every instance for itself")
    if not (inputs["goal"] is None or isinstance(inputs["goal"], str)):
        raise MucdError(f"goal {_shown(inputs['goal'])} must be null or text")
    if not (inputs["condition"] is None or inputs["condition"] in CONDITIONS):
        raise MucdError(f"condition {_shown(inputs['condition'])} must be null or one of {', '.join(CONDITIONS)}")
    if "features" in inputs:
        _check_features(inputs["features"])
    checked_reals("eta and discount", [inputs["eta"], inputs["discount"]])
    checked_wholes("units, radius cap and rollouts", [inputs["units"], inputs["radius_cap"], inputs["rollouts"]])
    if not 1 <= inputs["radius_cap"] <= inputs["units"]:
        raise MucdError(f"radius cap {inputs['radius_cap']} is outside 1..{inputs['units']}, the number of units of the dataset")
    if not isinstance(inputs["clipped"], bool):
        raise MucdError(f"clipped {inputs['clipped']!r} must be true or false")
    if not 0 < inputs["discount"] <= 1:
        raise MucdError(f"discount {inputs['discount']} is outside (0, 1]")
    if inputs["rollouts"]:
        _check_returns(inputs)
    else:
        _check_without_returns(inputs, mechanism)
    if isinstance(mechanism, Neighbours) != ("path_radii" in inputs):
        raise MucdError(f"path radii belong to the mechanism {Neighbours.kind} and to no other")
    if isinstance(mechanism, Neighbours):
        _check_neighbours(inputs, mechanism)
    elif inputs["actions"] is not None:
        _check_actions(inputs["actions"], instances_of(inputs), inputs["mechanism"])
        if "components" in inputs["actions"] and "voted" in inputs:
            raise MucdError("the return of the voted policy is that of single discrete actions: with components voted must be left out")
    if "declared" in inputs:
        _check_declared(inputs["declared"], inputs["actions"])
        if inputs.get("features", {}).get("card", NO_ENVIRONMENT) != NO_ENVIRONMENT:
            raise MucdError(f"card {_shown(inputs['features']['card'])} of the features is an environment's, and declared is what stands where there is none: leave one of them out")
        if inputs["rollouts"] and "evaluator" not in inputs:
            raise MucdError("without an environment there are no rollouts, but with an evaluator, whose scores they are")
    elif inputs.get("features", {}).get("card") == NO_ENVIRONMENT or isinstance(mechanism, Neighbours) and not inputs["rollouts"]:
        raise MucdError("without an environment there must be what D and every D' declare, and declared is left out")
    if "evaluator" in inputs:
        _check_evaluator(inputs, isinstance(mechanism, Neighbours))


def _check_returns(inputs: dict) -> None:
    checked_reals("return range", inputs["return_range"], 2)
    checked_reals("returns", inputs["returns"])
    low, high = inputs["return_range"]
    _check_range("return range", low, high)
    if not inputs["returns"]:
        raise MucdError("there are no returns: train at least one instance first")
    for value in inputs["returns"]:
        if not low <= value <= high:
            raise MucdError(f"return {value} is outside the declared range [{low}, {high}]: declare the true bounds of every possible return")
    if "instances" in inputs:
        raise MucdError("instances are as many as there are returns: they are told where there are none")


def _check_without_returns(inputs: dict, mechanism) -> None:
    """Of policies that played nothing, what they do at given states is all that there is."""
    if (inputs["returns"], inputs["return_range"], inputs["discount"], inputs["clipped"]) != ([], None, 1, False) or "voted" in inputs:
        raise MucdError("rollouts 0 leave nothing to certify of returns: their list must be empty, their range null, the discount 1, clipped false, and voted left out")
    if inputs["actions"] is None:
        raise MucdError("without returns a certificate is about actions at given states: it must have them")
    if isinstance(mechanism, Neighbours) == ("instances" in inputs):
        raise MucdError("without returns there must be the number of instances, and for neighbours none")
    if "instances" in inputs:
        checked_wholes("instances", [inputs["instances"]])
        if not 1 <= inputs["instances"] <= MOST_INSTANCES:
            raise MucdError(f"instances {inputs['instances']} must be from 1 to {MOST_INSTANCES:,}")


def _check_evaluator(inputs: dict, neighbours: bool) -> None:
    found = evaluator.from_values(inputs["evaluator"])
    if not inputs["rollouts"] or inputs["return_range"] != [found.low, found.high]:
        raise MucdError("an evaluator gives scores, whose range is the return range")
    if inputs["discount"] != 1 or inputs["clipped"] or "voted" in inputs or neighbours:
        raise MucdError("scores of an evaluator are neither discounted nor clipped, and neither of the voted policy nor of neighbours")


def _check_declared(declared, actions: dict | None) -> None:
    """`actions` are checked already."""
    if not isinstance(declared, dict) or set(declared) - {"components"} != DECLARED_KEYS:
        raise MucdError(f"declared must have exactly the keys {', '.join(sorted(DECLARED_KEYS))}")
    shape = declared["observation_shape"]
    if not isinstance(shape, list) or len(shape) > 8 or 0 in shape:
        raise MucdError("declared observation shape must be a list of at most 8 whole numbers, at least 1")
    checked_wholes("declared observation shape, actions and dimensions", [*shape, declared["actions"], declared["dimensions"]])
    if not isinstance(declared["sha256"], str) or not HASH.fullmatch(declared["sha256"]):
        raise MucdError(f"declared {_shown(declared['sha256'])} is no SHA-256")
    if "components" in declared and sum(_checked_components(declared["components"])) != declared["actions"]:
        raise MucdError(f"declared actions {declared['actions']} must be how many values the components have in all")
    if min(declared["actions"], declared["dimensions"]) or not max(declared["actions"], declared["dimensions"]):
        raise MucdError("declared actions and dimensions: one of them must be 0, the other at least 1")
    if actions is None:
        return
    if actions.get("components") != declared.get("components"):
        raise MucdError("declared components are not those that are counted")
    found = actions["actions"] if actions["kind"] == "neighbours" else len(actions["counts" if actions["kind"] in VOTES else "histogram"][0])
    if found != declared["dimensions" if actions["kind"] == "continuous" else "actions"]:
        raise MucdError(f"declared are {declared['actions']} actions and {declared['dimensions']} dimensions, but counted are {found}")


def _check_neighbours(inputs: dict, mechanism: Neighbours) -> None:
    actions, path = inputs["actions"], inputs["path_radii"]
    mechanism.check(inputs["units"])
    if (inputs["accountant"], inputs["looks"], inputs["goal"]) != ("tradeoff", "fixed", None):
        raise MucdError("neighbours leave nothing to chance: their accountant is tradeoff, their looks are fixed, and there is no goal")
    if not isinstance(path, list) or len(path) != len(inputs["returns"]):
        raise MucdError("path radii must be one whole number for each return")
    checked_wholes("path radii", path)
    most = mechanism.most_radius(inputs["units"], inputs["threat"])
    if path and max(path) > most:
        raise MucdError(f"path radius {max(path)} is above {most}, the most that {mechanism.neighbours} neighbours withstand")
    if not isinstance(actions, dict) or actions.get("kind") != "neighbours" or set(actions) != ACTION_KEYS["neighbours"]:
        raise MucdError(f"actions of neighbours must have the keys {', '.join(sorted(ACTION_KEYS['neighbours']))}")
    votes, most = neighbour_votes(actions), min(inputs["units"], mechanism.recorded)
    checked_wholes("actions", [actions["actions"]])
    if not 2 <= actions["actions"] <= MOST_COUNTS // mechanism.neighbours:
        raise MucdError(f"actions {actions['actions']} must be from 2 to {MOST_COUNTS // mechanism.neighbours} with {mechanism.neighbours} neighbours")
    if votes.shape[1] > most or votes.max() >= actions["actions"]:
        raise MucdError(f"votes must be those of at most {most} units at each state, each an action below {actions['actions']}")
    _check_reference(actions["reference"], (len(votes), actions["actions"]))


def _check_actions(actions, instances: int, mechanism: dict) -> None:
    kinds = ACTION_KEYS.keys() - {"neighbours"}
    if not isinstance(actions, dict) or not isinstance(actions.get("kind"), str) or actions["kind"] not in kinds or set(actions) - ({"components"} if actions["kind"] in OF_COMPONENTS else set()) != ACTION_KEYS[actions["kind"]]:
        raise MucdError(f"actions must be null, or votes, exact votes, scores or a continuous histogram with the keys of its kind ({', '.join(ACTION_KEYS)})")
    kind = actions["kind"]
    name = "counts" if kind in VOTES else "histogram"
    counts = checked_array(name, actions[name], 2 if kind in VOTES else 3)
    components = _checked_components(actions["components"]) if "components" in actions else ()
    if kind != "continuous" and counts.shape[1] < 2:
        raise MucdError(f"{name} of shape {counts.shape} must hold at least 2 actions per state")
    if components and sum(components) != counts.shape[1]:
        raise MucdError(f"{name} of shape {counts.shape} must hold the {sum(components)} values of all components")
    if np.any(counts > LARGEST_COUNT):
        raise MucdError(f"{name} must hold no number above {LARGEST_COUNT:,}")
    if kind == "exact":
        if any(np.any(part.sum(axis=1) != mechanism.get("parts")) for part in _parts(counts, components)):
            raise MucdError(f"exact counts must be of all parts of a partition, so every state's{' and component' + chr(39) + 's' if components else ''} sum to their number, {mechanism.get('parts')}")
        instances = mechanism["parts"]
    if kind not in VOTES and counts.shape[2] != LEVELS + 1:
        raise MucdError(f"histogram of shape {counts.shape} must have {LEVELS + 1} levels")
    for part in _parts(counts, components) if kind in VOTES else [counts]:
        wrong = part.sum(axis=-1) != instances
        if wrong.any():
            many = part.sum(axis=-1)[wrong][0]
            raise MucdError(f"{name}: {counted(many, 'instance')} counted but {counted(instances, 'return')}: evidence must come from the same instances")
    if kind == "continuous":
        for end in ("low", "high"):
            checked_reals(end, actions[end], counts.shape[1])
        for low, high in zip(actions["low"], actions["high"], strict=True):
            _check_range("action range", low, high)
    else:
        _check_reference(actions["reference"], counts.shape[:2], components)


def _checked_components(components) -> tuple[int, ...]:
    """From anybody."""
    components = tuple(checked_array("components", components, 1).tolist())
    if min(components) < 1 or not 2 <= sum(components) <= MOST_VALUES:
        raise MucdError(f"components must have at least one value each, and from 2 to {MOST_VALUES:,} in all")
    return components


def _parts(counts: np.ndarray, components: tuple[int, ...]) -> list[np.ndarray]:
    """Of which each is counted by itself."""
    return blocks(counts, components, 1) if components else [counts]


def _check_reference(reference, shape: tuple[int, int], components: tuple[int, ...] = ()) -> None:
    if reference is None:
        return
    states, actions = shape
    if components:
        found = checked_array("reference", reference, 2)
        if found.shape != (states, len(components)) or np.any(found >= components):
            raise MucdError(f"reference must hold one value of each of {len(components)} components, below how many it has, for each of the {states} states")
        return
    reference = checked_array("reference", reference, 1)
    if reference.shape != (states,) or np.any(reference >= actions):
        raise MucdError(f"reference must hold one action below {actions} for each of the {states} states")


def _check_range(name: str, low: float, high: float) -> None:
    if not low < high:
        raise MucdError(f"{name} [{low}, {high}] must begin below its end")
    largest = max(abs(low), abs(high))
    if largest > LARGEST_VALUE or high - low < LEAST_WIDTH * largest:
        raise MucdError(f"{name} [{low}, {high}] must lie within +-{LARGEST_VALUE:g} and be wider than {LEAST_WIDTH:g} of its ends: shift or rescale it")


def checked_array(name: str, values, dimensions: int) -> np.ndarray:
    """Nested lists of whole numbers, all rows equally long, as an array."""
    flat, shape = [values], []
    for _ in range(dimensions):
        lengths = {len(part) if isinstance(part, list) else -1 for part in flat}
        if len(lengths) != 1 or min(lengths) < 1:
            raise MucdError(f"{name} must be lists of whole numbers, {dimensions} deep, equally long and not empty")
        shape.append(lengths.pop())
        flat = [value for part in flat for value in part]
    checked_wholes(name, flat)
    return np.array(flat, dtype=np.int64).reshape(shape)


def _shown(value) -> str:
    """The beginning of a value that may be of any length."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def checked_wholes(name: str, values: list) -> None:
    for value in values:
        if type(value) is not int or not 0 <= value <= LARGEST:
            raise MucdError(f"{name}: {_shown(value)} must be a whole number from 0 to 2^53")


def checked_reals(name: str, values, length: int | None = None) -> None:
    if not isinstance(values, list) or length not in (None, len(values)):
        raise MucdError(f"{name} must be a list of {'' if length is None else length} numbers".replace("  ", " "))
    for value in values:
        if type(value) not in (int, float) or not abs(value) <= LARGEST_REAL:
            raise MucdError(f"{name}: {_shown(value)} must be a finite number")
