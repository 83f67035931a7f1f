"""`mucd tune`: what it asks and refuses, and a real study on real Ray that is killed and goes on."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import minari
import numpy as np
import pytest

from mucd_ray.certify.guarantees import Guarantees
from mucd_ray.certify.planning.bags import certified_radius
from mucd_ray.certify.planning.plan import wanted_radius
from mucd_ray.cli import build_parser, main
from mucd_ray.data.formats.minari import load_dataset, local_datasets
from mucd_ray.data.recording.record import record
from mucd_ray.errors import MucdError
from mucd_ray.learn.trainers.outside import outside
from mucd_ray.service.storage.store import RunStore
from mucd_ray.service.tuning.spaces import STEPS
from mucd_ray.service.tuning.trial import begun_points
from mucd_ray.service.tuning.tune import OUTLOOK, _check_same, make_question, tuning_data
from mucd_ray.service.tuning.tuned import SIMULATOR, TRUSTED, read_tuned

FOREIGN = Path(__file__).parents[2] / "foreign_trainers.py"
NOISE, BAGS, PARTS = ("--signal-budget", "150"), ("--mechanism", "bag", "--fraction", "0.05"), ("--mechanism", "partition", "--fraction", "0.05")


def command(recordings, folder, *more, kind=NOISE):
    return ["tune", "--tune-on", recordings["cartpole"], "--storage", str(folder), "--trials", "3", "--most-instances", "8", "--instances", "200", *kind, *more]


def question(recordings, *more, kind=NOISE):
    options = build_parser().parse_args(command(recordings, "unused", *more, kind=kind))
    return make_question(options, TRUSTED, load_dataset(recordings["cartpole"]))


def test_every_point_of_the_search_has_the_signal_budget(recordings):
    asked = question(recordings, "--units", "50000")
    assert asked.rungs == [4, 8] and 0 < asked.fraction < 1
    space = asked.space()
    rng = np.random.default_rng(0)
    for config in (asked.start(), *({name: domain.sample(random_state=rng) for name, domain in space.items()} for _ in range(20))):
        assert all(space[name].is_valid(value) for name, value in config.items())
        tuned = asked.tuned(config)
        for units in (3000, 50000):
            assert tuned.mechanism(units).signal_budget(units) == pytest.approx(150)
        assert STEPS[0] <= tuned.steps <= STEPS[1] and tuned.how.kind == TRUSTED


@pytest.mark.parametrize("kind", [BAGS, PARTS], ids=lambda kind: kind[1])
@pytest.mark.parametrize("more", [("--units", "500"), ("--unit", "transition")])
def test_every_point_of_the_search_on_bags_is_a_run_and_the_first_one_certifies_the_target(recordings, kind, more, tmp_path):
    asked, dataset = question(recordings, *more, kind=kind), load_dataset(recordings["cartpole"])
    assert asked.algorithms == ("bc", "iql", "cql") and asked.signal_budget is None and asked.unit == (more[1] if more[0] == "--unit" else "trajectory")
    space, rng = asked.space(), np.random.default_rng(0)
    assert ("top_share" in space) == ("graded" in space) == (asked.unit == "trajectory")
    assert asked.tuned(asked.start()).fit.graded == (asked.unit == "trajectory")
    for config in (asked.start(), *({name: domain.sample(random_state=rng) for name, domain in space.items()} for _ in range(20))):
        assert all(space[name].is_valid(value) for name, value in config.items()) and list(config) == list(space)
        tuned = asked.tuned(config)
        settings = asked.settings(tuned, dataset)
        assert settings.mechanism.kind == kind[1] and settings.fit.steps == config["train_steps"] and settings.learner.algorithm == config["algorithm"]
        # A part of the data to be certified has as many units as one of the tuning data.
        assert settings.mechanism.kind == "bag" or asked.units // tuned.mechanism(asked.units).parts <= tuned.bag_size
    wanted = asked.tuned(asked.start() | {"bag_size": asked.certified_units}).mechanism(asked.units)
    of_vote = {"instances": 200, "eta": 0.001, "actions": 2, "threat": "symmetric"}
    assert certified_radius(wanted, units=asked.units, **of_vote) >= wanted_radius(asked.units, 0.05)
    # What a killed study goes on from, and what it refuses.
    file = tmp_path / "trials" / "key" / "point.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"began": 1.0, "point": asked.start()}))
    assert begun_points(tmp_path, asked) == [asked.start()]
    for foul in ({"bag_size": 10**9}, {"hidden": "9"}, {"algorithm": "dqn"}, {"batch_size": 32.5}):
        file.write_text(json.dumps({"began": 1.0, "point": asked.start() | foul}))
        with pytest.raises(MucdError, match="no point of the search"):
            begun_points(tmp_path, asked)


def test_of_clones_grades_or_a_share_and_of_others_a_share(recordings):
    asked = question(recordings, kind=BAGS)
    for algorithm, graded in ((algorithm, graded) for algorithm in ("bc", "iql") for graded in (True, False)):
        fit = asked.tuned(asked.start() | {"algorithm": algorithm, "graded": graded, "top_share": 0.3}).fit
        assert (fit.graded, fit.top_share) == ((True, 1.0) if graded and algorithm == "bc" else (False, 0.3))
    # What the card declares is where the search begins, and how many entries a policy looks at is not searched.
    card = {name: value for name, value in asked.card.items() if not name.startswith("mirror")} | {"entries": 2, "learning_rate": 0.003}
    declaring = dataclasses.replace(asked, card=card)
    found = declaring.tuned(declaring.start())
    assert (found.fit.entries, found.fit.mirrored, found.learner.learning_rate) == (2, False, 0.003) and asked.tuned(asked.start()).fit.mirrored
    # Without clones of discrete actions there are no grades.
    assert "graded" not in question(recordings, "--algorithm", "iql,cql", kind=BAGS).space()


def test_what_policies_see_is_searched_where_it_is_asked_for(recordings, tmp_path):
    dataset, seen = load_dataset(recordings["cartpole"]), ("--entries", "all,2", "--history", "2,1")
    asked = question(recordings, *seen, kind=BAGS)
    assert list(asked.space())[-2:] == ["entries", "history"] and (asked.start()["entries"], asked.start()["history"]) == ("all", 2)
    for entries, history in (("all", 2), ("2", 1), ("2", 2)):
        tuned = asked.tuned(asked.start() | {"entries": entries, "history": history})
        settings = asked.settings(tuned, dataset)
        assert settings.fit.entries == (None if entries == "all" else 2) and settings.card.history == tuned.history == history
        (tmp_path / "tuned.json").write_text(json.dumps(tuned.to_dict()))
        assert read_tuned(str(tmp_path / "tuned.json")) == tuned and ("history" in tuned.to_dict()) == (history > 1)
        assert any("tuned with the other constants" in note for note in settings.assumptions) == (history > 1) == ("how many observations" in settings.assumptions[0])
    plain = question(recordings, kind=BAGS)
    assert not {"entries", "history"} & set(plain.space()) and "history" not in plain.tuned(plain.start()).to_dict()
    # A card without a mirror is searched, too.
    without = dataclasses.replace(plain, card={name: value for name, value in plain.card.items() if not name.startswith("mirror")})
    assert plain.of_card["mirrored"] and not without.of_card["mirrored"]


@pytest.mark.slow
def test_a_study_of_what_policies_see_makes_a_run(recordings, tmp_path, capfd, local_ray):
    asked = ["--algorithm", "bc", "--entries", "2,all", "--history", "2,3", "--trials", "2", "--most-instances", "4"]
    assert main([*command(recordings, tmp_path / "study", kind=BAGS), *asked, "--json"]) == 0
    results = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert [row["failure"] for row in results["trials"]] == [None, None] and {(row["entries"] in ("2", "all"), row["history"] in (2, 3)) for row in results["trials"]} == {(True, True)}
    tuned = read_tuned(results["tuned"])
    run = ["run", recordings["cartpole"], "--tuned", results["tuned"], "--instances", "12", "--held-out", "1", "--states", "4", "--storage", str(tmp_path / "run")]
    assert main([*run, "--history", "5"]) == 2 and "leave --history 5 out" in capfd.readouterr().err
    assert main([*run, "--json"]) == 0
    assert json.loads(capfd.readouterr().out.splitlines()[-1])["features"]["history"] == tuned.history
    assert main(["verify", str(tmp_path / "run" / "certificate.json")]) == 0 and RunStore.open(tmp_path / "run").settings().fit == tuned.fit


def test_of_bags_with_noise_every_point_is_a_run_and_the_first_one_certifies_the_target(recordings):
    asked, dataset = question(recordings, "--mechanism", "bag-then-noise", "--units", "200", kind=("--fraction", "0.05")), load_dataset(recordings["cartpole"])
    space, rng = asked.space(), np.random.default_rng(0)
    first = asked.tuned(asked.start() | {"bag_size": asked.certified_units}).mechanism(asked.units)
    assert certified_radius(first, units=200, instances=200, eta=0.001, actions=2, threat="symmetric") >= wanted_radius(200, 0.05)
    for config in (asked.start(), *({name: domain.sample(random_state=rng) for name, domain in space.items()} for _ in range(5))):
        assert all(space[name].is_valid(value) for name, value in config.items()) and list(config) == list(space)
        settings = asked.settings(asked.tuned(config), dataset)
        assert settings.mechanism.bag_size == config["bag_size"] <= dataset.trajectories and settings.mechanism.steps == config["steps"]


def test_of_a_trainer_of_ones_own_the_size_alone_is_searched(recordings):
    options = build_parser().parse_args(command(recordings, "unused", "--trainer", f"{FOREIGN}:ridge", kind=BAGS))
    trainer = outside("function", f"{FOREIGN}:ridge")
    asked, dataset = make_question(options, TRUSTED, load_dataset(recordings["cartpole"]), trainer), load_dataset(recordings["cartpole"])
    assert list(asked.space()) == list(asked.start()) == ["bag_size"]
    settings = asked.settings(asked.tuned(asked.start()), dataset)
    assert settings.trainer == trainer and settings.fit is None and settings.mechanism.bag_size == asked.start()["bag_size"]


@pytest.mark.slow
def test_a_study_of_ones_own_trainer_over_sources_makes_a_run(recordings, tmp_path, capfd, local_ray):
    """On a trusted recording of twenty operators, then a certified run on another one; both read the key. Before the answer, workers of the Ray in this process may print."""
    for name, seed in (("tuning/operators-v0", 5), ("certify/operators-v0", 6)):
        record("CartPole-v1", None, 3000, seed, name, operators=20)
    limits = ["--trainer", f"{FOREIGN}:ridge", "--train-seconds", "300"]
    asked = ["--mechanism", "bag", "--source-key", "operator", "--fraction", "0.1", "--trials", "2", "--most-instances", "4", "--instances", "100"]
    assert main(["tune", "--tune-on", "tuning/operators-v0", "--storage", str(tmp_path / "study"), *asked, *limits, "--json"]) == 0
    results = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert len(results["trials"]) == 2 and set(results["trials"][0]) == {"key", *OUTLOOK, "bag_size", "failure"}
    tuned = read_tuned(results["tuned"])
    assert tuned.unit == "source" and tuned.how.units == 20 and tuned.trainer.name == f"{FOREIGN}:ridge"
    run = ["run", "certify/operators-v0", "--source-key", "operator", "--tuned", results["tuned"], "--instances", "12", "--held-out", "1", "--states", "4", "--storage", str(tmp_path / "run")]
    assert main([*run, *limits, "--json"]) == 0
    summary = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert summary["unit"] == "source" and summary["units"] == 20 and summary["mechanism"]["bag_size"] == tuned.bag_size and not summary["conditional"]
    assert main(["verify", str(tmp_path / "run" / "certificate.json")]) == 0


def test_the_outlook_is_that_of_the_wanted_number_of_instances(recordings):
    asked = question(recordings)
    guarantees = Guarantees(asked.tuned(asked.start()).mechanism(asked.units), threat="insert")
    same = asked.outlook(np.full(4, 500.0), (0.0, 500.0), guarantees)
    assert same["instances"] == 4 and same["mean_return"] == 500.0
    # What a sample of four could never certify, one of 200 equal returns does.
    assert same["bound_at_target"] > 150 and same["fraction_keeping_half"] >= 0.7 * asked.fraction
    worse = asked.outlook(np.array([500.0, 500.0, 10.0, 500.0]), (0.0, 500.0), guarantees)
    assert worse["bound_at_target"] < same["bound_at_target"] and worse["mean_return"] == 377.5


def test_bad_input_is_one_line(recordings, tmp_path, capfd):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    study = tmp_path / "study"
    study.mkdir()
    (study / "question.json").write_text(json.dumps(question(recordings).to_dict()))
    base = command(recordings, study)
    for arguments, message in (
        ([*base, "--simulate", "CartPole-v1"], "exactly one of them"),
        ([base[0], *base[3:]], "exactly one of them"),
        ([base[0], "--tune-on", "no/such-v0", *base[3:]], "'no/such-v0' is not among the local Minari datasets"),
        ([base[0], "--simulate", "Nowhere-v0", *base[3:]], "no behaviour for 'Nowhere-v0'"),
        ([*base[:-2], "--fraction", "1.5"], "fraction 1.5 is outside (0, 1)"),
        ([*base, "--fraction", "0.01"], "give one"),
        ([*base, "--signal-budget", "20000"], "certify nothing"),
        ([*base, "--trials", "0"], "--trials 0 must be at least 1"),
        ([*base, "--trials", "99999999999"], "--trials 99999999999 must be at least 1, and at most 1,000,000"),
        ([*base, "--most-instances", "99999999999"], "at most 10,000,000"),
        ([*command(recordings, study, kind=BAGS), "--instances", "99999999999"], "at most 10,000,000"),
        ([*command(recordings, study, kind=BAGS), "--units", "9" * 23], "must be at least 1, and at most"),
        ([base[0], "--simulate", "CartPole-v1", *base[3:], "--transitions", "0"], "transitions 0"),
        ([*base, "--trainers-per-trial", "0"], "--trainers-per-trial 0 must be"),
        ([*base, "--algorithm", "nonsense"], "'nonsense' is unknown"),
        ([*base, "--history", "1,2"], "is for --mechanism bag or partition"),
        ([*command(recordings, study, kind=BAGS), "--entries", "all,5"], "entries 5 is above the 4"),
        ([*command(recordings, study, kind=BAGS), "--entries", "2,x"], "must be whole numbers or all"),
        ([*command(recordings, study, kind=BAGS), "--history", "2,2"], "names one twice"),
        ([*command(recordings, study, kind=BAGS), "--history", "0"], "history 0 must be"),
        ([*command(recordings, study, kind=BAGS), "--history", "2", "--unit", "transition"], "not for bag with --unit transition"),
        ([*command(recordings, study, kind=BAGS), "--trainer", f"{FOREIGN}:ridge", "--entries", "2"], "says nothing to"),
        ([*base, "--algorithm", "bc,iql"], "with noise a study is about one algorithm"),
        ([*base, "--mechanism", "bag"], "--signal-budget 150 is about noise"),
        ([*command(recordings, study, kind=BAGS), "--algorithm", "bc,td3-bc"], "'td3-bc'"),
        ([*command(recordings, study, kind=BAGS), "--algorithm", "bc,bc"], "names one twice"),
        (command(recordings, study, kind=("--mechanism", "partition", "--fraction", "0.9")), "not even one part for each"),
        ([*base, "--behaviour", "cartpole-balance"], "are about --simulate"),
        ([base[0], "--simulate", "CartPole-v1", *base[3:], "--source-key", "operator"], "a simulator records no sources"),
        ([*base, "--unit", "source"], "sources have a key"),
        ([*base, "--source-key", "operator"], "no episode has the source key"),
        ([*base, "--trainer", f"{FOREIGN}:ridge"], "is not trained with noise"),
        (command(recordings, tmp_path / "full"), "is not empty and holds no study"),
        (command(recordings, "s3://bucket/study"), "not a URL"),
        ([*base, "--seed", "3"], "holds a study of another question (seed)"),
        ([*base, "--address", "127.0.0.1:1"], "no Ray cluster answers"),
    ):
        assert main(arguments) == 2, arguments
        errors = capfd.readouterr().err.splitlines()
        assert message in errors[-1], (arguments, errors)


def test_a_trial_without_room_is_refused_at_once(local_ray, recordings, tmp_path, capfd):
    assert main(command(recordings, tmp_path / "study", "--trainers-per-trial", "3")) == 2
    assert "a trial takes 3 trainers, and the cluster has room for 2" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("kind", [NOISE, BAGS, PARTS], ids=lambda kind: kind[1])
def test_a_study_that_is_killed_goes_on_and_its_result_makes_a_run(recordings, tmp_path, capfd, kind):
    """Real processes with their own Ray: SIGKILL when the first trial is under way, and again at the second; then the same command once more."""
    folder = tmp_path / "study"
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    whole = [sys.executable, "-m", "mucd_ray.cli", *command(recordings, folder, "--json", kind=kind)]
    for trials in (1, 2):
        process = subprocess.Popen(whole, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, env=environment)
        deadline = time.monotonic() + 400
        while len({path.parts[-3] for path in folder.glob("trials/*/blocks/*.safetensors")}) < trials and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (folder / "results.json").exists(), "the kill came too late to mean anything"
    kept = {path: path.read_bytes() for path in folder.glob("trials/*/blocks/*.safetensors")}
    assert kept
    done = subprocess.run(whole, capture_output=True, text=True, env=environment, timeout=550)
    assert done.returncode == 0, done.stderr
    # Nothing of Optuna's, and nothing of Tune's.
    assert all(line.startswith("trial ") for line in done.stderr.splitlines()), done.stderr
    assert all(path.read_bytes() == content for path, content in kept.items())

    results = json.loads(done.stdout)
    assert results["certified"] is False and len(results["trials"]) == 3 and len({row["key"] for row in results["trials"]}) == 3
    assert {path.name for path in (folder / "trials").iterdir()} == {row["key"] for row in results["trials"]}
    best = results["trials"][0]
    assert best["instances"] == 8 and all(row["instances"] in (4, 8) for row in results["trials"])
    assert best["bound_at_target"] == max(row["bound_at_target"] for row in results["trials"] if row["instances"] == 8)
    for row in results["trials"]:
        # Every instance once, whatever was killed.
        assert RunStore.open(folder / "trials" / row["key"]).stored_instances() >= row["instances"]
    assert list(csv.DictReader((folder / "trials.csv").open()))[0]["key"] == best["key"] and (folder / "pareto.png").read_bytes().startswith(b"\x89PNG")
    tuned = read_tuned(results["tuned"])
    assert tuned.key() == best["key"] and tuned.how.name == recordings["cartpole"] and tuned.how.trials == 3

    # Asked again, a finished study is told without Ray; also in words.
    assert main([*command(recordings, folder, kind=kind), "--address", "127.0.0.1:1"]) == 0
    told = capfd.readouterr().out
    assert best["key"] in told and "not certified" in told
    run = ["run", recordings["acrobot"], "--storage", str(tmp_path / "run"), "--tuned", results["tuned"]]
    assert main(run) == 2 and "were tuned for CartPole-v1" in capfd.readouterr().err


@pytest.mark.slow
def test_a_study_whose_trials_fail_says_why_in_a_line_and_keeps_the_traces(recordings, tmp_path):
    """A module that can be imported here, and not where trials run."""
    (tmp_path / "half.py").write_text("import sys\nif 'default_worker' in sys.argv[0]:\n    raise RuntimeError('no licence here')\n")
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    asked = [sys.executable, "-m", "mucd_ray.cli", *command(recordings, tmp_path / "study", "--trials", "1", "--import", str(tmp_path / "half.py"))]
    failed = subprocess.run(asked, capture_output=True, text=True, env=environment, timeout=550)
    lines = failed.stderr.splitlines()
    assert failed.returncode == 2 and failed.stdout == "" and len(lines) == 2, failed.stderr
    assert lines[0].startswith("trial 1 of 1 failed: --import ") and "no licence here" in lines[0] and lines[1].startswith("mucd: error: every trial failed, the first one so: --import ")
    assert "session.py\", line " in (tmp_path / "study" / "failures.txt").read_text()


def test_a_planted_recording_is_not_what_a_study_simulates(tmp_path, monkeypatch):
    """Under the name that simulated data have, which anybody can work out, among the user's datasets and in the study's own folder."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    options = build_parser().parse_args(["tune", "--simulate", "CartPole-v1", "--transitions", "300", "--storage", str(tmp_path / "study"), "--instances", "200", "--signal-budget", "15"])
    study = tmp_path / "study"
    _, honest = tuning_data(options, study)
    assert len(honest) >= 300 and honest.name.startswith("tuning/cartpole-v1-") and not (tmp_path / "minari" / "tuning").exists()
    for root, name in ((None, honest.name), (study / "data", "simulated-v0")):
        record("CartPole-v1", None, 300, 666, name, noise=(1.0,), root=root, overwrite=True)
        assert load_dataset(name, root).fingerprint() != honest.fingerprint()
        assert tuning_data(options, study)[1].fingerprint() == honest.fingerprint()
    # From here on the study knows its recording by content, and takes it as it is.
    _check_same(study, make_question(options, SIMULATOR, honest))
    before = os.stat(study / "data/simulated-v0").st_ino
    assert tuning_data(options, study)[1].fingerprint() == honest.fingerprint() and os.stat(study / "data/simulated-v0").st_ino == before
    record("CartPole-v1", None, 300, 666, "simulated-v0", noise=(1.0,), root=study / "data", overwrite=True)
    assert tuning_data(options, study)[1].fingerprint() == honest.fingerprint()


def test_strangers_among_the_datasets_stop_no_recording(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    for name in ("stray/data", "a b/data", "x/y/z", "tuning/.hidden/data"):
        (tmp_path / "minari" / name).mkdir(parents=True)
    record("CartPole-v1", None, 100, 1, "tuning/deep/mine-v0")
    assert local_datasets() == ["tuning/deep/mine-v0"]
    assert minari.namespace.list_local_namespaces()
