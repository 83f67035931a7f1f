"""The torch engine: trains a block of independent instances at once, each with its own sample, noise and parameters. The reference.

Layout: the parameters of instance p are one row of a flat tensor [P, stride], with layer views [P, out, in] into it. Element-wise
work runs on the whole block. On the CPU matrix products run instance by instance on exactly the sampled rows, because the rounding
of a batched or padded product may depend on its neighbours; so an instance's parameters are bit-identical in every block. On a GPU
products are batched and padded, and samples and noise are drawn there, from the same streams; `captured` replays such a step as a graph.
"""

import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mucd_ray.learn import streams as purposes
from mucd_ray.learn.algorithm import Transition, output_deltas
from mucd_ray.learn.engines import device_random
from mucd_ray.learn.engines.clipping import clip_factors, squared_norms
from mucd_ray.learn.learner import OPTIMISERS
from mucd_ray.learn.networks import initial_parameters, layer_views
from mucd_ray.learn.problem import Problem
from mucd_ray.learn.streams import Streams, gaussian_noise, poisson_sample, spread_rows, subset_purpose, uniform
from mucd_ray.learn.units import Units
from mucd_ray.mechanism.gaussian.mechanism import NoisySteps

# Rows and parameters of an instance are padded to a multiple of this. They then start at the same alignment in every block and
# no element falls into the scalar tail of a vectorised loop, where rounding may differ.
ALIGNMENT = 32
# Rows that are summed in float32 before the sum goes on in float64, see `clipped_sum`.
SUM_ROWS = 256
# Trajectories whose updates are held at a time; whole instances at least.
GROUPS_AT_A_TIME = 256

Layers = list[tuple[Tensor, Tensor]]


class Batch(NamedTuple):
    """Sampled rows of G groups, padded to B: x [G, B, d], next_x [G, B, d] or [G, B, 0], transition of [G, B, ...], counts [G].

    Counts are a tensor where products are padded, too, and plain numbers where they take exactly the rows that count.
    """

    x: Tensor
    next_x: Tensor
    transition: Transition
    counts: Sequence[int] | Tensor


def train_stacked(
    problem: Problem, mechanism: NoisySteps, units: "UnitsOnDevice", instances: Sequence[int], streams: Streams, progress: Callable[[], None] | None = None
) -> Tensor:
    """Flat parameters [P, stride] of one block of instances after all steps; `progress` is called after each."""
    draws = (DrawsOnDevice if units.padded else Draws)(streams, instances, units, mechanism.sample_rate, problem.learner.local.cap)
    block = Block(problem, mechanism, units, instances, streams, draws)
    for step in range(mechanism.steps):
        block.move(step)
        block.average(step)
        if progress is not None:
            progress()
    return block.result()


class Block:
    """A block of instances in training: their parameters and all else that a step changes."""

    def __init__(self, problem: Problem, mechanism: NoisySteps, units: "UnitsOnDevice", instances: Sequence[int], streams: Streams, draws: "Draws"):
        self.problem, self.mechanism, self.units, self.draws = problem, mechanism, units, draws
        self.parameters = torch.from_numpy(initial_stack(problem, instances, streams)).to(units.device)
        self.target = self.parameters.clone() if problem.algorithm.has_target else self.parameters
        self.optimiser = OPTIMISERS[problem.learner.optimiser](problem.learner, self.parameters)
        self.averaged = problem.learner.averaged_steps(mechanism.steps)
        self.total = torch.zeros_like(self.parameters, dtype=torch.float64) if self.averaged else None
        self.summed, self.workspace = torch.zeros_like(self.parameters, dtype=torch.float64), Workspace(units.device)

    def move(self, step: int | Tensor) -> None:
        """Release a noisy mean and take the optimiser's step, number `step` from 0; where that is a tensor [] nothing on the device is looked at."""
        mechanism, rows = self.mechanism, self.draws.rows(step)
        clipped_sum(self.problem, self.parameters, self.target, self.units, rows, mechanism.clip_norm, out=self.summed, workspace=self.workspace)
        mean = noisy_mean(self.summed, self.draws.noise(step, self.summed.shape[1]), mechanism)
        self.optimiser.step(self.parameters, mean, step.to(torch.float64) if isinstance(step, Tensor) else step)
        if self.problem.algorithm.has_target:
            # See the optimisers: no fused multiply-add.
            self.target.add_(torch.sub(self.parameters, self.target).mul_(self.problem.constants["target_rate"]))

    def average(self, step: int) -> None:
        if self.total is not None and step >= self.mechanism.steps - self.averaged:
            self.total.add_(self.parameters)

    def result(self) -> Tensor:
        return self.parameters if self.total is None else self.total.div_(self.averaged).to(torch.float32)


def noisy_mean(summed: Tensor, noise: Tensor, mechanism: NoisySteps) -> Tensor:
    """What a step releases, float32: the clipped sum (float64) plus noise from N(0, 1) draws (float32), over the public normaliser.

    Uses both up. The sum is rounded to float32 with its noise, which is post-processing; before the noise, rounding would depend on all
    units at once, and one unit could move it by more than its own vector.
    """
    return summed.add_(noise.mul_(mechanism.noise_multiplier * mechanism.clip_norm)).to(torch.float32).div_(mechanism.normaliser)


def initial_flat(problem: Problem, generator: np.random.Generator) -> np.ndarray:
    """Initial parameters of all towers of one instance, float32 [parameter_count]."""
    return np.concatenate([initial_parameters(network, generator) for _, network in problem.networks])


def initial_stack(problem: Problem, instances: Sequence[int], streams: Streams) -> np.ndarray:
    """The same of many, one row each: float32 [P, stride]."""
    flat = np.zeros((len(instances), _round_up(problem.parameter_count)), np.float32)
    for row, instance in zip(flat, instances):
        row[: problem.parameter_count] = initial_flat(problem, streams.borrow(instance, 0, purposes.INITIALISE))
    return flat


def tower_layers(problem: Problem, flat: Tensor) -> dict[str, Layers]:
    """Views (weight [P, out, in], bias [P, out]) of every tower's layers into `flat` [P, >= parameter_count]."""
    views, start = {}, 0
    for tower, network in problem.networks:
        views[tower.name] = layer_views(network, flat[:, start:])
        start += network.parameter_count
    return views


def clipped_sum(
    problem: Problem, parameters: Tensor, target: Tensor, units: "UnitsOnDevice", rows: Batch | list[list[np.ndarray]], clip_norm: float,
    *, out: Tensor, workspace: "Workspace",
) -> Tensor:
    """Sum over the sampled units of each instance of their vectors, each clipped to norm `clip_norm`, into `out`.

    Args:
        parameters, target: flat [P, stride], see `tower_layers`.
        rows: as `Draws.rows` gives them.
        out: flat float64 tensor of the shape of `parameters` to write into; its tail beyond parameter_count is left alone.

    Formal guarantee: adding or removing one unit, whatever it contains, moves a row of the result by at most `clip_norm` in L2 norm,
    up to rounding. Trajectories are rounded one by one. Transitions are summed in float32, at most SUM_ROWS at a time, and these sums in
    float64; where one more row moves all others to other places of these sums, B rows change by at most 2 B SUM_ROWS 2^-24 clip norms.
    """
    if isinstance(rows, Batch):
        return _clipped_transitions(problem, parameters, target, rows, clip_norm, out, workspace)
    return _clipped_trajectories(problem, parameters, target, units, rows, clip_norm, out, workspace)


def _clipped_transitions(problem, parameters, target, batch: Batch, clip_norm, out, workspace) -> Tensor:
    """Every row's gradient, clipped by its closed-form norm."""
    gradients = RowGradients(problem, parameters, target, batch, workspace)
    norms = squared_norms(gradients.deltas, gradients.inputs)
    factors = clip_factors(norms, clip_norm)
    factors.mul_(_is_row(batch))
    finite = torch.isfinite(norms)
    # Where the rows are on a device, looking would cost more than masking.
    if isinstance(batch.counts, Tensor) or not finite.all():
        # Zero times NaN or inf is NaN: both operands of the product have to be zero.
        for tensor in (*gradients.deltas, *gradients.inputs):
            tensor.masked_fill_(~finite[..., None], 0.0)
    if batch.x.shape[1] > SUM_ROWS:
        return gradients.weighted_sum(factors, out)
    # The same numbers, in one copy for all layers.
    return out.copy_(gradients.weighted_sum(factors, workspace.take("sum", out.shape)))


def _clipped_trajectories(problem, parameters, target, units, rows: list[list[np.ndarray]], clip_norm, out, workspace) -> Tensor:
    """Local updates, each clipped as a whole (DP-FedAvg).

    A local update is the sum over the local steps of the mean gradient of the trajectory's chosen transitions, at parameters that the
    trajectory moves for itself alone. One with a non-finite component, or without transitions, counts as zero.
    """
    out[:, : problem.parameter_count] = 0.0
    for start, end in slices([len(of_instance) for of_instance in rows], GROUPS_AT_A_TIME):
        groups = [(p, chosen) for p in range(start, end) for chosen in rows[p] if len(chosen)]
        if not groups:
            continue
        owners = torch.tensor([p for p, _ in groups], device=out.device)
        batch = units.gather([chosen for _, chosen in groups])
        updates = _local_updates(problem, parameters[owners], target[owners], batch, workspace)[:, : problem.parameter_count]
        squares = torch.linalg.vector_norm(updates, dim=1, dtype=torch.float64).square_()
        updates.masked_fill_(~torch.isfinite(squares)[:, None], 0.0)
        updates.mul_(clip_factors(squares, clip_norm).to(torch.float32)[:, None])
        sizes = torch.bincount(owners, minlength=end)[start:].tolist()
        for p, part in zip(range(start, end), updates.split(sizes)):
            out[p, : problem.parameter_count] = part.sum(0, dtype=torch.float64)
    return out


def _local_updates(problem: Problem, parameters: Tensor, target: Tensor, batch: Batch, workspace: "Workspace") -> Tensor:
    """Sum of the mean gradients of every group's local steps, [G, stride]; `parameters` [G, stride] is used up."""
    local = problem.learner.local
    mean = _is_row(batch) / torch.as_tensor(batch.counts, device=parameters.device, dtype=torch.float32)[:, None]
    updates, gradient = torch.zeros_like(parameters), torch.zeros_like(parameters)
    padding = (mean == 0.0)[..., None]
    for step in range(local.steps):
        gradients = RowGradients(problem, parameters, target, batch, workspace)
        for delta in gradients.deltas:
            # Rows of padding hold what another unit left there, and zero times its NaN would be NaN.
            delta.masked_fill_(padding, 0.0)
        gradients.weighted_sum(mean, gradient)
        updates.add_(gradient)
        if step < local.steps - 1:
            parameters.sub_(gradient.mul_(local.learning_rate))
    return updates


def _is_row(batch: Batch) -> Tensor:
    """1 where a row of a group is one, 0 where it is padding: float32 [G, B]."""
    counts = torch.as_tensor(batch.counts, device=batch.x.device)[:, None]
    return (torch.arange(batch.x.shape[1], device=batch.x.device) < counts).to(torch.float32)


def slices(sizes: list[int], most: int) -> list[tuple[int, int]]:
    """Ranges [start, end) of instances whose sizes sum to at most `most`, or of a single instance."""
    slices, start, total = [], 0, 0
    for index, size in enumerate(sizes):
        if index > start and total + size > most:
            slices.append((start, index))
            start, total = index, 0
        total += size
    return [*slices, (start, len(sizes))]


class RowGradients:
    """Every row's gradient in its factors: per layer a delta (derivative by the layer's output) and the layer's input.

    Attributes:
        deltas, inputs: [G, B, out] and [G, B, in] of every layer of every tower, in the order of the parameters.
    """

    def __init__(self, problem: Problem, parameters: Tensor, target: Tensor, batch: Batch, workspace: "Workspace", weights: Tensor | None = None):
        """With `weights` [G, B] each row's loss is multiplied by its own; deltas of rows of weight 0 are zero, whatever the row holds."""
        self.problem, self.batch, self.workspace = problem, batch, workspace
        self.multiply, self.sum_outer, self.rows_of = _operations(batch.counts)
        layers, target_layers = tower_layers(problem, parameters), tower_layers(problem, target)
        evaluated = [self._evaluate(e, target_layers if e.target else layers) for e in problem.algorithm.context]
        outputs, inputs = [], []
        for tower, _ in problem.networks:
            x = torch.cat([batch.x, batch.transition.action], -1) if tower.takes_action else batch.x
            output, of_tower = self._forward(layers[tower.name], x, tower.name)
            outputs.append(output)
            inputs.append(of_tower)
        groups, rows = batch.x.shape[:2]
        context = torch.cat(evaluated, -1) if evaluated else batch.x.new_zeros(groups, rows, 0)
        flat = Transition(*(part.flatten(0, 1) for part in batch.transition))
        deltas_of = output_deltas(problem.algorithm.loss, problem.constants)
        joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        deltas = deltas_of(joined.flatten(0, 1), context.flatten(0, 1), flat).unflatten(0, (groups, rows))
        if weights is not None:
            deltas = deltas.mul_(weights[..., None]).masked_fill_(weights[..., None] == 0.0, 0.0)
        self.deltas, self.inputs = [], []
        for (tower, _), delta, of_tower in zip(problem.networks, deltas.split([tower.outputs for tower, _ in problem.networks], -1), inputs):
            self.deltas += self._backward(layers[tower.name], delta.contiguous(), of_tower, tower.name)
            self.inputs += of_tower

    def weighted_sum(self, weights: Tensor, out: Tensor) -> Tensor:
        """Sum over rows of weights [G, B] times the rows' gradients, into the flat `out` [G, stride]. Uses the deltas up.

        Deltas of rows of weight 0 must be finite, those of padding too.
        """
        for delta in self.deltas:
            delta.mul_(weights[..., None])
        return self.sum(out)

    def sum(self, out: Tensor) -> Tensor:
        """Sum over rows of the rows' gradients, into the flat `out` [G, stride]."""
        layers = [layer for of_tower in tower_layers(self.problem, out).values() for layer in of_tower]
        for (weight, bias), delta, x in zip(layers, self.deltas, self.inputs):
            self.sum_outer(self.rows_of(delta), self.rows_of(x), weight)
            first, *others = delta.split(SUM_ROWS, 1)
            bias.copy_(_sum_rows(first))
            for part in others:
                bias.add_(_sum_rows(part))
        return out

    def _evaluate(self, evaluation, layers: dict[str, Layers]) -> Tensor:
        tower = next(tower for tower, _ in self.problem.networks if tower.name == evaluation.tower)
        x = self.batch.next_x if evaluation.next else self.batch.x
        if not tower.takes_action:
            return self._forward(layers[tower.name], x, "context")[0].clone()
        action = torch.tanh(self._forward(layers["policy"], x, "context")[0]) if evaluation.policy else self.batch.transition.action
        output, inputs = self._forward(layers[tower.name], torch.cat([x, action], -1), "context")
        if not evaluation.gradient:
            return output.clone()
        deltas = self._backward(layers[tower.name], torch.ones_like(output), inputs, "context", to_input=True)
        return deltas[0][..., x.shape[-1] :].clone()

    def _forward(self, layers: Layers, x: Tensor, name: str) -> tuple[Tensor, list[Tensor]]:
        """(outputs [G, B, out], the input of every layer); both lie in the workspace, under `name`."""
        inputs, rows = [x], self.rows_of(x)
        for layer, (weight, bias) in enumerate(layers):
            outputs = self.workspace.take((name, "outputs", layer), (*x.shape[:2], bias.shape[1]))
            output_rows = self.rows_of(outputs)
            self.multiply(rows, weight.transpose(1, 2), output_rows)
            outputs.add_(bias[:, None, :])
            if layer < len(layers) - 1:
                inputs.append(outputs.relu_())
                rows = output_rows
        return outputs, inputs

    def _backward(self, layers: Layers, delta: Tensor, inputs: list[Tensor], name: str, to_input: bool = False) -> list[Tensor]:
        """Deltas of all layers from the last one's; with `to_input` the derivative by the tower's input comes first."""
        deltas = [delta]
        for layer in range(len(layers) - 1, -1 if to_input else 0, -1):
            back = self.workspace.take((name, "deltas", layer), inputs[layer].shape)
            self.multiply(self.rows_of(deltas[0]), layers[layer][0], self.rows_of(back))
            if layer:
                # Keeps the derivative where the ReLU was open.
                torch.ops.aten.threshold_backward.grad_input(back, inputs[layer], 0, grad_input=back)
            deltas.insert(0, back)
        return deltas


def _operations(counts: Sequence[int] | Tensor):
    """The three operations on padded tensors [G, B, n] whose first counts[g] rows matter, see `Batch`.

    `rows_of(x)` is what the other two take: unless padded, views of the rows that matter, since making a view from Python costs as much
    as a small product. `multiply(a, b, out)` sets out[g] = a[g] @ b[g]; `sum_outer(delta, x, out)` sets out[g] = delta[g]^T x[g].
    """
    if isinstance(counts, Tensor):
        return _multiply_padded, _sum_outer_padded, lambda x: x
    sizes = {}

    def rows_of(x: Tensor) -> Sequence[Tensor]:
        if x.shape[1] not in sizes:
            sizes[x.shape[1]] = [size for count in counts for size in (count, x.shape[1] - count)]
        return x.flatten(0, 1).split(sizes[x.shape[1]])[::2]

    return _multiply_rows, _sum_outer_rows, rows_of


def _multiply_rows(a: Sequence[Tensor], b: Tensor, out: Sequence[Tensor]) -> None:
    for left, right, result in zip(a, b.unbind(0), out):
        torch.mm(left, right, out=result)


def _sum_outer_rows(delta: Sequence[Tensor], x: Sequence[Tensor], out: Tensor) -> None:
    for rows, inputs, result in zip(delta, x, out.unbind(0)):
        if result.dtype == torch.float32 and len(rows) <= SUM_ROWS:
            torch.mm(rows.t(), inputs, out=result)
            continue
        (first, its), *others = zip(rows.split(SUM_ROWS), inputs.split(SUM_ROWS))
        result.copy_(torch.mm(first.t(), its))
        for part, its in others:
            result.add_(torch.mm(part.t(), its))


def _multiply_padded(a: Tensor, b: Tensor, out: Tensor) -> None:
    torch.bmm(a, b, out=out)


def _sum_outer_padded(delta: Tensor, x: Tensor, out: Tensor) -> None:
    (first, its), *others = zip(delta.split(SUM_ROWS, 1), x.split(SUM_ROWS, 1))
    out.copy_(torch.bmm(first.transpose(1, 2), its))
    for part, its in others:
        out.add_(torch.bmm(part.transpose(1, 2), its))


def _sum_rows(x: Tensor) -> Tensor:
    """Sum over rows [G, B, n] -> [G, n], tile by tile: rows of zeros at the end, however many, change no rounding."""
    x = torch.nn.functional.pad(x, (0, 0, 0, -x.shape[1] % ALIGNMENT))
    first, *others = x.unflatten(1, (-1, ALIGNMENT)).sum(2).unbind(1)
    for tile in others:
        first.add_(tile)
    return first


def _round_up(length: int) -> int:
    return max(ALIGNMENT, -(-length // ALIGNMENT) * ALIGNMENT)


class UnitsOnDevice:
    """The units as this engine reads them: rows are copied by index, the caller's arrays are never written to."""

    def __init__(self, units: Units, device: torch.device, padded: bool | None = None):
        """`padded`: see the module; None chooses for the device."""
        self.units, self.unit, self.device = units, units.unit, device
        self.padded = device.type != "cpu" if padded is None else padded
        self.arrays = (units.features, units.next_features, units.actions, units.rewards, units.keeps)
        if self.padded:
            self.tensors = tuple(_on(device, array) for array in self.arrays)

    def __len__(self) -> int:
        return len(self.units)

    def gather(self, groups: Sequence[np.ndarray]) -> Batch:
        """The rows of every group, padded by its own first row (row 0 where it is empty)."""
        counts = [len(group) for group in groups]
        index = np.zeros((len(groups), _round_up(max(counts))), np.int64)
        for row, group in zip(index, groups):
            row[:] = group[0] if len(group) else 0
            row[: len(group)] = group
        if self.padded:
            return self.take(torch.from_numpy(index).to(self.device), torch.tensor(counts, device=self.device))
        x, next_x, *transition = (
            torch.from_numpy(np.take(array, index, axis=0)) if len(array) else torch.zeros(*index.shape, 0) for array in self.arrays
        )
        return Batch(x, next_x, Transition(*transition), counts)

    def take(self, index: Tensor, counts: Tensor) -> Batch:
        """The rows index [G, B] on the device, of which counts [G] matter."""
        x, next_x, *transition = (tensor[index] if len(tensor) else self.tensors[0].new_zeros(*index.shape, 0) for tensor in self.tensors)
        return Batch(x, next_x, Transition(*transition), counts)


def _on(device: torch.device, array: np.ndarray) -> Tensor:
    """A tensor of the array, on the CPU without a copy: rows are only ever copied out of it."""
    if device.type != "cpu":
        return torch.tensor(array, device=device)
    with warnings.catch_warnings(action="ignore"):
        # It may be read-only.
        return torch.from_numpy(array)


class Draws:
    """The randomness of a block's steps: which rows take part, and the noise."""

    def __init__(self, streams: Streams, instances: Sequence[int], units: UnitsOnDevice, sample_rate: float, cap: int):
        self.streams, self.instances, self.units, self.sample_rate, self.cap = streams, instances, units, sample_rate, cap

    def rows(self, step: int | Tensor) -> Batch | list[list[np.ndarray]]:
        """Of transitions the sampled ones; of trajectories, for each instance, the rows of each sampled one that take part."""
        return self.transitions(step) if self.units.unit == "transition" else self.trajectories(int(step))

    def transitions(self, step: int | Tensor) -> Batch:
        return self.units.gather([self._sample(instance, int(step)) for instance in self.instances])

    def trajectories(self, step: int) -> list[list[np.ndarray]]:
        return [[self._rows(instance, step, int(unit)) for unit in self._sample(instance, step)] for instance in self.instances]

    def noise(self, step: int | Tensor, count: int) -> Tensor:
        """N(0, 1) draws float32 [P, count]."""
        generators = (self.streams.borrow(instance, int(step), purposes.NOISE) for instance in self.instances)
        return torch.from_numpy(gaussian_noise(generators, count))

    def _sample(self, instance: int, step: int) -> np.ndarray:
        return poisson_sample(self.streams.borrow(instance, step, purposes.SAMPLE), len(self.units), self.sample_rate)

    def _rows(self, instance: int, step: int, unit: int) -> np.ndarray:
        start, length = int(self.units.units.starts[unit]), int(self.units.units.lengths[unit])
        if length <= self.cap:
            return np.arange(start, start + length)
        word = self.streams.borrow(instance, step, subset_purpose(unit)).bit_generator.random_raw()
        return start + spread_rows(length, self.cap, uniform(word))


class DrawsOnDevice(Draws):
    """The same draws, made on the device; which transitions of a trajectory take part is still chosen on the host."""

    def __init__(self, streams, instances, units, sample_rate, cap):
        super().__init__(streams, instances, units, sample_rate, cap)
        self.key, self.numbers = device_random.key_on(streams, units.device), torch.tensor(instances, device=units.device)

    def transitions(self, step: int | Tensor) -> Batch:
        return self.units.take(*device_random.poisson_samples(self.key, purposes.SAMPLE, self._on_device(step), self.numbers, len(self.units), self.sample_rate))

    def noise(self, step: int | Tensor, count: int) -> Tensor:
        return device_random.gaussian_noise(self.key, count, purposes.NOISE, self._on_device(step), self.numbers)

    def _on_device(self, step: int | Tensor) -> Tensor:
        return torch.as_tensor(step, device=self.key.device).reshape(1)


class Workspace:
    """Scratch memory kept between steps. It starts at zero, so that rows which are never written hold no stray NaN."""

    def __init__(self, device: torch.device):
        self.device = device
        self.buffers: dict[Hashable, Tensor] = {}

    def take(self, name, shape: tuple[int, ...]) -> Tensor:
        """A contiguous tensor of `shape` with arbitrary content, valid until the next take of the same name."""
        size = int(np.prod(shape))
        buffer = self.buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = self.buffers[name] = torch.zeros(size, device=self.device)
        return buffer[:size].view(shape)
