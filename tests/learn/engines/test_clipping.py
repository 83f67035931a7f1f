"""The clipped sum against Opacus and its sensitivity, for transitions and for trajectories."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opacus import GradSampleModule
from problems import CPU, INPUTS, cases, changed, clipped_sum, made_up, problem, random_parameters, take, trajectories, transitions

from mucd_ray.learn.algorithm import Transition
from mucd_ray.learn.engines import stacked
from mucd_ray.learn.engines.clipping import clip_factors
from mucd_ray.learn.engines.stacked import UnitsOnDevice, Workspace
from mucd_ray.learn.networks import as_module, layer_views

ONE_NETWORK = pytest.mark.parametrize("engine,algorithm,discrete", [
    (engine, algorithm, discrete) for engine in ("torch", "padded", "fused") for algorithm, discrete in (("bc", True), ("bc", False), ("dqn", True))
])
HIDDEN = [(), (16, 9), (32,)]


def per_sample(problem, flat, units):
    """Gradients [N, parameter_count] of every row's loss by Opacus, of an algorithm with one network; the target copy is `flat` too."""
    module = GradSampleModule(as_module(problem.network, flat))
    outputs = module(torch.tensor(units.features))
    context = as_module(problem.network, flat)(torch.tensor(units.next_features)).detach() if problem.algorithm.context else outputs[:, :0]
    rows = Transition(*(torch.tensor(array) for array in (units.actions, units.rewards, units.keeps)))
    losses = [problem.algorithm.loss(outputs[i], context[i], Transition(*(part[i] for part in rows)), problem.constants) for i in range(len(outputs))]
    torch.stack(losses).mean().backward()
    return torch.cat([p.grad_sample.flatten(1) for p in module.parameters()], 1).numpy()


@ONE_NETWORK
@pytest.mark.filterwarnings("ignore:Full backward hook")
@pytest.mark.parametrize("unit", ["transition", "trajectory"])
@pytest.mark.parametrize("hidden", HIDDEN, ids=str)
def test_agrees_with_opacus_per_sample_gradients(engine, algorithm, discrete, unit, hidden):
    rng, asked = np.random.default_rng(1), problem(algorithm, discrete, hidden=hidden)
    flat, units = random_parameters(asked, rng), made_up(unit, asked, 150 if unit == "transition" else 30, rng)
    rows = per_sample(asked, flat, units)
    vectors = rows if unit == "transition" else np.array([part.mean(0) for part in np.split(rows, units.starts[1:])])
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    clip_norm = float(np.median(norms))
    expected = (vectors * np.minimum(1, clip_norm / np.maximum(norms, 1e-30))).sum(0)
    assert np.abs(clipped_sum(engine, asked, flat, units, clip_norm) - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("hidden", [(), (16, 9)], ids=str)
@pytest.mark.parametrize("unit", ["transition", "trajectory"])
@pytest.mark.parametrize("algorithm,discrete", [("dqn", True), ("bc", False), ("td3-bc", False)])
def test_no_unit_reaches_another_through_padding_or_memory(algorithm, discrete, unit, hidden, padded):
    """Every unit as an instance of its own, in one workspace that broken units have used before: vectors are bit for bit those in fresh memory."""
    asked, rng = problem(algorithm, discrete, hidden=hidden, local_steps=2), np.random.default_rng(4)
    units = made_up(unit, asked, 12, rng, longest=70)
    flat = torch.zeros(12, -(-asked.parameter_count // 32) * 32)
    flat[:, : asked.parameter_count] = torch.from_numpy(random_parameters(asked, rng))
    rows = [[np.arange(start, start + length)] for start, length in zip(units.starts, units.lengths)]

    def vectors(data, rows, workspace):
        out = torch.full_like(flat, np.nan)
        with torch.no_grad():
            on_device = UnitsOnDevice(data, CPU, padded=padded)
            drawn = on_device.gather([np.concatenate(parts) if parts else np.zeros(0, int) for parts in rows]) if unit == "transition" else rows
            stacked.clipped_sum(asked, flat, flat, on_device, drawn, 0.5, out=out, workspace=workspace)
        return out[:, : asked.parameter_count].numpy()

    clean, workspace = vectors(units, rows, Workspace(CPU)), Workspace(CPU)
    assert clean.any(axis=1).all()
    for value in (np.nan, np.inf, 1e30):
        broken = units
        for index in (0, 5):
            broken = changed(broken, index, features=value, next_features=value, rewards=value)
        # The longest unit is broken in every row of the padding that others will have.
        everything = changed(units, int(np.argmax(units.lengths)), features=value, next_features=value, rewards=value)
        vectors(everything, [rows[int(np.argmax(units.lengths))]] * 12, workspace)
        beside = vectors(broken, rows, workspace)
        kept = np.setdiff1d(np.arange(12), (0, 5))
        assert beside[kept].tobytes() == clean[kept].tobytes()
        assert vectors(units, rows, workspace).tobytes() == clean.tobytes()
        # Nor does an instance whose sample is empty read anything, though row 0 fills its place.
        empty = vectors(broken, [[], *rows[1:]], workspace)
        assert not empty[0].any() and empty[kept].tobytes() == clean[kept].tobytes()


ANY = st.one_of(
    st.floats(width=32),
    st.sampled_from([np.nan, np.inf, -np.inf, 1e30, -1e30, 1e19, 3e38, -3e38, 1e-30, 1e-45]),
)


@cases(("torch", "padded", "fused"))
@settings(max_examples=15, deadline=None)
@given(
    hidden=st.sampled_from(HIDDEN), features=ANY, following=ANY, reward=ANY, log_scale=st.integers(-12, 4), log_clip=st.integers(-6, 3),
    length=st.integers(1, 4), local_steps=st.integers(1, 3), log_rate=st.integers(-2, 6),
)
@example((), 3e38, 0.0, 0.0, 0, -6, 1, 1, 0)
@example((), 3e38, 3e38, 3e38, 0, 3, 4, 3, 6)
def test_a_unit_by_itself_adds_at_most_the_clip_norm(
    engine, algorithm, discrete, unit, hidden, features, following, reward, log_scale, log_clip, length, local_steps, log_rate
):
    asked = problem(algorithm, discrete, hidden=hidden, local_steps=local_steps, local_rate=10.0**log_rate)
    rng, clip_norm = np.random.default_rng(2), 10.0**log_clip
    units = transitions(asked, 1, rng) if unit == "transition" else trajectories(asked, [length], rng)
    units = changed(units, 0, features=features, next_features=following, rewards=reward)
    alone = clipped_sum(engine, asked, random_parameters(asked, rng, 10.0**log_scale), units, clip_norm)
    assert np.isfinite(alone).all() and np.linalg.norm(alone) <= clip_norm
    if not np.isfinite(features):
        assert not alone.any()


@cases()
def test_the_norm_is_that_of_the_whole_vector(engine, algorithm, discrete, unit):
    asked, rng = problem(algorithm, discrete, hidden=(16, 9)), np.random.default_rng(3)
    summed = clipped_sum(engine, asked, random_parameters(asked, rng), made_up(unit, asked, 1, rng), 0.001)
    assert np.linalg.norm(summed) == pytest.approx(0.001, rel=1e-5)
    start, flat = 0, torch.from_numpy(summed)[None]
    for _, network in asked.networks:
        assert all(weight.any() and bias.any() for weight, bias in layer_views(network, flat[:, start:]))
        start += network.parameter_count


@pytest.mark.parametrize("engine", ["torch", "padded", "fused"])
def test_a_trajectory_adds_one_vector_however_long_it_is(engine):
    """Of length 0: none. Up to and beyond the cap: one of norm C, the mean over the rows that take part. Gradients that cancel: none."""
    asked, rng = problem("bc", cap=9), np.random.default_rng(5)
    flat = np.zeros(asked.parameter_count, np.float32)
    for length in (1, 8, 9, 10, 1000):
        units = trajectories(asked, [length, 0], rng)
        worst = changed(units, 0, features=1e6, action=0)
        assert np.linalg.norm(clipped_sum(engine, asked, flat, worst, 0.5)) == pytest.approx(0.5, rel=1e-5)
        copies = take(worst, [0] * 30)
        assert np.linalg.norm(clipped_sum(engine, asked, flat, copies, 0.5)) == pytest.approx(15, rel=1e-5)
        # Equal rows: their mean is one row's gradient, whichever take part.
        quiet = changed(units, 0, features=0.1, action=0)
        single = changed(trajectories(asked, [1], rng), 0, features=0.1, action=0)
        np.testing.assert_allclose(*(clipped_sum(engine, asked, flat, data, 1e3) for data in (quiet, single)), rtol=1e-5, atol=1e-8)
    # Two actions' logits pulled both ways by the same state: each row alone is loud, their mean is zero.
    two = problem("bc", actions=2)
    cancelling = changed(trajectories(two, [6], rng), 0, features=1e3, action=np.arange(6) % 2)
    assert np.abs(clipped_sum(engine, two, np.zeros(two.parameter_count, np.float32), cancelling, 0.5)).max() < 1e-3


@pytest.mark.parametrize("engine", ["torch", "padded", "fused"])
@pytest.mark.parametrize("hidden", [(), (16, 9)], ids=str)
def test_a_local_update_that_diverges_counts_as_no_unit(engine, hidden):
    """Squared error with a local rate of 1e6 overflows within a few steps; without it the same units count."""
    asked, rng = problem("bc", False, hidden=hidden, local_steps=12, local_rate=1e6), np.random.default_rng(6)
    flat, units = random_parameters(asked, rng), trajectories(asked, [5, 3], rng)
    assert not clipped_sum(engine, asked, flat, units, 0.5).any()
    tame = problem("bc", False, hidden=hidden, local_steps=12, local_rate=1e-3)
    assert clipped_sum(engine, tame, flat, units, 0.5).any()


@pytest.mark.parametrize("engine", ["torch", "padded", "fused"])
def test_the_largest_numbers_exceed_the_clip_norm_by_no_rounding(engine):
    """A finite update of norm 1e38 and more would need a factor below float32's normal range, where rounding may add a third to a norm."""
    asked, rng = problem("bc"), np.random.default_rng(7)
    flat, units = np.zeros(asked.parameter_count, np.float32), trajectories(asked, [1], rng)
    for clip_norm in (1e-6, 1e-3, 1.0):
        for feature in (1e30, *np.linspace(1e37, 3.4e38, 20)):
            alone = clipped_sum(engine, asked, flat, changed(units, 0, features=feature, action=0), clip_norm)
            assert np.linalg.norm(alone) <= clip_norm and alone.any() == (feature * np.sqrt(INPUTS * 2 / 3) < 1e37 * clip_norm)


def test_factors():
    squares = torch.tensor([0.0, 0.25, 1.0, np.inf, np.nan, 1e80], dtype=torch.float64)
    factors = clip_factors(squares, 0.5)
    assert factors[:3].tolist() == pytest.approx([1.0, 1.0, 0.5], rel=1e-5) and factors[1] < 1
    assert not factors[3:].any()
