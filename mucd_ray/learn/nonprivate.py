"""The non-private learner: the same algorithm, networks and engines, Adam without clipping or noise. A baseline, covered by no certificate."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from mucd_ray.errors import MucdError
from mucd_ray.learn.algorithm import Transition, output_deltas
from mucd_ray.learn.ensemble import train_block
from mucd_ray.learn.problem import Problem
from mucd_ray.learn.streams import Streams
from mucd_ray.learn.units import Units
from mucd_ray.words import counted

# Its randomness protects nothing.
PUBLIC = Streams(b"no secret at all")


@dataclass(frozen=True, kw_only=True)
class Unprotected:
    """What the engines read of a `Mechanism`, for one without noise and with a clip norm that no gradient reaches."""

    sample_rate: float
    steps: int
    normaliser: float
    unit: str = "transition"
    clip_norm: float = 1e12
    noise_multiplier: float = 0.0


def train_nonprivate(
    *, problem: Problem, units: Units, seeds: list[int], steps: int = 2000, batch: int = 512, learning_rate: float = 0.01, progress: Callable[[], None] | None = None
) -> dict[str, torch.Tensor]:
    """Train one policy per seed on Poisson samples of about `batch` transitions; the mean of the last half of the iterates is kept
    (of a module that is not dense: the last one).

    Args:
        units: of either kind; never written to. Transitions of units that count as zero (length 0) are left out.
        seeds: public seeds, one policy each.
        progress: called again and again meanwhile.

    Returns:
        Parameters stacked [len(seeds), ...], as from `train_block`.

    Raises:
        MucdError: no unit has a transition.
    """
    ends = np.cumsum(units.lengths)
    if not ends[-1]:
        raise MucdError(f"none of {counted(len(units), units.unit)} has a transition to learn from: lower the least return")
    allowed = np.arange(ends[-1]) + np.repeat(units.starts - ends + units.lengths, units.lengths)
    if problem.module_factory is not None:
        return _train_modules(problem, units, allowed, seeds, steps, batch, learning_rate, progress)
    learner = replace(problem.learner, optimiser="adam", learning_rate=learning_rate, momentum=0.0, average=0.5)
    size = min(batch, len(allowed))
    mechanism = Unprotected(sample_rate=size / len(allowed), steps=steps, normaliser=size)
    return train_block(
        problem=replace(problem, learner=learner), mechanism=mechanism, units=_transitions(units, allowed), instances=seeds, streams=PUBLIC, progress=progress
    )


def _transitions(units: Units, allowed: np.ndarray) -> Units:
    """The rows `allowed`, each a unit of its own."""
    if units.unit == "transition":
        return units
    x, next_x, actions, rewards, keeps = (
        array[allowed] if len(array) else array for array in (units.features, units.next_features, units.actions, units.rewards, units.keeps)
    )
    return Units.transitions(x, actions, next_features=next_x, rewards=rewards, keeps=keeps)


def _train_modules(problem: Problem, units: Units, allowed: np.ndarray, seeds: list[int], steps: int, batch: int, learning_rate: float, progress) -> dict[str, torch.Tensor]:
    torch.set_num_threads(1)
    trained = []
    for generator in (np.random.default_rng(seed) for seed in seeds):
        module = problem.module(generator)
        target, optimiser = copy.deepcopy(module), torch.optim.Adam(module.parameters(), lr=learning_rate)
        for _ in range(steps):
            rows = allowed[generator.integers(len(allowed), size=min(batch, len(allowed)))]
            outputs, deltas = _outputs_and_deltas(problem, units, module, target, rows)
            optimiser.zero_grad()
            outputs.backward(deltas / len(rows))
            optimiser.step()
            if problem.algorithm.has_target:
                with torch.no_grad():
                    for copied, parameter in zip(target.parameters(), module.parameters()):
                        copied.lerp_(parameter, problem.constants["target_rate"])
            if progress is not None:
                progress()
        trained.append({name: parameter.detach() for name, parameter in module.named_parameters()})
    return {name: torch.stack([parameters[name] for parameters in trained]) for name in trained[0]}


def _outputs_and_deltas(problem: Problem, units: Units, module: nn.Module, target: nn.Module, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """The module's outputs at these rows, through which gradients flow back, and the loss' derivatives by them, both [B, O]."""
    context = []
    with torch.no_grad():
        for evaluation in problem.algorithm.context:
            x = torch.from_numpy((units.next_features if evaluation.next else units.features)[rows])
            context.append((target if evaluation.target else module)(x))
    transition = Transition(*(torch.from_numpy(array[rows]) for array in (units.actions, units.rewards, units.keeps)))
    outputs = module(torch.from_numpy(units.features[rows]))
    joined = torch.cat(context, -1) if context else outputs.new_zeros(len(rows), 0)
    return outputs, output_deltas(problem.algorithm.loss, problem.constants)(outputs, joined, transition)
