"""How the service scales: workers on this machine, and the coordinator under a simulated cluster of up to 1,000 trainers and 100,000 instances.

    python benchmarks/scale.py

Three parts. First, real trainers on the cores of this machine, and what it costs when one of them is killed. Second, the driver's pool under 1 to 1,000 trainers that sleep
a fixed time per block, many of them in one process: blocks per second beside the ideal, and the driver's own work per block. Third, what driver and coordinator do per
instance, with real files and real actors, but with trainers that do nothing: blocks of N instances are committed in batches as 1,000 trainers would, counted by the
coordinator and certified from at every look.
"""

import argparse
import asyncio
import itertools
import os
import resource
import signal
import tempfile
import time
from pathlib import Path

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import ray

from mucd_ray.data.environments.cards import card_for
from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.data.recording.record import record
from mucd_ray.learn.learner import Learner
from mucd_ray.mechanism.gaussian.mechanism import Mechanism
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.driver import trainers as real_trainers
from mucd_ray.service.runs.driver import training_units
from mucd_ray.service.runs.session import Request, make_settings
from mucd_ray.service.runs.settings import RunSettings
from mucd_ray.service.runs.work import choose_states
from mucd_ray.service.storage.store import Block, RunStore
from mucd_ray.service.workers.actors import Certifier, Coordinator
from mucd_ray.service.workers.pool import Call, Pool

STATES, BLOCK, PARAMETERS = 200, 100, 4610
REAL_STEPS, REAL_BLOCK = 100, 16
SETTINGS = RunSettings(
    dataset="synthetic", fingerprint="none", units=20_000, card=card_for("CartPole-v1"), actions=2, dimensions=0, action_bounds=None, declared_size=20_000, size_margin=None,
    mechanism=Mechanism(sample_rate=0.1, noise_multiplier=100.0, clip_norm=1.0, steps=10, normaliser=2000.0), learner=Learner(learning_rate=1.0), states=STATES,
)


class Workers:
    """Real trainers on a real recording: policies 4-64-64-2 that play CartPole."""

    def __init__(self, folder: Path):
        os.environ["MINARI_DATASETS_PATH"], self.folder = str(folder / "datasets"), folder
        (folder / "datasets").mkdir()
        record("CartPole-v1", None, 20_000, 1, "scale/cartpole-v0")
        self.dataset = load_dataset("scale/cartpole-v0")
        request = Request(dataset="scale/cartpole-v0", learner=Learner(hidden=(64, 64), learning_rate=10.0), steps=REAL_STEPS)
        self.settings, _ = make_settings(request, self.dataset, Choices())
        self.states = choose_states(self.settings, b"s" * 32, training_units(self.settings, self.dataset), "cpu")

    def rate(self, trainers: int, blocks: int, kill: bool = False) -> float:
        """Seconds that `trainers` take for `blocks` once all are there and warm; `kill`: one is killed in the middle of the second block."""
        store = RunStore.create_or_open(tempfile.mkdtemp(dir=self.folder), self.settings, secret=b"s" * 32)
        store.write_states(self.states)
        pool = real_trainers(store, self.settings, self.dataset, lambda: trainers, 600.0, {"num_cpus": 1})
        calls = [Call("train", (range(first, first + REAL_BLOCK),)) for first in range(0, (trainers + blocks) * REAL_BLOCK, REAL_BLOCK)]
        pool.upcoming = trainers
        while pool.alive < trainers:
            list(pool.run(calls[:1]))
        list(pool.run(calls[:trainers]))
        pool.upcoming, start, done = 0, time.perf_counter(), 0
        for result in pool.run(calls[trainers:]):
            done += result is not None
            if kill and done == 1:
                time.sleep(0.5)
                os.kill(next(worker for worker in pool.workers if worker.call).place[1], signal.SIGKILL)
                kill = False
        wall = time.perf_counter() - start
        pool.close()
        return wall


@ray.remote(num_cpus=0, max_concurrency=2000)
class Sleepers:
    """Many trainers in one process: a block takes a fixed time and no work."""

    async def place(self) -> tuple[str, int]:
        return ray.get_runtime_context().get_node_id(), 0

    async def prepare(self) -> None:
        pass

    async def progress(self) -> int:
        return 0

    async def train(self, number: int, seconds: float) -> int:
        await asyncio.sleep(seconds)
        return number


class Shared(Pool):
    """The pool as it is, but its trainers share processes, which outlive them."""

    def _drop(self, worker):
        self.workers.remove(worker)


def efficiency(processes: list, trainers: int, blocks: int, seconds: float) -> tuple[float, float, float]:
    """(blocks per second, share of the ideal, driver's cpu-milliseconds per block), once all trainers are there."""
    turn = itertools.cycle(processes)
    pool = Shared(lambda: next(turn), lambda: trainers, 600.0)
    pool.upcoming = trainers
    while pool.alive < trainers:
        list(pool.run([Call("train", (-1, 0.0))]))
    pool.upcoming = 0
    start, cpu = time.perf_counter(), time.process_time()
    done = sum(result is not None for result in pool.run([Call("train", (number, seconds)) for number in range(blocks)]))
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    assert done == blocks
    return blocks / wall, blocks / wall * seconds / trainers, 1000 * cpu / blocks


def synthetic(first: int, count: int) -> Block:
    rng = np.random.default_rng(first)
    levels = rng.integers(90, 201, (count, STATES, 2), dtype=np.uint8)
    return Block(
        first=first, returns=rng.uniform(300, 500, count), actions=(levels[..., 0] < 105).astype(np.int16), levels=levels,
        parameters={"0.weight": np.zeros((count, PARAMETERS), np.float32)},
    )


def coordination(folder: Path, instances: int, trainers: int) -> dict[str, float]:
    """Milliseconds per instance of each part of driver and coordinator, and the coordinator's memory."""
    store = RunStore.create_or_open(folder, SETTINGS)
    store.write_states(np.zeros((STATES, 4), np.float32))
    coordinator, certifier = Coordinator.remote(store.storage.absolute, instances), Certifier.remote(store.storage.absolute, vars(Choices()))
    ray.get([coordinator.place.remote(), certifier.place.remote()])
    names = []
    start = time.perf_counter()
    for first in range(0, instances, BLOCK):
        names.append(store.commit(synthetic(first, BLOCK)))
    commit = time.perf_counter() - start
    start, batch = time.perf_counter(), max(1, trainers // 100)
    for k in range(0, len(names), batch):
        ray.get(coordinator.add.remote(names[k : k + batch]))
    add = time.perf_counter() - start
    start = time.perf_counter()
    assert ray.get(coordinator.missing.remote(instances, BLOCK)) == []
    missing = time.perf_counter() - start
    start = time.perf_counter()
    ray.wait([coordinator.evidence.remote(instances)])
    gather = time.perf_counter() - start
    start = time.perf_counter()
    ray.get(certifier.look.remote(coordinator.returns.remote(instances))) if instances in LOOKED else None
    look = time.perf_counter() - start
    _, pid = ray.get(coordinator.place.remote())
    memory = int(next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")).split()[1]) / 1024
    start = time.perf_counter()
    ray.kill(coordinator, no_restart=False)
    ray.get(coordinator.place.remote())
    ray.get(coordinator.missing.remote(instances, BLOCK))
    restart = time.perf_counter() - start
    ray.kill(coordinator)
    ray.kill(certifier)
    per = 1000 / instances
    return {"commit": commit * per, "add": add * per, "missing": missing * per, "evidence": gather * per, "look s": look, "restart s": restart, "MiB": memory}


LOOKED = (1000, 10_000, 100_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trainers", type=int, nargs="+", default=[1, 10, 100, 1000], help="trainers of the first part")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a block there")
    parser.add_argument("--instances", type=int, nargs="+", default=[1000, 10_000, 100_000], help="instances of the second part")
    options = parser.parse_args()
    cores = os.cpu_count()
    ray.init(address="local", num_cpus=max(2, cores), include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    with tempfile.TemporaryDirectory() as folder:
        workers, blocks = Workers(Path(folder)), 8 * cores
        counts = sorted({1, *(1 << k for k in range(1, cores.bit_length())), cores})
        walls = {count: workers.rate(count, blocks) for count in counts if count <= cores}
        print(f"{'trainers':>9} {'instances/s':>12} {'of ideal':>9}  (4-64-64-2, {REAL_STEPS} steps, blocks of {REAL_BLOCK})")
        for count, wall in walls.items():
            print(f"{count:9} {blocks * REAL_BLOCK / wall:12.1f} {100 * walls[1] / count / wall:8.0f}%")
        lost = workers.rate(cores, blocks, kill=True) - walls[cores]
        print(f"{lost:.1f} s later where one of {cores} trainers is killed in the middle of a block of {walls[1] / blocks:.1f} s\n", flush=True)
    print(f"{'trainers':>9} {'blocks/s':>9} {'of ideal':>9} {'driver cpu-ms/block':>20}")
    processes = [Sleepers.remote() for _ in range(4)]
    for trainers in options.trainers:
        rate, share, cpu = efficiency(processes, trainers, 4 * trainers, options.seconds)
        print(f"{trainers:9} {rate:9.2f} {100 * share:8.0f}% {cpu:20.2f}", flush=True)
    print(f"\nblocks of {BLOCK} instances, {STATES} states, {PARAMETERS} parameters; milliseconds per instance\n")
    print(f"{'instances':>9} {'commit':>8} {'add':>8} {'missing':>8} {'evidence':>9} {'look s':>7} {'restart s':>10} {'coordinator MiB':>16}")
    for instances in options.instances:
        with tempfile.TemporaryDirectory() as folder:
            found = coordination(Path(folder) / "run", instances, 1000)
        print(
            f"{instances:9} {found['commit']:8.3f} {found['add']:8.3f} {found['missing']:8.3f} {found['evidence']:9.4f} {found['look s']:7.2f} {found['restart s']:10.2f} {found['MiB']:16.0f}",
            flush=True,
        )
    print(f"\nthis process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB at most")


if __name__ == "__main__":
    main()
