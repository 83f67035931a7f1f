"""The baseline: it learns what there is to learn, from the units that count and from no others."""

from dataclasses import replace

import numpy as np
import pytest
from problems import made_up, problem, trajectories

from mucd_ray.errors import MucdError
from mucd_ray.learn.nonprivate import train_nonprivate


def outputs(parameters, features):
    return features @ parameters["0.weight"].numpy() + parameters["0.bias"].numpy()[:, None]


@pytest.mark.parametrize("unit", ["transition", "trajectory"])
def test_it_clones_a_linear_rule_and_repeats_itself(unit):
    asked, rng = problem(), np.random.default_rng(0)
    units = made_up(unit, asked, 300, rng)
    units = replace(units, actions=(units.features @ rng.standard_normal((5, 3))).argmax(1))
    trained = train_nonprivate(problem=asked, units=units, seeds=[3, 4], steps=300, learning_rate=0.05)
    assert (outputs(trained, units.features).argmax(-1) == units.actions).mean() > 0.95
    alone = train_nonprivate(problem=asked, units=units, seeds=[4], steps=300, learning_rate=0.05)
    assert alone["0.weight"][0].numpy().tobytes() == trained["0.weight"][1].numpy().tobytes()


def test_values_follow_the_target_copy():
    """One state, two actions with rewards 0 and 1, no end: Q(a) = r + discount / (1 - discount)."""
    asked = problem("dqn", actions=2, inputs=1)
    asked = replace(asked, learner=replace(asked.learner, constants={"discount": 0.5}))
    units = made_up("transition", asked, 100, np.random.default_rng(0))
    ones = np.ones((100, 1), np.float32)
    units = replace(units, features=ones, next_features=ones, rewards=units.actions.astype(np.float32), keeps=ones[:, 0])
    values = outputs(train_nonprivate(problem=asked, units=units, seeds=[0], steps=1000), ones[:1])[0, 0]
    np.testing.assert_allclose(values, [1.0, 2.0], atol=0.05)


def test_units_that_count_as_zero_are_left_out():
    """Every other trajectory has the wrong action and, being of length zero, no say."""
    asked, rng = problem(), np.random.default_rng(0)
    units = trajectories(asked, [5] * 100, rng)
    right = (units.features @ rng.standard_normal((5, 3))).argmax(1)
    counts = np.arange(100) % 2 == 0
    units = replace(units, actions=np.where(counts.repeat(5), right, (right + 1) % 3), lengths=5 * counts.astype(np.int64))
    trained = train_nonprivate(problem=asked, units=units, seeds=[0], steps=300, learning_rate=0.05)
    assert (outputs(trained, units.features).argmax(-1) == right).mean() > 0.95
    with pytest.raises(MucdError, match="least return"):
        train_nonprivate(problem=asked, units=replace(units, lengths=0 * units.lengths), seeds=[0])
