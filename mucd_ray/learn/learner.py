"""How parameters move: the algorithm, the network's hidden layers and the optimiser, as plain data."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mucd_ray.errors import MucdError
from mucd_ray.learn.losses import ALGORITHMS

BETA1, BETA2, ADAM_EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True, kw_only=True)
class Learner:
    """Public settings of one training run.

    Everything the optimiser does to the noisy sums is post-processing: it costs no privacy and moves no certificate.

    Attributes:
        algorithm: a name in `losses.ALGORITHMS`.
        hidden: widths of the hidden layers; () is a linear policy.
        optimiser: "sgd" or "adam" (beta 0.9 and 0.999).
        learning_rate: above 0.
        momentum: of SGD, in [0, 1).
        average: share in [0, 1] of the final iterates whose mean is released (Polyak averaging); 0 releases the last one.

    Raises:
        MucdError: a field is outside its range.
    """

    algorithm: str = "bc"
    hidden: tuple[int, ...] = ()
    optimiser: str = "sgd"
    learning_rate: float
    momentum: float = 0.0
    average: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "hidden", tuple(int(width) for width in self.hidden))
        if self.algorithm not in ALGORITHMS:
            raise MucdError(f"algorithm {self.algorithm!r} is unknown: use one of {', '.join(ALGORITHMS)}")
        if self.optimiser not in OPTIMISERS:
            raise MucdError(f"optimiser {self.optimiser!r} is unknown: use one of {', '.join(OPTIMISERS)}")
        if any(width < 1 for width in self.hidden):
            raise MucdError(f"hidden layers {self.hidden} must all have at least 1 unit")
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise MucdError(f"learning rate {self.learning_rate} must be a finite number above 0")
        if not 0 <= self.momentum < 1:
            raise MucdError(f"momentum {self.momentum} is outside [0, 1)")
        if self.momentum and self.optimiser != "sgd":
            raise MucdError(f"momentum {self.momentum} belongs to sgd: leave it at 0 with {self.optimiser}")
        if not 0 <= self.average <= 1:
            raise MucdError(f"average {self.average} is outside [0, 1]: it is the share of final iterates to average")

    def averaged_steps(self, steps: int) -> int:
        """Number of final iterates, out of `steps`, whose mean is released (0: only the last one, unaveraged)."""
        return math.ceil(self.average * steps)


# Each product and sum below is its own torch call. A fused multiply-add (add with alpha, addcmul, lerp) may round differently
# in the vectorised body of an array and in its tail, and then a parameter would depend on its place in the block.


class Sgd:
    """v <- momentum v + g;  x <- x - learning_rate v."""

    def __init__(self, learner: Learner, parameters: Tensor):
        self.learner = learner
        self.velocity = torch.zeros_like(parameters) if learner.momentum else None

    def step(self, parameters: Tensor, gradient: Tensor, step: int) -> None:
        """Update `parameters` in place; `gradient` is used up. `step` counts from 0."""
        if self.velocity is not None:
            gradient.copy_(self.velocity.mul_(self.learner.momentum).add_(gradient))
        parameters.sub_(gradient.mul_(self.learner.learning_rate))


class Adam:
    """Kingma and Ba 2015, algorithm 1, with the two bias corrections folded into the step size and the second moment."""

    def __init__(self, learner: Learner, parameters: Tensor):
        self.learner = learner
        self.first, self.second = torch.zeros_like(parameters), torch.zeros_like(parameters)
        self.scratch = torch.empty_like(parameters)

    def step(self, parameters: Tensor, gradient: Tensor, step: int) -> None:
        """Update `parameters` in place; `gradient` is used up. `step` counts from 0."""
        scratch = self.scratch
        self.first.mul_(BETA1).add_(torch.mul(gradient, 1 - BETA1, out=scratch))
        self.second.mul_(BETA2).add_(gradient.mul_(gradient).mul_(1 - BETA2))
        torch.mul(self.second, 1 / (1 - BETA2 ** (step + 1)), out=scratch).sqrt_().add_(ADAM_EPSILON)
        torch.div(self.first, scratch, out=scratch)
        parameters.sub_(scratch.mul_(self.learner.learning_rate / (1 - BETA1 ** (step + 1))))


OPTIMISERS = {"sgd": Sgd, "adam": Adam}
