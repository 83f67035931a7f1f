"""What a run tells Prometheus, by `ray.util.metrics`: Ray serves it on every node's metrics port, with `ray_` before each name.

Labels take few values: `run` is the last part of the run's folder or URL, in which what is not printable ASCII is percent-encoded, since Ray takes nothing else; the others come from the small sets below.
`cluster/grafana-dashboard.json` shows all of it.
"""

from functools import cache
from urllib.parse import quote

from ray.util import metrics

# name: (kind, description, labels)
METRICS = {
    "mucd_instances_done": ("gauge", "Instances stored in the run.", ("run",)),
    "mucd_instances_wanted": ("gauge", "Instances that the run was asked for.", ("run",)),
    "mucd_instances_trained_total": ("counter", "Instances trained and stored by this driver's trainers.", ("run",)),
    "mucd_block_seconds": ("histogram", "Seconds from handing out a block of instances to its commit.", ("run",)),
    "mucd_trainers": ("gauge", "Trainers; state is alive or wanted.", ("run", "state")),
    "mucd_failures_total": ("counter", "Failures; kind is trainer_died, training_failed, start_failed, lease_expired or block_damaged.", ("run", "kind")),
    "mucd_mean_return": ("gauge", "Mean return of the instances, unpoisoned.", ("run",)),
    "mucd_certified_fraction": ("gauge", "Share of the units up to which `share` of the mean return is kept.", ("run", "share")),
    "mucd_bound_instances": ("gauge", "Instances behind the current bounds.", ("run",)),
}
BLOCK_SECONDS = [0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0]
PRINTABLE = "".join(map(chr, range(32, 127)))


class RunMetrics:
    """The metrics of one run; made by any process that is connected to Ray.

    Args:
        run: the run's folder or URL.
    """

    def __init__(self, run: str):
        self.run = quote(str(run).rstrip("/").rpartition("/")[2], safe=PRINTABLE, errors="surrogateescape")

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        _metric(name, "gauge").set(value, {"run": self.run} | labels)

    def count(self, name: str, n: int = 1, **labels: str) -> None:
        """Add n >= 1 to a counter."""
        _metric(name, "counter").inc(n, {"run": self.run} | labels)

    def observe(self, name: str, value: float) -> None:
        """Add one observation to a histogram."""
        _metric(name, "histogram").observe(value, {"run": self.run})


@cache
def _metric(name: str, kind: str):
    """The process' one object of this name, made when first used."""
    declared, description, labels = METRICS[name]
    if kind != declared:
        raise TypeError(f"{name} is a {declared}, not a {kind}")
    if kind == "histogram":
        return metrics.Histogram(name, description=description, boundaries=BLOCK_SECONDS, tag_keys=labels)
    return {"gauge": metrics.Gauge, "counter": metrics.Counter}[kind](name, description=description, tag_keys=labels)
