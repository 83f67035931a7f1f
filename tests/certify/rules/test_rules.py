"""Every rule against all poisonings of tiny cases, by a plain reading of the papers' rules, and where the papers' public code gets them wrong."""

import itertools

import numpy as np
import pytest

from mucd_ray.certify.rules import RULES, counts_of
from mucd_ray.certify.rules.finite_aggregation import finite_aggregation
from mucd_ray.certify.rules.pooled import pooled_sizes
from mucd_ray.certify.rules.run_off import elected, preferences_of, run_off
from mucd_ray.certify.rules.temporal import dparl, tparl, window_counts
from mucd_ray.certify.votes import parl_radius, sizes


def least_changes(behaviours, choose, actions):
    """What policies with these behaviours choose at every profile, [n], and how many must behave otherwise before each action is chosen, [n, A]; n profiles."""
    profiles, behaviours, policies = behaviours
    chosen = np.array([choose([behaviours[k] for k in profile]) for profile in profiles])
    truth = np.full((len(profiles), actions), policies + 1)
    for action in range(actions):
        for start in range(0, len(profiles), 512):
            apart = (profiles[start : start + 512, None] != profiles[chosen == action]).sum(2, dtype=np.int8)
            truth[start : start + 512, action] = apart.min(1, initial=policies + 1)
    return chosen, truth


def everything(behaviours, policies):
    return np.array(list(itertools.product(range(len(behaviours)), repeat=policies)), np.int8), behaviours, policies


def of_window(actions, steps):
    """What one policy may vote in a window, oldest first."""
    return list(itertools.product(range(actions), repeat=steps))


def by_tparl(actions):
    return lambda policies: int(np.bincount(np.concatenate(policies), minlength=actions).argmax())


def by_dparl(actions):
    def choose(policies):
        best = None
        for length in range(1, len(policies[0]) + 1):
            totals = np.bincount(np.concatenate([policy[-length:] for policy in policies]), minlength=actions)
            second, first = np.sort(totals)[-2:]
            lead = (int(first) - int(second)) * 60 // length  # whole, up to 6 steps
            if best is None or lead > best[0]:
                best = lead, int(totals.argmax())
        return best[1]

    return choose


def share_exact(found, truth, chosen):
    """Of the actions that are not chosen; no size may be above the truth, and that of the chosen one is 0."""
    assert (found <= truth).all() and (found[np.arange(len(chosen)), chosen] == 0).all()
    others = np.arange(found.shape[1]) != chosen[:, None]
    assert (found[others] > 0).all()
    return (found == truth)[others].mean()


def least_of_others(sizes, chosen):
    others = sizes.copy()
    others[np.arange(len(chosen)), chosen] = np.iinfo(np.int64).max
    return others.min(1)


CASES = [(2, 1, 5), (3, 1, 5), (4, 1, 4), (2, 2, 5), (2, 3, 3), (3, 2, 3), (4, 2, 2)]


@pytest.mark.parametrize("actions,steps,policies", CASES)
def test_tparl_over_all_votes_and_all_changes(actions, steps, policies):
    behaviours = everything(of_window(actions, steps), policies)
    chosen, truth = least_changes(behaviours, by_tparl(actions), actions)
    found = [tparl(np.array([behaviours[1][k] for k in profile]).T, actions, steps) for profile in behaviours[0]]
    assert all(choice[-1] == right for (choice, _), right in zip(found, chosen))
    found = np.array([size[-1] for _, size in found])
    share = share_exact(found, truth, chosen)
    assert np.array_equal(least_of_others(found, chosen), least_of_others(truth, chosen)), "the radius is exact"
    assert share == 1 if steps == 1 or actions == 2 else share > 0.95


@pytest.mark.parametrize("actions,steps,policies", [*CASES[3:], (2, 2, 3)])
def test_dparl_over_all_votes_and_all_changes(actions, steps, policies):
    behaviours = everything(of_window(actions, steps), policies)
    chosen, truth = least_changes(behaviours, by_dparl(actions), actions)
    found = [dparl(np.array([behaviours[1][k] for k in profile]).T, actions, steps) for profile in behaviours[0]]
    assert all(choice[-1] == right for (choice, _), right in zip(found, chosen))
    assert share_exact(np.array([size[-1] for _, size in found]), truth, chosen) > 0.98


def test_the_tie_term_of_copas_code_is_wrong_and_ours_is_not():
    """Five policies vote 00000 and then 01001: its code certifies one changed policy, and one suffices to change the action."""
    votes = np.array([[0, 0, 0, 0, 0], [0, 1, 0, 0, 1]])
    chosen, sizes_ = dparl(votes, 2, 2)
    assert chosen.tolist() == [0, 0] and sizes_[1, 1] == 1
    changed = votes.copy()
    changed[:, 2] = [0, 1]
    assert by_dparl(2)([tuple(policy) for policy in votes.T]) == 0
    assert any(by_dparl(2)([tuple(policy) for policy in other.T]) == 1 for other in one_changed(votes))


def one_changed(votes):
    for policy in range(votes.shape[1]):
        for new in itertools.product(range(2), repeat=len(votes)):
            other = votes.copy()
            other[:, policy] = new
            yield other


def test_windows_slide():
    rng = np.random.default_rng(0)
    votes, window = rng.integers(0, 3, (9, 4)), 3
    counts = window_counts(votes, 3, window)
    for step in range(9):
        recent = votes[max(0, step - window + 1) : step + 1]
        by_hand = np.array([np.bincount(policy, minlength=3) for policy in recent.T])
        # Steps with fewer behind them have windows of their own.
        assert step < window - 1 or np.array_equal(counts[step - window + 1], by_hand)
        chosen, found = tparl(votes[: step + 1], 3, window)
        assert chosen[-1] == by_hand.sum(0).argmax()
        again = dparl(recent, 3, window)
        assert np.array_equal(tparl(recent, 3, window)[1][-1], found[-1]) and np.array_equal(again[1][-1], dparl(votes, 3, window)[1][step])
    assert np.array_equal(tparl(votes, 3, 1)[1], dparl(votes, 3, 1)[1]) and np.array_equal(tparl(votes, 3, 1)[1], sizes(tparl_counts(votes)))


def tparl_counts(votes):
    return np.array([np.bincount(row, minlength=3) for row in votes])


@pytest.mark.parametrize("seed", range(4))
def test_bundles_of_one_vote_are_as_exact_as_counts(seed):
    """That is, where public code of COPA gives too much, as for (18, 11, 1)."""
    rng = np.random.default_rng(seed)
    votes = rng.choice(5, (30, 40), p=rng.dirichlet(np.ones(5)))
    one_each = (votes[..., None] == np.arange(5)).astype(int)
    counts = one_each.sum(1)
    assert np.array_equal(pooled_sizes(one_each, counts, 1), sizes(counts))
    chosen, found = finite_aggregation(votes, 5, np.arange(40)[:, None])
    assert np.array_equal(found, sizes(counts)) and np.array_equal(least_of_others(found, chosen) - 1, parl_radius(counts))


@pytest.mark.parametrize("actions,models,shifts", [(2, 7, (0, 1)), (2, 7, (0, 1, 3)), (3, 6, (0, 2)), (3, 5, (0, 1, 2)), (3, 6, (0,))])
def test_finite_aggregation_over_all_poisonings_of_buckets(actions, models, shifts):
    votes = np.array(list(itertools.product(range(actions), repeat=models)))
    reached = (np.arange(models)[:, None] + shifts) % models
    chosen, found = finite_aggregation(votes, actions, reached)
    assert np.array_equal(chosen, [np.bincount(row, minlength=actions).argmax() for row in votes])
    truth = np.full((len(votes), actions), models + 1)
    truth[np.arange(len(votes)), chosen] = 0
    for owned in itertools.chain.from_iterable(itertools.combinations(range(models), size) for size in range(1, models + 1)):
        for action in range(actions):
            # All that it owns votes for the action: nothing else is better for it.
            poisoned = votes.copy()
            poisoned[:, np.unique(reached[list(owned)])] = action
            won = np.array([np.bincount(row, minlength=actions).argmax() for row in poisoned]) == action
            truth[won, action] = np.minimum(truth[won, action], len(owned))
    share = share_exact(np.minimum(found, truth.max()), truth, chosen)
    assert share == 1 if shifts == (0,) else share > 0.99


def order_scores(orders, actions):
    """Scores [u, 1, A] of policies by their orders of actions, best first."""
    return np.stack([-np.argsort(order)[None].astype(float) for order in orders])


@pytest.mark.parametrize("actions,policies", [(2, 5), (3, 4), (4, 2)])
def test_run_off_over_all_orders_and_all_changes(actions, policies):
    behaviours = everything(list(itertools.permutations(range(actions))), policies)

    def choose(orders):
        votes = np.bincount([order[0] for order in orders], minlength=actions)
        first, second = sorted(range(actions), key=lambda a: (-votes[a], a))[:2]
        for_first = sum(order.index(first) < order.index(second) for order in orders)
        against = len(orders) - for_first
        return first if for_first > against or for_first == against and first < second else second

    chosen, truth = least_changes(behaviours, choose, actions)
    votes = np.array([np.bincount([behaviours[1][k][0] for k in profile], minlength=actions) for profile in behaviours[0]])
    preferences = np.concatenate([preferences_of(order_scores([behaviours[1][k] for k in profile], actions)) for profile in behaviours[0]])
    found_action, found = run_off(votes, preferences)
    assert np.array_equal(found_action, chosen) and np.array_equal(elected(votes, preferences), chosen)
    assert share_exact(found, truth, chosen) > 0.85
    paper = [paper_radius(*row) for row in zip(votes, preferences, chosen)]
    ours = least_of_others(found, chosen) - 1
    assert (ours >= paper).all()


def paper_radius(votes, preferences, winner):
    """Theorem 4.4 of the paper: min(R1, R2) - 1, with its table for two rivals."""
    actions, policies = len(votes), int(votes.sum())

    def table(i, j):
        if i <= 0 and j <= 0:
            return 0
        i, j = max(i, 0), max(j, 0)
        if i <= 1 and j <= 2 or i <= 2 and j <= 1:
            return 1
        if j <= 1 or i <= 1:
            return -(-max(i, j) // 2)
        return 1 + min(table(i - 2, j - 1), table(i - 1, j - 2))

    def gap(a, b):
        return int(votes[a] - votes[b] + (b > a))

    others = [a for a in range(actions) if a != winner]
    finalist = max(others, key=lambda a: (votes[a], -a))
    first = [table(gap(winner, a), gap(winner, b)) for a, b in itertools.combinations(others, 2)]
    second = []
    for rival in others:
        enters = 0 if rival == finalist else -(-max(gap(finalist, rival), 0) // 2)
        second.append(max(enters, -(-max(int(2 * preferences[winner, rival] - policies + (rival > winner)), 0) // 2)))
    return min(first + second) - 1


def test_outputs_that_are_no_numbers_prefer_the_lowest_action():
    scores = np.array([[[np.nan, 5.0, 1.0]], [[1.0, 1.0, 0.0]], [[0.0, 1.0, 2.0]]])
    assert preferences_of(scores)[0].tolist() == [[0, 2, 2], [1, 0, 2], [1, 1, 0]]


@pytest.mark.parametrize("name", RULES)
def test_what_is_chosen_at_a_step_is_what_is_decided_along_the_episode(name):
    """Few policies, so that ties are frequent; from the whole past, and from as much of it as counts."""
    rule, window, actions = RULES[name], 3 if RULES[name].windowed else None, 3
    for seed in range(60):
        scores = np.random.default_rng(seed).integers(0, 3, (4, 9, actions)).astype(float)
        votes, preferences = scores.argmax(2).T, preferences_of(scores)
        chosen, _ = rule.decide(votes, preferences, actions, window, np.arange(4)[:, None])
        counts = counts_of(votes, actions)
        for step in range(9):
            assert rule.choose(counts[max(0, step + 1 - (window or 1)) : step + 1], preferences[step]) == chosen[step]


def test_dparl_is_the_same_however_many_steps_are_counted_at_a_time(monkeypatch):
    votes = np.random.default_rng(1).integers(0, 3, (40, 5))
    whole = dparl(votes, 3, 4)
    monkeypatch.setattr("mucd_ray.certify.rules.temporal.ENTRIES_AT_A_TIME", 200)
    assert all(np.array_equal(a, b) for a, b in zip(whole, dparl(votes, 3, 4)))
