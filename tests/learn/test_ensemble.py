"""Whole runs: independence of grouping, the definitions written a second time, empty batches, and who may be written to."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from problems import STREAMS, changed, made_up, problem, trained, trajectories, transitions

from mucd_ray.errors import MucdError
from mucd_ray.learn import streams as purposes
from mucd_ray.learn.ensemble import ENGINES, train_block
from mucd_ray.learn.learner import Learner, LocalUpdate
from mucd_ray.learn.networks import as_module, initial_parameters
from mucd_ray.learn.streams import gaussian_noise, poisson_sample, subset_purpose
from mucd_ray.learn.units import Units
from mucd_ray.mechanism.gaussian.mechanism import Mechanism

BOTH = pytest.mark.parametrize("engine", ENGINES)


def ragged(problem, count, cap, seed=0):
    """Trajectories of length 0, 1, the cap, one more, many, and some in between."""
    rng = np.random.default_rng(seed)
    lengths = np.r_[0, 1, cap, cap + 1, 20 * cap, rng.integers(0, 3 * cap, count - 5)]
    return trajectories(problem, rng.permutation(lengths), rng)


TRANSITIONS = [
    ({"inputs": 7}, 300), ({"inputs": 4, "actions": 2}, 1), ({"inputs": 4, "actions": 2, "hidden": (64, 64)}, 128),
    ({"inputs": 17, "actions": 6, "hidden": (33, 20)}, 70), ({"inputs": 5, "actions": 5, "hidden": (8,)}, 1),
    ({"algorithm": "dqn", "hidden": (64, 64)}, 128), ({"algorithm": "iql", "discrete": False, "hidden": (16, 9)}, 60),
    ({"algorithm": "td3-bc", "discrete": False}, 30),
]
TRAJECTORIES = [
    ({"cap": 9}, 100), ({"hidden": (64, 64), "cap": 40, "local_steps": 3}, 6), ({"algorithm": "dqn", "hidden": (33, 20), "cap": 9}, 40),
    ({"algorithm": "dqn", "cap": 40, "local_steps": 2}, 1), ({"algorithm": "iql", "discrete": False, "hidden": (16,), "cap": 9}, 20),
]


@BOTH
@pytest.mark.parametrize("unit,options,batch", [("transition", *case) for case in TRANSITIONS] + [("trajectory", *case) for case in TRAJECTORIES])
def test_parameters_are_bit_identical_in_every_grouping(unit, options, batch, engine):
    asked = problem(**{"optimiser": "adam", "learning_rate": 0.01, "average": 0.3} | options)
    if unit == "transition":
        units = transitions(asked, 3000, np.random.default_rng(0))
    else:
        units = ragged(asked, 400, asked.learner.local.cap)
    plan = {"engine": engine, "sample_rate": batch / len(units), "steps": 12 if unit == "transition" else 6, "normaliser": float(batch)}
    whole = trained(asked, units, range(8), block=8, **plan)
    for block in (1, 3):
        assert trained(asked, units, range(8), block=block, **plan).tobytes() == whole.tobytes()
    picked = trained(asked, units, [6, 11, 2], **plan)
    assert picked[[0, 2]].tobytes() == whole[[6, 2]].tobytes()
    assert (whole[0] != whole[1]).any()


# The definitions a second time, one unit after the other, with torch's networks, losses and optimisers.


def loss(asked, network, target, units, rows):
    """Mean loss of some rows: cross-entropy, or the temporal-difference error of `target`'s greedy value by Huber's loss (a smooth L1 loss)."""
    outputs, actions = network(torch.tensor(units.features[rows])), torch.tensor(units.actions[rows])
    if asked.learner.algorithm == "bc":
        return torch.nn.functional.cross_entropy(outputs, actions)
    with torch.no_grad():
        values = target(torch.tensor(units.next_features[rows])).max(1).values
        values = torch.tensor(units.rewards[rows]) + asked.constants["discount"] * torch.tensor(units.keeps[rows]) * values
    return torch.nn.functional.smooth_l1_loss(outputs.gather(1, actions[:, None])[:, 0], values)


def chosen_rows(units, unit, cap, instance, step):
    """A unit's rows, or `cap` evenly spaced ones from a start that depends on (instance, step, unit)."""
    start, length = int(units.starts[unit]), int(units.lengths[unit])
    if length <= cap:
        return start + np.arange(length)
    word = int(STREAMS.generator(instance, step, subset_purpose(int(unit))).bit_generator.random_raw())
    return start + np.floor(((word >> 11) * 2.0**-53 + np.arange(cap)) * length / cap).astype(int)


def update(asked, network, target, units, rows):
    """Sum of the gradients [parameter_count] of the local steps on the mean loss, at a copy of the network that these steps move."""
    local, total = copy.deepcopy(network), 0.0
    for _ in range(asked.learner.local.steps if units.unit == "trajectory" else 1):
        gradients = torch.autograd.grad(loss(asked, local, target, units, rows), tuple(local.parameters()))
        total = total + torch.cat([gradient.flatten() for gradient in gradients])
        with torch.no_grad():
            for parameter, gradient in zip(local.parameters(), gradients):
                parameter -= asked.learner.local.learning_rate * gradient
    return total


def run(asked, units, plan, instance):
    """Released parameters [parameter_count] of one instance."""
    learner = asked.learner
    network = as_module(asked.network, initial_parameters(asked.network, STREAMS.generator(instance, 0, purposes.INITIALISE)))
    target, parameters, iterates = copy.deepcopy(network), list(network.parameters()), []
    if learner.optimiser == "adam":
        optimiser = torch.optim.Adam(parameters, lr=learner.learning_rate)
    else:
        optimiser = torch.optim.SGD(parameters, lr=learner.learning_rate, momentum=learner.momentum)
    for step in range(plan.steps):
        noise = gaussian_noise([STREAMS.generator(instance, step, purposes.NOISE)], asked.parameter_count)[0]
        total = plan.noise_multiplier * plan.clip_norm * torch.tensor(noise)
        for unit in poisson_sample(STREAMS.generator(instance, step, purposes.SAMPLE), len(units), plan.sample_rate):
            rows = chosen_rows(units, unit, learner.local.cap, instance, step)
            if len(rows):
                vector = update(asked, network, target, units, rows)
                total = total + vector * min(1.0, plan.clip_norm / float(vector.norm()))
        torch.nn.utils.vector_to_parameters(total / plan.normaliser, gradients := [torch.zeros_like(p) for p in parameters])
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = gradient
        optimiser.step()
        with torch.no_grad():
            for copied, parameter in zip(target.parameters(), parameters):
                copied += asked.constants.get("target_rate", 1.0) * (parameter - copied)
        iterates.append(torch.nn.utils.parameters_to_vector(parameters).detach())
    last = max(1, round(learner.average * plan.steps))
    weights = torch.stack(iterates[-last:]).double().mean(0)
    module = as_module(asked.network, weights.float().numpy())
    return np.concatenate([p.detach().numpy().T.ravel() for p in module.parameters()])


DEFINED = [
    ("transition", {"learning_rate": 0.3}), ("transition", {"learning_rate": 0.3, "momentum": 0.8, "average": 0.25}),
    ("transition", {"learning_rate": 0.05, "optimiser": "adam", "average": 1.0}), ("transition", {"learning_rate": 0.01, "optimiser": "adam", "hidden": (6,)}),
    ("transition", {"algorithm": "dqn", "learning_rate": 0.5}), ("transition", {"algorithm": "dqn", "learning_rate": 0.5, "hidden": (6,)}),
    ("trajectory", {"learning_rate": 0.3, "cap": 4}), ("trajectory", {"learning_rate": 0.3, "cap": 4, "local_steps": 3, "hidden": (6,)}),
    ("trajectory", {"algorithm": "dqn", "learning_rate": 0.5, "hidden": (6,), "cap": 4}),
    ("trajectory", {"algorithm": "dqn", "learning_rate": 0.5, "hidden": (6,), "cap": 1000, "local_steps": 3, "local_rate": 1.0, "average": 0.5}),
]


@BOTH
@pytest.mark.parametrize("unit,options", DEFINED, ids=str)
def test_a_run_is_what_the_definitions_say(unit, options, engine):
    asked = problem(**options)
    units = transitions(asked, 400, np.random.default_rng(0)) if unit == "transition" else ragged(asked, 60, 4)
    plan = {"sample_rate": 0.1, "noise_multiplier": 1.0, "clip_norm": 0.5, "steps": 20, "normaliser": 0.1 * len(units)}
    expected = run(asked, units, Mechanism(unit=unit, **plan), 5)
    np.testing.assert_allclose(trained(asked, units, [5], engine=engine, **plan)[0], expected, rtol=2e-5, atol=4e-6)


@BOTH
@pytest.mark.parametrize("algorithm", ["bc", "dqn"])
@pytest.mark.parametrize("unit", ["transition", "trajectory"])
def test_an_empty_batch_is_a_noise_only_step(unit, algorithm, engine):
    """So is one of trajectories without transitions."""
    asked, rng = problem(algorithm, inputs=3, actions=2, learning_rate=1.0), np.random.default_rng(0)
    plan = {"sample_rate": 1e-9, "noise_multiplier": 2.0, "steps": 1, "normaliser": 10.0}
    cases = [(made_up(unit, asked, 100, rng), plan)]
    if unit == "trajectory":
        units = trajectories(asked, [3, 0, 0, 0], rng)
        cases.append((Units(unit=unit, **units.arrays() | {"lengths": 0 * units.lengths}), plan | {"sample_rate": 1.0}))
    for units, options in cases:
        released = trained(asked, units, [0, 1], engine=engine, **options)
        for instance in (0, 1):
            noise = gaussian_noise([STREAMS.generator(instance, 0, purposes.NOISE)], 8)[0] * (2.0 * 0.5 / 10)
            expected = -np.r_[noise[:6].reshape(2, 3).T.ravel(), noise[6:]]
            # Noise is compared by its scale: a draw near zero inherits the rounding of its angle.
            np.testing.assert_allclose(released[instance], expected, rtol=0, atol=1e-7)


@BOTH
@pytest.mark.parametrize("unit", ["transition", "trajectory"])
def test_poisoned_units_leave_every_parameter_finite_and_the_arrays_untouched(unit, engine):
    for options in ({}, {"hidden": (8, 8)}, {"algorithm": "dqn", "hidden": (8, 8)}, {"algorithm": "td3-bc", "discrete": False, "hidden": (8,)}):
        asked = problem(**options, learning_rate=0.1, local_steps=2)
        units = made_up(unit, asked, 200, np.random.default_rng(0))
        for index, value in enumerate((np.nan, np.inf, 1e30, -3e38)):
            units = changed(units, index, features=value)
            units = changed(units, 10 + index, next_features=value)
            units = changed(units, 20 + index, rewards=value)
        for array in units.arrays().values():
            array.flags.writeable = False
        before = {name: array.tobytes() for name, array in units.arrays().items()}
        assert np.isfinite(trained(asked, units, range(3), engine=engine, sample_rate=0.5, normaliser=100.0, steps=8)).all()
        assert before == {name: array.tobytes() for name, array in units.arrays().items()}


@BOTH
@pytest.mark.parametrize("unit", ["transition", "trajectory"])
def test_it_learns(unit, engine):
    """The action is a linear function of the features; trajectories of ten transitions with two local steps learn it too."""
    asked, rng = problem(inputs=4, learning_rate=2.0, average=0.5, local_steps=2), np.random.default_rng(0)
    units = transitions(asked, 4000, rng) if unit == "transition" else trajectories(asked, [10] * 400, rng)
    units = replace(units, actions=(units.features @ rng.standard_normal((4, 3))).argmax(1))
    released = trained(asked, units, range(2), engine=engine, steps=200, normaliser=0.1 * len(units))
    logits = units.features @ released[:, :12].reshape(2, 4, 3) + released[:, None, 12:]
    assert (logits.argmax(-1) == units.actions).mean() > 0.85


@BOTH
def test_continuous_actions_are_regressed(engine):
    asked = problem(discrete=False, inputs=4, actions=2, learning_rate=0.5)
    units = transitions(asked, 2000, np.random.default_rng(0))
    units = replace(units, actions=(units.features @ np.ones((4, 2)) * [0.5, -0.2]).astype(np.float32))
    released = trained(asked, units, [0], engine=engine, steps=200, normaliser=200.0)
    assert np.abs(released[0, :8].reshape(4, 2) - [0.5, -0.2]).max() < 0.1


@pytest.mark.parametrize("change,words", [
    ("unit", "unit"), ("width", "features"), ("dtype", "actions"), ("action", "actions lie"), ("engine", "engine"), ("next", "looks ahead"),
    ("continuous", "actions"),
])
def test_what_does_not_fit_is_refused(change, words):
    asked = problem("dqn" if change == "next" else "bc", discrete=change != "continuous")
    units = transitions(problem(), 50, np.random.default_rng(0))
    if change == "width":
        units = transitions(problem(inputs=4), 50, np.random.default_rng(0))
    elif change == "dtype":
        units = replace(units, actions=units.actions.astype(np.float32))
    elif change == "action":
        units = replace(units, actions=units.actions + 1)
    plan = Mechanism(unit="trajectory" if change == "unit" else "transition", sample_rate=0.1, noise_multiplier=1.0, clip_norm=1.0, steps=1, normaliser=1.0)
    with pytest.raises(MucdError, match=words):
        train_block(
            problem=asked, mechanism=plan, units=units, instances=[0], streams=STREAMS, engine="fuse" if change == "engine" else "fused",
        )


@pytest.mark.parametrize("field,value", [("cap", 0), ("cap", 2.5), ("steps", 0), ("cap", 10**12), ("steps", 10**400), ("learning_rate", 0.0), ("learning_rate", np.inf), ("min_return", np.nan)])
def test_local_updates_outside_their_range_are_refused(field, value):
    with pytest.raises(MucdError):
        LocalUpdate(**{field: value})


def test_random_features_beyond_the_widest_layer_are_refused():
    with pytest.raises(MucdError, match="random features 1000000000000 are more than 65,536"):
        Learner(learning_rate=1.0, random_features=10**12)
