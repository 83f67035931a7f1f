"""Deep Q-learning (Mnih et al. 2015) and its double variant (van Hasselt et al. 2016), on a fixed dataset."""

from torch import Tensor

from mucd_ray.learn.algorithm import VALUE_CONSTANTS, Algorithm, Evaluation, Tower, huber, pick


def dqn(outputs: Tensor, context: Tensor, transition, constants) -> Tensor:
    """Huber loss of Q(s, a) - (r + discount max Q'(s', .)): outputs Q(s, .) [A], context Q'(s', .) [A] -> scalar."""
    target = transition.reward + constants["discount"] * transition.keep * context.max()
    return huber(pick(outputs, transition.action) - target)


def double_dqn(outputs: Tensor, context: Tensor, transition, constants) -> Tensor:
    """As `dqn`, but Q chooses the next action that Q' values: context Q(s', .) and Q'(s', .) [2A]."""
    online, target = context.unflatten(-1, (2, -1))
    value = pick(target, online.argmax())
    return huber(pick(outputs, transition.action) - transition.reward - constants["discount"] * transition.keep * value)


# In deltas, `error - error` is zero, or NaN where the error is infinite: there torch's slope of `huber` is NaN too. The comparisons
# are written so that NaN wins, as in torch's `max` and `argmax`.


def dqn_delta(outputs, context, action, reward, keep, constants, deltas) -> None:
    value = context[0]
    for output in context:
        if output > value or output != output:
            value = output
    deltas[:] = 0.0
    error = outputs[action] - (reward + constants[0] * keep * value)
    deltas[action] = min(max(error, -1.0), 1.0) + (error - error)


def double_dqn_delta(outputs, context, action, reward, keep, constants, deltas) -> None:
    best = 0
    for index in range(1, len(outputs)):
        if context[best] == context[best] and not context[index] <= context[best]:
            best = index
    deltas[:] = 0.0
    error = outputs[action] - reward - constants[0] * keep * context[len(outputs) + best]
    deltas[action] = min(max(error, -1.0), 1.0) + (error - error)


def towers(actions, constants) -> tuple[Tower, ...]:
    return (Tower(name="q", outputs=actions),)


RELEASED = "Gradient of this transition's own temporal-difference error; the target network follows from earlier releases (post-processing)."
NEXT_TARGET = Evaluation(tower="q", target=True, next=True)
NEXT_ONLINE_AND_TARGET = (Evaluation(tower="q", next=True), NEXT_TARGET)
DQN = Algorithm(
    towers=towers, policy="q", loss=dqn, delta=dqn_delta, constants=VALUE_CONSTANTS, released=RELEASED, context=(NEXT_TARGET,),
)
DOUBLE_DQN = Algorithm(
    towers=towers, policy="q", loss=double_dqn, delta=double_dqn_delta, constants=VALUE_CONSTANTS, released=RELEASED,
    context=NEXT_ONLINE_AND_TARGET,
)
