"""Training until a goal is met: looks at public numbers only, the same stop after a kill, exit status, growing on."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mucd_ray.certify.file.certificate import read_certificate, verify
from mucd_ray.cli import main
from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.errors import MucdError
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.driver import certify, train, training_units
from mucd_ray.service.runs.session import Request, make_settings
from mucd_ray.service.runs.tally import Tally
from mucd_ray.service.runs.work import choose_states, train_and_evaluate
from mucd_ray.service.storage.store import RunStore
from mucd_ray.service.workers.cluster import Resources

GOAL, SECRET = "return>={}@0.005", b"s" * 32
LOOKS = [100, 160, 250]


def anytime(least):
    # Which threat makes no difference here, and this one is the quickest.
    return Choices(looks="anytime", threat="insert", goal=GOAL.format(least))


@pytest.fixture(scope="module")
def reference(recordings, tmp_path_factory):
    """(store with 250 instances made without Ray, {look: share of the mean certified there}, a goal that the second look meets first)."""
    dataset = load_dataset(recordings["cartpole"])
    request = Request(dataset=recordings["cartpole"], instances=250, steps=8, states=6, held_out=2, rollouts=2, discount=0.97)
    settings, _ = make_settings(request, dataset, Choices())
    store = RunStore.create_or_open(tmp_path_factory.mktemp("reference") / "run", settings, secret=SECRET)
    units = training_units(settings, dataset)
    states = store.write_states(choose_states(settings, SECRET, units, "cpu"))
    store.commit(train_and_evaluate(settings, SECRET, units, states, range(250), "cpu"))
    store.write_json("baselines.json", {"reference": [1] * 6})  # the real ones take longest
    certified = {look: certify(store, anytime(0.001), look)["results"]["goal"]["certified"] for look in LOOKS}
    assert certified[100] < certified[160] < certified[250], certified
    return store, certified, round((certified[100] + certified[160]) / 2, 6)


def new_run(reference, folder):
    store = RunStore.create_or_open(folder / "run", reference[0].settings(), secret=SECRET)
    store.write_json("baselines.json", reference[0].read_json("baselines.json"))
    return store


def assert_stopped_at(store, reference, look, certificate):
    """Exactly the evidence of the undisturbed run, and not one instance more."""
    ours, theirs = Tally(store, look).evidence(), Tally(reference[0], look).evidence()
    for name in ("votes", "histogram", "returns"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name))
    assert store.stored_instances() == look and store.looks() == LOOKS[: LOOKS.index(look) + 1] and store.targets() == []
    results = certificate["results"]
    assert results["instances"] == look and results["goal"]["certified"] == pytest.approx(reference[1][look], rel=1e-9)
    assert verify(certificate) == [] and "any rule by which training stopped" in " ".join(certificate["assumptions"])


def test_stops_at_the_first_look_that_meets_the_goal_and_grows_on_validly(local_ray, recordings, reference, tmp_path, capfd):
    store, dataset = new_run(reference, tmp_path), load_dataset(recordings["cartpole"])
    choices = anytime(reference[2])
    first = train(store, dataset, 250, choices, Resources(block=30))
    assert_stopped_at(store, reference, 160, first)
    assert first["results"]["goal"]["met"] and "look at 160 instances" in capfd.readouterr().err
    # A goal out of reach: the budget ends, and the exit status says so.
    command = ["grow", str(store.path), "--until", GOAL.format(0.999), "--instances", "250", "--actors", "1", "--threat", "insert", "--json"]
    assert main(command) == 1
    captured = capfd.readouterr()
    summary = json.loads(captured.out)
    assert summary["instances"] == 250 and summary["goal"]["met"] is False and "NOT" not in captured.out
    assert f"goal {GOAL.format(0.999)} is not met with 250 instances" in captured.err
    assert_stopped_at(store, reference, 250, read_certificate(store.path / "certificate.json"))
    # The first command again, now that more is stored: the larger certificate stays. Without it, the same one as then; and without Ray, since nothing is missing.
    command[3], file = GOAL.format(reference[2]), store.path / "certificate.json"
    before = file.read_bytes()
    assert main([*command[:-1], "--address", "127.0.0.1:1"]) == 2
    assert "has a certificate of 250 instances, and this goal is met with 160 of them: it stays as it is; `mucd certify" in capfd.readouterr().err
    assert file.read_bytes() == before
    file.unlink()
    assert main([*command[:-1], "--address", "127.0.0.1:1"]) == 0
    captured = capfd.readouterr()
    assert f"goal {GOAL.format(reference[2])}: met with 160 instances" in captured.out and "is not met" not in captured.err
    assert read_certificate(file)["results"] == first["results"]


def test_certificates_of_a_run_that_was_looked_at(reference, capfd):
    store = reference[0]
    with pytest.raises(MucdError, match="no number of instances.*--looks anytime"):
        certify(store, Choices())
    assert certify(store, Choices(looks="anytime", threat="insert"))["results"]["instances"] == 250
    assert main(["certify", str(store.path), "--looks", "anytime", "--threat", "insert", "--inference", "scores", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["action"]["kind"] == "scores"
    with pytest.raises(MucdError, match="an anytime certificate does not look at 120 instances: certify at 100 or 160"):
        certify(store, Choices(looks="anytime"), 120)
    with pytest.raises(MucdError, match="400 instances are not complete"):
        certify(store, Choices(looks="anytime"), 400)
    # A number fixed before may still be certified, and the looks are owned up to.
    store.add_target(120)
    notes = " ".join(certify(store, Choices(threat="insert"))["assumptions"])
    assert "looked at at 100, 160, 250 instances" in notes and "chosen after looking" in notes


@pytest.mark.slow
def test_a_run_that_is_killed_between_looks_stops_where_an_undisturbed_one_does(local_ray, reference, tmp_path):
    """A real process with its own Ray, SIGKILL between the first two looks; then the same command again."""
    store = new_run(reference, tmp_path)
    command = ["grow", str(store.path), "--until", GOAL.format(reference[2]), "--instances", "250", "--instances-per-actor", "4", "--actors", "1", "--threat", "insert"]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    process = subprocess.Popen(
        [sys.executable, "-m", "mucd_ray.cli", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, env=environment
    )
    deadline = time.monotonic() + 240
    while store.stored_instances() < 104 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert 104 <= store.stored_instances() < 160 and store.looks() == [100], "the kill came too late to mean anything"
    kept = {name: (store.path / "blocks" / name).read_bytes() for name in store.names()}
    assert main(command) == 0
    assert all((store.path / "blocks" / name).read_bytes() == content for name, content in kept.items())
    assert_stopped_at(store, reference, 160, read_certificate(store.path / "certificate.json"))
