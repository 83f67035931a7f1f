"""Names and labels of metrics; that they arrive at a real metrics port is tested in tests/cluster/test_monitoring.py."""

import re

import pytest

from mucd_ray.service.watching.metrics import METRICS, RunMetrics


def test_names_follow_prometheus():
    for name, (kind, description, labels) in METRICS.items():
        assert re.fullmatch(r"mucd_[a-z_]+", name) and name.endswith("_total") == (kind == "counter"), name
        assert description.endswith(".") and labels[0] == "run"


@pytest.mark.parametrize("place", ["/shared/runs/acrobot", "/shared/runs/acrobot/", "s3://bucket/runs/acrobot", "acrobot"])
def test_a_run_is_called_by_the_last_part_of_its_place(place):
    assert RunMetrics(place).run == "acrobot"


@pytest.mark.parametrize("place, name", [("runs/ärger", "%C3%A4rger"), ("runs/a b%", "a b%"), ("runs/a\n\x1b", "a%0A%1B"), ("runs/\udcff", "%FF")], ids=ascii)
def test_a_name_that_ray_would_not_take_is_written_otherwise(local_ray, place, name):
    """Real metrics of a real Ray."""
    metrics = RunMetrics(place)
    assert metrics.run == name
    metrics.set("mucd_trainers", 1, state="alive")
    metrics.count("mucd_instances_trained_total")
    metrics.observe("mucd_block_seconds", 1.0)


def test_misuse_is_an_error():
    metrics = RunMetrics("acrobot")
    with pytest.raises(TypeError, match="mucd_failures_total is a counter"):
        metrics.set("mucd_failures_total", 1)
    with pytest.raises(KeyError):
        metrics.count("mucd_unknown_total")
    with pytest.raises(ValueError, match="kind"):
        metrics.count("mucd_failures_total")
