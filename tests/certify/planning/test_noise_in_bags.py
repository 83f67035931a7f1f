"""Planning a bag, then noise: every answer certifies what was asked for, and hardly more; and it stands beside the other mechanisms."""

from dataclasses import replace

import pytest

from mucd_ray.certify.planning.bags import bag_of, certified_radius, compare, least_noise_in_bags, usual_bag_size
from mucd_ray.errors import MucdError

ASKED = {"units": 1000, "radius": 30, "instances": 1000, "eta": 0.001, "actions": 2, "threat": "symmetric"}
OF_VOTE = {name: value for name, value in ASKED.items() if name != "radius"}


@pytest.mark.parametrize("draws, threat", [("poisson", "symmetric"), ("fixed", "insert"), ("poisson", "substitute")])
def test_the_least_noise_certifies_the_radius_and_a_little_less_does_not(draws, threat):
    bag = bag_of(44, unit="trajectory", draws=draws, units=1000)
    found = least_noise_in_bags(bag, **ASKED | {"threat": threat}, unit="trajectory")
    assert found.bag == bag and found.sample_rate == 1.0 and found.normaliser == pytest.approx(44)
    assert certified_radius(found, **OF_VOTE | {"threat": threat}) >= 30
    assert certified_radius(replace(found, noise_multiplier=0.99 * found.noise_multiplier), **OF_VOTE | {"threat": threat}) < 30


def test_where_no_noise_is_enough_it_says_so():
    with pytest.raises(MucdError, match="r = 99 of 100 trajectories"):
        least_noise_in_bags(bag_of(90, unit="trajectory", draws="fixed", units=100), **ASKED | {"radius": 99, "units": 100}, unit="trajectory")


def test_all_mechanisms_stand_side_by_side():
    compared = compare(**ASKED, unit="trajectory")
    rows = {row["kind"]: row for row in compared["mechanisms"]}
    assert list(rows) == ["gaussian", "bag", "bag-then-noise", "neighbours", "partition"] and compared["recommended"] == "bag"
    assert all(row["radius"] >= 30 and row["refused"] is None for row in rows.values())
    # Twice as many units as without noise, and more signal than noise on all data leaves.
    noisy = rows["bag-then-noise"]
    assert noisy["units_per_policy"] == 2 * rows["bag"]["units_per_policy"] == usual_bag_size(**ASKED, unit="trajectory")
    assert 1.05 < noisy["signal_budget"] / rows["gaussian"]["signal_budget"] < 1.2
