"""Losses as pure functions of one unit. A new algorithm is one function here and one line in `ALGORITHMS`.

A loss sees the network's output at ONE unit's observation and that unit, never a batch: a batch mean or a running statistic
inside a loss would let one poisoned unit reach the vectors of the others, and the sensitivity bound would be void.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import gymnasium
import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from mucd_ray.errors import MucdError

Loss = Callable[[Tensor, Tensor], Tensor]
Delta = Callable[[np.ndarray, object, np.ndarray], None]


def behaviour_cloning(outputs: Tensor, action: Tensor) -> Tensor:
    """Negative log-likelihood of the recorded action: outputs [A] are logits, action is an integer in [0, A) -> scalar."""
    return torch.logsumexp(outputs, -1) - outputs.gather(-1, action[None])[0]


def behaviour_regression(outputs: Tensor, action: Tensor) -> Tensor:
    """Half the squared error to the recorded action: outputs [k], action [k] -> scalar."""
    return 0.5 * torch.square(outputs - action).sum()


def exponential(x: float) -> float:
    """exp(x) for x <= 0 in functions that Numba compiles; the fused engine has a faster one in float32."""
    return math.exp(x)


def behaviour_cloning_delta(outputs, action, deltas) -> None:
    """Softmax of the logits less the recorded action's indicator."""
    top = outputs[0]
    for output in outputs:
        top = max(top, output)
    total = outputs[0] - outputs[0]
    for index in range(len(outputs)):
        deltas[index] = exponential(outputs[index] - top)
        total += deltas[index]
    for index in range(len(outputs)):
        deltas[index] /= total
    deltas[action] -= 1.0


def behaviour_regression_delta(outputs, action, deltas) -> None:
    """Output less action."""
    for index in range(len(outputs)):
        deltas[index] = outputs[index] - action[index]


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """What an algorithm minimises on one unit, by kind of action; None where it is not defined.

    Attributes:
        discrete, continuous: the losses.
        discrete_delta, continuous_delta: their derivatives by the output, for the fused engine: functions (outputs float32 [A],
            action, deltas float32 [A]) that write `deltas`, in the part of Python that Numba compiles. A non-finite output must
            give a non-finite delta. Without one, the torch engine trains the algorithm.
    """

    discrete: Loss | None
    continuous: Loss | None
    discrete_delta: Delta | None = None
    continuous_delta: Delta | None = None


ALGORITHMS = {
    "bc": Algorithm(
        discrete=behaviour_cloning, discrete_delta=behaviour_cloning_delta,
        continuous=behaviour_regression, continuous_delta=behaviour_regression_delta,
    ),
}


def loss_for(algorithm: str, actions: np.ndarray) -> Loss:
    """The loss of `algorithm` for these actions: integers [N] are discrete, floats [N, k] continuous.

    Raises:
        MucdError: the algorithm is unknown or not defined for this kind of action.
    """
    if algorithm not in ALGORITHMS:
        raise MucdError(f"algorithm {algorithm!r} is unknown: use one of {', '.join(ALGORITHMS)}")
    kind = _kind(actions)
    loss = getattr(ALGORITHMS[algorithm], kind)
    if loss is None:
        raise MucdError(f"algorithm {algorithm!r} is not defined for {kind} actions")
    return loss


def delta_for(algorithm: str, actions: np.ndarray) -> Delta | None:
    """The compilable derivative of `loss_for(algorithm, actions)`, or None if it has none."""
    return getattr(ALGORITHMS[algorithm], f"{_kind(actions)}_delta")


def _kind(actions: np.ndarray) -> str:
    return "discrete" if actions.ndim == 1 and np.issubdtype(actions.dtype, np.integer) else "continuous"


def output_deltas(loss: Loss) -> Callable[[Tensor, Tensor], Tensor]:
    """Derivative of `loss` by the network's output, unit by unit: (outputs [B, A], actions [B, ...]) -> [B, A].

    Under vmap no unit's loss can see another's outputs, so the gradient of their sum holds each unit's own derivative in its row.
    """

    def deltas(outputs: Tensor, actions: Tensor) -> Tensor:
        with torch.enable_grad():
            outputs = outputs.detach().requires_grad_()
            return torch.autograd.grad(vmap(loss)(outputs, actions).sum(), outputs)[0]

    return deltas


def policy_outputs(action_space: gymnasium.Space) -> int:
    """Number of network outputs for an action space: one logit per discrete action, one mean per continuous dimension.

    Raises:
        MucdError: the space is neither Discrete nor Box.
    """
    if isinstance(action_space, gymnasium.spaces.Discrete):
        return int(action_space.n)
    if isinstance(action_space, gymnasium.spaces.Box):
        return int(np.prod(action_space.shape))
    raise MucdError(f"action space {action_space} is not supported: Discrete and Box are")


def training_targets(action_space: gymnasium.Space, actions: np.ndarray) -> np.ndarray:
    """Recorded actions as the losses expect them: discrete ones counted from 0 (int64 [N]), Box ones as float32 [N, k]."""
    if isinstance(action_space, gymnasium.spaces.Discrete):
        return actions.astype(np.int64) - int(action_space.start)
    return actions.reshape(len(actions), -1).astype(np.float32)
