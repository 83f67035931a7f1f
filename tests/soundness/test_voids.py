"""What silently voids a certificate, item by item (docs/soundness.md has the list): each is refused or handled, and a test says so."""

import dataclasses
import stat
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from problems import (
    CPU,
    STREAMS,
    cases,
    changed,
    clipped_sum,
    joined,
    made_up,
    problem,
    random_parameters,
    released,
    rows_of,
    take,
    trained,
    trajectories,
    transitions,
)
from scipy import stats

from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.errors import MucdError
from mucd_ray.learn.engines.modules import train_opacus
from mucd_ray.learn.engines.stacked import Draws, UnitsOnDevice
from mucd_ray.learn.ensemble import ENGINES
from mucd_ray.learn.learner import Learner, LocalUpdate
from mucd_ray.learn.networks import as_module, initial_parameters
from mucd_ray.learn.streams import INITIALISE, NOISE, ROLLOUT, SAMPLE, poisson_sample, subset_purpose
from mucd_ray.learn.units import Units
from mucd_ray.mechanism.gaussian.mechanism import Mechanism
from mucd_ray.service.runs import session
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.driver import training_units
from mucd_ray.service.runs.session import CONDITIONAL, Request, make_settings
from mucd_ray.service.runs.work import train_and_evaluate
from mucd_ray.service.storage.store import RunStore

HIDDEN = pytest.mark.parametrize("hidden", [(), (16, 9)], ids=str)
BOTH_ENGINES = pytest.mark.parametrize("engine", ENGINES)
ALL_SUMS = ("torch", "padded", "fused")


def cartpole(trajectories=60, seed=0):
    """A made-up CartPole dataset in memory: trajectories of 1 to 19 transitions, each of reward 1."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 20, trajectories)
    rows, ends = lengths.sum(), np.zeros(lengths.sum(), bool)
    ends[np.cumsum(lengths) - 1] = True
    observations, following = (0.2 * rng.standard_normal((2, rows, 4))).astype(np.float32)
    return OfflineDataset.from_arrays(
        observations=observations, next_observations=following, actions=rng.integers(0, 2, rows), rewards=np.ones(rows),
        terminations=ends, truncations=np.zeros(rows, bool), action_space=gymnasium.spaces.Discrete(2),
        observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32), name="made-up", env_id="CartPole-v1",
    )


ROWS = ("observations", "next_observations", "actions", "rewards", "terminations", "truncations")


def with_rows(dataset, rows, starts=None):
    """The dataset of these rows, cut into trajectories at `starts`, or one trajectory without an end."""
    arrays = {name: getattr(dataset, name)[rows].copy() for name in ROWS}
    if starts is None:
        starts, arrays["terminations"] = [0, len(rows)], np.zeros(len(rows), bool)
    return dataclasses.replace(dataset, **arrays, trajectory_starts=np.array(starts))


def with_trajectories(dataset, chosen):
    """The dataset of these trajectories, in this order."""
    parts = [np.arange(*dataset.trajectory_starts[i : i + 2]) for i in chosen]
    return with_rows(dataset, np.concatenate(parts), np.cumsum([0, *map(len, parts)]))


def contents(units, unit):
    """All that a unit brings into training, as bytes."""
    return b"|".join(array[rows_of(units, unit)].tobytes() for name, array in units.arrays().items() if name not in ("starts", "lengths"))


# Constants and scaling


def settings_of(unit, dataset, learner=None):
    """Settings of a run on values learned by bootstrapping; trajectories that earn less than 10 count as zero."""
    local = LocalUpdate(cap=7, steps=2, min_return=10.0 if unit == "trajectory" else None)
    learner = learner or Learner(algorithm="dqn", learning_rate=0.5, local=local)
    return make_settings(Request(dataset="made-up", unit=unit, steps=5, learner=learner), dataset, Choices())[0]


@pytest.mark.parametrize("unit", ["transition", "trajectory"])
def test_a_unit_more_or_fewer_changes_no_constant_and_no_other_unit(unit):
    dataset = cartpole()
    if unit == "transition":
        rows = np.arange(len(dataset))
        others = [with_rows(dataset, rows[:-1]), with_rows(dataset, np.r_[rows, 7])]
    else:
        others = [with_trajectories(dataset, range(59)), with_trajectories(dataset, [*range(60), 7])]
    # What an attacker puts into a new unit moves nothing else.
    others[1].observations[len(dataset) :] = 1e30
    others[1].rewards[len(dataset) :] = -1e30
    here, ours = settings_of(unit, dataset), training_units(settings_of(unit, dataset), dataset)
    for other in others:
        there = settings_of(unit, other)
        differing = {field.name for field in dataclasses.fields(here) if getattr(here, field.name) != getattr(there, field.name)}
        # How far the size is from the next rounded one only caps the radius; the fingerprint names the data.
        assert differing <= {"units", "fingerprint", "size_margin"} and here.mechanism == there.mechanism
        theirs = training_units(there, other)
        # A row is cut out of its trajectory here, and whether an episode ended is a fact of the row.
        keeps = dataclasses.replace(ours, keeps=np.ones_like(ours.keeps)) if unit == "transition" else ours
        assert abs(len(theirs) - len(ours)) == 1
        for index in range(min(len(ours), len(theirs))):
            assert contents(keeps, index) == contents(theirs, index)


def test_no_row_of_training_depends_on_another_row():
    """Row i of what is trained on is a function of row i alone: no statistic, no return, no filter, no other row's next state can enter it."""
    dataset, row = cartpole(), 40
    before = training_units(settings_of("transition", dataset), dataset)
    changes = {name: getattr(dataset, name).copy() for name in ROWS}
    changes["observations"][row], changes["next_observations"][row] = 1e30, -1e30
    changes["rewards"][row], changes["actions"][row], changes["terminations"][row] = -1e30, 1 - changes["actions"][row], True
    poisoned = dataclasses.replace(dataset, **changes, trajectory_starts=np.unique(np.r_[dataset.trajectory_starts, row + 1]))
    after = training_units(settings_of("transition", poisoned), poisoned)
    assert contents(before, row) != contents(after, row)
    for ours, theirs in zip(before.arrays().values(), after.arrays().values(), strict=True):
        # Where the trajectories of a source end is kept of sources alone.
        assert ours.shape == theirs.shape and (not len(ours) or np.delete(ours, row, axis=0).tobytes() == np.delete(theirs, row, axis=0).tobytes())


def test_no_unit_depends_on_another_trajectory():
    """Of another length, with other rewards and states: all other units stay what they are, those that the least return leaves out, too."""
    dataset = cartpole()
    rewards = np.random.default_rng(1).normal(1, 1, len(dataset))
    dataset = dataclasses.replace(dataset, rewards=rewards)
    poisoned = with_trajectories(dataset, [*range(20), 3, *range(21, 60)])
    first = poisoned.trajectory_starts[20]
    poisoned.observations[first], poisoned.next_observations[first], poisoned.rewards[first] = 1e30, -1e30, 1e30
    before, after = (training_units(settings_of("trajectory", data), data) for data in (dataset, poisoned))
    assert before.lengths[20] != after.lengths[20] and 10 < (before.lengths == 0).sum() < 50
    assert all(contents(before, index) == contents(after, index) for index in range(60) if index != 20)
    # The return of a unit is that of its own rows, to the last bit, wherever it lies.
    ugly = dataclasses.replace(dataset, rewards=rewards * 1e-3 + 1e8)
    moved = with_trajectories(ugly, [41, *range(60)])
    assert ugly.trajectory_returns.tobytes() == moved.trajectory_returns[1:].tobytes()


def test_a_least_return_of_transitions_is_refused():
    dataset = cartpole()
    learner = Learner(learning_rate=0.5, local=LocalUpdate(min_return=10.0))
    with pytest.raises(MucdError, match="--unit trajectory"):
        training_units(settings_of("transition", dataset, learner), dataset)


@cases()
def test_an_instance_that_never_sampled_a_unit_does_not_know_it(engine, algorithm, discrete, unit):
    """Whole trainings on D, on D with one unit more, and on D with one unit replaced: bit for bit the same unless it was sampled."""
    asked = problem(algorithm, discrete, hidden=(16, 9), average=0.5, cap=4, local_steps=2, local_rate=1e-3)
    pool = made_up(unit, asked, 62, np.random.default_rng(1))
    for index in (60, 61):
        pool = changed(pool, index, features=30.0, rewards=-40.0)
    on_d, on_more, on_replaced = (
        trained(asked, take(pool, chosen), range(40), engine=engine) for chosen in (range(60), range(61), [*range(17), 61, *range(18, 60)])
    )
    for other, index in ((on_more, 60), (on_replaced, 17)):
        touched = np.array([any(index in poisson_sample(STREAMS.generator(i, step, SAMPLE), 61, 0.1) for step in range(6)) for i in range(40)])
        assert 5 < touched.sum() < 35
        assert on_d[~touched].tobytes() == other[~touched].tobytes()
        # A shut ReLU may hide a unit from a policy.
        assert (on_d[touched] != other[touched]).any(axis=1).mean() > 0.8


# The clipped sum


@cases(ALL_SUMS)
@HIDDEN
def test_the_sum_of_a_batch_is_the_sum_of_its_units(engine, algorithm, discrete, unit, hidden):
    """A term that couples units (a batch mean, a weight normalised over the batch, a running statistic, another row's next state) would break this."""
    rng, asked = np.random.default_rng(2), problem(algorithm, discrete, hidden=hidden, local_steps=2)
    units = made_up(unit, asked, 25, rng)
    for index, value in enumerate((np.nan, np.inf, 1e30)):
        units = changed(units, 5 + index, features=value)
        units = changed(units, 15 + index, next_features=value, rewards=value)
    flat = random_parameters(asked, rng)
    for clip_norm in (1e-3, 0.4, 1e4):
        alone = sum(clipped_sum(engine, asked, flat, take(units, [i]), clip_norm) for i in range(len(units)))
        together = clipped_sum(engine, asked, flat, units, clip_norm)
        np.testing.assert_allclose(together, alone, rtol=0, atol=3e-6 * np.abs(alone).max() + 1e-5 * clip_norm)


# Widths are small here. How far rounding can carry a norm in wide layers is measured below.
ANY = st.one_of(
    st.floats(width=32),
    st.sampled_from([np.nan, np.inf, -np.inf, 1e30, -1e30, 3e38, 1e19, -1e19, -0.0, 1e-30, 1e-38, 1e-45, -1e-45, 1.8446744e19]),
)
UNIT = st.fixed_dictionaries({
    "features": st.lists(ANY, min_size=5, max_size=5), "next_features": st.lists(ANY, min_size=5, max_size=5), "rewards": ANY,
    "keeps": st.sampled_from([0.0, 1.0]), "continuous": st.lists(ANY, min_size=3, max_size=3), "discrete": st.integers(0, 2),
    "length": st.integers(1, 3),
})
TINY = {"features": [1e-45] * 5, "next_features": [1e-45] * 5, "rewards": -0.0, "keeps": 1.0, "continuous": [-0.0] * 3, "discrete": 0, "length": 1}
HUGE = TINY | {"features": [1e30] * 5, "next_features": [3e38] * 5, "rewards": 1e30, "continuous": [1e30] * 3, "discrete": 1, "length": 3}


@cases(ALL_SUMS)
@settings(max_examples=25, deadline=None)
@given(
    hidden=st.sampled_from([(), (16, 9)]), old=UNIT, new=UNIT, log_scale=st.integers(-20, 15), log_clip=st.integers(-6, 4),
    others=st.integers(0, 4), place=st.integers(0, 4), copies=st.integers(1, 5), local_steps=st.integers(1, 3), log_rate=st.integers(-2, 6),
    seed=st.integers(0, 9),
)
@example((), TINY, HUGE, 0, 0, 2, 0, 3, 1, 0, 0)
@example((16, 9), HUGE, TINY, 0, 0, 2, 0, 3, 3, 6, 0)
def test_r_units_move_the_sum_by_at_most_r_c_and_twice_that_if_replaced(
    engine, algorithm, discrete, unit, hidden, old, new, log_scale, log_clip, others, place, copies, local_steps, log_rate, seed
):
    asked = problem(algorithm, discrete, hidden=hidden, local_steps=local_steps, local_rate=10.0**log_rate)
    rng, clip_norm, place = np.random.default_rng(seed), 10.0**log_clip, min(place, others)
    flat, rest = random_parameters(asked, rng, 10.0**log_scale), made_up(unit, asked, others + 1, rng)

    def poisoned(values):
        """One unit with these values."""
        values = dict(values)
        length, action = values.pop("length"), (values.pop("discrete"), values.pop("continuous"))[not discrete]
        one = transitions(asked, 1, rng) if unit == "transition" else trajectories(asked, [length], rng)
        return changed(one, 0, action=action, **values)

    def summed(*parts):
        """Of the data sets, one after the other."""
        parts = [part for part in parts if part is not None]
        return clipped_sum(engine, asked, flat, joined(*parts), clip_norm) if parts else np.zeros(asked.parameter_count)

    before, after = (take(rest, range(place)) if place else None), (take(rest, range(place, others)) if place < others else None)
    old, new = poisoned(old), poisoned(new)
    without, wholes = summed(before, after), []
    # The float32 sum over the other units is itself rounded; a unit by itself is not.
    rounding = 1 + 1e-6 * (others + copies)
    for bad in (old, new):
        whole, alone = summed(before, *[bad] * copies, after), summed(bad)
        assert np.isfinite(whole).all() and np.linalg.norm(alone) <= clip_norm
        assert np.linalg.norm(whole - without) <= copies * clip_norm * rounding
        if not np.isfinite(bad.features).all():
            assert not alone.any()
        wholes.append(whole)
    assert np.linalg.norm(wholes[0] - wholes[1]) <= 2 * copies * clip_norm * rounding


@pytest.mark.parametrize("engine", ALL_SUMS)
def test_rounding_carries_no_norm_beyond_c(engine):
    """The attacker's best: squares that a running float32 sum rounds away, one after the other. It stays below C in wide layers too."""
    worst = {}
    for inputs in (4, 32, 256, 800, 4096, 20_000):
        asked, excess = problem(inputs=inputs, actions=2), -1.0
        flat, units = np.zeros(asked.parameter_count, np.float32), transitions(asked, 1, np.random.default_rng(0))
        units = dataclasses.replace(units, actions=np.zeros(1, np.int64))
        for first in (0.0, 0.5, 1.0, 1.01, 3.0, 30.0):
            for unit_roundings in (0.06, 0.12, 0.124, 0.25, 0.49, 0.5, 0.99, 1.0, 1.9):
                for heads in (1, 8, 16):
                    ulp = np.spacing(np.float32(1.0 + first * first))
                    x = np.full((1, inputs), np.sqrt(ulp * unit_roundings), np.float32)
                    x[0, :heads] = first
                    alone = clipped_sum(engine, asked, flat, dataclasses.replace(units, features=x), 1e-3)
                    excess = max(excess, np.linalg.norm(alone) / 1e-3 - 1)
        worst[inputs] = excess
    assert max(worst.values()) <= 0
    # And the margin for it costs no signal.
    assert min(worst.values()) > -1e-3 and worst[4] > -1e-5


@cases()
@HIDDEN
def test_one_clipped_vector_per_unit_and_step_covers_all_parameters(engine, algorithm, discrete, unit, hidden):
    """All that is released after one step, with the same noise: critic, value and policy move by C together, not C each."""
    asked = problem(algorithm, discrete, hidden=hidden, learning_rate=1.0)
    units = made_up(unit, asked, 30, np.random.default_rng(3))
    loud = changed(units, 0, features=100 * units.features[rows_of(units, 0)], rewards=100.0)
    options = {"engine": engine, "sample_rate": 1.0, "noise_multiplier": 0.01, "clip_norm": 1.0, "steps": 1, "normaliser": 1.0}
    whole, removed, replaced = (released(asked, data, range(3), **options) for data in (units, take(units, range(1, 30)), loud))
    assert whole.shape == (3, asked.parameter_count)
    assert np.all(np.linalg.norm(whole - removed, axis=1) <= 1 + 1e-5)
    assert np.all(np.linalg.norm(replaced - removed, axis=1) <= 1 + 1e-5)
    # The unit is loud enough to reach C, unless all ReLUs are shut for it.
    assert np.linalg.norm(replaced - removed, axis=1).max() > 0.99


@cases()
def test_a_unit_that_is_not_finite_counts_as_no_unit(engine, algorithm, discrete, unit):
    """One bad row is enough. Bit for bit the same training, whatever makes the unit not finite."""
    asked = problem(algorithm, discrete, hidden=(16, 9), local_steps=2)
    units, runs = made_up(unit, asked, 40, np.random.default_rng(4)), []
    for value in (np.nan, np.inf, -np.inf):
        features = units.features.copy()
        features[units.starts[3], 1] = features[units.starts[20]] = value
        runs.append(trained(asked, dataclasses.replace(units, features=features), range(8), engine=engine))
    assert np.isfinite(runs[0]).all() and all(run.tobytes() == runs[0].tobytes() for run in runs)
    assert (runs[0] != trained(asked, units, range(8), engine=engine)).any()
    if unit == "trajectory":
        shut = units.lengths.copy()
        shut[[3, 20]] = 0
        # A vector of zeros may change the order of a sum, nothing else.
        np.testing.assert_allclose(runs[0], trained(asked, dataclasses.replace(units, lengths=shut), range(8), engine=engine), rtol=0, atol=1e-6)


@pytest.mark.parametrize("algorithm,discrete", [("bc", True), ("dqn", True)])
@pytest.mark.parametrize("unit", ["transition", "trajectory"])
def test_no_batch_is_cut_to_fit_memory(unit, algorithm, discrete):
    """Every unit sampled at every step, and far more than any buffer holds at once, in blocks of one and of many instances."""
    asked, rng, count = problem(algorithm, discrete, average=0.5), np.random.default_rng(5), {"transition": 5000, "trajectory": 900}[unit]
    units = made_up(unit, asked, count, rng)
    options = {"sample_rate": 1.0, "normaliser": float(count), "steps": 3}
    by_kernel, by_torch = (trained(asked, units, range(3), engine=engine, **options) for engine in ("fused", "torch"))
    np.testing.assert_allclose(by_kernel, by_torch, rtol=0, atol=3e-6)
    # A sum over half of the units would be far away.
    assert np.abs(by_kernel - trained(asked, take(units, range(count // 2)), range(3), engine="fused", **options)).max() > 1e-3
    assert trained(asked, units, [2], engine="torch", block=1, **options).tobytes() == by_torch[2:].tobytes()


@pytest.mark.parametrize("unit", ["transition", "trajectory"])
def test_opacus_batches_are_whole_too(unit):
    asked, count = problem("dqn"), {"transition": 1500, "trajectory": 400}[unit]
    units = made_up(unit, asked, count, np.random.default_rng(6))
    plan = {"sample_rate": 0.95, "noise_multiplier": 1.0, "clip_norm": 0.5, "steps": 2, "normaliser": float(count)}
    module = train_opacus(
        lambda generator: as_module(asked.network, initial_parameters(asked.network, generator)), asked, Mechanism(unit=unit, **plan), units, 1, STREAMS
    )
    theirs = np.concatenate([module[0].weight.data.numpy().T.ravel(), module[0].bias.data.numpy()])
    np.testing.assert_allclose(trained(asked, units, [1], **plan)[0], theirs, atol=3e-6)


@pytest.mark.parametrize("unit,other", [("transition", "trajectory"), ("trajectory", "transition")])
def test_trajectories_are_not_passed_off_as_transitions(unit, other):
    asked = problem()
    units = made_up(unit, asked, 20, np.random.default_rng(7))
    with pytest.raises(MucdError, match=other):
        trained(asked, units, [0], unit=other)
    with pytest.raises(MucdError):
        Units(**vars(units) | {"unit": "transition", "starts": np.arange(len(units)), "lengths": np.full(len(units), 2)})


def test_a_row_belongs_to_one_unit():
    """Overlapping trajectories would let one row into two clipped vectors."""
    units = trajectories(problem(), [5, 5, 5], np.random.default_rng(8))
    with pytest.raises(MucdError, match="two units"):
        dataclasses.replace(units, starts=np.array([0, 4, 10]))
    with pytest.raises(MucdError, match="two units"):
        dataclasses.replace(units, starts=np.array([10, 0, 9]))
    dataclasses.replace(units, starts=np.array([10, 0, 2]), lengths=np.array([5, 5, 0]))


def test_which_rows_take_part_follows_from_secret_randomness_alone():
    """The same rows whatever the unit contains; others in every instance, step and unit; each row of a unit equally likely (chi-square)."""
    asked, rng, instances = problem(cap=3), np.random.default_rng(9), 500
    units, draws = trajectories(asked, [10, 10], rng), 8 * instances

    def chosen(units):
        """Rows [draws, 2, 3]: those of both units in eight steps of every instance."""
        drawn = Draws(STREAMS, range(instances), UnitsOnDevice(units, CPU), 1.0, asked.learner.local.cap)
        return np.array([drawn.rows(step) for step in range(8)]).reshape(draws, 2, 3)

    rows = chosen(units)
    assert np.array_equal(rows, chosen(changed(changed(units, 0, features=np.nan), 1, rewards=1e30)))
    rows[:, 1] -= 10
    assert (np.diff(rows, axis=2) >= 3).all() and rows.min() == 0 and rows.max() == 9
    for unit in (0, 1):
        counts = np.bincount(rows[:, unit].ravel(), minlength=10)
        assert abs(counts - 0.3 * draws).max() < 5 * np.sqrt(0.21 * draws)
    pairs = np.bincount(10 * rows[:, 0, 0] + rows[:, 1, 0], minlength=100).reshape(10, 10)[:4, :4]
    assert stats.chi2_contingency(pairs).pvalue > 1e-4


# Instances, hyperparameters, seeds


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("unit", ["transition", "trajectory"])
def test_instances_whose_parameters_overflow_vote_and_play_like_all_others(unit):
    """A learning rate that ends in inf and NaN: nobody is dropped, re-seeded or ranked, and every block agrees on what they do."""
    dataset = cartpole()
    request = Request(dataset="made-up", unit=unit, steps=6, sample_rate=0.1, noise_multiplier=400.0, learner=Learner(algorithm="dqn", learning_rate=3e38))
    settings_, _ = make_settings(request, dataset, Choices())
    units, states = training_units(settings_, dataset), dataset.observations[:9]
    whole = train_and_evaluate(settings_, b"s" * 32, units, states, range(12), "cpu")
    broken = ~np.isfinite(whole.parameters["0.weight"]).all(axis=(1, 2))
    assert broken.any()
    assert whole.actions.shape == (12, 9) and np.isin(whole.actions, (0, 1)).all()
    low, high = settings_.card.return_range
    assert np.all((low <= whole.returns) & (whole.returns <= high))
    for first, last in ((0, 5), (5, 12)):
        part = train_and_evaluate(settings_, b"s" * 32, units, states, range(first, last), "cpu")
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
    system = SimpleNamespace(token_bytes=lambda size: drawn.append(size) or b"\x05" * size)
    monkeypatch.setattr("mucd_ray.service.storage.store.secrets", system)
    assert RunStore.create_or_open(tmp_path / "patched", settings_).secret() == b"\x05" * 32 and drawn == [32]

    class Stop(Exception):
        pass

    def stop(store, *_):
        raise Stop(store)

    monkeypatch.setattr(session, "load_dataset", lambda name, **asked: cartpole())
    monkeypatch.setattr(session, "train", stop)
    with pytest.raises(Stop) as stopped:
        session.execute(Request(dataset="made-up", steps=5), str(tmp_path / "seeded"), choices=Choices(), seed=11)
    assert "--seed" in " ".join(stopped.value.args[0].settings().assumptions)


# Noise and sampling


@BOTH_ENGINES
def test_the_noise_of_training_is_normal_with_the_stated_scale(engine):
    """A million draws, read off trained parameters: batches are empty, so every released number is the noise alone."""
    asked, sigma, clip_norm = problem(inputs=199, actions=100, learning_rate=1.0), 3.0, 0.2
    units = transitions(asked, 2, np.random.default_rng(0))
    options = {"engine": engine, "sample_rate": 1e-9, "noise_multiplier": sigma, "clip_norm": clip_norm, "normaliser": 1.0}
    one = -trained(asked, units, range(50), steps=1, **options).astype(float)
    two = -trained(asked, units, range(50), steps=2, **options) - one
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
        for instance in range(12) for step in range(12) for purpose in (NOISE, SAMPLE, INITIALISE, ROLLOUT, subset_purpose(0), subset_purpose(1), subset_purpose(2**40))
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
