"""The accountant against exact oracles: closed form at q = 1, quadrature at T = 1, dp-accounting for one-sided groups."""

import mpmath
import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm

from mucd_ray.errors import MucdError
from mucd_ray.mechanism.gaussian.accounting import GroupAccountant
from mucd_ray.mechanism.gaussian.mechanism import Mechanism

P = np.concatenate([[1e-6, 1e-3], np.linspace(0.02, 0.98, 49), [0.999, 1 - 1e-6]])


def accountant(q, sigma, steps):
    return GroupAccountant(Mechanism(sample_rate=q, noise_multiplier=sigma, clip_norm=1.0, steps=steps, normaliser=1.0))


@settings(max_examples=40, deadline=None)
@given(
    inserted=st.integers(0, 40), removed=st.integers(0, 40), steps=st.integers(1, 3000), mu=st.floats(0.05, 5.0),
)
def test_without_subsampling_the_brackets_hold_the_gaussian_closed_form(inserted, removed, steps, mu):
    if inserted + removed == 0:
        return
    units = accountant(1.0, (inserted + removed) * np.sqrt(steps) / mu, steps)
    exact = norm.cdf(norm.ppf(P) - mu)
    assert np.all(units.curve(inserted, removed)(P) <= exact + 1e-12)
    assert np.all(units.attainable(inserted, removed)(P) >= exact - 1e-12)
    p = np.linspace(0.0005, 0.9995, 1999)
    assert np.max(units.attainable(inserted, removed)(p) - units.curve(inserted, removed)(p)) < 2e-3


@pytest.mark.parametrize("q, sigma, inserted, removed", [(0.05, 0.7, 3, 2), (0.3, 2.0, 0, 6), (0.01, 1.0, 40, 0), (0.5, 5.0, 7, 7)])
def test_one_step_brackets_the_neyman_pearson_curve_by_quadrature(q, sigma, inserted, removed):
    mpmath.mp.dps = 40

    def tail(units, sign, x):
        """P(sign * Binomial + N(0, sigma^2) > x), to 40 digits."""
        q_exact = mpmath.mpf(q)
        return sum(
            mpmath.binomial(units, k) * q_exact**k * (1 - q_exact) ** (units - k) * mpmath.ncdf((sign * k - x) / mpmath.mpf(sigma))
            for k in range(units + 1)
        )

    units = accountant(q, sigma, 1)
    # The likelihood ratio is increasing, so the optimal tests are thresholds.
    for x in np.linspace(-4 * sigma, 4 * sigma + removed, 15):
        under_d, under_d_prime = float(tail(removed, +1, x)), float(tail(inserted, -1, x))
        bound = float(units.curve(inserted, removed)(under_d))
        assert bound <= under_d_prime + 1e-13
        assert bound >= under_d_prime - 5e-3 * under_d - 1e-12
        assert units.attainable(inserted, removed)(under_d) >= under_d_prime - 1e-9


@pytest.mark.parametrize("q, sigma, steps, units", [(128 / 60000, 3.0, 1000, 60), (0.02, 1.5, 200, 4), (0.2, 20.0, 50, 9)])
@pytest.mark.parametrize("removing", [True, False])
def test_one_sided_groups_agree_with_dp_accounting(q, sigma, steps, units, removing):
    k = np.arange(units + 1)
    pair = privacy_loss_distribution.from_mixture_gaussian_mechanism(
        sigma, k, binom.pmf(k, units, q), value_discretization_interval=2e-3
    ).self_compose(steps)
    one_sided = pair._pmf_remove if removing else pair._pmf_add
    curve = accountant(q, sigma, steps).curve(*((0, units) if removing else (units, 0)))
    for eps in (-2.0, -0.5, 0.0, 0.5, 1.0, 3.0):
        # delta(eps) is the greatest gap p - e^eps f(p) over all events; theirs is rounded up as well.
        delta = np.max(curve.under_p - np.exp(eps) * curve.under_q)
        assert delta == pytest.approx(one_sided.get_delta_for_epsilon(eps), rel=0.01, abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    q=st.floats(1e-4, 0.9), sigma=st.floats(0.5, 30.0), steps=st.integers(1, 400), inserted=st.integers(0, 25), removed=st.integers(0, 25),
)
def test_the_bound_falls_with_every_kind_of_exposure(q, sigma, steps, inserted, removed):
    if inserted + removed == 0:
        return
    base = accountant(q, sigma, steps).curve(inserted, removed)(P)
    slack = 2e-3  # two curves are discretised on different grids
    assert np.all(np.diff(base) >= 0) and np.all(base <= P)
    for worse in (
        accountant(min(1.0, 1.3 * q), sigma, steps).curve(inserted, removed),
        accountant(q, sigma / 1.2, steps).curve(inserted, removed),
        accountant(q, sigma, steps + 10).curve(inserted, removed),
        accountant(q, sigma, steps).curve(inserted + 1, removed),
        accountant(q, sigma, steps).curve(inserted, removed + 1),
    ):
        assert np.all(worse(P) <= base + slack * P)


@pytest.mark.parametrize("inserted, removed", [(12, 0), (0, 12), (7, 5), (9, 9)])
def test_exchanging_d_and_d_prime_inverts_the_curve(inserted, removed):
    units = accountant(0.03, 2.0, 150)
    forward, backward = units.curve(inserted, removed), units.curve(removed, inserted)
    p = np.linspace(0.01, 0.99, 60)
    # An event of probability p and its complement: what is lost in one direction comes back in the other.
    returned = 1 - backward(1 - forward(p))
    assert np.allclose(returned, p, atol=3e-3)


def test_three_steps_of_a_mixed_group_bracket_a_direct_convolution():
    """The exact curve by another way: the density of the sum of losses, from the mixtures' densities on a fine line of x."""
    q, sigma, inserted, removed = 0.3, 1.5, 2, 3
    x = np.linspace(-16.0, 17.0, 24_001)
    under_p = sum(w * norm.pdf(x, k, sigma) for k, w in enumerate(binom.pmf(range(removed + 1), removed, q))) * (x[1] - x[0])
    under_q = sum(w * norm.pdf(x, -k, sigma) for k, w in enumerate(binom.pmf(range(inserted + 1), inserted, q))) * (x[1] - x[0])
    loss = np.log(under_p / under_q)
    for steps in (2, 3):
        # The first two steps' losses on a fine grid, rounded both ways; the last step is exact: P(l > t - s) for every sum s so far.
        grid, edges = 1e-3, np.append(np.cumsum(under_p[::-1])[::-1], 0.0)
        edges_q = np.append(np.cumsum(under_q[::-1])[::-1], 0.0)
        index = np.rint(loss / grid).astype(int)
        start = index.min()
        p_sum, q_sum = one_p, one_q = np.bincount(index - start, under_p), np.bincount(index - start, under_q)
        for _ in range(steps - 2):
            p_sum, q_sum = np.convolve(p_sum, one_p), np.convolve(q_sum, one_q)
        sums = (start * (steps - 1) + np.arange(len(p_sum))) * grid
        units = accountant(q, sigma, steps)
        for threshold in np.linspace(-2.5, 4.0, 14):
            at = np.searchsorted(loss, threshold - sums)
            under_d, under_d_prime = p_sum @ edges[at], q_sum @ edges_q[at]
            # Rounding a sum by at most 1e-3 only makes the test slightly worse than the best: 1e-6 at most.
            assert units.curve(inserted, removed)(under_d) <= under_d_prime + 1e-9
            assert units.curve(inserted, removed)(under_d) >= under_d_prime - 3e-3 * under_d - 2e-6
            assert units.attainable(inserted, removed)(under_d) >= under_d_prime - 3e-6


def check_corner(q, sigma, steps, group):
    """Finite, increasing, bracketed, and within 1 % of p for p in [0.02, 0.99] (but for the rounding allowance at very many steps)."""
    units = accountant(q, sigma, steps)
    lower, upper = units.curve(*group)(P), units.attainable(*group)(P)
    assert np.all(np.isfinite(lower)) and np.all(np.isfinite(upper)) and np.all(lower >= 0)
    assert np.all(np.diff(lower) >= 0) and np.all(np.diff(upper) >= -1e-12)
    assert np.all(lower <= upper + 1e-12)
    usual = (P >= 0.02) & (P <= 0.99)
    assert np.all((upper - lower)[usual] <= 0.01 * P[usual]), (q, sigma, steps, group)


GROUPS = [(1, 0), (0, 1), (30, 0), (10, 20), (0, 1000), (1000, 1000), (100_000, 0), (0, 100_000), (33_333, 66_667)]


@pytest.mark.parametrize(
    "q, sigma, steps, group",
    [
        (1e-6, 0.3, 1, (1, 1)), (1e-6, 0.3, 1000, (50, 0)), (1e-6, 0.3, 30, (0, 100_000)), (1e-6, 0.3, 100_000, (10, 20)),
        (1e-6, 1000.0, 100_000, (1, 0)), (1e-4, 0.3, 1000, (0, 1)), (1e-4, 5.0, 100_000, (1000, 1000)), (1e-9, 1.0, 10, (1, 0)),
        (0.01, 0.3, 1, (1, 1)), (0.01, 0.3, 100_000, (100_000, 100_000)), (0.01, 40.0, 60, (20_000, 0)), (0.5, 1000.0, 100_000, (3, 5)),
        (0.5, 1000.0, 30, (50_000, 50_000)), (0.9, 0.3, 1, (1, 1)), (1.0, 1000.0, 100_000, (0, 3)), (1.0, 0.3, 1, (100_000, 0)),
    ],
)
def test_far_corners(q, sigma, steps, group):
    check_corner(q, sigma, steps, group)


@pytest.mark.slow
@pytest.mark.parametrize("q", [1e-6, 1e-4, 1e-2, 0.3, 1.0])
@pytest.mark.parametrize("sigma", [0.3, 1.0, 5.0, 40.0, 1000.0])
def test_the_whole_range(q, sigma):
    for steps in (1, 30, 1000, 100_000):
        for group in GROUPS:
            check_corner(q, sigma, steps, group)


def test_an_empty_or_negative_group_is_refused():
    for group in ((0, 0), (-1, 3)):
        with pytest.raises(MucdError, match="inserted"):
            accountant(0.1, 1.0, 1).curve(*group)
    with pytest.raises(MucdError, match="100000001"):
        accountant(0.1, 1.0, 1).curve(100_000_000, 1)
