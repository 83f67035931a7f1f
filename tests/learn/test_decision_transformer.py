"""The Decision Transformer: what its tokens see, and that what is released is what was trained, aiming at a return of its bag."""

import dataclasses

import gymnasium
import numpy as np
import pytest
import torch

from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.data.environments.cards import card_for
from mucd_ray.data.environments.past import with_past
from mucd_ray.errors import MucdError
from mucd_ray.evaluate.policies import greedy_actions, trained_policies
from mucd_ray.evaluate.rollouts import rollout_returns
from mucd_ray.learn.decision_transformer import decision_transformer
from mucd_ray.learn.learner import Learner
from mucd_ray.learn.problem import Problem
from mucd_ray.learn.streams import Streams
from mucd_ray.learn.trainers import built_in
from mucd_ray.learn.trainers.built_in import Fit, fit_policies, fit_stacked
from mucd_ray.learn.units import make_units

STREAMS, HISTORY = Streams(b"the secret of these tests"), 3
CARD = card_for("CartPole-v1").raw().with_past(HISTORY, 2)
STEP = 8


def problem(discrete=True, **constants) -> Problem:
    learner = Learner(algorithm="dt", network="transformer", optimiser="adam", learning_rate=0.003, average=0.5, constants=constants)
    actions = 2 if discrete else 1
    bounds = None if discrete else ((-2.0,), (2.0,))
    return Problem(learner=learner, inputs=CARD.width if discrete else HISTORY * (2 + 1 + 4), actions=actions, discrete=discrete, action_bounds=bounds, history=HISTORY)


def units(discrete=True, count=30, length=12, seed=0):
    """Good trajectories do the contrary of their last action and earn 1 a step, bad ones do the same again and earn -1: observations say nothing."""
    rng = np.random.default_rng(seed)
    first, good = rng.integers(2, size=count), np.arange(count) % 2 == 0
    sides = np.where(good[:, None], (first[:, None] + np.arange(length)) % 2, first[:, None]).reshape(-1)
    observations = rng.standard_normal((count * length, 4)).astype(np.float32)
    ends = np.tile(np.arange(length) == length - 1, count)
    dataset = OfflineDataset.from_arrays(
        observations=observations, next_observations=observations, actions=sides if discrete else (sides * 2.0 - 1)[:, None], rewards=np.repeat(np.where(good, 1.0, -1.0), length), terminations=ends,
        truncations=np.zeros(len(ends)), action_space=gymnasium.spaces.Discrete(2) if discrete else gymnasium.spaces.Box(-2, 2, (1,)), observation_space=gymnasium.spaces.Box(-9, 9, (4,)),
    )
    card = CARD if discrete else dataclasses.replace(card_for("CartPole-v1").raw(), mirror_observation=(), mirror_actions=()).with_past(HISTORY, 1)
    return make_units(with_past(dataset, HISTORY), card, problem(discrete), "trajectory")


def test_tokens_see_those_before_them_and_nothing_that_is_not_there():
    module = decision_transformer(2, HISTORY, 2, STEP, True)(np.random.default_rng(0)).eval()
    x = torch.randn(6, HISTORY * STEP + 1)
    x[:, 0], x[:, STEP], x[:, 2 * STEP] = 0.0, 1.0, 1.0
    seen = []
    module.encoder.register_forward_hook(lambda module, given, tokens: seen.append(tokens))

    def changed(*entries, by=1.0):
        other = x.clone()
        other[:, list(entries)] += by
        return module(other)

    with torch.no_grad():
        outputs = module(x)
        assert torch.isfinite(outputs).all()
        # The first step is not there: neither is what was done in it, which the second one holds; nor is the action before the first step ever.
        assert torch.equal(changed(*range(1, STEP)), outputs) and torch.equal(changed(STEP + 2, STEP + 3), outputs)
        assert not torch.equal(changed(2 * STEP + 2), outputs) and not torch.equal(changed(STEP + 4), outputs)
        # g_2, o_2, a_2, g_3, o_3 behind g_1, o_1, a_1: what comes later moves none of those before.
        before = seen[0]
        for entry, token in ((STEP + 1, 3), (STEP + 4, 4), (2 * STEP + 2, 5), (2 * STEP + 1, 6), (2 * STEP + 4, 7)):
            changed(entry)
            assert torch.equal(seen[-1][:, :token], before[:, :token]) and not torch.equal(seen[-1][:, token], before[:, token])
        # What is told and what was earned count as their difference.
        torch.testing.assert_close(changed(1, STEP + 1, 2 * STEP + 1, HISTORY * STEP), outputs, rtol=1e-4, atol=1e-5)
        x[:, 0] = 1.0
        assert torch.equal(changed(2, 3), module(x)) and not torch.equal(changed(STEP + 2), module(x))
        again = decision_transformer(2, HISTORY, 2, STEP, True)(np.random.default_rng(0))
        assert torch.equal(module(x), again.train()(x))


@pytest.mark.parametrize("discrete", [True, False])
def test_it_goes_on_as_trajectories_with_its_return_to_go_did(discrete):
    data, others, step = units(discrete), units(discrete, seed=1), STEP - (not discrete)
    inside, good = np.tile(np.arange(12) > 0, 30), others.features[:, -1] > 0
    actions = others.actions if discrete else np.sign(others.actions)
    second, did = np.tile(np.arange(12) == 1, 30) & good, {}
    for target in (1.0, 0.0):
        asked = problem(discrete, target=target)
        policies = trained_policies(asked, fit_policies(problem=asked, fit=Fit(steps=250, batch=64), units=data, bags=[np.arange(30)], instances=[3], streams=STREAMS))

        def acts(rows):
            outputs = policies.outputs(rows, np.array([0]))
            return greedy_actions(outputs) if discrete else np.sign(outputs)

        kind = inside & (good if target else ~good)
        assert (acts(others.features[kind, :-1]) == actions[kind]).mean() > 0.9
        # After one step nothing but what it earned tells of what is to come.
        rows = others.features[second, :-1].copy()
        rows[:, 2 * step + 1] = 1.0 if target else -1.0
        did[target] = acts(rows)
    assert (did[1.0] == actions[second]).mean() > 0.7 and (did[0.0] == actions[second]).mean() < 0.3


@pytest.mark.parametrize("normalise", [True, False])
def test_the_acting_policy_is_the_trained_network_told_its_target(normalise, monkeypatch):
    asked, data, kept = problem(), units(), {}
    released = built_in._released
    monkeypatch.setattr(built_in, "_released", lambda *arguments: kept.update(given=arguments) or released(*arguments))
    bag = np.arange(4, 17)
    policy = fit_policies(problem=asked, fit=Fit(steps=30, batch=32, normalise=normalise), units=data, bags=[bag], instances=[3], streams=STREAMS)
    _, trained, ((center, scale),), (target,) = kept["given"]
    module = decision_transformer(2, HISTORY, 2, STEP, True)(np.random.default_rng(0))
    assert not module.load_state_dict({name: part[0] for name, part in trained.items()}, strict=False).missing_keys and target == 12.0
    features = data.features[:60].copy()
    features[:, -1] = target
    if normalise:
        # Every step by the moments of the bag's steps, each counted once; earned rewards and the return by one scale.
        steps = data.features[48:204, -1 - STEP : -1].astype(float)
        assert np.allclose(center.reshape(-1)[:-1].reshape(HISTORY, STEP)[:, 2:], steps[:, 2:].mean(0)) and np.allclose(scale[:-1].reshape(HISTORY, STEP)[:, 2:], steps[:, 2:].std(0))
        assert (center[0], scale[0], center[1]) == (0, 1, 0) and scale[1] == scale[-1] == pytest.approx(np.hypot(steps[:, 1].std(), data.features[48:204, -1].astype(float).std()))
    expected = module(torch.from_numpy(((features - center) / scale).astype(np.float32))).detach().numpy()
    acts = trained_policies(asked, policy).outputs(features[:, :-1], np.array([0]))
    np.testing.assert_allclose(acts, expected, rtol=1e-3, atol=1e-3)
    assert np.ptp(acts) > 0.01


def test_it_is_a_function_of_its_bag_and_an_empty_or_poisoned_one_is_the_default_policy():
    asked, data, others = problem(), units(), units()
    others.features[:24] = np.inf
    given = {"problem": asked, "fit": Fit(steps=5, batch=32), "streams": STREAMS}
    one = fit_policies(units=data, bags=[np.arange(8, 20), []], instances=[3, 4], **given)
    other = fit_policies(units=others, bags=[[1], np.arange(8, 20)], instances=[9, 3], **given)
    for name, values in one.items():
        assert torch.equal(values[0], other[name][1]) and values[1].isnan().all()
    assert not greedy_actions(trained_policies(asked, other).outputs(data.features[:50, :-1], np.array([0]))).any()


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_a_stack_trains_what_single_ones_become(monkeypatch):
    """As on a GPU: several modules at once."""
    given = {"problem": problem(), "fit": Fit(steps=10, batch=16), "units": units(), "bags": [np.arange(20), np.arange(5, 8)], "instances": [5, 6], "streams": STREAMS}
    single = fit_policies(**given)
    in_blocks = built_in.in_blocks
    monkeypatch.setattr(built_in, "in_blocks", lambda train, items, block, device: in_blocks(train, items, 2, device))
    stacked = fit_stacked(device="cpu", **given)
    rows = given["units"].features[:40, :-1]
    for policy in (0, 1):
        outputs = [trained_policies(problem(), parameters).outputs(rows, np.array([policy])) for parameters in (single, stacked)]
        np.testing.assert_allclose(*outputs, rtol=1e-2, atol=2e-3)


def test_episodes_do_not_reach_one_another():
    """Each has the past of its own, whatever is played beside it, in however many environments, one after the other."""
    asked = problem()
    policies = trained_policies(asked, fit_policies(problem=asked, fit=Fit(steps=5, batch=16), units=units(), bags=[[0, 1], [2, 3, 4]], instances=[1, 2], streams=STREAMS))
    seeds = np.array([[11, 12], [13, 14]])
    together = rollout_returns(policies, CARD, seeds)
    assert np.array_equal(together, rollout_returns(policies, CARD, seeds, slots=1)) and np.array_equal(together, rollout_returns(policies, CARD, seeds, slots=3))


def test_features_that_hold_no_steps_are_refused():
    with pytest.raises(MucdError, match="use a card with_past"):
        Problem(learner=problem().learner, inputs=12, actions=2, discrete=True, history=3)
