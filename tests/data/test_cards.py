import dataclasses
import json

import gymnasium as gym
import numpy as np
import pytest

from mucd_ray.data.cards import CARDS, EnvironmentCard, card_for, load_card
from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.data.minari_io import load_dataset
from mucd_ray.errors import MucdError

CARD = EnvironmentCard(
    env_id="CartPole-v1", observation_shape=(2, 2), indices=(3, 0), center=(1.0, 0.0), scale=(2.0, 0.5), clip=4.0, return_range=(0.0, 1.0), source="test"
)


def test_features_are_the_stated_formula():
    features = CARD.features(np.array([[[1, 9], [9, 5]], [[-7, 9], [9, 1]]], np.float32))
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features, [[2.0, 2.0], [0.0, -4.0]])
    assert CARD.features(np.zeros((5, 3, 2, 2))).shape == (5, 3, 2)


def test_non_finite_entries_stay_non_finite_and_huge_ones_are_clipped():
    observations = np.array([[[np.nan, 0], [0, np.inf]], [[1e308, 0], [0, -1e308]], [[0, np.nan], [np.inf, 1]]])
    features = CARD.features(observations)
    assert not np.isfinite(features[0]).any()
    np.testing.assert_array_equal(features[1:], [[-4.0, 4.0], [0.0, 0.0]])
    ram = np.zeros((2, 128))
    ram[0, 50] = np.nan
    assert np.isnan(card_for("ALE/Freeway-v5").features(ram)).tolist() == [[True] * 3, [False] * 3]


@pytest.mark.parametrize("env_id", CARDS)
def test_shipped_cards_fit_their_environments(env_id):
    card = card_for(env_id)
    environment = card.make()
    assert environment.observation_space.shape == card.observation_shape
    environment.action_space.seed(0)
    batch = [environment.reset(seed=0)[0]]
    for _ in range(8):
        batch.append(environment.step(environment.action_space.sample())[0])
    features = card.features(np.stack(batch))
    assert features.shape == (9, len(card.indices)) and np.abs(features).max() <= card.clip
    np.testing.assert_array_equal(features[7], card.features(batch[7]))  # every observation on its own
    assert EnvironmentCard.from_dict(json.loads(json.dumps(card.to_dict()))) == card
    environment.close()


def test_card_file_round_trip(tmp_path):
    path = tmp_path / "card.json"
    path.write_text(json.dumps(CARD.to_dict()))
    assert load_card(path) == CARD


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "needs the fields"),
        ('{"env_id": "CartPole-v1"}', "needs the fields"),
        (json.dumps({**CARD.to_dict(), "colour": 1}), "colour"),
        (json.dumps({**CARD.to_dict(), "scale": [1.0, 0.0]}), "scale and clip finite and above 0"),
        (json.dumps({**CARD.to_dict(), "scale": 1.0}), "wrong type or shape"),
        (json.dumps({**CARD.to_dict(), "center": ["a", "b"]}), "wrong type or shape"),
        (json.dumps({**CARD.to_dict(), "observation_shape": [-1]}), "wrong type or shape"),
        (json.dumps({**CARD.to_dict(), "transform": "freeway-clear-steps"}), "wrong type or shape"),
        (json.dumps({**CARD.to_dict(), "indices": [0, 4]}), "leave the 4 entries"),
        (json.dumps({**CARD.to_dict(), "indices": [0]}), "one of each per feature"),
        (json.dumps({**CARD.to_dict(), "return_range": [1, 0]}), "the lower first"),
        (json.dumps({**CARD.to_dict(), "transform": "pca"}), "transform 'pca' is unknown"),
    ],
)
def test_bad_card_files_are_named(tmp_path, text, message):
    path = tmp_path / "card.json"
    path.write_text(text)
    with pytest.raises(MucdError, match=message):
        load_card(path)
    with pytest.raises(MucdError, match="cannot be read"):
        load_card(tmp_path / "absent.json")


def test_unknown_environments_are_named():
    with pytest.raises(MucdError, match="MountainCar-v0.*CartPole-v1, Acrobot-v1, ALE/Freeway-v5.*--card"):
        card_for("MountainCar-v0")
    with pytest.raises(MucdError, match="NoSuchGame-v7"):
        dataclasses.replace(CARD, env_id="NoSuchGame-v7").make()
    with pytest.raises(MucdError, match="do not end in"):
        CARD.features(np.zeros((3, 4)))


def test_dataset_and_card_must_match(cartpole, arrays):
    dataset = load_dataset(cartpole["dataset_id"])
    card_for("CartPole-v1").check(dataset)
    with pytest.raises(MucdError, match="recorded in CartPole-v1, not in Acrobot-v1"):
        card_for("Acrobot-v1").check(dataset)
    with pytest.raises(MucdError, match="observations of shape"):
        card_for("CartPole-v1").check(OfflineDataset.from_arrays(**arrays))
    three_actions = dataclasses.replace(dataset, action_space=gym.spaces.Discrete(3))
    with pytest.raises(MucdError, match="declares actions in"):
        card_for("CartPole-v1").check(three_actions)
