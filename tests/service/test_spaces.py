"""Runs on observations that are dictionaries and actions that are several numbers: trained in this process, certified, verified and served."""

import contextlib
import hashlib
import json
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from own_spaces import Doors, Levers, Rooms, Switches, card, record

from mucd_ray.certify.file.certificate import verify
from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.data.environments.card import EnvironmentCard
from mucd_ray.data.environments.declared import DeclaredCard, card_from
from mucd_ray.data.environments.own import UserEnvironment
from mucd_ray.errors import MucdError
from mucd_ray.learn.learner import Learner
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.commands import _check_card
from mucd_ray.service.runs.driver import certify, training_units
from mucd_ray.service.runs.session import Request, make_settings, read_dataset
from mucd_ray.service.runs.settings import RunSettings
from mucd_ray.service.runs.summary import finish
from mucd_ray.service.runs.work import baselines, best_constant, choose_states, train_and_evaluate, train_parts
from mucd_ray.service.serving.ensemble import Ensemble
from mucd_ray.service.storage.store import RunStore

SECRET = b"s" * 32
LEARNER = Learner(algorithm="bc", hidden=(8,), optimiser="adam", learning_rate=0.01)


@pytest.fixture(scope="module")
def minari_root(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("minari")))
        for name in ("Rooms", "Pictures", "Cells", "Doors", "Levers", "Switches"):
            record(f"{name}-v0", f"{name.lower()}-v0", 24)
            record(f"{name}-v0", f"{name.lower()}-mine-v0", 3, start=60)
        yield


def made(name: str, folder: Path, keys: tuple[str, ...] = (), learner: Learner = LEARNER, **asked) -> RunStore:
    """A small certified run on bags, with the card's file beside it."""
    (folder / "card.json").write_text(json.dumps(card(f"{name}-v0")))
    request = Request(
        dataset=f"{name.lower()}-v0", card=EnvironmentCard.from_dict(card(f"{name}-v0")), observation_keys=keys, mechanism="bag", bag_size=6, learner=learner, fit={"steps": 60}, states=6, held_out=1, **asked
    )
    dataset = read_dataset(request)
    settings, _ = make_settings(request, dataset, Choices())
    assert RunSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    store = RunStore.create_or_open(str(folder / "run"), settings, secret=SECRET)
    units = training_units(settings, dataset)
    states = store.write_states(choose_states(settings, SECRET, units, "cpu"))
    store.add_target(20)
    store.commit(train_and_evaluate(settings, SECRET, units, states, range(20), "cpu"))
    if learner == LEARNER:
        store.write_json("baselines.json", baselines(settings, units, states) | best_constant(settings))
    certify(store, Choices())
    return store


@pytest.fixture(scope="module")
def rooms(minari_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rooms")
    return made("Rooms", folder, ("way", "near", "count")), folder / "card.json"


def test_dictionaries_and_several_whole_numbers(rooms):
    store, path = rooms
    certificate, settings = store.certificate(), store.settings()
    assert verify(certificate) == [] and certificate["inputs"]["features"]["keys"] == ["count", "near", "way"] and settings.actions == 6
    assert "of which policies see nothing but the keys count, near, way." in " ".join(certificate["claim"])
    # Steps to the left are worth nothing on the right: the policy has learned more than any constant action earns.
    assert certificate["results"]["policy"]["unpoisoned_mean"] > certificate["context"]["baselines"]["best_constant_return"] + 2

    served, room = Ensemble(str(store.path)), Rooms()
    seen, _ = room.reset(seed=1)
    joined = settings.environment_observations.one(seen)
    (answer,) = served.answers(joined[None])
    assert np.unravel_index(answer["action"], (3, 2)) == tuple(np.array(answer["environment_action"]) - [1, 0])
    assert served.act(seen) in room.action_space and np.array_equal(served.act(seen), answer["environment_action"]) and np.array_equal(served.act(joined[None])[0], served.act(seen))

    _check_card(store, settings, str(path), UserEnvironment())
    with pytest.raises(MucdError, match="made only on your word"):
        _check_card(store, settings, None, UserEnvironment())


@contextlib.contextmanager
def serving(store):
    """post(path, body): (status, JSON) from a real server in this process."""
    uvicorn, ensemble = pytest.importorskip("uvicorn"), Ensemble(str(store.path))
    from mucd_ray.service.serving.serve import make_app

    async def answers(observations):
        return ensemble.answers(observations)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(make_app(ensemble, answers), port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.02)

    def call(path, body):
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", json.dumps(body, default=lambda value: value.tolist()).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=300) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    yield call
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def post(rooms):
    with serving(rooms[0]) as call:
        yield call


def test_dictionaries_over_http(rooms, post):
    seen, _ = Rooms().reset(seed=2)
    flat = rooms[0].settings().environment_observations.one(seen)
    _, both = post("/act/batch", {"observations": [seen, flat]})
    assert both["answers"][0] == both["answers"][1] and both["answers"][0]["environment_action"] == post("/act", {"observation": seen})[1]["environment_action"]
    for foul, words in (
        ({"way": seen["way"], "count": seen["count"]}, "key near/0 are missing"), (seen | {"way": {"to": [0.5], "sign": 9}}, "key way/sign are outside"), (seen | {"way": {"to": [0.5, 1], "sign": 5}}, "key way/to have shape"),
        (seen | {"way": {"to": "x", "sign": 5}}, "key way/to"), (seen | {"way": {"to": [[0.5], 1], "sign": 5}}, "key way/to"), (seen | {"way": {"to": [float("nan")], "sign": 5}}, "finite"),
    ):
        status, told = post("/act", {"observation": foul})
        assert status == 422 and words in str(told["detail"])
    assert post("/act", {"observation": flat.tolist()[:-1]})[0] == 422


def test_an_image_of_a_dictionary_and_bits(minari_root, tmp_path):
    store = made("Pictures", tmp_path, ("image",), Learner(algorithm="bc", hidden=(), network="convolutional", optimiser="adam", learning_rate=0.003))  # too slow to compare
    settings = store.settings()
    assert verify(store.certificate()) == [] and settings.card.observation_shape == (8, 9, 3) and store.states().dtype == np.uint8 and settings.actions == 4
    assert Ensemble(str(store.path)).act(store.states()).shape == (6, 2)


def test_cells_one_hot_and_matrices(minari_root, tmp_path):
    store = made("Cells", tmp_path)
    settings = store.settings()
    assert verify(store.certificate()) == [] and settings.card.observation_shape == (9,) and np.array_equal(store.states().sum(1), np.ones(6)) and settings.dimensions == 4
    assert Ensemble(str(store.path)).act(store.states()).shape == (6, 2, 2)


@pytest.mark.parametrize("name, components, space, inference", [("Levers", (11, 11, 11), Levers.action_space, "votes"), ("Switches", (2,) * 10, Switches.action_space, "scores")], ids=["Levers", "Switches"])
def test_several_components(minari_root, tmp_path, name, components, space, inference):
    """Certified, served and asked as vectors; whoever serves says of the certificate's states what it says."""
    store = made(name, tmp_path)
    certificate, settings, states = certify(store, Choices(inference=inference)), store.settings(), store.states()
    assert verify(certificate) == [] and settings.components == components and settings.actions == sum(components) and certificate["inputs"]["actions"]["components"] == list(components)
    assert certificate["results"]["policy"]["unpoisoned_mean"] > certificate["context"]["baselines"]["best_constant_return"] + 2
    assert f"an action has {len(components)} components" in " ".join(certificate["claim"])
    part, served = certificate["results"]["action"]["per_state"], Ensemble(str(store.path))
    assert part["radius"] == [None if None in row else min(row) for row in part["component_radius"]]
    answers, start = served.answers(states), getattr(space, "start", 0)
    assert [answer["action"] for answer in answers] == certificate["results"]["action"]["action"] and [answer["radius"] for answer in answers] == part["radius"]
    assert all(np.array_equal(answer["environment_action"], start + np.array(answer["action"])) and len(answer[inference]) == len(components) for answer in answers)
    assert all(action in space for action in served.act(states)) and served.act(states[0]).dtype == space.dtype
    assert served.radius(states).tolist() == [-1 if radius is None else radius for radius in part["radius"]]
    with pytest.raises(MucdError, match="combinations of several components' values"):
        certify(store, Choices(policy="vote"))
    with serving(store) as post:
        status, answer = post("/act", {"observation": states[0]})
        assert status == 200 and {name: answer[name] for name in answers[0]} == answers[0]
    finish(store, certificate)
    report = store.storage.read("report.html", 1 << 24).decode()
    assert f"{len(components)} components: a state's radius is the least of its components'" in report and "in every component" in report


def test_parts_vote_on_components_without_chance(minari_root, tmp_path):
    request = Request(dataset="levers-v0", mechanism="partition", parts=4, card=EnvironmentCard.from_dict(card("Levers-v0")), learner=LEARNER, fit={"steps": 60}, states=6, held_out=1)
    dataset = read_dataset(request)
    settings, _ = make_settings(request, dataset, Choices())
    store, units = RunStore.create_or_open(str(tmp_path / "run"), settings, secret=SECRET), training_units(settings, dataset)
    states = store.write_states(choose_states(settings, SECRET, units, "cpu"))
    store.add_target(20)
    store.of_parts().commit(train_parts(settings, units, states, range(4), "cpu"))
    store.commit(train_and_evaluate(settings, SECRET, units, states, range(20), "cpu"))
    store.write_json("baselines.json", {"reference": [[5, 5, 5]] * 6})
    certificate = certify(store, Choices())
    evidence = certificate["inputs"]["actions"]
    assert verify(certificate) == [] and evidence["kind"] == "exact" and evidence["components"] == [11] * 3 and all(sum(row) == 12 for row in evidence["counts"])
    assert "this is certain, at all states together" in " ".join(certificate["claim"]) and "may be wrong" not in " ".join(certificate["claim"])
    served = Ensemble(str(store.path))
    assert served.radius(states).tolist() == certificate["results"]["action"]["per_state"]["radius"] and served.act(states).tolist() == (np.array(certificate["results"]["action"]["action"]) - 5).tolist()


@pytest.mark.parametrize("changes, words", [
    ({"learner": replace(LEARNER, algorithm="cql")}, "'cql' is not defined for actions of 3 components.*use bc"), ({"learner": replace(LEARNER, algorithm="iql")}, "'iql' is not defined for actions of 3 components"),
    ({"learner": replace(LEARNER, algorithm="dt", network="transformer", hidden=())}, "'dt' is not defined for actions of 3 components"),
    ({"mechanism": "neighbours", "bag_size": None, "learner": None, "fit": None}, "neighbours vote on one action, and those of levers-v0 have 3 components"),
    ({"card": EnvironmentCard.from_dict(card("Levers-v0") | {"mirror_observation": [-1, -2], "mirror_actions": [*range(32, -1, -1)]})}, "a mirror knows no actions of several components"),
])
def test_what_is_not_there_for_components_is_said(minari_root, changes, words):
    request = Request(**{"dataset": "levers-v0", "card": EnvironmentCard.from_dict(card("Levers-v0")), "mechanism": "bag", "bag_size": 6, "learner": LEARNER, "fit": {"steps": 60}} | changes)
    with pytest.raises(MucdError, match=words):
        make_settings(request, read_dataset(request), Choices())


def test_components_under_noise(minari_root):
    request = Request(dataset="levers-v0", card=EnvironmentCard.from_dict(card("Levers-v0")), mechanism="gaussian", unit="transition", steps=5, states=4)
    dataset = read_dataset(request)
    settings, _ = make_settings(request, dataset, Choices())
    block = train_and_evaluate(settings, SECRET, training_units(settings, dataset), dataset.observations[:4], range(3), "cpu")
    assert block.actions.shape == (3, 4, 3) and block.levels.shape == (3, 4, 33) and block.causes() == [""] * 3


@pytest.mark.parametrize(("name", "keys", "shape", "actions"), [("Rooms", ("near", "way"), (10,), 6), ("Cells", (), (9,), 4), ("Levers", (), (2,), 33), ("Switches", (), (2,), 20)])
def test_without_an_environment_spaces_are_those_that_the_dataset_declares(minari_root, tmp_path, name, keys, shape, actions):
    np.save(tmp_path / "states.npy", np.eye(3, shape[0], dtype=np.float32))
    request = Request(
        dataset=f"{name.lower()}-v0", observation_keys=keys, mechanism="bag", bag_size=6, learner=LEARNER, fit={"steps": 20}, no_environment=True, states_file=str(tmp_path / "states.npy"),
    )
    dataset = read_dataset(request)
    settings, states = make_settings(request, dataset, Choices())
    assert settings.card.observation_shape == shape and max(settings.actions, settings.dimensions) == actions and settings.environment_actions.declared.shape in ((2,), (2, 2), (3,), (10,))
    store = RunStore.create_or_open(str(tmp_path / "run"), settings, secret=SECRET)
    store.write_states(states)
    store.add_target(20)
    store.commit(train_and_evaluate(settings, SECRET, training_units(settings, dataset), states, range(20), "cpu"))
    store.write_json("baselines.json", {"reference": None})
    certify(store, Choices())
    assert verify(store.certificate()) == [] and store.certificate()["inputs"]["features"].get("keys", []) == list(keys)
    assert tuple(store.certificate()["inputs"]["declared"].get("components", ())) == (settings.components or ())
    assert Ensemble(str(store.path)).act(states).shape[1:] == settings.environment_actions.declared.shape


SEEN = {"rooms": ("Rooms", {"observation_keys": ("near", "way")}, (10,)), "cells": ("Cells", {}, (9,)), "doors": ("Doors", {"history": 3}, (3, 6)), "recalled doors": ("Doors", {"history": 2}, (2, 2 + 4 + 6))}


@pytest.mark.parametrize("plays", [False, True])
@pytest.mark.parametrize("case", SEEN)
def test_trusted_states_are_as_policies_see_them(minari_root, case, plays):
    name, changes, shape = SEEN[case]
    learner = replace(LEARNER, algorithm="dt", network="transformer", hidden=()) if "recalled" in case else LEARNER
    request = Request(
        dataset=f"{name.lower()}-v0", mechanism="bag", unit="trajectory", bag_size=3, learner=learner, fit={"steps": 20}, states=7, trusted_states=f"{name.lower()}-mine-v0", no_environment=not plays,
        card=EnvironmentCard.from_dict(card(f"{name}-v0")) if plays else None, **changes,
    )
    dataset = read_dataset(request)
    settings, states = make_settings(request, dataset, Choices())
    trusted = settings.card.as_seen(read_dataset(replace(request, dataset=request.trusted_states)))
    assert states.shape == (7, *shape) and all((trusted.observations == state).reshape(len(trusted), -1).all(1).any() for state in states)
    with pytest.raises(MucdError, match="whoever poisons it would choose"):
        make_settings(replace(request, trusted_states=request.dataset, unit="source", source_key="who"), replace(dataset, sources=np.arange(24) // 2), Choices())


def test_states_of_whole_numbers_leave_room_for_others(minari_root, tmp_path):
    np.save(tmp_path / "states.npy", np.ones((3, 6), np.int8))
    request = Request(dataset="doors-v0", mechanism="bag", bag_size=3, states_file=str(tmp_path / "states.npy"), no_environment=True)
    _, states = make_settings(request, read_dataset(request), Choices())
    assert states.dtype == np.float32


def declaring(observations, actions) -> OfflineDataset:
    """Eight transitions of ones, whatever they mean."""
    one = observations.sample()
    many = {key: np.ones((8, *np.shape(value)), observations[key].dtype) for key, value in one.items()} if isinstance(one, dict) else np.ones((8, *np.shape(one)), observations.dtype)
    return OfflineDataset.from_arrays(
        observations=many, next_observations=many, actions=np.ones((8, *np.shape(actions.sample())), actions.dtype), rewards=np.zeros(8), terminations=np.zeros(8, bool), truncations=np.zeros(8, bool),
        observation_space=observations, action_space=actions,
    )


BOX = {size: gym.spaces.Box(-np.inf, np.inf, (size,), np.float32) for size in (2, 3, 4, 5)}
TWO_THREE = gym.spaces.Dict(a=BOX[2], b=BOX[3])
# Declarations whose arrays are alike.
ALIKE = {
    "other keys": (TWO_THREE, gym.spaces.MultiDiscrete([2, 3]), gym.spaces.Dict(c=BOX[2], d=BOX[3]), gym.spaces.MultiDiscrete([2, 3])),
    "keys of other widths": (TWO_THREE, gym.spaces.Discrete(3), gym.spaces.Dict(a=BOX[3], b=BOX[2]), gym.spaces.Discrete(3)),
    "no keys": (TWO_THREE, gym.spaces.Discrete(3), BOX[5], gym.spaces.Discrete(3)),
    "other combinations": (BOX[5], gym.spaces.MultiDiscrete([2, 3]), BOX[5], gym.spaces.MultiDiscrete([3, 2])),
    "combinations from elsewhere": (BOX[5], gym.spaces.MultiDiscrete([2, 3]), BOX[5], gym.spaces.MultiDiscrete([2, 3], start=[1, 0])),
    "no combinations": (BOX[5], gym.spaces.MultiDiscrete([2, 3]), BOX[5], gym.spaces.Discrete(6)),
    "a matrix": (BOX[5], gym.spaces.Box(-1, 1, (2, 2)), BOX[5], gym.spaces.Box(-1, 1, (4,))),
    "components from elsewhere": (BOX[5], gym.spaces.MultiDiscrete([30, 30]), BOX[5], gym.spaces.MultiDiscrete([30, 30], start=[1, 0])),
    "other components": (BOX[5], gym.spaces.MultiDiscrete([30, 31]), BOX[5], gym.spaces.MultiDiscrete([31, 30])),
    "another first action": (BOX[5], gym.spaces.Discrete(3), BOX[5], gym.spaces.Discrete(3, start=1)),
    "a mask": (gym.spaces.Dict(action_mask=BOX[3], b=BOX[2]), gym.spaces.Discrete(3), gym.spaces.Dict(a=BOX[3], b=BOX[2]), gym.spaces.Discrete(3)),
    "another first category": (gym.spaces.Discrete(5), gym.spaces.Discrete(3), gym.spaces.Discrete(5, start=1), gym.spaces.Discrete(3)),
    "no category": (gym.spaces.Discrete(5), gym.spaces.Discrete(3), gym.spaces.Box(0, 1, (5,), np.uint8), gym.spaces.Discrete(3)),
}


@pytest.mark.parametrize("case", ALIKE)
def test_what_is_declared_is_compared_by_its_meaning(case):
    observations, actions, others, other_actions = ALIKE[case]
    mine, theirs = declaring(observations, actions), declaring(others, other_actions)
    cards = [DeclaredCard.of(dataset).raw().one_hot() for dataset in (mine, theirs)]
    assert cards[0].declared["sha256"] != cards[1].declared["sha256"]
    for own, given, other in zip(cards, (mine, theirs), (theirs, mine)):
        own.check(given)
        again = card_from(json.loads(json.dumps(own.to_dict())))
        assert again == own and again.declared == own.declared
        with pytest.raises(MucdError, match="declares"):
            again.check(other)


def test_plain_spaces_are_hashed_as_ever():
    declared = DeclaredCard.of(declaring(BOX[4], gym.spaces.Discrete(3)))
    assert declared.to_dict().keys().isdisjoint({"observation_parts", "declared_actions"})
    assert declared.declared["sha256"] == hashlib.sha256(json.dumps([declared.observation_space, declared.action_space]).encode()).hexdigest()


@pytest.mark.parametrize("inference", ["votes", "scores"])
def test_policies_choose_among_the_actions_that_are_allowed(minari_root, tmp_path, inference):
    """The environment fails at any other: instances, held-out ones and constant actions have kept to it in all of their episodes."""
    store = made("Doors", tmp_path, states_file=str(doors(tmp_path)))
    certificate, settings, states = certify(store, Choices(inference=inference)), store.settings(), store.states()
    assert settings.mask == 0 and certificate["inputs"]["features"]["mask"] is True and verify(certificate) == []
    assert "by its action_mask which actions are allowed: of these each policy takes the one that it prefers" in " ".join(certificate["claim"])
    evidence = certificate["inputs"]["actions"]
    if inference == "votes":
        assert (np.array(evidence["counts"])[states[:, :4] == 0] == 0).all() and (states[:, :4] == 0).any()
    else:
        assert (np.array(evidence["histogram"])[states[:, :4] == 0][:, 1:] == 0).all()
    assert all(states[row, action] == 1 for row, action in enumerate(evidence["reference"]))
    served = Ensemble(str(store.path))
    assert all(states[row, action - 3] == 1 for row, action in enumerate(served.act(states)))
    room = Doors()
    seen, _ = room.reset(seed=3)
    assert room.allowed()[served.act(seen) - 3]
    with pytest.raises(MucdError, match="does not know which of them a mask allows"):
        certify(store, Choices(policy="vote"))


def doors(folder):
    """States where a wall is near, and in the middle: a file."""
    room, states = Doors(), []
    for place in (-0.9, -0.7, 0.0, 0.7, 0.9):
        room.place, room.target = place, 0.1
        seen = room._seen()
        states.append(np.concatenate([seen["action_mask"], seen["observation"]]))
    np.save(folder / "doors.npy", np.array(states, np.float32))
    return folder / "doors.npy"


def test_masks_with_trainers_of_ones_own_a_history_and_no_environment(minari_root, tmp_path, capfd):
    """An action that is not allowed is replaced by the lowest that is."""
    (tmp_path / "trainers.py").write_text("import numpy as np\n\nclass Lowest:\n    def act(self, observations):\n        return np.full(len(observations), 3)\n\ndef lowest(bag, seed, device):\n    return Lowest()\n")
    from mucd_ray.learn.trainers.outside import outside

    trainer = outside("function", f"{tmp_path / 'trainers.py'}:lowest")
    request = Request(dataset="doors-v0", mechanism="bag", bag_size=6, trainer=trainer, no_environment=True, states_file=str(doors(tmp_path)))
    dataset = read_dataset(request)
    settings, states = make_settings(request, dataset, Choices())
    block = train_and_evaluate(settings, SECRET, training_units(settings, dataset), states, range(2), "cpu")
    assert settings.mask == 0 and np.array_equal(block.actions, np.tile(states[:, :4].argmax(1), (2, 1)))
    request = Request(dataset="doors-v0", card=EnvironmentCard.from_dict(card("Doors-v0")), mechanism="bag", bag_size=6, trainer=trainer)
    settings, _ = make_settings(request, dataset, Choices())
    assert train_and_evaluate(settings, SECRET, training_units(settings, dataset), states, range(2), "cpu").failed.tolist() == [0, 0]
    request = replace(request, trainer=None, learner=LEARNER, history=3)
    settings, _ = make_settings(request, dataset, Choices())
    assert settings.mask == 12 and RunSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings and "action_mask" not in capfd.readouterr().err
    settings, _ = make_settings(replace(request, mechanism="gaussian", unit="transition", history=1, bag_size=None), dataset, Choices())
    assert settings.mask is None and "tells which actions are allowed (action_mask), which is not used" in capfd.readouterr().err
    request = replace(request, observation_keys=("observation",), history=1)
    settings, _ = make_settings(request, read_dataset(request), Choices())
    assert settings.mask is None and "action_mask" not in capfd.readouterr().err
