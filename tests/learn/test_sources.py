"""Sources as units: what they hold follows from content and keys alone; every poisoning of tiny datasets; trained on as one long trajectory each."""

from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import permutations, product
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from problems import clipped_sum, problem, random_parameters, released

from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.errors import MucdError
from mucd_ray.learn.learner import LocalUpdate
from mucd_ray.learn.trainers.built_in import rows_of
from mucd_ray.learn.trainers.parts import units_by_part
from mucd_ray.learn.units import Units, make_units
from mucd_ray.mechanism.bag import Bag
from mucd_ray.mechanism.partition import Partition

CARD = SimpleNamespace(features=lambda observations: observations.astype(np.float32), reward_scale=1.0)


def asked(algorithm="dqn", **update):
    return problem(algorithm, inputs=1, actions=2, **update)


def dataset(trajectories) -> OfflineDataset:
    """Of (key, rewards) in the order of the file; an observation tells the return so far, so that rows of different trajectories differ."""
    rewards = [np.array(rewards, float) for _, rewards in trajectories]
    ends = np.concatenate([np.arange(len(part)) == len(part) - 1 for part in rewards])
    observations = np.concatenate([np.cumsum(part) for part in rewards])[:, None]
    return OfflineDataset.from_arrays(
        observations=observations, next_observations=observations + 1, actions=np.zeros(len(ends), int), rewards=np.concatenate(rewards), terminations=ends,
        truncations=~ends & False, action_space=gymnasium.spaces.Discrete(2), observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64),
        source_keys=[key for key, _ in trajectories],
    )


def sources(trajectories) -> Units:
    return make_units(dataset(trajectories), CARD, asked(), "source")


def contents(units: Units) -> list[tuple]:
    """Of every unit all that a learner reads."""
    return [
        tuple(getattr(units, name)[start : start + length].tobytes() for name in ("features", "next_features", "actions", "rewards", "keeps", "ends"))
        for start, length in zip(units.starts, units.lengths)
    ]


MIXED = [("b", [1, 2]), (None, [7]), ("a", [3]), ("b", [5, 5, 5]), (None, [7]), ("a", [2, 2])]


def test_trajectories_with_a_key_are_one_source_and_each_without_is_its_own():
    data, units = dataset(MIXED), sources(MIXED)
    assert data.sources.tolist() == [0, 1, 2, 0, 3, 2] and data.count("source") == len(units) == 4
    assert units.lengths.tolist() == [5, 1, 3, 1]
    for source, returns in enumerate(([3, 15], [7], [3, 4], [7])):
        rows = slice(units.starts[source], units.starts[source] + units.lengths[source])
        whole = np.split(units.rewards[rows], np.flatnonzero(units.ends[rows])[:-1] + 1)
        assert sorted(part.sum() for part in whole) == returns and (units.keeps[rows] == ~units.ends[rows]).all()
        assert all(np.array_equal(np.cumsum(part), features) for part, features in zip(whole, np.split(units.features[rows, 0], np.flatnonzero(units.ends[rows])[:-1] + 1)))
    with pytest.raises(MucdError, match="read without a source key"):
        make_units(OfflineDataset.from_arrays(**{**vars_of(data), "source_keys": None}), CARD, asked(), "source")
    with pytest.raises(MucdError, match="1 source keys for 6 trajectories"):
        OfflineDataset.from_arrays(**{**vars_of(data), "source_keys": ["a"]})


def vars_of(data: OfflineDataset) -> dict:
    return {name: value for name, value in vars(data).items() if name not in ("sources", "declared_actions", "imported_by")}


def test_fingerprints_tell_who_is_from_where_and_are_as_ever_without_keys():
    data = dataset(MIXED)
    plain = OfflineDataset.from_arrays(**vars_of(data))
    assert plain.fingerprint() == OfflineDataset.from_arrays(**vars_of(dataset([("z", rewards) for _, rewards in MIXED]))).fingerprint() != data.fingerprint()
    renamed = [(key and key.upper(), rewards) for key, rewards in MIXED]
    assert dataset(renamed).fingerprint() == data.fingerprint() != dataset([*MIXED[:-1], ("b", [2, 2])]).fingerprint()


def test_the_order_of_the_file_and_other_sources_move_nobody():
    rng, before = np.random.default_rng(0), contents(sources(MIXED))
    partition = Partition(unit="source", parts=3)

    def of_parts(units):
        return [[contents(units)[unit] for unit in part] for part in units_by_part(partition, units)]

    parts = of_parts(sources(MIXED))
    for _ in range(20):
        shuffled = [MIXED[index] for index in rng.permutation(len(MIXED))]
        assert Counter(contents(sources(shuffled))) == Counter(before)
        assert of_parts(sources(shuffled)) == parts
    longer = contents(sources([("new", [9]), *MIXED, ("new", [1])]))
    assert Counter(longer) - Counter(before) == Counter(longer[:1]) and len(longer) == 5
    # Equal rows that are cut into other trajectories are another content.
    assert contents(sources([("a", [1, 1]), ("a", [1, 1])])) != contents(sources([("a", [1, 1, 1, 1])]))


def test_trajectories_below_the_least_return_take_no_part_and_the_source_stays_a_unit():
    least = replace(asked(), learner=replace(asked().learner, local=LocalUpdate(min_return=5.0)))
    units = make_units(dataset([("a", [1, 1]), ("b", [1]), ("a", [9]), ("c", [0, 9])]), CARD, least, "source")
    assert len(units) == 3 and units.lengths.tolist() == [1, 0, 2]
    assert units.rewards[units.starts[0]] == 9 and units.rewards[units.starts[2] :].tolist() == [0, 9]


def test_the_best_share_is_of_the_trajectories_of_the_bag():
    units = sources([("a", [1]), ("b", [2, 2]), ("a", [9, 9]), ("b", [8]), ("c", [100])])
    assert sorted(units.rewards[rows_of(units, np.array([1, 0]), 0.5)]) == [8, 9, 9]
    assert sorted(units.rewards[rows_of(units, np.array([0]), 0.5)]) == [9, 9]
    assert sorted(units.rewards[rows_of(units, np.array([0, 1]))]) == [1, 2, 2, 8, 9, 9]
    assert sorted(units.rewards[rows_of(units, np.array([2, 2, 0]), 0.5)]) == [100, 100]
    assert not len(rows_of(units, np.zeros(0, np.int64), 0.5))


# Every poisoning of tiny datasets: the law of what a learner is given, through files, keys and filters, against the bound.

CLEAN = [("a", [1]), ("b", [2]), ("a", [3, 1]), ("c", [2]), ("d", [4]), ("c", [0])]
NEW = [[1], [2], [3, 1], [4]]


def poisoned():
    """Every dataset that an attacker of one source makes of CLEAN: a new source of one or two trajectories, one source removed, emptied of a trajectory, extended, or replaced."""
    for count in (1, 2):
        for rewards in product(NEW, repeat=count):
            yield [*CLEAN, *(("e", part) for part in rewards)]
            yield [(None, part) for part in rewards] + CLEAN
    for key in "abcd":
        others = [entry for entry in CLEAN if entry[0] != key]
        yield others
        for rewards in NEW:
            yield [(key, rewards), *others]
            yield [*CLEAN, (key, rewards)]
            # A trajectory of his under somebody else's key, beside his own: two sources changed.
            yield [*CLEAN, (key, rewards), ("e", [5])]
    yield CLEAN[1:]
    yield [("a", [1]), ("a", [2]), *CLEAN[2:]]


def law(trajectories, size: int, top_share: float) -> dict[tuple, Fraction]:
    """Distribution of what the learner of a bag reads, over all bags of exactly `size` sources in all orders."""
    units = sources(trajectories)
    bags = list(permutations(range(len(units)), size))
    found = Counter()
    for bag in bags:
        # The order of a bag is random, and decides among trajectories of equal return.
        read = sorted(np.split(np.arange(len(units.rewards)), np.flatnonzero(units.ends) + 1), key=lambda rows: tuple(units.rewards[rows]))
        chosen = set(rows_of(units, np.array(bag), top_share).tolist())
        found[tuple(tuple(units.rewards[rows]) for rows in read if len(rows) and rows[0] in chosen)] += 1
    return {what: Fraction(count, len(bags)) for what, count in found.items()}


def changes(before: Units, after: Units) -> tuple[int, int]:
    ours, theirs = Counter(contents(before)), Counter(contents(after))
    return (theirs - ours).total(), (ours - theirs).total()


@pytest.mark.parametrize("size,top_share", [(1, 1.0), (2, 1.0), (2, 0.5)])
def test_no_poisoning_of_a_tiny_dataset_takes_more_than_the_bound(size, top_share):
    """By Neyman and Pearson: of all events of probability p under D the least probable one under D' holds the smallest likelihood ratios."""
    bag, clean, tight = Bag(unit="source", bag_size=size), law(CLEAN, size, top_share), False
    for trajectories in poisoned():
        inserted, removed = changes(sources(CLEAN), sources(trajectories))
        assert inserted + removed <= 3
        other, p, q = law(trajectories, size, top_share), 0.0, 0.0
        for what in sorted(clean, key=lambda what: other.get(what, 0) / clean[what]):
            p, q = p + float(clean[what]), q + float(other.get(what, 0))
            bound = bag.lower(np.array([p]), 4, inserted, removed)[0]
            assert q >= bound - 1e-12
            tight |= 0 < q < bound + 1e-6
    assert tight


def test_no_poisoning_of_a_tiny_dataset_reaches_more_parts_than_sources():
    partition = Partition(unit="source", parts=4)

    def of_parts(units):
        return [[contents(units)[unit] for unit in part] for part in units_by_part(partition, units)]

    clean, worst = of_parts(sources(CLEAN)), 0
    for trajectories in poisoned():
        reached = sum(before != after for before, after in zip(clean, of_parts(sources(trajectories))))
        assert reached <= sum(changes(sources(CLEAN), sources(trajectories)))
        worst = max(worst, reached)
    assert worst >= 2


# Under noise.


@pytest.mark.parametrize("engine", ["torch", "fused"])
def test_a_source_adds_one_clipped_vector(engine):
    """Bit for bit that of one long trajectory of the same rows, of which at most the cap take part: all that holds of trajectories holds of sources."""
    rng = np.random.default_rng(3)
    data = [(key, rng.integers(0, 5, rng.integers(1, 9)).tolist()) for key in rng.permutation([*"aaaabbbccd", None, None])]
    units, ask = sources(data), asked("bc", cap=6, local_steps=2)
    as_trajectories = Units(unit="trajectory", **units.arrays() | {"ends": np.zeros(0, bool)})
    plan = {"sample_rate": 0.5, "engine": engine}
    assert np.array_equal(released(ask, units, range(3), **plan), released(ask, as_trajectories, range(3), **plan))
    # Without a cap: which rows of a longer one take part is drawn by its place among the others.
    ask, flat = asked("bc", local_steps=2), random_parameters(ask, rng)
    for source in {key for key, _ in data if key}:
        less = sources([entry for entry in data if entry[0] != source])
        whole, without = (clipped_sum(engine, ask, flat, some, 0.01) for some in (units, less))
        assert 0 < np.linalg.norm(whole - without) <= 0.01 * (1 + 1e-5)


def test_units_of_sources_say_where_trajectories_end():
    units = sources(MIXED)
    for ends in (np.zeros(0, bool), units.ends[:-1], ~units.ends, units.ends.astype(int)):
        with pytest.raises(MucdError, match="ends of trajectories"):
            Units(unit="source", **units.arrays() | {"ends": ends})
    with pytest.raises(MucdError, match="ends of trajectories"):
        Units(unit="trajectory", **units.arrays())
