import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.errors import MucdError


def test_keeps_what_was_recorded(arrays):
    dataset = OfflineDataset.from_arrays(**arrays)
    assert (len(dataset), dataset.trajectories) == (6, 2)
    assert dataset.trajectory_starts.tolist() == [0, 3, 6]
    assert dataset.trajectory_returns.tolist() == [3.0, 6.0]
    assert dataset.actions.dtype == np.int64 and dataset.actions.tolist() == [1, 2, 3, 1, 2, 3]
    assert dataset.observations.dtype == np.float32 and dataset.rewards.dtype == np.float64


@given(st.lists(st.sampled_from(["", "terminated", "truncated"]), min_size=1, max_size=30))
def test_trajectories_end_where_episodes_end(ends):
    n = len(ends)
    dataset = OfflineDataset.from_arrays(
        observations=np.zeros((n, 1)), next_observations=np.zeros((n, 1)), actions=np.zeros(n, int), rewards=np.arange(n),
        terminations=[end == "terminated" for end in ends], truncations=[end == "truncated" for end in ends],
        action_space=gym.spaces.Discrete(1), observation_space=gym.spaces.Box(-1, 1, (1,)),
    )
    assert dataset.trajectories == sum(map(bool, ends[:-1])) + 1
    assert dataset.trajectory_returns.sum() == n * (n - 1) / 2


def test_fingerprint_sees_every_bit_and_only_the_data(arrays):
    original = OfflineDataset.from_arrays(**arrays).fingerprint()
    assert OfflineDataset.from_arrays(**{**arrays, "observations": arrays["observations"].copy(order="F")}, name="other").fingerprint() == original
    for name, value in {
        "observations": np.nextafter(arrays["observations"], np.float32(1e9)),
        "next_observations": arrays["next_observations"].astype(np.float64),
        "actions": arrays["actions"][::-1],
        "rewards": arrays["rewards"] + 1e-12,
        "truncations": np.zeros(6, bool),
        "trajectory_starts": [0, 1, 3, 6],
    }.items():
        assert OfflineDataset.from_arrays(**{**arrays, name: value}).fingerprint() != original, name


def test_continuous_actions_are_float32_and_may_sit_on_the_bound(arrays):
    box = gym.spaces.Box(-0.1, 0.1, (2,), np.float64)
    actions = np.full((6, 2), 0.1)
    dataset = OfflineDataset.from_arrays(**{**arrays, "actions": actions, "action_space": box})
    assert dataset.actions.dtype == np.float32 and dataset.actions.shape == (6, 2)
    with pytest.raises(MucdError, match="6 of 6 actions are outside"):
        OfflineDataset.from_arrays(**{**arrays, "actions": actions * 1.001, "action_space": box})


def _with(array, row, value):
    changed = np.array(array)
    changed[row] = value
    return changed


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("observations", lambda a: _with(a, 4, np.nan), "observations are NaN or inf in 1 of 6 rows, first in row 4"),
        ("next_observations", lambda a: _with(a, 2, np.inf), "next observations are NaN or inf in 1 of 6 rows, first in row 2"),
        ("rewards", lambda a: _with(a, 1, -np.inf), "rewards are NaN or inf in 1 of 6 rows, first in row 1"),
        ("actions", lambda a: _with(a, 3, 0), "1 of 6 actions are outside .* first in row 3 .0."),
        ("actions", lambda a: a + 0.5, "give one integer per transition"),
        ("actions", lambda a: a[:5], "arrays of different lengths"),
        ("terminations", lambda a: _with(a, 1, True), None),
        ("trajectory_starts", lambda a: [0, 4, 6], "transition 2 ends an episode inside a trajectory"),
        ("trajectory_starts", lambda a: [0, 3, 3, 6], "must increase strictly"),
        ("trajectory_starts", lambda a: [0, 3, 7], "must increase strictly"),
        ("trajectory_starts", lambda a: [], "must increase strictly"),
        ("action_space", lambda a: gym.spaces.MultiDiscrete([2, 2]), "give one of shape .2,. per transition"),
            ("action_space", lambda a: gym.spaces.Text(2), "type Text are not supported"),
        ("observations", lambda a: a.astype(str), "give numbers"),
    ],
)
def test_bad_arrays_are_named(arrays, name, change, message):
    broken = {**arrays, name: change(arrays.get(name))}
    if message is None:  # an earlier end is only another boundary
        assert OfflineDataset.from_arrays(**broken).trajectories == 3
        return
    with pytest.raises(MucdError, match=message) as caught:
        OfflineDataset.from_arrays(**broken)
    assert "\n" not in str(caught.value)


def test_empty_dataset_is_refused(arrays):
    empty = {name: value[:0] if isinstance(value, np.ndarray) else value for name, value in arrays.items()}
    with pytest.raises(MucdError, match="is empty"):
        OfflineDataset.from_arrays(**empty)


def test_columns_are_the_same_as_rows(arrays):
    """A column [N, 1] next to a row [N] would make N x N numbers."""
    flat = OfflineDataset.from_arrays(**arrays)
    names = ("rewards", "terminations", "truncations", "actions")
    columns = OfflineDataset.from_arrays(**arrays | {name: np.asarray(arrays[name])[:, None] for name in names})
    assert columns.fingerprint() == flat.fingerprint() and columns.rewards.shape == (6,)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rewards", np.zeros((6, 2)), "rewards of shape .6, 2."),
        ("rewards", np.zeros((1, 6)), "rewards of shape .1, 6."),
        ("rewards", ["a"] * 6, "rewards of shape .6,. and dtype <U1"),
        ("rewards", 1.0, "one row per transition"),
        ("terminations", np.zeros((6, 6)), "terminations of shape"),
        ("terminations", [0, 0, 0.5, 0, 0, 1], "terminations must be true or false"),
        ("truncations", [0, 0, np.nan, 0, 0, 1], "truncations must be true or false"),
        ("actions", {"a": np.zeros(6)}, "actions are not one array.*dictionaries"),
        ("actions", [[1], [1, 2], [1], [1], [1], [1]], "actions are not one array"),
        ("actions", np.array([1, 2, 3, 1, 2, 2**64 - 1], np.uint64), "give one integer per transition"),
        ("observations", 5.0, "one row per transition"),
    ],
)
def test_other_shapes_are_named(arrays, name, value, message):
    with pytest.raises(MucdError, match=message) as caught:
        OfflineDataset.from_arrays(**{**arrays, name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("space", [gym.spaces.Box(-np.inf, np.inf, (1,)), gym.spaces.Box(-1e300, 1e300, (1,), np.float64), gym.spaces.Box(-1.0, 1.0, (1,))])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, 1e39, -1e300])
def test_actions_that_float32_does_not_hold_are_refused(arrays, space, bad):
    actions = np.zeros((6, 1))
    OfflineDataset.from_arrays(**arrays | {"actions": actions, "action_space": space})
    actions[4] = bad
    with pytest.raises(MucdError, match="1 of 6 actions are NaN, inf or beyond what float32 holds"):
        OfflineDataset.from_arrays(**arrays | {"actions": actions, "action_space": space})


def test_large_discrete_spaces_do_not_overflow(arrays):
    space = gym.spaces.Discrete(2**62, start=2**62)
    with pytest.raises(MucdError, match="6 of 6 actions are outside"):
        OfflineDataset.from_arrays(**arrays | {"action_space": space})
    OfflineDataset.from_arrays(**arrays | {"actions": np.full(6, 2**63 - 1), "action_space": space})
