"""The batched engine: trains a block of independent instances at once, each with its own sample, noise and parameters.

Layout: the parameters of instance p are one row of a flat tensor [P, stride], with layer views [P, out, in] into it. Element-wise
work runs on the whole block. Matrix products run instance by instance on exactly the sampled rows, because the rounding of
a batched or padded product may depend on its neighbours; so an instance's parameters are bit-identical in every block.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from mucd_ray.errors import MucdError
from mucd_ray.learn import streams as purposes
from mucd_ray.learn.clipping import clip_factors, squared_norms
from mucd_ray.learn.learner import OPTIMISERS, Learner
from mucd_ray.learn.losses import delta_for, loss_for, output_deltas
from mucd_ray.learn.networks import Network, initial_parameters, layer_views, named_parameters
from mucd_ray.learn.streams import Streams, gaussian_noise, poisson_sample
from mucd_ray.mechanism.mechanism import Mechanism

# Rows and parameters of an instance are padded to a multiple of this. They then start at the same alignment in every block and
# no element falls into the scalar tail of a vectorised loop, where rounding may differ.
ALIGNMENT = 32
# Larger blocks save Python time until one layer's activations, this many floats, no longer stay in cache.
CPU_BLOCK, CPU_BLOCK_FLOATS = 128, 300_000
GPU_BLOCK = 1024
ENGINES = ("fused", "torch")


def train_block(
    *,
    network: Network,
    learner: Learner,
    mechanism: Mechanism,
    features: np.ndarray,
    actions: np.ndarray,
    instances: Sequence[int],
    streams: Streams,
    device: str = "cpu",
    engine: str = "fused",
    block: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """Train instances and return their parameters, stacked in the order given.

    Args:
        network, learner, mechanism: public settings; `network.hidden` is used, `learner.hidden` is not read.
        features: float32 [N, inputs], never written to; a non-finite row contributes zero.
        actions: as the losses want them: int64 [N] counted from 0, or float32 [N, k]; never written to.
        instances: numbers of the instances; the randomness of each depends on its number and on `streams` alone.
        device: a torch device; results are bit-identical across blocks on the CPU.
        engine: "fused" is one compiled kernel (`fused`); "torch" is this module, the reference, and also what trains on other
            devices, losses without a compiled delta, and without Numba. Their results agree to float32 rounding, not to the bit.
        block: instances the torch engine trains at a time; changes speed and memory, never the result. None chooses for the device.
        progress: called with the number of finished instances.

    Returns:
        {"0.weight": [P, in, out], "0.bias": [P, out], ...}, float32 on the CPU.

    Formal guarantees: instance by instance this is the Poisson-subsampled Gaussian mechanism that `mechanism` describes, up to
    float32 rounding of the sums. Nothing but the noisy sums depends on `features` and `actions`, apart from N, the number of units.

    Raises:
        MucdError: shapes, action values, the mechanism's unit or the engine do not fit.
    """
    _check(network, mechanism, features, actions)
    if engine not in ENGINES:
        raise MucdError(f"engine {engine!r} is unknown: use one of {', '.join(ENGINES)}")
    device, loss = torch.device(device), loss_for(learner.algorithm, actions)
    delta = delta_for(learner.algorithm, actions)
    if engine == "fused" and device.type == "cpu" and delta is not None and find_spec("numba"):
        return named_parameters(network, _train_fused(network, learner, mechanism, delta, features, actions, instances, streams, progress))
    if device.type == "cpu":
        # Two threads were 13 times slower than one on a busy machine, and thread counts may change the order of sums.
        torch.set_num_threads(1)
    if block is None:
        block = _block_size(network, mechanism.sample_rate * len(features)) if device.type == "cpu" else GPU_BLOCK
    data = _Units(features, actions, device)
    deltas_of = output_deltas(loss)
    trained, instances = [], list(instances)
    with torch.no_grad():
        for start in range(0, len(instances), block):
            part = instances[start : start + block]
            trained.append(_train(network, learner, mechanism, data, deltas_of, part, streams, device).cpu())
            if progress is not None:
                progress(start + len(part))
    return named_parameters(network, torch.cat(trained))


def _train_fused(network, learner, mechanism, delta, features, actions, instances, streams, progress) -> Tensor:
    # Numba takes a second to import, which processes that do not train should not pay.
    from mucd_ray.learn.fused import FusedTrainer

    trainer = FusedTrainer(network, learner, mechanism, delta, features, actions, streams)
    flat = np.empty((len(instances), network.parameter_count), np.float32)
    for done, (row, instance) in enumerate(zip(flat, instances), start=1):
        row[:] = trainer.train(instance)
        if progress is not None:
            progress(done)
    return torch.from_numpy(flat)


def _block_size(network: Network, rows: float) -> int:
    widest = max(network.inputs, network.outputs, *network.hidden)
    return max(1, min(CPU_BLOCK, int(CPU_BLOCK_FLOATS / (max(rows, 1.0) * widest))))


def _check(network: Network, mechanism: Mechanism, features: np.ndarray, actions: np.ndarray) -> None:
    if mechanism.unit != "transition":
        raise MucdError(f"unit {mechanism.unit!r} is not trained by this engine: use unit 'transition'")
    if features.ndim != 2 or features.shape[1] != network.inputs or features.dtype != np.float32:
        raise MucdError(f"features are {features.dtype} {features.shape}: the network wants float32 [N, {network.inputs}]")
    if len(features) != len(actions) or not len(features):
        raise MucdError(f"{len(features)} feature rows and {len(actions)} actions: give one action per row, at least one")
    if np.issubdtype(actions.dtype, np.integer) and actions.ndim == 1:
        if actions.min() < 0 or actions.max() >= network.outputs:
            raise MucdError(f"actions lie in [{actions.min()}, {actions.max()}]: the network has outputs 0..{network.outputs - 1}")
    elif actions.shape != (len(features), network.outputs):
        raise MucdError(f"actions have shape {actions.shape}: the network wants integers [N] or floats [N, {network.outputs}]")


def _train(network, learner, mechanism, data, deltas_of, instances, streams, device) -> Tensor:
    """Flat parameters [P, stride] of one block after all steps."""
    parameters = torch.from_numpy(_initial(network, instances, streams)).to(device)
    optimiser = OPTIMISERS[learner.optimiser](learner, parameters)
    averaged = learner.averaged_steps(mechanism.steps)
    total = torch.zeros_like(parameters, dtype=torch.float64) if averaged else None
    summed, workspace = torch.zeros_like(parameters), Workspace(device)
    for step in range(mechanism.steps):
        samples = [
            poisson_sample(streams.borrow(instance, step, purposes.SAMPLE), len(data), mechanism.sample_rate)
            for instance in instances
        ]
        x, targets, counts = data.gather(samples)
        clipped_sum(network, parameters, x, targets, counts, deltas_of, mechanism.clip_norm, out=summed, workspace=workspace)
        generators = (streams.borrow(instance, step, purposes.NOISE) for instance in instances)
        noise = torch.from_numpy(gaussian_noise(generators, summed.shape[1])).to(device)
        noisy = noise.mul_(mechanism.noise_multiplier * mechanism.clip_norm).add_(summed)
        optimiser.step(parameters, noisy.div_(mechanism.normaliser), step)
        if total is not None and step >= mechanism.steps - averaged:
            total.add_(parameters)
    return parameters if total is None else total.div_(averaged).to(torch.float32)


def _initial(network: Network, instances: Sequence[int], streams: Streams) -> np.ndarray:
    flat = np.zeros((len(instances), _round_up(network.parameter_count)), np.float32)
    for row, instance in zip(flat, instances):
        row[: network.parameter_count] = initial_parameters(network, streams.borrow(instance, 0, purposes.INITIALISE))
    return flat


def clipped_sum(
    network: Network,
    parameters: Tensor,
    x: Tensor,
    targets: Tensor,
    counts: Sequence[int],
    deltas_of: Callable[[Tensor, Tensor], Tensor],
    clip_norm: float,
    *,
    out: Tensor | None = None,
    workspace: "Workspace | None" = None,
) -> Tensor:
    """Sum over the first counts[p] rows of each instance of its units' gradients, each clipped to norm `clip_norm`.

    Args:
        parameters: flat [P, >= parameter_count], see `layer_views`.
        x: features [P, B, inputs], a private copy: rows of non-finite units are overwritten with zeros.
        targets: [P, B] or [P, B, k].
        counts: units per instance; rows beyond are padding and weigh nothing.
        deltas_of: derivative of the loss by the outputs, unit by unit (`losses.output_deltas`).
        out: flat tensor like `parameters` to write into; its tail beyond parameter_count is left alone.

    Returns:
        `out`, flat like `parameters`.

    Formal guarantee: adding or removing one unit, whatever it contains, moves a row of the result by at most `clip_norm` in L2 norm,
    up to float32 rounding of the sum.
    """
    out = torch.zeros_like(parameters) if out is None else out
    workspace = Workspace(parameters.device) if workspace is None else workspace
    multiply, sum_outer, rows_of = _operations(counts, parameters.device)
    instances, rows, _ = x.shape
    layers = layer_views(network, parameters)

    inputs, input_rows = [x], [rows_of(x)]
    for layer, (weight, bias) in enumerate(layers):
        outputs = workspace.take(("outputs", layer), (instances, rows, bias.shape[1]))
        output_rows = rows_of(outputs)
        multiply(input_rows[-1], weight.transpose(1, 2), output_rows)
        outputs.add_(bias[:, None, :])
        if layer < len(layers) - 1:
            inputs.append(outputs.relu_())
            input_rows.append(output_rows)

    flat_targets = targets.reshape(instances * rows, *targets.shape[2:])
    deltas = [deltas_of(outputs.flatten(0, 1), flat_targets).unflatten(0, (instances, rows))]
    delta_rows = [rows_of(deltas[0])]
    for layer in range(len(layers) - 1, 0, -1):
        back = workspace.take(("deltas", layer), inputs[layer].shape)
        back_rows = rows_of(back)
        multiply(delta_rows[0], layers[layer][0], back_rows)
        # Keeps the derivative where the ReLU was open.
        deltas.insert(0, torch.ops.aten.threshold_backward.grad_input(back, inputs[layer], 0, grad_input=back))
        delta_rows.insert(0, back_rows)

    norms = squared_norms(deltas, inputs)
    factors = clip_factors(norms, clip_norm)
    factors.mul_(torch.arange(rows, device=x.device) < torch.as_tensor(counts, device=x.device)[:, None])
    finite = torch.isfinite(norms)
    if not finite.all():
        # Zero times NaN or inf is NaN: both operands of the product have to be zero.
        for tensor in (*deltas, *inputs):
            tensor.masked_fill_(~finite[..., None], 0.0)
    for layer, (weight, bias) in enumerate(layer_views(network, out)):
        deltas[layer].mul_(factors[..., None])
        sum_outer(delta_rows[layer], input_rows[layer], weight)
        bias.copy_(_sum_rows(deltas[layer]))
    return out


def _operations(counts: Sequence[int], device: torch.device):
    """The three operations on padded tensors [P, B, n] whose first counts[p] rows matter, as they are best done on `device`.

    `rows_of(x)` is what the other two take: on the CPU views of the rows that matter, taken once per tensor since making a
    view from Python costs as much as a small product. `multiply(a, b, out)` sets out[p] = a[p] @ b[p]; `sum_outer(delta, x, out)`
    sets out[p] = delta[p]^T x[p].
    """
    if device.type != "cpu":
        return _multiply_padded, _sum_outer_padded, lambda x: x

    def rows_of(x: Tensor) -> Sequence[Tensor]:
        sizes = []
        for count in counts:
            sizes += (count, x.shape[1] - count)
        return x.flatten(0, 1).split(sizes)[::2]

    return _multiply_rows, _sum_outer_rows, rows_of


def _multiply_rows(a: Sequence[Tensor], b: Tensor, out: Sequence[Tensor]) -> None:
    for left, right, result in zip(a, b.unbind(0), out):
        torch.mm(left, right, out=result)


def _sum_outer_rows(delta: Sequence[Tensor], x: Sequence[Tensor], out: Tensor) -> None:
    for rows, inputs, result in zip(delta, x, out.unbind(0)):
        torch.mm(rows.t(), inputs, out=result)


def _multiply_padded(a: Tensor, b: Tensor, out: Tensor) -> None:
    torch.bmm(a, b, out=out)


def _sum_outer_padded(delta: Tensor, x: Tensor, out: Tensor) -> None:
    out.copy_(torch.bmm(delta.transpose(1, 2), x))


def _sum_rows(x: Tensor) -> Tensor:
    """Sum over rows [P, B, n] -> [P, n], tile by tile: rows of zeros at the end, however many, change no rounding."""
    x = torch.nn.functional.pad(x, (0, 0, 0, -x.shape[1] % ALIGNMENT))
    first, *others = x.unflatten(1, (-1, ALIGNMENT)).sum(2).unbind(1)
    for tile in others:
        first.add_(tile)
    return first


def _round_up(length: int) -> int:
    return max(ALIGNMENT, -(-length // ALIGNMENT) * ALIGNMENT)


class _Units:
    """The data set as the engine reads it: rows are copied by index, the caller's arrays are never written to."""

    def __init__(self, features: np.ndarray, actions: np.ndarray, device: torch.device):
        self.device = device
        self.arrays = (features, actions)
        if device.type != "cpu":
            self.tensors = tuple(torch.tensor(array, device=device) for array in self.arrays)

    def __len__(self) -> int:
        return len(self.arrays[0])

    def gather(self, samples: list[np.ndarray]) -> tuple[Tensor, Tensor, list[int]]:
        """Features [P, B, d], actions [P, B, ...] and counts; B fits the largest sample, unit 0 pads the others."""
        counts = [len(sample) for sample in samples]
        rows = np.zeros((len(samples), _round_up(max(counts))), np.int64)
        for row, sample in zip(rows, samples):
            row[: len(sample)] = sample
        if self.device.type == "cpu":
            x, targets = (torch.from_numpy(np.take(array, rows, axis=0)) for array in self.arrays)
        else:
            index = torch.from_numpy(rows).to(self.device)
            x, targets = (tensor[index] for tensor in self.tensors)
        return x, targets, counts


class Workspace:
    """Scratch memory kept between steps. It starts at zero, so that rows which are never written hold no stray NaN."""

    def __init__(self, device: torch.device):
        self.device, self.buffers = device, {}

    def take(self, name, shape: tuple[int, ...]) -> Tensor:
        """A contiguous tensor of `shape` with arbitrary content, valid until the next take of the same name."""
        size = int(np.prod(shape))
        buffer = self.buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = self.buffers[name] = torch.zeros(size, device=self.device)
        return buffer[:size].view(shape)
