"""Vote rules of a real run, on a real Ray: episodes played, certified, verified, resumed, and played again by hand."""

import copy
import json
import re

import gymnasium
import numpy as np
import pytest

from mucd_ray.certify.file.certificate import content_hash, read_certificate, verify
from mucd_ray.certify.rules import RULES
from mucd_ray.cli import main
from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.errors import MucdError
from mucd_ray.mechanism.partition import Partition
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.driver import certify
from mucd_ray.service.runs.session import Request, execute, make_settings
from mucd_ray.service.runs.summary import describe, finish
from mucd_ray.service.storage.policies import stored_policies
from mucd_ray.service.storage.store import RunStore
from mucd_ray.service.workers.cluster import Resources

FIT, PARTS, EPISODES, WINDOW, NEVER = {"steps": 60, "batch": 64}, 7, 2, 3, 1


def request(dataset, **changes):
    return Request(**{"dataset": dataset, "instances": 25, "states": 8, "held_out": 2, "fit": FIT, "mechanism": "partition", "parts": PARTS} | changes)


@pytest.fixture(scope="module")
def of_parts(recordings, tmp_path_factory, local_ray):
    """Each trajectory in two parts; Acrobot has three actions."""
    folder = tmp_path_factory.mktemp("rules") / "run"
    execute(request(recordings["acrobot"], spread=2), str(folder), choices=Choices(), resources=Resources(block=5), seed=3)
    return RunStore.open(folder)


def choices(name, **changes):
    return Choices(**{"rule": name, "window": WINDOW if RULES[name].windowed else None, "episodes": EPISODES, "never": NEVER} | changes)


def by_hand(name, scores):
    """The action at the last step by the scores of all policies at every step so far, [t, u, A], in the words of the papers."""
    votes = scores.argmax(2)
    actions = scores.shape[2]

    def totals(steps):
        return [int((votes[-steps:] == action).sum()) for action in range(actions)]

    if name in ("parl", "fa"):
        return int(np.argmax(totals(1)))
    if name == "tparl":
        return int(np.argmax(totals(WINDOW)))
    if name == "dparl":
        lead = {steps: np.diff(sorted(totals(steps))[-2:])[0] / steps for steps in range(1, min(len(votes), WINDOW) + 1)}
        return int(np.argmax(totals(min(lead, key=lambda steps: (-lead[steps], steps)))))
    first, second = sorted(sorted(range(actions), key=lambda action: (-totals(1)[action], action))[:2])
    return first if (scores[-1][:, first] >= scores[-1][:, second]).sum() * 2 >= scores.shape[1] else second


@pytest.mark.parametrize("name", RULES)
def test_episodes_are_those_of_a_simple_loop_and_the_certificate_holds(of_parts, name):
    store = of_parts
    settings, policies = store.settings(), stored_policies(store.of_parts(), range(PARTS))
    certificate = certify(store, choices(name))
    assert verify(certificate) == [] and certificate == store.certificate()
    rule, found = certificate["inputs"]["rule"], certificate["results"]["rule"]
    environment = gymnasium.make("Acrobot-v1")
    for seed, episode in enumerate(rule["episodes"]):
        observation, _ = environment.reset(seed=seed)
        seen, taken, total, ended = [], [], 0.0, False
        while not ended:
            features = settings.card.features(observation[None])
            seen.append(np.stack([policies.outputs(features, np.array([policy]))[0] for policy in range(PARTS)]))
            taken.append(by_hand(name, np.stack(seen)))
            observation, reward, terminated, truncated, _ = environment.step(taken[-1])
            total, ended = total + reward, terminated or truncated
        assert episode["seed"] == seed and episode["return"] == total and episode["votes"] == np.stack(seen).argmax(2).tolist()
        chosen, _ = RULES[name].decide(
            np.array(episode["votes"]), np.array(episode.get("preferences", [])), rule["actions"], rule["window"], Partition(parts=PARTS, spread=2).reached()
        )
        assert chosen.tolist() == taken
    assert found["unpoisoned_mean"] == np.mean([episode["return"] for episode in rule["episodes"]]) and found["episodes"] == EPISODES
    assert any("public seeds 0 to 1" in text for text in certificate["assumptions"])


def test_another_rule_takes_the_place_of_the_rule_alone_and_no_episode_is_played_twice(of_parts):
    store = of_parts
    path, files = store.path / "certificate.json", store.path / "rules"
    certify(store, choices("parl", policy="vote", nodes=20))
    before, content = read_certificate(path), path.read_bytes()
    played = {file.name: file.stat().st_mtime_ns for file in files.iterdir() if file.name.startswith("parl-")}
    assert sorted(played) == ["parl-000000.json", "parl-000001.json"]
    certify(store, choices("tparl", policy="vote", nodes=20))
    after = read_certificate(path)
    for part in ("inputs", "results"):
        assert {key: value for key, value in before[part].items() if key not in ("rule", "voted")} == {key: value for key, value in after[part].items() if key not in ("rule", "voted")}
    for never in (3, True, None, -1):
        forged = copy.deepcopy(after)
        forged["inputs"]["voted"]["never"] = never
        forged["sha256"] = content_hash(forged)
        (text,) = verify(forged)
        assert "voted never" in text
    assert after["results"]["rule"]["name"] == "tparl" and "voted" in after["results"]
    summary = finish(store, certify(store, choices("parl", policy="vote", nodes=20)))
    assert path.read_bytes() == content and all((files / name).stat().st_mtime_ns == time for name, time in played.items())
    # More episodes of the same rule begin with those that are there; none without the rule.
    assert len(certify(store, choices("parl", episodes=3))["inputs"]["rule"]["episodes"]) == 3 and (files / "parl-000000.json").stat().st_mtime_ns == played["parl-000000.json"]
    assert "rule" not in certify(store, Choices())["results"]
    kept = before["results"]["voted"]["never"]
    assert len(kept["radius"]) == EPISODES and kept["share"][0] == np.mean(np.array(kept["radius"]) >= 0) and summary["voted"]["never"] | kept == summary["voted"]["never"]
    assert summary["voted"]["never"]["action"] == NEVER and "forbidden action 1 never taken in the whole episode:" in describe(summary) and "Forbidden action 1 (counted from 0): in" in " ".join(after["claim"])
    rule = summary["rule"]
    assert rule["name"] == "parl" and rule["never"]["action"] == NEVER and rule["curve"]["stability_ratio"][0] == 1
    assert "vote rule parl" in describe(summary) and "forbidden action 1" in describe(summary) and b"Vote rule parl" in (store.path / "report.html").read_bytes()
    assert (store.path / "plots" / "rule.png").exists()


def test_evidence_that_was_changed_is_found_out(of_parts):
    store = of_parts
    certificate = certify(store, choices("tparl"))
    # A state with a radius: if all vote otherwise there, another action is taken.
    episode, step = next((e, t) for e, radii in enumerate(certificate["results"]["rule"]["radius"]) for t, radius in enumerate(radii) if radius >= 1)
    votes, earned = copy.deepcopy(certificate), copy.deepcopy(certificate)
    row = votes["inputs"]["rule"]["episodes"][episode]["votes"][step]
    row[:] = [(vote + 1) % 3 for vote in row]
    earned["inputs"]["rule"]["episodes"][0]["return"] += 1
    for forged in (votes, earned):
        forged["sha256"] = content_hash(forged)
        assert any("results.rule" in text for text in verify(forged))
    file = store.path / "rules" / f"tparl-{WINDOW}-000000.json"
    kept = file.read_text()
    for text in ("{", "[]", json.dumps(json.loads(kept) | {"seed": 1}), json.dumps(json.loads(kept) | {"votes": [[9] * PARTS]})):
        file.write_text(text)
        with pytest.raises(MucdError, match="rules/tparl-3-000000.json is no episode of this vote rule .*: delete it, and it is played again|delete it, and `mucd run`"):
            certify(store, choices("tparl"))
    file.unlink()
    certify(store, choices("tparl"))
    assert file.read_text() == kept and verify(store.certificate()) == []


def test_more_votes_than_a_certificate_may_hold_are_refused_by_the_number_that_fits(of_parts, monkeypatch):
    one = len(json.dumps(certify(of_parts, choices("roe"))["inputs"]["rule"]["episodes"][0]))
    monkeypatch.setattr("mucd_ray.service.runs.rules.MOST_BYTES", one)
    with pytest.raises(MucdError, match="7 parts in 2 episodes are more than a certificate may hold: certify fewer, --episodes 1"):
        certify(of_parts, choices("roe"))
    certify(of_parts, choices("roe", episodes=1))
    monkeypatch.setattr("mucd_ray.service.runs.rules.MOST_ROWS", 1)
    with pytest.raises(MucdError, match="use fewer parts"):
        certify(of_parts, choices("roe", episodes=1))


def test_an_environment_that_does_not_repeat_itself_is_refused_and_the_rest_is_kept(of_parts, monkeypatch):
    store = of_parts
    kind = gymnasium.envs.registration.load_env_creator(gymnasium.spec("Acrobot-v1").entry_point)
    step, rng = kind.step, np.random.default_rng(0)

    def shaky(self, action):
        observation, *rest = step(self, action)
        return observation * np.float32(1 - 1e-3 * rng.random()), *rest

    monkeypatch.setattr(kind, "step", shaky)
    with pytest.raises(MucdError, match="Acrobot-v1 does not repeat itself.*leave --policy vote, or --rule, out"):
        certify(store, choices("dparl", window=4))
    assert verify(store.certificate()) == [] and "rule" not in store.certificate()["inputs"] and not list((store.path / "rules").glob("dparl-4-*"))


@pytest.mark.parametrize("options,complaint", [
    (["--rule", "parl", "--episodes", "0"], "episodes 0 must be"), (["--rule", "tparl", "--window", "0"], "window 0 must be"), (["--rule", "parl", "--window", "3"], "window 3 .* leave it out"), (["--window", "3"], "window 3 .* leave it out"),
    (["--rule", "tparl", "--window", "501"], "window 501 is longer than an episode .* at most 500 steps"), (["--rule", "parl", "--never", "3"], "never 3 is no action of .*, which has 3"), (["--rule", "parl", "--never", "-1"], "never -1 must be"),
    (["--never", "1"], "give --rule or --policy vote"), (["--episodes", "3"], "--episodes is for --policy vote, or"), (["--rule", "copa"], "invalid choice: 'copa'"),
])  # fmt: skip
def test_options_that_ask_for_nothing_are_refused_and_the_certificate_stays(of_parts, capsys, options, complaint):
    before = (of_parts.path / "certificate.json").read_bytes()
    try:
        status = main(["certify", str(of_parts.path), *options])
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(complaint, line), line
    assert (of_parts.path / "certificate.json").read_bytes() == before


@pytest.mark.parametrize("changes", [{"rule": []}, {"rule": "tparl", "window": "3"}, {"rule": "tparl", "window": True}, {"rule": "parl", "never": 1.0}])
def test_choices_that_a_hostile_certificate_brings_along_are_refused(changes):
    with pytest.raises(MucdError, match="rule|window|never"):
        Choices(**changes)


@pytest.mark.parametrize("changes,name,complaint", [
    ({"mechanism": "bag", "parts": None, "bag_size": 2}, "parl", "mechanism bag"), ({}, "fa", "the same as --rule parl"),
    ({"parts": 3, "no_environment": True}, "roe", "plays episodes of its own"),
])  # fmt: skip
def test_runs_without_votes_of_all_parts_in_an_environment_are_refused(recordings, tmp_path, changes, name, complaint):
    if "no_environment" in changes:
        np.save(tmp_path / "states.npy", np.zeros((3, 4), np.float32))
        changes = changes | {"states_file": str(tmp_path / "states.npy")}
    settings, _ = make_settings(request(recordings["cartpole"], **changes), load_dataset(recordings["cartpole"]), Choices())
    with pytest.raises(MucdError, match=complaint):
        choices(name).check(settings)


@pytest.mark.parametrize("name", ["tparl", "dparl", "roe", "fa"])
def test_the_return_of_a_rules_policy_is_certified_through_all_that_poisoned_votes_could_do(of_parts, name):
    store = of_parts
    certificate = certify(store, choices(name, policy="vote", nodes=300))
    voted, evidence = certificate["results"]["voted"], certificate["inputs"]["voted"]
    assert verify(certificate) == [] and voted["kind"] == "rule" and evidence["rule"] == {"name": name, "window": certificate["inputs"]["rule"]["window"]}
    assert voted["unpoisoned_mean"] == voted["curve"]["played"][0] and all(a >= b for a, b in zip(voted["curve"]["played"], voted["curve"]["played"][1:])) and voted["curve"]["complete"][0] == 1
    assert max(len(episode["rows"]) for episode in evidence["episodes"]) > min(len(episode["votes"]) for episode in certificate["inputs"]["rule"]["episodes"])
    assert f"Policy of vote rule {name}, which takes" in " ".join(certificate["claim"])
    summary = finish(store, certificate)
    search = summary["voted"]["search"]
    assert search["nodes"] == sum(len(episode["rows"]) for episode in evidence["episodes"]) and search["nodes_per_second"] > 0 and search["at"][0]["complete"] == 1
    assert f"certified: policy of {name}" in describe(summary) and "search: all that poisoned votes could do was followed to the end of all episodes up to r =" in describe(summary)
    forgeries: dict[str, dict] = {
        "voted rule must have a name": {"rule": {"name": "mine", "window": None}}, "voted rule window 0": {"rule": {"name": "tparl", "window": 0}}, "of no other": {"kind": "exact"},
        "have one 0 each": {"rows": [[1] * len(row) for row in evidence["rows"]]}, "nothing above 4": {"rows": [[0] + [5] * (len(row) - 1) for row in evidence["rows"]]}, "whole number": {"rule": {"name": "tparl", "window": "3"}},
    }
    for complaint, change in forgeries.items():
        forged = copy.deepcopy(certificate)
        forged["inputs"]["voted"] |= change
        forged["sha256"] = content_hash(forged)
        (text,) = verify(forged)
        assert complaint in text
