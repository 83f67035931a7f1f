"""TD3+BC (Fujimoto and Gu 2021): a policy that climbs the critic while it stays near the data.

Twin critics and policy move in one release per step. Left out against the paper: the smoothing noise on target actions and the delay
of the policy. The paper's weight of the critic, 2.5 over the mean of |Q| in the batch, is a public constant here: through a batch mean one
poisoned unit would reach the vectors of all others, and no clip would bound what it moves.
"""

import numpy as np
import torch
from torch import Tensor

from mucd_ray.learn.algorithm import VALUE_CONSTANTS, Algorithm, Constant, Evaluation, Tower, huber


def loss(outputs: Tensor, context: Tensor, transition, constants) -> Tensor:
    """Outputs Q1(s, a), Q2(s, a) and the policy [2 + k], whose tanh is its action; context Q1' and Q2' at s' and the target policy's
    action there, and the derivative of Q1 by the action at the policy's own [2 + k] -> scalar.
    """
    target = transition.reward + constants["discount"] * transition.keep * context[:2].amin()
    action, slope = torch.tanh(outputs[2:]), context[2:]
    # The derivative of Q1(s, policy(s)) by the policy's parameters is that of <slope, action>.
    policy = torch.square(action - transition.action).sum() - constants["q_weight"] * (slope * action).sum()
    return huber(outputs[0] - target) + huber(outputs[1] - target) + constants["policy_weight"] * policy


def towers(actions, constants) -> tuple[Tower, ...]:
    critics = (Tower(name=name, outputs=1, takes_action=True) for name in ("q1", "q2"))
    return *critics, Tower(name="policy", outputs=actions)


CONTINUOUS = Algorithm(
    towers=towers, policy="policy", loss=loss,
    context=(
        Evaluation(tower="q1", target=True, next=True, policy=True),
        Evaluation(tower="q2", target=True, next=True, policy=True),
        Evaluation(tower="q1", policy=True, gradient=True),
    ),
    constants={
        **VALUE_CONSTANTS,
        "q_weight": Constant(
            default=0.025, low=0.0, high=1e6,
            meaning="weight of Q1 in the policy's loss: the paper's 2.5 over |Q|, which is near 100 for rewards near 1 at discount 0.99",
        ),
        "policy_weight": Constant(default=1.0, low=0.0, high=1e6, meaning="weight of the policy's loss beside those of the critics, within one clip"),
    },
    head=lambda outputs, actions, constants: np.tanh(outputs),
    released="Gradient of the sum of this transition's critic and policy losses by all parameters, clipped as one vector; the weight of Q is a constant.",
)
