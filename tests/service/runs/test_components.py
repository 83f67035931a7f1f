"""An environment of a user's own whose actions have too many combinations, from recording to a served policy, on a real Ray."""

import json
import os

import numpy as np
import pytest

import mucd_ray
from mucd_ray.certify.file.certificate import read_certificate
from mucd_ray.cli import main

# Lamps show 0, a half or 1, and each lever must be set to ten times that.
MODULE = '''
import gymnasium as gym
import numpy as np


class Lamps(gym.Env):
    observation_space = gym.spaces.Box(0, 1, (3,), np.float32)
    action_space = gym.spaces.MultiDiscrete([11, 11, 11], start=[-5, -5, -5])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._next(), {}

    def _next(self):
        self.lamps = self.np_random.integers(0, 3, 3) / 2
        return self.lamps.astype(np.float32)

    def step(self, action):
        assert action in self.action_space, action
        reward = float((action + 5 == 10 * self.lamps).mean())
        return self._next(), reward, False, False, {}


def act(observation):
    return np.rint(10 * observation).astype(int) - 5


class Copy:
    def act(self, observations):
        return np.rint(10 * observations).astype(int)


def copy(bag, seed, device):
    assert bag.actions.shape == (len(bag), 3) and bag.actions.dtype == np.int64 and bag.actions.min() >= 0
    return Copy()


def score(policy, seed):
    lamps = np.random.default_rng(seed).integers(0, 3, (20, 3)) / 2
    return float((policy.act(lamps.astype(np.float32)) == 10 * lamps).mean())


gym.register("Lamps-v0", "component_lamps:Lamps", max_episode_steps=20)
'''
HOW = {
    "bag": ("--mechanism", "bag", "--bag-size", "8"),
    "partition": ("--mechanism", "partition", "--parts", "12"),
    "noise": ("--mechanism", "gaussian", "--unit", "transition", "--fraction", "0.001", "--card", "CARD"),
    "trainer": ("--mechanism", "bag", "--bag-size", "8", "--trainer", "component_lamps:copy"),
    "evaluator": ("--mechanism", "bag", "--bag-size", "8", "--evaluator", "component_lamps:score", "--score-range", "0,1"),
}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A folder with the module, where its dataset lies."""
    folder = tmp_path_factory.mktemp("lamps")
    (folder / "component_lamps.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder / "minari"))
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", f"{folder}:" + os.environ.get("PYTHONPATH", ""))
        assert main(["record", "Lamps-v0", "--import", "component_lamps", "--policy", "component_lamps:act", "--transitions", "2000", "--seed", "3", "--dataset", "lamps/good-v0"]) == 0
        yield folder


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW)
def test_from_recording_to_a_policy_that_acts(recorded, tmp_path, monkeypatch, capfd, how):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(recorded / "minari"))
    card = {"env_id": "Lamps-v0", "observation_shape": [3], "center": [0.5], "scale": [0.5], "clip": 2.0, "indices": [0, 1, 2], "return_range": [0, 20], "source": "A test's."}
    (tmp_path / "card.json").write_text(json.dumps(card))
    arguments = [str(tmp_path / "card.json") if text == "CARD" else text for text in HOW[how]]
    arguments += [] if how == "noise" else ["--return-range", "0,20"]
    arguments += ["--train-steps", "400"] if how in ("bag", "partition", "evaluator") else []
    command = ["run", "lamps/good-v0", "--import", "component_lamps", "--instances", "60", "--states", "30", "--storage", str(tmp_path / "run"), "--json", *arguments]
    assert main(command) == 0, capfd.readouterr().err
    capfd.readouterr()
    assert main(["verify", str(tmp_path / "run")]) == 0 and "VALID" in capfd.readouterr().out
    certificate = read_certificate(tmp_path / "run" / "certificate.json")
    action = certificate["results"]["action"]
    assert action["kind"] == ("exact" if how == "partition" else "votes") and certificate["inputs"]["actions"]["components"] == [11, 11, 11] and action["states"] == 30
    assert action["agreement"] > 0.5 and certificate["results"]["policy"]["unpoisoned_mean"] > (0.6 if how == "evaluator" else 8)
    if how != "noise":
        assert action["per_state"]["certified_share"] > 0.5 and action["per_state"]["max_radius"] >= 2
    if how == "trainer":
        return  # its policies are objects, which nobody stores
    policy, states = mucd_ray.load(str(tmp_path / "run")), np.load(tmp_path / "run" / "states.npy")
    assert (policy.act(states) == np.array(action["action"]) - 5).all() and policy.radius(states).tolist() == [-1 if r is None else r for r in action["per_state"]["radius"]]
    if how == "bag":
        assert main([*command, "--policy", "vote"]) == 2 and "leave --policy out" in capfd.readouterr().err
