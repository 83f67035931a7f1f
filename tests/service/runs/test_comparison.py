"""Every defence on one dataset: real small runs on a real Ray, what the table says against the cells' certificates, cells that are kept, and who is ahead in words."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mucd_ray.certify.file.certificate import read_certificate, verify
from mucd_ray.cli import main
from mucd_ray.data.formats.labelled import record_labelled
from mucd_ray.service.runs.comparison import _at, in_words
from mucd_ray.service.runs.summary import ACCURACY_RADII
from tests.data.formats.test_labelled import write_idx

SMALL = ["--instances", "20", "--eta", "0.05", "--parts", "8", "--bag-size", "2", "--neighbours", "6", "--train-steps", "20", "--states", "6", "--episodes", "2", "--nodes", "3"]
ALL = "partition,parl,tparl,neighbours"


def command(dataset, defences, storage, *more):
    return ["compare", dataset, "--defences", defences, *SMALL, *more, "--storage", str(storage)]


@pytest.fixture(scope="module", params=[ALL, pytest.param(f"partition,bag,fa,roe,dparl,gaussian,{ALL}", marks=pytest.mark.slow)], ids=["few", "all"])
def study(request, recordings, local_ray, tmp_path_factory):
    """(folder, results): two defences first, then all in another order."""
    folder = tmp_path_factory.mktemp("comparison") / "study"
    assert main(command(recordings["cartpole"], "partition,parl", folder)) == 0
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.json")}
    assert main(command(recordings["cartpole"], ",".join(reversed(request.param.split(","))), folder)) == 0
    assert len(kept) > 4 and {path: path.stat().st_mtime_ns for path in kept} == kept, "what is finished is not touched"
    return folder, json.loads((folder / "results.json").read_text())


def test_every_number_is_that_of_the_cells_certificate_and_every_cell_is_valid(study):
    folder, results = study
    shared = set()
    for name, row in results["defences"].items():
        certificate = read_certificate(folder / name / "certificate.json")
        assert row["certificate"] == str(folder / name / "certificate.json") and verify(certificate) == []
        found, inputs = certificate["results"], certificate["inputs"]
        rule = found.get("rule")
        assert (rule is not None) == (name in ("parl", "tparl", "dparl", "roe", "fa")) and ("voted" in found) == (rule is None)
        played, radii = (rule, sum(rule["radius"], [])) if rule else (found["policy"], found["action"]["per_state"]["radius"])
        radii = np.array([-1 if radius is None else radius for radius in radii])
        assert row["mean"] == played["unpoisoned_mean"] and row["max_radius"] == max(radii[radii >= 1], default=None)
        for k, r in enumerate(results["radii"]):
            assert row["at"]["certified"][k] == np.mean(radii >= r)
            listed = [bound for radius, bound in zip(played["curve"]["radius"], played["curve"]["bound"]) if radius >= r]
            assert row["at"]["bound"][k] == (listed[0] if listed else inputs["return_range"][0])
        assert row["voted_mean"] == (None if name in ("tparl", "dparl", "roe") else read_certificate(folder / {"parl": "partition", "fa": "spread"}.get(name, name) / "certificate.json")["results"]["voted"]["unpoisoned_mean"])
        assert row["cost"]["complete"] and row["cost"]["instance_steps"] == {"bag": 400, "gaussian": 2000, "neighbours": 0}.get(name, 160)
        assert inputs["mechanism"]["unit"] == "trajectory" and inputs["eta"] == 0.05 and inputs["threat"] == "symmetric"
        shared.add(certificate["context"]["states_sha256"])
    assert len(shared) == 1 and results["states"]["chosen_by"] == "partition (16 held-out instances)" and results["units"] == inputs["units"]
    assert (folder / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert not list((folder / "parl").glob("blocks"))
    if "fa" in results["defences"]:
        assert results["defences"]["fa"]["mechanism"]["spread"] == read_certificate(folder / "spread" / "certificate.json")["inputs"]["mechanism"]["spread"] == 2


def test_the_table_says_what_is_claimed_and_what_is_not(study, recordings, capfd):
    folder, results = study
    names = ",".join(results["defences"])
    assert main([*command(recordings["cartpole"], names, folder), "--json"]) == 0
    again = json.loads(capfd.readouterr().out)
    assert again["defences"] == results["defences"]
    assert main(command(recordings["cartpole"], names, folder)) == 0
    text = capfd.readouterr().out
    for words in ("states certified at", "return at least, of what is deployed", "expected return of the vote at least", "random instance", "vote rule tparl", "vote of neighbours", "certain, no matter of chance",
                  "with probability 95 %", "own 2 episodes with public seeds", "Not: other episodes", "largest mean return of what is deployed", "raw observations", "r counts trajectories"):  # fmt: skip
        assert words in text, words


def test_a_bound_between_listed_radii_is_that_of_the_next_larger():
    curve = {"radius": [0, 1, 4], "value": [9.0, 8.0, 5.0], "beyond": -1.0}
    assert [_at(curve, r) for r in range(6)] == [9.0, 8.0, 5.0, 5.0, 5.0, -1.0]


def test_who_is_ahead_is_told_in_words():
    def row(kind, mean, certified, bound):
        curve = {"radius": [0, 1, 2, 5], "value": [99.0, *bound], "beyond": 0.0}
        return {"mechanism": {"kind": kind}, "mean": mean, "standard_error": 2.0, "voted_mean": mean + 2 if kind == "bag" else None, "deployed": "random instance", "at": {"certified": certified, "bound": bound}, "curves": {"bound": curve}}

    rows = {"bag": row("bag", 90.0, [0.9, 0.2, 0.0], [50.0, 30.0, 0.0]), "neighbours": row("neighbours", 95.0, [0.7, 0.4, 0.1], [0.0, 0.0, 0.0]), "partition": row("partition", 80.0, [0.9, 0.1, 0.0], [60.0, 10.0, 0.0])}
    words = in_words({"defences": rows, "radii": [1, 2, 5], "return_range": [0.0, 100.0], "yardsticks": {"best constant action": 92.0, "behaviour policy": 70.0}})
    assert words == [
        "largest mean return of what is deployed, on the data as they are: neighbours (95 ± 2)",
        "at r = 1 bag and partition certify most states (90 %)",
        "at r = 2 and 5 neighbours certifies most states (40 %, 10 %): a peer or simple method, ahead of bag (20 %, 0 %)",
        "at r = 1 partition certifies most return (60): a peer or simple method, ahead of bag (50)",
        "at r = 2 bag certifies most return (30)",
        "the best constant action, which no poison changes, earns 92: more than bag and partition on the data as they are and than every certified bound from r = 1 on",
    ]
    nothing = {"bag": row("bag", 94.0, [0.0, 0.0, 0.0], [0.0, 0.0, 0.0])}
    words = in_words({"defences": nothing, "radii": [1, 2, 5], "return_range": [0.0, 100.0], "yardsticks": {}})
    assert words[0].endswith("bag (94 ± 2); the voted policy of bag earns more (96)") and "no defence certifies any state at r = 1 or more" in words


def test_labelled_images_have_certified_accuracy(local_ray, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    record_labelled(write_idx(tmp_path / "idx", train=300, test=20, side=8), "images/small-v0")
    # All test images are the states, and one cannot ask for fewer.
    assert main([*command("images/small-v0", "neighbours", tmp_path / "study"), "--json"]) == 2 and "are its test images" in capfd.readouterr().err
    assert main(["compare", "images/small-v0", "--defences", "neighbours", "--neighbours", "10", "--features", "gradient-histograms", "--storage", str(tmp_path / "study"), "--json"]) == 0
    results = json.loads(capfd.readouterr().out)
    assert results["unit"] == "transition" and results["radii"] == list(ACCURACY_RADII[1:]) and "test images" in results["states"]["chosen_by"]
    for name, row in results["defences"].items():
        certificate = read_certificate(tmp_path / "study" / name / "certificate.json")
        action = certificate["results"]["action"]
        right = np.array(action["action"]) == np.array(certificate["inputs"]["actions"]["reference"])
        assert verify(certificate) == [] and row["certified_accuracy"]["0"] == np.mean(right & [radius is not None for radius in action["per_state"]["radius"]])
        assert row["mean"] is None and row["at"]["bound"] is None


@pytest.mark.parametrize("more,complaint", [
    (["--defences", "shield"], "defence 'shield' is unknown"), (["--defences", ""], "is empty"), (["--defences", "bag,,partition"], "is empty"), (["--defences", "bag", "--window", "3"], "--window 3 is for the defences tparl and dparl"),
    (["other/other-v0", "--defences", "bag"], "2 datasets"), (["--storage", "x"], "--storage x is for --defences"), (["--defences", "bag", "--eta", "2"], "eta"), (["--defences", "tparl", "--window", "0"], "window 0"),
    (["--defences", "bag,tparl", "--window", "501", "--episodes", "2"], "defence tparl: --window 501 is longer than an episode"), (["--defences", "bag", "--episodes", "0"], "episodes 0"),
    (["--defences", "partition", "--parts", "100000"], "defence partition: 100000 parts"), (["--defences", "fa", "--parts", "3", "--spread", "1"], "defence fa: vote rule fa is for units that are in several parts"),
    (["--defences", "bag", "--bag-size", "2", "--instances", "1"], "defence bag: 1 instances cannot certify anything"),
])  # fmt: skip
def test_bad_input_is_one_line_before_anything_is_trained(recordings, tmp_path, monkeypatch, capfd, more, complaint):
    monkeypatch.chdir(tmp_path)
    # A number that is given twice counts as it is given last.
    storage = [] if "--storage" in more else ["--storage", "study"] if "--defences" in more else []
    try:
        status = main(["compare", recordings["cartpole"], *more, *storage])
    except SystemExit as ended:
        status = ended.code
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert status == 2 and complaint in line and not list(tmp_path.rglob("settings.json")), line


def test_a_folder_of_something_else_is_refused(study, recordings, tmp_path, capfd):
    folder, _ = study
    for words, complaint in (
        (command(recordings["acrobot"], "partition", folder), "with another dataset, fingerprint"), (command(recordings["cartpole"], "partition", folder, "--unit", "transition"), "with another unit"),
        (command(recordings["cartpole"], "partition", folder, "--threat", "insert"), "with another threat"), (command(recordings["cartpole"], "partition", folder, "--train-steps", "21"), "holds partition with another train steps"),
        (command(recordings["cartpole"], "partition", folder / "partition"), "is not empty and holds no defences side by side"),
    ):
        assert main(words) == 2
        (line,) = capfd.readouterr().err.strip().splitlines()
        assert complaint in line


def test_what_a_folder_brings_along_is_no_defence_of_ours(study, recordings, tmp_path, capfd):
    folder, names = shutil.copytree(study[0], tmp_path / "study"), ",".join(study[1]["defences"])
    for file, content, complaint in (
        ("parl/cost.json", "[]", "does not say with which options parl was made: delete"), ("parl/cost.json", "{", "cannot be read"), ("compare.json", "[]", "with another"), ("states.json", '{"from": "../neighbours"}', None),
        ("parl/certificate.json", (folder / "neighbours" / "certificate.json").read_text(), "is not that of parl on"), ("parl/certificate.json", "{}", "is not a certificate"), ("parl/certificate.json", None, "has no certificate.json"),
    ):
        kept = (folder / file).read_text()
        (folder / file).unlink() if content is None else (folder / file).write_text(content)
        assert main(command(recordings["cartpole"], names, folder)) == (2 if complaint else 0)
        assert complaint is None or complaint in (error := capfd.readouterr().err) and len(error.splitlines()) == 1
        (folder / file).write_text(kept)


def test_defences_that_do_not_fit_are_named(tmp_path, monkeypatch, capfd):
    from mucd_ray.data.recording.record import record

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    record("Pendulum-v1", None, 4000, 5, "pendulum/small-v0")
    for name, complaint in (("neighbours", "defence neighbours: neighbours vote on discrete actions"), ("parl", "defence parl: vote rule parl takes")):
        assert main(command("pendulum/small-v0", f"bag,{name}", tmp_path / "study")) == 2
        assert complaint in capfd.readouterr().err and not (tmp_path / "study").exists()


@pytest.mark.slow
def test_a_comparison_that_is_killed_goes_on(recordings, local_ray, tmp_path):
    """A real process with its own Ray, SIGKILL while the second defence is trained; then the same command again."""
    folder, words = tmp_path / "study", command(recordings["cartpole"], "bag,partition,parl", tmp_path / "study", "--train-steps", "2000", "--instances-per-actor", "1")
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    process = subprocess.Popen([sys.executable, "-m", "mucd_ray.cli", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, env=environment)
    deadline = time.monotonic() + 240
    while not list((folder / "partition").glob("parts/*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert list((folder / "partition").glob("parts/*")) and not (folder / "partition" / "cost.json").exists(), "the kill came too late to mean anything"
    kept = {path: path.read_bytes() for path in Path(folder).glob("*/*") if path.parent.name == "bag" and path.is_file()}
    assert main(words) == 0
    assert all(path.read_bytes() == content for path, content in kept.items())
    results = json.loads((folder / "results.json").read_text())
    assert [row["cost"]["complete"] for row in results["defences"].values()] == [True, False, False]
    assert all(verify(read_certificate(folder / name / "certificate.json")) == [] for name in results["defences"])
