"""Conservative Q-learning for discrete actions (Kumar et al. 2020, equation 4): values of actions that the data lacks are held down."""

from torch import Tensor

from mucd_ray.learn.algorithm import VALUE_CONSTANTS, Algorithm, Constant
from mucd_ray.learn.algorithms import dqn
from mucd_ray.learn.algorithms.bc import exponential, negative_log_likelihood


def loss(outputs: Tensor, context: Tensor, transition, constants) -> Tensor:
    """That of double DQN, plus alpha (logsumexp Q(s, .) - Q(s, a)): outputs Q(s, .) [A], context Q(s', .) and Q'(s', .) [2A] -> scalar."""
    conservative = negative_log_likelihood(outputs, context, transition, constants)
    return dqn.double_dqn(outputs, context, transition, constants) + constants["alpha"] * conservative


def delta(outputs, context, action, reward, keep, constants, deltas) -> None:
    best, top = 0, outputs[0]
    for index in range(1, len(outputs)):
        top = max(top, outputs[index])
        if context[best] == context[best] and not context[index] <= context[best]:
            best = index
    total = top - top
    for index in range(len(outputs)):
        deltas[index] = exponential(outputs[index] - top)
        total += deltas[index]
    for index in range(len(outputs)):
        deltas[index] *= constants[2] / total
    error = outputs[action] - reward - constants[0] * keep * context[len(outputs) + best]
    deltas[action] += min(max(error, -1.0), 1.0) + (error - error) - constants[2]


DISCRETE = Algorithm(
    towers=dqn.towers, policy="q", loss=loss, delta=delta, context=dqn.NEXT_ONLINE_AND_TARGET,
    constants={**VALUE_CONSTANTS, "alpha": Constant(default=1.0, low=0.0, high=1e6, meaning="weight of the conservative term")},
    released="Gradient of this transition's own temporal-difference error and of its conservative term, which looks at Q(s, .) only.",
)
