"""Runs whose units are sources, on a real Ray and in one process: certified, verified, grown; keys that changed or lack are refused."""

import json

import minari
import numpy as np
import pytest

from mucd_ray.certify.file.certificate import read_certificate, standing_assumptions, verify
from mucd_ray.cli import main
from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.data.recording.record import record
from mucd_ray.errors import MucdError
from mucd_ray.learn.learner import LocalUpdate
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.driver import certify, train, training_units
from mucd_ray.service.runs.mechanisms import DEFAULT_LEARNER
from mucd_ray.service.runs.session import Request, execute, make_settings
from mucd_ray.service.runs.summary import describe, finish
from mucd_ray.service.runs.work import choose_states, train_and_evaluate
from mucd_ray.service.storage.store import RunStore
from mucd_ray.service.workers.cluster import Resources

DATASET, OPERATORS, SECRET = "cartpole/operators-v0", 20, b"s" * 32
KINDS = {
    "bag": {"mechanism": "bag", "bag_size": 2, "fit": {"steps": 40, "batch": 64}},
    "partition": {"mechanism": "partition", "parts": 4, "fit": {"steps": 40, "batch": 64}},
    "bag-then-noise": {"mechanism": "bag-then-noise", "units": 20, "bag_size": 10, "sample_rate": 1.0, "noise_multiplier": 10.0, "steps": 5, "learner": DEFAULT_LEARNER},
    "gaussian": {"sample_rate": 1.0, "noise_multiplier": 10.0, "steps": 5, "units": 20, "learner": DEFAULT_LEARNER},
    "planned": {"mechanism": "bag", "fraction": 0.05, "fit": {"steps": 40, "batch": 64}},
}


@pytest.fixture(scope="module", autouse=True)
def operators(recordings):
    record("CartPole-v1", None, 8000, 5, DATASET, operators=OPERATORS)


def request(kind, **changes):
    return Request(**{"dataset": DATASET, "source_key": "operator", "instances": 25, "states": 12, "held_out": 3, **KINDS[kind]} | changes)


@pytest.mark.parametrize("kind", KINDS)
def test_every_mechanism_is_certified_and_speaks_of_sources(tmp_path, kind):
    dataset = load_dataset(DATASET, source_key="operator")
    assert dataset.trajectories > dataset.count("source") == OPERATORS
    settings, _ = make_settings(request(kind), dataset, Choices())
    store, units = RunStore.create_or_open(tmp_path / "run", settings, secret=SECRET), training_units(settings, dataset)
    states = store.write_states(choose_states(settings, SECRET, units, "cpu"))
    store.add_target(25)
    store.commit(train_and_evaluate(settings, SECRET, units, states, range(25), "cpu"))
    certificate = certify(store, Choices())
    assert verify(certificate) == [] and RunStore.open(store.path).settings() == settings
    inputs, claim = certificate["inputs"], " ".join(certificate["claim"])
    assert inputs["mechanism"]["unit"] == "source" and inputs["units"] == OPERATORS and certificate["context"]["dataset"]["source_key"] == "operator"
    assert "20 sources" in claim and "What a source is" in claim and "trajectories inserted" not in claim
    assert "20 sources" in describe(finish(store, certificate)) and "20 sources" in (tmp_path / "run/report.html").read_text()
    # Who records the keys is an assumption that no certificate of sources can do without.
    keys = [text for text in standing_assumptions(inputs) if "keys are taken as they were recorded" in text]
    assert len(keys) == 1 and any("by the key 'operator'" in text for text in certificate["assumptions"])
    assert verify(certificate | {"assumptions": [text for text in certificate["assumptions"] if text not in keys]})
    assert (settings.size_margin is not None) == (kind == "planned")


def test_default_grades_and_the_cap_are_of_sources(capfd):
    dataset = load_dataset(DATASET, source_key="operator")
    settings, _ = make_settings(request("bag"), dataset, Choices())
    assert settings.fit.graded and settings.fit.top_share == 1.0
    settings, _ = make_settings(request("bag", fit={"top_share": 0.4}), dataset, Choices())
    assert not settings.fit.graded and settings.fit.top_share == 0.4
    settings, _ = make_settings(request("gaussian", learner=None), dataset, Choices())
    assert any(text.startswith("Of a source with more than 200 transitions") for text in settings.assumptions)
    units = training_units(settings, dataset)
    assert f"{(units.lengths > 200).sum()} of 20 sources have more than 200 transitions" in capfd.readouterr().err
    assert DEFAULT_LEARNER.local == LocalUpdate()


@pytest.mark.parametrize("kind", ["bag", pytest.param("gaussian", marks=pytest.mark.slow)])
def test_on_a_real_ray_and_growing(tmp_path, local_ray, kind):
    summary = execute(request(kind), str(tmp_path / "run"), resources=Resources(block=13), seed=4)
    certificate = read_certificate(tmp_path / "run/certificate.json")
    assert verify(certificate) == [] and summary["unit"] == "source" and summary["units"] == OPERATORS
    assert certificate["results"]["policy"]["curve"]["radius"][-1] <= OPERATORS
    store = RunStore.open(tmp_path / "run")
    with pytest.raises(MucdError, match="has changed since the run"):
        train(store, load_dataset(DATASET), 30, Choices(), Resources())
    if kind == "bag":
        assert main(["grow", str(tmp_path / "run"), "--instances", "30", "--json"]) == 0
        assert read_certificate(tmp_path / "run/certificate.json")["results"]["instances"] == 30


def test_changed_keys_are_another_dataset(tmp_path):
    record("CartPole-v1", None, 4000, 5, "cartpole/changed-v0", operators=4)
    settings, _ = make_settings(request("bag", dataset="cartpole/changed-v0"), load_dataset("cartpole/changed-v0", source_key="operator"), Choices())
    store = RunStore.create_or_open(tmp_path / "run", settings, secret=SECRET)
    minari.load_dataset("cartpole/changed-v0").storage.update_episode_metadata([{"operator": "mallory"}], [0])
    with pytest.raises(MucdError, match="has changed since the run"):
        train(store, load_dataset("cartpole/changed-v0", source_key="operator"), 25, Choices(), Resources())


def test_runs_without_sources_are_what_they_were(recordings):
    """Their blocks carry a hash of the settings, which knew no source key, no mirror and no choice of entries."""
    request = Request(dataset=recordings["cartpole"], mechanism="bag", bag_size=3, fit={"mirrored": False})
    settings, _ = make_settings(request, load_dataset(recordings["cartpole"]), Choices())
    values = json.loads(json.dumps(settings.to_dict()))
    assert values["fit"].pop("entries") is None and values["fit"].pop("mirrored") is False
    assert values.pop("source_key") is None and "source_key" not in settings._deciding() and "entries" not in settings._deciding()["fit"]
    assert type(settings).from_dict(values).identity() == settings.identity()


@pytest.mark.parametrize("arguments,complaint", [
    (["--unit", "source"], "--unit source needs --source-key NAME, the key that tells the source of a trajectory; its episodes have the keys operator"),
    (["--source-key", "robot"], "no episode has the source key 'robot'; its episodes have the keys operator"),
    (["--source-key", "noise"], "attribute 'noise' of /episode_0 is neither a text nor a whole number"),
    (["--source-key", "operator", "--unit", "trajectory"], "source key 'operator' is for --unit source, not for trajectory"),
    (["--source-key", "operator", "--mechanism", "bag", "--bag-size", "21"], "bag size 21 is above the number of sources, 20"),
    (["--source-key", "operator", "--mechanism", "partition", "--parts", "21"], "21 parts of 20 sources"),
    (["--source-key", "operator", "--tuned", "tuned.json"], "cannot read tuned.json"),
])  # fmt: skip
def test_what_does_not_fit_is_one_line(tmp_path, capfd, arguments, complaint):
    assert main(["run", DATASET, "--storage", str(tmp_path / "run"), *arguments]) == 2
    error = capfd.readouterr().err
    assert complaint in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_planning_speaks_of_sources(capfd):
    assert main(["plan", "--units", "200", "--unit", "source", "--fraction", "0.02"]) == 0
    text = capfd.readouterr().out
    assert "of 200 sources" in text and "take bag: a bag of whole sources" in text and "transitions" not in text
    assert np.isfinite(float(text.split("S = ")[1].split()[0]))
