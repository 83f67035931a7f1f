"""Sampled votes along whole trees: the bound fails at most as often as it may, for every r at once, and the file that holds its evidence."""

import copy
import itertools

import numpy as np
import pytest
from scipy.stats import binom

from mucd_ray.certify.closed_form import guarantees_of
from mucd_ray.certify.file.certificate import content_hash, make_certificate, make_inputs, verify
from mucd_ray.certify.file.evidence import exact_evidence
from mucd_ray.certify.file.voted import episode_evidence, voted_evidence
from mucd_ray.certify.voted_return import END, ExactVotes, LeastRadii, Returns, Rows, SampledVotes, Tree, voted_path, voted_radii, worst_return
from mucd_ray.mechanism.bag import Bag
from mucd_ray.mechanism.partition import Partition

ACTIONS, STEPS, UNITS = 3, 3, 60
RETURNS = Returns(discount=1.0, low=-3.0, high=3.0, clipped=False, horizon=STEPS, least_reward=-1.0)
PREFIXES = [prefix for depth in range(STEPS) for prefix in itertools.product(range(ACTIONS), repeat=depth)]
NODE = {prefix: k for k, prefix in enumerate(PREFIXES)}


def whole_tree(rewards):
    """Every prefix of actions is a node; rewards [nodes, ACTIONS]."""
    steps = [{a: (float(rewards[k, a]), NODE.get((*prefix, a), END)) for a in range(ACTIONS)} for k, prefix in enumerate(PREFIXES)]
    return Tree(rows=list(range(len(PREFIXES))), steps=steps)


def return_of(choices, tree):
    node, total = 0, 0.0
    while True:
        reward, node = tree.steps[node][int(choices[node])]
        total += reward
        if node == END:
            return total


def worst_under_attack(probability, tree, common):
    """The least return of pi_D' over all attackers whose units decide every bag that they are in: by dynamic programming over what each node can be made to do."""
    value = np.zeros(len(PREFIXES))
    for node in range(len(PREFIXES) - 1, -1, -1):
        reach = []
        for target in range(ACTIONS):
            poisoned = common * probability[node]
            poisoned[target] += 1 - common
            action = int(poisoned.argmax())
            reward, after = tree.steps[node][action]
            reach.append(reward + (value[after] if after != END else 0.0))
        value[node] = min(reach)
    return value[0]


@pytest.mark.parametrize("instances,sharp", [(60, 2.0), (400, 6.0)])
def test_sampled_votes_fail_no_more_often_than_they_may_for_all_radii_at_once(instances, sharp):
    """A bag against the attacker of its worst case, who acts at every node; the true probabilities are known here."""
    eta, bag, experiments, failures, told = 0.2, Bag(bag_size=3), 150, 0, 0
    guarantees = guarantees_of(bag, units=UNITS, threat="insert")
    radii = [0, 1, 2, 4, 6, 8, 10]
    rng = np.random.default_rng(instances)
    for _ in range(experiments):
        probability = rng.dirichlet(np.ones(ACTIONS) / sharp, len(PREFIXES))
        tree = whole_tree(rng.integers(-1, 2, (len(PREFIXES), ACTIONS)))
        counts = np.stack([rng.multinomial(instances, p) for p in probability])
        rows = Rows(SampledVotes(guarantees, instances=instances, eta=eta, steps=STEPS), ACTIONS)
        tree.rows = rows.add(counts)
        bounds = [worst_return(tree, rows, radius, RETURNS)[0] for radius in radii]
        assert all(a >= b for a, b in zip(bounds, bounds[1:]))
        truth = [worst_under_attack(probability, tree, bag.common(UNITS, radius, 0)[1]) for radius in radii]
        failures += any(bound > worst for bound, worst in zip(bounds, truth))
        told += bounds[2] > RETURNS.low
    assert failures <= binom.ppf(0.9999, experiments, eta) and told > experiments / 4


def test_wider_levels_and_larger_radii_exclude_no_more():
    rule = SampledVotes(guarantees_of(Bag(bag_size=3), units=UNITS), instances=300, eta=0.001, steps=STEPS)
    votes = np.array([[a, b, 300 - a - b] for a in range(0, 301, 30) for b in range(0, 301 - a, 30)])
    narrow = rule.possible(votes, 1, 1)
    assert not (narrow & ~rule.possible(votes, 1, 8)).any() and not (narrow & ~rule.possible(votes, 3, 1)).any()
    assert narrow[np.arange(len(votes)), votes.argmax(1)].all() and not narrow.all()
    assert rule.possible(votes, 1, 2**60).all(), "beyond what an incomplete beta function can tell everything is possible"


@pytest.fixture(scope="module")
def certificate():
    rng = np.random.default_rng(1)
    parts, episodes = 9, 5
    trees, tables = [], []
    for _ in range(episodes):
        tree, rows = whole_tree(rng.integers(-1, 2, (len(PREFIXES), ACTIONS))), Rows(None, ACTIONS)
        tree.rows = rows.add(rng.multinomial(parts, [0.7, 0.2, 0.1], len(PREFIXES)))
        trees.append(tree)
        tables.append(rows.table)
    inputs = make_inputs(
        mechanism=Partition(parts=parts), units=40, returns=rng.uniform(-3, 3, 60), return_range=(-3, 3), actions=exact_evidence(rng.multinomial(parts, [0.8, 0.1, 0.1], 4), [0, 0, 1, 0]),
        voted=voted_evidence("exact", STEPS, -1.0, tables, [episode_evidence(tree) for tree in trees]),
    )
    return make_certificate(inputs, assumptions=[], context={})


def test_the_file_says_what_follows_from_its_evidence(certificate):
    assert verify(certificate) == []
    voted, inputs = certificate["results"]["voted"], certificate["inputs"]["voted"]
    assert voted["curve"]["radius"] == voted_radii(40) and voted["episodes"] == 5 and set(voted["curve"]["complete"]) == {1.0}
    rows = Rows(ExactVotes("symmetric"), ACTIONS, inputs["rows"])
    trees = [Tree(rows=episode["rows"], steps=whole_tree(np.array(episode["reward"]).reshape(-1, ACTIONS)).steps) for episode in inputs["episodes"]]
    assert voted["unpoisoned_mean"] == np.mean([voted_path(tree, rows, RETURNS) for tree in trees]) == pytest.approx(voted["curve"]["played"][0])
    assert voted["curve"]["played"][3] == np.mean([worst_return(tree, rows, 3, RETURNS)[0] for tree in trees])
    assert all(bound <= played for bound, played in zip(voted["curve"]["bound"], voted["curve"]["played"]))
    text = " ".join(certificate["claim"])
    assert "gets the most votes of all parts' policies" in text and "Every vote was counted and none is a sample" in text and "is certain" in text


def changed(certificate, path, value):
    other = copy.deepcopy(certificate)
    part = other["inputs"]["voted"]
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    other["sha256"] = content_hash(other)
    return other


@pytest.mark.parametrize("path,value,complaint", [
    (("kind",), "least", "voted kind 'least' is not one of a mechanism of kind partition"), (("kind",), [1], "is not one of"), (("kind",), "votes", "sum to 60"), (("horizon",), 2, "later than the 2 steps"), (("horizon",), 0, "horizon of at least 1"),
    (("episodes",), [], "not empty"), (("episodes",), [{}], "exactly the keys"), (("episodes", 0, "node", 0), 10**6, "do not fit a tree"), (("episodes", 0, "next", 0), 10**6, "do not fit a tree"),
    (("episodes", 0, "reward", 0), -7.0, "below the least reward"), (("episodes", 0, "reward", 0), "1", "must be a finite number"), (("episodes", 0, "rows", 0), 10**6, "is not among the"),
    (("episodes", 0, "next", 1), 1, "node 2, action 0, next 7 do not fit"), (("episodes", 0, "rows"), [0] * 14, "nothing leads to node 13"), (("episodes", 0, "reward"), [100.0] * 39, "outside the declared range"), (("rows", 0), [1, 1, 1], "sum to 9"),
    (("rows", 0), [9], "equally long"), (("least_reward",), "1", "must be a finite number"), (("episodes", 0, "action", 0), 1, "do not fit a tree"), (("more",), 1, "exactly the keys"),
])  # fmt: skip
def test_evidence_of_anybodys_is_refused_in_one_line(certificate, path, value, complaint):
    mismatches = verify(changed(certificate, path, value))
    assert complaint in mismatches[0] and len(mismatches) == 1


@pytest.mark.parametrize("left_out", ["actions", "voted"])
def test_policies_of_a_trainer_from_outside_have_no_exact_votes(certificate, left_out):
    other = copy.deepcopy(certificate)
    other["inputs"] |= {"trainer": {"kind": "function", "name": "mine:clone", "sha256": "0" * 64, "seconds": 60.0, "memory": 4.0}}
    if left_out == "actions":
        other["inputs"]["actions"] = None
    else:
        del other["inputs"]["voted"]
    other["sha256"] = content_hash(other)
    assert "exact votes are those of policies that are trained once" in verify(other)[0]


def test_a_vote_or_a_reward_that_was_changed_shows(certificate):
    rows = copy.deepcopy(certificate["inputs"]["voted"]["rows"])
    rows[0] = [rows[0][2], rows[0][1], rows[0][0]]
    assert any("results.voted" in text for text in verify(changed(certificate, ("rows",), rows)))
    episode = certificate["inputs"]["voted"]["episodes"][0]
    assert verify(changed(certificate, ("episodes", 0), {**episode, **{name: [] for name in ("node", "action", "reward", "next")}, "rows": episode["rows"][:1]}))[0].endswith("to its end")


def test_least_radii_are_rows_of_their_own_kind():
    rule = LeastRadii()
    rows = np.array([[0, 3, 5], [2, 0, 9]])
    assert rule.choice(rows).tolist() == [0, 1] and rule.possible(rows, 3, 7).tolist() == [[True, True, False], [True, True, False]]
