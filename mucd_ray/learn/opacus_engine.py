"""The same mechanism for any `nn.Module`: per-unit gradients from Opacus; sampling, clipping, noise and normaliser from us.

Opacus' own loop takes q and the normaliser from len(dataset), lets a NaN or 1e30 gradient through its clip, and draws noise
from a generator with 32 seed bits. Here only its per-sample gradients are used.
"""

import copy
import warnings
from collections.abc import Callable

import numpy as np
import torch
from opacus import GradSampleModule
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from mucd_ray.errors import MucdError
from mucd_ray.learn import streams as purposes
from mucd_ray.learn.algorithm import Transition, output_deltas
from mucd_ray.learn.clipping import clip_factors
from mucd_ray.learn.ensemble import check
from mucd_ray.learn.learner import OPTIMISERS
from mucd_ray.learn.problem import Problem
from mucd_ray.learn.stacked import Draws, UnitsOnDevice
from mucd_ray.learn.streams import Streams, poisson_sample
from mucd_ray.learn.units import Units
from mucd_ray.mechanism.mechanism import Mechanism

# Rows that are looked at together: at most so many, and so many numbers in their gradients. What they give is accumulated.
MOST_ROWS, GRADIENT_FLOATS = 512, 20_000_000


def train_opacus(
    module_factory: Callable[[np.random.Generator], nn.Module],
    problem: Problem,
    mechanism: Mechanism,
    units: Units,
    instance: int,
    streams: Streams,
) -> nn.Module:
    """Train one instance of any module whose layers Opacus supports.

    Args:
        module_factory: makes the module from a generator, which must be its only source of initial parameters. The module takes rows
            [B, d] of features (frames are unflattened by its first layer) and gives what the algorithm's only network gives: [B,
            problem.network.outputs].
        problem: an algorithm of one network that does not take actions, such as all discrete ones; hidden layers are not read.
        mechanism, units: as in `train_block`. A trajectory makes one local step.
        instance, streams: the source of all randomness.

    Returns:
        The trained module, in evaluation mode.

    Raises:
        MucdError: the module mixes units (BatchNorm), is random (dropout) or keeps a state of the data, gives another number of outputs, has layers that Opacus does not support, or no
            trainable parameter; the algorithm has several networks; several local steps; what `train_block` refuses.
    """
    check(problem, mechanism, units)
    algorithm, learner = problem.algorithm, problem.learner
    if len(problem.networks) > 1 or problem.networks[0][0].takes_action:
        raise MucdError(f"algorithm {learner.algorithm!r} has several networks here: this engine trains those of a single one, such as bc or dqn")
    if units.unit == "trajectory" and learner.local.steps > 1:
        raise MucdError(f"{learner.local.steps} local steps are not trained by this engine: use 1, or the torch engine")
    module = module_factory(streams.generator(instance, 0, purposes.INITIALISE)).train()
    _refuse_unsound(module, units.features.shape[1], problem.network.outputs)
    target = copy.deepcopy(module) if algorithm.has_target else module
    trainable, of_target = ([p for p in m.parameters() if p.requires_grad] for m in (module, target))
    if not trainable:
        raise MucdError("the module has no trainable parameter: give one that has")
    gradients = UnitGradients(problem, units, module, target, trainable)
    parameters = parameters_to_vector(trainable).detach().clone()
    target_parameters = parameters.clone()
    optimiser = OPTIMISERS[learner.optimiser](learner, parameters)
    averaged = learner.averaged_steps(mechanism.steps)
    total = torch.zeros_like(parameters, dtype=torch.float64)
    draws = Draws(streams, [instance], UnitsOnDevice(units, torch.device("cpu")), mechanism.sample_rate, learner.local.cap)
    for step in range(mechanism.steps):
        if units.unit == "transition":
            sample = poisson_sample(streams.borrow(instance, step, purposes.SAMPLE), len(units), mechanism.sample_rate)
            vectors = gradients.of_transitions(sample)
        else:
            vectors = gradients.of_trajectories(draws.rows(step)[0])
        summed = torch.zeros_like(parameters)
        for per_unit in vectors:
            summed += _clipped_sum(per_unit, mechanism.clip_norm, torch.float32 if units.unit == "transition" else torch.float64)
        noisy = draws.noise(step, len(parameters))[0].mul_(mechanism.noise_multiplier * mechanism.clip_norm).add_(summed)
        optimiser.step(parameters, noisy.div_(mechanism.normaliser), step)
        vector_to_parameters(parameters, trainable)
        if algorithm.has_target:
            target_parameters.add_(torch.sub(parameters, target_parameters).mul_(problem.constants["target_rate"]))
            vector_to_parameters(target_parameters, of_target)
        if step >= mechanism.steps - averaged:
            total += parameters
    if averaged:
        vector_to_parameters((total / averaged).to(torch.float32), trainable)
    if gradients.wrapped is not None:
        gradients.wrapped.remove_hooks()
    return module.eval()


def _clipped_sum(per_unit: Tensor, clip_norm: float, dtype: torch.dtype) -> Tensor:
    """Sum of the units' clipped vectors [U, D] -> [D]; uses `per_unit` up.

    A unit counts as zero if its squared norm is not finite in `dtype`, which is that of the torch engine's squared norms.
    """
    squares = torch.linalg.vector_norm(per_unit, dim=1, dtype=torch.float64).square_().to(dtype)
    per_unit.masked_fill_(~torch.isfinite(squares)[:, None], 0.0)
    return clip_factors(squares, clip_norm).to(torch.float32) @ per_unit


def _refuse_unsound(module: nn.Module, width: int, outputs: int) -> None:
    """Refuse layers that Opacus knows to mix rows, and whatever shows when tried on made-up rows: another row in an output, chance that does
    not come from the run's secret, a state that rows leave behind."""
    problems = ModuleValidator.validate(module, strict=False)
    if problems:
        raise MucdError(f"the module cannot be trained privately ({problems[0]}): replace this layer, BatchNorm by GroupNorm")
    seeded = torch.Generator().manual_seed(0)
    rows, others = torch.randn(2, 3, width, generator=seeded)
    others[0] = rows[0]
    tried, buffers = [], [buffer.clone() for buffer in module.buffers()]
    with torch.random.fork_rng(devices=[]):
        for seed, x in enumerate((rows, others, rows)):
            torch.manual_seed(seed)
            tried.append(module(x).detach())
    if any(not torch.equal(before, after) for before, after in zip(buffers, module.buffers())):
        raise MucdError("the module keeps a state that the rows change: it would carry data from step to step without noise; remove it")
    if not torch.equal(tried[0], tried[2]):
        raise MucdError("the module's output is random or depends on what it saw before: remove layers such as dropout, whose chance does not come from the run's secret")
    if tried[0].shape != (3, outputs):
        raise MucdError(f"the module gives {tuple(tried[0].shape)} for 3 rows: the algorithm wants {outputs} outputs for each")
    if not torch.equal(tried[0][0], tried[1][0]):
        raise MucdError("the module's output for one row depends on other rows of the batch: remove what mixes them, such as a mean over the batch")


class BatchGradients:
    """A module's outputs at rows of the data, and the loss' derivatives by them."""

    def __init__(self, problem: Problem, units: Units, module: nn.Module, target: nn.Module):
        self.problem, self.units, self.module, self.target = problem, units, module, target
        self.deltas_of = output_deltas(problem.algorithm.loss, problem.constants)

    def outputs_and_deltas(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Both [B, O], each row by itself; gradients flow back through the first."""
        # Indexing copies, so the caller's arrays are safe from in-place layers.
        units, context = self.units, []
        with torch.no_grad():
            for evaluation in self.problem.algorithm.context:
                x = torch.from_numpy((units.next_features if evaluation.next else units.features)[rows])
                context.append((self.target if evaluation.target else self.module)(x))
        transition = Transition(*(torch.from_numpy(array[rows]) for array in (units.actions, units.rewards, units.keeps)))
        outputs = self.module(torch.from_numpy(units.features[rows]))
        joined = torch.cat(context, -1) if context else outputs.new_zeros(len(rows), 0)
        return outputs, self.deltas_of(outputs, joined, transition)


class UnitGradients(BatchGradients):
    """Gradients of units, flat and a slice of rows at a time, so that memory does not grow with the batch."""

    def __init__(self, problem: Problem, units: Units, module: nn.Module, target: nn.Module, trainable: list[nn.Parameter]):
        super().__init__(problem, units, module, target)
        self.trainable = trainable
        # It hooks itself into the module's layers; trajectories need no gradients of single rows.
        self.wrapped = GradSampleModule(module, loss_reduction="sum") if units.unit == "transition" else None
        self.slice = max(1, min(MOST_ROWS, GRADIENT_FLOATS // sum(parameter.numel() for parameter in trainable)))

    def of_transitions(self, rows: np.ndarray):
        """Yields [<= slice, D]: the gradient of every row."""
        for start in range(0, len(rows), self.slice):
            self.wrapped.zero_grad(set_to_none=True)
            outputs, deltas = self.outputs_and_deltas(rows[start : start + self.slice])
            with warnings.catch_warnings():
                # The inputs are data and need no gradient.
                warnings.filterwarnings("ignore", "Full backward hook is firing")
                outputs.backward(deltas)
            yield torch.cat([parameter.grad_sample.flatten(1) for parameter in self.trainable], 1)

    def of_trajectories(self, groups: list[np.ndarray]):
        """Yields [1, D] for every trajectory with rows: the mean gradient of its rows."""
        for rows in groups:
            mean = 0.0
            for start in range(0, len(rows), self.slice):
                outputs, deltas = self.outputs_and_deltas(rows[start : start + self.slice])
                parts = torch.autograd.grad(outputs, self.trainable, deltas / len(rows))
                mean = mean + parameters_to_vector(parts)
            if len(rows):
                yield mean[None]
