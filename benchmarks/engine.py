"""Speed of the batched engine against a plain Opacus loop: instance-steps per cpu-second, one thread, medians of interleaved runs.

One instance-step is one private step of one instance: Poisson sample, gather, forward, backward, clip, noise, Adam. The Opacus loop
is the one its tutorial shows: PrivacyEngine.make_private with its hooks and its own DPDataLoader. Opacus derives q = 1/len(loader)
from the batch size, and the engine runs at that same q.

    python benchmarks/engine.py [--units 50000] [--rounds 5]
"""

import argparse
import statistics
import time
import warnings

import numpy as np
import torch
from opacus import PrivacyEngine

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


def engine_rate(network: Network, features: np.ndarray, actions: np.ndarray, rate: float, steps: int) -> float:
    mechanism = Mechanism(
        sample_rate=rate, noise_multiplier=1.0, clip_norm=1.0, steps=steps, normaliser=rate * len(features)
    )
    learner = Learner(hidden=network.hidden, optimiser="adam", learning_rate=1e-3)
    start = time.process_time()
    train_block(
        network=network, learner=learner, mechanism=mechanism, features=features, actions=actions,
        instances=range(INSTANCES), streams=Streams(bytes(32)),
    )
    return INSTANCES * steps / (time.process_time() - start)


class OpacusLoop:
    """One instance, trained by Opacus as its tutorial does; the set-up is not timed."""

    def __init__(self, network: Network, features: np.ndarray, actions: np.ndarray, batch: int):
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


def compare(network: Network, batch: int, units: int, rounds: int) -> tuple[float, float]:
    """Median instance-steps per cpu-second of the engine and of the Opacus loop, measured in turn."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((units, network.inputs)).astype(np.float32)
    actions = rng.integers(0, network.outputs, units)
    opacus = OpacusLoop(network, features, actions, batch)
    # The warm-up fixes how many steps fill the time of a round.
    engine_steps = max(2, int(SECONDS * engine_rate(network, features, actions, opacus.sample_rate, 2) / INSTANCES))
    opacus_steps = max(5, int(SECONDS * opacus.rate(20)))
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(engine_rate(network, features, actions, opacus.sample_rate, engine_steps))
        theirs.append(opacus.rate(opacus_steps))
    return statistics.median(ours), statistics.median(theirs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--units", type=int, default=50_000, help="transitions in the data set")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds per line")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    print(f"{'network':>15} {'batch':>6} {'engine/s':>10} {'opacus/s':>10} {'ratio':>7}")
    for network in NETWORKS:
        for batch in BATCHES:
            ours, theirs = compare(network, batch, options.units, options.rounds)
            name = "-".join(str(width) for width in (network.inputs, *network.hidden, network.outputs))
            print(f"{name:>15} {batch:>6} {ours:>10,.0f} {theirs:>10,.0f} {ours / theirs:>6.1f}x", flush=True)


if __name__ == "__main__":
    main()
