"""The engine for any module: the same mechanism as the batched engine."""

import numpy as np
import pytest
import torch
from torch import nn

from mucd_ray.errors import MucdError
from mucd_ray.learn.ensemble import train_block
from mucd_ray.learn.learner import Learner
from mucd_ray.learn.losses import behaviour_cloning
from mucd_ray.learn.networks import Network, as_module, initial_parameters
from mucd_ray.learn.opacus_engine import train_opacus
from mucd_ray.learn.streams import NOISE, Streams, gaussian_noise
from mucd_ray.mechanism.mechanism import Mechanism

STREAMS = Streams(b"a secret of tests")
PLAN = Mechanism(sample_rate=0.05, noise_multiplier=0.8, clip_norm=0.5, steps=30, normaliser=20.0)


def dataset(shape=(4,), units=400):
    rng = np.random.default_rng(0)
    features, actions = rng.standard_normal((units, *shape)).astype(np.float32), rng.integers(0, 3, units)
    features[3], features[5], features[7] = np.nan, 1e30, np.inf
    features.flags.writeable = actions.flags.writeable = False
    return features, actions


@pytest.mark.parametrize("learner", [
    Learner(learning_rate=0.2, momentum=0.5, average=0.2), Learner(learning_rate=0.01, optimiser="adam", hidden=(16, 8)),
])
def test_both_engines_agree_over_noisy_steps(learner):
    features, actions = dataset()
    network = Network(inputs=4, outputs=3, hidden=learner.hidden)
    block = train_block(
        network=network, learner=learner, mechanism=PLAN, features=features, actions=actions, instances=[4, 9], streams=STREAMS
    )
    for row, instance in enumerate([4, 9]):
        module = train_opacus(
            lambda generator: as_module(network, initial_parameters(network, generator)),
            behaviour_cloning, learner, PLAN, features, actions, instance, STREAMS,
        )
        for layer, linear in enumerate(m for m in module if isinstance(m, nn.Linear)):
            torch.testing.assert_close(block[f"{layer}.weight"][row].T, linear.weight.data, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(block[f"{layer}.bias"][row], linear.bias.data, rtol=1e-5, atol=1e-5)


def convolution(generator):
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.GroupNorm(1, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))


def test_any_module_trains_and_poisoned_units_stay_harmless():
    features, actions = dataset((1, 6, 6))
    module = train_opacus(convolution, behaviour_cloning, Learner(learning_rate=0.1), PLAN, features, actions, 0, STREAMS)
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())


def test_an_empty_batch_is_a_noise_only_step():
    features, actions = dataset()
    plan = Mechanism(sample_rate=1e-9, noise_multiplier=2.0, clip_norm=0.5, steps=1, normaliser=4.0)
    module = train_opacus(
        lambda generator: as_module(Network(inputs=4, outputs=3), np.zeros(15, np.float32)),
        behaviour_cloning, Learner(learning_rate=1.0), plan, features, actions, 2, STREAMS,
    )
    noise = gaussian_noise([STREAMS.generator(2, 0, NOISE)], 15)[0]
    torch.testing.assert_close(torch.nn.utils.parameters_to_vector(module.parameters()).data, torch.tensor(-noise / 4))


def test_batch_norm_is_refused():
    features, actions = dataset()
    with pytest.raises(MucdError, match="BatchNorm"):
        train_opacus(
            lambda generator: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)),
            behaviour_cloning, Learner(learning_rate=0.1), PLAN, features, actions, 0, STREAMS,
        )
