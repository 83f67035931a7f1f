"""Speed of plain training on bags against a plain PyTorch loop over single models: steps of a model per cpu-second, one thread, medians of interleaved runs.

One step: a minibatch of the bag's transitions, forward, cross-entropy, backward, Adam, in both. GFLOP/s counts the products as
benchmarks/engine.py does; sgemm is torch's product of two 1024 x 1024 matrices in the same rounds.

    python benchmarks/bags.py [--rounds 5]
"""

import argparse

import numpy as np
import torch
from engine import SGEMM, flops_of_step, make_data, make_problem, median_rates, sgemm_flops

from mucd_ray.learn.networks import as_module, initial_parameters
from mucd_ray.learn.streams import Streams
from mucd_ray.learn.trainers.built_in import Fit, fit_policies

SHAPES, BATCHES = ((8, (64, 64), 4), (17, (64, 64), 6), (128, (64, 64), 3), (17, (256, 256), 6)), (128, 256)
# Transitions of a bag: five trajectories of 400.
ROWS, STEPS = 2000, 1000


def pytorch_loop(problem, data, batch: int):
    module = as_module(problem.network, initial_parameters(problem.network, np.random.default_rng(0)))
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-3)
    features, actions = torch.from_numpy(data.features), torch.from_numpy(data.actions)

    def run(count: int) -> int:
        for _ in range(count):
            rows = torch.randint(len(features), (batch,))
            loss = torch.nn.functional.cross_entropy(module(features[rows]), actions[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return count

    return run


def on_bags(problem, data, batch: int):
    def run(count: int) -> int:
        policies = -(-count // STEPS)
        bags = [np.arange(len(data))] * policies
        fit_policies(problem=problem, fit=Fit(steps=STEPS, batch=batch), units=data, bags=bags, instances=range(policies), streams=Streams(bytes(32)))
        return policies * STEPS

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(f"{'network':>14} {'batch':>6} {'PyTorch loop':>13} {'bags':>10} {'ratio':>7} {'of sgemm':>9}")
    for shape in SHAPES:
        problem = make_problem("bc", shape)
        data = make_data(problem, ROWS)
        for batch in BATCHES:
            rates = median_rates({"loop": pytorch_loop(problem, data, batch), "bags": on_bags(problem, data, batch), "sgemm": lambda count: sgemm_flops(count) // (2 * SGEMM**3)}, rounds)
            share = rates["bags"] * flops_of_step(problem, batch) / (rates["sgemm"] * 2 * SGEMM**3)
            network = "-".join(map(str, (shape[0], *shape[1], shape[2])))
            print(f"{network:>14} {batch:>6} {rates['loop']:>13,.0f} {rates['bags']:>10,.0f} {rates['bags'] / rates['loop']:>6.1f}x {share:>8.0%}")


if __name__ == "__main__":
    main()
