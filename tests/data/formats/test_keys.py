"""Source keys wherever Minari can keep them: metadata of an episode in every format, and infos of HDF5."""

import h5py
import minari
import numpy as np
import pytest
from minari_datasets import ACTIONS, SPACES, create

from mucd_ray.data.formats.minari import load_dataset, source_keys
from mucd_ray.data.recording.record import record
from mucd_ray.errors import MucdError


def write_metadata(name, values):
    minari.load_dataset(name).storage.update_episode_metadata(values)


@pytest.mark.parametrize("data_format", ["hdf5", "arrow", "parquet"])
@pytest.mark.parametrize("keys,numbers", [
    (["ann", "bob", "ann", "cy"], [0, 1, 0, 2]), ([7, 8, 7, 7], [0, 1, 0, 0]), ([None, "ann", None, "ann"], [0, 1, 2, 1]), (["7", 7, "", ""], [0, 0, 1, 2]),
    ([True, False, True, False], [0, 1, 0, 1]), (["größe", "grösse", "größe", "x"], [0, 1, 0, 2]),
])  # fmt: skip
def test_metadata_of_episodes(minari_root, data_format, keys, numbers):
    create("keyed-v0", SPACES["box"], ACTIONS["discrete"], data_format, lengths=(4, 1, 6, 2))
    write_metadata("keyed-v0", [{} if key is None else {"robot": key} for key in keys])
    dataset = load_dataset("keyed-v0", source_key="robot")
    assert dataset.sources.tolist() == numbers and dataset.trajectories == 4
    assert load_dataset("keyed-v0").sources is None
    assert source_keys("keyed-v0") == "its episodes have the keys robot"
    with pytest.raises(MucdError, match="no episode has the source key 'upload'; its episodes have the keys robot"):
        load_dataset("keyed-v0", source_key="upload")


def with_infos(root, name, **values):
    """Infos as Minari stores them: values[key][episode] at every step."""
    with h5py.File(root / name / "data/main_data.hdf5", "r+") as file:
        for key, of_episodes in values.items():
            for number, value in enumerate(of_episodes):
                if value is not None:
                    steps = len(file[f"episode_{number}/observations"])
                    data, dtype = ([value] * steps, h5py.string_dtype()) if isinstance(value, str) else (np.full(steps, value), None)
                    file.require_group(f"episode_{number}/infos").create_dataset(key, data=data, dtype=dtype, chunks=True, maxshape=(None,))


def test_infos_that_are_one_value_all_through_an_episode(minari_root):
    create("keyed-v0", SPACES["box"], ACTIONS["discrete"], lengths=(4, 1, 6))
    with_infos(minari_root, "keyed-v0", operator=["ann", "bob", "ann"], arm=[3, 3, None], speed=[0.5, 0.5, 0.5])
    assert load_dataset("keyed-v0", source_key="operator").sources.tolist() == [0, 1, 0]
    assert load_dataset("keyed-v0", source_key="arm").sources.tolist() == [0, 0, 1]
    assert source_keys("keyed-v0") == "its episodes have the keys arm, operator"
    # What is written twice must be the same.
    write_metadata("keyed-v0", [{"arm": "3"}, {}, {"arm": "9"}])
    assert load_dataset("keyed-v0", source_key="arm").sources.tolist() == [0, 0, 1]
    write_metadata("keyed-v0", [{}, {"arm": 4}, {}])
    with pytest.raises(MucdError, match="episode 1 has two values of arm"):
        load_dataset("keyed-v0", source_key="arm")


def test_operators_take_turns_and_change_nothing_where_there_are_none(minari_root):
    plain, shared = (record("CartPole-v1", None, 8000, 4, f"cartpole/{name}-v0", operators=count) for name, count in (("plain", None), ("shared", 7)))
    assert load_dataset("cartpole/plain-v0").count("trajectory") == plain["trajectories"] and "none" in source_keys("cartpole/plain-v0")
    episodes = list(minari.load_dataset("cartpole/shared-v0").storage.get_episode_metadata(range(shared["trajectories"])))
    assert sorted(episode["operator"] for episode in episodes[:7]) == [f"operator-{number}" for number in range(7)]
    assert len({(episode["operator"], episode["noise"]) for episode in episodes}) == 7 and {episode["noise"] for episode in episodes} == {0.0, 0.1, 0.3, 0.6, 1.0}
    assert load_dataset("cartpole/shared-v0", source_key="operator").count("source") == 7
    with pytest.raises(MucdError, match="operators 0"):
        record("CartPole-v1", None, 10, 0, "x-v0", operators=0)
