"""From P trained instances to probabilities: confidence bounds that hold with probability at least 1 - eta.

Instances are independent draws of the training M(D), so counts are multinomial and returns independent. Every bound is
one-sided and valid for any distribution, ties and point masses included.
"""

import operator
from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv

from mucd_ray.errors import MucdError

# Below it 1 - eta loses digits.
LEAST_ETA = 1e-10


def check_eta(eta: float) -> float:
    if not LEAST_ETA <= eta < 1:
        raise MucdError(f"eta {eta} is outside [{LEAST_ETA:g}, 1): it is the probability that a statement may be wrong, for example 0.001")
    return eta


def check_count(value, name: str, least: int = 1) -> int:
    """`value` as an int; MucdError if it is not a whole number, or below `least`."""
    try:
        count = operator.index(value)
    except TypeError:
        count = None
    if count is None or isinstance(value, bool) or count < least:
        raise MucdError(f"{name} {value!r} must be a whole number, at least {least}")
    return count


def clopper_pearson_lower(count, trials: int, eta: float):
    """Lower bound on a binomial probability, exceeded by chance with probability at most eta (Clopper & Pearson 1934).

    `count` of any shape, whole numbers in 0..trials; the result has the same shape.
    """
    count = _checked_counts(count, check_count(trials, "trials", 0))
    if not 0 < eta < 1:
        raise MucdError(f"eta {eta} is outside (0, 1): it is the probability that a bound may be wrong")
    return np.where(count > 0, betaincinv(np.maximum(count, 1), trials - count + 1, eta), 0.0)


def clopper_pearson_upper(count, trials: int, eta: float):
    """Upper bound, as `clopper_pearson_lower` for the complement."""
    count = _checked_counts(count, check_count(trials, "trials", 0))
    return 1.0 - clopper_pearson_lower(trials - count, trials, eta)


def _checked_counts(count, trials: int) -> np.ndarray:
    count = np.asarray(count)
    if count.dtype.kind not in "iuf":
        raise MucdError(f"counts of type {count.dtype} are not whole numbers")
    wrong = ~((count >= 0) & (count <= trials) & (count == np.floor(count)))
    if wrong.any():
        raise MucdError(f"count {count[wrong].flat[0]} is not a whole number in 0..{trials}, the number of trials")
    return count.astype(float)


@dataclass(frozen=True, kw_only=True)
class TopTwo:
    """Per state: the action with most votes (the lowest index of ties), a lower bound on its probability, and an upper bound on
    the probability of every other action. Arrays of shape [S]."""

    action: np.ndarray
    top: np.ndarray
    runner_up: np.ndarray


def action_share(eta: float, actions: int) -> float:
    """What each of an action's two bounds may spend: eta/(2A). With two actions the upper bound on one is the lower bound on the other, and eta/A suffices."""
    return eta / actions if actions == 2 else eta / (2 * actions)


def top_two_bounds(counts: np.ndarray, eta: float) -> TopTwo:
    """Simultaneous bounds for each row of votes [S, A]; each row's bounds hold together with probability 1 - eta.

    SimuEM (Jia et al. 2020, AAAI 2021, arXiv 2008.04495) spends eta/A on each action. Which action is on top depends on the same
    votes, so either of an action's two bounds may come to be used and both must be paid for: see `action_share`.
    """
    check_eta(eta)
    try:
        counts = np.asarray(counts)
    except ValueError:
        raise MucdError("votes must be one row of counts per state, all rows of the same length") from None
    if counts.ndim != 2 or counts.dtype.kind not in "iuf" or len(counts) == 0 or counts.shape[1] < 2 or np.any(counts.sum(axis=1) != counts[0].sum()):
        raise MucdError(f"votes of shape {counts.shape} must be one row of counts per state, at least 2 actions, with equal sums")
    counts = _checked_counts(counts, int(counts[0].sum()))
    states, actions = counts.shape
    trials = int(counts[0].sum())
    share = action_share(eta, actions)
    action = counts.argmax(axis=1)
    top = clopper_pearson_lower(counts[np.arange(states), action], trials, share)
    others = counts.copy()
    others[np.arange(states), action] = -1
    runner_up = clopper_pearson_upper(others.max(axis=1), trials, share)
    return TopTwo(action=action, top=top, runner_up=np.minimum(runner_up, 1.0 - top))
