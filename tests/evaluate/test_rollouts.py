"""Rollouts in real environments: what they return cannot depend on how they are run."""

import dataclasses

import gymnasium
import numpy as np
import pytest
import torch

from mucd_ray.data.environments.cards import EnvironmentCard, card_for
from mucd_ray.errors import MucdError
from mucd_ray.evaluate.policies import StackedPolicies, outputs_of_all
from mucd_ray.evaluate.rollouts import constant_returns, means, rollout_returns, slot_queue
from mucd_ray.evaluate.votes import actions_at, clipped_actions_at, counts, probabilities_at
from mucd_ray.learn.networks import Network, forward, stacked_layers
from mucd_ray.learn.scores import scores_of

CARTPOLE = card_for("CartPole-v1")


def random_policies(count, hidden=(), card=CARTPOLE, outputs=2):
    network = Network(inputs=card.width, outputs=outputs, hidden=hidden)
    generator = torch.Generator().manual_seed(4)
    parameters = {}
    for layer, (inputs, outputs) in enumerate(network.layers):
        parameters[f"{layer}.weight"] = torch.randn(count, inputs, outputs, generator=generator)
        parameters[f"{layer}.bias"] = 0.1 * torch.randn(count, outputs, generator=generator)
    return network, parameters


def one_episode(card, weight, bias, seed):
    """The plain loop."""
    environment = card.make()
    observation, _ = environment.reset(seed=seed)
    total, done, seen = 0.0, False, []
    while not done:
        seen.append(observation)
        action = (card.features(observation) @ weight.numpy() + bias.numpy()).argmax()
        observation, reward, terminated, truncated, _ = environment.step(int(action))
        total, done = total + reward, terminated or truncated
    return total, np.stack(seen)


@pytest.mark.parametrize("hidden", [(), (16, 16)])
def test_returns_do_not_depend_on_slots_or_company_and_native_cartpole_agrees(hidden):
    network, parameters = random_policies(40, hidden)
    policies, seeds = StackedPolicies(network, parameters), np.arange(100, 140)
    native = rollout_returns(policies, CARTPOLE, seeds)
    assert native.std() > 10
    for slots in (1, 7, 64):
        assert np.array_equal(slot_queue(policies, CARTPOLE, seeds, np.arange(40), slots)[0], native)
    part = StackedPolicies(network, {name: tensor[10:13] for name, tensor in parameters.items()})
    assert np.array_equal(rollout_returns(part, CARTPOLE, seeds[10:13]), native[10:13])


def test_returns_and_kept_states_are_those_of_the_plain_loop():
    network, parameters = random_policies(6)
    policies, seeds = StackedPolicies(network, parameters), [5, 6, 7, 8, 9, 10]
    returns, states = rollout_returns(policies, CARTPOLE, seeds, slots=2, keep_states=20)
    assert states.shape == (6, 20, 4)
    for policy, seed in enumerate(seeds):
        total, seen = one_episode(CARTPOLE, parameters["0.weight"][policy], parameters["0.bias"][policy], seed)
        assert returns[policy] == total
        assert all((row == seen).all(1).any() for row in states[policy])
        if len(seen) >= 20:
            assert len(np.unique(states[policy], axis=0)) == 20
    again = rollout_returns(policies, CARTPOLE, seeds, slots=5, keep_states=20)
    assert np.array_equal(again[1], states) and np.array_equal(again[0], returns)


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_the_mean_of_several_discounted_episodes_is_that_of_the_plain_loop(discount):
    network, parameters = random_policies(3)
    policies, seeds = StackedPolicies(network, parameters), np.array([[5, 6, 7], [8, 5, 9], [10, 11, 12]])
    native = rollout_returns(policies, CARTPOLE, seeds, discount=discount)
    for policy in range(3):
        totals = [
            sum(discount**t for t in range(int(one_episode(CARTPOLE, parameters["0.weight"][policy], parameters["0.bias"][policy], int(seed))[0])))
            for seed in seeds[policy]
        ]
        assert native[policy] == pytest.approx(np.mean(totals), rel=1e-12)
    single, _ = slot_queue(policies, CARTPOLE, seeds.reshape(-1), np.repeat(np.arange(3), 3), 2, discount=discount)
    assert np.array_equal(native, np.clip([np.sum(row) / 3 for row in single.reshape(3, 3)], *np.sort(single.reshape(3, 3), axis=1)[:, [0, -1]].T))
    # An episode does not know of the others of its policy.
    assert np.array_equal(rollout_returns(policies, CARTPOLE, seeds[:, :1], discount=discount), rollout_returns(policies, CARTPOLE, seeds[:, 0], discount=discount))


def test_a_mean_of_equal_returns_stays_inside_the_public_range():
    """0.1 + 0.1 + 0.1 is above 0.3 in floating point."""
    for value in (0.1, 1 / 3, 99.34295164816986):
        for rollouts in (3, 7, 11, 49):
            assert means(np.full(2 * rollouts, value), (2, rollouts)).tolist() == [value, value]
    assert np.isnan(means(np.array([np.inf, -np.inf, np.nan, 1.0]), (2, 2))).all()


@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e30])
def test_policies_that_overflow_act_and_count_as_the_lowest_action(poison):
    """An instance must never be dropped: what its outputs mean is fixed before."""
    network, parameters = random_policies(3, (8,), outputs=3)
    parameters["0.weight"][1] = poison
    parameters["1.weight"][1] = poison
    policies, features = StackedPolicies(network, parameters), np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
    finite = np.isfinite(policies.outputs(features, np.array([1]))).all(-1)
    assert not finite.all()
    assert not actions_at(policies, features)[1][~finite].any()
    scores = probabilities_at(policies, features)
    assert scores.shape == (3, 40, 3) and not scores[1][~finite].any()
    np.testing.assert_allclose(scores[[0, 2]].sum(-1), 1)
    assert np.array_equal(scores[2].argmax(-1), actions_at(policies, features)[2])
    low, high = np.array([-1.0, -2, -3], np.float32), np.array([1.0, 2, 3], np.float32)
    actions = clipped_actions_at(policies, features, gymnasium.spaces.Box(low, high))
    assert (actions[1][~finite] == low).all() and np.isfinite(actions).all() and (np.abs(actions) <= high).all()
    unbounded = clipped_actions_at(policies, features, gymnasium.spaces.Box(-np.inf, np.inf, (3,)))
    assert not unbounded[1][~finite].any()
    # In an episode too, and alike in both ways to play it.
    cartpole, broken = random_policies(2)
    broken["0.weight"][1] = poison
    policies = StackedPolicies(cartpole, broken)
    assert np.array_equal(rollout_returns(policies, CARTPOLE, [3, 3]), slot_queue(policies, CARTPOLE, [3, 3], [0, 1], 2)[0])
    pendulum = StackedPolicies(Network(inputs=3, outputs=1), {"0.weight": torch.full((1, 3, 1), poison), "0.bias": torch.zeros(1, 1)})
    assert np.isfinite(rollout_returns(pendulum, card_for("Pendulum-v1"), [0])).all()


@pytest.mark.parametrize("kwargs", [{}, {"sutton_barto_reward": False}])
def test_a_reward_outside_the_declared_range_is_refused(kwargs):
    network, parameters = random_policies(3)
    card = dataclasses.replace(CARTPOLE, make_kwargs=kwargs, reward_range=(0.0, 0.5))
    with pytest.raises(MucdError, match="CartPole-v1.*card's reward_range"):
        rollout_returns(StackedPolicies(network, parameters), card, [1, 2, 3])


@pytest.mark.parametrize("kwargs", [{}, {"sutton_barto_reward": False}])
def test_episodes_end_at_the_card_s_limit(kwargs):
    network, parameters = random_policies(3)
    whole = rollout_returns(StackedPolicies(network, parameters), CARTPOLE, [1, 2, 3])
    card = dataclasses.replace(CARTPOLE, make_kwargs=kwargs, max_episode_steps=9)
    assert np.array_equal(rollout_returns(StackedPolicies(network, parameters), card, [1, 2, 3]), np.minimum(whole, 9.0)) and (whole > 9).any()


def test_an_environment_without_a_time_limit_needs_one_by_the_card():
    card = EnvironmentCard(env_id="CliffWalking-v1", observation_shape=(), indices=(), center=(0.0,), scale=(1.0,), clip=50.0, return_range=(-2000.0, 0.0), source="test")
    policies = StackedPolicies(Network(inputs=1, outputs=4), {"0.weight": torch.zeros(1, 1, 4), "0.bias": torch.tensor([[1.0, 0, 0, 0]])})
    with pytest.raises(MucdError, match="^CliffWalking-v1 has no time limit[^\n]*max_episode_steps"):
        rollout_returns(policies, card, [1])
    # Always up: one a step, and never the goal.
    assert rollout_returns(policies, dataclasses.replace(card, max_episode_steps=20), [1]) == [-20.0]


def test_constant_actions_of_acrobot_earn_the_floor():
    card = card_for("Acrobot-v1")
    environment = card.make()
    returns = constant_returns(card, environment.action_space, 2, seed=3)
    assert returns == {"0": -500.0, "1": -500.0, "2": -500.0}


def test_votes_are_the_greedy_actions_and_ties_go_to_the_lowest():
    network, parameters = random_policies(9, (8,), outputs=3)
    features = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    policies = StackedPolicies(network, parameters)
    actions = actions_at(policies, features)
    assert np.array_equal(policies.outputs_of_all(features), [policies.outputs(features, np.array([policy])) for policy in range(9)])
    expected = forward(stacked_layers(network, parameters), torch.tensor(features).expand(9, -1, -1)).argmax(-1)
    assert actions.dtype == np.int16 and np.array_equal(actions, expected)
    votes = counts(actions, 3)
    assert votes.shape == (50, 3) and (votes.sum(1) == 9).all()
    assert votes[7, 2] == (actions[:, 7] == 2).sum()
    zero = StackedPolicies(Network(inputs=4, outputs=3), {"0.weight": torch.zeros(2, 4, 3), "0.bias": torch.zeros(2, 3)})
    assert not actions_at(zero, features).any()


class Always:
    """Policies that just act: number i takes action i everywhere, and the last one fails at states right of the centre."""

    def __len__(self):
        return 3

    def outputs(self, features, index):
        actions = np.broadcast_to(index, len(features))
        return scores_of(np.where((actions == 2) & (features[:, 0] > 0), 2, actions % 2), 2)


def test_policies_of_any_kind_vote_and_play_and_fail_by_the_default_action():
    features = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    right = features[:, 0] > 0
    assert outputs_of_all(Always(), features).shape == (3, 50, 2) and np.array_equal(actions_at(Always(), features), np.stack([0 * right, 0 * right + 1, 0 * right]))
    probabilities = probabilities_at(Always(), features)
    assert (probabilities[1] == [0, 1]).all() and (probabilities[2][right] == 0).all() and (probabilities[2][~right] == [1, 0]).all()
    network, biases = Network(inputs=4, outputs=2), torch.tensor([[1.0, 0], [0, 1], [1, 0]])
    stacked = StackedPolicies(network, {"0.weight": torch.zeros(3, 4, 2), "0.bias": biases})
    assert np.array_equal(rollout_returns(Always(), CARTPOLE, [1, 2, 3]), rollout_returns(stacked, CARTPOLE, [1, 2, 3]))


def test_what_does_not_fit_is_refused():
    network, parameters = random_policies(3)
    with pytest.raises(MucdError, match="seed"):
        rollout_returns(StackedPolicies(network, parameters), CARTPOLE, [1, 2])
    with pytest.raises(MucdError, match="0 episodes"):
        rollout_returns(StackedPolicies(network, parameters), CARTPOLE, np.zeros((3, 0)))
    with pytest.raises(MucdError, match="2 episodes.*states are kept"):
        rollout_returns(StackedPolicies(network, parameters), CARTPOLE, np.zeros((3, 2), int), keep_states=5)
    with pytest.raises(MucdError, match="discount 0"):
        rollout_returns(StackedPolicies(network, parameters), CARTPOLE, [1, 2, 3], discount=0.0)
    with pytest.raises(MucdError, match="Network"):
        StackedPolicies(Network(inputs=5, outputs=2), parameters)


CONTINUOUS = [card_for("Pendulum-v1"), card_for("LunarLander-v3", make_kwargs={"continuous": True}), card_for("InvertedPendulum-v5")]


@pytest.mark.parametrize("card", [*CONTINUOUS, card_for("LunarLander-v3")], ids=lambda card: f"{card.env_id}{card.make_kwargs or ''}")
def test_returns_with_continuous_actions_do_not_depend_on_slots_and_are_those_of_the_plain_loop(card):
    environment = card.make()
    discrete = isinstance(environment.action_space, gymnasium.spaces.Discrete)
    outputs = int(environment.action_space.n) if discrete else environment.action_space.shape[0]
    network, parameters = random_policies(5, card=card, outputs=outputs)
    policies, seeds = StackedPolicies(network, parameters), np.arange(40, 45)
    returns = rollout_returns(policies, card, seeds, slots=5)
    for slots in (1, 3):
        assert np.array_equal(rollout_returns(policies, card, seeds, slots=slots), returns)
    for policy, seed in enumerate(seeds):
        observation, total, done = environment.reset(seed=int(seed))[0], 0.0, False
        while not done:
            action = policies.outputs(card.features(observation)[None], np.array([policy]))[0]
            action = int(action.argmax()) if discrete else np.clip(action, environment.action_space.low, environment.action_space.high)
            observation, reward, terminated, truncated, _ = environment.step(action)
            total, done = total + float(reward), terminated or truncated
        assert returns[policy] == np.clip(total, *card.return_range)


def test_every_episode_is_clipped_before_the_mean_where_the_card_says_so():
    network, parameters = random_policies(3)
    policies, seeds = StackedPolicies(network, parameters), np.array([[5, 6, 7], [8, 5, 9], [10, 11, 12]])
    clipped = dataclasses.replace(CARTPOLE, return_range=(15.0, 30.0), clip_returns=True)
    plain = np.stack([rollout_returns(policies, CARTPOLE, seeds[:, column]) for column in range(3)], axis=1)
    assert plain.min() < 15 and plain.max() > 30
    for card in (clipped, dataclasses.replace(clipped, make_kwargs={"sutton_barto_reward": False})):  # the native path, and the slot queue
        np.testing.assert_allclose(rollout_returns(policies, card, seeds), np.clip(plain, 15, 30).mean(1))
