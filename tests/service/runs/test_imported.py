"""Files of every format in runs: real episodes, written as each format's own writers do, become certificates in two commands."""

import sys
import warnings
from pathlib import Path

import gymnasium as gym
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from mucd_ray.certify.file.certificate import read_certificate
from mucd_ray.cli import main
from mucd_ray.data.environments.make import make_environment
from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.data.importing import ImportOptions, import_dataset
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.session import Request, make_settings

sys.path.insert(0, str(Path(__file__).parents[2] / "data"))
import foreign_files as foreign


def played(env_id, count, most_steps, first=0):
    """Episodes of random actions, as `foreign_files` takes them."""
    environment, made = gym.make(env_id), []
    environment.action_space.seed(first + 1)
    for number in range(first, first + count):
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


def cartpole(count, first=0):
    return played("CartPole-v1", count, 500, first)


def swinging(count, first=0):
    """Of Pendulum, with actions in [-1, 1], as robomimic has them."""
    return [episode | {"actions": episode["actions"] / np.float32(2)} for episode in played("Pendulum-v1", count, 8, first)]


def breakout(count, first=0):
    """With frames of 84 x 84, as Dopamine makes them but for how they are shrunk."""
    pytest.importorskip("ale_py")
    environment, made = make_environment("ALE/Breakout-v5", frameskip=4, repeat_action_probability=0.25), []
    rows, columns = (np.linspace(0, length - 1, 84).astype(int) for length in (210, 160))
    environment.action_space.seed(first + 1)
    for number in range(first, first + count):
        environment.reset(seed=number)
        frames, actions, rewards = [], [], []
        for _ in range(12):
            frames.append(environment.unwrapped.ale.getScreenGrayscale()[np.ix_(rows, columns)])
            actions.append(environment.action_space.sample())
            rewards.append(np.float32(environment.step(actions[-1])[1]))
        made.append({"observations": np.zeros((13, 1), np.float32), "frames": np.stack(frames), "actions": np.array(actions), "rewards": np.array(rewards), "terminated": True})
    return made


def of_minari(data_format):
    """A function that writes by Minari, which is told the environment, and gives the dataset's folder."""
    def create(folder, made):
        buffers = []
        for episode in made:
            last = np.arange(len(episode["rewards"])) == len(episode["rewards"]) - 1
            buffers.append(EpisodeBuffer(**{name: episode[name] for name in ("observations", "actions", "rewards")}, terminations=last & episode["terminated"], truncations=last & ~np.bool_(episode["terminated"])))
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            patch.setenv("MINARI_DATASETS_PATH", str(folder))
            minari.create_dataset_from_buffers("theirs/cart-v0", buffers, env="CartPole-v1", data_format=data_format)
        return folder / "theirs/cart-v0"

    return create


def plain_npz(folder, made):
    """Without next observations."""
    path, flat = folder / "cart.npz", foreign.rows(made)
    np.savez(path, **{name: flat[name] for name in ("observations", "actions", "rewards", "terminals", "timeouts")})
    return path


def pendulum_20(count, first=0):
    return played("Pendulum-v1", count, 8, first)


LOG = ("--columns", foreign.COLUMNS)
# Name: how its file is made, of which episodes, what `mucd import` is told beside a name, and what `mucd run`, where states at which actions are certified stand for "STATES".
WALKS = {
    "lerobot v3": (foreign.lerobot, pendulum_20, ("--environment", "Pendulum-v1"), ()),
    "lerobot v2.1": (lambda folder, made: foreign.lerobot(folder, made, "v2.1", reward=False, done=False), swinging, ("--actions", "-1,1"), ("--no-environment", "--states-file", "STATES")),
    "d4rl": (foreign.d4rl, pendulum_20, ("--environment", "Pendulum-v1"), ()),
    "robomimic": (foreign.robomimic, swinging, (), ("--no-environment", "--states-file", "STATES")),
    "d3rlpy 2": (foreign.d3rlpy2, cartpole, ("--environment", "CartPole-v1"), ()),
    "d3rlpy 1": (foreign.d3rlpy1, pendulum_20, ("--environment", "Pendulum-v1"), ()),
    "ogbench": (foreign.ogbench, swinging, ("--actions", "-1,1"), ("--no-environment", "--states-file", "STATES", "--mechanism", "partition", "--parts", "12")),
    "rllib": (foreign.rllib, cartpole, ("--environment", "CartPole-v1"), ()),
    "rlds": (foreign.rlds, swinging, ("--actions", "-1,1"), ("--no-environment", "--states-file", "STATES")),
    "dqn-replay": (foreign.dqn_replay, breakout, ("--actions", "4"), ("--no-environment", "--states-file", "STATES", "--history", "4", "--network", "convolutional")),
    "npz": (plain_npz, cartpole, ("--environment", "CartPole-v1"), ("--mechanism", "neighbours", "--neighbours", "9")),
    "csv": (foreign.csv_log, lambda count, first=0: played("MountainCar-v0", count, 200, first), (*LOG, "--environment", "MountainCar-v0"), ("--return-range", "-200,0")),
    "parquet": (foreign.parquet_log, cartpole, (*LOG, "--actions", "2"), ("--no-environment", "--states-file", "STATES", "--unit", "source", "--source-key", "who", "--mechanism", "partition", "--parts", "2")),
    "minari hdf5": (of_minari("hdf5"), cartpole, (), ()),
    "minari arrow": (of_minari("arrow"), cartpole, (), ()),
    "minari parquet": (of_minari("parquet"), cartpole, (), ("--return-range", "0,300")),
}
TELLING = ("npz",)


def walk(name, folder):
    """(arguments of import, of run), after the file is made."""
    make, episodes, imported, run = WALKS[name]
    (folder / "files").mkdir()
    path = make(folder / "files" / "lerobot" if name.startswith("lerobot") else folder / "files", episodes(24))
    trusted = episodes(4, first=100)
    if name == "dqn-replay":
        states = np.stack([episode["frames"][:4] for episode in trusted])
    else:
        states = np.concatenate([episode["observations"][1:3] for episode in trusted])
    np.save(folder / "states.npy", states)
    trains = [] if "neighbours" in run else ["--train-steps", "10", "--instances", "16"]
    size = [] if "--mechanism" in run else ["--bag-size", "2"]
    return ["import", str(path), "--dataset", "mine/a-v0", *imported], ["run", "mine/a-v0", "--storage", str(folder / "run"), *([] if "STATES" in run else ["--states", "4"]), *trains, *size, *(str(folder / "states.npy") if text == "STATES" else text for text in run)]


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in TELLING else [pytest.mark.slow]) for name in WALKS])
def test_from_a_file_to_a_certificate_in_two_commands(local_ray, tmp_path, monkeypatch, capfd, name):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    commands = walk(name, tmp_path)
    for command in commands:
        assert main(command) == 0, capfd.readouterr().err
    capfd.readouterr()
    assert main(["verify", str(tmp_path / "run")]) == 0 and "VALID" in capfd.readouterr().out
    certificate = read_certificate(tmp_path / "run" / "certificate.json")
    assert certificate["context"]["dataset"]["name"] == "mine/a-v0" and (certificate["results"]["policy"] is None) == ("--no-environment" in commands[1]) and certificate["results"]["action"]
