"""End to end: real learners on real bags, with and without poisoned units. What an attacker attains stays within the claim, and comes near it."""

from functools import cache

import numpy as np
import pytest
from problems import problem
from scipy.stats import binomtest

from mucd_ray.certify.action import certify_votes
from mucd_ray.certify.closed_form import guarantees_of
from mucd_ray.evaluate.policies import trained_policies
from mucd_ray.evaluate.votes import actions_at, counts
from mucd_ray.learn.streams import Streams
from mucd_ray.learn.trainers.bags import draw_bag
from mucd_ray.learn.trainers.built_in import Fit, fit_policies
from mucd_ray.learn.trainers.parts import draw_part, units_by_part
from mucd_ray.learn.units import Units
from mucd_ray.mechanism.bag import Bag
from mucd_ray.mechanism.partition import Partition

CLEAN, INSTANCES = 30, 500
ASKED = problem("bc", True, inputs=2, actions=2, optimiser="adam", learning_rate=0.05)
STATE = np.zeros((1, 2), np.float32)


def dataset(poisoned: int) -> Units:
    """Clean trajectories take action 0; a poisoned one is as long as ten of them and takes action 1, so that it decides every bag that it is in."""
    lengths = np.array([4] * CLEAN + [40 * 4] * poisoned)
    rng = np.random.default_rng(1)
    rows = int(lengths.sum())
    features = rng.standard_normal((rows, 2)).astype(np.float32)
    actions = np.repeat((lengths > 4).astype(np.int64), lengths)
    return Units(
        unit="trajectory", features=features, next_features=features[:0], actions=actions, rewards=np.zeros(rows, np.float32), keeps=np.ones(rows, np.float32),
        starts=np.cumsum(lengths) - lengths, lengths=lengths,
    )


@cache
def votes(mechanism, poisoned: int, secret: bytes) -> np.ndarray:
    """Votes [2] of INSTANCES instances at one state."""
    units, streams = dataset(poisoned), Streams(secret * 16)
    fit = {"problem": ASKED, "fit": Fit(steps=30, batch=64, normalise=False), "units": units}
    if mechanism.kind == "bag":
        bags = [draw_bag(mechanism, len(units), instance, streams) for instance in range(INSTANCES)]
        policies = trained_policies(ASKED, fit_policies(**fit, bags=bags, instances=range(INSTANCES), streams=streams))
        return counts(actions_at(policies, STATE), 2)[0]
    of_parts = trained_policies(ASKED, fit_policies(**fit, bags=units_by_part(mechanism, units), instances=range(mechanism.parts), streams=Streams(b"public" * 4)))
    drawn = [draw_part(mechanism, instance, streams) for instance in range(INSTANCES)]
    return counts(actions_at(of_parts, STATE)[drawn], 2)[0]


@pytest.mark.parametrize("mechanism", [Bag(bag_size=3), Bag(bag_size=3, draws="replacement"), Bag(draws="poisson", sample_rate=0.1)], ids=str)
@pytest.mark.parametrize("poisoned", [1, 4, 9])
def test_insertions_attain_the_bound_on_the_probability_of_an_action_and_no_more(mechanism, poisoned):
    """Under D every policy takes action 0, an empty bag's too: the event has probability 1."""
    assert votes(mechanism, 0, b"a")[0] == INSTANCES
    left = int(votes(mechanism, poisoned, b"b")[0])
    bound = float(guarantees_of(mechanism, units=CLEAN).group(poisoned, 0).lower(1.0))
    assert binomtest(left, INSTANCES, bound, alternative="less").pvalue > 1e-4, "the certificate promised more"
    assert binomtest(left, INSTANCES, bound).pvalue > 1e-4, "this learner leaves no more than the bound"


@pytest.mark.parametrize("mechanism", [Bag(bag_size=3), Partition(parts=15)], ids=str)
def test_the_majority_stays_up_to_the_certified_radius_and_falls_not_far_beyond(mechanism):
    guarantees = guarantees_of(mechanism, units=CLEAN, threat="insert")
    radius = int(certify_votes(votes(mechanism, 0, b"a")[None], guarantees, eta=0.01, cap=CLEAN).radius[0])
    assert radius >= 4
    # The true probability is above one half.
    assert binomtest(int(votes(mechanism, radius, b"b")[0]), INSTANCES, 0.5, alternative="less").pvalue > 1e-4
    assert any(votes(mechanism, more, b"b")[0] < INSTANCES / 2 for more in range(radius + 1, 4 * radius))


def test_a_removed_majority_of_few_units_is_counted_too():
    """D has the poisoned units, D' lacks them: what they did to D may be undone."""
    mechanism, poisoned = Bag(bag_size=3), 4
    before = int(votes(mechanism, poisoned, b"a")[1])
    guarantees = guarantees_of(mechanism, units=CLEAN + poisoned)
    assert votes(mechanism, 0, b"b")[1] == 0
    assert guarantees.group(0, poisoned).lower(before / INSTANCES) <= 0.05
