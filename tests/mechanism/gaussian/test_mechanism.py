import math

import pytest

from mucd_ray.errors import MucdError
from mucd_ray.mechanism.gaussian.mechanism import Mechanism

GOOD = {"sample_rate": 0.1, "noise_multiplier": 2.0, "clip_norm": 1.0, "steps": 10, "normaliser": 100.0}


@pytest.mark.parametrize(
    "field, value",
    [
        ("sample_rate", 0.0), ("sample_rate", 1.01), ("sample_rate", math.nan), ("sample_rate", 9e-10), ("steps", 10_000_001), ("noise_multiplier", 0.009), ("noise_multiplier", 0.0), ("noise_multiplier", -1.0),
        ("noise_multiplier", math.inf), ("clip_norm", 0.0), ("steps", 0), ("steps", 1.5), ("normaliser", math.nan), ("unit", "batch"),
    ],
)
def test_a_value_outside_its_range_is_refused_by_name(field, value):
    with pytest.raises(MucdError, match=str(value).replace(".", r"\.")):
        Mechanism(**GOOD | {field: value})


def test_the_signal_budget_is_n_q_sqrt_t_over_sigma():
    assert Mechanism(**GOOD).signal_budget(500) == pytest.approx(500 * 0.1 * math.sqrt(10) / 2)
