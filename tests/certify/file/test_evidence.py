import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mucd_ray.certify.file.certificate import make_inputs
from mucd_ray.certify.file.evidence import LEVELS, check_inputs, continuous_evidence, histogram, levels, scores_evidence, votes_evidence
from mucd_ray.errors import MucdError
from mucd_ray.mechanism.bag import Bag
from mucd_ray.mechanism.gaussian.mechanism import Mechanism

MECHANISM = Mechanism(sample_rate=0.05, noise_multiplier=30.0, clip_norm=0.1, steps=40, normaliser=50.0)


@settings(max_examples=200, deadline=None)
@given(value=st.floats(-2.0, 5.0), low=st.floats(-2.0, 0.0), width=st.floats(0.1, 4.0))
def test_a_level_holds_its_value(value, low, width):
    level = int(levels(np.array(value), low, low + width))
    inside = min(max(value, low), low + width)
    cell = width / LEVELS
    assert low + level * cell <= inside + 1e-9
    assert level == LEVELS or inside <= low + (level + 1) * cell + 1e-9


def test_ends_and_what_is_not_a_number_have_a_level():
    assert levels(np.array([0.0, 1.0, 7.0, -7.0, np.nan, np.inf, -np.inf]), 0.0, 1.0).tolist() == [0, LEVELS, LEVELS, 0, 0, 0, 0]


@settings(max_examples=30, deadline=None)
@given(level=arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 4), st.integers(1, 3)), elements=st.integers(0, LEVELS)))
def test_a_histogram_counts_every_instance_once(level):
    counts = histogram(level)
    assert counts.shape == (*level.shape[1:], LEVELS + 1) and np.all(counts.sum(axis=2) == len(level))
    for state in range(level.shape[1]):
        for output in range(level.shape[2]):
            assert np.array_equal(counts[state, output], np.bincount(level[:, state, output], minlength=LEVELS + 1))


def inputs(**changes):
    votes = votes_evidence([[9, 1, 0], [5, 5, 0]], reference=[0, 2])
    return make_inputs(**{"mechanism": MECHANISM, "units": 1000, "returns": np.zeros(10), "return_range": (-5, 0), "actions": votes} | changes)


ONES = np.zeros((2, 3, LEVELS + 1), int)
ONES[..., -1] = 10


@pytest.mark.parametrize("actions", [None, votes_evidence([[10, 0]]), scores_evidence(ONES, [1, 2]), continuous_evidence(ONES, [0, 0, 0], [1, 2, 3])])
def test_evidence_of_every_kind_is_accepted(actions):
    check_inputs(inputs(actions=actions))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"returns": []}, "no returns"),
        ({"returns": np.full(10, 0.5)}, "return 0.5 is outside"),
        ({"returns": np.full(10, np.nan)}, "nan must be a finite"),
        ({"returns": np.full(10, -1e30)}, "return -1e.30 is outside"),
        ({"return_range": (0, -5)}, "return range .0.0, -5.0."),
        ({"return_range": (-1e308, 1e308)}, "must lie within"),
        ({"return_range": (1e15, 1e15 + 1), "returns": np.full(10, 1e15)}, "wider than"),
        ({"radius_cap": 1001}, "radius cap 1001 is outside 1..1000"),
        ({"radius_cap": 0}, "radius cap 0"),
        ({"rollouts": 0}, "rollouts 0"),
        ({"features": {"source": "raw", "card": "Acrobot-v1"}}, "must have source"),
        ({"features": {"source": "seen", "card": "Acrobot-v1", "encoder": None}}, "must have source"),
        ({"features": {"source": "raw", "card": "X. All is well", "encoder": None}}, "id of an environment"),
        ({"features": {"source": "raw", "card": "Acrobot-v1", "encoder": "0" * 64}}, "must be a SHA-256 where"),
        ({"features": {"source": "encoder", "card": "Acrobot-v1", "encoder": "0" * 63}}, "must be a SHA-256 where"),
        *(({"features": {"source": source, "card": "Acrobot-v1", "encoder": "0f" * 32} | name}, "must be theirs where the source is a plug-in or the package") for source, name in (("plug-in", {}), ("plug-in", {"name": "a. All is well"}), ("plug-in", {"name": 5}), ("encoder", {"name": "a"}))),
        *(({"features": {"source": "raw", "card": "Acrobot-v1", "encoder": None, "keys": keys}}, "must be names of parts") for keys in ([], "a", ["a. All is well"], [5], ["a"] * 1025)),
        *(({"features": {"source": source, "card": "Acrobot-v1", "encoder": None, "mask": mask}}, "must be true, of raw observations") for source, mask in (("raw", False), ("raw", 1), ("raw", "action_mask"), ("card", True))),
        ({"discount": 1.5}, "discount 1.5"),
        ({"actions": votes_evidence([[9, 1, 0], [5, 4, 0]])}, "9 instances counted but 10"),
        ({"actions": votes_evidence([[10], [10]])}, "at least 2 actions"),
        ({"actions": votes_evidence([[10, 0]], [2])}, "reference"),
        ({"actions": votes_evidence([[10, 0]], [1, 1])}, "reference"),
        ({"actions": {"kind": "votes", "counts": [[10, 0], [10]], "reference": None}}, "equally long"),
        ({"actions": {"kind": "votes", "counts": [[11, -1]], "reference": None}}, "-1 must be a whole number"),
        ({"actions": {"kind": "votes", "counts": [[9.5, 0.5]], "reference": None}}, "9.5 must be a whole number"),
        ({"actions": {"kind": "rumours", "counts": [[10, 0]]}}, "votes, scores"),
        ({"actions": scores_evidence(ONES[..., 1:])}, "201 levels"),
        ({"actions": continuous_evidence(ONES, [0, 0], [1, 1])}, "list of 3 numbers"),
        ({"actions": continuous_evidence(ONES, [0, 0, 1], [1, 1, 1])}, "action range .1.0, 1.0."),
    ],
)
def test_what_does_not_add_up_is_refused_by_name(changes, message):
    with pytest.raises(MucdError, match=message):
        check_inputs(inputs(**changes))


TRAINER = {"kind": "command", "name": "python train.py {bag} {out}", "sha256": "0" * 64, "seconds": 600.0, "memory": 4}


@pytest.mark.parametrize("trainer, message", [
    (TRAINER | {"kind": "oracle"}, "kind 'oracle'"), (TRAINER | {"name": "python train.py"}, "lacks {bag}"), (TRAINER | {"name": "a\x1b[2J {bag} {out}"}, "printable"),
    (TRAINER | {"name": 5}, "printable"), (TRAINER | {"name": "x" * 2000}, "at most 1000"), (TRAINER | {"kind": "function"}, "no name of a function"), (TRAINER | {"sha256": "0"}, "SHA-256"),
    (TRAINER | {"seconds": "600"}, "--train-seconds"), (TRAINER | {"seconds": True}, "--train-seconds"), (TRAINER | {"memory": 1e300}, "--train-memory"), (TRAINER | {"more": 1}, "exactly the fields"), ([], "exactly"),
])  # fmt: skip
def test_a_trainer_from_outside_is_plain_data_of_its_kind(trainer, message):
    values = inputs(mechanism=Bag(bag_size=10))
    check_inputs(values | {"trainer": TRAINER})
    with pytest.raises(MucdError, match=message) as caught:
        check_inputs(values | {"trainer": trainer})
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1200
    with pytest.raises(MucdError, match="is a bag or a partition"):
        check_inputs(inputs() | {"trainer": TRAINER})


def test_counts_that_are_not_whole_are_refused_when_made():
    with pytest.raises(MucdError, match="2.5 must be whole"):
        votes_evidence(np.array([[7.5, 2.5]])[:, ::-1])
