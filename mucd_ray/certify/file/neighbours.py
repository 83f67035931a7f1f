"""Numbers and words of a certificate of nearest neighbours: a policy without chance, so that nothing in it has a confidence level."""

import math

import numpy as np

from mucd_ray.certify.confidence.proportions import check_eta
from mucd_ray.certify.file.evidence import neighbour_votes
from mucd_ray.certify.file.voted import voted_claim, voted_results
from mucd_ray.certify.guarantees import READINGS, THREATS
from mucd_ray.certify.policy import SHARES_KEPT
from mucd_ray.certify.radius import named_radii
from mucd_ray.certify.rounding import confidence_percent, exactly, round_down, share, tenths_down
from mucd_ray.errors import MucdError
from mucd_ray.mechanism.neighbours import Neighbours
from mucd_ray.mechanism.units import UNITS
from mucd_ray.mechanism.work import spend
from mucd_ray.words import counted

QUANTILES = (0.1, 0.25, 0.5)
# Components whose numbers of values are listed one by one.
MOST_LISTED = 12
# States at a time: of each all counts of votes are in memory together.
COUNTS_AT_A_TIME = 1 << 19
EXACT = "exact: whole numbers, without any chance; a bound holds for every D', and an attacker who may place units as near to a state as he likes attains the radii of actions"


def neighbour_results(inputs: dict, mechanism: Neighbours) -> dict:
    """What `compute_results` gives for other mechanisms; its inputs are checked already."""
    if "rule" in inputs:
        raise MucdError("vote rules are those of a partition, not of neighbours")
    cap = min(inputs["radius_cap"], mechanism.neighbours)
    policy = _policy(inputs, cap) if inputs["rollouts"] else None
    voted = {"voted": voted_results(inputs, None, check_eta(inputs["eta"]), cap)} if inputs.get("voted") is not None else {}
    return voted | {
        "sound": True,
        "instances": len(inputs["returns"]),
        "eta": 0.0,
        "signal_budget": None,
        "policy": policy,
        "action": _action(inputs, mechanism, cap),
        "goal": None,
        "accounting": {"radius": max(1, policy["keeps"]["0.5"]["radius"] if policy else 1), "discretisation_error": 0.0, "errs": EXACT, "splits": None},
    }


def _policy(inputs: dict, cap: int) -> dict:
    """Of the recorded episodes: one whose actions are all certified at r goes the same way on D'; every other one counts as the least (or most) possible return."""
    returns, radii, (low, high), units = np.array(inputs["returns"], dtype=float), np.minimum(inputs["path_radii"], cap), inputs["return_range"], inputs["units"]
    mean = float(returns.mean())

    def kept(radius: int, otherwise: float) -> np.ndarray:
        return np.where(radii >= radius, returns, otherwise)

    spend(len(returns) * (int(radii.max()) + 2))
    bounds = [float(kept(radius, low).mean()) for radius in range(int(radii.max()) + 1)]
    keeps = {}
    for wanted in SHARES_KEPT:
        radius = max((r for r, bound in enumerate(bounds) if mean > low and bound >= low + wanted * (mean - low)), default=-1)
        keeps[f"{wanted:g}"] = {"radius": radius, "fraction": max(radius, 0) / units, "bound": bounds[max(radius, 0)]}
    curve = named_radii(max(1, len(bounds) - 1), [entry["radius"] for entry in keeps.values()], units, cap)
    lowest = [np.sort(kept(int(radius), low)) for radius in curve]
    return {
        "unpoisoned_mean": mean,
        "unpoisoned_standard_error": float(returns.std(ddof=1) / math.sqrt(len(returns))) if len(returns) > 1 else None,
        "unpoisoned_mean_bound": {},
        "keeps": keeps,
        "curve": {
            "radius": curve.tolist(),
            "fraction": (curve / units).tolist(),
            "bound": [float(values.mean()) for values in lowest],
            "ceiling": [float(kept(int(radius), high).mean()) for radius in curve],
            "quantiles": {f"{level:g}": [float(values[int(level * len(values))]) for values in lowest] for level in QUANTILES},
            "bound_by_route": {},
        },
    }


def _action(inputs: dict, mechanism: Neighbours, cap: int) -> dict:
    evidence = inputs["actions"]
    votes, actions, reference = neighbour_votes(evidence), evidence["actions"], evidence["reference"]
    # All of it is asked for before any of it is done.
    spend(16 * len(votes) * mechanism.neighbours * actions**2)
    step = max(1, COUNTS_AT_A_TIME // (2 * mechanism.neighbours * actions))
    parts = [votes[start : start + step] for start in range(0, len(votes), step)]
    action = np.concatenate([mechanism.actions(part, actions) for part in parts])
    sizes = np.concatenate([mechanism.sizes(part, actions, inputs["threat"]) for part in parts])
    others = np.where(np.arange(actions) == action[:, None], mechanism.neighbours + 1, sizes)
    radius = np.minimum(others.min(axis=1) - 1, cap)
    certified = radius[radius >= 1]
    curve = named_radii(int(max(radius.max(), 1)), [], inputs["units"], cap)
    agrees = None if reference is None else action == np.array(reference)
    scope = {
        "radius": radius.tolist(),
        "certified_share": len(certified) / len(radius),
        "mean_radius": float(certified.mean()) if len(certified) else None,
        "median_radius": float(np.median(certified)) if len(certified) else None,
        "max_radius": int(certified.max()) if len(certified) else None,
        "curve": {
            "radius": curve.tolist(),
            "fraction": (curve / inputs["units"]).tolist(),
            "stability_ratio": [float(np.mean(radius >= r)) for r in curve],
            "certified_accuracy": None if agrees is None else [float(np.mean((radius >= r) & agrees)) for r in curve],
        },
    }
    # What is certain of each state is certain of all.
    return {
        "kind": "neighbours", "states": len(votes), "action": action.tolist(), "agreement": None if agrees is None else float(agrees.mean()), "sizes": sizes.tolist(),
        "per_state": scope, "family_wise": scope,
    }


def neighbour_claim(inputs: dict, results: dict) -> list[str]:
    """What `claim_sentences` gives for other mechanisms."""
    mechanism, units = inputs["mechanism"], inputs["units"]
    kind, unit = UNITS[mechanism["unit"]], mechanism["unit"]
    part, states = results["action"]["per_state"], results["action"]["states"]
    votes = "its action" if unit == "transition" else f"the action of that of its transitions which is nearest (each {unit} has one vote)"
    sentences = [
        f"What may change: compared are the policy of the dataset D of this certificate ({counted(units, unit)}) and the policy of any dataset D' that "
        f"{THREATS[inputs['threat']].format(units=kind)}; {READINGS[inputs['threat']].format(units=kind)}.",
        f"How it withstands: nothing is trained. At a state the {mechanism['neighbours']} nearest {kind} vote, each for {votes}; the action with most votes is taken, the lowest of several. "
        "A changed unit moves one vote and shifts which units are the nearest by one.",
        f"Actions: at {share(sum(radius >= 1 for radius in part['radius']), states)} of {counted(states, 'state')} the action stays the same up to that state's radius, which is at least 1 (median "
        f"{_radius(part['median_radius'])}, largest {_radius(part['max_radius'])}); for every other action the least number of changed {kind} that could bring it about is listed. Radii are searched up to "
        f"{mechanism['neighbours']}.",
    ]
    if "declared" in inputs:
        sentences[1:1] = declared_claim(inputs, results)
    if results["policy"] is None:
        return [*sentences, "With which probability: none of this is a matter of chance, so there is no confidence level. The states may have been chosen in any way, by looking at results, too."]
    (floor, most), what = inputs["return_range"], ("clipped " if inputs["clipped"] else "") + ("return" if inputs["discount"] == 1 else f"return discounted by {exactly(inputs['discount'])} per step")
    sentences.append(_returns_claim(inputs, results, what))
    if "voted" in results:
        sentences.append(voted_claim(inputs, results["voted"], what))
    if inputs["clipped"]:
        sentences.append(f"Clipped means: an episode's return below {exactly(floor)} counts as {exactly(floor)}, and one above {exactly(most)} as {exactly(most)}.")
    sure = "no confidence level. The states and the episodes may have been chosen in any way, by looking at results, too; nothing is said about others"
    if "voted" not in results:
        return [*sentences, f"With which probability: none of this is a matter of chance, so there is {sure}, nor about the mean return over all seeds."]
    return [
        *sentences,
        "With which probability: the bounds on the voted policy's expected return, for all listed r together, hold with probability at least "
        f"{confidence_percent(inputs['eta'], 1)} %, over the random choice of its episodes' seeds. None of the rest is a matter of chance, so it has {sure}.",
    ]


def _returns_claim(inputs: dict, results: dict, what: str) -> str:
    policy, units, (floor, most) = results["policy"], inputs["units"], inputs["return_range"]
    half, episodes = policy["keeps"]["0.5"], counted(results["instances"], "recorded episode")
    returns = f"Returns: in {episodes}, each with a seed of its own, the policy of D earns a mean {what} of {round_down(policy['unpoisoned_mean'], width=most - floor)}. "
    if half["radius"] < 1:
        return returns + f"No r keeps half of its height above the least possible return {exactly(floor)}: in too many episodes some action is not certified."
    return returns + (
        f"For every D' with r = {half['radius']} ({share(half['radius'], units)} of D) its policy earns in the same episodes a mean of at least {round_down(half['bound'], width=most - floor)}: an "
        f"episode all of whose actions are certified at r is the same on D', and every other one counts as {exactly(floor)}. The same is listed for other r."
    )


def declared_claim(inputs: dict, results: dict) -> list[str]:
    """What stands in the place of an environment, for every mechanism."""
    declared = inputs["declared"]
    actions = counted(declared["actions"], "discrete action") if declared["actions"] else f"actions of {counted(declared['dimensions'], 'real number')}"
    if components := declared.get("components"):
        values = ", ".join(map(str, components)) if len(components) <= MOST_LISTED else f"{min(components)} to {max(components)}"
        actions = f"actions of {counted(len(components), 'component')}, of {values} values"
    shape = " x ".join(map(str, declared["observation_shape"])) or "one number"
    sentence = (
        f"Declared: there is no environment. D and every D' declare observations of shape {shape} and {actions}, and these declarations are public; of a dataset that declares others nothing is said "
        f"(SHA-256 of the declared spaces: {declared['sha256']})."
    )
    return [sentence] if results["action"] is None else [sentence, states_claim(results)]


def states_claim(results: dict) -> str:
    """Where actions alone are certified."""
    return (
        f"At which states: at {counted(results['action']['states'], 'fixed state')} that came with the question and not from D, so that no attacker chose where it is asked. Nothing is said of other states, "
        "nor of what a sequence of actions leads to."
    )


def _radius(value) -> str:
    return "none" if value is None else tenths_down(value)
