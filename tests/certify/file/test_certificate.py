import copy
import dataclasses
import functools
import json
import math
import os
import re
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mucd_ray.certify.file import certificate as certificate_file
from mucd_ray.certify.file.certificate import content_hash, make_certificate, make_inputs, read_certificate, verify
from mucd_ray.certify.file.claim import claim_sentences
from mucd_ray.certify.file.evidence import continuous_evidence, exact_evidence, histogram, levels, scores_evidence, votes_evidence
from mucd_ray.certify.file.results import compute_results
from mucd_ray.errors import MucdError
from mucd_ray.mechanism.gaussian.mechanism import Mechanism
from mucd_ray.mechanism.partition import Partition
from mucd_ray.mechanism.work import TooMuchWork

MECHANISM = Mechanism(sample_rate=0.05, noise_multiplier=30.0, clip_norm=0.1, steps=40, normaliser=50.0)


TOP = np.random.default_rng(4).binomial(100, [0.99, 0.9, 0.6, 1.0])
VOTES = votes_evidence(np.stack([TOP, 100 - TOP, 0 * TOP], axis=1), reference=[0, 0, 0, 2])


def samples(outputs):
    """Values in [0, 1] of 100 instances at 4 states, [100, 4, outputs]."""
    return np.random.default_rng(5).beta([[[9]], [[7]], [[2]], [[30]]], 2, (4, 100, outputs)).transpose(1, 0, 2)


EVIDENCE = {
    "votes": VOTES,
    "scores": scores_evidence(histogram(levels(np.concatenate([samples(1), 1 - samples(1)], axis=2), 0, 1)), reference=[0, 0, 1, 0]),
    "components": votes_evidence(np.stack([TOP, 100 - TOP, 50 + 0 * TOP, 30 + 0 * TOP, 20 + 0 * TOP, 100 + 0 * TOP], axis=1), [[0, 0, 0], [0, 1, 0], [0, 0, 0], [1, 2, 0]], components=(2, 3, 1)),
    "scores of components": scores_evidence(histogram(levels(np.concatenate([samples(1), 1 - samples(1), samples(2)], axis=2), 0, 1)), reference=[[0, 0], [0, 1], [1, 0], [0, 0]], components=(2, 2)),
    "continuous": continuous_evidence(histogram(levels(samples(2), 0, 1)), [-2, 0], [2, 10]),
}


def inputs(**changes):
    rng = np.random.default_rng(4)
    values = {
        "mechanism": MECHANISM,
        "units": 1000,
        "actions": VOTES,
        "returns": rng.normal(-90, 20, 100).clip(-500, 0),
        "return_range": (-500, 0),
        "radius_cap": 12,
    }
    return make_inputs(**values | changes)


CERTIFICATES = {kind: make_certificate(inputs(actions=actions), assumptions=[], context={}) for kind, actions in EVIDENCE.items()}
CERTIFICATES["anytime"] = make_certificate(inputs(looks="anytime", goal="return>=0.5@0.005", rollouts=3, discount=0.9), assumptions=[], context={})
CERTIFICATE = make_certificate(inputs(), assumptions=["secret seed"], context={"dataset": {"sha256": "0" * 64}})


@pytest.mark.parametrize("kind", CERTIFICATES)
def test_every_kind_verifies_and_its_results_hang_together(kind):
    certificate = CERTIFICATES[kind]
    assert verify(certificate) == []
    curve = certificate["results"]["policy"]["curve"]
    bounds = np.array([curve["quantiles"]["0.1"], curve["quantiles"]["0.25"], curve["quantiles"]["0.5"]])
    assert np.all(np.diff(bounds, axis=0) >= 0) and np.all(np.diff(bounds, axis=1) <= 0)
    assert np.all(np.diff(curve["ceiling"]) >= -1e-9) and np.all(np.array(curve["ceiling"]) >= curve["bound"])
    assert curve["ceiling"][0] >= certificate["results"]["policy"]["unpoisoned_mean"] >= max(route[0] for route in curve["bound_by_route"].values())
    assert set(curve["bound_by_route"]) == {"order-statistic", "dkw", "hoeffding", "empirical-bernstein", "betting"}
    action = certificate["results"]["action"]
    for scope in ("per_state", "family_wise"):
        if kind == "continuous":
            widths = np.array(action[scope]["curve"]["median_half_width"])
            assert np.all(np.diff(widths) >= 0) and widths[-1] <= 0.5
            low, high = (np.array(action[scope]["interval"][end]) for end in ("low", "high"))
            assert np.all(low <= action["median"]) and np.all(action["median"] <= high) and np.all(np.diff(low, axis=0) <= 0)
        else:
            shares = action[scope]["curve"]
            assert np.all(np.array(shares["certified_accuracy"]) <= shares["stability_ratio"]) and np.all(np.diff(shares["stability_ratio"]) <= 0)


def test_looking_at_any_time_costs_a_little_and_is_said():
    fixed, anytime = CERTIFICATES["votes"], CERTIFICATES["anytime"]
    assert anytime["results"]["eta"] == fixed["results"]["eta"] / 2 and "looked at" in " ".join(anytime["claim"]) and "looked at" not in " ".join(fixed["claim"])
    for name, bounds in anytime["results"]["policy"]["curve"]["bound_by_route"].items():
        # The betting bound holds at every number of instances as it is.
        assert (bounds[0] == fixed["results"]["policy"]["curve"]["bound_by_route"][name][0]) == (name == "betting")
    assert anytime["results"]["goal"]["met"] == (anytime["results"]["goal"]["certified"] >= 0.5) and "mean of 3 episodes" in " ".join(anytime["claim"])


@pytest.mark.parametrize("source,words", [("raw", "raw observations of ALE/Freeway-v5"), ("privileged", "out of the controller"), ("encoder", "encoder from outside"), ("plug-in", "the features arm of a plug-in from outside"), (None, None)])
def test_the_claim_names_what_policies_see(source, words):
    features = source and {"source": source, "card": "ALE/Freeway-v5", "encoder": "0f" * 32 if source in ("encoder", "plug-in") else None} | ({"name": "arm"} if source == "plug-in" else {})
    certificate = make_certificate(inputs(features=features), assumptions=[], context={})
    assert verify(certificate) == [] and [words in text for text in certificate["claim"] if text.startswith("Features: ")] == [True] * (source is not None)


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
    assert "99.9 %" in CERTIFICATE["claim"][-1]


def verify_edited(edited, results=functools.cache(lambda inputs: json.dumps(compute_results(json.loads(inputs))))):
    """`verify`, which computes the results of the same evidence only once: that this gives the same numbers again is tested above."""
    with mock.patch("mucd_ray.certify.file.certificate.compute_results", lambda inputs: json.loads(results(json.dumps(inputs)))):
        return verify(edited)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("kind", CERTIFICATES)
def test_any_hand_edit_is_found(kind, data):
    edited = copy.deepcopy(CERTIFICATES[kind])
    path = data.draw(st.sampled_from(leaves(edited)))
    where = edited
    for key in path[:-1]:
        where = where[key]
    old = where[path[-1]]
    where[path[-1]] = old + "!" if isinstance(old, str) else 1 if old in (None, [], {}) else (not old) if isinstance(old, bool) else old * 1.001 + 1
    assert verify_edited(edited)
    if path[0] in ("results", "claim"):
        # Even with a hash that was made to fit, the numbers do not follow from the evidence.
        edited["sha256"] = content_hash(edited)
        assert verify_edited(edited)


def test_what_verify_says_of_long_values_is_short():
    """A mismatch quotes what the file says, which may be as long as the file."""
    long = "x" * 10**6
    for where in ({"results": CERTIFICATE["results"] | {"sound": long}}, {"claim": [long]}, {"format": long}, {long: 1}, {"inputs": CERTIFICATE["inputs"] | {"threat": long}}):
        mismatches = verify(CERTIFICATE | where)
        assert mismatches and all(len(text) < 3000 for text in mismatches)


BAG = {"kind": "bag", "unit": "trajectory", "draws": "fixed", "bag_size": 3, "sample_rate": None}
PARTITION = {"kind": "partition", "unit": "trajectory", "parts": 3}


def forge(change, refit=True):
    forged = copy.deepcopy(CERTIFICATE)
    change(forged)
    return verify(forged | {"sha256": content_hash(forged)} if refit else forged)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["inputs"].update(returns=[[x] for x in c["inputs"]["returns"]]),
        lambda c: c["inputs"].update(returns=[str(x) for x in c["inputs"]["returns"]]),
        lambda c: c["inputs"]["actions"].update(counts=[[x + 0.5 for x in row] for row in c["inputs"]["actions"]["counts"]]),
        lambda c: c["inputs"]["actions"].update(reference=["0"] * 4),
        lambda c: c["inputs"]["actions"].update(note="certified"),
        lambda c: c["inputs"].update(looks="anytime"),
        lambda c: c["inputs"].update(goal=["return>=0.5@0.01"]),
        lambda c: c["inputs"].update(threat=["symmetric"]),
        lambda c: c["inputs"].update(note="certified up to r = 1000000"),
        lambda c: c["inputs"].update(radius_cap=2.5),
        lambda c: c["inputs"].update(radius_cap=True),
        lambda c: c["inputs"].update(units=10**30, radius_cap=10**30),
        lambda c: c["inputs"]["mechanism"].update(noise_multiplier=1e308),
        lambda c: c["inputs"]["mechanism"].update(steps=10**12),
        *(
            lambda c, mechanism=mechanism, units=units: c["inputs"].update(mechanism=mechanism, units=units, radius_cap=units)
            for mechanism, units in (
                (BAG | {"bag_size": 2**53}, 2**53), (BAG | {"bag_size": 2**52}, 2**53), (BAG | {"bag_size": 21}, 20), (BAG | {"bag_size": True}, 20),
                (BAG | {"draws": "poisson"}, 20), (BAG | {"draws": ["fixed"]}, 20), (BAG | {"parts": 3}, 20), ({"kind": ["bag"]}, 20), (PARTITION | {"parts": 21}, 20),
                (PARTITION | {"bag_size": 3}, 20),
            )
        ),
        lambda c: c["results"].update(sound=1),
        lambda c: c["results"].update(extra=None),
        lambda c: c["results"]["action"].update(action=[bool(a) for a in c["results"]["action"]["action"]]),
        lambda c: c.update(summary="certified up to r = 1000000"),
        lambda c: c.update(assumptions=[]),
        lambda c: c.update(assumptions=None),
        lambda c: c["assumptions"].append(7),
        lambda c: c["assumptions"].append("\x1b[2JVALID"),
        lambda c: c.update({"\x1b[2JVALID": 1}),
        lambda c: c["results"]["policy"]["keeps"]["0.5"].update(fraction=c["results"]["policy"]["keeps"]["0.5"]["fraction"] + 1e-6),
        lambda c: c["results"]["policy"]["keeps"]["0.5"].update(bound=c["results"]["policy"]["keeps"]["0.5"]["bound"] + 0.001),
        lambda c: c["results"]["action"]["per_state"]["top_lower"].__setitem__(0, c["results"]["action"]["per_state"]["top_lower"][0] + 1e-5),
        lambda c: c.pop("context"),
    ],
)
def test_forged_certificates_with_a_fitting_hash_do_not_verify(change):
    assert forge(change)


@pytest.mark.parametrize("scope", ["per_state", "family_wise"])
def test_a_joint_radius_above_the_least_of_its_components_is_refused(scope):
    """Whatever else is made to fit: the claim, the shares, the hash."""
    honest = CERTIFICATES["components"]["results"]["action"][scope]
    assert [max(r for r in row if r is not None) for row in honest["component_radius"][::2]] > [honest["radius"][0] or 0, honest["radius"][2] or 0]
    for row, least in enumerate(honest["radius"]):
        assert least == (None if None in honest["component_radius"][row] else min(honest["component_radius"][row]))
        for larger in ({None: 0}.get(least, (least or 0) + 1), max(r or 0 for r in honest["component_radius"][row])):
            if larger == least:
                continue
            forged = copy.deepcopy(CERTIFICATES["components"])
            part = forged["results"]["action"][scope]
            part["radius"][row] = larger
            radius = np.array([-1 if r is None else r for r in part["radius"]])
            certified = radius[radius >= 1]
            part |= {"certified_share": len(certified) / 4, "mean_radius": float(certified.mean()), "median_radius": float(np.median(certified)), "max_radius": int(certified.max())} if len(certified) else {}
            forged["claim"] = claim_sentences(forged["inputs"], forged["results"])
            assert any(f"{scope}.radius[{row}]" in text for text in verify(forged | {"sha256": content_hash(forged)}))


@pytest.mark.parametrize("change, message", [
    ({"components": [2, 3, 2]}, "must hold the 7 values"), ({"components": [6]}, "instances? counted"), ({"components": [3, 2, 1]}, "instances? counted"), ({"components": [2, 4, 0]}, "at least one value each"),
    ({"components": [2, 3, True]}, "whole number"), ({"components": []}, "not empty"), ({"components": [[2, 3, 1]]}, "whole number"), ({"components": 6}, "lists of whole numbers"), ({"components": [2**52, 2**52]}, "at most|to 4,096"),
    ({"components": None}, "lists of whole numbers"), ({"reference": [0, 0, 0, 2]}, "2 deep"), ({"reference": [[0, 3, 0]] * 4}, "below how many it has"), ({"reference": [[0, 0]] * 4}, "one value of each of 3"), ({"kind": "exact"}, "all parts of a partition"),
    ({"counts": [[99, 1, 100, 0, 0, 99]] * 4}, "99 instances counted"),
])
def test_components_that_do_not_fit_are_refused(change, message):
    with pytest.raises(MucdError, match=message):
        compute_results(inputs(actions=EVIDENCE["components"] | change))


def test_components_go_with_no_voted_policy_and_no_other_evidence():
    assert any("voted must be left out" in text for text in verify(CERTIFICATE | {"inputs": inputs(actions=EVIDENCE["components"]) | {"voted": {}}}))
    with pytest.raises(MucdError, match="keys of its kind"):
        compute_results(inputs(actions=EVIDENCE["continuous"] | {"components": [1, 1]}))


def test_a_wide_return_range_leaves_no_room_to_forge_shares():
    """Bounds may differ by a share of the return range; what is no return must not profit from it."""
    wide = inputs(returns=np.random.default_rng(4).uniform(9e5, 1e6, 100), return_range=(0, 1e6), goal="return>=0.99@0.005")
    honest = make_certificate(wide, assumptions=[], context={})
    assert verify(honest) == [] and not honest["results"]["goal"]["met"]
    for path, amount in ((("goal", "certified"), 1e-3), (("policy", "keeps", "0.5", "fraction"), 1e-3), (("accounting", "discretisation_error"), -1e-3)):
        forged = copy.deepcopy(honest)
        where = forged["results"]
        for key in path[:-1]:
            where = where[key]
        where[path[-1]] += amount
        forged["claim"] = claim_sentences(forged["inputs"], forged["results"])
        assert verify(forged | {"sha256": content_hash(forged)})


def test_a_mean_that_hardly_earns_anything_leaves_no_room_to_forge_a_goal():
    returns = np.where(np.arange(400) < 200, 1e-9, 0.0)
    honest = make_certificate(inputs(returns=returns, return_range=(0, 1), actions=None, goal="return>=0.99@0.005"), assumptions=[], context={})
    forged = copy.deepcopy(honest)
    forged["results"]["goal"]["certified"] = 0.98999
    forged["claim"] = claim_sentences(forged["inputs"], forged["results"])
    assert verify(honest) == [] and verify(forged | {"sha256": content_hash(forged)})


def test_votes_whose_sum_overflows_are_no_votes_of_all_parts():
    """2049 values whose sum, in 64 bits, is 40."""
    counts = [[2**53, *[2**53] * 2047, 40]]
    assert np.array(counts).sum() == 40
    with pytest.raises(MucdError, match="no number above 4,294,967,296"):
        make_certificate(inputs(mechanism=Partition(unit="trajectory", parts=40), actions=exact_evidence(np.array(counts))), assumptions=[], context={})


def test_json_that_says_two_things_is_refused(tmp_path):
    text = json.dumps(CERTIFICATE)
    for forged in ('{"claim": ["Any r is certified."],' + text[1:], text.replace('"units": 1000', '"units": 5000000, "units": 1000'), text.replace("0.001", "NaN", 1)):
        (tmp_path / "c.json").write_text(forged)
        with pytest.raises(MucdError, match="not JSON"):
            read_certificate(tmp_path / "c.json")


@pytest.mark.parametrize(
    "features", [pytest.param("X86_V4 AVX512_ICL AVX512_SPR", marks=pytest.mark.slow), "X86_V3 X86_V4 AVX512_ICL AVX512_SPR"]
)
def test_a_certificate_made_here_verifies_on_a_processor_with_other_last_digits(tmp_path, features):
    # Where many steps amplify last digits: compared without a tolerance, its bounds differ.
    amplified = Mechanism(sample_rate=0.00698, noise_multiplier=0.778, clip_norm=0.1, steps=1631, normaliser=7.0)
    names = []
    for kind, certificate in (CERTIFICATES | {"amplified": make_certificate(inputs(mechanism=amplified), assumptions=[], context={})}).items():
        names.append(str(tmp_path / f"{kind}.json"))
        (tmp_path / f"{kind}.json").write_text(json.dumps(certificate))
    code = "import sys; from mucd_ray.certify.file.certificate import read_certificate, verify; print([verify(read_certificate(n)) for n in sys.argv[1:]])"
    environment = os.environ | {"NPY_DISABLE_CPU_FEATURES": features, "OPENBLAS_CORETYPE": "Haswell"}
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code, *names], capture_output=True, text=True, env=environment)
    assert result.stdout.strip() == str([[]] * len(names)), result.stdout + result.stderr


def test_claimed_numbers_are_rounded_to_the_safe_side_and_constants_not_at_all():
    low, high = -1234564.0, -900004.9
    returns = np.random.default_rng(4).normal(-950_000, 20_000, 100).clip(low, high)
    certificate = make_certificate(inputs(returns=returns, return_range=(low, high), clipped=True, discount=0.98765432, goal="absolute-return>=-1000000.7@0.005"), assumptions=[], context={})
    claim, policy = " ".join(certificate["claim"]), certificate["results"]["policy"]
    for words in (
        "below -1234564 counts as -1234564, and one above -900004.9 as -900004.9.", "least possible return -1234564.", "wanted is -1000000.7;", "discounted by 0.98765432 per step",
    ):
        assert words in claim
    half, curve = policy["keeps"]["0.5"], policy["curve"]
    at = curve["radius"].index(half["radius"])
    least, most, median = (float(number) for number in re.search(r"is at least (\S+); it is at most (\S+); .* an instance earns (\S+) or more", claim).groups())
    assert half["bound"] - 1 <= least <= half["bound"] and curve["ceiling"][at] <= most <= curve["ceiling"][at] + 1
    assert curve["quantiles"]["0.5"][at] - 1 <= median <= curve["quantiles"]["0.5"][at]


def test_nothing_certified_is_said():
    nothing = make_certificate(inputs(mechanism=dataclasses.replace(MECHANISM, noise_multiplier=0.3)), assumptions=[], context={})
    assert "at 0 % of 4 states" in nothing["claim"][2] and "no radius keeps" in nothing["claim"][1]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"eta": 1.5}, "eta 1.5"),
        ({"radius_cap": 1001}, "radius cap 1001"),
        ({"returns": np.zeros(99)}, "100 instances counted but 99"),
        ({"looks": "sometimes"}, "looks 'sometimes'"),
        ({"looks": "anytime", "returns": np.zeros(99), "actions": None}, "99"),
        ({"goal": "fame>=1@1"}, "goal 'fame"),
        ({"goal": "return>=0.5@0.2", "radius_cap": 100}, "r = 200, above 100"),
        ({"goal": "actions>=0.5@0.01", "actions": None}, "continuous"),
        ({"discount": 0.0}, "discount 0.0"),
        ({"rollouts": 0}, "rollouts 0"),
        ({"returns": np.full(100, 1.0)}, "return 1.0 is outside"),
        ({"threat": "theft"}, "threat 'theft'"),
        ({"accountant": "magic"}, "accountant 'magic'"),
        ({"actions": votes_evidence([[50, 50, 0], [50, 49, 0]])}, "99 instances counted but 100"),
    ],
)
def test_evidence_that_does_not_fit_is_refused_and_never_verifies(changes, message):
    with pytest.raises(MucdError, match=message):
        make_certificate(inputs(**changes), assumptions=[], context={})
    edited = copy.deepcopy(CERTIFICATE) | {"inputs": inputs(**changes)}
    assert verify(edited)[0].startswith("inputs: ")


def test_what_verify_spends_is_bounded_before_it_is_spent(tmp_path, monkeypatch):
    """A small file can ask for days: heavy mixtures, hundreds of radii. What is usual passes, and patience lifts the limit."""
    mechanism = {"kind": "gaussian", "unit": "transition", "sample_rate": 0.5, "noise_multiplier": 1e6, "clip_norm": 1.0, "steps": 10_000_000, "normaliser": 1.0}
    hostile = copy.deepcopy(CERTIFICATE)
    hostile["inputs"] |= {"mechanism": mechanism, "units": 10**9, "radius_cap": 10**9, "actions": None, "accountant": "rdp"}
    monkeypatch.setattr(certificate_file, "MOST_OPERATIONS", 1e8)
    with pytest.raises(TooMuchWork, match="--patience"):
        verify(hostile)
    assert verify(CERTIFICATE) == []
    monkeypatch.setattr(certificate_file, "MOST_OPERATIONS", 1e4)
    with pytest.raises(TooMuchWork, match="more than 1e\\+04 operations"):
        verify(CERTIFICATE)
    assert verify(CERTIFICATE, patience=1e5) == []
    monkeypatch.setattr(certificate_file, "MOST_BYTES", 1 << 20)
    (tmp_path / "c.json").write_text(json.dumps(CERTIFICATE) + " " * (1 << 20))
    with pytest.raises(MucdError, match="at most 1,048,576 are read"):
        read_certificate(tmp_path / "c.json")
    assert read_certificate(tmp_path / "c.json", patience=2) == CERTIFICATE


def test_numbers_beyond_doubles_are_refused_where_they_are(tmp_path):
    for text in ('{"x": 1e400}', '{"x": -1e999}'):
        (tmp_path / "c.json").write_text(text)
        with pytest.raises(MucdError, match="too large for a double"):
            read_certificate(tmp_path / "c.json")
    assert forge(lambda c: c["context"].update(far=math.inf), refit=False)[0].startswith("sha256: ")
    for change in (lambda c: c["inputs"]["returns"].__setitem__(0, 10**400), lambda c: c["inputs"]["mechanism"].update(clip_norm=10**400), lambda c: c["inputs"].update(eta=10**400)):
        (message,) = forge(change)
        assert "must be a finite number" in message and len(message) < 200


def test_a_weak_mechanism_with_a_billion_units_is_certified_up_to_the_largest_group():
    weak = Mechanism(sample_rate=1e-9, noise_multiplier=100.0, clip_norm=1.0, steps=1, normaliser=1.0)
    for threat, limit in (("insert", 10**8), ("substitute", 5 * 10**7)):
        certificate = make_certificate(inputs(mechanism=weak, units=10**9, radius_cap=10**9, threat=threat), assumptions=[], context={})
        assert certificate["results"]["policy"]["keeps"]["0.5"]["radius"] == limit and verify(certificate) == []
        assert certificate["results"]["action"]["per_state"]["max_radius"] == limit
        assert f"one of {limit} is a floor" in " ".join(certificate["claim"])
    assert "floor" not in " ".join(CERTIFICATE["claim"]).replace("floor of", "")


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
    policy_only = make_certificate(inputs(actions=None), assumptions=[], context={})
    assert policy_only["results"]["action"] is None and verify(policy_only) == []


@pytest.mark.parametrize("content", ["{", "[]", '{"format": "other"}', "{}"])
def test_a_file_that_is_no_certificate_is_refused(tmp_path, content):
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(MucdError, match="c.json"):
        read_certificate(tmp_path / "c.json")
    with pytest.raises(MucdError, match="missing.json"):
        read_certificate(tmp_path / "missing.json")


FOUL = [None, True, -1, 0, 1, 2**53, 2**63, 10**400, 0.5, -0.0, 5e-324, 1e-9, 1e100, 1.7e308, "", "votes", "\x1b[2J", [], [[]], [1.5], {}, {"kind": "votes"}]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_the_inputs_verify_answers(data):
    """Foul values anywhere in the inputs, with a hash that fits: mismatches in printable words, or a refusal to spend so much; never another exception."""
    forged = copy.deepcopy(CERTIFICATES[data.draw(st.sampled_from(list(CERTIFICATES)))])
    for _ in range(data.draw(st.integers(1, 2))):
        where = forged["inputs"]
        while True:
            key = data.draw(st.sampled_from(list(where) if isinstance(where, dict) else range(len(where))))
            inside = isinstance(where[key], dict | list) and len(where[key]) and data.draw(st.integers(0, 3))
            if not inside:
                break
            where = where[key]
        where[key] = copy.deepcopy(data.draw(st.sampled_from(FOUL)))
    forged["sha256"] = content_hash(forged)
    with mock.patch.object(certificate_file, "MOST_OPERATIONS", 3e8):
        try:
            mismatches = verify(forged)
        except TooMuchWork:
            return
    assert all(len(message) < 5000 for message in mismatches)
