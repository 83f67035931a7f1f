"""How parameters move: the algorithm and its constants, the hidden layers, the optimiser and the local update, as plain data."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mucd_ray.errors import MucdError
from mucd_ray.learn.algorithms import NAMES

NETWORKS = ("dense", "convolutional", "transformer")
BETA1, BETA2, ADAM_EPSILON = 0.9, 0.999, 1e-8
WIDEST = 1 << 16
# Of local updates.
MOST_STEPS = 10_000_000


@dataclass(frozen=True, kw_only=True)
class LocalUpdate:
    """What one trajectory does with the current parameters before its update is clipped (DP-FedAvg, McMahan et al. 2018).

    Attributes:
        cap: most transitions of a trajectory that one step looks at. Of a longer one, `cap` evenly spaced transitions from a random
            start take part, drawn anew in every step; each is as likely as any other.
        steps: gradient steps on the mean loss of these transitions. The update is the sum of their gradients.
        learning_rate: of these steps; with one step it has no effect.
        min_return: trajectories with a smaller undiscounted return count as zero, or None. A public threshold on the unit's own return.

    Raises:
        MucdError: a field is outside its range.
    """

    cap: int = 200
    steps: int = 1
    learning_rate: float = 0.1
    min_return: float | None = None

    def __post_init__(self):
        for name in ("cap", "steps"):
            value = getattr(self, name)
            if not 1 <= value <= MOST_STEPS or int(value) != value:
                raise MucdError(f"{name} {str(value)[:60]} of the local update must be a whole number, at least 1 and at most {MOST_STEPS:,}")
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise MucdError(f"local learning rate {self.learning_rate} must be a finite number above 0")
        if self.min_return is not None and not math.isfinite(self.min_return):
            raise MucdError(f"least return {self.min_return} must be a finite number")


@dataclass(frozen=True, kw_only=True)
class Learner:
    """Public settings of one training run.

    Everything the optimiser does to the noisy sums is post-processing: it costs no privacy and moves no certificate.

    Attributes:
        algorithm: a name in the registry `algorithms`.
        constants: the algorithm's own public numbers by name (`Algorithm.constants`); defaults for those left out.
        network: "dense", "convolutional" for images (`convolutional`), trained by `engines/modules.py` with noise and by `engines/plain.py` without, or "transformer" over
            the last observations (`transformer`), trained by `engines/plain.py`.
        hidden: widths of the hidden layers of a dense network; () is a linear policy or a linear value function.
        random_features: number of public random Fourier features that replace the observation's features; 0 for none.
        bandwidth: distance of observations over which these features change.
        optimiser: "sgd" or "adam" (beta 0.9 and 0.999).
        learning_rate: above 0.
        momentum: of SGD, in [0, 1).
        average: share in [0, 1] of the final iterates whose mean is released (Polyak averaging); 0 releases the last one.
        local: what a trajectory does; not read where units are transitions.

    Raises:
        MucdError: a field is outside its range.
    """

    algorithm: str = "bc"
    constants: Mapping[str, float] = field(default_factory=dict)
    network: str = "dense"
    hidden: tuple[int, ...] = ()
    random_features: int = 0
    bandwidth: float = 1.0
    optimiser: str = "sgd"
    learning_rate: float
    momentum: float = 0.0
    average: float = 0.0
    local: LocalUpdate = LocalUpdate()

    def __post_init__(self):
        object.__setattr__(self, "hidden", tuple(int(width) for width in self.hidden))
        object.__setattr__(self, "constants", dict(self.constants))
        if self.algorithm not in NAMES:
            raise MucdError(f"algorithm {self.algorithm!r} is unknown: use one of {', '.join(NAMES)}")
        if self.optimiser not in OPTIMISERS:
            raise MucdError(f"optimiser {self.optimiser!r} is unknown: use one of {', '.join(OPTIMISERS)}")
        if self.network not in NETWORKS:
            raise MucdError(f"network {self.network!r} is unknown: use one of {', '.join(NETWORKS)}")
        if self.network != "dense" and (self.hidden or self.random_features):
            raise MucdError(f"a {self.network} network has its own layers: leave out hidden layers and random features")
        if self.algorithm == "dt" and self.network != "transformer":
            raise MucdError(f"algorithm 'dt' is a transformer, not a {self.network} network: leave --network out, or use rvs, which is told the return, too")
        if any(not 1 <= width <= WIDEST for width in self.hidden):
            raise MucdError(f"hidden layers {self.hidden} must all have at least 1 unit, and at most {WIDEST:,}")
        if self.random_features > WIDEST:
            raise MucdError(f"random features {str(self.random_features)[:60]} are more than {WIDEST:,}, the widest layer: use fewer")
        if self.random_features < 0 or not (self.bandwidth > 0 and math.isfinite(self.bandwidth)):
            raise MucdError(f"random features {self.random_features} must be 0 or more and their bandwidth {self.bandwidth} finite and above 0")
        if self.bandwidth != 1.0 and not self.random_features:
            raise MucdError(f"bandwidth {self.bandwidth} is about random features: give their number, too, or leave it out")
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

    def step(self, parameters: Tensor, gradient: Tensor, step: int | Tensor) -> None:
        """Update `parameters` in place; `gradient` is used up. `step` counts from 0; it may be a float64 tensor []."""
        if self.velocity is not None:
            gradient.copy_(self.velocity.mul_(self.learner.momentum).add_(gradient))
        parameters.sub_(gradient.mul_(self.learner.learning_rate))


class Adam:
    """Kingma and Ba 2015, algorithm 1, with the two bias corrections folded into the step size and the second moment."""

    def __init__(self, learner: Learner, parameters: Tensor):
        self.learner = learner
        self.first, self.second = torch.zeros_like(parameters), torch.zeros_like(parameters)
        self.scratch = torch.empty_like(parameters)

    def step(self, parameters: Tensor, gradient: Tensor, step: int | Tensor) -> None:
        """Update `parameters` in place; `gradient` is used up. `step` counts from 0; it may be a float64 tensor []."""
        scratch = self.scratch
        self.first.mul_(BETA1).add_(torch.mul(gradient, 1 - BETA1, out=scratch))
        self.second.mul_(BETA2).add_(gradient.mul_(gradient).mul_(1 - BETA2))
        torch.mul(self.second, 1 / (1 - BETA2 ** (step + 1)), out=scratch).sqrt_().add_(ADAM_EPSILON)
        torch.div(self.first, scratch, out=scratch)
        parameters.sub_(scratch.mul_(self.learner.learning_rate / (1 - BETA1 ** (step + 1))))


OPTIMISERS: dict[str, type[Sgd | Adam]] = {"sgd": Sgd, "adam": Adam}
