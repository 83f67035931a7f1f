"""The torch streams against numpy's."""

import numpy as np
import pytest
import torch

from mucd_ray.learn.engines import device_random
from mucd_ray.learn.streams import NOISE, SAMPLE, Streams, exponentials, gaussian_noise, poisson_sample, subset_purpose

STREAMS = Streams(b"a secret of tests")
KEY = device_random.key_on(STREAMS, torch.device("cpu"))
INSTANCES = [0, 3, 2**31, 2**40 + 5]


@pytest.mark.parametrize("step,purpose", [(0, 0), (7, SAMPLE), (2**33, NOISE), (5, subset_purpose(2**50 + 1))])
def test_words_are_numpys(step, purpose):
    words = device_random.philox(KEY, device_random.counters(60, torch.device("cpu")), purpose, torch.tensor([step]), torch.tensor(INSTANCES)).numpy().view(np.uint64)
    for instance, row in zip(INSTANCES, words):
        assert np.array_equal(row, STREAMS.generator(instance, step, purpose).bit_generator.random_raw(240))


def test_normals_are_the_reference_ones_to_rounding():
    drawn = device_random.gaussian_noise(KEY, 4610, NOISE, torch.tensor([9]), torch.tensor(INSTANCES))
    expected = gaussian_noise((STREAMS.generator(instance, 9, NOISE) for instance in INSTANCES), 4610)
    # A draw near zero inherits the rounding of its angle.
    np.testing.assert_allclose(drawn.numpy(), expected, rtol=2e-6, atol=2e-6)
    words = np.array([0, 2**64 - 1, 2**24 - 1, (2**40 - 1) << 24], np.uint64)
    extremes = device_random.standard_normals(torch.from_numpy(words.view(np.int64)))
    assert torch.isfinite(extremes).all() and extremes.abs().max() < 7.5


@pytest.mark.parametrize("units,rate", [(50_000, 1e-300), (50_000, 1e-9), (50_000, 0.0026), (300, 0.5), (300, 0.97), (5, 1 - 1e-12), (300, 1.0), (1, 0.3)])
def test_samples_are_the_reference_ones(units, rate):
    for step in range(20):
        indices, counts = device_random.poisson_samples(KEY, SAMPLE, torch.tensor([step]), torch.tensor(INSTANCES), units, rate)
        for instance, row, count in zip(INSTANCES, indices, counts):
            assert np.array_equal(row[:count], poisson_sample(STREAMS.generator(instance, step, SAMPLE), units, rate))
            assert not row[count:].any()


def test_exponentials_are_the_reference_ones():
    words = STREAMS.generator(0, 0, SAMPLE).bit_generator.random_raw(20_000)
    words[:4] = 0, 2**64 - 1, 2**11 - 1, 2**63
    np.testing.assert_allclose(device_random.exponentials(torch.from_numpy(words.view(np.int64))).numpy(), exponentials(words), rtol=1e-15, atol=2.0**-53)
