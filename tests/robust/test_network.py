"""SGD against torch's autograd step by step; projections against closed forms and brute force; budgets counted."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from mucd_ray.errors import MucdError
from mucd_ray.robust.network import BLOCK, initial, trained
from mucd_ray.robust.poison import OnlineAttack, check_moved, moved, negated_loss
from mucd_ray.robust.projections import projected


def data(n, d, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return (x / x.norm(dim=1, keepdim=True)).to(dtype), (torch.sign(x[:, 0]) + (x[:, 0] == 0)).to(dtype)


@pytest.mark.parametrize("width", [1, 7, 200])
def test_sgd_is_autograds_step_by_step(width):
    x, y = data(2 * BLOCK + 5, 6)
    network = initial(width, 6, 1, torch.float64)
    weights = network.weights.clone().requires_grad_()
    for i in range(len(x)):
        loss = torch.nn.functional.softplus(-y[i] * ((x[i] @ weights.T).relu() @ network.signs) / width**0.5)
        (gradient,) = torch.autograd.grad(loss, weights)
        weights = (weights - 0.7 * gradient).detach().requires_grad_()
    found, seen = trained(network, x, y, rate=0.7)
    assert torch.allclose(found.weights, weights.detach(), rtol=1e-10, atol=1e-12) and torch.equal(seen, x)
    assert torch.equal(network.weights, initial(width, 6, 1, torch.float64).weights), "the given one is left as it is"
    slow, seen = trained(network, x, y, rate=0.7, online=lambda sample, label, gradient: sample)
    assert torch.allclose(slow.weights, found.weights, rtol=1e-10, atol=1e-12) and torch.equal(seen, x)
    assert 0 <= found.accuracy(x, y) <= 1 and found.outputs(x).shape == (len(x),)


def test_gradients_of_inputs_are_autograds():
    x, _ = data(300, 6)
    network = initial(50, 6, 2, torch.float64)
    variable = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network.outputs(variable).sum(), variable)
    assert torch.allclose(network.input_gradients(x), gradient)


def test_what_does_not_fit():
    x, y = data(4, 6)
    for samples, labels in ((x[:, :3], y), (x, y[:2]), (x, torch.zeros(4))):
        with pytest.raises(MucdError, match="wanted"):
            trained(initial(3, 6, 0, torch.float64), samples, labels)
    with pytest.raises(MucdError, match="width 0"):
        initial(0, 6, 0)


def test_one_bound_alone_has_a_closed_form():
    x = torch.tensor([[3.0, 4], [0, 1], [0, 0], [-2, 0]], dtype=torch.float64)
    assert torch.allclose(projected(x, per_sample=2), torch.tensor([[1.2, 1.6], [0, 1], [0, 0], [-2, 0]], dtype=torch.float64))
    # Norms 5, 1, 0, 2 with S = 4: theta = 1.5 leaves 3.5 and 0.5.
    assert torch.allclose(projected(x, total=4), torch.tensor([[2.1, 2.8], [0, 0], [0, 0], [-0.5, 0]], dtype=torch.float64))
    assert torch.equal(projected(x, per_sample=5, total=8), x) and not projected(x, total=0).any()
    with pytest.raises(MucdError, match="S"):
        projected(x, total=float("nan"))


@given(norms=st.lists(st.floats(0, 10), min_size=2, max_size=5), per_sample=st.none() | st.floats(0.1, 5), total=st.none() | st.floats(0.1, 20), seed=st.integers(0, 5))
def test_projections_are_the_nearest(norms, per_sample, total, seed):
    x = data(len(norms), 3, seed)[0] * torch.tensor(norms, dtype=torch.float64)[:, None]
    found = projected(x, per_sample=per_sample, total=total)
    rows = found.norm(dim=1)
    assert (rows <= (np.inf if per_sample is None else per_sample * (1 + 1e-12))).all() and rows.sum() <= (np.inf if total is None else total * (1 + 1e-12))
    # By brute force: a general solver on norms, and any other point of the set is farther.
    v = x.norm(dim=1).numpy()
    limit = [] if total is None else [{"type": "ineq", "fun": lambda kept: total - kept.sum()}]
    solved = minimize(lambda kept: ((kept - v) ** 2).sum(), np.minimum(v, 0.1), bounds=[(0, per_sample)] * len(v), constraints=limit, method="SLSQP", options={"ftol": 1e-14})
    assert float((found - x).square().sum()) <= solved.fun + 1e-6
    generator = torch.Generator().manual_seed(seed)
    for _ in range(20):
        other = torch.randn(x.shape, generator=generator, dtype=torch.float64) * 0.3 + found
        other *= min(1, (np.inf if per_sample is None else per_sample) / float(other.norm(dim=1).max()), (np.inf if total is None else total) / float(other.norm(dim=1).sum()))
        assert (found - x).norm() <= (other - x).norm() + 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("budget", [{"per_sample": 0.3}, {"total": 20.0}, {"per_sample": 0.3, "total": 1e-3}, {"per_sample": 1e-6}, {"per_sample": 0.0}], ids=str)
def test_poison_keeps_to_its_budget_and_works(budget, dtype):
    x, y = data(200, 6, dtype=dtype)
    surrogate, _ = trained(initial(100, 6, 0, dtype), x.repeat(5, 1), y.repeat(5))
    after = negated_loss(surrogate, x, y, **budget, steps=30)
    spent = check_moved(x, after, **budget)
    assert spent == moved(x, after)
    if budget.get("total", 1) >= 1 and budget.get("per_sample", 1) >= 0.1:
        assert spent.total > 0.9 * budget.get("total", 200 * 0.3), "it is spent"
        assert (y * surrogate.outputs(after)).mean() < (y * surrogate.outputs(x)).mean() - 0.1, "samples look like the other class"
    else:
        assert spent.total <= 200e-6 + 1e-3
    with pytest.raises(MucdError, match="fault of the attack"):
        check_moved(x, x + 1, **budget)


def test_an_online_attacker_spends_b_until_s_is_gone():
    x, y = data(100, 6, dtype=torch.float32)
    network = initial(30, 6, 0)
    _, seen = trained(network, x, y, online=OnlineAttack(per_sample=0.25, total=10.1))
    norms = (seen.double() - x.double()).norm(dim=1)
    check_moved(x, seen, per_sample=0.25, total=10.1)
    assert norms[:40] == pytest.approx(np.full(40, 0.25), abs=1e-5) and norms[40] == pytest.approx(0.1, abs=1e-4) and norms[42:].max() < 1e-6  # what rounding has left of S
    # Before the first step W is the initial one, and the move is straight against the label.
    gradient = network.input_gradients(x[:1])[0]
    assert torch.allclose(seen[0], x[0] - y[0] * 0.25 * gradient / gradient.norm(), atol=1e-5)
    with pytest.raises(MucdError, match="B"):
        OnlineAttack(per_sample=float("nan"))


def test_poison_without_a_budget():
    with pytest.raises(MucdError, match="budget"):
        negated_loss(initial(3, 6, 0), *data(4, 6, dtype=torch.float32))
