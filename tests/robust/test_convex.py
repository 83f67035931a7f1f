"""Excess risk of poisoned SGD on logistic regression, never above its bounds: on average, in every run, against attackers who see what comes and who do not."""

import numpy as np
import pytest

from mucd_ray.errors import MucdError
from mucd_ray.robust.convex import ExcessRisk, Problem, gradients, poisoned_sgd

RADIUS, DELTA = 4.0, 0.01


def population(seed=0, size=60, dimension=4):
    rng = np.random.default_rng(seed)
    samples = rng.normal(size=(size, dimension))
    samples /= np.linalg.norm(samples, axis=1, keepdims=True)
    labels = np.where(samples[:, 0] + 0.3 * rng.normal(size=size) > 0, 1.0, -1.0)
    return Problem(samples=samples, labels=labels, radius=RADIUS)


def test_the_problem():
    problem = population()
    rng = np.random.default_rng(1)
    w, step = rng.normal(size=4), rng.normal(size=4)
    assert problem.gradient(w) @ step == pytest.approx((problem.risk(w + 1e-6 * step) - problem.risk(w - 1e-6 * step)) / 2e-6, rel=1e-5)
    least = problem.least_risk()
    risks = [problem.risk(problem.within(10 * rng.normal(size=4))) for _ in range(500)]
    assert least <= min(risks) and least == pytest.approx(min(risks), abs=0.05)
    with pytest.raises(MucdError, match="norm"):
        Problem(samples=2 * problem.samples, labels=problem.labels, radius=1)


def test_bounds_by_hand():
    bound = ExcessRisk(samples=100, radius=2, per_sample=0.5, total=10, flips=3)
    assert bound.step == 0.2 and bound.gradient_changes == pytest.approx(1.5 * 10 + 3 * 1.5)
    assert bound.online() == pytest.approx(4 / 40 + 0.2 * 2.25 / 2 + 4 * 19.5 / 100)
    assert bound.offline() == pytest.approx(4 / 40 + 0.1 + 0.2 * 19.5)
    assert bound.online(np.exp(-2)) - bound.online() == pytest.approx(8 / 10)
    for bad in ({"samples": 0}, {"radius": 0.0}, {"rate": 0.0}, {"total": np.nan}):
        with pytest.raises(MucdError):
            ExcessRisk(**{"samples": 100, "radius": 2.0} | bad)
    with pytest.raises(MucdError, match="delta"):
        bound.online(0)
    with pytest.raises(MucdError, match="smaller"):
        ExcessRisk(samples=1, radius=9.0).offline()


@pytest.mark.parametrize("attack", ["none", "moves", "flips", "both", "foresight"])
@pytest.mark.parametrize("n", [50, 1000])
def test_never_above_the_bounds(attack, n):
    problem = population()
    least, target = problem.least_risk(), population().gradient(np.zeros(4))
    bound = ExcessRisk(
        samples=n, radius=RADIUS, per_sample=0.5 if attack in ("moves", "both", "foresight") else 0.0,
        total=4 * n**0.5 if attack in ("moves", "both", "foresight") else 0.0, flips=int(3 * n**0.5) if attack in ("flips", "both", "foresight") else 0,
    )
    excesses = []
    for seed in range(60):
        drawn = np.random.default_rng(seed).integers(len(problem.labels), size=n)
        samples, labels = problem.samples[drawn].copy(), problem.labels[drawn].copy()
        order = np.arange(n)
        if attack == "foresight":
            # The samples that would teach most, by all that will be drawn.
            order = np.argsort(labels * (samples @ target))
        touched = order[: int(bound.total / 0.5)]
        samples[touched] += 0.5 * labels[touched, None] * target / np.linalg.norm(target)
        labels[order[: int(bound.flips)]] *= -1
        mean, changes = poisoned_sgd(problem, drawn, samples, labels, bound.step)
        assert changes <= bound.gradient_changes * (1 + 1e-12)
        excesses.append(problem.risk(mean) - least)
        assert excesses[-1] <= bound.offline(DELTA) and (attack == "foresight" or excesses[-1] <= bound.online(DELTA))
    assert np.mean(excesses) <= bound.offline() and (attack == "foresight" or np.mean(excesses) <= bound.online())
    assert min(excesses) >= 0


def test_a_change_of_a_gradient_is_as_large_as_said():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 4))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    move = rng.normal(size=x.shape)
    w = RADIUS * np.array([0.6, 0.8, 0, 0])
    y = np.where(rng.random(2000) < 0.5, 1.0, -1.0)
    changes = np.linalg.norm(gradients(w, x + move, y) - gradients(w, x, y), axis=1)
    assert (changes <= (1 + RADIUS / 4) * np.linalg.norm(move, axis=1)).all()
    assert np.linalg.norm(gradients(w, x, -y) - gradients(w, x, y), axis=1) == pytest.approx(np.ones(2000))
