"""A local Ray in places that do not suit it: it starts all the same and says what it did, or names the variable that is in the way."""

import os
import resource
import subprocess
import sys
import tempfile

import pytest

from mucd_ray.service.workers import local_ray

START = """
import os, stat, sys, ray
import ray._private.utils
# A container with half a CPU, as Ray reads its cgroup.
ray._private.utils._get_docker_cpus = lambda *files: {cpus}
from mucd_ray.errors import MucdError
from mucd_ray.service.workers.cluster import Resources, joined
try:
    with joined(Resources()):
        folder = ray._private.worker._global_node.temp_dir
        print(ray.cluster_resources()["CPU"], folder, oct(stat.S_IMODE(os.stat(os.path.dirname(folder)).st_mode)))
        own = lambda: ",".join(os.environ.get(name, "-") for name in ("PYTHONWARNINGS", "PYTHONOPTIMIZE", "NUMBA_DISABLE_JIT"))
        print(ray.get(ray.remote(own).remote()), own())
except MucdError as error:
    sys.exit(f"mucd: error: {{error}}")
"""


def start(cpus, **environment):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")} | environment
    return subprocess.run([sys.executable, "-c", START.format(cpus=cpus)], env=environment, capture_output=True, text=True, timeout=200)


def test_a_long_folder_no_home_half_a_cpu_and_settings_of_this_process_are_no_obstacle(tmp_path):
    long = tmp_path / ("x" * 64)
    long.mkdir()
    result = start(0.5, TMPDIR=str(long), HOME="/proc", PYTHONWARNINGS="error", PYTHONOPTIMIZE="2", NUMBA_DISABLE_JIT="1")
    (cpus, folder, mode), own = (line.split() for line in result.stdout.splitlines())
    assert result.returncode == 0 and own == ["-,-,-", "error,2,1"]
    assert float(cpus) == 1 and mode == "0o700" and len(folder) < 30
    assert not os.path.exists(os.path.dirname(folder)) and os.listdir(long) == []
    told = [line for line in result.stderr.splitlines() if line.startswith("mucd: ")]
    assert len(told) == 3 and f"TMPDIR={long} is too long for the paths of its sockets" in told[0] and folder.removesuffix("/ray") in told[0]
    assert "HOME=/proc takes no files" in told[1] and "less than a whole CPU" in told[2]


@pytest.mark.slow
def test_a_folder_that_is_not_ascii_is_no_obstacle():
    """Neither a letter nor a byte that is no text."""
    with tempfile.TemporaryDirectory(dir="/tmp", suffix=" ä\udcff") as folder:
        result = start(2, TMPDIR=folder)
        assert result.returncode == 0 and result.stdout.split()[1].startswith("/tmp/mucd-") and os.listdir(folder) == []
    assert "is not ASCII, and Ray takes no other path: Ray's files lie in /tmp/mucd-" in result.stderr


@pytest.mark.parametrize(
    "environment, words",
    [
        ({"RAY_AUTH_TOKEN_PATH": "/nowhere/token"}, ["a local Ray does not start", "unset RAY_AUTH_TOKEN_PATH"]),
        ({"RAY_ADDRESS": "127.0.0.1:1"}, ["no Ray cluster answers at 127.0.0.1:1", "unset RAY_ADDRESS"]),
        ({"RAY_ADDRESS": "nonsense"}, ["no Ray cluster answers at nonsense", "unset RAY_ADDRESS"]),
    ],
)
def test_a_failed_start_names_the_variable_that_brought_it(environment, words):
    result = start(1, **environment)
    assert result.returncode == 1 and result.stdout == "" and all(word in result.stderr for word in words)
    assert ("cluster answers" in result.stderr) == ("RAY_ADDRESS" in environment) and "Traceback" not in result.stderr


def test_a_failed_start_names_the_limit_of_the_shell():
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, hard))
        assert "limited by ulimit -f: lift that" in local_ray._remedy("some of the raylet failed to startup")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
