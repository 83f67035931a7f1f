"""Runs whose instances learn from bags or parts, on a real Ray and in one process: certified, verified, grown, and what fails counts."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from mucd_ray.certify.file.certificate import read_certificate, verify
from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.data.recording.record import record
from mucd_ray.errors import MucdError
from mucd_ray.learn.encoders import encoder_hash
from mucd_ray.learn.learner import Learner, LocalUpdate
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.commands import check_encoder
from mucd_ray.service.runs.driver import certify, train, training_units
from mucd_ray.service.runs.session import Request, execute, make_settings
from mucd_ray.service.runs.summary import describe, finish
from mucd_ray.service.runs.tally import Tally
from mucd_ray.service.runs.work import choose_states, train_and_evaluate
from mucd_ray.service.serving.ensemble import Ensemble
from mucd_ray.service.storage.store import RunStore
from mucd_ray.service.workers.cluster import Resources

SEED = 4
SECRET = hashlib.sha256(f"mucd seed {SEED}".encode()).digest()
FIT = {"steps": 40, "batch": 64}
KINDS = {
    "bag": {"mechanism": "bag", "bag_size": 3}, "replacement": {"mechanism": "bag", "bag_size": 3, "draws": "replacement"},
    "poisson": {"mechanism": "bag", "bag_size": 2, "draws": "poisson", "units": 11}, "partition": {"mechanism": "partition", "parts": 6},
    "transitions": {"mechanism": "bag", "bag_size": 200, "unit": "transition"}, "planned": {"mechanism": "bag", "fraction": 0.02, "unit": "transition"},
    # Some of these bags are empty.
    "noisy": {"mechanism": "bag-then-noise", "bag_size": 2, "sample_rate": 0.5, "noise_multiplier": 3.0, "steps": 10, "units": 11, "fit": None},
    "planned with noise": {"mechanism": "bag-then-noise", "fraction": 0.02, "unit": "transition", "steps": 20, "fit": None},
    "noise on fixed bags": {"mechanism": "bag-then-noise", "draws": "fixed", "bag_size": 40, "fraction": 0.01, "unit": "transition", "steps": 20, "fit": None},
}


def request(dataset, kind="bag", **changes):
    return Request(**{"dataset": dataset, "instances": 25, "states": 12, "held_out": 3, "fit": FIT, **KINDS[kind]} | changes)


def made_here(dataset_id, folder, kind, blocks=(range(25),)):
    """A run in this process, without Ray and baselines."""
    dataset = load_dataset(dataset_id)
    settings, _ = make_settings(request(dataset_id, kind), dataset, Choices())
    store = RunStore.create_or_open(folder / "run", settings, secret=SECRET)
    units = training_units(settings, dataset)
    states = store.write_states(choose_states(settings, SECRET, units, "cpu"))
    store.add_target(25)
    for instances in blocks:
        store.commit(train_and_evaluate(settings, SECRET, units, states, instances, "cpu"))
    return store


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_certified_and_verified(recordings, tmp_path, kind):
    store = made_here(recordings["cartpole"], tmp_path, kind)
    certificate = certify(store, Choices())
    assert verify(certificate) == [] and certificate["results"]["sound"]
    settings, inputs = RunStore.open(store.path).settings(), certificate["inputs"]
    assert settings == store.settings() and inputs["units"] == settings.units
    text = " ".join(certificate["claim"])
    assert {"bag": "bag of its own", "bag-then-noise": "add noise to the sum", "partition": "sorted into 6 parts"}[inputs["mechanism"]["kind"]] in text
    summary = finish(store, certificate)
    assert summary["mechanism"] == inputs["mechanism"] and describe(summary)
    # An empty bag, or part, is a policy of the default action.
    assert (summary["failures"] > 0) == (kind in ("poisson", "partition")) and summary["instances"] == 25
    # What follows from the rounded size claims no radius beyond its margin.
    follows = kind in ("planned", "planned with noise", "noise on fixed bags")
    assert (settings.size_margin is not None) == follows and inputs["radius_cap"] == (settings.size_margin if follows else settings.units)


def test_on_ray_as_in_one_process_whatever_the_blocks_and_growing_keeps_what_is_there(recordings, tmp_path, local_ray):
    summary = execute(request(recordings["cartpole"]), str(tmp_path / "ray"), resources=Resources(block=7), seed=SEED)
    store, alone = RunStore.open(tmp_path / "ray"), made_here(recordings["cartpole"], tmp_path, "bag", (range(11), range(11, 25)))
    ours, theirs = Tally(store, 25).evidence(), Tally(alone, 25).evidence()
    assert np.array_equal(ours.returns, theirs.returns) and np.array_equal(ours.votes, theirs.votes)
    assert summary["failures"] == 0 and summary["baselines"]["non_private"] > 0 and verify(read_certificate(tmp_path / "ray" / "certificate.json")) == []
    curve = read_certificate(tmp_path / "ray" / "certificate.json")["results"]["policy"]["curve"]
    for name, yardstick in summary["yardsticks"].items():
        assert yardstick["return"] == summary["baselines"][name]
        above = np.array(curve["radius"])[np.array(curve["bound"]) > yardstick["return"]]
        assert yardstick["radius"] == (above.max() if len(above) else None)
    assert set(summary["yardsticks"]) == {"best_constant_return", "behaviour"}
    grown = train(store, load_dataset(recordings["cartpole"]), 40, Choices(), Resources(block=7))
    assert grown["results"]["instances"] == 40 and verify(grown) == []
    assert np.array_equal(Tally(store, 25).evidence().returns, ours.returns)


@pytest.mark.slow
def test_a_convolutional_network_on_frames_is_certified(recordings, tmp_path, local_ray):
    record("ALE/Breakout-v5", None, 1000, 5, "breakout/bags-v0", frames=True)
    learner = Learner(network="convolutional", optimiser="adam", learning_rate=1e-3, average=0.5)
    summary = execute(request("breakout/bags-v0", bag_size=1, learner=learner, fit={"steps": 20, "batch": 32}), str(tmp_path / "frames"), resources=Resources(block=13), seed=SEED)
    certificate = read_certificate(tmp_path / "frames" / "certificate.json")
    assert verify(certificate) == [] and summary["failures"] == 0 and certificate["context"]["learner"]["network"] == "convolutional"
    # The policies act on screens as they are: what is served is what voted.
    ensemble = Ensemble(str(tmp_path / "frames"))
    states = RunStore.open(tmp_path / "frames").states()
    assert states.dtype == np.uint8 and len(ensemble.answers(states)) > 0


@pytest.mark.parametrize("changes,complaint", [
    ({"bag_size": 10**6}, "bag size 1000000 is above"), ({"bag_size": 0}, "bag size 0"), ({"mechanism": "partition", "parts": 10**6, "bag_size": None}, "1000000 parts"),
    ({"mechanism": "forest"}, "mechanism 'forest'"), ({"parts": 3}, "parts is for --mechanism partition, not for bag"), ({"noise_multiplier": 3.0}, "noise multiplier is for --mechanism gaussian or bag-then-noise"),
    ({"mechanism": "bag-then-noise"}, "train steps, batch size is for"), ({"mechanism": "bag-then-noise", "fit": None, "noise_multiplier": 3.0}, "needs --bag-size, --sample-rate"),
    ({"mechanism": "bag-then-noise", "fit": None, "draws": "replacement"}, "draws 'replacement' do not go with noise"),
    ({"mechanism": "gaussian", "bag_size": None, "fit": {"mirrored": True}}, "^mirrored is for --mechanism bag or partition"), ({"draws": "all"}, "draws 'all'"),
    ({"learner": Learner(learning_rate=0.1, network="convolutional")}, "wants images"),
    ({"learner": Learner(learning_rate=0.1, local=LocalUpdate(steps=3))}, "local steps"), ({"bag_size": None, "fraction": 0.9}, "not even bags of one trajectory"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(recordings, changes, complaint):
    with pytest.raises(MucdError, match=complaint):
        make_settings(request(recordings["cartpole"], **changes), load_dataset(recordings["cartpole"]), Choices())


def test_accountants_of_noise_are_refused(recordings):
    with pytest.raises(MucdError, match="accountant 'rdp' is for the gaussian mechanism"):
        make_settings(request(recordings["cartpole"]), load_dataset(recordings["cartpole"]), Choices(accountant="rdp"))


@pytest.mark.slow
def test_a_policy_of_trusted_data_is_a_yardstick(recordings, tmp_path, local_ray):
    record("CartPole-v1", None, 600, 91, "cartpole/trusted-v0")
    asked = request(recordings["cartpole"], trusted="cartpole/trusted-v0")
    summary = execute(asked, str(tmp_path / "run"), resources=Resources(block=13), seed=SEED)
    certificate = read_certificate(tmp_path / "run" / "certificate.json")
    trusted = load_dataset("cartpole/trusted-v0")
    assert certificate["context"]["trusted"] == {"name": "cartpole/trusted-v0", "sha256": trusted.fingerprint()} and verify(certificate) == []
    assert summary["yardsticks"]["trusted"]["return"] == summary["baselines"]["trusted"] == certificate["context"]["baselines"]["trusted"] > 0
    # 16 policies play in turns, and the error is theirs.
    assert all(summary["baselines"][f"{name}_episodes"] % 16 == 0 and summary["baselines"][f"{name}_episodes"] > 16 and summary["baselines"][f"{name}_standard_error"] >= 0 for name in ("non_private", "trusted"))
    assert "(± " in next(line for line in describe(summary).splitlines() if line.startswith("trained on all data")) and "±" in (tmp_path / "run" / "report.html").read_text()
    assert "trusted data alone" in describe(summary) and "trusted data alone" in (tmp_path / "run" / "report.html").read_text()
    # Nothing else uses them.
    store = RunStore.open(tmp_path / "run")
    assert np.array_equal(Tally(store, 25).evidence().returns, Tally(made_here(recordings["cartpole"], tmp_path / "alone", "bag"), 25).evidence().returns)
    for name, complaint in ((recordings["cartpole"], "is the one to be certified"), (recordings["acrobot"], "Acrobot")):
        with pytest.raises(MucdError, match=complaint):
            make_settings(request(recordings["cartpole"], trusted=name), load_dataset(recordings["cartpole"]), Choices())


def signs() -> bytes:
    """An encoder of CartPole's observations [n, 4]: the sines of three mixtures."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Sin", ["z"], ["y"])], "encoder",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])], [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


@pytest.mark.slow
def test_an_encoder_takes_the_place_of_observations(recordings, tmp_path, local_ray):
    content, run = signs(), str(tmp_path / "run")
    execute(request(recordings["cartpole"], encoder=content), run, resources=Resources(block=13), seed=SEED)
    certificate, store = read_certificate(tmp_path / "run" / "certificate.json"), RunStore.open(run)
    assert verify(certificate) == [] and certificate["inputs"]["features"] == {"source": "encoder", "card": "CartPole-v1", "encoder": encoder_hash(content)}
    assert encoder_hash(content) in " ".join(certificate["claim"]) and "encoder from outside" in " ".join(certificate["assumptions"])
    assert store.settings().problem.inputs == 3 and store.states().shape == (12, 4)
    # What lies in a run folder is not run on its own word.
    with pytest.raises(MucdError, match="only on your word"):
        Ensemble(run)
    assert len(Ensemble(run, encoder_hash(content)).answers(store.states())) == 12
    (tmp_path / "other").write_bytes(content + b"\x00")
    for path, complaint in ((None, "only on your word"), (tmp_path / "other", "is not that of")):
        with pytest.raises(MucdError, match=complaint):
            check_encoder(run, store.settings().card, path)
    (tmp_path / "run" / "encoder").write_bytes(b"something else")
    with pytest.raises(MucdError, match="not the encoder with which"):
        Ensemble(run, encoder_hash(content))


def test_an_encoder_goes_with_noise_too(recordings):
    dataset = load_dataset(recordings["cartpole"])
    asked = Request(dataset=dataset.name, encoder=signs(), instances=40, steps=4, states=5, held_out=2, fraction=0.005)
    with pytest.raises(MucdError, match="leave --mirrored out"):
        make_settings(replace(asked, mechanism="bag", fraction=0.01, steps=None, fit={"mirrored": True}), dataset, Choices())
    settings, _ = make_settings(asked, dataset, Choices())
    units = training_units(settings, dataset)
    assert units.features.shape == (len(dataset), 3) and np.abs(units.features).max() <= 1
    block = train_and_evaluate(settings, SECRET, units, dataset.observations[:5], range(2), "cpu")
    assert block.actions.shape == (2, 5) and block.parameters["0.weight"].shape == (2, 3, 2)
