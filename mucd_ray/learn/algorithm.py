"""What an offline learner is: a pure loss on one transition, and which networks it looks at. A new algorithm is one file in
`algorithms/` and one line in its registry.

A loss sees what networks say about ONE transition and that transition, never a batch: a batch mean or a running statistic inside a
loss would let one poisoned unit reach the vectors of the others, and the sensitivity bound would be void.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from mucd_ray.errors import MucdError

Constants = Mapping[str, float]


class Transition(NamedTuple):
    """One transition beside its observations: action (integer scalar, integers [k] of several components, or [k] within [-1, 1] where bounds are known), scaled reward, and
    keep = 0 where the episode terminated, else 1."""

    action: Tensor
    reward: Tensor
    keep: Tensor


@dataclass(frozen=True, kw_only=True)
class Tower:
    """One of an algorithm's fully connected networks: its name, its number of outputs, and whether it takes (s, a) or s alone."""

    name: str
    outputs: int
    takes_action: bool = False


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A network's outputs that enter the loss as constants.

    Attributes:
        tower: name of the network.
        target: its target copy instead of the network itself.
        next: at the next observation instead of this one.
        policy: a tower that takes actions gets tanh of the tower "policy" there (of its target copy if `target`), not the recorded one.
        gradient: the derivative of the tower's only output by the action, [k], instead of the output.
    """

    tower: str
    target: bool = False
    next: bool = False
    policy: bool = False
    gradient: bool = False


@dataclass(frozen=True, kw_only=True)
class Constant:
    """A public number of an algorithm: default (None: it follows from the environment card), bounds and meaning."""

    default: float | None
    low: float
    high: float
    meaning: str
    whole: bool = False


# loss(outputs [O], context [K], transition, constants) -> scalar. Outputs are those of all towers, one after the other, at this
# observation and action; context is what the evaluations give, one after the other.
Loss = Callable[[Tensor, Tensor, Transition, Constants], Tensor]
# The loss' derivative by the outputs for the fused engine, in the part of Python that Numba compiles: delta(outputs float32 [O],
# context float32 [K], action, reward, keep, constants float32 in the order of `Algorithm.constants`, then `Problem.components`, deltas float32 [O]) writes
# deltas. Where the loss' derivative has a non-finite component, so has delta, and only there: both engines count that unit as zero.
Delta = Callable[..., None]


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """An offline learner for one kind of action. One step releases one vector per unit: the gradient by all towers' parameters together.

    Attributes:
        towers: (actions, constants) -> the networks; `actions` counts discrete actions, the values of all components, or continuous dimensions.
        loss, delta: see `Loss` and `Delta`; without a delta the torch engine trains.
        context: the evaluations that the loss reads.
        constants: its public numbers by name, beside the learner's.
        policy: name of the tower that acts.
        conditioned: whether networks are told, beside the observation, the return of the transition's whole trajectory; the policy is told a constant in its place.
        recalls: whether policies see the last steps of an episode, each with the action and the rewards before it (`EnvironmentCard.with_past`), not observations alone.
        head: (outputs float [..., O] of that tower, actions, constants) -> what the policy prefers: one score per discrete action, or
            the action in [-1, 1] where bounds are known; row by row, so that no row depends on its neighbours.
        released: what is released in each step and why that is sound, in a sentence for the documentation.
    """

    towers: Callable[[int, Constants], tuple[Tower, ...]]
    loss: Loss
    delta: Delta | None = None
    context: tuple[Evaluation, ...] = ()
    constants: Mapping[str, Constant] = field(default_factory=dict)
    policy: str
    conditioned: bool = False
    recalls: bool = False
    head: Callable[[np.ndarray, int, Constants], np.ndarray] = lambda outputs, actions, constants: outputs
    released: str

    @property
    def has_target(self) -> bool:
        """Whether a target copy of the parameters is kept; it follows with the constant `target_rate`."""
        return any(evaluation.target for evaluation in self.context)

    @property
    def looks_ahead(self) -> bool:
        """Whether the next observation is read."""
        return any(evaluation.next for evaluation in self.context)

    def filled(self, given: Constants) -> dict[str, float]:
        """All constants: those given, and defaults for the others; without those that have to follow from the card.

        Raises:
            MucdError: an unknown name or a value outside its range.
        """
        unknown = sorted(set(given) - set(self.constants))
        if unknown:
            raise MucdError(f"constant {unknown[0]!r} is unknown to this algorithm: it has {', '.join(self.constants) or 'none'}")
        filled = {}
        for name, constant in self.constants.items():
            value = given.get(name, constant.default)
            if value is None:
                continue
            if not (constant.low <= value <= constant.high and (not constant.whole or value == int(value))):
                raise MucdError(f"constant {name} = {value} must be {'a whole number ' if constant.whole else ''}in [{constant.low:g}, {constant.high:g}]: {constant.meaning}")
            filled[name] = int(value) if constant.whole else float(value)
        return filled


# Constants that several algorithms share.
DISCOUNT = Constant(default=0.99, low=0.0, high=1.0, meaning="discount of the values that are learned")
TARGET_RATE = Constant(default=0.05, low=0.0, high=1.0, meaning="share by which the target copy follows in each step")
VALUE_CONSTANTS = {"discount": DISCOUNT, "target_rate": TARGET_RATE}


def huber(error: Tensor) -> Tensor:
    """Huber's loss with threshold 1: quadratic near 0, slope 1 beyond."""
    size = error.abs()
    return torch.where(size <= 1.0, 0.5 * error * error, size - 0.5)


def pick(rows: Tensor, index: Tensor) -> Tensor:
    """Row `index` (integer scalar) of rows [A, ...] -> [...]; unlike plain indexing it runs under vmap."""
    return rows.gather(0, index.expand(1, *rows.shape[1:]))[0]


def output_deltas(loss: Loss, constants: Constants) -> Callable[[Tensor, Tensor, Transition], Tensor]:
    """Derivative of `loss` by the outputs, row by row: (outputs [B, O], context [B, K], transitions of [B, ...]) -> [B, O].

    Under vmap no row's loss can see another's outputs, so the gradient of their sum holds each row's own derivative in its row.
    """

    def one(outputs, context, transition):
        return loss(outputs, context, transition, constants)

    def deltas(outputs: Tensor, context: Tensor, transitions: Transition) -> Tensor:
        with torch.enable_grad():
            outputs = outputs.detach().requires_grad_()
            return torch.autograd.grad(vmap(one)(outputs, context, transitions).sum(), outputs)[0]

    return deltas
