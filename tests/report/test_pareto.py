"""The plot of a tuning study."""

import numpy as np

from mucd_ray.report import plots


def test_the_front_holds_what_no_other_point_beats():
    x, y = np.array([1.0, 4.0, 2.0, 3.0, 4.0, 2.0]), np.array([5.0, 1.0, 4.0, 3.0, 0.5, 1.0])
    assert plots.pareto_front(x, y).tolist() == [0, 2, 3, 1]
    assert plots.pareto_front(x[:1], y[:1]).tolist() == [0]


def test_it_is_drawn_with_any_number_of_trials():
    rng = np.random.default_rng(0)
    for trials in (1, 2, 40):
        mean, fraction = rng.uniform(100, 500, trials), rng.uniform(0, 0.03, trials)
        complete = np.arange(trials) % 2 == 0
        for look in (plots.WIDE, plots.NARROW):
            assert plots.pareto(mean=mean, fraction=fraction, complete=complete, best=0, instances=1000, look=look).startswith(b"\x89PNG")
    # Nothing keeps half.
    assert plots.pareto(mean=np.zeros(2), fraction=np.zeros(2), complete=np.array([True, True]), best=0, instances=1000).startswith(b"\x89PNG")
