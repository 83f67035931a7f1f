"""Clean-label poison for binary classification after Wang, Mianjy and Arora 2021: labels stay, samples move to where a network takes them for the other class.

Label flips with probability beta are an attack of `mucd_ray.attack`, and so are observations moved by one step against a clone (`moved_observations`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mucd_ray.errors import MucdError
from mucd_ray.robust.network import TwoLayer
from mucd_ray.robust.projections import projected


@dataclass(frozen=True, kw_only=True)
class Moved:
    """How far samples were moved: the largest L2 norm (B), the sum of all (S), and how many samples that touched."""

    per_sample: float
    total: float
    samples: int


def moved(before: Tensor, after: Tensor) -> Moved:
    """Count what was added to samples [n, d], in float64."""
    norms = (after.double() - before.double()).norm(dim=1)
    return Moved(per_sample=float(norms.max()) if len(norms) else 0.0, total=float(norms.sum()), samples=int((norms > 0).sum()))


def check_moved(before: Tensor, after: Tensor, *, per_sample: float | None = None, total: float | None = None) -> Moved:
    """What an attack has added. Raises MucdError where that is more than its budget, or no number."""
    found = moved(before, after)
    for name, spent, budget in (("B", found.per_sample, per_sample), ("S", found.total, total)):
        if not spent <= (float("inf") if budget is None else budget):
            raise MucdError(f"an attack moved samples by {name} = {spent}, and its budget is {budget}: this is a fault of the attack")
    return found


def _spendable(budget: float | None, samples: Tensor) -> float | None:
    """A budget less what rounding may add to it: four roundings, each by half a unit in the last place of samples that have moved."""
    return None if budget is None else max(0.0, budget - 2 * torch.finfo(samples.dtype).eps * (float(samples.double().norm(dim=1).sum()) + budget))


def negated_loss(surrogate: TwoLayer, samples: Tensor, labels: Tensor, *, per_sample: float | None = None, total: float | None = None, steps: int = 40, rate: float = 0.1) -> Tensor:
    """Samples [n, d] moved by projected gradient ascent on -ln(1 + exp(y f(x))), the negated loss of a surrogate that was trained on clean data.

    Its slope vanishes where a sample is wrong already, so that a budget for all (l2,1 ball, regime A) goes to those that are not; with a budget for each (l2,inf ball, regime B) every
    one is moved. `rate` is how far the sample with the largest slope moves in a step, before the projection.

    Raises:
        MucdError: neither budget is given, or one is not a number of at least 0.
    """
    if per_sample is None and total is None:
        raise MucdError("poison without a budget has no limit: give per_sample (B), total (S) or both")
    longest = samples[samples.norm(dim=1).argmax()][None]
    bounds = {"per_sample": _spendable(per_sample, longest), "total": _spendable(total, samples)}
    added = torch.zeros_like(samples)
    for _ in range(steps):
        outputs, gradients = surrogate.outputs_and_gradients(samples + added)
        slopes = labels * torch.sigmoid(labels * outputs)
        largest = float((slopes.abs() * gradients.norm(dim=1)).max())
        added = projected(added - gradients.mul_((slopes * (rate / max(largest, 1e-30)))[:, None]), **bounds)
    after = samples + added
    check_moved(samples, after, per_sample=per_sample, total=total)
    return after


class OnlineAttack:
    """An attacker who sees the network before every step and moves the next sample by B against it, for as long as S lasts: the same ascent, from the present W.

    Args:
        per_sample: B.
        total: S; None: no limit but B.
    """

    def __init__(self, *, per_sample: float, total: float | None = None):
        if not per_sample >= 0 or not (total is None or total >= 0):
            raise MucdError(f"the bounds B = {per_sample} and S = {total} must be numbers of at least 0")
        self.per_sample, self.left = per_sample, float("inf") if total is None else total

    def __call__(self, sample: Tensor, label: float, gradient: Tensor) -> Tensor:
        norm, step = float(gradient.norm()), _spendable(min(self.per_sample, self.left), sample[None])
        if norm == 0 or not step:
            return sample
        after = sample - label * step / norm * gradient
        self.left -= moved(sample[None], after[None]).total
        return after
