"""Everything that poisoned votes could do in an episode under a vote rule, against all poisonings of tiny partitions."""

import itertools
from functools import cache

import gymnasium
import numpy as np
import pytest

from mucd_ray.certify.rules import RULES
from mucd_ray.certify.rules.run_off import preferences_of
from mucd_ray.certify.voted_return import Returns, RuleRows, Tree, voted_path, worst_return
from mucd_ray.evaluate import search, snapshots
from mucd_ray.evaluate.search import Episode
from tests.evaluate.tiny import ACTIONS, SEEN, STATES, STEPS, card

LOOKS = SEEN["Aliased-v0"]
RETURNS = Returns(discount=1.0, low=-4.0, high=8.0, clipped=False, horizon=STEPS, least_reward=-1.0)
# Policies that learn from each bucket: one, or of four buckets two each.
APART, SHARED = np.arange(3)[:, None], np.array([[0, 1], [1, 2], [2, 3], [3, 0]])
TABLES = np.array(list(itertools.product(range(ACTIONS), repeat=LOOKS)))
WALKS = {"replayed": {}, "merged": {"STATES": lambda environment: environment.s}, "copied": {"ENVIRONMENTS": "tests.evaluate.tiny"}}


def world(seed):
    """Where actions lead, and what they earn, [STATES, ACTIONS]."""
    environment = gymnasium.make("mucd/Aliased-v0")
    environment.reset(seed=seed)
    return environment.unwrapped.to, environment.unwrapped.rewards


def ballots(policies, looks):
    """What policies [u, LOOKS] say where things look like this, [n]: votes [n, u] and preferences [n, A, A]."""
    votes = policies[:, looks].T
    return votes, preferences_of(np.eye(ACTIONS)[votes.T])


def play(seed, policies, name, window, reached):
    """The return under the rule, step by step."""
    to, rewards = world_of(seed)
    state, total, seen = 0, 0.0, []
    for _ in range(STEPS):
        seen.append(tuple(policies[:, state % LOOKS]))
        action = chosen(tuple(seen[-(window or 1) :]), name, window, reached.tobytes(), reached.shape)
        total += rewards[state, action]
        state = to[state, action]
        if state == STATES - 1:
            break
    return total


world_of = cache(world)


@cache
def chosen(seen, name, window, reached, shape):
    votes = np.array(seen)
    return int(RULES[name].decide(votes, preferences_of(np.eye(ACTIONS)[votes.T]), ACTIONS, window, np.frombuffer(reached, int).reshape(shape))[0][-1])


def followed(seed, policies, name, window, reached, radii, most_nodes=10**6):
    rows = RuleRows(RULES[name], actions=ACTIONS, window=window, reached=reached, reach=1)
    episode = Episode(card("Aliased-v0"), seed, lambda observations: ballots(policies, observations.argmax(1)), rows)
    episode.play()
    for radius in radii:
        if not episode.follow(radius, len(episode.rows) + most_nodes):
            break
    episode.check()
    episode.close()
    numbers, steps = episode.in_order()
    return Tree(rows=[rows.row(number) for number in numbers], steps=steps), rows.rows


@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize(
    "name,window,reached", [("parl", None, APART), ("tparl", 2, APART), ("tparl", 3, APART), ("dparl", 2, APART), ("dparl", 3, APART), ("roe", None, APART), ("fa", None, APART), ("fa", None, SHARED)],
    ids=["parl", "tparl-2", "tparl-3", "dparl-2", "dparl-3", "roe", "fa-apart", "fa-shared"],
)  # fmt: skip
def test_no_poisoning_earns_less_than_the_bound(name, window, reached, walk, monkeypatch):
    """All tables of all choices of r policies, or of what learns from r buckets. Places that look alike, rewards below 0, episodes that end early, and budgets of nodes that are spent."""
    if walk == "merged":
        monkeypatch.setitem(search.STATES, "tests.evaluate.tiny", WALKS[walk]["STATES"])
    if walk == "copied":
        monkeypatch.setattr(snapshots, "ENVIRONMENTS", ("tests.evaluate.tiny",))
    tight, cut = [], 0
    for seed in range(8):
        policies = np.random.default_rng(seed).integers(0, ACTIONS, (len(reached), LOOKS))
        tree, rows = followed(seed, policies, name, window, reached, range(4))
        assert voted_path(tree, rows, RETURNS) == play(seed, policies, name, window, reached)
        for radius in (0, 1, 2):
            least = np.inf
            for buckets in itertools.combinations(range(len(reached)), radius):
                changed = sorted(set(reached[list(buckets)].reshape(-1).tolist()))
                for new in itertools.product(range(len(TABLES)), repeat=len(changed)):
                    poisoned = policies.copy()
                    poisoned[changed] = TABLES[list(new)]
                    least = min(least, play(seed, poisoned, name, window, reached))
                    if least == RETURNS.low:
                        break
            bound, complete = worst_return(tree, rows, radius, RETURNS)
            assert complete and bound <= least
            tight.append(bound == least)
            assert radius or bound == least
            for most in (0, 1, 3):
                part, part_rows = followed(seed, policies, name, window, reached, range(4), most)
                lower, complete = worst_return(part, part_rows, radius, RETURNS)
                assert lower <= bound and (not complete or lower == bound)
                cut += not complete and lower > RETURNS.low
    assert np.mean(tight) >= 0.75 and cut


@pytest.mark.parametrize("seed,window", [(164, 3), (231, 2), (261, 3)])
def test_the_same_state_after_other_votes_is_another_node(seed, window, monkeypatch):
    """Whoever forgets the past of a window when it merges states finds -2 to be 0 or 1 here, as the released search of COPA would."""
    policies = np.random.default_rng(seed).integers(0, ACTIONS, (3, LOOKS))
    replayed = followed(seed, policies, "tparl", window, APART, range(3))
    monkeypatch.setattr(snapshots, "ENVIRONMENTS", ("tests.evaluate.tiny",))
    merged = followed(seed, policies, "tparl", window, APART, range(3))
    for radius in range(3):
        assert worst_return(*replayed, radius, RETURNS) == worst_return(*merged, radius, RETURNS)
