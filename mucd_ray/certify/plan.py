"""Calibration: the mechanism that certifies a wanted fraction, from public numbers alone (theory section 7)."""

import math
from dataclasses import dataclass, replace

from mucd_ray.certify.action import action_radii
from mucd_ray.certify.confidence import check_eta, top_two_bounds
from mucd_ray.certify.guarantees import Guarantees
from mucd_ray.errors import MucdError
from mucd_ray.mechanism.mechanism import Mechanism

STEPS = 100
BATCH = 1024
CLIP_NORM = 1.0
# Below this noise multiplier subsampling wastes signal: a larger batch with more noise certifies more.
LEAST_NOISE = 4.0
# Renard's series R10 (ISO 3): the public sizes to which a dataset's size is rounded before anything is derived from it.
RENARD = (1.0, 1.25, 1.6, 2.0, 2.5, 3.15, 4.0, 5.0, 6.3, 8.0)
SIGMA_PRECISION = 1e-3
LEAST_NOISE_MULTIPLIER = 0.05


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A mechanism, the radius that it certifies for a unanimous vote, and the signal budget S that it leaves to the learner."""

    mechanism: Mechanism
    units: int
    radius: int
    fraction: float
    instances: int
    signal_budget: float


def declared_size(units: int) -> tuple[int, int]:
    """(declared N, margin): N rounded to Renard's series, and how many units may come or go without changing it.

    A run must not derive its constants from len(D), which the attacker can change. Rounding makes them the same for every
    dataset within the margin, so a certificate whose radius stays within the margin is about one fixed mechanism.
    """
    decade = 10 ** math.floor(math.log10(units))
    sizes = [RENARD[-1] * decade / 10, *(size * decade for size in RENARD), RENARD[0] * decade * 10]
    at = min(range(1, len(sizes)), key=lambda i: abs(math.log(units / sizes[i])))
    low = math.sqrt(sizes[at - 1] * sizes[at])
    high = math.sqrt(sizes[at] * (sizes[at + 1] if at + 1 < len(sizes) else 12.5 * decade))
    return round(sizes[at]), max(min(units - math.ceil(low), math.floor(high) - units), 0)


def least_instances(actions: int, eta: float) -> int:
    """The least P with which a unanimous vote certifies anything: its lower bound must exceed 1/2."""
    instances = 1
    while top_two_bounds([[instances] + [0] * (actions - 1)], eta).top[0] <= 0.5:
        instances += 1
    return instances


def plan(
    *,
    units: int,
    fraction: float,
    instances: int,
    eta: float = 0.001,
    actions: int = 2,
    threat: str = "symmetric",
    accountant: str = "tradeoff",
    steps: int = STEPS,
    sample_rate: float | None = None,
) -> Plan:
    """The least noise with which a unanimous vote of `instances` is certified at r = ceil(fraction * units).

    Args:
        units: N, a public number.
        fraction: share of the units that may be changed, in (0, 1).
        sample_rate: q; by default a batch of about 1024, or larger where less than 4 sigmas of noise would do.
    """
    check_eta(eta)
    if not 0 < fraction < 1:
        raise MucdError(f"fraction {fraction} is outside (0, 1): 0.01 means 1 % of the units")
    if units < 2:
        raise MucdError(f"units {units}: a dataset needs at least 2")
    if instances < least_instances(actions, eta):
        raise MucdError(
            f"{instances} instances cannot certify anything at eta {eta:g} and {actions} actions: "
            f"at least {least_instances(actions, eta)} are needed"
        )
    radius = math.ceil(fraction * units)
    bounds = top_two_bounds([[instances] + [0] * (actions - 1)], eta)

    def certifies(mechanism: Mechanism, threats: tuple[str, ...]) -> bool:
        return all(
            Guarantees(mechanism, threat=t, family=accountant).at(radius).lower(bounds.top)
            > Guarantees(mechanism, threat=t, family=accountant).at(radius).upper(bounds.runner_up)
            for t in threats
        )

    rate = sample_rate if sample_rate is not None else min(1.0, BATCH / units)
    # One-sided groups decide a symmetric difference up to a hair and are quicker to account.
    quick = ("insert", "remove") if threat == "symmetric" else (threat,)
    while True:
        mechanism = _mechanism(units, rate, steps, _least_sigma(lambda m: certifies(m, quick), units, rate, steps))
        if sample_rate is not None or rate == 1 or mechanism.noise_multiplier >= LEAST_NOISE:
            break
        rate = min(1.0, 2 * rate)
    while not certifies(mechanism, (threat,)):
        mechanism = replace(mechanism, noise_multiplier=mechanism.noise_multiplier * (1 + SIGMA_PRECISION))
    guarantees = Guarantees(mechanism, threat=threat, family=accountant)
    return Plan(
        mechanism=mechanism,
        units=units,
        radius=int(action_radii(bounds.top, bounds.runner_up, guarantees, units)[0]),
        fraction=fraction,
        instances=instances,
        signal_budget=mechanism.signal_budget(units),
    )


def _mechanism(units: int, rate: float, steps: int, sigma: float) -> Mechanism:
    return Mechanism(sample_rate=rate, noise_multiplier=sigma, clip_norm=CLIP_NORM, steps=steps, normaliser=rate * units)


def _least_sigma(certifies, units: int, rate: float, steps: int) -> float:
    low, high = LEAST_NOISE_MULTIPLIER, 1.0
    while not certifies(_mechanism(units, rate, steps, high)):
        low, high = high, 2 * high
    while high / low > 1 + SIGMA_PRECISION:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if certifies(_mechanism(units, rate, steps, middle)) else (middle, high)
    # Rounded up to 4 digits: the safe side.
    digits = 3 - math.floor(math.log10(high))
    return math.ceil(high * 10**digits) / 10**digits
