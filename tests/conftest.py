"""Shared by all rooms: real recordings in a temporary Minari folder, one real local Ray, one real object store."""

import contextlib
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import pytest
from hypothesis import settings

# Everywhere else every run looks at new examples.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(scope="session")
def refusal():
    """refusal(call, *arguments): the one line with which a call is refused; meanwhile the process must not grow by more than 100 MB."""
    import re
    from pathlib import Path

    from mucd_ray.errors import MucdError

    def peak() -> float:
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024

    def refused(call, *arguments) -> str:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = peak()
        with pytest.raises(MucdError) as caught:
            call(*arguments)
        assert peak() - before < 100, "it was allocated"
        text = str(caught.value)
        assert len(text) < 1200 and text.isprintable(), text
        return text

    return refused


@pytest.fixture(scope="session")
def recordings(tmp_path_factory):
    """Ids of small real Minari datasets, recorded once per session: {"cartpole": id, "acrobot": id}."""
    from mucd_ray.data.recording.record import record

    folder = tmp_path_factory.mktemp("minari")
    old = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    for env_id, dataset in (("CartPole-v1", "cartpole/test-v0"), ("Acrobot-v1", "acrobot/test-v0")):
        record(env_id, None, 3000, 5, dataset)
    yield {"cartpole": "cartpole/test-v0", "acrobot": "acrobot/test-v0"}
    if old is None:
        del os.environ["MINARI_DATASETS_PATH"]
    else:
        os.environ["MINARI_DATASETS_PATH"] = old


@pytest.fixture(scope="session")
def local_ray(bucket):
    """A real local Ray, whose workers know the address and keys of the bucket."""
    import logging

    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield ray
    ray.shutdown()


@contextlib.contextmanager
def s3_server(address, bucket):
    """A real S3-compatible server with an empty bucket: yields its address and keys, which meanwhile are in the environment, also for processes started from here."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address=address, port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    before = {name: os.environ.get(name) for name in settings}
    os.environ |= settings
    # Its file systems keep the address with which they were made.
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir(bucket)
    yield settings
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


@pytest.fixture(scope="session")
def start_s3_server():
    return s3_server


@pytest.fixture(scope="session")
def bucket():
    """URL of an empty bucket of a server on loopback."""
    with s3_server("127.0.0.1", "runs"):
        yield "s3://runs"
