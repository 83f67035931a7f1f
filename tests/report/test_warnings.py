"""What is odd about the recording is told, and only that."""

import pytest

from mucd_ray.report.warnings import early_warnings, warnings_of


def told(clipped=False, mean=5.0, **baselines):
    return warnings_of({"inputs": {"return_range": [0.0, 10.0], "clipped": clipped}, "results": {"policy": {"unpoisoned_mean": mean}}}, baselines)


def test_nothing_is_told_where_nothing_is_odd():
    assert told() == [] == told(best_constant_return=4.0, returns_outside=0, returns_recorded=100, observations_outside=0.1, observations_outside_feature=3)
    # Some returns beyond the range are what it is for, where they are clipped.
    assert told(clipped=True, returns_outside=5, returns_recorded=100) == []


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"returns_outside": 1, "returns_recorded": 100}, "1 of 100 recorded trajectories earn less or more than the range [0, 10] of the environment's card: look"),
        ({"clipped": True, "returns_outside": 6, "returns_recorded": 100}, "6 of 100 recorded trajectories earn less or more than the range [0, 10] of the environment's card, into which returns are clipped: look"),
        ({"observations_outside": 0.25, "observations_outside_feature": 3}, "feature 3 is beyond the scales of the environment's card in 25 % of the recorded observations"),
        ({"best_constant_return": 6.0}, "a constant action earns more than these policies"),
    ],
)
def test_each_oddity_is_one_sentence(values, words):
    (text,) = told(**values)
    assert text.startswith(words)


def test_a_constant_action_above_the_recording_is_told_before_training():
    (text,) = early_warnings({"best_constant_action": "SLOWER", "best_constant_return": 21.77, "behaviour": 14.5})
    assert text.startswith("a constant action, SLOWER, earns 21.77 here, more than the recorded trajectories on average (14.5)")
    # No more is known where nothing is played, or where poisoned rewards leave no mean.
    assert early_warnings({"best_constant_action": "1", "best_constant_return": 14.5, "behaviour": 14.5}) == [] == early_warnings({}) == early_warnings({"best_constant_return": 1.0})


def test_a_forged_file_of_baselines_tells_nothing():
    assert told(best_constant_return="7", returns_outside=True, observations_outside=float("nan"), returns_recorded=None) == []
