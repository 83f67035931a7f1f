"""The voted policy's return: what the policy of any D' within r of D earns at least in an episode, by following every action that it could take.

Let pi_D take the action with the largest probability under M(D), or the vote of all parts. Fix what is random in the environment. Then an episode is a tree of prefixes
of actions, and a rule says from the votes at a node which actions some D' within r could make the policy take there. The path of pi_D' stays among
them, so its return is at least that of the worst leaf. Where the tree was not followed further, the public least reward counts for all that is left (theory section 11; for votes
of parts the search of COPA, Wu et al. 2022, arXiv 2203.08398). Why bounds from sampled votes hold at all nodes of a tree together, whatever was followed of it:
docs/theorems.md, "The voted policy's return".
"""

from dataclasses import dataclass, field

import numpy as np

from mucd_ray.certify.confidence.proportions import clopper_pearson_lower, clopper_pearson_upper
from mucd_ray.certify.radius import radius_ladder
from mucd_ray.certify.rules import Rule
from mucd_ray.certify.votes import POLICIES_PER_UNIT, sizes
from mucd_ray.errors import MucdError
from mucd_ray.mechanism.work import spend

# Radii per octave at which the tree is followed.
RADII_PER_OCTAVE = 4
# Below it an incomplete beta function loses digits: nothing is then excluded.
LEAST_SHARE = 1e-30
# Where an episode ends there is no next node, and node 0 is nobody's next.
END = 0


class SampledVotes:
    """Rows are votes of P instances, independent draws of M(D).

    At a node of a depth at which w nodes are possible, the probability of every action is bounded from both sides with error probability
    `eta` / (steps w (w + 1)) in all. Action a is impossible at r if some other has lower_r(l) > upper_r(u_a).

    Args:
        instances: P.
        eta: of all nodes of all trees together.
        steps: the most that all episodes can have together.
    """

    def __init__(self, guarantees, *, instances: int, eta: float, steps: int):
        self.guarantees, self.instances, self.share = guarantees, instances, eta / steps
        self._tables: dict[tuple[int, int, int], tuple[np.ndarray, np.ndarray]] = {}

    def choice(self, rows: np.ndarray) -> np.ndarray:
        """The action taken, [n, A] -> [n]."""
        return rows.argmax(1)

    def possible(self, rows: np.ndarray, radius: int, width: int) -> np.ndarray:
        """Which actions a D' within `radius` could make the policy take, where `width` nodes are possible at this depth: [n, A] -> bool [n, A]."""
        lower, upper = self._table(radius, width, rows.shape[1])
        spend(4 * rows.size)
        low = lower[rows]
        best = low.argmax(1)[:, None]
        of_others = np.repeat(np.take_along_axis(low, best, 1), rows.shape[1], 1)
        np.put_along_axis(low, best, -1.0, 1)
        np.put_along_axis(of_others, best, low.max(1)[:, None], 1)
        return upper[rows] >= of_others

    def _table(self, radius: int, width: int, actions: int) -> tuple[np.ndarray, np.ndarray]:
        """lower_r(l) and upper_r(u) by the number of votes, [P + 1]."""
        key = radius, width, actions
        if key not in self._tables:
            # With two actions the lower bound of one is the upper bound of the other.
            each = self.share / (width * (width + 1)) / (2 if actions == 2 else 2 * actions)
            counts, guarantee = np.arange(self.instances + 1), self.guarantees.at(radius)
            spend(40 * len(counts))
            if each < LEAST_SHARE:
                self._tables[key] = np.zeros(len(counts)), np.ones(len(counts))
            else:
                self._tables[key] = guarantee.lower(clopper_pearson_lower(counts, self.instances, each)), guarantee.upper(clopper_pearson_upper(counts, self.instances, each))
        return self._tables[key]


class ExactVotes:
    """Rows are the votes of all parts of a partition: nothing is sampled. An action is possible at r if the policies that r units reach can make it win.

    Args:
        spread: how many parts a unit is in.
    """

    def __init__(self, threat: str, spread: int = 1):
        self.reach = POLICIES_PER_UNIT[threat] * spread

    def choice(self, rows: np.ndarray) -> np.ndarray:
        return rows.argmax(1)

    def possible(self, rows: np.ndarray, radius: int, width: int) -> np.ndarray:
        return sizes(rows) <= self.reach * radius


class LeastRadii:
    """Rows are, for every action, the least number that must change to make the policy take it: 0 for the one it takes.

    Args:
        reach: how many a changed unit can change.
    """

    def __init__(self, reach: int = 1):
        self.reach = reach

    def choice(self, rows: np.ndarray) -> np.ndarray:
        return rows.argmin(1)

    def possible(self, rows: np.ndarray, radius: int, width: int) -> np.ndarray:
        return rows <= self.reach * radius


class Rows:
    """Rows of all nodes, each different one once, and what a rule says of them: computed for all rows together and kept."""

    def __init__(self, rule, actions: int, rows=()):
        self.rule, self.table = rule, np.zeros((0, actions), np.int64)
        self._number: dict[tuple[int, ...], int] = {}
        self._possible: dict[tuple[int, int], list[tuple[int, ...]]] = {}
        self._choice: list[int] = []
        self.add(np.array(rows, np.int64).reshape(-1, actions))

    def past(self, row: int | None) -> None:
        """What came before counts at no node."""

    def add(self, rows: np.ndarray, pasts=None) -> list[int]:
        """The numbers of these rows [n, A]."""
        keys = list(map(tuple, rows.tolist()))
        new = [key for key in dict.fromkeys(keys) if key not in self._number]
        self._number |= {key: len(self.table) + k for k, key in enumerate(new)}
        if new:
            self.table = np.concatenate([self.table, np.array(new, np.int64)])
        return [self._number[key] for key in keys]

    def possible(self, row: int, radius: int, width: int) -> tuple[int, ...]:
        """Actions, in their order. A width counts as the next power of two, which excludes no more."""
        known = self._possible.setdefault((radius, 1 << (width - 1).bit_length()), [])
        if len(known) <= row:
            allowed = self.rule.possible(self.table[len(known) :], radius, 1 << (width - 1).bit_length())
            patterns, which = np.unique(allowed, axis=0, return_inverse=True)
            actions = [tuple(np.flatnonzero(pattern).tolist()) for pattern in patterns]
            known += [actions[k] for k in which.reshape(-1)]
        return known[row]

    def choice(self, row: int) -> int:
        if len(self._choice) <= row:
            self._choice += self.rule.choice(self.table[len(self._choice) :]).tolist()
        return self._choice[row]


class RuleRows:
    """What a vote rule sees at nodes, each different thing once: what all policies vote there, and at the last nodes on the way there. Its rows are, for every action, a lower bound on the number of
    policies (or buckets of units) that must change before the rule can choose it: 0 for the one that it chooses.

    Whoever changes so many policies may change all their votes on that way. So their choice at a node is possible within a radius only if it is within the row's reach, whichever way led there.

    Args:
        reach: how many of them a changed unit can change.
        reached: the policies that learn from each bucket, [u, d].
    """

    def __init__(self, rule: Rule, *, actions: int, window: int | None, reached: np.ndarray, reach: int):
        self.rule, self.actions, self.window, self.reached = rule, actions, window, reached
        self.rows = Rows(LeastRadii(reach), actions)
        self._ballots: list[tuple[np.ndarray, np.ndarray | None]] = []
        self._ballot: dict[bytes, int] = {}
        # Per number: the ballots that the rule sees, the newest last; and its row.
        self._seen: list[tuple[int, ...]] = []
        self._number: dict[tuple[int, ...], int] = {}
        self._row: list[int] = []

    def past(self, number: int | None) -> tuple[int, ...]:
        """The ballots that the rule still sees at the next node."""
        return () if number is None or not self.window else self._seen[number][max(0, len(self._seen[number]) + 1 - self.window) :]

    def add(self, ballots: tuple[np.ndarray, np.ndarray | None], pasts: list[tuple[int, ...]]) -> list[int]:
        """The numbers of nodes with these votes int [n, u] and, of a scored rule, preferences [n, A, A] (`preferences_of`), after these pasts."""
        votes, preferences = ballots
        numbers, new = [], []
        for k, past in enumerate(pasts):
            ballot = votes[k], None if preferences is None else preferences[k]
            content = b"".join(part.tobytes() for part in ballot if part is not None)
            if content not in self._ballot:
                self._ballot[content] = len(self._ballots)
                self._ballots.append(ballot)
            seen = (*past, self._ballot[content])
            if seen not in self._number:
                self._number[seen] = len(self._seen)
                self._seen.append(seen)
                new.append(seen)
            numbers.append(self._number[seen])
        sizes = np.zeros((len(new), self.actions), np.int64)
        # Those that see as many steps, together: the last step of each is that of the node.
        for length in sorted({len(seen) for seen in new}):
            places = [k for k, seen in enumerate(new) if len(seen) == length]
            sizes[places] = self._sizes([ballot for k in places for ballot in new[k]], length)
        self._row += self.rows.add(sizes)
        return numbers

    def _sizes(self, ballots: list[int], length: int) -> np.ndarray:
        votes = np.stack([self._ballots[ballot][0] for ballot in ballots])
        scored = [preferences for ballot in ballots if (preferences := self._ballots[ballot][1]) is not None]
        chosen, sizes = (found[length - 1 :: length] for found in self.rule.decide(votes, np.stack(scored) if scored else None, self.actions, length if self.rule.windowed else None, self.reached))
        # A majority can make a rule choose anything; and no change, nothing else.
        sizes = np.clip(sizes, 1, most_size(votes.shape[1]))
        sizes[np.arange(len(sizes)), chosen] = 0
        return sizes

    def row(self, number: int) -> int:
        """In the table of `rows`."""
        return self._row[number]

    def choice(self, number: int) -> int:
        return self.rows.choice(self._row[number])

    def possible(self, number: int, radius: int, width: int) -> tuple[int, ...]:
        return self.rows.possible(self._row[number], radius, width)


def most_size(policies: int) -> int:
    """So many of them, a majority, can make every vote rule choose any action."""
    return policies // 2 + 1


@dataclass(kw_only=True)
class Tree:
    """What was followed of an episode. Node 0 is its beginning.

    Attributes:
        rows: per node the number of its row.
        steps: per node, by action: (reward, the next node, or END where the episode ends). Nodes that are one and the same state at the same time may be one node.
    """

    rows: list[int] = field(default_factory=list)
    steps: list[dict[int, tuple[float, int]]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Returns:
    """How rewards add up: sum_t discount^t r_t, which lies in [low, high], or is `clipped` into it.

    Attributes:
        horizon: the most steps of an episode.
        least_reward: public lower bound on every reward; None if there is none.
    """

    discount: float
    low: float
    high: float
    clipped: bool
    horizon: int
    least_reward: float | None

    def of(self, total: float, *, played: bool) -> float:
        """What a sum of rewards counts. Raises MucdError where one that was `played` to its end leaves the declared range."""
        slack = 1e-9 * (self.high - self.low)
        if played and not self.clipped and not self.low - slack <= total <= self.high + slack:
            raise MucdError(f"return {total} is outside the declared range [{self.low}, {self.high}]: declare the true bounds of every possible return")
        return float(np.clip(total, self.low, self.high))

    def rest(self, depth: int) -> float:
        """The least that can still be earned after `depth` steps; an episode may end at once."""
        if self.least_reward is None or self.least_reward >= 0:
            return 0.0 if self.least_reward is not None else -np.inf
        left = max(0, self.horizon - depth)
        weights = left if self.discount == 1 else (1 - self.discount**left) / (1 - self.discount)
        return self.discount**depth * weights * self.least_reward


def worst_return(tree: Tree, rows: Rows, radius: int, returns: Returns) -> tuple[float, bool]:
    """(a lower bound on the return of the policy of every D' within `radius`, whether all that is possible was followed to its end)."""
    level, worst, weight = {0: 0.0}, np.inf, 1.0
    for depth in range(returns.horizon + 1):
        if not level:
            return returns.of(worst, played=True), True
        spend(4 * len(level))
        following: dict[int, float] = {}
        before, complete = worst, True
        for node, earned in level.items():
            steps = tree.steps[node]
            for action in rows.possible(tree.rows[node], radius, len(level)):
                if action not in steps:
                    complete = False
                    break
                reward, after = steps[action]
                total = earned + weight * reward
                if after == END:
                    worst = min(worst, total)
                else:
                    following[after] = min(following.get(after, np.inf), total)
        if not complete:
            worst = min(before, min(level.values()) + returns.rest(depth))
            break
        level, weight = following, weight * returns.discount
    return returns.of(worst, played=False), False


def voted_path(tree: Tree, rows: Rows, returns: Returns) -> float:
    """The return of the policy itself: of the path along the chosen actions. Raises KeyError or ValueError where the tree does not hold it."""
    node, total, weight = 0, 0.0, 1.0
    for _ in range(returns.horizon):
        reward, node = tree.steps[node][rows.choice(tree.rows[node])]
        total, weight = total + weight * reward, weight * returns.discount
        if node == END:
            return returns.of(total, played=True)
    raise ValueError(f"an episode of the voted policy does not end within {returns.horizon} steps")


def voted_radii(cap: int) -> list[int]:
    """The radii at which the tree is followed: a public choice, by the cap alone."""
    return radius_ladder(cap, RADII_PER_OCTAVE).tolist()
