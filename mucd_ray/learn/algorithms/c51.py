"""Categorical DQN (Bellemare et al. 2017, algorithm 1): the distribution of the return on fixed atoms."""

import numpy as np
import torch
from torch import Tensor

from mucd_ray.errors import MucdError
from mucd_ray.learn.algorithm import VALUE_CONSTANTS, Algorithm, Constant, Tower, pick
from mucd_ray.learn.algorithms.bc import exponential
from mucd_ray.learn.algorithms.dqn import NEXT_TARGET


def loss(outputs: Tensor, context: Tensor, transition, constants) -> Tensor:
    """Cross-entropy from the projected distribution of r + discount Z'(s', best) to that of Z(s, a).

    Outputs are logits of Z(s, .) [A atoms], context those of Z'(s', .); the best next action has the largest mean under Z' -> scalar.
    """
    atoms, low, high = constants["atoms"], constants["v_min"], constants["v_max"]
    values = torch.linspace(low, high, atoms, device=outputs.device)
    distributions = torch.softmax(context.unflatten(-1, (-1, atoms)), -1)
    masses = pick(distributions, (distributions * values).sum(-1).argmax())
    # Every shifted atom's mass is shared by its two neighbours, in proportion to nearness.
    shifted = (transition.reward + constants["discount"] * transition.keep * values).clamp(low, high)
    position = (shifted - low) / ((high - low) / (atoms - 1))
    lower = position.nan_to_num().floor().clamp(0, atoms - 2)
    share = position - lower
    index, none = lower.to(torch.int64), torch.zeros_like(masses)
    projected = none.scatter_add(0, index, masses * (1 - share)).scatter_add(0, index + 1, masses * share)
    log_likelihood = torch.log_softmax(pick(outputs.unflatten(-1, (-1, atoms)), transition.action), -1)
    return -(projected * log_likelihood).sum()


def delta(outputs, context, action, reward, keep, constants, deltas) -> None:
    """Softmax of the recorded action's logits less the projected distribution; zero for the other actions."""
    discount, atoms, low, high = constants[0], int(constants[2]), constants[3], constants[4]
    step = (high - low) / (atoms - 1)
    best = 0
    best_mean = best_top = best_total = context[0]
    for start in range(0, len(outputs), atoms):
        top = context[start]
        for index in range(start, start + atoms):
            top = max(top, context[index])
        total = mean = top - top
        for index in range(atoms):
            mass = exponential(context[start + index] - top)
            total += mass
            mean += mass * (low + step * index)
        mean /= total
        # As argmax: the first of equal ones, and NaN wins.
        if start == 0 or (best_mean == best_mean and not mean <= best_mean):
            best, best_mean, best_top, best_total = start, mean, top, total
    deltas[:] = 0.0
    own = action * atoms
    top = outputs[own]
    for index in range(own, own + atoms):
        top = max(top, outputs[index])
    total = top - top
    for index in range(own, own + atoms):
        deltas[index] = exponential(outputs[index] - top)
        total += deltas[index]
    for index in range(own, own + atoms):
        deltas[index] /= total
    for index in range(atoms):
        mass = exponential(context[best + index] - best_top) / best_total
        position = (min(max(reward + discount * keep * (low + step * index), low), high) - low) / step
        if position == position:
            lower = min(int(position), atoms - 2)
            deltas[own + lower] -= mass * (lower + 1 - position)
            deltas[own + lower + 1] -= mass * (position - lower)
        else:
            deltas[own] = position


def head(outputs: np.ndarray, actions: int, constants) -> np.ndarray:
    """Expected values [..., A] from logits [..., A atoms]."""
    atoms = constants["atoms"]
    logits = np.ascontiguousarray(outputs, np.float32).reshape(*outputs.shape[:-1], actions, atoms)
    with np.errstate(invalid="ignore", over="ignore"):
        masses = np.exp(logits - logits.max(-1, keepdims=True))
        values = np.linspace(constants["v_min"], constants["v_max"], atoms, dtype=np.float32)
        return (masses * values).sum(-1) / masses.sum(-1)


def towers(actions, constants) -> tuple[Tower, ...]:
    if not constants["v_min"] < constants["v_max"]:
        raise MucdError(f"v_min {constants['v_min']} must be below v_max {constants['v_max']}: they are the first and the last atom")
    if constants["v_max"] - constants["v_min"] < 1e-5 * (constants["atoms"] - 1) * max(abs(constants["v_min"]), abs(constants["v_max"])):
        raise MucdError(f"{constants['atoms']} atoms between v_min {constants['v_min']} and v_max {constants['v_max']} cannot be told apart in float32: use a wider range or fewer atoms")
    return (Tower(name="q", outputs=actions * constants["atoms"]),)


DISCRETE = Algorithm(
    towers=towers, policy="q", loss=loss, delta=delta, context=(NEXT_TARGET,), head=head,
    constants={
        **VALUE_CONSTANTS,
        "atoms": Constant(default=51, low=2, high=1001, meaning="number of values on which a return's distribution lives", whole=True),
        "v_min": Constant(default=None, low=-1e9, high=1e9, meaning="least discounted sum of scaled rewards, the first atom"),
        "v_max": Constant(default=None, low=-1e9, high=1e9, meaning="greatest discounted sum of scaled rewards, the last atom"),
    },
    released="Gradient of the cross-entropy from this transition's own projected target; atoms are public constants.",
)
