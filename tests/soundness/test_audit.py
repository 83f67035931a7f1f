"""End-to-end audit: the real engine trained with and without canary units. What an attacker attains stays within the claim, and near it."""

import numpy as np
import pytest

from mucd_ray.certify.confidence import clopper_pearson_lower, clopper_pearson_upper
from mucd_ray.certify.guarantees import Guarantees
from mucd_ray.learn.ensemble import train_block
from mucd_ray.learn.learner import Learner
from mucd_ray.learn.networks import Network
from mucd_ray.learn.streams import Streams
from mucd_ray.mechanism.mechanism import Mechanism

INSTANCES, CANARIES = 6000, 10
MECHANISM = Mechanism(sample_rate=0.2, noise_multiplier=2.0, clip_norm=0.1, steps=5, normaliser=10.0)


def trained_bias(features, actions, secret):
    """Difference of the two outputs' biases of every instance: what units without features push."""
    parameters = train_block(
        network=Network(inputs=2, outputs=2), learner=Learner(learning_rate=0.01), mechanism=MECHANISM,
        features=features, actions=actions, instances=range(INSTANCES), streams=Streams(secret * 32),
    )
    bias = parameters["0.bias"].numpy()
    return bias[:, 1] - bias[:, 0]


@pytest.fixture(scope="module")
def samples():
    rng = np.random.default_rng(0)
    # Ordinary units push the weights: their clipped gradients hardly touch the biases, which leaves the attacker the least noise.
    clean = (100 * rng.normal(size=(40, 2))).astype(np.float32), (np.arange(40) % 2).astype(np.int64)
    # The worst unit: no features, so that its whole clipped gradient lies on the biases; and copies of it.
    poisoned = np.vstack([clean[0], np.zeros((CANARIES, 2), np.float32)]), np.r_[clean[1], np.ones(CANARIES, np.int64)]
    broken = np.vstack([clean[0], np.full((CANARIES, 2), np.nan, np.float32)]), poisoned[1]
    return trained_bias(*clean, b"a"), trained_bias(*poisoned, b"b"), trained_bias(*broken, b"c")


@pytest.mark.parametrize("threat", ["insert", "remove"])
@pytest.mark.parametrize("p", [0.5, 0.8, 0.95])
def test_the_attack_stays_within_the_claim_and_comes_near_it(samples, threat, p):
    clean, poisoned, _ = samples
    under_d, under_d_prime = (clean, poisoned) if threat == "insert" else (-poisoned, -clean)
    half = INSTANCES // 2
    event = np.quantile(under_d[:half], p)  # chosen on one half, measured on the other
    count_d, count_d_prime = (under_d[half:] <= event).sum(), (under_d_prime <= event).sum()
    bound = Guarantees(MECHANISM, threat=threat).at(CANARIES)
    assert clopper_pearson_upper(count_d_prime, INSTANCES, 1e-4) >= bound.lower(float(clopper_pearson_lower(count_d, half, 1e-4)))
    # The audit has teeth: what it measures is within 0.04 of the bound, and far from p.
    assert count_d_prime / INSTANCES <= bound.lower(count_d / half) + 0.04
    assert count_d_prime / INSTANCES < p - 0.3


def test_units_that_are_not_numbers_move_nothing(samples):
    clean, _, broken = samples
    for p in (0.2, 0.5, 0.8):
        share = np.mean(broken <= np.quantile(clean, p))
        assert abs(share - p) < 5 * np.sqrt(2 * p * (1 - p) / INSTANCES)
