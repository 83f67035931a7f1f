"""The clipped sum against Opacus, and its sensitivity."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus import GradSampleModule

from mucd_ray.learn import fused
from mucd_ray.learn.ensemble import clipped_sum
from mucd_ray.learn.losses import ALGORITHMS, output_deltas
from mucd_ray.learn.networks import Network, as_module, layer_views

NETWORKS = [
    Network(inputs=7, outputs=3),
    Network(inputs=4, outputs=2, hidden=(16, 9)),
    Network(inputs=5, outputs=4, hidden=(32,)),
]


def sum_by_torch(network, flat, x, targets, kind, clip_norm):
    """Clipped sum over all rows of one instance: flat [D], x [B, d], targets [B, ...] -> float64 [D]."""
    deltas_of = output_deltas(getattr(ALGORITHMS["bc"], kind))
    return clipped_sum(network, flat[None], x[None].clone(), targets[None], [len(x)], deltas_of, clip_norm)[0].double()


def sum_by_kernel(network, flat, x, targets, kind, clip_norm):
    delta = getattr(ALGORITHMS["bc"], f"{kind}_delta")
    return torch.from_numpy(fused.clipped_sum(network, flat.numpy(), x.numpy(), targets.numpy(), delta, clip_norm)).double()


ENGINES = pytest.mark.parametrize("sum_of", [sum_by_torch, sum_by_kernel])


def units(network, rows, rng, continuous=False):
    x = torch.tensor(rng.standard_normal((rows, network.inputs)), dtype=torch.float32)
    if continuous:
        return x, torch.tensor(rng.standard_normal((rows, network.outputs)), dtype=torch.float32)
    return x, torch.tensor(rng.integers(0, network.outputs, rows))


@ENGINES
@pytest.mark.filterwarnings("ignore:Full backward hook")
@pytest.mark.parametrize("kind", ["discrete", "continuous"])
@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_agrees_with_opacus_per_sample_gradients(sum_of, network, kind):
    rng, loss = np.random.default_rng(1), getattr(ALGORITHMS["bc"], kind)
    flat = torch.tensor(rng.standard_normal(network.parameter_count), dtype=torch.float32) * 0.3
    x, targets = units(network, 150, rng, kind == "continuous")
    module = GradSampleModule(as_module(network, flat.numpy()))
    outputs = module(x)
    torch.stack([loss(o, a) for o, a in zip(outputs, targets)]).mean().backward()
    per_sample = torch.cat([p.grad_sample.flatten(1) for p in module.parameters()], 1)
    norms = per_sample.norm(dim=1, keepdim=True)
    clip_norm = norms.median().item()
    expected = (per_sample * (clip_norm / norms).clamp(max=1)).sum(0)
    assert (sum_of(network, flat, x, targets, kind, clip_norm) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_padding_weighs_nothing():
    network, rng = NETWORKS[1], np.random.default_rng(4)
    flat = torch.tensor(rng.standard_normal((2, network.parameter_count)), dtype=torch.float32)
    (x, targets), deltas_of = units(network, 64, rng), output_deltas(ALGORITHMS["bc"].discrete)
    both = clipped_sum(network, flat, x.repeat(2, 1, 1), targets.repeat(2, 1), [50, 0], deltas_of, 0.5)
    torch.testing.assert_close(both[0].double(), sum_by_torch(network, flat[0], x[:50], targets[:50], "discrete", 0.5))
    assert not both[1].any()


VALUES = st.one_of(
    st.floats(width=32, allow_nan=True, allow_infinity=True),
    st.sampled_from([np.nan, np.inf, -np.inf, 1e30, -1e30, 1e19, 1e-30, 3e38]),
)


@ENGINES
@settings(max_examples=150, deadline=None)
@given(
    network=st.sampled_from(NETWORKS),
    unit=st.lists(VALUES, min_size=7, max_size=7),
    action=st.integers(0, 1),
    log_scale=st.integers(-12, 4),
    log_clip=st.integers(-6, 3),
    others=st.integers(1, 5),
)
def test_one_unit_moves_the_sum_by_at_most_the_clip_norm(sum_of, network, unit, action, log_scale, log_clip, others):
    rng, clip_norm = np.random.default_rng(2), 10.0**log_clip
    flat = torch.tensor(rng.standard_normal(network.parameter_count) * 10.0**log_scale, dtype=torch.float32)
    x, targets = units(network, others + 1, rng)
    x[others] = torch.tensor(np.array(unit[: network.inputs], np.float32))
    targets[others] = action
    with_unit = sum_of(network, flat, x, targets, "discrete", clip_norm)
    without = sum_of(network, flat, x[:others], targets[:others], "discrete", clip_norm)
    alone = sum_of(network, flat, x[others:], targets[others:], "discrete", clip_norm)
    assert torch.isfinite(with_unit).all()
    assert alone.norm() <= clip_norm
    # The float32 sum over the other units is itself rounded.
    assert (with_unit - without).norm() <= clip_norm * (1 + 1e-6 * others)
    if not np.isfinite(np.array(unit[: network.inputs], np.float32)).all():
        assert not alone.any()


@ENGINES
def test_the_squared_norm_is_that_of_the_whole_vector(sum_of):
    network = NETWORKS[1]
    flat = 0.2 * torch.randn(network.parameter_count, generator=torch.Generator().manual_seed(0))
    x, targets = units(network, 1, np.random.default_rng(3))
    summed = sum_of(network, flat, x, targets, "discrete", 0.01)
    assert summed.norm() == pytest.approx(0.01, rel=1e-5)
    assert all(weight.any() and bias.any() for weight, bias in layer_views(network, summed[None]))
