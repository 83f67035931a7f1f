"""Convolutional networks on bags of images: normalised channel by channel by the bag, released for images as they are."""

import math

import numpy as np
import pytest
import torch

from mucd_ray.errors import MucdError
from mucd_ray.evaluate.policies import greedy_actions, trained_policies
from mucd_ray.learn.convolutional import channel_moments, convolutional, of_every_entry, on_raw_images
from mucd_ray.learn.learner import Learner
from mucd_ray.learn.problem import Problem
from mucd_ray.learn.streams import Streams
from mucd_ray.learn.trainers import built_in
from mucd_ray.learn.trainers.built_in import Fit, fit_policies, fit_stacked
from mucd_ray.learn.units import Units

STREAMS = Streams(b"the secret of these tests")
SHAPES = ((4, 42, 42), (24, 22, 3), (7, 7, 3), (9, 8))


def seen(shape, algorithm="bc", **learner) -> Problem:
    learner = Learner(algorithm=algorithm, network="convolutional", optimiser="adam", **{"learning_rate": 0.003, "average": 0.5} | learner)
    return Problem(learner=learner, inputs=math.prod(shape), actions=3, discrete=True, shape=shape)


def images(shape, rows, rng, low=0) -> Units:
    """Dark images, the right action being the third of the picture in which they are brighter; every fifth ends its episode."""
    pixels, actions = rng.integers(low, low + 20, (rows, *shape), dtype=np.uint8), rng.integers(0, 3, rows)
    width = shape[1] if shape[-1] == 3 else shape[-1]
    for image, action in zip(pixels, actions):
        part = slice(action * width // 3, (action + 1) * width // 3)
        image[(slice(None), part) if shape[-1] == 3 else (..., part)] += 30
    flat = pixels.reshape(rows, -1)
    return Units.transitions(flat, actions, next_features=flat[::-1].copy(), rewards=rng.random(rows, np.float32), keeps=(np.arange(rows) % 5 != 4).astype(np.float32))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_normalisation_is_folded_into_the_first_convolution(shape):
    rng, asked = np.random.default_rng(0), seen(shape)
    rows = images(shape, 300, rng, low=100).features
    center, scale = channel_moments(lambda part: rows[part], len(rows), shape)
    axes = (0, 1, 2) if shape[-1] == 3 else (0, 2, 3)
    pixels = rows.reshape(300, *(shape if len(shape) == 3 else (1, *shape))).astype(float)
    assert np.allclose(center, pixels.mean(axes)) and np.allclose(scale, pixels.std(axes))
    module = convolutional(3, shape)(rng)
    policy = {name: parameter.detach()[None] for name, parameter in module.named_parameters()}
    raw = on_raw_images(policy, center[None], scale[None])
    normalised = ((rows - of_every_entry(center, shape)) / of_every_entry(scale, shape)).astype(np.float32)
    acts = [trained_policies(asked, parameters).outputs(x.astype(np.float32), np.array([0])) for parameters, x in ((policy, normalised), (raw, rows))]
    assert np.allclose(*acts, atol=1e-4) and np.ptp(acts[0]) > 0.1


def test_it_learns_from_the_bag_alone():
    shape, rng = (4, 42, 42), np.random.default_rng(1)
    asked, units = seen(shape), images(shape, 260, rng)
    asked_of = {"problem": asked, "fit": Fit(steps=40, batch=32), "streams": STREAMS}
    bag = np.arange(50, 250)
    policy = fit_policies(units=units, bags=[bag, []], instances=[3, 4], **asked_of)
    others = units.features.copy()
    others[:50] = 255
    again = fit_policies(units=Units.transitions(others, units.actions), bags=[[1], bag], instances=[9, 3], **asked_of)
    for name, values in policy.items():
        assert torch.equal(values[0], again[name][1]) and values[1].isnan().all()
    # Bytes are a matter of memory.
    wide = fit_policies(units=Units.transitions(units.features.astype(np.float32), units.actions), bags=[bag], instances=[3], **asked_of)
    assert all(torch.equal(wide[name][0], values[0]) for name, values in policy.items())
    policies, held_out = trained_policies(asked, policy), units.features[250:].astype(np.float32)
    acts = [greedy_actions(policies.outputs(held_out, np.array([policy]))) for policy in (0, 1)]
    assert (acts[0] == units.actions[250:]).all() and not acts[1].any()


@pytest.mark.parametrize("algorithm", ["bc", "dqn"])
def test_a_stack_of_modules_trains_what_single_ones_become(algorithm, monkeypatch):
    shape = (7, 7, 3)
    asked, units = seen(shape, algorithm), images(shape, 80, np.random.default_rng(2))
    given = {"problem": asked, "fit": Fit(steps=20, batch=16), "units": units, "bags": [np.arange(60), np.arange(70, 80), np.arange(5, 45)], "instances": [5, 6, 7], "streams": STREAMS}
    single = fit_policies(**given)
    in_blocks = built_in.in_blocks
    monkeypatch.setattr(built_in, "in_blocks", lambda train, items, block, device: in_blocks(train, items, 3, device))
    stacked = fit_stacked(device="cpu", **given)
    for name, values in single.items():
        assert values.isfinite().all()
        torch.testing.assert_close(stacked[name], values, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [(8,), (3, 4, 4), (2, 9, 9, 3)])
def test_what_is_no_image_is_refused(shape):
    with pytest.raises(MucdError, match="use a dense network"):
        seen(shape)
