"""Where the published rule fails and ours holds, by attacks: `python benchmarks/soundness.py` (figures of docs/soundness.md).

Writes published.png and audit.png to docs/soundness, or to the folder given as argument, and prints what they show.
"""

import io
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "soundness"))

import numpy as np
from attackers import Attack, Canaries, mechanism
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from scipy.stats import norm

from mucd_ray.certify.confidence.proportions import clopper_pearson_lower, clopper_pearson_upper
from mucd_ray.certify.guarantees import Guarantees
from mucd_ray.certify.radius import largest_radii
from mucd_ray.report.plots import BLUE, DPI, FONT, GRID, INK, VERMILION

ETA = 1e-3
# (q, sigma, radius of docs/soundness.md, simulated trainings).
REGIMES = [(0.001, 2.0, 80, 20_000_000), (0.01, 2.0, 58, 2_000_000), (0.033, 2.0, 70, 1_000_000)]
# (q, sigma, T) of the radius panels, and the size of a dataset of which no more can be poisoned.
MECHANISMS, UNITS = [(0.033, 2.0, 1), (0.1, 3.0, 8), (0.02, 1.0, 30)], 1000
TOPS = [0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.998]
AUDITS = [(10, 0), (0, 10), (5, 5)]
AUDITED, AUDITED_AT = 40_000, (0.05, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
CLAIM = {"color": BLUE, "linewidth": 2.2, "label": "claim: P under D' is at least this"}
PUBLISHED = {"color": VERMILION, "linewidth": 1.8, "linestyle": (0, (6, 2)), "label": "claim of the published rule"}


def bounds_of_event(under_d, under_d_prime, p):
    """(lower, upper) bounds on P_D(S) and on P_D'(S), S an event of about probability p under D, chosen on a half that is not counted."""
    half = len(under_d) // 2
    event = np.partition(under_d[:half], int((1 - p) * half))[int((1 - p) * half)]
    bounds = []
    for sample in (under_d[half:], under_d_prime):
        count = np.count_nonzero(sample >= event)
        bounds.append((float(clopper_pearson_lower(count, len(sample), ETA / 2)), float(clopper_pearson_upper(count, len(sample), ETA / 2))))
    return bounds


def attained_variation(q, sigma, radius, runs):
    """(lowest, middle, highest) of the shift that simulated trainings show, each bound with confidence 1 - ETA."""
    attack, rng = Attack(q, sigma, 1, radius, 0), np.random.default_rng(radius)
    parts = [attack.outputs(rng, 1_000_000) for _ in range(runs // 1_000_000)]
    under_d, under_d_prime = (np.concatenate(side) for side in zip(*parts, strict=True))
    # Where the event is best is known from the exact curve; the shift itself is counted.
    p = np.linspace(0.01, 0.99, 981)
    best = float(p[np.argmax(p - attack.poisoned(p))])
    (low, high), (low_prime, high_prime) = bounds_of_event(under_d, under_d_prime, best)
    return low - high_prime, (low + high - low_prime - high_prime) / 2, high - low_prime


def variation_panels(axes):
    print(f"{'q':>6} {'sigma':>5} {'r':>4} {'exact':>8} {'attained':>20} {'published':>9}   total variation of one step")
    for ax, (q, sigma, radius, runs) in zip(axes, REGIMES, strict=True):
        radii = np.unique(np.linspace(1, 2 * radius, 60).astype(int))
        grid = np.linspace(0, 1, 20_001)
        guarantees = Guarantees(mechanism(q, sigma, 1), threat="insert")
        exact = [float(np.max(grid - guarantees.at(int(r)).lower(grid))) for r in radii]
        claimed = (1 - (1 - q) ** radii) * (2 * norm.cdf(1 / (2 * sigma)) - 1)
        ax.plot(radii, exact, color=BLUE, linewidth=2.2, label="ours: exact, no attack can do more")
        ax.plot(radii, claimed, color=VERMILION, linewidth=1.8, linestyle=(0, (6, 2)), label="published rule: q becomes 1 − (1 − q)$^r$")
        measured = np.unique(np.array([radius // 3, 2 * radius // 3, radius, 4 * radius // 3, 5 * radius // 3, 2 * radius]))
        shifts = np.array([attained_variation(q, sigma, int(r), runs) for r in measured])
        errors = np.array([shifts[:, 1] - shifts[:, 0], shifts[:, 2] - shifts[:, 1]])
        ax.errorbar(measured, shifts[:, 1], errors, fmt="o", color=INK, markersize=4, capsize=3, linewidth=1.2, zorder=5, label="attained by r aligned units, simulated")
        for r, (low, _, high) in zip(measured, shifts, strict=True):
            truth = float(np.max(grid - guarantees.at(int(r)).lower(grid)))
            print(f"{q:6g} {sigma:5g} {r:4d} {truth:8.4f} {low:10.4f} ..{high:8.4f} {(1 - (1 - q) ** r) * (2 * norm.cdf(1 / (2 * sigma)) - 1):9.4f}")
        ax.set_title(f"q = {q:g}, σ = {sigma:g}, one step", fontsize=FONT)
        ax.set_xlabel("r, number of inserted units")
        ax.set_xlim(0, 2.05 * radius)
        ax.set_ylim(bottom=0)
        ax.yaxis.set_major_locator(MaxNLocator(nbins=6))
    axes[0].set_ylabel("total variation between\ntraining on D and on D'")


def flipping_radius(q, sigma, steps, top):
    """Least number of inserted units that are shown to flip the majority of an action of probability `top`.

    Shown: with confidence 1 - ETA an event that has at least that probability under D has less than one half under D'.
    """
    rng, runs = np.random.default_rng(0), 400_000 if steps < 10 else 150_000

    def kept(radius):
        under_d, under_d_prime = Attack(q, sigma, steps, int(radius), 0).outputs(rng, runs)
        (low, _), (_, high) = bounds_of_event(under_d, under_d_prime, top + 12 * np.sqrt(top * (1 - top) / runs))
        return low < top or high >= 0.5

    return 1 + int(largest_radii(lambda radius: np.array([radius == 0 or kept(radius)]), UNITS)[0])


def radius_panels(axes):
    print(f"\n{'q':>6} {'sigma':>5} {'T':>3} {'p':>6} {'ours':>6} {'attack flips at':>16} {'published':>10}   radius at which the majority is certified")
    for ax, (q, sigma, steps) in zip(axes, MECHANISMS, strict=True):
        p = np.concatenate([np.linspace(0.52, 0.98, 40), 1 - np.geomspace(0.018, 0.002, 15)])
        curves = {}
        for family in ("tradeoff", "published"):
            guarantees = Guarantees(mechanism(q, sigma, steps), threat="insert", family=family)

            def certified(tops, guarantees=guarantees):
                return largest_radii(lambda r: guarantees.at(r).lower(tops) > guarantees.at(r).upper(1 - tops), UNITS)

            curves[family] = certified(p), certified(np.array(TOPS))
        flips = [flipping_radius(q, sigma, steps, top) for top in TOPS]
        x, ticks = norm.ppf(p), [0.6, 0.8, 0.9, 0.95, 0.99, 0.998]
        ax.plot(x, np.maximum(curves["tradeoff"][0], 0.5), color=BLUE, linewidth=2.2, label="ours: certified radius")
        ax.plot(x, np.maximum(curves["published"][0], 0.5), color=VERMILION, linewidth=1.8, linestyle=(0, (6, 2)), label="published rule: certified radius")
        ax.plot(norm.ppf(TOPS), flips, "o", color=INK, markersize=5, zorder=5, label="the attack has flipped the majority, simulated")
        ax.set_yscale("log")
        ax.set_ylim(0.8, 1.6 * UNITS)
        ax.axhline(UNITS, color=INK, linewidth=1, linestyle=(0, (1, 3)))
        ax.text(x[0], 1.08 * UNITS, f"all of {UNITS:,} units", fontsize=FONT - 2, va="bottom", ha="left", color=INK)
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        ax.set_xticks(norm.ppf(ticks), [f"{tick:g}" for tick in ticks])
        ax.set_xlabel("probability of the top action")
        ax.set_title(f"q = {q:g}, σ = {sigma:g}, " + ("one step" if steps == 1 else f"{steps} steps"), fontsize=FONT)
        for top, ours, flip, theirs in zip(TOPS, curves["tradeoff"][1], flips, curves["published"][1], strict=True):
            print(f"{q:6g} {sigma:5g} {steps:3d} {top:6g} {ours:6d} {flip:16d} {theirs:10d}{'  every r' if theirs == UNITS else ''}")
    axes[0].set_ylabel("radius (inserted units)")


def audit_panels(axes):
    print(f"\n{'removed':>7} {'inserted':>8} {'P_D(S)':>8} {'P_D_prime(S)':>18} {'claim: at least':>15}   audit of the real engine, {AUDITED:,} instances each")
    attack = Canaries()
    for ax, (removed, inserted) in zip(axes, AUDITS, strict=True):
        under_d = attack.train(attack.dataset(removed, 0), AUDITED, b"d")
        under_d_prime = attack.train(attack.dataset(0, inserted), AUDITED, b"e")
        guarantee = Guarantees(attack.mechanism).group(inserted, removed)
        p = np.concatenate([np.geomspace(1e-4, 0.02, 60), np.linspace(0.021, 0.979, 480), 1 - np.geomspace(0.02, 1e-4, 60)])
        published = Guarantees(attack.mechanism, family="published").group(inserted, removed)
        ax.plot(norm.ppf(p), norm.ppf(p), color=INK, linewidth=1, linestyle=(0, (1, 3)), label="nothing changed")
        for family, style in ((guarantee, CLAIM), (published, PUBLISHED)):
            with np.errstate(divide="ignore"):
                ax.plot(norm.ppf(p), norm.ppf(family.lower(p)), **style)
        points = np.array([bounds_of_event(under_d, under_d_prime, top) for top in AUDITED_AT])
        middle = np.clip(points.mean(axis=2), 1e-9, 1)
        with np.errstate(divide="ignore"):
            errors = np.abs(norm.ppf(np.clip(points, 1e-9, 1)) - norm.ppf(middle)[..., None])
        ax.errorbar(
            norm.ppf(middle[:, 0]), norm.ppf(middle[:, 1]), yerr=errors[:, 1].T, xerr=errors[:, 0].T, fmt="o", color=INK, markersize=3.5,
            capsize=2, linewidth=1.2, zorder=5, label=f"attained: {AUDITED:,} instances trained on each",
        )
        for (low, high), (low_prime, high_prime) in points:
            claim = float(guarantee.lower(low))
            assert high_prime >= claim, "the engine breaks its claim"
            print(f"{removed:7d} {inserted:8d} {(low + high) / 2:8.4f} {low_prime:8.4f} ..{high_prime:8.4f} {claim:15.4f}")
        shown = float(np.max(points[:, 0, 0] - points[:, 1, 1]))
        claimed = float(np.max(p - guarantee.lower(p)))
        broken = sum(high_prime < published.lower(low) for (low, _), (_, high_prime) in points)
        print(f"        the published rule is broken at {broken} of {len(points)} events")
        print(f"        total variation: at least {shown:.4f} attained, {claimed:.4f} claimed ({100 * shown / claimed:.0f} %)")
        ax.set_title(f"{removed} canaries removed, {inserted} inserted", fontsize=FONT)
        ax.set_xlabel("P(event) under D")
        ticks = [0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999]
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_ticks(norm.ppf(ticks), [f"{tick:g}" for tick in ticks])
        ax.set_xlim(norm.ppf([0.03, 0.9992]))
        ax.set_ylim(norm.ppf([0.0003, 0.9992]))
    axes[0].set_ylabel("P(event) under D'")


def figure(size, rows):
    """Rows of three panels, each row with a legend below it."""
    fig = Figure(figsize=size, layout="constrained", facecolor="white")
    parts = fig.subfigures(rows, 1, squeeze=False)[:, 0]
    axes = [part.subplots(1, 3) for part in parts]
    for ax in np.ravel(axes):
        ax.grid(color=GRID, linewidth=0.7)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=FONT - 1, colors=INK)
    return fig, parts, axes


def save(fig, parts, axes, path):
    for part, row in zip(parts, axes, strict=True):
        part.legend(*row[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=FONT - 1, frameon=False)
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    path.write_bytes(buffer.getvalue())
    print(f"wrote {path}")


def main():
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "soundness"
    folder.mkdir(parents=True, exist_ok=True)
    fig, parts, axes = figure((11.0, 7.8), rows=2)
    variation_panels(axes[0])
    radius_panels(axes[1])
    save(fig, parts, axes, folder / "published.png")
    fig, parts, axes = figure((11.0, 4.4), rows=1)
    audit_panels(axes[0])
    save(fig, parts, axes, folder / "audit.png")


if __name__ == "__main__":
    main()
