"""What a certificate says, in plain words: the first lines of terminals and reports. Every number in them is one of the certificate's, rounded to the safe side."""

from mucd_ray.certify.rounding import percent_down, round_down
from mucd_ray.mechanism.neighbours import Neighbours
from mucd_ray.mechanism.units import UNITS

# What {any} units had to be done to; of a symmetric difference a changed unit counts as one that is taken away and one that is slipped in.
CHANGED = {
    "symmetric": "Even if somebody had slipped in or taken away {any}",
    "insert": "Even if somebody slipped in {any}",
    "remove": "Even without {any}",
    "substitute": "Even if somebody had changed {any}",
}
SINGLE = {"symmetric": "slipped in or taken away", "insert": "slipped in", "remove": "left out", "substitute": "changed"}
SHARES = ("0.5", "0.75", "0.9")
# The tolerance of median actions that is spoken of: half the width of the interval in which both lie, the action on D and that on D'.
TOLERANCE = "0.1"


def plain_words(certificate: dict) -> list[str]:
    """A few sentences: what a policy still earns, and how many actions stay, with how many units poisoned."""
    inputs, results = certificate["inputs"], certificate["results"]
    unsound = None if results["sound"] else "NOT SOUND, for comparison only: what follows may be wrong."
    condition = None if inputs["condition"] is None else "Only on a condition, which the claim names first:"
    return [sentence for sentence in (unsound, condition, _returns(inputs, results.get("policy")), _actions(inputs, results["action"])) if sentence]


def _returns(inputs: dict, policy: dict | None) -> str | None:
    if policy is None:
        return None
    (low, high), earn = inputs["return_range"], "score" if "evaluator" in inputs else "earn"
    one, many = inputs["mechanism"]["unit"], UNITS[inputs["mechanism"]["unit"]]
    untouched = f"{round_down(policy['unpoisoned_mean'], 4, high - low)} on the data as they are"
    share = next((share for share in SHARES if policy["keeps"][share]["radius"] >= 1), None)
    nearest = inputs["mechanism"]["kind"] == Neighbours.kind
    if share is None:
        return f"What {'the vote of the nearest earns' if nearest else f'policies trained so {earn}'} is not certified against a single poisoned {one} ({untouched})."
    kept = policy["keeps"][share]
    changed = CHANGED[inputs["threat"]].format(any=_any(kept["radius"], one, many, inputs))
    who = "the vote of the nearest, in the recorded episodes," if nearest else "a policy trained so"
    return f"{changed}, in any way whatever, {who} would still {earn} {round_down(kept['bound'], 4, high - low)} on average, or more ({untouched})."


def _any(radius: int, one: str, many: str, inputs: dict) -> str:
    whole = f"of the {inputs['units']}" if inputs["threat"] != "insert" else f"beside the {inputs['units']}"
    count = f"any {one}" if radius == 1 else f"any {radius} {many}"
    also = f", or changed any {radius // 2}" if inputs["threat"] == "symmetric" and radius >= 2 else ""
    return f"{count} {whole} ({percent_down(radius / inputs['units'])} %){also}"


def _actions(inputs: dict, action: dict | None) -> str | None:
    if action is None:
        return None
    one, many = inputs["mechanism"]["unit"], UNITS[inputs["mechanism"]["unit"]]
    scope = action["family_wise"]
    radii = scope["tolerance"][TOLERANCE]["radius"] if "tolerance" in scope else scope["radius"]
    certified = sorted(radius for radius in radii if radius is not None and radius >= 1)
    done, what = SINGLE[inputs["threat"]], f"moves the action by more than {200 * float(TOLERANCE):g} % of its range" if "tolerance" in scope else "decides which action is taken"
    if not certified:
        return f"At none of the {len(radii)} tested states is an action certified against a single {one} {done}."
    median = certified[len(certified) // 2]  # at least half of them are as large
    more = f", and at half of these no {median} {many} do" if median > 1 else ""
    return f"At {percent_down(len(certified) / len(radii))} % of the {len(radii)} tested states no single {one} {done} {what}{more}."
