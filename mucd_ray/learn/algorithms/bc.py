"""Behaviour cloning (Pomerleau 1991): do what the data does."""

import math

import torch
from torch import Tensor

from mucd_ray.learn.algorithm import Algorithm, Tower

RELEASED = "Gradient of the log-likelihood of the recorded action (squared error if continuous); nothing but this transition enters."


def negative_log_likelihood(outputs: Tensor, context, transition, constants) -> Tensor:
    """Of the recorded action: outputs [A] are logits -> scalar."""
    return torch.logsumexp(outputs, -1) - outputs.gather(-1, transition.action[None])[0]


def squared_error(outputs: Tensor, context, transition, constants) -> Tensor:
    """Half the squared distance from the recorded action: outputs [k] -> scalar."""
    return 0.5 * torch.square(outputs - transition.action).sum()


def exponential(x: float) -> float:
    """exp(x) for x <= 0 in functions that Numba compiles; the fused engine has a faster one in float32."""
    return math.exp(x)


def negative_log_likelihood_delta(outputs, context, action, reward, keep, constants, deltas) -> None:
    """Softmax of the logits less the recorded action's indicator."""
    top = outputs[0]
    for output in outputs:
        top = max(top, output)
    total = top - top
    for index in range(len(outputs)):
        deltas[index] = exponential(outputs[index] - top)
        total += deltas[index]
    for index in range(len(outputs)):
        deltas[index] /= total
    deltas[action] -= 1.0


def squared_error_delta(outputs, context, action, reward, keep, constants, deltas) -> None:
    """Output less action."""
    for index in range(len(outputs)):
        deltas[index] = outputs[index] - action[index]


def towers(actions, constants) -> tuple[Tower, ...]:
    return (Tower(name="policy", outputs=actions),)


DISCRETE = Algorithm(
    towers=towers, policy="policy", loss=negative_log_likelihood, delta=negative_log_likelihood_delta, released=RELEASED
)
CONTINUOUS = Algorithm(towers=towers, policy="policy", loss=squared_error, delta=squared_error_delta, released=RELEASED)
