"""Speed and accuracy of the accounting, side by side with dp-accounting's one-sided mixture: `python benchmarks/accounting.py`.

In this one run both compute the same things for r inserted units: the trade-off curve of T steps, from which lower bounds are
read, certified radii of 1000 states, and the curve of return bounds over all r. dp-accounting discretises losses at 1e-3 and
knows no mixed groups, so its figures are for the threat `insert`; ours are given for `insert` and for `symmetric`. Every figure is
of one thread.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import time
from functools import lru_cache

import numpy as np
from dp_accounting.pld import privacy_loss_distribution
from scipy.stats import binom

from mucd_ray.certify.action import action_radii
from mucd_ray.certify.families import FAMILIES
from mucd_ray.certify.guarantees import Guarantees
from mucd_ray.certify.radius import largest_radii, radius_ladder
from mucd_ray.mechanism.gaussian.accounting import GroupAccountant
from mucd_ray.mechanism.gaussian.mechanism import Mechanism

INTERVAL = 1e-3
EPS = np.linspace(-8, 12, 801)
CAP = 200


def mechanism(q, sigma, steps):
    return Mechanism(sample_rate=q, noise_multiplier=sigma, clip_norm=1.0, steps=steps, normaliser=1.0)


def timed(function, *arguments, repeats=3):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        value = function(*arguments)
        times.append(time.perf_counter() - start)
    return value, float(np.median(times))


def theirs(of, units):
    """dp-accounting's lower bound p [n] -> [n] for `units` inserted units, from its privacy profile at 801 values of eps."""
    k = np.arange(units + 1)
    pair = privacy_loss_distribution.from_mixture_gaussian_mechanism(
        of.noise_multiplier, k, binom.pmf(k, units, of.sample_rate), value_discretization_interval=INTERVAL
    ).self_compose(of.steps)
    delta = np.array(pair._pmf_add.get_delta_for_epsilon(EPS))
    return lambda p: np.clip((np.exp(-EPS) * (np.asarray(p)[..., None] - delta)).max(axis=-1), 0.0, p)


def curves():
    print(f"one curve\n{'q':>9} {'sigma':>6} {'T':>6} {'r':>5} {'lower(.99)':>11} {'attainable':>11} {'dp-acc.':>9} {'ms':>8} {'dp-acc. ms':>11} {'ratio':>6}")
    for q, sigma, steps, units in [(128 / 60000, 3.0, 1000, 50), (128 / 60000, 3.0, 4690, 20), (0.002, 3.0, 5000, 10), (0.05, 80.0, 50, 60)]:
        of = mechanism(q, sigma, steps)
        value, seconds = timed(lambda: float(GroupAccountant(of).curve(units, 0)(0.99)))
        reference, reference_seconds = timed(lambda: float(theirs(of, units)(0.99)))
        upper = float(GroupAccountant(of).attainable(units, 0)(0.99))
        print(
            f"{q:9.2g} {sigma:6.3g} {steps:6d} {units:5d} {value:11.6f} {upper:11.6f} {reference:9.5f} {1e3 * seconds:8.1f} "
            f"{1e3 * reference_seconds:11.1f} {reference_seconds / seconds:5.0f}x"
        )


def radii():
    of = mechanism(0.002, 3.0, 5000)
    votes = np.random.default_rng(1).binomial(1000, 0.99, 1000) / 1000 - 0.005
    print(f"\nradii of 1000 states ({len(np.unique(votes))} different votes), q .002 sigma 3 T 5000\n{'':>26} {'cold s':>8} {'cached s':>9} {'median r':>9}")
    for threat in ("insert", "symmetric"):
        guarantees = Guarantees(of, threat=threat)
        seconds = [timed(action_radii, votes, 1 - votes, guarantees, 100_000, repeats=1) for _ in range(2)]
        print(f"{'ours, ' + threat:>26} {seconds[0][1]:8.3f} {seconds[1][1]:9.3f} {np.median(seconds[0][0]):9.0f}")
    bound = lru_cache(None)(lambda units: theirs(of, units) if units else lambda p: p)
    distinct, inverse = np.unique(votes, return_inverse=True)

    def reference():
        return largest_radii(lambda r: bound(r)(distinct) > np.maximum(1 - bound(r)(distinct), 1 - distinct), 100_000)[inverse]

    seconds = [timed(reference, repeats=1) for _ in range(2)]
    print(f"{'dp-accounting, insert':>26} {seconds[0][1]:8.3f} {seconds[1][1]:9.3f} {np.median(seconds[0][0]):9.0f}")


def return_curve():
    of, ladder = mechanism(0.002, 3.0, 5000), radius_ladder(CAP)
    share = np.linspace(0.99, 0.001, 1000)  # lower bounds on P(return >= t), at 1000 thresholds
    print(f"\nreturn bound over r = 0..{CAP} ({len(ladder)} radii), cold, q .002 sigma 3 T 5000")
    for threat in ("insert", "symmetric"):
        guarantees = Guarantees(of, threat=threat)
        values, seconds = timed(lambda: [guarantees.at(int(r)).lower(share).mean() for r in ladder], repeats=1)
        print(f"{'ours, ' + threat:>26} {seconds:8.2f} s; {values[0]:.4f} ... {values[len(ladder) // 2]:.4f} (r = {ladder[len(ladder) // 2]}) ... {values[-1]:.4f}")
    part = ladder[1::10]
    values, seconds = timed(lambda: [theirs(of, int(r))(share).mean() for r in part], repeats=1)
    print(f"{'dp-accounting, insert':>26} {seconds * (len(ladder) - 1) / len(part):8.2f} s (timed on {len(part)} of the radii, every 10th, and scaled)")


def extremes():
    print(f"\nextremes: the widest gap between the bound and what is attainable, over p in [.02, .99], as a share of p\n"
          f"{'q':>9} {'sigma':>6} {'T':>7} {'inserted':>9} {'removed':>8} {'gap':>9} {'lower(.99)':>11} {'ms':>8}")
    p = np.linspace(0.02, 0.99, 400)
    for q, sigma, steps, group in [
        (1e-9, 1.0, 100_000, (1000, 0)), (1e-6, 0.3, 1, (1, 1)), (1e-6, 0.3, 30, (0, 100_000)), (1e-6, 0.3, 100_000, (10, 20)), (1e-6, 1000.0, 100_000, (1, 0)),
        (1e-4, 0.3, 1000, (0, 1)), (1e-4, 5.0, 100_000, (30, 0)), (0.01, 1.0, 1000, (2, 2)), (0.01, 40.0, 60, (20_000, 0)), (0.3, 0.3, 30, (33_333, 66_667)),
        (0.5, 1000.0, 100_000, (3, 5)), (0.5, 30_000.0, 30, (50_000, 50_000)), (1.0, 1000.0, 100_000, (0, 3)), (1.0, 0.3, 1, (0, 1)),
    ]:
        of = mechanism(q, sigma, steps)
        curve, seconds = timed(lambda: GroupAccountant(of).curve(*group))
        gap = np.max((GroupAccountant(of).attainable(*group)(p) - curve(p)) / p)
        print(f"{q:9.2g} {sigma:6.4g} {steps:7d} {group[0]:9d} {group[1]:8d} {gap:9.1e} {float(curve(0.99)):11.6f} {1e3 * seconds:8.1f}")


def families():
    print(f"\nradius of a vote with bounds p and 1 - p, symmetric difference (`published` is not sound)\n"
          f"{'q':>9} {'sigma':>6} {'T':>6} {'p':>7} " + " ".join(f"{name:>12}" for name in FAMILIES) + f" {'tradeoff/rdp':>13}")
    for q, sigma, steps, p in [
        (128 / 60000, 3.0, 1000, 0.7), (128 / 60000, 3.0, 1000, 0.9), (128 / 60000, 3.0, 1000, 0.99), (128 / 60000, 3.0, 1000, 0.9999),
        (128 / 60000, 3.0, 4690, 0.99), (0.01, 1.0, 500, 0.99), (0.02, 10.0, 100, 0.99),
    ]:
        found = {}
        for name in FAMILIES:
            found[name] = int(action_radii(np.array([p]), np.array([1 - p]), Guarantees(mechanism(q, sigma, steps), family=name), 1000)[0])
        print(f"{q:9.2g} {sigma:6.3g} {steps:6d} {p:7.4g} " + " ".join(f"{r if r < 1000 else '>= 1000':>12}" for r in found.values())
              + f" {found['tradeoff'] / max(found['rdp'], 1):13.2f}")


if __name__ == "__main__":
    for part in (curves, radii, return_curve, extremes, families):
        part()
