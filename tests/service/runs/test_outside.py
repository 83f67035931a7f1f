"""Runs whose learner is the user's own: poison that breaks it is counted and reaches no other instance, certificates name it, and what it made is served."""

import dataclasses
import hashlib
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from mucd_ray.certify.file.certificate import read_certificate, verify
from mucd_ray.cli import main
from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.data.recording.record import record
from mucd_ray.errors import MucdError
from mucd_ray.learn.streams import Streams
from mucd_ray.learn.trainers.bags import draw_bag
from mucd_ray.learn.trainers.outside import outside, sha256_of
from mucd_ray.learn.trainers.parts import draw_part, units_by_part
from mucd_ray.learn.trainers.recorded import Recorded
from mucd_ray.mechanism.bag import Bag
from mucd_ray.mechanism.outside import Outside
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.driver import certify, train, training_units, trusted_units
from mucd_ray.service.runs.session import Request, make_settings
from mucd_ray.service.runs.summary import describe, finish
from mucd_ray.service.runs.work import baselines, choose_states, train_and_evaluate
from mucd_ray.service.serving.ensemble import Ensemble
from mucd_ray.service.storage.store import RunStore
from mucd_ray.service.workers.cluster import Resources

FOREIGN = Path(__file__).parents[2] / "foreign_trainers.py"
SECRET = hashlib.sha256(b"of these tests").digest()
LIMITS = {"seconds": 15.0, "memory": 0.6}
INSTANCES = 25
VOTE = Choices(policy="vote", episodes=2, nodes=20)
# Causes by the numbers of tests/foreign_trainers.py: crash, hang, eat, fork, kill, answer NaN, die while acting.
POISON = {0: "raised", 3: "died", 4: "too slow", 5: "raised", 6: "too much memory", 7: "died", 9: "acts nowhere", 15: "died"}


def settled(dataset, folder, trainer, **changes):
    values = {"dataset": dataset.name, "instances": INSTANCES, "states": 12, "held_out": 2, "mechanism": "bag", "bag_size": 1, "trainer": trainer} | changes
    settings, _ = make_settings(Request(**values), dataset, Choices())
    return RunStore.create_or_open(folder, settings, secret=SECRET)


def made_here(dataset, folder, trainer, states=None, **changes):
    """In this process, without Ray and baselines."""
    store = settled(dataset, folder, trainer, **changes)
    settings, units = store.settings(), training_units(store.settings(), dataset)
    states = store.write_states(choose_states(settings, SECRET, units, "cpu") if states is None else states)
    store.add_target(INSTANCES)
    for instances in (range(10), range(10, INSTANCES)):
        store.commit(train_and_evaluate(settings, SECRET, units, states, instances, "cpu"))
    return store


def poisoned(dataset, drawn):
    """Every kind of poison in a trajectory of its own, and the causes of failure by trajectory; that which lasts in the one that is drawn least often."""
    rewards, causes = dataset.rewards.copy(), {}
    rare = [unit for unit, _ in Counter(drawn).most_common()[::-1]]
    for trajectory, k in zip(rare, sorted(POISON, key=lambda k: POISON[k] != "too slow")):
        rewards[dataset.trajectory_starts[trajectory]], causes[trajectory] = 1000 + k, POISON[k]
    return dataclasses.replace(dataset, rewards=rewards), causes


def test_poison_that_breaks_the_learner_is_counted_and_reaches_no_other_instance(recordings, tmp_path, local_ray):
    clean = load_dataset(recordings["cartpole"])
    trainer = outside("function", f"{FOREIGN}:gullible", **LIMITS)
    drawn = [draw_bag(Bag(bag_size=1), clean.trajectories, instance, Streams(SECRET)).item() for instance in range(INSTANCES)]
    dirty, causes = poisoned(clean, drawn)
    store = settled(dirty, tmp_path / "run", trainer)
    store.write_states(clean.observations[:12])  # held-out instances that choose them may hang, too
    certificate = train(store, dirty, INSTANCES, Choices(), Resources(block=4))
    assert verify(certificate) == []
    expected, good = Counter(causes[unit] for unit in drawn if unit in causes), [instance for instance, unit in enumerate(drawn) if unit not in causes]
    assert certificate["context"]["failures"] == expected.total() and Counter(certificate["context"]["failures_by_cause"]) == expected and len(expected) == 5 and good
    # The same trainer on clean data, in this process: instances whose bags hold no poison vote and play the same.
    other = made_here(clean, tmp_path / "clean", trainer, states=store.states())
    ours, theirs = ({block.first + place: (block.actions[place], block.returns[place]) for name in run.names() for block in [run.read(name)] for place in range(len(block.returns))} for run in (store, other))
    for instance in range(INSTANCES):
        if instance in good:
            assert np.array_equal(ours[instance][0], theirs[instance][0]) and ours[instance][1] == theirs[instance][1]
        else:
            # Always left: the pole falls.
            assert not ours[instance][0].any() and ours[instance][1] < 12
    summary = finish(store, certificate)
    assert summary["failures"] == expected.total() and "1 too slow" in describe(summary)
    assert set(summary["failure_words"]) == set(expected) and "such as instance" in describe(summary)
    assert summary["trainer"]["name"] == f"{FOREIGN}:gullible" and summary["algorithm"] == summary["trainer"]["name"]


def test_parts_are_trained_with_randomness_of_every_instances_own(recordings, tmp_path):
    dataset = load_dataset(recordings["cartpole"])
    store = made_here(dataset, tmp_path / "run", outside("function", f"{FOREIGN}:noisy"), mechanism="partition", bag_size=None, parts=3)
    certificate = certify(store, Choices())
    assert verify(certificate) == [] and "draws one of the parts" in " ".join(certificate["claim"])
    settings, units = store.settings(), Recorded.of(dataset, "trajectory")
    assert sorted(np.concatenate(units_by_part(settings.mechanism, units)).tolist()) == list(range(dataset.trajectories))
    drawn = [draw_part(settings.mechanism, instance, Streams(SECRET)) for instance in range(INSTANCES)]
    votes = np.concatenate([store.read(name).actions for name in sorted(store.names())])
    of_one = [votes[instance].tolist() for instance in range(INSTANCES) if drawn[instance] == drawn[0]]
    assert len(of_one) > 3 and len({tuple(row) for row in of_one}) > 1


def test_a_run_is_verified_and_served_from_what_it_has_stored(recordings, tmp_path):
    dataset = load_dataset(recordings["acrobot"])
    store = made_here(dataset, tmp_path / "run", outside("function", f"{FOREIGN}:module"))
    certificate = certify(store, Choices())
    store.write_json("certificate.json", certificate)
    assert verify(read_certificate(store.path / "certificate.json")) == []
    claim = next(sentence for sentence in certificate["claim"] if "from outside" in sentence)
    assert f"{FOREIGN}:module" in claim and hashlib.sha256(FOREIGN.read_bytes()).hexdigest() in claim and "600 seconds" in claim
    assert any("not bit-for-bit" in sentence for sentence in certificate["assumptions"])
    for changed in ({"trainer": None}, {"trainer": certificate["inputs"]["trainer"] | {"seconds": 5.0}}):
        assert verify(certificate | {"inputs": certificate["inputs"] | changed})
    ensemble = Ensemble(str(store.path))
    assert np.array_equal(ensemble.evidence(store.states()), certificate["inputs"]["actions"]["counts"])
    answer = ensemble.answers(store.states()[:1])[0]
    assert sum(answer["votes"]) == INSTANCES
    ensemble.policies.close()
    # They vote in episodes, too.
    voted = certify(store, VOTE)
    assert verify(voted) == [] and voted["inputs"]["voted"]["kind"] == "votes" and -500 <= voted["results"]["voted"]["unpoisoned_mean"] < 0
    # A damaged block is found, and trained again; so is one whose hash is right and whose failures are not known.
    name = sorted(store.names())[0]
    path = store.path / "blocks" / name
    block = store.read(name)
    path.unlink()
    store.commit(dataclasses.replace(block, failed=block.failed + np.uint8(99)))
    assert store.read(name) is None
    store.commit(block)
    assert store.read(name).contents == block.contents
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    assert store.read(name) is None


@pytest.mark.slow
def test_objects_are_certified_but_not_served(recordings, tmp_path):
    store = made_here(load_dataset(recordings["cartpole"]), tmp_path / "run", outside("function", f"{FOREIGN}:ridge"))
    store.write_json("certificate.json", certify(store, Choices(inference="scores")))
    with pytest.raises(MucdError, match="25 of the 25 policies are objects"):
        Ensemble(str(store.path))
    with pytest.raises(MucdError, match="25 of the 25 policies are objects"):
        certify(store, VOTE)


def test_what_does_not_fit_is_refused_in_one_line(recordings, tmp_path, capfd):
    cartpole = recordings["cartpole"]
    for arguments, named in [
        (["--trainer", f"{FOREIGN}:ridge", "--mechanism", "gaussian"], "is not trained with noise"),
        (["--trainer", f"{FOREIGN}:ridge", "--bag-size", "2", "--encoder", str(FOREIGN)], "let it use the encoder itself"),
        (["--trainer-command", "python train.py {bag} {out}", "--mechanism", "gaussian"], "is not trained with noise"),
        (["--mechanism", "bag", "--bag-size", "2", "--trainer", f"{FOREIGN}:absent"], "no attribute 'absent'"),
        (["--mechanism", "bag", "--trainer", f"{FOREIGN}:ridge", "--hidden", "64"], "options of the package's learners"),
        (["--mechanism", "bag", "--trainer", f"{FOREIGN}:ridge", "--unit", "source"], "source"),
        (["--mechanism", "bag", "--trainer", f"{FOREIGN}:ridge", "--train-steps", "5"], "options of the package's learners"),
        (["--mechanism", "bag", "--trainer", f"{FOREIGN}:ridge", "--trainer-command", "x {bag} {out}"], "leave one of the two out"),
        (["--mechanism", "bag", "--trainer", "bc", "--train-seconds", "5"], "--train-seconds is for a trainer of yours"),
        (["--mechanism", "bag", "--trainer", f"{FOREIGN}:ridge", "--bag-format", "minari"], "--bag-format minari is for --trainer-command"),
        (["--mechanism", "bag", "--trainer", f"{FOREIGN}:ridge", "--train-memory", "0"], "--train-memory 0.0"),
        (["--mechanism", "bag", "--trainer", f"{FOREIGN}:ridge", "--runtime-env", str(tmp_path / "no.yaml")], "no.yaml cannot be read"),
    ]:
        assert main(["run", cartpole, *arguments, "--storage", str(tmp_path / "run")]) == 2
        message = capfd.readouterr().err
        assert named in message and message.count("\n") == 1 and not (tmp_path / "run").exists(), (arguments, message)


@pytest.mark.slow
def test_the_same_trainer_on_trusted_data_is_a_yardstick_and_one_that_fails_is_said(recordings, tmp_path, capfd, local_ray):
    trusted, folder = "cartpole/trusted-by-trainer-v0", tmp_path / "run"
    record("CartPole-v1", None, 400, 92, trusted)
    arguments = ["--mechanism", "bag", "--bag-size", "2", "--trainer", f"{FOREIGN}:of_little", "--trusted", trusted, "--instances", "11", "--held-out", "1", "--states", "5", "--storage", str(folder)]
    assert main(["run", recordings["cartpole"], *arguments]) == 0
    printed, certificate = capfd.readouterr().out, read_certificate(folder / "certificate.json")
    baselines = certificate["context"]["baselines"]
    assert verify(certificate) == [] and certificate["context"]["failures"] == 0 and certificate["context"]["trusted"]["name"] == trusted
    # On all of D it fails, and on less it does not.
    assert baselines["non_private_failure"] == "raised (ValueError: too much data)" and "non_private" not in baselines and baselines["trusted"] > 20
    assert "trained on all data      failed: raised (ValueError: too much data)" in printed and "above the policy trained on the trusted data alone" in printed
    assert "failed: raised (ValueError: too much data)" in (folder / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("bag_format", ["npz", "minari"])
def test_a_command_is_given_trusted_data_too(recordings, tmp_path, bag_format):
    """Of sources, whose key nobody asks of trusted data: whole as a bag of trajectories, in the same format; and one that fails on them is said."""
    operators, trusted, seen, policy = "cartpole/operators-of-a-command-v0", "cartpole/trusted-by-command-v0", tmp_path / "seen", tmp_path / "policy.pt"
    record("CartPole-v1", None, 600, 94, operators, operators=4, overwrite=True)
    record("CartPole-v1", None, 400, 93, trusted, overwrite=True)
    linear = torch.nn.Linear(4, 2)
    linear.weight.data, linear.bias.data = torch.tensor([[0.0, 0, -1, -1], [0.0, 0, 1, 1]]), torch.zeros(2)
    torch.jit.script(linear).save(policy)
    rows = {"npz": "import numpy; bag = numpy.load(sys.argv[1] + '/bag.npz'); found = str(bag['unit']), len(bag['rewards']), len(set(bag['units'].tolist()))",
            "minari": "import minari; bag = minari.load_dataset('bag-v0'); found = 'sources', bag.total_steps, len({int(episode['unit']) for episode in bag.storage.get_episode_metadata(range(len(bag)))})"}
    (tmp_path / "train.py").write_text(f"import shutil, sys\n{rows[bag_format]}\nprint(*found, file=open({str(seen)!r}, 'a'))\nassert {len(load_dataset(trusted))} != found[1] or not len(sys.argv) > 3\nshutil.copy({str(policy)!r}, sys.argv[2])\n")
    dataset = load_dataset(operators, source_key="operator")
    for fails in ("", " fails"):
        trainer = outside("command", f"{sys.executable} {tmp_path / 'train.py'} {{bag}} {{out}}{fails}", bag_format=bag_format)
        store = settled(dataset, tmp_path / f"run{fails}", trainer, trusted=trusted, unit="source", source_key="operator")
        settings, states = store.settings(), np.zeros((5, 4), np.float32)
        seen.write_text("")
        found = baselines(settings, training_units(settings, dataset), states, trusted=trusted_units(settings))
        told = [line.split() for line in seen.read_text().splitlines()[-2:]]
        assert [int(rows) for _, rows, _ in told] == [len(dataset), len(load_dataset(trusted))] and [int(units) for *_, units in told] == [4, load_dataset(trusted).trajectories]
        assert found["non_private"] > 20 and found["reference"] == [0] * 5
        assert ("trusted" in found, "trusted_failure" in found) == (not fails, bool(fails)) and (fails or found["trusted"] > 20)
    assert "AssertionError" in found["trusted_failure"]


def test_one_command_certifies_a_trainer_of_ones_own(recordings, tmp_path, capfd, local_ray):
    arguments = ["--mechanism", "bag", "--bag-size", "3", "--trainer", f"{FOREIGN}:ridge", "--instances", "15", "--held-out", "2", "--states", "10"]
    assert main(["run", recordings["cartpole"], *arguments, "--storage", str(tmp_path / "run"), "--json"]) == 0
    summary = json.loads(capfd.readouterr().out)
    assert summary["trainer"]["kind"] == "function" and summary["failures"] == 0 and summary["baselines"]["non_private"] > 20
    assert main(["verify", str(tmp_path / "run" / "certificate.json")]) == 0
    grow = ["grow", str(tmp_path / "run"), "--instances", "18"]
    for said, words in [
        ([], f"started only on your word: add --trainer {FOREIGN}:ridge"), (["--trainer", f"{FOREIGN}:crash"], "is not that of"), (["--trainer-command", f"{FOREIGN}:ridge"], "is not that of"),
    ]:
        assert main([*grow, *said]) == 2 and words in capfd.readouterr().err
    assert main([*grow, "--trainer", f"{FOREIGN}:ridge", "--json"]) == 0 and json.loads(capfd.readouterr().out)["instances"] == 18


def test_a_run_folder_starts_no_command_by_itself(recordings, tmp_path, capfd):
    """A stranger's folder: settings that name a command, which names no file and so has a hash that anybody knows."""
    command = f"touch {tmp_path}/started {{bag}} {{out}} {{seed}}"
    store = settled(load_dataset(recordings["cartpole"]), tmp_path / "run", None)
    settings = store.settings()
    trainer = Outside(kind="command", name=command, sha256=sha256_of("command", command), seconds=5.0, memory=1.0, bag_format="npz")
    store.write_json("settings.json", dataclasses.replace(settings, trainer=trainer, fit=None).to_dict())
    assert RunStore.open(tmp_path / "run").settings().trainer == trainer
    assert main(["grow", str(tmp_path / "run"), "--instances", "30"]) == 2 and "started only on your word: add --trainer-command 'touch" in capfd.readouterr().err
    assert not (tmp_path / "started").exists()
