"""The captured step: its draws on the CPU, and the whole on a GPU where there is one."""

import numpy as np
import pytest
import torch
from scipy.stats import binom

from mucd_ray.learn.engines.captured import TOO_WIDE, DrawsOfFixedWidth, sample_width, train_captured
from mucd_ray.learn.engines.stacked import Block, Draws, UnitsOnDevice, train_stacked
from mucd_ray.learn.learner import Learner
from mucd_ray.learn.problem import Problem
from mucd_ray.learn.streams import Streams
from mucd_ray.learn.units import Units
from mucd_ray.mechanism.gaussian.mechanism import Mechanism

CPU, ROWS, INSTANCES, STREAMS = torch.device("cpu"), 600, [0, 5, 2**40], Streams(b"a secret of tests")


def units() -> Units:
    rng = np.random.default_rng(0)
    features, ahead = rng.standard_normal((2, ROWS, 5)).astype(np.float32)
    features[7], features[30] = np.nan, 1e30
    return Units.transitions(features, rng.integers(0, 3, ROWS), next_features=ahead, rewards=rng.standard_normal(ROWS).astype(np.float32))


@pytest.mark.parametrize("rate", [0.02, 0.5, 1.0])
def test_draws_of_fixed_width_are_the_reference_ones(rate):
    on_host = UnitsOnDevice(units(), CPU)
    width = sample_width(ROWS, rate, 3 * 20)
    draws, reference = DrawsOfFixedWidth(STREAMS, INSTANCES, UnitsOnDevice(units(), CPU, padded=True), rate, width), Draws(STREAMS, INSTANCES, on_host, rate, 1)
    for step in range(20):
        batch, expected = draws.rows(torch.tensor(step)), reference.rows(step)
        assert batch.counts.tolist() == list(expected.counts)
        for mine, its, count in zip(batch.x, expected.x, expected.counts):
            assert torch.equal(mine[:count].nan_to_num(), its[:count].nan_to_num())
        np.testing.assert_allclose(draws.noise(torch.tensor(step), 99), reference.noise(step, 99), rtol=2e-6, atol=2e-6)
    assert not draws.exceeded


def test_a_sample_that_is_too_wide_is_noticed():
    draws = DrawsOfFixedWidth(STREAMS, INSTANCES, UnitsOnDevice(units(), CPU, padded=True), 0.5, 32)
    draws.rows(torch.tensor(0))
    draws.rows(torch.tensor(1))
    assert draws.exceeded


@pytest.mark.parametrize("size,rate,samples", [(50_000, 128 / 50_000, 10**7), (300, 0.9, 100), (10, 1e-9, 5)])
def test_a_graph_is_as_wide_as_it_must_be(size, rate, samples):
    width = sample_width(size, rate, samples)
    assert width % 32 == 0
    assert width >= size or samples * binom.sf(width, size, rate) <= TOO_WIDE


@pytest.mark.parametrize("algorithm", ["bc", "double-dqn", "iql"])
def test_a_step_that_takes_its_number_from_the_device_is_the_same(algorithm):
    problem, mechanism = make(algorithm)
    on_device = UnitsOnDevice(units(), CPU, padded=True)
    with torch.no_grad():
        block = Block(problem, mechanism, on_device, INSTANCES, STREAMS, DrawsOfFixedWidth(STREAMS, INSTANCES, on_device, mechanism.sample_rate, 64))
        for step in range(mechanism.steps):
            block.move(torch.tensor(step))
            block.average(step)
        torch.testing.assert_close(block.result(), train_stacked(problem, mechanism, on_device, INSTANCES, STREAMS), rtol=0, atol=2e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("algorithm", ["bc", "double-dqn", "iql"])
def test_graphs_change_nothing_but_speed(algorithm):
    problem, mechanism = make(algorithm)
    with torch.no_grad():
        captured = train_captured(problem, mechanism, UnitsOnDevice(units(), torch.device("cuda")), INSTANCES, STREAMS).cpu()
        reference = train_stacked(problem, mechanism, UnitsOnDevice(units(), CPU), INSTANCES, STREAMS)
    count = problem.parameter_count
    assert torch.isfinite(captured[:, :count]).all()
    torch.testing.assert_close(captured[:, :count], reference[:, :count], rtol=0, atol=2e-5)


def make(algorithm: str) -> tuple[Problem, Mechanism]:
    learner = Learner(algorithm=algorithm, hidden=(16,), optimiser="adam", learning_rate=0.02, average=0.5)
    mechanism = Mechanism(unit="transition", sample_rate=0.03, noise_multiplier=1.0, clip_norm=0.5, steps=15, normaliser=10.0)
    return Problem(learner=learner, inputs=5, actions=3, discrete=True), mechanism
