"""Everything that poisoned votes could do in an episode, against all poisonings of tiny partitions, and environments that cannot be followed."""

import itertools
import json

import gymnasium
import numpy as np
import pytest

from mucd_ray.certify.file.voted import episode_evidence, tree_of
from mucd_ray.certify.voted_return import ExactVotes, Returns, Rows, Tree, voted_path, voted_radii, worst_return
from mucd_ray.data.environments.cards import CARDS
from mucd_ray.errors import MucdError
from mucd_ray.evaluate import search
from mucd_ray.evaluate.search import Episode
from tests.evaluate.tiny import ACTIONS, STATES, STEPS, card, play

RETURNS = Returns(discount=1.0, low=-4.0, high=8.0, clipped=False, horizon=STEPS, least_reward=-1.0)


def counts_of(policies):
    """Votes [STATES, ACTIONS] of tables [u, STATES]."""
    return np.stack([(policies == action).sum(0) for action in range(ACTIONS)], axis=1)


def followed(counts, seed, radii, most_nodes=10**6, name="Walk-v0"):
    rows = Rows(ExactVotes("symmetric"), ACTIONS)
    episode = Episode(card(name), seed, lambda observations: counts[observations.argmax(1)], rows)
    try:
        episode.play()
        for radius in radii:
            if not episode.follow(radius, len(episode.rows) + most_nodes):
                break
    finally:
        episode.close()
    of_nodes, steps = episode.in_order()
    tree = Tree(rows=of_nodes, steps=steps)
    # What is stored is read again, whatever was merged.
    assert tree_of(json.loads(json.dumps(episode_evidence(tree))), *rows.table.shape, STEPS, None) == tree
    return tree, rows


@pytest.mark.parametrize("merging", [False, True])
@pytest.mark.parametrize("case", range(6))
def test_no_poisoning_of_a_partition_earns_less_and_some_earn_just_that(case, merging, monkeypatch):
    """All tables of all choices of r policies of three."""
    if merging:
        monkeypatch.setitem(search.STATES, "tests.evaluate.tiny", lambda environment: environment.s)
    policies = np.random.default_rng(case).integers(0, ACTIONS, (3, STATES))
    tree, rows = followed(counts_of(policies), case, [0, 1, 2, 3])
    assert voted_path(tree, rows, RETURNS) == play(case, counts_of(policies).argmax(1))
    tables = np.array(list(itertools.product(range(ACTIONS), repeat=STATES - 1)))  # the last state is never acted on
    tables = np.concatenate([tables, np.zeros((len(tables), 1), int)], axis=1)
    returns_of = {tuple(table): play(case, table) for table in tables}
    for radius in (0, 1, 2):
        least = np.inf
        for changed in itertools.combinations(range(3), radius):
            for new in itertools.product(range(len(tables)), repeat=radius):
                poisoned = policies.copy()
                poisoned[list(changed)] = tables[list(new)].reshape(radius, STATES)
                least = min(least, returns_of[(*counts_of(poisoned).argmax(1)[:-1], 0)])
        bound, complete = worst_return(tree, rows, radius, RETURNS)
        assert complete and bound <= least
        # With two actions a majority of three falls to the first policy that leaves it, or to two.
        assert radius == 1 or bound == least
    assert worst_return(tree, rows, 3, RETURNS)[0] == min(returns_of.values())


@pytest.mark.parametrize("least_reward", [-1.0, None])
def test_what_is_cut_off_counts_the_least_for_all_that_is_open(least_reward):
    returns = Returns(**vars(RETURNS) | {"least_reward": least_reward})
    rng = np.random.default_rng(3)
    some_cut = 0
    for seed in range(20):
        counts = counts_of(rng.integers(0, ACTIONS, (5, STATES)))
        whole, rows = followed(counts, seed, range(6))
        for most in range(12):
            tree, cut_rows = followed(counts, seed, range(6), most)
            for radius in range(6):
                bound, complete = worst_return(tree, cut_rows, radius, returns)
                exact, _ = worst_return(whole, rows, radius, returns)
                assert bound <= exact and (not complete or bound == exact)
                some_cut += not complete and bound > -4
                assert complete or least_reward is not None or bound == -4
            assert voted_path(tree, cut_rows, returns) == play(seed, counts.argmax(1))
    assert (some_cut > 0) == (least_reward is not None)


def test_equal_states_are_one_node_where_they_can_be_compared(monkeypatch):
    counts, fewer = np.tile([3, 2], (STATES, 1)), 0
    plain = [followed(counts, seed, [2]) for seed in range(8)]
    monkeypatch.setitem(search.STATES, "tests.evaluate.tiny", lambda environment: environment.s)
    for seed, (tree, rows) in enumerate(plain):
        merged, merged_rows = followed(counts, seed, [2])
        fewer += len(merged.rows) < len(tree.rows)
        assert worst_return(merged, merged_rows, 2, RETURNS) == worst_return(tree, rows, 2, RETURNS)
    assert fewer


def test_states_that_were_reached_by_other_ways_are_not_one_node_for_policies_that_see_them(monkeypatch):
    stacked, fewer, more = card().raw().with_history(2), 0, 0

    def places(seed):
        """What policies could be made to see, after how many steps; and the number of nodes."""
        rows = Rows(ExactVotes("symmetric"), ACTIONS)
        episode = Episode(stacked, seed, lambda observations: np.tile([3, 2], (len(observations), 1)), rows)
        episode.play()
        assert episode.follow(2, 10**6)
        episode.close()
        return {(depth, seen.tobytes()) for depth, seen in zip(episode.depth, episode.seen)}, len(episode.rows), len({(depth, seen[-1].tobytes()) for depth, seen in zip(episode.depth, episode.seen)})

    plain = [places(seed) for seed in range(8)]
    monkeypatch.setitem(search.STATES, "tests.evaluate.tiny", lambda environment: environment.s)
    for seed, (seen, nodes, states) in enumerate(plain):
        merged = places(seed)
        assert merged[0] == seen and merged[1] == len(seen)
        fewer, more = fewer + (merged[1] < nodes), more + (merged[1] > states)
    assert fewer and more


def test_an_environment_that_does_not_repeat_itself_is_refused():
    with pytest.raises(MucdError, match="mucd/Forgetful-v0 does not repeat itself"):
        followed(np.tile([5, 0], (STATES, 1)), 0, [0], name="Forgetful-v0")


def test_continuous_actions_are_refused():
    pendulum = next(card for card in CARDS if card.env_id == "Pendulum-v1")
    with pytest.raises(MucdError, match="for discrete actions, Pendulum-v1 has Box"):
        Episode(pendulum, 0, lambda observations: observations, Rows(ExactVotes("insert"), 2))


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Acrobot-v1", "LunarLander-v3"])
def test_real_environments_repeat_themselves_from_any_prefix(env_id):
    """Random votes with many near ties, and few environments kept alive."""
    known = next(card for card in CARDS if card.env_id == env_id)
    environment = known.make()
    actions = int(environment.action_space.n)
    environment.close()
    rows = Rows(ExactVotes("symmetric"), actions)

    def look(observations):
        close = np.abs(observations).sum(1) * 1e4 % 7 < 3
        votes = np.zeros((len(observations), actions), int)
        favourite = (np.abs(observations).sum(1) * 1e3).astype(int) % actions
        votes[np.arange(len(votes)), favourite] = np.where(close, 5, 9)
        votes[np.arange(len(votes)), (favourite + 1) % actions] = np.where(close, 4, 0)
        return votes

    episode = Episode(known, 3, look, rows)
    episode.play()
    path = len(episode.rows)
    for radius in range(4):
        episode.follow(radius, path + 60)
    episode.close()
    assert len(episode.rows) > path and len(episode.rows) <= path + 60


def test_frozen_lake_is_merged_by_its_whole_state():
    one, other = (gymnasium.make("FrozenLake-v1") for _ in range(2))
    for environment in (one, other):
        environment.reset(seed=0)
    assert search.state_key(one) == search.state_key(other) and search.state_key(gymnasium.make("CartPole-v1")) is None
    one.step(0)
    assert search.state_key(one) != search.state_key(other)


def test_radii_are_a_public_ladder():
    assert voted_radii(20) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 13, 16, 19, 20]


class Toll(gymnasium.Wrapper):
    """Remembers what neither its observations nor the environment inside tell."""


def test_an_environment_whose_wrapper_may_remember_something_has_no_states_to_compare():
    lake = gymnasium.make("FrozenLake-v1")
    lake.reset(seed=0)
    assert search.state_key(lake) is not None
    for wrapped in (Toll(lake), gymnasium.wrappers.TimeLimit(Toll(lake), 5), gymnasium.wrappers.StickyAction(lake, 0.5)):
        assert search.state_key(wrapped) is None
