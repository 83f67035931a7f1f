"""The stack of plain models, as a GPU would train it, against the engines that train bags one by one on the CPU."""

import numpy as np
import pytest
import torch
from problems import LOSSES, QUICK, changed, problem, trajectories

from mucd_ray.learn.streams import Streams
from mucd_ray.learn.trainers.built_in import Fit, fit_policies, fit_stacked

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
STREAMS = Streams(b"the secret of these tests")


def both(asked, units, bags, fit, device="cpu"):
    given = {"problem": asked, "fit": fit, "units": units, "bags": [np.array(bag, int) for bag in bags], "instances": range(7, 7 + len(bags)), "streams": STREAMS}
    return fit_policies(**given), fit_stacked(device=device, **given)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("algorithm,discrete", [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in LOSSES])
def test_a_stack_trains_what_single_models_become(algorithm, discrete, device):
    """Bags of other sizes, one smaller than a batch, one with a unit twice, an empty one; features far from zero; more steps than are drawn at once."""
    asked = problem(algorithm, discrete, optimiser="adam", learning_rate=0.01, hidden=(16,), average=0.5)
    units = trajectories(asked, [40, 7, 30, 9, 50], np.random.default_rng(0))
    units = changed(units, 3, features=units.features[:9] * 100 + 1e4)
    single, stacked = both(asked, units, [[4, 1, 2], [1], [0, 3, 3], []], Fit(steps=30, batch=16, top_share=0.7), device)
    for name, values in single.items():
        assert values[:3].isfinite().all() and stacked[name][3].isnan().all()
        torch.testing.assert_close(stacked[name][:3], values[:3], rtol=1e-3, atol=1e-4)


def test_sgd_and_draws_in_several_parts(monkeypatch):
    asked = problem("bc", True, optimiser="sgd", momentum=0.9, learning_rate=0.1, hidden=(8,))
    units = trajectories(asked, [40, 30, 50], np.random.default_rng(0))
    monkeypatch.setattr("mucd_ray.learn.engines.plain.WORDS", 500)
    single, stacked = both(asked, units, [[0, 1], [2]], Fit(steps=20, batch=8))
    for name, values in single.items():
        torch.testing.assert_close(stacked[name], values, rtol=1e-3, atol=1e-4)


def test_a_model_sees_nothing_of_rows_that_are_not_its_own():
    asked = problem("dqn", True, optimiser="adam", learning_rate=0.01, hidden=(8,))
    units = trajectories(asked, [9, 12, 7], np.random.default_rng(0))
    poisoned = changed(units, 0, features=np.nan, next_features=np.inf, rewards=np.nan)
    fit, bags = Fit(steps=8, batch=4), [np.array([0]), np.array([1, 2])]
    clean, beside = (
        fit_stacked(problem=asked, fit=fit, units=data, bags=bags, instances=[0, 1], streams=STREAMS, device="cpu") for data in (units, poisoned)
    )
    for name, values in clean.items():
        assert torch.equal(beside[name][1], values[1]) and beside[name][0].isnan().any()


def test_how_many_rows_another_bag_has_changes_no_bit():
    """What a product of a batch is rounded to may follow from how many rows it has: they are as many whatever the bags."""
    asked = problem("bc", True, optimiser="adam", learning_rate=0.01, hidden=(100,), inputs=17)
    units, bags = trajectories(asked, [40, 7, 4000, 9, 150, 300], np.random.default_rng(0)), ([0, 4], [3, 4])
    beside_large, beside_small = (
        fit_stacked(
            problem=asked, fit=Fit(steps=60, batch=600), units=units, bags=[np.array(bag) for bag in (other, *bags)], instances=range(3), streams=STREAMS, device="cpu"
        )
        for other in ([2, 5], [1])
    )
    assert all(torch.equal(beside_large[name][1:], values[1:]) for name, values in beside_small.items())
