"""Clipping one vector per unit without forming it.

For a linear layer the gradient of one unit is the outer product of delta (derivative by the layer's output) and the layer's
input, and delta itself for the bias, so its squared norm is |delta|^2 (|input|^2 + 1); the norm of the unit's whole vector is
the root of the sum over layers, and the clipped sum over units is one matrix product per layer of re-scaled deltas and
inputs (Goodfellow 2015, arXiv 1510.01799; Li et al. 2022, arXiv 2110.05679). One row per unit and layer is assumed.
"""

from functools import reduce

import torch
from torch import Tensor

# Rounding in the float32 norm and factor must not let a unit exceed the clip norm. A running sum of n squares may lose half a unit
# in the last place with every term, or with every eight terms if these are summed first; an attacker can see to it that it does.
ROUNDING = 4e-6
ROUNDING_PER_TERM = 2.0**-26
# Squares of components below 1e-19 vanish in float32; adding this makes the norm an upper bound even then.
UNDERFLOW = 1e-30
# Below 1e-38 float32 has ever fewer digits, and a rounded factor might let a unit exceed the clip norm.
LEAST_FACTOR = 1e-37


def clip_factors(squared_norms: Tensor, clip_norm: float) -> Tensor:
    """min(1, clip_norm / norm) per unit, zero where the norm is not finite or exceeds 1e37 clip norms: [...] -> [...].

    Formal guarantee: factor * (a unit's vector) has norm at most `clip_norm`, or the factor is zero. A unit with NaN, inf or
    overflowing components thus counts as the zero vector, provided that its rows are zeroed too (zero times NaN is NaN).
    """
    factors = torch.clamp(clip_norm * (1.0 - ROUNDING) / torch.sqrt(squared_norms), max=1.0)
    # No comparison with NaN is true.
    return torch.where(factors >= LEAST_FACTOR, factors, 0.0)


def squared_norms(deltas: list[Tensor], inputs: list[Tensor]) -> Tensor:
    """Squared norm of each unit's vector from its deltas [..., out] and inputs [..., in], layer by layer -> [...]; rounded up."""

    def of_layer(delta: Tensor, layer_input: Tensor) -> Tensor:
        weight_and_bias = row_squares(layer_input).add_(1.0)
        allowance = 1.0 + ROUNDING_PER_TERM * (layer_input.shape[-1] + delta.shape[-1])
        return row_squares(delta).add_(UNDERFLOW).mul_(weight_and_bias).mul_(allowance)

    return reduce(Tensor.add_, map(of_layer, deltas, inputs))


def row_squares(rows: Tensor) -> Tensor:
    """Sum of squares over the last axis: [..., n] -> [...]."""
    return torch.linalg.vector_norm(rows, dim=-1).square_()
