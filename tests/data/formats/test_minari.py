import gymnasium as gym
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from mucd_ray.data.formats.minari import load_dataset, local_datasets
from mucd_ray.errors import MucdError


def test_reads_exactly_what_minari_stores(cartpole):
    dataset = load_dataset(cartpole["dataset_id"])
    episodes = list(minari.load_dataset(cartpole["dataset_id"]).iterate_episodes())
    assert dataset.env_id == "CartPole-v1" and dataset.trajectories == len(episodes) == cartpole["trajectories"]
    for episode, start, stop in zip(episodes, dataset.trajectory_starts[:-1], dataset.trajectory_starts[1:], strict=True):
        np.testing.assert_array_equal(dataset.observations[start:stop], episode.observations[:-1])
        np.testing.assert_array_equal(dataset.next_observations[start:stop], episode.observations[1:])
        np.testing.assert_array_equal(dataset.actions[start:stop], episode.actions)
        np.testing.assert_array_equal(dataset.rewards[start:stop], episode.rewards)
        np.testing.assert_array_equal(dataset.terminations[start:stop], episode.terminations)
        np.testing.assert_array_equal(dataset.truncations[start:stop], episode.truncations)


def test_reads_datasets_of_others_with_continuous_actions(minari_root):
    environment, buffers = gym.make("Pendulum-v1"), []
    environment.action_space.seed(0)
    for seed in range(2):
        observations, actions, rewards, truncations = [environment.reset(seed=seed)[0]], [], [], [False]
        while not truncations[-1]:
            actions.append(environment.action_space.sample())
            observation, reward, _, truncated, _ = environment.step(actions[-1])
            observations.append(observation), rewards.append(reward), truncations.append(truncated)
        buffers.append(EpisodeBuffer(observations=observations, actions=actions, rewards=rewards, terminations=[False] * 200, truncations=truncations[1:]))
    with pytest.warns(UserWarning):
        minari.create_dataset_from_buffers("pendulum/random-v0", buffers, env=environment)
    dataset = load_dataset("pendulum/random-v0")
    assert dataset.actions.shape == (400, 1) and dataset.actions.dtype == np.float32
    assert dataset.truncations.sum() == 2 and not dataset.terminations.any()
    np.testing.assert_allclose(dataset.trajectory_returns, [np.sum(buffer.rewards) for buffer in buffers])


def test_unknown_id_names_the_local_ones(cartpole, minari_root):
    assert local_datasets() == ["cartpole/small-v0"]
    with pytest.raises(MucdError, match=f"cartpole/big-v0.*cartpole/small-v0.*{minari_root}.*MINARI_DATASETS_PATH.*mucd record"):
        load_dataset("cartpole/big-v0")


def test_damaged_file_is_one_clear_line(cartpole, minari_root):
    file = minari_root / "cartpole/small-v0/data/main_data.hdf5"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(MucdError, match="cannot be read"):
        load_dataset("cartpole/small-v0")


def test_dataset_without_episodes_is_empty(minari_root):
    with pytest.warns(UserWarning):
        minari.create_dataset_from_buffers("nothing-v0", [], env="CartPole-v1")
    with pytest.raises(MucdError, match="is empty"):
        load_dataset("nothing-v0")
