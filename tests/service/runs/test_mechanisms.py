"""What a run is where the user leaves it open, and how far an attacker may go until that would be something else."""

import gymnasium
import numpy as np
import pytest

from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.errors import MucdError
from mucd_ray.learn.learner import Learner, LocalUpdate
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.mechanisms import MANY_TRAJECTORIES, settled
from mucd_ray.service.runs.session import Request, make_settings


@pytest.mark.parametrize(
    "given,trajectories,expected",
    [
        ({}, MANY_TRAJECTORIES, ("bag", "trajectory", 0)),
        ({}, 1000, ("bag", "trajectory", 980)),
        ({}, MANY_TRAJECTORIES - 1, ("gaussian", "transition", 0)),
        ({}, 5, ("gaussian", "transition", 14)),
        ({"unit": "trajectory"}, 5, ("bag", "trajectory", None)),
        ({"unit": "transition"}, 1000, ("gaussian", "transition", None)),
        ({"source_key": "operator"}, 1000, ("bag", "source", None)),
        ({"mechanism": "gaussian"}, 1000, ("gaussian", "transition", None)),
        ({"mechanism": "partition"}, 5, ("partition", "trajectory", None)),
        ({"steps": 5}, 1000, ("gaussian", "transition", None)),
        ({"parts": 5}, 1000, ("partition", "trajectory", None)),
        ({"bag_size": 5, "unit": "transition"}, 1000, ("bag", "transition", None)),
        ({"learner": Learner(learning_rate=1.0, local=LocalUpdate(cap=7)), "unit": "trajectory"}, 1000, ("gaussian", "trajectory", None)),
    ],
)
def test_what_is_left_open_follows_from_what_is_said(given, trajectories, expected):
    answer = settled(Request(dataset="made-up", **given), trajectories)
    assert (answer.mechanism, answer.unit, answer.margin) == expected


def test_an_accountant_is_about_noise():
    assert settled(Request(dataset="made-up"), 1000, "rdp").mechanism == "gaussian"


def cartpole(trajectories: int) -> OfflineDataset:
    rng, length = np.random.default_rng(0), 4
    observations, following = rng.standard_normal((2, trajectories * length, 4)).astype(np.float32)
    return OfflineDataset.from_arrays(
        observations=observations, next_observations=following, actions=rng.integers(0, 2, len(observations)), rewards=np.ones(len(observations)),
        terminations=np.arange(len(observations)) % length == length - 1, truncations=np.zeros(len(observations), bool), action_space=gymnasium.spaces.Discrete(2),
        observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32), name="made-up", env_id="CartPole-v1",
    )


def test_no_radius_is_claimed_at_which_the_default_would_be_another(capfd):
    few, _ = make_settings(Request(dataset="made-up"), cartpole(10), Choices())
    assert (few.mechanism.kind, few.mechanism.unit) == ("gaussian", "transition")
    make_settings(Request(dataset="made-up", fraction=0.2), cartpole(16), Choices())
    assert "--unit transition" in capfd.readouterr().err
    # Nine more trajectories leave the default; a transition in the middle of one makes three of it.
    assert few.radius_cap("insert") == min(4, few.size_margin) and few.radius_cap("substitute") == 2
    with pytest.raises(MucdError, match="--unit"):
        make_settings(Request(dataset="made-up", units=1000), cartpole(18), Choices())
    many, _ = make_settings(Request(dataset="made-up", bag_size=3, unit="trajectory"), cartpole(26), Choices())
    assert many.choice_margin is None and many.radius_cap("insert") == 26
    many, _ = make_settings(Request(dataset="made-up"), cartpole(26), Choices())
    assert many.mechanism.kind == "bag" and many.choice_margin == 6
    assert many.radius_cap("remove") == min(6, many.size_margin) and many.radius_cap("substitute") == 26


def test_on_the_border_the_user_has_to_say():
    with pytest.raises(MucdError, match="--unit"):
        make_settings(Request(dataset="made-up", units=25), cartpole(MANY_TRAJECTORIES), Choices())
