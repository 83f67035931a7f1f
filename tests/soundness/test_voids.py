"""What silently voids a certificate, item by item (docs/soundness.md has the list): each is refused or handled, and a test says so."""

import dataclasses
import stat

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.errors import MucdError
from mucd_ray.learn import fused
from mucd_ray.learn.ensemble import ENGINES, clipped_sum, train_block
from mucd_ray.learn.learner import Learner
from mucd_ray.learn.losses import ALGORITHMS, behaviour_cloning, output_deltas
from mucd_ray.learn.networks import Network, as_module, initial_parameters
from mucd_ray.learn.opacus_engine import train_opacus
from mucd_ray.learn.streams import NOISE, SAMPLE, Streams, poisson_sample
from mucd_ray.mechanism.mechanism import Mechanism
from mucd_ray.service import session
from mucd_ray.service.run import Choices, training_arrays
from mucd_ray.service.session import CONDITIONAL, Request, make_settings
from mucd_ray.service.store import RunStore
from mucd_ray.service.work import train_and_evaluate

STREAMS = Streams(b"the secret of these tests")
NETWORKS = [Network(inputs=5, outputs=3), Network(inputs=5, outputs=3, hidden=(16, 9))]
KINDS = [(name, kind) for name, entry in ALGORITHMS.items() for kind in ("discrete", "continuous") if getattr(entry, kind)]
EVERY_LOSS = pytest.mark.parametrize("algorithm,kind", KINDS)
BOTH_ENGINES = pytest.mark.parametrize("engine", ENGINES)


def units(rng, rows, kind, network=NETWORKS[0]):
    """Features float32 [rows, inputs] and targets as the losses want them."""
    x = rng.standard_normal((rows, network.inputs)).astype(np.float32)
    if kind == "discrete":
        return x, rng.integers(0, network.outputs, rows)
    return x, rng.standard_normal((rows, network.outputs)).astype(np.float32)


def parameters(network, rng, scale=0.3):
    return (scale * rng.standard_normal(network.parameter_count)).astype(np.float32)


def summed(engine, algorithm, kind, network, flat, x, targets, clip_norm):
    """The engine's clipped sum over all rows, without noise, float64 [parameter_count]."""
    entry = ALGORITHMS[algorithm]
    if engine == "fused":
        delta = getattr(entry, f"{kind}_delta")
        return fused.clipped_sum(network, flat, x, targets, delta, clip_norm).astype(float)
    flat, x, targets = (torch.tensor(array)[None] for array in (flat, x, targets))
    result = clipped_sum(network, flat, x, targets, [x.shape[1]], output_deltas(getattr(entry, kind)), clip_norm)
    return result[0].double().numpy()


def trained(features, actions, instances, *, engine="fused", network=NETWORKS[0], algorithm="bc", streams=STREAMS, learner=None, **plan):
    """Flat parameters [P, parameter_count] of instances."""
    mechanism = {"sample_rate": 0.1, "noise_multiplier": 1.0, "clip_norm": 0.5, "steps": 6, "normaliser": 20.0} | plan
    learner = learner or Learner(algorithm=algorithm, hidden=network.hidden, learning_rate=0.3, average=0.5)
    result = train_block(
        network=network, learner=learner, mechanism=Mechanism(**mechanism), features=features, actions=actions,
        instances=instances, streams=streams, engine=engine,
    )
    return np.concatenate([tensor.numpy().reshape(len(instances), -1) for tensor in result.values()], axis=1)


def cartpole(rows=300, seed=0):
    """A made-up CartPole dataset in memory: 15 trajectories."""
    rng = np.random.default_rng(seed)
    ends = np.zeros(rows, bool)
    ends[rows // 15 - 1 :: rows // 15] = True
    observations = (0.2 * rng.standard_normal((rows, 4))).astype(np.float32)
    return OfflineDataset.from_arrays(
        observations=observations, next_observations=observations, actions=rng.integers(0, 2, rows), rewards=np.ones(rows),
        terminations=ends, truncations=np.zeros(rows, bool), action_space=gymnasium.spaces.Discrete(2),
        observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32), name="made-up", env_id="CartPole-v1",
    )


def with_rows(dataset, rows, **changes):
    """The dataset of these rows, one trajectory, with some arrays replaced."""
    names = ("observations", "next_observations", "actions", "rewards", "terminations", "truncations")
    arrays = {name: getattr(dataset, name)[rows].copy() for name in names} | changes
    ends = np.zeros(len(rows), bool)
    return dataclasses.replace(dataset, **arrays | {"terminations": ends, "truncations": ends, "trajectory_starts": np.array([0, len(rows)])})


# Constants and scaling


def test_a_row_more_or_fewer_changes_no_constant_and_no_feature_of_the_other_rows():
    dataset = cartpole()
    rows, request = np.arange(len(dataset)), Request(dataset="made-up", steps=5)
    for other_rows in (rows[:-1], np.r_[rows, 7]):
        observations = dataset.observations[other_rows].copy()
        # What an attacker puts into a new row, or the values that the lost row had, move nothing else.
        observations[len(rows) :] = 1e30
        here, _ = make_settings(request, dataset, Choices())
        there, _ = make_settings(request, with_rows(dataset, other_rows, observations=observations), Choices())
        differing = {field.name for field in dataclasses.fields(here) if getattr(here, field.name) != getattr(there, field.name)}
        # How far the size is from the next rounded one only caps the radius; the fingerprint names the data.
        assert differing <= {"units", "fingerprint", "size_margin"} and here.mechanism == there.mechanism
        shared = min(len(rows), len(other_rows))
        for ours, theirs in zip(training_arrays(here, dataset), training_arrays(there, with_rows(dataset, other_rows)), strict=True):
            assert ours[:shared].tobytes() == theirs[:shared].tobytes()


def test_no_array_of_training_depends_on_another_row():
    """Row i of what is trained on is a function of row i alone: no statistic, no return, no filter, no next row can enter it."""
    dataset = cartpole()
    settings_, _ = make_settings(Request(dataset="made-up", steps=5), dataset, Choices())
    before = training_arrays(settings_, dataset)
    changed = {name: getattr(dataset, name).copy() for name in ("observations", "next_observations", "actions", "rewards")}
    row = 40
    changed["observations"][row], changed["next_observations"][row] = 1e30, -1e30
    changed["rewards"][row], changed["actions"][row] = -1e30, 1 - changed["actions"][row]
    terminations = dataset.terminations.copy()
    terminations[row] = True
    starts = np.unique(np.r_[dataset.trajectory_starts, row + 1])
    poisoned = dataclasses.replace(dataset, **changed, terminations=terminations, trajectory_starts=starts)
    after = training_arrays(settings_, poisoned)
    others = np.arange(len(dataset)) != row
    for ours, theirs in zip(before, after, strict=True):
        assert ours.shape == theirs.shape and ours[others].tobytes() == theirs[others].tobytes()


@BOTH_ENGINES
@EVERY_LOSS
@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_an_instance_that_never_sampled_a_unit_does_not_know_it(engine, algorithm, kind, network):
    """Whole trainings on D, on D with one unit more, and on D with one unit replaced: bit for bit the same unless it was sampled."""
    x, targets = units(np.random.default_rng(1), 60, kind)
    more_x, more_targets = np.vstack([x, np.full((1, 5), 30.0, np.float32)]), np.concatenate([targets, targets[:1]])
    replaced_x = x.copy()
    replaced_x[17] = -40.0
    instances, options = range(40), {"engine": engine, "network": network, "algorithm": algorithm, "sample_rate": 0.1}
    on_d, on_more, on_replaced = (trained(a, b, instances, **options) for a, b in ((x, targets), (more_x, more_targets), (replaced_x, targets)))
    seen = {60: [], 17: []}
    for instance in instances:
        samples = [poisson_sample(STREAMS.generator(instance, step, SAMPLE), 61, 0.1) for step in range(6)]
        for unit, flags in seen.items():
            flags.append(any(unit in sample for sample in samples))
    for other, unit in ((on_more, 60), (on_replaced, 17)):
        touched = np.array(seen[unit])
        assert 5 < touched.sum() < 35
        assert on_d[~touched].tobytes() == other[~touched].tobytes()
        assert (on_d[touched] != other[touched]).any(axis=1).all()


# The clipped sum


@BOTH_ENGINES
@EVERY_LOSS
@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_the_sum_of_a_batch_is_the_sum_of_its_units(engine, algorithm, kind, network):
    """A term that couples units (a batch mean, a weight normalised over the batch, a running statistic) would break this."""
    rng = np.random.default_rng(2)
    x, targets = units(rng, 150, kind)
    x[5], x[6], x[9] = np.nan, np.inf, 1e30
    flat = parameters(network, rng)
    for clip_norm in (1e-3, 0.4, 1e4):
        arguments = engine, algorithm, kind, network, flat
        alone = sum(summed(*arguments, x[i : i + 1], targets[i : i + 1], clip_norm) for i in range(len(x)))
        together = summed(*arguments, x, targets, clip_norm)
        np.testing.assert_allclose(together, alone, rtol=0, atol=3e-6 * np.abs(alone).max() + 1e-5 * clip_norm)


# Widths are small here. How far rounding can carry a norm in wide layers is measured below.
ANY = st.one_of(
    st.floats(width=32),
    st.sampled_from([np.nan, np.inf, -np.inf, 1e30, -1e30, 3e38, 1e19, -1e19, -0.0, 1e-30, 1e-38, 1e-45, -1e-45, 1.8446744e19]),
)
UNIT = st.tuples(st.lists(ANY, min_size=5, max_size=5), st.lists(ANY, min_size=3, max_size=3), st.integers(0, 2))


@BOTH_ENGINES
@EVERY_LOSS
@settings(max_examples=80, deadline=None)
@given(
    network=st.sampled_from(NETWORKS), old=UNIT, new=UNIT, log_scale=st.integers(-20, 15), log_clip=st.integers(-6, 4),
    others=st.integers(0, 4), place=st.integers(0, 4), seed=st.integers(0, 9),
)
@example(NETWORKS[0], ([1e-45] * 5, [-0.0] * 3, 0), ([1e30] * 5, [1e30] * 3, 1), 0, 0, 2, 0, 0)
def test_one_unit_moves_the_sum_by_at_most_c_and_twice_c_if_replaced(
    engine, algorithm, kind, network, old, new, log_scale, log_clip, others, place, seed
):
    rng, clip_norm = np.random.default_rng(seed), 10.0**log_clip
    flat = parameters(network, rng, 10.0**log_scale)
    x, targets = units(rng, others + 1, kind)
    place = min(place, others)

    def with_unit(values):
        features, continuous, discrete = values
        x[place], targets[place] = features, discrete if kind == "discrete" else continuous
        return summed(engine, algorithm, kind, network, flat, x, targets, clip_norm), x[place : place + 1].copy(), targets[place : place + 1].copy()

    keep = np.arange(others + 1) != place
    without = summed(engine, algorithm, kind, network, flat, x[keep], targets[keep], clip_norm) if others else 0.0
    before, *old_unit = with_unit(old)
    after, *new_unit = with_unit(new)
    # The float32 sum over the other units is itself rounded; a unit by itself is not.
    rounding = 1 + 1e-6 * others
    for whole, unit in ((before, old_unit), (after, new_unit)):
        alone = summed(engine, algorithm, kind, network, flat, *unit, clip_norm)
        assert np.isfinite(whole).all() and np.linalg.norm(alone) <= clip_norm
        assert np.linalg.norm(whole - without) <= clip_norm * rounding
        if not all(np.isfinite(part).all() for part in unit):
            assert not alone.any()
    assert np.linalg.norm(after - before) <= 2 * clip_norm * rounding


@BOTH_ENGINES
def test_rounding_carries_no_norm_beyond_c(engine):
    """The attacker's best: squares that a running float32 sum rounds away, one after the other. It stays below C in wide layers too."""
    worst = {}
    for inputs in (4, 32, 256, 800, 4096, 20_000):
        network, excess = Network(inputs=inputs, outputs=2), -1.0
        for first in (0.0, 0.5, 1.0, 1.01, 3.0, 30.0):
            for unit_roundings in (0.06, 0.12, 0.124, 0.25, 0.49, 0.5, 0.99, 1.0, 1.9):
                for heads in (1, 8, 16):
                    ulp = np.spacing(np.float32(1.0 + first * first))
                    x = np.full((1, inputs), np.sqrt(ulp * unit_roundings), np.float32)
                    x[0, :heads] = first
                    alone = summed(engine, "bc", "discrete", network, np.zeros(network.parameter_count, np.float32), x, np.zeros(1, np.int64), 1e-3)
                    excess = max(excess, np.linalg.norm(alone) / 1e-3 - 1)
        worst[inputs] = excess
    assert max(worst.values()) <= 0
    # And the margin for it costs no signal.
    assert min(worst.values()) > -1e-3 and worst[4] > -1e-5


@BOTH_ENGINES
@EVERY_LOSS
@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_one_clipped_vector_per_unit_and_step_covers_all_parameters(engine, algorithm, kind, network):
    """Released parameters after one step, with the same noise: everything that is released moves by C together, not C each."""
    x, targets = units(np.random.default_rng(3), 30, kind)
    options = {"engine": engine, "network": network, "algorithm": algorithm, "sample_rate": 1.0, "noise_multiplier": 0.01, "clip_norm": 1.0}
    options |= {"steps": 1, "normaliser": 1.0, "learner": Learner(algorithm=algorithm, hidden=network.hidden, learning_rate=1.0)}
    whole = trained(x, targets, range(3), **options)
    removed = trained(x[1:], targets[1:], range(3), **options)
    loud = x.copy()
    loud[0] *= 100
    replaced = trained(loud, targets, range(3), **options)
    assert whole.shape == (3, network.parameter_count)
    assert np.all(np.linalg.norm(whole - removed, axis=1) <= 1 + 1e-5)
    assert np.all(np.linalg.norm(replaced - removed, axis=1) <= 1 + 1e-5)
    # The unit is loud enough to reach C, unless all ReLUs are shut for it.
    assert np.linalg.norm(replaced - removed, axis=1).max() > 0.99


@BOTH_ENGINES
@EVERY_LOSS
def test_a_unit_that_is_not_finite_counts_as_no_unit(engine, algorithm, kind):
    x, targets = units(np.random.default_rng(4), 40, kind)
    runs = []
    for value in (np.nan, np.inf, -np.inf, 3e38):
        broken = x.copy()
        broken[3, 1], broken[20] = value, value
        runs.append(trained(broken, targets, range(8), engine=engine, algorithm=algorithm, network=NETWORKS[1]))
    assert np.isfinite(runs[0]).all() and all(run.tobytes() == runs[0].tobytes() for run in runs)
    assert (runs[0] != trained(x, targets, range(8), engine=engine, algorithm=algorithm, network=NETWORKS[1])).any()


@EVERY_LOSS
def test_no_batch_is_cut_to_fit_memory(algorithm, kind):
    """Every unit sampled at every step, and far more than any buffer holds at once, in blocks of one and of many instances."""
    x, targets = units(np.random.default_rng(5), 5000, kind)
    options = {"sample_rate": 1.0, "normaliser": 5000.0, "steps": 3, "algorithm": algorithm}
    by_kernel, by_torch = (trained(x, targets, range(3), engine=engine, **options) for engine in ENGINES)
    np.testing.assert_allclose(by_kernel, by_torch, rtol=0, atol=3e-6)
    # A sum over half of the rows would be far away.
    assert np.abs(by_kernel - trained(x[:2500], targets[:2500], range(3), **options)).max() > 1e-3
    alone = train_block(
        network=NETWORKS[0], learner=Learner(algorithm=algorithm, learning_rate=0.3, average=0.5), features=x, actions=targets, instances=[2],
        mechanism=Mechanism(sample_rate=1.0, noise_multiplier=1.0, clip_norm=0.5, steps=3, normaliser=5000.0), streams=STREAMS, engine="torch", block=1,
    )
    assert np.concatenate([t.numpy().reshape(1, -1) for t in alone.values()], axis=1).tobytes() == by_torch[2:].tobytes()


def test_opacus_batches_are_whole_too():
    x, targets = units(np.random.default_rng(6), 1500, "discrete")
    learner = Learner(learning_rate=0.3)
    plan = Mechanism(sample_rate=0.95, noise_multiplier=1.0, clip_norm=0.5, steps=2, normaliser=1500.0)
    module = train_opacus(
        lambda generator: as_module(NETWORKS[0], initial_parameters(NETWORKS[0], generator)), behaviour_cloning, learner, plan, x, targets, 1, STREAMS
    )
    ours = trained(x, targets, [1], learner=learner, sample_rate=0.95, steps=2, normaliser=1500.0)[0]
    theirs = np.concatenate([module[0].weight.data.numpy().T.ravel(), module[0].bias.data.numpy()])
    np.testing.assert_allclose(ours, theirs, atol=3e-6)


def test_trajectories_are_not_passed_off_as_transitions():
    x, targets = units(np.random.default_rng(7), 20, "discrete")
    with pytest.raises(MucdError, match="trajectory"):
        trained(x, targets, [0], unit="trajectory")


# Instances, hyperparameters, seeds


@pytest.mark.filterwarnings("ignore:invalid value")
def test_instances_whose_parameters_overflow_vote_and_play_like_all_others():
    """A learning rate that ends in inf and NaN: nobody is dropped, re-seeded or ranked, and every block agrees on what they do."""
    dataset = cartpole()
    request = Request(dataset="made-up", steps=6, sample_rate=0.1, noise_multiplier=400.0, learner=Learner(learning_rate=3e38))
    settings_, _ = make_settings(request, dataset, Choices())
    arrays, states = training_arrays(settings_, dataset), dataset.observations[:9]
    whole = train_and_evaluate(settings_, b"s" * 32, *arrays, states, range(12), "cpu")
    broken = ~np.isfinite(whole.parameters["0.weight"]).all(axis=(1, 2))
    assert broken.any()
    assert whole.actions.shape == (12, 9) and np.isin(whole.actions, (0, 1)).all()
    low, high = settings_.card.return_range
    assert np.all((low <= whole.returns) & (whole.returns <= high))
    for first, last in ((0, 5), (5, 12)):
        part = train_and_evaluate(settings_, b"s" * 32, *arrays, states, range(first, last), "cpu")
        assert part.returns.tobytes() == whole.returns[first:last].tobytes() and np.array_equal(part.actions, whole.actions[first:last])


@pytest.mark.parametrize("given", [{"learner": Learner(learning_rate=1.0)}, {"clip_norm": 0.3}, {"sample_rate": 0.1}, {"noise_multiplier": 9.0, "sample_rate": 0.1}])
def test_constants_that_the_user_gave_make_the_claim_conditional(given):
    settings_, _ = make_settings(Request(**{"dataset": "made-up", "steps": 5} | given), cartpole(), Choices())
    assert CONDITIONAL in " ".join(settings_.assumptions)
    ours, _ = make_settings(Request(dataset="made-up"), cartpole(), Choices())
    assert CONDITIONAL not in " ".join(ours.assumptions)


def test_the_secret_comes_from_the_operating_system_and_a_seed_is_spelled_out(tmp_path, monkeypatch):
    settings_, _ = make_settings(Request(dataset="made-up", steps=5), cartpole(), Choices())
    stores = [RunStore.create_or_open(tmp_path / str(i), settings_) for i in range(3)]
    assert len({store.secret() for store in stores}) == 3 and all(len(store.secret()) == 32 for store in stores)
    assert all(stat.S_IMODE((store.path / "secret").stat().st_mode) == 0o600 for store in stores)
    drawn = []
    monkeypatch.setattr("mucd_ray.service.store.secrets.token_bytes", lambda size: drawn.append(size) or b"\x05" * size)
    assert RunStore.create_or_open(tmp_path / "patched", settings_).secret() == b"\x05" * 32 and drawn[0] == 32

    class Stop(Exception):
        pass

    def stop(store, *_):
        raise Stop(store)

    monkeypatch.setattr(session, "load_dataset", lambda name: cartpole())
    monkeypatch.setattr(session, "train", stop)
    with pytest.raises(Stop) as stopped:
        session.execute(Request(dataset="made-up", steps=5), str(tmp_path / "seeded"), choices=Choices(), seed=11)
    assert "--seed" in " ".join(stopped.value.args[0].settings().assumptions)


# Noise and sampling


@BOTH_ENGINES
def test_the_noise_of_training_is_normal_with_the_stated_scale(engine):
    """A million draws, read off trained parameters: batches are empty, so every released number is the noise alone."""
    network, sigma, clip_norm = Network(inputs=199, outputs=100), 3.0, 0.2
    x, targets = np.zeros((2, 199), np.float32), np.zeros(2, np.int64)
    options = {"engine": engine, "network": network, "sample_rate": 1e-9, "noise_multiplier": sigma, "clip_norm": clip_norm, "normaliser": 1.0}
    options["learner"] = Learner(learning_rate=1.0)
    one = -trained(x, targets, range(50), steps=1, **options).astype(float)
    two = -trained(x, targets, range(50), steps=2, **options) - one
    z = one.ravel() / (sigma * clip_norm)
    assert stats.kstest(z, "norm").pvalue > 1e-4
    assert abs((z**2).mean() - 1) < 5 * np.sqrt(2 / len(z)) and abs(z.mean()) < 5 / np.sqrt(len(z))
    assert abs((z**4).mean() - 3) < 5 * np.sqrt(96 / len(z))
    for level in (2.0, 3.0, 4.0, 4.5):
        expected = 2 * len(z) * stats.norm.sf(level)
        assert abs((np.abs(z) > level).sum() - expected) < 5 * np.sqrt(expected)
    squares = z[np.abs(z) > 4] ** 2
    assert abs(squares.mean() - stats.norm.expect(np.square, lb=4, conditional=True)) < 5 * squares.std() / np.sqrt(len(squares))
    # Instances and steps share nothing.
    rows = np.vstack([one, two])
    correlations = np.corrcoef(rows)[np.triu_indices(len(rows), 1)] * np.sqrt(rows.shape[1])
    assert stats.kstest(correlations, "norm").pvalue > 1e-4 and np.abs(correlations).max() < 5.5
    squares = np.corrcoef(rows**2)[np.triu_indices(len(rows), 1)] * np.sqrt(rows.shape[1])
    assert np.abs(squares).max() < 5.5


def test_streams_of_other_instances_steps_and_purposes_share_no_number():
    blocks = [
        STREAMS.generator(instance, step, purpose).bit_generator.random_raw(16)
        for instance in range(12) for step in range(12) for purpose in (NOISE, SAMPLE, 0, 3)
    ]
    words = np.concatenate(blocks)
    assert len(np.unique(words)) == len(words)


def test_every_subset_is_sampled_with_its_probability():
    """Eight units: all 256 subsets, over instances and steps, have Poisson sampling's probabilities (chi-square)."""
    q, drawn = 0.4, 40_000
    masks = np.array([(1 << poisson_sample(STREAMS.borrow(i % 200, i // 200, SAMPLE), 8, q)).sum() for i in range(drawn)], dtype=int)
    sizes = np.array([mask.bit_count() for mask in range(256)])
    expected = drawn * q**sizes * (1 - q) ** (8 - sizes)
    assert stats.chisquare(np.bincount(masks, minlength=256), expected).pvalue > 1e-4
    # Four of them: pairs of samples, of neighbouring steps and of neighbouring instances, are independent.
    few = (masks & 15).reshape(200, 200)
    probabilities = q ** sizes[:16] * (1 - q) ** (4 - sizes[:16])
    for first, second in ((few[:-1:2], few[1::2]), (few[:, :-1:2], few[:, 1::2])):
        joint = np.bincount((16 * first + second).ravel(), minlength=256)
        assert stats.chisquare(joint, joint.sum() * np.outer(probabilities, probabilities).ravel()).pvalue > 1e-4


@pytest.mark.parametrize("units_,q", [(20_000, 0.0013), (1000, 0.05), (40, 0.93)])
def test_inclusions_are_binomial_and_independent_across_units_and_steps(units_, q):
    """Exact binomial tests of single units, of pairs of units in one sample and of one unit in consecutive samples."""
    steps, watched = 3000, np.r_[0, 1, 2, units_ // 2, units_ - 2, units_ - 1]
    included = np.zeros((steps, len(watched)), bool)
    for step in range(steps):
        included[step] = np.isin(watched, poisson_sample(STREAMS.borrow(3, step, SAMPLE), units_, q))
    trials = [(included[:, i].sum(), steps, q) for i in range(len(watched))]
    trials += [((included[:, i] & included[:, j]).sum(), steps, q * q) for i in range(len(watched)) for j in range(i)]
    trials += [((included[::2, i] & included[1::2, i]).sum(), steps // 2, q * q) for i in range(len(watched))]
    least = min(stats.binomtest(int(count), n, p).pvalue for count, n, p in trials)
    assert least > 1e-3 / len(trials)
