"""Training many instances: checks the problem and hands it to the engine."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from mucd_ray.errors import MucdError
from mucd_ray.learn.engines.captured import train_captured
from mucd_ray.learn.engines.precision import require_float32_products
from mucd_ray.learn.engines.stacked import UnitsOnDevice, train_stacked
from mucd_ray.learn.networks import named_parameters
from mucd_ray.learn.problem import Problem
from mucd_ray.learn.streams import Streams
from mucd_ray.learn.units import Units, check
from mucd_ray.mechanism.gaussian.mechanism import NoisySteps

# Larger blocks save Python time until one layer's activations, this many floats, no longer stay in cache.
CPU_BLOCK, CPU_BLOCK_FLOATS = 128, 300_000
GPU_BLOCK = 1024
ENGINES = ("fused", "torch")


def train_block(
    *,
    problem: Problem,
    mechanism: NoisySteps,
    units: Units,
    instances: Sequence[int],
    streams: Streams,
    device: str = "cpu",
    engine: str = "fused",
    block: int | None = None,
    progress: Callable[[], None] | None = None,
) -> dict[str, Tensor]:
    """Train instances and return the parameters of their acting networks, stacked in the order given.

    Args:
        problem, mechanism: public settings.
        units: the data; never written to.
        instances: numbers of the instances; the randomness of each depends on its number and on `streams` alone.
        device: a torch device; results are bit-identical across blocks on the CPU.
        engine: "fused" is one compiled kernel (`fused`); "torch" is `stacked`, the reference, and also what trains on other devices,
            algorithms without a compiled delta or with several towers, and without Numba. Their results agree to float32 rounding.
            Networks that are not dense are trained by `engines/modules.py`, whatever is asked for.
        block: instances the torch engine trains at a time; changes speed and memory, never the result. None chooses for the device.
        progress: called after each step of a block of instances, or each instance where one takes seconds.

    Returns:
        {"0.weight": [P, in, out], "0.bias": [P, out], ...}, or a module's own parameters [P, ...] by name; float32 on the CPU.

    Formal guarantees: instance by instance this is the Poisson-subsampled Gaussian mechanism that `mechanism` describes, up to
    float32 rounding of the sums. Nothing but the noisy sums depends on `units`, apart from their number.

    Raises:
        MucdError: shapes, action values, the mechanism's unit or the engine do not fit; products on the device are coarser than float32.
    """
    check(problem, mechanism, units)
    if engine not in ENGINES:
        raise MucdError(f"engine {engine!r} is unknown: use one of {', '.join(ENGINES)}")
    place, instances = torch.device(device), list(instances)
    if problem.module_factory is not None:
        return _train_modules(problem, mechanism, units, instances, streams, progress)
    if engine == "fused" and place.type == "cpu" and fused_trains(problem):
        flat = _train_fused(problem, mechanism, units, instances, streams, progress)
    else:
        flat = _train_torch(problem, mechanism, units, instances, streams, place, block, progress)
    return acting_parameters(problem, flat)


def acting_parameters(problem: Problem, flat: Tensor) -> dict[str, Tensor]:
    """Released form of the tower that acts, from flat parameters [P, >= parameter_count] of all towers."""
    start = 0
    for tower, network in problem.networks:
        if tower.name == problem.algorithm.policy:
            return named_parameters(network, flat[:, start : start + network.parameter_count])
        start += network.parameter_count
    raise AssertionError("the registry names a tower that acts")


def fused_trains(problem: Problem) -> bool:
    """Whether the fused engine has all that this problem needs."""
    return problem.algorithm.delta is not None and len(problem.networks) == 1 and find_spec("numba") is not None


def _train_torch(problem, mechanism, units, instances, streams, device, block, progress) -> Tensor:
    # Before anything else is done on the device.
    require_float32_products(device)
    if device.type == "cpu":
        # Two threads were 13 times slower than one on a busy machine, and thread counts may change the order of sums.
        torch.set_num_threads(1)
    if block is None:
        rows = np.minimum(units.lengths, 1 if units.unit == "transition" else problem.learner.local.cap).sum()
        block = _block_size(problem, mechanism.sample_rate * rows) if device.type == "cpu" else GPU_BLOCK
    data = UnitsOnDevice(units, device)
    # Which rows of a trajectory take part is chosen on the host.
    train = train_captured if device.type == "cuda" and units.unit == "transition" else train_stacked
    with torch.no_grad():
        return in_blocks(lambda part: train(problem, mechanism, data, part, streams, progress), instances, block, device)


def in_blocks(train: Callable[[list], Tensor], items: list, block: int, device: torch.device) -> Tensor:
    """What `train` makes of the items, `block` at a time or as many as the device has memory for: [len(items), ...] on the CPU.

    Raises:
        MucdError: there is no memory for a single one.
    """
    trained, start = [], 0
    while start < len(items):
        part = items[start : start + block]
        try:
            trained.append(train(part).cpu())
        except torch.OutOfMemoryError:
            if block == 1:
                raise MucdError(f"one instance does not fit on {device}: use a smaller batch (sample rate) or network") from None
            # The same instances in smaller blocks give the same result.
            block = max(1, block // 2)
            torch.cuda.empty_cache()
            continue
        start += len(part)
    return torch.cat(trained)


def _train_fused(problem, mechanism, units, instances, streams, progress) -> Tensor:
    # Numba takes a second to import, which processes that do not train should not pay.
    from mucd_ray.learn.engines.fused.engine import FusedTrainer

    trainer = FusedTrainer(problem, mechanism, units, streams)
    flat = np.empty((len(instances), problem.parameter_count), np.float32)
    for row, instance in zip(flat, instances):
        row[:] = trainer.train(instance)
        if progress is not None:
            progress()
    return torch.from_numpy(flat)


def _train_modules(problem, mechanism, units, instances, streams, progress) -> dict[str, Tensor]:
    from mucd_ray.learn.engines.modules import train_opacus

    torch.set_num_threads(1)
    require_float32_products(torch.device("cpu"), convolutions=True)
    trained = []
    for instance in instances:
        module = train_opacus(problem.module_factory, problem, mechanism, units, instance, streams)
        trained.append({name: parameter.detach() for name, parameter in module.named_parameters()})
        if progress is not None:
            progress()
    return {name: torch.stack([parameters[name] for parameters in trained]) for name in trained[0]}


def _block_size(problem: Problem, rows: float) -> int:
    widest = max(width for _, network in problem.networks for width in (network.inputs, network.outputs, *network.hidden))
    return max(1, min(CPU_BLOCK, int(CPU_BLOCK_FLOATS / (max(rows, 1.0) * widest))))
