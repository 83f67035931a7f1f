import copy
import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mucd_ray.certify.certificate import content_hash, make_certificate, make_inputs, read_certificate, round_down, verify
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


def forge(change, refit=True):
    forged = copy.deepcopy(CERTIFICATE)
    change(forged)
    return verify(forged | {"sha256": content_hash(forged)} if refit else forged)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["inputs"].update(returns=[[x] for x in c["inputs"]["returns"]]),
        lambda c: c["inputs"].update(returns=[str(x) for x in c["inputs"]["returns"]]),
        lambda c: c["inputs"].update(votes=[[x + 0.5 for x in row] for row in c["inputs"]["votes"]]),
        lambda c: c["inputs"].update(note="certified up to r = 1000000"),
        lambda c: c["inputs"].update(radius_cap=2.5),
        lambda c: c["inputs"].update(radius_cap=True),
        lambda c: c["inputs"].update(units=10**30, radius_cap=10**30),
        lambda c: c["inputs"]["mechanism"].update(noise_multiplier=1e308),
        lambda c: c["inputs"]["mechanism"].update(steps=10**12),
        lambda c: c["results"].update(sound=1),
        lambda c: c["results"].update(extra=None),
        lambda c: c["results"]["action"].update(action=[bool(a) for a in c["results"]["action"]["action"]]),
        lambda c: c.update(summary="certified up to r = 1000000"),
        lambda c: c.update(assumptions=[]),
        lambda c: c.pop("context"),
    ],
)
def test_forged_certificates_with_a_fitting_hash_do_not_verify(change):
    assert forge(change)


def test_json_that_says_two_things_is_refused(tmp_path):
    text = json.dumps(CERTIFICATE)
    for forged in ('{"claim": ["Any r is certified."],' + text[1:], text.replace('"units": 1000', '"units": 5000000, "units": 1000'), text.replace("0.001", "NaN", 1)):
        (tmp_path / "c.json").write_text(forged)
        with pytest.raises(MucdError, match="not JSON"):
            read_certificate(tmp_path / "c.json")


def test_claimed_numbers_are_rounded_down():
    assert [round_down(x) for x in (123.45678, -123.45678, 0.0, 1e-9, 250.0)] == ["123.456", "-123.457", "0", "0.000000001", "250"]
    nothing = make_certificate(inputs(mechanism=dataclasses.replace(MECHANISM, noise_multiplier=0.3)), assumptions=[], context={})
    assert "at 0 % of 4 states" in nothing["claim"][2] and "no radius keeps" in nothing["claim"][1]


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
