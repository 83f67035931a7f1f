"""The dataset as units: every array a function of one row, and of one trajectory where that is the unit."""

from dataclasses import replace
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from problems import problem, trajectories, transitions

from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.errors import MucdError
from mucd_ray.learn.learner import LocalUpdate
from mucd_ray.learn.units import Units, make_units

CARD = SimpleNamespace(features=lambda observations: np.clip(observations / 2, -1, 1).astype(np.float32), reward_scale=4.0)


def dataset(action_space):
    """Three trajectories of 2, 1 and 3 transitions with returns 3, 3 and 12: the first is cut off, the others end."""
    rng = np.random.default_rng(0)
    discrete = isinstance(action_space, gymnasium.spaces.Discrete)
    return OfflineDataset.from_arrays(
        observations=np.arange(12).reshape(6, 2) / 4, next_observations=np.arange(12, 24).reshape(6, 2) / 4,
        actions=rng.integers(5, 8, 6) if discrete else np.tile([[0.0, 4.0], [2.0, 0.0]], (3, 1)).astype(np.float32),
        rewards=[1, 2, 3, 4, 4, 4], terminations=[0, 0, 1, 0, 0, 1], truncations=[0, 1, 0, 0, 0, 0], action_space=action_space,
        observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64),
    )


def asked(algorithm="dqn", discrete=True, **local):
    plain = problem(algorithm, discrete, inputs=2, actions=3 if discrete else 2)
    bounds = None if discrete else ((0.0, 0.0), (2.0, 4.0))
    return replace(plain, learner=replace(plain.learner, local=LocalUpdate(**local)), action_bounds=bounds)


def test_arrays_are_what_a_learner_reads():
    data = dataset(gymnasium.spaces.Discrete(3, start=5))
    units = make_units(data, CARD, asked(), "transition")
    assert units.features.tobytes() == CARD.features(data.observations).tobytes()
    assert units.next_features.tobytes() == CARD.features(data.next_observations).tobytes()
    assert np.array_equal(units.actions, data.actions - 5) and units.actions.dtype == np.int64
    assert units.rewards.tolist() == [0.25, 0.5, 0.75, 1, 1, 1]
    # A trajectory that was cut off goes on; only termination ends the values.
    assert units.keeps.tolist() == [1, 1, 0, 1, 1, 0]
    assert len(units) == 6 and units.starts.tolist() == [0, 1, 2, 3, 4, 5] and (units.lengths == 1).all()
    assert make_units(data, CARD, asked("bc"), "transition").next_features.shape == (0, 2)


def test_continuous_actions_are_scaled_by_their_public_bounds():
    data = dataset(gymnasium.spaces.Box(np.array([0, 0], np.float32), np.array([2, 4], np.float32)))
    units = make_units(data, CARD, asked("bc", False), "transition")
    assert units.actions.dtype == np.float32 and units.actions[:2].tolist() == [[-1, 1], [1, -1]]


@pytest.mark.parametrize("least,lengths", [(None, [2, 1, 3]), (3.0, [2, 1, 3]), (3.5, [0, 0, 3]), (99.0, [0, 0, 0])])
def test_trajectories_below_the_least_return_have_length_zero_and_stay_units(least, lengths):
    """The number of units, from which the accounting's N follows, does not tell which of them count."""
    units = make_units(dataset(gymnasium.spaces.Discrete(3, start=5)), CARD, asked(min_return=least), "trajectory")
    assert len(units) == 3 and units.starts.tolist() == [0, 2, 3] and units.lengths.tolist() == lengths


def test_a_least_return_of_transitions_is_refused():
    with pytest.raises(MucdError, match="--unit trajectory"):
        make_units(dataset(gymnasium.spaces.Discrete(3, start=5)), CARD, asked(min_return=1.0), "transition")


def test_a_reward_beyond_float32_is_not_finite_and_warns_nobody():
    data = dataset(gymnasium.spaces.Discrete(3, start=5))
    data.rewards[1] = 1e300
    units = make_units(data, CARD, asked(), "transition")
    assert np.isinf(units.rewards[1]) and np.isfinite(np.delete(units.rewards, 1)).all()


SOME = transitions(problem("dqn"), 6, np.random.default_rng(0))
LONGER = trajectories(problem("dqn"), [2, 1, 3], np.random.default_rng(0))


@pytest.mark.parametrize("units,changes", [
    (SOME, {"features": SOME.features.astype(np.float64)}), (SOME, {"features": SOME.features[:, 0]}), (SOME, {"rewards": SOME.rewards[:5]}),
    (SOME, {"actions": SOME.actions[:5]}), (SOME, {"next_features": SOME.features[:5]}), (SOME, {"next_features": SOME.features[:, :4]}),
    (SOME, {"starts": SOME.starts[::-1]}), (SOME, {"lengths": 2 * SOME.lengths}), (SOME, {"lengths": 0 * SOME.lengths}),
    (LONGER, {"lengths": LONGER.lengths + 1}), (LONGER, {"starts": LONGER.starts - 1}), (LONGER, {"lengths": LONGER.lengths[:2]}),
    (LONGER, {"starts": np.array([0, 1, 3])}), (LONGER, {"lengths": -LONGER.lengths}),
], ids=str)
def test_what_does_not_fit_is_refused(units, changes):
    with pytest.raises(MucdError):
        replace(units, **changes)


def test_no_data_is_refused():
    with pytest.raises(MucdError, match="no transitions"):
        Units.transitions(np.zeros((0, 2), np.float32), np.zeros(0, np.int64))
