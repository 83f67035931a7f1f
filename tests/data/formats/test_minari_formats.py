"""What our reader reads is what Minari's own reader reads, in every format that Minari writes."""

import h5py
import minari
import numpy as np
import pytest
from minari_datasets import ACTIONS, SPACES, create

from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.data.recording.record import record


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
