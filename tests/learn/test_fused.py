"""The fused engine: its streams against numpy's, its deltas against torch's gradients, its runs against the torch engine's."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mucd_ray.learn import ensemble, fused_random
from mucd_ray.learn.ensemble import train_block
from mucd_ray.learn.learner import Learner
from mucd_ray.learn.losses import ALGORITHMS, Algorithm, output_deltas
from mucd_ray.learn.networks import Network
from mucd_ray.learn.streams import NOISE, SAMPLE, Streams, exponentials, poisson_sample, standard_normals
from mucd_ray.mechanism.mechanism import Mechanism

STREAMS = Streams(b"a secret of tests")


@pytest.mark.parametrize("instance,step,purpose", [(0, 0, 0), (3, 7, SAMPLE), (2**40 + 1, 2**33, NOISE), (2**64 - 1, 2**64 - 1, 3)])
def test_philox_is_numpys(instance, step, purpose):
    words = np.empty(400, np.uint64)
    fused_random.philox(STREAMS.key, 1, np.uint64(purpose), np.uint64(step), np.uint64(instance), words)
    assert np.array_equal(words, STREAMS.generator(instance, step, purpose).bit_generator.random_raw(400))
    # A later start continues the stream.
    fused_random.philox(STREAMS.key, 51, np.uint64(purpose), np.uint64(step), np.uint64(instance), words[:200])
    assert np.array_equal(words[:200], words[200:])


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
    fused_random.standard_normals(words, normals)
    # float32 rounds an angle near a full turn by 2.4e-7, the largest radius is 7.4.
    np.testing.assert_allclose(normals, standard_normals(words), rtol=0, atol=2.5e-6)


FINITE = st.floats(-60, 60, width=32)


@settings(max_examples=100, deadline=None)
@given(outputs=st.lists(FINITE, min_size=1, max_size=18), seed=st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("algorithm,kind", [
    (name, kind) for name, entry in ALGORITHMS.items() for kind in ("discrete", "continuous") if getattr(entry, f"{kind}_delta")
])
def test_deltas_are_the_gradients_of_the_losses(algorithm, kind, outputs, seed):
    entry, rng = ALGORITHMS[algorithm], np.random.default_rng(seed)
    outputs = np.array(outputs, np.float32)
    action = rng.integers(len(outputs)) if kind == "discrete" else rng.standard_normal(len(outputs)).astype(np.float32)
    expected = output_deltas(getattr(entry, kind))(torch.tensor(outputs)[None].double(), torch.tensor(action)[None])[0].numpy()
    for function in (getattr(entry, f"{kind}_delta"), compiled_delta(algorithm, kind)):
        deltas = np.empty_like(outputs)
        function(outputs, action, deltas)
        np.testing.assert_allclose(deltas, expected, rtol=1e-6, atol=2e-7)


COMPILED = {}


def compiled_delta(algorithm, kind):
    if (algorithm, kind) not in COMPILED:
        COMPILED[algorithm, kind] = numba.njit(getattr(ALGORITHMS[algorithm], f"{kind}_delta"))
    return COMPILED[algorithm, kind]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_deltas_of_bad_outputs_are_not_finite(bad):
    """The kernel drops a row by its deltas. -inf is a probability of zero, which is no error unless every output has it."""
    for algorithm, entry in ALGORITHMS.items():
        outputs, deltas = np.array([0.5, bad, 0.1], np.float32), np.empty(3, np.float32)
        if entry.continuous_delta:
            compiled_delta(algorithm, "continuous")(outputs, np.zeros(3, np.float32), deltas)
            assert not np.isfinite(deltas).all()
        if entry.discrete_delta and bad != -np.inf:
            compiled_delta(algorithm, "discrete")(outputs, 0, deltas)
            assert not np.isfinite(deltas).all()


def dataset(units, inputs, outputs, continuous):
    rng = np.random.default_rng(0)
    features = rng.standard_normal((units, inputs)).astype(np.float32)
    features[:3] = np.array([np.nan, np.inf, 1e30])[:, None]
    actions = rng.standard_normal((units, outputs)).astype(np.float32) if continuous else rng.integers(0, outputs, units)
    features.flags.writeable = actions.flags.writeable = False
    return features, actions


def run(network, learner, batch, continuous, instances=(3, 8), steps=30, **options):
    features, actions = dataset(2000, network.inputs, network.outputs, continuous)
    mechanism = Mechanism(sample_rate=batch / 2000, noise_multiplier=0.8, clip_norm=0.5, steps=steps, normaliser=float(batch))
    return train_block(
        network=network, learner=learner, mechanism=mechanism, features=features, actions=actions, instances=instances,
        streams=STREAMS, **options,
    )


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("batch", [1, 40, 130, 2000])
@pytest.mark.parametrize("hidden,options", [
    ((), {"learning_rate": 0.3, "momentum": 0.7, "average": 0.3}),
    ((), {"learning_rate": 0.02, "optimiser": "adam"}),
    ((19, 8), {"learning_rate": 0.3}),
    ((19, 8), {"learning_rate": 0.01, "optimiser": "adam", "average": 1.0}),
])
def test_both_engines_agree_over_noisy_steps(hidden, options, batch, continuous):
    network, learner = Network(inputs=5, outputs=3, hidden=hidden), Learner(hidden=hidden, **options)
    # With the whole set in a batch, some unit is soon so near a ReLU's corner that rounding decides; three steps stay clear of it.
    steps = 3 if batch == 2000 and hidden else 30
    compiled, reference = (run(network, learner, batch, continuous, steps=steps, engine=engine) for engine in ensemble.ENGINES)
    scale = max(tensor.abs().max() for tensor in reference.values())
    # Adam divides by the root of the second moment, so where a first gradient is nearly zero it magnifies that gradient's rounding.
    tolerance = 1e-5 if learner.optimiser == "adam" else 1e-6
    for name in reference:
        assert (compiled[name] - reference[name]).abs().max() <= tolerance * scale


def test_threads_do_not_disturb_one_another():
    network, learner = Network(inputs=5, outputs=3, hidden=(64, 64)), Learner(hidden=(64, 64), optimiser="adam", learning_rate=0.01)
    alone = run(network, learner, 130, False, instances=range(8), steps=50)
    with ThreadPoolExecutor(4) as threads:
        parts = list(threads.map(lambda i: run(network, learner, 130, False, instances=[i], steps=50), range(8)))
    assert all(torch.equal(torch.cat([part[name] for part in parts]), alone[name]) for name in alone)


def test_what_the_kernel_cannot_train_the_torch_engine_does(monkeypatch):
    network, learner = Network(inputs=5, outputs=3), Learner(learning_rate=0.3)
    reference = run(network, learner, 40, False, engine="torch")
    with monkeypatch.context() as patch:
        patch.setattr(ensemble, "find_spec", lambda name: None)
        without_numba = run(network, learner, 40, False)
    assert not torch.equal(reference["0.weight"], run(network, learner, 40, False)["0.weight"])
    monkeypatch.setitem(ALGORITHMS, "bc", Algorithm(discrete=ALGORITHMS["bc"].discrete, continuous=None))
    without_delta = run(network, learner, 40, False)
    assert all(torch.equal(reference[name], other[name]) for other in (without_numba, without_delta) for name in reference)


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from test_fused import *
network, learner = Network(inputs=5, outputs=3, hidden=(8,)), Learner(hidden=(8,), learning_rate=0.1)
for continuous in map(int, sys.argv[1]):
    trained = run(network, learner, 40, continuous)
    print([tensor.numpy().tobytes().hex() for tensor in trained.values()])
"""


def processes(count, order="01", **environment):
    """Outputs of `count` processes that run at once and train with discrete (0) and continuous (1) actions in the given order."""
    script = SCRIPT.format(tests=os.path.dirname(__file__))
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
