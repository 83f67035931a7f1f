"""The batched engine: independence of grouping, the optimisers against a plain reference, and who may be written to."""

import numpy as np
import pytest
import torch

from mucd_ray.errors import MucdError
from mucd_ray.learn import streams as purposes
from mucd_ray.learn.ensemble import ENGINES, clipped_sum, train_block
from mucd_ray.learn.learner import Learner
from mucd_ray.learn.losses import behaviour_cloning, output_deltas
from mucd_ray.learn.networks import Network, initial_parameters, layer_views
from mucd_ray.learn.streams import Streams, gaussian_noise, poisson_sample
from mucd_ray.mechanism.mechanism import Mechanism

STREAMS = Streams(b"a secret of tests")
BOTH = pytest.mark.parametrize("engine", ENGINES)


def dataset(units, inputs, outputs, seed=0):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((units, inputs)).astype(np.float32)
    actions = (features @ rng.standard_normal((inputs, outputs))).argmax(1).astype(np.int64)
    features.flags.writeable = actions.flags.writeable = False
    return features, actions


def mechanism(rate, steps, units, noise=1.0):
    return Mechanism(sample_rate=rate, noise_multiplier=noise, clip_norm=0.5, steps=steps, normaliser=rate * units)


def train(network, learner, plan, data, instances, **options):
    return train_block(
        network=network, learner=learner, mechanism=plan, features=data[0], actions=data[1], instances=instances,
        streams=STREAMS, **options,
    )


@BOTH
@pytest.mark.parametrize("inputs,hidden,outputs,batch", [
    (7, (), 3, 300), (4, (), 2, 1), (4, (64, 64), 2, 128), (17, (33, 20), 6, 70), (5, (8,), 5, 1),
])
def test_parameters_are_bit_identical_in_every_grouping(inputs, hidden, outputs, batch, engine):
    data = dataset(3000, inputs, outputs)
    learner = Learner(hidden=hidden, optimiser="adam", learning_rate=0.01, average=0.3)
    arguments = Network(inputs=inputs, outputs=outputs, hidden=hidden), learner, mechanism(batch / 3000, 12, 3000), data
    whole = train(*arguments, range(8), block=8, engine=engine)
    for block in (1, 3):
        other = train(*arguments, range(8), block=block, engine=engine)
        assert all(torch.equal(whole[name], other[name]) for name in whole)
    picked = train(*arguments, [6, 11, 2], engine=engine)
    assert all(torch.equal(picked[name][[0, 2]], whole[name][[6, 2]]) for name in whole)
    assert not torch.equal(whole["0.weight"][0], whole["0.weight"][1])


@BOTH
@pytest.mark.parametrize("learner", [
    Learner(learning_rate=0.3), Learner(learning_rate=0.3, momentum=0.8, average=0.25),
    Learner(learning_rate=0.05, optimiser="adam", average=1.0), Learner(learning_rate=0.01, optimiser="adam", hidden=(6,)),
])
def test_a_run_is_what_the_definitions_say(learner, engine):
    """One instance, step by step, with torch.optim on the noisy sum and the average of the final iterates."""
    network = Network(inputs=3, outputs=4, hidden=learner.hidden)
    features, actions = dataset(400, 3, 4)
    plan = mechanism(0.1, 20, 400)
    start = initial_parameters(network, STREAMS.generator(5, 0, purposes.INITIALISE))
    x = torch.nn.Parameter(torch.tensor(start)[None])
    if learner.optimiser == "adam":
        optimiser = torch.optim.Adam([x], lr=learner.learning_rate)
    else:
        optimiser = torch.optim.SGD([x], lr=learner.learning_rate, momentum=learner.momentum)
    iterates = []
    for step in range(plan.steps):
        sample = poisson_sample(STREAMS.generator(5, step, purposes.SAMPLE), 400, 0.1)
        batch, targets = torch.tensor(features[sample])[None], torch.tensor(actions[sample])[None]
        with torch.no_grad():
            summed = clipped_sum(network, x, batch, targets, [len(sample)], output_deltas(behaviour_cloning), plan.clip_norm)
        noise = gaussian_noise([STREAMS.generator(5, step, purposes.NOISE)], network.parameter_count)
        x.grad = (summed + plan.noise_multiplier * plan.clip_norm * torch.tensor(noise)) / plan.normaliser
        optimiser.step()
        iterates.append(x.detach().clone())
    last = max(1, round(learner.average * plan.steps))
    expected = layer_views(network, torch.stack(iterates[-last:]).mean(0))
    trained = train(network, learner, plan, (features, actions), [5], engine=engine)
    for layer, (weight, bias) in enumerate(expected):
        torch.testing.assert_close(trained[f"{layer}.weight"], weight.transpose(1, 2), rtol=2e-5, atol=2e-6)
        torch.testing.assert_close(trained[f"{layer}.bias"], bias, rtol=2e-5, atol=2e-6)


@BOTH
def test_an_empty_batch_is_a_noise_only_step(engine):
    network, plan = Network(inputs=3, outputs=2), mechanism(1e-9, 1, 100, noise=2.0)
    trained = train(network, Learner(learning_rate=1.0), plan, dataset(100, 3, 2), [0, 1], engine=engine)
    for instance in (0, 1):
        noise = gaussian_noise([STREAMS.generator(instance, 0, purposes.NOISE)], 8)[0]
        expected = -torch.tensor(noise) * (2.0 * plan.clip_norm) / plan.normaliser
        # Noise is compared by its scale: a draw near zero inherits the rounding of its angle.
        close = {"rtol": 0.0, "atol": 1e-6 * 2.0 * plan.clip_norm / plan.normaliser}
        torch.testing.assert_close(trained["0.weight"][instance].T.flatten(), expected[:6], **close)
        torch.testing.assert_close(trained["0.bias"][instance], expected[6:], **close)


@BOTH
def test_poisoned_rows_leave_every_parameter_finite_and_the_arrays_untouched(engine):
    features, actions = (array.copy() for array in dataset(200, 4, 2))
    features[0], features[1, 2], features[2] = np.nan, np.inf, 1e30
    features.flags.writeable = actions.flags.writeable = False
    before = features.tobytes(), actions.tobytes()
    for hidden in ((), (8, 8)):
        network, learner = Network(inputs=4, outputs=2, hidden=hidden), Learner(hidden=hidden, learning_rate=0.1)
        trained = train(network, learner, mechanism(0.5, 20, 200), (features, actions), range(3), engine=engine)
        assert all(torch.isfinite(tensor).all() for tensor in trained.values())
    assert before == (features.tobytes(), actions.tobytes())


@BOTH
def test_it_learns(engine):
    features, actions = dataset(2000, 4, 3)
    network = Network(inputs=4, outputs=3)
    learner, plan = Learner(learning_rate=2.0, average=0.5), mechanism(0.1, 200, 2000)
    trained = train(network, learner, plan, (features, actions), range(2), engine=engine)
    logits = torch.baddbmm(trained["0.bias"][:, None], torch.tensor(features).expand(2, -1, -1), trained["0.weight"])
    assert (logits.argmax(-1) == torch.tensor(actions)).float().mean() > 0.9


@BOTH
def test_continuous_actions_are_regressed(engine):
    features, _ = dataset(2000, 4, 3)
    actions = (features @ np.ones((4, 2)) * [0.5, -0.2]).astype(np.float32)
    network = Network(inputs=4, outputs=2)
    trained = train(network, Learner(learning_rate=0.5), mechanism(0.1, 200, 2000), (features, actions), [0], engine=engine)
    expected = torch.tensor([[0.5, -0.2]]).expand(4, 2)
    assert (trained["0.weight"][0] - expected).abs().max() < 0.1


@pytest.mark.parametrize("change", ["unit", "width", "dtype", "length", "action", "engine"])
def test_what_does_not_fit_is_refused(change):
    features, actions = dataset(50, 3, 2)
    network, plan = Network(inputs=3, outputs=2), mechanism(0.1, 2, 50)
    if change == "unit":
        plan = Mechanism(unit="trajectory", sample_rate=0.1, noise_multiplier=1, clip_norm=1, steps=1, normaliser=1)
    elif change == "width":
        network = Network(inputs=4, outputs=2)
    elif change == "dtype":
        features = features.astype(np.float64)
    elif change == "length":
        actions = actions[:-1]
    elif change == "action":
        actions = actions + 1
    with pytest.raises(MucdError):
        train(network, Learner(learning_rate=0.1), plan, (features, actions), [0], engine="fuse" if change == "engine" else "fused")
