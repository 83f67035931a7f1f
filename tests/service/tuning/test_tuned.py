"""tuned.json: from a file to the settings of a run, and what a certificate says about how its constants were found."""

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from mucd_ray.certify.file.certificate import content_hash, verify
from mucd_ray.certify.rounding import percent_down
from mucd_ray.cli import main
from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.errors import MucdError
from mucd_ray.learn.learner import Learner
from mucd_ray.learn.trainers.built_in import Fit
from mucd_ray.learn.trainers.outside import outside
from mucd_ray.mechanism.bag import Bag
from mucd_ray.mechanism.bag_then_noise import BagThenNoise
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.compare import compare_runs, side_by_side
from mucd_ray.service.runs.driver import certify, training_units
from mucd_ray.service.runs.session import Request, make_settings
from mucd_ray.service.runs.summary import describe, finish
from mucd_ray.service.runs.work import choose_states, train_and_evaluate
from mucd_ray.service.storage.store import RunStore
from mucd_ray.service.tuning.tuned import SIMULATOR, TRUSTED, Origin, Tuned, TunedBag, TunedNoisyBag, read_tuned

FOREIGN = Path(__file__).parents[2] / "foreign_trainers.py"
SECRET = b"s" * 32
OTHER = Origin(kind=SIMULATOR, name="tuning/cartpole-v1-ab-v0", fingerprint="ab" * 32, units=3000, trials=4)


def tuned(**changes):
    learner = Learner(learning_rate=20.0, hidden=(4,), average=0.25)
    return Tuned(**{"environment": "CartPole-v1", "unit": "transition", "learner": learner, "sample_rate": 0.25, "steps": 9, "clip_norm": 0.2, "signal_budget": 150.0, "how": OTHER} | changes)


def tuned_bag(**changes):
    learner = Learner(learning_rate=0.002, hidden=(8,), optimiser="adam")
    return TunedBag(**{"environment": "CartPole-v1", "unit": "trajectory", "learner": learner, "kind": "bag", "bag_size": 3, "fit": Fit(steps=40, batch=64, top_share=0.4), "how": OTHER} | changes)


def tuned_noisy_bag(**changes):
    learner = Learner(learning_rate=20.0, hidden=(4,), average=0.25)
    return TunedNoisyBag(**{"environment": "CartPole-v1", "unit": "trajectory", "learner": learner, "bag_size": 3, "noise_multiplier": 2.5, "steps": 9, "clip_norm": 0.2, "how": OTHER} | changes)


def of(dataset):
    return Origin(kind=TRUSTED, name=dataset.name, fingerprint=dataset.fingerprint(), units=len(dataset), trials=4)


def test_constants_come_from_the_file_and_the_noise_from_the_declared_size(recordings, tmp_path):
    (tmp_path / "tuned.json").write_text(json.dumps(tuned().to_dict()))
    read = read_tuned(str(tmp_path / "tuned.json"))
    assert read == tuned() and read.key() == tuned().key() != tuned(steps=10).key()
    dataset = load_dataset(recordings["cartpole"])
    settings, _ = make_settings(Request(dataset=dataset.name, units=4000, tuned=read), dataset, Choices())
    mechanism = settings.mechanism
    assert (mechanism.sample_rate, mechanism.steps, mechanism.clip_norm, mechanism.normaliser) == (0.25, 9, 0.2, 1000.0)
    assert mechanism.noise_multiplier == pytest.approx(4000 * 0.25 * 3 / 150) and mechanism.signal_budget(4000) == pytest.approx(150)
    assert (settings.learner.hidden, settings.learner.learning_rate, settings.learner.average) == ((4,), 20.0, 0.25)
    assert settings.condition is None and any("tuned in 4 trials on tuning/cartpole-v1-ab-v0" in text and "in the simulator" in text for text in settings.assumptions)
    assert "a signal budget of 1234567.5." in tuned(signal_budget=1234567.5).note(dataset)
    # Without a declared size it is the rounded one.
    rounded, _ = make_settings(Request(dataset=dataset.name, tuned=tuned(unit="transition")), dataset, Choices())
    assert rounded.mechanism.signal_budget(rounded.declared_size) == pytest.approx(150) and rounded.size_margin > 0


def test_of_bags_and_parts_everything_comes_from_the_file(recordings, tmp_path):
    dataset = load_dataset(recordings["cartpole"])
    for constants in (tuned_bag(), tuned_bag(kind="partition", unit="transition", bag_size=200)):
        (tmp_path / "tuned.json").write_text(json.dumps(constants.to_dict()))
        read = read_tuned(str(tmp_path / "tuned.json"))
        assert read == constants and read.key() != tuned_bag(bag_size=4).key()
        settings, _ = make_settings(Request(dataset=dataset.name, tuned=read), dataset, Choices())
        assert settings.fit == constants.fit and settings.learner.hidden == (8,) and settings.mechanism.kind == constants.kind and settings.condition is None
        assert settings.card == settings.card.raw() and any("tuned in 4 trials on tuning/cartpole-v1-ab-v0" in text for text in settings.assumptions)
        if constants.kind == "bag":
            assert settings.mechanism == Bag(bag_size=3) and settings.size_margin is None and settings.declared_size is None
        else:
            # Their number follows from the rounded size, beyond whose margin nothing is claimed.
            assert settings.mechanism.parts == -(-settings.declared_size // 200) and settings.size_margin > 0
            assert any("the number of parts follows from the declared size and 200 transitions in each" in text for text in settings.assumptions)
    assert make_settings(Request(dataset=dataset.name, tuned=tuned_bag(how=of(dataset))), dataset, Choices())[0].condition == "tuned-on-this-dataset"
    with pytest.raises(MucdError, match="bag size 1000000 is above"):
        make_settings(Request(dataset=dataset.name, tuned=tuned_bag(bag_size=10**6)), dataset, Choices())
    with pytest.raises(MucdError, match="constants of the bag mechanism"):
        make_settings(Request(dataset=dataset.name, tuned=tuned_bag(), mechanism="partition"), dataset, Choices())


def test_of_bags_with_noise_nothing_follows_from_the_size(recordings, tmp_path):
    dataset = load_dataset(recordings["cartpole"])
    (tmp_path / "tuned.json").write_text(json.dumps(tuned_noisy_bag().to_dict()))
    read = read_tuned(str(tmp_path / "tuned.json"))
    assert read == tuned_noisy_bag()
    settings, _ = make_settings(Request(dataset=dataset.name, tuned=read), dataset, Choices())
    assert settings.mechanism == BagThenNoise(bag_size=3, draws="fixed", sample_rate=1.0, noise_multiplier=2.5, clip_norm=0.2, steps=9, normaliser=3.0)
    assert settings.size_margin is None and settings.declared_size is None and settings.radius_cap("symmetric") == dataset.trajectories
    assert any("Learner, bag size, noise multiplier, steps and clip norm were tuned in 4 trials" in text for text in settings.assumptions)
    with pytest.raises(MucdError, match="bag size 1000000"):
        make_settings(Request(dataset=dataset.name, tuned=tuned_noisy_bag(bag_size=10**6)), dataset, Choices())


def test_a_trainer_of_ones_own_is_run_on_ones_word_alone(recordings, tmp_path, capfd):
    dataset, trainer = load_dataset(recordings["cartpole"]), outside("function", f"{FOREIGN}:ridge")
    file = tmp_path / "tuned.json"
    file.write_text(json.dumps(tuned_bag(learner=None, fit=None, trainer=trainer).to_dict()))
    read = read_tuned(str(file))
    assert read.trainer == trainer and "trainer" not in tuned_bag().to_dict()
    settings, _ = make_settings(Request(dataset=dataset.name, tuned=read, trainer=trainer), dataset, Choices())
    assert settings.trainer == trainer and settings.fit is None and settings.mechanism == Bag(bag_size=3)
    assert any(text.startswith("The bag size was tuned in 4 trials") for text in settings.assumptions)
    for other in (None, dataclasses.replace(trainer, sha256="0" * 64), dataclasses.replace(trainer, seconds=5.0)):
        with pytest.raises(MucdError, match="run only on your word"):
            make_settings(Request(dataset=dataset.name, tuned=read, trainer=other), dataset, Choices())
    with pytest.raises(MucdError, match="constants of the package's learners"):
        make_settings(Request(dataset=dataset.name, tuned=tuned_bag(), trainer=trainer), dataset, Choices())
    assert main(["run", dataset.name, "--storage", str(tmp_path / "run"), "--tuned", str(file)]) == 2
    assert "run only on your word" in capfd.readouterr().err and not (tmp_path / "run").exists()


def test_the_same_data_by_another_key_are_the_data_that_were_tuned_on(recordings):
    dataset = load_dataset(recordings["cartpole"])
    by_two = dataclasses.replace(dataset, name="another/name-v0", sources=np.arange(dataset.trajectories) % 2)
    assert by_two.fingerprint() != dataset.fingerprint() and tuned(how=of(dataset)).condition(by_two) == "tuned-on-this-dataset"


def test_the_dataset_that_was_tuned_on_makes_a_run_conditional_also_after_an_edit(recordings):
    dataset = load_dataset(recordings["cartpole"])
    edited = dataclasses.replace(dataset, rewards=dataset.rewards + 1)
    for data in (dataset, edited, dataclasses.replace(dataset, name="another/name-v0")):
        assert make_settings(Request(dataset=data.name, tuned=tuned(how=of(dataset))), data, Choices())[0].condition == "tuned-on-this-dataset"
    fresh = dataclasses.replace(edited, name="another/name-v0")
    settings, _ = make_settings(Request(dataset=fresh.name, tuned=tuned(how=of(dataset))), fresh, Choices())
    assert settings.condition is None and any("declared that dataset trusted" in text for text in settings.assumptions)


def test_a_conditional_claim_says_so_and_verifies_and_a_forged_one_does_not(recordings, tmp_path):
    dataset = load_dataset(recordings["cartpole"])
    stores = {}
    for name, how in (("conditional", of(dataset)), ("fresh", OTHER)):
        settings, _ = make_settings(Request(dataset=dataset.name, tuned=tuned(how=how), states=4, held_out=1), dataset, Choices())
        store = stores[name] = RunStore.create_or_open(tmp_path / name, settings, secret=SECRET)
        units = training_units(settings, dataset)
        states = store.write_states(choose_states(settings, SECRET, units, "cpu"))
        store.add_target(24)
        store.commit(train_and_evaluate(settings, SECRET, units, states, range(24), "cpu"))
        store.write_json("baselines.json", {"reference": [1] * 4})
    # What a later command reads from the folder carries it, too.
    certificate = certify(RunStore.open(tmp_path / "conditional"), Choices(threat="insert"))
    assert certificate["inputs"]["condition"] == "tuned-on-this-dataset" and certificate["claim"][0].startswith("CONDITIONAL: ") and verify(certificate) == []
    summary = finish(stores["conditional"], certificate)
    assert "CONDITIONAL: " in describe(summary)
    fresh = certify(stores["fresh"], Choices(threat="insert"))
    assert fresh["inputs"]["condition"] is None and not any("CONDITIONAL" in text for text in fresh["claim"])
    assert "CONDITIONAL" not in describe(finish(stores["fresh"], fresh))
    for condition, found in ((None, "claim"), ("harmless", "inputs"), (["tuned-on-this-dataset"], "inputs")):
        forged = copy.deepcopy(certificate)
        forged["inputs"]["condition"] = condition
        forged["sha256"] = content_hash(forged)
        assert any(text.startswith(found) for text in verify(forged)), condition

    rows = side_by_side(compare_runs([str(store.path) for store in stores.values()])).splitlines()
    assert [row.split()[-1] for row in rows] == ["holds", "conditional", "yes"] and all("bc" in row and "transition" in row for row in rows[1:])
    keeps = summary["keeps"]["0.5"]
    assert (f"{percent_down(keeps['fraction'])} %" if keeps["radius"] >= 0 else "-") in rows[1]
    (tmp_path / "fresh" / "summary.json").unlink()
    with pytest.raises(MucdError, match="has no summary: make it with `mucd certify"):
        compare_runs([str(tmp_path / "fresh")])


@pytest.mark.parametrize("content, message", [
    ("[1]", "is not what `mucd tune` writes"),
    ('{"format": "mucd-tuned/2"}', "its format is not mucd-tuned/1"),
    (json.dumps(tuned().to_dict() | {"signal_budget": 0}), "signal budget 0 must be"),
    (json.dumps(tuned().to_dict() | {"extra": 0}), "extra"),
    (json.dumps(tuned_bag().to_dict() | {"bag_size": 2.5}), "bag.size 2.5 must be a whole number"),
    (json.dumps(tuned_bag().to_dict() | {"kind": "forest"}), "mechanism 'forest' has no bags"),
    (json.dumps(tuned_bag().to_dict() | {"fit": {"steps": 0}}), "steps 0"),
    (json.dumps(tuned_bag().to_dict() | {"format": []}), "is not what"),
    (json.dumps(tuned_bag().to_dict() | {"fit": None}), "one of the two must be there"),
    (json.dumps(tuned_bag().to_dict() | {"learner": None}), "one of the two must be there"),
    (json.dumps(tuned_bag().to_dict() | {"trainer": {"kind": "function"}}), "trainer must be"),
    (json.dumps(tuned_noisy_bag().to_dict() | {"noise_multiplier": -1.0}), "noise multiplier -1"),
    (json.dumps(tuned().to_dict() | {"sample_rate": "0.1"}), "sample_rate '0.1' must be a finite number"),
    (json.dumps(tuned().to_dict() | {"clip_norm": None}), "clip_norm None must be a finite number"),
    (json.dumps(tuned().to_dict() | {"steps": -1}), "steps -1 must be a whole number"),
    *((json.dumps(tuned().to_dict() | {"how": tuned().to_dict()["how"] | {name: wrong}}), f"{name} .* must be") for name, wrong in (("name", "a\nb"), ("fingerprint", 5), ("units", "x"), ("trials", 0))),
])
def test_a_bad_file_is_one_clear_line(tmp_path, content, message):
    (tmp_path / "tuned.json").write_text(content)
    with pytest.raises(MucdError, match=message):
        read_tuned(str(tmp_path / "tuned.json"))


def test_options_beside_a_tuned_file_and_another_environment_are_refused(recordings, tmp_path, capfd):
    file = tmp_path / "tuned.json"
    file.write_text(json.dumps(tuned().to_dict()))
    base = ["run", recordings["acrobot"], "--storage", str(tmp_path / "run"), "--tuned", str(file)]
    for more, message in ((["--steps", "5"], "sets --steps"), (["--unit", "transition"], "sets --unit"), ([], "were tuned for CartPole-v1, and acrobot/test-v0 is of Acrobot-v1")):
        assert main([*base, *more]) == 2
        assert message in capfd.readouterr().err
    assert main([*base[:-1], str(tmp_path / "none.json")]) == 2 and "cannot read" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
