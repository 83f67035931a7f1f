"""The number that is written, read back, is on the safe side of the bound and within the stated digits."""

import math
from decimal import Decimal
from fractions import Fraction

from hypothesis import example, given
from hypothesis import strategies as st

from mucd_ray.certify.rounding import (
    confidence_percent,
    exactly,
    percent_down,
    percent_up,
    probability_down,
    probability_up,
    round_down,
    round_up,
    share,
    tenths_down,
)

NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.floats(-1e7, 1e7) | st.integers(-(10**15), 10**15).map(float)
PROBABILITIES = st.floats(0, 1) | st.floats(0, 1e-6).map(lambda p: 1 - p) | st.sampled_from([0.0, 1.0, 1 - 2**-53, 5e-324])


def read(text):
    return Fraction(Decimal(text))


@given(NUMBERS, st.integers(1, 17))
@example(-1234564.0, 6)
@example(9.9999995, 6)
@example(-0.0, 3)
def test_bounds_are_on_the_safe_side_and_close(value, digits):
    exact, step = Fraction(repr(value)), Fraction(10) ** (1 - digits) * abs(Fraction(repr(value)))
    for text, low, high in ((round_down(value, digits), exact - step, exact), (round_up(value, digits), exact, exact + step)):
        assert low <= read(text) <= high
        # As doubles, too.
        assert (float(text) <= value) if high == exact else (float(text) >= value)
    assert round_down(value, 17) == round_up(value, 17) == exactly(value) and float(exactly(value)) == value


@given(st.floats(-1e100, 1e100), st.floats(1e-6, 1), st.integers(1, 8))
def test_a_narrow_range_far_from_zero_keeps_its_digits(value, narrow, digits):
    width = abs(value) * narrow or 1.0
    assert read(round_up(value, digits, width)) - read(round_down(value, digits, width)) <= 2 * Fraction(10) ** (1 - digits) * Fraction(width)
    assert read(round_down(value, digits, width)) <= Fraction(repr(value)) <= read(round_up(value, digits, width))


@given(PROBABILITIES, st.integers(1, 12))
@example(0.99999959895, 6)
def test_probabilities_are_never_written_as_certain_or_impossible(p, digits):
    exact = Fraction(repr(p))
    step = Fraction(10) ** (1 - digits) * min(exact, 1 - exact)
    for down, up, unit in ((probability_down, probability_up, 1), (percent_down, percent_up, 100)):
        below, above = read(down(p, digits)) / unit, read(up(p, digits)) / unit
        assert exact - step <= below <= exact <= above <= exact + step
        assert (below == 0) == (p == 0) == (above == 0) and (below == 1) == (p == 1) == (above == 1)


@given(st.integers(0, 10**9), st.integers(1, 10**9))
def test_shares_of_counts(count, total):
    count = min(count, total)
    written = read(share(count, total).removesuffix(" %")) / 100
    assert written <= Fraction(count, total) <= written + Fraction(1, 1000) and (written < 1 or count == total)


@given(st.floats(1e-10, 1, exclude_max=True), st.integers(1, 3))
def test_confidence_is_never_overstated(eta, statements):
    assert read(confidence_percent(eta, statements)) / 100 <= max(0, 1 - statements * Fraction(repr(eta)))
    assert read(confidence_percent(eta)) < 100


@given(st.floats(0, 1e12))
def test_means_of_radii(value):
    assert 0 <= Fraction(repr(value)) - read(tenths_down(value)) < Fraction(1, 10)


def test_how_they_are_written():
    assert [round_down(x) for x in (123.45678, -123.45678, 0.0, 1e-9, 250.0)] == ["123.456", "-123.457", "0", "0.000000001", "250"]
    assert [round_up(x) for x in (123.45678, -123.45678, 0.0, 250.0)] == ["123.457", "-123.456", "0", "250"]
    assert [round_down(0.29), round_up(0.07), percent_down(0.29), percent_up(0.07), share(29, 100)] == ["0.29", "0.07", "29", "7", "29 %"]
    assert [percent_down(2 / 3), percent_up(2 / 3), share(2, 3)] == ["66.6", "66.7", "66.66 %"]
    assert [confidence_percent(0.001, n) for n in (1, 2, 3)] == ["99.9", "99.8", "99.7"] and confidence_percent(0.6, 2) == "0"
    assert [exactly(x) for x in (-1234564.0, -900004.9, 0.1, 1e20, 1e100, -0.0)] == ["-1234564", "-900004.9", "0.1", "100000000000000000000", "1e+100", "0"]
    assert [probability_down(0.99999959895), probability_up(0.9999999), probability_up(1.0), probability_down(1e-300)] == ["0.99999959895", "0.9999999", "1", "1e-300"]
    assert [round_down(1e9 + 0.123456789, 6, width=1.0), tenths_down(526.5), tenths_down(12.39), percent_down(math.nextafter(1, 0))] == [
        "1000000000.12345", "526.5", "12.3", "99.99999999999999",
    ]
