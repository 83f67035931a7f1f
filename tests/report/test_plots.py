import os
import subprocess
import sys

import numpy as np
import pytest

from mucd_ray.report import plots
from mucd_ray.report.plots import NARROW, WIDE, frontier, return_bins, share_certified, window


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


def test_an_axis_is_cut_where_one_value_crushes_the_others_and_only_there():
    values = np.linspace(100, 300, 299)
    assert window([*values, 1200.0], 100, 1200, 10) == (100, 1200)
    low, high = window([*values, -1e6], -1e6, 300, 10)
    assert -400 < low < 0 and high == 300 and window(values, 100, 300, 10) == (100, 300)
    # Most of them alike: there is no width of most to go by.
    assert window([500.0] * 99 + [9.0], 9, 500, 10) == (9, 500)
    # A tail of a tenth is none of one value.
    assert window([*values, *[-1e4] * 30], -1e4, 300, 10) == (-1e4, 300)


def test_a_cut_plot_says_so(monkeypatch):
    said = []
    monkeypatch.setattr(plots, "_say_cut", lambda ax, text: said.append(text))
    returns = np.append(np.linspace(100, 300, 299), -1e6)
    radius, bound = np.array([0, 1, 2, 8]), np.array([150.0, -200, -5000, -1e6])
    levels = {"unpoisoned mean": 200.0, "behaviour policy": 80.0, "best constant action": -130.0}
    axes = {"radius": radius, "bounds": {"certified": bound}, "units": 50, "unit": "trajectories"}
    for look in (WIDE, NARROW):
        plots.trajectories(lengths=np.full(300, 5), returns=returns)
        plots.return_distribution(returns=returns, threshold=np.unique(returns), bounds={"certified": np.linspace(1, 0, 300)}, return_range=(-1e6, 300), look=look)
        plots.return_bound(**axes, levels=levels | {"public floor": -1e6}, kept=[("50 %", 2, -5000.0)], look=look)
        plots.return_bound(**axes, levels=levels | {"public floor": -1000.0}, kept=[], look=look)
    histogram, curve = "cut: 1 of 300 lie outside, all are from −1e+06 to 300", "cut: the least possible return is −1000000, and curves go on down to it"
    assert said == 2 * ["", histogram, histogram, curve]


def test_a_home_that_cannot_be_written_is_nothing_to_talk_about():
    """Matplotlib would."""
    environment = {name: value for name, value in os.environ.items() if name not in ("MPLCONFIGDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")} | {"HOME": "/proc/none"}
    program = "import logging, mucd_ray.report.plots; print(logging.getLogger('matplotlib').level)"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == (["0"], "")
