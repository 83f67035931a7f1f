"""What our reader reads is what Minari's own reader reads, in every format that Minari writes."""

import gymnasium as gym
import h5py
import minari
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from minari_datasets import ACTIONS, SPACES, create

from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.data.importing import ImportOptions, import_dataset
from mucd_ray.data.recording.record import record
from mucd_ray.errors import MucdError


def check_same(name):
    dataset, theirs = load_dataset(name), minari.load_dataset(name)
    assert dataset.observation_space == theirs.observation_space and dataset.action_space == theirs.action_space
    episodes = list(theirs.iterate_episodes())
    assert dataset.trajectories == len(episodes)
    for episode, start, stop in zip(episodes, dataset.trajectory_starts[:-1], dataset.trajectory_starts[1:], strict=True):
        for found, wanted in (
            (dataset.observations, episode.observations[:-1]), (dataset.next_observations, episode.observations[1:]), (dataset.actions, episode.actions),
            (dataset.rewards, episode.rewards), (dataset.terminations, episode.terminations), (dataset.truncations, episode.truncations),
        ):
            np.testing.assert_array_equal(found[start:stop], wanted)
        assert dataset.observations.dtype == np.asarray(episode.observations).dtype


@pytest.mark.parametrize("data_format", ["hdf5", "arrow", "parquet"])
@pytest.mark.parametrize("space", SPACES)
def test_every_space_in_every_format(minari_root, space, data_format):
    create("them/data-v0", SPACES[space], ACTIONS["continuous" if space in ("box", "images") else "discrete"], data_format)
    check_same("them/data-v0")


def test_images_without_jpeg_and_of_unequal_length(minari_root):
    create("plain-v0", SPACES["images"], ACTIONS["discrete"], jpeg=False)
    check_same("plain-v0")
    create("grey-v0", SPACES["grey"], ACTIONS["discrete"])
    with h5py.File(minari_root / "grey-v0/data/main_data.hdf5") as file:
        kinds = {h5py.check_vlen_dtype(file[f"episode_{number}/observations"].dtype) for number in range(3)}
    assert np.dtype(np.uint8) in kinds, "JPEG files of unequal length are what this is about"
    check_same("grey-v0")


@pytest.mark.parametrize("environment", ["CartPole-v1", "Pendulum-v1"])
def test_own_recordings(minari_root, environment):
    record(environment, None, 500, 1, "own/data-v0")
    check_same("own/data-v0")


@pytest.mark.parametrize("filters", [{"compression": "gzip"}, {"compression": "gzip", "shuffle": True, "fletcher32": True}, {"fletcher32": True}, {"shuffle": True}])
def test_what_was_packed_afterwards(minari_root, filters):
    create("packed-v0", SPACES["box"], ACTIONS["discrete"], lengths=(5, 300))
    with h5py.File(minari_root / "packed-v0/data/main_data.hdf5", "r+") as file:
        for name in [f"episode_{number}/{field}" for number in (0, 1) for field in ("observations", "actions", "rewards", "terminations")]:
            values = file[name][()]
            del file[name]
            file.create_dataset(name, data=values, chunks=(min(len(values), 64), *values.shape[1:]), **filters)
    check_same("packed-v0")


@pytest.mark.parametrize("data_format", ["hdf5", "parquet"])
@pytest.mark.parametrize("name, others", [("box", (np.float64, np.float16)), ("bytes", (np.int16, np.float64)), ("states", (np.int8, np.float32)), ("digits", (np.uint8, np.float64)), ("bits", (np.int64, np.float32))])
def test_the_type_in_which_one_episode_is_stored_changes_no_other(minari_root, name, others, data_format):
    """Poison: numpy's joint type of all episodes would be that of the poisoned one, and every bag's rows another's."""
    create("typed-v0", SPACES[name], ACTIONS["continuous"], data_format)
    before, folder = load_dataset("typed-v0"), minari_root / "typed-v0/data"
    for other in others:
        _stored_as(folder, data_format, other)
        after = load_dataset("typed-v0")
        start = after.trajectory_starts[-2]  # of the poisoned episode, the last one
        for field in ("observations", "next_observations", "actions", "rewards"):
            mine, theirs = getattr(before, field), getattr(after, field)
            assert mine.dtype == theirs.dtype and mine[:start].tobytes() == theirs[:start].tobytes(), (field, other)
        assert before.trajectory_digests()[:-1] == after.trajectory_digests()[:-1]


def test_the_type_of_one_episodes_actions_rounds_no_others(minari_root):
    """Poison: beside float64 whole numbers become float64, which does not tell those above 2^53 apart."""
    create("far-v0", SPACES["box"], gym.spaces.MultiDiscrete([3], start=[1 << 60]))
    before = load_dataset("far-v0")
    with h5py.File(minari_root / "far-v0/data/main_data.hdf5", "a") as file:
        values = file["episode_2/actions"][()]
        del file["episode_2/actions"]
        file["episode_2/actions"] = np.full(values.shape, float(1 << 60))
    after, start = load_dataset("far-v0"), before.trajectory_starts[-2]
    assert len(set(before.actions[:start].tolist())) > 1 and before.actions.dtype == after.actions.dtype and np.array_equal(before.actions[:start], after.actions[:start])


class Started(gym.Env):
    observation_space, action_space = gym.spaces.Box(-9, 9, (2,)), gym.spaces.MultiDiscrete([11] * 3, start=[1] * 3)


@pytest.fixture
def started():
    gym.register("Started-v0", Started, max_episode_steps=5)
    yield "Started-v0"
    del gym.registry["Started-v0"]


def test_components_are_counted_from_zero_once(minari_root, started):
    create("theirs-v0", Started.observation_space, Started.action_space)
    expected = load_dataset("theirs-v0").actions
    assert expected.shape[1:] == (3,) and expected.max() == 10
    for environment in (None, started):
        import_dataset(minari_root / "theirs-v0", "mine-v0", ImportOptions(environment=environment), overwrite=True)
        assert np.array_equal(load_dataset("mine-v0").actions, expected)


def _stored_as(folder, data_format, dtype):
    """The last episode's observations and actions in another type."""
    if data_format == "hdf5":
        with h5py.File(folder / "main_data.hdf5", "a") as file:
            for field in ("observations", "actions"):
                values = file[f"episode_2/{field}"][()]
                del file[f"episode_2/{field}"]
                file[f"episode_2/{field}"] = values.astype(dtype if field == "observations" else np.float64)
        return
    path = folder / "2/part-0.parquet"
    table = pyarrow.parquet.read_table(path)

    def retyped(kind):
        if pa.types.is_fixed_size_list(kind):
            return pa.list_(retyped(kind.value_type), kind.list_size)
        return pa.list_(retyped(kind.value_type)) if pa.types.is_list(kind) else pa.from_numpy_dtype(dtype)

    place = table.column_names.index("observations")
    column = pa.array(table.column("observations").to_pylist(), retyped(table.schema.field("observations").type))
    pyarrow.parquet.write_table(table.set_column(place, "observations", column), path)


@pytest.mark.parametrize("name, bad", [("bytes", 300.0), ("bytes", 1.5), ("states", 4.5), ("states", 77), ("bits", 2)])
def test_what_another_type_holds_and_the_declared_one_does_not_is_one_line(minari_root, name, bad):
    create("typed-v0", SPACES[name], ACTIONS["discrete"])
    with h5py.File(minari_root / "typed-v0/data/main_data.hdf5", "a") as file:
        values = file["episode_1/observations"][()].astype(np.float64)
        values.reshape(-1)[0] = bad
        del file["episode_1/observations"]
        file["episode_1/observations"] = values
    with pytest.raises(MucdError, match="episode 1: .*space"):
        load_dataset("typed-v0")
