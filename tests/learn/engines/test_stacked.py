"""The torch engine as a GPU would run it, with padded products and its own draws, against the rows-only path; on the CPU here."""

import numpy as np
import pytest
import torch

from mucd_ray.learn.engines.stacked import UnitsOnDevice, train_stacked
from mucd_ray.learn.learner import Learner, LocalUpdate
from mucd_ray.learn.problem import Problem
from mucd_ray.learn.streams import Streams
from mucd_ray.learn.units import Units
from mucd_ray.mechanism.gaussian.mechanism import Mechanism

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("unit", ["transition", "trajectory"])
@pytest.mark.parametrize("algorithm,hidden,rate", [("bc", (), 0.02), ("double-dqn", (16,), 0.3), ("iql", (8, 8), 1.0)])
def test_the_padded_path_is_the_same_mechanism(algorithm, hidden, rate, unit, device):
    rng, rows = np.random.default_rng(0), 300
    features, ahead = rng.standard_normal((2, rows, 5)).astype(np.float32)
    features[7], ahead[9], features[30] = np.nan, np.inf, 1e30
    units = Units.transitions(features, rng.integers(0, 3, rows), next_features=ahead, rewards=rng.standard_normal(rows).astype(np.float32))
    if unit == "trajectory":
        starts = np.arange(0, rows, 12)
        units = Units(unit=unit, **units.arrays() | {"starts": starts, "lengths": np.minimum(12, np.arange(len(starts)))})
    learner = Learner(algorithm=algorithm, hidden=hidden, optimiser="adam", learning_rate=0.02, average=0.5, local=LocalUpdate(cap=7, steps=2))
    problem = Problem(learner=learner, inputs=5, actions=3, discrete=True)
    mechanism = Mechanism(unit=unit, sample_rate=rate, noise_multiplier=1.0, clip_norm=0.5, steps=15, normaliser=10.0)
    instances, streams = [0, 5, 2**40], Streams(b"a secret of tests")
    with torch.no_grad():
        reference = train_stacked(problem, mechanism, UnitsOnDevice(units, torch.device("cpu")), instances, streams)
        padded = train_stacked(problem, mechanism, UnitsOnDevice(units, torch.device(device), padded=True), instances, streams).cpu()
    count = problem.parameter_count
    assert torch.isfinite(reference[:, :count]).all()
    torch.testing.assert_close(padded[:, :count], reference[:, :count], rtol=0, atol=2e-5)
