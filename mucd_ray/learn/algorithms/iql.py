"""Implicit Q-learning (Kostrikov et al. 2022): values from actions in the data alone, and a policy that clones the better ones.

Critic, value and policy move in one release per step: the gradient of the sum of their losses, clipped as one vector.
"""

import numpy as np
import torch
from torch import Tensor

from mucd_ray.learn.algorithm import VALUE_CONSTANTS, Algorithm, Constant, Evaluation, Tower, huber, pick
from mucd_ray.learn.algorithms.bc import exponential, negative_log_likelihood


def values_and_weight(q: Tensor, value: Tensor, next_value: Tensor, target_q: Tensor, transition, constants) -> tuple[Tensor, Tensor]:
    """(loss of Q and V, weight of the policy's loss, a constant), from the scalars Q(s, a), V(s), V(s') and Q'(s, a).

    Q regresses on r + discount V(s'), V on an expectile of Q'(s, a) over the data's actions (equations 5 and 6); both errors have slope
    at most 1 (Huber). The policy's weight is exp(beta (Q'(s, a) - V(s))), at most max_weight (equation 7).
    """
    temporal = huber(q - (transition.reward + constants["discount"] * transition.keep * next_value))
    advantage = target_q - value
    side = torch.where(advantage < 0, 1.0 - constants["expectile"], constants["expectile"])
    weight = torch.exp(constants["beta"] * advantage.detach()).clamp(max=constants["max_weight"])
    return temporal + side * huber(advantage), constants["policy_weight"] * weight


def discrete(outputs: Tensor, context: Tensor, transition, constants) -> Tensor:
    """Outputs Q(s, .), V(s) and policy logits [A + 1 + A]; context the same at s', and of the target copy at s [2 (2A + 1)] -> scalar."""
    following, target = context.unflatten(-1, (2, -1))
    actions = (len(outputs) - 1) // 2
    values, weight = values_and_weight(
        pick(outputs, transition.action), outputs[actions], following[actions], pick(target, transition.action), transition, constants
    )
    return values + weight * negative_log_likelihood(outputs[actions + 1 :], context, transition, constants)


def discrete_delta(outputs, context, action, reward, keep, constants, deltas) -> None:
    discount, expectile, beta, max_weight, policy_weight = constants[0], constants[2], constants[3], constants[4], constants[5]
    actions = (len(outputs) - 1) // 2
    deltas[:] = 0.0
    error = outputs[action] - (reward + discount * keep * context[actions])
    deltas[action] = min(max(error, -1.0), 1.0) + (error - error)
    advantage = context[len(outputs) + action] - outputs[actions]
    slope = min(max(advantage, -1.0), 1.0) + (advantage - advantage)
    deltas[actions] = -slope * (1.0 - expectile if advantage < 0.0 else expectile)
    # exp(x) <= max_weight from exponentials of numbers below 0.
    scaled = beta * advantage
    if scaled > 0.0:
        weight = 1.0 / max(exponential(-scaled), 1.0 / max_weight)
    else:
        weight = min(exponential(scaled), max_weight)
    top = outputs[actions + 1]
    for index in range(actions + 1, len(outputs)):
        top = max(top, outputs[index])
    total = top - top
    for index in range(actions + 1, len(outputs)):
        deltas[index] = exponential(outputs[index] - top)
        total += deltas[index]
    for index in range(actions + 1, len(outputs)):
        deltas[index] *= policy_weight * weight / total
    deltas[actions + 1 + action] -= policy_weight * weight


def continuous(outputs: Tensor, context: Tensor, transition, constants) -> Tensor:
    """Outputs Q(s, a), V(s) and the policy [1 + 1 + k], whose tanh is its action; context V(s') and Q'(s, a) [2] -> scalar."""
    values, weight = values_and_weight(outputs[0], outputs[1], context[0], context[1], transition, constants)
    return values + weight * 0.5 * torch.square(torch.tanh(outputs[2:]) - transition.action).sum()


def discrete_towers(actions, constants) -> tuple[Tower, ...]:
    return (Tower(name="all", outputs=2 * actions + 1),)


def continuous_towers(actions, constants) -> tuple[Tower, ...]:
    return Tower(name="q", outputs=1, takes_action=True), Tower(name="value", outputs=1), Tower(name="policy", outputs=actions)


CONSTANTS = {
    **VALUE_CONSTANTS,
    "expectile": Constant(default=0.7, low=0.5, high=1.0, meaning="expectile of Q over the data's actions that V learns"),
    "beta": Constant(default=3.0, low=0.0, high=1e6, meaning="how strongly the policy prefers actions of high advantage"),
    "max_weight": Constant(default=10.0, low=1e-3, high=1e6, meaning="greatest weight of a transition in the policy's loss"),
    "policy_weight": Constant(default=0.1, low=0.0, high=1e6, meaning="weight of the policy's loss beside those of Q and V, within one clip"),
}
RELEASED = "Gradient of the sum of this transition's critic, value and policy losses by all parameters, clipped as one vector."
DISCRETE = Algorithm(
    towers=discrete_towers, policy="all", loss=discrete, delta=discrete_delta, constants=CONSTANTS, released=RELEASED,
    context=(Evaluation(tower="all", next=True), Evaluation(tower="all", target=True)),
    head=lambda outputs, actions, constants: outputs[..., actions + 1 :],
)
CONTINUOUS = Algorithm(
    towers=continuous_towers, policy="policy", loss=continuous, constants=CONSTANTS, released=RELEASED,
    context=(Evaluation(tower="value", next=True), Evaluation(tower="q", target=True)),
    head=lambda outputs, actions, constants: np.tanh(outputs),
)
