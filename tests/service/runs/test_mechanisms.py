"""What a run is where the user leaves it open, and how far an attacker may go until that would be something else."""

import dataclasses

import gymnasium
import numpy as np
import pytest

from mucd_ray.certify.planning.size import declared_size
from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.errors import MucdError
from mucd_ray.learn.learner import Learner, LocalUpdate
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.mechanisms import MANY_TRAJECTORIES, settled
from mucd_ray.service.runs.session import Request, make_settings


@pytest.mark.parametrize(
    "given,trajectories,expected",
    [
        ({}, MANY_TRAJECTORIES, ("bag", "trajectory", 0)),
        ({}, 1000, ("bag", "trajectory", 1000 - MANY_TRAJECTORIES)),
        ({}, MANY_TRAJECTORIES - 1, ("gaussian", "transition", 0)),
        ({}, 5, ("gaussian", "transition", MANY_TRAJECTORIES - 6)),
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
    make_settings(Request(dataset="made-up", fraction=0.2), cartpole(15), Choices())
    assert "--unit transition" in capfd.readouterr().err
    # Seven more trajectories leave the default; a transition in the middle of one makes three of it.
    assert few.radius_cap("insert") == min(3, few.size_margin) and few.radius_cap("substitute") == 1
    with pytest.raises(MucdError, match="--unit"):
        make_settings(Request(dataset="made-up", units=1000), cartpole(16), Choices())
    many, _ = make_settings(Request(dataset="made-up", bag_size=3, unit="trajectory"), cartpole(26), Choices())
    assert many.choice_margin is None and many.radius_cap("insert") == 26
    many, _ = make_settings(Request(dataset="made-up"), cartpole(26), Choices())
    assert many.mechanism.kind == "bag" and many.choice_margin == 8
    assert many.radius_cap("remove") == min(8, many.size_margin) and many.radius_cap("substitute") == 26


def test_every_dataset_within_the_claimed_radius_is_trained_alike():
    """All that settings know of a dataset is how many units and trajectories it has, by way of these two functions."""
    few, many = (make_settings(Request(dataset="made-up"), cartpole(trajectories), Choices())[0] for trajectories in (10, 26))

    def known(units: int, trajectories: int) -> tuple:
        answer = settled(Request(dataset="made-up"), trajectories)
        return answer.mechanism, answer.unit, answer.usual, declared_size(units)[0]

    def cap(settings, units: int, trajectories: int, threat: str) -> int:
        margins = {"size_margin": declared_size(units)[1], "choice_margin": settled(Request(dataset="made-up"), trajectories).margin}
        try:
            return dataclasses.replace(settings, units=units, **margins).radius_cap(threat)
        except MucdError:
            return 0

    for n in range(MANY_TRAJECTORIES, 5001):
        r = cap(many, n, n, "symmetric")
        assert all(known(other, other) == known(n, n) for other in {n - r, n - 1, n + 1, n + r} if abs(other - n) <= r)
        assert r == 0 or n - r >= MANY_TRAJECTORIES
    for trajectories in range(1, MANY_TRAJECTORIES):
        for n in range(trajectories, 5001, 7):
            r = cap(few, n, trajectories, "symmetric")
            assert all(known(n + sign * r, max(1, trajectories + 2 * sign * r)) == known(n, trajectories) for sign in (-1, 1))
            r = cap(few, n, trajectories, "substitute")
            assert known(n, trajectories + 4 * r) == known(n, trajectories)


def test_a_claim_that_ends_at_a_border_is_announced(capfd):
    make_settings(Request(dataset="made-up"), cartpole(70), Choices())
    assert capfd.readouterr().err == ""
    # One below the border claims what lies within it; on the border nothing does, and the user has to say.
    settings, _ = make_settings(Request(dataset="made-up"), cartpole(55), Choices())
    assert settings.radius_cap("symmetric") == 1 and "no radius above 1 will be claimed" in capfd.readouterr().err
    with pytest.raises(MucdError, match="56 trajectories lies on the border.*--units N"):
        make_settings(Request(dataset="made-up"), cartpole(56), Choices())
    settings, _ = make_settings(Request(dataset="made-up", units=50), cartpole(56), Choices())
    assert settings.radius_cap("symmetric") == 56 - MANY_TRAJECTORIES and capfd.readouterr().err == ""


def test_on_the_border_the_user_has_to_say():
    with pytest.raises(MucdError, match="--unit"):
        make_settings(Request(dataset="made-up", units=25), cartpole(MANY_TRAJECTORIES), Choices())


@pytest.mark.parametrize("asked,complaint", [
    ({"fit": {"entries": 5}}, "entries 5 is above the 4 of an observation"),
    ({"fit": {"entries": 2}, "history": 2, "learner": Learner(algorithm="dt", network="transformer", hidden=(), optimiser="adam", learning_rate=0.001)}, "for a transformer network"),
])
def test_entries_that_cannot_be_chosen_are_refused_before_a_run_folder_is_made(asked, complaint):
    request = Request(dataset="made-up", mechanism="bag", bag_size=3, **asked)
    with pytest.raises(MucdError, match=complaint):
        make_settings(request, cartpole(10), Choices())


def test_parts_that_share_units_are_planned_as_large_as_others_and_their_number_follows_from_the_size(recordings):
    dataset = load_dataset(recordings["cartpole"])
    plain, spread = (make_settings(Request(dataset=dataset.name, instances=200, mechanism="partition", fraction=0.05, spread=spread), dataset, Choices())[0] for spread in (None, 2))
    assert (spread.mechanism.parts, spread.mechanism.spread) == (2 * plain.mechanism.parts, 2)
    assert spread.declared_size == plain.declared_size and spread.size_margin == plain.size_margin is not None and any("spread" in note and "given by the user" in note for note in spread.assumptions)
