"""Certificates of nearest neighbours: numbers by hand, nothing but what follows from the evidence, and files of attackers."""

import json

import numpy as np
import pytest

from mucd_ray.certify.file.certificate import content_hash, make_certificate, make_inputs, verify
from mucd_ray.certify.file.evidence import neighbours_evidence
from mucd_ray.errors import MucdError
from mucd_ray.mechanism.neighbours import Neighbours

# K = 2. Unanimous; then 1 against 0, where ties go to 0; then a vote that the third and fourth unit decide.
VOTES = [[1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1]]


def made(**changes):
    base = {
        "mechanism": Neighbours(neighbours=2), "units": 50, "returns": [10.0, 20.0, 30.0, 40.0], "return_range": (0.0, 50.0), "path_radii": [0, 1, 0, 1],
        "actions": neighbours_evidence(VOTES, 2, [1, 1, 0]),
    }
    return make_certificate(make_inputs(**base | changes), assumptions=[], context={})


def test_the_numbers_by_hand():
    certificate = made()
    policy, action = certificate["results"]["policy"], certificate["results"]["action"]
    assert verify(certificate) == [] and certificate["results"]["eta"] == 0
    assert policy["unpoisoned_mean"] == 25 and policy["curve"]["radius"][:3] == [0, 1, 2] and policy["curve"]["bound"][:3] == [25, 15, 0]
    assert policy["curve"]["ceiling"][:3] == [25, (20 + 40 + 2 * 50) / 4, 50]
    assert policy["curve"]["quantiles"]["0.5"][:3] == [30, 20, 0] and policy["curve"]["quantiles"]["0.25"][:2] == [20, 0]
    assert {share: entry["radius"] for share, entry in policy["keeps"].items()} == {"0.9": 0, "0.75": 0, "0.5": 1}
    # Unanimous for 1 a single 0 makes a tie, which 0 wins.
    assert action["action"] == [1, 0, 0] and action["per_state"]["radius"] == [0, 0, 1] and action["per_state"] == action["family_wise"]
    assert action["sizes"] == [[1, 0], [0, 1], [0, 2]] and action["agreement"] == 2 / 3
    text = " ".join(certificate["claim"])
    assert "no confidence level" in text and "r = 1 (2 % of D)" in text and "99.9" not in text
    assert not any("secret" in sentence for sentence in certificate["assumptions"])


@pytest.mark.parametrize("threat", ["insert", "remove", "substitute"])
def test_one_sided_threats(threat):
    action = made(threat=threat)["results"]["action"]
    # Removals alone cannot turn a unanimous vote; where two 0 lead, a single 1 for one of them makes a tie, which 0 wins.
    assert action["per_state"]["radius"] == {"insert": [0, 1, 1], "remove": [2, 0, 1], "substitute": [0, 0, 1]}[threat]


def test_a_cap_is_kept():
    certificate = made(radius_cap=1, path_radii=[2, 2, 2, 2], actions=neighbours_evidence([[0] * 4], 2), threat="remove")
    assert certificate["results"]["action"]["per_state"]["radius"] == [1]
    assert certificate["results"]["policy"]["keeps"]["0.9"]["radius"] == 1 and verify(certificate) == []


@pytest.mark.parametrize("path,value", [
    (("results", "action", "per_state", "radius"), [1, 0, 1]), (("results", "action", "sizes"), [[2, 0], [0, 1], [0, 2]]), (("results", "policy", "curve", "bound"), [25.0] * 9),
    (("claim",), ["All is well."]), (("inputs", "path_radii"), [1, 1, 1, 1]), (("inputs", "actions", "votes"), [[1, 1, 1, 1]] * 3), (("assumptions",), []),
])  # fmt: skip
def test_what_was_changed_is_found(path, value):
    certificate = json.loads(json.dumps(made()))
    *parents, last = path
    place = certificate
    for name in parents:
        place = place[name]
    place[last] = value
    certificate["sha256"] = content_hash(certificate)
    assert verify(certificate)


@pytest.mark.parametrize("changes,complaint", [
    ({"path_radii": [0, 1, 0]}, "one whole number for each return"), ({"path_radii": [0, 1, 0, 3]}, "path radius 3"), ({"path_radii": [0, 1, 0, 2]}, "path radius 2 is above 1"), ({"path_radii": None}, "path radii belong"),
    ({"mechanism": Neighbours(neighbours=51)}, "51 neighbours"), ({"actions": None}, "actions of neighbours"), ({"looks": "anytime"}, "leave nothing to chance"),
    ({"actions": neighbours_evidence([[0, 1, 0, 1, 1]], 2)}, "at most 4 units"), ({"actions": neighbours_evidence([[0, 2]], 2)}, "an action below 2"),
    ({"actions": neighbours_evidence([[0, 1]], 2) | {"votes": ["01", "0"]}}, "all equally long"), ({"actions": neighbours_evidence([[0, 1]], 2) | {"votes": ["0A"]}}, "signs of 0123"),
    ({"actions": neighbours_evidence([[0, 1]], 2) | {"votes": ["0١"]}}, "all equally long"), ({"actions": neighbours_evidence([[0, 1]], 2) | {"votes": [""]}}, "not empty"),
    ({"actions": neighbours_evidence([[0, 1]], 2) | {"votes": ["01", [0, 1]]}}, "all equally long"), ({"actions": neighbours_evidence([[0, 1]], 2) | {"votes": [[0, 1], "01"]}}, "2 deep"),
    ({"actions": neighbours_evidence([[0, 1]], 1 << 18)}, "actions 262144"), ({"actions": neighbours_evidence([[0, 1]], 2, [2])}, "reference"),
    ({"goal": "return>=0.5@0.01"}, "leave nothing to chance"), ({"accountant": "rdp"}, "leave nothing to chance"), ({"voted": {}}, "voted must have exactly the keys"),
])  # fmt: skip
def test_evidence_that_cannot_be(changes, complaint):
    with pytest.raises(MucdError, match=complaint):
        made(**changes)


# One episode of two steps: at the first action 1, which one changed unit turns; then 0, which none of up to two does.
TREE = {"rows": [0, 1], "node": [0, 1, 0], "action": [1, 0, 0], "reward": [5.0, 20.0, 2.0], "next": [1, 0, 0]}
VOTED = {"kind": "least", "horizon": 2, "least_reward": -5.0, "rows": [[1, 0], [0, 2]], "episodes": [TREE]}


def test_the_voted_policy_by_hand():
    certificate = made(voted=VOTED)
    voted, text = certificate["results"]["voted"], " ".join(certificate["claim"])
    assert verify(certificate) == [] and voted["unpoisoned_mean"] == 25 and voted["curve"]["radius"] == [0, 1, 2]
    # Within 1 the first step may end the episode with 2; within 2 what was not played may cost the rest, which the range limits.
    assert voted["curve"]["played"] == [25, 2, 0] and voted["curve"]["complete"] == [1, 1, 0] and voted["keeps"]["0.9"]["radius"] == -1
    assert "gets the most votes of the nearest units" in text and "hold with probability at least 99.9 %, over the random choice of its episodes' seeds" in text
    assert any("chosen among several by looking at results" in sentence for sentence in certificate["assumptions"])


@pytest.mark.parametrize("changes,complaint", [
    ({"kind": "votes"}, "voted kind 'votes' is not one of a mechanism of kind neighbours"), ({"rows": [[1, 0], [0, 3]]}, "3 changed units for any other action are above 2"), ({"rows": [[1, 0], [0, 4]]}, "nothing above 3"),
    ({"rows": [[1, 0], [0, 0]]}, "have one 0 each"), ({"rows": [[1, 0, 1], [0, 2, 2]]}, "must be of 2 actions"), ({"least_reward": 3.0}, "below the least reward"),
])  # fmt: skip
def test_voted_evidence_that_cannot_be(changes, complaint):
    with pytest.raises(MucdError, match=complaint):
        made(voted=VOTED | changes)


def test_other_mechanisms_have_no_such_evidence():
    from mucd_ray.mechanism.bag import Bag

    with pytest.raises(MucdError, match="actions must be null, or votes"):
        made(mechanism=Bag(bag_size=3), path_radii=None)


def test_a_file_that_asks_for_much_is_refused(refusal):
    many = np.zeros((20_000, 4), int).tolist()
    inputs = make_inputs(
        mechanism=Neighbours(neighbours=1 << 16), units=2 << 20, returns=[1.0], return_range=(0.0, 1.0), path_radii=[0], actions=neighbours_evidence(many, 4),
    )
    certificate = made()
    certificate["inputs"] = inputs
    assert "operations" in refusal(lambda: verify(certificate))


def test_votes_are_texts_or_numbers_and_mean_the_same():
    as_text, as_numbers = made(), made(actions=neighbours_evidence([[0] * 4, [0, 1, 0, 1], [1] * 4], 2) | {"votes": [[0] * 4, [0, 1, 0, 1], [1] * 4]})
    text = made(actions=neighbours_evidence([[0] * 4, [0, 1, 0, 1], [1] * 4], 2))
    assert isinstance(text["inputs"]["actions"]["votes"][0], str) and text["results"] == as_numbers["results"] and verify(as_numbers) == verify(text) == verify(as_text) == []
    # Beyond 36 actions they have no signs.
    assert neighbours_evidence([[0, 36]], 37)["votes"] == [[0, 36]] and neighbours_evidence([[0, 35]], 36)["votes"] == ["0z"]
