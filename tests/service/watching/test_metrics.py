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


def test_misuse_is_an_error():
    metrics = RunMetrics("acrobot")
    with pytest.raises(TypeError, match="mucd_failures_total is a counter"):
        metrics.set("mucd_failures_total", 1)
    with pytest.raises(KeyError):
        metrics.count("mucd_unknown_total")
    with pytest.raises(ValueError, match="kind"):
        metrics.count("mucd_failures_total")
