"""The public size: the same for every dataset within the margin, and margins where people need them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mucd_ray.certify.planning.size import CELLS, declared_size


def test_every_dataset_within_the_margin_declares_the_same_size():
    declared = [0, *(declared_size(units)[0] for units in range(1, 6600))]
    for units in range(1, 5001):
        margin = declared_size(units)[1]
        assert set(declared[units - margin : units + margin + 1]) == {declared[units]}
        # It could not be larger.
        assert {declared[units - margin - 1], declared[units + margin + 1]} != {declared[units]}


@settings(max_examples=300, deadline=None)
@given(exponent=st.integers(0, 13), place=st.sampled_from(range(len(CELLS))), step=st.integers(-2, 2), share=st.fractions(-1, 1))
def test_so_it_is_at_every_border_of_every_decade(exponent, place, step, share):
    units = max(1, CELLS[place][0] * 10**exponent // 100 + step)
    declared, margin = declared_size(units)
    assert declared_size(units + int(share * margin))[0] == declared
    assert declared == round(CELLS[0][1] / 100 * 10 ** (exponent + 1)) or declared in [round(size * 10**exponent / 100) for _, size in CELLS]


def test_it_is_about_the_size():
    assert max(max(units / declared_size(units)[0], declared_size(units)[0] / units) for units in range(9, 5001)) < 1.32


@pytest.mark.parametrize("decade", [10, 100, 1000, 10_000, 1_000_000])
def test_round_numbers_have_margins(decade):
    for tenths in (10, 12, 15, 16, 20, 25, 30, 40, 50, 60, 70, 75, 80, 90):
        assert declared_size(tenths * decade // 10)[1] >= max(1, 0.02 * tenths * decade / 10)


# Those of the shipped recipes and of the demo, as they came out.
@pytest.mark.parametrize("trajectories", [25, 50, 62, 70, 79, 99, 100, 123, 254, 503, 977, 2000])
def test_shipped_recipes_have_margins(trajectories):
    assert declared_size(trajectories)[1] >= 2
