import copy
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mucd_ray.certify.certificate import content_hash, make_certificate, make_inputs, read_certificate, verify
from mucd_ray.errors import MucdError
from mucd_ray.mechanism.mechanism import Mechanism

MECHANISM = Mechanism(sample_rate=0.05, noise_multiplier=30.0, clip_norm=0.1, steps=40, normaliser=50.0)


def inputs(**changes):
    rng = np.random.default_rng(4)
    top = rng.binomial(100, [0.99, 0.9, 0.6, 1.0])
    values = {
        "mechanism": MECHANISM,
        "units": 1000,
        "votes": np.stack([top, 100 - top, 0 * top], axis=1),
        "returns": rng.normal(-90, 20, 100).clip(-500, 0),
        "return_range": (-500, 0),
    }
    return make_inputs(**values | changes)


CERTIFICATE = make_certificate(inputs(), assumptions=["secret seed"], context={"dataset": {"sha256": "0" * 64}})


def leaves(value, path=()):
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [leaf for key, part in items for leaf in leaves(part, (*path, key))]
    return [path]


def test_a_certificate_survives_a_file_and_verifies(tmp_path):
    path = tmp_path / "certificate.json"
    path.write_text(json.dumps(CERTIFICATE))
    assert verify(read_certificate(path)) == []
    policy = CERTIFICATE["results"]["policy"]
    bounds = dict(zip(policy["curve"]["radius"], policy["curve"]["bound"], strict=True))
    assert np.all(np.diff(policy["curve"]["bound"]) <= 1e-9)
    assert policy["keeps"]["0.5"]["bound"] == bounds[policy["keeps"]["0.5"]["radius"]]
    assert CERTIFICATE["results"]["action"]["per_state"]["radius"][2] in (None, 0, 1, 2)
    assert "99.9 %" in CERTIFICATE["claim"][1]


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_hand_edit_is_found(data):
    edited = copy.deepcopy(CERTIFICATE)
    path = data.draw(st.sampled_from(leaves(CERTIFICATE)))
    where = edited
    for key in path[:-1]:
        where = where[key]
    old = where[path[-1]]
    where[path[-1]] = old + "!" if isinstance(old, str) else 1 if old in (None, []) else (not old) if isinstance(old, bool) else old * 1.001 + 1
    assert verify(edited)
    if path[0] in ("results", "claim"):
        # Even with a hash that was made to fit, the numbers do not follow from the evidence.
        edited["sha256"] = content_hash(edited)
        assert verify(edited)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"eta": 1.5}, "eta 1.5"),
        ({"radius_cap": 1001}, "radius cap 1001"),
        ({"returns": np.zeros(99)}, "100 instances voted but 99"),
        ({"returns": np.full(100, 1.0)}, "return 1.0 is outside"),
        ({"threat": "theft"}, "threat 'theft'"),
        ({"accountant": "magic"}, "accountant 'magic'"),
        ({"votes": [[50, 50, 0], [50, 49, 0]]}, "votes"),
    ],
)
def test_evidence_that_does_not_fit_is_refused_and_never_verifies(changes, message):
    with pytest.raises(MucdError, match=message):
        make_certificate(inputs(**changes), assumptions=[], context={})
    edited = copy.deepcopy(CERTIFICATE) | {"inputs": inputs(**changes)}
    assert verify(edited)[0].startswith("inputs: ")


@pytest.mark.parametrize("threat", ["insert", "remove", "substitute"])
def test_other_threats_are_named_and_no_weaker_than_they_should_be(threat):
    other = make_certificate(inputs(threat=threat), assumptions=[], context={})
    ours, theirs = (c["results"]["policy"]["keeps"]["0.5"]["radius"] for c in (CERTIFICATE, other))
    assert theirs >= ours if threat != "substitute" else theirs <= ours
    assert verify(other) == [] and {"insert": "inserted", "remove": "removed", "substitute": "replaced"}[threat] in other["claim"][0]


def test_published_accounting_is_marked_unsound():
    unsound = make_certificate(inputs(accountant="published"), assumptions=[], context={})
    assert unsound["claim"][0].startswith("NOT SOUND") and unsound["results"]["sound"] is False


def test_without_votes_only_the_policy_level_is_certified():
    continuous = make_certificate(inputs(votes=np.zeros((0, 0), int)), assumptions=[], context={})
    assert "action" not in continuous["results"] and verify(continuous) == []


@pytest.mark.parametrize("content", ["{", "[]", '{"format": "other"}', "{}"])
def test_a_file_that_is_no_certificate_is_refused(tmp_path, content):
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(MucdError, match="c.json"):
        read_certificate(tmp_path / "c.json")
    with pytest.raises(MucdError, match="missing.json"):
        read_certificate(tmp_path / "missing.json")
