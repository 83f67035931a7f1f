"""Certified runs side by side, from the summaries in their folders."""

from mucd_ray.certify.rounding import percent_down, tenths_down
from mucd_ray.errors import MucdError
from mucd_ray.files import as_expected
from mucd_ray.service.storage.store import RunStore

COLUMNS = ("run", "unit", "algorithm", "P", "N", "mean return", "keeps 90 %", "keeps 75 %", "keeps 50 %", "action radius", "holds")


def compare_runs(locations: list[str]) -> list[dict]:
    """The summaries of these runs. Raises MucdError for one that is not certified, or whose summary is of another version."""
    found = []
    for location in locations:
        store = RunStore.open(location)
        summary = store.read_json("summary.json")
        if not isinstance(summary, dict) or "condition" not in summary:
            raise MucdError(f"{location} has {'no summary' if summary is None else 'a summary of another version'}: make it with `mucd certify {location}`")
        with as_expected(store.file("summary.json"), f"make it again with `mucd certify {location}`"):
            _row(summary)
        found.append(summary)
    return found


def side_by_side(summaries: list[dict]) -> str:
    """A table; "keeps" and radii as in `describe`, the radius being the median over states that are certified, each by itself."""
    rows = [COLUMNS, *(_row(summary) for summary in summaries)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) if n < 3 else cell.rjust(width) for n, (cell, width) in enumerate(zip(row, widths))).rstrip() for row in rows)


def _row(summary: dict) -> tuple[str, ...]:
    returns = ["-"] * 4
    if "unpoisoned_mean" in summary:
        keeps = (f"{percent_down(entry['fraction'])} %" if entry["radius"] >= 0 else "-" for entry in summary["keeps"].values())
        # Beside returns a score must not look like one.
        mean = f"{summary['unpoisoned_mean']:.4g} (score)" if summary.get("evaluator") else f"{summary['unpoisoned_mean']:.2f}"
        returns = [mean, *keeps]
    return (
        summary["run"], summary["unit"], summary["algorithm"], str(summary["instances"]), str(summary["units"]), *returns,
        _action_radius(summary.get("action")), _holds(summary),
    )


def _action_radius(action: dict | None) -> str:
    if action is None:
        return "-"
    part = action["per_state"]
    name, entry = next(iter(part["tolerance"].items())) if "tolerance" in part else (None, part)
    radius = "none" if entry["median_radius"] is None else tenths_down(entry["median_radius"])
    return radius if name is None else f"{radius} (+-{100 * float(name):g} %)"


def _holds(summary: dict) -> str:
    if not summary["sound"]:
        return "NOT SOUND"
    return "conditional" if summary["condition"] or summary["conditional"] else "yes"
