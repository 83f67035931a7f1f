"""Trainers from outside for actions of several components: vectors of whole numbers, or scores of all values, and what is no action is a failure at that state."""

import gymnasium
import numpy as np
import pytest

from mucd_ray.data.environments.declared import DeclaredSpaces
from mucd_ray.evaluate.policies import environment_actions, greedy_actions
from mucd_ray.learn.trainers.bag_files import WRITERS
from mucd_ray.learn.trainers.given import GivenBag
from mucd_ray.learn.trainers.made_up import made_up_bag
from mucd_ray.learn.trainers.outside import Nursery, StoredPolicies, outside

SPACES = gymnasium.spaces.Box(0, 1, (3,), np.float32), gymnasium.spaces.MultiDiscrete([11, 11, 6])
STATES = np.array([[0.0, 0.5, 0.3], [0.2, 1.0, 0.5], [1.0, 0.1, 0.0]], np.float32)
WANTED = np.array([[0, 5, 3], [2, 10, 5], [10, 1, 0]])
TRAINERS = '''
import numpy as np
import torch


class Policy:
    def __init__(self, answer):
        self.answer = answer

    def act(self, observations):
        return self.answer(np.rint(10 * observations).astype(int))


def vectors(bag, seed, device):
    assert bag.actions.shape == (len(bag), 3) and bag.actions.dtype == np.int64 and (bag.actions >= 0).all() and (bag.actions < bag.action_space.nvec).all()
    return Policy(lambda values: values)


def beyond(bag, seed, device):
    return Policy(lambda values: values + 7 * (values[:, :1] == 10))


def halves(bag, seed, device):
    return Policy(lambda values: values if values[0, 0] < 10 else values / 2)


def short(bag, seed, device):
    return Policy(lambda values: values[:, : 3 - (values[0, 0] == 10)])


class Scores(torch.nn.Module):
    def forward(self, x):
        return torch.cat([-(10 * x[:, c : c + 1] - torch.arange(n)) ** 2 for c, n in ((0, 11), (1, 11), (2, 6))], 1)


def scores(bag, seed, device):
    return Scores()
'''


@pytest.fixture(scope="module")
def trainers(tmp_path_factory):
    file = tmp_path_factory.mktemp("trainers") / "levers.py"
    file.write_text(TRAINERS)
    return file


@pytest.mark.parametrize("name, failed", [("vectors", []), ("scores", []), ("beyond", [2]), ("halves", [2]), ("short", [2])])
def test_a_policy_names_the_value_of_every_component(trainers, name, failed):
    environment, components = DeclaredSpaces(*SPACES), (11, 11, 6)
    bag = made_up_bag(environment, "trajectory")
    with Nursery(outside("function", f"{trainers}:{name}"), environment, "trajectory") as nursery, nursery.learner(bag, 0) as learner:
        outputs = learner.outputs(STATES, np.zeros(1, int))
        content = learner.content
        assert not learner.failure and outputs.shape == (3, 28) and np.flatnonzero(np.isnan(outputs).all(1)).tolist() == failed
    wanted = np.where(np.isin(np.arange(3), failed)[:, None], 0, WANTED)
    assert np.array_equal(greedy_actions(outputs, components), wanted) and np.array_equal(environment_actions(SPACES[1], outputs), wanted)
    assert bool(content) == (name == "scores")
    if content:
        stored = StoredPolicies([content, b""], *SPACES, memory=4.0)
        try:
            assert np.array_equal(greedy_actions(stored.outputs_of_all(STATES), components), [WANTED, 0 * WANTED])
        finally:
            stored.close()


@pytest.mark.parametrize("form", WRITERS)
def test_bags_of_vectors_are_written_in_every_form(tmp_path, form):
    bag = made_up_bag(DeclaredSpaces(*SPACES), "trajectory")
    WRITERS[form](bag, tmp_path)
    if form == "npz":
        again = GivenBag.from_npz((tmp_path / "bag.npz").read_bytes())
        assert np.array_equal(again.actions, bag.actions) and again.action_space == SPACES[1]
    elif form == "minari":
        from mucd_ray.data.formats.minari import load_dataset

        assert np.array_equal(load_dataset("bag-v0", tmp_path).actions, bag.actions)
    else:
        import pyarrow.parquet

        assert np.array_equal(np.stack(pyarrow.parquet.read_table(tmp_path / "bag.parquet")["action"].to_pylist()), bag.actions)
