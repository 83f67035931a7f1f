"""The published statements against numbers worked out by hand; the explicit bound against what real runs of SGD do, inequality by inequality."""

import math

import pytest
import torch

from mucd_ray.errors import MucdError
from mucd_ray.robust.network import initial
from mucd_ray.robust.regimes import explicit, regime_a, regime_b, regime_c, widths

HALF = {"samples": 10_000, "margin": 0.5, "delta": 0.05}


def test_regime_a_by_hand():
    """sqrt(n)/4 = 25: ln^2 25 = 10.3612, ln(24 * 10^4 / .05) = 15.3841; divided by 100 * .25."""
    statement = regime_a(**HALF, width=1000, dimension=100, per_sample=0.05, total=10)
    assert statement.bound == pytest.approx((10.36116 + 15.38413) / 25, rel=1e-5)
    assert [(condition.left, condition.right) for condition in statement.conditions] == [(0.05, pytest.approx(0.05)), (pytest.approx(256), 1000), (1000, pytest.approx(1600))]
    assert statement.holds
    assert not regime_a(**HALF, width=1601, dimension=100, per_sample=0.05, total=10).holds and not regime_a(**HALF, width=255, dimension=100, per_sample=0.05, total=10).holds
    assert not regime_a(**HALF, width=1000, dimension=100, per_sample=0.051, total=10).holds
    assert widths(regime_a, **HALF, dimension=100, per_sample=0.05, total=10) == (256, 1600)
    assert widths(regime_a, **HALF, dimension=100, per_sample=0.05, total=25.1) is None, "S <= gamma^2 sqrt(n) = 25"
    assert "no certificate" in str(statement) and "says nothing" in str(statement)


def test_regime_b_by_hand():
    """m = 400, d = 100: sqrt(m d) = 200, sqrt(400 ln 8000) = 59.9573; ln(400 * 10^4 / .05) = 18.1975."""
    statement = regime_b(**HALF, width=400, dimension=100, per_sample=0.003)
    assert statement.bound == pytest.approx((10.36116 + 15.38413) / 2500, rel=1e-5)
    assert [condition.right for condition in statement.conditions] == [400, pytest.approx(1 / 259.9573, rel=1e-6), pytest.approx(0.5 / (0.5 + 10 + math.sqrt(18.19754)), rel=1e-6)]
    assert statement.holds and not regime_b(**HALF, width=800, dimension=100, per_sample=0.003).holds
    least, most = widths(regime_b, **HALF, dimension=100, per_sample=0.003)
    assert least == 256 and regime_b(**HALF, width=most, dimension=100, per_sample=0.003).holds and not regime_b(**HALF, width=most + 1, dimension=100, per_sample=0.003).holds


def test_regime_c_by_hand():
    """ln(10^4 / .05) = 12.2061, ln^2 10^4 = 84.8304; m = 400: .125 * 20 * 1.5 = 3.75; sqrt(12.2061) = 3.49372."""
    statement = regime_c(**HALF, width=400, flip=0.5)
    assert statement.bound == pytest.approx((10.36116 + math.log(16e4 / 0.05)) / 25, rel=1e-5)
    assert statement.conditions[1].right == pytest.approx((12.20607 + 84.83037) / (7.24372 * 25), rel=1e-5)
    least, most = widths(regime_c, **HALF, flip=0.5)
    assert least == 256 and math.sqrt(most) == pytest.approx((97.03644 / 12.5 - 3.49372) / (0.125 * 1.5), rel=1e-3)


@pytest.mark.parametrize("bad", [{"samples": 15}, {"margin": 0.51}, {"margin": 0}, {"delta": 0}, {"flip": 1.1}, {"flip": math.nan}, {"width": 0}], ids=str)
def test_numbers_outside_their_range(bad):
    with pytest.raises(MucdError, match=next(iter(bad))):
        regime_c(**HALF | {"width": 400, "flip": 0.1} | bad)


def test_the_explicit_bound_says_something_for_very_wide_networks_alone():
    wide = {"samples": 100_000, "dimension": 100, "margin": 0.5, "delta": 0.01, "rate": 0.1}
    assert explicit(**wide, width=10**5).error == 1
    clean = explicit(**wide, width=10**16).error
    assert 0 < clean < 0.1
    errors = [explicit(**wide, width=10**16, flips=flips).error for flips in (0, 100, 10_000)]
    assert errors[0] == clean < errors[1] < 0.2 and errors[2] == 1
    assert clean < explicit(**wide, width=10**16, per_sample=1e-6, total=1e-6).error < 0.2, "few perturbations: regime A"
    assert clean < explicit(**wide, width=10**16, per_sample=1e-10).error < 0.2, "small ones: regime B"
    assert explicit(**wide, width=10**16, per_sample=1e-3).error == 1


def test_every_step_of_the_proof_on_real_runs():
    """v(z) = u: the margin is half the least y <u, x>. Poisoned samples, flips, W known to the attacker."""
    n, m, d, rate, bound, delta, failed = 40, 300, 3, 0.05, 0.02, 0.1, 0
    u = torch.tensor([1.0, 0, 0], dtype=torch.float64)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        y = 2.0 * torch.randint(2, (n,), generator=generator).double() - 1
        x = torch.randn(n, d, generator=generator, dtype=torch.float64) * 0.3 + 2 * y[:, None] * u
        x /= x.norm(dim=1, keepdim=True)
        margin = float((y * (x @ u)).min()) / 2
        network = initial(m, d, 100 + seed, torch.float64)
        shown = explicit(samples=n, width=m, dimension=d, margin=margin, rate=rate, delta=delta, per_sample=bound, flips=4)
        seen = torch.where(torch.arange(n) < 4, -y, y)
        moved = x - bound * y[:, None] * (direction := network.input_gradients(x)) / direction.norm(dim=1, keepdim=True)
        start, weights = network.weights, network.weights.clone()
        towards = network.signs[:, None] * u / m**0.5
        assert float(towards.norm()) == pytest.approx(1)
        row = d**0.5 + math.sqrt(2 * math.log(5 * m / delta))
        longest, losses, compared, mistakes = 1 + bound, 0.0, torch.zeros(3, dtype=torch.float64), 0
        scales = torch.tensor([0.5, 3.0, 20.0], dtype=torch.float64)
        good = bool((start.norm(dim=1) <= row).all())
        for i in range(n):
            assert float((weights - start).norm(dim=1).max()) <= shown.movement
            w = weights.clone().requires_grad_()
            output = ((moved[i] @ w.T).relu() @ network.signs) / m**0.5
            (gradient,) = torch.autograd.grad(output, w)
            loss = torch.nn.functional.softplus(-seen[i] * output.detach())
            losses += float(loss)
            # The network is linear at its present activations; margins of the comparators W_0 + lambda U there.
            at = float((gradient * start).sum()), float((gradient * towards).sum())
            compared += torch.nn.functional.softplus(-seen[i] * (at[0] + scales * at[1]))
            turned = (margin - shown.margin) - math.sqrt(2 * math.log(5 * n / delta) / m) - bound
            most = math.sqrt(2 * math.log(10 * n / delta)) + m**0.5 * (turned * shown.movement * longest + row * bound)
            good &= float(y[i]) * at[1] >= shown.margin and abs(at[0]) <= most
            mistakes += float(y[i] * ((x[i] @ weights.T).relu() @ network.signs)) <= 0
            weights = weights + rate * seen[i] * torch.sigmoid(-seen[i] * output.detach()) * gradient
        failed += not good
        assert ((1 - rate * longest**2 / 2) * losses <= compared + scales**2 / (2 * rate)).all(), "for certain, whatever was drawn"
        assert mistakes / n <= shown.error
    assert failed / 20 <= delta
