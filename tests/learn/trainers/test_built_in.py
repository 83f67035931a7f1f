"""The built-in trainer on bags: a function of the bag alone, on raw observations; what fails is a policy like any other."""

import functools
from dataclasses import replace

import numpy as np
import pytest
from problems import LOSSES, QUICK, changed, problem, trajectories, transitions

from mucd_ray.data.environments.mirror import Mirror
from mucd_ray.errors import MucdError
from mucd_ray.evaluate.policies import greedy_actions, trained_policies
from mucd_ray.learn.streams import Streams
from mucd_ray.learn.trainers.built_in import Fit, fit_policies, fit_stacked, noise_rates, rows_of
from mucd_ray.learn.units import Units

STREAMS = Streams(b"the secret of these tests")


def adam(algorithm="bc", discrete=True, **learner):
    return problem(algorithm, discrete, **{"optimiser": "adam", "learning_rate": 0.01, "hidden": (16,), "average": 0.5} | learner)


def fitted(asked, units, bags, fit=Fit(steps=5), instances=None):
    found = fit_policies(problem=asked, fit=fit, units=units, bags=[np.array(bag) for bag in bags], instances=instances or range(len(bags)), streams=STREAMS)
    return {name: stacked.numpy() for name, stacked in found.items()}


@pytest.mark.parametrize("algorithm,discrete", [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in LOSSES])
def test_a_policy_is_a_function_of_its_bag_and_its_number_alone(algorithm, discrete):
    asked = adam(algorithm, discrete)
    units = trajectories(asked, [4, 7, 3, 9, 5], np.random.default_rng(0))
    others = changed(changed(units, 0, features=1e30, rewards=1e30), 3, features=-7.0)
    policy = fitted(asked, units, [[4, 1, 2]])
    beside = fitted(asked, others, [[0, 3], [4, 1, 2]], instances=[5, 0])
    for name, values in policy.items():
        assert values[0].tobytes() == beside[name][1].tobytes()
        assert np.isfinite(values).all()
    chosen, beside = (fitted(asked, of, [[4, 1, 2]], Fit(steps=5, entries=2)) for of in (units, others))
    assert all(values.tobytes() == beside[name].tobytes() for name, values in chosen.items())
    assert np.count_nonzero(np.abs(chosen["0.weight"][0]).sum(1)) <= 2
    other = fitted(asked, units, [[4, 1, 2]], instances=[1])
    assert any(not np.array_equal(other[name], policy[name]) for name in policy)


def test_it_learns_from_raw_observations_of_any_size():
    """Features of sizes 1e4 and 1e-3, far from zero; one that is constant in the bag, but not elsewhere, is ignored."""
    rng = np.random.default_rng(1)
    hidden_truth = rng.standard_normal((600, 2))
    features = np.column_stack([1e4 * hidden_truth[:, 0] + 3e4, 1e-3 * hidden_truth[:, 1] - 0.5, np.full(600, 7.0)]).astype(np.float32)
    actions = (hidden_truth[:, 0] > hidden_truth[:, 1]).astype(np.int64)
    units = Units.transitions(features, actions)
    asked = adam(inputs=3, actions=2, hidden=(32,))
    policy = trained_policies(asked, fit_policies(problem=asked, fit=Fit(steps=600), units=units, bags=[np.arange(500)], instances=[0], streams=STREAMS))
    held_out = features[500:]
    assert (greedy_actions(policy.outputs(held_out, np.array([0]))) == actions[500:]).mean() > 0.9
    moved = held_out + np.array([0, 0, 50], np.float32)
    assert np.array_equal(greedy_actions(policy.outputs(moved, np.array([0]))), greedy_actions(policy.outputs(held_out, np.array([0]))))


def test_the_better_share_of_the_bag_is_kept():
    asked = adam()
    units = trajectories(asked, [2, 2, 2, 2], np.random.default_rng(0))
    rewards = np.array([1, 1, 5, 5, 0, 0, 3, 3], np.float32)
    units = Units(unit="trajectory", **units.arrays() | {"rewards": rewards})
    assert rows_of(units, np.array([0, 2, 1, 3]), 0.5).tolist() == [2, 3, 6, 7]
    assert rows_of(units, np.array([3, 0]), 0.1).tolist() == [6, 7]
    assert rows_of(units, np.array([1, 1, 0]), 1.0).tolist() == [2, 3, 2, 3, 0, 1]
    poisoned = Units(unit="trajectory", **units.arrays() | {"rewards": np.where(np.arange(8) == 2, np.nan, rewards).astype(np.float32)})
    assert rows_of(poisoned, np.array([0, 1, 2, 3]), 0.5).tolist() == [0, 1, 6, 7]


def test_noise_rates_follow_the_ranks_of_returns():
    assert noise_rates(np.array([5.0, 1.0, 3.0, 2.0, 4.0])).tolist() == [0, 1, 0.25, 0.5625, 0.0625]
    assert noise_rates(np.array([7.0, 7.0, 1.0])).tolist() == [0, 0, 1]
    assert noise_rates(np.array([2.0, 2.0])).tolist() == noise_rates(np.array([-np.inf, -np.inf])).tolist() == [0, 0]
    assert noise_rates(np.array([3.0])).tolist() == [0] and not len(noise_rates(np.zeros(0)))
    returns = np.random.default_rng(0).integers(0, 5, 30).astype(float)
    assert noise_rates(returns) == pytest.approx([(np.sum(returns > own) / 29) ** 2 for own in returns])


@pytest.mark.parametrize("train", [fit_policies, functools.partial(fit_stacked, device="cpu")])
def test_graded_trajectories_teach_what_the_best_demonstrator_does(train):
    """Three demonstrators who act at random in 0, 30 and 60 % of the steps, one who always errs: clones of all are misled, a graded one is not."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((400, 2)).astype(np.float32)
    right = (features[:, 0] > features[:, 1]).astype(np.int64) + (features[:, 0] > 1.5)
    random = rng.random(400) < np.repeat([0.0, 0.3, 0.6, 0.0], 100)
    actions = np.where(random, rng.integers(0, 3, 400), right)
    actions[300:] = (right[300:] + 1) % 3
    starts, lengths = np.arange(0, 400, 100), np.full(4, 100)
    rewards = np.repeat(np.array([4, 3, 2, 1], np.float32), 100)
    units = Units(unit="trajectory", **Units.transitions(features, actions, rewards=rewards).arrays() | {"starts": starts, "lengths": lengths})
    asked, held_out = adam(inputs=2, actions=3, hidden=(32,)), rng.standard_normal((1000, 2)).astype(np.float32)
    truth, agree = (held_out[:, 0] > held_out[:, 1]).astype(np.int64) + (held_out[:, 0] > 1.5), []
    for graded in (True, False):
        parameters = train(problem=asked, fit=Fit(steps=400, graded=graded), units=units, bags=[np.arange(4)], instances=[0], streams=STREAMS)
        agree.append((greedy_actions(trained_policies(asked, parameters).outputs(held_out, np.array([0]))) == truth).mean())
    assert agree[0] > 0.85 and agree[0] > agree[1] + 0.1


@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize("train", [fit_policies, functools.partial(fit_stacked, device="cpu")])
def test_entries_that_say_nothing_are_left_out(train, discrete):
    """Of 40 entries the difference of two matters, and two more are constant or nearly so; 120 demonstrations are too few to find out by training alone."""
    rng = np.random.default_rng(3)
    features = rng.standard_normal((520, 40)).astype(np.float32)
    features[:, 5], features[:, 6] = 2.0, np.arange(520) == 3
    truth = features[:, 11] - features[:, 30]
    actions = (truth > 0).astype(np.int64) if discrete else np.clip(truth, -1, 1).astype(np.float32)[:, None]
    asked, wrong = adam(discrete=discrete, inputs=40, actions=1 + discrete, hidden=(32,)), []
    for entries in (2, None):
        parameters = train(problem=asked, fit=Fit(steps=400, entries=entries), units=Units.transitions(features, actions), bags=[np.arange(120)], instances=[0], streams=STREAMS)
        outputs = trained_policies(asked, parameters).outputs(features[120:], np.array([0]))
        wrong.append((greedy_actions(outputs) != actions[120:]).mean() if discrete else np.abs(np.clip(outputs, -1, 1) - actions[120:]).mean())
        if entries:
            assert np.flatnonzero(np.abs(parameters["0.weight"][0].numpy()).sum(1)).tolist() == [11, 30]
    assert wrong[0] < 0.6 * wrong[1]


def test_entries_are_not_chosen_of_images():
    asked = problem(network="convolutional", inputs=4 * 42 * 42)
    with pytest.raises(MucdError, match="6 entries"):
        fit_policies(problem=asked, fit=Fit(entries=6), units=transitions(asked, 3, np.random.default_rng(0)), bags=[np.arange(3)], instances=[0], streams=STREAMS)


def test_grades_are_for_clones_of_discrete_actions():
    asked, bag = adam("dqn"), {"bags": [np.arange(3)], "instances": [0], "streams": STREAMS}
    with pytest.raises(MucdError, match="not for dqn"):
        fit_policies(problem=asked, fit=Fit(graded=True), units=transitions(asked, 9, np.random.default_rng(0)), **bag)
    with pytest.raises(MucdError, match="exclude each other"):
        Fit(graded=True, top_share=0.5)


def test_an_empty_bag_and_one_that_breaks_the_learner_give_the_default_policy():
    asked = adam()
    units = changed(transitions(asked, 40, np.random.default_rng(0)), 3, features=np.inf)
    policies = trained_policies(asked, fit_policies(
        problem=asked, fit=Fit(steps=5), units=units, bags=[np.zeros(0, int), np.arange(10), np.arange(10, 40)], instances=[0, 1, 2], streams=STREAMS
    ))
    observations = np.random.default_rng(1).standard_normal((20, 5)).astype(np.float32)
    assert not greedy_actions(policies.outputs(observations, np.array([0]))).any()
    assert not greedy_actions(policies.outputs(observations, np.array([1]))).any()
    assert len(set(greedy_actions(policies.outputs(observations, np.array([2]))))) > 1


@pytest.mark.parametrize("values", [{"steps": 0}, {"steps": 10**12}, {"batch": 10**12}, {"batch": 1.5}, {"entries": 0}, {"entries": True}, {"top_share": 0.0}, {"top_share": 1.1}, {"top_share": float("nan")}])
def test_bad_fits_are_refused(values):
    with pytest.raises(MucdError, match=str(next(iter(values.values())))):
        Fit(**values)


@pytest.mark.parametrize("algorithm,discrete,unit", [("bc", True, "trajectory"), ("cql", True, "trajectory"), ("bc", False, "trajectory"), ("bc", True, "transition")])
def test_mirrored_is_the_same_as_a_bag_that_holds_the_images(algorithm, discrete, unit):
    mirror = Mirror(observation=(-1, 3, 2), actions=(1, 0) if discrete else (1, -2))
    asked = adam(algorithm, discrete, inputs=3, actions=2)
    units = trajectories(asked, [4, 7, 3], np.random.default_rng(0)) if unit == "trajectory" else transitions(asked, 14, np.random.default_rng(0))
    images = {"features": mirror.observations(units.features), "next_features": mirror.observations(units.next_features), "actions": mirror.images_of_actions(units.actions)}
    both = {name: np.concatenate([part, images.get(name, part)]) for name, part in units.arrays().items() if name not in ("starts", "lengths", "ends")}
    both = Units(unit=unit, **both, starts=np.concatenate([units.starts, units.starts + 14]), lengths=np.tile(units.lengths, 2))
    with_mirror = replace(asked, mirror=mirror)
    policy, wanted = fitted(with_mirror, units, [[2, 0]], Fit(steps=20, mirrored=True)), fitted(asked, both, [[2, 0, len(units) + 2, len(units)]], Fit(steps=20))
    stacked = fit_stacked(problem=with_mirror, fit=Fit(steps=20, mirrored=True), units=units, bags=[np.array([2, 0])], instances=[0], streams=STREAMS, device="cpu")
    for name in policy:
        assert policy[name].tobytes() == wanted[name].tobytes()
        np.testing.assert_allclose(stacked[name], wanted[name], atol=1e-4)
    with pytest.raises(MucdError, match="mirror_observation"):
        fitted(asked, units, [[0]], Fit(mirrored=True))


def test_graded_images_are_trusted_like_their_trajectories():
    asked = replace(adam(inputs=3, actions=2), mirror=Mirror(observation=(-1, 3, 2), actions=(1, 0)))
    units = trajectories(asked, [4, 7, 3, 5], np.random.default_rng(0))
    policy = fitted(asked, units, [[2, 0, 3]], Fit(steps=20, graded=True, mirrored=True))
    changed_worst = changed(units, [2, 0, 3][int(np.argmin([units.rewards[s : s + n].sum() for s, n in zip(units.starts[[2, 0, 3]], units.lengths[[2, 0, 3]])]))], features=1e3)
    # The worst one, and its image, say nothing.
    again = fitted(asked, changed_worst, [[2, 0, 3]], Fit(steps=20, graded=True, mirrored=True))
    assert all(policy[name].tobytes() == again[name].tobytes() for name in policy)
