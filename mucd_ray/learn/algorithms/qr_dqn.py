"""Quantile regression DQN (Dabney et al. 2018, equation 10): the quantiles of the return."""

import numpy as np
import torch
from torch import Tensor

from mucd_ray.learn.algorithm import VALUE_CONSTANTS, Algorithm, Constant, Tower, huber, pick
from mucd_ray.learn.algorithms.dqn import NEXT_TARGET


def loss(outputs: Tensor, context: Tensor, transition, constants) -> Tensor:
    """Quantile Huber loss of the quantiles of Z(s, a) against those of r + discount Z'(s', best).

    Outputs are quantiles of Z(s, .) [A quantiles], context those of Z'(s', .); the best next action has the largest mean under Z'.
    Summed over the quantiles of Z, averaged over those of the target -> scalar.
    """
    quantiles = constants["quantiles"]
    following = context.unflatten(-1, (-1, quantiles))
    target = transition.reward + constants["discount"] * transition.keep * pick(following, following.mean(-1).argmax())
    own = pick(outputs.unflatten(-1, (-1, quantiles)), transition.action)
    levels = (torch.arange(quantiles, device=outputs.device) + 0.5) / quantiles
    error = target - own[:, None]
    weight = (levels[:, None] - (error < 0).to(outputs.dtype)).abs()
    return (weight * huber(error)).mean(1).sum()


def delta(outputs, context, action, reward, keep, constants, deltas) -> None:
    quantiles = int(constants[2])
    best, best_sum = 0, context[0]
    for start in range(0, len(outputs), quantiles):
        total = context[start]
        for index in range(start + 1, start + quantiles):
            total += context[index]
        # As argmax: the first of equal ones, and NaN wins.
        if start == 0 or (best_sum == best_sum and not total <= best_sum):
            best, best_sum = start, total
    deltas[:] = 0.0
    for index in range(quantiles):
        own = action * quantiles + index
        level = (index + 0.5) / quantiles
        for other in range(best, best + quantiles):
            error = reward + constants[0] * keep * context[other] - outputs[own]
            slope = min(max(error, -1.0), 1.0) + (error - error)
            deltas[own] -= slope * (1.0 - level if error < 0.0 else level)
        deltas[own] /= quantiles


def head(outputs: np.ndarray, actions: int, constants) -> np.ndarray:
    """Expected values [..., A]: the mean of an action's quantiles, from [..., A quantiles]."""
    return np.ascontiguousarray(outputs).reshape(*outputs.shape[:-1], actions, constants["quantiles"]).mean(-1)


def towers(actions, constants) -> tuple[Tower, ...]:
    return (Tower(name="q", outputs=actions * constants["quantiles"]),)


DISCRETE = Algorithm(
    towers=towers, policy="q", loss=loss, delta=delta, context=(NEXT_TARGET,), head=head,
    constants={
        **VALUE_CONSTANTS,
        "quantiles": Constant(default=32, low=1, high=1000, meaning="number of quantiles of an action's return", whole=True),
    },
    released="Gradient of the quantile loss against this transition's own targets; the target network follows from earlier releases.",
)
