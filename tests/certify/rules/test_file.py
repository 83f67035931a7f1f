"""Vote rules in a certificate: what follows from its votes, for every poisoning of a tiny case, and evidence of anybody's."""

import copy
import itertools

import numpy as np
import pytest

from mucd_ray.certify.file.certificate import content_hash, make_certificate, make_inputs, verify
from mucd_ray.certify.file.evidence import exact_evidence
from mucd_ray.certify.rules import RULES
from mucd_ray.certify.rules.run_off import preferences_of
from mucd_ray.errors import MucdError
from mucd_ray.mechanism.partition import Partition

PARTS, ACTIONS, WINDOW = 6, 3, 2


def certificate(name, never=2, threat="symmetric", spread=1):
    rng = np.random.default_rng(4)
    episodes = []
    for seed in range(4):
        scores = rng.normal(size=(PARTS, 5, ACTIONS)) + [1.5, 0.0, -1.0]
        episode = {"seed": seed, "return": float(seed), "votes": scores.argmax(2).T.tolist()}
        episodes.append(episode | ({"preferences": preferences_of(scores).tolist()} if RULES[name].scored else {}))
    rule = {"name": name, "window": WINDOW if RULES[name].windowed else None, "never": never, "actions": ACTIONS, "episodes": episodes}
    inputs = make_inputs(mechanism=Partition(parts=PARTS, spread=spread), units=40, returns=[1.0, 2.0], return_range=(0, 9), threat=threat, rule=rule)
    return make_certificate(inputs, assumptions=[], context={})


def decide(name, votes, spread):
    return RULES[name].decide(votes, None, ACTIONS, WINDOW if RULES[name].windowed else None, Partition(parts=PARTS, spread=spread).reached())[0]


@pytest.mark.parametrize("name", RULES)
def test_the_file_says_what_follows_from_its_votes(name):
    made = certificate(name)
    assert verify(made) == []
    found, text = made["results"]["rule"], " ".join(made["claim"])
    assert f"Vote rule {name}" in text and "Forbidden action 2" in text and any("goes the same way again" in line for line in made["assumptions"])
    assert found["curve"]["bound"][0] == found["unpoisoned_mean"] == 1.5 and found["curve"]["unchanged"][0] == 1
    assert all(a >= b for a, b in zip(found["never"]["share"], found["never"]["share"][1:]))
    assert found["never"]["episode_radius"] == [min(radii) for radii in found["never"]["radius"]]


@pytest.mark.parametrize("name,spread,threat", [("parl", 1, "symmetric"), ("tparl", 1, "substitute"), ("dparl", 1, "symmetric"), ("fa", 2, "symmetric"), ("parl", 2, "insert")])
def test_no_poisoning_of_units_breaks_a_radius(name, spread, threat):
    """Every choice of r units' buckets (two for each that is replaced), whose policies vote for one action at every step, or as if for another until then."""
    made = certificate(name, threat=threat, spread=spread)
    found, reached, each = made["results"]["rule"], Partition(parts=PARTS, spread=spread).reached(), 2 if threat == "substitute" else 1
    for episode, radii, kept in zip(made["inputs"]["rule"]["episodes"], found["radius"], found["never"]["radius"]):
        votes = np.array(episode["votes"])
        before = decide(name, votes, spread)
        assert [r == -1 for r in kept] == (before == 2).tolist()
        for r in range(1, 3):
            for buckets in itertools.combinations(range(PARTS), min(PARTS, r * each)):
                for first, then in itertools.product(range(ACTIONS), repeat=2):
                    poisoned = votes.copy()
                    owned = np.unique(reached[list(buckets)])
                    poisoned[:, owned] = np.array([first, then, first, then, then])[:, None]
                    after = decide(name, poisoned, spread)
                    assert (after == before)[np.array(radii) >= r].all() and (after != 2)[np.array(kept) >= r].all()


@pytest.mark.parametrize("path,value,complaint", [
    (("name",), "copa", "a name among"), (("name",), [1], "a name among"), (("window",), 3, "window 3"), (("never",), 3, "below 3"), (("actions",), 10**6, "actions 1000000"), (("more",), 1, "exactly the keys"),
    (("episodes",), [], "not empty"), (("episodes", 0, "votes", 0), [0] * 5, "equally long"), (("episodes", 0, "votes", 0, 0), 3, "an action below 3"), (("episodes", 0, "return"), 10.0, "outside the declared range"),
    (("episodes", 0, "preferences", 0, 0, 1), 0, "no fewer than vote for it"), (("episodes", 0, "preferences", 0, 1, 1), 1, "no fewer than vote for it"), (("episodes", 0, "seed"), -1, "whole number"),
])  # fmt: skip
def test_evidence_of_anybodys_is_refused_in_one_line(path, value, complaint):
    made = certificate("roe")
    part = made["inputs"]["rule"]
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    made["sha256"] = content_hash(made)
    assert len(found := verify(made)) == 1 and complaint in found[0]


def test_what_contradicts_the_rest_of_the_file_is_refused():
    episodes = certificate("parl")["inputs"]["rule"]["episodes"]
    rule = {"name": "parl", "window": None, "never": 2, "actions": ACTIONS, "episodes": episodes}
    common = {"mechanism": Partition(parts=PARTS), "units": 40, "returns": [1.0, 2.0], "return_range": (0, 9)}

    def refused(rule, actions=None) -> str:
        with pytest.raises(MucdError) as caught:
            make_certificate(make_inputs(**common, rule=rule, actions=actions), assumptions=[], context={})
        return str(caught.value)

    assert "seeds of their own" in refused(rule | {"episodes": [episodes[0], episodes[0] | {"return": 9.0}]})
    assert "must be those of the actions in the same certificate" in refused(rule, exact_evidence([[3, 3]]))
    assert "voted on as one" in refused(rule, exact_evidence([[6, 0, 6]], components=(1, 2)))
    assert verify(make_certificate(make_inputs(**common, rule=rule, actions=exact_evidence([[3, 2, 1]])), assumptions=[], context={})) == []


def test_a_changed_vote_shows():
    made = copy.deepcopy(certificate("parl"))
    made["inputs"]["rule"]["episodes"][1]["votes"][2] = [2] * PARTS
    made["sha256"] = content_hash(made)
    assert any("results.rule" in text for text in verify(made))
