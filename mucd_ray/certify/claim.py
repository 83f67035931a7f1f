"""The claim in words: what may change, how much, what stays true, with which probability. Every number is rounded to the safe side."""

from decimal import ROUND_CEILING, ROUND_FLOOR, Context

from mucd_ray.certify.guarantees import READINGS, THREATS
from mucd_ray.certify.looks import looks_up_to
from mucd_ray.mechanism.mechanism import UNITS

SCOPES = {"per_state": "for each state by itself", "family_wise": "for all states together"}


def claim_sentences(inputs: dict, results: dict) -> list[str]:
    """The sentences of a certificate, from its inputs and results alone."""
    kind = UNITS[inputs["mechanism"]["unit"]]
    sentences = []
    if not results["sound"]:
        sentences.append("NOT SOUND: this certificate uses the published accounting rule, which is known to be wrong; it is for comparison only.")
    sentences.append(
        f"What may change: compared are training on the dataset D of this certificate ({inputs['units']} {kind}) and training on any dataset D' that "
        f"{THREATS[inputs['threat']].format(units=kind)}; {READINGS[inputs['threat']].format(units=kind)}. "
        "Training is the randomised mechanism recorded here, with randomness that the attacker does not know."
    )
    sentences += _policy(inputs, results, kind)
    if results["action"] is not None:
        sentences += _continuous(results["action"]) if results["action"]["kind"] == "continuous" else _discrete(results["action"])
    if results["goal"] is not None:
        sentences.append(_goal(inputs, results["goal"]))
    return [*sentences, *_confidence(inputs, results)]


def _policy(inputs, results, kind) -> list[str]:
    policy, floor = results["policy"], inputs["return_range"][0]
    what = "return" if inputs["discount"] == 1 else f"return discounted by {inputs['discount']:.6g} per step"
    episodes = "one episode's" if inputs["rollouts"] == 1 else f"the mean of {inputs['rollouts']} episodes'"
    half = policy["keeps"]["0.5"]
    if half["radius"] < 1:
        return [f"Policy level: no radius keeps half of the mean's height above the least possible return {floor:.6g}."]
    curve = policy["curve"]
    at = curve["radius"].index(half["radius"])
    return [
        f"Policy level: for every D' with r = {half['radius']} ({round_down(100 * half['fraction'], 3)} % of D), the expected {what} of one trained "
        f"instance is at least {round_down(half['bound'])} and at most {round_up(curve['ceiling'][at])}, and at least half of the instances earn "
        f"{round_down(curve['quantiles']['0.5'][at])} or more ({episodes} {what} counts); on D itself the mean over {results['instances']} instances is "
        f"{policy['unpoisoned_mean']:.6g} and the least possible return {floor:.6g}. The same is listed for other r."
    ]


def _discrete(action) -> list[str]:
    rule = {
        "votes": "the action that most instances take stays the most probable one",
        "scores": "the action with the largest mean probability score keeps the largest expected one",
    }[action["kind"]]
    sentences = []
    for scope, words in SCOPES.items():
        part = action[scope]
        median = "none" if part["median_radius"] is None else f"{part['median_radius']:g}"
        sentences.append(
            f"Action level, {words}: at {round_down(100 * part['certified_share'], 4)} % of {action['states']} states {rule} up to that state's radius, "
            f"which is at least 1 (median {median}, largest {part['max_radius'] or 'none'})."
        )
    return sentences


def _continuous(action) -> list[str]:
    sentences = []
    for scope, words in SCOPES.items():
        parts = [
            f"{round_up(100 * float(share), 3)} % of the action range at {round_down(100 * part['certified_share'], 4)} % of {action['states']} states "
            f"(median r {'none' if part['median_radius'] is None else format(part['median_radius'], 'g')})"
            for share, part in action[scope]["tolerance"].items()
        ]
        sentences.append(
            f"Action level, {words}: in every dimension the median action of instances trained on D' lies in an interval around that of D, up to the state's "
            f"radius, with a half-width of at most {', '.join(parts)}."
        )
    return sentences


def _goal(inputs, goal) -> str:
    words = "is met" if goal["met"] else "is NOT met"
    return f"Goal {inputs['goal']}: at r = {goal['radius']} the certified value is {round_down(goal['certified'])}, wanted is {goal['wanted']:.6g}; the goal {words}."


def _confidence(inputs, results) -> list[str]:
    def confidence(statements):
        return f"{100 * (1 - statements * inputs['eta']):.12g} %"

    parts = ["the lower bounds on returns for all r", "the upper bounds on returns for all r"]
    together = "the lower bounds on returns hold"
    if results["action"] is not None:
        parts += ["the actions at any one state", "the actions at all states"]
        together = "the lower bounds on returns and the actions at all states hold together"
    sentence = (
        f"With which probability, over the randomness of training: each of these statements by itself holds with probability at least {confidence(1)}: "
        f"{'; '.join(parts)}; and {together} with probability at least {confidence(1 if results['action'] is None else 2)}."
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


def round_down(value: float, digits: int = 6) -> str:
    """`value` with that many significant digits, never above it."""
    return f"{Context(prec=digits, rounding=ROUND_FLOOR).create_decimal_from_float(float(value)).normalize():f}"


def round_up(value: float, digits: int = 6) -> str:
    """`value` with that many significant digits, never below it."""
    return f"{Context(prec=digits, rounding=ROUND_CEILING).create_decimal_from_float(float(value)).normalize():f}"
