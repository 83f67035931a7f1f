"""Observations of every kind as one array, actions as one number or one row."""

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from own_spaces import Cells, Levers, Pictures, Rooms, Switches, card, record

from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.data.environments.card import EnvironmentCard
from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.data.spaces import MOST_JOINT_ACTIONS, Actions, Observations
from mucd_ray.errors import MucdError

LEAVES = st.one_of(
    st.integers(1, 4).flatmap(lambda n: st.integers(-3, 3).map(lambda start: gym.spaces.Discrete(n, start=start))),
    st.lists(st.integers(1, 3), min_size=1, max_size=3).map(gym.spaces.MultiDiscrete),
    st.integers(1, 3).map(gym.spaces.MultiBinary),
    st.lists(st.integers(1, 3), max_size=2).flatmap(
        lambda shape: st.sampled_from([np.float32, np.float64, np.int32, np.uint8]).map(lambda dtype: gym.spaces.Box(0, 9, tuple(shape), dtype))
    ),
)
SPACES = st.recursive(
    LEAVES, lambda inner: st.one_of(st.dictionaries(st.text("abz.", min_size=1, max_size=2), inner, min_size=1, max_size=3).map(gym.spaces.Dict), st.lists(inner, min_size=1, max_size=3).map(gym.spaces.Tuple)),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(SPACES, st.integers(0, 1000))
def test_observations_are_those_of_gymnasiums_flatten(space, seed):
    """Value for value and in its order; each in the declared space; one is what many are."""
    space.seed(seed)
    drawn, joined = [space.sample() for _ in range(3)], Observations.of(space)
    assert all(observation in joined.space for observation in map(joined.one, drawn))
    wanted = np.stack([gym.spaces.utils.flatten(space, one) for one in drawn])
    assert np.array_equal(np.stack([joined.one(one) for one in drawn]).reshape(3, -1), wanted)
    columns = [np.stack([joined.columns(one)[part] for one in drawn]) for part in range(len(joined.parts))]
    assert np.array_equal(joined.rows(columns).reshape(3, -1), wanted)


@pytest.mark.parametrize("space", [
    gym.spaces.MultiDiscrete([3, 2, 2], start=[1, 0, -2]), gym.spaces.MultiDiscrete([[2, 3], [1, 2]]), gym.spaces.MultiBinary(3), gym.spaces.MultiBinary([2, 2]),
    gym.spaces.MultiDiscrete([MOST_JOINT_ACTIONS]), gym.spaces.MultiBinary(9),
])
def test_joint_actions_are_numbered_as_numpy_does(space):
    actions, sizes = Actions(declared=space), space.nvec if isinstance(space, gym.spaces.MultiDiscrete) else np.full(space.shape, 2)
    start = getattr(space, "start", 0)
    every = np.stack([actions.original(number) for number in range(actions.space.n)])
    assert len(every) == np.prod(sizes) and all(action in space for action in every)
    assert np.array_equal(actions.rows(every), np.arange(len(every)))
    assert np.array_equal(np.ravel_multi_index((every - start).reshape(len(every), -1).T, sizes.reshape(-1)), np.arange(len(every)))


@pytest.mark.parametrize("space", [
    gym.spaces.MultiDiscrete([3, 2, 2, 50], start=[1, 0, -2, 7]), gym.spaces.MultiDiscrete([[30, 3], [1, 20]]), gym.spaces.MultiBinary(10), gym.spaces.MultiBinary([2, 5]),
    gym.spaces.MultiDiscrete([MOST_JOINT_ACTIONS + 1]), gym.spaces.MultiDiscrete([30, 30], dtype=np.int32),
])
def test_more_combinations_are_rows_of_components(space):
    """Each counted from 0: there and back, and nothing that is no action."""
    actions, rng = Actions(declared=space), np.random.default_rng(0)
    space.seed(0)
    drawn = np.stack([space.sample() for _ in range(20)])
    rows = actions.rows(drawn)
    sizes = np.reshape(getattr(space, "nvec", np.full(space.shape, 2)), -1)
    assert actions.components == tuple(sizes) and not actions.is_joint and actions.is_plain == (space == actions.space) and actions.count == 0
    assert actions.space == gym.spaces.MultiDiscrete(sizes) and all(row in actions.space for row in rows) and (rows.min() == 0 or len(sizes) == 1)
    assert all(np.array_equal(actions.original(row), one) and actions.original(row) in space for row, one in zip(rows, drawn))
    assert Actions(declared=actions.space).is_plain and Actions(declared=actions.space).components == actions.components
    place = rng.integers(drawn[0].size)
    for wrong in (np.max(getattr(space, "start", 0) + sizes.reshape(space.shape)), 0.5):
        spoiled = drawn.astype(float)
        spoiled.reshape(20, -1)[3, place] = wrong
        with pytest.raises(MucdError, match="1 of 20 actions are outside their space, first in row 3"):
            actions.rows(spoiled)


def test_boxes_of_any_shape_are_rows():
    actions = Actions(declared=Cells.action_space)
    row = actions.space.sample()
    assert row.shape == (4,) and np.array_equal(actions.rows(actions.original(row)[None])[0], row) and actions.original(row) in Cells.action_space


@pytest.mark.parametrize("space, message", [
    (gym.spaces.MultiDiscrete([4000, 97]), "more than 512 combinations, and their components more than 4,096 values in all"), (gym.spaces.MultiDiscrete(np.full(1 << 16, 2**60)), "combinations"),
    (gym.spaces.MultiBinary(1 << 20), "combinations"),
    (gym.spaces.Text(3), "type Text"), (gym.spaces.Dict(a=gym.spaces.Discrete(2)), "type Dict"),
])
def test_other_actions_are_refused(space, message, refusal):
    assert message in refusal(lambda: Actions(declared=space))


@pytest.mark.parametrize("space, keys, message", [
    (gym.spaces.Text(3), (), "observations are in a space of type Text"),
    (Rooms.observation_space, (), "key note are in a space of type Text"),
    (Rooms.observation_space, ("way", "where"), "no key 'where', they have count, near/0"),
    (gym.spaces.Box(0, 1, (2,)), ("a",), "they are one array"),
    (gym.spaces.Dict({"a/b": gym.spaces.Discrete(2)}), (), "without a slash"),
    (gym.spaces.Dict(), (), "no parts"),
    (gym.spaces.Dict(a=gym.spaces.Discrete(2**40)), (), "key a would become more than"),
    (gym.spaces.MultiDiscrete(np.full(4, 2**60)), (), "would become more than"),
    (gym.spaces.MultiDiscrete(np.full(4, 2**64 - 1, np.uint64), np.uint64), (), "whole numbers beyond"), (gym.spaces.MultiDiscrete([2], start=[-(2**62)]), (), "whole numbers beyond"),
    (gym.spaces.Dict({str(part): gym.spaces.Discrete(1 << 23) for part in range(3)}), (), "become 25,165,824 numbers"),
    (gym.spaces.Tuple([gym.spaces.Discrete(1)] * 1025), (), "more than 1,024 parts"),
])
def test_other_observations_are_refused(space, keys, message, refusal):
    assert message in refusal(lambda: Observations.of(space, keys))


def test_observations_deep_within_others_are_refused(refusal):
    space = gym.spaces.Discrete(1)
    for _ in range(9):
        space = gym.spaces.Tuple([space])
    assert "more than 8 deep" in refusal(lambda: Observations.of(space))


@pytest.mark.parametrize("name, value, message", [
    ("gear", [5.5, 5], "2 of 2|1 of 2 observations of key gear are outside"), ("gear", [4, 5], "1 of 2 observations of key gear are outside their space, first in row 0"),
    ("gear", [np.nan, 5], "key gear"), ("gear", [5], "there are 1 observations of key gear and 2"), ("gear", [["x"], ["y"]], "key gear"), ("on", [[0, 2], [0, 1]], "key on"),
    ("picture", np.full((2, 1, 2), 256), "key picture"), ("picture", np.full((2, 1, 2), 0.5), "key picture"), ("picture", np.zeros((2, 2)), "key picture have shape"), ("picture", 3, "key picture"),
])
def test_values_that_do_not_fit_name_their_key(name, value, message):
    space = gym.spaces.Dict(gear=gym.spaces.Discrete(3, start=5), on=gym.spaces.MultiBinary(2), picture=gym.spaces.Box(0, 255, (1, 2), np.uint8))
    good = {"gear": np.array([5, 7]), "on": np.zeros((2, 2), np.int8), "picture": np.zeros((2, 1, 2), np.uint8)}
    joined = Observations.of(space)
    assert joined.rows(joined.columns(good)).shape == (2, 7)
    with pytest.raises(MucdError, match=message):
        joined.rows(joined.columns(good | {name: value}))
    with pytest.raises(MucdError, match="missing"):
        joined.one({"gear": 5, "on": np.zeros(2)})
    for value in ("text", [1, [2]], {}, None, 10**30):
        with pytest.raises(MucdError, match="key gear"):
            joined.one({"gear": value, "on": [0, 1], "picture": [[1, 2]]})


def test_a_dataset_of_dictionaries_from_arrays():
    space = gym.spaces.Dict(b=gym.spaces.Discrete(2), a=gym.spaces.Box(-1, 1, (2,)))
    seen = {"a": np.eye(4, 2, dtype=np.float32), "b": np.array([0, 1, 1, 0])}
    dataset = OfflineDataset.from_arrays(
        observations=seen, next_observations=seen, actions=[[0, 1], [1, 0], [1, 1], [0, 0]], rewards=np.zeros(4), terminations=[0, 0, 0, 1], truncations=np.zeros(4),
        action_space=gym.spaces.MultiBinary(2), observation_space=space,
    )
    assert dataset.observations.tolist() == [[1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 0, 1], [0, 0, 1, 0]] and dataset.observations.dtype == np.float32
    assert dataset.actions.tolist() == [1, 2, 3, 0] and dataset.action_space == gym.spaces.Discrete(4) and dataset.declared_actions == gym.spaces.MultiBinary(2)


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("minari")))
        for data_format in ("hdf5", "arrow", "parquet"):
            record("Rooms-v0", f"rooms/{data_format}-v0", 3, data_format)
        record("Pictures-v0", "pictures/arrow-v0", 2, "arrow")
        record("Cells-v0", "cells/hdf5-v0", 2)
        for name in ("Levers", "Switches"):
            for data_format in ("hdf5", "parquet"):
                record(f"{name}-v0", f"{name.lower()}/{data_format}-v0", 2, data_format)
        yield


KEYS = ("count", "near", "way")


def test_every_format_and_the_live_environment_are_read_alike(rooms):
    """The card's environment gives, seed by seed, what the reader has read."""
    own = EnvironmentCard.from_dict(card("Rooms-v0")).of_keys(KEYS)
    datasets = [load_dataset(f"rooms/{data_format}-v0", observation_keys=KEYS) for data_format in ("hdf5", "arrow", "parquet")]
    assert len({dataset.fingerprint() for dataset in datasets}) == 1
    environment, dataset = own.make(), datasets[0]
    own.check(dataset)
    assert environment.observation_space.shape == dataset.observations.shape[1:] == own.observation_shape == (14,) and environment.action_space == dataset.action_space
    for trajectory in range(3):
        observation, _ = environment.reset(seed=trajectory)
        for row in range(10 * trajectory, 10 * trajectory + 10):
            assert np.array_equal(observation, dataset.observations[row])
            observation, reward, _, truncated, _ = environment.step(dataset.actions[row])
            assert reward == dataset.rewards[row] and np.array_equal(observation, dataset.next_observations[row])
        assert truncated
    assert own.features(dataset.observations).shape == (30, 14) and EnvironmentCard.from_dict(own.to_dict()) == own


@pytest.mark.parametrize("room, sizes", [(Levers, [11] * 3), (Switches, [2] * 10)])
def test_components_are_read_alike_by_every_format_and_taken_by_the_environment(rooms, room, sizes):
    name = room.__name__
    own, datasets = EnvironmentCard.from_dict(card(f"{name}-v0")), [load_dataset(f"{name.lower()}/{data_format}-v0") for data_format in ("hdf5", "parquet")]
    dataset = datasets[0]
    assert dataset.fingerprint() == datasets[1].fingerprint() and dataset.actions.dtype == np.int64 and dataset.action_space == gym.spaces.MultiDiscrete(sizes) and dataset.declared_actions == room.action_space
    own.check(dataset)
    environment = own.make()
    environment.reset(seed=0)
    assert environment.action_space == dataset.action_space and [environment.step(action)[1] for action in dataset.actions[:10]] == dataset.rewards[:10].tolist()
    wrong = {"actions": dataset.actions + np.eye(len(dataset), len(sizes), dtype=int) * 99, "action_space": dataset.action_space}
    with pytest.raises(MucdError, match="actions are outside"):
        OfflineDataset.from_arrays(**{name: getattr(dataset, name) for name in ("observations", "next_observations", "rewards", "terminations", "truncations", "observation_space")} | wrong)


def test_the_only_key_keeps_its_shape(rooms):
    own = EnvironmentCard.from_dict(card("Pictures-v0")).of_keys(("image",))
    dataset = load_dataset("pictures/arrow-v0", observation_keys=("image",))
    own.check(dataset)
    assert dataset.observations.shape[1:] == own.make().reset(seed=0)[0].shape == (8, 9, 3) and np.array_equal(own.make().reset(seed=0)[0], dataset.observations[0])
    with pytest.raises(MucdError, match="space of type Text"):
        load_dataset("pictures/arrow-v0")


def test_whole_numbers_are_one_hot_where_the_card_says_so(rooms):
    as_numbers = EnvironmentCard.from_dict(card("Cells-v0"))
    one_hot, dataset = as_numbers.one_hot(), load_dataset("cells/hdf5-v0")
    for own in (as_numbers, one_hot):
        own.check(dataset)
        seen = own.as_seen(dataset)
        assert np.array_equal(own.make().reset(seed=0)[0], seen.observations[0]) and own.features(seen.observations).shape == (20, own.width)
    assert one_hot.width == 9 and one_hot.as_seen(dataset).observations.argmax(1).tolist() == (dataset.observations + 4).tolist() and as_numbers.as_seen(dataset) is dataset


def test_other_keys_spaces_and_actions_than_the_environment_has_are_refused(rooms):
    own = EnvironmentCard.from_dict(card("Rooms-v0"))
    with pytest.raises(MucdError, match="declares observations with near/1.*Rooms-v0 has way/sign"):
        own.of_keys(("near/0", "way")).check(load_dataset("rooms/hdf5-v0", observation_keys=("near", "way")))
    with pytest.raises(MucdError, match="has no|have no key 'nothing'"):
        own.of_keys(("nothing",))
    dataset = load_dataset("rooms/hdf5-v0", observation_keys=KEYS)
    other = OfflineDataset.from_arrays(
        observations=dataset.observations, next_observations=dataset.next_observations, actions=np.ones((30, 2), int), rewards=dataset.rewards, terminations=dataset.terminations,
        truncations=dataset.truncations, action_space=gym.spaces.MultiDiscrete([2, 3]), observation_space=dataset.observation_space, observation_parts=dataset.observation_parts,
    )
    assert other.action_space == dataset.action_space
    with pytest.raises(MucdError, match="declares actions in MultiDiscrete"):
        own.of_keys(KEYS).check(other)


def test_spaces_of_the_examples():
    assert Observations.of(Pictures.observation_space, ("image",)).keeps_shape and Observations.of(Rooms.observation_space, ("near", "way")).words[0] == "near/0: MultiDiscrete (2,) of [3, 2] from [1, 0]"
