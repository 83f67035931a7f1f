"""Learners that are told the return of a whole trajectory, dense and as a transformer over several observations: what is released is what was trained, told its target."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.data.environments.cards import card_for
from mucd_ray.data.environments.mirror import Mirror
from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.errors import MucdError
from mucd_ray.evaluate.policies import greedy_actions, outputs_of_all, trained_policies
from mucd_ray.learn.learner import Learner
from mucd_ray.learn.problem import Problem
from mucd_ray.learn.streams import Streams
from mucd_ray.learn.trainers import built_in
from mucd_ray.learn.trainers.built_in import Fit, fit_policies, fit_stacked
from mucd_ray.learn.transformer import transformer
from mucd_ray.learn.units import Units, make_units

STREAMS = Streams(b"the secret of these tests")
HISTORY, WIDTH = 3, 2


def problem(network="transformer", discrete=True, history=HISTORY, **learner) -> Problem:
    network = {"network": network} | ({} if network == "transformer" else {"hidden": (16,)})
    learner = Learner(**{"algorithm": "rvs", "optimiser": "adam", "learning_rate": 0.003, "average": 0.5} | network | learner)
    return Problem(learner=learner, inputs=history * WIDTH, actions=2, discrete=discrete, action_bounds=None if discrete else ((-1.0, -1.0), (1.0, 1.0)), history=history)


def trajectories(count=40, length=20, history=HISTORY, seed=0, discrete=True) -> Units:
    """Of two kinds, which a return tells apart: good ones take the action that the sign of the oldest observation says, bad ones the other."""
    rng = np.random.default_rng(seed)
    features = (rng.standard_normal((count * length, history * WIDTH)) * 3 + 50).astype(np.float32)
    good = np.repeat(np.arange(count) % 2 == 0, length)
    actions = ((features[:, 0] > 50) == good).astype(int)
    if not discrete:
        actions = np.stack([actions, 1 - actions], 1).astype(np.float32)
    returns = np.where(good, 100, -100).astype(np.float32) + np.repeat(rng.uniform(0, 5, count), length).astype(np.float32)
    return Units(
        unit="trajectory", features=np.column_stack([features, returns]), next_features=np.zeros((0, history * WIDTH + 1), np.float32), actions=actions,
        rewards=np.zeros(count * length, np.float32), keeps=np.ones(count * length, np.float32), starts=np.arange(count) * length, lengths=np.full(count, length),
    )


@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize("network", ["dense", "transformer"])
def test_a_policy_does_what_trajectories_with_its_target_did(network, discrete):
    units, held_out = trajectories(discrete=discrete), trajectories(seed=1).features[:, :-1]
    does = {}
    for target in (1.0, 0.0):
        asked = problem(network, discrete, constants={"target": target})
        policies = trained_policies(asked, fit_policies(problem=asked, fit=Fit(steps=300, batch=64), units=units, bags=[np.arange(40)], instances=[3], streams=STREAMS))
        outputs = policies.outputs(held_out, np.array([0]))
        assert outputs.shape == (len(held_out), 2)
        does[target] = greedy_actions(outputs) if discrete else (outputs[:, 0] > outputs[:, 1]).astype(int)
    right = (held_out[:, 0] > 50).astype(int)
    assert (does[1.0] == right).mean() > 0.9 and (does[0.0] == 1 - right).mean() > 0.9


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("network", ["dense", "transformer"])
def test_the_acting_policy_is_the_trained_network_told_its_target(network, normalise, monkeypatch):
    """The network as it was trained, on normalised features beside the normalised target, against what is released."""
    asked, units, kept = problem(network), trajectories(), {}
    released = built_in._released
    monkeypatch.setattr(built_in, "_released", lambda *arguments: kept.update(given=arguments) or released(*arguments))
    bag = np.arange(4, 17)
    policy = fit_policies(problem=asked, fit=Fit(steps=30, batch=32, normalise=normalise), units=units, bags=[bag], instances=[3], streams=STREAMS)
    _, trained, ((center, scale),), (target,) = kept["given"]
    trained = {name: part[0] for name, part in trained.items()}
    rows = np.concatenate([np.arange(start, start + 20) for start in units.starts[bag]])
    assert target == units.features[rows, -1].max() and (np.allclose(center[-1], units.features[rows, -1].mean()) or not normalise)
    features = units.features[:50].copy()
    features[:, -1] = target
    x = torch.from_numpy(((features - center) / scale).astype(np.float32))
    if network == "transformer":
        module = transformer(2, HISTORY, WIDTH, told=True)(np.random.default_rng(0))
        assert len(trained) > 20 and not module.load_state_dict(trained, strict=False).missing_keys
        expected = module(x)
    else:
        assert trained["0.weight"].shape == (7, 16)
        expected = torch.relu(x @ trained["0.weight"] + trained["0.bias"]) @ trained["1.weight"] + trained["1.bias"]
    acts = trained_policies(asked, policy).outputs(features[:, :-1], np.array([0]))
    np.testing.assert_allclose(acts, expected.detach().numpy(), rtol=1e-3, atol=1e-3 if normalise else 1e-2)
    assert np.ptp(acts) > 0.01 and all("slope" not in name for name in policy)


def test_entries_are_normalised_alike_at_every_step_and_the_transformer_is_causal():
    asked, units = built_in._as_asked(problem(), Fit()), trajectories()
    center, scale = built_in._moments(asked, units.features, np.arange(400), True)
    pooled = units.features[:400, :-1].reshape(-1, WIDTH).astype(float)
    assert np.allclose(center, [*np.tile(pooled.mean(0), HISTORY), units.features[:400, -1].astype(float).mean()])
    assert np.allclose(scale, [*np.tile(pooled.std(0), HISTORY), units.features[:400, -1].astype(float).std()])
    module = transformer(2, HISTORY, WIDTH, told=True)(np.random.default_rng(0))
    seen = []
    module.encoder.register_forward_hook(lambda module, given, tokens: seen.append(tokens))
    x = torch.randn(1, HISTORY * WIDTH + 1)
    later = x.clone()
    later[:, 2 * WIDTH : HISTORY * WIDTH] += 1.0
    module(x), module(later)
    assert torch.equal(seen[0][:, :3], seen[1][:, :3]) and not torch.allclose(seen[0][:, 3], seen[1][:, 3])
    # The same from its generator alone, and the same whether it is said to train.
    again = transformer(2, HISTORY, WIDTH, told=True)(np.random.default_rng(0))
    with torch.no_grad():
        assert torch.equal(module(x), again.eval()(x))


@pytest.mark.parametrize("network", ["dense", "transformer"])
def test_it_is_a_function_of_its_bag_and_one_that_is_empty_or_poisoned_is_the_default_policy(network):
    asked, units = problem(network), trajectories()
    others = Units(**{"unit": "trajectory", **units.arrays(), "features": units.features.copy(), "ends": units.ends})
    others.features[:100] = np.inf
    given = {"problem": asked, "fit": Fit(steps=5, batch=32), "streams": STREAMS}
    one = fit_policies(units=units, bags=[np.arange(8, 20), []], instances=[3, 4], **given)
    other = fit_policies(units=others, bags=[[1], np.arange(8, 20)], instances=[9, 3], **given)
    for name, values in one.items():
        assert torch.equal(values[0], other[name][1]) and values[1].isnan().all()
    acts = greedy_actions(trained_policies(asked, other).outputs(units.features[:50, :-1], np.array([0])))
    assert not acts.any()


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("network", ["dense", "transformer"])
def test_a_stack_trains_what_single_ones_become(network, monkeypatch):
    """As on a GPU: several modules at once."""
    asked = problem(network)
    given = {"problem": asked, "fit": Fit(steps=20, batch=16), "units": trajectories(), "bags": [np.arange(30), np.arange(35, 38), np.arange(5, 25)], "instances": [5, 6, 7], "streams": STREAMS}
    single = fit_policies(**given)
    in_blocks = built_in.in_blocks
    monkeypatch.setattr(built_in, "in_blocks", lambda train, items, block, device: in_blocks(train, items, 3, device))
    stacked = fit_stacked(device="cpu", **given)
    # Not every parameter: what an attention's keys have in common moves nothing, and Adam makes steps of the rounding of its derivative.
    rows = given["units"].features[:40, :-1]
    outputs = [outputs_of_all(trained_policies(asked, parameters), rows) for parameters in (single, stacked)]
    np.testing.assert_allclose(*outputs, rtol=1e-2, atol=2e-3)
    assert np.ptp(outputs[0]) > 0.1


@pytest.mark.parametrize("unit", ["trajectory", "source"])
def test_units_are_told_the_return_of_their_own_trajectory(recordings, unit):
    dataset = load_dataset(recordings["cartpole"])
    if unit == "source":
        dataset = OfflineDataset(**vars(dataset) | {"sources": np.arange(dataset.trajectories) // 2})
    card = card_for("CartPole-v1").raw()
    asked = Problem(learner=Learner(algorithm="rvs", learning_rate=0.1), inputs=4, actions=2, discrete=True)
    units = make_units(dataset, card, asked, unit)
    assert units.features.shape == (len(dataset), 5) and units.next_features.shape == (0, 5)
    starts, lengths = built_in._trajectories(units, np.arange(len(units)))
    for start, length in zip(starts, lengths):
        assert np.allclose(units.features[start : start + length, -1], units.rewards[start : start + length].sum())
    assert sorted(units.features[starts, -1] * card.reward_scale) == pytest.approx(sorted(dataset.trajectory_returns))
    assert built_in._target(built_in._as_asked(asked, Fit()), units, np.arange(3)) == max(units.features[starts, -1][: 3 if unit == "trajectory" else 6])
    assert math.isnan(built_in._target(built_in._as_asked(asked, Fit()), units, np.zeros(0, int)))


def test_mirror_images_are_told_the_same_return():
    mirror = Mirror(observation=(2, 1, -4, -3, 6, 5), actions=(1, 0))
    asked, units = dataclasses.replace(problem("dense"), mirror=mirror), trajectories()
    both = built_in._as_shown(units, asked, Fit(mirrored=True)).features
    assert both.shape == (1600, 7) and np.array_equal(both[800:, -1], units.features[:, -1]) and np.array_equal(both[800:, :-1], mirror.observations(units.features[:, :-1]))


@pytest.mark.parametrize("changes,complaint", [
    ({"algorithm": "dt", "network": "dense"}, "algorithm 'dt' is a transformer"), ({"network": "transformer", "hidden": (4,)}, "a transformer network has its own layers"),
    ({"algorithm": "rvs", "network": "convolutional"}, "no place for"), ({"algorithm": "iql", "network": "transformer"}, None), ({"algorithm": "dt", "network": "transformer", "constants": {"target": 2}}, "target = 2"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(changes, complaint):
    def make():
        Problem(learner=Learner(**{"learning_rate": 0.1} | changes), inputs=4 * 42 * 42, actions=2, discrete=True, history=4)

    if complaint is None:
        make()  # discrete IQL has one network
    else:
        with pytest.raises(MucdError, match=complaint):
            make()
