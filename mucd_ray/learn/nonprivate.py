"""The non-private learner: the same algorithm and networks, plain minibatch Adam. A baseline, covered by no certificate."""

import copy

import numpy as np
import torch

from mucd_ray.errors import MucdError
from mucd_ray.learn.ensemble import acting_parameters
from mucd_ray.learn.learner import Adam, Learner
from mucd_ray.learn.problem import Problem
from mucd_ray.learn.stacked import RowGradients, UnitsOnDevice, Workspace, initial_flat
from mucd_ray.learn.units import Units


def train_nonprivate(
    *, problem: Problem, units: Units, seeds: list[int], steps: int = 2000, batch: int = 512, learning_rate: float = 0.01
) -> dict[str, torch.Tensor]:
    """Train one policy per seed on minibatches of transitions drawn with replacement; the mean of the last half of the iterates is kept
    (of a module that is not dense: the last one).

    Args:
        units: of either kind; never written to. Transitions of units that count as zero (length 0) are left out.
        seeds: public seeds, one policy each.

    Returns:
        Parameters stacked [len(seeds), ...], as from `train_block`.

    Raises:
        MucdError: no unit has a transition.
    """
    ends = np.cumsum(units.lengths)
    if not ends[-1]:
        raise MucdError(f"none of {len(units)} {units.unit} units has a transition to learn from: lower the least return")
    allowed = np.arange(ends[-1]) + np.repeat(units.starts - ends + units.lengths, units.lengths)
    if problem.module_factory is not None:
        return _train_modules(problem, units, allowed, seeds, steps, batch, learning_rate)
    data, generators = UnitsOnDevice(units, torch.device("cpu")), [np.random.default_rng(seed) for seed in seeds]
    parameters = torch.from_numpy(np.stack([initial_flat(problem, generator) for generator in generators]))
    target, total = parameters.clone(), torch.zeros_like(parameters, dtype=torch.float64)
    gradient, workspace = torch.zeros_like(parameters), Workspace(torch.device("cpu"))
    optimiser = Adam(Learner(optimiser="adam", learning_rate=learning_rate), parameters)
    size = min(batch, len(allowed))
    with torch.no_grad():
        for step in range(steps):
            rows = data.gather([allowed[generator.integers(len(allowed), size=size)] for generator in generators])
            weights = (torch.arange(rows.x.shape[1]) < size).to(torch.float32).expand(len(seeds), -1) / size
            RowGradients(problem, parameters, target, rows, workspace).weighted_sum(weights, gradient)
            optimiser.step(parameters, gradient, step)
            if problem.algorithm.has_target:
                target.lerp_(parameters, problem.constants["target_rate"])
            if step >= steps // 2:
                total += parameters
    return acting_parameters(problem, (total / (steps - steps // 2)).to(torch.float32))


def _train_modules(problem: Problem, units: Units, allowed: np.ndarray, seeds: list[int], steps: int, batch: int, learning_rate: float) -> dict[str, torch.Tensor]:
    # Opacus takes a second to import, which nobody else should pay.
    from mucd_ray.learn.opacus_engine import BatchGradients

    torch.set_num_threads(1)
    trained = []
    for generator in (np.random.default_rng(seed) for seed in seeds):
        module = problem.module_factory(generator)
        target, optimiser = copy.deepcopy(module), torch.optim.Adam(module.parameters(), lr=learning_rate)
        gradients = BatchGradients(problem, units, module, target)
        for _ in range(steps):
            rows = allowed[generator.integers(len(allowed), size=min(batch, len(allowed)))]
            outputs, deltas = gradients.outputs_and_deltas(rows)
            optimiser.zero_grad()
            outputs.backward(deltas / len(rows))
            optimiser.step()
            if problem.algorithm.has_target:
                with torch.no_grad():
                    for copied, parameter in zip(target.parameters(), module.parameters()):
                        copied.lerp_(parameter, problem.constants["target_rate"])
        trained.append({name: parameter.detach() for name, parameter in module.named_parameters()})
    return {name: torch.stack([parameters[name] for parameters in trained]) for name in trained[0]}
