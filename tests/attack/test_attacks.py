"""Every attack stays within its budget, counted here once more, and is the same for the same seed; what it makes is a dataset that a user's file could hold."""

from collections import Counter
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from mucd_ray.attack.attacks import ATTACKS, poisoned, target_action, triggered
from mucd_ray.attack.budget import Budget, changed, check_spent
from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.data.formats.writing import target_folder, write_dataset
from mucd_ray.errors import MucdError
from mucd_ray.words import counted

BOX = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
SPACES = {
    "discrete": (BOX, gym.spaces.Discrete(3, start=2)),
    "continuous": (gym.spaces.Box(-np.inf, np.inf, (3,), np.float64), gym.spaces.Box(-2.0, np.array([0.5, 3.0], np.float32), (2,), np.float32)),
    "bytes": (gym.spaces.Box(0, 255, (2, 2), np.uint8), gym.spaces.Discrete(2)),
}
LENGTHS = (3, 1, 5, 2, 4, 2, 6, 1, 2, 3)


def dataset(kind: str, observation_space=None, action_space=None) -> OfflineDataset:
    spaces = SPACES.get(kind, (BOX, None))
    observation_space, action_space = observation_space or spaces[0], action_space or spaces[1]
    rng, rows = np.random.default_rng(0), sum(LENGTHS)
    shape, dtype = observation_space.shape, observation_space.dtype
    seen = [(rng.normal(0, 40, (length + 1, *shape)) + 100).astype(dtype) for length in LENGTHS]
    action_space.seed(0)
    ends = np.cumsum(LENGTHS) - 1
    return OfflineDataset.from_arrays(
        observations=np.concatenate([part[:-1] for part in seen]), next_observations=np.concatenate([part[1:] for part in seen]),
        actions=np.stack([action_space.sample() for _ in range(rows)]), rewards=rng.normal(size=rows).round(1), terminations=np.isin(np.arange(rows), ends[::2]),
        truncations=np.isin(np.arange(rows), ends[1::2]), action_space=action_space, observation_space=observation_space, trajectory_starts=np.r_[0, np.cumsum(LENGTHS)], name="small",
    )


DATA = {kind: dataset(kind) for kind in SPACES}


@pytest.fixture(autouse=True)
def _quick_clones(monkeypatch):
    monkeypatch.setattr("mucd_ray.attack.clone.STEPS", 20)


def units_of(data: OfflineDataset, unit: str) -> Counter:
    """By the sight of plain numbers: a unit is a tuple of all that its transitions hold."""
    names = ("observations", "next_observations", "actions", "rewards", "terminations", "truncations")
    rows = [tuple(getattr(data, name)[row].tobytes() for name in names) for row in range(len(data))]
    if unit == "transition":
        return Counter(rows)
    return Counter(tuple(rows[start:end]) for start, end in zip(data.trajectory_starts[:-1], data.trajectory_starts[1:]))


def fits(name: str, threat: str) -> bool:
    return name == "removed-best" if threat == "remove" else (name, threat) != ("removed-best", "insert")


@pytest.mark.parametrize("name,kind", [(name, kind) for name in ATTACKS for kind in SPACES if (name, kind) != ("label-flips", "continuous")])
def test_an_attack_changes_no_more_units_than_its_budget(name, kind):
    most = 0
    for unit, threat, radius in [(unit, threat, radius) for unit in ("transition", "trajectory") for threat in ("symmetric", "insert", "substitute", "remove") for radius in (1, 4, 10)]:
        if not fits(name, threat):
            continue
        after, told = poisoned(name, DATA[kind], Budget(radius=radius, unit=unit, threat=threat), seed=3)
        before_units, after_units = units_of(DATA[kind], unit), units_of(after, unit)
        came, went = (after_units - before_units).total(), (before_units - after_units).total()
        assert (told.inserted, told.removed) == (came, went)
        assert {"symmetric": came + went, "insert": came + len(DATA[kind]) * went, "remove": went + len(DATA[kind]) * came, "substitute": max(came, went)}[threat] <= radius
        if threat == "substitute":
            assert after.count(unit) == DATA[kind].count(unit)
        again, _ = poisoned(name, DATA[kind], Budget(radius=radius, unit=unit, threat=threat), seed=3)
        assert again.fingerprint() == after.fingerprint(), "the same seed is the same attack"
        most = max(most, came + went)
    assert most, "it did nothing at all"


@pytest.mark.parametrize("name", ["random-actions", "inserted", "gradient", "label-flips"])
def test_another_seed_is_another_attack(name):
    assert len({poisoned(name, DATA["discrete"], Budget(radius=6), seed)[0].fingerprint() for seed in range(4)}) > 1


@pytest.mark.parametrize("kind,unit,name", [("discrete", "transition", "observations"), ("continuous", "trajectory", "gradient"), ("bytes", "transition", "inserted"), ("discrete", "trajectory", "outliers"), ("discrete", "transition", "removed-best")])
def test_what_is_poisoned_is_read_from_a_file_as_it_is(kind, unit, name, tmp_path):
    """So that a certificate is asked about nothing that an attacker could not hand in."""
    after, _ = poisoned(name, DATA[kind], Budget(radius=5, unit=unit), seed=1)
    episodes = []
    for start, end in zip(after.trajectory_starts[:-1], after.trajectory_starts[1:]):
        rows = slice(start, end)
        seen = np.concatenate([after.observations[rows], after.next_observations[end - 1 : end]])
        assert np.array_equal(seen[1:], after.next_observations[rows]), "a trajectory is one chain of observations"
        episodes.append(EpisodeBuffer(
            id=len(episodes), observations=seen, actions=after.actions[rows], rewards=after.rewards[rows], terminations=after.terminations[rows], truncations=after.truncations[rows],
        ))
    folder = target_folder("attacked/small-v0", False, tmp_path)
    write_dataset("attacked/small-v0", folder, episodes, observation_space=after.observation_space, action_space=after.action_space, metadata={}, episode_metadata=[{}] * len(episodes))
    assert load_dataset("attacked/small-v0", tmp_path).fingerprint() == after.fingerprint()


@pytest.mark.parametrize("kind", ["discrete", "continuous", "bytes"])
@pytest.mark.parametrize("unit", ["transition", "trajectory"])
@pytest.mark.parametrize("per_unit,total", [(30.0, None), (30.0, 60.0), (1e-3, None)])
def test_observations_move_within_both_bounds(kind, unit, per_unit, total):
    before = DATA[kind]
    after, found = poisoned("observations", before, Budget(radius=4, unit=unit, threat="insert", per_unit=per_unit, total=total), seed=2)
    assert found.removed == 0
    # Originals are still there: each copy is compared with the original whose actions, rewards and ends it has.
    moves = []
    for start, end in zip(after.trajectory_starts[:-1], after.trajectory_starts[1:]):
        if start < len(before):
            continue
        starts = before.trajectory_starts[:-1] if unit == "trajectory" else range(len(before))
        like = [
            np.linalg.norm(after.observations[start:end].astype(float) - before.observations[other : other + end - start].astype(float))
            for other in starts if all(np.array_equal(getattr(after, name)[start:end], getattr(before, name)[other : other + end - start]) for name in ("actions", "rewards", "terminations"))
        ]
        moves.append(min(like))
    assert len(moves) == 4 and max(moves) <= per_unit and sum(moves) <= (total or 4 * per_unit)
    assert sum(moves) > 0 or kind == "bytes" and per_unit < 1


def test_labels_are_flipped_with_their_probability():
    big = dataset("discrete")
    repeats = np.tile(np.arange(len(big)), 200)
    big = replace(big, **{name: getattr(big, name)[repeats] for name in ("observations", "next_observations", "actions", "rewards", "terminations", "truncations")},
                  trajectory_starts=np.r_[0, np.cumsum(LENGTHS * 200)])
    count = len(big)
    after, found = poisoned("label-flips", big, Budget(radius=count, unit="transition", threat="substitute", flip=0.25), seed=5)
    clean = units_of(big, "transition")
    flipped = sum(number for unit, number in units_of(after, "transition").items() if unit not in clean)
    assert found.inserted == flipped and abs(flipped / count - 0.25) < 0.03


def test_what_an_attack_is_for_shows_in_its_units():
    before = DATA["discrete"]
    returns = before.trajectory_returns
    after, _ = poisoned("worst-copies", before, Budget(radius=7), 0)
    assert np.allclose(after.trajectory_returns[-7:], returns.min())
    after, _ = poisoned("removed-best", before, Budget(radius=4), 0)
    assert sorted(after.trajectory_returns) == pytest.approx(sorted(returns)[:-4])
    after, _ = poisoned("targeted-actions", before, Budget(radius=2, threat="substitute"), 0)
    best = sorted(np.argsort(returns)[-2:].tolist(), key=lambda index: -returns[index])
    assert (after.actions[-sum(LENGTHS[index] for index in best):] == target_action(before)).all()
    after, _ = poisoned("rewards", before, Budget(radius=3, threat="insert"), 0)
    assert (after.rewards[len(before):] == before.rewards.max()).all()
    after, _ = poisoned("outliers", before, Budget(radius=1), 0)
    assert np.abs(after.observations[len(before):]).max() > 1e6 * 10
    after, _ = poisoned("backdoor", before, Budget(radius=4, threat="insert"), 0)
    added = after.observations[len(before):]
    assert np.array_equal(triggered(before, added), added) and (after.actions[len(before):] == target_action(before)).all()


@pytest.mark.parametrize(
    "name,data,budget,words",
    [
        ("flips", "discrete", {}, "unknown: use some of random-actions"),
        ("label-flips", "continuous", {}, "is for discrete actions, and those of small are continuous"),
        ("inserted", "discrete", {"radius": 11}, "budget 11 is above the 10 trajectories of small"),
        ("inserted", "discrete", {"radius": 30, "unit": "transition"}, "budget 30 is above the 29 transitions"),
        ("inserted", "discrete", {"threat": "remove"}, "inserts units, which the remove threat does not allow"),
        ("removed-best", "discrete", {"threat": "insert"}, "removes units, which the insert threat does not allow"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 12 else "",
)
def test_what_does_not_fit_is_refused_in_one_line(name, data, budget, words, refusal):
    assert words in refusal(poisoned, name, DATA[data], Budget(**{"radius": 2} | budget))


def test_action_spaces_that_no_attack_fits_are_refused(refusal):
    several = dataset("several", action_space=gym.spaces.MultiDiscrete([30, 40]))
    assert "of several components" in refusal(poisoned, "random-actions", several, Budget(radius=1))
    unbounded = dataset("unbounded", action_space=gym.spaces.Box(-np.inf, np.inf, (2,), np.float32))
    assert "within their bounds" in refusal(poisoned, "inserted", unbounded, Budget(radius=1))


@pytest.mark.parametrize("values", [{"radius": 0}, {"radius": True}, {"unit": "source"}, {"threat": "all"}, {"per_unit": 0.0}, {"total": float("nan")}, {"flip": 1.5}], ids=str)
def test_budgets_outside_their_range_are_refused(values, refusal):
    refusal(lambda: Budget(**{"radius": 1} | values))


def test_an_attack_that_spends_too_much_is_found():
    before = DATA["discrete"]
    after, _ = poisoned("inserted", before, Budget(radius=3), 0)
    assert changed(before, after, "trajectory").radius("symmetric") == 3 and changed(before, after, "trajectory").radius("remove") is None
    with pytest.raises(MucdError, match="this is a fault of the attack"):
        check_spent(before, after, Budget(radius=2), "inserted")
    with pytest.raises(MucdError, match=f"inserted {counted(3, 'trajectory')} and removed 0"):
        check_spent(before, after, Budget(radius=3, threat="substitute"), "inserted")
