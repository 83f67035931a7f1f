"""Recordings of a user's own policy in his own environment."""

import json
import sys
from pathlib import Path

import gymnasium as gym
import minari
import numpy as np
import pytest

from mucd_ray.cli import main
from mucd_ray.data.environments.own import UserEnvironment
from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.data.recording.given import Given, given_policy
from mucd_ray.data.recording.record import record
from mucd_ray.errors import MucdError
from mucd_ray.modules import import_modules

OWN = str(Path(__file__).parents[2] / "own_environment.py")


@pytest.fixture(autouse=True)
def own(minari_root):
    import_modules([OWN])


def recorded(name, dataset_id, env_id="Corridor-v0", **changes):
    record(env_id, None, 150, 3, dataset_id, policy=given_policy(name, env_id), **changes)
    return load_dataset(dataset_id)


def test_a_function_and_an_object_with_a_memory_are_recorded_as_they_act():
    straight, hesitant = recorded(f"{OWN}:right", "corridor/right-v0"), recorded(f"{OWN}:Hesitant", "corridor/hesitant-v0")
    assert (straight.actions == 1).all() and straight.env_id == "Corridor-v0" and straight.env_max_episode_steps == 40
    # What a policy does to its observation is not what is recorded.
    assert straight.observations.any() and (straight.observations.sum(1) == 10).all()
    for start, end in zip(hesitant.trajectory_starts[:-1], hesitant.trajectory_starts[1:]):
        assert hesitant.actions[start:end].tolist() == [0 if step % 3 == 2 else 1 for step in range(end - start)]
    # Minari itself makes the environment again, from the class that was registered.
    assert type(minari.load_dataset("corridor/right-v0").recover_environment().unwrapped).__name__ == "Corridor"


def test_noise_and_random_actions_follow_from_the_seed():
    noisy, again = (recorded(f"{OWN}:right", f"corridor/noisy-v{n}", noise=(0.0, 1.0)) for n in range(2))
    assert noisy.fingerprint() == again.fingerprint() and 0 < (noisy.actions == 0).mean() < 0.5
    chance, again = (recorded("random", f"corridor/random-v{n}") for n in range(2))
    assert chance.fingerprint() == again.fingerprint() and 0.35 < (chance.actions == 0).mean() < 0.65
    pendulum = recorded("random", "pendulum/random-v0", "Pendulum-v1")
    assert pendulum.actions.std() > 0.8 and len(np.unique(pendulum.actions)) > 100


def test_the_command_says_where_a_policy_fails_and_writes_nothing(minari_root, capfd):
    def refused(*arguments):
        assert main(["record", "Corridor-v0", "--import", OWN, "--dataset", "corridor/no-v0", "--transitions", "20", *arguments]) == 2
        error = capfd.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("mucd: error: ") and not (minari_root / "corridor" / "no-v0").exists()
        return error

    line = next(number for number, text in enumerate(Path(OWN).read_text().splitlines(), 1) if "observation[7]" in text)
    for policy, words in [
        (f"{OWN}:breaks", f"fails (IndexError: index 7 is out of bounds for axis 0 with size 2 in {OWN}, line {line})"),
        (f"{OWN}:half", "returns '0.5', which is no action in Discrete(2)"),
        (f"{OWN}:nothing", "has no attribute 'nothing'"),
        (f"{OWN}:number", "is a int: give a function"),
        ("no_such_module:act", "ModuleNotFoundError: No module named 'no_such_module'"),
        (OWN, "is none: give path/to/file.py:function"),
        ("a b:act", "--policy 'a b' is no name of a module"),
        (f"{OWN}:leaves", "fails (SystemExit: 3 in "),
        ("", "--policy is none"),
    ]:
        assert words in refused("--policy", policy)
    assert "noise 0.5 says nothing to random actions" in refused("--policy", "random", "--noise", "0.5")
    assert "leave one of them out" in refused("--policy", "random", "--behaviour", "acrobot-swing")
    assert "no behaviour for 'Corridor-v0'" in refused()


@pytest.mark.parametrize(
    "how, words",
    [
        ("raises", "environment Broken-v0 fails (ValueError: one two in "), ("leaves", "environment Broken-v0 fails (SystemExit: 0 in "), ("shape", "an observation of shape (1,), declared are (2,)"),
        ("rewards", "environment Broken-v0 fails (TypeError"), ("words", "could not convert string to float: 'much'"), ("ends", "environment Broken-v0 fails (ValueError"),
        ("four", "environment Broken-v0 fails (ValueError"), ("nothing", "environment Broken-v0 fails (TypeError"), ("nan", "gives NaN or inf"), ("nan reward", "gives NaN or inf"),
    ],
)
def test_an_environment_that_fails_is_one_line_and_nothing_is_written(minari_root, capfd, how, words):
    arguments = ["--import", OWN, "--make-kwargs", json.dumps({"how": how}), "--policy", "random", "--transitions", "20", "--dataset", "corridor/no-v0"]
    assert main(["record", "Broken-v0", *arguments]) == 2
    error = capfd.readouterr().err
    assert "Traceback" not in error and words in error.splitlines()[-1] and not (minari_root / "corridor" / "no-v0").exists()


def test_an_environment_without_end_or_with_words_is_refused(minari_root):
    with pytest.raises(MucdError, match="Endless-v0 has no time limit.*--max-episode-steps N"):
        recorded("random", "endless-v0", "Endless-v0")
    with pytest.raises(MucdError, match="observations of Told-v0 are a Dict.*DataCollector"):
        recorded("random", "told-v0", "Told-v0")
    cut = recorded("random", "endless-v0", "own_environment:Endless-v0", said=UserEnvironment(max_episode_steps=9))
    assert cut.env_max_episode_steps == 9 and np.diff(cut.trajectory_starts).max() == 9 and cut.truncations.any()
    for env_id, most, more in (("Corridor-v0", 40, 41), ("CartPole-v1", 500, 1000)):
        with pytest.raises(MucdError, match=f"{env_id} cuts its episodes after {most} steps, and max_episode_steps {more} would change nothing"):
            recorded("random", "more-v0", env_id, said=UserEnvironment(max_episode_steps=more))
    longer = recorded(f"{OWN}:right", "longer-v0", said=UserEnvironment(make_kwargs={"length": 15}))
    assert longer.env_kwargs == {"length": 15} and (longer.observations.sum(1) == 15).all()


def test_continuous_actions_are_taken_in_the_type_of_their_space():
    unbounded, bounded = gym.spaces.Box(-np.inf, np.inf, (1,)), gym.spaces.Box(-1, 1, (1,))
    policy = Given(name="p", env_id="e", description="d", controller=lambda observation: [2])
    action = policy.policy(0.0, unbounded, np.random.default_rng(0))(np.zeros(1))
    assert action.dtype == np.float32 and action.tolist() == [2.0]
    with pytest.raises(MucdError, match="no action in Box"):
        policy.policy(0.0, bounded, np.random.default_rng(0))(np.zeros(1))
    with pytest.raises(MucdError, match="leave --noise out"):
        policy.policy(0.5, unbounded, np.random.default_rng(0))


def test_a_model_of_stable_baselines3_needs_it(tmp_path, monkeypatch):
    import zipfile

    with zipfile.ZipFile(tmp_path / "model.zip", "w") as file:
        file.writestr("data", json.dumps({}))
    (tmp_path / "no.zip").write_text("no")
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(MucdError, match="needs stable_baselines3.*pip install stable-baselines3"):
        given_policy(str(tmp_path / "model.zip"), "CartPole-v1")
    with pytest.raises(MucdError, match="is no zip file"):
        given_policy(str(tmp_path / "no.zip"), "CartPole-v1")
