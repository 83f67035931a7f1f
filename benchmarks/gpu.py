"""The torch engine on a GPU: the same results as on the CPU, its speed beside Opacus and a plain loop on the same card, and its share of the card's roofline.

    python benchmarks/gpu.py [--seconds 2] [--shapes 4]

Steps of an instance per second. `opacus` is one model trained by Opacus on tensors by index, `plain` one model by torch's vmap of grad with
clip and noise, both on the same card; `ours` the best of a few block sizes. The floor of a step is the larger of two times: the products' operations at
the rate measured for batched float32 products of that size, and the bytes that every input read once and every output written once would move.
"""

import argparse
import time
import warnings

import numpy as np
import torch
from engine import BATCH, SHAPES, Opacus, flops_of_step, make_data, make_problem
from torch.func import functional_call, grad, vmap

from mucd_ray.learn.engines.captured import train_captured
from mucd_ray.learn.engines.precision import require_float32_products
from mucd_ray.learn.engines.stacked import Draws, DrawsOnDevice, UnitsOnDevice, Workspace, clipped_sum, initial_stack, train_stacked
from mucd_ray.learn.networks import as_module, initial_parameters
from mucd_ray.learn.streams import Streams
from mucd_ray.mechanism.gaussian.mechanism import Mechanism

BLOCKS = (256, 1024, 4096)


def seconds(run, least: float) -> float:
    """Seconds of one call: median of five rounds that last at least `least` in all, after a warm-up."""
    run()
    torch.cuda.synchronize()
    times, end = [], time.perf_counter() + least
    while len(times) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def mechanism_of(rows: int, steps: int, batch: int = BATCH) -> Mechanism:
    return Mechanism(unit="transition", sample_rate=batch / rows, noise_multiplier=1.0, clip_norm=1.0, steps=steps, normaliser=float(batch))


def print_ceilings() -> tuple[float, float]:
    """(bytes a second of a copy, float32 operations a second of a large product)."""
    a = torch.randn(1 << 28, device="cuda")
    b = torch.empty_like(a)
    bandwidth = 8 * a.numel() / seconds(lambda: b.copy_(a), 0.5)
    c = torch.randn(8192, 8192, device="cuda")
    rate = 2 * 8192**3 / seconds(lambda: torch.mm(c, c), 0.5)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: copy {bandwidth / 1e12:.2f} TB/s, float32 product {rate / 1e12:.1f} TFLOP/s")
    return bandwidth, rate


def print_agreement(rows: int) -> None:
    """Against the CPU engine: samples, noise, clipped sums of one step, and parameters after noisy steps; and what one unit can move."""
    print("\nCPU and GPU on the same streams\n")
    instances, streams = list(range(64)), Streams(bytes(range(32)))
    for algorithm in ("bc", "dqn", "iql"):
        for shape in SHAPES[1:3]:
            problem = make_problem(algorithm, shape)
            data = make_data(problem, rows)
            data.features[7], data.features[9] = np.nan, 1e30
            mechanism = mechanism_of(rows, 30)
            host, card = UnitsOnDevice(data, torch.device("cpu")), UnitsOnDevice(data, torch.device("cuda"))
            on_host, on_card = Draws(streams, instances, host, mechanism.sample_rate, 1), DrawsOnDevice(streams, instances, card, mechanism.sample_rate, 1)
            samples = all(same_rows(on_host.rows(step), on_card.rows(step)) for step in range(3))
            noise = max(float((on_card.noise(step, 999).cpu() - on_host.noise(step, 999)).abs().max()) for step in range(3))
            flat = torch.from_numpy(initial_stack(problem, instances, streams))
            sums = [torch.zeros(flat.shape, dtype=torch.float64, device=d) for d in ("cpu", "cuda")]
            clipped_sum(problem, flat, flat, host, on_host.rows(0), 1.0, out=sums[0], workspace=Workspace(torch.device("cpu")))
            moved = flat.cuda()
            clipped_sum(problem, moved, moved, card, on_card.rows(0), 1.0, out=sums[1], workspace=Workspace(torch.device("cuda")))
            apart = float((sums[1].cpu() - sums[0]).norm() / sums[0].norm())
            reference = train_stacked(problem, mechanism, host, instances, streams)
            trained = train_captured(problem, mechanism, card, instances, streams).cpu()
            count = problem.parameter_count
            difference = float((trained - reference)[:, :count].abs().max())
            print(
                f"{algorithm:>4} {'-'.join(map(str, (shape[0], *shape[1], shape[2]))):>10}: samples {'equal' if samples else 'DIFFER'}, noise within {noise:.1e}, "
                f"clipped sums within {apart:.1e} of their norm, parameters after 30 noisy steps within {difference:.1e}; finite {bool(torch.isfinite(trained[:, :count]).all())}"
            )


def same_rows(host, card) -> bool:
    """Whether two batches have the same rows, padding aside."""
    counts = card.counts.tolist()
    return counts == list(host.counts) and all(
        torch.equal(mine[:count].nan_to_num(), its[:count].cpu().nan_to_num()) for mine, its, count in zip(host.x, card.x, counts)
    )


def print_one_unit(rows: int) -> None:
    """How far one unit moves a clipped sum on the card, in clip norms: everything takes part, with the worst content at every place."""
    streams, most = Streams(bytes(32)), 0.0
    for algorithm in ("bc", "dqn"):
        problem = make_problem(algorithm, SHAPES[1])
        flat = torch.from_numpy(initial_stack(problem, [0, 1], streams)).cuda()
        for content in (np.nan, np.inf, 1e30, 1e4, -1e4):
            data = make_data(problem, rows)
            without = make_data(problem, rows)
            data.features[rows // 2] = content
            data.rewards[rows // 2] = content if np.isfinite(content) else 0
            keep = np.arange(rows) != rows // 2
            less = type(data).transitions(
                without.features[keep], without.actions[keep], next_features=without.next_features[keep], rewards=without.rewards[keep], keeps=without.keeps[keep]
            )
            sums = []
            for units in (data, less):
                on_card = UnitsOnDevice(units, torch.device("cuda"))
                out = torch.zeros(flat.shape, dtype=torch.float64, device="cuda")
                draws = DrawsOnDevice(streams, [0, 1], on_card, 1.0, 1)
                sums.append(clipped_sum(problem, flat, flat, on_card, draws.rows(0), 1.0, out=out, workspace=Workspace(torch.device("cuda"))).clone())
            most = max(most, float((sums[0] - sums[1]).norm(dim=1).max()))
    print(f"\nOne unit among {rows:,} moves a clipped sum on the card by at most {most:.7f} C")


class Plain:
    """DP-SGD of one model as one writes it in torch: vmap of grad, clip, noise, Adam."""

    def __init__(self, problem, data, rate: float):
        self.module = as_module(problem.network, initial_parameters(problem.network, np.random.default_rng(0))).cuda()
        self.x, self.action, self.rate = torch.tensor(data.features, device="cuda"), torch.tensor(data.actions, device="cuda"), rate
        self.optimiser = torch.optim.Adam(self.module.parameters(), lr=1e-3)

        def loss(parameters, x, action):
            return torch.nn.functional.cross_entropy(functional_call(self.module, parameters, (x[None],)), action[None])

        self.gradients = vmap(grad(loss), in_dims=(None, 0, 0))

    def run(self) -> None:
        index = (torch.rand(len(self.x), device="cuda") < self.rate).nonzero()[:, 0]
        named = dict(self.module.named_parameters())
        gradients = self.gradients({name: p.detach() for name, p in named.items()}, self.x[index], self.action[index])
        norms = sum(g.flatten(1).square().sum(1) for g in gradients.values()).sqrt()
        factors = (1.0 / norms).clamp(max=1.0)
        for name, p in named.items():
            p.grad = (torch.einsum("i,i...->...", factors, gradients[name]) + torch.randn_like(p)) / (self.rate * len(self.x))
        self.optimiser.step()


def bytes_of_step(problem, rows: float) -> float:
    """Every input read once and every output written once: the batch, and parameters, moments, gradient, average and noise of the optimiser."""
    return 4 * (rows * (problem.inputs * (2 if problem.algorithm.context else 1) + 1) + problem.parameter_count * 8)


def print_speed(rows: int, least: float, shapes, bandwidth: float) -> None:
    print(f"\nSteps of an instance per second at batch {BATCH} of {rows:,}\n")
    print(f"{'network':>12} {'loss':>4} {'opacus':>7} {'plain':>7} {'block':>6} {'ours':>10} {'/opacus':>8} {'/plain':>7} {'us/step':>8} {'floor':>7} {'share':>6} {'bmm TFLOP/s':>11}")
    for shape in shapes:
        for algorithm in ("bc", "dqn"):
            problem = make_problem(algorithm, shape)
            data = make_data(problem, rows)
            loop = Opacus(problem, data, BATCH, "hooks", "cuda")
            plain = Plain(problem, data, loop.sample_rate)
            opacus_rate, plain_rate = 50 / seconds(lambda: loop.run(50), least / 2), 50 / seconds(lambda: [plain.run() for _ in range(50)], least / 2)
            units, rates, steps = UnitsOnDevice(data, torch.device("cuda")), {}, 200
            for block in BLOCKS:
                try:
                    once = seconds(torch.no_grad()(lambda: train_captured(problem, mechanism_of(rows, steps), units, range(block), Streams(bytes(32)))), least / 2)
                except torch.OutOfMemoryError:
                    torch.cuda.empty_cache()
                    continue
                rates[block] = block * steps / once
            block = max(rates, key=rates.get)
            width = max(shape[1], default=shape[2])
            left, right = torch.randn(1024, BATCH, width, device="cuda"), torch.randn(1024, width, width, device="cuda")
            bmm = 1024 * 2 * BATCH * width * width / seconds(lambda: torch.bmm(left, right), 0.2)
            floor = max(flops_of_step(problem, BATCH) / bmm, bytes_of_step(problem, BATCH) / bandwidth)
            ours = rates[block]
            print(
                f"{'-'.join(map(str, (shape[0], *shape[1], shape[2]))):>12} {algorithm:>4} {opacus_rate:>7,.0f} {plain_rate:>7,.0f} {block:>6} {ours:>10,.0f} {ours / opacus_rate:>7,.0f}x "
                f"{ours / plain_rate:>6,.0f}x {1e6 / ours:>8.3f} {1e6 * floor:>7.3f} {floor * ours:>6.0%} {bmm / 1e12:>11.1f}   " + " ".join(f"{b}:{r:,.0f}" for b, r in rates.items()),
                flush=True,
            )


def print_profile(rows: int) -> None:
    """Where the time of a step goes."""
    problem = make_problem("bc", SHAPES[1])
    units = UnitsOnDevice(make_data(problem, rows), torch.device("cuda"))

    def run() -> None:
        train_captured(problem, mechanism_of(rows, 200), units, range(1024), Streams(bytes(32)))

    run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    print(profile.key_averages().table(sort_by="cuda_time_total", row_limit=22, max_name_column_width=60))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--units", type=int, default=50_000, help="transitions in the data set")
    parser.add_argument("--seconds", type=float, default=1.0, help="least time of a measurement")
    parser.add_argument("--speed", action="store_true", help="only measure speed")
    parser.add_argument("--profile", action="store_true", help="also print where a step's time goes")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if not torch.cuda.is_available():
        parser.error("no GPU here")
    require_float32_products(torch.device("cuda"))
    with torch.no_grad():
        bandwidth, _ = print_ceilings()
        if not options.speed:
            print_agreement(options.units)
            print_one_unit(20_000)
    if options.profile:
        with torch.no_grad():
            print_profile(options.units)
    print_speed(options.units, options.seconds, SHAPES, bandwidth)


if __name__ == "__main__":
    main()
