import numpy as np
import pytest

from mucd_ray.data.behaviours import BEHAVIOURS, behaviour_catalogue, behaviour_for
from mucd_ray.data.cards import card_for
from mucd_ray.data.environments import make_environment
from mucd_ray.data.freeway import clear_steps
from mucd_ray.errors import MucdError


@pytest.mark.parametrize(("name", "episodes", "least"), [("acrobot-swing", 30, -100), ("cartpole-balance", 10, 500), ("freeway-lookahead", 2, 27)])
def test_controllers_are_as_good_as_stated(name, episodes, least):
    behaviour = BEHAVIOURS[name]
    card = card_for(behaviour.env_id)
    environment, returns = card.make(), np.zeros(episodes)
    for seed in range(episodes):
        observation, ended = environment.reset(seed=10_000 + seed)[0], False
        while not ended:
            observation, reward, terminated, truncated, _ = environment.step(behaviour.act(observation))
            returns[seed] += reward
            ended = terminated or truncated
    assert returns.mean() >= least
    assert card.return_range[0] <= returns.min() and returns.max() <= card.return_range[1]


def test_noise_is_the_stated_probability_of_a_uniform_action():
    behaviour, environment = BEHAVIOURS["acrobot-swing"], card_for("Acrobot-v1").make()
    observation, _ = environment.reset(seed=0)
    greedy, draws = behaviour.act(observation), 20_000
    act = behaviour.policy(0.3, environment.action_space, np.random.default_rng(0))
    shares = np.bincount([act(observation) for _ in range(draws)], minlength=3) / draws
    expected = np.full(3, 0.1) + 0.7 * (np.arange(3) == greedy)
    np.testing.assert_allclose(shares, expected, atol=5 * np.sqrt(0.25 / draws))


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
    assert {entry["env_id"] for entry in behaviour_catalogue()} == {"CartPole-v1", "Acrobot-v1", "ALE/Freeway-v5"}
    assert behaviour_for("CartPole-v1").name == "cartpole-balance"
    for env_id, name in (("CartPole-v1", "acrobot-swing"), ("Pendulum-v1", None)):
        with pytest.raises(MucdError, match=f"{env_id}.*cartpole-balance"):
            behaviour_for(env_id, name)
