"""Speed of the engines against Opacus: private steps of one instance per cpu-second, one thread, medians of interleaved runs.

One step of an instance: Poisson sample, gather, forward, backward, clip, noise, Adam; for DQN also the target network at the next
observations and its update. All columns are measured in the same run:

    opacus    the loop of Opacus' tutorial: PrivacyEngine.make_private with hooks and its own DPDataLoader
    tensors   the best of Opacus without a loader: rows by index, the faster one of hooks and ghost clipping
    torch     the reference engine, a block of instances at a time
    fused     the compiled engine

Opacus derives q = 1/len(loader) from the batch size, and the engines run at that same q. GFLOP/s counts the multiplications and
additions of the layers' products on the sampled rows (forward, weight gradients, deltas, the target's forward pass) and nothing else;
sgemm is torch's product of two 1024 x 1024 matrices, measured in the same rounds.

    python benchmarks/engine.py [--units 50000] [--rounds 3] [--long]
"""

import argparse
import copy
import multiprocessing
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
import torch

from mucd_ray.learn.ensemble import train_block
from mucd_ray.learn.learner import Learner, LocalUpdate
from mucd_ray.learn.networks import as_module, initial_parameters
from mucd_ray.learn.problem import Problem
from mucd_ray.learn.streams import Streams, poisson_sample
from mucd_ray.learn.units import Units
from mucd_ray.mechanism.gaussian.mechanism import Mechanism

# (inputs, hidden layers, actions)
SHAPES = ((4, (), 2), (4, (64, 64), 2), (8, (64, 64), 4), (17, (256, 256), 6))
USUAL = SHAPES[1]
ALGORITHMS, BATCH = ("bc", "dqn"), 128
SECONDS, SGEMM = 0.5, 1024
DISCOUNT, TARGET_RATE = 0.99, 0.05


def make_problem(algorithm: str, shape, local=LocalUpdate()) -> Problem:
    inputs, hidden, actions = shape
    learner = Learner(algorithm=algorithm, hidden=hidden, optimiser="adam", learning_rate=1e-3, local=local)
    return Problem(learner=learner, inputs=inputs, actions=actions, discrete=True)


def make_data(problem: Problem, rows: int) -> Units:
    rng = np.random.default_rng(0)
    features, following = rng.standard_normal((2, rows, problem.inputs)).astype(np.float32)
    return Units.transitions(
        features, rng.integers(0, problem.actions, rows), next_features=following,
        rewards=rng.standard_normal(rows).astype(np.float32), keeps=(rng.random(rows) > 0.02).astype(np.float32),
    )


def make_trajectories(data: Units) -> Units:
    lengths = np.random.default_rng(1).integers(60, 141, len(data) // 100)
    ends = np.cumsum(lengths)
    inside = ends <= len(data)
    return Units(unit="trajectory", **data.arrays() | {"starts": (ends - lengths)[inside], "lengths": lengths[inside]})


def train(problem, units, rate, steps, instances, engine, **options) -> None:
    mechanism = Mechanism(unit=units.unit, sample_rate=rate, noise_multiplier=1.0, clip_norm=1.0, steps=steps, normaliser=rate * len(units))
    train_block(
        problem=problem, mechanism=mechanism, units=units, instances=range(instances), streams=Streams(bytes(32)), engine=engine, **options
    )


def engine_steps(problem, units, rate, engine):
    """A function that trains for a number of instance-steps, rounded up to whole steps of all instances -> how many they were."""
    # As many as the torch engine needs, and few enough to make many steps each, as a run does.
    instances = 16 if problem.learner.hidden else 128

    def run(count: int) -> int:
        steps = -(-count // instances)
        train(problem, units, rate, steps, instances, engine)
        return steps * instances

    return run


def sgemm_flops(count: int) -> int:
    a = torch.ones(SGEMM, SGEMM)
    for _ in range(count):
        torch.mm(a, a)
    return count * 2 * SGEMM**3


def flops_of_step(problem: Problem, rows: float) -> float:
    """Of the products of one step: forward passes, weight gradients, and deltas of all layers but the first."""
    sizes = [inputs * outputs for inputs, outputs in problem.network.layers]
    return 2 * rows * ((2 + len(problem.algorithm.context)) * sum(sizes) + sum(sizes[1:]))


class Opacus:
    """One instance trained by Opacus, with its loader or on tensors by index; the set-up is not timed."""

    def __init__(self, problem: Problem, data: Units, batch: int, mode: str, device: str = "cpu"):
        # Imported here, so that the process whose memory is measured has what a worker has.
        from opacus import PrivacyEngine

        self.algorithm, self.mode, self.device = problem.learner.algorithm, mode, device
        module = as_module(problem.network, initial_parameters(problem.network, np.random.default_rng(0))).to(device)
        self.target = copy.deepcopy(module)
        self.criterion = torch.nn.CrossEntropyLoss() if self.algorithm == "bc" else torch.nn.SmoothL1Loss()
        self.arrays = [torch.tensor(array, device=device) for array in (data.features, data.actions, data.next_features, data.rewards, data.keeps)]
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*self.arrays), batch_size=batch)
        self.sample_rate = 1 / len(loader)
        ghost = {"criterion": self.criterion, "grad_sample_mode": "ghost"} if mode == "ghost" else {}
        private = PrivacyEngine().make_private(
            module=module, optimizer=torch.optim.Adam(module.parameters(), lr=1e-3), data_loader=loader,
            noise_multiplier=1.0, max_grad_norm=1.0, poisson_sampling=True, **ghost,
        )
        self.module, self.optimiser, *criterion, self.loader = private
        if criterion:
            self.criterion = criterion[0]
        self.batches, self.generator = iter(self.loader), np.random.default_rng(0)

    def batch(self):
        if self.mode != "loader":
            index = poisson_sample(self.generator, len(self.arrays[0]), self.sample_rate)
            return [array[torch.from_numpy(index).to(self.device)] for array in self.arrays]
        batch = next(self.batches, None)
        if batch is None:
            self.batches = iter(self.loader)
            batch = next(self.batches)
        return batch

    def run(self, count: int) -> int:
        for _ in range(count):
            x, action, following, reward, keep = self.batch()
            self.optimiser.zero_grad()
            output = self.module(x)
            if self.algorithm == "bc":
                loss = self.criterion(output, action)
            else:
                with torch.no_grad():
                    target = reward + DISCOUNT * keep * self.target(following).max(1).values
                loss = self.criterion(output.gather(1, action[:, None])[:, 0], target)
            loss.backward()
            self.optimiser.step()
            if self.algorithm == "dqn":
                with torch.no_grad():
                    for mine, its in zip(self.target.parameters(), self.module.parameters()):
                        mine.lerp_(its, TARGET_RATE)
        return count


def trajectory_loop(problem: Problem, units: Units, rate: float):
    """Behaviour cloning by DP-FedAvg as one would write it: autograd on one trajectory after the other, for one instance."""
    local, generator, network = problem.learner.local, np.random.default_rng(0), problem.network
    module = as_module(network, initial_parameters(network, generator))
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-3)
    x, action = torch.from_numpy(units.features), torch.from_numpy(units.actions)

    def update(start: int, end: int) -> list[torch.Tensor]:
        client = copy.deepcopy(module)
        total = [torch.zeros_like(p) for p in client.parameters()]
        for _ in range(local.steps):
            loss = torch.nn.functional.cross_entropy(client(x[start:end]), action[start:end])
            for p, g, t in zip(client.parameters(), torch.autograd.grad(loss, list(client.parameters())), total):
                t += g
                p.data -= local.learning_rate * g
        norm = torch.sqrt(sum(t.square().sum() for t in total))
        return [t * min(1.0, 1.0 / float(norm)) for t in total]

    def run(count: int) -> int:
        for _ in range(count):
            gradient = [torch.randn_like(p) for p in module.parameters()]
            for unit in poisson_sample(generator, len(units), rate):
                for g, part in zip(gradient, update(units.starts[unit], units.starts[unit] + units.lengths[unit])):
                    g += part
            for p, g in zip(module.parameters(), gradient):
                p.grad = g / (rate * len(units))
            optimiser.step()
        return count

    return run


def median_rates(runs: dict, rounds: int, clock=time.process_time) -> dict[str, float]:
    """What each function does per second, measured in turn: run(count) -> how much was done."""
    def rate(run, count):
        start = clock()
        return run(count) / (clock() - start)

    # Warm-ups; the second one fixes the count that fills the time of a round.
    counts = {}
    for name, run in runs.items():
        run(1)
        start = clock()
        count = 1
        while clock() - start < SECONDS / 10:
            count *= 2
            start = clock()
            run(count)
        counts[name] = max(1, int(count * SECONDS / (clock() - start)))
    rates = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            rates[name].append(rate(run, counts[name]))
    return {name: statistics.median(values) for name, values in rates.items()}


def print_transitions(rows: int, rounds: int) -> None:
    print(f"Transitions, batches of {BATCH} of {rows:,}; steps of an instance per cpu-second\n")
    print(
        f"{'network':>12} {'loss':>4} {'opacus':>7} {'tensors':>7} {'torch':>8} {'fused':>8} {'fused/opacus':>12} {'fused/tensors':>13}"
        f" {'torch/opacus':>12} {'GFLOP/s':>8} {'sgemm':>6} {'share':>6}"
    )
    for shape in SHAPES:
        for algorithm in ALGORITHMS:
            problem = make_problem(algorithm, shape)
            data = make_data(problem, rows)
            loops = {mode: Opacus(problem, data, BATCH, mode) for mode in ("loader", "hooks", "ghost")}
            q = loops["loader"].sample_rate
            runs = {name: loop.run for name, loop in loops.items()} | {"sgemm": sgemm_flops}
            runs |= {engine: engine_steps(problem, data, q, engine) for engine in ("torch", "fused")}
            m = median_rates(runs, rounds)
            tensors, flops = max(m["hooks"], m["ghost"]), m["fused"] * flops_of_step(problem, q * rows)
            name = "-".join(str(width) for width in (shape[0], *shape[1], shape[2]))
            print(
                f"{name:>12} {algorithm:>4} {m['loader']:>7,.0f} {tensors:>7,.0f} {m['torch']:>8,.0f} {m['fused']:>8,.0f}"
                f" {m['fused'] / m['loader']:>11.1f}x {m['fused'] / tensors:>12.1f}x {m['torch'] / m['loader']:>11.1f}x"
                f" {flops / 1e9:>8.1f} {m['sgemm'] / 1e9:>6.0f} {flops / m['sgemm']:>6.0%}", flush=True,
            )


def print_trajectories(rows: int, rounds: int) -> None:
    print("\nTrajectories, 10 of about 100 transitions a step, 4-64-64-2, bc; steps of an instance per cpu-second\n")
    print(f"{'local steps':>12} {'loop':>7} {'torch':>8} {'fused':>8} {'fused/loop':>11} {'fused/torch':>12}")
    for local_steps in (1, 5):
        problem = make_problem("bc", USUAL, LocalUpdate(steps=local_steps))
        units = make_trajectories(make_data(problem, rows))
        q = 10 / len(units)
        runs = {engine: engine_steps(problem, units, q, engine) for engine in ("torch", "fused")}
        m = median_rates(runs | {"loop": trajectory_loop(problem, units, q)}, rounds)
        print(
            f"{local_steps:>12} {m['loop']:>7,.0f} {m['torch']:>8,.0f} {m['fused']:>8,.0f} {m['fused'] / m['loop']:>10.1f}x"
            f" {m['fused'] / m['torch']:>11.1f}x", flush=True,
        )


def print_cost(rows: int, long: bool) -> None:
    steps = 50
    print(f"\nCpu-milliseconds of one instance of 4-64-64-2, bc, {steps} steps, by the number of instances P\n")
    problem = make_problem("bc", USUAL)
    data = make_data(problem, rows)
    print(f"{'P':>8} {'torch':>8} {'fused':>8}")
    for instances in (10, 100, 1000) + (100_000,) * long:
        cost = {}
        for engine in ("torch", "fused"):
            if instances <= 1000 or engine == "fused":
                start = time.process_time()
                train(problem, data, BATCH / rows, steps, instances, engine)
                cost[engine] = (time.process_time() - start) / instances * 1000
        print(f"{instances:>8,} {cost.get('torch', float('nan')):>8.2f} {cost['fused']:>8.2f}", flush=True)


def peak_memory(rows: int, engine: str | None) -> float:
    """Peak resident MiB of a fresh process that trains 1000 instances of 4-64-64-2, or (None) only has the imports and the data."""
    torch.set_num_threads(1)
    problem = make_problem("bc", USUAL)
    data = make_data(problem, rows)
    if engine is not None:
        train(problem, data, BATCH / rows, 20, 1000, engine)
    # Not getrusage: its maximum outlives exec, so a child would report its parent's.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def print_memory(rows: int) -> None:
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        idle, reference, fused = pool.starmap(peak_memory, [(rows, None), (rows, "torch"), (rows, "fused")], chunksize=1)
    print(f"\nPeak memory at P=1000: fused {fused:,.0f} MiB, torch {reference:,.0f} MiB; imports and data alone {idle:,.0f} MiB")


def print_gpu(rows: int, rounds: int) -> None:
    print(f"\nOn {torch.cuda.get_device_name()}: steps of an instance per second, 4-64-64-2, torch engine with 4096 instances\n")
    for algorithm in ALGORITHMS:
        problem = make_problem(algorithm, USUAL)
        data = make_data(problem, rows)
        loop = Opacus(problem, data, BATCH, "hooks", "cuda")

        def block(count: int, problem=problem, data=data, q=loop.sample_rate) -> int:
            steps = -(-count // 4096)
            train(problem, data, q, steps, 4096, "torch", device="cuda", block=4096)
            return steps * 4096

        m = median_rates({"opacus": loop.run, "torch": block}, rounds, clock=time.perf_counter)
        print(f"{algorithm:>4} Opacus {m['opacus']:,.0f}, torch engine {m['torch']:,.0f}: {m['torch'] / m['opacus']:,.0f}x", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--units", type=int, default=50_000, help="transitions in the data set")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds per line")
    parser.add_argument("--long", action="store_true", help="also train 100,000 instances, which takes minutes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    print_transitions(options.units, options.rounds)
    print_trajectories(options.units, options.rounds)
    print_cost(options.units, options.long)
    print_memory(options.units)
    if torch.cuda.is_available():
        print_gpu(options.units, options.rounds)


if __name__ == "__main__":
    main()
