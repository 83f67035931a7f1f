"""From P trained instances to probabilities: confidence bounds that hold with probability at least 1 - eta.

Instances are independent draws of the training M(D), so counts are multinomial and returns independent. Every bound is
one-sided and valid for any distribution, ties and point masses included.
"""

import operator
from dataclasses import dataclass

import numpy as np
from scipy.special import betainc, betaincinv

from mucd_ray.errors import MucdError

# Below it 1 - eta loses digits.
LEAST_ETA = 1e-10
# Larger whole numbers are not all doubles.
LARGEST = 2**53


def check_eta(eta: float) -> float:
    if not LEAST_ETA <= eta < 1:
        raise MucdError(f"eta {eta} is outside [{LEAST_ETA:g}, 1): it is the probability that a statement may be wrong, for example 0.001")
    return eta


def check_count(value, name: str, least: int = 1, most: int | None = None) -> int:
    """`value` as an int; MucdError if it is not a whole number, below `least` or above `most`."""
    try:
        count = operator.index(value)
    except TypeError:
        count = None
    if count is None or isinstance(value, bool) or count < least:
        raise MucdError(f"{name} {repr(value)[:60]} must be a whole number, at least {least}")
    if most is not None and count > most:
        raise MucdError(f"{name} {str(value)[:60]} must be a whole number, at most {most}")
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
    the probability of every other action; 0 and 1, which say nothing, where it is not clear which action is the most probable.
    Arrays of shape [S]."""

    action: np.ndarray
    top: np.ndarray
    runner_up: np.ndarray


def vote_shares(eta: float, actions: int) -> tuple[float, float, float]:
    """What may be spent on (the order of the first two, the lower bound of the first, the upper bound of the second).

    With two actions the upper bound on one is the lower bound on the other, and both are paid for: the order costs nothing.
    """
    return (0.0, eta / 2, eta / 2) if actions == 2 else (eta / 4, eta / 2, eta / 4)


def order_p_value(first, second):
    """Of the hypothesis that the action with `first` votes, the most, is not the most probable one, when the next has `second`; same shapes.

    2 P(Binomial(first + second, 1/2) >= first): no price is paid for the number of actions (docs/theorems.md; Gutmann & Maymin 1987;
    Hung & Fithian 2019).
    """
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    return np.where(first > 0, np.minimum(2 * betainc(np.maximum(first, 1), second + 1, 0.5), 1.0), 1.0)


def top_two_bounds(counts: np.ndarray, eta: float) -> TopTwo:
    """Simultaneous bounds for each row of votes [S, A]; each row's bounds hold together with probability 1 - eta.

    Three events are paid for, whatever A: that another action than the truly most probable one wins with a significant lead, and
    that the interval of the truly first action, or of the truly second one, fails (docs/theorems.md). SimuEM (Jia et al. 2020,
    AAAI 2021, arXiv 2008.04495) pays for every action.
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
    of_order, of_top, of_runner_up = vote_shares(eta, actions)
    action = counts.argmax(axis=1)
    first = counts[np.arange(states), action]
    others = counts.copy()
    others[np.arange(states), action] = -1
    second = others.max(axis=1)
    top = clopper_pearson_lower(first, trials, of_top)
    runner_up = np.minimum(clopper_pearson_upper(second, trials, of_runner_up), 1.0 - top)
    if actions > 2:
        clear = order_p_value(first, second) <= of_order
        top, runner_up = np.where(clear, top, 0.0), np.where(clear, runner_up, 1.0)
    return TopTwo(action=action, top=top, runner_up=runner_up)
