import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mucd_ray.certify.action import action_radii
from mucd_ray.certify.confidence import top_two_bounds
from mucd_ray.certify.guarantees import Guarantees
from mucd_ray.certify.plan import declared_size, least_instances, plan
from mucd_ray.errors import MucdError


@pytest.mark.parametrize("units, fraction, instances, threat", [(20_000, 0.01, 1000, "symmetric"), (976, 0.07, 50, "symmetric"), (5000, 0.02, 200, "substitute")])
def test_a_plan_certifies_what_was_asked_and_hardly_more_noise_than_needed(units, fraction, instances, threat):
    answer = plan(units=units, fraction=fraction, instances=instances, threat=threat)
    wanted = -(-units * fraction // 1)
    bounds = top_two_bounds([[instances, 0]], 0.001)

    def radius(sigma):
        mechanism = dataclasses.replace(answer.mechanism, noise_multiplier=sigma)
        return action_radii(bounds.top, bounds.runner_up, Guarantees(mechanism, threat=threat), units)[0]

    sigma = answer.mechanism.noise_multiplier
    assert radius(sigma) == answer.radius >= wanted
    assert radius(0.98 * sigma) < wanted


def test_more_robustness_costs_signal():
    budgets = [plan(units=10_000, fraction=f, instances=500).signal_budget for f in (0.002, 0.01, 0.05)]
    assert budgets == sorted(budgets, reverse=True)


@settings(max_examples=200, deadline=None)
@given(units=st.integers(1, 10_000_000))
def test_every_dataset_within_the_margin_declares_the_same_size(units):
    declared, margin = declared_size(units)
    assert abs(declared - units) <= 0.15 * units + 1
    for other in (max(1, units - margin), units + margin, units + margin // 2):
        assert declared_size(other)[0] == declared


def test_too_few_instances_say_how_many_are_needed():
    assert least_instances(2, 0.001) == 11
    assert top_two_bounds([[11, 0]], 0.001).top[0] > 0.5 >= top_two_bounds([[10, 0]], 0.001).top[0]
    with pytest.raises(MucdError, match="at least 11 are needed"):
        plan(units=1000, fraction=0.01, instances=5)


@pytest.mark.parametrize("changes", [{"fraction": 0.0}, {"fraction": 1.0}, {"units": 1}, {"eta": 0.0}, {"sample_rate": 2.0}, {"steps": 0}])
def test_bad_questions_are_refused(changes):
    with pytest.raises(MucdError):
        plan(**{"units": 1000, "fraction": 0.01, "instances": 100} | changes)
