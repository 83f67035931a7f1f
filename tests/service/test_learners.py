"""Every algorithm at both units, from a real recording to a certificate that verifies."""

from dataclasses import replace

import numpy as np
import pytest

from mucd_ray.certify.file.certificate import verify
from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.data.recording.record import record
from mucd_ray.errors import MucdError
from mucd_ray.learn.algorithms import CONTINUOUS, DISCRETE
from mucd_ray.learn.learner import Learner, LocalUpdate
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.driver import behaviour_return, certify, train, training_units
from mucd_ray.service.runs.session import Request, make_settings
from mucd_ray.service.runs.work import baselines, choose_states, train_and_evaluate
from mucd_ray.service.storage.store import RunStore
from mucd_ray.service.workers.cluster import Resources

UNITS = pytest.mark.parametrize("unit", ["transition", "trajectory"])


@pytest.fixture(scope="module")
def datasets(recordings):
    record("Pendulum-v1", None, 3000, 5, "pendulum/learners-v0")
    return {"discrete": recordings["cartpole"], "continuous": "pendulum/learners-v0"}


def certified(dataset, folder, *, instances=40, **changes):
    """The certificate of a run without Ray: what a trainer, the coordinator and the certifier do."""
    dataset = load_dataset(dataset)
    settings, _ = make_settings(Request(**{"dataset": dataset.name, "instances": instances, "states": 6, "held_out": 2} | changes), dataset, Choices(threat="insert"))
    store, units = RunStore.create_or_open(folder / "run", settings, secret=b"s" * 32), training_units(settings, dataset)
    states = store.write_states(choose_states(settings, b"s" * 32, units, "cpu"))
    store.commit(train_and_evaluate(settings, b"s" * 32, units, states, range(instances), "cpu"))
    store.write_json("baselines.json", baselines(settings, units, states) | {"behaviour": 0.0})
    store.add_target(instances)
    return certify(store, Choices(threat="insert"))


def mechanism(unit):
    """Large batches and much noise: a few units are certified, and a policy is learned."""
    if unit == "trajectory":
        return {"unit": unit, "units": 12, "sample_rate": 0.9, "noise_multiplier": 3.0, "steps": 20}
    return {"sample_rate": 0.3, "noise_multiplier": 40.0, "steps": 20}


@pytest.mark.slow
@UNITS
@pytest.mark.parametrize("algorithm,kind", [(name, kind) for registry, kind in ((DISCRETE, "discrete"), (CONTINUOUS, "continuous")) for name, algorithm in registry.items() if not algorithm.conditioned])
def test_every_algorithm_trains_and_certifies(algorithm, kind, unit, datasets, tmp_path):
    # Pendulum's rewards are all bounded and its episodes end after 200 steps, so that C51 and QR-DQN would find their range too.
    learner = Learner(algorithm=algorithm, learning_rate=3.0, average=0.5, local=LocalUpdate(cap=50, steps=2, learning_rate=0.05))
    certificate = certified(datasets[kind], tmp_path, learner=learner, **mechanism(unit))
    assert verify(certificate) == []
    inputs, results = certificate["inputs"], certificate["results"]
    assert inputs["mechanism"]["unit"] == unit and certificate["context"]["learner"]["algorithm"] == algorithm
    assert len(inputs["returns"]) == 40 and np.isfinite(inputs["returns"]).all() and len(set(inputs["returns"])) > 3
    low, mean = inputs["return_range"][0], results["policy"]["unpoisoned_mean"]
    curve = results["policy"]["curve"]["bound"]
    assert low < curve[1] <= curve[0] < mean
    assert ("trajectories" if unit == "trajectory" else "transitions") in " ".join(certificate["claim"])


@pytest.mark.slow
def test_a_convolutional_network_on_frames_trains_and_certifies(recordings, tmp_path):
    record("ALE/Breakout-v5", None, 1000, 5, "breakout/learners-v0", frames=True)
    learner = Learner(algorithm="dqn", network="convolutional", optimiser="adam", learning_rate=1e-3)
    plan = {"units": 1000, "sample_rate": 0.05, "noise_multiplier": 20.0, "steps": 3}
    certificate = certified("breakout/learners-v0", tmp_path, instances=20, learner=learner, **plan)
    assert verify(certificate) == []
    assert certificate["context"]["parameters"] > 10_000 and certificate["context"]["learner"]["network"] == "convolutional"
    assert np.isfinite(certificate["inputs"]["returns"]).all()


def test_trajectories_with_a_value_learner_are_certified(datasets, tmp_path):
    """The quick one of the above: a target network, a cap and a public least return, at the unit of trajectories."""
    learner = Learner(algorithm="cql", learning_rate=10.0, average=0.5, local=LocalUpdate(cap=50, min_return=100.0))
    certificate = certified(datasets["discrete"], tmp_path, learner=learner, **mechanism("trajectory"))
    assert verify(certificate) == []
    count = load_dataset(datasets["discrete"]).trajectories
    assert certificate["inputs"]["units"] == count and f"dataset D of this certificate ({count} trajectories)" in " ".join(certificate["claim"])
    assert "50 evenly spaced ones" in " ".join(certificate["assumptions"])
    assert certificate["results"]["policy"]["unpoisoned_mean"] > 3 * 9.75  # what the best constant action earns


def test_what_does_not_fit_is_one_line(datasets, tmp_path):
    for changes, message in (
        ({"learner": Learner(algorithm="td3-bc", learning_rate=1.0)}, "not defined for discrete actions"),
        ({"learner": Learner(learning_rate=1.0, constants={"alpha": 2.0})}, "constant 'alpha' is unknown"),
        ({"learner": Learner(algorithm="cql", learning_rate=1.0, constants={"discount": 2.0})}, "discount = 2"),
        ({"learner": Learner(learning_rate=1.0, local=LocalUpdate(min_return=100.0))}, "--unit trajectory"),
        ({"unit": "episode"}, "unit 'episode' is unknown"),
    ):
        with pytest.raises(MucdError, match=message):
            certified(datasets["discrete"], tmp_path, **changes)


def test_instances_of_other_code_are_not_mixed_in(datasets, tmp_path):
    """Confidence bounds are about independent draws of one mechanism; a loss that was edited since makes another one."""
    dataset = load_dataset(datasets["discrete"])
    settings, _ = make_settings(Request(dataset=dataset.name), dataset, Choices())
    store = RunStore.create_or_open(tmp_path / "run", replace(settings, code="0123456789abcdef"), secret=b"s" * 32)
    with pytest.raises(MucdError, match="began with other code"):
        train(store, dataset, 40, Choices(), Resources())


def test_rewards_that_overflow_a_return_are_no_baseline(datasets):
    dataset = load_dataset(datasets["discrete"])
    settings, _ = make_settings(Request(dataset=dataset.name), dataset, Choices())
    assert behaviour_return(settings, dataset) == {"behaviour": pytest.approx(dataset.trajectory_returns.mean())}
    rewards = dataset.rewards.copy()
    rewards[:4] = 1.5e308
    assert behaviour_return(settings, replace(dataset, rewards=rewards)) == {}

