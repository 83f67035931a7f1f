"""Kill anything at any moment, 100 times, on a real cluster of several nodes: nothing is lost, nothing counted twice, not a bit is different."""

import hashlib
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.driver import training_units
from mucd_ray.service.runs.session import Request, make_settings
from mucd_ray.service.runs.tally import Tally
from mucd_ray.service.runs.work import choose_states, train_and_evaluate
from mucd_ray.service.storage.store import RunStore

SECRET = b"torture" * 4
MARK = "MUCD_TORTURE"
# What is done to the run, and how often among the kills.
DEEDS = {"trainer": 34, "stopped trainer": 10, "coordinator": 10, "certifier": 6, "driver": 14, "node": 12, "block": 10, "cluster": 4}
DRIVER = """
import sys
from mucd_ray.service.workers.cluster import Resources
from mucd_ray.service.runs.driver import *
store = RunStore.open({run!r})
train(store, load_dataset({dataset!r}), {instances}, Choices(), Resources(block=1, lease=30.0, address={address!r}))
"""


class Torture:
    """A cluster of a head without CPUs and two nodes with one each, a driver process, and the means to harm them."""

    def __init__(self, run: Path, dataset: str, seed: int):
        self.run, self.dataset, self.random, self.token = run, dataset, random.Random(seed), secrets.token_hex(8)
        os.environ[MARK] = self.token
        self.cluster, self.nodes, self.driver, self.target = None, [], None, 0
        self.kills, self.stored, self.harmed, self.lost, self.gave_up = Counter(), {}, {}, [], 0

    def start_cluster(self):
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.nodes = [self.cluster.add_node(num_cpus=1, wait=False) for _ in range(2)]

    def start_driver(self, more=0):
        """A driver; `more` instances than before. One that ends by itself, with an error, several times in a row is a fault."""
        if self.driver is not None:
            self.gave_up = self.gave_up + 1 if self.driver.returncode > 0 else 0
            assert self.gave_up < 4, (self.run.parent / "driver.log").read_bytes()[-3000:].decode(errors="replace")
        self.target += more
        code = DRIVER.format(run=str(self.run), dataset=self.dataset, instances=self.target, address=self.cluster.address)
        code = "from mucd_ray.data.formats.minari import load_dataset\nfrom mucd_ray.service.runs.choices import Choices\nfrom mucd_ray.service.storage.store import RunStore\n" + code
        self.log = open(self.run.parent / "driver.log", "ab")
        self.driver = subprocess.Popen([sys.executable, "-c", code], stdout=self.log, stderr=self.log, start_new_session=True)

    def processes(self, title):
        """Process ids of this cluster's workers whose title begins so."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if (folder / "cmdline").read_bytes().startswith(title.encode()) and f"{MARK}={self.token}".encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                continue
        return found

    def check_stored(self):
        """What was once stored must stay, byte for byte, but for what was harmed, until it is trained again."""
        found = {}
        for path in (self.run / "blocks").glob("*.safetensors"):
            try:
                found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
            except FileNotFoundError:
                continue
        self.harmed = {name: digest for name, digest in self.harmed.items() if found.get(name, digest) == digest}
        for name, digest in list(self.stored.items()):
            if found.get(name) != digest:
                self.lost.append(name)
                del self.stored[name]
        self.stored |= {name: digest for name, digest in found.items() if name not in self.harmed}

    def harm(self, deed):
        """Do it; whether there was something to do it to."""
        titles = {"trainer": "ray::Trainer.train", "stopped trainer": "ray::Trainer.train", "coordinator": "ray::Coordinator", "certifier": "ray::Certifier"}
        if deed in titles:
            victims = self.processes(titles[deed])
            if not victims:
                return False
            try:
                os.kill(self.random.choice(victims), signal.SIGSTOP if deed == "stopped trainer" else signal.SIGKILL)
            except ProcessLookupError:
                return False
        elif deed == "driver":
            if self.driver.poll() is not None:
                return False
            os.killpg(self.driver.pid, signal.SIGKILL)
        elif deed == "node":
            self.cluster.remove_node(self.nodes.pop(0), allow_graceful=False)
            self.nodes.append(self.cluster.add_node(num_cpus=1, wait=False))
        elif deed == "cluster":
            self.cluster.shutdown()
            # Ray ends a driver whose head is gone after a minute; users do not wait that long.
            os.killpg(self.driver.pid, signal.SIGKILL)
            self.driver.wait()
            self.start_cluster()
        elif deed == "block":
            paths = sorted((self.run / "blocks").glob("*.safetensors"))
            if not paths:
                return False
            path = self.random.choice(paths)
            content = bytearray(path.read_bytes())
            content[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
            self.stored.pop(path.name, None)
            self.harmed[path.name] = hashlib.sha256(content).hexdigest()
            temporary = path.with_suffix(".harm")
            temporary.write_bytes(content)
            os.replace(temporary, path)
        return True

    def rage(self, kills):
        self.start_cluster()
        self.start_driver(more=300)
        deeds = [deed for deed, share in DEEDS.items() for _ in range(share)]
        while sum(self.kills.values()) < kills:
            deed, patience = self.random.choice(deeds), time.monotonic() + 40
            time.sleep(self.random.uniform(0.0, 2.0))
            while time.monotonic() < patience:
                self.check_stored()
                if self.driver.poll() is not None:
                    self.start_driver(more=100 if self.driver.returncode == 0 else 0)
                if self.harm(deed):
                    self.kills[deed] += 1
                    break
                time.sleep(0.1)
        done = False
        while True:
            # Once more when all is done: the last harm may have come after everything was counted.
            before, done = done, self.driver.wait(timeout=600) == 0 and self.target == self.certified()
            if before and done:
                return
            self.start_driver()

    def certified(self):
        certificate = RunStore.open(self.run).read_json("certificate.json")
        return certificate and certificate["results"]["instances"]

    def close(self):
        if self.driver is not None and self.driver.poll() is None:
            os.killpg(self.driver.pid, signal.SIGKILL)
        self.cluster.shutdown()
        del os.environ[MARK]


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_hundred_kills_lose_nothing_and_change_not_a_bit(recordings, tmp_path):
    kills, seed = int(os.environ.get("MUCD_KILLS", "100")), secrets.randbits(32)
    dataset = load_dataset(recordings["cartpole"])
    request = Request(dataset=recordings["cartpole"], instances=100, steps=8, states=12, held_out=3, rollouts=6)
    settings, _ = make_settings(request, dataset, Choices())
    store = RunStore.create_or_open(tmp_path / "run", settings, secret=SECRET)
    store.write_json("baselines.json", {"reference": [1] * 12})
    torture = Torture(store.path, recordings["cartpole"], seed)
    try:
        torture.rage(kills)
    finally:
        torture.close()
        print(f"seed {seed}: {dict(torture.kills)}, {torture.target} instances")
    torture.check_stored()
    assert sum(torture.kills.values()) == kills and torture.lost == [] and torture.harmed == {}
    reference = RunStore.create_or_open(tmp_path / "reference", settings, secret=SECRET)
    units = training_units(settings, dataset)
    states = reference.write_states(choose_states(settings, SECRET, units, "cpu"))
    reference.commit(train_and_evaluate(settings, SECRET, units, states, range(torture.target), "cpu"))
    ours, theirs = Tally(store, torture.target).evidence(), Tally(reference, torture.target).evidence()
    for name in ("votes", "histogram", "returns"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name
    whole = reference.read(reference.names()[0])
    for name in store.names():
        block = store.read(name)
        if block is not None and block.instances.stop <= torture.target:
            for key, values in block.parameters.items():
                assert np.array_equal(values, whole.parameters[key][block.first : block.first + len(values)])
