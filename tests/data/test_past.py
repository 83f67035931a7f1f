"""Recalled steps of trajectories, against what policies see in the environment; and cards whose policies see them."""

import dataclasses
import json

import gymnasium
import numpy as np
import pytest

from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.data.environments.card import EnvironmentCard, load_card
from mucd_ray.data.environments.cards import card_for
from mucd_ray.data.environments.past import with_past
from mucd_ray.errors import MucdError

NAMES = ("observations", "next_observations", "actions", "rewards", "terminations", "truncations")


def played(environment, seeds, limit=12):
    """Rows of episodes of random actions, those of a seed always the same."""
    rows, starts = [], [0]
    for seed in seeds:
        environment.action_space.seed(seed)
        observation, _ = environment.reset(seed=seed)
        for _ in range(limit):
            action = environment.action_space.sample()
            after, reward, terminated, truncated, _ = environment.step(action)
            rows.append((observation, after, action, reward, terminated, truncated))
            observation = after
            if terminated or truncated:
                break
        starts.append(len(rows))
    spaces = {"action_space": environment.action_space, "observation_space": environment.observation_space}
    return OfflineDataset.from_arrays(**dict(zip(NAMES, map(np.array, zip(*rows)))), trajectory_starts=starts, **spaces)


@pytest.mark.parametrize("history", [1, 3, 20])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_rows_are_what_policies_see_bit_for_bit(env_id, history):
    plain = card_for(env_id).raw()
    one = plain.make()
    dataset = played(one, range(4))
    actions = 2 if env_id == "CartPole-v1" else 1
    card = plain.with_past(history, actions)
    ours, theirs = card.as_seen(dataset), played(card.make(), range(4))
    for name in NAMES[:2]:
        assert getattr(ours, name).tobytes() == getattr(theirs, name).tobytes() and getattr(ours, name).shape[1:] == card.observation_shape
    # The last step of the second trajectory's third row, written out.
    start = dataset.trajectory_starts[1]
    action = np.eye(2)[dataset.actions[start + 1]] if actions == 2 else dataset.actions[start + 1]
    earned = np.float32(dataset.rewards[start]) + np.float32(dataset.rewards[start + 1])
    assert ours.observations[start + 2, -1].tolist() == [1, earned, *action.astype(np.float32), *dataset.observations[start + 2]]
    assert not ours.observations[start, :-1].any() and ours.observations[start, -1, :2].tolist() == [1, 0] and not ours.observations[start, -1, 2 : 2 + actions].any()
    # A trajectory by itself, wherever it stands.
    alone = with_past(played(one, [1]), history)
    assert np.array_equal(alone.observations, ours.observations[start : start + len(alone)])
    card.check(dataclasses.replace(dataset, env_id=env_id))
    assert card.features(ours.observations).tolist() == ours.observations.reshape(len(ours), -1).tolist()


def test_discrete_actions_may_begin_anywhere_and_rewards_overflow():
    space = gymnasium.spaces.Discrete(3, start=-1)
    arrays = {"observations": np.zeros((3, 1)), "next_observations": np.ones((3, 1)), "actions": np.array([-1, 1, 0]), "rewards": np.array([3e38, 3e38, 1.0]), "terminations": [0, 0, 1], "truncations": [0, 0, 0]}
    seen = with_past(OfflineDataset.from_arrays(**arrays, action_space=space, observation_space=gymnasium.spaces.Box(-1, 1, (1,))), 2)
    assert seen.observations[2, :, 2:5].tolist() == [[1, 0, 0], [0, 0, 1]] and seen.next_observations[2, 1].tolist() == [1, np.inf, 0, 1, 0, 1]


def test_cards_with_past_are_written_and_taken_back(tmp_path):
    number = dataclasses.replace(card_for("HalfCheetah-v5").raw(), observation_shape=())
    for card, actions in ((card_for("LunarLander-v3").raw(), 4), (card_for("Pendulum-v1").raw(), 1), (number, 6)):
        for history in (1, 3):
            past = card.with_past(history, actions)
            assert past.without_history() == card and past.raw() == past and EnvironmentCard.from_dict(past.to_dict()) == past and not past.is_as_registered
            assert past.features_source() == card.features_source() | {"steps": history}
    assert "recalled" not in card.to_dict()
    for changed in ({"recalled": (3, 8)}, {"encoder": ("0f" * 32, 3)}, {"recalled": (-1, 1)}):
        with pytest.raises(MucdError):
            dataclasses.replace(past, **changed)
    with pytest.raises(MucdError, match="leave --encoder out"):
        dataclasses.replace(card, encoder=("0f" * 32, 3)).with_past(2, 4)
    (tmp_path / "card.json").write_text(json.dumps(past.to_dict()))
    with pytest.raises(MucdError, match="give --history 3"):
        load_card(tmp_path / "card.json")


@pytest.mark.parametrize("env_id,actions", [("CartPole-v1", 2), ("Pendulum-v1", 1)])
def test_the_mirror_image_of_what_is_seen_is_what_the_image_sees(env_id, actions):
    card = card_for(env_id).raw()
    dataset = played(card.make(), range(3))
    image = dataclasses.replace(
        dataset, actions=card.mirror.images_of_actions(dataset.actions), **{name: card.mirror.observations(getattr(dataset, name)) for name in ("observations", "next_observations")}
    )
    past = card.with_past(3, actions)
    flat = past.as_seen(dataset).observations.reshape(len(dataset), -1)
    assert np.array_equal(past.mirror.observations(flat), past.as_seen(image).observations.reshape(len(dataset), -1))
