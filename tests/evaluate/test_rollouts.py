"""Rollouts in real environments: what they return cannot depend on how they are run."""

import numpy as np
import pytest
import torch

from mucd_ray.data.cards import card_for
from mucd_ray.errors import MucdError
from mucd_ray.evaluate.policies import StackedPolicies
from mucd_ray.evaluate.rollouts import constant_returns, rollout_returns, slot_queue
from mucd_ray.evaluate.votes import actions_at, counts
from mucd_ray.learn.networks import Network, forward, stacked_layers

CARTPOLE = card_for("CartPole-v1")


def random_policies(count, hidden=(), card=CARTPOLE, outputs=2):
    network = Network(inputs=len(card.indices), outputs=outputs, hidden=hidden)
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
        assert np.array_equal(slot_queue(policies, CARTPOLE, seeds, slots), native)
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


def test_constant_actions_of_acrobot_earn_the_floor():
    card = card_for("Acrobot-v1")
    environment = card.make()
    returns = constant_returns(card, environment.action_space, 2, seed=3)
    assert returns == {"0": -500.0, "1": -500.0, "2": -500.0}


def test_votes_are_the_greedy_actions_and_ties_go_to_the_lowest():
    network, parameters = random_policies(9, (8,), outputs=3)
    features = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    actions = actions_at(StackedPolicies(network, parameters), features)
    expected = forward(stacked_layers(network, parameters), torch.tensor(features).expand(9, -1, -1)).argmax(-1)
    assert actions.dtype == np.int16 and np.array_equal(actions, expected)
    votes = counts(actions, 3)
    assert votes.shape == (50, 3) and (votes.sum(1) == 9).all()
    assert votes[7, 2] == (actions[:, 7] == 2).sum()
    zero = StackedPolicies(Network(inputs=4, outputs=3), {"0.weight": torch.zeros(2, 4, 3), "0.bias": torch.zeros(2, 3)})
    assert not actions_at(zero, features).any()


def test_what_does_not_fit_is_refused():
    network, parameters = random_policies(3)
    with pytest.raises(MucdError, match="seed"):
        rollout_returns(StackedPolicies(network, parameters), CARTPOLE, [1, 2])
    with pytest.raises(MucdError, match="Network"):
        StackedPolicies(Network(inputs=5, outputs=2), parameters)
