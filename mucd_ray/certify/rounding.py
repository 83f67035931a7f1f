"""How every bound, share and constant is written in decimals, in claims, reports, tables and answers: never on the unsafe side.

A lower bound is rounded down, an upper bound up, a public constant not at all. Digits are counted where they matter: of a return in a
narrow range far from 0 those of the range's width, of a probability near 1 those of what is missing to 1. So no bound on a
probability is written as 0 or 1 unless it is that. A double is read as the shortest decimal that stands for it: 0.29 is 29/100, not
the binary number next to it, which would be rounded down to 0.289999.
"""

import math
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from fractions import Fraction

_CONTEXT = Context(prec=30, Emax=MAX_EMAX, Emin=MIN_EMIN)
# Exponents of ten between which decimals are written without an exponent.
_LEAST_PLAIN, _MOST_PLAIN = -12, 21


def round_down(value: float, digits: int = 6, width: float | None = None) -> str:
    """`value` with that many significant digits, never above it; more digits where `width`, that of its range, is less than the value."""
    return _written(_fraction(value), digits, up=False, of=_scale(value, width))


def round_up(value: float, digits: int = 6, width: float | None = None) -> str:
    """As `round_down`, never below it."""
    return _written(_fraction(value), digits, up=True, of=_scale(value, width))


def probability_down(p: float, digits: int = 6) -> str:
    """A probability, never above it: that many digits of it or of 1 - p, whichever is smaller."""
    return _written(_fraction(p), digits, up=False, of=_rarer(_fraction(p)))


def probability_up(p: float, digits: int = 6) -> str:
    """As `probability_down`, never below it."""
    return _written(_fraction(p), digits, up=True, of=_rarer(_fraction(p)))


def percent_down(share: float, digits: int = 3) -> str:
    """A share in percent, without the sign, never above it; digits as in `probability_down`."""
    return _percent(_fraction(share), digits, up=False)


def percent_up(share: float, digits: int = 3) -> str:
    """As `percent_down`, never below it."""
    return _percent(_fraction(share), digits, up=True)


def share(count: int, total: int) -> str:
    """count / total in percent, with four digits, never above it."""
    return f"{_percent(Fraction(count, total), 4, up=False)} %"


def confidence_percent(eta: float, statements: int = 1) -> str:
    """In percent, the probability with which that many statements, each wrong with probability at most eta, hold together; never above it."""
    return _percent(max(Fraction(0), 1 - statements * _fraction(eta)), 12, up=False)


def exactly(value: float) -> str:
    """A public constant: the shortest decimal that is read back as the same double."""
    return str(float(value)) if not math.isfinite(value) else _plain(Decimal(repr(float(value))))


def tenths_down(value: float) -> str:
    """A mean or median of whole numbers with at most one decimal, never above it."""
    return _plain(Decimal(f"{10 * _fraction(value) // 1}E-1"))


def _fraction(value: float) -> Fraction:
    return Fraction(repr(float(value)))


def _scale(value: float, width: float | None) -> Fraction:
    size = abs(_fraction(value))
    return size if width is None else min(size, _fraction(width))


def _rarer(p: Fraction) -> Fraction:
    return min(p, 1 - p) if 0 < p < 1 else abs(p)


def _percent(share: Fraction, digits: int, up: bool) -> str:
    return _written(100 * share, digits, up, of=100 * _rarer(share))


def _written(exact: Fraction, digits: int, up: bool, of: Fraction) -> str:
    """`exact` rounded to the last of the `digits` significant digits of `of`."""
    if of == 0:
        return _plain(_CONTEXT.divide(Decimal(exact.numerator), Decimal(exact.denominator)))
    decimals = digits - 1 - _CONTEXT.divide(Decimal(of.numerator), Decimal(of.denominator)).adjusted()
    scaled = exact * Fraction(10) ** decimals
    return _plain(Decimal(f"{-(-scaled // 1) if up else scaled // 1}E{-decimals}"))


def _plain(number: Decimal) -> str:
    if number == 0:
        return "0"
    sign, digits, exponent = number.as_tuple()
    while digits[-1] == 0:
        digits, exponent = digits[:-1], int(exponent) + 1
    number = Decimal((sign, digits, int(exponent)))
    return f"{number:f}" if _LEAST_PLAIN <= number.adjusted() < _MOST_PLAIN else str(number).replace("E", "e")
