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


def ruled(episodes):
    """A certificate of PARL with 20 parts and two actions; of each episode how many parts vote for action 1 at every step, and the return."""
    parts = [{"seed": seed, "return": earned, "votes": [[1] * ones + [0] * (20 - ones) for ones in steps]} for seed, (steps, earned) in enumerate(episodes)]
    before = certificate([10.0] * 200, [[20, 0]], Partition(unit="trajectory", parts=20))
    return make_certificate(before["inputs"] | {"rule": {"name": "parl", "window": None, "never": None, "actions": 2, "episodes": parts}}, assumptions=[], context={"baselines": None})


def test_a_rules_episodes_may_part_only_where_an_action_was_not_certified():
    # Radii: of 20 votes to 0 ten, of 12 to 8 two (a tie is won by the lower action), of 10 to 10 none.
    clean = ruled([([0, 8, 0], 6.0), ([0, 0], 8.0)])
    assert clean["results"]["rule"]["radius"] == [[10, 2, 10], [10, 10]] and [certified_mean(clean, r) for r in (0, 2, 3, 10, 11)] == [7, 7, 4, 4, 0]

    def attacked(first, second, radius):
        return compared(clean, ruled([first, second]), radius, certified_mean(clean, radius), 1e-5)

    same = attacked(([3, 9, 2], 6.0), ([1, 0], 8.0), 2)
    assert not same["beaten"] and same["actions_kept"] == 1 and same["actions_certified"] == 1 and same["mean"] == same["clean_mean"] == 7
    parted = attacked(([3, 12], 1.0), ([1, 0], 8.0), 3)
    assert not parted["beaten"] and parted["actions_kept"] == 3 / 5, "at a step with radius 2"
    assert attacked(([3, 12], 1.0), ([1, 0], 8.0), 2)["flips"] == 1 and attacked(([15, 12], 1.0), ([1, 0], 8.0), 3)["flips"] == 1
    assert attacked(([3, 12], 0.0), ([1, 0], 7.5), 3)["beaten"], "the return of an episode that is certified as a whole"
    assert attacked(([3, 9, 2], 6.0), ([1, 0, 0], 8.0), 2)["flips"] == 1, "after the same actions it ended before"


@pytest.mark.slow
def test_the_command_attacks_on_ray_and_goes_on_where_it_was(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    assert main(["record", "CartPole-v1", "--dataset", "cartpole/small-v0", "--transitions", "3000"]) == 0
    words = ["attack", "cartpole/small-v0", "--defences", "bag,tparl", "--attacks", "outliers", "--budgets", "1", "--instances", "12", "--bag-size", "2", "--parts", "6", "--episodes", "2", "--train-steps", "20", "--states", "5", "--eta", "0.05", "--json"]
    capfd.readouterr()
    printed = []
    for _ in range(2):
        assert main([*words, "--storage", str(tmp_path / "study")]) == 0
        printed.append(json.loads(capfd.readouterr().out.splitlines()[-1]))
    assert printed[0] == printed[1] and not printed[0]["beaten"]
    assert {row["defence"] for row in printed[0]["rows"]} == {"bag", "tparl", "undefended"} and printed[0]["rows"][0]["changed"] == {"inserted": 1, "removed": 0}
    assert (tmp_path / "study" / "attack.png").exists()
    assert main([*words, "--storage", str(tmp_path / "study"), "--seed", "1"]) == 2


@pytest.mark.parametrize("words", [["--defences", "shield"], ["--defences", "bag", "--budgets", "0"]], ids=" ".join)
def test_bad_input_is_one_line(words, capfd):
    assert main(["attack", "none/none-v0", "--budgets", "1", "--storage", "nowhere", *words]) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1
