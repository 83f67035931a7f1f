"""From trained instances to what a certificate is based on: episodes, levels, instances that overflow, continuous actions."""

import dataclasses

import gymnasium as gym
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from mucd_ray.certify.file.certificate import read_certificate, verify
from mucd_ray.certify.file.evidence import LEVELS
from mucd_ray.cli import main
from mucd_ray.data.environments.cards import card_for
from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.errors import MucdError
from mucd_ray.learn.learner import Learner
from mucd_ray.learn.streams import ROLLOUT, Streams
from mucd_ray.service.runs.about import assumptions
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.driver import certify, discounted_returns, training_units
from mucd_ray.service.runs.session import Request, _action_bounds, execute, make_settings
from mucd_ray.service.runs.summary import describe, summarise
from mucd_ray.service.runs.tally import Tally
from mucd_ray.service.runs.work import baselines, choose_states, train_and_evaluate
from mucd_ray.service.storage.store import RunStore
from mucd_ray.service.workers.actors import certificate_of
from mucd_ray.service.workers.cluster import Resources

SECRET = b"s" * 32


@pytest.fixture(scope="module")
def cartpole(recordings):
    """(settings, units, states) of a small run."""
    dataset = load_dataset(recordings["cartpole"])
    request = Request(dataset=recordings["cartpole"], instances=20, steps=5, states=9, held_out=2)
    settings, _ = make_settings(request, dataset, Choices())
    units = training_units(settings, dataset)
    return settings, units, choose_states(settings, SECRET, units, "cpu")


def block_of(cartpole, instances, **changes):
    settings, units, states = cartpole
    settings = dataclasses.replace(settings, **changes)
    return train_and_evaluate(settings, SECRET, units, states, instances, "cpu")


def store_of(settings, states, block, folder):
    store = RunStore.create_or_open(folder / "run", settings, secret=SECRET)
    store.write_states(states)
    store.commit(block)
    store.add_target(len(block.returns))
    return store


def test_the_first_episode_of_several_is_the_only_one_of_one(cartpole):
    one, three, discounted = (block_of(cartpole, range(4, 8), **changes) for changes in ({}, {"rollouts": 3}, {"rollouts": 3, "discount": 0.9}))
    assert np.array_equal(one.actions, three.actions) and np.array_equal(one.levels, three.levels)
    assert not np.array_equal(one.returns, three.returns)
    assert np.array_equal(block_of(cartpole, range(6, 7), rollouts=3).returns, three.returns[2:3])
    assert (discounted.returns <= 10).all() and (three.returns > 10).any()
    # What the seeds were before there could be several.
    from mucd_ray.service.runs.work import rollout_seeds

    seeds = rollout_seeds(SECRET, range(4, 8), 3)
    assert seeds[:, 0].tolist() == [Streams(SECRET).generator(i, 0, ROLLOUT).integers(1 << 31) for i in range(4, 8)]
    assert len(np.unique(seeds)) == 12


def test_levels_are_those_of_the_softmax_of_the_stored_parameters(cartpole):
    settings, _, states = cartpole
    block = block_of(cartpole, range(5))
    logits = np.einsum("si,pio->pso", settings.card.features(states), block.parameters["0.weight"]) + block.parameters["0.bias"][:, None]
    scores = 1 / (1 + np.exp(-np.diff(logits, axis=-1)))
    assert block.levels.shape == (5, 9, 2) and block.levels.dtype == np.uint8
    assert np.abs(block.levels[..., 1] - np.floor(LEVELS * scores[..., 0])).max() <= 1 and block.levels.max() <= LEVELS
    assert np.array_equal(block.actions == 1, scores[..., 0] > 0.5)


def test_votes_and_scores_are_two_certificates_of_the_same_instances(cartpole, tmp_path):
    settings, _, states = cartpole
    store = store_of(settings, states, block_of(cartpole, range(20)), tmp_path)
    store.write_json("baselines.json", {"reference": [1] * 9})
    tally = Tally(store, 20)
    assert tally.histogram.sum(-1).tolist() == [[20, 20]] * 9
    tally.counted.clear()
    tally.add(store.names())
    assert len(tally.returns) == 20
    assert tally.histogram.sum() == 20 * 9 * 2 and tally.votes.sum() == 20 * 9
    votes, scores = (certify(store, Choices(inference=inference)) for inference in ("votes", "scores"))
    for certificate, kind in ((votes, "votes"), (scores, "scores")):
        assert certificate["results"]["action"]["kind"] == kind and verify(certificate) == []
        assert certificate["inputs"]["actions"]["reference"] == [1] * 9
    assert votes["results"]["policy"] == scores["results"]["policy"]


def test_growing_certifies_as_before_unless_told_otherwise(cartpole, tmp_path, capfd):
    settings, _, states = cartpole
    store = store_of(settings, states, block_of(cartpole, range(20)), tmp_path)
    store.write_json("baselines.json", {"behaviour": 0.0, "reference": None})
    certify(store, Choices(eta=0.01, threat="insert", band="dkw", inference="scores"))

    def grown(*options):
        assert main(["grow", str(store.path), "--instances", "20", *options]) == 0
        inputs = read_certificate(store.path / "certificate.json")["inputs"]
        return inputs["eta"], inputs["threat"], inputs["band"], inputs["actions"]["kind"], inputs["accountant"]

    assert grown() == (0.01, "insert", "dkw", "scores", "tradeoff")
    assert grown("--threat", "remove", "--inference", "votes") == (0.01, "remove", "dkw", "votes", "tradeoff")
    (store.path / "certificate.json").unlink()
    assert grown() == (0.001, "symmetric", "order-statistic", "votes", "tradeoff")


def test_instances_that_overflow_are_counted_as_the_lowest_action(cartpole, tmp_path):
    """Nothing may be dropped: which instances overflow depends on the data."""
    settings, units, states = cartpole
    settings = dataclasses.replace(settings, learner=Learner(learning_rate=1e45))
    with np.errstate(all="ignore"):
        block = train_and_evaluate(settings, SECRET, units, states, range(12), "cpu")
    broken = ~np.isfinite(block.parameters["0.weight"]).all((1, 2))
    assert broken.any(), "no instance overflowed"
    assert not block.actions[broken].any() and not block.levels[broken].any() and np.isfinite(block.returns).all()
    store = store_of(settings, states, block, tmp_path)
    assert len(certify(store, Choices(inference="scores"))["inputs"]["returns"]) == 12


@pytest.mark.parametrize(
    "changes, message",
    [({"return_range": (0.0, 8.0)}, "a return of .* in CartPole-v1 is outside the declared range .0.0, 8.*return_range in the card"), ({"reward_range": (0.0, 0.5)}, "card's reward_range")],
)
def test_a_return_outside_the_declared_range_is_refused_not_clipped(cartpole, changes, message):
    with pytest.raises(MucdError, match=message):
        block_of(cartpole, range(3), card=dataclasses.replace(cartpole[0].card, **changes))


def test_trajectories_are_discounted_as_episodes_are(recordings):
    dataset = load_dataset(recordings["acrobot"])
    starts = dataset.trajectory_starts
    expected = [sum(0.9**t * r for t, r in enumerate(dataset.rewards[a:b])) for a, b in zip(starts[:-1], starts[1:])]
    np.testing.assert_allclose(discounted_returns(dataset, 0.9), expected)
    assert np.array_equal(discounted_returns(dataset, 1.0), dataset.trajectory_returns)


@pytest.fixture(scope="module")
def pendulum(recordings):
    """A real Pendulum recording: energy pumping, then damping near the top, with noise."""
    rng, environment, buffers = np.random.default_rng(3), gym.make("Pendulum-v1"), []
    for seed in range(15):
        observations, actions, rewards = [environment.reset(seed=seed)[0]], [], []
        for _ in range(200):
            cosine, sine, speed = observations[-1]
            torque = -8 * sine - 2 * speed if cosine > 0.9 else np.sign(speed)
            actions.append(np.clip([torque + rng.normal()], -2, 2).astype(np.float32))
            observation, reward, *_ = environment.step(actions[-1])
            observations.append(observation), rewards.append(reward)
        ends = [False] * 199
        buffers.append(EpisodeBuffer(observations=observations, actions=actions, rewards=rewards, terminations=[*ends, False], truncations=[*ends, True]))
    with pytest.warns(UserWarning):
        minari.create_dataset_from_buffers("pendulum/test-v0", buffers, env=environment)
    return "pendulum/test-v0"


@pytest.mark.slow
@pytest.mark.parametrize("on_ray", [False, True])
def test_continuous_actions_are_certified_from_end_to_end(request, monkeypatch, pendulum, tmp_path, on_ray):
    """Without Ray the instances and two policies' baselines are made here, and the same command has only to certify them."""
    wanted = Request(dataset=pendulum, instances=40, steps=8, states=6, held_out=2, fraction=0.005, rollouts=2, discount=0.95)
    if on_ray:
        request.getfixturevalue("local_ray")
    else:
        dataset = load_dataset(pendulum)
        settings, _ = make_settings(wanted, dataset, Choices())
        store = RunStore.create_or_open(tmp_path / "run", settings, secret=SECRET)
        units = training_units(settings, dataset)
        states = store.write_states(choose_states(settings, SECRET, units, "cpu"))
        store.commit(train_and_evaluate(settings, SECRET, units, states, range(40), "cpu"))
        monkeypatch.setattr("mucd_ray.service.runs.work.BASELINE_SEEDS", range(2))
        store.write_json("baselines.json", baselines(settings, units, states))
        assert store.read_json("baselines.json")["reference"] is None
        monkeypatch.setattr("mucd_ray.service.runs.driver.joined", None)
    summary = execute(wanted, str(tmp_path / "run"), resources=Resources(block=20), seed=4 if on_ray else None)
    certificate = read_certificate(summary["certificate"])
    assert verify(certificate) == []
    inputs, action = certificate["inputs"], certificate["results"]["action"]
    assert inputs["actions"]["kind"] == action["kind"] == "continuous" and inputs["actions"]["low"] == [-2.0] and inputs["actions"]["high"] == [2.0]
    assert np.array(inputs["actions"]["histogram"]).shape == (6, 1, LEVELS + 1) and inputs["rollouts"] == 2 and inputs["discount"] == 0.95
    assert inputs["return_range"] == list(card_for("Pendulum-v1").discounted_range(0.95))
    assert action["per_state"]["tolerance"]["0.25"]["certified_share"] > 0
    text = describe(summary)
    assert "in an interval at most 50 % of the action range wide" in text and "discount 0.95" in text and "2 episodes each" in text
    # At this eta 40 instances show nothing about returns, which takes one line.
    store = RunStore.open(tmp_path / "run")
    nothing = [line for line in describe(summarise(store, certify(store, Choices(eta=1.3e-9)))).splitlines() if line.startswith("certified")]
    assert nothing[0] == "certified: keeping 90 % or 75 % or 50 % is not certified at any r" and not any("keeps" in line for line in nothing)
    with pytest.raises(MucdError, match="needs discrete actions"):
        execute(wanted, str(tmp_path / "other"), choices=Choices(inference="scores"))
    with pytest.raises(MucdError, match="continuous"):
        execute(dataclasses.replace(wanted, instances=100), str(tmp_path / "other"), choices=Choices(looks="anytime", goal="actions>=0.5@0.001"))
    assert not (tmp_path / "other").exists()
    # Without public bounds there is no grid on which to count actions.
    unbounded = dataclasses.replace(store.settings(), action_bounds=None)
    evidence = dataclasses.replace(Tally(store, 40).evidence(), histogram=np.zeros((6, 0, LEVELS + 1), int))
    notes = assumptions(store, unbounded, Choices(), 40)
    bare = certificate_of(unbounded, evidence, vars(Choices()), None, None, notes, {})
    assert bare["inputs"]["actions"] is None and verify(bare) == [] and "actions are unbounded" in bare["assumptions"][-1]


class Wide(gym.Env):
    """Continuous actions with finite bounds that float32 does not hold."""

    observation_space, action_space = gym.spaces.Box(-1.0, 1.0, (3,)), gym.spaces.Box(-1e300, 1e300, (1,), np.float64)


def test_bounds_that_float32_does_not_hold_are_none():
    assert _action_bounds(Wide.action_space) is None and _action_bounds(gym.spaces.Box(-2.0, 2.0, (1,))) == ((-2.0,), (2.0,))
