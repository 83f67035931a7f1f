import numpy as np
import pytest

from mucd_ray.report.plots import NARROW, WIDE, frontier, return_bins, share_certified


def test_share_certified_is_the_share_of_all_states_whose_radius_reaches_r():
    radius = np.array([-1, 0, 3, 3, 10])
    at, share = share_certified(radius)
    # Read as drawn: up to and including at[k] the curve has the value share[k].
    for r in range(11):
        assert share[np.searchsorted(at, r)] == np.mean(radius >= r)
    assert share_certified(np.array([-1, -1]))[1].tolist() == [0.0]


@pytest.mark.parametrize("returns", [[500.0, 500.0], [0.25, 0.25], [-500.0, -71.0, -70.0], [0.1, 0.7, 3.3], np.arange(1000.0)])
def test_bins_hold_every_return_and_are_equally_wide(returns):
    returns = np.array(returns)
    edges = return_bins(returns, (-500.0, 1000.0))
    assert np.histogram(returns, edges)[0].sum() == len(returns)
    np.testing.assert_allclose(np.diff(edges), edges[1] - edges[0])
    if np.all(returns == np.rint(returns)):
        assert (edges[1] - edges[0]) % 1 == 0


@pytest.mark.parametrize("look", [WIDE, NARROW])
def test_the_frontier_is_drawn_also_where_nothing_is_certified(look):
    budgets = np.array([10.0, 100.0, 1000.0])
    curves = {f"{10**k} instances": np.array([0.3, 0.02, 0.0]) * k for k in range(1, 7)}
    for fraction in (curves, {"1 instance": np.zeros(3)}):
        assert frontier(signal_budget=budgets, fraction=fraction, look=look).startswith(b"\x89PNG")
