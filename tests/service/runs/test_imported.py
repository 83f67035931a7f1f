"""Imported files of every format in runs: real episodes of Pendulum and CartPole, written as each format's own writers do, read, settled, and one certified."""

import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from mucd_ray.certify.file.certificate import read_certificate, verify
from mucd_ray.cli import main
from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.data.importing import ImportOptions, import_dataset
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.session import Request, make_settings

sys.path.insert(0, str(Path(__file__).parents[2] / "data"))
import foreign_files as foreign


def played(env_id, count, most_steps):
    """Episodes of random actions, as `foreign_files` takes them."""
    environment, made = gym.make(env_id), []
    environment.action_space.seed(1)
    for number in range(count):
        observations, actions, rewards = [environment.reset(seed=number)[0]], [], []
        ended = False
        while len(rewards) < most_steps and not ended:
            actions.append(environment.action_space.sample())
            observation, reward, ended, _, _ = environment.step(actions[-1])
            observations.append(observation)
            rewards.append(np.float32(reward))
        made.append({"observations": np.stack(observations), "actions": np.array(actions), "rewards": np.array(rewards), "terminated": ended})
    return made


@pytest.fixture(scope="module")
def pendulum():
    return played("Pendulum-v1", 20, 6)


MAKERS = {
    "lerobot": foreign.lerobot, "d4rl": foreign.d4rl, "robomimic": foreign.robomimic, "d3rlpy": foreign.d3rlpy2, "d3rlpy 1": foreign.d3rlpy1, "ogbench": foreign.ogbench, "rllib": foreign.rllib,
    "rlds": foreign.rlds, "npz": foreign.npz, "csv": foreign.csv_log, "parquet": foreign.parquet_log,
}


@pytest.mark.parametrize("name", MAKERS)
def test_every_format_is_taken_by_a_run(tmp_path, monkeypatch, pendulum, name):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    folder = tmp_path / "files"
    folder.mkdir()
    columns = foreign.COLUMNS if name in ("csv", "parquet") else None
    import_dataset(MAKERS[name](folder / "lerobot" if name == "lerobot" else folder, pendulum), "mine/a-v0", ImportOptions(environment="Pendulum-v1", columns=columns))
    dataset = load_dataset("mine/a-v0")
    settings, _ = make_settings(Request(dataset="mine/a-v0", mechanism="bag", bag_size=3), dataset, Choices())
    assert settings.units == 20 and settings.card.env_id == "Pendulum-v1" and settings.dimensions == 1 and dataset.observations.dtype == np.float32
    first = dataset.trajectory_starts[:-1]
    assert {tuple(row) for row in dataset.observations[first].tolist()} == {tuple(episode["observations"][0].tolist()) for episode in pendulum}


def test_from_a_file_to_a_certificate(tmp_path, monkeypatch, capfd):
    """In two commands; the mechanism that needs no Ray."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    path = tmp_path / "cart.npz"
    flat = foreign.rows(played("CartPole-v1", 24, 500))
    np.savez(path, **{name: flat[name] for name in ("observations", "actions", "rewards", "terminals", "timeouts")})
    assert main(["import", str(path), "--dataset", "mine/cart-v0", "--environment", "CartPole-v1"]) == 0
    run = tmp_path / "run"
    assert main(["run", "mine/cart-v0", "--storage", str(run), "--mechanism", "neighbours", "--neighbours", "9", "--rollouts", "2", "--states", "4"]) == 0, capfd.readouterr().err
    assert verify(read_certificate(run / "certificate.json")) == []
