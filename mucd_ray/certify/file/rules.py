"""Actions of a vote rule along its own episodes, in a certificate: what every policy of a partition voted, strictly checked, and the numbers and words that follow from it."""

import numpy as np

from mucd_ray.certify.file.evidence import checked_array, checked_reals, checked_wholes
from mucd_ray.certify.radius import named_radii
from mucd_ray.certify.rounding import exactly, round_down, share, tenths_down
from mucd_ray.certify.rules import RULES, counts_of, reach_of
from mucd_ray.errors import MucdError
from mucd_ray.mechanism.kinds import from_values
from mucd_ray.mechanism.partition import Partition
from mucd_ray.mechanism.units import UNITS
from mucd_ray.mechanism.work import spend
from mucd_ray.words import counted

KEYS = {"name", "window", "never", "actions", "episodes"}
EPISODE_KEYS = {"seed", "return", "votes"}
MOST_ACTIONS = 1 << 10
# Policies times actions: counts that are held for one step.
MOST_COUNTS = 1 << 22
DETERMINISTIC = "An episode of the environment goes the same way again if its seed and the actions are the same."


def checked_episode(episode, name: str, actions: int, policies: int) -> tuple[np.ndarray, np.ndarray | None]:
    """(votes [T, u], preferences [T, A, A] or None) of an episode from anybody. Raises MucdError where it is none."""
    scored = RULES[name].scored
    if not isinstance(episode, dict) or set(episode) != EPISODE_KEYS | ({"preferences"} if scored else set()):
        raise MucdError(f"an episode of a vote rule has exactly the keys {', '.join(sorted(EPISODE_KEYS))}" + (" and preferences" if scored else ""))
    checked_wholes("rule seed", [episode["seed"]])
    checked_reals("rule return", [episode["return"]])
    votes = checked_array("rule votes", episode["votes"], 2)
    if votes.shape[1] != policies or votes.max() >= actions:
        raise MucdError(f"rule votes must be those of {policies} policies at every step, each an action below {actions}")
    if not scored:
        return votes, None
    preferences = checked_array("rule preferences", episode["preferences"], 3)
    spend(4 * preferences.size)
    apart = ~np.eye(actions, dtype=bool)
    # Who votes for an action prefers it to all others.
    if (
        preferences.shape != (len(votes), actions, actions)
        or ((preferences + preferences.transpose(0, 2, 1))[:, apart] != policies).any()
        or preferences[:, ~apart].any()
        or (np.where(apart, preferences, policies) < counts_of(votes, actions)[:, :, None]).any()
    ):
        raise MucdError(f"rule preferences must say at every step how many of {policies} policies prefer each action to each other one, no fewer than vote for it")
    return votes, preferences


def rule_results(inputs: dict, cap: int) -> dict:
    """Every number about the rule's actions, from `inputs` alone. Raises MucdError for what is no such evidence."""
    evidence, mechanism = inputs["rule"], from_values(inputs["mechanism"])
    if not isinstance(mechanism, Partition) or inputs["trainer"] is not None:
        raise MucdError("vote rules are those of a partition whose parts are trained once each, by the package's own learners")
    if not isinstance(evidence, dict) or set(evidence) != KEYS or not isinstance(evidence["name"], str) or evidence["name"] not in RULES:
        raise MucdError(f"rule must have exactly the keys {', '.join(sorted(KEYS))}, and a name among {', '.join(RULES)}")
    rule, actions, window, never = RULES[evidence["name"]], evidence["actions"], evidence["window"], evidence["never"]
    checked_wholes("rule actions, window and never", [actions, *(value for value in (window, never) if value is not None)])
    if not 2 <= actions <= MOST_ACTIONS or actions * mechanism.parts > MOST_COUNTS:
        raise MucdError(f"rule actions {actions} must be from 2 to {MOST_ACTIONS}, and times {mechanism.parts} policies at most {MOST_COUNTS:,}")
    if (window is not None) != rule.windowed or window == 0 or never is not None and never >= actions:
        raise MucdError(f"rule window {window} must be at least 1 where the past counts, else null, and never {never} null or below {actions}")
    if not isinstance(evidence["episodes"], list) or not evidence["episodes"] or not inputs["rollouts"] or "evaluator" in inputs:
        raise MucdError("rule episodes must be a list, not empty, of an environment that is played")
    _check_beside(evidence, inputs["actions"])
    low, high = inputs["return_range"]
    each = reach_of(rule, mechanism, inputs["threat"])
    returns, radii, kept_out, reached = [], [], [], mechanism.reached()
    for episode in evidence["episodes"]:
        votes, preferences = checked_episode(episode, evidence["name"], actions, mechanism.parts)
        if not low <= episode["return"] <= high:
            raise MucdError(f"rule return {episode['return']} is outside the declared range [{low}, {high}]")
        chosen, sizes = rule.decide(votes, preferences, actions, window, reached)
        others = np.where(np.arange(actions) == chosen[:, None], np.iinfo(np.int64).max, sizes)
        returns.append(float(episode["return"]))
        radii.append(np.minimum((others.min(1) - 1) // each, cap))
        if never is not None:
            # -1 where the policy of D itself takes it.
            kept_out.append(np.minimum((sizes[:, never] - 1) // each, cap))
    of_states, of_episodes, earned = np.concatenate(radii), np.array([radius.min() for radius in radii]), np.array(returns)
    curve = named_radii(int(max([1, of_states.max(), *(kept.max() for kept in kept_out)])), [], inputs["units"], cap)
    spend(4 * len(curve) * len(of_states))
    certified = of_states[of_states >= 1]
    found: dict = {
        "name": evidence["name"],
        "episodes": len(returns),
        "states": len(of_states),
        "unpoisoned_mean": float(earned.mean()),
        "certified_share": len(certified) / len(of_states),
        "median_radius": float(np.median(certified)) if len(certified) else None,
        "max_radius": int(certified.max()) if len(certified) else None,
        "radius": [radius.tolist() for radius in radii],
        "curve": {
            "radius": curve.tolist(),
            "fraction": (curve / inputs["units"]).tolist(),
            "stability_ratio": [float(np.mean(of_states >= r)) for r in curve],
            "unchanged": [float(np.mean(of_episodes >= r)) for r in curve],
            "bound": [float(np.where(of_episodes >= r, earned, low).mean()) for r in curve],
        },
        "never": None,
    }
    if never is not None:
        at_states, of_whole = np.concatenate(kept_out), np.array([kept.min() for kept in kept_out])
        found["never"] = {
            "radius": [kept.tolist() for kept in kept_out],
            "episode_radius": of_whole.tolist(),
            "share": [float(np.mean(at_states >= r)) for r in curve],
            "episode_share": [float(np.mean(of_whole >= r)) for r in curve],
        }
    return found


def _check_beside(evidence: dict, beside: dict | None) -> None:
    """Raise MucdError where a rule is about other actions than the rest of the certificate, or counts an episode twice."""
    seeds = [episode["seed"] for episode in evidence["episodes"] if isinstance(episode, dict) and "seed" in episode]
    if any(type(seed) is not int for seed in seeds) or len(set(seeds)) < len(seeds):
        raise MucdError("rule episodes must have seeds of their own, whole numbers: an episode with the same seed is the same episode")
    if beside is not None and (beside["kind"] == "continuous" or "components" in beside or len(beside["histogram" if beside["kind"] == "scores" else "counts"][0]) != evidence["actions"]):
        raise MucdError(f"rule actions {evidence['actions']} must be those of the actions in the same certificate, which are voted on as one")


def rule_claim(inputs: dict, results: dict) -> list[str]:
    """The results of `rule_results` in words."""
    evidence, units, (low, high) = inputs["rule"], UNITS[inputs["mechanism"]["unit"]], inputs["return_range"]
    curve, episodes, states = results["curve"], results["episodes"], counted(results["states"], "state")
    median = "none" if results["median_radius"] is None else tenths_down(results["median_radius"])
    last = max((k for k, part in enumerate(curve["unchanged"]) if part >= 0.5), default=0)
    radius, least = curve["radius"][last], [min(part) for part in results["radius"]]
    sentences = [
        f"Vote rule {evidence['name']}: the policy takes {RULES[evidence['name']].words.format(window=evidence['window'])}, each trained on its own part. It was followed in {counted(episodes, 'episode')} with the recorded seeds. "
        f"At {share(sum(r >= 1 for part in results['radius'] for r in part), results['states'])} of {states} on its way its action is the same for every D' within that state's radius, which is at least 1 (median {median}, "
        f"largest {results['max_radius'] or 'none'}), if the episode has come there in the same way. So an episode all of whose states are certified at r is the same on D'. For every D' with r = {radius}, "
        f"{share(sum(r >= radius for r in least), episodes)} of these episodes are, and with every other one counted as {exactly(low)} their mean return is at least {round_down(curve['bound'][last], width=high - low)} "
        f"(on D {round_down(results['unpoisoned_mean'], width=high - low)}). All votes are known: this is certain. Nothing is said of other episodes."
    ]
    if evidence["never"] is None:
        return sentences
    kept = results["never"]
    one = share(sum(r >= 1 for part in kept["radius"] for r in part), results["states"])
    whole = share(sum(r >= 1 for r in kept["episode_radius"]), episodes)
    return [
        *sentences,
        f"Forbidden action {evidence['never']} (counted from 0): at {one} of {states} on the way of these episodes no D' within that state's listed number of changed {units}, which is at least 1, makes the policy take it there. In {whole} of the "
        f"episodes no action up to and including the first that D' changes is this one, for every D' within the episode's listed number of {units}, at least 1. What is done after an action has changed is not claimed here.",
    ]
