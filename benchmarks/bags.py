"""Speed of plain training on bags against a plain PyTorch loop over single models: steps of a model per cpu-second, one thread, medians of interleaved runs.

One step: a minibatch of the bag's transitions, forward, cross-entropy, backward, Adam, in both. GFLOP/s counts the products as
benchmarks/engine.py does; sgemm is torch's product of two 1024 x 1024 matrices in the same rounds.

With --device, policies are trained as a stack there, beside the same plain loop on that device: steps of a model per second of wall clock, with steps
captured as CUDA graphs and without, and as a share of what the step's batched products alone, of the same sizes without padding, would reach.

    python benchmarks/bags.py [--rounds 5] [--device cuda] [--models 1024]
"""

import argparse
import statistics
import time

import numpy as np
import torch
from engine import SGEMM, flops_of_step, make_data, make_problem, median_rates, sgemm_flops

from mucd_ray.learn.networks import as_module, initial_parameters
from mucd_ray.learn.streams import Streams
from mucd_ray.learn.trainers.built_in import Fit, fit_policies, fit_stacked

SHAPES, BATCHES = ((8, (64, 64), 4), (17, (64, 64), 6), (128, (64, 64), 3), (17, (256, 256), 6)), (128, 256)
# Transitions of a bag: five trajectories of 400.
ROWS, STEPS = 2000, 1000


def pytorch_loop(problem, data, batch: int, device: str = "cpu"):
    module = as_module(problem.network, initial_parameters(problem.network, np.random.default_rng(0))).to(device)
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-3)
    features, actions = torch.from_numpy(data.features).to(device), torch.from_numpy(data.actions).to(device)

    def run(count: int) -> int:
        for _ in range(count):
            rows = torch.randint(len(features), (batch,), device=device)
            loss = torch.nn.functional.cross_entropy(module(features[rows]), actions[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        finish(device)
        return count

    return run


def finish(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def stacked(problem, data, batch: int, device: str, models: int, captured: bool):
    """Whole training runs of a stack of models, set-up, draws and download included."""
    bags = [np.arange(len(data))] * models

    def run(count: int) -> int:
        steps = -(-count // models)
        fit_stacked(
            problem=problem, fit=Fit(steps=steps, batch=batch), units=data, bags=bags, instances=range(models), streams=Streams(bytes(32)), device=device, captured=captured
        )
        return steps * models

    return run


def products(problem, batch: int, device: str, models: int):
    """The batched products of a step and nothing else: forward, weight gradients, and deltas of all layers but the first."""
    layers = [
        (torch.ones(models, batch, inputs, device=device), torch.ones(models, inputs, outputs, device=device), torch.ones(models, batch, outputs, device=device))
        for inputs, outputs in problem.network.layers
    ]

    def run(count: int) -> int:
        steps = -(-count // models)
        for _ in range(steps):
            for layer, (x, weight, delta) in enumerate(layers):
                torch.bmm(x, weight)
                torch.bmm(x.transpose(1, 2), delta)
                if layer:
                    torch.bmm(delta, weight.transpose(1, 2))
        finish(device)
        return steps * models

    return run


def on_bags(problem, data, batch: int):
    def run(count: int) -> int:
        policies = -(-count // STEPS)
        bags = [np.arange(len(data))] * policies
        fit_policies(problem=problem, fit=Fit(steps=STEPS, batch=batch), units=data, bags=bags, instances=range(policies), streams=Streams(bytes(32)))
        return policies * STEPS

    return run


def wall_rate(run, count: int, rounds: int) -> float:
    """Median of count / seconds, after one round that does not count."""
    rates = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        rates.append(run(count) / (time.perf_counter() - start))
    return statistics.median(rates[1:])


def print_on_device(device: str, models: int, rounds: int) -> None:
    print(f"{models:,} models at a time on {torch.cuda.get_device_name() if device != 'cpu' else 'the CPU'}")
    print(f"{'network':>14} {'batch':>6} {'PyTorch loop':>13} {'stacked':>11} {'ratio':>8} {'uncaptured':>11} {'products':>11} {'share':>6} {'TFLOP/s':>8}")
    for shape in SHAPES:
        problem = make_problem("bc", shape)
        data = make_data(problem, ROWS)
        for batch in BATCHES:
            runs = {
                "loop": pytorch_loop(problem, data, batch, device), "stacked": stacked(problem, data, batch, device, models, device != "cpu"),
                "uncaptured": stacked(problem, data, batch, device, models, False), "products": products(problem, batch, device, models),
            }
            rates = {name: wall_rate(run, STEPS if name == "loop" else STEPS * models, rounds) for name, run in runs.items()}
            network = "-".join(map(str, (shape[0], *shape[1], shape[2])))
            print(
                f"{network:>14} {batch:>6} {rates['loop']:>13,.0f} {rates['stacked']:>11,.0f} {rates['stacked'] / rates['loop']:>7.0f}x {rates['uncaptured']:>11,.0f}"
                f" {rates['products']:>11,.0f} {rates['stacked'] / rates['products']:>6.0%} {rates['stacked'] * flops_of_step(problem, batch) / 1e12:>8.2f}", flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", help="train stacks of models there, such as cuda")
    parser.add_argument("--models", type=int, default=1024, help="of a stack")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.device is None:
        print_on_cpu(options.rounds)
    else:
        print_on_device(options.device, options.models, options.rounds)


def print_on_cpu(rounds: int) -> None:
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
