"""The served ensemble says of the run's own states what the certificate says of them."""

import json
import shutil
from dataclasses import replace

import pytest

from mucd_ray.certify.file.certificate import read_certificate
from mucd_ray.data.recording.record import record
from mucd_ray.errors import MucdError
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.driver import certify
from mucd_ray.service.serving.ensemble import Ensemble
from mucd_ray.service.storage.store import RunStore


@pytest.fixture(scope="module")
def trained(make_run, recordings, tmp_path_factory):
    return make_run(recordings["cartpole"], tmp_path_factory.mktemp("served"))


@pytest.fixture
def served_run(trained, tmp_path):
    return RunStore.open(shutil.copytree(trained.path, tmp_path / "run"))


@pytest.mark.parametrize("choices", [Choices(), Choices(inference="scores", eta=0.01, threat="remove", accountant="rdp")], ids=lambda choices: choices.inference)
def test_answers_at_the_runs_own_states_are_the_certificates(served_run, choices):
    certify(served_run, choices)
    action = read_certificate(served_run.path / "certificate.json")["results"]["action"]
    ensemble = Ensemble(str(served_run.path))
    answers = ensemble.answers(served_run.states())
    assert ensemble.kind == choices.inference and ensemble.instances == 40
    assert [answer["action"] for answer in answers] == action["action"]
    assert [answer["radius"] for answer in answers] == action["per_state"]["radius"] and any(answer["radius"] for answer in answers)
    if choices.inference == "votes":
        assert [answer["votes"] for answer in answers] == ensemble.certificate["inputs"]["actions"]["counts"]
    else:
        assert all(sum(answer["scores"]) == pytest.approx(1, abs=0.02) for answer in answers)
    # One at a time, and in another order.
    assert [ensemble.answers(served_run.states()[[row]])[0] for row in (3, 0)] == [answers[3], answers[0]]


def test_actions_are_numbered_as_the_environment_numbers_them(served_run):
    """Votes and outputs count from 0, an action space may start elsewhere."""
    ensemble = Ensemble(str(served_run.path))
    before = ensemble.act(ensemble.states)
    ensemble.settings = replace(ensemble.settings, first_action=2)
    assert (ensemble.act(ensemble.states) == before + 2).all()
    assert [answer["action"] for answer in ensemble.answers(ensemble.states)] == (before + 2).tolist()


def test_continuous_answers_are_the_certificates(make_run, recordings, tmp_path):
    record("Pendulum-v1", None, 3000, 5, "pendulum/served-v0")
    run = make_run("pendulum/served-v0", tmp_path)
    ensemble = Ensemble(str(run.path))
    answers, action = ensemble.answers(run.states()), ensemble.certificate["results"]["action"]
    assert [answer["action"] for answer in answers] == action["median"] == ensemble.act(run.states()).tolist()
    assert ensemble.radius(run.states()[0], tolerance=0.25) == ensemble.radius(run.states(), tolerance=0.25)[0]
    for place, part in enumerate(action["per_state"]["tolerance"].values()):
        assert [answer["tolerances"][place]["radius"] for answer in answers] == part["radius"]
    certified = [(answer["action"], part) for answer in answers for part in answer["tolerances"] if part["radius"] is not None]
    assert certified
    for median, part in certified:
        assert part["low"] <= median <= part["high"] and part["high"][0] - part["low"][0] <= 2 * part["tolerance"] * 4 + 1e-9


def test_what_cannot_be_served_is_said_in_one_line(served_run):
    run, path = str(served_run.path), served_run.path / "certificate.json"
    text = path.read_text()
    path.unlink()
    with pytest.raises(MucdError, match="has no certificate.json: make it with `mucd certify"):
        Ensemble(run)
    other = json.loads(text)
    other["inputs"]["actions"]["counts"] = [row[::-1] for row in other["inputs"]["actions"]["counts"]]
    path.write_text(json.dumps(other))
    with pytest.raises(MucdError, match="% of what the stored instances do is not what the certificate"):
        Ensemble(run)
    path.write_text(text)
    block = served_run.path / "blocks" / served_run.names()[0]
    content = block.read_bytes()
    block.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(MucdError, match="of the 40 certified instances are missing"):
        Ensemble(run)


def test_the_confidence_says_which_states_it_is_about(served_run):
    certify(served_run, Choices(eta=0.01))
    words = Ensemble(str(served_run.path)).confidence
    assert words.startswith("The radius holds with probability at least 99 % for each state that was chosen without looking") and "neither singly nor together" in words
    certify(served_run, Choices(accountant="published"))
    assert Ensemble(str(served_run.path)).confidence.startswith("NOT SOUND")
