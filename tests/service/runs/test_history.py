"""Runs whose policies see several observations: certified, verified, grown, voted and served; and what such a history is refused with."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from mucd_ray.certify.file.certificate import read_certificate, verify
from mucd_ray.cli import main
from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.data.recording.record import record
from mucd_ray.errors import MucdError
from mucd_ray.learn.learner import Learner
from mucd_ray.learn.trainers.outside import outside
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.driver import certify, training_units
from mucd_ray.service.runs.session import Request, execute, make_settings
from mucd_ray.service.runs.summary import describe
from mucd_ray.service.runs.tally import Tally
from mucd_ray.service.runs.work import choose_states, train_and_evaluate
from mucd_ray.service.serving.ensemble import Ensemble
from mucd_ray.service.serving.serve import make_app
from mucd_ray.service.storage.store import RunStore
from mucd_ray.service.workers.cluster import Resources

FOREIGN = Path(__file__).parents[2] / "foreign_trainers.py"
SECRET = b"s" * 32
DT = Learner(algorithm="dt", network="transformer", optimiser="adam", learning_rate=0.001, average=0.5)


def request(dataset, **changes):
    values = {"instances": 25, "states": 12, "held_out": 3, "fit": {"steps": 60, "batch": 64}, "mechanism": "bag", "bag_size": 3, "history": 3}
    return Request(dataset=dataset, **values | changes)


def made_here(asked, folder):
    """A run in this process, without Ray and baselines."""
    dataset = load_dataset(asked.dataset)
    settings, _ = make_settings(asked, dataset, Choices())
    store = RunStore.create_or_open(folder, settings, secret=SECRET)
    units = training_units(settings, dataset)
    states = store.write_states(choose_states(settings, SECRET, units, "cpu"))
    store.add_target(25)
    store.commit(train_and_evaluate(settings, SECRET, units, states, range(25), "cpu"))
    return store


@pytest.mark.slow
def test_a_run_with_a_history_is_certified_grown_voted_and_served(recordings, tmp_path, local_ray):
    vote = Choices(policy="vote", episodes=2, nodes=40)
    summary = execute(request(recordings["cartpole"]), str(tmp_path / "run"), choices=vote, resources=Resources(block=7), seed=4)
    store, certificate = RunStore.open(tmp_path / "run"), read_certificate(tmp_path / "run" / "certificate.json")
    features = {"source": "raw", "card": "CartPole-v1", "encoder": None, "history": 3}
    assert verify(certificate) == [] and certificate["inputs"]["features"] == summary["features"] == features
    assert any("the last 3 of the episode, oldest first" in sentence for sentence in certificate["claim"])
    assert any(note.startswith("Policies see the last 3 observations") for note in certificate["assumptions"]) and "the last 3 observations" in describe(summary)
    # What verify re-derives includes the history.
    for history in (2, 0, 2.0, "3"):
        assert verify(certificate | {"inputs": certificate["inputs"] | {"features": features | {"history": history}}})
    states = store.states()
    assert states.shape == (12, 3, 4) and store.settings().problem.inputs == 12 and summary["voted"]["episodes"] == 2
    # States are what policies meet: each stack holds observations that follow one another.
    assert any((state[0] != state[2]).any() for state in states)
    ensemble = Ensemble(str(store.path))
    assert np.array_equal(ensemble.evidence(states), certificate["inputs"]["actions"]["counts"]) and len(ensemble.answers(states)) == 12
    schema = make_app(ensemble, None).openapi()["components"]["schemas"]["Observation"]["properties"]["observation"]
    assert (schema["minItems"], schema["items"]["minItems"], schema["items"]["maxItems"]) == (3, 4, 4) and "the last 3 raw observations" in schema["description"]
    before = Tally(store, 25).evidence().returns
    assert main(["grow", str(store.path), "--instances", "28", "--policy", "instance"]) == 0 and main(["verify", str(store.path / "certificate.json")]) == 0
    assert read_certificate(store.path / "certificate.json")["results"]["instances"] == 28 and np.array_equal(Tally(store, 25).evidence().returns, before)


@pytest.mark.parametrize("changes", [{"mechanism": "partition", "bag_size": None, "parts": 5}, {"trainer": outside("function", f"{FOREIGN}:ridge"), "fit": None}], ids=["partition", "outside"])
def test_parts_and_trainers_from_outside_see_it_too(recordings, tmp_path, changes):
    store = made_here(request(recordings["acrobot"], **changes), tmp_path / "run")
    certificate = certify(store, Choices())
    assert verify(certificate) == [] and certificate["inputs"]["features"]["history"] == 3 and store.states().shape == (12, 3, 6)
    assert certificate["context"]["failures"] < 25


@pytest.mark.slow
def test_continuous_policies_see_it_too(tmp_path, recordings):
    record("Pendulum-v1", None, 2000, 5, "pendulum/stacked-v0")
    store = made_here(request("pendulum/stacked-v0", bag_size=2, learner=DT, fit={"steps": 20, "batch": 32}), tmp_path / "run")
    assert verify(certify(store, Choices())) == [] and store.settings().problem.inputs == 3 * (2 + 1 + 3)


def check_transformer(store):
    """What the certificate of policies on CartPole's last three steps says, and what is served."""
    certificate, states = store.certificate(), store.states()
    about, features = certificate["context"]["learner"], {"source": "raw", "card": "CartPole-v1", "encoder": None, "steps": 3}
    assert verify(certificate) == [] and certificate["context"]["failures"] == 0 and (about["algorithm"], about["network"], about["constants"]) == ("dt", "transformer", {"target": 1.0})
    assert certificate["inputs"]["features"] == features
    assert any("the last 3 steps of the episode, oldest first" in sentence for sentence in certificate["claim"]) and any(note.startswith("Policies see the last 3 steps") for note in certificate["assumptions"])
    for changed in ({"steps": 2}, {"steps": 0}, {"steps": "3"}, {"history": 3}):
        assert verify(certificate | {"inputs": certificate["inputs"] | {"features": features | changed}})
    # A state is what a policy sees of its own episode: the steps that there were, a reward of 1 for each, and the actions between them.
    assert states.shape[1:] == (3, 2 + 2 + 4)
    for state in states:
        there = state[:, 0] == 1
        assert there[-1] and (np.diff(there) >= 0).all() and not state[~there].any() and (np.diff(state[there, 1]) == 1).all() and (state[there, 2:4].sum(1) == (state[there, 1] > 0)).all()
    ensemble = Ensemble(str(store.path))
    assert np.array_equal(ensemble.evidence(states), certificate["inputs"]["actions"]["counts"])
    assert np.array_equal(ensemble.evidence(states).argmax(1), certificate["results"]["action"]["action"])
    schema = make_app(ensemble, None).openapi()["components"]["schemas"]["Observation"]["properties"]["observation"]
    assert (schema["minItems"], schema["items"]["minItems"]) == (3, 8) and "the action before it (2 numbers" in schema["description"]


def test_a_decision_transformer_is_certified_and_served(recordings, tmp_path):
    store = made_here(request(recordings["cartpole"], learner=DT, fit={"steps": 8, "batch": 16}, held_out=1), tmp_path / "run")
    certify(store, Choices())
    check_transformer(store)


@pytest.mark.slow
def test_a_run_of_decision_transformers_is_grown_and_voted(recordings, tmp_path, local_ray):
    out = tmp_path / "run"
    learner = ["--trainer", "dt", "--history", "3", "--train-steps", "40", "--batch-size", "32", "--mechanism", "bag", "--bag-size", "3", "--policy", "vote", "--episodes", "2", "--nodes", "40"]
    assert main(["run", recordings["cartpole"], "--storage", str(out), "--instances", "20", "--states", "6", "--held-out", "1", "--seed", "4", *learner]) == 0
    store = RunStore.open(out)
    assert store.certificate()["results"]["voted"]["episodes"] == 2
    check_transformer(store)
    # What was stored acts as the transformer that was trained, made anew here from the same bags.
    settings, returns = store.settings(), Tally(store, 20).evidence().returns
    again = train_and_evaluate(settings, store.secret(), training_units(settings, load_dataset(recordings["cartpole"])), store.states(), range(4), "cpu")
    assert np.array_equal(returns[:4], again.returns)
    assert main(["grow", str(out), "--instances", "22", "--policy", "instance"]) == 0 and main(["verify", str(out / "certificate.json")]) == 0
    assert np.array_equal(Tally(store, 20).evidence().returns, returns)


def test_without_a_history_nothing_is_other_than_before(recordings):
    dataset = load_dataset(recordings["cartpole"])
    settings, _ = make_settings(request(recordings["cartpole"], history=1), dataset, Choices())
    values = settings.to_dict()
    assert "history" not in values["card"] and "history" not in settings.card.features_source() and type(settings).from_dict(values) == settings
    assert not any("observations of an episode" in note for note in settings.assumptions)
    stacked, _ = make_settings(request(recordings["cartpole"]), dataset, Choices())
    assert type(stacked).from_dict(stacked.to_dict()) == stacked and stacked.identity() != settings.identity()


def test_a_history_is_refused_where_it_would_spread_a_changed_unit(recordings):
    dataset = load_dataset(recordings["cartpole"])
    for changes, complaint in [
        ({"unit": "transition", "bag_size": 100}, "history 3 .* not for bag with --unit transition"),
        ({"mechanism": "gaussian", "bag_size": None, "fit": None}, "not for gaussian with --unit transition"),
        ({"mechanism": "gaussian", "bag_size": None, "fit": None, "unit": "trajectory"}, "not for gaussian with --unit trajectory"),
        ({"mechanism": "bag-then-noise", "fit": None}, "not for bag-then-noise"), ({"mechanism": "neighbours", "bag_size": None, "fit": None}, "not for neighbours"),
        ({"history": 0}, "history 0 must be"), ({"history": -3}, "history -3 must be"), ({"history": 1 << 11}, "history 2048 must be"),
    ]:  # fmt: skip
        with pytest.raises(MucdError, match=complaint):
            make_settings(request(recordings["cartpole"], **changes), dataset, Choices())
    # Nor is a learner that is told the return of a trajectory.
    for learner in (Learner(algorithm="rvs", learning_rate=0.1), DT):
        for changes, complaint in [
            ({"unit": "transition", "bag_size": 100}, "reads whole trajectories.*not for bag with --unit transition"), ({"mechanism": "gaussian", "bag_size": None, "fit": None}, "not for gaussian"),
            ({"mechanism": "gaussian", "bag_size": None, "fit": None, "unit": "trajectory"}, "not for gaussian"), ({"mechanism": "bag-then-noise", "fit": None}, "not for bag-then-noise"),
            ({"mechanism": "neighbours", "bag_size": None, "fit": None}, "neighbours train nothing"),
        ]:  # fmt: skip
            with pytest.raises(MucdError, match=complaint):
                make_settings(request(recordings["cartpole"], learner=learner, **{"instances": Request.instances} | {"history": 1} | changes), dataset, Choices())
    settings, _ = make_settings(request(recordings["cartpole"]), dataset, Choices())
    with pytest.raises(MucdError, match="--unit transition"):
        dataclasses.replace(settings, mechanism=dataclasses.replace(settings.mechanism, unit="transition"))
