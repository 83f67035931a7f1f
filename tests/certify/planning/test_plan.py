import dataclasses
import math

import pytest

from mucd_ray.certify.action import action_radii
from mucd_ray.certify.confidence.proportions import top_two_bounds
from mucd_ray.certify.guarantees import Guarantees
from mucd_ray.certify.planning.calibration import least_instances
from mucd_ray.certify.planning.plan import SOLVE, frontier, plan
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
    budgets = [plan(units=10_000, fraction=f, instances=500).signal_budget for f in (0.001, 0.002, 0.01)]
    assert budgets == sorted(budgets, reverse=True)


def test_too_few_instances_say_how_many_are_needed():
    assert least_instances(2, 0.001) == 11
    assert top_two_bounds([[11, 0]], 0.001).top[0] > 0.5 >= top_two_bounds([[10, 0]], 0.001).top[0]
    with pytest.raises(MucdError, match="at least 11 are needed"):
        plan(units=1000, fraction=0.01, instances=5)
    with pytest.raises(MucdError, match="an agreement of 0.8: "):
        plan(units=1000, fraction=0.01, instances=20, agreement=0.8)


@pytest.mark.parametrize("instances", range(30, 40))
def test_a_number_of_instances_is_refused_only_if_its_own_vote_certifies_nothing(instances):
    """A count is rounded down: 28 of 35 agree, and 28 of 36 as well."""
    question = {"units": 100, "radius": 1, "threat": "insert", "agreement": 0.8, "instances": instances}
    if top_two_bounds([[4 * instances // 5, instances - 4 * instances // 5]], 0.001).top[0] > 0.5:
        assert plan(**question).radius >= 1
    else:
        with pytest.raises(MucdError, match="35 are enough|37 are enough"):
            plan(**question)


@pytest.mark.parametrize("changes", [
    {"fraction": 0.0}, {"fraction": 1.0}, {"fraction": float("nan")}, {"fraction": None}, {"radius": 10}, {"units": 1}, {"units": 10.5}, {"units": float("nan")},
    {"fraction": None, "radius": 0}, {"fraction": None, "radius": 2.5}, {"fraction": None, "radius": 1001}, {"eta": 0.0}, {"eta": float("nan")},
    {"sample_rate": 2.0}, {"sample_rate": 0.0}, {"sample_rate": float("nan")}, {"steps": 0}, {"steps": 2.5}, {"steps": float("nan")}, {"instances": 100.5}, {"instances": -1},
    {"actions": 1}, {"actions": 2.5}, {"agreement": 0.5}, {"agreement": 1.01}, {"agreement": float("nan")}, {"agreement": 0.5001},
    {"noise_multiplier": -1.0, "solve": "steps"}, {"noise_multiplier": float("nan"), "solve": "sample-rate"}, {"threat": "none"}, {"accountant": "none"},
])  # fmt: skip
def test_bad_questions_are_refused(changes):
    with pytest.raises(MucdError):
        plan(**{"units": 1000, "fraction": 0.01, "instances": 100} | changes)


def certified_radius(mechanism, instances, agreement=1.0, threat="symmetric", units=20_000):
    """Without anything of plan.py but the definition of agreement."""
    top = math.floor(agreement * instances + 1e-9)
    bounds = top_two_bounds([[top, instances - top]], 0.001)
    return action_radii(bounds.top, bounds.runner_up, Guarantees(mechanism, threat=threat), units)[0]


# Quick: every unknown, every threat; slow: every pair of them.
QUICK = {("noise-multiplier", "substitute"), ("steps", "remove"), ("sample-rate", "insert"), ("instances", "symmetric"), ("steps", "insert")}


@pytest.mark.parametrize(
    "solve, threat, agreement",
    [
        pytest.param(solve, threat, agreement, marks=[] if (solve, threat) in QUICK else pytest.mark.slow)
        for solve in SOLVE
        for threat, agreement in (("insert", 1.0), ("remove", 0.99), ("substitute", 1.0), ("symmetric", 1.0))
    ],
)
def test_whatever_is_solved_for_the_target_is_certified_and_hardly_less_does_not(solve, threat, agreement):
    given = {"noise_multiplier": 50.0, "steps": 200, "sample_rate": 0.02, "instances": 1500}
    given[solve.replace("-", "_")] = None
    answer = plan(units=20_000, radius=150, solve=solve, threat=threat, agreement=agreement, **given)
    assert answer.solved == solve and answer.instances == (given["instances"] or answer.instances)
    assert {k: v for k, v in given.items() if v is not None}.items() <= (dataclasses.asdict(answer.mechanism) | {"instances": answer.instances}).items()
    mechanism = answer.mechanism
    assert certified_radius(mechanism, answer.instances, agreement, threat) == pytest.approx(answer.radius, abs=1) and answer.radius >= 150
    less_noise = dataclasses.replace(mechanism, noise_multiplier=mechanism.noise_multiplier * 0.998)
    more_steps = dataclasses.replace(mechanism, steps=mechanism.steps + 1)
    larger_rate = dataclasses.replace(mechanism, sample_rate=mechanism.sample_rate * 1.002)
    less_safe = {
        "noise-multiplier": (less_noise, answer.instances), "steps": (more_steps, answer.instances), "sample-rate": (larger_rate, answer.instances),
        "instances": (mechanism, answer.instances - 1),
    }[solve]  # fmt: skip
    assert certified_radius(*less_safe, agreement, threat) < 150


def test_answers_are_rounded_to_the_safe_side():
    noise = plan(units=3333, fraction=0.011, sample_rate=0.3).mechanism.noise_multiplier
    rate = plan(units=3333, fraction=0.011, noise_multiplier=noise, solve="sample-rate").mechanism.sample_rate
    assert noise == float(f"{noise:.4g}") and rate == float(f"{rate:.4g}")
    assert 0.3 <= rate < 0.3005


def test_what_to_solve_for_is_what_is_missing():
    question = {"units": 5000, "fraction": 0.01, "noise_multiplier": 40.0}
    assert plan(**question, sample_rate=0.05, instances=500).solved == "steps"
    assert plan(**question, steps=50, instances=500).solved == "sample-rate"
    assert plan(**question, sample_rate=0.02, steps=20).solved == "instances"
    assert plan(units=5000, fraction=0.01).solved == "noise-multiplier"
    for wrong, named in [
        ({"sample_rate": 0.05, "instances": 500, "steps": 10}, "leave one out"),
        ({"instances": 500}, "steps, sample-rate to solve for"),
        ({"solve": "noise-multiplier"}, "noise-multiplier 40.0 is given"),
        ({"solve": "epsilon"}, "use one of noise-multiplier, steps, sample-rate, instances"),
        ({"solve": "steps", "noise_multiplier": None}, "noise multiplier must be given"),
    ]:
        with pytest.raises(MucdError, match=named):
            plan(**question | wrong)


def test_disagreement_costs_noise_and_instances():
    noise = [plan(units=5000, fraction=0.01, agreement=a).mechanism.noise_multiplier for a in (1.0, 0.99, 0.9)]
    assert noise == sorted(noise) and noise[0] < 0.8 * noise[2]
    mechanism = {"units": 5000, "radius": 20, "noise_multiplier": 40.0, "sample_rate": 0.1, "steps": 100, "solve": "instances"}
    needed = [plan(**mechanism, agreement=a).instances for a in (1.0, 0.99, 0.95)]
    assert needed == sorted(needed) and needed[0] < needed[2]


@pytest.mark.parametrize("changes, named", [
    ({"solve": "steps", "noise_multiplier": 0.5}, "even 1 step .* raise the noise multiplier to [0-9.]+ at least"),
    ({"solve": "sample-rate", "noise_multiplier": 0.06}, "a batch of even one unit .* raise the noise multiplier to [0-9.]+ at least"),
    ({"solve": "instances", "noise_multiplier": 1.0}, "even 10000000 instances .* raise the noise multiplier"),
    ({"solve": "instances", "noise_multiplier": 42.2, "agreement": 0.95}, "agreement 0.95 is not certified at r = 200 by even 10000000 instances"),
])  # fmt: skip
def test_the_impossible_is_named_with_a_way_out(changes, named):
    with pytest.raises(MucdError, match=named):
        plan(units=20_000, fraction=0.01, **changes)


def test_a_fraction_is_taken_as_it_is_written():
    """0.07 * 100 is 7.000000000000001 in floating point."""
    assert plan(units=100, fraction=0.07).mechanism == plan(units=100, radius=7).mechanism
    assert plan(units=100, fraction=0.0701).mechanism == plan(units=100, radius=8).mechanism


@pytest.mark.parametrize("actions, eta, agreement", [(2, 0.001, 1.0), (18, 1e-6, 1.0), (3, 0.2, 1.0), (2, 0.001, 0.9), (4, 0.01, 0.6)])
def test_the_least_number_of_instances_is_the_edge(actions, eta, agreement):
    least = least_instances(actions, eta, agreement)

    def certifies(instances):
        top = math.floor(agreement * instances + 1e-9)
        bounds = top_two_bounds([[top, instances - top] + [0] * (actions - 2)], eta)
        return bounds.top[0] > 0.5

    assert certifies(least) and not certifies(least - 1)


@pytest.mark.parametrize("threat", ["insert", pytest.param("symmetric", marks=pytest.mark.slow)])
def test_a_plan_for_a_million_units_holds(threat):
    answer = plan(units=1_000_000, fraction=0.01, threat=threat)
    assert 10_000 <= answer.radius < 10_100


def test_the_frontier_is_certified_and_falls_with_the_signal():
    rows = frontier(units=20_000, instances=(100, 1000), signal_budgets=(100.0, 400.0, 4000.0))
    assert [(r["instances"], r["signal_budget"]) for r in rows] == [(p, s) for p in (100, 1000) for s in (100.0, 400.0, 4000.0)]
    for row in rows:
        mechanism = plan(units=20_000, radius=max(row["radius"], 1), instances=row["instances"], sample_rate=row["sample_rate"], steps=row["steps"]).mechanism
        assert row["fraction"] == row["radius"] / 20_000
        assert 20_000 * row["sample_rate"] * math.sqrt(row["steps"]) / row["noise_multiplier"] == pytest.approx(row["signal_budget"])
        # The least noise that certifies this radius is the row's, up to the radius being a whole number.
        assert 1 - 2 / row["radius"] - 0.01 < mechanism.noise_multiplier / row["noise_multiplier"] < 1.001
    few, many = ([r["fraction"] for r in rows if r["instances"] == p] for p in (100, 1000))
    assert few == sorted(few, reverse=True) and all(a < b for a, b in zip(few, many, strict=True))
    # rho = z / S with z = 2.46 for 1000 instances (theory, section 7).
    assert [r["fraction"] * r["signal_budget"] for r in rows[3:5]] == pytest.approx([2.46, 2.46], rel=0.03)
    assert frontier(units=20, instances=(2,), signal_budgets=(1e4,))[0]["fraction"] == 0


@pytest.mark.parametrize("changes", [{"signal_budgets": (0.0,)}, {"signal_budgets": (float("nan"),)}, {"instances": (0,)}, {"steps": 0}, {"units": 1}, {"agreement": 0.3}, {"sample_rate": 3.0}])
def test_bad_frontiers_are_refused(changes):
    with pytest.raises(MucdError):
        frontier(**{"units": 1000, "instances": (100,), "signal_budgets": (100.0,)} | changes)
