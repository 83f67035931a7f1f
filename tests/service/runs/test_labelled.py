"""Labelled images from their files to a certified accuracy, as a user would do it."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from mucd_ray.certify.file.certificate import read_certificate, verify
from mucd_ray.cli import main
from mucd_ray.data.environments.histograms import gradient_histograms
from mucd_ray.data.formats.labelled import record_labelled
from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.service.runs.summary import ACCURACY_RADII
from mucd_ray.service.serving.ensemble import Ensemble
from tests.data.formats.test_labelled import write_idx

IMAGES = "images/small-v0"


@pytest.fixture
def images(tmp_path, monkeypatch):
    """600 images of 3 classes and 40 for testing, of which a class is bright above: easy, not trivial."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    record_labelled(write_idx(tmp_path / "idx", train=600, test=40, side=8), IMAGES)


def accuracy(dataset, certificate) -> dict:
    """Straight from the certificate's radii and the labels of the files."""
    action = certificate["results"]["action"]
    return {
        str(r): float(np.mean([a == label and radius is not None and radius >= r for a, radius, label in zip(action["action"], action["per_state"]["radius"], dataset.test.labels)])) for r in ACCURACY_RADII
    }


def test_neighbours(images, tmp_path, capfd):
    run = tmp_path / "run"
    command = ["run", IMAGES, "--mechanism", "neighbours", "--neighbours", "60", "--features", "gradient-histograms", "--storage", str(run)]
    assert main([*command, "--json"]) == 0
    summary = json.loads(capfd.readouterr().out)
    dataset, certificate = load_dataset(IMAGES), read_certificate(run / "certificate.json")
    assert summary["certified_accuracy"] == accuracy(dataset, certificate) and summary["units"] == 600 and summary["unit"] == "transition"
    assert "the features gradient-histograms of mucd_ray" in certificate["claim"][1] and verify(certificate) == [] and certificate["inputs"]["actions"]["reference"] == dataset.test.labels.tolist() and isinstance(certificate["inputs"]["actions"]["votes"][0], str)
    # By hand: at each test image the labels of the images nearest to it by plain distances.
    features, states = ([gradient_histograms(image).astype(float) for image in images] for images in (dataset.observations, dataset.test.observations))
    for state, votes in zip(states, certificate["inputs"]["actions"]["votes"]):
        distances = ((np.array(features) - state) ** 2).sum(1)
        assert votes == "".join(str(dataset.actions[unit]) for unit in np.argsort(distances, kind="stable")[: len(votes)])
    assert main(command) == 0
    text = capfd.readouterr().out
    assert "certified and as labelled at" in text and "certified accuracy (each state): " in text
    report = (run / "report.html").read_text()
    assert "as labelled" in report and "reference policy" not in report
    # Other labels are another run.
    changed = Path(os.environ["MINARI_DATASETS_PATH"]) / IMAGES / "data" / "test_labels.npy"
    kept = changed.read_bytes()
    np.save(changed, np.roll(np.load(changed), 1))
    assert main(command) == 2 and "labels_sha256" in capfd.readouterr().err
    changed.write_bytes(kept)


@pytest.mark.slow
def test_bags_and_parts_on_ray(images, tmp_path, capfd, local_ray):
    common = ["--instances", "40", "--train-steps", "100", "--features", "gradient-histograms", "--json"]
    found = {}
    for name, options in (("bag", ["--bag-size", "30"]), ("partition", ["--parts", "40"])):
        assert main(["run", IMAGES, "--mechanism", name, *options, *common, "--storage", str(tmp_path / name)]) == 0
        found[name] = json.loads(capfd.readouterr().out)
        certificate = read_certificate(tmp_path / name / "certificate.json")
        assert verify(certificate) == [] and found[name]["certified_accuracy"] == accuracy(load_dataset(IMAGES), certificate)
        assert found[name]["features"]["source"] == "shipped" and "the features gradient-histograms of mucd_ray at raw observations" in certificate["claim"][0] + " ".join(certificate["claim"])
    assert found["partition"]["certified_accuracy"]["0"] > 0.5
    # More of the same run, without a word about features that are the package's own; and it can be served.
    assert main(["grow", str(tmp_path / "bag"), "--instances", "50", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["certified_accuracy"]["0"] > 0.5
    dataset = load_dataset(IMAGES)
    answers = Ensemble(str(tmp_path / "bag")).answers(dataset.test.observations[:20])
    assert np.mean([answer["action"] == label for answer, label in zip(answers, dataset.test.labels)]) > 0.5


@pytest.mark.parametrize("options, words", [
    (["--mechanism", "partition", "--parts", "601"], "601"),
    (["--mechanism", "neighbours", "--neighbours", "601"], "601"),
    (["--mechanism", "bag", "--bag-size", "30", "--unit", "trajectory"], "each of which is a unit"),
    (["--mechanism", "bag", "--bag-size", "30", "--source-key", "who"], "neither source keys"),
    (["--mechanism", "bag", "--bag-size", "30", "--features", "gradients"], "is neither gradient-histograms nor a plug-in"),
    (["--mechanism", "bag", "--bag-size", "30", "--policy", "vote"], "vote"),
    (["--mechanism", "bag", "--bag-size", "30", "--rollouts", "2"], "leave it out with --no-environment"),
])
def test_bad_input_is_one_line(images, tmp_path, capfd, options, words):
    assert main(["run", IMAGES, *options, "--storage", str(tmp_path / "run")]) == 2
    line, = capfd.readouterr().err.splitlines()
    assert words in line, line
    assert not (tmp_path / "run").exists()


def test_features_of_images_are_not_for_other_observations(recordings, tmp_path, capfd):
    assert main(["run", recordings["cartpole"], "--features", "gradient-histograms", "--storage", str(tmp_path / "run")]) == 2
    assert "is for images" in capfd.readouterr().err


def test_labels_stay_those_with_which_the_run_began(images, tmp_path, capfd):
    run = tmp_path / "run"
    assert main(["run", IMAGES, "--mechanism", "neighbours", "--neighbours", "20", "--storage", str(run)]) == 0
    capfd.readouterr()
    # Without the file that holds them there is a certificate, which says nothing of what is right, until `mucd run` has written it anew.
    (run / "baselines.json").unlink()
    assert main(["certify", str(run), "--json"]) == 0
    assert "certified_accuracy" not in json.loads(capfd.readouterr().out)
    assert main(["run", IMAGES, "--mechanism", "neighbours", "--neighbours", "20", "--storage", str(run), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["certified_accuracy"]["0"] > 0.5
