"""The engine for any module: the same mechanism as the torch engine, for every algorithm of one network and both units."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from mucd_ray.errors import MucdError
from mucd_ray.learn.convolutional import convolutional
from mucd_ray.learn.engines import modules
from mucd_ray.learn.engines.modules import train_opacus
from mucd_ray.learn.ensemble import train_block
from mucd_ray.learn.learner import Learner, LocalUpdate
from mucd_ray.learn.networks import as_module, initial_parameters
from mucd_ray.learn.problem import Problem
from mucd_ray.learn.streams import NOISE, Streams, gaussian_noise
from mucd_ray.learn.units import Units
from mucd_ray.mechanism.gaussian.mechanism import Mechanism

STREAMS = Streams(b"a secret of tests")
PLAN = Mechanism(sample_rate=0.05, noise_multiplier=0.8, clip_norm=0.5, steps=30, normaliser=20.0)
ROUNDS = Mechanism(unit="trajectory", sample_rate=0.2, noise_multiplier=0.8, clip_norm=0.5, steps=30, normaliser=4.0)
FRAMES = 4 * 42 * 42


def dataset(width=4, rows=400, unit="transition"):
    rng = np.random.default_rng(0)
    features, following = rng.standard_normal((2, rows, width)).astype(np.float32)
    features[3], features[5], following[7] = np.nan, 1e30, np.inf
    rewards = rng.standard_normal(rows).astype(np.float32)
    rewards[11] = 1e30
    units = Units.transitions(features, rng.integers(0, 3, rows), next_features=following, rewards=rewards, keeps=(rng.random(rows) > 0.1).astype(np.float32))
    for array in units.arrays().values():
        array.flags.writeable = False
    if unit == "transition":
        return units
    lengths = np.tile([31, 0, 1, 8], rows // 40)
    return Units(unit=unit, **{**units.arrays(), "starts": np.cumsum(lengths) - lengths, "lengths": lengths})


def problem(algorithm="bc", width=4, constants=None, **learner):
    return Problem(learner=Learner(algorithm=algorithm, constants=constants or {}, **{"learning_rate": 0.1} | learner), inputs=width, actions=3, discrete=True)


def mlp(problem):
    return lambda generator: as_module(problem.network, initial_parameters(problem.network, generator))


@pytest.mark.parametrize("algorithm,constants,learner", [
    ("bc", {}, {"learning_rate": 0.2, "momentum": 0.5, "average": 0.2}),
    ("dqn", {"target_rate": 0.3}, {"learning_rate": 0.01, "optimiser": "adam", "hidden": (16, 8)}),
    ("cql", {}, {"hidden": (8,)}),
    ("c51", {"atoms": 5, "v_min": -2, "v_max": 2}, {"hidden": (8,)}),
    ("qr-dqn", {"quantiles": 4}, {"average": 0.5}),
    ("iql", {}, {"hidden": (8,), "optimiser": "adam", "learning_rate": 0.01}),
])
@pytest.mark.parametrize("plan", [PLAN, ROUNDS], ids=["transition", "trajectory"])
def test_both_engines_agree_over_noisy_steps(algorithm, constants, learner, plan, monkeypatch):
    monkeypatch.setattr(modules, "SLICES", (7, 4))
    p, units = problem(algorithm, constants=constants, local=LocalUpdate(cap=20), **learner), dataset(unit=plan.unit)
    block = train_block(problem=p, mechanism=plan, units=units, instances=[4, 9], streams=STREAMS, engine="torch")
    for row, instance in enumerate([4, 9]):
        module = train_opacus(mlp(p), p, plan, units, instance, STREAMS)
        for layer, linear in enumerate(m for m in module if isinstance(m, nn.Linear)):
            torch.testing.assert_close(block[f"{layer}.weight"][row].T, linear.weight.data, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(block[f"{layer}.bias"][row], linear.bias.data, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("algorithm,unit", [("bc", "transition"), ("dqn", "transition"), ("dqn", "trajectory")])
def test_convolutions_on_frames_train_and_poisoned_units_stay_harmless(algorithm, unit):
    """The first row of each image tells the action; rewards tell it too."""
    rng, rows = np.random.default_rng(0), 120
    frames, actions, best = rng.random((rows, 4, 42, 42), np.float32), rng.integers(0, 3, rows), rng.integers(0, 3, rows)
    if algorithm == "bc":
        best = actions
    frames[np.arange(rows), 0, best * 14] += 3.0
    features = frames.reshape(rows, FRAMES)
    clean = features.copy()
    features[0], features[1] = np.nan, 1e30
    units = Units.transitions(features, actions, next_features=clean, rewards=(actions == best).astype(np.float32), keeps=np.zeros(rows, np.float32))
    if unit == "trajectory":
        units = Units(unit=unit, **{**units.arrays(), "starts": np.arange(0, rows, 5), "lengths": np.full(rows // 5, 5)})
    p = problem(algorithm, FRAMES, optimiser="adam", learning_rate=0.003)
    plan = Mechanism(unit=unit, sample_rate=0.25, noise_multiplier=0.05, clip_norm=1.0, steps=25, normaliser=0.25 * len(units))
    module = train_opacus(convolutional(p.network.outputs), p, plan, units, 0, STREAMS)
    again = train_opacus(convolutional(p.network.outputs), p, plan, units, 0, STREAMS)
    assert all(torch.equal(x, y) and torch.isfinite(x).all() for x, y in zip(module.parameters(), again.parameters()))
    with torch.no_grad():
        assert (module(torch.from_numpy(clean)).argmax(1).numpy() == best).mean() > 0.8


class Projected(nn.Module):
    """A frozen matrix takes rows of any width to as many numbers: nothing in the record's code tells how wide they were."""

    def __init__(self, width):
        super().__init__()
        self.frozen, self.head = nn.Parameter(torch.ones(width, 8), requires_grad=False), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(x @ self.frozen)


def test_what_was_found_about_rows_of_one_width_is_not_taken_for_another(monkeypatch):
    monkeypatch.setattr(modules, "_PLACES", {})
    for width in (4, 100, 4):
        modules.RowGradients(problem(width=width), Projected(width), dataset(width))
    assert len({code for code, *_ in modules._PLACES}) == 1 and len(modules._PLACES) == 2


def test_an_empty_batch_is_a_noise_only_step():
    p, plan = problem(learning_rate=1.0), Mechanism(sample_rate=1e-9, noise_multiplier=2.0, clip_norm=0.5, steps=1, normaliser=4.0)
    module = train_opacus(mlp(p), p, plan, dataset(), 2, STREAMS)
    noise = gaussian_noise([STREAMS.generator(2, 0, NOISE)], 15)[0]
    torch.testing.assert_close(torch.nn.utils.parameters_to_vector(module.parameters()).data, torch.tensor(-noise / 4))


class Centred(nn.Module):
    """Mixes rows where no validator looks."""

    def forward(self, x):
        return x - x.mean(0).detach()


class Remembers(nn.Module):
    """Keeps a running mean of the data, but only while it is trained."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        if torch.is_grad_enabled():
            self.mean.lerp_(x.detach().mean(0), 0.1)
        return x


@pytest.mark.parametrize("layer,message", [
    (nn.BatchNorm1d(8), "BatchNorm"), (Centred(), "depends on other rows"), (nn.Linear(8, 9), "outputs"), (nn.Dropout(0.5), "random"), (Remembers(), "state"),
])
def test_layers_that_mix_rows_draw_or_remember_are_refused(layer, message):
    def factory(generator):
        layers = [nn.Linear(4, 8), copy.deepcopy(layer)]
        module = nn.Sequential(*layers, *([] if isinstance(layer, nn.Linear) else [nn.Linear(8, 3)]))
        for parameter in module.parameters():
            parameter.data = torch.tensor(generator.uniform(-0.3, 0.3, tuple(parameter.shape)), dtype=torch.float32)
        return module

    with pytest.raises(MucdError, match=message):
        train_opacus(factory, problem(), PLAN, dataset(), 0, STREAMS)


def test_what_this_engine_does_not_train_is_refused():
    p = problem(local=LocalUpdate(steps=2))
    with pytest.raises(MucdError, match="2 local steps"):
        train_opacus(mlp(p), p, ROUNDS, dataset(unit="trajectory"), 0, STREAMS)
    with pytest.raises(MucdError, match="unit"):
        train_opacus(mlp(p), p, ROUNDS, dataset(), 0, STREAMS)
    p = Problem(learner=Learner(algorithm="iql", learning_rate=0.1), inputs=4, actions=2, discrete=False, action_bounds=((-1.0,) * 2, (1.0,) * 2))
    units = dataset()
    units = Units(unit="transition", **{**units.arrays(), "actions": np.zeros((400, 2), np.float32)})
    with pytest.raises(MucdError, match="several networks"):
        train_opacus(mlp(p), p, PLAN, units, 0, STREAMS)
