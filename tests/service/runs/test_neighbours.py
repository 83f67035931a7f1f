"""Runs of nearest neighbours in real environments: one process, one run folder like any other, certified and verified."""

import json

import numpy as np
import pytest

from mucd_ray.certify.file.certificate import read_certificate, verify
from mucd_ray.cli import main
from mucd_ray.data.environments.cards import card_for
from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.errors import MucdError
from mucd_ray.learn.learner import Learner
from mucd_ray.learn.units import make_units
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.neighbours import card_with_metric, certify_neighbours, sizes_at
from mucd_ray.service.runs.session import Request, execute, make_settings
from mucd_ray.service.storage.store import RunStore


def request(dataset, **changes):
    return Request(**{"dataset": dataset, "mechanism": "neighbours", "neighbours": 7, "rollouts": 3, "states": 12} | changes)


@pytest.fixture(scope="module")
def run(recordings, tmp_path_factory):
    """The folder of a finished run, and its summary as the command prints it."""
    folder = tmp_path_factory.mktemp("neighbours")
    return folder / "run", execute(request(recordings["acrobot"], unit="trajectory"), str(folder / "run"), seed=3)


def test_a_run_is_certified_verified_and_certified_again(run, recordings, capfd):
    folder, summary = run
    certificate = read_certificate(folder / "certificate.json")
    assert verify(certificate) == [] and summary["mechanism"] == {"kind": "neighbours", "unit": "trajectory", "neighbours": 7, "metric": "declared"}
    assert summary["instances"] == 3 and set(summary["keeps"]) == {"0.9", "0.75", "0.5"} and {"non_private", "behaviour", "best_constant_return"} <= set(summary["baselines"])
    assert summary["yardsticks"]["behaviour"]["return"] == summary["baselines"]["behaviour"] and summary["failures"] == 0 and not summary["conditional"]
    assert certificate["context"]["states_chosen_by"] == "the policy's own episodes" and (folder / "report.html").read_text().count("without chance") == 1
    # The states' votes are those of the data, and what is offered to a search of the tree says the same.
    store, dataset = RunStore.open(folder), load_dataset(recordings["acrobot"])
    settings = store.settings()
    sizes = sizes_at(settings, make_units(dataset, settings.card, settings.problem, "trajectory"))(store.states())
    assert sizes.tolist() == certificate["results"]["action"]["sizes"]
    assert main(["certify", str(folder), "--threat", "remove", "--json"]) == 0
    again = json.loads(capfd.readouterr().out)
    assert again["threat"] == "remove" and verify(read_certificate(folder / "certificate.json")) == []
    assert main(["verify", str(folder / "certificate.json")]) == 0 and main(["report", str(folder)]) == 0
    assert main(["compare", str(folder)]) == 0 and "neighbours" in capfd.readouterr().out
    assert main(["grow", str(folder), "--instances", "9"]) == 2 and "nothing can grow" in capfd.readouterr().err
    assert main(["serve", str(folder)]) == 2 and "neighbours" in capfd.readouterr().err


def test_an_episode_keeps_what_its_least_certified_action_allows(run):
    """Played again state by state, the path radius is the least radius on it."""
    from mucd_ray.learn.neighbours import Nearest
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


@pytest.mark.parametrize("choices", [{"inference": "scores"}, {"looks": "anytime"}, {"goal": "return>=0.5@0.01"}, {"accountant": "rdp"}, {"policy": "vote"}])
def test_choices_of_other_mechanisms_are_refused(recordings, choices):
    with pytest.raises(MucdError, match="chance|accountant|'vote' is certified of"):
        make_settings(request(recordings["cartpole"]), load_dataset(recordings["cartpole"]), Choices(**choices))
