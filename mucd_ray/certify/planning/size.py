"""The public size from which a run's constants may follow: a dataset's own size, rounded so that an attacker cannot move it."""

import math
from bisect import bisect_left

from mucd_ray.certify.confidence.proportions import check_count

# Hundredths of the last size of each cell and of the size to which all of a cell round, in the decade from 1 to 10. Cells end after 13, 22, 34, 56 and 86, and
# so on by tens: between the round numbers in which people record, so that these lie within a margin.
CELLS = ((135, 110), (220, 175), (345, 275), (565, 450), (860, 700))


def declared_size(units: int) -> tuple[int, int]:
    """(declared N, margin): N rounded to a public series, and how many units may come or go without changing it.

    A run must not derive its constants from len(D), which the attacker can change. Rounding makes them the same for every
    dataset within the margin, so a certificate whose radius stays within the margin is about one fixed mechanism.
    """
    check_count(units, "units")
    decade = 10 ** (len(str(units)) - 1)
    # From the decade below to the one above, in whole numbers: floating point would have its own borders.
    cells = [(last * scale // 1000, hundredths * scale) for scale in (decade, 10 * decade, 100 * decade) for last, hundredths in CELLS]
    at = bisect_left(cells, (units, 0))
    last, thousandths = cells[at]
    return round(thousandths / 1000), min(units - cells[at - 1][0] - 1, last - units)


def round_size(units: int) -> int:
    """An example of a round number of this order: 1, 2 or 5 times a power of ten."""
    decade = 10 ** math.floor(math.log10(units))
    return min((1 * decade, 2 * decade, 5 * decade, 10 * decade), key=lambda size: abs(math.log(units / size)))
