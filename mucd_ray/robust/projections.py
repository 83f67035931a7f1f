"""Projections onto what a clean-label attacker may add to n samples: the l2,inf ball (each by at most B), the l2,1 ball (all by at most S), and their intersection."""

import torch
from torch import Tensor

from mucd_ray.errors import MucdError

# Halvings of an interval of float64 numbers, after which its ends are neighbours.
HALVINGS = 1100


def projected(perturbations: Tensor, *, per_sample: float | None = None, total: float | None = None) -> Tensor:
    """The nearest perturbations [n, d] whose L2 norms are at most `per_sample` (B) each and add up to at most `total` (S).

    Only the n norms v change: to clip(v - theta, 0, B) for the least theta >= 0 with which they add up to at most S (the projection onto a capped simplex; without B that of
    Duchi et al. 2008, ICML, Figure 1). Rows keep their directions. theta is rounded up, so that in float64 the sum is not above S.

    Raises:
        MucdError: a bound that is not a number of at least 0.
    """
    for name, bound in (("per sample (B)", per_sample), ("in total (S)", total)):
        if bound is not None and not bound >= 0:
            raise MucdError(f"the bound {name}, {bound}, must be a number of at least 0")
    norms = torch.linalg.vector_norm(perturbations, dim=1, dtype=torch.float64)
    most = float("inf") if per_sample is None else per_sample

    def kept(theta: float) -> Tensor:
        return (norms - theta).clamp(0, most)

    theta = 0.0
    if total is not None and len(norms) and kept(0).sum() > total:
        low, high = 0.0, float(norms.max())
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            if middle in (low, high):
                break
            low, high = (middle, high) if kept(middle).sum() > total else (low, middle)
        theta = high
    scale = torch.where(norms > 0, kept(theta) / norms, 0.0)
    return perturbations * scale.to(perturbations.dtype)[:, None]
