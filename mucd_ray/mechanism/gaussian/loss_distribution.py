"""Composition: from one step's pair of mixtures to the trade-off curve of T steps, between rigorous brackets.

Formal guarantees. `pessimistic` splits every cell of the real line into two atoms on a grid of losses, with the cell's exact
masses under P and under Q and losses that bracket the cell's: a mean-preserving spread of the likelihood ratio, so the
discrete pair dominates the exact one (Doroshenko et al. 2022, arXiv 2207.04380, build theirs the same way) and so do its
T-fold compositions, coarser grids and thinned-out curves. All probability that the computation leaves out (tails, losses above
MOST_LOSS, FFT window, rounding) is added to the mass of infinite loss. `attainable_curve` goes the other way: it is the exact
operating curve of a test that an attacker could run, which rounds each step's loss to the grid at random and thresholds the sum,
with the same allowances against the attacker: for p up to 1 - `_left_out(steps)` no true guarantee can lie above it.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import fft

from mucd_ray.mechanism.gaussian.mixture import LEFT_OUT, Mixture
from mucd_ray.mechanism.work import spend

# Grid points per typical size of the sum of all losses, and how far the splitting of cells may widen the sum, as a share of its
# typical size. A sum that is typically smaller than LEAST_SCALE is treated as being of that size: the error is then absolute.
RESOLUTION = 512
WIDENING = 1 / 80
LEAST_SCALE = 0.02
MOST_SCALE = 4.0
MAX_CELLS = 1 << 20
# An outcome of larger loss than this in one step has probability less than e^-45 under Q: it is counted as none.
MOST_LOSS = 45.0
# Probability outside the FFT window, per side, and an allowance for floating-point error: of the FFT, and of one step's cells.
WINDOW_TAIL = 1e-12
ROUNDING = 1e-9
ROUNDING_PER_STEP = 1e-12
SMALLEST = 1e-290
COARSE_CELLS = 4000
# Widest cell, so that moments of high order, too, see the tails sharply.
MOST_WIDTH = 0.01
# A longer curve is thinned out before it is kept.
CURVE_POINTS = 1 << 14


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
        if steps == 1 or not self.masses.any():
            return replace(self, infinite=-np.expm1(steps * _log1m(self.infinite)) + _left_out(steps))
        low, size = _window(self.step, self.start, self.masses, steps)
        if size > MAX_CELLS:
            return self.coarsened(2 ** math.ceil(math.log2(size / MAX_CELLS))).compose(steps)
        return replace(
            self,
            start=low,
            masses=_self_convolve(self.masses, self.start, steps, low, fft.next_fast_len(size, real=True)),
            infinite=-np.expm1(steps * _log1m(self.infinite)) + _left_out(steps),
        )

    def coarsened(self, factor: int) -> "LossDistribution":
        """On a grid `factor` times as coarse: every atom is split over the two grid points around it, a further spread."""
        index = self.start + np.arange(len(self.masses))
        low = index // factor
        above = _share_above((index - low * factor) * self.step, factor * self.step)
        return replace(self, step=self.step * factor, start=int(low[0]), masses=_two_atoms(low, low + 1, self.masses, above * self.masses))

    def _thinned(self) -> tuple[np.ndarray, np.ndarray]:
        """Losses and masses of fewer atoms: every atom is split over the two around it that are left, a further spread."""
        index = np.arange(len(self.masses))
        if len(index) <= CURVE_POINTS:
            return self.losses, self.masses
        size = _typical_size(self.losses, self.masses, 1)
        if (factor := int(size / (2 * RESOLUTION * self.step))) > 1:
            return self.coarsened(factor)._thinned()
        width = _widths(self.masses / self.step, np.full(len(index), self.step), (WIDENING * size) ** 2 / 4, np.inf)
        # One atom is left per unit of the integral of 1/width.
        left = np.flatnonzero(np.diff(np.floor(np.cumsum(self.step / np.maximum(width, self.step))), prepend=-1.0))
        left = np.union1d(left, index[[0, -1]])
        low = np.clip(np.searchsorted(left, index, side="right") - 1, 0, len(left) - 2)
        above = _share_above((index - left[low]) * self.step, (left[low + 1] - left[low]) * self.step)
        return self.losses[left], _two_atoms(low, low + 1, self.masses, above * self.masses)

    def renyi_divergence(self, orders: np.ndarray) -> np.ndarray:
        """D_alpha(P||Q) of the part with finite loss, for orders alpha > 1 [m] -> [m] (Mironov 2017, Definition 3)."""
        # On a fine grid nearly all masses are zero.
        kept = np.flatnonzero(self.masses)
        if not len(kept):
            return np.zeros(len(orders))
        spend(2 * len(orders) * len(kept))
        losses, log_masses = (self.start + kept) * self.step, np.log(self.masses[kept])
        log_moments = np.empty(len(orders))
        for k, order in enumerate(orders):
            exponents = log_masses + (order - 1) * losses
            largest = exponents.max()
            log_moments[k] = np.log(np.exp(exponents - largest).sum()) + largest
        return log_moments / (orders - 1)

    def tradeoff_curve(self) -> "TradeoffCurve":
        """Neyman-Pearson: to collect probability under P at the least cost under Q, take the largest losses first."""
        losses, masses = self._thinned()
        under_p = self.infinite + np.cumsum(masses[::-1])
        with np.errstate(divide="ignore"):
            under_q = np.cumsum(np.exp(np.minimum(np.log(masses) - losses, 0.0))[::-1])
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
        spend(4 * np.size(p))
        return np.minimum(np.interp(p, self.under_p, self.under_q, left=0.0), p)

    def profile(self, eps: np.ndarray) -> np.ndarray:
        """delta(eps) = sup over events of P(S) - e^{eps} Q(S), at eps [m] -> [m]: attained at a vertex of the curve."""
        return np.array([np.max(self.under_p - np.exp(e) * self.under_q) for e in eps])


def pessimistic(*, removed: int, inserted: int, sample_rate: float, sigma: float, steps: int) -> LossDistribution:
    """One step's loss between the pair of `mixture.py`, discretised to the safe side and finely enough for `steps` steps."""
    cells = _Cells.of_pair(removed, inserted, sample_rate, sigma, steps)
    if not len(cells.p):
        return LossDistribution(step=1.0, start=0, masses=np.zeros(1), infinite=1.0)
    step, p, q = cells.step, cells.p, cells.q
    low = np.floor(cells.losses[:-1] / step)
    high = np.maximum(np.ceil(cells.losses[1:] / step), low + 1)
    # Solve a + b = p and a e^{-low} + b e^{-high} = q for the two atoms of each cell.
    with np.errstate(divide="ignore", over="ignore"):
        at_high = np.clip((p - np.exp(np.log(q) + low * step)) / -np.expm1((low - high) * step), 0.0, p)
    return LossDistribution(
        step=step, start=int(low[0]), masses=_two_atoms(low.astype(int), high.astype(int), p, at_high), infinite=min(cells.outside, 1.0)
    )


def attainable_curve(*, removed: int, inserted: int, sample_rate: float, sigma: float, steps: int) -> TradeoffCurve:
    """Operating curve of a test that can be run on the outputs: the exact trade-off curve is at or below it.

    The test rejects if any step's loss is beyond all cells, or if all are in cells and the sum of their losses is large, each
    first rounded to one of the two grid points around it at random and without bias.
    """
    cells = _Cells.of_pair(removed, inserted, sample_rate, sigma, steps)
    kept = (cells.p > SMALLEST) & (cells.q > SMALLEST)
    p, q, slack = cells.p[kept], cells.q[kept], _left_out(steps)
    under_p = under_q = np.zeros(0)
    if len(p):
        step, loss = cells.step, np.log(p / q)
        while True:
            low = np.floor(loss / step).astype(int)
            above, start = loss / step - low, int(low.min())
            on_grid = [_two_atoms(low - start, low - start + 1, masses, above * masses) for masses in (p, q)]
            windows = [_window(step, start, masses, steps) for masses in on_grid]
            first = min(first for first, _ in windows)
            size = max(first + size for first, size in windows) - first
            if size <= 2 * MAX_CELLS:
                break
            step *= 2 ** math.ceil(math.log2(size / MAX_CELLS))
        size = fft.next_fast_len(size, real=True)
        under_p, under_q = (np.cumsum(_self_convolve(masses, start, steps, first, size)[::-1]) for masses in on_grid)
    # The first test never rejects beyond the cells either, the last one always rejects.
    beyond_p, beyond_q = (-np.expm1(steps * _log1m(beyond)) for beyond in cells.beyond)
    return TradeoffCurve(
        under_p=np.concatenate([[0.0], np.clip(beyond_p + np.append(0.0, under_p) - slack, 0.0, 1.0), [1.0]]),
        under_q=np.concatenate([[0.0], np.clip(beyond_q + np.append(0.0, under_q) + slack, 0.0, 1.0), [1.0]]),
    )


@dataclass(frozen=True, kw_only=True)
class _Cells:
    """The real line in cells, and the grid of losses on which they are represented.

    `losses` [n+1] at the cell edges, increasing; masses `p` and `q` [n] of the cells; `outside`, at least the probability under P
    outside all cells; `beyond`, at most that above the last edge under P and at least that under Q.
    """

    step: float
    losses: np.ndarray
    p: np.ndarray
    q: np.ndarray
    outside: float
    beyond: tuple[float, float]

    @classmethod
    def of_pair(cls, removed: int, inserted: int, sample_rate: float, sigma: float, steps: int) -> "_Cells":
        under_p = Mixture.of_units(removed, sample_rate, sigma, +1)
        under_q = Mixture.of_units(inserted, sample_rate, sigma, -1)

        def loss(x):
            return under_p.log_ratio_to_noise(x) - under_q.log_ratio_to_noise(x)

        # Where P has little mass the loss is minus infinity at worst, and where the loss is huge Q has no mass: no guarantee
        # suffers if only what is left is cut into cells.
        ends = under_p.support()
        for number in (COARSE_CELLS // 64, COARSE_CELLS, COARSE_CELLS):
            coarse = np.linspace(*ends, number + 1)
            losses, masses = np.maximum.accumulate(loss(coarse)), under_p.masses(coarse)
            first = int(np.searchsorted(np.cumsum(masses), WINDOW_TAIL / steps))
            last = number - int(np.searchsorted(np.cumsum(masses[::-1]), WINDOW_TAIL / steps))
            last = min(last, int(np.searchsorted(losses, MOST_LOSS)))
            if last <= first:
                beyond = under_p.above(coarse[first]), under_q.above(coarse[first]) + LEFT_OUT
                return cls(step=1.0, losses=np.zeros(1), p=np.zeros(0), q=np.zeros(0), outside=1.0, beyond=beyond)
            ends = coarse[first], coarse[last]
            if last - first > COARSE_CELLS / 2:
                break
        spend(60 * COARSE_CELLS)
        coarse, losses, masses = coarse[first : last + 1], losses[first : last + 1], masses[first:last]
        size = _typical_size((losses[1:] + losses[:-1]) / 2, masses, steps)
        step = _grid_step((losses[1:] + losses[:-1]) / 2, masses, losses[-1] - losses[0], size, steps)
        # Edges a little before and after grid values: each long cell lies between two of them, and only the short cells across a
        # grid value are spread over two grid steps. Where there is little mass not every grid value is an edge.
        lengths = np.maximum(np.diff(losses), 1e-12 * step)
        width = np.maximum(_widths(masses / lengths, lengths, (WIDENING * size) ** 2 / (4 * steps), MOST_WIDTH), step)
        counted = np.concatenate([[0.0], np.cumsum(lengths / width)])
        grid = np.unique(np.rint(np.interp(np.arange(counted[-1] + 1), counted, losses) / step)) * step
        grid = grid[(grid >= losses[0]) & (grid <= losses[-1])]
        at_grid = np.interp(grid, losses, coarse)
        margin = 1e-3 * np.gradient(at_grid) if len(grid) > 1 else 1e-3 * np.ptp(coarse)
        edges = np.unique(np.clip(np.concatenate([ends, at_grid - margin, at_grid + margin]), *ends))
        return cls(
            step=step,
            losses=np.maximum.accumulate(loss(edges)),
            p=under_p.masses(edges),
            q=under_q.masses(edges),
            outside=under_p.tail_mass(edges),
            beyond=(under_p.above(edges[-1]), under_q.above(edges[-1]) + LEFT_OUT),
        )


def _typical_size(losses: np.ndarray, masses: np.ndarray, steps: int) -> float:
    """Of the sum of `steps` losses with these masses [n]: its deviation with single losses cut at twice that size.

    Rare large losses, which may carry the variance, do not hide the many small ones. At least LEAST_SCALE; at most MOST_SCALE as
    long as P and Q overlap at all.
    """
    masses = masses / masses.sum()
    squares = (losses - masses @ losses) ** 2
    low, high = LEAST_SCALE, 1e4
    while high > 1.1 * low:
        size = math.sqrt(low * high)
        low, high = (size, high) if steps * (masses @ np.minimum(squares, 4 * size**2)) >= size**2 else (low, size)
    return max(min(low, MOST_SCALE), low / 4)


def _grid_step(losses: np.ndarray, masses: np.ndarray, span: float, size: float, steps: int) -> float:
    """A grid that resolves the sum: splitting a loss l on a grid h adds about min(h^2/6, h |l|) to the variance of each step."""
    candidates = size / RESOLUTION * 2.0 ** -np.arange(0, 16, 0.5)
    added = np.minimum(candidates[:, None] ** 2 / 6, candidates[:, None] * np.abs(losses)) @ masses
    return max(float(candidates[np.argmax(steps * added <= (WIDENING * size) ** 2)]), span / MAX_CELLS)


def _widths(density: np.ndarray, lengths: np.ndarray, variance: float, most: float) -> np.ndarray:
    """Widths w [n] of cells, as a function of the loss, the widest with integral density w^2/6 <= variance.

    They grow at most half as fast as the distance, so that no cell reaches from an empty region into one with much mass.
    """
    roots = np.cbrt(np.maximum(density, SMALLEST))
    width = np.minimum(np.sqrt(6 * variance / (roots @ lengths)) / roots, most)
    half = (np.cumsum(lengths) - lengths / 2) / 2
    rising = np.minimum.accumulate(width - half) + half
    falling = np.minimum.accumulate((width + half)[::-1])[::-1] - half
    return np.maximum(np.minimum(rising, falling), lengths.min())


def _share_above(distance: np.ndarray, gap: np.ndarray | float) -> np.ndarray:
    """Share of an atom, `distance` above the lower one of two losses that are `gap` apart, that the upper one gets: P and Q keep their mass."""
    return np.clip(-np.expm1(-distance) / -np.expm1(-gap), 0.0, 1.0)


def _two_atoms(low: np.ndarray, high: np.ndarray, masses: np.ndarray, at_high: np.ndarray) -> np.ndarray:
    """The grid from low[0], the least index: `at_high` at the indices `high`, the rest of `masses` at `low`."""
    start, size = low.min(), high.max() - low.min() + 1
    return np.bincount(low - start, masses - at_high, size) + np.bincount(high - start, at_high, size)


def _log1m(probability: float) -> float:
    """log(1 - probability), minus infinity at 1."""
    with np.errstate(divide="ignore"):
        return float(np.log1p(-min(probability, 1.0)))


def _left_out(steps: int) -> float:
    return 2 * WINDOW_TAIL + ROUNDING + steps * ROUNDING_PER_STEP


def _window(step: float, start: int, masses: np.ndarray, steps: int) -> tuple[int, int]:
    """(first index, length) of a window with all but WINDOW_TAIL of the T-fold sum on each side, by Chernoff's bound."""
    kept = np.flatnonzero(masses)
    spend(60 * len(kept))
    losses, log_masses = (start + kept) * step, np.log(masses[kept])
    weights = masses[kept] / masses[kept].max()
    weights /= weights.sum()
    deviation = max(np.sqrt(steps * (weights @ (losses - weights @ losses) ** 2)), step)

    def end(log_rate, sign):
        """The bound on the sum's distance in the direction `sign`, at one rate; convex in 1/rate."""
        rate = np.exp(log_rate)
        exponents = log_masses + sign * rate * losses
        largest = exponents.max()
        return (steps * (np.log(np.exp(exponents - largest).sum()) + largest) - np.log(WINDOW_TAIL)) / rate

    high, low = (_least(lambda x, sign=sign: end(x, sign), *np.log([1e-4 / deviation, 100 / deviation])) for sign in (+1, -1))
    # If all masses together are tiny, the two ends may have passed each other, anywhere.
    ends = steps * (start + int(kept[0])), steps * (start + int(kept[-1]))
    first, last = int(np.clip(np.floor(-low / step), *ends)), int(np.clip(np.ceil(high / step), *ends))
    return first, max(last - first, 0) + 1


def _least(function, low: float, high: float) -> float:
    """About the least value over [low, high] of a function that falls and then rises, by golden sections; always a value of it."""
    ratio = (np.sqrt(5) - 1) / 2
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    at_a, at_b = function(a), function(b)
    for _ in range(14):
        if at_a < at_b:
            high, b, at_b = b, a, at_a
            a = high - ratio * (high - low)
            at_a = function(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + ratio * (high - low)
            at_b = function(b)
    return min(at_a, at_b)


def _self_convolve(masses: np.ndarray, start: int, steps: int, first: int, size: int) -> np.ndarray:
    """Masses of the T-fold sum on the grid indices first .. first+size-1; what lies outside wraps around into the window."""
    spend(len(masses) + 8 * size)
    folded = np.bincount(np.arange(len(masses)) % size, masses, size)
    result = fft.irfft(fft.rfft(folded) ** steps, size)
    return np.maximum(np.roll(result, (steps * start - first) % size), 0.0)
