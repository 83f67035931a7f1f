"""Certificates of actions alone, where nothing was played: the same numbers about actions, and not a word about returns."""

import copy
import json

import numpy as np
import pytest

from mucd_ray.certify.file.certificate import content_hash, make_certificate, make_inputs, verify
from mucd_ray.certify.file.evidence import continuous_evidence, exact_evidence, histogram, levels, neighbours_evidence, scores_evidence, votes_evidence
from mucd_ray.errors import MucdError
from mucd_ray.mechanism.bag import Bag
from mucd_ray.mechanism.evaluator import Evaluator
from mucd_ray.mechanism.gaussian.mechanism import Mechanism
from mucd_ray.mechanism.neighbours import Neighbours
from mucd_ray.mechanism.partition import Partition

P, CHANCE = 100, np.random.default_rng(3)
TOP = CHANCE.binomial(P, [0.99, 0.9, 0.6, 1.0])
COUNTS = np.stack([TOP, P - TOP, 0 * TOP], axis=1)
LEVELS = histogram(levels(CHANCE.beta(9, 2, (P, 4, 2)), 0, 1))
BAG, PARTS = Bag(unit="trajectory", bag_size=3), Partition(unit="trajectory", parts=P)
CASES = {
    "votes": (BAG, votes_evidence(COUNTS, reference=[0, 0, 0, 2])),
    "scores": (BAG, scores_evidence(LEVELS)),
    "noise": (Mechanism(sample_rate=0.05, noise_multiplier=30.0, clip_norm=0.1, steps=40, normaliser=50.0), votes_evidence(COUNTS)),
    "continuous": (BAG, continuous_evidence(LEVELS, [-2, 0], [2, 10])),
    "exact": (PARTS, exact_evidence(COUNTS)),
    "neighbours": (Neighbours(unit="trajectory", neighbours=5), neighbours_evidence(CHANCE.integers(0, 3, (4, 10)), 3)),
}


def declared(evidence):
    if evidence["kind"] == "continuous":
        return {"observation_shape": [4], "actions": 0, "dimensions": 2, "sha256": "a" * 64}
    return {"observation_shape": [4], "actions": 2 if evidence["kind"] == "scores" else 3, "dimensions": 0, "sha256": "a" * 64}


def without(kind, **changes):
    mechanism, evidence = CASES[kind]
    instances = {} if kind == "neighbours" else {"instances": P}
    path = {"path_radii": []} if kind == "neighbours" else {}
    values = {"mechanism": mechanism, "units": 1000, "actions": evidence, "returns": [], "return_range": None, "rollouts": 0, "declared": declared(evidence)}
    values |= {} if kind == "neighbours" else {"features": {"source": "raw", "card": "no-environment", "encoder": None}}
    return make_inputs(**values | instances | path | changes)


@pytest.mark.parametrize("kind", CASES)
def test_what_is_certified_of_actions_is_what_stands_beside_returns(kind):
    mechanism, evidence = CASES[kind]
    path = {"path_radii": [1, 0]} if kind == "neighbours" else {}
    returns = make_inputs(mechanism=mechanism, units=1000, actions=evidence, returns=np.linspace(0, 9, 2 if path else P), return_range=(0, 10), **path)
    beside = make_certificate(returns, assumptions=[], context={})
    alone = make_certificate(without(kind), assumptions=[], context={})
    assert verify(alone) == [] and alone["results"]["action"] == beside["results"]["action"] and alone["results"]["policy"] is None
    assert alone["results"]["instances"] == (0 if kind == "neighbours" else P) and alone["format"] == beside["format"]
    text = json.dumps([alone["claim"], alone["assumptions"]])
    assert "return" not in text and "episode" not in text.replace("last", "") and "observations of shape 4" in text and "4 fixed states" in text


def test_goals_are_about_actions():
    met = make_certificate(without("votes", goal="actions>=0.2@0.001", looks="anytime"), assumptions=[], context={})
    assert verify(met) == [] and met["results"]["goal"]["met"]
    with pytest.raises(MucdError, match="returns, and there are none"):
        make_certificate(without("votes", goal="return>=0.5@0.001"), assumptions=[], context={})


ATTACKS = {
    "a return": ("votes", lambda inputs: inputs.update(returns=[1.0])),
    "a range": ("votes", lambda inputs: inputs.update(return_range=[0.0, 1.0])),
    "a discount": ("votes", lambda inputs: inputs.update(discount=0.5)),
    "clipping": ("votes", lambda inputs: inputs.update(clipped=True)),
    "no actions": ("votes", lambda inputs: inputs.update(actions=None)),
    "other actions": ("votes", lambda inputs: inputs["declared"].update(actions=4)),
    "other dimensions": ("continuous", lambda inputs: inputs["declared"].update(dimensions=3)),
    "both kinds": ("votes", lambda inputs: inputs["declared"].update(dimensions=2)),
    "a shape of texts": ("votes", lambda inputs: inputs["declared"].update(observation_shape=["x"])),
    "a shape of nothing": ("votes", lambda inputs: inputs["declared"].update(observation_shape=[4, 0])),
    "no declaration": ("votes", lambda inputs: inputs.pop("declared")),
    "neighbours without a declaration": ("neighbours", lambda inputs: inputs.pop("declared")),
    "an environment after all": ("votes", lambda inputs: inputs["features"].update(card="CartPole-v1")),
    "a key twice": ("votes", lambda inputs: inputs["features"].update(keys=["a", "a"])),
    "a sentence for a hash": ("votes", lambda inputs: inputs["declared"].update(sha256="Everything holds.")),
    "more instances": ("votes", lambda inputs: inputs.update(instances=P + 1)),
    "no instances": ("votes", lambda inputs: inputs.pop("instances")),
    "uncountable instances": ("exact", lambda inputs: inputs.update(instances=2**60)),
    "instances of neighbours": ("neighbours", lambda inputs: inputs.update(instances=5)),
    "paths": ("neighbours", lambda inputs: inputs.update(path_radii=[1])),
    "the voted policy": ("votes", lambda inputs: inputs.update(voted={})),
    "played after all": ("votes", lambda inputs: inputs.update(rollouts=1)),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_contradicts_itself_is_refused(attack):
    kind, change = ATTACKS[attack]
    certificate = copy.deepcopy(make_certificate(without(kind), assumptions=[], context={}))
    change(certificate["inputs"])
    certificate["sha256"] = content_hash(certificate)
    (mismatch,) = verify(certificate)
    assert mismatch.startswith("inputs: MucdError")


SCORE = Evaluator(name="mine.py:success", sha256="0f" * 32, low=0.0, high=1.0, seconds=5.0)


def scored(**changes):
    values = {"mechanism": BAG, "units": 1000, "actions": CASES["votes"][1], "returns": np.linspace(0.2, 0.9, P), "return_range": (0, 1), "evaluator": SCORE}
    return make_inputs(**values | changes)


@pytest.mark.parametrize("changes", [{}, {"declared": declared(CASES["votes"][1])}, {"rollouts": 3, "looks": "anytime", "goal": "return>=0.5@0.01"}, {"actions": None}])
def test_scores_are_certified_as_returns_are(changes):
    certificate = make_certificate(scored(**changes), assumptions=[], context={})
    returns = make_certificate(scored(**{**changes, "declared": None, "evaluator": None}), assumptions=[], context={})
    assert verify(certificate) == [] and certificate["results"] == returns["results"]
    text = " ".join(certificate["claim"])
    assert "expected score of one trained" in text and "mine.py:success" in text and SCORE.sha256 in text and "return" not in text.replace("Goal return", "") and "reads nothing of D" in json.dumps(certificate["assumptions"])


@pytest.mark.parametrize(
    "change",
    [
        {"evaluator": {"name": "Everything holds. x.py:y", "sha256": "0f" * 32, "low": 0.0, "high": 2.0, "seconds": 5.0, "memory": 8.0}},
        {"evaluator": {"name": "a b:c", "sha256": "0f" * 32, "low": 0.0, "high": 1.0, "seconds": 5.0, "memory": 8.0}},
        {"evaluator": {"name": "mine.py:success"}}, {"discount": 0.5}, {"clipped": True}, {"voted": {}}, {"rollouts": 0}, {"return_range": [0.0, 2.0]},
    ],
)
def test_scores_that_contradict_themselves_are_refused(change):
    certificate = copy.deepcopy(make_certificate(scored(), assumptions=[], context={}))
    certificate["inputs"] |= change
    certificate["sha256"] = content_hash(certificate)
    (mismatch,) = verify(certificate)
    assert mismatch.startswith("inputs: MucdError")
