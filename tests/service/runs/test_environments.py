"""Environments from outside the package: imported by every process because the user says so, and by nothing that a dataset or a run folder names."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mucd_ray.certify.file.certificate import read_certificate, verify
from mucd_ray.cli import build_parser, main
from mucd_ray.data.environments.own import UserEnvironment
from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.errors import MucdError
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.driver import recorded_outside
from mucd_ray.service.runs.session import Request, make_settings
from mucd_ray.service.storage.store import RunStore
from mucd_ray.service.tuning.tune import make_question, tuning_data

OWN = str(Path(__file__).parents[2] / "own_environment.py")
SMALL = ["--instances", "12", "--held-out", "2", "--states", "6", "--train-steps", "50", "--hidden", "8"]


@pytest.fixture(scope="module")
def corridor(recordings):
    """A recording of the user's environment by a policy of his own."""
    arguments = ["--policy", f"{OWN}:Hesitant", "--noise", "0", "0.5", "1", "--transitions", "1200"]
    assert main(["record", "Corridor-v0", "--import", OWN, *arguments, "--dataset", "corridor/mine-v0"]) == 0
    return "corridor/mine-v0"


def refused(capfd, *arguments):
    capfd.readouterr()
    assert main(list(arguments)) == 2
    error = capfd.readouterr().err
    assert error.startswith("mucd: error: ") and error.count("\n") == 1
    return error


def test_from_an_environment_of_ones_own_to_a_certificate_and_on(corridor, tmp_path, capfd, local_ray):
    """On a real Ray, whose trainers have never heard of it, without a card; a run folder alone imports and makes nothing."""
    run, said = tmp_path / "run", ["--import", OWN, "--return-range", "-40,10"]
    bags = ["--mechanism", "bag", "--bag-size", "3", *SMALL, "--storage", str(run)]
    assert "no environment card is shipped for 'Corridor-v0'" in refused(capfd, "run", corridor, "--import", OWN, *bags)
    assert "declares no bounds of its observations" in refused(capfd, "run", corridor, *said, "--unit", "transition", "--storage", str(run)) and not run.exists()
    assert main(["run", corridor, *said, *bags, "--json"]) == 0
    summary = json.loads(capfd.readouterr().out)
    certificate = read_certificate(run / "certificate.json")
    assert verify(certificate) == [] and certificate["context"]["imports"] == [OWN] and summary["clipped"] == [-40.0, 10.0] and summary["instances"] == 12
    assert any("clipped into the public range [-40, 10]" in text for text in certificate["assumptions"]) and any("clipped return" in text for text in certificate["claim"])
    assert any("range into which returns are clipped was given by the user" in text for text in certificate["assumptions"])

    grow = ["grow", str(run), "--instances", "14"]
    assert f"imports {OWN}, and you name nothing" in refused(capfd, *grow) and "imported only on your word" in refused(capfd, *grow, "--return-range", "-40,10")
    assert "made only on your word" in refused(capfd, *grow, "--import", OWN) and "made only on your word" in refused(capfd, *grow, "--import", OWN, "--return-range", "-41,10")
    assert main([*grow, *said]) == 0
    assert main(["certify", str(run), "--policy", "vote", "--episodes", "1", "--nodes", "5", *said]) == 0
    assert verify(read_certificate(run / "certificate.json")) == []

    forged = tmp_path / "forged"
    shutil.copytree(run, forged)
    (tmp_path / "trap.py").write_text("import pathlib\npathlib.Path(__file__).with_name('sprung').write_text('')\n")
    for change in ({"imports": [str(tmp_path / "trap.py")]}, {"card": RunStore.open(str(run)).settings().card.to_dict() | {"env_id": f"{tmp_path}/trap:Corridor-v0"}}):
        values = json.loads((run / "settings.json").read_text()) | change
        (forged / "settings.json").write_text(json.dumps(values))
        refused(capfd, "grow", str(forged), "--instances", "14", *said)
    assert not (tmp_path / "sprung").exists()


def test_settings_keep_what_the_user_names_and_earlier_runs_named_nothing(corridor):
    dataset = load_dataset(corridor)
    said = UserEnvironment(imports=(OWN,), return_range=(-40.0, 10.0))
    settings, _ = make_settings(Request(dataset=corridor, mechanism="bag", bag_size=3, environment=said), dataset, Choices())
    assert type(settings).from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    before = replace(settings, imports=())
    values = before.to_dict()
    del values["imports"]
    assert type(settings).from_dict(values).identity() == before.identity() != settings.identity()
    with pytest.raises(MucdError, match="recorded in Corridor-v0 with at most 20 steps an episode, the card makes it with 40.*--max-episode-steps 20"):
        make_settings(Request(dataset=corridor, mechanism="bag", bag_size=3, environment=said), replace(dataset, env_max_episode_steps=20), Choices())


def test_how_much_of_a_recording_the_card_does_not_cover(recordings):
    dataset = load_dataset(recordings["cartpole"])
    settings, _ = make_settings(Request(dataset=dataset.name, mechanism="gaussian"), dataset, Choices())
    found = recorded_outside(settings, dataset)
    assert found["returns_outside"] == 0 and found["returns_recorded"] == dataset.trajectories
    observations = dataset.observations.copy()
    observations[: len(dataset) // 2, 2] = 9.0
    rewards = dataset.rewards.copy()
    rewards[0] = -1e308
    found = recorded_outside(settings, replace(dataset, observations=observations, rewards=rewards))
    assert found["observations_outside_feature"] == 2 and 0.5 <= found["observations_outside"] < 0.7 and found["returns_outside"] == 1
    raw, _ = make_settings(Request(dataset=dataset.name, mechanism="bag", bag_size=3), dataset, Choices())
    assert set(recorded_outside(raw, dataset)) == {"returns_recorded", "returns_outside"}
    assert np.isfinite(list(found.values())).all()


@pytest.mark.slow
def test_a_module_that_only_the_driver_finds_is_one_line(corridor, tmp_path, capfd, local_ray, monkeypatch):
    (tmp_path / "only_here.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    arguments = ["--import", "only_here", "--return-range", "-40,10", "--mechanism", "bag", "--bag-size", "3", *SMALL, "--storage", str(tmp_path / "run")]
    capfd.readouterr()
    assert main(["run", corridor, *arguments]) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("mucd: error: ") and "--import only_here cannot be imported (ModuleNotFoundError" in error


def test_a_study_simulates_ones_own_environment_with_ones_own_policy(minari_aside, tmp_path):
    def asked(*more):
        arguments = ["tune", "--simulate", "Corridor-v0", "--import", OWN, "--return-range", "-40,10", "--mechanism", "bag", "--transitions", "700", "--fraction", "0.05", *more]
        options = build_parser().parse_args([*arguments, "--storage", str(tmp_path / "study")])
        return options, *tuning_data(options, tmp_path / "study")

    options, kind, dataset = asked("--policy", f"{OWN}:Hesitant")
    question = make_question(options, kind, dataset)
    settings = question.settings(question.tuned(question.start()), dataset)
    assert question.imports == settings.imports == (OWN,) and settings.card.clip_returns and settings.card.return_range == (-40.0, 10.0) and question.environment == "Corridor-v0"
    assert dataset.name.startswith("tuning/corridor-v0-") and dataset.name != asked("--policy", f"{OWN}:right")[2].name
    with pytest.raises(MucdError, match="no behaviour for 'Corridor-v0'"):
        asked()


@pytest.fixture
def minari_aside(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
