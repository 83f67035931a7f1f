"""prometheus.yml, podmonitor.yaml and grafana-dashboard.json against what the package and Ray declare, and against a real metrics port."""

import json
import re
import urllib.request

import promql_parser
import pytest
import yaml
from loopback import CLUSTER, eventually
from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

from mucd_ray.service.watching.metrics import METRICS

DASHBOARD = json.loads((CLUSTER / "grafana-dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
# As Ray exports them.
SUFFIXES = {"gauge": ("",), "counter": ("",), "histogram": ("_bucket", "_sum", "_count")}
OURS = {f"ray_{name}{suffix}": labels for name, (kind, _, labels) in METRICS.items() for suffix in SUFFIXES[kind]}
RAYS = {f"ray_{name}" for name in METRICS_GAUGES}


def expressions():
    return [target["expr"].replace("$__rate_interval", "5m") for panel in PANELS for target in panel["targets"]]


def test_the_dashboard_shows_every_metric_and_nothing_that_nobody_exports():
    shown = {name for expression in expressions() for name in re.findall(r"ray_\w+", expression)}
    assert shown <= set(OURS) | RAYS
    assert {name for name in METRICS if any(f"ray_{name}{suffix}" in shown for suffix in ("", "_bucket", "_sum", "_count"))} == set(METRICS)


def test_every_expression_is_promql_and_uses_declared_labels():
    for expression in expressions():
        promql_parser.parse(expression)
        for name, matchers in re.findall(r"(ray_mucd_\w+)\{([^}]*)\}", expression):
            labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
            assert "run" in labels and labels <= set(OURS[name]), expression
        for labels in re.findall(r"by \(([^)]*)\)", expression):
            known = {label for metric in OURS.values() for label in metric} | {"le", "instance", "GpuIndex"}
            assert set(labels.split(", ")) <= known, expression


def test_panels_have_numbers_places_and_titles_of_their_own():
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    cells = [(x, y) for p in DASHBOARD["panels"] for x in range(p["gridPos"]["x"], p["gridPos"]["x"] + p["gridPos"]["w"]) for y in range(p["gridPos"]["y"], p["gridPos"]["y"] + p["gridPos"]["h"])]
    assert len(set(cells)) == len(cells) and max(x for x, _ in cells) < 24
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD))) <= variables | {"__rate_interval", "__all"}


def test_prometheus_finds_the_nodes_in_the_file_that_ray_writes():
    jobs = yaml.safe_load((CLUSTER / "prometheus.yml").read_text())["scrape_configs"]
    assert [job["file_sd_configs"][0]["files"] for job in jobs] == [[f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]]


EMIT = """
import sys, time, ray
from mucd_ray.service.watching.metrics import METRICS, RunMetrics
ray.init(address=sys.argv[1])
metrics = RunMetrics("/shared/runs/acrobot/")
values = {"run": {}, "state": {"state": "alive"}, "kind": {"kind": "trainer_died"}, "share": {"share": "0.5"}}
for name, (kind, _, labels) in METRICS.items():
    if kind == "gauge":
        metrics.set(name, 3, **values[labels[-1]])
    elif kind == "counter":
        metrics.count(name, 2, **values[labels[-1]])
    else:
        metrics.observe(name, 5)
time.sleep(600)
"""


@pytest.mark.slow
def test_metrics_of_a_run_appear_on_the_metrics_port_under_the_names_of_the_dashboard(nodes):
    nodes.start_head()
    driver = nodes.popen("python", "-c", EMIT, f"{nodes.ip}:{nodes.port}")
    try:
        def exported():
            with urllib.request.urlopen(f"http://127.0.0.1:{nodes.metrics_port}/metrics", timeout=20) as reply:
                text = reply.read().decode()
            return text if all(re.search(rf'^{name}{{[^}}]*run="acrobot"', text, re.M) for name in OURS) else None

        text = eventually(exported)
        assert re.search(r'^ray_mucd_failures_total\{[^}]*kind="trainer_died"[^}]*\} 2\.0$', text, re.M)
    finally:
        driver.kill()
        driver.wait()
