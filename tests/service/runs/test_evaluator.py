"""Runs whose policies are scored by an evaluator of the user's: on Ray without an environment, and in one process with one."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from mucd_ray.certify.file.certificate import read_certificate, verify
from mucd_ray.cli import main
from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.errors import MucdError
from mucd_ray.evaluate.evaluators import evaluator
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.driver import certify, training_units
from mucd_ray.service.runs.session import Request, execute, make_settings
from mucd_ray.service.runs.summary import describe, finish
from mucd_ray.service.runs.work import baselines, best_constant, train_and_evaluate
from mucd_ray.service.storage.store import RunStore
from tests import foreign_evaluators

FILE = str(Path(foreign_evaluators.__file__))
SHARE, MOVES = f"{FILE}:share", f"{FILE}:only_if_good"
P, SECRET = 30, bytes(range(32))


@pytest.fixture(scope="module")
def log(recordings, tmp_path_factory):
    """(id of CartPole's recording without its environment, a file of states)."""
    root = Path(os.environ["MINARI_DATASETS_PATH"])
    shutil.copytree(root / recordings["cartpole"], root / "cartpole" / "scored-v0")
    file = root / "cartpole" / "scored-v0" / "data" / "metadata.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in values.items() if key != "env_spec"} | {"dataset_id": "cartpole/scored-v0"}))
    states = tmp_path_factory.mktemp("states") / "states.npy"
    np.save(states, foreign_evaluators.STATES[:10])
    yield "cartpole/scored-v0", str(states)
    shutil.rmtree(root / "cartpole" / "scored-v0")


def request(name, states, /, **changes):
    return Request(**{"dataset": name, "instances": P, "states_file": states, "mechanism": "bag", "bag_size": 1, "fit": {"steps": 20, "batch": 16, "mirrored": False}} | changes)


def in_one_process(request, folder) -> tuple[RunStore, dict]:
    dataset = load_dataset(request.dataset)
    settings, states = make_settings(request, dataset, Choices())
    store = RunStore.create_or_open(folder, settings, secret=SECRET)
    states, units = store.write_states(states), training_units(settings, dataset)
    store.write_json("baselines.json", baselines(settings, units, states) | best_constant(settings))
    store.add_target(P)
    store.commit(train_and_evaluate(settings, SECRET, units, states, range(P), "cpu"))
    return store, certify(store, Choices())


@pytest.mark.slow
def test_on_ray_without_an_environment(local_ray, log, tmp_path, capfd):
    name, states = log
    command = ["run", name, "--no-environment", "--states-file", states, "--evaluator", SHARE, "--score-range", "0,1", "--mechanism", "bag", "--bag-size", "1", "--train-steps", "20"]
    assert main([*command, "--instances", str(P), "--storage", str(tmp_path / "run"), "--json"]) == 0
    summary, certificate = json.loads(capfd.readouterr().out), read_certificate(tmp_path / "run" / "certificate.json")
    assert verify(certificate) == [] and certificate["results"]["policy"]["unpoisoned_mean"] == summary["unpoisoned_mean"] == np.mean(certificate["inputs"]["returns"])
    assert summary["evaluator"]["name"] == SHARE and summary["score_range"] == [0, 1] and summary["unscored"] == 0 and "return_range" not in summary
    assert certificate["inputs"]["evaluator"]["sha256"] in " ".join(certificate["claim"]) and 0.5 < summary["baselines"]["non_private"] <= 1
    page = (tmp_path / "run" / "report.html").read_text()
    assert "return" not in describe(summary) + " ".join([*certificate["claim"], *certificate["assumptions"]]) and "How much score is kept" in page and "rollout" not in page
    # A run folder is an attacker's file: what it names is called on the user's word alone.
    grow = ["grow", str(tmp_path / "run"), "--instances", str(P + 2)]
    assert main(grow) == 2 and "called only on your word" in capfd.readouterr().err
    assert main([*grow, "--evaluator", MOVES]) == 2 and "is not that of" in capfd.readouterr().err
    assert main([*grow, "--evaluator", SHARE, "--json"]) == 0 and json.loads(capfd.readouterr().out)["instances"] == P + 2
    assert main(["certify", str(tmp_path / "run"), "--eta", "0.01"]) == 0 and main(["compare", str(tmp_path / "run")]) == 0
    assert "(score)" in capfd.readouterr().out


def test_with_an_environment_and_scores_that_fail(recordings, log, tmp_path):
    """The evaluator has a score of no trained policy: all of them count as the least, and it is told."""
    store, certificate = in_one_process(request(recordings["cartpole"], log[1], evaluator=evaluator(MOVES, -1, 1), rollouts=2), tmp_path / "run")
    assert verify(certificate) == [] and certificate["inputs"]["rollouts"] == 2 and "declared" not in certificate["inputs"]
    scores, context = np.array(certificate["inputs"]["returns"]), certificate["context"]
    assert set(scores) <= {-1.0, 0.5} and context["unscored"] == (scores == -1).sum() == context["unscored_by_cause"]["raised"] > P // 2
    assert context["normalised"] is None and "behaviour" not in context["baselines"] and context["baselines"]["best_constant_return"] == 0.5
    text = describe(finish(store, certificate))
    assert "got no score and count as -1: " in text and "such as raised (RuntimeError: the policy moves)" in text


def test_parts_and_policies_from_outside_are_scored(log, tmp_path):
    name, states = log
    score = evaluator(SHARE, 0, 1)
    store, certificate = in_one_process(request(name, states, no_environment=True, evaluator=score, mechanism="partition", bag_size=None, parts=4), tmp_path / "parts")
    assert verify(certificate) == [] and len(set(certificate["inputs"]["returns"])) > 1 and store.settings() == make_settings(
        request(name, states, no_environment=True, evaluator=score, mechanism="partition", bag_size=None, parts=4), load_dataset(name), Choices()
    )[0]


@pytest.mark.parametrize("name, words", [("too_high", "outside the range"), ("raises", "no such log")])
def test_what_cannot_score_the_default_action_is_refused_before_anything_is_written(log, tmp_path, name, words):
    asked = request(*log, no_environment=True, evaluator=evaluator(f"{FILE}:{name}", 0, 1))
    with pytest.raises(MucdError, match=words):
        execute(asked, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_what_does_not_go_with_scores_is_refused(log, tmp_path, capfd):
    score = evaluator(SHARE, 0, 1)
    for changes, choices, words in (
        ({"discount": 0.9}, Choices(), "of rewards"),
        ({"mechanism": "neighbours", "bag_size": None, "fit": None, "neighbours": 3}, Choices(), "train nothing"),
        ({}, Choices(policy="vote"), "has scores of"),
    ):
        with pytest.raises(MucdError, match=words):
            make_settings(request(*log, no_environment=True, evaluator=score, **changes), load_dataset(log[0]), choices)
    run = ["run", log[0], "--no-environment", "--states-file", log[1], "--storage", str(tmp_path / "run")]
    for options, words in (
        (["--evaluator", SHARE], "needs --score-range"), (["--score-range", "0,1"], "is for --evaluator"), (["--evaluator", SHARE, "--score-range", "0;1"], "two numbers"),
        (["--evaluator", "tests.nowhere:score", "--score-range", "0,1"], "cannot be used"), (["--evaluator", SHARE, "--score-range", "0,1", "--evaluator-seconds", "0"], "outside"),
        (["--evaluator", SHARE, "--score-range=-1e300,1e300"], "--score-range: scores in [-1e+300, 1e+300] must lie within"),
        (["--evaluator", SHARE, "--score-range", "1,1.0000001"], "--score-range: scores in [1.0, 1.0000001] must lie within"),
    ):
        assert main([*run, *options]) == 2 and words in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
