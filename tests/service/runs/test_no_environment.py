"""Runs on data whose environment nobody has: real recordings, stripped of what they say of it."""

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from mucd_ray.certify.file.certificate import read_certificate, verify
from mucd_ray.cli import main
from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.data.environments.cards import card_for
from mucd_ray.data.environments.declared import DeclaredCard
from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.data.recording.record import record
from mucd_ray.errors import MucdError
from mucd_ray.learn.learner import Learner
from mucd_ray.learn.trainers.outside import outside
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.driver import certify, training_units
from mucd_ray.service.runs.neighbours import run_neighbours
from mucd_ray.service.runs.session import Request, execute, make_settings
from mucd_ray.service.runs.summary import describe, finish
from mucd_ray.service.runs.work import train_and_evaluate
from mucd_ray.service.serving.ensemble import Ensemble
from mucd_ray.service.storage.store import RunStore
from mucd_ray.service.workers.cluster import Resources
from tests import foreign_trainers

P, SECRET = 40, bytes(range(32))


@pytest.fixture(scope="module")
def logs(recordings, tmp_path_factory):
    """(id of CartPole's recording as a log of nothing known, its states in a file)."""
    root = Path(os.environ["MINARI_DATASETS_PATH"])
    for name, log in (("cartpole/test-v0", "cartpole/log-v0"), ("acrobot/test-v0", "acrobot/log-v0")):
        shutil.copytree(root / name, root / log, dirs_exist_ok=True)
        file = root / log / "data" / "metadata.json"
        values = json.loads(file.read_text())
        file.write_text(json.dumps({key: value for key, value in values.items() if key != "env_spec"} | {"dataset_id": log}))
    states = tmp_path_factory.mktemp("states") / "states.npy"
    np.save(states, np.random.default_rng(1).uniform(-0.2, 0.2, (20, 4)).astype(np.float32))
    yield "cartpole/log-v0", str(states)
    for log in ("cartpole/log-v0", "acrobot/log-v0"):
        shutil.rmtree(root / log)


def request(log, file, /, **changes):
    return Request(**{"dataset": log, "instances": P, "states_file": file, "mechanism": "bag", "bag_size": 1, "fit": {"steps": 20, "batch": 16, "mirrored": False}, "no_environment": True} | changes)


def trained(request, folder, choices=Choices()) -> RunStore:
    """What `mucd run` makes, in one process."""
    dataset = load_dataset(request.dataset)
    settings, states = make_settings(request, dataset, choices)
    store = RunStore.create_or_open(folder, settings, secret=SECRET)
    states, units = store.write_states(states), training_units(settings, dataset)
    store.write_json("baselines.json", {"reference": None})
    store.add_target(P)
    store.commit(train_and_evaluate(settings, SECRET, units, states, range(P), "cpu"))
    return store


def test_on_ray_actions_are_certified_as_where_there_is_an_environment(local_ray, logs, recordings, tmp_path, capfd):
    """The oracle: the same recording with its environment, in one process, trains the same instances, which vote alike."""
    log, states = logs
    summary = execute(request(log, states), str(tmp_path / "run"), seed=4, resources=Resources(block=20))
    certificate = read_certificate(tmp_path / "run" / "certificate.json")
    assert verify(certificate) == [] and certificate["results"]["policy"] is None and certificate["context"]["baselines"] is None and certificate["context"]["dataset"]["environment"] is None
    with_environment = request(recordings["cartpole"], states, no_environment=False)
    settings, array = make_settings(with_environment, load_dataset(with_environment.dataset), Choices())
    store = RunStore.create_or_open(tmp_path / "with", settings, secret=hashlib.sha256(b"mucd seed 4").digest())
    units = training_units(settings, load_dataset(with_environment.dataset))
    store.commit(train_and_evaluate(settings, store.secret(), units, store.write_states(array), range(P), "cpu"))
    store.write_json("baselines.json", {"reference": certificate["inputs"]["actions"]["reference"]})
    store.add_target(P)
    beside = certify(store, Choices())
    assert beside["inputs"]["actions"] == certificate["inputs"]["actions"] and beside["results"]["action"] == certificate["results"]["action"]
    assert beside["results"]["policy"] is not None
    # Not a word about returns anywhere, and nothing needs them.
    page = (tmp_path / "run" / "report.html").read_text()
    texts = (json.dumps(certificate), json.dumps(summary), describe(summary), page)
    for text in texts:
        for allowed in ('"returns": []', '"return_range": null', '"min_return": null', "no rollouts"):
            text = text.replace(allowed, "")
        assert "return" not in text.replace("min_return", "")
    assert {"returns.png", "return_bound.png"}.isdisjoint(path.name for path in (tmp_path / "run" / "plots").iterdir())
    assert Ensemble(str(tmp_path / "run")).answers(array)[0].keys() == {"action", "radius", "votes"}
    capfd.readouterr()
    assert main(["compare", str(tmp_path / "run")]) == 0 and " - " in capfd.readouterr().out
    assert main(["watch", str(tmp_path / "run"), "--once"]) == 0 and "return" not in capfd.readouterr().out
    # `grow` needs no word of the user's: there is nothing to make.
    assert main(["grow", str(tmp_path / "run"), "--instances", "45", "--until", "return>=0.5@0.05"]) == 2
    assert "about returns, and without an environment there are none" in capfd.readouterr().err


@pytest.mark.parametrize("changes", [{"mechanism": "partition", "bag_size": None, "parts": 5}, {"mechanism": "gaussian", "bag_size": None, "fit": None, "steps": 4}], ids=["partition", "gaussian"])
def test_other_mechanisms(logs, tmp_path, changes):
    store = trained(request(*logs, **changes), tmp_path / "run")
    certificate = certify(store, Choices())
    assert verify(certificate) == [] and certificate["results"]["policy"] is None and "return" not in describe(finish(store, certificate))
    assert certify(store, Choices(inference="scores"))["results"]["action"]["kind"] == "scores"


def test_neighbours_need_states_alone(logs, tmp_path):
    log, states = logs
    dataset = load_dataset(log)
    settings, array = make_settings(Request(dataset=log, states_file=states, mechanism="neighbours", neighbours=5, no_environment=True), dataset, Choices())
    store = RunStore.create_or_open(tmp_path / "run", settings, SECRET)
    certificate = run_neighbours(store, dataset, Choices(), array)
    assert verify(certificate) == [] and certificate["inputs"]["path_radii"] == certificate["inputs"]["returns"] == []
    assert "return" not in describe(finish(store, certificate)) and "episode" not in (tmp_path / "run" / "report.html").read_text()


def test_states_may_be_drawn_from_trusted_data(logs, recordings, tmp_path):
    log, states = logs
    record("CartPole-v1", None, 300, 9, "cartpole/ours-v0")
    store = trained(request(log, None, trusted_states="cartpole/ours-v0", states=15), tmp_path / "run")
    ours = load_dataset("cartpole/ours-v0")
    drawn, certificate = store.states(), certify(store, Choices())
    assert len(drawn) == 15 and all((ours.observations == state).all(1).any() for state in drawn) and verify(certificate) == []
    assert certificate["context"]["states_chosen_by"] == f"the trusted dataset cartpole/ours-v0 (SHA-256 of its content {ours.fingerprint()})"
    assert any(ours.fingerprint() in text for text in certificate["assumptions"])


def test_a_card_gives_scales(logs):
    log, states = logs
    card = card_for("CartPole-v1")
    settings, _ = make_settings(request(log, states, mechanism="gaussian", bag_size=None, fit=None, card=card), load_dataset(log), Choices())
    observations = np.random.default_rng(0).normal(size=(5, 4))
    assert not settings.plays and (settings.card.features(observations) == card.features(observations)).all() and settings.return_range is None
    assert type(settings).from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    with pytest.raises(MucdError, match="no environment"):
        settings.card.make().reset(seed=0)


REFUSED = {
    "no states": ({"states_file": None}, "would choose the states at which the claim is made"),
    "states of the untrusted data": ({"states_file": None, "trusted_states": "cartpole/log-v0"}, "would choose the states at which the claim is made"),
    "the untrusted data under its other name": ({"states_file": None, "trusted_states": "cartpole/test-v0"}, "would choose the states at which the claim is made"),
    "states of other spaces": ({"states_file": None, "trusted_states": "acrobot/test-v0"}, "declares observations of shape"),
    "states from two places": ({"trusted_states": "cartpole/test-v0"}, "leave one of the two out"),
    "another observation": ({"dataset": "acrobot/log-v0"}, "must be a list of observations of shape"),
    "episodes": ({"rollouts": 3}, "--rollouts"),
    "a discount": ({"discount": 0.9}, "says nothing without returns"),
    "a yardstick of returns": ({"trusted": "cartpole/test-v0"}, "--trusted-states"),
    "a card of other observations": ({"card": card_for("Acrobot-v1")}, "use a card for these observations"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_needs_an_environment_is_refused(logs, case):
    changes, words = REFUSED[case]
    asked = request(*logs, **changes)
    with pytest.raises(MucdError, match=words):
        make_settings(asked, load_dataset(asked.dataset), Choices())


@pytest.mark.parametrize("choices, words", [(Choices(looks="anytime", goal="return>=0.5@0.05"), "about returns"), (Choices(policy="vote"), "there is no environment")])
def test_claims_about_returns_are_refused(logs, choices, words):
    with pytest.raises(MucdError, match=words):
        make_settings(request(*logs), load_dataset(logs[0]), choices)


def test_without_the_word_a_log_is_refused_in_one_line(logs, tmp_path, capfd):
    assert main(["run", logs[0], "--storage", str(tmp_path / "run")]) == 2
    assert "--no-environment" in capfd.readouterr().err and not (tmp_path / "run").exists()


def logged(action_space, actions):
    """Forty logged steps of three numbers in eight trajectories, from arrays alone."""
    observations = np.random.default_rng(2).normal(size=(41, 3)).astype(np.float32)
    ends = np.arange(40) % 5 == 4
    return OfflineDataset.from_arrays(
        observations=observations[:-1], next_observations=observations[1:], actions=actions, rewards=np.zeros(40), terminations=np.zeros(40, bool), truncations=ends,
        action_space=action_space, observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (3,)),
    )


def test_intervals_of_continuous_actions(tmp_path):
    actions = np.random.default_rng(3).uniform(0, 1, (40, 2))
    dataset = logged(gymnasium.spaces.Box(np.float32([-1, 0]), np.float32([2, 1])), actions)
    np.save(tmp_path / "states.npy", dataset.observations[:4])
    asked = request("arrays", str(tmp_path / "states.npy"))
    settings, states = make_settings(asked, dataset, Choices())
    store = RunStore.create_or_open(tmp_path / "run", settings, SECRET)
    store.commit(train_and_evaluate(settings, SECRET, training_units(settings, dataset), store.write_states(states), range(P), "cpu"))
    store.add_target(P)
    certificate = certify(store, Choices())
    assert verify(certificate) == [] and certificate["results"]["action"]["kind"] == "continuous" and certificate["inputs"]["declared"]["dimensions"] == 2
    assert certificate["inputs"]["actions"]["low"] == [-1, 0] and "return" not in describe(finish(store, certificate))
    with pytest.raises(MucdError, match="declared without bounds"):
        make_settings(asked, logged(gymnasium.spaces.Box(-np.inf, np.inf, (2,)), actions), Choices())


def test_a_trainer_from_outside_is_tried_on_what_is_declared(logs, tmp_path):
    trainer = outside("function", f"{foreign_trainers.__file__}:ridge")
    store = trained(request(*logs, trainer=trainer, fit=None, instances=25), tmp_path / "run")
    certificate = certify(store, Choices())
    assert verify(certificate) == [] and certificate["context"]["failures"] == 0


def test_actions_that_follow_from_the_rows_are_no_declaration(recordings, refusal):
    dataset = load_dataset(recordings["cartpole"])
    assert DeclaredCard.of(dataset).declared["actions"] == 2
    assert "--actions N" in refusal(DeclaredCard.of, replace(dataset, actions_declared=False))
    asked = Request(dataset=dataset.name, mechanism="bag", unit="trajectory", bag_size=3, learner=Learner(algorithm="dt", network="transformer", learning_rate=0.001), history=2)
    assert "recall actions" in refusal(make_settings, asked, replace(dataset, actions_declared=False), Choices())
