"""Behaviour cloning (Pomerleau 1991): do what the data does."""

import functools
import itertools
import math

import numpy as np
import torch
from torch import Tensor

from mucd_ray.learn.algorithm import Algorithm, Constant, Tower

RELEASED = "Gradient of the log-likelihood of the recorded action (squared error if continuous); nothing but this transition enters."


def negative_log_likelihood(outputs: Tensor, context, transition, constants) -> Tensor:
    """Of the recorded action: outputs [A] are logits -> scalar."""
    return torch.logsumexp(outputs, -1) - outputs.gather(-1, transition.action[None])[0]


def log_likelihood_of_components(outputs: Tensor, actions: Tensor, components: tuple[int, ...]) -> Tensor:
    """Of the recorded values, each by a softmax of its component's own logits: outputs [n_1 + ... + n_k], actions [k] -> scalar."""
    total, start, first = outputs.new_zeros(()), 0, 0
    for values, same in itertools.groupby(components):
        many = len(list(same))
        logits = outputs[start : start + many * values].unflatten(0, (many, values))
        chosen = logits.gather(-1, actions[first : first + many, None])[:, 0]
        total, start, first = total + (chosen - torch.logsumexp(logits, -1)).sum(), start + many * values, first + many
    return total


def squared_error(outputs: Tensor, context, transition, constants) -> Tensor:
    """Half the squared distance from the recorded action: outputs [k] -> scalar.

    With the constant "censored" an action at its bound, -1 or 1, stands for any output beyond it, which the environment would clip to
    it (Tobin 1958): such an output has no error. The loss stays convex.
    """
    error = outputs - transition.action
    if constants["censored"]:
        beyond = (transition.action >= 1.0) & (error > 0.0) | (transition.action <= -1.0) & (error < 0.0)
        error = torch.where(beyond, error * 0.0, error)
    return 0.5 * torch.square(error).sum()


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


def mixture_negative_log_likelihood(outputs: Tensor, context, transition, constants) -> Tensor:
    """Of the recorded action, if it was drawn uniformly with probability rho and from the policy otherwise; rho, the demonstrator's own, stands in the place of
    the reward (of known rho; Beliaev et al., ICML 2022, learn it): outputs [A] are logits -> scalar."""
    rho, log_likelihood = transition.reward, -negative_log_likelihood(outputs, context, transition, constants)
    return -torch.logaddexp(torch.log1p(-rho) + log_likelihood, torch.log(rho / len(outputs)))


def mixture_negative_log_likelihood_delta(outputs, context, action, reward, keep, constants, deltas) -> None:
    """That of cloning, times the probability that the action is the policy's."""
    top = outputs[0]
    for output in outputs:
        top = max(top, output)
    total = top - top
    for index in range(len(outputs)):
        deltas[index] = exponential(outputs[index] - top)
        total += deltas[index]
    for index in range(len(outputs)):
        deltas[index] /= total
    own = (1.0 - reward) * deltas[action]
    deltas[action] -= 1.0
    if reward > 0.0:
        share = own / (own + reward / len(outputs))
        for index in range(len(outputs)):
            deltas[index] *= share


def squared_error_delta(outputs, context, action, reward, keep, constants, deltas) -> None:
    """Output less action; 0 for an output beyond an action at its bound."""
    for index in range(len(outputs)):
        error = outputs[index] - action[index]
        if constants[0] != 0.0 and (action[index] >= 1.0 and error > 0.0 or action[index] <= -1.0 and error < 0.0):
            error *= 0.0
        deltas[index] = error


def towers(actions, constants) -> tuple[Tower, ...]:
    return (Tower(name="policy", outputs=actions),)


DISCRETE = Algorithm(
    towers=towers, policy="policy", loss=negative_log_likelihood, delta=negative_log_likelihood_delta, released=RELEASED
)
# Not in the registry: what rewards are for it is known on a bag alone (`trainers/built_in.py`).
DISCRETE_MIXTURE = Algorithm(
    towers=towers, policy="policy", loss=mixture_negative_log_likelihood, delta=mixture_negative_log_likelihood_delta, released=RELEASED
)


def components_delta(outputs, context, action, reward, keep, constants, deltas) -> None:
    """For each component the softmax of its logits less the recorded value's indicator; `constants` are how many values each has."""
    start = 0
    for component in range(len(action)):
        end = start + int(constants[component])
        top = outputs[start]
        for index in range(start, end):
            top = max(top, outputs[index])
        total = top - top
        for index in range(start, end):
            deltas[index] = exponential(outputs[index] - top)
            total += deltas[index]
        for index in range(start, end):
            deltas[index] /= total
        deltas[start + action[component]] -= 1.0
        start = end


def mixture_components_delta(outputs, context, action, reward, keep, constants, deltas) -> None:
    """That of cloning, times the probability that the whole action is the policy's."""
    # By how much likelier the policy is to take this action than who draws uniformly, as a logarithm.
    start, likelier = 0, reward - reward
    for component in range(len(action)):
        end = start + int(constants[component])
        top = outputs[start]
        for index in range(start, end):
            top = max(top, outputs[index])
        total = top - top
        for index in range(start, end):
            deltas[index] = exponential(outputs[index] - top)
            total += deltas[index]
        for index in range(start, end):
            deltas[index] /= total
        likelier += outputs[start + action[component]] - top - math.log(total / constants[component])
        deltas[start + action[component]] -= 1.0
        start = end
    if reward > 0.0:
        if likelier >= 0.0:
            share = (1.0 - reward) / (1.0 - reward + reward * exponential(-likelier))
        else:
            own = (1.0 - reward) * exponential(likelier)
            share = own / (own + reward)
        for index in range(start):
            deltas[index] *= share


@functools.cache
def of_components(components: tuple[int, ...], mixture: bool = False) -> Algorithm:
    """The same for actions of several components, whose policy is a product of one softmax for each; with `mixture` that of `DISCRETE_MIXTURE`, where an action of the demonstrator's is
    drawn as a whole: uniformly among all combinations, or from the policy."""

    def loss(outputs: Tensor, context, transition, constants) -> Tensor:
        log_likelihood = log_likelihood_of_components(outputs, transition.action, components)
        if not mixture:
            return -log_likelihood
        rho = transition.reward
        return -torch.logaddexp(torch.log1p(-rho) + log_likelihood, torch.log(rho) - float(np.log(components).sum()))

    return Algorithm(towers=towers, policy="policy", loss=loss, delta=mixture_components_delta if mixture else components_delta, released=RELEASED)


CENSORED = Constant(default=0.0, low=0.0, high=1.0, whole=True, meaning="1 if actions at their bounds stand for all beyond; the card decides where it is not given")
CONTINUOUS = Algorithm(
    towers=towers, policy="policy", loss=squared_error, delta=squared_error_delta, constants={"censored": CENSORED}, released=RELEASED
)
