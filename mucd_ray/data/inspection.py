"""What is in a dataset or file, for people: counts, and whatever looks wrong. Nothing else uses it: no constant of a run follows from a report."""

from collections import Counter

import numpy as np

from mucd_ray.files import printable
from mucd_ray.words import counted

# Of places, keys and columns that are listed one by one.
MOST_LISTED = 100
MOST_TOLD = 12


def inspect(loaded) -> dict:
    """The report on an `importing.Loaded`, in plain values. Counts are of the valid trajectories alone.

    Returns:
        format, sha256, files; transitions, trajectories, terminated, truncated; spaces {observations, actions, actions_declared}; lengths and returns {least, median, greatest};
        sources {key: how many different}; duplicates {trajectories, of}; constant_columns; non_finite {observations, actions, rewards: rows, invalid trajectories included};
        invalid [{place, faults}], at most MOST_LISTED of invalid_trajectories; findings, sentences.
    """
    dataset, episodes = loaded.dataset, loaded.episodes
    report = {
        "format": loaded.format, "sha256": loaded.sha256, "files": loaded.files, "environment": loaded.spec and loaded.spec["id"],
        "transitions": len(dataset) if dataset else 0, "trajectories": len(episodes), "terminated": sum(episode.terminated for episode in episodes),
        "truncated": sum(episode.truncated for episode in episodes),
        "spaces": {"observations": _space(loaded.observation_space), "actions": _space(loaded.action_space), "actions_declared": loaded.declared},
        "lengths": _spread([len(episode) for episode in episodes]), "returns": _spread(dataset.trajectory_returns if dataset else []),
        "sources": _sources(episodes), "duplicates": _duplicates(dataset), "constant_columns": _constant_columns(dataset), "non_finite": _non_finite(loaded),
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


def _duplicates(dataset) -> dict:
    """Trajectories whose content another one before them has, and of how many different ones they are copies."""
    if dataset is None:
        return {"trajectories": 0, "of": 0}
    counts = Counter(dataset.trajectory_digests())
    return {"trajectories": sum(counts.values()) - len(counts), "of": sum(count > 1 for count in counts.values())}


def _constant_columns(dataset) -> list[str]:
    if dataset is None:
        return []
    found = []
    for name in ("observations", "actions"):
        values = getattr(dataset, name).reshape(len(dataset), -1)
        constant = np.flatnonzero((values == values[0]).all(axis=0))
        found += [f"{name}[{column}]" if values.shape[1] > 1 else name for column in constant[:MOST_LISTED].tolist()]
    return found + (["rewards"] if (dataset.rewards == dataset.rewards[0]).all() else [])


def _non_finite(loaded) -> dict[str, int]:
    episodes = [*loaded.episodes, *loaded.invalid]
    return {name: sum(int((~np.isfinite(values).reshape(len(values), -1).all(axis=1)).sum()) for episode in episodes if len(values := getattr(episode, name))) for name in ("observations", "actions", "rewards")}


def _findings(loaded, report: dict) -> list[str]:
    found = list(loaded.notes)
    found += [f"{episode.place}: {printable(fault)}" for episode in loaded.invalid[:MOST_TOLD] for fault in episode.faults]
    if len(loaded.invalid) > MOST_TOLD:
        found.append(f"and {counted(len(loaded.invalid) - MOST_TOLD, 'more invalid trajectory')}")
    if loaded.dataset is None:
        return found
    if report["duplicates"]["trajectories"]:
        found.append(f"copies, number for number: {counted(report['duplicates']['trajectories'], 'trajectory')} of {report['duplicates']['of']} others; each is a unit of its own, and its maker counts once for each")
    if report["constant_columns"]:
        columns = report["constant_columns"]
        found.append(f"the same in every row: {', '.join(columns[:MOST_TOLD])}{', ...' if len(columns) > MOST_TOLD else ''}")
    silent = len(loaded.episodes) - report["terminated"] - report["truncated"]
    if silent > 0:
        found.append(f"neither terminated nor truncated: {counted(silent, 'trajectory')}, which end where their record does")
    joined = _continued(loaded.dataset)
    if joined:
        found.append(f"where the one before ends there begins {counted(joined, 'trajectory')}, with the same observation: perhaps one was cut in several, which then counts as several units")
    return found


def _continued(dataset) -> int:
    starts = dataset.trajectory_starts[1:-1]
    if not len(starts):
        return 0
    first, last = dataset.observations[starts].reshape(len(starts), -1), dataset.next_observations[starts - 1].reshape(len(starts), -1)
    return int((first == last).all(axis=1).sum())


def told(report: dict, name: str) -> str:
    """The report in lines."""
    spread = {key: "none" if report[key] is None else "{least:g} to {greatest:g}, median {median:g}".format(**report[key]) for key in ("lengths", "returns")}
    keys = ", ".join(f"{printable(key)} ({counted(number, 'source')})" for key, number in report["sources"].items())
    lines = [
        f"{name}: {counted(report['transitions'], 'transition', form=',')} in {counted(report['trajectories'], 'trajectory', form=',')} ({report['format']})",
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
