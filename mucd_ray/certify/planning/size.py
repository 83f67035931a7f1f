"""The public size from which a run's constants may follow: a dataset's own size, rounded so that an attacker cannot move it."""

import math

from mucd_ray.certify.confidence.proportions import check_count

# Renard's series R10 (ISO 3).
RENARD = (1.0, 1.25, 1.6, 2.0, 2.5, 3.15, 4.0, 5.0, 6.3, 8.0)


def declared_size(units: int) -> tuple[int, int]:
    """(declared N, margin): N rounded to Renard's series, and how many units may come or go without changing it.

    A run must not derive its constants from len(D), which the attacker can change. Rounding makes them the same for every
    dataset within the margin, so a certificate whose radius stays within the margin is about one fixed mechanism.
    """
    check_count(units, "units")
    decade = 10 ** math.floor(math.log10(units))
    sizes = [RENARD[-1] * decade / 10, *(size * decade for size in RENARD), RENARD[0] * decade * 10]
    at = min(range(1, len(sizes)), key=lambda i: abs(math.log(units / sizes[i])))
    low = math.sqrt(sizes[at - 1] * sizes[at])
    high = math.sqrt(sizes[at] * (sizes[at + 1] if at + 1 < len(sizes) else 12.5 * decade))
    return round(sizes[at]), max(min(units - math.ceil(low), math.floor(high) - units), 0)


def round_size(units: int) -> int:
    """An example of a round number of this order: 1, 2 or 5 times a power of ten."""
    decade = 10 ** math.floor(math.log10(units))
    return min((1 * decade, 2 * decade, 5 * decade, 10 * decade), key=lambda size: abs(math.log(units / size)))
