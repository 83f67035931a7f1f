"""Speed of the accounting, side by side with dp-accounting's one-sided mixture: `python benchmarks/accounting.py`.

Both compute the same thing in this one run: the trade-off curve of T steps for r inserted units, from which a lower bound at
p = .99 is read. dp-accounting discretises losses at 1e-3; our column `attainable` bounds the exact value from above.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import time

import numpy as np
from dp_accounting.pld import privacy_loss_distribution
from scipy.stats import binom

from mucd_ray.certify.action import action_radii
from mucd_ray.certify.guarantees import Guarantees
from mucd_ray.certify.policy import expected_return_bound, return_band
from mucd_ray.certify.radius import radius_ladder
from mucd_ray.mechanism.accounting import GroupAccountant
from mucd_ray.mechanism.mechanism import Mechanism

P, INTERVAL = 0.99, 1e-3


def ours(mechanism, units):
    return float(GroupAccountant(mechanism).curve(units, 0)(P))


def theirs(mechanism, units):
    k = np.arange(units + 1)
    pair = privacy_loss_distribution.from_mixture_gaussian_mechanism(
        mechanism.noise_multiplier, k, binom.pmf(k, units, mechanism.sample_rate), value_discretization_interval=INTERVAL
    ).self_compose(mechanism.steps)
    eps = np.linspace(-8, 12, 801)
    return float(np.max(np.exp(-eps) * (P - np.array(pair._pmf_add.get_delta_for_epsilon(eps)))))


def timed(function, *arguments, repeats=3):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        value = function(*arguments)
        times.append(time.perf_counter() - start)
    return value, float(np.median(times))


def main():
    print(f"{'q':>9} {'sigma':>6} {'T':>6} {'r':>5} {'lower(.99)':>11} {'attainable':>11} {'dp-acc.':>9} {'ms':>8} {'dp-acc. ms':>11} {'ratio':>7}")
    for q, sigma, steps, units in [(128 / 60000, 3.0, 1000, 50), (128 / 60000, 3.0, 4690, 20), (0.002, 3.0, 5000, 10), (0.05, 80.0, 50, 60)]:
        mechanism = Mechanism(sample_rate=q, noise_multiplier=sigma, clip_norm=1.0, steps=steps, normaliser=1.0)
        value, seconds = timed(ours, mechanism, units)
        reference, reference_seconds = timed(theirs, mechanism, units)
        upper = float(GroupAccountant(mechanism).attainable(units, 0)(P))
        print(
            f"{q:9.2g} {sigma:6.3g} {steps:6d} {units:5d} {value:11.6f} {upper:11.6f} {reference:9.5f} {1e3 * seconds:8.1f} "
            f"{1e3 * reference_seconds:11.1f} {reference_seconds / seconds:6.0f}x"
        )

    mechanism = Mechanism(sample_rate=0.002, noise_multiplier=3.0, clip_norm=1.0, steps=5000, normaliser=1.0)
    guarantees = Guarantees(mechanism)
    band = return_band(np.random.default_rng(0).normal(-90, 15, 1000).clip(-500, 0), (-500, 0), eta=0.001, method="order-statistic")
    start = time.perf_counter()
    ladder = radius_ladder(200)
    bounds = [expected_return_bound(band, guarantees, int(r)) for r in ladder]
    print(f"\nreturn bound over r = 0..200 ({len(ladder)} radii, symmetric, cold): {time.perf_counter() - start:.2f} s; {bounds[0]:.1f} ... {bounds[-1]:.1f}")
    votes = np.random.default_rng(1).binomial(1000, 0.99, 1000) / 1000 - 0.005
    for label in ("cold", "cached"):
        start = time.perf_counter()
        action_radii(votes, 1 - votes, guarantees, 100_000)
        print(f"radii of 1000 states ({label}): {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    main()
