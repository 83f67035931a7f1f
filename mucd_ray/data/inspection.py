"""What is in a dataset or file, for people: counts, and whatever looks wrong. Nothing else uses it: no constant of a run follows from a report."""

import functools
import itertools
from collections import Counter
from dataclasses import asdict

import numpy as np

from mucd_ray.files import printable
from mucd_ray.words import counted

# Of places, keys and columns that are listed one by one.
MOST_LISTED = 100
MOST_TOLD = 12


def inspect(loaded) -> dict:
    """The report on an `importing.Loaded`, in plain values. Counts are of the valid trajectories alone.

    Returns:
        format, plugin (that reads it, or None), sha256, files; transitions, trajectories, terminated, truncated; spaces {observations, actions, actions_declared}; lengths and returns {least, median, greatest};
        sources {key: how many different}; duplicates {trajectories whose content another one before them has, of how many different ones they are copies}; constant_columns; non_finite {observations, actions, rewards: rows, invalid trajectories included};
        invalid [{place, faults}], at most MOST_LISTED of invalid_trajectories; findings, sentences.
    """
    episodes = loaded.episodes
    returns: list[float] = []
    digests: Counter[str] = Counter()
    for episode in episodes:
        alone = loaded.alone(episode)
        returns += alone.trajectory_returns.tolist()
        digests.update(alone.trajectory_digests())
    report = {
        "format": loaded.format, "plugin": loaded.plugin and asdict(loaded.plugin), "sha256": loaded.sha256, "files": loaded.files, "environment": loaded.spec and loaded.spec["id"],
        "transitions": sum(map(len, episodes)), "trajectories": len(episodes), "terminated": sum(episode.terminated for episode in episodes),
        "truncated": sum(episode.truncated for episode in episodes),
        "spaces": {"observations": _space(loaded.observation_space), "actions": _space(loaded.action_space), "actions_declared": loaded.declared},
        "lengths": _spread([len(episode) for episode in episodes]), "returns": _spread(returns),
        "sources": _sources(episodes), "duplicates": {"trajectories": digests.total() - len(digests), "of": sum(count > 1 for count in digests.values())}, "constant_columns": _constant_columns(episodes), "non_finite": _non_finite(loaded),
        "invalid_trajectories": len(loaded.invalid), "invalid": [{"place": episode.place, "faults": list(episode.faults)} for episode in loaded.invalid[:MOST_LISTED]],
    }
    return report | {"findings": _findings(loaded, report)}


def _space(space) -> str:
    """In a line: numpy shows bounds of images over several."""
    text = " ".join(str(space).split())
    return text if len(text) <= 200 else f"{text[:150]} ... {text[-40:]}"


def _spread(values) -> dict | None:
    if not len(values):
        return None
    # Finite rewards may have a sum that is not, which JSON lacks.
    return {name: float(np.nan_to_num(of(values))) for name, of in (("least", np.min), ("median", np.median), ("greatest", np.max))}


def _sources(episodes) -> dict[str, int]:
    """How many different values each key has; trajectories without it are not counted."""
    names = sorted({name for episode in episodes for name in episode.keys})[:MOST_LISTED]
    return {name: len({str(episode.keys[name]) for episode in episodes if name in episode.keys}) for name in names}


def _constant_columns(episodes) -> list[str]:
    if not episodes:
        return []
    found = []
    for name in ("observations", "actions", "rewards"):
        arrays = [getattr(episode, name)[: len(episode)].reshape(len(episode), -1) for episode in episodes]
        same = functools.reduce(np.logical_and, ((array == arrays[0][0]).all(axis=0) for array in arrays))
        found += [f"{name}[{column}]" if len(same) > 1 else name for column in np.flatnonzero(same)[:MOST_LISTED].tolist()]
    return found


def _non_finite(loaded) -> dict[str, int]:
    episodes = [*loaded.episodes, *loaded.invalid]
    return {name: sum(int((~np.isfinite(values).reshape(len(values), -1).all(axis=1)).sum()) for episode in episodes if len(values := getattr(episode, name))) for name in ("observations", "actions", "rewards")}


def _findings(loaded, report: dict) -> list[str]:
    found = list(loaded.notes)
    found += [f"{episode.place}: {printable(fault)}" for episode in loaded.invalid[:MOST_TOLD] for fault in episode.faults]
    if len(loaded.invalid) > MOST_TOLD:
        found.append(f"and {counted(len(loaded.invalid) - MOST_TOLD, 'more invalid trajectory')}")
    if not loaded.episodes:
        return found
    if report["duplicates"]["trajectories"]:
        found.append(f"copies, number for number: {counted(report['duplicates']['trajectories'], 'trajectory')} of {report['duplicates']['of']} others; each is a unit of its own, and its maker counts once for each")
    if report["constant_columns"]:
        columns = report["constant_columns"]
        found.append(f"the same in every row: {', '.join(columns[:MOST_TOLD])}{', ...' if len(columns) > MOST_TOLD else ''}")
    silent = len(loaded.episodes) - report["terminated"] - report["truncated"]
    if silent > 0:
        found.append(f"neither terminated nor truncated: {counted(silent, 'trajectory')}, which end where their record does")
    joined = _continued(loaded.episodes)
    if joined:
        found.append(f"where the one before ends there begins {counted(joined, 'trajectory')}, with the same observation: perhaps one was cut in several, which then counts as several units")
    return found


def _continued(episodes) -> int:
    return sum(np.array_equal(before.observations[-1], after.observations[0]) for before, after in itertools.pairwise(episodes))


def told(report: dict, name: str) -> str:
    """The report in lines."""
    spread = {key: "none" if report[key] is None else "{least:g} to {greatest:g}, median {median:g}".format(**report[key]) for key in ("lengths", "returns")}
    by = "" if report["plugin"] is None else ", read by the plug-in {value} of {package} {version}".format(**report["plugin"])
    keys = ", ".join(f"{printable(key)} ({counted(number, 'source')})" for key, number in report["sources"].items())
    lines = [
        f"{name}: {counted(report['transitions'], 'transition', form=',')} in {counted(report['trajectories'], 'trajectory', form=',')} ({report['format']}{by})",
        f"ends          {report['terminated']:,} terminated, {report['truncated']:,} truncated",
        f"lengths       {spread['lengths']}",
        f"returns       {spread['returns']}",
        f"observations  {report['spaces']['observations']}",
        f"actions       {report['spaces']['actions']}" + ("" if report["spaces"]["actions_declared"] else " (not declared: it follows from the rows)"),
        f"environment   {report['environment'] or 'not said: `mucd run` needs one, by --environment here or --card FILE there, or --no-environment'}",
        f"source keys   {keys or 'none'}",
        f"sha256        {report['sha256']}",
    ]
    return "\n".join([*lines, *(f"- {text}" for text in report["findings"])])
