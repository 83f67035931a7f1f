"""Scores by evaluators from outside, in real processes: whatever they do, a score is a number of the public range."""

from pathlib import Path

import gymnasium
import numpy as np
import pytest

from mucd_ray.data.environments.cards import card_for
from mucd_ray.errors import MucdError
from mucd_ray.evaluate.evaluators import CAUSES, Scorer, evaluator
from mucd_ray.evaluate.rollouts import constant_policies
from tests import foreign_evaluators

FILE = str(Path(foreign_evaluators.__file__))
CARD = card_for("CartPole-v1").raw()
SPACES = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32), gymnasium.spaces.Discrete(2)
NAMES, CONSTANTS = constant_policies(CARD, SPACES[1])


def scored(name, seeds, seconds=20.0, low=0.0, high=1.0):
    scorer = Scorer(evaluator(f"{FILE}:{name}", low, high, seconds=seconds), SPACES)
    try:
        scores, failed = scorer.scores(CONSTANTS, CARD, np.array(seeds))
        return scores.tolist(), [CAUSES[cause] for cause in failed], scorer.words
    finally:
        scorer.close()


def test_a_score_is_what_the_function_returns_by_its_seed():
    class Constant:
        def __init__(self, action):
            self.action = action

        def act(self, observations):
            return np.full(len(observations), self.action)

    wanted = [foreign_evaluators.share(Constant(0), 5), np.mean([foreign_evaluators.share(Constant(1), seed) for seed in (6, 8)])]
    assert scored("share", [[5, 5], [6, 8]]) == ([pytest.approx(value) for value in wanted], ["", ""], {})
    assert scored("one_by_one", [[1], [2]])[0] == pytest.approx([1 - foreign_evaluators.RIGHT[:25].mean(), foreign_evaluators.RIGHT[:25].mean()])
    assert scored("remembers", [[1], [2]])[0] == [0.5, 0.5]


def test_a_score_of_vectors_of_several_components(tmp_path):
    """The evaluator gets an integer for each component, counted from 0."""
    (tmp_path / "levers.py").write_text(
        "def share(policy, seed):\n    actions = policy.act([[0.0] * 4] * 3)\n    assert actions.shape == (3, 3) and actions.dtype.kind == 'i' and policy.act([0.0] * 4).shape == (3,)\n"
        "    return float((actions == policy.action_space.nvec - 1).mean())\n"
    )
    space = gymnasium.spaces.MultiDiscrete([11, 11, 6])
    names, policies = constant_policies(CARD, space)
    scorer = Scorer(evaluator(f"{tmp_path / 'levers.py'}:share", 0.0, 1.0), (SPACES[0], space))
    try:
        scorer.try_out()
        scores, failed = scorer.scores(policies, CARD, np.zeros((3, 1), int))
        assert names == ["low", "centre", "high"] and scores.tolist() == [0.0, 0.0, 1.0] and not failed.any()
    finally:
        scorer.close()


HOSTILE = {
    "raises": "raised", "leaves": "raised", "is_nan": "no number", "is_text": "raised", "too_high": "outside the range", "infinite": "outside the range", "asks_nonsense": "raised",
    "asks_behind_the_back": "no number", "dies": "died", "kills_its_parent": "died",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_score_counts_as_the_least(name):
    scores, causes, words = scored(name, [[1], [2]], low=-3.0)
    assert scores == [-3.0, -3.0] and causes == [HOSTILE[name]] * 2 and list(words) == causes[:1] and words[causes[0]].isprintable()


@pytest.mark.parametrize("name, cause", [("hangs", "too slow"), ("says_nonsense", "no number")])
def test_no_score_is_waited_for_longer_than_its_seconds(name, cause):
    assert scored(name, [[1], [2]], seconds=0.5)[:2] == ([0.0, 0.0], [cause] * 2)


def test_what_cannot_be_called_is_refused():
    for name, words in (("nobody", "cannot be used"), ("of_one_argument", r"take \(policy, seed\)")):
        with pytest.raises(MucdError, match=words):
            Scorer(evaluator(f"{FILE}:{name}", 0, 1), SPACES)
    with pytest.raises(MucdError, match="no name of a function"):
        evaluator("os.system", 0, 1)
    with pytest.raises(MucdError, match="begin below its end"):
        evaluator(f"{FILE}:share", 1, 1)
    with pytest.raises(MucdError, match="no score in .0, 1.: outside the range .7"):
        Scorer(evaluator(f"{FILE}:too_high", 0, 1), SPACES).try_out()
