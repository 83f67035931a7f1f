"""What is held against a certificate: bounds at the very r, and tests that find a beaten one and no other."""

import json

import numpy as np
import pytest

from mucd_ray.certify.file.certificate import make_certificate, make_inputs
from mucd_ray.certify.file.evidence import exact_evidence, votes_evidence
from mucd_ray.cli import main
from mucd_ray.mechanism.bag import Bag
from mucd_ray.mechanism.partition import Partition
from mucd_ray.service.runs.attacked import certified_mean, compared


def certificate(returns, counts, mechanism=Bag(unit="trajectory", bag_size=5)):
    evidence = exact_evidence if isinstance(mechanism, Partition) else votes_evidence
    inputs = make_inputs(mechanism=mechanism, units=1000, actions=evidence(np.array(counts)), returns=returns, return_range=(0, 10), rollouts=1)
    return make_certificate(inputs, assumptions=[], context={"baselines": None})


def test_an_exact_bound_and_what_beats_it():
    clean = certificate([10.0] * 200, [[200, 0], [150, 50]])
    curve = clean["results"]["policy"]["curve"]
    assert [certified_mean(clean, r) for r in curve["radius"]] == pytest.approx(curve["bound"])
    bound = certified_mean(clean, 20)
    assert certified_mean(clean, 21) < bound < certified_mean(clean, 19)
    sound = compared(clean, certificate([bound + 1] * 200, [[120, 80], [97, 103]]), 20, bound, 1e-5)
    assert not sound["beaten"] and sound["actions_kept"] == 0.5 and sound["actions_certified"] == 1.0
    assert compared(clean, certificate([0.0] * 200, [[200, 0], [150, 50]]), 20, bound, 1e-5)["beaten"], "the return"
    assert compared(clean, certificate([10.0] * 200, [[40, 160], [150, 50]]), 20, bound, 1e-5)["flips"] == 1, "an action"
    assert not compared(clean, certificate([10.0] * 200, [[97, 103], [150, 50]]), 20, bound, 1e-5)["beaten"], "which chance may bring about"
    assert not compared(clean, certificate([10.0] * 200, [[40, 160], [150, 50]]), 900, 0.0, 1e-5)["flips"], "nothing was certified there"


def test_of_exact_votes_any_flip_is_one_too_many():
    parts = Partition(unit="trajectory", parts=100)
    clean, after = (certificate([10.0] * 200, counts, parts) for counts in ([[100, 0]], [[49, 51]]))
    assert compared(clean, after, 50, 0.0, 1e-5)["flips"] == 1
    assert compared(clean, after, 49, 0.0, 1e-5)["flips"] == 1 and not compared(clean, after, 51, 0.0, 1e-5)["flips"]


@pytest.mark.slow
def test_the_command_attacks_on_ray_and_goes_on_where_it_was(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    assert main(["record", "CartPole-v1", "--dataset", "cartpole/small-v0", "--transitions", "3000"]) == 0
    words = ["attack", "cartpole/small-v0", "--defences", "bag", "--attacks", "outliers", "--budgets", "1", "--instances", "12", "--bag-size", "2", "--train-steps", "20", "--states", "5", "--eta", "0.05", "--json"]
    capfd.readouterr()
    printed = []
    for _ in range(2):
        assert main([*words, "--storage", str(tmp_path / "study")]) == 0
        printed.append(json.loads(capfd.readouterr().out.splitlines()[-1]))
    assert printed[0] == printed[1] and not printed[0]["beaten"]
    assert {row["defence"] for row in printed[0]["rows"]} == {"bag", "undefended"} and printed[0]["rows"][0]["changed"] == {"inserted": 1, "removed": 0}
    assert (tmp_path / "study" / "attack.png").exists()
    assert main([*words, "--storage", str(tmp_path / "study"), "--seed", "1"]) == 2


@pytest.mark.parametrize("words", [["--defences", "shield"], ["--defences", "bag", "--budgets", "0"]], ids=" ".join)
def test_bad_input_is_one_line(words, capfd):
    assert main(["attack", "none/none-v0", "--budgets", "1", "--storage", "nowhere", *words]) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1
