"""Random streams: disjoint, reproducible, and distributed as the mechanism says."""

import numpy as np
import pytest
from scipy import stats

from mucd_ray.errors import MucdError
from mucd_ray.learn.streams import INITIALISE, NOISE, ROLLOUT, SAMPLE, Streams, gaussian_noise, poisson_sample, standard_normals

STREAMS = Streams(b"sixteen bytes or more")


@pytest.mark.parametrize("instance,step,purpose", [(0, 0, NOISE), (3, 7, SAMPLE), (2**40, 2**33, ROLLOUT)])
def test_a_borrowed_generator_equals_a_fresh_one(instance, step, purpose):
    fresh = STREAMS.generator(instance, step, purpose)
    # Leaves a half-used buffer behind, which the next borrower must not see.
    STREAMS.borrow(1, 1, NOISE).random(5, dtype=np.float32)
    borrowed = STREAMS.borrow(instance, step, purpose)
    for draw in (lambda g: g.random(3, dtype=np.float32), lambda g: g.standard_normal(100), lambda g: g.integers(9, size=5)):
        assert np.array_equal(draw(fresh), draw(borrowed))


def test_streams_use_disjoint_counters_of_one_key():
    """The raw 256-bit blocks of a stream are Philox at counters (1, 2, ...; purpose, step, instance), so no two meet."""
    words = (NOISE, 5, 9)
    bits = STREAMS.generator(9, 5, NOISE).bit_generator
    key, drawn = bits.state["state"]["key"], bits.random_raw(12)
    for block in range(3):
        direct = np.random.Philox(key=key, counter=np.array([block, *words], np.uint64)).random_raw(4)
        assert np.array_equal(direct, drawn[4 * block : 4 * block + 4])
    assert tuple(bits.state["state"]["counter"]) == (3, *words)
    seen = set()
    for purpose in (INITIALISE, NOISE, SAMPLE, ROLLOUT):
        for step in range(20):
            for instance in range(20):
                seen |= set(STREAMS.generator(instance, step, purpose).bit_generator.random_raw(8).tolist())
    assert len(seen) == 4 * 20 * 20 * 8


def test_another_secret_gives_other_streams_and_a_short_one_is_refused():
    assert Streams(b"sixteen bytes or less").generator(0, 0, 0).random() != STREAMS.generator(0, 0, 0).random()
    with pytest.raises(MucdError):
        Streams(b"short")


@pytest.mark.parametrize("units,rate", [(200, 0.03), (50, 0.5), (30, 0.97), (2000, 1e-4)])
def test_poisson_sampling_is_exact(units, rate):
    trials = 4000
    generator = np.random.default_rng(7)
    samples = [poisson_sample(generator, units, rate) for _ in range(trials)]
    assert all((np.diff(sample) > 0).all() and (sample >= 0).all() and (sample < units).all() for sample in samples)
    inclusions = np.bincount(np.concatenate(samples), minlength=units)
    # Every unit is in a sample with probability `rate`, independently: a sum of squared standardised counts.
    statistic = ((inclusions - trials * rate) ** 2 / (trials * rate * (1 - rate))).sum()
    assert 1e-4 < stats.chi2.sf(statistic, units) < 1 - 1e-4
    sizes = np.array([len(sample) for sample in samples])
    edges = np.unique(stats.binom.ppf(np.linspace(0.05, 0.95, 12), units, rate))
    edges = edges[edges < units]
    observed = np.histogram(sizes, [-np.inf, *(edges + 0.5), np.inf])[0]
    expected = trials * np.diff(stats.binom.cdf([-1, *edges, units], units, rate))
    assert stats.chisquare(observed, expected).pvalue > 1e-4
    # Neighbours are independent.
    both = sum(np.isin([units // 2, units // 2 + 1], sample).all() for sample in samples)
    assert abs(both - trials * rate**2) < 5 * np.sqrt(trials * rate**2) + 5


def test_poisson_sampling_at_the_ends_of_the_range():
    generator = np.random.default_rng(0)
    assert np.array_equal(poisson_sample(generator, 7, 1.0), np.arange(7))
    assert len(poisson_sample(generator, 10**6, 1e-300)) == 0
    assert len(poisson_sample(generator, 5, 1 - 1e-12)) == 5


def test_noise_is_standard_normal_and_independent():
    generators = (STREAMS.borrow(instance, step, NOISE) for instance in range(10) for step in range(10))
    draws = gaussian_noise(generators, 2000).astype(float)
    assert stats.kstest(draws.ravel(), "norm").pvalue > 1e-4
    assert abs((draws**4).mean() - 3) < 0.15 and abs(draws).max() > 4
    correlations = np.corrcoef(draws)[np.triu_indices(100, 1)]
    assert stats.kstest(correlations * np.sqrt(2000), "norm").pvalue > 1e-4
    # Box and Muller make two draws of one word: the pair must be independent in its squares too.
    halves = draws[:, :976], draws[:, 1024:]
    assert abs(np.corrcoef(halves[0].ravel() ** 2, halves[1].ravel() ** 2)[0, 1]) < 5 / np.sqrt(halves[0].size)
    shifted = [np.corrcoef(draws[0, :-lag], draws[0, lag:])[0, 1] for lag in range(1, 20)]
    assert np.abs(shifted).max() < 5 / np.sqrt(2000)


def test_normals_at_the_ends_of_their_words():
    """The largest and the smallest radius are finite, and a million draws match the normal tail."""
    words = np.array([0, 2**64 - 1, 2**24 - 1, (2**40 - 1) << 24], np.uint64)
    assert np.isfinite(standard_normals(words)).all()
    assert standard_normals(np.zeros(1, np.uint64))[0] == pytest.approx(np.sqrt(80 * np.log(2)))
    draws = gaussian_noise([STREAMS.generator(0, 0, NOISE)], 2_000_000).ravel()
    for level in (0.1, 1.0, 2.0, 3.0, 4.0):
        expected = len(draws) * stats.norm.sf(level)
        for tail in (draws > level, draws < -level):
            assert abs(tail.sum() - expected) < 5 * np.sqrt(expected)
