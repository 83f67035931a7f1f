"""What a table certifies is what the accounting certifies, rounded down to the table's radii."""

import numpy as np
import pytest

from mucd_ray.certify.action import certify_scores, certify_votes
from mucd_ray.certify.file.evidence import LEVELS
from mucd_ray.certify.guarantees import Guarantees
from mucd_ray.certify.median_action import MedianActions
from mucd_ray.certify.tabulated import TabulatedGuarantees, tabulated
from mucd_ray.mechanism.gaussian.mechanism import Mechanism

INSTANCES, ETA, CAP = 120, 0.01, 5000


@pytest.fixture(scope="module")
def exact():
    return Guarantees(Mechanism(sample_rate=0.05, noise_multiplier=60.0, clip_norm=1.0, steps=20, normaliser=1.0), threat="insert")


def votes(rng, states, actions):
    return rng.multinomial(INSTANCES, rng.dirichlet(np.full(actions, 0.2), size=states))


def scores(rng, states, outputs):
    level = np.clip(rng.normal(rng.uniform(20, LEVELS - 20, (1, states, outputs)), rng.uniform(1, 60, (states, 1)), (INSTANCES, states, outputs)), 0, LEVELS).astype(int)
    return np.array([[np.bincount(level[:, s, o], minlength=LEVELS + 1) for o in range(outputs)] for s in range(states)])


CERTIFIED = {
    "votes": (votes, lambda evidence, guarantees: certify_votes(evidence, guarantees, eta=ETA, cap=CAP).radius),
    "scores": (scores, lambda evidence, guarantees: certify_scores(evidence, guarantees, eta=ETA, cap=CAP).radius),
    "continuous": (scores, lambda evidence, guarantees: MedianActions(evidence, guarantees, eta=ETA).radii(0.1, CAP)),
}


@pytest.mark.parametrize("outputs", [2, 3])
@pytest.mark.parametrize("kind", CERTIFIED)
def test_radii_are_the_exact_ones_rounded_down_to_the_table(exact, kind, outputs):
    draw, radii_of = CERTIFIED[kind]
    evidence = draw(np.random.default_rng(outputs), 40, outputs)
    radii = radii_of(evidence, exact)
    assert len(np.unique(radii)) > 5 and radii.min() == -1 and radii.max() > 50
    options = {"instances": INSTANCES, "outputs": outputs, "eta": ETA, "cap": CAP}
    table = tabulated(exact, kind, **options)
    coarse = radii_of(evidence, table)
    steps = np.array([-1, *table.radii])
    assert np.array_equal(coarse, steps[np.searchsorted(steps, radii, "right") - 1])
    assert np.all(coarse >= np.floor(radii / 1.03)) and np.any(coarse < radii)
    # With the radii themselves in the table nothing is rounded.
    assert np.array_equal(radii_of(evidence, tabulated(exact, kind, **options, radii=[*radii[radii >= 0], 10 * CAP])), radii)


def test_whatever_is_not_in_the_table_is_rounded_to_the_safe_side(exact):
    table = TabulatedGuarantees(exact, [0, 10, 20], [0.5, 0.9], [0.1, 0.5])
    p = np.linspace(0, 1, 41)
    for radius in (0, 1, 10, 15, 20):
        assert np.all(table.at(radius).lower(p) <= exact.at(radius).lower(p)) and np.all(table.at(radius).upper(p) >= exact.at(radius).upper(p))
    assert table.at(15).lower(0.93) == exact.at(20).lower(0.9) and table.at(15).upper(0.07) == exact.at(20).upper(0.1)
    assert table.at(21).lower(0.99) == 0 and table.at(21).upper(0.01) == 1
