"""Real Ray nodes on this machine, started by the scripts in cluster/ on free ports, and stopped by their process ids."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import ray

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
NODE_PORTS = ("node-manager-port", "object-manager-port", "runtime-env-agent-port", "dashboard-agent-grpc-port", "dashboard-agent-listen-port", "metrics-export-port")


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def eventually(check, seconds: float = 240):
    """The first true value of check(); whatever it raises or returns at the end of the time is told."""
    end = time.monotonic() + seconds
    while True:
        try:
            value = check()
        except Exception as error:
            value, failure = None, error
        else:
            failure = value
        if value:
            return value
        assert time.monotonic() < end, f"{check.__name__} after {seconds:g} s: {failure!r}"
        time.sleep(0.5)


class Nodes:
    """A head and workers of one cluster. `environment` is what a client of the cluster needs beside the token's file."""

    def __init__(self, folder: Path, *, tls: bool = False, ip: str | None = None):
        self.folder, self.processes = folder, []
        self.ip = ip or ray.util.get_node_ip_address()
        self.token = folder / "keys" / "token"
        base = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment = base | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "RAY_AUTH_TOKEN_PATH": str(self.token),
            "RAY_USE_TLS": str(int(tls)), "RAY_TLS_DIR": str(folder / "tls" / self.ip),
        }
        if tls:
            subprocess.run(["sh", CLUSTER / "make-tls.sh", folder / "tls", self.ip], check=True)

    def start_head(self, cpus: int = 1) -> None:
        self.port, self.dashboard, client, autoscaler_metrics, dashboard_metrics = free_ports(5)
        self.environment |= {"AUTOSCALER_METRIC_PORT": str(autoscaler_metrics), "DASHBOARD_METRIC_PORT": str(dashboard_metrics)}
        ports = ("--port", self.port, "--dashboard-port", self.dashboard, "--ray-client-server-port", client, "--temp-dir", self.folder / "ray")
        more = (*ports, "--node-ip-address", self.ip, "--num-cpus", cpus)

        def is_up():
            # Ray gives a node 30 seconds to start, which a busy machine may exceed.
            if not self.processes or self.processes[-1].poll() is not None:
                self.metrics_port = self._start("start-head.sh", "--block", *more)
            return self.alive_nodes()

        eventually(is_up)

    def start_worker(self, *more: str, inside: tuple[str, ...] = ()) -> subprocess.Popen:
        """`inside`: a command that runs the script somewhere else, such as another network namespace."""
        self._start("start-worker.sh", f"{self.ip}:{self.port}", "--num-cpus", 1, *more, inside=inside)
        return self.processes[-1]

    def _start(self, script: str, *arguments, inside: tuple[str, ...] = ()) -> int:
        numbers = dict(zip(NODE_PORTS, free_ports(len(NODE_PORTS))))
        own = [word for name, port in numbers.items() for word in (f"--{name}", str(port))]
        command = [*inside, "sh", CLUSTER / script, *map(str, arguments), *own, "--min-worker-port", "0", "--max-worker-port", "0"]
        log = (self.folder / f"{script}.log").open("a")
        self.processes.append(subprocess.Popen(command, env=self.environment, cwd=self.folder, stdout=log, stderr=log, start_new_session=True))
        return numbers["metrics-export-port"]

    def popen(self, *command: str, **options) -> subprocess.Popen:
        """A command of somebody who has sourced cluster/environment.sh and works on the head."""
        line = f'. "{CLUSTER}/environment.sh" && exec "$@"'
        return subprocess.Popen(["sh", "-c", line, "sh", *command], env=self.environment, cwd=ROOT, **options)

    def run(self, *command: str) -> subprocess.CompletedProcess:
        """The same, finished."""
        process = self.popen(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            out, err = process.communicate()
        finally:
            process.kill()
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def get(self, path: str, token: str | None) -> dict:
        request = urllib.request.Request(f"http://127.0.0.1:{self.dashboard}{path}", headers={} if token is None else {"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=20) as reply:
            return json.load(reply)

    def alive_nodes(self) -> set[str]:
        nodes = self.get("/nodes?view=summary", self.token.read_text())["data"]["summary"]
        return {node["raylet"]["nodeId"] for node in nodes if node["raylet"]["state"] == "ALIVE"}

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            process.wait(timeout=60)
