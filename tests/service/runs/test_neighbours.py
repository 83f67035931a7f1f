"""Runs of nearest neighbours in real environments: one process, one run folder like any other, certified and verified."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from mucd_ray.certify.file.certificate import read_certificate, verify
from mucd_ray.cli import main
from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.data.environments.cards import card_for
from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.errors import MucdError
from mucd_ray.learn.learner import Learner
from mucd_ray.learn.neighbours import Nearest
from mucd_ray.learn.units import make_units
from mucd_ray.mechanism.neighbours import COSTS, NEVER
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.neighbours import card_with_metric, certify_neighbours, sizes_at
from mucd_ray.service.runs.session import Request, execute, make_settings
from mucd_ray.service.runs.voting import VotePlan, Voter
from mucd_ray.service.storage.store import RunStore
from tests.evaluate import tiny

VOTE = Choices(policy="vote", episodes=2, nodes=40)


def request(dataset, **changes):
    return Request(**{"dataset": dataset, "mechanism": "neighbours", "neighbours": 7, "rollouts": 3, "states": 12} | changes)


@pytest.fixture(scope="module")
def run(recordings, tmp_path_factory):
    """The folder of a finished run, and its summary as the command prints it."""
    folder = tmp_path_factory.mktemp("neighbours")
    return folder / "run", execute(request(recordings["acrobot"], unit="trajectory"), str(folder / "run"), seed=3)


def test_a_run_is_certified_verified_and_certified_again(run, recordings, capfd, monkeypatch):
    folder, summary = run
    certificate = read_certificate(folder / "certificate.json")
    assert verify(certificate) == [] and summary["mechanism"] == {"kind": "neighbours", "unit": "trajectory", "neighbours": 7, "metric": "declared"}
    assert summary["instances"] == 3 and set(summary["keeps"]) == {"0.9", "0.75", "0.5"} and {"non_private", "behaviour", "best_constant_return"} <= set(summary["baselines"])
    assert summary["yardsticks"]["behaviour"]["return"] == summary["baselines"]["behaviour"] and summary["failures"] == 0 and not summary["conditional"]
    assert certificate["context"]["states_chosen_by"] == "the policy's own episodes" and (folder / "report.html").read_text().count("without chance") == 1
    # The states' votes are those of the data, and what is offered to a search of the tree says the same.
    store, dataset = RunStore.open(folder), load_dataset(recordings["acrobot"])
    settings = store.settings()
    sizes = sizes_at(settings, Nearest(make_units(dataset, settings.card, settings.problem, "trajectory")))(store.states())
    assert sizes.tolist() == certificate["results"]["action"]["sizes"]
    assert main(["certify", str(folder), "--threat", "remove", "--json"]) == 0
    again = json.loads(capfd.readouterr().out)
    assert again["threat"] == "remove" and verify(read_certificate(folder / "certificate.json")) == []
    assert main(["verify", str(folder / "certificate.json")]) == 0 and main(["report", str(folder)]) == 0
    assert main(["compare", str(folder)]) == 0 and "neighbours" in capfd.readouterr().out
    # The voted policy's episodes are played from the data, once; then the certificate needs no data.
    vote = ["certify", str(folder), "--policy", "vote", "--episodes", "2", "--nodes", "40", "--json"]
    assert main(vote) == 0
    voted, path = json.loads(capfd.readouterr().out)["voted"], folder / "certificate.json"
    content = path.read_bytes()
    assert verify(read_certificate(path)) == [] and voted["kind"] == "least" and voted["complete"] == 1.0 and len(list((folder / "voted").iterdir())) == 2
    with monkeypatch.context() as without:
        without.setenv("MINARI_DATASETS_PATH", str(folder))
        assert main(vote) == 0 and path.read_bytes() == content
        assert main([*vote, "--eta", "0.01"]) == 0 and "at least 99 %, over the random choice of its episodes' seeds" in " ".join(read_certificate(path)["claim"])
        capfd.readouterr()
        assert main([*vote, "--episodes", "3"]) == 2 and capfd.readouterr().err.count("\n") == 1
    assert "the voted policy's expected return, 99.9 %" in " ".join((main(vote), main(["report", str(folder)])) and (folder / "report.html").read_text().split())
    capfd.readouterr()
    assert main(["grow", str(folder), "--instances", "9"]) == 2 and "nothing can grow" in capfd.readouterr().err
    assert main(["serve", str(folder)]) == 2 and "neighbours" in capfd.readouterr().err


def test_an_episode_keeps_what_its_least_certified_action_allows(run):
    """Played again state by state, the path radius is the least radius on it."""
    from mucd_ray.service.runs.work import rollout_seeds

    folder, _ = run
    store = RunStore.open(folder)
    settings, found = store.settings(), json.loads((folder / "neighbours.json").read_text())
    nearest = Nearest(make_units(load_dataset(settings.dataset), settings.card, settings.problem, "trajectory"))
    environment, returned, least = settings.card.make(), 0.0, 7
    observation, _ = environment.reset(seed=int(rollout_seeds(store.secret(), range(3), 1)[1, 0]))
    ended = False
    while not ended:
        votes = nearest.votes_at(settings.card.features(observation[None]), 14)
        least = min(least, int(settings.mechanism.radii(votes, 3)[0, 0]))
        observation, reward, terminated, truncated, _ = environment.step(int(settings.mechanism.actions(votes, 3)[0]))
        returned, ended = returned + reward, terminated or truncated
    assert found["returns"][1] == returned and found["path_radii"]["symmetric"][1] == least


def walks(trajectories) -> OfflineDataset:
    """Of lists of (state, action counted from 0) in the tiny environment; states are places there, so that most distances tie."""
    rows, environment = [row for trajectory in trajectories for row in trajectory], tiny.Walk()
    lengths = [len(trajectory) for trajectory in trajectories]
    states = np.eye(tiny.STATES, dtype=np.float32)[[state for state, _ in rows]]
    return OfflineDataset.from_arrays(
        observations=states, next_observations=states, actions=np.array([1 + action for _, action in rows]), rewards=np.zeros(len(rows)), terminations=np.zeros(len(rows), bool),
        truncations=np.isin(np.arange(len(rows)) + 1, np.cumsum(lengths)), action_space=environment.action_space, observation_space=environment.observation_space, name="tiny/walk-v0", env_id="mucd/Walk-v0",
    )


@pytest.mark.parametrize("unit,neighbours", [("transition", 2), ("trajectory", 3)])
def test_no_poisoned_dataset_earns_less_than_is_claimed_of_the_vote(tmp_path, unit, neighbours):
    """Every removal of up to two units and every insertion of up to two of a pool: the policy of each such D' is made anew and plays the same episodes, which earn on average no
    less than each threat's certificate says."""
    states, actions = range(tiny.STATES - 1), range(tiny.ACTIONS)
    steps, rng = list(itertools.product(states, actions)), np.random.default_rng(neighbours)
    pool = [[step] for step in steps]
    if unit == "trajectory":
        pool = [[steps[k] for k in rng.permutation(len(steps))[: rng.integers(1, 6)]] for _ in range(7)] + [[(s, a) for s in states] for a in actions]
    data = [pool[k] for k in rng.integers(0, len(pool), 7)]
    wanted = request("tiny/walk-v0", unit=unit, neighbours=neighbours, card=tiny.card(), rollouts=1, states=3)
    execute(wanted, str(tmp_path / "run"), seed=1, dataset=walks(data), choices=replace(VOTE, episodes=3))
    store, tables, earned = RunStore.open(tmp_path / "run"), {}, {}
    settings = store.settings()
    certificates = {threat: certify_neighbours(store, replace(VOTE, episodes=3, threat=threat), lambda: Nearest(make_units(walks(data), settings.card, settings.problem, unit))) for threat in COSTS}
    voter = Voter(store, VotePlan.of(certificates["symmetric"], replace(VOTE, episodes=3)), lambda observations: observations)

    def mean_return(trajectories) -> float:
        key = tuple(sorted(map(tuple, trajectories)))
        if key not in tables:
            nearest = Nearest(make_units(walks(trajectories), settings.card, settings.problem, unit))
            votes = nearest.votes_at(settings.card.features(np.eye(tiny.STATES, dtype=np.float32)), settings.mechanism.recorded)
            tables[key] = tuple(settings.mechanism.actions(votes, tiny.ACTIONS).tolist())
        table = tables[key]
        if table not in earned:
            earned[table] = np.mean([tiny.play(voter.seed(episode), table) for episode in range(3)])
        return earned[table]

    curves = {threat: dict(zip(certificate["results"]["voted"]["curve"]["radius"], certificate["results"]["voted"]["curve"]["played"])) for threat, certificate in certificates.items()}
    assert all(verify(certificate) == [] for certificate in certificates.values())
    assert {curve[0] for curve in curves.values()} == {mean_return(data)} == {certificates["insert"]["results"]["voted"]["unpoisoned_mean"]}
    said, attained = 0, 0
    for removed, inserted in itertools.product(range(3), repeat=2):
        least = min(
            mean_return([*kept, *new]) for kept in itertools.combinations(data, len(data) - removed) for new in itertools.combinations_with_replacement(pool, inserted)
        )
        for threat, cost in COSTS.items():
            if (radius := int(cost(np.array(removed + inserted), np.array(removed - inserted)))) < NEVER and radius in curves[threat]:
                assert curves[threat][radius] <= least, (threat, removed, inserted)
                said, attained = said + (radius > 0 and curves[threat][radius] > -4), attained + (radius > 0 and curves[threat][radius] == least)
    assert said >= 8 and attained >= 1


def test_planned_from_the_fraction_and_states_of_the_users(recordings, tmp_path):
    dataset = load_dataset(recordings["cartpole"])
    states = dataset.observations[:5]
    np.save(tmp_path / "states.npy", states)
    wanted = request(recordings["cartpole"], neighbours=None, unit="transition", fraction=0.004, states_file=str(tmp_path / "states.npy"), metric="bounds")
    summary = execute(wanted, str(tmp_path / "run"), seed=3)
    settings = RunStore.open(tmp_path / "run").settings()
    assert summary["mechanism"]["neighbours"] == 110 and settings.size_margin and settings.states == 5
    # Positions and angles have bounds, velocities have none.
    assert settings.card.scale == pytest.approx((9.6, 1.0, 0.83775806, 1.0), rel=1e-6) and settings.card.indices == ()
    certificate = read_certificate(tmp_path / "run" / "certificate.json")
    assert certificate["inputs"]["radius_cap"] == settings.size_margin and verify(certificate) == []
    # The same command goes on from what is there.
    assert execute(wanted, str(tmp_path / "run"), seed=3) == summary
    with pytest.raises(MucdError, match="not finished"):
        (tmp_path / "run" / "neighbours.json").unlink()
        certify_neighbours(RunStore.open(tmp_path / "run"), Choices())


def test_the_metric_is_public():
    """Of the environment and its card alone."""
    card = card_for("CartPole-v1")
    assert card_with_metric(card, "declared") == card and card_with_metric(card, "bounds").center == (0.0,)


@pytest.mark.parametrize("changes,complaint", [
    ({"neighbours": 10**5}, "100000 neighbours are more"), ({"neighbours": 10**6}, "neighbours 1000000 must be"), ({"neighbours": 0}, "neighbours 0"), ({"metric": "cosine"}, "metric 'cosine'"), ({"instances": 50}, "train nothing"),
    ({"learner": Learner(learning_rate=0.1)}, "train nothing"), ({"mechanism": "bag"}, "neighbours is for --mechanism neighbours"), ({"bag_size": 3}, "bag size is for"),
    ({"neighbours": None, "fraction": 0.3}, "ask for a smaller fraction"), ({"rollouts": 0}, "rollouts 0"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(recordings, changes, complaint):
    with pytest.raises(MucdError, match=complaint):
        make_settings(request(recordings["cartpole"], **changes), load_dataset(recordings["cartpole"]), Choices())


@pytest.mark.parametrize("choices", [{"inference": "scores"}, {"looks": "anytime"}, {"goal": "return>=0.5@0.01"}, {"accountant": "rdp"}])
def test_choices_of_other_mechanisms_are_refused(recordings, choices):
    with pytest.raises(MucdError, match="chance|accountant"):
        make_settings(request(recordings["cartpole"]), load_dataset(recordings["cartpole"]), Choices(**choices))
