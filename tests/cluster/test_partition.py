"""A node that is cut off: a real one in a network namespace of its own, whose cable is pulled while it trains."""

import os
import secrets
import shutil
import subprocess
import time

import numpy as np
import pytest
from loopback import eventually

from mucd_ray.certify.file.certificate import verify
from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.driver import training_units
from mucd_ray.service.runs.session import Request, make_settings
from mucd_ray.service.runs.tally import Tally
from mucd_ray.service.runs.work import choose_states, train_and_evaluate
from mucd_ray.service.storage.store import RunStore

HEAD, NODE = "10.213.77.1", "10.213.77.2"
INSTANCES, SECRET = 240, b"partition" * 4
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0 or not all(map(shutil.which, ("ip", "nsenter", "unshare"))), reason="network namespaces need root, iproute2 and util-linux")


def run(*command):
    subprocess.run(command, check=True)


class Cable:
    """A pair of network interfaces: one end here, the other in a namespace that also has a private /dev/shm and a private `folder`."""

    def __init__(self, folder):
        self.name = f"mucd{secrets.token_hex(3)}"
        self.here, self.there = f"{self.name}a", f"{self.name}b"
        run("ip", "netns", "add", self.name)
        run("ip", "link", "add", self.here, "type", "veth", "peer", "name", self.there, "netns", self.name)
        run("ip", "address", "add", f"{HEAD}/24", "dev", self.here)
        for words in (("address", "add", f"{NODE}/24", "dev", self.there), ("link", "set", self.there, "up"), ("link", "set", "lo", "up")):
            run("ip", "-n", self.name, *words)
        self.plug()
        private = 'mount -t tmpfs tmpfs /dev/shm && mkdir -p "$0" && mount -t tmpfs tmpfs "$0" && echo ready && exec sleep infinity'
        self.holder = subprocess.Popen(["ip", "netns", "exec", self.name, "unshare", "-m", "sh", "-c", private, folder], stdout=subprocess.PIPE, text=True)
        assert self.holder.stdout.readline() == "ready\n"
        self.inside = ("nsenter", "-t", str(self.holder.pid), "-n", "-m", "--")

    def plug(self):
        run("ip", "link", "set", self.here, "up")

    def pull(self):
        run("ip", "link", "set", self.here, "down")

    def close(self):
        pids = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True).stdout.split()
        subprocess.run(["kill", "-9", *pids])
        self.holder.wait()
        run("ip", "netns", "del", self.name)
        subprocess.run(["ip", "link", "del", self.here], stderr=subprocess.DEVNULL)


@pytest.fixture
def cable(nodes):
    found = Cable(nodes.folder / "ray")
    try:
        yield found
    finally:
        found.close()


@pytest.fixture
def far_bucket(cable, nodes, start_s3_server):
    """A bucket on the head's side of the cable."""
    with start_s3_server(HEAD, "far") as settings:
        nodes.environment |= settings
        yield "s3://far"


@ROOT_ONLY
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("nodes", [{"ip": HEAD}], ids=[""], indirect=True)
def test_a_node_that_is_cut_off_costs_unfinished_blocks_only(nodes, cable, far_bucket, recordings):
    dataset = load_dataset(recordings["cartpole"])
    settings, _ = make_settings(Request(dataset=recordings["cartpole"], instances=INSTANCES, steps=2000, states=12, held_out=3, rollouts=6), dataset, Choices())
    store = RunStore.create_or_open(f"{far_bucket}/run", settings, secret=SECRET)
    store.write_json("baselines.json", {"reference": [1] * 12})

    nodes.environment["MINARI_DATASETS_PATH"] = os.environ["MINARI_DATASETS_PATH"]
    nodes.start_head(cpus=0)
    nodes.start_worker("--node-ip-address", NODE, inside=cable.inside)
    eventually(lambda: len(nodes.alive_nodes()) == 2)
    driver = nodes.popen("python", "jobs/grow.py", f"{far_bucket}/run", "--instances", str(INSTANCES), "--instances-per-actor", "3", "--address", f"{HEAD}:{nodes.port}")

    def trained_beyond(blocks):
        assert driver.poll() is None
        return len(store.names()) > blocks

    try:
        eventually(lambda: trained_beyond(2))
        before = nodes.alive_nodes()
        cable.pull()
        time.sleep(5)
        kept = store.names()
        time.sleep(15)
        assert store.names() == kept and driver.poll() is None
        cable.plug()
        eventually(lambda: trained_beyond(len(kept) + 2))

        # Longer than Ray takes a node for alive.
        assert nodes.alive_nodes() == before
        cable.pull()
        eventually(lambda: len(nodes.alive_nodes()) == 1)
        kept = store.names()
        cable.plug()
        eventually(lambda: len(nodes.alive_nodes()) == 2 and nodes.alive_nodes() != before)
        assert set(kept) <= set(store.names()) and len(kept) < INSTANCES // 3
        assert driver.wait(timeout=600) == 0
    finally:
        driver.kill()

    certificate = store.read_json("certificate.json")
    assert verify(certificate) == [] and certificate["results"]["instances"] == INSTANCES
    reference = RunStore.create_or_open(nodes.folder / "reference", settings, secret=SECRET)
    units = training_units(settings, dataset)
    states = reference.write_states(choose_states(settings, SECRET, units, "cpu"))
    reference.commit(train_and_evaluate(settings, SECRET, units, states, range(INSTANCES), "cpu"))
    ours, theirs = (Tally(each, INSTANCES).evidence() for each in (store, reference))
    assert all(np.array_equal(getattr(ours, name), getattr(theirs, name)) for name in ("votes", "histogram", "returns"))
