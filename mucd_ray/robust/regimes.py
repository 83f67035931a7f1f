"""When SGD on two-layer networks withstands poison: the three regimes of Wang, Mianjy and Arora 2021 (ICML, PMLR 139) as their authors' poster states them, and a bound with all constants.

The published statements hide constants ("up to a constant", and logarithms in O~): with every hidden one taken as 1 they are orders of magnitude, and never a certificate. `explicit` is a
theorem of docs/robust.md, proven there.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mucd_ray.errors import MucdError

# With inputs of norm 1 and |v(z)| <= 1, half of all z have <z, x> >= 0: no distribution has a larger margin.
LARGEST_MARGIN = 0.5
# Below it ln(sqrt(n)/4) is negative, and its square grows as n falls.
FEWEST = 16
WIDEST = 1 << 200


@dataclass(frozen=True, kw_only=True)
class Condition:
    """`left` <= `right`, under the name that says both."""

    name: str
    left: float
    right: float

    @property
    def holds(self) -> bool:
        return self.left <= self.right


@dataclass(frozen=True, kw_only=True)
class Statement:
    """With probability at least 1 - delta the error, averaged over the n networks that SGD passes through, is at most `bound`, if all conditions hold: with hidden constants taken as 1."""

    regime: str
    bound: float
    conditions: tuple[Condition, ...]

    @property
    def holds(self) -> bool:
        return all(condition.holds for condition in self.conditions)

    def __str__(self) -> str:
        lines = [f"{condition.name}: {condition.left:.4g} <= {condition.right:.4g}: {'holds' if condition.holds else 'does not hold'}" for condition in self.conditions]
        return "\n".join([f"regime {self.regime}, hidden constants and logarithms taken as 1: no certificate", *lines, f"mean error of the iterates: {self.bound:.4g}{', which says nothing' if self.bound >= 1 else ''}"])


def regime_a(*, samples: int, width: int, dimension: int, margin: float, per_sample: float, total: float, delta: float) -> Statement:
    """Clean labels, large perturbations of few samples: (ln^2(sqrt(n)/4) + ln(24 n/delta)) / (sqrt(n) gamma^2), if B <= O~(gamma/sqrt(d)) and O~(1/gamma^8) <= m <= O~(n/(gamma^4 S^2)).

    Args:
        samples: n, at least 16.
        width: m.
        dimension: d of the inputs, whose norm is 1.
        margin: gamma in (0, 1/2] of the assumption (docs/robust.md).
        per_sample: B, the largest L2 norm of what is added to a sample.
        total: S, the sum of these norms.
        delta: probability that the statement may be wrong.

    Raises:
        MucdError: a number is outside its range.
    """
    _check(samples=samples, width=width, dimension=dimension, margin=margin, delta=delta, per_sample=per_sample, total=total)
    return Statement(
        regime="A",
        bound=_logarithms(24, samples, delta) / (math.sqrt(samples) * margin**2),
        conditions=(
            Condition(name="B <= gamma / sqrt(d)", left=per_sample, right=margin / math.sqrt(dimension)),
            _wide_enough(width, margin),
            Condition(name="m <= n / (gamma^4 S^2)", left=width, right=samples / margin**4 / total / total if total else math.inf),
        ),
    )


def regime_b(*, samples: int, width: int, dimension: int, margin: float, per_sample: float, delta: float) -> Statement:
    """Clean labels, small perturbations of any number of samples: (ln^2(sqrt(n)/4) + ln(24 n/delta)) / (n gamma^2), if m >= O~(1/gamma^8) and
    B <= min{1/(sqrt(m d) + sqrt(m ln(m/delta))), gamma/(gamma + sqrt(d) + sqrt(ln(m n/delta)))}. Arguments and errors as of `regime_a`."""
    _check(samples=samples, width=width, dimension=dimension, margin=margin, delta=delta, per_sample=per_sample)
    return Statement(
        regime="B",
        bound=_logarithms(24, samples, delta) / (samples * margin**2),
        conditions=(
            _wide_enough(width, margin),
            Condition(name="B <= 1 / (sqrt(m d) + sqrt(m ln(m/delta)))", left=per_sample, right=1 / (math.sqrt(width * dimension) + math.sqrt(width * math.log(width / delta)))),
            Condition(name="B <= gamma / (gamma + sqrt(d) + sqrt(ln(m n/delta)))", left=per_sample, right=margin / (margin + math.sqrt(dimension) + math.sqrt(math.log(width * samples / delta)))),
        ),
    )


def regime_c(*, samples: int, width: int, margin: float, flip: float, delta: float) -> Statement:
    """Labels flipped with probability beta each: (ln^2(sqrt(n)/4) + ln(16 n/delta)) / (sqrt(n) gamma^2), if m >= O~(1/gamma^8) and
    beta <= (ln(n/delta) + ln^2 n) / ((sqrt(ln(n/delta)) + gamma^3 sqrt(m) (1 + gamma)) gamma^2 sqrt(n)). Arguments and errors as of `regime_a`; `flip` is beta."""
    _check(samples=samples, width=width, margin=margin, delta=delta, flip=flip)
    logarithm = math.log(samples / delta)
    most = (logarithm + math.log(samples) ** 2) / ((math.sqrt(logarithm) + margin**3 * math.sqrt(width) * (1 + margin)) * margin**2 * math.sqrt(samples))
    return Statement(
        regime="C",
        bound=_logarithms(16, samples, delta) / (math.sqrt(samples) * margin**2),
        conditions=(
            _wide_enough(width, margin),
            Condition(name="beta <= (ln(n/delta) + ln^2(n)) / ((sqrt(ln(n/delta)) + gamma^3 sqrt(m) (1 + gamma)) gamma^2 sqrt(n))", left=flip, right=most),
        ),
    )


def widths(regime: Callable[..., Statement], **inputs) -> tuple[int, int] | None:
    """The least and the largest width for which all conditions of a regime hold, its other inputs given; None if there is none. Larger ones than 2^200 are not looked for."""
    least = math.ceil(1 / inputs["margin"] ** 8)
    if not regime(width=least, **inputs).holds:
        return None
    # All but the lower bound hold for narrower networks if they do for wider ones.
    low, high = least, WIDEST
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if regime(width=middle, **inputs).holds else (low, middle - 1)
    return least, low


@dataclass(frozen=True, kw_only=True)
class Explicit:
    """What `explicit` shows, with probability at least 1 - delta.

    Attributes:
        error: a bound on the mean over i < n of P[y f(x; W_i) <= 0]; 1 where nothing better is shown.
        margin: what is left of gamma at every step.
        movement: rho, the farthest that a row of W has moved.
        scale: of the free parameter lambda, the best of a fixed grid.
    """

    error: float
    margin: float
    movement: float
    scale: float


def explicit(*, samples: int, width: int, dimension: int, margin: float, rate: float, delta: float, per_sample: float = 0.0, total: float | None = None, flips: int = 0) -> Explicit:
    """A bound with all constants for one pass of SGD with a fixed rate, against an attacker who moves each sample by at most B, all by at most S, and flips at most `flips` labels (docs/robust.md, "A bound with all constants").

    Arguments as of `regime_a`, `total` None where B alone limits it; `rate` is eta, with eta (1 + B)^2 < 2. The attacker may know W and all that was drawn, but not what comes.

    Raises:
        MucdError: a number is outside its range.
    """
    total = samples * per_sample if total is None else min(total, samples * per_sample)
    _check(samples=samples, width=width, dimension=dimension, margin=margin, delta=delta, per_sample=per_sample, total=total)
    if not 0 < rate * (1 + per_sample) ** 2 < 2 or flips < 0:
        raise MucdError(f"rate {rate} and flips {flips}: rate (1 + B)^2 must be in (0, 2), and flips at least 0")
    longest, root = 1 + per_sample, math.sqrt(width)
    row = math.sqrt(dimension) + math.sqrt(2 * math.log(5 * width / delta))
    movement = samples * rate * longest / root
    turned = min(1.0, (movement * longest + row * per_sample) * math.sqrt(2 / math.pi) + math.sqrt(math.log(5 * samples / delta) / (2 * width)))
    left = margin - math.sqrt(2 * math.log(5 * samples / delta) / width) - turned - per_sample
    start = math.sqrt(2 * math.log(10 * samples / delta)) + root * turned * movement * longest
    scale = np.geomspace(1e-2, 1e12, 2000)
    clean, flipped = np.logaddexp(0, start - scale * left), math.log(2) + scale * longest + start
    best, at = float(samples), 0.0
    # What was added costs a loss at most its length times that of W's rows (losses are 1-Lipschitz), or a factor of the exponential of that.
    for factor, added, growth, after in (
        (1.0, root * row * total, 1.0, root * (row + movement) * total),
        (_power(root * row * per_sample), flips * root * row * per_sample, _power(root * (row + movement) * per_sample), 0.0),
    ):
        with np.errstate(over="ignore"):
            losses = (samples * factor * clean + flips * flipped + added + scale**2 / (2 * rate)) / (1 - rate * longest**2 / 2)
            mistakes = (growth * losses + after) / math.log(2) + flips
        if mistakes.min() < best:
            best, at = float(mistakes.min()), float(scale[mistakes.argmin()])
    return Explicit(error=min(1.0, (best + math.log(5 / delta)) / ((1 - math.exp(-1)) * samples)), margin=left, movement=movement, scale=at)


def _power(exponent: float) -> float:
    return math.exp(min(exponent, 600.0))  # already far above any number of mistakes


def _logarithms(factor: float, samples: int, delta: float) -> float:
    return math.log(math.sqrt(samples) / 4) ** 2 + math.log(factor * samples / delta)


def _wide_enough(width: int, margin: float) -> Condition:
    return Condition(name="1 / gamma^8 <= m", left=1 / margin**8, right=width)


RANGES = {
    "samples": (FEWEST, math.inf, "a number of samples, at least 16"),
    "width": (1, math.inf, "a number of neurons, at least 1"),
    "dimension": (1, math.inf, "a number of inputs, at least 1"),
    "margin": (1e-6, LARGEST_MARGIN, "at least 1e-6 and at most 1/2, since no distribution on inputs of norm 1 has a larger one"),
    "delta": (1e-300, 1 - 1e-12, "a probability between 0 and 1, for example 0.05"),
    "per_sample": (0, math.inf, "a length of at least 0"),
    "total": (0, math.inf, "a length of at least 0"),
    "flip": (0, 1, "a probability"),
}


def _check(**values: float) -> None:
    for name, value in values.items():
        low, high, wanted = RANGES[name]
        if not low <= value <= high or value == math.inf:
            raise MucdError(f"{name} {value} must be {wanted}")
