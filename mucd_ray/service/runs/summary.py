"""What a user sees of a certified run: the summary as data and as text."""

from functools import partial

import numpy as np

from mucd_ray.certify.file.claim import CONDITIONS, noun
from mucd_ray.certify.file.plain import plain_words
from mucd_ray.certify.rounding import confidence_percent, exactly, percent_down, round_down, tenths_down
from mucd_ray.mechanism.neighbours import Neighbours
from mucd_ray.progress import stage
from mucd_ray.report.report import (
    YARDSTICKS,
    baseline_names,
    mechanism_words,
    never_rows,
    normalised_score,
    number,
    report_files,
    rule_name,
    rule_rows,
    yardsticks,
)
from mucd_ray.report.warnings import warnings_of
from mucd_ray.service.runs.voting import SEARCH
from mucd_ray.service.storage.store import RunStore
from mucd_ray.words import counted

# Those of the published tables (Wang et al. 2020, Jia et al. 2021, Levine and Feizi 2021) and beyond.
ACCURACY_RADII = (0, 20, 40, 80, 160, 320)
SCOPES = {"per_state": "each state", "family_wise": "all states"}


def finish(store: RunStore, certificate: dict) -> dict:
    """Report and summary of a certified run."""
    write_report(store, certificate)
    summary = summarise(store, certificate)
    store.write_json("summary.json", summary)
    return summary


def write_report(store: RunStore, certificate: dict) -> str:
    """Write the report and its plots into the run folder -> where it is."""
    with stage("report"):
        for name, content in report_files(certificate, store.baselines() or {}).items():
            store.storage.replace(name, content)
    return store.file("report.html")


def summarise(store: RunStore, certificate: dict) -> dict:
    results, inputs = certificate["results"], certificate["inputs"]
    policy, action = results["policy"], results.get("action")
    summary = {
        "run": store.location,
        "certificate": store.file("certificate.json"),
        "report": store.file("report.html"),
        "in_plain_words": plain_words(certificate),
        "instances": results["instances"],
        "units": inputs["units"],
        "unit": inputs["mechanism"]["unit"],
        "mechanism": inputs["mechanism"],
        "features": inputs.get("features"),
        "algorithm": Neighbours.kind if inputs["mechanism"]["kind"] == Neighbours.kind else certificate["context"]["learner"]["algorithm"],
        "failures": certificate["context"]["failures"],
        "failures_by_cause": certificate["context"]["failures_by_cause"],
        "failure_words": store.failure_words() if inputs["trainer"] and certificate["context"]["failures"] or certificate["context"].get("unscored") else {},
        "trainer": inputs["trainer"],
        "of_card": store.settings().card_note,
        "threat": inputs["threat"],
        "accountant": inputs["accountant"],
        "sound": results["sound"],
        "eta": inputs["eta"],
        "signal_budget": results["signal_budget"],
        "warnings": warnings_of(certificate, certificate["context"]["baselines"] or {}),
        "looks": inputs["looks"],
        # A number of instances beside which others were asked for or looked at may have been chosen by results.
        "conditional": inputs["looks"] == "fixed" and inputs["mechanism"]["kind"] != Neighbours.kind and bool(set(store.targets()) - {results["instances"]} or store.looks()),
        "condition": inputs["condition"],
        "goal": results["goal"] and results["goal"] | {"text": inputs["goal"]},
    }
    if policy:
        summary |= _of_returns(inputs, policy, certificate["context"])
    if "voted" in results:
        summary["voted"] = _voted(results["voted"], certificate["context"]) | {"rule": inputs["voted"].get("rule"), "search": _search(results["voted"]["curve"], store.read_json(SEARCH))}
    elif (median := certificate["context"].get("median_action_return")) is not None:
        summary["voted"] = {"kind": "median", "mean": median, "keeps": None, "yardsticks": {}}
    if "never" in results.get("voted", {}):
        summary["voted"]["never"] = {"action": inputs["voted"]["never"], "at": never_rows(results["voted"])} | results["voted"]["never"]
    if "rule" in results:
        summary["rule"] = _rule(inputs["rule"], results["rule"])
    if "labels_sha256" in certificate["context"] and inputs["actions"]["reference"] is not None:
        summary["certified_accuracy"] = certified_accuracy(certificate)
    if action:
        summary["action"] = {"kind": action["kind"]} | {scope: _action_summary(action[scope]) for scope in SCOPES}
    return summary


def certified_accuracy(certificate: dict) -> dict[str, float]:
    """Of labelled images: by r the share of the test images, each by itself, whose class is right and stays so whatever r changed units do (Cohen et al. 2019)."""
    action = certificate["results"]["action"]
    right = np.array(action["action"]) == np.array(certificate["inputs"]["actions"]["reference"])
    radii = np.array([-1 if radius is None else radius for radius in action["per_state"]["radius"]])
    return {str(radius): float(np.mean(right & (radii >= radius))) for radius in ACCURACY_RADII}


def _of_returns(inputs: dict, policy: dict, context: dict) -> dict:
    """What the summary says of returns, or of scores, where there are any."""
    scored = {name: context[name] for name in ("unscored", "unscored_by_cause")} | {"evaluator": inputs["evaluator"]} if "evaluator" in inputs else {}
    return scored | {
        "unpoisoned_mean": policy["unpoisoned_mean"],
        "unpoisoned_standard_error": policy["unpoisoned_standard_error"],
        "rollouts": inputs["rollouts"],
        "discount": inputs["discount"],
        "clipped": inputs["return_range"] if inputs["clipped"] else None,
        f"{noun(inputs)}_range": inputs["return_range"],
        "keeps": {share: entry | {"median": _median_at(policy["curve"], entry["radius"])} for share, entry in policy["keeps"].items()},
        "baselines": context["baselines"],
        "yardsticks": yardsticks(policy["curve"], context["baselines"] or {}),
        "normalised": normalised_score(policy["unpoisoned_mean"], context["normalised"]),
    }


def _voted(voted: dict, context: dict) -> dict:
    """`keeps` and `yardsticks` are of the expected return, `played` of the mean return in the episodes that were played."""
    curve, baselines = voted["curve"], context["baselines"] or {}
    return {
        "kind": voted["kind"],
        "mean": voted["unpoisoned_mean"],
        "standard_error": voted["unpoisoned_standard_error"],
        "episodes": voted["episodes"],
        "complete": curve["complete"][0],
        "keeps": voted["keeps"],
        "yardsticks": yardsticks(curve, baselines),
        "played": {"keeps": voted["keeps_played"], "yardsticks": yardsticks(curve | {"bound": curve["played"]}, baselines)},
        "normalised": normalised_score(voted["unpoisoned_mean"], context["normalised"]),
    }


def _search(curve: dict, search: dict | None) -> dict | None:
    """How far all episodes were followed, for how many steps at each radius up to the first at which one was given up, and how fast; None where an earlier version has followed them."""
    if search is None or not search["seconds"]:
        return None
    steps = dict(zip(search["radius"], search["steps"], strict=True))
    at = [{"radius": radius, "steps": steps[radius], "complete": complete, "bound": bound} for radius, complete, bound in zip(curve["radius"], curve["complete"], curve["played"]) if radius in steps]
    return {"nodes": search["nodes"], "seconds": search["seconds"], "nodes_per_second": search["nodes"] / search["seconds"], "at": at}


def _rule(evidence: dict, rule: dict) -> dict:
    """`at`: shares and bound at a few radii (`rule_rows`); `curve`: at all."""
    numbers = {name: rule[name] for name in ("name", "episodes", "states", "unpoisoned_mean", "certified_share", "median_radius", "max_radius", "curve")}
    never = rule["never"] and {"action": evidence["never"], "share": rule["never"]["share"], "episode_share": rule["never"]["episode_share"]}
    return numbers | {"window": evidence["window"], "never": never, "at": rule_rows(rule)}


def _median_at(curve: dict, radius: int) -> float | None:
    """The bound on the median return under D' at this radius."""
    return curve["quantiles"]["0.5"][curve["radius"].index(radius)] if radius >= 0 else None


def _action_summary(part: dict) -> dict:
    """Shares of the states that are certified at r >= 1, and their radii; for continuous actions by tolerance."""
    keys = ("certified_share", "median_radius", "max_radius")
    if "tolerance" in part:
        return {"tolerance": {share: {key: entry[key] for key in keys} for share, entry in part["tolerance"].items()}}
    accuracy, at = part["curve"]["certified_accuracy"], part["curve"]["radius"].index(1)
    return {key: part[key] for key in keys} | {"certified_accuracy": None if accuracy is None else accuracy[at]}


def describe(summary: dict) -> str:
    """The summary for people."""
    without_chance = summary["mechanism"]["kind"] == Neighbours.kind
    voters = "" if without_chance and not summary["instances"] else counted(summary["instances"], "episode" if without_chance else "instance") + " of "
    lines = [
        *summary["in_plain_words"],
        f"{voters}{summary['algorithm']}; {counted(summary['units'], summary['unit'])}; {summary['threat']} threat; {mechanism_words(summary['mechanism'], summary['accountant'])}; "
        + ("without chance" + (" but in the voted policy's expected return, " if "voted" in summary else "") if without_chance else "")
        + (f"confidence {confidence_percent(summary['eta'])} % (eta {exactly(summary['eta'])})" if not without_chance or "voted" in summary else "")
        + (", at all looks together" if summary["looks"] == "anytime" else "")
        + (f"; the last {summary['features']['history']} observations" if "history" in (summary["features"] or {}) else "")
        + (f"; the last {counted(summary['features']['steps'], 'step')} with actions and rewards" if "steps" in (summary["features"] or {}) else ""),
    ]
    if "unpoisoned_mean" in summary:
        lines.append(f"mean {_noun(summary)}, unpoisoned".ljust(24) + f" {number(summary['unpoisoned_mean']):>10s}" + _episodes(summary))
    if summary["features"] and summary["features"]["source"] == "privileged":
        lines.append("privileged features: out of the controller, or the model of the environment, that made the data")
    if summary["of_card"]:
        lines.append(f"of the environment's card: {summary['of_card']}")
    if summary["failures"]:
        causes = ", ".join(f"{number} {cause}" for cause, number in summary["failures_by_cause"].items())
        lines.append(f"{counted(summary['failures'], 'learner')} failed on what they were given and count as policies of the default action: {causes}")
    lines += [f"warning: {text}" for text in summary["warnings"]]
    if summary.get("unscored"):
        causes = ", ".join(f"{number} {cause}" for cause, number in summary["unscored_by_cause"].items())
        lines.append(f"{counted(summary['unscored'], 'instance')} got no score and count as {exactly(summary['score_range'][0])}: {causes}")
    lines += [f"  such as {words}" for words in summary["failure_words"].values()]
    if "unpoisoned_mean" in summary:
        lines += _describe_returns(summary, without_chance)
    if "action" in summary:
        scopes = {"per_state": "every state"} if without_chance else SCOPES
        right = "labelled" if "certified_accuracy" in summary else f"the reference ({baseline_names(summary['mechanism'])['non_private'].lower()})"
        of_scopes = [line for scope, name in scopes.items() for line in _describe_actions(summary["action"][scope], name, right)]
        lines += of_scopes or ["certified actions: at no state"]
    if "certified_accuracy" in summary:
        shares = ", ".join(f"{percent_down(share)} % at r = {radius}" for radius, share in summary["certified_accuracy"].items())
        lines.append(f"certified accuracy (each state): {shares}")
    if summary["goal"]:
        goal = summary["goal"]
        lines.append(
            f"goal {goal['text']}: {'met' if goal['met'] else 'NOT met'} with {counted(summary['instances'], 'instance')}; certified at r = {goal['radius']} is "
            f"{_round_down(summary)(goal['certified'], 4)}, wanted {exactly(goal['wanted'])}"
        )
    if not summary["sound"]:
        lines.insert(0, "NOT SOUND: published accounting, for comparison only")
    if summary["condition"]:
        lines.insert(0, f"CONDITIONAL: {CONDITIONS[summary['condition']]}")
    if summary["conditional"]:
        lines.append("on condition  that the number of instances was not chosen by looking at results; --looks anytime needs no such condition")
    return "\n".join([*lines, f"certificate  {summary['certificate']}", f"report       {summary['report']}"])


def _describe_returns(summary: dict, without_chance: bool) -> list[str]:
    noun = _noun(summary)
    bound, baselines = _round_down(summary), summary["baselines"] or {}
    names = baseline_names(summary["mechanism"]) | {"trusted": "Trained on trusted data"}
    lines = [f"{name.lower():24s} {_baseline(key, baselines, summary)}" for key, name in names.items() if key in baselines or f"{key}_failure" in baselines]
    for share, entry in summary["keeps"].items():
        if entry["radius"] >= 0:
            lines.append(
                f"certified: keeps {100 * float(share):.0f} % up to r = {counted(entry['radius'], summary['unit'])} ({percent_down(entry['fraction'])} %), "
                f"{'mean' if without_chance else 'expected'} {noun} at least {bound(entry['bound'])}, median at least {bound(entry['median'])}"
            )
    lost = [f"{100 * float(share):.0f} %" for share, entry in summary["keeps"].items() if entry["radius"] < 0]
    if lost:
        lines.append(f"certified: keeping {' or '.join(lost)} is not certified at any r")
    for name, entry in summary["yardsticks"].items():
        if entry["radius"] is None:
            lines.append(f"certified: not above {YARDSTICKS[name]} at any r")
        else:
            lines.append(f"certified: above {YARDSTICKS[name]} up to r = {counted(entry['radius'], summary['unit'])} ({percent_down(entry['radius'] / summary['units'])} %)")
    lines += _describe_voted(summary["voted"], summary, bound) if "voted" in summary else []
    return lines + (_describe_rule(summary["rule"], bound) if "rule" in summary else [])


def _round_down(summary: dict):
    """How bounds on returns are written, as in the report."""
    low, high = summary.get(f"{_noun(summary)}_range") or (None, None)
    return partial(round_down, width=None if low is None else high - low)


def _noun(summary: dict) -> str:
    return "score" if summary.get("evaluator") else "return"


def _baseline(name: str, baselines: dict, summary: dict) -> str:
    if name not in baselines:
        return f"failed: {baselines[f'{name}_failure']}"
    error, episodes = (baselines.get(f"{name}_{what}") for what in ("standard_error", "episodes"))
    if error is None or episodes is None:
        return f"{number(baselines[name]):>10s}"
    return f"{number(baselines[name]):>10s}  (± {number(error, 3)}, {counted(int(episodes), 'episode' if _noun(summary) == 'return' else 'score')})"


def _episodes(summary: dict) -> str:
    parts = [f"± {number(summary['unpoisoned_standard_error'], 3)}"] if summary["unpoisoned_standard_error"] is not None else []
    parts += [f"normalised score {summary['normalised']:.1f}"] if summary["normalised"] is not None else []
    parts += [f"{summary['rollouts']} {'episodes' if _noun(summary) == 'return' else 'scores'} each"] if summary["rollouts"] > 1 else []
    parts += ["clipped into [{}, {}]".format(*map(exactly, summary["clipped"]))] if summary["clipped"] else []
    parts += [f"discount {exactly(summary['discount'])}"] if summary["discount"] < 1 else []
    return f"  ({', '.join(parts)})" if parts else ""


def _describe_voted(voted: dict, summary: dict, bound) -> list[str]:
    if voted["kind"] == "median":
        return [f"voted policy (median action in each dimension) {number(voted['mean']):>10s}; its return is not certified: a certificate of the voted return is available for discrete actions"]
    name = "voted policy" if voted["rule"] is None else f"policy of {rule_name(voted['rule']['name'], voted['rule']['window'])}"
    lines = [f"{name:24s} {number(voted['mean']):>10s}  ({counted(voted['episodes'], 'episode')})"]
    for what, keeps in (("in these episodes", voted["played"]["keeps"]), ("expected", voted["keeps"])):
        kept = [
            f"{100 * float(share):.0f} % up to r = {entry['radius']} ({percent_down(entry['fraction'])} %, at least {bound(entry['bound'])})" for share, entry in keeps.items() if entry["radius"] >= 0
        ]
        lines.append(f"certified: {name}, return {what}: keeps {', '.join(kept)}" if kept else f"certified: {name}, return {what}: keeping half is not certified at any r")
    if "never" in voted:
        shares = ", ".join(f"{percent_down(row['share'])} % at r = {row['radius']}" for row in voted["never"]["at"])
        lines.append(f"certified: forbidden action {voted['never']['action']} never taken in the whole episode: {shares} of these episodes")
    lines += _describe_search(voted["search"], bound) if voted["search"] else []
    if voted["complete"] < 1:
        lines.append(f"of {percent_down(1 - voted['complete'])} % of its episodes not even what r = 0 leaves open was followed to the end (more --instances decide more votes; --nodes follows further)")
    return lines


def _describe_search(search: dict, bound) -> list[str]:
    whole = [row for row in search["at"] if row["complete"] == 1]
    part = next((row for row in search["at"] if row["complete"] < 1), None)
    reach = [f"to the end of all episodes up to r = {whole[-1]['radius']} (mean at least {bound(whole[-1]['bound'])})"] if whole else []
    reach += [f"for at least {counted(part['steps'], 'step')} at r = {part['radius']} (mean at least {bound(part['bound'])})"] if part else []
    speed = f"{counted(search['nodes'], 'node')}, {number(search['nodes_per_second'])} a second"
    return [f"search: all that poisoned votes could do was followed {', and '.join(reach)}; {speed}"] if reach else []


def _describe_rule(rule: dict, bound) -> list[str]:
    """Without chance, and of these episodes alone."""
    def at_radii(name: str) -> str:
        return ", ".join(f"{percent_down(row[name])} % at r = {row['radius']}" for row in rule["at"])

    lines = [
        f"vote rule {rule_name(rule['name'], rule['window'])}".ljust(24) + f" {number(rule['unpoisoned_mean']):>10s}  ({counted(rule['episodes'], 'episode')}, {counted(rule['states'], 'state')})",
        f"certified: vote rule, action stays: {at_radii('share')} of these states; median r = {_radius(rule['median_radius'])}, largest {_radius(rule['max_radius'])}",
        f"certified: vote rule, whole episodes stay: {at_radii('unchanged')} of them; their mean return at r = 1 at least {bound(rule['at'][0]['bound'])}",
    ]
    if rule["never"]:
        lines += [
            f"certified: forbidden action {rule['never']['action']} stays impossible: {at_radii('never_share')} of these states",
            f"certified: forbidden action {rule['never']['action']} not taken up to the first action that changes: {at_radii('never_episode_share')} of these episodes",
        ]
    return lines


def _radius(radius: float | None) -> str:
    return "none" if radius is None else tenths_down(radius)


def _describe_actions(part: dict, name: str, right: str) -> list[str]:
    """Nothing about what is certified at no state."""
    if "tolerance" in part:
        return [
            f"certified median actions ({name}): in an interval at most {200 * float(share):g} % of the action range wide at {percent_down(entry['certified_share'])} % of states, "
            f"median r = {_radius(entry['median_radius'])}, largest {_radius(entry['max_radius'])}"
            for share, entry in part["tolerance"].items()
            if entry["certified_share"]
        ]
    if not part["certified_share"]:
        return []
    line = f"certified actions ({name}): stable at {percent_down(part['certified_share'])} % of states, median r = {_radius(part['median_radius'])}, largest {_radius(part['max_radius'])}"
    if part["certified_accuracy"] is not None:
        line += f"; certified and as {right} at {percent_down(part['certified_accuracy'])} %"
    return [line]
