"""Two-layer ReLU networks f(x; a, W) = 1/sqrt(m) sum_s a_s max(0, <w_s, x>) whose first layer alone is trained, by online SGD on the logistic loss (Wang, Mianjy and Arora 2021)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mucd_ray.errors import MucdError

# Samples whose steps wait for one matrix product, and rows whose outputs are computed at a time.
BLOCK, ROWS = 64, 256


@dataclass(frozen=True, kw_only=True)
class TwoLayer:
    """Weights W [m, d] of the first layer and the signs a [m], which stay. No biases."""

    weights: Tensor
    signs: Tensor

    @property
    def width(self) -> int:
        return len(self.signs)

    def outputs(self, samples: Tensor) -> Tensor:
        """f at samples [n, d]: [n]."""
        return torch.cat([(part @ self.weights.T).relu() @ self.signs for part in samples.split(ROWS)]) / self.width**0.5

    def input_gradients(self, samples: Tensor) -> Tensor:
        """The gradients of f with respect to samples [n, d]: [n, d]."""
        return self.outputs_and_gradients(samples)[1]

    def outputs_and_gradients(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Both of them, by two matrix products."""
        outputs, gradients = [], []
        for part in samples.split(ROWS):
            before = part @ self.weights.T
            outputs.append(before.clamp_min(0) @ self.signs)
            gradients.append(((before > 0) * self.signs) @ self.weights)
        return torch.cat(outputs) / self.width**0.5, torch.cat(gradients).div_(self.width**0.5)

    def accuracy(self, samples: Tensor, labels: Tensor) -> float:
        """The share of samples [n, d] with labels of -1 and 1 [n] for which y f(x) > 0."""
        return float((labels * self.outputs(samples) > 0).double().mean())


def initial(width: int, dimension: int, seed: int, dtype: torch.dtype = torch.float32) -> TwoLayer:
    """Independent standard normal weights and fair signs. Raises MucdError for a width or a dimension below 1."""
    if width < 1 or dimension < 1:
        raise MucdError(f"a network of width {width} on inputs of {dimension} numbers is none: use at least 1")
    generator = torch.Generator().manual_seed(seed)
    signs = 2.0 * torch.randint(2, (width,), generator=generator) - 1
    return TwoLayer(weights=torch.randn(width, dimension, generator=generator, dtype=dtype), signs=signs.to(dtype))


# What an attacker who sees every step makes of a sample [d] with this label, when the gradient of f with respect to it is this [d].
Online = Callable[[Tensor, float, Tensor], Tensor]


def trained(network: TwoLayer, samples: Tensor, labels: Tensor, *, rate: float = 1.0, online: Online | None = None) -> tuple[TwoLayer, Tensor]:
    """One pass of SGD over samples [n, d] with labels of -1 and 1 [n], one sample a step: W <- W - rate grad ln(1 + exp(-y f(x; W))).

    Returns the network after the last step, and the samples that it saw, which differ from the given ones where there is an online attacker.

    A step adds a multiple of its sample to every active row, so that the steps of a block are inner products with the samples before it and two matrix products with W: the same
    numbers as step by step up to the order of sums, at a tenth of the time. An online attacker sees W itself before every step, and blocks have one sample.

    Raises:
        MucdError: shapes or labels that do not fit.
    """
    if samples.ndim != 2 or labels.shape != samples.shape[:1] or samples.shape[1] != network.weights.shape[1] or not bool((labels.abs() == 1).all()):
        raise MucdError(f"samples {tuple(samples.shape)} with labels {tuple(labels.shape)} do not fit: [n, {network.weights.shape[1]}] with labels of -1 and 1 [n] are wanted")
    weights, signs, seen = network.weights.clone(), network.signs / network.width**0.5, samples.clone()
    block = BLOCK if online is None else 1
    for start in range(0, len(samples), block):
        x, y = seen[start : start + block], labels[start : start + block]
        if online is not None:
            x[0] = online(x[0].clone(), float(y[0]), TwoLayer(weights=weights, signs=network.signs).input_gradients(x)[0])
        before, products = x @ weights.T, x @ x.T
        # Row j: the multiples of x_j that step j adds to the rows of W.
        steps = torch.zeros_like(before)
        for j in range(len(x)):
            z = before[j] + products[j, :j] @ steps[:j]
            z = z.relu_()
            slope = rate * y[j] * torch.sigmoid(-y[j] * (z @ signs))
            torch.mul(signs, z > 0, out=steps[j]).mul_(slope)
        weights.addmm_(steps.T, x)
    return TwoLayer(weights=weights, signs=network.signs), seen
