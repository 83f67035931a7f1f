"""The plain sentences say no more than the certificate."""

import numpy as np
import pytest

from mucd_ray.certify.file.certificate import make_certificate, make_inputs
from mucd_ray.certify.file.evidence import continuous_evidence, histogram, levels, votes_evidence
from mucd_ray.certify.file.plain import plain_words
from mucd_ray.certify.rounding import percent_down
from mucd_ray.mechanism.bag import Bag
from mucd_ray.mechanism.gaussian.mechanism import Mechanism

RETURNS = np.random.default_rng(3).uniform(400.4, 499.9, 300)


def certificate(threat, actions=None, size=10, returns=RETURNS):
    inputs = make_inputs(mechanism=Bag(unit="trajectory", bag_size=size), units=503, returns=returns, return_range=(0, 500), actions=actions, threat=threat)
    return make_certificate(inputs, assumptions=[], context={})


@pytest.mark.parametrize(
    "threat, words",
    [
        ("symmetric", "Even if somebody had slipped in or taken away any {r} trajectories of the 503 ({share} %), or changed any {half}, in any way"),
        ("insert", "Even if somebody slipped in any {r} trajectories beside the 503 ({share} %), in any way"),
        ("remove", "Even without any {r} trajectories of the 503 ({share} %), in any way"),
        ("substitute", "Even if somebody had changed any {r} trajectories of the 503 ({share} %), in any way"),
    ],
)
def test_what_had_to_be_done_is_counted_as_the_threat_counts_it(threat, words):
    made = certificate(threat, votes_evidence(np.array([[300, 0], [299, 1], [150, 150]])))
    kept = made["results"]["policy"]["keeps"]["0.5"]
    returns, actions = plain_words(made)
    assert returns.startswith(words.format(r=kept["radius"], half=kept["radius"] // 2, share=percent_down(kept["radius"] / 503)))
    (earned,) = [float(word) for word in returns.split(" on average")[0].split()[-1:]]
    assert earned <= kept["bound"] < earned + 0.1
    radii = [radius for radius in made["results"]["action"]["family_wise"]["radius"] if radius]
    assert actions.startswith("At 66.6 % of the 3 tested states no single trajectory") and f"no {max(radii)} trajectories do" in actions and len(radii) == 2


def test_where_nothing_is_certified_that_is_said():
    returns, actions = plain_words(certificate("symmetric", votes_evidence(np.array([[200, 100]])), size=250))
    assert "not certified against a single poisoned trajectory" in returns
    assert actions.startswith("At none of the 1 tested states")


def test_what_is_not_sound_or_on_a_condition_says_so_first():
    mechanism = Mechanism(sample_rate=0.02, noise_multiplier=4.0, clip_norm=1.0, steps=10, normaliser=1.0)
    inputs = make_inputs(mechanism=mechanism, units=503, returns=RETURNS, return_range=(0, 500), accountant="published", condition="tuned-on-this-dataset")
    first, second, *_ = plain_words(make_certificate(inputs, assumptions=[], context={}))
    assert first.startswith("NOT SOUND") and second.startswith("Only on a condition")


def test_half_of_the_states_have_the_named_radius():
    rng = np.random.default_rng(0)
    for states in (1, 2, 5, 8):
        top = rng.integers(200, 301, states)
        made = certificate("symmetric", votes_evidence(np.stack([top, 300 - top], axis=1)))
        radii = [radius for radius in made["results"]["action"]["family_wise"]["radius"] if radius]
        sentence = plain_words(made)[1]
        if radii and "half of these no" in sentence:
            named = int(sentence.split("half of these no ")[1].split()[0])
            assert 2 * sum(radius >= named for radius in radii) >= len(radii)


def test_continuous_actions_move_by_so_much():
    """From one end of an interval to the other, whose half-width is the tolerance."""
    values = np.random.default_rng(1).normal(0.5, 0.01, (300, 4, 2))
    made = certificate("insert", continuous_evidence(histogram(levels(values, 0, 1)), [-1, -1], [1, 1]))
    assert "no single trajectory slipped in moves the action by more than 20 % of its range" in plain_words(made)[1]
