"""End-to-end audit: the real engine trained with and without canary units. What an attacker attains stays within the claim, and near it.

What is attained is a lower confidence bound: an event is chosen on one half of the instances trained on D; Clopper-Pearson bounds on its
probability under D (the other half, from below) and under D' (from above) then bound the shift that the real engine has shown.
"""

import math
from functools import cache

import numpy as np
import pytest
from attackers import Canaries
from scipy.stats import norm

from mucd_ray.certify.closed_form import guarantees_of
from mucd_ray.certify.confidence.proportions import clopper_pearson_lower, clopper_pearson_upper
from mucd_ray.certify.guarantees import Guarantees
from mucd_ray.learn.ensemble import ENGINES, train_block
from mucd_ray.learn.streams import Streams
from mucd_ray.learn.trainers.bags import draw_bag, units_of
from mucd_ray.mechanism.bag_then_noise import BagThenNoise

INSTANCES, CANARIES = 6000, 10
# Each of the two bounds of an event fails with at most this probability.
ETA = 1e-4
ONE_STEP = {"sample_rate": 0.3, "noise_multiplier": 1.5, "clip_norm": 0.1, "steps": 1, "normaliser": 10.0}
# Canaries that D has and that push one way, and canaries that D' has and that push the other way.
MIXED = [(10, 0), (0, 10), (5, 5), (3, 7)]
# Transitions, and trajectories of three transitions.
LENGTHS = [1, 3]


@cache
def trained(pushing, pulling, secret, feature=0.0, instances=INSTANCES, engine="fused", length=1):
    attack = Canaries(length=length)
    return attack.train(attack.dataset(pushing, pulling, feature), instances, secret, engine)


def attained(under_d, under_d_prime, p):
    """(lower bound on P_D(S), upper bound on P_D'(S)) for an event S of about probability p under D that is unlikely under D'."""
    half = len(under_d) // 2
    event = np.quantile(under_d[:half], 1 - p)
    lower = clopper_pearson_lower((under_d[half:] >= event).sum(), len(under_d) - half, ETA)
    return float(lower), float(clopper_pearson_upper((under_d_prime >= event).sum(), len(under_d_prime), ETA))


@pytest.mark.parametrize("threat", ["insert", "remove"])
@pytest.mark.parametrize("p", [0.5, 0.8, 0.95])
def test_the_attack_stays_within_the_claim_and_comes_near_it(threat, p):
    clean, poisoned = trained(0, 0, b"a"), trained(CANARIES, 0, b"b")
    under_d, under_d_prime = (-clean, -poisoned) if threat == "insert" else (poisoned, clean)
    before, after = attained(under_d, under_d_prime, p)
    bound = Guarantees(Canaries().mechanism, threat=threat).at(CANARIES)
    assert after >= bound.lower(before)
    # The audit has teeth: without its error margins it is within 0.04 of the bound, and far from p.
    event = np.quantile(under_d, 1 - p)
    assert np.mean(under_d_prime >= event) <= bound.lower(p) + 0.04
    assert after < p - 0.3


@pytest.mark.parametrize("removed,inserted,length,engine", [
    *((*group, 1, "fused") for group in MIXED), (5, 5, 3, "fused"), pytest.param(3, 7, 3, "torch", marks=pytest.mark.slow),
])
def test_a_mixed_group_stays_within_the_exact_bound_of_its_split_and_within_symmetric(removed, inserted, length, engine):
    """D has `removed` canaries that D' lacks, D' has as many of the other direction as are inserted: both shifts add up."""
    under_d, under_d_prime = (
        trained(*group, secret, engine=engine, length=length) for group, secret in (((removed, 0), b"d"), ((0, inserted), b"e"))
    )
    guarantees = Guarantees(Canaries().mechanism, threat="symmetric")
    exact, symmetric = guarantees.group(inserted, removed), guarantees.at(removed + inserted)
    shifts, strengths = [], []
    for p in (0.5, 0.7, 0.8, 0.9, 0.95):
        before, after = attained(under_d, under_d_prime, p)
        assert after >= exact.lower(before) >= symmetric.lower(before) - 2e-4
        shifts.append(before - after)
        strengths.append(norm.ppf(before) - norm.ppf(after))
    grid = np.linspace(0.001, 0.999, 999)
    claimed = float(np.max(grid - exact.lower(grid)))
    # Teeth: at least 85 % of the claimed total variation is attained, with confidence.
    assert 0.85 * claimed <= max(shifts) <= claimed
    # In the units of mu-GDP: no p shows a greater mu than is claimed at any p, and at least 80 % of the claim at its own p is shown.
    inner = np.linspace(0.4, 0.97, 200)
    claims = norm.ppf(inner) - norm.ppf(exact.lower(inner))
    assert 0.8 * claims.min() <= max(strengths) <= claims.max()


def test_epsilon_of_the_audit_stays_below_the_claim():
    """The usual figure of audits: epsilon at a small delta, from log((P_D(S) - delta) / P_D'(S))."""
    under_d, under_d_prime, delta = trained(CANARIES, 0, b"b"), trained(0, 0, b"a"), 1e-3
    guarantee = Guarantees(Canaries().mechanism, threat="remove").at(CANARIES)
    shown = []
    for p in (0.5, 0.3, 0.2, 0.1, 0.05):
        before, after = attained(under_d, under_d_prime, p)
        shown.append(math.log((before - delta) / after))
    grid = np.linspace(2 * delta, 1.0, 5000)
    claimed = np.max(np.log((grid - delta) / np.maximum(guarantee.lower(grid), 1e-300)))
    assert max(shown) <= claimed
    # Six thousand instances cannot show the rarest events; they show epsilon > 2 of a claim of about 7.
    assert max(shown) > 2.0


def test_one_step_is_attained_at_every_probability():
    """With one step the auditor sees exactly the dominating pair, and the curve is attained everywhere, not only near its middle."""
    attack = Canaries(mechanism=Canaries().mechanism.__class__(**ONE_STEP))
    under_d = attack.train(attack.dataset(6, 0), INSTANCES, b"f")
    under_d_prime = attack.train(attack.dataset(0, 4), INSTANCES, b"g")
    exact = Guarantees(attack.mechanism).group(4, 6)
    for p in np.linspace(0.05, 0.95, 19):
        before, after = attained(under_d, under_d_prime, p)
        assert after >= exact.lower(before)
        event = np.quantile(under_d, 1 - p)
        assert np.mean(under_d_prime >= event) <= exact.lower(p) + 0.035


@pytest.mark.parametrize("length", LENGTHS)
def test_units_that_are_not_numbers_move_nothing(length):
    clean, broken = trained(0, 0, b"a", length=length), trained(CANARIES, 0, b"c", feature=np.nan, length=length)
    for p in (0.2, 0.5, 0.8):
        share = np.mean(broken <= np.quantile(clean, p))
        assert abs(share - p) < 5 * np.sqrt(2 * p * (1 - p) / INSTANCES)


def test_the_published_rule_does_not_survive_the_real_engine():
    """At q = 1 the rule claims that ten canaries do no more than one. The engine shows otherwise."""
    plan = Canaries().mechanism.__class__(sample_rate=1.0, noise_multiplier=8.0, clip_norm=0.1, steps=1, normaliser=10.0)
    attack = Canaries(mechanism=plan)
    before, after = attained(attack.train(attack.dataset(CANARIES, 0), 3000, b"h"), attack.train(attack.dataset(0, 0), 3000, b"i"), 0.7)
    assert after < Guarantees(plan, threat="remove", family="published").at(CANARIES).lower(before)
    assert after >= Guarantees(plan, threat="remove").at(CANARIES).lower(before)


@pytest.mark.parametrize("draws", [{"bag_rate": 0.15}, {"draws": "fixed", "bag_size": 4}], ids=["poisson", "fixed"])
@pytest.mark.parametrize("removed,inserted", [(8, 0), (4, 4)])
def test_bags_with_noise_stay_within_their_claim(removed, inserted, draws):
    """Few ordinary units, so that bags without any changed unit, with some, and empty ones all occur."""
    asked, ordinary, instances = BagThenNoise(unit="transition", **draws, sample_rate=0.7, noise_multiplier=1.5, clip_norm=0.1, steps=4, normaliser=2.0), 16, 3000
    attack = Canaries(ordinary=ordinary)

    def outcomes(units, secret):
        streams, settings = Streams(secret * 32), {"problem": attack.problem, "mechanism": asked.noise}
        bags = (units_of(units, draw_bag(asked.bag, len(units), instance, streams)) for instance in range(instances))
        bias = np.concatenate([train_block(**settings, units=bag, instances=[instance], streams=streams)["0.bias"].numpy() for instance, bag in enumerate(bags)])
        return bias[:, 1] - bias[:, 0]

    under_d, under_d_prime = outcomes(attack.dataset(removed, 0), b"l"), outcomes(attack.dataset(0, inserted), b"m")
    exact = guarantees_of(asked, units=ordinary + removed).group(inserted, removed)
    shifts = []
    for p in (0.1, 0.3, 0.5, 0.7, 0.9):
        before, after = attained(under_d, under_d_prime, p)
        assert after >= exact.lower(before)
        shifts.append(before - after)
    grid = np.linspace(0.001, 0.999, 999)
    claimed = float(np.max(grid - exact.lower(grid)))
    # Canaries that take the places of ordinary units do less than units that push the other way would.
    assert (0.7 if asked.draws == "poisson" else 0.3) * claimed <= max(shifts) <= claimed


@pytest.mark.slow
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("removed,inserted", MIXED)
def test_a_large_audit(removed, inserted, engine, length):
    """40,000 instances: the margins shrink to 0.01, and the attained shift must come within 4 % of the claimed total variation."""
    instances = 40_000 if engine == "fused" else 20_000
    under_d, under_d_prime = (trained(*group, secret, 0.0, instances, engine, length) for group, secret in (((removed, 0), b"j"), ((0, inserted), b"k")))
    exact = Guarantees(Canaries().mechanism).group(inserted, removed)
    shifts = []
    for p in (0.05, 0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.998):
        before, after = attained(under_d, under_d_prime, p)
        assert after >= exact.lower(before)
        shifts.append(before - after)
    grid = np.linspace(0.001, 0.999, 999)
    claimed = float(np.max(grid - exact.lower(grid)))
    assert (0.95 if engine == "fused" else 0.93) * claimed <= max(shifts) <= claimed
