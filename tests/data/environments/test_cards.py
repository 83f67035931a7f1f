import dataclasses
import json

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.data.environments import card as card_module
from mucd_ray.data.environments.cards import CARDS, EnvironmentCard, card_for, load_card
from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.data.recording.behaviours import BEHAVIOURS
from mucd_ray.errors import MucdError

CARD = EnvironmentCard(
    env_id="CartPole-v1", observation_shape=(2, 2), indices=(3, 0), center=(1.0, 0.0), scale=(2.0, 0.5), clip=4.0, return_range=(0.0, 1.0), source="test"
)


def test_features_are_the_stated_formula():
    features = CARD.features(np.array([[[1, 9], [9, 5]], [[-7, 9], [9, 1]]], np.float32))
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features, [[2.0, 2.0], [0.0, -4.0]])
    assert CARD.features(np.zeros((5, 3, 2, 2))).shape == (5, 3, 2)


def test_features_are_the_same_in_blocks(monkeypatch):
    ram = np.random.default_rng(0).integers(0, 256, (3, 50, 128), np.uint8)
    whole = card_for("ALE/Freeway-v5").features(ram)
    monkeypatch.setattr(card_module, "_ENTRIES_AT_A_TIME", 900)
    np.testing.assert_array_equal(card_for("ALE/Freeway-v5").features(ram), whole)
    assert card_for("ALE/Freeway-v5").features(ram[:0]).shape == (0, 50, 3)


def test_non_finite_entries_stay_non_finite_and_huge_ones_are_clipped():
    observations = np.array([[[np.nan, 0], [0, np.inf]], [[1e308, 0], [0, -1e308]], [[0, np.nan], [np.inf, 1]]])
    features = CARD.features(observations)
    assert not np.isfinite(features[0]).any()
    np.testing.assert_array_equal(features[1:], [[-4.0, 4.0], [0.0, 0.0]])
    ram = np.zeros((2, 128))
    ram[0, 50] = np.nan
    assert np.isnan(card_for("ALE/Freeway-v5").features(ram)).tolist() == [[True] * 3, [False] * 3]


def title(card):
    return " ".join([card.env_id, *map(str, card.make_kwargs.values()), *([card.wrapper] if card.wrapper else [])])


@pytest.mark.parametrize("card", CARDS, ids=title)
def test_shipped_cards_fit_their_environments(card):
    environment = card.make()
    assert environment.observation_space.shape == card.observation_shape
    environment.action_space.seed(0)
    batch = [environment.reset(seed=0)[0]]
    for _ in range(4):
        batch.append(environment.step(environment.action_space.sample())[0])
    features = card.features(np.stack(batch))
    assert features.shape == (5, card.width) and np.abs(features).max() <= card.clip
    np.testing.assert_array_equal(features[3], card.features(batch[3]))  # every observation on its own
    assert EnvironmentCard.from_dict(json.loads(json.dumps(card.to_dict()))) == card
    assert card_for(card.env_id, card.observation_shape, environment.action_space) is card
    environment.close()


def test_one_number_stands_for_all_features():
    short = dataclasses.replace(CARD, indices=(), center=(1.0,), scale=(2.0,))
    long = dataclasses.replace(CARD, indices=(0, 1, 2, 3), center=(1.0,) * 4, scale=(2.0,) * 4)
    observations = np.random.default_rng(0).normal(size=(5, 2, 2))
    assert short.width == 4 and np.array_equal(short.features(observations), long.features(observations))
    frames = card_for("ALE/Freeway-v5", (4, 42, 42))
    assert frames.width == 4 * 42 * 42 and len(json.dumps(frames.to_dict())) < 1000 and EnvironmentCard.from_dict(frames.to_dict()) == frames



@pytest.mark.parametrize("card", [card for card in CARDS if len(card.observation_shape) < 3], ids=title)
@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_shipped_bounds_hold_real_episodes(card, noise):
    """Behaviours with noise: rewards, lengths, returns and discounted returns stay within what the card declares."""
    environment = card.make()
    behaviour = next(behaviour for behaviour in BEHAVIOURS.values() if behaviour.env_id == card.env_id and behaviour.make_kwargs in (None, card.make_kwargs))
    for seed in range(1 if card.env_id.startswith(("ALE", "highway", "HalfCheetah", "Hopper")) else 10):
        policy = behaviour.policy(noise, environment.action_space, np.random.default_rng(seed))
        observation, _ = environment.reset(seed=seed)
        rewards, done = [], False
        while not done:
            observation, reward, terminated, truncated, _ = environment.step(policy(observation))
            rewards, done = [*rewards, float(reward)], terminated or truncated
        assert len(rewards) <= card.max_episode_steps
        if card.clip_returns:
            assert card.reward_range is None
            continue
        assert card.reward_range[0] <= min(rewards) and max(rewards) <= card.reward_range[1]
        for discount in (1.0, 0.99, 0.5):
            low, high = card.discounted_range(discount)
            assert low <= np.sum(rewards * discount ** np.arange(len(rewards))) <= high
    if environment.spec.max_episode_steps is not None:
        assert card.max_episode_steps == environment.spec.max_episode_steps
    environment.close()


def test_clipped_returns_stay_in_the_public_range():
    card = dataclasses.replace(CARD, clip_returns=True)
    np.testing.assert_array_equal(card.clipped(np.array([-3.0, 0.25, 7.0, np.nan, np.inf, -np.inf])), [0, 0.25, 1, 0, 1, 0])
    assert card.discounted_range(0.9) == card.discounted_range(1.0) == (0.0, 1.0)
    returns = np.array([-3.0, 7.0])
    assert CARD.clipped(returns) is returns


@settings(deadline=None)
@given(
    ends=st.tuples(st.floats(-10, 10), st.floats(-10, 10)), longest=st.integers(1, 40), discount=st.floats(1e-3, 1 - 1e-6),
    draws=st.lists(st.floats(0, 1), min_size=40, max_size=40), steps=st.integers(1, 40),
)
def test_discounted_range_holds_every_episode_and_is_attained(ends, longest, discount, draws, steps):
    low, high = sorted(ends)
    weights = discount ** np.arange(longest)
    card = dataclasses.replace(CARD, reward_range=(low, high), max_episode_steps=longest, return_range=(-1000.0, 1000.0))
    least, greatest = card.discounted_range(discount)
    n = min(steps, longest)
    assert least <= weights[:n] @ np.clip(low + np.array(draws[:n]) * (high - low), low, high) <= greatest
    attained = [value * weights[:n].sum() for value in (low, high) for n in (1, longest)]
    assert min(attained) == pytest.approx(least, abs=1e-6) and max(attained) == pytest.approx(greatest, abs=1e-6)


def test_discounted_range_is_the_return_range_without_a_discount_and_never_wider_for_rewards_of_one_sign():
    assert CARD.discounted_range(1.0) == CARD.return_range
    assert card_for("ALE/Freeway-v5").discounted_range(0.9999)[1] == pytest.approx(50.0)
    assert card_for("Acrobot-v1").discounted_range(0.99) == pytest.approx((-(1 - 0.99**500) / 0.01, 0.0), abs=1e-6)
    for missing in ("reward_range", "max_episode_steps"):
        card = dataclasses.replace(card_for("CartPole-v1"), **{missing: None})
        assert card.discounted_range(1.0) == (0.0, 500.0)
        with pytest.raises(MucdError, match=f"discount 0.5 needs the field {missing} in the card of CartPole-v1"):
            card.discounted_range(0.5)
    for discount in (0.0, -1, 1.01, float("nan")):
        with pytest.raises(MucdError, match="discount"):
            CARD.discounted_range(discount)


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
        (json.dumps({**CARD.to_dict(), "observation_shape": [-1]}), "whole numbers"),
        (json.dumps({**CARD.to_dict(), "transform": "freeway-clear-steps"}), "wrong type or shape"),
        (json.dumps({**CARD.to_dict(), "indices": [0, 4]}), "leave the 4 entries"),
        (json.dumps({**CARD.to_dict(), "indices": [0.5, 1, 2, 3]}), "whole numbers"),
        (json.dumps({**CARD.to_dict(), "make_kwargs": 5}), "make_kwargs"),
        (json.dumps({**CARD.to_dict(), "indices": [0]}), "one center and one scale per feature"),
        (json.dumps({**CARD.to_dict(), "return_range": [1, 0]}), "the lower first"),
        (json.dumps({**CARD.to_dict(), "reward_range": [1, 0]}), "reward range"),
        (json.dumps({**CARD.to_dict(), "reward_range": [0, float("inf")]}), "reward range"),
        (json.dumps({**CARD.to_dict(), "reward_range": 3}), "wrong type or shape"),
        (json.dumps({**CARD.to_dict(), "clip_returns": 1}), "clip_returns 1"),
        (json.dumps({**CARD.to_dict(), "random_return": 5, "expert_return": 5}), "two different finite numbers"),
        (json.dumps({**CARD.to_dict(), "random_return": float("inf")}), "two different finite numbers"),
        (json.dumps({**CARD.to_dict(), "expert_return": "x"}), "wrong type or shape"),
        (json.dumps({**CARD.to_dict(), "wrapper": "blur"}), "wrapper 'blur' is unknown"),
        (json.dumps({**CARD.to_dict(), "wrapper": "atari-frames"}), "is for Atari games"),
        (json.dumps({**CARD.to_dict(), "reward_scale": 0.0}), "reward_scale 0.0"),
        (json.dumps({**CARD.to_dict(), "reward_scale": "big"}), "wrong type or shape"),
        (json.dumps({**CARD.to_dict(), "max_episode_steps": 0}), "max_episode_steps 0"),
        (json.dumps({**CARD.to_dict(), "max_episode_steps": 2.5}), "max_episode_steps 2.5"),
        (json.dumps({**CARD.to_dict(), "transform": "pca"}), "transform 'pca' is unknown"),
        *((json.dumps({**CARD.to_dict(), "entries": bad}), "entries .* must be a whole number") for bad in (0, 5, 2.0, True, "all", [2])),
        *((json.dumps({**CARD.to_dict(), "learning_rate": bad}), "learning_rate .* must be a (finite )?number") for bad in (0, -0.1, True, "fast", float("inf"), {})),
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
    with pytest.raises(MucdError, match="HalfCheetah-v4.*HalfCheetah-v5 is another version.*--card"):
        card_for("HalfCheetah-v4")
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
    for other in ({"env_id": "CartPole-v0"}, {"env_kwargs": {"sutton_barto_reward": True}}):
        found = dataclasses.replace(dataset, **other)
        with pytest.raises(MucdError, match="CartPole-v0, not in CartPole-v1: record it again.*--card|sutton_barto_reward=True, the card makes it with sutton_barto_reward=False: record.*--card"):
            card_for("CartPole-v1").check(found)
    card_for("CartPole-v1").check(dataclasses.replace(dataset, env_kwargs={"render_mode": "rgb_array"}))
    three_actions = dataclasses.replace(dataset, action_space=gym.spaces.Discrete(3))
    with pytest.raises(MucdError, match="declares actions in"):
        card_for("CartPole-v1").check(three_actions)


@pytest.fixture(scope="module")
def registered():
    """Ids of one environment in several spellings."""
    gym.register("mucd/Renamed-v0", "gymnasium.envs.classic_control.cartpole:CartPoleEnv", max_episode_steps=500, kwargs={"sutton_barto_reward": True})
    gym.register("mucd/Shorter-v0", "gymnasium.envs.classic_control.cartpole:CartPoleEnv", max_episode_steps=499)
    yield
    gym.registry.pop("mucd/Renamed-v0"), gym.registry.pop("mucd/Shorter-v0")


CARTPOLE = card_for("CartPole-v1")
SUTTON = dataclasses.replace(CARTPOLE, make_kwargs={"sutton_barto_reward": True}, reward_range=(-1.0, 1.0), return_range=(-500.0, 500.0))


@pytest.mark.parametrize(
    ("card", "recorded"),
    [
        (CARTPOLE, {"env_id": "gymnasium:CartPole-v1"}),
        (CARTPOLE, {"env_id": "no_such_module:CartPole-v1"}),
        (dataclasses.replace(CARTPOLE, env_id="gymnasium:CartPole-v1"), {}),
        (CARTPOLE, {"env_kwargs": {"sutton_barto_reward": False}}),
        (CARTPOLE, {"env_kwargs": None}),
        (CARTPOLE, {"env_max_episode_steps": None}),
        (SUTTON, {"env_kwargs": {"sutton_barto_reward": True}}),
        (SUTTON, {"env_id": "mucd/Renamed-v0"}),
        (SUTTON, {"env_id": "x:mucd/Renamed-v0", "env_kwargs": {"sutton_barto_reward": True}}),
        (CARTPOLE, {"env_id": "mucd/Renamed-v0", "env_kwargs": {"sutton_barto_reward": False}}),
        (CARTPOLE, {"env_wrappers": ("TimeLimit", "OrderEnforcing", "PassiveEnvChecker", "RecordEpisodeStatistics")}),
        (dataclasses.replace(CARTPOLE, max_episode_steps=100), {}),
        (dataclasses.replace(CARTPOLE, make_kwargs={"max_episode_steps": 900}, max_episode_steps=900), {"env_max_episode_steps": 900}),
    ],
)
def test_one_environment_in_another_spelling_is_the_same(cartpole, registered, card, recorded):
    card.check(dataclasses.replace(load_dataset(cartpole["dataset_id"]), **recorded))


@pytest.mark.parametrize(
    ("card", "recorded", "message"),
    [
        (CARTPOLE, {"env_id": "mucd/Renamed-v0"}, "in mucd/Renamed-v0 with sutton_barto_reward=True, the card makes it with sutton_barto_reward=False"),
        (SUTTON, {}, "with sutton_barto_reward=False, the card makes it with sutton_barto_reward=True"),
        (CARTPOLE, {"env_id": "mucd/Shorter-v0"}, "recorded in mucd/Shorter-v0, not in CartPole-v1"),
        (CARTPOLE, {"env_kwargs": {"colour": "x" * 9999}}, "with colour='xxx[^,]{90,100}, the card makes it with no colour"),
        (CARTPOLE, {"env_max_episode_steps": 200}, "at most 200 steps an episode, the card makes it with 500.*max_episode_steps 200"),
        (CARTPOLE, {"env_max_episode_steps": 900}, "at most 900 steps an episode, the card makes it with 500.*make_kwargs"),
        (dataclasses.replace(CARTPOLE, max_episode_steps=100), {"env_max_episode_steps": 50}, "at most 50 steps"),
        (CARTPOLE, {"env_wrappers": ("TimeLimit", "ClipReward")}, "through the wrapper ClipReward"),
    ],
)
def test_another_environment_is_named(cartpole, registered, card, recorded, message):
    with pytest.raises(MucdError, match=message) as caught:
        card.check(dataclasses.replace(load_dataset(cartpole["dataset_id"]), **recorded))
    assert len(str(caught.value)) < 500


def test_an_alias_finds_the_shipped_card():
    continuous = next(card for card in CARDS if card.make_kwargs == {"continuous": True})
    assert card_for("LunarLanderContinuous-v3", continuous.observation_shape) is continuous
    assert card_for("ale_py:ALE/Freeway-v5").env_id == "ALE/Freeway-v5"


def test_wrappers_of_the_card_are_those_of_its_recordings(minari_root):
    from mucd_ray.data.recording.record import record

    record("ALE/Breakout-v5", None, 100, 1, "served-v0", noise=(1.0,))
    dataset = load_dataset("served-v0")
    card = card_for(dataset.env_id, dataset.observations.shape[1:], dataset.action_space)
    assert dataset.env_wrappers == ("Serve",) and dataset.env_max_episode_steps == 5000
    card.check(dataset)
    with pytest.raises(MucdError, match="through the wrapper Serve"):
        dataclasses.replace(card, wrapper=None).check(dataset)


def test_an_environment_without_a_time_limit_is_refused_before_anything_is_trained(minari_root, tmp_path, capfd):
    from minari_datasets import create

    from mucd_ray.cli import main

    create("cliff-v0", gym.spaces.Discrete(48), gym.spaces.Discrete(4))
    card = {"env_id": "CliffWalking-v1", "observation_shape": [], "indices": [], "center": [0.0], "scale": [1.0], "clip": 50.0, "return_range": [-2000.0, 0.0], "source": "test"}
    (tmp_path / "card.json").write_text(json.dumps(card))
    assert main(["run", "cliff-v0", "--storage", str(tmp_path / "run"), "--card", str(tmp_path / "card.json")]) == 2
    errors = capfd.readouterr().err
    assert "CliffWalking-v1 has no time limit" in errors and "max_episode_steps" in errors and "Traceback" not in errors and not (tmp_path / "run").exists()
    limited = dataclasses.replace(EnvironmentCard.from_dict(card), max_episode_steps=20)
    limited.check(load_dataset("cliff-v0"))
    environment = limited.make()
    environment.reset(seed=0)
    ends = [environment.step(0)[2:4] for _ in range(20)]
    assert ends == [(False, False)] * 19 + [(False, True)]
    with pytest.raises(MucdError, match="has no time limit"):
        dataclasses.replace(CARTPOLE, make_kwargs={"max_episode_steps": -1}, max_episode_steps=None).make()
    with pytest.raises(MucdError, match="after 500 steps, and max_episode_steps 501"):
        dataclasses.replace(CARTPOLE, max_episode_steps=501).make()


def test_an_episode_that_ends_at_the_limit_by_itself_is_terminated_not_truncated():
    """Otherwise recordings of environments that count their own steps would change."""

    def ends(limit):
        environment, ends = dataclasses.replace(CARTPOLE, max_episode_steps=limit).make(), []
        environment.reset(seed=1)
        while not ends or not any(ends[-1]):
            ends.append(environment.step(1)[2:4])
        return ends

    falls = len(ends(100))
    assert falls < 20 and ends(falls)[-1] == (True, False) and ends(falls - 1)[-1] == (False, True)


def test_a_card_says_where_its_features_come_from():
    sources = {(card.env_id, card.wrapper): card.features_source()["source"] for card in CARDS}
    assert {env_id for (env_id, _), source in sources.items() if source == "privileged"} == {"ALE/Freeway-v5", "ALE/Breakout-v5", "HalfCheetah-v5"}
    assert sources["ALE/Freeway-v5", "atari-frames"] == sources["CartPole-v1", None] == "card"
    assert all(card.raw().features_source() == {"source": "raw", "card": card.env_id, "encoder": None} for card in CARDS)
