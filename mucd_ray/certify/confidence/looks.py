"""Anytime certificates: looking at results and then deciding whether to train more instances.

A bound that holds with probability 1 - eta at each of several looks fails at one of them more often than eta, and a user who
stops at the best look picks that one. Looks are therefore allowed only at public numbers of instances, Renard's R5 series (ISO 3)
from 100 on: 100, 160, 250, 400, 630, 1000, ...; the k-th spends eta / (k (k + 1)). The shares add up to eta over all looks, so
the bounds of all looks hold together with probability 1 - eta (Bonferroni), by whatever rule one stops, goes on or grows.
"""

from mucd_ray.certify.confidence.proportions import LEAST_ETA, check_count, check_eta
from mucd_ray.certify.rounding import exactly, round_down
from mucd_ray.errors import MucdError
from mucd_ray.words import counted

LOOKS = ("fixed", "anytime")
# Renard's rounded values of 10^(2 + k/5).
RENARD_5 = (100, 160, 250, 400, 630)


def looks_up_to(budget: int) -> list[int]:
    """The numbers of instances, at most `budget`, at which an anytime certificate may be made; none below 100."""
    budget = check_count(budget, "budget", 0)
    found: list[int] = []
    while (look := _look(len(found) + 1)) <= budget:
        found.append(look)
    return found


def effective_eta(eta: float, looks: str, instances: int) -> float:
    """The probability of error that a certificate from `instances` instances may spend: eta itself, or its look's share.

    Raises:
        MucdError: an unknown kind of looks; `instances` is not one of the numbers at which one may look; a share that is too small.
    """
    check_eta(eta)
    if looks not in LOOKS:
        raise MucdError(f"looks {looks!r} is unknown: use one of {', '.join(LOOKS)}")
    instances = check_count(instances, "instances")
    if looks == "fixed":
        return eta
    before = looks_up_to(instances)
    k = len(before)
    if not before or before[-1] != instances:
        nearest = " or ".join(str(n) for n in [*before[-1:], _look(k + 1)])
        raise MucdError(f"an anytime certificate does not look at {counted(instances, 'instance')}: certify at {nearest}")
    share = eta / (k * (k + 1))
    if share < LEAST_ETA:
        raise MucdError(f"eta {exactly(eta)} leaves {round_down(share, 2)} to the look at {counted(instances, 'instance')}, below {LEAST_ETA:g}: use a larger eta")
    return share


def _look(k: int) -> int:
    """The k-th look, k = 1, 2, ..."""
    decade, place = divmod(k - 1, len(RENARD_5))
    return RENARD_5[place] * 10**decade
