"""The claim in words: what may change, how much, what stays true, with which probability. Every claimed number is rounded to the safe side."""

import json
from fractions import Fraction

from mucd_ray.certify.confidence.looks import looks_up_to
from mucd_ray.certify.file.evidence import FEATURES, TUNED_ON_THIS_DATASET
from mucd_ray.certify.file.neighbours import declared_claim, neighbour_claim, states_claim
from mucd_ray.certify.file.rules import rule_claim
from mucd_ray.certify.file.voted import SURE, voted_claim
from mucd_ray.certify.guarantees import LARGEST_RADIUS, READINGS, THREATS
from mucd_ray.certify.rounding import confidence_percent, exactly, round_down, round_up, share, tenths_down
from mucd_ray.mechanism.kinds import WITH_NOISE
from mucd_ray.mechanism.neighbours import Neighbours
from mucd_ray.mechanism.units import UNITS
from mucd_ray.words import counted

SCOPES = {"per_state": "for each state by itself", "family_wise": "for all states together"}
CONDITIONS = {
    TUNED_ON_THIS_DATASET: "the learner and the mechanism were tuned on this very dataset, and nothing accounts for what tuning has seen. All that follows is claimed only on "
    "condition that tuning would have chosen the same constants on every D'",
}


def claim_sentences(inputs: dict, results: dict) -> list[str]:
    """The sentences of a certificate, from its inputs and results alone."""
    if inputs["mechanism"]["kind"] == Neighbours.kind:
        change, *others = neighbour_claim(inputs, results)
        return [change, *_features_of(inputs), *others]
    kind = UNITS[inputs["mechanism"]["unit"]]
    sentences = []
    if not results["sound"]:
        sentences.append("NOT SOUND: this certificate uses the published accounting rule, which is known to be wrong; it is for comparison only.")
    if inputs["condition"] is not None:
        sentences.append(f"CONDITIONAL: {CONDITIONS[inputs['condition']]}.")
    sentences.append(
        f"What may change: compared are training on the dataset D of this certificate ({counted(inputs['units'], inputs['mechanism']['unit'])}) and training on any dataset D' that "
        f"{THREATS[inputs['threat']].format(units=kind)}; {READINGS[inputs['threat']].format(units=kind)}. "
        "Training is the randomised mechanism recorded here, with randomness that the attacker does not know."
    )
    sentences += OF_UNITS.get(inputs["mechanism"]["unit"], [])
    sentences += _features_of(inputs)
    if "declared" in inputs:
        sentences += declared_claim(inputs, results)
    elif results["policy"] is None:
        sentences.append(states_claim(results))
    sentences += MECHANISMS[inputs["mechanism"]["kind"]](inputs["mechanism"], inputs["units"], kind, inputs["trainer"])
    if inputs["trainer"] is not None:
        sentences.append(_trainer(inputs["trainer"]))
    if "evaluator" in inputs:
        sentences.append(_evaluator(inputs["evaluator"], inputs["rollouts"]))
    if results["policy"] is not None:
        sentences += _policy(inputs, results, kind)
    if results["action"] is not None:
        sentences += ACTIONS[results["action"]["kind"]](results["action"])
    if "voted" in results:
        sentences.append(voted_claim(inputs, results["voted"], _what(inputs)))
    if "rule" in results:
        sentences += rule_claim(inputs, results["rule"])
    if inputs["mechanism"]["kind"] in WITH_NOISE and _largest(results) >= (limit := LARGEST_RADIUS[inputs["threat"]]):
        sentences.append(f"Radii were searched up to {limit}, the most that is accounted for: one of {limit} is a floor.")
    if inputs["clipped"]:
        low, high = inputs["return_range"]
        sentences.append(f"Clipped means: an episode's return below {exactly(low)} counts as {exactly(low)}, and one above {exactly(high)} as {exactly(high)}.")
    if results["goal"] is not None:
        sentences.append(_goal(inputs, results["goal"]))
    return [*sentences, *_confidence(inputs, results)]


def _features_of(inputs: dict) -> list[str]:
    # Without an environment there is no id that could be named.
    return [_features(inputs["features"] | ({"card": "the declared space"} if "declared" in inputs else {}))] if "features" in inputs else []


def _features(features: dict) -> str:
    sentence = f"Features: {FEATURES[features['source']].format(**features)}"
    if "keys" in features:
        sentence += f", of which policies see nothing but {'the key ' if len(features['keys']) == 1 else 'the keys '}{', '.join(features['keys'])}"
    if "history" in features:
        sentence += (
            f", the last {features['history']} of the episode, oldest first. At its beginning the first one stands for those that are missing. A state of this certificate is such a stack, and learners were "
            "given each observation with those before it in its own trajectory"
        )
    if "steps" in features:
        sentence += (
            f", those of the last {features['steps']} steps of the episode, oldest first, each with the action before it and the sum of all rewards before it; a step that the episode has not had yet is "
            "all zeros. A policy lowers the return that it aims at by what was earned. A state of this certificate is such a history as a whole: nothing is certified at another one "
            "that ends in the same observation. Learners were given the same of every trajectory by itself, and its whole return"
        )
    if "mask" in features:
        sentence += (
            ". An observation tells by its action_mask which actions are allowed: of these each policy takes the one that it prefers, and votes for it; the lowest of them where it prefers none, because it "
            "fails or names another one alone. Where none is allowed, all are"
        )
    return sentence + "."


# What must be said of a unit whose name does not say it.
OF_UNITS = {
    "source": [
        "What a source is: all trajectories that were recorded under one value of the source key, or one trajectory that was recorded without it. A source of which anything differs (a "
        "trajectory changed, added or removed) counts as a whole: as one removed and one inserted, or as one replaced."
    ],
}


def _bag(mechanism: dict, units: int, kind: str, trainer: dict | None) -> list[str]:
    how = {
        "fixed": f"exactly {mechanism['bag_size']} of the {kind}, every set of that many as likely as any other",
        "replacement": f"{mechanism['bag_size']} draws, each of them any of the {kind} (one may be drawn several times)",
        "poisson": f"every one of the {kind} by itself with probability {exactly(mechanism['sample_rate'] or 0.0)}",
    }[mechanism["draws"]]
    return [
        f"How it withstands: every instance is trained on a bag of its own, {how}, drawn independently of all other instances. Nothing is assumed of the learner: whatever it does with "
        "its bag, a bag without changed units gives what it gave before. A learner that fails on its bag counts as a policy like any other."
    ]


def _bag_then_noise(mechanism: dict, units: int, kind: str, trainer: dict | None) -> list[str]:
    how = f"exactly {mechanism['bag_size']} of the {kind}" if mechanism["draws"] == "fixed" else f"every one of the {kind} by itself with probability {exactly(mechanism['bag_rate'] or 0.0)}"
    return [
        f"How it withstands: every instance is trained on a bag of its own, {how}, drawn independently of all other instances, in {counted(mechanism['steps'], 'step')} that add noise to the sum of its "
        "units' clipped vectors: a bag without changed units gives what it gave before, and one with few of them nearly so."
    ]


def _partition(mechanism: dict, units: int, kind: str, trainer: dict | None) -> list[str]:
    parts, policies, drew = f"into {mechanism['parts']} parts by a public hash of their content", "one policy", "one part"
    if "spread" in mechanism:
        parts = f"by a public hash of their content into {mechanism['parts']} parts, each of them into {mechanism['spread']} at once"
        policies, drew = f"{mechanism['spread']} policies", "one of these parts"
    if trainer is not None:
        return [
            f"How it withstands: the {kind} are sorted {parts}, and every instance draws one of the parts and is trained on it alone, with "
            f"randomness of its own: a changed unit reaches the instances that drew {drew}. A learner that fails on its part counts as a policy like any other."
        ]
    return [
        f"How it withstands: the {kind} are sorted {parts}, one policy is trained on each part without any chance, and an instance is one of "
        f"these policies, drawn at random: a changed unit reaches {policies}."
    ]


def _trainer(trainer: dict) -> str:
    what = {"function": "the Python function", "command": "the command", "plug-in": "the plug-in"}[trainer["kind"]]
    found = f", which finds its bag in the format {trainer['bag_format']}" if "bag_format" in trainer else ""
    return (
        f"The learner is from outside the package: {what} {json.dumps(trainer['name'])} (in its maker's words; SHA-256 {trainer['sha256']}){found}, with {exactly(trainer['seconds'])} seconds and {exactly(trainer['memory'])} GB for a "
        "training, and as many seconds for its policy to act. What fails, exceeds this or makes no policy counts as the policy of the default action, the lowest; so does a policy at states where it fails."
    )


def _evaluator(evaluator: dict, calls: int) -> str:
    counts = "one score" if calls == 1 else f"the mean of {calls} scores"
    return (
        f"Score: the function score(policy, seed) {json.dumps(evaluator['name'])} from outside the package (in its maker's words; SHA-256 {evaluator['sha256']}) takes the place of an episode; {counts} of an instance counts, each with "
        f"a seed of its own. What a score means is its maker's affair. One outside [{exactly(evaluator['low'])}, {exactly(evaluator['high'])}], none (an exception, no number), or one that takes more than {exactly(evaluator['seconds'])} "
        f"seconds or {exactly(evaluator['memory'])} GB counts as {exactly(evaluator['low'])}."
    )


# What a mechanism says of itself beside the first sentence.
MECHANISMS = {"gaussian": lambda mechanism, units, kind, trainer: [], "bag": _bag, "bag-then-noise": _bag_then_noise, "partition": _partition}


def _largest(results) -> int:
    """The largest radius of which these results speak."""
    largest = [] if results["policy"] is None else [results["policy"]["curve"]["radius"][-1]]
    if results["action"] is not None:
        for scope in SCOPES:
            part = results["action"][scope]
            largest += [entry["max_radius"] or 0 for entry in part.get("tolerance", {"": part}).values()]
    return max(largest)


def noun(inputs: dict) -> str:
    """What the policy level is about."""
    return "score" if "evaluator" in inputs else "return"


def _what(inputs) -> str:
    if "evaluator" in inputs:
        return "score"
    what = "return" if inputs["discount"] == 1 else f"return discounted by {exactly(inputs['discount'])} per step"
    return f"clipped {what}" if inputs["clipped"] else what


def _policy(inputs, results, kind) -> list[str]:
    policy, (floor, most) = results["policy"], inputs["return_range"]
    what = _what(inputs)
    episodes = "one episode's" if inputs["rollouts"] == 1 else f"the mean of {inputs['rollouts']} episodes'"
    counts = f" ({episodes} {what} counts)" if "evaluator" not in inputs else ""
    half = policy["keeps"]["0.5"]
    if half["radius"] < 1:
        return [f"Policy level: no radius keeps half of the mean {what}'s height above the least possible {noun(inputs)} {exactly(floor)}."]
    curve = policy["curve"]
    at = curve["radius"].index(half["radius"])
    return [
        f"Policy level: for every D' with r = {half['radius']} ({share(half['radius'], inputs['units'])} of D), the expected {what} of one trained "
        f"instance is at least {round_down(half['bound'], width=most - floor)}; it is at most {round_up(curve['ceiling'][at], width=most - floor)}; and with probability at least 1/2 an instance "
        f"earns {round_down(curve['quantiles']['0.5'][at], width=most - floor)} or more{counts}. On D itself the mean over {counted(results['instances'], 'instance')} is "
        f"{round_down(policy['unpoisoned_mean'], width=most - floor)} and the least possible {noun(inputs)} {exactly(floor)}. The same is listed for other r."
    ]


def _discrete(action) -> list[str]:
    rule = {
        "votes": "the {action} with the most votes stays the most probable one",
        "scores": "the {action} with the largest mean probability score keeps the largest expected one",
    }[action["kind"]]
    components = _components(action["per_state"])
    rule, sentences = rule.format(action="value" if components else "action") + (" in every component at once" if components else ""), components
    for scope, words in SCOPES.items():
        part = action[scope]
        sentences.append(
            f"Action level, {words}: at {_certified(part['radius'])} of {counted(action['states'], 'state')} {rule} up to that state's radius, "
            f"which is at least 1 (median {_radius(part['median_radius'])}, largest {_radius(part['max_radius'])})."
        )
    return sentences


def _components(scope: dict, shared: str = "The probability that a state's statement may be wrong is shared equally by the components, whose number is declared. ") -> list[str]:
    """What is said first where the radii at a state are those of several components."""
    if "component_radius" not in scope:
        return []
    many = counted(len(scope["component_radius"][0]), "component")
    return [
        f"Components: an action has {many}, and each of them is judged by itself; the action at a state is the vector of the values that win, the lowest of ties. Its radius is the least of its components' radii, "
        f"and there is none where one of them has none. {shared}Nothing is said of how many policies take this vector as a whole: none need do so."
    ]


def _exact(action) -> list[str]:
    part, components = action["per_state"], _components(action["per_state"], "")
    what = "in every component at once the value" if components else "the action"
    return [
        *components,
        f"Action level: at {_certified(part['radius'])} of {counted(action['states'], 'state')} {what} with the most votes of all parts' policies keeps the most votes up to that state's radius, "
        f"which is at least 1 (median {_radius(part['median_radius'])}, largest {_radius(part['max_radius'])}). Every vote was counted and none is a sample: this is certain, at all states together."
    ]


def _continuous(action) -> list[str]:
    sentences = []
    for scope, words in SCOPES.items():
        parts = [
            f"{200 * Fraction(tolerance)} % of the action range wide at {_certified(part['radius'])} of {counted(action['states'], 'state')} "
            f"(median radius {_radius(part['median_radius'])})"
            for tolerance, part in action[scope]["tolerance"].items()
        ]
        sentences.append(
            f"Action level, {words}: in every dimension the median actions of training on D and of training on any D' up to the state's radius lie in one "
            f"interval, which is at most {'; '.join(parts)}."
        )
    return sentences


# What is said of actions, by the kind of evidence.
ACTIONS = {"votes": _discrete, "scores": _discrete, "exact": _exact, "continuous": _continuous}


def _goal(inputs, goal) -> str:
    words = "is met" if goal["met"] else "is NOT met"
    of = "" if goal["name"] == "actions" else f" of the {_what(inputs)}"
    return f"Goal {inputs['goal']}: at r = {goal['radius']} the certified value{of} is {round_down(goal['certified'], width=_width(inputs, goal))}, wanted is {exactly(goal['wanted'])}; the goal {words}."


def _width(inputs, goal) -> float | None:
    if goal["name"] != "absolute-return":
        return None
    low, high = inputs["return_range"]
    return high - low


def _confidence(inputs, results) -> list[str]:
    def confidence(statements):
        return f"{confidence_percent(inputs['eta'], statements)} %"

    returns = f"{noun(inputs)}s"
    parts = [f"the lower bounds on {returns} for all r", f"the upper bounds on {returns} for all r"] if inputs["rollouts"] else []
    together = [f"both together with probability at least {confidence(2)}"]
    sampled = results["action"] is not None and results["action"]["kind"] != "exact"
    if not (parts or sampled):
        return ["With which probability: none of this is a sample, so there is no confidence level."]
    if sampled and not parts:
        parts += ["the actions at any one state", "the actions at all states"]
    elif sampled:
        parts += ["the actions at any one state", "the actions at all states"]
        together = [
            f"both bounds on {returns} together with probability at least {confidence(2)}",
            f"the lower bounds on {returns} and the actions at all states with probability at least {confidence(2)}",
            f"all of it with probability at least {confidence(3)}",
        ]
    if "voted" in results:
        parts.append("the bounds on the voted policy's return for all listed r")
        sure = results["voted"]["kind"] in SURE
        together.append(f"with what is said of the voted policy all of it with probability at least {confidence(4 if sampled else 3)}" + (", where that about the episodes that were played is certain" if sure else ""))
    sentence = (
        f"With which probability, over the randomness of training: each of these statements by itself holds with probability at least {confidence(1)}: "
        f"{'; '.join(parts)}. {'; '.join(together).capitalize()}."
    )
    if inputs["looks"] == "fixed":
        return [sentence]
    looks = looks_up_to(results["instances"])
    return [
        sentence,
        f"Looking at results and then going on or stopping is covered: the number of instances, {results['instances']}, is number {len(looks)} of the public numbers "
        f"{', '.join(map(str, looks))}, ..., at which results may be looked at, and the statements made at all of them hold together with that probability, "
        "by whatever rule training is stopped.",
    ]


def _certified(radii: list) -> str:
    return share(sum(radius is not None and radius >= 1 for radius in radii), len(radii))


def _radius(value) -> str:
    """A radius, or the median of radii, which may end in .5."""
    return "none" if value is None else tenths_down(value)
