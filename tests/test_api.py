"""The Python API does what the commands do: real runs on a real local Ray."""

import json
import subprocess
import sys

import numpy as np
import pytest

import mucd_ray
from mucd_ray.data.environments.cards import CARDS
from mucd_ray.mechanism.bag import Bag


@pytest.fixture(scope="module")
def summary(recordings, local_ray, tmp_path_factory):
    run = tmp_path_factory.mktemp("api") / "läufe"
    card = next(card for card in CARDS if card.env_id == "CartPole-v1")
    return mucd_ray.run(recordings["cartpole"], storage=str(run), environment=card, mechanism="bag", unit="trajectory", bag_size=3, instances=40, states=20, train_steps=50, hidden=(8,), trainer="bc", mirrored=False)


def test_a_run_loads_as_a_policy_that_acts_as_certified(summary):
    policy, certificate = mucd_ray.load(summary["run"]), json.loads(open(summary["certificate"]).read())
    action = certificate["results"]["action"]
    np.testing.assert_array_equal(policy.act(policy.states), action["action"])
    np.testing.assert_array_equal(policy.radius(policy.states), [-1 if radius is None else radius for radius in action["per_state"]["radius"]])
    assert policy.act(policy.states[3]) == action["action"][3] and policy.radius(policy.states[3]) == policy.radius(policy.states)[3]
    assert summary["instances"] == 40 and mucd_ray.verify(summary["run"]) == mucd_ray.verify(summary["certificate"]) == []


def test_the_same_evidence_from_elsewhere_gives_the_same_numbers(summary, tmp_path):
    own = json.loads(open(summary["certificate"]).read())
    inputs = own["inputs"]
    given = {"returns": inputs["returns"], "return_range": inputs["return_range"], "votes": inputs["actions"]["counts"], "mechanism": inputs["mechanism"], "units": inputs["units"]}
    found = mucd_ray.certify(**given, reference=inputs["actions"]["reference"], out=str(tmp_path / "mine"))
    # Betting takes the returns in an order that is drawn anew.
    for certificate in (own, found):
        policy = certificate["results"]["policy"]
        del policy["unpoisoned_mean_bound"]["betting"], policy["curve"]["bound_by_route"]["betting"]
        policy["unpoisoned_standard_error"] = round(policy["unpoisoned_standard_error"], 9)
    assert found["results"] == own["results"] and mucd_ray.verify(tmp_path / "mine") == []
    found = json.loads((tmp_path / "mine/certificate.json").read_text())
    assert mucd_ray.verify(found) == []
    assert "<html" in (tmp_path / "mine" / "report.html").read_text().lower()
    assert any("made elsewhere" in text for text in found["assumptions"])
    found["inputs"]["returns"][0] = 0.0
    assert mucd_ray.verify(found)
    with pytest.raises(mucd_ray.MucdError, match="has a certificate already"):
        mucd_ray.certify(**given, out=str(tmp_path / "mine"))


def test_votes_alone_certify_actions():
    both = mucd_ray.certify(**EVIDENCE)
    alone = mucd_ray.certify(votes=EVIDENCE["votes"], mechanism=EVIDENCE["mechanism"], units=1000)
    assert alone["results"]["action"] == both["results"]["action"] and alone["results"]["policy"] is None and mucd_ray.verify(alone) == []
    assert any("Nothing is said of other states" in sentence for sentence in alone["claim"]) and not any("return" in sentence.split("With which")[0] for sentence in alone["claim"])


def test_votes_on_several_components():
    given = {"votes": [[290, 10, 20, 280, 0], [150, 150, 300, 0, 0]], "components": (2, 3), "mechanism": EVIDENCE["mechanism"], "units": 1000}
    found = mucd_ray.certify(**given, reference=[[0, 1], [1, 0]])
    part = found["results"]["action"]["per_state"]
    assert found["results"]["instances"] == 300 and found["results"]["action"]["action"] == [[0, 1], [0, 0]] and found["results"]["action"]["agreement"] == 0.5 and mucd_ray.verify(found) == []
    assert part["radius"][0] == min(part["component_radius"][0]) > 0 and part["radius"][1] is None and part["component_radius"][1][1] > part["radius"][0]
    with_returns = mucd_ray.certify(**given, returns=[400.0] * 300, return_range=(0, 500))
    assert with_returns["results"]["action"]["per_state"] == {**part, "curve": part["curve"] | {"certified_accuracy": None}}


EVIDENCE = {"returns": [400.0] * 300, "return_range": (0, 500), "votes": [[290, 10]], "mechanism": Bag(unit="trajectory", bag_size=10), "units": 1000}


def test_returns_may_come_in_any_order():
    """Betting takes the instances one by one, and of coins that are sorted it would bet on every one."""
    coins = np.sort(np.random.default_rng(0).integers(0, 2, 1000))[::-1]
    certificate = mucd_ray.certify(**EVIDENCE | {"returns": coins, "return_range": (np.float32(0), np.float32(1)), "votes": None})
    assert certificate["results"]["policy"]["unpoisoned_mean_bound"]["betting"] < 0.5 and np.array_equal(np.sort(certificate["inputs"]["returns"]), coins[::-1]) and mucd_ray.verify(certificate) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"votes": [[1, 2], [3]]}, {"votes": [[289.5, 10.5]]}, {"votes": [[290, 11]]}, {"votes": [[300]]}, {"returns": []}, {"returns": [float("nan")] * 300}, {"returns": ["a"] * 300},
        {"units": 5}, {"units": 1000.5}, {"units": "1000"}, {"mechanism": {"kind": "x"}}, {"mechanism": 3}, {"mechanism": {"kind": "partition", "unit": "trajectory", "parts": 10**5000}}, {"return_range": (0, 1)}, {"return_range": None}, {"returns": None, "votes": None}, {"eta": "x"}, {"eta": 0},
        {"threat": "none"}, {"mechanism": {"kind": "neighbours", "unit": "trajectory", "neighbours": 3, "metric": "declared"}},
        # What a certificate says is what was given: 1.5 episodes are not one.
        {"rollouts": 1.5}, {"rollouts": True}, {"rollouts": None}, {"clipped": "no"}, {"clipped": None}, {"discount": "x"}, {"discount": None}, {"return_range": ("a", "b")}, {"return_range": (0, 10**400)},
        {"return_range": (None, 1)}, {"threat": ["symmetric"]}, {"band": {}}, {"accountant": None}, {"assumptions": ("one\ntwo",)}, {"assumptions": ("\x1b[31m",)}, {"assumptions": (1,)},
        {"assumptions": "abc"}, {"assumptions": None}, {"assumptions": ("\ud800",)}, {"out": ""}, {"out": 3}, {"out": "/proc/none"}, {"out": __file__}, {"out": "\0"}, {"out": "a" * 300}, {"out": "\ud800"},
        {"components": (2, 2)}, {"components": (3,)}, {"components": 2}, {"components": (2.0,)}, {"components": "2"}, {"components": (1, 1)}, {"components": (2, 0)}, {"components": (-2, 4)}, {"components": (10**5000,)},
        {"units": 10**5000}, {"rollouts": 10**5000}, {"discount": 10**5000}, {"votes": [[10**400, 10]]}, {"votes": np.array([[290 + 1j, 10]])}, {"votes": np.array([[None, None]])},
    ],
    ids=lambda wrong: "-".join([*wrong]),
)
def test_evidence_that_cannot_be_is_refused(refusal, wrong):
    refusal(lambda: mucd_ray.certify(**EVIDENCE | wrong))


def test_options_that_the_command_lacks_are_refused(refusal, recordings, tmp_path):
    import mucd_ray.service.runs.commands  # noqa: F401  what the first call imports is not what a refusal costs

    def tried(**options):
        return refusal(lambda: mucd_ray.run(recordings["cartpole"], storage=str(tmp_path / "run"), **options))

    assert "--bags-size" in tried(bags_size=3)
    assert "invalid int value: 'three'" in tried(bag_size="three")
    assert "top of a file" in tried(trainer=lambda bag, seed, device: None)
    assert "top of a file" in tried(trainer=json.JSONEncoder().encode)
    assert "card.json" in tried(environment=str(tmp_path / "card.json"))
    assert not (tmp_path / "run").exists()


def test_certifying_and_verifying_need_numpy_and_scipy_only():
    program = (
        "import sys, mucd_ray, mucd_ray.certify.action\n"
        f"certificate = mucd_ray.certify(returns=[400.0] * 300, return_range=(0, 500), mechanism={{'kind': 'bag', **{vars(EVIDENCE['mechanism'])}}}, units=1000)\n"
        "assert not mucd_ray.verify(certificate)\n"
        "assert not {'torch', 'ray', 'gymnasium', 'minari', 'matplotlib'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("wrong", [None, 3, [], b"x", {"a": print}, {1: {2}}, "\0", "a" * 300, "a" * 5000, "\ud800"], ids=lambda wrong: ascii(wrong)[:9])
def test_what_is_no_certificate_and_no_run_is_refused(refusal, wrong):
    import mucd_ray.service.serving.ensemble  # noqa: F401  what the first call imports is not what a refusal costs

    refusal(lambda: mucd_ray.verify(wrong))
    refusal(lambda: mucd_ray.load(wrong))


def test_what_is_said_of_a_partition_is_that_its_parts_are_trained_without_chance():
    """Exact votes are certain: beside them no instance may be called random."""
    parts = {"kind": "partition", "unit": "trajectory", "parts": 300}
    for given in (EVIDENCE, {**EVIDENCE, "returns": None}, {**EVIDENCE, "votes": None}):
        assumed = " ".join(mucd_ray.certify(**given | {"mechanism": parts})["assumptions"])
        assert "follows from the units of that part alone, deterministically" in assumed and "by the stated hash" in assumed and "policies of all parts" in assumed and "own secret randomness" not in assumed
        sampled = " ".join(mucd_ray.certify(**given)["assumptions"])
        assert "from its own secret randomness" in sampled and "determin" not in sampled


WRONG_OBSERVATIONS = [
    np.zeros((0, 4)), np.zeros((2, 3, 4)), [[1, 2, 3, 4], [1, 2, 3]], [10**400] * 4, np.zeros((2, 4), complex), np.array([None] * 4), "abc", None, {"a": 1}, ["1"] * 4, np.full(4, np.nan), np.full((2, 4), np.inf),
]


@pytest.mark.parametrize("wrong", range(len(WRONG_OBSERVATIONS)))
def test_what_is_no_observation_is_refused_by_everything_that_answers(summary, refusal, wrong):
    policy = mucd_ray.load(summary["run"])
    for answer in (policy.act, policy.radius, policy.answers):
        refusal(answer, WRONG_OBSERVATIONS[wrong])
    refusal(lambda: policy.radius(policy.states, tolerance=np.array([0.1, 0.2])))


@pytest.mark.parametrize(
    "wrong",
    [{"dataset": None}, {"dataset": 3}, {"dataset": "--help"}, {"help": True}, {"environment": 3}, {"environment": {}}, {"imports": 3}, {"make_kwargs": {"a": print}}, {"make_kwargs": {"a": {1}}}, {"storage": None}, {"storage": "a\0b"}, {"storage": "a\ud800"}, {"states_file": "\ud800"}, {"instances": 10**5000}],
    ids=lambda wrong: "-".join([*wrong]),
)
def test_a_run_that_cannot_be_is_refused_and_nothing_is_written(tmp_path, capfd, wrong):
    with pytest.raises(mucd_ray.MucdError, match="."):
        mucd_ray.run(**{"dataset": "cartpole/none-v0", "storage": str(tmp_path / "run")} | wrong)
    assert not (tmp_path / "run").exists() and capfd.readouterr().out == ""
