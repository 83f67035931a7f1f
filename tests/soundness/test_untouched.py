"""Whatever one unit is: bags and parts without it are, bit for bit, what they were. Datasets D and D' at distance 1 are written to disk, and read as any user's."""

import json

import gymnasium as gym
import h5py
import numpy as np
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from minari.serialization import serialize_space

from mucd_ray.data.environments.declared import DeclaredCard
from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.errors import MucdError
from mucd_ray.learn.learner import Learner
from mucd_ray.learn.neighbours import Nearest
from mucd_ray.learn.problem import Problem, action_shape
from mucd_ray.learn.scores import components_of
from mucd_ray.learn.streams import Streams
from mucd_ray.learn.trainers.built_in import Fit, fit_policies
from mucd_ray.learn.trainers.parts import CONTENT, units_by_part
from mucd_ray.learn.trainers.recorded import Recorded
from mucd_ray.learn.units import make_units
from mucd_ray.mechanism.partition import Partition

OBSERVATIONS = {
    "float32": gym.spaces.Box(-np.inf, np.inf, (2,), np.float32),
    "float64": gym.spaces.Box(-np.inf, np.inf, (2,), np.float64),
    "bytes": gym.spaces.Box(0, 255, (2,), np.uint8),
    "int64": gym.spaces.Box(-(2**62), 2**62, (2,), np.int64),
    "categories": gym.spaces.MultiDiscrete([4, 3], start=[-1, 0]),
    "parts": gym.spaces.Dict(place=gym.spaces.Box(-np.inf, np.inf, (1,), np.float32), sign=gym.spaces.Discrete(2)),
}
ACTIONS = {
    "discrete": gym.spaces.Discrete(3, start=1),
    "joint": gym.spaces.MultiDiscrete([2, 3]),
    "components": gym.spaces.MultiDiscrete([30, 40]),
    "continuous": gym.spaces.Box(-2.0, 2.0, (2,), np.float32),
    "whole": gym.spaces.Box(-(2**62), 2**62, (1,), np.int64),
}
DTYPES = ("float16", "float32", "float64", "int8", "uint8", "int16", "int64", "uint64", "bool", ">f4", ">i2")
EXTREME = (0.0, -0.0, 1.0, 3.4e38, -3.4e38, 1e300, 5e-324, 2.0**53 + 2, np.nan, np.inf)
CLEAN = 5


def episode(rng, observations, actions, length):
    """What an honest contributor stores: sampled from the spaces, with numbers that lose digits in other types."""
    def sampled(space, count):
        values = np.stack([space.sample() for _ in range(count)])
        # Whole numbers that become another float32 by way of float64.
        return values if not isinstance(space, gym.spaces.Box) or space.dtype.kind != "i" else 2**60 + rng.integers(0, 2**20, values.shape) * 2**38 + 2**36 + 1

    seen = {key: sampled(space, length + 1) for key, space in observations.items()} if isinstance(observations, gym.spaces.Dict) else sampled(observations, length + 1)
    return {"observations": seen, "actions": sampled(actions, length), "rewards": rng.normal(size=length) * 1e8, "key": int(rng.integers(3))}


def stored(folder, observations, actions, episodes):
    """Minari's layout, written by hand: nothing here looks at what is stored."""
    data = folder / "d-v0" / "data"
    data.mkdir(parents=True, exist_ok=True)
    with h5py.File(data / "main_data.hdf5", "w") as file:
        for number, values in enumerate(episodes):
            group = file.create_group(f"episode_{number}")
            length = len(values["rewards"])
            for name in ("actions", "rewards"):
                group[name] = values[name]
            for path, part in values["observations"].items() if isinstance(values["observations"], dict) else [("", values["observations"])]:
                group[f"observations/{path}" if path else "observations"] = part
            group["terminations"], group["truncations"] = np.zeros(length, bool), np.eye(1, length, length - 1, dtype=bool)[0]
            if values["key"] is not None:
                group.attrs["who"] = values["key"]
    metadata = {
        "dataset_id": "d-v0", "minari_version": "0.5.4", "data_format": "hdf5", "total_episodes": len(episodes), "total_steps": sum(len(values["rewards"]) for values in episodes),
        "observation_space": serialize_space(observations), "action_space": serialize_space(actions),
    }
    (data / "metadata.json").write_text(json.dumps(metadata))
    return load_dataset("d-v0", folder, source_key="who")


@st.composite
def poison(draw, like):
    """An episode in place of `like`, or beside it: in other types, with extreme numbers, of another length, a copy of others."""
    def retyped(array, extreme):
        with np.errstate(all="ignore"):
            array = array.astype(np.dtype(draw(st.sampled_from((array.dtype.str, *DTYPES)))))
            if extreme and array.dtype.kind == "f":
                array.flat[draw(st.integers(0, array.size - 1))] = draw(st.sampled_from(EXTREME))
        return array

    length = draw(st.integers(1, len(like["rewards"])))
    seen = like["observations"]
    return {
        "observations": {key: retyped(part[: length + 1], draw(st.booleans())) for key, part in seen.items()} if isinstance(seen, dict) else retyped(seen[: length + 1], draw(st.booleans())),
        "actions": retyped(like["actions"][:length], draw(st.booleans())), "rewards": retyped(like["rewards"][:length], draw(st.booleans())),
        "key": draw(st.sampled_from((None, 0, 1, 7, -1))),
    }


def as_learned(dataset, unit):
    """(problem, units of built-in learners, units of trainers from outside, their spaces)."""
    card = DeclaredCard.of(dataset).raw().one_hot()
    seen, made, (actions, discrete) = card.as_seen(dataset), card.make(), action_shape(dataset.action_space)
    problem = Problem(learner=Learner(algorithm="bc", hidden=(4,), optimiser="adam", learning_rate=0.01), inputs=card.width, actions=actions, discrete=discrete, components=components_of(dataset.action_space))
    return problem, make_units(seen, card, problem, unit), Recorded.of(seen, unit), (made.observation_space, made.action_space)


def untouched(before, after, kept, place, unit):
    """Pairs (unit of D, the same unit of D'), in the order of D."""
    if unit == "trajectory":
        return kept
    if unit == "transition":
        lengths = np.diff(before.trajectory_starts)
        return [(before.trajectory_starts[old] + row, after.trajectory_starts[new] + row) for old, new in kept for row in range(lengths[old])]
    removed = set(range(before.trajectories)) - {old for old, _ in kept}
    old_sources, new_sources = {int(before.sources[old]) for old in removed}, {int(after.sources[place])}
    pairs = {(int(before.sources[old]), int(after.sources[new])) for old, new in kept}
    return sorted((old, new) for old, new in pairs if old not in old_sources and new not in new_sources)


def content(units, index):
    """All that a built-in learner gets of one unit."""
    rows = slice(units.starts[index], units.starts[index] + units.lengths[index])
    return [(name, array.dtype.str, array.shape[1:], array[rows].tobytes()) for name in CONTENT if len(array := getattr(units, name))]


def given_bag(recorded, indices, spaces):
    """All that a trainer from outside gets."""
    values = vars(recorded.bag(np.array(indices, np.int64), *spaces)).items()
    return [(name, value.dtype.str, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else (name, repr(value)) for name, value in values]


def check_parts(before, after, pairs):
    """Parts without a touched unit have the same units in the same order."""
    same, partition = dict(pairs), Partition(parts=4)
    for old, new in zip(units_by_part(partition, before), units_by_part(partition, after)):
        if set(old) <= same.keys() and set(new) <= set(same.values()):
            assert [same[unit] for unit in old] == new.tolist()


def check_neighbours(before, after, states):
    """Votes of all units, nearest first: without the touched one they stand in the same order."""
    def without_one(votes):
        return {tuple(votes), *(tuple(np.delete(votes, place)) for place in range(len(votes)))}

    for old, new in zip(*(Nearest(units).votes_at(states, len(units)) for units in (before, after))):
        assert without_one(old) & without_one(new)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(spaces=st.tuples(st.sampled_from(list(OBSERVATIONS.values())), st.sampled_from(list(ACTIONS.values()))), data=st.data())
def test_bags_parts_and_neighbours_without_a_changed_unit_are_bit_for_bit_the_same(tmp_path_factory, spaces, data):
    folder = tmp_path_factory.getbasetemp() / "untouched"
    for space in spaces:
        space.seed(1)
    rng = np.random.default_rng(data.draw(st.integers(0, 3)))
    clean = [episode(rng, *spaces, length) for length in (3, 1, 4, 2, 3)]
    place, inserted = data.draw(st.integers(0, CLEAN - 1)), data.draw(st.booleans())
    poisoned = [*clean[:place], data.draw(poison(clean[data.draw(st.integers(0, CLEAN - 1))])), *clean[place + (not inserted) :]]
    before = stored(folder, *spaces, clean)
    try:
        after = stored(folder, *spaces, poisoned)
    except MucdError:
        assume(False)  # D' ranges over what is accepted
    kept = [(old, old + (inserted and old >= place)) for old in range(CLEAN) if inserted or old != place]
    for unit in ("trajectory", "transition", "source"):
        (problem, units, recorded, seen), (_, new_units, new_recorded, new_seen) = as_learned(before, unit), as_learned(after, unit)
        pairs = untouched(before, after, kept, place, unit)
        olds, news = ([int(unit) for unit in side] for side in zip(*pairs)) if pairs else ([], [])
        assert news == sorted(news), "others change their order"
        assert [content(units, old) for old in olds] == [content(new_units, new) for new in news]
        assert given_bag(recorded, olds, seen) == given_bag(new_recorded, news, new_seen)
        for ours, theirs in ((units, new_units), (recorded, new_recorded)):
            check_parts(ours, theirs, pairs)
        if olds and unit == "trajectory":
            policies = [
                fit_policies(problem=problem, fit=Fit(steps=2, batch=4), units=of, bags=[np.array(bag)], instances=[7], streams=Streams(b"u" * 32)) for of, bag in ((units, olds), (new_units, news))
            ]
            assert all(policies[0][name].numpy().tobytes() == policies[1][name].numpy().tobytes() for name in policies[0])
        if problem.discrete and not problem.components and unit == "trajectory":
            check_neighbours(units, new_units, np.zeros((1, problem.inputs), np.float32))
