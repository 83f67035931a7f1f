"""The plots of a report: one function per plot, from plain arrays to PNG bytes.

Bounds and shares fall with r, and are known at evaluated radii only. Between two of them every curve shows the value of the
larger one, so that no point of a curve claims more than the certificate does.
"""

import contextlib
import io
import itertools
import logging
import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

# A notebook passes its own backend to every process that it starts, where it may be missing and would fail this import.
_backend = os.environ.pop("MPLBACKEND", None)
# Where the home folder cannot be written its import says at length in which temporary folder it keeps its fonts, and removes that at the end.
_logger = logging.getLogger("matplotlib")
_logged = _logger.level
_logger.setLevel(logging.ERROR)
import matplotlib

if _backend:
    with contextlib.suppress(ValueError):
        # What the import itself does.
        matplotlib.rcParams["backend"] = _backend
        os.environ["MPLBACKEND"] = _backend
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter, StrMethodFormatter

_logger.setLevel(_logged)

from mucd_ray.certify.rounding import exactly
from mucd_ray.words import counted


@dataclass(frozen=True, kw_only=True)
class Look:
    """Width and height in inches, and a warning to print on the plot, which may be seen without the page around it."""

    size: tuple[float, float]
    narrow: bool = False
    warning: str = ""


WIDE = Look(size=(8.0, 5.0))
# The width of a phone, at the same size of letters.
NARROW = Look(size=(3.9, 5.2), narrow=True)
DPI = 160
FONT = 10

INK, GRID, ALARM = "#222222", "#dddddd", "#b3261e"
# Okabe & Ito's colours, distinct to the colour-blind.
BLUE, SKY, GREEN, VERMILION, PURPLE, AMBER = "#0072B2", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#E69F00"
GREY = "#777777"
LEVELS = {
    "unpoisoned mean": (GREEN, "-"),
    "trained on all data": (VERMILION, (0, (6, 2))),
    "trained without noise": (VERMILION, (0, (6, 2))),
    "behaviour policy": (PURPLE, (0, (6, 2, 1, 2))),
    "best constant action": (AMBER, (0, (1, 1.5))),
    "trained on the trusted data alone": (BLUE, (0, (1, 1.5))),
    "public floor": (INK, (0, (1, 3))),
}
SCOPE_COLOURS = (BLUE, VERMILION)
FRONTIER_STYLES = ((SKY, "s"), (BLUE, "o"), (VERMILION, "^"), (GREEN, "D"), (PURPLE, "v"))
COMPARISONS = ((SKY, "--"), (GREY, (0, (5, 1.5, 1, 1.5))))
QUANTILE_STYLES = ((VERMILION, (0, (6, 2))), (AMBER, (0, (6, 2, 1, 2))), (PURPLE, (0, (1.5, 1.5))))
# Of each defence its colour, dashes and marker.
DEFENCE_STYLES = {
    "gaussian": (INK, (0, (2, 1)), "<"), "bag": (BLUE, "-", "o"), "bag-then-noise": (GREY, "-", "*"), "partition": (VERMILION, (0, (6, 2)), "s"), "parl": (GREEN, (0, (6, 2, 1, 2)), "^"), "tparl": (PURPLE, (0, (3, 1.5)), "D"),
    "dparl": (AMBER, "-", "v"), "fa": (SKY, (0, (8, 2, 2, 2)), "P"), "roe": (INK, (0, (6, 2)), ">"), "neighbours": (GREY, (0, (4, 1.5)), "X"),
}
# The figure ends where every state is uncertain and every bound has lost this share of its mean.
COMPARED_END = 0.5
HALO = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.6}

# A curve is shown until this share of the unpoisoned mean above the floor is left.
CURVE_END = 0.03
MAX_BINS = 40
# An axis is cut where what it shows would span more than so many times what most of it does: values of their own, or levels to compare with beside the curves around them.
OF_VALUES, OF_LEVELS = 10.0, 50.0
# How much of most of it stands free on either side then.
CUT_MARGIN = 1.5
TICK_STEPS = (1, 2, 2.5, 5, 10)


def return_bound(
    *,
    radius: np.ndarray,
    bounds: dict[str, np.ndarray],
    levels: dict[str, float],
    kept: list[tuple[str, int, float]],
    what: str = "return",
    whose: str = "one trained policy",
    units: int,
    unit: str,
    look=WIDE,
) -> bytes:
    """Lower bounds on the expected return against r.

    Args:
        radius: evaluated radii, increasing from 0, [K].
        bounds: one curve [K] per label; the first is the certified one, up to two more are for comparison.
        levels: returns to compare with, by a name in LEVELS, among them "unpoisoned mean" and "public floor", the least possible return.
        kept: (label, r, bound) of the points to mark.
        what: what the axis is about, such as "clipped return"; likewise in the next plots.
        whose: whose return it is.
        units: N; the upper axis shows 100 r / N.
        unit: what r counts, in the plural.
    """
    fig, (ax,) = _figure(look)
    main, *others = bounds
    ax.plot(radius, bounds[main], drawstyle="steps-pre", color=BLUE, linewidth=2.2, zorder=3, label=main)
    for label, (colour, style) in zip(others, COMPARISONS, strict=False):
        ax.plot(radius, bounds[label], drawstyle="steps-pre", color=colour, linewidth=1.2, linestyle=style, label=label)
    _levels(ax, levels)
    shown = [*levels.values(), *(curve[0] for curve in bounds.values())]
    low, high = window([level for name, level in levels.items() if name != "public floor"], min(shown), max(shown), OF_LEVELS)
    kept = [point for point in kept if point[2] >= low]
    end = max(_end_of_return(radius, bounds[main], levels), *(1.06 * r for _, r, _ in kept), 1.0)
    if low > min(shown):
        end = 1.06 * max(1, radius[np.argmax(bounds[main] < low)])
        _say_cut(ax, f"cut: the least possible {what} is {_level('public floor', levels['public floor'])}, and curves go on down to it")
    _radius_axes([ax], end, units, unit)
    _mark(ax, kept, end)
    margin = 0.06 * (high - low) or 1.0
    ax.set_ylim(low - margin, high + margin)
    ax.set_ylabel(f"expected {what} of {whose}")
    return _png(fig, look, columns=2)


def poisoned_return(
    *,
    radius: np.ndarray,
    least: np.ndarray,
    most: np.ndarray,
    quantiles: dict[str, np.ndarray],
    levels: dict[str, float],
    what: str = "return",
    units: int,
    unit: str,
    look=WIDE,
) -> bytes:
    """Between which bounds the mean return under poisoning lies, and which return given shares of policies still earn, against r.

    Args:
        radius: evaluated radii, increasing from 0, [K].
        least, most: lower and upper bounds on the expected return, [K].
        quantiles: up to three lower bounds on a quantile [K], by label.
        levels: as in `return_bound`.
    """
    fig, (ax,) = _figure(look)
    ax.fill_between(radius, least, most, step="pre", color=SKY, alpha=0.18, linewidth=0)
    ax.plot(radius, most, drawstyle="steps-pre", color=SKY, linewidth=2.2, label="mean, at most")
    ax.plot(radius, least, drawstyle="steps-pre", color=BLUE, linewidth=2.2, label="mean, at least")
    for (label, curve), (colour, style) in zip(quantiles.items(), QUANTILE_STYLES, strict=False):
        ax.plot(radius, curve, drawstyle="steps-pre", color=colour, linewidth=1.6, linestyle=style, label=label)
    _levels(ax, levels)
    end = _end_of_return(radius, least, levels)
    _radius_axes([ax], end, units, unit)
    # A step that ends beyond the axis is seen too.
    seen = min(len(radius), np.searchsorted(radius, end) + 1)
    shown = [*levels.values(), *most[:seen], *(curve[0] for curve in quantiles.values())]
    margin = 0.06 * (max(shown) - min(shown)) or 1.0
    ax.set_ylim(min(shown) - margin, max(shown) + margin)
    ax.set_ylabel(f"{what} of policies trained on D'")
    return _png(fig, look, columns=2)


def attacked_returns(*, panels: list[dict[str, Any]], units: int, unit: str, look=WIDE) -> bytes:
    """Mean returns under attacks above the certified bound against r, one panel per defence.

    Args:
        panels: of each its `name`, the `clean` mean return, `certified` bounds by r (None: nothing is promised), and `means` by attack and r.
    """
    fig, axes = _figure(Look(size=(look.size[0], 1.0 + 2.4 * len(panels)), narrow=look.narrow), rows=len(panels))
    names = list(dict.fromkeys(name for panel in panels for name in panel["means"]))
    styles = dict(zip(names, itertools.product(("o", "^", "s"), (VERMILION, SKY, PURPLE, AMBER, GREY, INK))))
    end = 1.06 * max(1, *(radius for panel in panels for means in panel["means"].values() for radius in means))
    for ax, panel in zip(axes, panels):
        ax.axhline(panel["clean"], color=GREEN, linewidth=1.3, label="without attack", zorder=1)
        if panel["certified"] is not None:
            at = sorted(panel["certified"])
            ax.plot(at, [panel["certified"][radius] for radius in at], drawstyle="steps-pre", color=BLUE, linewidth=2.2, label="certified: at least", zorder=3)
        for name, means in panel["means"].items():
            marker, colour = styles[name]
            ax.plot(sorted(means), [means[radius] for radius in sorted(means)], color=colour, marker=marker, markersize=5, linewidth=1.0, label=name, zorder=2)
        ax.set_ylabel(f"{panel['name']}\nmean return")
    _radius_axes(axes, end, units, unit)
    handles = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels())}
    return _png(fig, look, columns=4, handles=handles)


def compared_defences(*, shares: dict[str, dict], bounds: dict[str, dict], means: dict[str, float], constant: float | None, units: int, unit: str, look=WIDE) -> bytes:
    """Share of states certified at r, and the bound on the return, one line per defence.

    Args:
        shares, bounds: by defence its `radius` [K], increasing from 0, `value` [K], and what is known `beyond`. Bounds may be missing.
        means: mean returns on the data as they are, of those that have bounds.
        constant: what the best constant action earns.
    """
    panels = [panel for panel in (shares, bounds) if panel]
    fig, axes = _figure(Look(size=(look.size[0], 1.4 + 3.2 * len(panels)), narrow=look.narrow), rows=len(panels))
    names = list(dict.fromkeys([*shares, *bounds]))
    halves = (_last_above(curve, curve["beyond"] + COMPARED_END * (means[name] - curve["beyond"])) for name, curve in bounds.items())
    end = 1.06 * max(1, *(_last_above(curve, 0.0) for curve in shares.values()), *halves)
    for ax, panel in zip(axes, panels):
        for number, name in enumerate(names):
            if name not in panel:
                continue
            curve, (colour, dashes, marker) = panel[name], DEFENCE_STYLES[name]
            # Where lines lie on each other, markers at places of their own tell which.
            ax.plot(
                [*curve["radius"], curve["radius"][-1] + 1, end], [*curve["value"], curve["beyond"], curve["beyond"]], drawstyle="steps-pre", color=colour, linestyle=dashes, linewidth=1.7, label=name,
                marker=marker, markersize=5, markevery=(0.02 + 0.011 * number, 0.12),
            )
            if panel is bounds:
                ax.axhline(means[name], color=colour, linestyle=(0, (1, 2)), linewidth=1.1, zorder=1)
        if panel is shares:
            ax.set_ylim(-0.02, 1.04)
            ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
            ax.set_ylabel("share of states certified at r")
        else:
            if constant is not None:
                ax.axhline(constant, color=LEVELS["best constant action"][0], linewidth=0.9, zorder=1, label=f"best constant action: {_number(constant)}")
            ax.plot([], [], color=INK, linestyle=(0, (1, 2)), linewidth=1.1, label="on the data as they are")
            ax.set_ylabel("return at least")
            if any(_last_above(curve, curve["beyond"]) > end for curve in bounds.values()):
                _say_cut(ax, "cut: bounds go on, below half of their means")
    _radius_axes(axes, end, units, unit)
    handles = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels())}
    return _png(fig, look, columns=4, handles=handles)


def _last_above(curve: dict, least: float) -> int:
    return max((radius for radius, value in zip(curve["radius"], curve["value"]) if value > least), default=0)


def window(values, low: float, high: float, most: float, middle: float = 0.9) -> tuple[float, float]:
    """What is shown of an axis whose data lie in [low, high]: all of it, unless that is more than `most` times as wide as the `middle` share of the `values` on it, which would be crushed."""
    least, largest = np.quantile(values, (0.5 - middle / 2, 0.5 + middle / 2)).tolist()
    width = largest - least
    if not 0 < most * width < high - low:
        return low, high
    return max(low, least - CUT_MARGIN * width), min(high, largest + CUT_MARGIN * width)


def _shown(values: np.ndarray) -> tuple[np.ndarray, str]:
    """(the values that a histogram shows, what it says of the others or "")."""
    low, high = float(values.min()), float(values.max())
    least, most = window(values, low, high, OF_VALUES)
    shown = values[(values >= least) & (values <= most)]
    left = len(values) - len(shown)
    return shown, f"cut: {left:,} of {len(values):,} lie outside, all are from {_number(low)} to {_number(high)}" if left else ""


def _say_cut(ax, text: str) -> None:
    if text:
        ax.set_title(text, loc="left", fontsize=FONT - 1, color=ALARM, wrap=True)


def _levels(ax, levels: dict[str, float]) -> None:
    for name, level in levels.items():
        colour, style = LEVELS[name]
        ax.axhline(level, color=colour, linestyle=style, linewidth=1.3, zorder=1, label=f"{name}: {_level(name, level)}")


def _end_of_return(radius: np.ndarray, bound: np.ndarray, levels: dict[str, float]) -> float:
    """Where the axis ends: a little past the first radius at which next to nothing is left of the bound."""
    floor = levels["public floor"]
    ended = np.flatnonzero(bound - floor <= CURVE_END * (levels["unpoisoned mean"] - floor))
    return 1.06 * max(1, radius[ended[0]] if len(ended) else radius[-1])


def _mark(ax, kept, end: float) -> None:
    by_radius: dict[int, list[tuple[str, float]]] = {}
    for label, r, bound in kept:
        by_radius.setdefault(r, []).append((label, bound))
    for r, points in by_radius.items():
        bound = max(b for _, b in points)
        ax.plot([r], [bound], "o", color=BLUE, markersize=6, markeredgecolor="white", zorder=4, clip_on=False)
        text = f"{' / '.join(label for label, _ in points)} kept: r = {r:,}"
        # A falling curve leaves room right above a point and left below it.
        offset, side = ((7, 5), "left") if r < 0.5 * end else ((-4, -15), "right")
        ax.annotate(text, (r, bound), xytext=offset, textcoords="offset points", ha=side, fontsize=FONT - 1, color=INK, zorder=5, bbox=HALO)


def action_radii(*, scopes: dict[str, np.ndarray], units: int, unit: str, look=WIDE) -> bytes:
    """Histogram of certified radii, one panel per scope: an array [S] with -1 where the state is not certified."""
    fig, axes = _figure(look, rows=len(scopes))
    largest = max(0, *(int(radius.max()) for radius in scopes.values()))
    # Bars are whole numbers of radii wide, so that no bar covers more of them than another.
    width = max(1, math.ceil((largest + 1) / MAX_BINS))
    edges = np.arange(0, largest + 1 + width, width) - 0.5
    span = edges[-1] - edges[0]
    abstain = -(0.2 if look.narrow else 0.1) * span
    # A bar alone is not as broad as the plot.
    bar = min(width, 0.1 * span)
    for ax, (label, radius), colour in zip(axes, scopes.items(), SCOPE_COLOURS):
        counts = np.histogram(radius[radius >= 0], edges)[0]
        abstained = np.count_nonzero(radius < 0)
        ax.bar((edges[:-1] + edges[1:]) / 2, counts, width=0.92 * bar, color=colour, label=label)
        ax.bar([abstain], [abstained], width=max(0.92 * bar, 0.03 * span), color=colour, hatch="////", edgecolor="white", linewidth=0)
        ax.grid(axis="x", visible=False)
        ax.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True, min_n_ticks=1))
        ax.set_ylim(0, 1.05 * max(1, counts.max(), abstained))
        ax.set_ylabel("states")
    _radius_axes(axes, edges[-1] + 0.02 * span, units, unit, low=1.5 * abstain, label="certified radius r")
    ticks = [t for t in axes[-1].get_xticks() if 0 <= t <= edges[-1] and t == round(t)]
    axes[-1].set_xticks([abstain, *ticks], ["none", *(f"{t:,.0f}" for t in ticks)])
    return _png(fig, look, columns=2)


def certified_share(*, scopes: dict[str, np.ndarray], accuracy: dict[str, np.ndarray], units: int, unit: str, look=WIDE) -> bytes:
    """Share of all states that are certified at r, and that are certified with the reference's action.

    Args:
        scopes: certified radii [S] per label, -1 where the state is not certified.
        accuracy: the same with -1 also where the action is not the reference's; empty if there is no reference.
    """
    fig, (ax,) = _figure(look)
    end = 1.06 * max(1, *(int(radius.max()) for radius in scopes.values()))
    for curves, width, styles in ((scopes, 2.2, ("-", (0, (6, 2)))), (accuracy, 1.5, ((0, (1, 1)), (0, (4, 1.5, 1, 1.5))))):
        for (label, radius), colour, style in zip(curves.items(), SCOPE_COLOURS, styles, strict=False):
            at, share = share_certified(radius)
            ax.plot([*at, end], [*share, 0.0], drawstyle="steps-pre", color=colour, linestyle=style, linewidth=width, label=label)
    _radius_axes([ax], end, units, unit)
    ax.set_ylim(-0.02, 1.04)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    ax.set_ylabel("share of states certified at r")
    return _png(fig, look, columns=2)


def share_certified(radius: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Radii [K], from 0 and increasing, and the share [K] of the states whose own radius is at least that."""
    at = np.unique(np.maximum(radius, 0))
    at = at if at[0] == 0 else np.concatenate([[0], at])
    return at, np.array([np.mean(radius >= r) for r in at])


def action_widths(
    *, radius: dict[str, np.ndarray], median: dict[str, np.ndarray], largest: dict[str, np.ndarray], marked: list[float], units: int, unit: str, look=WIDE
) -> bytes:
    """Widths of the intervals of median actions, as shares of the action range, against r.

    Args:
        radius: evaluated radii [K], increasing from 0, per scope.
        median, largest: over all states and dimensions, [K] per scope; 1, the whole range, says nothing.
        marked: widths to mark.
    """
    fig, (ax,) = _figure(look)
    last = max(at[median[label] < 1].max(initial=1) for label, at in radius.items())
    for curves, width, style, words in ((median, 2.2, "-", "median"), (largest, 1.4, (0, (4, 1.5)), "largest")):
        for (label, curve), colour in zip(curves.items(), SCOPE_COLOURS, strict=False):
            ax.plot(radius[label], curve, drawstyle="steps-pre", color=colour, linestyle=style, linewidth=width, label=f"{words}, {label}")
    for width in marked:
        ax.axhline(width, color=INK, linestyle=(0, (1, 3)), linewidth=1.1, zorder=1)
    _radius_axes([ax], 1.12 * last, units, unit)
    ax.set_ylim(-0.02, 1.04)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    ax.set_ylabel("width, share of the action range")
    return _png(fig, look, columns=2)


def return_distribution(
    *, returns: np.ndarray, threshold: np.ndarray, bounds: dict[str, np.ndarray], return_range: tuple[float, float], what: str = "return", look=WIDE
) -> bytes:
    """Histogram of the instances' returns [P], and under it the share of policies whose return is at least t.

    Args:
        threshold: values t, increasing, [K].
        bounds: lower confidence bounds on P(return >= t) for t up to threshold[k], [K] per label; the first is the certified one.
    """
    fig, (top, bottom) = _figure(look, rows=2)
    shown, cut = _shown(returns)
    edges = return_bins(shown, return_range)
    margin = (0.02 if len(edges) > 2 else 1.0) * (edges[-1] - edges[0])
    left, right = edges[0] - margin, edges[-1] + margin
    top.hist(shown, edges, color=BLUE, rwidth=0.94)
    _say_cut(top, cut)
    top.axvline(returns.mean(), color=GREEN, linewidth=1.6, label=f"mean: {_number(returns.mean())}")
    top.set_ylabel("policies")
    top.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    empirical = np.array([np.mean(returns >= t) for t in threshold])
    steps = {"drawstyle": "steps-pre"}
    x = [min(left, threshold[0]), *threshold, max(right, threshold[-1])]
    bottom.plot(x, [1.0, *empirical, 0.0], color=INK, linewidth=1.4, label="in the sample", **steps)
    for i, (label, bound) in enumerate(bounds.items()):
        y = [bound[0], *bound, 0.0]
        style = {"linewidth": 1.2, "linestyle": "--"} if i else {"linewidth": 2.0}
        bottom.plot(x, y, color=(BLUE, SKY)[min(i, 1)], label=label, **style, **steps)
    bottom.set_ylim(-0.02, 1.04)
    bottom.set_xlim(left, right)
    bottom.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    bottom.xaxis.set_major_locator(MaxNLocator(nbins=4 if look.narrow else 9, steps=TICK_STEPS))
    bottom.set_ylabel(f"policies with\na {what} ≥ t")
    bottom.set_xlabel(f"{what} t")
    return _png(fig, look, columns=2)


def trajectories(*, lengths, returns, look=Look(size=(5.0, 4.0))) -> bytes:
    """Histograms of the lengths [M] and returns [M] of a dataset's trajectories."""
    fig = Figure(figsize=look.size, layout="constrained", facecolor="white")
    for ax, values, name in zip(fig.subplots(2, 1), (lengths, returns), ("length", "return")):
        # Sums may overflow, and no axis shows the largest double.
        values = np.clip(np.nan_to_num(np.asarray(values, np.float64)), -1e300, 1e300)
        shown, cut = _shown(values)
        ax.hist(shown, return_bins(shown, (shown.min(), shown.max())), color=BLUE)
        _say_cut(ax, cut)
        ax.set_xlabel(f"{name} of a trajectory", fontsize=FONT - 1)
        ax.set_ylabel("trajectories", fontsize=FONT - 1)
        ax.tick_params(labelsize=FONT - 2, colors=INK)
        ax.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        ax.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def return_bins(returns: np.ndarray, return_range: tuple[float, float]) -> np.ndarray:
    """Edges of equal bins over the returns. Whole-number returns get whole-number widths: others leave false gaps."""
    low, high = float(returns.min()), float(returns.max())
    if np.all(returns == np.rint(returns)):
        width = max(1, math.ceil((high - low + 1) / MAX_BINS))
        return low - 0.5 + width * np.arange(math.ceil((high - low + 1) / width) + 1)
    if high == low:
        half = 0.01 * (return_range[1] - return_range[0]) or 1.0
        return np.array([low - half, low + half])
    return np.linspace(low, high, min(MAX_BINS, max(8, math.ceil(2 * len(returns) ** (1 / 3)))) + 1)


def frontier(*, signal_budget: np.ndarray, fraction: dict[str, np.ndarray], look=WIDE) -> bytes:
    """Certified share of the data against the signal that the learner gets.

    Args:
        signal_budget: S, increasing, [K].
        fraction: certified r / N at these S, [K] per label; where nothing is certified (0) no point is drawn. Only the marked
            points are certified: the lines between them guide the eye.
    """
    fig, (ax,) = _figure(look)
    for (label, shares), (colour, marker) in zip(fraction.items(), itertools.cycle(FRONTIER_STYLES)):
        shown = shares > 0
        ax.plot(signal_budget[shown], shares[shown], color=colour, linewidth=1.2, marker=marker, markersize=6, markeredgecolor="white", label=label)
    shares = np.concatenate([*fraction.values()])
    least, most = (shares[shares > 0].min(), shares.max()) if np.any(shares > 0) else (0.001, 1.0)
    ax.set_xlim(signal_budget[0] / 1.2, signal_budget[-1] * 1.2)
    ax.set_ylim(least / 1.5, min(1.0, 1.5 * most))
    ax.set_xscale("log")
    ax.set_yscale("log")
    for axis, text in ((ax.xaxis, lambda x, _: f"{x:,.6g}"), (ax.yaxis, lambda y, _: f"{100 * y:.6g} %")):
        axis.set_major_locator(LogLocator(subs=(1.0,) if axis is ax.xaxis and look.narrow else (1.0, 2.0, 5.0)))
        axis.set_major_formatter(text)
        axis.set_minor_locator(NullLocator())
    ax.set_xlabel("signal budget S = N q √T / σ")
    ax.set_ylabel("certified share of the dataset, r / N")
    return _png(fig, look, columns=3)


def pareto(*, mean: np.ndarray, fraction: np.ndarray, complete: np.ndarray, best: int, instances: int, look=WIDE) -> bytes:
    """Clean mean return of tuning trials against the share of the data up to which half of it would be kept, and their Pareto front.

    Args:
        mean, fraction: of each trial, [K].
        complete: whether it trained all its instances, bool [K]; only these make the front.
        best: the index of the trial that was chosen.
        instances: P for which the shares were extrapolated.
    """
    fig, (ax,) = _figure(look)
    for shown, colour, label in ((~complete, GREY, "stopped early"), (complete, BLUE, "trial")):
        if shown.any():
            ax.scatter(mean[shown], fraction[shown], s=42, color=colour, edgecolor="white", zorder=3, label=label)
    front = np.flatnonzero(complete)[pareto_front(mean[complete], fraction[complete])]
    ax.plot(mean[front], fraction[front], drawstyle="steps-pre", color=BLUE, linewidth=1.2, zorder=2, label="Pareto front")
    ax.scatter(mean[best], fraction[best], s=160, facecolor="none", edgecolor=VERMILION, linewidth=1.8, zorder=4, label="chosen: largest bound at the target")
    ax.set_ylim(bottom=0.0, top=1.1 * float(fraction.max()) or 1.0)
    low, high = window(mean, float(mean.min()), float(mean.max()), OF_VALUES, middle=0.5)
    low, high = min(low, mean[best]), max(high, mean[best])
    left = int(((mean < low) | (mean > high)).sum())
    if left:
        ax.set_xlim(low, high)
        _say_cut(ax, f"cut: {left} of {counted(len(mean), 'trial')} lie outside, all are from {_number(mean.min())} to {_number(mean.max())}")
    ax.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.6g} %")
    ax.set_xlabel("mean return without poisoning")
    ax.set_ylabel(f"share of the data up to which half is kept\n(outlook for P = {instances:,}, not certified)")
    return _png(fig, look, columns=4)


def pareto_front(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Indices of the points [K] than which no other is as large in both and larger in one, by increasing x."""
    better = (x >= x[:, None]) & (y >= y[:, None]) & ((x > x[:, None]) | (y > y[:, None]))
    front = np.flatnonzero(~better.any(axis=1))
    return front[np.argsort(x[front])]


def _figure(look: Look, rows: int = 1):
    fig = Figure(figsize=look.size, layout="constrained", facecolor="white")
    axes = fig.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    for ax in axes:
        ax.grid(color=GRID, linewidth=0.7)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=FONT, colors=INK)
        ax.xaxis.label.set_size(FONT)
        ax.yaxis.label.set_size(FONT)
    return fig, axes


def _radius_axes(axes, end: float, units: int, unit: str, low: float | None = None, label: str | None = None) -> None:
    """r under the lowest panel, and % of the data over the uppermost."""
    top, bottom = axes[0], axes[-1]
    ticks: dict[str, Any] = {"nbins": 4 if bottom.figure.get_figwidth() < 5 else 8, "steps": TICK_STEPS}
    bottom.set_xlim(-0.01 * end if low is None else low, end)
    bottom.set_xlabel(label or f"r, number of poisoned {unit}")
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True, **ticks))
    bottom.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    percent = top.secondary_xaxis("top", functions=(lambda r: 100 * r / units, lambda p: p * units / 100))
    percent.xaxis.set_major_locator(MaxNLocator(**ticks))
    percent.xaxis.set_major_formatter(lambda p, _: f"{p:.6g} %" if p >= 0 else "")
    percent.tick_params(labelsize=FONT - 1, colors=INK)
    percent.set_xlabel(f"share of the dataset's {units:,} {unit}", fontsize=FONT)


def _level(name: str, value: float) -> str:
    """The floor is a public constant, all other levels are estimates."""
    return exactly(value).replace("-", "−") if name == "public floor" else _number(value)


def _number(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")


def _png(fig: Figure, look: Look, columns: int, handles: dict[str, Any] | None = None) -> bytes:
    if look.warning:
        fig.suptitle(look.warning, color=ALARM, fontsize=FONT + 4, fontweight="bold")
    # What several panels show stands there once.
    shown = {} if handles is None else {"handles": list(handles.values()), "labels": list(handles)}
    fig.legend(**shown, loc="outside lower center", ncols=1 if look.narrow else columns, fontsize=FONT - 1, frameon=False)
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()
