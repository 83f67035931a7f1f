"""Stacked observations of trajectories, against Gymnasium's own wrapper; and cards whose policies see them."""

import dataclasses
import json

import gymnasium
import numpy as np
import pytest

from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.data.environments.card import EnvironmentCard, load_card
from mucd_ray.data.environments.cards import card_for
from mucd_ray.errors import MucdError


def played(environment, seeds, limit=30):
    """Rows of episodes of random actions, those of a seed always the same."""
    rows, starts = [], [0]
    for seed in seeds:
        rng, ended = np.random.default_rng(seed), False
        observation, _ = environment.reset(seed=seed)
        while not ended and len(rows) - starts[-1] < limit:
            action = int(rng.integers(environment.action_space.n))
            after, reward, terminated, truncated, _ = environment.step(action)
            rows.append((observation, after, action, reward, terminated, truncated))
            observation, ended = after, terminated or truncated
        starts.append(len(rows))
    names = ("observations", "next_observations", "actions", "rewards", "terminations", "truncations")
    return dict(zip(names, map(np.array, zip(*rows)))) | {"trajectory_starts": starts}


@pytest.mark.parametrize("history", [1, 2, 5, 40])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Acrobot-v1"])
def test_rows_are_those_of_gymnasiums_wrapper_bit_for_bit(env_id, history):
    card = card_for(env_id).raw()
    plain, stacked = card.make(), card.with_history(history).make()
    recorded = played(plain, range(4))
    dataset = OfflineDataset.from_arrays(**recorded, action_space=plain.action_space, observation_space=plain.observation_space)
    ours, theirs = dataset.with_history(history), played(stacked, range(4))
    for name in ("observations", "next_observations"):
        found = getattr(ours, name)
        assert found.dtype == theirs[name].dtype and found.shape == theirs[name].shape and found.tobytes() == theirs[name].tobytes()
    assert ours.observations.shape[1:] == stacked.observation_space.shape == card.with_history(history).observation_shape
    assert np.array_equal(ours.actions, theirs["actions"]) and np.array_equal(ours.rewards, theirs["rewards"])
    # Features are the flattened stack, and the dataset is still checked as it was recorded.
    assert card.with_history(history).features(ours.observations).tolist() == ours.observations.reshape(len(ours), -1).astype(np.float32).tolist()
    card.with_history(history).check(dataclasses.replace(dataset, env_id=env_id))
    for environment in (plain, stacked):
        environment.close()


def test_a_trajectory_is_stacked_by_itself_wherever_it_stands():
    environment = gymnasium.make("CartPole-v1")
    spaces = {"action_space": environment.action_space, "observation_space": environment.observation_space}
    one, others = (OfflineDataset.from_arrays(**played(environment, seeds), **spaces).with_history(3) for seeds in ([7], [3, 7, 5]))
    start, end = others.trajectory_starts[1:3]
    for name in ("observations", "next_observations"):
        assert np.array_equal(getattr(others, name)[start:end], getattr(one, name))
    environment.close()


def test_cards_say_the_history_and_without_one_are_what_they_were(tmp_path):
    card = card_for("LunarLander-v3").raw()
    stacked = card.with_history(4)
    assert stacked.observation_shape == (4, 8) and stacked.width == 32 and stacked.without_history() == card and stacked.raw() == stacked
    assert EnvironmentCard.from_dict(stacked.to_dict()) == stacked and "history" not in card.to_dict() and card.with_history(1) == card
    assert stacked.features_source() == card.features_source() | {"history": 4} and not stacked.is_as_registered
    # A mirror shows every observation of the stack its own image.
    rows = np.random.default_rng(0).standard_normal((5, 4, 8))
    assert np.array_equal(stacked.mirror.observations(rows.reshape(5, -1)), card.mirror.observations(rows).reshape(5, -1))
    for history in (0, -1, 2.0, True, "2", 1 << 20):
        with pytest.raises(MucdError, match="must be a whole number from 1 to"):
            dataclasses.replace(card, history=history)
    for changed in ({"encoder": ("0f" * 32, 3)}, {"indices": (0, 1)}, {"observation_shape": (3, 8)}):
        with pytest.raises(MucdError, match="history 4 is of raw observations"):
            dataclasses.replace(stacked, **changed)
    (tmp_path / "card.json").write_text(json.dumps(stacked.to_dict()))
    with pytest.raises(MucdError, match="give --history 4"):
        load_card(tmp_path / "card.json")
