"""Plain training of a stack of models, each on minibatches of rows of its own, without clipping and without noise: what trains on bags on a GPU, and
modules that are not dense everywhere.

One step is a few batched products [P, B, d] for all models, the loss' derivatives row by row, and one fused optimiser step on the flat parameters
[P, stride]. Modules go through `torch.func.vmap` instead; on a CPU they are trained one by one, which is faster there than the grouped convolutions that it
makes. Each model draws what the fused engine would draw for it, so both engines' policies agree to float32 rounding; only where data hold
NaN, infinities or numbers that overflow do they differ: here such a row makes its own model NaN, there it counts as zero.
"""

import math
import sys
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.stats import poisson
from torch import Tensor
from torch.func import functional_call, vmap

from mucd_ray.learn import streams as purposes
from mucd_ray.learn.algorithm import output_deltas
from mucd_ray.learn.engines.device_random import each_poisson_samples, key_on
from mucd_ray.learn.engines.stacked import Batch, RowGradients, UnitsOnDevice, Workspace, initial_stack
from mucd_ray.learn.learner import ADAM_EPSILON, BETA1, BETA2
from mucd_ray.learn.problem import Problem
from mucd_ray.learn.streams import Streams

# Random words drawn at a time, for several steps at once: on a GPU a launch for each operation of Philox would take longer than a step.
WORDS, WORDS_ON_CPU = 1 << 22, 1 << 16
# Padded rows of a batch are rounded up to a multiple of this, so that few widths occur.
WIDTHS = 16
# Probability with which a sample is wider than what is padded to.
TOO_WIDE = 1e-12
# Steps of one width before they are captured as a graph: libraries allocate at their first calls.
WARM_UP = 3


def train_plain(
    problem: Problem, data: UnitsOnDevice, rows: Sequence[np.ndarray], moments: Sequence[tuple[np.ndarray, np.ndarray]], *, steps: int, batch: int,
    instances: Sequence[int], streams: Streams, rewards: Sequence[np.ndarray] | None = None, progress: Callable[[], None] | None = None, captured: bool | None = None,
) -> Tensor:
    """Flat parameters [P, stride] of P models after all steps, or the mean of the last ones, as the learner says.

    Args:
        data: everything, padded (`UnitsOnDevice.padded`); only a model's own rows are read for it.
        rows: int64 [n_p] for each model, at least one.
        moments: (center, scale) float64 [d] for each model: it learns from (x - center) / scale.
        batch: expected size of a minibatch; of fewer rows all are taken.
        instances: numbers of the models, the keys of their randomness in `streams`.
        rewards: float32 [n_p] of each model's rows, in the place of those of `data`.
        captured: whether steps are captured as CUDA graphs; None: wherever there is a GPU.
    """
    learner = problem.learner
    stack = _Stack(problem, data, rows, rewards, moments, batch, _initial(problem, instances, streams).to(data.device))
    samples = _Samples(data.device, [len(of_model) for of_model in rows], batch, instances, streams)
    run = _Captured(stack) if (data.device.type == "cuda" if captured is None else captured) else stack.step
    averaged = learner.averaged_steps(steps)
    total = torch.zeros_like(stack.parameters, dtype=torch.float64) if averaged else None
    with torch.no_grad():
        for first in range(0, steps, samples.at_a_time):
            for step, (index, counts) in enumerate(zip(*samples.of_steps(first, min(first + samples.at_a_time, steps))), first):
                # Of a single model all that changes its rounding is its own; elsewhere looking at a count would wait for the device, too.
                run(index[:, : int(counts[0])] if len(counts) == 1 and data.device.type == "cpu" else index, counts)
                if total is not None and step >= steps - averaged:
                    total.add_(stack.parameters)
                if progress is not None:
                    progress()
        return stack.parameters if total is None else total.div_(averaged).to(torch.float32)


class _Samples:
    """Poisson samples of every model's rows, for several steps at once."""

    def __init__(self, device: torch.device, sizes: list[int], batch: int, instances: Sequence[int], streams: Streams):
        counts = np.array(sizes)
        rates = np.minimum(batch, counts) / counts
        with np.errstate(divide="ignore"):
            # 0 where all rows are taken: every gap is the least.
            scales = -1.0 / np.log1p(-rates)
        self.key, self.expected = key_on(streams, device), float(min(batch, counts.max()))
        self.numbers, self.sizes, self.scales = (torch.from_numpy(np.array(values)).to(device) for values in (instances, counts, scales))
        # Public, and wider than any sample is likely to be: how many rows are multiplied at a time, which may change their rounding, does not follow from other models' bags.
        self.width = -(-int(poisson.isf(TOO_WIDE, batch)) // WIDTHS) * WIDTHS
        self.at_a_time = max(1, (WORDS_ON_CPU if device.type == "cpu" else WORDS) // int(len(sizes) * (self.expected + 6.0 * math.sqrt(self.expected) + 19.0)))

    def of_steps(self, start: int, end: int) -> tuple[Tensor, Tensor]:
        """(indices int64 [S, P, B] among a model's own rows, 0 beyond a count, counts int64 [S, P]) of steps start ... end - 1."""
        count, models = end - start, len(self.numbers)
        steps = torch.arange(start, end, device=self.numbers.device).repeat_interleave(models)
        numbers, sizes, scales = (values.repeat(count) for values in (self.numbers, self.sizes, self.scales))
        index, counts = each_poisson_samples(self.key, purposes.SAMPLE, steps, numbers, sizes[:, None], scales[:, None], self.expected)
        index = torch.nn.functional.pad(index, (0, max(-index.shape[1] % WIDTHS, self.width - index.shape[1])))
        return index.unflatten(0, (count, models)), counts.unflatten(0, (count, models))


def _initial(problem: Problem, instances: Sequence[int], streams: Streams) -> Tensor:
    """Initial flat parameters [P, stride]."""
    if problem.module_factory is None:
        return torch.from_numpy(initial_stack(problem, instances, streams))
    modules = (problem.module(streams.borrow(instance, 0, purposes.INITIALISE)) for instance in instances)
    return torch.stack([torch.cat([parameter.detach().flatten() for parameter in module.parameters()]) for module in modules])


def module_shapes(problem: Problem) -> dict[str, torch.Size]:
    """Shapes of a module's parameters by name, in their order."""
    return {name: parameter.shape for name, parameter in problem.module(np.random.default_rng(0)).named_parameters()}


def module_views(shapes: dict[str, torch.Size], flat: Tensor) -> dict[str, Tensor]:
    """Views {name: [P, ...]} into `flat` [P, parameter_count]."""
    parts = flat.split([shape.numel() for shape in shapes.values()], 1)
    return {name: part.unflatten(1, shape) for part, (name, shape) in zip(parts, shapes.items())}


class _Stack:
    """The models with their rows, and one step of all of them."""

    def __init__(self, problem: Problem, data: UnitsOnDevice, rows, rewards, moments, batch: int, parameters: Tensor):
        device = data.device
        self.problem, self.data, self.parameters = problem, data, parameters
        self.target = parameters.clone() if problem.algorithm.has_target else parameters
        self.gradient = torch.zeros_like(parameters)
        self.parameters.grad = self.gradient
        self.optimiser = OPTIMISERS[problem.learner.optimiser](problem.learner, parameters)
        self.into_gradient = _dense_gradient(problem, device) if problem.module_factory is None else _module_gradient(problem, device)
        # Padding is a row of the model's own, whose deltas are then zero: nothing of other rows, and no NaN of theirs, reaches it.
        self.rows = torch.from_numpy(_padded(rows)).to(device)
        self.rewards = None if rewards is None else torch.from_numpy(_padded(rewards)).to(device)
        self.weights = torch.tensor([1.0 / min(batch, len(of_model)) for of_model in rows], device=device)
        center, scale = (np.stack(values)[:, None] for values in zip(*moments))
        high = center.astype(np.float32)
        # Two floats hold a double's center: of features far from zero the first difference is exact.
        with np.errstate(invalid="ignore"):
            self.moments = tuple(torch.from_numpy(part.astype(np.float32)).to(device) for part in (high, center - high, scale))

    def step(self, index: Tensor, counts: Tensor) -> None:
        """One step of every model on its rows index [P, B], of which counts [P] are rows."""
        weights = self.weights[:, None] * (torch.arange(index.shape[1], device=index.device) < counts[:, None])
        self.into_gradient(self.gradient, self.parameters, self.target, self._batch(index, counts), weights)
        self.optimiser.step()
        if self.problem.algorithm.has_target:
            self.target.lerp_(self.parameters, self.problem.constants["target_rate"])

    def _batch(self, index: Tensor, counts: Tensor) -> Batch:
        batch = self.data.take(self.rows.gather(1, index), counts)
        high, low, scale = self.moments
        x, next_x = (part.float().sub_(high).sub_(low).div_(scale) if part.shape[-1] else part.float() for part in (batch.x, batch.next_x))
        rewards = batch.transition.reward if self.rewards is None else self.rewards.gather(1, index)
        return batch._replace(x=x, next_x=next_x, transition=batch.transition._replace(reward=rewards))


def _padded(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of one length [P, n], each filled up with its own first entry."""
    padded = np.repeat(np.stack([part[0] for part in parts])[:, None], max(map(len, parts)), axis=1)
    for row, part in zip(padded, parts):
        row[: len(part)] = part
    return padded


# Writes into `gradient` [P, stride] the sum over each model's rows of weight [P, B] times the loss' derivative by its parameters.
IntoGradient = Callable[[Tensor, Tensor, Tensor, Batch, Tensor], None]


def _dense_gradient(problem: Problem, device: torch.device) -> IntoGradient:
    workspace = Workspace(device)

    def into_gradient(gradient, parameters, target, batch, weights) -> None:
        RowGradients(problem, parameters, target, batch, workspace, weights).sum(gradient)

    return into_gradient


def _module_gradient(problem: Problem, device: torch.device) -> IntoGradient:
    module, shapes = problem.module(np.random.default_rng(0)).to(device), module_shapes(problem)
    deltas_of = output_deltas(problem.algorithm.loss, problem.constants)

    def call(flat: Tensor, x: Tensor) -> Tensor:
        parameters = module_views(shapes, flat)
        if len(x) == 1:
            return functional_call(module, {name: part[0] for name, part in parameters.items()}, (x[0],))[None]
        return vmap(lambda parameters, x: functional_call(module, parameters, (x,)))(parameters, x)

    def into_gradient(gradient, parameters, target, batch, weights) -> None:
        context = [
            call(target if evaluation.target else parameters, batch.next_x if evaluation.next else batch.x)
            for evaluation in problem.algorithm.context
        ]
        with torch.enable_grad():
            leaf = parameters.detach().requires_grad_()
            outputs = call(leaf, batch.x)
        joined = torch.cat(context, -1) if context else outputs.new_zeros(*outputs.shape[:2], 0)
        deltas = deltas_of(outputs.detach().flatten(0, 1), joined.flatten(0, 1), type(batch.transition)(*(part.flatten(0, 1) for part in batch.transition)))
        deltas = deltas.unflatten(0, outputs.shape[:2]).mul_(weights[..., None]).masked_fill_(weights[..., None] == 0.0, 0.0)
        gradient.copy_(torch.autograd.grad(outputs, leaf, deltas)[0])

    return into_gradient


class _Captured:
    """A stack's step as a CUDA graph: hundreds of launches become one. Captured anew where more rows are sampled than ever before."""

    def __init__(self, stack: _Stack):
        self.stack, self.width, self.ran, self.can_capture = stack, 0, 0, True
        self.graph: torch.cuda.CUDAGraph | None = None
        self.side = torch.cuda.Stream()

    def __call__(self, index: Tensor, counts: Tensor) -> None:
        if index.shape[1] > self.width:
            self.graph, self.ran, self.width = None, 0, index.shape[1]
            self.index, self.counts = index.new_zeros(len(index), self.width), torch.zeros_like(counts)
        self.index[:, : index.shape[1]] = index
        self.counts.copy_(counts)
        if self.graph is not None:
            self.graph.replay()
            return
        # Only what was first used beside the default stream can be captured. Any column beyond the counts is padding.
        current = torch.cuda.current_stream()
        self.side.wait_stream(current)
        with torch.cuda.stream(self.side):
            self.stack.step(self.index, self.counts)
        current.wait_stream(self.side)
        self.ran += 1
        if self.ran == WARM_UP and self.can_capture:
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph):
                    self.stack.step(self.index, self.counts)
                self.graph = graph
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                # Nothing ran during the capture: the steps go on as they were.
                print(f"mucd: a training step cannot be captured as a graph ({str(error).splitlines()[0]}): training without one, which takes longer", file=sys.stderr)
                self.can_capture = False


# The optimisers of `learner`, each in one kernel: at thousands of models they would otherwise take as long as the products.
OPTIMISERS = {
    "adam": lambda learner, x: torch.optim.Adam([x], lr=learner.learning_rate, betas=(BETA1, BETA2), eps=ADAM_EPSILON, fused=True, capturable=x.is_cuda),
    "sgd": lambda learner, x: torch.optim.SGD([x], lr=learner.learning_rate, momentum=learner.momentum, fused=True),
}
