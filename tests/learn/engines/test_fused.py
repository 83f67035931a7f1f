"""The fused engine: its streams against numpy's, its runs against the torch engine's."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from problems import LOSSES, changed, joined, made_up, problem, released, trained

from mucd_ray.learn import ensemble
from mucd_ray.learn.engines.fused import random as fused_random
from mucd_ray.learn.engines.fused import step as fused_step
from mucd_ray.learn.engines.fused.engine import FusedTrainer
from mucd_ray.learn.streams import NOISE, SAMPLE, Streams, exponentials, poisson_sample, spread_rows, standard_normals, uniform
from mucd_ray.mechanism.gaussian.mechanism import Mechanism

STREAMS = Streams(b"a secret of tests")


@pytest.mark.parametrize("instance,step,purpose", [(0, 0, 0), (3, 7, SAMPLE), (2**40 + 1, 2**33, NOISE), (2**64 - 1, 2**64 - 1, 3)])
def test_philox_is_numpys(instance, step, purpose):
    words = np.empty(416, np.uint64)
    fused_random.philox(STREAMS.key, 1, np.uint64(purpose), np.uint64(step), np.uint64(instance), words)
    assert np.array_equal(words, STREAMS.generator(instance, step, purpose).bit_generator.random_raw(416))
    # A later start continues the stream.
    fused_random.philox(STREAMS.key, 1 + 52, np.uint64(purpose), np.uint64(step), np.uint64(instance), words[:192])
    assert np.array_equal(words[:192], words[208:400])


@pytest.mark.parametrize("units,rate", [
    (50_000, 1e-300), (50_000, 1e-9), (50_000, 0.0026), (50_000, 0.1), (300, 0.5), (300, 0.97), (5, 1 - 1e-12), (300, 1.0), (1, 0.3),
])
def test_samples_are_identical(units, rate):
    for step in range(40):
        # Too small an array on purpose: it must be extended.
        sample, size = fused_random.poisson_sample(
            STREAMS.key, np.uint64(SAMPLE), np.uint64(step), np.uint64(9), units, rate, np.empty(1, np.int64)
        )
        assert np.array_equal(sample[:size], poisson_sample(STREAMS.generator(9, step, SAMPLE), units, rate))


def test_exponentials_are_identical_and_accurate():
    words = STREAMS.generator(0, 0, SAMPLE).bit_generator.random_raw(100_000)
    words[:4] = 0, 2**64 - 1, 2**11 - 1, 2**63
    compiled = np.empty(len(words))
    fused_random.exponentials(words, compiled)
    assert np.array_equal(compiled, exponentials(words))
    uniform = ((words >> np.uint64(11)) + np.uint64(1)) * 2.0**-53
    np.testing.assert_allclose(compiled, -np.log(uniform), rtol=1e-15, atol=2.0**-52)


def test_normals_are_those_of_the_reference():
    words = STREAMS.generator(0, 0, NOISE).bit_generator.random_raw(100_000)
    words[:4] = 0, 2**64 - 1, 2**24 - 1, (2**40 - 1) << 24
    # The angles of eighths of a turn, where quadrants meet.
    words[4:12] = (words[4:12] & np.uint64(~0xFFFFFF & (2**64 - 1))) | (np.arange(8, dtype=np.uint64) << np.uint64(21))
    normals = np.empty(2 * len(words), np.float32)
    fused_random.standard_normals(words, *np.split(normals, 2))
    # float32 rounds an angle near a full turn by 2.4e-7, the largest radius is 7.4.
    np.testing.assert_allclose(normals, standard_normals(words), rtol=0, atol=2.5e-6)


@pytest.mark.parametrize("length,cap", [(0, 5), (1, 5), (5, 5), (6, 5), (1000, 7), (1001, 1000)])
def test_subsets_are_identical(length, cap):
    for word in (0, 2**64 - 1, 2**63, 12345678901234567890):
        rows = np.empty(cap, np.int64)
        count = fused_step.spread_rows(70, length, cap, fused_random.uniform(np.uint64(word)), rows)
        assert np.array_equal(rows[:count], 70 + spread_rows(length, cap, uniform(word)))


BAD = (np.nan, np.inf, -np.inf, 1e30)
# A linear policy has one layer, 70 inputs are more than a tile of columns, 19 and 8 are no whole vectors.
SHAPES = [
    ({"learning_rate": 0.3, "momentum": 0.7, "average": 0.3}, 1, 0.1),
    ({"learning_rate": 0.02, "optimiser": "adam"}, 40, 0.9),
    ({"hidden": (19, 8), "learning_rate": 0.3}, 130, 0.1),
    ({"hidden": (19, 8), "learning_rate": 0.1, "momentum": 0.5, "inputs": 70}, 40, 0.3),
    ({"hidden": (64, 64), "learning_rate": 0.01, "optimiser": "adam", "average": 1.0}, 200, 0.1),
]


def with_bad_units(unit, asked, count, rng, longest=7):
    """`count` units, of which the first hold all kinds of content that counts as zero."""
    units = made_up(unit, asked, count, rng, longest)
    for index, bad in enumerate(BAD):
        units = changed(units, index, features=bad)
        units = changed(units, len(BAD) + index, rewards=bad)
        units = changed(units, 2 * len(BAD) + index, next_features=bad)
    return units


def cases():
    for algorithm, discrete in LOSSES:
        if ensemble.fused_trains(problem(algorithm, discrete)):
            for unit in ("transition", "trajectory"):
                quick = (algorithm, discrete) in (("bc", True), ("dqn", True))
                name = f"{algorithm}-{'discrete' if discrete else 'continuous'}-{unit}"
                yield pytest.param(algorithm, discrete, unit, id=name, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize("algorithm,discrete,unit", list(cases()))
def test_both_engines_agree_over_noisy_steps(algorithm, discrete, unit):
    for (shape, batch, share), local_steps in zip(SHAPES, (1, 3, 2, 1, 3)):
        asked = problem(algorithm, discrete, cap=25, local_steps=local_steps, **shape)
        if unit == "trajectory":
            batch = -(-batch // 10)
        units = with_bad_units(unit, asked, int(batch / share) + 20, np.random.default_rng(7), longest=90)
        plan = {"sample_rate": batch / len(units), "noise_multiplier": 0.8, "steps": 30, "normaliser": float(batch)}
        compiled, reference = (released(asked, units, [3, 8, 11, 2**40], engine=engine, **plan) for engine in ("fused", "torch"))
        assert np.isfinite(reference).all()
        errors = np.abs(compiled - reference).max(1) / np.abs(reference).max(1)
        # Adam divides by the root of the second moment, so where a first gradient is nearly zero it magnifies that gradient's rounding.
        # Where a unit is so near a ReLU's corner or two actions so nearly equal that rounding decides, an instance parts for good.
        assert np.sort(errors)[:-1].max() <= (5e-5 if "optimiser" in shape else 1e-6), (shape, errors)
        assert errors.max() <= 0.02


@pytest.mark.parametrize("unit", ["transition", "trajectory"])
def test_nothing_stays_from_bad_units_or_earlier_instances(unit):
    """Bit for bit: units that count as zero might as well be empty, and a trainer's memory does not carry anything on."""
    asked, rng = problem("dqn", hidden=(19, 8), local_steps=2, cap=80), np.random.default_rng(1)
    good = made_up(unit, asked, 60, rng, longest=90)
    bad, worse = (with_bad_units(unit, asked, 12, np.random.default_rng(2), longest=90) for _ in range(2))
    for index in range(12):
        bad, worse = changed(bad, index, features=np.nan), changed(worse, index, features=-np.inf)
    plan = Mechanism(unit=unit, sample_rate=0.7, noise_multiplier=0.5, clip_norm=1.0, steps=10, normaliser=40.0)
    first, second = (FusedTrainer(asked, plan, joined(good, units), STREAMS) for units in (bad, worse))
    expected = first.train(5)
    second.train(4)
    assert np.isfinite(expected).all() and np.array_equal(second.train(5), expected)


def test_threads_do_not_disturb_one_another():
    asked = problem(hidden=(64, 64), optimiser="adam", learning_rate=0.01)
    units = made_up("transition", asked, 2000, np.random.default_rng(0))

    def run(instances):
        return trained(asked, units, instances, engine="fused", steps=50, sample_rate=0.065)

    with ThreadPoolExecutor(4) as threads:
        parts = list(threads.map(lambda instance: run([instance]), range(8)))
    assert np.array_equal(np.concatenate(parts), run(range(8)))


def test_what_the_kernel_cannot_train_the_torch_engine_does(monkeypatch):
    asked, networks = problem(), problem("iql", discrete=False)
    units = made_up("transition", asked, 300, np.random.default_rng(0))
    reference = trained(asked, units, [3])
    assert not np.array_equal(reference, trained(asked, units, [3], engine="fused"))
    monkeypatch.setattr(ensemble, "find_spec", lambda name: None)
    assert np.array_equal(reference, trained(asked, units, [3], engine="fused"))
    monkeypatch.undo()
    assert not ensemble.fused_trains(networks)
    with pytest.raises(ValueError, match="one network"):
        FusedTrainer(networks, Mechanism(sample_rate=1, noise_multiplier=1, clip_norm=1, steps=1, normaliser=1), units, STREAMS)


SCRIPT = """
import sys
sys.path[:0] = {tests!r}
from test_fused import *
for discrete in map(int, sys.argv[1]):
    asked = problem("bc", bool(discrete), hidden=(8,), learning_rate=0.1)
    print(trained(asked, made_up("transition", asked, 300, np.random.default_rng(0)), [3, 8], engine="fused").tobytes().hex())
"""


def processes(count, order="01", **environment):
    """Outputs of `count` processes that run at once and train with continuous (0) and discrete (1) actions in the given order."""
    script = SCRIPT.format(tests=[os.path.dirname(__file__), os.path.dirname(os.path.dirname(__file__))])
    running = [
        subprocess.Popen([sys.executable, "-c", script, order], env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    outputs = [process.communicate()[0] for process in running]
    assert not any(process.returncode for process in running)
    return outputs


@pytest.mark.slow
def test_processes_that_compile_at_once_share_a_cache(tmp_path):
    first = processes(3, NUMBA_CACHE_DIR=str(tmp_path))
    again = processes(1, NUMBA_CACHE_DIR=str(tmp_path))
    assert len({*first, *again}) == 1 and first[0]
    assert len([path for path in tmp_path.rglob("*.nbc") if ".tmp." not in path.name]) == 2


@pytest.mark.slow
def test_kernels_that_different_processes_compiled_work_together(tmp_path):
    fresh = processes(1)[0]
    # The second kernel is compiled where the first one was loaded, so Numba numbers their helper functions differently.
    for order in ("0", "01", "01", "10"):
        output = processes(1, order, NUMBA_CACHE_DIR=str(tmp_path))[0].splitlines()
        assert output == [fresh.splitlines()[int(kind)] for kind in order]


@pytest.mark.slow
def test_no_folder_for_the_cache_is_no_error(tmp_path):
    (tmp_path / "file").touch()
    nowhere = processes(1, NUMBA_CACHE_DIR=str(tmp_path / "file" / "x"), NUMBA_CACHE_LOCATOR_CLASSES="UserProvidedCacheLocator")
    assert nowhere == processes(1)
