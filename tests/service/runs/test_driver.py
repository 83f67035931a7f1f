"""The whole service on a real local Ray: actors that are killed, runs that go on, results that do not depend on either."""

import dataclasses
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mucd_ray.certify.file.certificate import read_certificate, verify
from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.errors import MucdError
from mucd_ray.learn.learner import Learner, LocalUpdate
from mucd_ray.service.runs.about import assumptions
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.driver import Driver, _write_larger, certify, recorded_values, train, training_units
from mucd_ray.service.runs.session import Request, execute, make_settings
from mucd_ray.service.runs.summary import describe, finish
from mucd_ray.service.runs.tally import Tally
from mucd_ray.service.runs.work import baselines, best_constant, choose_states, train_and_evaluate
from mucd_ray.service.storage.store import Block, RunStore
from mucd_ray.service.watching.live import Live, drivers
from mucd_ray.service.workers.actors import Coordinator
from mucd_ray.service.workers.cluster import Resources
from mucd_ray.service.workers.pool import Pool

FIRST, INSTANCES, SEED = 25, 40, 4
SECRET = hashlib.sha256(f"mucd seed {SEED}".encode()).digest()


def request(dataset, **changes):
    return Request(**{"dataset": dataset, "instances": FIRST, "fraction": 0.01, "steps": 8, "states": 12, "held_out": 3} | changes)


@pytest.fixture(scope="module")
def reference(recordings, tmp_path_factory):
    """The same run made without Ray, in one process, but for the baselines, which take longest: what every other way must reproduce."""
    dataset = load_dataset(recordings["cartpole"])
    settings, _ = make_settings(request(recordings["cartpole"]), dataset, Choices())
    store = RunStore.create_or_open(tmp_path_factory.mktemp("reference") / "run", settings, secret=SECRET)
    units = training_units(settings, dataset)
    states = store.write_states(choose_states(settings, SECRET, units, "cpu"))
    store.commit(train_and_evaluate(settings, SECRET, units, states, range(INSTANCES), "cpu"))
    return store


@pytest.fixture(scope="module")
def on_ray(local_ray, recordings, tmp_path_factory):
    """(folder, summary) of `mucd run` on Ray. Whoever changes the folder copies it."""
    folder = tmp_path_factory.mktemp("on_ray") / "run"
    return folder, execute(request(recordings["cartpole"]), str(folder), resources=Resources(block=7), seed=SEED)


def new_run(reference, folder):
    """An empty run with the settings of the reference, and baselines."""
    store = RunStore.create_or_open(f"{folder}/run", reference.settings(), secret=SECRET)
    store.write_json("baselines.json", {"reference": [1] * 12})
    return store


def assert_same(store, reference, instances=INSTANCES):
    ours, theirs = Tally(store, instances).evidence(), Tally(reference, instances).evidence()
    assert len(ours.returns) == instances
    for name in ("votes", "histogram", "returns"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name))
    assert np.array_equal(store.states(), reference.states())


def test_mucd_run_on_ray_equals_the_run_in_one_process(on_ray, recordings, reference, tmp_path):
    folder, summary = on_ray
    store, certificate = RunStore.open(folder), read_certificate(folder / "certificate.json")
    assert_same(store, reference, FIRST)
    alone = RunStore.open(shutil.copytree(reference.path, tmp_path / "alone"))
    alone.write_json("baselines.json", store.read_json("baselines.json"))
    alone.add_target(FIRST)
    assert certificate["results"] == certify(alone, Choices())["results"] and verify(certificate) == []
    assert set(certificate["context"]["baselines"]) == {
        "non_private", "non_private_standard_error", "non_private_episodes", "behaviour", "best_constant_action", "best_constant_return",
        "returns_recorded", "returns_outside", "observations_outside", "observations_outside_feature",
    }
    assert len(certificate["inputs"]["actions"]["reference"]) == 12 and 0 <= certificate["results"]["action"]["agreement"] <= 1
    assert {"certificate.json", "report.html", "settings.json", "summary.json", "states.npy"} <= set(os.listdir(folder))
    assert summary["instances"] == FIRST and summary["goal"] is None and 0 <= summary["action"]["per_state"]["certified_accuracy"] <= 1
    text = describe(summary)
    assert "as the reference (trained without noise) at" in text and "goal" not in text and "None" not in text
    with pytest.raises(MucdError, match="other settings"):
        execute(request(recordings["cartpole"], states=13), str(folder), seed=SEED)
    again = execute(request(recordings["cartpole"]), str(folder), seed=SEED)
    assert again["unpoisoned_mean"] == summary["unpoisoned_mean"]


@pytest.mark.slow
def test_baselines_on_ray_are_those_of_one_process(on_ray, recordings, reference):
    """And beside them stands what the driver reads of the recording."""
    settings, dataset = reference.settings(), load_dataset(recordings["cartpole"])
    expected = baselines(settings, training_units(settings, dataset), reference.states()) | best_constant(settings) | recorded_values(settings, dataset)
    assert RunStore.open(on_ray[0]).read_json("baselines.json") == expected and {"behaviour", "returns_outside", "observations_outside"} < set(expected)


def test_baselines_do_not_depend_on_chance(recordings, reference, monkeypatch):
    monkeypatch.setattr("mucd_ray.service.runs.work.BASELINE_SEEDS", range(1))
    units = training_units(reference.settings(), load_dataset(recordings["cartpole"]))
    first, again = (baselines(reference.settings(), units, reference.states()) | best_constant(reference.settings()) for _ in range(2))
    assert first == again and first["best_constant_return"] < first["non_private"] <= 500 and set(first["reference"]) <= {0, 1}


def test_killed_trainers_cost_nothing(local_ray, recordings, reference, tmp_path, monkeypatch):
    """Every third block kills a trainer at its work with SIGKILL."""
    store = new_run(reference, tmp_path)
    killed, original = [], Pool.run

    def run_with_murder(pool, calls, **options):
        for number, result in enumerate(original(pool, calls, **options)):
            busy = [worker for worker in pool.workers if worker.alive and worker.call]
            if result is not None and number % 3 == 0 and busy:
                killed.append(busy[0].place[1])
                os.kill(busy[0].place[1], signal.SIGKILL)
            yield result

    monkeypatch.setattr(Pool, "run", run_with_murder)
    train(store, load_dataset(recordings["cartpole"]), INSTANCES, Choices(), Resources(block=4))
    assert killed, "no trainer was killed"
    assert_same(store, reference)
    live = store.read_json("live.json")
    assert live["finished"] and live["instances_done"] == INSTANCES and live["failures"]["trainer_died"] == len(killed) and drivers(store) == []


def test_a_run_in_a_bucket_equals_one_in_a_folder(local_ray, recordings, reference, bucket):
    """State lives on an S3-compatible server; another driver that died left its record there."""
    store = new_run(reference, f"{bucket}/{os.getpid()}")
    store.write_json("drivers/gone.json", {"host": "h", "process": 1, "started": 0.0, "seen": 0.0, "wanted": 1})
    certificate = train(store, load_dataset(recordings["cartpole"]), INSTANCES, Choices(), Resources(block=16))
    assert_same(RunStore.open(store.location), reference)
    assert verify(certificate) == [] and finish(store, certificate)["report"] == f"{store.location}/report.html"
    assert store.storage.read("report.html", 1 << 24).startswith(b"<!doctype html>") and "return_bound.png" in store.storage.names("plots")
    name = store.names()[0]
    content = store.storage.read(f"blocks/{name}", 1 << 24)
    store.storage.replace(f"blocks/{name}", content[:-1] + b"?")
    assert store.read(name) is None and store.storage.names("blocks")[0] == name.replace("safetensors", "damaged")


def test_growing_keeps_every_instance_mends_damage_and_owns_up_to_the_first_look(on_ray, recordings, reference, tmp_path):
    store = RunStore.open(shutil.copytree(on_ray[0], tmp_path / "run"))
    dataset = load_dataset(recordings["cartpole"])
    damaged, *names = store.names()[::-1]
    (store.path / "blocks" / damaged).write_bytes((store.path / "blocks" / damaged).read_bytes()[:-1] + b"?")
    kept = {name: (store.path / "blocks" / name).read_bytes() for name in names}
    grown = train(store, dataset, INSTANCES, Choices(), Resources(block=9))
    assert_same(store, reference)
    assert len(kept) == 3 and all((store.path / "blocks" / name).read_bytes() == content for name, content in kept.items())
    assert grown["context"]["instances_asked_for"] == [FIRST, INSTANCES] and f"also for {FIRST}" in " ".join(grown["assumptions"])
    # The first number can still be certified by itself: later instances do not vote in it.
    assert certify(store, Choices(), FIRST)["results"]["instances"] == FIRST
    certify(store, Choices())
    kept = (store.path / "certificate.json").read_bytes()
    with pytest.raises(MucdError, match=f"has {INSTANCES} instances, more than {FIRST}: `mucd certify .*/run` certifies these, and only a number above {INSTANCES} grows it"):
        train(store, dataset, FIRST, Choices(), Resources())
    assert (store.path / "certificate.json").read_bytes() == kept


def test_what_the_coordinator_says_is_one_line(local_ray, reference, tmp_path):
    def asked(folder, call):
        driver = Driver(reference, None, Live(reference, 1), None, Coordinator.remote(str(folder), 0), 1, backwards=False, lease=60.0)
        return driver.ask(driver.coordinator, call)

    with pytest.raises(MucdError, match="^[^\\n]*is not a run folder[^\\n]*$"):
        asked(tmp_path, lambda actor: actor.missing.remote(10, 5))
    shutil.copytree(reference.path, tmp_path / "run")
    (tmp_path / "run" / "states.npy").unlink()
    other = RunStore.open(tmp_path / "run")
    other.write_states(reference.states()[::-1])
    with pytest.raises(MucdError, match="^[^\\n]*block-00000000-000040.safetensors holds votes on other states[^\\n]*$"):
        asked(tmp_path / "run", lambda actor: actor.missing.remote(INSTANCES, 5))


def test_bad_requests_name_the_value_and_the_fix(local_ray, recordings, reference, tmp_path):
    dataset = load_dataset(recordings["cartpole"])
    store = new_run(reference, tmp_path)
    for instances, choices, resources, message in [
        (1, Choices(), Resources(), "1 instances cannot certify anything.*at least 11"),
        (INSTANCES, Choices(), Resources(device="cuda"), "no GPU"),
    ]:
        with pytest.raises(MucdError, match=message):
            train(store, dataset, instances, choices, resources)
    with pytest.raises(MucdError, match="eta 2"):
        Choices(eta=2)
    with pytest.raises(MucdError, match="has changed"):
        train(store, load_dataset(recordings["acrobot"]), INSTANCES, Choices(), Resources())
    assert store.names() == []


@pytest.mark.parametrize(
    "changes, choices, named",
    [
        ({}, {}, None),
        ({"fraction": 0.01, "instances": 1000, "unit": "transition"}, {"eta": 0.001, "threat": "symmetric", "accountant": "rdp", "band": "dkw"}, None),
        ({"fraction": 0.02}, {}, "fraction"),
        ({"instances": 900}, {}, "instances"),
        ({}, {"eta": 0.002}, "eta"),
        ({}, {"threat": "substitute"}, "threat"),
        ({}, {"looks": "anytime"}, "looks"),
        ({"steps": 50, "clip_norm": 0.2}, {"eta": 0.002}, "eta, steps, clip norm"),
    ],
)  # fmt: skip
def test_whatever_of_the_user_shapes_a_planned_mechanism_is_said(recordings, changes, choices, named):
    """Where the value is not the default: only then the mechanism is another one."""
    dataset = load_dataset(recordings["cartpole"])
    settings, _ = make_settings(Request(dataset=recordings["cartpole"], **changes), dataset, Choices(**choices))
    (note,) = (text for text in settings.assumptions if text.startswith("The mechanism was planned"))
    usual, _ = make_settings(Request(dataset=recordings["cartpole"]), dataset, Choices())
    if named is None:
        assert note.endswith(" alone.") and settings.mechanism == usual.mechanism
    else:
        assert f" alone, with {named} given by the user. The claim is conditional" in note and settings.mechanism != usual.mechanism


def test_what_of_a_certificate_was_given_is_said(reference, tmp_path):
    store = new_run(reference, tmp_path)
    for choices, named in ((Choices(), None), (Choices(threat="insert", accountant="rdp"), None), (Choices(eta=0.01, band="dkw"), "eta, band")):
        notes = [text for text in assumptions(store, store.settings(), choices, FIRST) if text.startswith("Of this certificate")]
        assert notes == ([] if named is None else [f"Of this certificate {named} were given by the user: the confidence holds if they were not chosen by looking at results."])


def test_public_constants_are_not_rounded_in_assumptions(recordings):
    learner = Learner(learning_rate=1.0, local=LocalUpdate(min_return=-1234564.5))
    settings, _ = make_settings(Request(dataset=recordings["cartpole"], unit="trajectory", units=11, learner=learner), load_dataset(recordings["cartpole"]), Choices())
    assert "Trajectories that earned less than -1234564.5 count as zero; this constant is public." in settings.assumptions


def test_a_row_more_trains_the_same_mechanism(recordings):
    """The mechanism must not follow len(D): within the certified radius every dataset gets the same constants."""
    import dataclasses

    dataset = load_dataset(recordings["cartpole"])
    settings, _ = make_settings(request(recordings["cartpole"]), dataset, Choices())
    n = len(dataset)
    for rows in (np.arange(n - 1), np.r_[np.arange(n), [5]], np.r_[np.arange(n), np.full(settings.size_margin - 1, 7)]):
        starts = np.unique(np.r_[0, n - 1, len(rows)])
        arrays = {k: getattr(dataset, k)[rows] for k in ("observations", "next_observations", "actions", "rewards")}
        ends = np.zeros(len(rows), bool)
        changed = dataclasses.replace(dataset, **arrays, terminations=ends, truncations=ends, trajectory_starts=starts)
        other, _ = make_settings(request(recordings["cartpole"]), changed, Choices())
        assert other.mechanism == settings.mechanism and other.learner == settings.learner


def test_what_happens_to_be_stored_is_not_certified(reference, tmp_path):
    """Which blocks of an interrupted run are finished depends on its returns: only numbers asked for beforehand count."""
    store = new_run(reference, tmp_path)
    whole = reference.read(reference.names()[0])
    store.write_states(reference.states())

    def part(first, last):
        return Block(
            first=first, returns=whole.returns[first:last], actions=whole.actions[first:last], levels=whole.levels[first:last],
            parameters={name: value[first:last] for name, value in whole.parameters.items()},
        )

    store.add_target(30)
    store.commit(part(0, 20))
    store.commit(part(25, 40))
    with pytest.raises(MucdError, match="not finished .30 instances"):
        certify(store, Choices())
    store.commit(part(20, 25))
    smaller = certify(store, Choices())
    assert smaller["results"]["instances"] == 30
    # A larger run that overlapped it came first: there is no goal to speak of.
    store.add_target(40)
    certify(store, Choices())
    with pytest.raises(MucdError, match=r"a certificate of 40 instances, more than these 30: it stays as it is; `mucd certify \S+` certifies all$"):
        _write_larger(store, smaller)
    # Votes belong to their states.
    store = RunStore.open(store.path)
    (store.path / "states.npy").unlink()
    store.write_states(reference.states()[::-1])
    with pytest.raises(MucdError, match="other states"):
        certify(store, Choices())


def test_a_threat_chosen_later_does_not_escape_the_size_margin(recordings, tmp_path):
    dataset = load_dataset(recordings["cartpole"])
    settings, _ = make_settings(request(recordings["cartpole"]), dataset, Choices(threat="substitute"))
    assert settings.radius_cap("substitute") == len(dataset)
    for threat in ("symmetric", "insert", "remove"):
        assert settings.radius_cap(threat) == settings.size_margin < len(dataset) / 5
        assert str(settings.size_margin) in settings.size_note(threat)
    declared, _ = make_settings(request(recordings["cartpole"], units=3000), dataset, Choices())
    assert declared.radius_cap("symmetric") == len(dataset)
    edge = dataclasses.replace(settings, size_margin=0)
    with pytest.raises(MucdError, match="--units"):
        edge.radius_cap("symmetric")


@pytest.mark.slow
def test_drivers_that_overlap_share_the_work_and_agree(recordings, reference, tmp_path):
    """A second attempt at the same run, and one that grows it, while the first is still at work: real processes, each with its own Ray."""
    store = new_run(reference, tmp_path)

    def driver(instances):
        code = (
            "from mucd_ray.service.runs.driver import *; from mucd_ray.data.formats.minari import load_dataset; "
            f"train(RunStore.open({str(store.path)!r}), load_dataset({recordings['cartpole']!r}), {instances}, Choices(), Resources(block=1, actors=1))"
        )
        return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    first = driver(FIRST)
    deadline = time.monotonic() + 120
    while len(store.names()) < 2 and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    others = [driver(FIRST), driver(INSTANCES)]
    texts = [process.communicate(timeout=400)[1] for process in (first, *others)]
    assert [process.returncode for process in (first, *others)] == [0, 0, 0], texts
    assert_same(store, reference)
    assert store.targets() == [FIRST, INSTANCES] and drivers(store) == []


@pytest.mark.slow
def test_a_driver_that_is_killed_goes_on_where_it_stopped(recordings, reference, tmp_path):
    """A real process, its own Ray, SIGKILL in the middle; then the same command again."""
    out = str(tmp_path / "run")
    new_run(reference, tmp_path)
    code = (
        "import sys; from mucd_ray.service.runs.driver import *; from mucd_ray.data.formats.minari import load_dataset; "
        f"store = RunStore.open({out!r}); "
        f"train(store, load_dataset({recordings['cartpole']!r}), {INSTANCES}, Choices(), Resources(block=2, actors=1))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    store = RunStore.open(out)
    deadline = time.monotonic() + 120
    while len(store.names()) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {name: (store.path / "blocks" / name).read_bytes() for name in store.names()}
    assert 3 <= len(kept) < INSTANCES / 2, "the kill came too late to mean anything"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert_same(store, reference)
    assert all((store.path / "blocks" / name).read_bytes() == content for name, content in kept.items())
