"""Attackers who are contributors: real learners on bags of whole sources, whose trajectories lie mixed in the file. And the one who forges keys."""

from functools import cache
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from problems import problem
from scipy.stats import binomtest

from mucd_ray.certify.closed_form import guarantees_of
from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.evaluate.policies import trained_policies
from mucd_ray.evaluate.votes import actions_at, counts
from mucd_ray.learn.streams import Streams
from mucd_ray.learn.trainers.bags import draw_bag
from mucd_ray.learn.trainers.built_in import Fit, fit_policies
from mucd_ray.learn.units import make_units
from mucd_ray.mechanism.bag import Bag

CLEAN, INSTANCES = 20, 400
ASKED = problem("bc", True, inputs=2, actions=2, optimiser="adam", learning_rate=0.05)
CARD = SimpleNamespace(features=lambda observations: observations.astype(np.float32), reward_scale=1.0)
STATE = np.zeros((1, 2), np.float32)
BAG = Bag(unit="source", bag_size=3)


def trajectories(sources: int, forged: int):
    """(key, length, action, reward): honest sources have two that take action 0; the attacker's sources have three better and longer ones, and he writes one under each of the first `forged` keys of others."""
    honest = [(f"honest-{source}", 4, 0, 0.0) for source in range(CLEAN)] * 2
    own = [(f"mallory-{source}", 60, 1, 1.0) for source in range(sources)] * 3
    return honest + own + [(f"honest-{source}", 200, 1, 1.0) for source in range(forged)] * 4


@cache
def votes(sources: int, forged: int, secret: bytes) -> np.ndarray:
    """Votes [2] of INSTANCES instances at one state."""
    rng = np.random.default_rng(1)
    mixed = rng.permutation(np.array(trajectories(sources, forged), object))
    lengths = mixed[:, 1].astype(int)
    rows = int(lengths.sum())
    ends = np.isin(np.arange(rows), np.cumsum(lengths) - 1)
    observations = rng.standard_normal((rows, 2))
    data = OfflineDataset.from_arrays(
        observations=observations, next_observations=observations, actions=np.repeat(mixed[:, 2].astype(int), lengths), rewards=np.repeat(mixed[:, 3].astype(float), lengths),
        terminations=ends, truncations=np.zeros(rows, bool), action_space=gymnasium.spaces.Discrete(2),
        observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64), source_keys=mixed[:, 0].tolist(),
    )
    units, streams = make_units(data, CARD, ASKED, "source"), Streams(secret * 16)
    assert len(units) == CLEAN + sources
    bags = [draw_bag(BAG, len(units), instance, streams) for instance in range(INSTANCES)]
    fit = Fit(steps=30, batch=64, normalise=False, top_share=0.5)
    policies = trained_policies(ASKED, fit_policies(problem=ASKED, fit=fit, units=units, bags=bags, instances=range(INSTANCES), streams=streams))
    return counts(actions_at(policies, STATE), 2)[0]


@pytest.mark.parametrize("sources", [1, 4])
def test_malicious_sources_attain_the_bound_and_no_more(sources):
    """They hold the best trajectories of every bag that they are in, and nearly all of its transitions."""
    assert votes(0, 0, b"a")[0] == INSTANCES
    left = int(votes(sources, 0, b"b")[0])
    bound = float(guarantees_of(BAG, units=CLEAN).group(sources, 0).lower(1.0))
    assert binomtest(left, INSTANCES, bound, alternative="less").pvalue > 1e-4, "the certificate promised more"
    assert binomtest(left, INSTANCES, bound).pvalue > 1e-4, "this attacker leaves no more than the bound"


def test_who_writes_under_the_keys_of_others_changes_their_sources_too():
    """One contributor with four forged keys breaks what is claimed of one source, which is why keys are an assumption; of five it holds."""
    left, guarantees = int(votes(1, 4, b"c")[0]), guarantees_of(BAG, units=CLEAN)
    assert binomtest(left, INSTANCES, float(guarantees.group(1, 0).lower(1.0)), alternative="less").pvalue < 1e-4
    assert binomtest(left, INSTANCES, float(guarantees.group(5, 4).lower(1.0)), alternative="less").pvalue > 1e-4
