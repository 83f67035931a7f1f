"""Composition: from one step's pair of mixtures to the trade-off curve of T steps, between rigorous brackets.

Formal guarantees. `pessimistic` splits every cell of the real line into two atoms on a grid of losses, with the cell's exact
masses under P and under Q and losses that bracket the cell's: a mean-preserving spread of the likelihood ratio, so the
discrete pair dominates the exact one (Doroshenko et al. 2022, arXiv 2207.04380, build theirs the same way) and so do its
T-fold compositions. All probability that the computation leaves out (tails, FFT window, rounding) is added to the mass of
infinite loss. `attainable_curve` goes the other way: it is the exact operating curve of a test that an attacker could run,
which rounds each step's loss to the grid and thresholds the sum: for p up to 1 - 1e-9 no true guarantee can lie above it.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy import fft

from mucd_ray.mechanism.mixture import Mixture

# Grid points per standard deviation of one step's loss. Splitting a cell adds about step^2/6 to the variance of each step's
# loss, 1/(6*32^2) = 0.02 % of it, whatever the number of steps.
RESOLUTION = 32
MAX_CELLS = 1 << 21
# Probability outside the FFT window, per side, and an allowance for floating-point error: of the FFT, and of one step's cells.
WINDOW_TAIL = 1e-12
ROUNDING = 1e-9
ROUNDING_PER_STEP = 1e-12
SMALLEST = 1e-290
# The grid of a pair that hardly differs.
LEAST_STEP = 1e-9


@dataclass(frozen=True, kw_only=True)
class LossDistribution:
    """Distribution under P of the privacy loss log p/q, on the grid step * (start, start+1, ...).

    `masses` [n] under P, and `infinite`, the mass under P of infinite loss.
    """

    step: float
    start: int
    masses: np.ndarray
    infinite: float

    @property
    def losses(self) -> np.ndarray:
        return (self.start + np.arange(len(self.masses))) * self.step

    def compose(self, steps: int) -> "LossDistribution":
        """The loss of `steps` independent steps: the T-fold convolution by FFT."""
        if steps == 1:
            return replace(self, infinite=self.infinite + _left_out(1))
        start, (masses,), cut = _without_tails(self.start, self.masses, [self.masses], steps)
        low, size = _window(self.step, start, masses, steps)
        return replace(
            self,
            start=low,
            masses=_self_convolve(masses, start, steps, low, size),
            infinite=-np.expm1(steps * np.log1p(-self.infinite - cut)) + _left_out(steps),
        )

    def renyi_divergence(self, orders: np.ndarray) -> np.ndarray:
        """D_alpha(P||Q) of the part with finite loss, for orders alpha > 1 [m] -> [m] (Mironov 2017, Definition 3)."""
        with np.errstate(divide="ignore"):
            log_masses = np.log(self.masses)
        exponents = log_masses + np.multiply.outer(orders - 1, self.losses)
        largest = exponents.max(axis=1)
        return (np.log(np.exp(exponents - largest[:, None]).sum(axis=1)) + largest) / (orders - 1)

    def tradeoff_curve(self) -> "TradeoffCurve":
        """Neyman-Pearson: to collect probability under P at the least cost under Q, take the largest losses first."""
        under_p = self.infinite + np.cumsum(self.masses[::-1])
        with np.errstate(divide="ignore"):
            under_q = np.cumsum(np.exp(np.minimum(np.log(self.masses) - self.losses, 0.0))[::-1])
        return TradeoffCurve(under_p=np.append(self.infinite, under_p), under_q=np.append(0.0, under_q))


@dataclass(frozen=True, kw_only=True)
class TradeoffCurve:
    """Least probability under Q of an event, as a function of its probability under P: convex, increasing, below the diagonal.

    Piecewise linear through the points (under_p, under_q), both increasing.
    """

    under_p: np.ndarray
    under_q: np.ndarray

    def __call__(self, p):
        """p in [0, 1], any shape -> the bound, same shape."""
        return np.minimum(np.interp(p, self.under_p, self.under_q, left=0.0), p)

    def profile(self, eps: np.ndarray) -> np.ndarray:
        """delta(eps) = sup over events of P(S) - e^{eps} Q(S), at eps [m] -> [m]: attained at a vertex of the curve."""
        return np.array([np.max(self.under_p - np.exp(e) * self.under_q) for e in eps])


def pessimistic(*, removed: int, inserted: int, sample_rate: float, sigma: float, resolution: int = RESOLUTION) -> LossDistribution:
    """One step's loss between the pair of `mixture.py`, discretised to the safe side."""
    step, losses, p, q, outside = _cells(removed, inserted, sample_rate, sigma, resolution)
    low = np.floor(losses[:-1] / step)
    high = np.maximum(np.ceil(losses[1:] / step), low + 1)
    # Solve a + b = p and a e^{-low} + b e^{-high} = q for the two atoms of each cell.
    with np.errstate(divide="ignore", over="ignore"):
        at_high = np.clip((p - np.exp(np.log(q) + low * step)) / -np.expm1((low - high) * step), 0.0, p)
    start, size = int(low.min()), int(high.max() - low.min()) + 1
    masses = np.bincount((low - start).astype(int), p - at_high, size) + np.bincount((high - start).astype(int), at_high, size)
    return LossDistribution(step=step, start=start, masses=masses, infinite=outside)


def attainable_curve(
    *, removed: int, inserted: int, sample_rate: float, sigma: float, steps: int, resolution: int = RESOLUTION
) -> TradeoffCurve:
    """Operating curve of a test that can be run on the outputs: the exact trade-off curve is at or below it."""
    step, _, p, q, _ = _cells(removed, inserted, sample_rate, sigma, resolution)
    kept = (p > SMALLEST) & (q > SMALLEST)
    p, q = p[kept], q[kept]
    if p.sum() <= WINDOW_TAIL:
        # P and Q hardly overlap: only the trivial upper bound is left.
        return TradeoffCurve(under_p=np.array([0.0, 1.0]), under_q=np.array([0.0, 1.0]))
    index = np.rint(np.log(p / q) / step).astype(int)
    start, size = index.min(), int(np.ptp(index)) + 1
    p, q = np.bincount(index - start, p, size), np.bincount(index - start, q, size)
    # The test never rejects when a step's loss is far out: its probabilities below are exact all the same.
    start, (p, q), _ = _without_tails(start, p, [p, q], steps)
    low, width = _window(step, start, p, steps)
    low_q, width_q = _window(step, start, q, steps)
    high = max(low + width, low_q + width_q)
    low = min(low, low_q)
    size = fft.next_fast_len(high - low, real=True)
    under_p, under_q = (np.cumsum(_self_convolve(m, start, steps, low, size)[::-1]) for m in (p, q))
    slack = _left_out(steps)
    # The last test always rejects.
    return TradeoffCurve(
        under_p=np.concatenate([[0.0], np.minimum(under_p, 1.0), [1.0]]), under_q=np.concatenate([[0.0], np.minimum(under_q + slack, 1.0), [1.0]])
    )


def _cells(removed, inserted, sample_rate, sigma, resolution):
    """Grid step; losses at the cell edges [n+1], increasing; masses of the cells under P and Q [n]; P outside all cells."""
    under_p = Mixture.of_units(removed, sample_rate, sigma, +1)
    under_q = Mixture.of_units(inserted, sample_rate, sigma, -1)

    def loss(x):
        return under_p.log_ratio_to_noise(x) - under_q.log_ratio_to_noise(x)

    # Where P has no mass the loss is minus infinity at worst, which costs no guarantee: only P's support is cut into cells.
    coarse = np.linspace(*under_p.support(), 4001)
    coarse_losses = loss(coarse)
    masses, middle = under_p.masses(coarse), (coarse_losses[1:] + coarse_losses[:-1]) / 2
    deviation = np.sqrt(masses @ (middle - masses @ middle / masses.sum()) ** 2)
    span = coarse_losses[-1] - coarse_losses[0]
    step = max(deviation / resolution, span / MAX_CELLS, LEAST_STEP)
    # Edges a little before and after every grid value: each long cell lies between two neighbouring grid values, and only the
    # short cells across a grid value are spread over two grid steps.
    grid = np.arange(np.ceil(coarse_losses[0] / step), np.floor(coarse_losses[-1] / step) + 1) * step
    at_grid = np.interp(grid, coarse_losses, coarse)
    margin = 1e-3 * np.gradient(at_grid) if len(grid) > 1 else 1e-3 * np.ptp(coarse)
    edges = np.unique(np.concatenate([coarse[[0, -1]], at_grid - margin, at_grid + margin]))
    losses = np.maximum.accumulate(loss(edges))
    return step, losses, under_p.masses(edges), under_q.masses(edges), under_p.tail_mass(edges)


def _left_out(steps: int) -> float:
    return 2 * WINDOW_TAIL + ROUNDING + steps * ROUNDING_PER_STEP


def _without_tails(start: int, masses: np.ndarray, arrays: list[np.ndarray], steps: int) -> tuple[int, list[np.ndarray], float]:
    """`arrays` without the ends of the grid where `masses` has little, the new first index, and the mass cut off.

    Rare huge losses would make the window of the sum huge too.
    """
    negligible = WINDOW_TAIL / steps
    first = int(np.searchsorted(np.cumsum(masses), negligible))
    last = len(masses) - int(np.searchsorted(np.cumsum(masses[::-1]), negligible))
    return start + first, [array[first:last] for array in arrays], float(masses[:first].sum() + masses[last:].sum())


def _window(step: float, start: int, masses: np.ndarray, steps: int) -> tuple[int, int]:
    """(first index, length) of a window with all but WINDOW_TAIL of the T-fold sum on each side, by Chernoff's bound."""
    losses = (start + np.arange(len(masses))) * step
    mean = masses @ losses
    deviation = max(np.sqrt(steps * (masses @ (losses - mean) ** 2)), step)
    rates = np.geomspace(0.03, 60, 64) / deviation
    with np.errstate(divide="ignore"):
        log_masses = np.log(masses)

    def log_moment(rate):
        exponents = log_masses + rate * losses
        largest = exponents.max()
        return np.log(np.exp(exponents - largest).sum()) + largest

    reach = -np.log(WINDOW_TAIL)
    high = min((steps * log_moment(rate) + reach) / rate for rate in rates)
    low = max(-(steps * log_moment(-rate) + reach) / rate for rate in rates)
    first = int(np.floor(max(low / step, steps * start)))
    last = int(np.ceil(min(high / step, steps * (start + len(masses) - 1))))
    return first, fft.next_fast_len(max(last - first, 0) + 1, real=True)


def _self_convolve(masses: np.ndarray, start: int, steps: int, first: int, size: int) -> np.ndarray:
    """Masses of the T-fold sum on the grid indices first .. first+size-1; what lies outside wraps around into the window."""
    folded = np.bincount(np.arange(len(masses)) % size, masses, size)
    result = fft.irfft(fft.rfft(folded) ** steps, size)
    return np.maximum(np.roll(result, (steps * start - first) % size), 0.0)
