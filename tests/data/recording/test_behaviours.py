import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest

from mucd_ray.data.environments import weights
from mucd_ray.data.environments.breakout import ball_and_paddle, follow
from mucd_ray.data.environments.cards import card_for
from mucd_ray.data.environments.freeway import clear_steps
from mucd_ray.data.environments.halfcheetah import run, running_components
from mucd_ray.data.environments.highway import drive, gaps
from mucd_ray.data.environments.make import make_environment
from mucd_ray.data.environments.weights import shipped_weights
from mucd_ray.data.recording import search
from mucd_ray.data.recording.behaviours import BEHAVIOURS, behaviour_catalogue, behaviour_for
from mucd_ray.errors import MucdError


@pytest.mark.parametrize(
    ("name", "episodes", "least"),
    [
        ("acrobot-swing", 30, -100), ("cartpole-balance", 10, 500), ("pendulum-swing", 20, -200), ("lunarlander-land", 30, 180),
        ("lunarlander-continuous-land", 20, 250), ("invertedpendulum-balance", 2, 1000), ("halfcheetah-run", 1, 3400), ("hopper-hop", 1, 2400),
        ("freeway-lookahead", 1, 27), ("breakout-follow", 2, 25), ("highway-drive", 3, 16),
    ],
)
def test_controllers_are_as_good_as_stated(name, episodes, least):
    """Without noise."""
    behaviour = BEHAVIOURS[name]
    card = card_for(behaviour.env_id, make_kwargs=behaviour.make_kwargs)
    environment, returns = card.make(), np.zeros(episodes)
    for seed in range(episodes):
        observation, ended = environment.reset(seed=10_000 + seed)[0], False
        while not ended:
            observation, reward, terminated, truncated, _ = environment.step(behaviour.controller(observation))
            returns[seed] += reward
            ended = terminated or truncated
    assert returns.mean() >= least
    assert card.clip_returns or card.return_range[0] <= returns.min() and returns.max() <= card.return_range[1]


def test_noise_is_the_stated_probability_of_a_uniform_action():
    behaviour, environment = BEHAVIOURS["acrobot-swing"], card_for("Acrobot-v1").make()
    observation, _ = environment.reset(seed=0)
    greedy, draws = behaviour.controller(observation), 20_000
    act = behaviour.policy(0.3, environment.action_space, np.random.default_rng(0))
    shares = np.bincount([act(observation) for _ in range(draws)], minlength=3) / draws
    expected = np.full(3, 0.1) + 0.7 * (np.arange(3) == greedy)
    np.testing.assert_allclose(shares, expected, atol=5 * np.sqrt(0.25 / draws))


def test_gaussian_noise_has_the_stated_deviation_and_stays_within_the_bounds():
    behaviour, space = BEHAVIOURS["pendulum-swing"], card_for("Pendulum-v1").make().action_space
    observation = np.array([1.0, 0.05, 0.0], np.float32)
    act = behaviour.policy(0.1, space, np.random.default_rng(0))
    actions = np.array([act(observation) for _ in range(4000)])
    assert actions.dtype == np.float32 and actions.shape == (4000, 1)
    assert actions.mean() == pytest.approx(-0.5, abs=0.02) and actions.std() == pytest.approx(0.2, rel=0.05)
    wild = behaviour.policy(1.0, space, np.random.default_rng(0))
    assert np.abs([wild(observation) for _ in range(200)]).max() == 2.0


@pytest.mark.parametrize("env_id", search.SEARCHES)
def test_search_is_reproducible_and_its_weights_are_the_shipped_kind(env_id, monkeypatch):
    monkeypatch.setattr(search, "STEPS", 30)
    short = dataclasses.replace(search.SEARCHES[env_id], rounds=(1, 1), horizon=20)
    first, again = (search.linear_search(short, make_environment(env_id)) for _ in range(2))
    assert first == again
    name = env_id.partition("-")[0].lower()
    assert hashlib.sha256(Path(weights.__file__).with_name(f"{name}.json").read_bytes()).hexdigest() == short.sha256
    assert {key: values.shape for key, values in shipped_weights(name).items()} == {key: np.shape(values) for key, values in first.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("env_id", "least"), [("HalfCheetah-v5", 60), ("Hopper-v5", 100)])
def test_search_learns_to_run(env_id, least):
    """A short version of the recipe."""
    means = []
    search.linear_search(dataclasses.replace(search.SEARCHES[env_id], rounds=(20, 10)), make_environment(env_id), means.append)
    assert np.mean(means[-3:]) > least > 20 > means[0]


def test_hopping_is_no_standing():
    """Which would earn 1 a step."""
    behaviour, environment = BEHAVIOURS["hopper-hop"], make_environment("Hopper-v5")
    for level in (0.0, 0.2):
        policy, ended, speeds = behaviour.policy(level, environment.action_space, np.random.default_rng(0)), False, []
        observation, _ = environment.reset(seed=1)
        while not ended:
            observation, _, terminated, truncated, info = environment.step(policy(observation))
            speeds.append(info["x_velocity"])
            ended = terminated or truncated
        assert np.mean(speeds) > 1


def test_running_components_are_the_shipped_linear_map():
    """In one batch or alone, bit for bit; the controller is linear in them until they or its actions are limited."""
    found = shipped_weights("halfcheetah")
    observations = found["center"] + 0.1 * np.random.default_rng(0).standard_normal((3, 5, 17))
    features = running_components(observations)
    np.testing.assert_allclose(features, (observations - found["center"]) @ np.transpose(found["components"]), atol=1e-12)
    np.testing.assert_array_equal(features[1, 2], running_components(observations[1, 2]))
    np.testing.assert_allclose(run(observations[1, 2]), np.clip(features[1, 2] @ np.transpose(found["weights"]) + found["bias"], -1, 1), atol=1e-12)
    assert np.abs(features).max() < 3


def test_ball_comes_down_where_the_reading_says():
    """Without sticky actions and while the ball falls: the foreseen place, at a height of 60 pixels, is within a paddle's width of the true one."""
    environment = make_environment("ALE/Breakout-v5", obs_type="ram", repeat_action_probability=0.0)
    misses, fall = [], []
    for seed in range(2):
        ram, ended = environment.reset(seed=seed)[0], False
        while not ended:
            gap, _, _, _, in_play, falls, height, _ = ball_and_paddle(ram)
            if falls and 40 < height < 60:
                fall.append(gap + float(ram[72]))
            if in_play and height < 8 and fall:
                misses.append(abs(float(ram[99]) - 7 - fall[-1]))
                fall.clear()
            ram, _, terminated, truncated, _ = environment.step(follow(ram))
            ended = terminated or truncated
    assert len(misses) > 20 and np.median(misses) <= 16


def test_highway_reading_sees_lanes_and_cars():
    """Made-up traffic: a slow car 20 m ahead in the middle lane, and one alongside on the right."""
    ego, ahead, right = [1, 1, 1 / 3, 0.3, 0], [1, 0.1, 0, -0.05, 0], [1, -0.03, 1 / 3, 0, 0]
    observation = np.array([ego, ahead, right, [0] * 5, [0] * 5], np.float32)
    np.testing.assert_allclose(gaps(observation), [0.1, 1.0, -0.03, -0.05, 0.3, 1 / 3, 0], atol=1e-6)
    assert drive(observation) == 0
    observation[0, 2] = 0.0
    assert gaps(observation)[1] == -1 and gaps(np.stack([observation] * 3)).shape == (3, 7)


def test_traffic_model_predicts_the_emulator():
    """Without sticky actions, nearly every hit in the emulator comes where the model sees no clear step for the action taken."""
    environment = make_environment("ALE/Freeway-v5", obs_type="ram", repeat_action_probability=0.0)
    rng, hits, foreseen = np.random.default_rng(0), 0, 0
    for seed in range(2):
        ram, ended = environment.reset(seed=seed)[0], False
        while not ended:
            action = int(rng.choice(3, p=[0.3, 0.6, 0.1]))
            before, clear = ram, clear_steps(ram)[action]
            ram, _, terminated, truncated, _ = environment.step(action)
            ended = terminated or truncated
            if before[16] == 255 and ram[16] != 255:  # RAM 16: the lane in which the chicken was just hit, 255 if none
                hits += 1
                foreseen += clear == 0
    assert hits >= 20 and foreseen >= 0.9 * hits


def test_catalogue_and_unknown_names():
    assert {entry["name"] for entry in behaviour_catalogue()} == set(BEHAVIOURS)
    assert behaviour_for("CartPole-v1").name == "cartpole-balance"
    assert behaviour_for("LunarLander-v3", "lunarlander-continuous-land").make_kwargs == {"continuous": True}
    for env_id, name in (("CartPole-v1", "acrobot-swing"), ("MountainCar-v0", None)):
        with pytest.raises(MucdError, match=f"{env_id}.*cartpole-balance"):
            behaviour_for(env_id, name)
