"""Rounding as an attack: one unit must not move what other units, or the noise, add to a sum."""

import numpy as np
import pytest
import torch
from problems import STREAMS, clipped_sum, made_up, problem, rounded, trained, transitions

from mucd_ray.errors import MucdError
from mucd_ray.learn.engines.fused.engine import FusedTrainer
from mucd_ray.learn.engines.fused.memory import TILE
from mucd_ray.learn.engines.fused.step import CARRY
from mucd_ray.learn.engines.stacked import SUM_ROWS, noisy_mean
from mucd_ray.learn.units import Units
from mucd_ray.mechanism.gaussian.mechanism import Mechanism

INPUTS, MILLIONS, SIGMA = 4, 2_000_000, 2.5e5
# What one unit may move by rounding, in clip norms for each sampled unit (docs/soundness.md): twice, for D and D', the rounding of a sum of
# products in float32, and of their factors.
OF_A_TILE, OF_A_BLOCK = (2 * (terms + 2) * 2.0**-24 for terms in (TILE + CARRY, SUM_ROWS))


def as_units(unit, x, actions):
    units = Units.transitions(x, actions)
    return units if unit == "transition" else Units(unit=unit, **units.arrays())


def crowd(kind, rows):
    """Units that push along one line, in all directions, or so that sums of 64 round most differently where each moves on by one place."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, INPUTS)).astype(np.float32)
    if kind == "random":
        return x, rng.integers(0, 2, rows)
    if kind == "one way":
        x += 3
    else:
        # Found by search; the largest whose gradients are not clipped.
        x = np.zeros((rows, INPUTS), np.float32)
        x[:, 0] = 2 * np.resize([0.40094274, 0.392457, 0.08581639, 0.46672243], rows)
    return x, np.zeros(rows, np.int64)


def noisy_sum(asked, units, sigma):
    """The fused engine's sum over all units with noise, before any rounding to float32."""
    mechanism = Mechanism(unit=units.unit, sample_rate=1.0, noise_multiplier=sigma, clip_norm=1.0, steps=1, normaliser=1.0)
    trainer = FusedTrainer(asked, mechanism, units, STREAMS)
    trainer.train(0)
    return trainer.last_sum


@pytest.mark.parametrize("unit,rows", [("transition", MILLIONS), pytest.param("trajectory", MILLIONS // 4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind,worst", [("random", 1e-3), ("one way", 1e-2), ("by places", 0.2)])
def test_one_unit_among_two_million_under_large_noise_moves_the_sum_by_c(kind, worst, unit, rows):
    """Added to an accumulator that holds the noise, or in float32, it moved it by up to 8 C. Put first, it moves all others by a place."""
    asked = problem(inputs=INPUTS, actions=2)
    x, actions = crowd(kind, rows)
    whole = noisy_sum(asked, as_units(unit, x, actions), SIGMA)
    assert np.abs(whole).max() > SIGMA / 10
    assert worst < OF_A_TILE * rows
    for place in (0, rows):
        for action in (0, 1):
            more = as_units(unit, np.insert(x, place, np.float32(50), 0), np.insert(actions, place, action))
            moved = np.linalg.norm(noisy_sum(asked, more, SIGMA) - whole)
            assert abs(moved - 1) <= worst


@pytest.mark.parametrize("engine", ["torch", "padded"])
@pytest.mark.parametrize("kind", ["random", "one way", "by places"])
def test_sums_of_the_torch_engine_are_not_moved_by_other_units_either(engine, kind):
    asked, rows = problem(inputs=INPUTS, actions=2), 100_000
    flat, (x, actions) = np.zeros(asked.parameter_count, np.float32), crowd(kind, rows)
    whole = clipped_sum(engine, asked, flat, Units.transitions(x, actions), 1.0)
    assert 0.1 < OF_A_BLOCK * rows < 10
    for place in (0, rows):
        more = Units.transitions(np.insert(x, place, np.float32(50), 0), np.insert(actions, place, 1))
        moved = np.linalg.norm(clipped_sum(engine, asked, flat, more, 1.0) - whole)
        assert abs(moved - 1) <= 0.02


def test_noise_is_added_before_anything_is_rounded():
    """The released number is a function of the exact sum plus noise."""
    rng, mechanism = np.random.default_rng(1), Mechanism(sample_rate=1.0, noise_multiplier=SIGMA, clip_norm=0.3, steps=1, normaliser=7.0)
    noise, sums = rng.standard_normal((3, 64)).astype(np.float32), 1e6 * rng.standard_normal((3, 64))
    exact = (noise * np.float32(SIGMA * 0.3)).astype(float) + sums
    released = noisy_mean(torch.from_numpy(sums), torch.from_numpy(noise), mechanism)
    assert released.dtype == torch.float32 and np.array_equal(released.numpy(), exact.astype(np.float32) / np.float32(7))


@pytest.mark.parametrize("name,engine", [("mm", "torch"), ("bmm", "padded")])
def test_tf32_exceeds_the_clip_norm_and_is_refused(name, engine, monkeypatch):
    """The attack, with the rounding that a GPU would do: a unit whose operands all round up."""
    asked, product = problem(inputs=200, actions=2), getattr(torch, name)
    units = transitions(asked, 1, np.random.default_rng(0))
    # Just above the middle of two neighbours of eleven bits.
    units.features[:] = 1 + 2.0**-11 + 2.0**-20
    flat = np.zeros(asked.parameter_count, np.float32)

    def coarse(a, b, **options):
        return product(rounded(a, 10), rounded(b, 10), **options)

    def norm():
        return np.linalg.norm(clipped_sum(engine, asked, flat, units, 1.0))

    assert norm() <= 1
    monkeypatch.setattr(torch, name, coarse)
    assert norm() > 1 + 1e-4
    with pytest.raises(MucdError, match=f"torch.{name} on cpu is coarser"):
        trained(asked, made_up("transition", asked, 30, np.random.default_rng(1)), [0], engine="torch")
