"""What may be wrong with a run whose certificate holds all the same: told in the terminal and in the report.

Warnings follow from the recorded data, which an attacker may have written, so they are told and change nothing else: neither training nor anything that is claimed.
"""

import math

from mucd_ray.certify.rounding import exactly

# Recorded returns beyond the range are many from this share on, where returns are clipped into it, and observations beyond the scales of a card.
MANY_RETURNS, MANY_OBSERVATIONS = 0.05, 0.1


def early_warnings(baselines: dict) -> list[str]:
    """What is known before anything is trained: that it may not be worth the while. One sentence each.

    Args:
        baselines: `best_constant_action`, `best_constant_return` and `behaviour`, where there are such.
    """
    constant, behaviour = baselines.get("best_constant_return", -math.inf), baselines.get("behaviour", math.inf)
    if constant <= behaviour:
        return []
    return [
        f"a constant action, {baselines['best_constant_action']}, earns {constant:.4g} here, more than the recorded trajectories on average ({behaviour:.4g}): policies that imitate them may be worth "
        "less than it, whatever is certified of them"
    ]


def warnings_of(certificate: dict, baselines: dict) -> list[str]:
    """One sentence each.

    Args:
        baselines: as of the run folder: `best_constant_return`, and `recorded_outside` of the driver.
    """
    inputs = certificate["inputs"]
    found = {name: value for name, value in baselines.items() if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)}
    (low, high), warnings = inputs.get("return_range") or (0.0, 0.0), []
    scored = inputs.get("evaluator") is not None
    outside, recorded = found.get("returns_outside", 0), found.get("returns_recorded", 0)
    if outside > (MANY_RETURNS * recorded if inputs.get("clipped") else 0):
        warnings.append(
            f"{outside:,.0f} of {recorded:,.0f} recorded trajectories earn less or more than the range [{exactly(low)}, {exactly(high)}] of the environment's card"
            + (", into which returns are clipped" if inputs.get("clipped") else "") + ": look whether that is its range, and whether these data are what they should be"
        )
    if found.get("observations_outside", 0) > MANY_OBSERVATIONS:
        warnings.append(
            f"feature {found.get('observations_outside_feature', 0):.0f} is beyond the scales of the environment's card in {100 * found['observations_outside']:.0f} % of the recorded "
            "observations, and cut there: look at its center, scale and clip"
        )
    policy = certificate["results"].get("policy")
    if policy and found.get("best_constant_return", -math.inf) > policy["unpoisoned_mean"]:
        warnings.append(f"a constant action {'scores' if scored else 'earns'} more than these policies: try another --learning-rate, more signal (a smaller --fraction), or another --algorithm")
    return warnings
