"""A real head node with a token, and a real submitted job."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mucd_ray.certify.file.certificate import read_certificate, verify

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).parent / "ray")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_a_submitted_job_joins_the_cluster_and_its_certificate_verifies(recordings, tmp_path, request):
    # Ray's sockets need a short path.
    short = tempfile.mkdtemp(prefix="mucd-ray-")
    request.addfinalizer(lambda: shutil.rmtree(short, ignore_errors=True))
    port, dashboard = free_port(), free_port()
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "PATH": f"{Path(RAY).parent}:{os.environ['PATH']}"}

    def ray(*arguments, **options):
        return subprocess.run([RAY, *arguments], env=environment, capture_output=True, text=True, timeout=300, **options)

    # Blocks, so that exactly this head can be stopped: `ray stop` stops every Ray of the machine.
    head = subprocess.Popen(
        [RAY, "start", "--head", "--block", "--port", str(port), "--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard), "--num-cpus", "2",
         "--temp-dir", short, "--dashboard-agent-listen-port", str(free_port())],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    try:
        while ray("job", "list", "--address", f"http://127.0.0.1:{dashboard}").returncode != 0:
            assert head.poll() is None
        submit = ("job", "submit", "--address", f"http://127.0.0.1:{dashboard}", "--working-dir", str(ROOT), "--runtime-env", "cluster/runtime_env.yaml", "--")
        job = ("python", "jobs/run.py", recordings["cartpole"], "--instances", "40", "--steps", "5", "--out")
        # The head answers before its agent does.
        for _ in range(10):
            done = ray(*submit, *job, str(tmp_path / "run"), cwd=ROOT)
            if "No available agent" not in done.stderr:
                break
        assert done.returncode == 0, done.stdout + done.stderr
        certificate = read_certificate(tmp_path / "run" / "certificate.json")
        assert verify(certificate) == [] and certificate["results"]["instances"] == 40
        assert json.loads((tmp_path / "run" / "summary.json").read_text())["instances"] == 40
        refused = ray(*submit, *job, "relative/run", cwd=ROOT)
        assert refused.returncode != 0 and "is relative" in refused.stdout + refused.stderr
    finally:
        head.terminate()
        head.wait(timeout=60)


@pytest.mark.slow
def test_the_table_on_raw_observations_is_made_and_goes_on(tmp_path):
    environment = os.environ | {"MINARI_DATASETS_PATH": str(tmp_path / "data"), "PYTHONPATH": str(ROOT)}
    job = [sys.executable, "jobs/raw_observations.py", "--smoke", "--instances", "20", "--out", str(tmp_path / "runs")]
    for wanted in ("acrobot-trajectory-bag-3", "acrobot-transition-gaussian"):
        done = subprocess.run([*job, "--only", wanted], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
    table = (tmp_path / "runs-smoke" / "results.md").read_text()
    assert "### Acrobot-v1" in table and "| bags of 3 trajectories | bc | 20 |" in table and "| noise on all transitions | bc | 20 |" in table
    refused = subprocess.run([*job, "--only", "nothing"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert refused.returncode == 2 and "fits no row" in refused.stderr
