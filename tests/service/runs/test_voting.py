"""The voted policy of real runs, on a real Ray and in one process: played, followed, certified, verified, resumed; and parts whose policies are trained once."""

import numpy as np
import pytest

from mucd_ray.certify.file.certificate import read_certificate, verify
from mucd_ray.certify.votes import parl_radius
from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.data.recording.record import record
from mucd_ray.errors import MucdError
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.driver import certify, training_units
from mucd_ray.service.runs.session import Request, execute, make_settings
from mucd_ray.service.runs.summary import describe, summarise
from mucd_ray.service.runs.tally import Tally
from mucd_ray.service.runs.voting import VotePlan, Voter
from mucd_ray.service.runs.work import choose_states, train_and_evaluate
from mucd_ray.service.serving.ensemble import Ensemble
from mucd_ray.service.storage.policies import stored_parameters
from mucd_ray.service.storage.store import RunStore
from mucd_ray.service.workers.cluster import Resources

FIT = {"steps": 60, "batch": 64}
VOTE = Choices(policy="vote", episodes=3, nodes=60)


def request(dataset, **changes):
    return Request(**{"dataset": dataset, "instances": 25, "states": 12, "held_out": 3, "fit": FIT} | changes)


@pytest.fixture(scope="module")
def of_parts(recordings, tmp_path_factory, local_ray):
    folder = tmp_path_factory.mktemp("parts")
    summary = execute(request(recordings["cartpole"], mechanism="partition", parts=7), str(folder / "run"), choices=VOTE, resources=Resources(block=5), seed=3)
    return RunStore.open(folder / "run"), summary


def test_all_parts_vote_exactly_and_each_is_trained_once(of_parts):
    store, summary = of_parts
    certificate = read_certificate(store.path / "certificate.json")
    assert verify(certificate) == []
    action, counts = certificate["results"]["action"], np.array(certificate["inputs"]["actions"]["counts"])
    assert action["kind"] == "exact" and (counts.sum(1) == 7).all() and action["per_state"] == action["family_wise"]
    assert action["per_state"]["radius"] == parl_radius(counts).tolist() and summary["action"]["kind"] == "exact"
    assert sorted(path.name for path in (store.path / "parts").iterdir()) == ["block-00000000-000005.safetensors", "block-00000005-000002.safetensors"]
    # Instances are those policies.
    parts, drawn = stored_parameters(store.of_parts(), range(7))["0.weight"].numpy(), stored_parameters(store, range(25))["0.weight"].numpy()
    assert all(any(np.array_equal(instance, part, equal_nan=True) for part in parts) for instance in drawn)
    # A copy among the instances would be another thing.
    assert Tally(store, 25).evidence().votes.sum() == 25 * 12 and Tally(store.of_parts(), 7).evidence().votes.tolist() == counts.tolist()


def test_the_voted_policy_is_certified_resumed_and_certified_again_without_training(of_parts):
    store, summary = of_parts
    path, voted = store.path / "certificate.json", summary["voted"]
    before = path.read_bytes()
    assert voted["episodes"] == 3 and voted["kind"] == "exact" and voted["complete"] == 1.0
    assert voted["played"]["keeps"]["0.5"]["radius"] >= 0 and voted["keeps"]["0.9"]["radius"] == -1, "three episodes say little about others"
    assert "voted policy" in describe(summary) and "certified: voted policy, return in these episodes: keeps 90 %" in describe(summary)
    files = sorted((store.path / "voted").iterdir())
    files[1].unlink()
    again = certify(store, VOTE)
    assert path.read_bytes() == before and len(list((store.path / "voted").iterdir())) == 3
    # Less was followed of the same trees.
    shorter = certify(store, Choices(policy="vote", episodes=3, nodes=1))
    assert verify(shorter) == [] and len(list((store.path / "voted").iterdir())) == 6
    ours, theirs = again["results"]["voted"], shorter["results"]["voted"]
    assert ours["unpoisoned_mean"] == theirs["unpoisoned_mean"] and all(a >= b for a, b in zip(ours["curve"]["played"], theirs["curve"]["played"]))
    assert "voted" not in certify(store, Choices())["results"] and "voted" not in summarise(store, read_certificate(path))
    for threat in ("substitute", "insert"):
        other = certify(store, Choices(policy="vote", episodes=3, nodes=60, threat=threat))
        assert verify(other) == []
    assert other["results"]["voted"]["curve"] == ours["curve"]
    for text in ("[]", '{"table": [[1, 2], [3]], "episode": {}}', '{"table": [[7, 0]], "episode": {"rows": [5], "node": [], "action": [], "reward": [], "next": []}}', "{"):
        files[0].write_text(text)
        with pytest.raises(MucdError, match="voted/.*is no episode of the voted policy .*: delete it, and it is played again"):
            certify(store, VOTE)
    files[0].unlink()
    certify(store, VOTE)
    assert path.read_bytes() == before


def test_exact_votes_are_served_as_certain(of_parts):
    store, _ = of_parts
    certify(store, Choices())
    ensemble = Ensemble(str(store.path))
    answers, action = ensemble.answers(store.states()), ensemble.certificate["results"]["action"]
    assert [answer["radius"] for answer in answers] == action["per_state"]["radius"] and [answer["action"] for answer in answers] == action["action"]
    assert [answer["votes"] for answer in answers] == ensemble.certificate["inputs"]["actions"]["counts"] and ensemble.confidence.startswith("Certain")


def made_here(dataset_id, folder, secret=b"s" * 32, **changes):
    """A run in this process, without Ray and baselines."""
    dataset = load_dataset(dataset_id)
    settings, _ = make_settings(request(dataset_id, **changes), dataset, Choices())
    store = RunStore.create_or_open(folder, settings, secret)
    units = training_units(settings, dataset)
    states = store.write_states(choose_states(settings, secret, units, "cpu"))
    store.add_target(25)
    store.commit(train_and_evaluate(settings, secret, units, states, range(25), "cpu"))
    return store


@pytest.mark.parametrize("mechanism", [{"mechanism": "bag", "bag_size": 3}, {"steps": 8, "fit": None}], ids=["bag", "gaussian"])
def test_sampled_votes_without_ray(recordings, tmp_path, mechanism):
    store = made_here(recordings["acrobot"], tmp_path / "run", **mechanism)
    certificate = certify(store, VOTE)
    voted = certificate["results"]["voted"]
    assert verify(certificate) == [] and voted["kind"] == certificate["inputs"]["voted"]["kind"] == "votes" and -500 <= voted["unpoisoned_mean"] < 0
    text = " ".join(certificate["claim"])
    assert "which takes at every state the action that training on that dataset gives most often" in text and "all of it with probability at least 99.6 %" in text
    assert any("prefix of an episode" in note for note in certificate["assumptions"])
    # 25 instances leave much open: more was followed than the path alone, and what was cut off counts as the least.
    lengths = [len(episode["rows"]) for episode in certificate["inputs"]["voted"]["episodes"]]
    assert min(voted["curve"]["complete"]) < 1 and voted["curve"]["played"][-1] == -500 and max(lengths) > 60
    plan = VotePlan.of(certificate, VOTE)
    seeds = {Voter(store, plan).seed(episode) for episode in range(3)}
    assert len(seeds) == 3 and seeds.isdisjoint(Voter(made_here(recordings["acrobot"], tmp_path / "other", b"t" * 32, **mechanism), plan).seed(episode) for episode in range(3))


def test_continuous_actions_have_a_median_policy_and_no_certificate_of_its_return(tmp_path, recordings):
    record("Pendulum-v1", None, 2000, 5, "pendulum/voted-v0")
    store = made_here("pendulum/voted-v0", tmp_path / "run", mechanism="bag", bag_size=2)
    certificate = certify(store, VOTE)
    summary = summarise(store, certificate)
    assert verify(certificate) == [] and summary["voted"]["kind"] == "median" and summary["voted"]["keeps"] is None and summary["voted"]["mean"] < 0
    assert "a certificate of the voted return is available for discrete actions" in describe(summary)


@pytest.mark.parametrize("changes,complaint", [({"policy": "all"}, "policy 'all' is unknown"), ({"episodes": 0}, "episodes 0 must be"), ({"nodes": 0}, "nodes 0 must be a whole number from 1"), ({"episodes": 10**9}, "episodes 1000000000")])
def test_bad_choices_are_refused(changes, complaint):
    with pytest.raises(MucdError, match=complaint):
        Choices(**changes)
