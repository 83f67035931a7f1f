"""A problem's shapes, its public maps, and what it refuses."""

import numpy as np
import pytest
from problems import LOSSES, problem

from mucd_ray.errors import MucdError
from mucd_ray.learn.learner import Learner
from mucd_ray.learn.problem import Problem


def test_parameters_of_all_networks_are_counted():
    linear = problem("dqn", inputs=4, actions=3)
    assert linear.parameter_count == (4 + 1) * 3
    both = problem("td3-bc", False, inputs=4, actions=2, hidden=(8,))
    critic, policy = (6 + 1) * 8 + 9, (4 + 1) * 8 + 2 * 9
    assert both.parameter_count == 2 * critic + policy and both.network.parameter_count == policy
    features = problem("bc", inputs=4, actions=3, random_features=20)
    assert features.network.inputs == 20 and features.parameter_count == 63


def test_every_row_is_embedded_by_itself():
    asked, rows = problem(inputs=4, random_features=20, bandwidth=2.0), np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
    whole = asked.embed(rows)
    assert whole.dtype == np.float32 and np.linalg.norm(whole, axis=1).max() < 1.5
    rows[3] = np.nan
    broken = asked.embed(rows)
    assert np.isnan(broken[3]).all() and np.delete(broken, 3, 0).tobytes() == np.delete(whole, 3, 0).tobytes()
    assert all(asked.embed(row).tobytes() == expected.tobytes() for row, expected in zip(rows, broken))
    # The same public map in every process and for every learner.
    assert problem("dqn", inputs=4, random_features=20, bandwidth=2.0).embed(rows).tobytes() == broken.tobytes()


def test_actions_are_scaled_there_and_back():
    asked = Problem(learner=Learner(learning_rate=1.0), inputs=2, actions=2, discrete=False, action_bounds=((0.0, -3.0), (1.0, 5.0)))
    actions = np.array([[0.0, -3.0], [1.0, 5.0], [0.25, 1.0], [2.0, 9.0]], np.float32)
    scaled = asked.scaled_actions(actions)
    assert scaled.tolist() == [[-1, -1], [1, 1], [-0.5, 0], [3, 2]]
    np.testing.assert_allclose(asked.preferences(scaled), actions)
    free = Problem(learner=Learner(learning_rate=1.0), inputs=2, actions=2, discrete=False)
    assert np.array_equal(free.scaled_actions(actions), actions) and np.array_equal(free.preferences(actions), actions)


@pytest.mark.parametrize("algorithm,discrete", LOSSES)
def test_preferences_have_one_score_per_action_row_by_row(algorithm, discrete):
    asked = problem(algorithm, discrete)
    outputs = np.random.default_rng(1).standard_normal((7, asked.network.outputs)).astype(np.float32)
    preferred = asked.preferences(outputs)
    assert preferred.shape == (7, 3)
    outputs[2] = np.nan
    broken = asked.preferences(outputs)
    assert np.delete(broken, 2, 0).tobytes() == np.delete(preferred, 2, 0).tobytes() and not np.isfinite(broken[2]).all()


@pytest.mark.parametrize("options,words", [
    ({"algorithm": "dqn", "discrete": False}, "not defined for continuous"), ({"algorithm": "td3-bc"}, "not defined for discrete"),
    ({"algorithm": "iql", "discrete": False}, "finite bounds"), ({"algorithm": "c51"}, "needs the constant v_min"),
    ({"constants": {"discount": 0.9}}, "unknown"), ({"algorithm": "dqn", "constants": {"discount": 1.5}}, "discount = 1.5"),
    ({"algorithm": "dqn", "constants": {"target_rate": np.nan}}, "target_rate"), ({"algorithm": "sarsa"}, "unknown"),
])
def test_what_does_not_fit_is_refused(options, words):
    learner = {name: value for name, value in options.items() if name != "discrete"}
    with pytest.raises(MucdError, match=words):
        Problem(learner=Learner(learning_rate=1.0, **learner), inputs=2, actions=3, discrete=options.get("discrete", True))
