import pytest

from mucd_ray.certify.planning.goal import Goal
from mucd_ray.errors import MucdError


@pytest.mark.parametrize(
    "text, goal",
    [
        ("return>=0.5@0.01", Goal("return", 0.5, 0.01)),
        ("return >= 50% @ 1%", Goal("return", 0.5, 0.01)),
        ("absolute-return>=-250.5@1e-3", Goal("absolute-return", -250.5, 0.001)),
        ("actions>=90%@0.5%", Goal("actions", 0.9, 0.005)),
        ("return>=57.3%@29.1%", Goal("return", 0.573, 0.291)),
    ],
)
def test_goals_are_read(text, goal):
    assert Goal.parse(text) == goal


@pytest.mark.parametrize(
    "text", ["", "return", "return>0.5@0.01", "fame>=0.5@0.01", "return>=0.5", "return>=1.5@0.01", "return>=0@0.01", "return>=0.5@1", "return>=nan@0.1", "return>=--1@0.1", "actions>=0.5@200%",
             "absolute-return>=1e9999999@0.01", "absolute-return>=-1e999@0.01", "return>=0.5@1e-9999999", "return>=1e-400@0.01", "return>=.@0.1", "return>=0.5@1e"]
)
def test_what_is_no_goal_is_refused_by_name(text):
    with pytest.raises(MucdError, match="goal"):
        Goal.parse(text)


def test_a_fraction_is_rounded_up_to_whole_units():
    assert Goal.parse("return>=0.5@0.0101").radius(1000) == 11 and Goal.parse("return>=0.5@0").radius(1000) == 0
    assert Goal.parse("return>=0.5@0.07").radius(100) == 7


def test_goals_that_no_certificate_can_meet_are_refused_beforehand():
    with pytest.raises(MucdError, match="r = 101, above 100"):
        Goal.parse("return>=0.5@0.101").check(1000, 100, discrete=True)
    with pytest.raises(MucdError, match="continuous"):
        Goal.parse("actions>=0.5@0.01").check(1000, 100, discrete=False)
