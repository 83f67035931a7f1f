"""The report of a run: report.html, one file that needs nothing else, and the plots as PNG files.

Everything shown is read from certificate.json and baselines.json; no number of the certificate is computed again here.
"""

import base64
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jinja2
import numpy as np

from mucd_ray.certify.confidence.bands import BANDS
from mucd_ray.certify.confidence.looks import looks_up_to
from mucd_ray.certify.confidence.means import MEANS
from mucd_ray.certify.file.certificate import content_hash
from mucd_ray.certify.file.claim import noun
from mucd_ray.certify.file.plain import plain_words
from mucd_ray.certify.guarantees import THREATS
from mucd_ray.certify.policy import return_band
from mucd_ray.certify.rounding import confidence_percent, exactly, percent_down, percent_up, probability_down, probability_up, round_down, round_up, tenths_down
from mucd_ray.certify.rules import RULES as VOTE_RULES
from mucd_ray.errors import MucdError
from mucd_ray.mechanism.bag_then_noise import BagThenNoise
from mucd_ray.mechanism.gaussian.mechanism import Mechanism
from mucd_ray.mechanism.kinds import WITH_NOISE
from mucd_ray.mechanism.neighbours import Neighbours
from mucd_ray.mechanism.partition import Partition
from mucd_ray.mechanism.units import UNITS
from mucd_ray.report import plots
from mucd_ray.report.warnings import warnings_of
from mucd_ray.words import counted

BASELINES = {
    "non_private": "Trained on all data",
    "behaviour": "Behaviour policy",
    "best_constant_return": "Best constant action",
    "trusted": "Trained on the trusted data alone",
}
SCOPES = {"per_state": "Each state by itself", "family_wise": "All states together"}
ACCOUNTANTS = {
    "tradeoff": "exact trade-off curve of the composed mechanism",
    "rdp": "Rényi divergences of the exact mixture",
    "rdp-mirrored": "Rényi divergences of the exact mixture, for each event and for its complement",
    "adp": "exact privacy profile of the group",
    "adp-group": "exact privacy profile of a single unit, generic group privacy",
    "published": "published rule, NOT SOUND, for comparison only",
}
# What is shown of each kind of evidence at states: the rule by which actions are inferred, and what stays true of an action.
RULES = {
    "votes": ("votes: at each state the action that most instances take", "stays the most probable one"),
    "exact": ("votes of all parts: at each state the action that most parts' policies take", "keeps the most votes"),
    "scores": ("probability scores: at each state the action with the largest mean score", "keeps the largest expected score"),
    "continuous": ("continuous: at each state, in every dimension, the median of the instances' actions", ""),
    "neighbours": ("neighbours: at each state the action with most votes of the nearest units", "stays the same"),
}
# The same of actions of several components.
RULES_OF_COMPONENTS = {
    "votes": ("votes: at each state, in every component, the value that most instances take", "stays the most probable one in every component"),
    "exact": ("votes of all parts: at each state, in every component, the value that most parts' policies take", "keeps the most votes in every component"),
    "scores": ("probability scores: at each state, in every component, the value with the largest mean score", "keeps the largest expected score in every component"),
}
# What a policy must beat to be worth deploying: names among the baselines, and in words.
YARDSTICKS = {"best_constant_return": "the best constant action", "behaviour": "the behaviour policy", "trusted": "the policy trained on the trusted data alone"}
# At which a vote rule's shares are listed.
RULE_RADII = (1, 2, 5, 10)
# Bounds that differ by less are the same but for rounding.
SAME = 1e-9


def report_files(certificate: dict, baselines: dict, run="RUN") -> dict[str, bytes]:
    """{"plots/NAME.png": ..., "report.html": ...}; `baselines` are added to those of the certificate, `run` is named in errors.

    Raises:
        MucdError: the certificate was changed after it was made.
    """
    if content_hash(certificate) != certificate.get("sha256"):
        raise MucdError(
            f"{run}/certificate.json was changed after it was made, so no report is written: `mucd verify` says where; make it again with `mucd certify {run}`"
        )
    baselines = (certificate["context"].get("baselines") or {}) | baselines
    figures = draw(certificate, baselines)
    return {f"plots/{figure.name}.png": figure.wide for figure in figures.values()} | {"report.html": render(certificate, baselines, figures).encode()}


@dataclass(frozen=True, kw_only=True)
class FigureData:
    """One plot in two widths, as PNG, with its texts."""

    name: str
    title: str
    caption: str
    alt: str
    wide: bytes
    narrow: bytes

    @property
    def wide_uri(self) -> str:
        return _data_uri(self.wide)

    @property
    def narrow_uri(self) -> str:
        return _data_uri(self.narrow)


def draw(certificate: dict, baselines: dict) -> dict[str, FigureData]:
    action = certificate["results"]["action"]
    voted = [_voted(certificate, baselines)] if "voted" in certificate["results"] else []
    played = certificate["results"]["policy"] is not None
    if _is_exact(certificate["inputs"]):
        return {figure.name: figure for figure in [*([_kept_episodes(certificate, baselines)] if played else []), *voted, *_actions(certificate)]}
    ruled = [_rule(certificate)] if "rule" in certificate["results"] else []
    figures = [_return_bound(certificate, baselines), _poisoned_return(certificate), *voted, *ruled] if played else []
    if action is not None:
        figures += [_action_widths(certificate)] if action["kind"] == "continuous" else _actions(certificate)
    return {figure.name: figure for figure in [*figures, *([_returns(certificate)] if played else [])]}


def baseline_names(mechanism: dict) -> dict[str, str]:
    """By their names among the baselines; with noise the instances, too, are trained on all data."""
    return BASELINES | ({"non_private": "Trained without noise"} if mechanism["kind"] in WITH_NOISE else {})


def mechanism_words(mechanism: dict, accountant: str) -> str:
    """A mechanism in a few words."""
    if mechanism["kind"] == Mechanism.kind:
        return f"{accountant} accounting"
    if mechanism["kind"] == Neighbours.kind:
        return f"votes of {counted(mechanism['neighbours'], 'neighbour')}"
    if mechanism["kind"] == Partition.kind:
        return f"{mechanism['parts']} parts" + (f", {mechanism['spread']} of them for each {mechanism['unit']}" if "spread" in mechanism else "")
    noisy = mechanism["kind"] == BagThenNoise.kind
    how = f"each with probability {exactly(mechanism['bag_rate' if noisy else 'sample_rate'])}" if mechanism["draws"] == "poisson" else str(mechanism["bag_size"])
    return f"bags of {how}" + (", drawn with replacement" if mechanism["draws"] == "replacement" else "") + (", trained on with noise" if noisy else "")


def yardsticks(curve: dict, baselines: dict) -> dict:
    """By name: its `return`, and the largest listed `radius` at which the certified return is above it; None where not even r = 0 is.

    The returns compared with are estimates, and that of the behaviour policy comes from the data.
    """
    found = {}
    for name in YARDSTICKS:
        if _is_number(baselines.get(name)):
            above = [radius for radius, bound in zip(curve["radius"], curve["bound"]) if bound > baselines[name]]
            found[name] = {"return": baselines[name], "radius": max(above, default=None)}
    return found


def rule_rows(rule: dict) -> list[dict]:
    """What the results of a vote rule say at a few radii: the certified share of states, the share of episodes that stay the same, the bound on their mean return, and both shares of a forbidden action.

    Between two evaluated radii what is said is that of the larger one; none is listed beyond the last.
    """
    curve, rows = rule["curve"], []
    for radius in RULE_RADII:
        at = next((k for k, evaluated in enumerate(curve["radius"]) if evaluated >= radius), None)
        if at is not None:
            never = {f"never_{name}": rule["never"][name][at] for name in ("share", "episode_share")} if rule["never"] else {}
            rows.append({"radius": radius, "share": curve["stability_ratio"][at], "unchanged": curve["unchanged"][at], "bound": curve["bound"][at]} | never)
    return rows


def never_rows(voted: dict) -> list[dict]:
    """The shares of episodes without the forbidden action at the same radii, in the same way."""
    radii = voted["curve"]["radius"]
    found = [(radius, next((k for k, evaluated in enumerate(radii) if evaluated >= radius), None)) for radius in RULE_RADII]
    return [{"radius": radius, "share": voted["never"]["share"][at]} for radius, at in found if at is not None]


def rule_name(name: str, window: int | None) -> str:
    return name if window is None else f"{name}, last {counted(window, 'step')}"


def normalised_score(value: float, references: dict | None) -> float | None:
    """100 (value - random) / (expert - random), as in D4RL (Fu et al. 2020); None without references."""
    return None if not references else 100 * (value - references["random"]) / (references["expert"] - references["random"])


def _is_exact(inputs: dict) -> bool:
    """Whether nothing is left to chance, so that there are no bands and no confidence."""
    return inputs["mechanism"]["kind"] == Neighbours.kind


def _kept_episodes(certificate: dict, baselines: dict) -> FigureData:
    """The return of the recorded episodes of a policy without chance."""
    inputs, policy = certificate["inputs"], certificate["results"]["policy"]
    curve, units, (down, _) = policy["curve"], UNITS[inputs["mechanism"]["unit"]], _of_returns(inputs)
    levels = {"unpoisoned mean": policy["unpoisoned_mean"]}
    levels |= {name.lower(): baselines[key] for key, name in baseline_names(inputs["mechanism"]).items() if _is_number(baselines.get(key))}
    levels["public floor"] = inputs["return_range"][0]
    kept = [(f"{100 * float(share):g} %", entry["radius"], entry["bound"]) for share, entry in policy["keeps"].items() if entry["radius"] >= 0]
    bounds = {"certified": np.array(curve["bound"])}
    return _both(
        certificate,
        plots.return_bound,
        {"radius": np.array(curve["radius"]), "bounds": bounds, "levels": levels, "kept": kept, "what": _what(inputs), "units": inputs["units"], "unit": units},
        name="return_bound",
        title="Certified return of the recorded episodes",
        caption=f"Claimed: the mean {_what(inputs)} of the {_counted(len(inputs['returns']), 'recorded episode')} is at least this when up to r {units} are poisoned. An episode counts as long as "
        "every action on its way is certified at r, and else as the public floor.",
        alt=f"Certified mean {_what(inputs)} of the recorded episodes, falling from {down(curve['bound'][0])} at r = 0 to {down(curve['bound'][-1])} at r = {whole(curve['radius'][-1])}. "
        f"For comparison: {', '.join(f'{label} {number(level)}' for label, level in levels.items())}.",
    )


def _return_bound(certificate: dict, baselines: dict) -> FigureData:
    inputs, policy = certificate["inputs"], certificate["results"]["policy"]
    curve, units, (down, _) = policy["curve"], UNITS[inputs["mechanism"]["unit"]], _of_returns(inputs)
    levels = {"unpoisoned mean": policy["unpoisoned_mean"]}
    levels |= {name.lower(): baselines[key] for key, name in baseline_names(inputs["mechanism"]).items() if _is_number(baselines.get(key))}
    levels["public floor"] = inputs["return_range"][0]
    kept = [(f"{100 * float(share):g} %", entry["radius"], entry["bound"]) for share, entry in policy["keeps"].items() if entry["radius"] >= 0]
    bounds = {_bound_label(name, inputs): np.array(curve["bound_by_route"][name]) for name in _bands(inputs)}
    mean_route = _best_mean_route(policy)
    bounds[f"bound on the mean alone ({mean_route})"] = np.array(curve["bound_by_route"][mean_route])
    return _both(
        certificate,
        plots.return_bound,
        {"radius": np.array(curve["radius"]), "bounds": bounds, "levels": levels, "kept": kept, "what": _what(inputs), "units": inputs["units"], "unit": units},
        name="return_bound",
        title=f"Certified {noun(inputs)}",
        caption=f"Claimed, the thick line: a lower bound on the expected {_what(inputs)} of one trained policy when up to r {units} are poisoned. All its points "
        f"hold together with probability at least {_confidence(inputs)} %. Between two evaluated radii it shows the value of the larger one. Not claimed, only "
        f"for comparison: the same bound from another confidence band; and what follows if nothing but a bound on the mean {noun(inputs)} under D is known "
        f"({mean_route}, the best of {len(MEANS)} such bounds on this sample: each holds with that probability by itself, their best need not).",
        alt=f"Certified lower bound on the expected {_what(inputs)}, falling from {down(curve['bound'][0])} at r = 0 to {down(curve['bound'][-1])} "
        f"at r = {whole(curve['radius'][-1])}. For comparison: {', '.join(f'{label} {number(level)}' for label, level in levels.items())}.",
    )


def _voted(certificate: dict, baselines: dict) -> FigureData:
    inputs, voted = certificate["inputs"], certificate["results"]["voted"]
    curve, units, (down, _) = voted["curve"], UNITS[inputs["mechanism"]["unit"]], _of_returns(inputs)
    levels = {"unpoisoned mean": voted["unpoisoned_mean"]}
    levels |= {name.lower(): baselines[key] for key, name in baseline_names(inputs["mechanism"]).items() if _is_number(baselines.get(key))}
    levels["public floor"] = inputs["return_range"][0]
    kept = [(f"{100 * float(share):g} %", entry["radius"], entry["bound"]) for share, entry in voted["keeps_played"].items() if entry["radius"] >= 0]
    episodes = _counted(voted["episodes"], "episode")
    rule = inputs["voted"].get("rule")
    whose = "the voted policy" if rule is None else f"the policy of vote rule {rule_name(rule['name'], rule['window'])}"
    takes = "the action with the most votes" if rule is None else VOTE_RULES[rule["name"]].words.format(window=rule["window"])
    return _both(
        certificate,
        plots.return_bound,
        {
            "radius": np.array(curve["radius"]), "bounds": {f"in the {episodes} played": np.array(curve["played"]), "expected, over all episodes": np.array(curve["bound"])}, "levels": levels, "kept": kept,
            "what": _what(inputs), "whose": whose, "units": inputs["units"], "unit": units,
        },
        name="voted_return",
        title=f"Certified return of {whose}",
        caption=f"Claimed: lower bounds on the {_what(inputs)} of the policy that takes {takes}, when up to r {units} are poisoned. Thick: its mean in the {episodes} that were played, "
        "which is its return where nothing is random in the environment; the other line: what it is expected to earn over all that is random there. Everything that poisoned votes could do in an episode is followed; where "
        f"that was given up, the least counts for all that is left. At r = 0 it was followed to the end in {claimed_percent(curve['complete'][0])} of the episodes.",
        alt=f"Certified {_what(inputs)} of {whose} in the episodes played, falling from {down(curve['played'][0])} at r = 0 to {down(curve['played'][-1])} at r = {whole(curve['radius'][-1])}; "
        f"the policy itself earned {number(voted['unpoisoned_mean'])}.",
    )


def _rule(certificate: dict) -> FigureData:
    inputs, rule, evidence = certificate["inputs"], certificate["results"]["rule"], certificate["inputs"]["rule"]
    units, name = UNITS[inputs["mechanism"]["unit"]], rule_name(evidence["name"], evidence["window"])
    radii = {f"{name}: the action stays": np.concatenate(rule["radius"])}
    if rule["never"]:
        radii[f"action {evidence['never']} stays impossible"] = np.concatenate(rule["never"]["radius"])
    states, episodes = _counted(rule["states"], "state"), _counted(rule["episodes"], "episode")
    return _both(
        certificate,
        plots.certified_share,
        {"scopes": radii, "accuracy": {}, "units": inputs["units"], "unit": units},
        name="rule",
        title=f"Vote rule {name}: share of states certified at r",
        caption=f"Claimed, without chance: the share of the {states} in the {episodes} of this rule's policy at which its action provably stays when up to r {units} are poisoned, if the episode has come there in the same way."
        + (f" The other line: at which action {evidence['never']} (counted from 0) stays impossible." if rule["never"] else ""),
        alt=f"Share of {states} certified against r: {claimed_percent(rule['certified_share'])} at r = 1, median radius {whole(rule['median_radius'])}, largest {whole(rule['max_radius'])}.",
    )


def _poisoned_return(certificate: dict) -> FigureData:
    inputs, policy = certificate["inputs"], certificate["results"]["policy"]
    curve, units, (down, up) = policy["curve"], UNITS[inputs["mechanism"]["unit"]], _of_returns(inputs)
    quantiles = dict(sorted(curve["quantiles"].items(), key=lambda item: -float(item[0])))
    at = policy["keeps"]["0.5"]["radius"]
    alt = f"Mean {_what(inputs)} under poisoning: between {down(curve['bound'][0])} and {up(curve['ceiling'][0])} at r = 0"
    if at >= 1:
        k = curve["radius"].index(at)
        alt += f", between {down(curve['bound'][k])} and {up(curve['ceiling'][k])} at r = {whole(at)}, where half of the policies earn at least "
        alt += down(curve["quantiles"]["0.5"][k])
    return _both(
        certificate,
        plots.poisoned_return,
        {
            "radius": np.array(curve["radius"]),
            "least": np.array(curve["bound"]),
            "most": np.array(curve["ceiling"]),
            "quantiles": {f"{claimed_percent(1 - float(level))} of policies, at least": np.array(values) for level, values in quantiles.items()},
            "levels": {"unpoisoned mean": policy["unpoisoned_mean"], "public floor": inputs["return_range"][0]},
            "what": _what(inputs),
            "units": inputs["units"],
            "unit": units,
        },
        name="poisoned_return",
        title=f"What policies trained on poisoned data can {'earn' if noun(inputs) == 'return' else 'score'}",
        caption=f"All claimed. Whatever up to r {units} are changed, the expected {_what(inputs)} lies in the shaded band, and the named share of trained policies "
        f"earns the dashed and dotted lines or more. The lower bounds hold together with probability at least {_confidence(inputs)} %, and so do the upper "
        f"bounds; both at once with at least {_confidence(inputs, 2)} %.",
        alt=alt + ".",
    )


def _actions(certificate: dict) -> list[FigureData]:
    inputs, action = certificate["inputs"], certificate["results"]["action"]
    reference, labelled = inputs["actions"]["reference"], "labels_sha256" in (certificate.get("context") or {})
    rule, stays = _rules(action)
    if _is_exact(inputs):
        scopes = {"every state": _radii(action["per_state"])}
    else:
        scopes = {f"{SCOPES[key].lower()} ({_confidence(inputs)} %)": _radii(action[key]) for key in SCOPES}
    accuracy = {}
    if reference is not None:
        agrees = (np.array(action["action"]) == np.array(reference)).reshape(action["states"], -1).all(1)
        accuracy = {f"and as {'labelled' if labelled else 'the reference'}, {name.lower()}": np.where(agrees, _radii(action[key]), -1) for key, name in _scopes(inputs).items()}
    arrays = {"scopes": scopes, "units": inputs["units"], "unit": UNITS[inputs["mechanism"]["unit"]]}
    states = _counted(action["states"], "state")
    alt = "; ".join(
        f"{name.lower()}: {claimed_percent(action[key]['certified_share'])} certified, median radius {whole(action[key]['median_radius'])}, "
        f"largest {whole(action[key]['max_radius'])}"
        for key, name in _scopes(inputs).items()
    )
    accuracy_note = "" if reference is None else " “As labelled”: certified accuracy, the states whose action is also their label." if labelled else " “As the reference”: certified accuracy, the states whose action is also the reference policy's."
    return [
        _both(
            certificate,
            plots.certified_share,
            arrays | {"accuracy": accuracy},
            name="certified_share",
            title="Share of states certified at r",
            caption=f"Stability ratio: the share of the {states} at which the {'' if _is_exact(inputs) else 'ensemble'+chr(39)+'s '}action ({rule}) provably {stays} when up to r "
            f"{arrays['unit']} are poisoned. States without a certificate count as not certified.{accuracy_note}",
            alt=f"Share of {states} certified against r. {alt}.",
        ),
        _both(
            certificate,
            plots.action_radii,
            arrays,
            name="action_radii",
            title="Certified radii of the actions",
            caption=f"How many of the {states} have which certified radius. “None”: the {action['kind']} do not single out one action, and the "
            "certificate abstains.",
            alt=f"Histogram of the certified radii of {states}. {alt}.",
        ),
    ]


def _rules(action: dict) -> tuple[str, str]:
    return (RULES_OF_COMPONENTS if "component_radius" in action["per_state"] else RULES)[action["kind"]]


def _action_widths(certificate: dict) -> FigureData:
    inputs, action = certificate["inputs"], certificate["results"]["action"]
    curves = {f"{name.lower()} ({_confidence(inputs)} %)": action[key]["curve"] for key, name in SCOPES.items()}
    marked = [2 * float(share) for share in action["per_state"]["tolerance"]]
    units = UNITS[inputs["mechanism"]["unit"]]
    alt = "; ".join(f"{label}: at r = 0 the median width is {claimed_percent_up(2 * curve['median_half_width'][0])}" for label, curve in curves.items())
    return _both(
        certificate,
        plots.action_widths,
        {
            "radius": {label: np.array(curve["radius"]) for label, curve in curves.items()},
            "median": {label: 2 * np.array(curve["median_half_width"]) for label, curve in curves.items()},
            "largest": {label: 2 * np.array(curve["largest_half_width"]) for label, curve in curves.items()},
            "marked": marked,
            "units": inputs["units"],
            "unit": units,
        },
        name="action_widths",
        title="How far the median action can move",
        caption=f"Claimed: when up to r {units} are poisoned, the median action stays in an interval that is at most so wide, as a share of the action range, in each "
        f"dimension. Shown are the median and the largest over {_counted(action['states'], 'state')} and "
        f"{_counted(action['dimensions'], 'dimension')}. 100 % is the whole range and says nothing. Dotted: the widths of the table.",
        alt=f"Width of the interval of the median action against r, rising. {alt}.",
    )


def _returns(certificate: dict) -> FigureData:
    inputs = certificate["inputs"]
    returns = np.array(inputs["returns"])
    # What this look may spend, not what all looks may.
    eta = certificate["results"]["eta"]
    bands = {name: return_band(returns, inputs["return_range"], eta=eta, method=name) for name in _bands(inputs)}
    call = "rollout" if noun(inputs) == "return" else "score"
    each = f"One {call}" if inputs["rollouts"] == 1 else f"The mean of {whole(inputs['rollouts'])} {call}s"
    return _both(
        certificate,
        plots.return_distribution,
        {
            "returns": returns,
            "threshold": bands[inputs["band"]].threshold,
            "bounds": {_bound_label(name, inputs): band.probability for name, band in bands.items()},
            "return_range": tuple(inputs["return_range"]),
            "what": _what(inputs),
        },
        name="returns",
        title=f"{noun(inputs).capitalize()}s of the trained policies",
        caption=f"{each} of each of the {_counted(len(returns), 'policy')} trained on D. Below: the share of policies that reach a {_what(inputs)} of at least t, in "
        "this sample and as a lower confidence bound for all policies that training could give. The certified {noun(inputs)} is computed from the first of these bounds; "
        "the other is for comparison.",
        alt=f"Distribution of {_counted(len(returns), noun(inputs))} from {number(returns.min())} to {number(returns.max())}, mean {number(returns.mean())}, "
        f"median {number(np.median(returns))}.",
    )


def _scopes(inputs: dict) -> dict[str, str]:
    return {"per_state": "Every state, and all together"} if _is_exact(inputs) else SCOPES


def render(certificate: dict, baselines: dict, figures: dict[str, FigureData]) -> str:
    """The page as text. Every value is escaped by the template engine."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    inputs, results, context = certificate["inputs"], certificate["results"], certificate["context"]
    environment.filters |= {
        "number": number,
        "whole": whole,
        "counted": _counted,
        "exactly": exactly,
        "claimed": _of_returns(inputs)[0],
        "claimed_up": _of_returns(inputs)[1],
        "probability": probability_down,
        "probability_up": probability_up,
        "claimed_percent": claimed_percent,
        "claimed_percent_up": claimed_percent_up,
    }
    dataset = context.get("dataset") or {}
    return environment.get_template("template.html").render(
        certificate=certificate,
        plain=plain_words(certificate),
        inputs=inputs,
        mechanism=inputs["mechanism"],
        units=UNITS[inputs["mechanism"]["unit"]],
        results=results,
        policy=results["policy"],
        action=results["action"],
        voted=results.get("voted"),
        ruled=results.get("rule"),
        never_rows=never_rows(results["voted"]) if "never" in results.get("voted", {}) else [],
        rule_rows=rule_rows(results["rule"]) if "rule" in results else [],
        rule_called=rule_name(inputs["rule"]["name"], inputs["rule"]["window"]) if "rule" in results else None,
        goal=results["goal"],
        kept=_kept_rows(results["policy"]) if results["policy"] else [],
        exact=_is_exact(inputs),
        routes=[] if _is_exact(inputs) or not results["policy"] else _route_rows(results["policy"], inputs),
        splits=_splits(results["accounting"]["splits"]),
        accuracy=_accuracy(inputs, results["action"]),
        rule=_rules(results["action"])[0] if results["action"] else None,
        look=len(looks_up_to(results["instances"])) if inputs["looks"] == "anytime" else None,
        what=_what(inputs),
        noun=noun(inputs),
        scopes=_scopes(inputs),
        sound=results["sound"],
        confidence=_confidence(inputs),
        subject=dataset.get("name") or "offline dataset",
        environment=dataset.get("environment"),
        threat=THREATS[inputs["threat"]].format(units=UNITS[inputs["mechanism"]["unit"]]),
        accountant=ACCOUNTANTS[inputs["accountant"]],
        how=mechanism_words(inputs["mechanism"], inputs["accountant"]),
        reference=baseline_names(inputs["mechanism"])["non_private"].lower() if "non_private" in baselines else None,
        labelled="labels_sha256" in context,
        baselines=_baseline_rows(results["policy"], inputs, baselines, context.get("normalised")) if results["policy"] else [],
        warnings=warnings_of(certificate, baselines),
        figures=figures,
        evidence=_flat({key: value for key, value in context.items() if key not in ("baselines", "software")}),
        software=_flat(context.get("software") or {}),
    )


def _of_returns(inputs: dict):
    """How lower and upper bounds on returns are written: with the digits that matter in their range."""
    width = inputs["return_range"][1] - inputs["return_range"][0] if inputs["rollouts"] else None
    return partial(round_down, width=width), partial(round_up, width=width)


def _kept_rows(policy: dict) -> list[dict]:
    """Per share kept: radius, fraction and bound, and what else is claimed at that radius."""
    curve, rows = policy["curve"], []
    for share, entry in policy["keeps"].items():
        row = {"share": float(share), "certified": entry["radius"] >= 0} | entry
        if row["certified"]:
            at = curve["radius"].index(entry["radius"])
            row |= {"most": curve["ceiling"][at], "median": curve["quantiles"]["0.5"][at]}
        rows.append(row)
    return rows


def _route_rows(policy: dict, inputs: dict) -> list[dict]:
    """Lower bounds on the expected return by every route at r = 0 and at the radius that keeps half; the claimed one first."""
    curve, half = policy["curve"], policy["keeps"]["0.5"]["radius"]
    at = [0] + ([curve["radius"].index(half)] if half >= 1 else [])
    words = {name: f"{_band_title(name)} band of all {noun(inputs)}s" for name in _bands(inputs)} | {name: f"bound on the mean alone, {name}" for name in MEANS}
    return [{"name": text, "claimed": name == inputs["band"], "bounds": [curve["bound_by_route"][name][k] for k in at]} for name, text in words.items()]


def _splits(profile: dict | None) -> dict | None:
    """The bounds of single splits, the least one marked, and by how much they differ."""
    if profile is None:
        return None
    least, most = min(profile["bound"]), max(profile["bound"])
    rows = [
        {"inserted": inserted, "removed": removed, "bound": bound, "worst": bound <= least + SAME}
        for inserted, removed, bound in zip(profile["inserted"], profile["removed"], profile["bound"], strict=True)
    ]
    return {"radius": profile["radius"], "probability": profile["probability"], "rows": rows, "spread": most - least, "flat": most - least <= SAME}


def _accuracy(inputs: dict, action: dict | None) -> dict | None:
    """Certified accuracy at r = 1 per scope; None without a reference."""
    if action is None or action["kind"] == "continuous" or inputs["actions"]["reference"] is None:
        return None
    return {key: action[key]["curve"]["certified_accuracy"][action[key]["curve"]["radius"].index(1)] for key in SCOPES}


def _best_mean_route(policy: dict) -> str:
    """All mean routes lower one number by the same map, so the best one at r = 0 is the best at every r."""
    return max(MEANS, key=lambda name: policy["unpoisoned_mean_bound"][name])


def _what(inputs: dict) -> str:
    return ("clipped " if inputs["clipped"] else "") + (noun(inputs) if inputs["discount"] == 1 else "discounted return")


def _baseline_rows(policy: dict, inputs: dict, baselines: dict, references: dict | None) -> list[tuple[str, str, str]]:
    """(name, its return, up to which r the certified return is above it)."""
    error, above = policy["unpoisoned_standard_error"], yardsticks(policy["curve"], baselines)
    mean = number(policy["unpoisoned_mean"]) + (f" ± {number(error, 3)}" if error is not None else "")
    rows = [(f"Unpoisoned mean of {'the recorded episodes' if _is_exact(inputs) else 'the ensemble'}, ± standard error", mean, "")]
    if (score := normalised_score(policy["unpoisoned_mean"], references)) is not None:
        rows.append(("The same as a normalised score", f"{score:.1f}", ""))
    for key, name in baseline_names(inputs["mechanism"]).items():
        if _is_number(baselines.get(key)):
            which, error = baselines.get("best_constant_action") if key == "best_constant_return" else None, baselines.get(f"{key}_standard_error")
            value = number(baselines[key]) + (f" ± {number(error, 3)}" if _is_number(error) else "")
            radius = above[key]["radius"] if key in above else None
            rows.append((name + (f" (action {which})" if which is not None else ""), value, "" if key not in above else "at none" if radius is None else whole(radius)))
        elif isinstance(why := baselines.get(f"{key}_failure"), str):
            rows.append((name, f"failed: {why}", ""))
    floor, ceiling = inputs["return_range"]
    return [*rows, (f"Public floor of the {noun(inputs)}", exactly(floor), ""), (f"Public ceiling of the {noun(inputs)}", exactly(ceiling), "")]


def number(value, digits: int = 6) -> str:
    return "none" if value is None else f"{value:.{digits}g}"


def whole(value) -> str:
    """A count or a radius; a median radius may end in .5, a mean one is rounded down."""
    if value is None:
        return "none"
    whole, _, tenth = tenths_down(value).partition(".")
    return f"{int(whole):,}" + (f".{tenth}" if tenth else "")


def _counted(number: int, noun: str) -> str:
    return counted(number, noun, form=",")


def claimed_percent(fraction) -> str:
    """A claimed fraction, never rounded up."""
    return f"{percent_down(fraction)}\N{NO-BREAK SPACE}%"


def claimed_percent_up(fraction) -> str:
    """A claimed upper bound, never rounded down."""
    return f"{percent_up(fraction)}\N{NO-BREAK SPACE}%"


def _bands(inputs: dict) -> list[str]:
    """The certificate's own band, then the other."""
    return sorted(BANDS, key=lambda name: name != inputs["band"])


def _bound_label(name: str, inputs: dict) -> str:
    text = f"{_band_title(name)} band ({_confidence(inputs)} %)"
    return f"certified, {text}" if name == inputs["band"] else text


def _band_title(name: str) -> str:
    return "DKW" if name == "dkw" else name


def _confidence(inputs: dict, statements: int = 1) -> str:
    return confidence_percent(inputs["eta"], statements)


def _radii(scope: dict) -> np.ndarray:
    return np.array([-1 if r is None else r for r in scope["radius"]])


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and np.isfinite(value)


def _flat(values: dict, prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in values.items():
        name = f"{prefix} {key}".strip().replace("_", " ")
        if isinstance(value, dict):
            rows += _flat(value, name)
        elif value is not None:
            rows.append((name, ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)))
    return rows


def _both(certificate: dict, plot, arrays: dict, *, caption: str, **texts) -> FigureData:
    warning, words = "", ""
    if certificate["inputs"]["condition"]:
        warning, words = "CONDITIONAL", "the claim says on what. "
    if not certificate["results"]["sound"]:
        warning, words = "NOT SOUND", "nobody may rely on this. "
    wide, narrow = (plot(**arrays, look=replace(look, warning=warning)) for look in (plots.WIDE, plots.NARROW))
    return FigureData(wide=wide, narrow=narrow, caption=f"{warning}: {words}{caption}" if warning else caption, **texts)


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
