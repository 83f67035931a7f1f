"""The voted policy's return in a certificate: its evidence, strictly checked, and its numbers.

Evidence is what was followed of every episode's tree: the votes at every node, and the rewards of every step that was taken.
"""

from functools import partial

import numpy as np

from mucd_ray.certify.confidence.proportions import LEAST_ETA
from mucd_ray.certify.file.evidence import checked_array, checked_reals, checked_wholes
from mucd_ray.certify.forbidden import avoided_radius
from mucd_ray.certify.policy import SHARES_KEPT, return_band
from mucd_ray.certify.rounding import exactly, percent_down, round_down, share
from mucd_ray.certify.rules import RULES, reach_of
from mucd_ray.certify.voted_return import END, ExactVotes, LeastRadii, Returns, Rows, SampledVotes, Tree, most_size, voted_path, voted_radii, worst_return
from mucd_ray.errors import MucdError
from mucd_ray.mechanism.kinds import from_values
from mucd_ray.mechanism.neighbours import Neighbours
from mucd_ray.mechanism.units import UNITS
from mucd_ray.mechanism.work import spend
from mucd_ray.words import counted

KEYS = {"kind", "horizon", "least_reward", "rows", "episodes"}
EPISODE_KEYS = {"rows", "node", "action", "reward", "next"}
# By kind of mechanism, what may stand in a row: votes of the instances, votes of all parts, or the least number of changed units, or for a vote rule of changed parts, for each action. The
# policies of parts have only then one vote each that is known if training has no randomness.
KINDS = {"gaussian": ("votes",), "bag": ("votes",), "bag-then-noise": ("votes",), "partition": ("exact", "votes", "rule"), "neighbours": ("least",)}
# Of these kinds nothing is sampled but the episodes.
SURE = ("exact", "least", "rule")
# Episodes times steps: more than a file could hold.
MOST_STEPS = 1 << 40
# What the policy does at a state, by kind.
DOES = {"votes": "training on that dataset gives most often", "exact": "gets the most votes of all parts' policies", "least": "gets the most votes of the nearest units"}


def rule_of(kind: str, guarantees, *, threat: str, instances: int, eta: float, steps: int, rule: str | None = None):
    """What an attacker can make of a row: see `certify/voted_return.py`. Half of `eta` is for all nodes, where they are sampled. `rule`: the name of a vote rule, of its kind."""
    if rule is not None:
        return LeastRadii(reach_of(RULES[rule], guarantees.mechanism, threat))
    if kind == "votes":
        return SampledVotes(guarantees, instances=instances, eta=eta / 2, steps=steps)
    return ExactVotes(threat, guarantees.mechanism.spread) if kind == "exact" else LeastRadii()


def episode_evidence(tree: Tree) -> dict:
    """A tree as plain JSON values; rows are numbered as in the table beside it."""
    steps = [(node, action, reward, after) for node, taken in enumerate(tree.steps) for action, (reward, after) in sorted(taken.items())]
    return {"rows": list(tree.rows)} | {name: [step[k] for step in steps] for k, name in enumerate(("node", "action", "reward", "next"))}


def voted_evidence(kind: str, horizon: int, least_reward: float | None, tables: list[np.ndarray], episodes: list[dict], never: int | None = None, rule: dict | None = None) -> dict:
    """Episodes, each of whose rows are numbered in a table of its own [K, A], as one piece of evidence; `never`: the forbidden action, if there is one; `rule`: the vote rule's name and window, of its kind."""
    rows = Rows(None, tables[0].shape[1])
    renumbered = []
    for table, episode in zip(tables, episodes, strict=True):
        number = rows.add(table)
        renumbered.append(episode | {"rows": [number[row] for row in episode["rows"]]})
    return {"kind": kind, "horizon": int(horizon), "least_reward": None if least_reward is None else float(least_reward), "rows": rows.table.tolist(), "episodes": renumbered} | {
        name: value for name, value in (("never", never), ("rule", rule)) if value is not None
    }


def tree_of(episode: dict, rows: int, actions: int, horizon: int, least_reward: float | None) -> Tree:
    """The tree of `episode_evidence`'s values, from anybody.

    Raises:
        MucdError: anything else; nodes that nothing leads to, or that stand at two depths; a reward below the least.
    """
    if not isinstance(episode, dict) or set(episode) != EPISODE_KEYS:
        raise MucdError(f"an episode of the voted policy has exactly the keys {', '.join(sorted(EPISODE_KEYS))}")
    for name in ("rows", "node", "action", "next"):
        if not isinstance(episode[name], list):
            raise MucdError(f"voted {name} must be a list of whole numbers")
        checked_wholes(f"voted {name}", episode[name])
    checked_reals("voted reward", episode["reward"], len(episode["node"]))
    nodes = len(episode["rows"])
    if not nodes or not len(episode["node"]) == len(episode["action"]) == len(episode["next"]):
        raise MucdError("an episode of the voted policy must have a node, and a node, action, reward and next for each of its steps")
    tree, depth = Tree(rows=episode["rows"], steps=[{} for _ in range(nodes)]), [0] + [None] * (nodes - 1)
    if max(tree.rows) >= rows:
        raise MucdError(f"voted rows: {max(tree.rows)} is not among the {rows} rows")
    for node, action, reward, after in zip(episode["node"], episode["action"], episode["reward"], episode["next"], strict=True):
        if not (node < nodes and action < actions and (after == END or node < after < nodes)) or action in tree.steps[node] or depth[node] is None:
            raise MucdError(f"voted steps: node {node}, action {action}, next {after} do not fit a tree of {nodes} nodes in their order")
        if least_reward is not None and reward < least_reward:
            raise MucdError(f"voted reward {reward} is below the least reward {least_reward}")
        if after != END and depth[after] not in (None, depth[node] + 1):
            raise MucdError(f"voted steps: node {after} stands at two depths")
        if depth[node] >= horizon:
            raise MucdError(f"voted steps: node {node} is later than the {horizon} steps of an episode")
        if after != END:
            depth[after] = depth[node] + 1
        tree.steps[node][action] = (float(reward), after)
    if None in depth:
        raise MucdError(f"voted steps: nothing leads to node {depth.index(None)}")
    return tree


def voted_results(inputs: dict, guarantees, eta: float, cap: int) -> dict:
    """Every number about the voted policy, from `inputs` alone; `guarantees` may be None where none of its votes are sampled."""
    voted = inputs["voted"]
    if not isinstance(voted, dict) or set(voted) - {"never", "rule"} != KEYS:
        raise MucdError(f"voted must have exactly the keys {', '.join(sorted(KEYS))}")
    kind = voted["kind"]
    if not isinstance(kind, str) or kind not in KINDS.get(inputs["mechanism"]["kind"], ()):
        raise MucdError(f"voted kind {str(kind)[:60]!r} is not one of a mechanism of kind {inputs['mechanism']['kind']}")
    checked_wholes("voted horizon", [voted["horizon"]])
    if voted["least_reward"] is not None:
        checked_reals("voted least reward", [voted["least_reward"]])
    table = checked_array("voted rows", voted["rows"], 2)
    name = _checked_rule(voted, inputs)
    if kind == "least":
        _check_least(table, inputs)
    elif kind == "rule":
        most = most_size(inputs["mechanism"]["parts"])
        if table.shape[1] < 2 or np.any((table == 0).sum(1) != 1) or table.max() > most:
            raise MucdError(f"voted rows must be of at least 2 actions, have one 0 each, and nothing above {most}, a majority of {inputs['mechanism']['parts']} parts")
    else:
        voters = {"votes": len(inputs["returns"]), "exact": inputs["mechanism"].get("parts")}[kind]
        if table.shape[1] < 2 or np.any(table > voters) or np.any(table.sum(1) != voters):
            raise MucdError(f"voted rows must be of at least 2 actions and sum to {voters}")
    episodes, horizon = voted["episodes"], voted["horizon"]
    if not isinstance(episodes, list) or not episodes or horizon < 1 or len(episodes) * horizon > MOST_STEPS:
        raise MucdError("voted episodes must be a list, not empty, with a horizon of at least 1 step")
    spend(10 * table.size)
    rows_there, actions = table.shape
    trees = [tree_of(episode, rows_there, actions, horizon, voted["least_reward"]) for episode in episodes]
    low, high = inputs["return_range"]
    returns = Returns(discount=inputs["discount"], low=low, high=high, clipped=inputs["clipped"], horizon=horizon, least_reward=voted["least_reward"])
    if "never" in voted:
        checked_wholes("voted never", [voted["never"]])
        if voted["never"] >= actions:
            raise MucdError(f"voted never {voted['never']} must be an action below {actions}")
    rows = Rows(rule_of(kind, guarantees, threat=inputs["threat"], instances=len(inputs["returns"]), eta=eta, steps=len(trees) * horizon, rule=name), actions, voted["rows"])
    return _numbers(inputs, trees, rows, returns, eta if kind in SURE else eta / 2, cap) | {"kind": kind}


def _checked_rule(voted: dict, inputs: dict) -> str | None:
    """The name of the vote rule, of its kind. Raises MucdError where it is none."""
    if (voted["kind"] == "rule") != ("rule" in voted):
        raise MucdError("voted rule is that of voted kind 'rule', and of no other")
    if "rule" not in voted:
        return None
    rule = voted["rule"]
    if not isinstance(rule, dict) or set(rule) != {"name", "window"} or not isinstance(rule["name"], str) or rule["name"] not in RULES:
        raise MucdError(f"voted rule must have a name among {', '.join(RULES)}, and a window")
    if rule["window"] is not None:
        checked_wholes("voted rule window", [rule["window"]])
    if (rule["window"] is not None) != RULES[rule["name"]].windowed or rule["window"] == 0:
        raise MucdError(f"voted rule window {rule['window']} must be at least 1 where the past counts, else null")
    if inputs["trainer"] is not None:
        raise MucdError("vote rules are those of a partition whose parts are trained once each, by the package's own learners")
    return rule["name"]


def _check_least(table: np.ndarray, inputs: dict) -> None:
    """Raise MucdError where no votes of K neighbours need so many changed units."""
    mechanism, actions = from_values(inputs["mechanism"]), inputs["actions"]["actions"]
    assert isinstance(mechanism, Neighbours)
    if table.shape[1] != actions or np.any((table == 0).sum(1) != 1) or table.max() > mechanism.neighbours + 1:
        raise MucdError(f"voted rows must be of {actions} actions, have one 0 each, and nothing above {mechanism.neighbours + 1}")
    most = 1 + mechanism.most_radius(inputs["units"], inputs["threat"])
    if (least := np.sort(table, axis=1)[:, 1].max()) > most:
        raise MucdError(f"voted rows: {least} changed units for any other action are above {most}, the most that {mechanism.neighbours} neighbours need")


def _numbers(inputs: dict, trees: list[Tree], rows: Rows, returns: Returns, eta: float, cap: int) -> dict:
    """`eta`: of the bounds on the expected return, at all radii together."""
    try:
        own = np.array([voted_path(tree, rows, returns) for tree in trees])
    except (KeyError, ValueError):
        raise MucdError("voted steps: an episode does not follow the voted policy to its end") from None
    radii = voted_radii(cap)
    if eta / len(radii) < LEAST_ETA:
        raise MucdError(f"eta {eta:g} shared by {len(radii)} radii is below {LEAST_ETA:g} for each: use a larger eta")
    played: list[float] = []
    bound: list[float] = []
    complete: list[float] = []
    nothing = returns.of(returns.rest(0), played=False)
    for radius in radii:
        if complete and complete[-1] == 0 and played[-1] == nothing:
            # Every tree was cut off at its beginning, or is worth no more: so it is at all larger radii, whose accounting is spared.
            played.append(nothing)
            bound.append(nothing)
            complete.append(0.0)
            continue
        found = [worst_return(tree, rows, radius, returns) for tree in trees]
        worst = np.array([value for value, _ in found])
        band = return_band(worst, (returns.low, returns.high), eta=eta / len(radii), method=inputs["band"])
        played.append(float(worst.mean()))
        bound.append(band.expected_return(lambda p: p))
        complete.append(float(np.mean([whole for _, whole in found])))
    mean = float(own.mean())
    never = {"never": _avoided(inputs["voted"]["never"], trees, rows, radii, returns.horizon)} if "never" in inputs["voted"] else {}
    return never | {
        "episodes": len(trees),
        "unpoisoned_mean": mean,
        "unpoisoned_standard_error": float(own.std(ddof=1) / np.sqrt(len(own))) if len(own) > 1 else None,
        "keeps": _keeps(mean, returns.low, radii, bound, inputs["units"]),
        "keeps_played": _keeps(mean, returns.low, radii, played, inputs["units"]),
        "curve": {"radius": radii, "fraction": [radius / inputs["units"] for radius in radii], "bound": bound, "played": played, "complete": complete},
    }


def _avoided(action: int, trees: list[Tree], rows: Rows, radii: list[int], horizon: int) -> dict:
    found = np.array([avoided_radius(tree, rows, radii, action, horizon) for tree in trees])
    return {"radius": found.tolist(), "share": [float(np.mean(found >= radius)) for radius in radii]}


def voted_claim(inputs: dict, voted: dict, what: str) -> str:
    """The results of `voted_results` in words; `what`: the name of the return."""
    low, high = inputs["return_range"]
    bound, half, played = partial(round_down, width=high - low), voted["keeps"]["0.5"], voted["keeps_played"]["0.5"]
    at, tree = voted["curve"]["radius"].index(max(played["radius"], 0)), inputs["voted"]
    whose = f"Voted policy, which takes at every state the action that {DOES[voted['kind']]}" if voted["kind"] != "rule" else f"Policy of vote rule {tree['rule']['name']}, which takes {RULES[tree['rule']['name']].words.format(window=tree['rule']['window'])}"
    words = (
        f"{whose}: on D it earned {bound(voted['unpoisoned_mean'])} in the mean of {counted(voted['episodes'], 'episode')}. "
        + (
            f"For every D' with r = {played['radius']} ({share(played['radius'], inputs['units'])} of D) its mean {what} in these episodes, whose randomness is the same for D', is at least {bound(played['bound'])} "
            f"({percent_down(voted['curve']['complete'][at])} % of them were followed to their end through everything that D' can make of them)"
            if played["radius"] >= 1
            else f"No radius keeps half of the height of its mean {what} in these episodes above the least possible one"
        )
        + ". "
        + (
            f"For every D' with r = {half['radius']} ({share(half['radius'], inputs['units'])} of D) its expected {what}, over what is random in the environment, is at least {bound(half['bound'])}."
            if half["radius"] >= 1
            else f"About its expected {what} over what is random in the environment too little is known from these episodes to keep half at any radius."
        )
    )
    least = "" if tree["least_reward"] is None else f", whose least reward is {exactly(tree['least_reward'])}"
    words += f" An episode has at most {counted(tree['horizon'], 'step')}{least}."
    if "never" in voted:
        kept = voted["never"]["radius"]
        words += (
            f" Forbidden action {tree['never']} (counted from 0): in {share(sum(radius >= 1 for radius in kept), voted['episodes'])} of these episodes that policy takes it at no step, whatever D' makes of the "
            f"episode, for every D' within the episode's listed number of changed {UNITS[inputs['mechanism']['unit']]}, which is at least 1 (largest {max(max(kept), 0) or 'none'}). Nothing of this is said of other episodes."
        )
    if voted["kind"] not in SURE:
        words += (
            " The vote of finitely many instances, as it is deployed, estimates that policy: at states where training gives two actions about equally often, on D or on D', it may take the other one, and what it then earns is not bounded here."
        )
    return words


def _keeps(mean: float, floor: float, radii: list[int], bounds: list[float], units: int) -> dict:
    """As `shares_kept`, at the listed radii alone."""
    keeps = {}
    for part in SHARES_KEPT:
        wanted = floor + part * (mean - floor)
        kept = [k for k, bound in enumerate(bounds) if bound >= wanted and mean > floor]
        radius = radii[max(kept)] if kept else -1
        keeps[f"{part:g}"] = {"radius": radius, "fraction": max(radius, 0) / units, "bound": bounds[max(kept, default=0)]}
    return keeps
