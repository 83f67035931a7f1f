"""cluster/*.sh: tokens and certificates by themselves, and a real cluster of two nodes started by them."""

import os
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import threading
import urllib.error
from pathlib import Path

import pytest
from loopback import CLUSTER, ROOT, eventually

from mucd_ray.certify.file.certificate import read_certificate, verify
from mucd_ray.errors import MucdError
from mucd_ray.service.workers.cluster import check_reachable

SCRIPTS = sorted(CLUSTER.glob("*.sh"))


def sh(script, *arguments, **environment):
    return subprocess.run(["sh", CLUSTER / script, *arguments], env={"PATH": os.environ["PATH"]} | environment, capture_output=True, text=True)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_shellcheck_finds_no_faults():
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    result = subprocess.run([shellcheck, "-s", "sh", "-x", "-P", CLUSTER, *SCRIPTS], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_a_token_is_made_once_and_only_its_owner_reads_it(tmp_path):
    token = tmp_path / "keys" / "token"
    assert sh("make-token.sh", RAY_AUTH_TOKEN_PATH=str(token)).returncode == 0
    first = token.read_text()
    assert len(bytes.fromhex(first)) == 32 and mode(token) == 0o600 and mode(token.parent) == 0o700
    token.chmod(0o644)
    assert sh("make-token.sh", RAY_AUTH_TOKEN_PATH=str(token)).returncode == 0
    assert token.read_text() == first and mode(token) == 0o600
    token.chmod(0o644)
    subprocess.run(["sh", "-c", f". {CLUSTER}/environment.sh"], env={"PATH": os.environ["PATH"], "RAY_AUTH_TOKEN_PATH": str(token)}, check=True)
    assert mode(token) == 0o600


def test_nothing_starts_without_token_or_certificates(tmp_path):
    token = tmp_path / "token"
    refused = sh("start-worker.sh", "127.0.0.1:6379", RAY_AUTH_TOKEN_PATH=str(token))
    assert refused.returncode != 0 and refused.stderr.startswith(f"no token in {token}")
    token.write_text("0" * 64)
    refused = sh("start-worker.sh", "127.0.0.1:6379", RAY_AUTH_TOKEN_PATH=str(token), RAY_USE_TLS="1", RAY_TLS_DIR=str(tmp_path))
    assert refused.returncode != 0 and f"{tmp_path}/ca.crt cannot be read" in refused.stderr
    assert "usage" in sh("start-worker.sh", RAY_AUTH_TOKEN_PATH=str(token)).stderr


def test_every_node_has_its_own_certificate(tmp_path):
    def openssl(*arguments):
        return subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=True).stdout

    for nodes in (("10.0.0.1", "worker.example.org"), ("10.0.0.2",)):
        made = sh("make-tls.sh", str(tmp_path / "tls"), *nodes)
        assert made.returncode == 0, made.stderr
    names = {}
    for node in ("10.0.0.1", "10.0.0.2", "worker.example.org"):
        folder = tmp_path / "tls" / node
        assert {path.name for path in folder.iterdir()} == {"ca.crt", "node.crt", "node.key"}
        assert mode(folder / "node.key") == 0o600
        openssl("verify", "-CAfile", str(tmp_path / "tls" / "ca.crt"), str(folder / "node.crt"))
        names[node] = openssl("x509", "-in", str(folder / "node.crt"), "-noout", "-ext", "subjectAltName")
    assert "IP Address:10.0.0.1" in names["10.0.0.1"] and "10.0.0.1" not in names["10.0.0.2"] and "DNS:worker.example.org" in names["worker.example.org"]
    assert len({(tmp_path / "tls" / node / "node.key").read_text() for node in names}) == 3


def test_a_cluster_with_tls_is_told_from_one_without(tmp_path, monkeypatch, local_ray):
    assert sh("make-tls.sh", str(tmp_path), "127.0.0.1", "10.0.0.2").returncode == 0
    context, listener = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), socket.create_server(("127.0.0.1", 0))
    context.load_cert_chain(tmp_path / "127.0.0.1" / "node.crt", tmp_path / "127.0.0.1" / "node.key")

    def serve():
        while True:
            try:
                context.wrap_socket(listener.accept()[0], server_side=True).close()
            except ssl.SSLError:
                continue
            except OSError:
                return

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    with_tls, without = f"127.0.0.1:{listener.getsockname()[1]}", local_ray.get_runtime_context().gcs_address
    check_reachable(without)
    with pytest.raises(MucdError, match=f"{with_tls} is no Ray cluster without TLS: set RAY_USE_TLS=1"):
        check_reachable(with_tls)
    monkeypatch.setenv("RAY_USE_TLS", "1")
    with pytest.raises(MucdError, match=f"no TLS with {with_tls} .*set RAY_USE_TLS as on its nodes"):
        check_reachable(with_tls)
    for name, file in {"CA_CERT": "ca.crt", "SERVER_CERT": "node.crt", "SERVER_KEY": "node.key"}.items():
        monkeypatch.setenv(f"RAY_TLS_{name}", str(tmp_path / "10.0.0.2" / file))
    check_reachable(with_tls)
    with pytest.raises(MucdError, match=f"no TLS with {without} "):
        check_reachable(without)
    listener.close()


def refusal(nodes, token):
    """HTTP status of the dashboard's answer to this token."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        nodes.get("/api/jobs/", token)
    return refused.value.code


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("nodes", [{"tls": False}, {"tls": True}], ids=["token", "token and TLS"], indirect=True)
def test_a_job_on_two_nodes_finishes_its_certificate_verifies_and_strangers_are_refused(nodes, recordings, tmp_path):
    nodes.environment["MINARI_DATASETS_PATH"] = os.environ["MINARI_DATASETS_PATH"]
    nodes.start_head()
    worker = nodes.start_worker()
    eventually(lambda: len(nodes.alive_nodes()) == 2)
    assert mode(nodes.token) == 0o600

    submit = ("ray", "job", "submit", "--address", f"http://127.0.0.1:{nodes.dashboard}", "--working-dir", str(ROOT), "--runtime-env", "cluster/runtime_env.yaml", "--")
    job = ("python", "jobs/run.py", recordings["cartpole"], "--instances", "40", "--steps", "5", "--out", str(tmp_path / "run"))
    done = nodes.run(*submit, *job)
    assert done.returncode == 0, done.stdout + done.stderr
    certificate = read_certificate(tmp_path / "run" / "certificate.json")
    assert verify(certificate) == [] and certificate["results"]["instances"] == 40

    assert refusal(nodes, None) == 401 and refusal(nodes, "0" * 64) == 403
    connect = ("python", "-c", f"import ray; ray.init(address='{nodes.ip}:{nodes.port}')")
    assert nodes.run(*connect).returncode == 0
    stranger = tmp_path / "token"
    stranger.write_text("0" * 64)
    ours, nodes.environment = nodes.environment, nodes.environment | {"RAY_AUTH_TOKEN_PATH": str(stranger)}
    refused = nodes.run(*submit, *job)
    assert refused.returncode != 0 and "Invalid authentication token" in refused.stderr
    refused = nodes.run(*connect)
    assert refused.returncode != 0 and "InvalidAuthToken" in refused.stderr
    if ours["RAY_USE_TLS"] == "1":
        nodes.environment = ours | {"RAY_USE_TLS": "0"}
        # Ray itself would keep trying for many minutes.
        refused = nodes.run(*job[:-1], str(tmp_path / "other"), "--address", f"{nodes.ip}:{nodes.port}")
        assert refused.returncode == 2 and "set RAY_USE_TLS=1" in refused.stderr and "Traceback" not in refused.stderr
    nodes.environment = ours

    # A raylet that is gone, as after a minute without the head, is replaced.
    before = nodes.alive_nodes()
    start = children(worker.pid, "ray")[0]
    subprocess.run(["kill", "-9", *children(start, "raylet")], check=True)
    eventually(lambda: len(nodes.alive_nodes()) == 2 and nodes.alive_nodes() != before)


def children(pid, name):
    return subprocess.run(["pgrep", "-P", str(pid), "-x", name], capture_output=True, text=True).stdout.split()
