"""The clipped sum against Opacus, and its sensitivity."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus import GradSampleModule

from mucd_ray.learn.ensemble import clipped_sum
from mucd_ray.learn.losses import behaviour_cloning, behaviour_regression, output_deltas
from mucd_ray.learn.networks import Network, as_module, layer_views

NETWORKS = [
    Network(inputs=7, outputs=3),
    Network(inputs=4, outputs=2, hidden=(16, 9)),
    Network(inputs=5, outputs=4, hidden=(32,)),
]


def units(network, rows, rng, continuous=False):
    x = torch.tensor(rng.standard_normal((2, rows, network.inputs)), dtype=torch.float32)
    if continuous:
        return x, torch.tensor(rng.standard_normal((2, rows, network.outputs)), dtype=torch.float32)
    return x, torch.tensor(rng.integers(0, network.outputs, (2, rows)))


@pytest.mark.filterwarnings("ignore:Full backward hook")
@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_agrees_with_opacus_per_sample_gradients(network, continuous):
    rng, counts = np.random.default_rng(1), [50, 0]
    flat = torch.tensor(rng.standard_normal((2, network.parameter_count)), dtype=torch.float32) * 0.3
    x, targets = units(network, 64, rng, continuous)
    loss = behaviour_regression if continuous else behaviour_cloning
    module = GradSampleModule(as_module(network, flat[0].numpy()))
    outputs = module(x[0, :50])
    torch.stack([loss(o, a) for o, a in zip(outputs, targets[0])]).mean().backward()
    per_sample = torch.cat([p.grad_sample.flatten(1) for p in module.parameters()], 1)
    norms = per_sample.norm(dim=1, keepdim=True)
    clip_norm = norms.median().item()
    expected = (per_sample * (clip_norm / norms).clamp(max=1)).sum(0)
    ours = clipped_sum(network, flat, x.clone(), targets, counts, output_deltas(loss), clip_norm)
    assert (ours[0] - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert not ours[1].any()


VALUES = st.one_of(
    st.floats(width=32, allow_nan=True, allow_infinity=True),
    st.sampled_from([np.nan, np.inf, -np.inf, 1e30, -1e30, 1e19, 1e-30, 3e38]),
)


@settings(max_examples=150, deadline=None)
@given(
    network=st.sampled_from(NETWORKS),
    unit=st.lists(VALUES, min_size=7, max_size=7),
    action=st.integers(0, 1),
    log_scale=st.integers(-12, 4),
    log_clip=st.integers(-6, 3),
    others=st.integers(0, 5),
)
def test_one_unit_moves_the_sum_by_at_most_the_clip_norm(network, unit, action, log_scale, log_clip, others):
    rng, clip_norm = np.random.default_rng(2), 10.0**log_clip
    scale = 10.0**log_scale
    flat = torch.tensor(rng.standard_normal((1, network.parameter_count)) * scale, dtype=torch.float32)
    x, targets = units(network, others + 1, rng)
    x, targets = x[:1], targets[:1]
    x[0, others] = torch.tensor(np.array(unit[: network.inputs], np.float32))
    targets[0, others] = action
    deltas_of = output_deltas(behaviour_cloning)
    with_unit = clipped_sum(network, flat, x.clone(), targets, [others + 1], deltas_of, clip_norm).double()
    without = clipped_sum(network, flat, x.clone(), targets, [others], deltas_of, clip_norm).double()
    alone = clipped_sum(network, flat, x[:, others:].clone(), targets[:, others:], [1], deltas_of, clip_norm).double()
    assert torch.isfinite(with_unit).all()
    assert alone.norm() <= clip_norm
    # The float32 sum over the other units is itself rounded.
    assert (with_unit - without).norm() <= clip_norm * (1 + 1e-6 * others)
    if not np.isfinite(np.array(unit[: network.inputs], np.float32)).all():
        assert not alone.any()


def test_the_squared_norm_is_that_of_the_whole_vector():
    network = NETWORKS[1]
    flat = 0.2 * torch.randn(1, network.parameter_count, generator=torch.Generator().manual_seed(0))
    x, targets = units(network, 1, np.random.default_rng(3))
    summed = clipped_sum(network, flat, x[:1], targets[:1], [1], output_deltas(behaviour_cloning), 0.01)
    assert summed.norm() == pytest.approx(0.01, rel=1e-5)
    assert all(weight.any() and bias.any() for weight, bias in layer_views(network, summed))
