"""Vote rules: how votes of all policies of a partition become one action, and how many of them must change before each action can become it. A new one is a file and a line here."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mucd_ray.certify.rules.finite_aggregation import finite_aggregation
from mucd_ray.certify.rules.run_off import elected, run_off
from mucd_ray.certify.rules.temporal import dparl, leading_window, tparl
from mucd_ray.certify.votes import POLICIES_PER_UNIT, policies_per_unit, sizes
from mucd_ray.mechanism.partition import Partition


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One vote rule.

    Attributes:
        words: what the policy takes, in the words of a claim; {window} is filled in.
        decide: votes [T, u] along an episode, preferences [T, A, A] or None, number of actions, window or None, parts that each bucket reaches [u, d] ->
            actions [T] and sizes [T, A]: lower bounds on the number of changed policies (of `buckets`: changed buckets) with which each action could be chosen.
        choose: what is taken at the last of so many steps, which is what `decide` says of it: votes for each action there, int64 [w, A], the newest last, and of a scored rule
            the preferences at that step [A, A] -> action. Of a windowed rule these are all steps of the episode, or the last `window` of them; of others one is enough.
        windowed: whether the past votes of an episode count.
        scored: whether preferences do.
        buckets: whether sizes count buckets of units instead of policies.
    """

    words: str
    decide: Callable[..., tuple[np.ndarray, np.ndarray]]
    choose: Callable[[np.ndarray, np.ndarray | None], int]
    windowed: bool = False
    scored: bool = False
    buckets: bool = False


def reach_of(rule: Rule, mechanism: Partition, threat: str) -> int:
    """How many of the policies, or buckets, that sizes count a changed unit can change."""
    return POLICIES_PER_UNIT[threat] if rule.buckets else policies_per_unit(mechanism, threat)


def counts_of(votes: np.ndarray, actions: int) -> np.ndarray:
    """Votes for each action, [T, u] -> int64 [T, A]."""
    return np.stack([(votes == action).sum(1, dtype=np.int64) for action in range(actions)], axis=1)


def _parl(votes, actions):
    counts = counts_of(votes, actions)
    return counts.argmax(1), sizes(counts)


def _most_now(counts, preferences):
    return counts[-1].argmax()


def _elected_now(counts, preferences):
    return elected(counts[-1:], preferences[None])[0]


RULES = {
    "parl": Rule(words="at every state the action with the most votes of all policies", decide=lambda votes, preferences, actions, window, reached: _parl(votes, actions), choose=_most_now),
    "tparl": Rule(
        words="at every step the action with the most votes of all policies over the last {window} steps", windowed=True,
        decide=lambda votes, preferences, actions, window, reached: tparl(votes, actions, window), choose=lambda counts, preferences: counts.sum(0).argmax(),
    ),
    "dparl": Rule(
        words="at every step the action with the most votes of all policies over that number of last steps, at most {window}, in which the first leads the second by most votes per step", windowed=True,
        decide=lambda votes, preferences, actions, window, reached: dparl(votes, actions, window),
        choose=lambda counts, preferences: leading_window(np.cumsum(counts[::-1], axis=0)[:, None])[1][0],
    ),
    "roe": Rule(
        words="at every state that one of the two actions with the most votes which more policies score higher than the other", scored=True,
        decide=lambda votes, preferences, actions, window, reached: run_off(counts_of(votes, actions), preferences), choose=_elected_now,
    ),
    "fa": Rule(
        words="at every state the action with the most votes of all policies", buckets=True,
        decide=lambda votes, preferences, actions, window, reached: finite_aggregation(votes, actions, reached), choose=_most_now,
    ),
}
