"""Speed of the two engines against a plain Opacus loop: instance-steps per cpu-second, one thread, medians of interleaved runs.

One instance-step is one private step of one instance: Poisson sample, gather, forward, backward, clip, noise, Adam. The Opacus loop
is the one its tutorial shows: PrivacyEngine.make_private with its hooks and its own DPDataLoader. Opacus derives q = 1/len(loader)
from the batch size, and the engines run at that same q. GFLOP/s counts the multiplications and additions of the layers' products
on the sampled rows and nothing else; sgemm is torch's product of two 1024 x 1024 matrices, measured in the same rounds.

    python benchmarks/engine.py [--units 50000] [--rounds 5]
"""

import argparse
import multiprocessing
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
import torch

from mucd_ray.learn.ensemble import train_block
from mucd_ray.learn.learner import Learner
from mucd_ray.learn.networks import Network, as_module, initial_parameters
from mucd_ray.learn.streams import Streams
from mucd_ray.mechanism.mechanism import Mechanism

NETWORKS = (
    Network(inputs=4, outputs=2),
    Network(inputs=4, outputs=2, hidden=(64, 64)),
    Network(inputs=17, outputs=6, hidden=(256, 256)),
)
BATCHES = (128, 256)
INSTANCES = 128
SECONDS = 1.0
SGEMM = 1024
MEMORY_INSTANCES, MEMORY_STEPS = 1000, 100


def dataset(network: Network, units: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((units, network.inputs)).astype(np.float32), rng.integers(0, network.outputs, units)


def train(network, features, actions, rate, steps, engine, instances=INSTANCES) -> None:
    mechanism = Mechanism(
        sample_rate=rate, noise_multiplier=1.0, clip_norm=1.0, steps=steps, normaliser=rate * len(features)
    )
    train_block(
        network=network, learner=Learner(hidden=network.hidden, optimiser="adam", learning_rate=1e-3), mechanism=mechanism,
        features=features, actions=actions, instances=range(instances), streams=Streams(bytes(32)), engine=engine,
    )


def engine_rate(*arguments) -> float:
    """Instance-steps per cpu-second of `train` with these arguments."""
    start = time.process_time()
    train(*arguments)
    return INSTANCES * arguments[4] / (time.process_time() - start)


def sgemm_rate() -> float:
    """Floating-point operations per cpu-second of torch's matrix product."""
    a = torch.ones(SGEMM, SGEMM)
    start, count = time.process_time(), 20
    for _ in range(count):
        torch.mm(a, a)
    return count * 2 * SGEMM**3 / (time.process_time() - start)


def products(network: Network, rows: float) -> float:
    """Floating-point operations of one step: forward, weight gradients, and deltas of all layers but the first."""
    sizes = [inputs * outputs for inputs, outputs in network.layers]
    return 2 * rows * (2 * sum(sizes) + sum(sizes[1:]))


class OpacusLoop:
    """One instance, trained by Opacus as its tutorial does; the set-up is not timed."""

    def __init__(self, network: Network, features: np.ndarray, actions: np.ndarray, batch: int):
        # Imported here, so that the process whose memory is measured has what a worker has.
        from opacus import PrivacyEngine

        module = as_module(network, initial_parameters(network, np.random.default_rng(0)))
        data = torch.utils.data.TensorDataset(torch.tensor(features), torch.tensor(actions))
        loader = torch.utils.data.DataLoader(data, batch_size=batch)
        self.module, self.optimiser, self.loader = PrivacyEngine().make_private(
            module=module, optimizer=torch.optim.Adam(module.parameters(), lr=1e-3), data_loader=loader,
            noise_multiplier=1.0, max_grad_norm=1.0, poisson_sampling=True,
        )
        self.loss = torch.nn.CrossEntropyLoss()
        self.batches = iter(self.loader)

    @property
    def sample_rate(self) -> float:
        return 1 / len(self.loader)

    def rate(self, steps: int) -> float:
        start = time.process_time()
        for _ in range(steps):
            x, y = next(self.batches, (None, None))
            if x is None:
                self.batches = iter(self.loader)
                x, y = next(self.batches)
            self.optimiser.zero_grad()
            self.loss(self.module(x), y).backward()
            self.optimiser.step()
        return steps / (time.process_time() - start)


def compare(network: Network, batch: int, units: int, rounds: int) -> dict[str, float]:
    """Medians of the rates of Opacus, of both engines and of sgemm, measured in turn."""
    features, actions = dataset(network, units)
    opacus = OpacusLoop(network, features, actions, batch)
    common = network, features, actions, opacus.sample_rate
    runs = {"opacus": opacus.rate, "sgemm": lambda _: sgemm_rate()}
    # Warm-ups fix how many steps fill the time of a round.
    opacus.rate(20)
    steps = {"opacus": max(5, int(SECONDS * opacus.rate(20))), "sgemm": 0}
    for engine in ("torch", "fused"):
        runs[engine] = lambda steps, engine=engine: engine_rate(*common, steps, engine)
        runs[engine](2)
        steps[engine] = max(2, int(SECONDS * runs[engine](20) / INSTANCES))
    rates = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            rates[name].append(run(steps[name]))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {**medians, "flops": medians["fused"] * products(network, opacus.sample_rate * units)}


def peak_memory(units: int, engine: str | None) -> float:
    """Peak resident MiB of a fresh process that trains many instances of 4-64-64-2 at batch 128, or (None) only has the data."""
    torch.set_num_threads(1)
    network = NETWORKS[1]
    features, actions = dataset(network, units)
    if engine is not None:
        train(network, features, actions, 128 / units, MEMORY_STEPS, engine, MEMORY_INSTANCES)
    # Not getrusage: its maximum outlives exec, so a child would report its parent's.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--units", type=int, default=50_000, help="transitions in the data set")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds per line")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    print(
        f"{'network':>15} {'batch':>6} {'opacus/s':>9} {'torch/s':>9} {'ratio':>7} {'fused/s':>9} {'ratio':>7}"
        f" {'GFLOP/s':>8} {'sgemm':>6} {'share':>6}"
    )
    for network in NETWORKS:
        for batch in BATCHES:
            m = compare(network, batch, options.units, options.rounds)
            name = "-".join(str(width) for width in (network.inputs, *network.hidden, network.outputs))
            print(
                f"{name:>15} {batch:>6} {m['opacus']:>9,.0f} {m['torch']:>9,.0f} {m['torch'] / m['opacus']:>6.1f}x"
                f" {m['fused']:>9,.0f} {m['fused'] / m['opacus']:>6.1f}x"
                f" {m['flops'] / 1e9:>8.1f} {m['sgemm'] / 1e9:>6.0f} {m['flops'] / m['sgemm']:>6.0%}", flush=True,
            )
    print(f"\nPeak resident memory, P={MEMORY_INSTANCES} of 4-64-64-2 at batch 128, in a fresh process:")
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        idle, fused = pool.starmap(peak_memory, [(options.units, None), (options.units, "fused")], chunksize=1)
    print(f"{fused:,.0f} MiB with the fused engine, {idle:,.0f} MiB for the imports and the data alone")


if __name__ == "__main__":
    main()
