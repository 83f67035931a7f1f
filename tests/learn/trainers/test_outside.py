"""Trainers from outside: what they get, what becomes of their policies, and that nothing that they do reaches further than their own instance."""

import contextlib
import dataclasses
import importlib.util
import io
import os
import signal
import sys
import textwrap
import zipfile
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.errors import MucdError
from mucd_ray.learn.trainers.artifacts import from_bytes
from mucd_ray.learn.trainers.given import GivenBag
from mucd_ray.learn.trainers.made_up import made_up_bag
from mucd_ray.learn.trainers.nursery import _run
from mucd_ray.learn.trainers.outside import FAILURES, Nursery, StoredPolicies, outside
from mucd_ray.learn.trainers.recorded import Recorded
from mucd_ray.mechanism.outside import from_values, to_values

ROOT = Path(__file__).parents[3]
FOREIGN = ROOT / "tests" / "foreign_trainers.py"
ZERO = np.zeros(1, int)
STATES = np.random.default_rng(0).uniform(-0.1, 0.1, (5, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def cartpole():
    return gymnasium.make("CartPole-v1")


@pytest.fixture(scope="module")
def bag(cartpole):
    return made_up_bag(cartpole, "trajectory")


def foreign():
    spec = importlib.util.spec_from_file_location("foreign_trainers", FOREIGN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def poisoned(bag, k):
    rewards = bag.rewards.copy()
    rewards[3] = 1000 + k
    return GivenBag(**{name: getattr(bag, name) for name in bag.__dataclass_fields__} | {"rewards": rewards})


def children(process):
    """Processes whose parent this one is."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            found += [status.parent.name] if f"\nPPid:\t{process}\n" in status.read_text(errors="replace") else []
    return found


def test_whatever_a_learner_does_is_a_result_of_its_own_and_nothing_of_it_stays(cartpole, bag):
    mischief, honest = foreign().MISCHIEF, foreign().ridge(bag, 0, "cpu")
    patient = outside("function", f"{FOREIGN}:gullible", seconds=60, memory=0.6)
    with Nursery(patient, cartpole, "trajectory") as nursery:
        for k, (_, cause) in enumerate(mischief):
            nursery.trainer = dataclasses.replace(patient, seconds=1.0) if cause == "too slow" else patient
            with nursery.learner(poisoned(bag, k), 0) as learner:
                # In the last state the last one dies.
                outputs = learner.outputs(np.vstack([STATES, [[0.1, 1.0, 0, 0]]]).astype(np.float32), ZERO)
                assert FAILURES[learner.failure] == cause and learner.why.startswith(cause) and len(learner.why) < 400, (k, learner.why)
                assert outputs.shape == (6, 2) and np.isnan(outputs).all() and learner.content == b""
            nursery.trainer = patient
            with nursery.learner(bag, 0) as learner:
                assert not learner.failure
                assert learner.outputs(STATES, ZERO).argmax(1).tolist() == [honest.act(row[None])[0] for row in STATES]
            assert not children(nursery._process.process.pid)
        with nursery.learner(Recorded.of(recorded(bag), "trajectory").bag(np.zeros(0, int), *nursery.spaces), 0) as learner:
            assert FAILURES[learner.failure] == "empty bag" and np.isnan(learner.outputs(STATES, ZERO)).all()


def recorded(bag, source_keys=None):
    return OfflineDataset.from_arrays(
        observations=bag.observations, next_observations=bag.next_observations, actions=bag.actions, rewards=bag.rewards, terminations=bag.terminated,
        truncations=bag.truncated, action_space=bag.action_space, observation_space=bag.observation_space, trajectory_starts=bag.starts,
        source_keys=source_keys,
    )


@pytest.mark.parametrize("unit", ["transition", "trajectory", "source"])
def test_a_bag_holds_its_own_units_as_recorded_in_their_order(cartpole, bag, unit):
    dataset = recorded(bag, ["a", "b", "a", "b", "b"])
    units = Recorded.of(dataset, unit)
    drawn = np.array([1, 0, 1] if unit == "source" else [3, 0, 3])
    given = GivenBag.from_npz(units.bag(drawn, cartpole.observation_space, cartpole.action_space).to_npz())
    rows = np.concatenate([np.arange(units.starts[unit], units.starts[unit] + units.lengths[unit]) for unit in drawn])
    assert np.array_equal(given.observations, units.observations[rows]) and given.observations.dtype == dataset.observations.dtype
    for ours, theirs in (("actions", "actions"), ("rewards", "rewards"), ("next_observations", "next_observations"), ("terminated", "terminations"), ("truncated", "truncations")):
        assert np.array_equal(getattr(given, ours), getattr(units, theirs)[rows])
    assert given.units.tolist() == ([0, 0, 0, 1, 1, 2, 2, 2] if unit == "source" else [0, 1, 2])
    if unit == "source":
        # Trajectories stay whole, each time that their source is drawn.
        assert sorted(map(len, given.trajectories)) == sorted(np.diff(bag.starts)[[1, 3, 4, 0, 2, 1, 3, 4]])
        return
    assert len(given) == len(rows) and given.unit == unit and given.action_space == cartpole.action_space and given.observation_space == cartpole.observation_space
    assert [len(trajectory) for trajectory in given.trajectories] == units.lengths[drawn].tolist()
    last = given.trajectories[-1]
    assert np.array_equal(last.observations, np.concatenate([given.observations[-len(last) :], given.next_observations[-1:]]))
    with pytest.raises(ValueError, match="read-only"):
        given.trajectories[0].rewards[0] = 5.0


def test_a_learner_is_told_a_seed_and_keeps_nothing(cartpole, bag):
    with Nursery(outside("function", f"{FOREIGN}:noisy"), cartpole, "trajectory") as nursery:
        found = []
        for seed in (1, 2, 1):
            with nursery.learner(bag, seed) as learner:
                found.append(learner.outputs(np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32), ZERO))
    assert np.array_equal(found[0], found[2]) and not np.array_equal(found[0], found[1])


@pytest.mark.parametrize("kind,name", [
    ("function", f"{FOREIGN}:module"), ("function", "jobs/trainers/forest.py:forest"), pytest.param("function", "jobs/trainers/torch_clone.py:clone", marks=pytest.mark.slow),
    pytest.param("command", f"{sys.executable} jobs/trainers/command.py {{bag}} {{out}} {{seed}}", marks=pytest.mark.slow),
])  # fmt: skip
def test_shipped_examples_make_policies_that_can_be_stored(cartpole, bag, kind, name, monkeypatch):
    monkeypatch.chdir(ROOT)
    with Nursery(outside(kind, name), cartpole, "trajectory") as nursery, nursery.learner(bag, 1) as learner:
        assert not learner.failure, learner.why
        states = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)
        alone, content = learner.outputs(states, ZERO), learner.content
    stored = StoredPolicies([content, b"", content], cartpole.observation_space, cartpole.action_space, memory=2.0)
    together = stored.outputs_of_all(states)
    assert np.array_equal(together[0], alone) and np.array_equal(together[2], alone) and np.isnan(together[1]).all()
    assert np.array_equal(stored.outputs(states[:2], np.array([2, 0])), alone[:2])
    stored.close()


@pytest.mark.parametrize("kind,name,complaint", [
    ("function", "no_such_module_at_all:train", "no module no_such_module_at_all"), ("function", f"{FOREIGN}:absent", "no attribute 'absent'"),
    ("function", f"{FOREIGN}:of_bags_alone", "too many positional arguments"), ("function", f"{FOREIGN}:always_fails", "raised .ValueError: this one never learns."),
    ("function", "train", "no name of a function"), ("function", "absent.py:train", "No such file"), ("command", "python train.py {bag}", "lacks {out}"), ("command", "'python", "no command"),
    ("command", "/no/such/program {bag} {out}", "No such file"), ("command", f"{sys.executable} -c 'import sys; sys.exit(\"I give up\")' {{bag}} {{out}}", "exit status 1: I give up"),
    ("command", "touch {bag} {out}.pt {out}.onnx", "2 files"), ("command", "cp {bag}/bag.npz {out}", "makes no policy of a made-up bag"),
])  # fmt: skip
def test_what_can_be_no_trainer_is_refused_before_any_bag(cartpole, kind, name, complaint):
    with pytest.raises(MucdError, match=complaint) as caught:
        Nursery(outside(kind, name), cartpole, "trajectory").close()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 800


READ = {
    "npz": "bag = np.load(folder / 'bag.npz'); rows = [bag[name] for name in names]",
    "minari": """
        import minari
        episodes = list(minari.load_dataset("bag-v0"))
        rows = [np.concatenate([e.observations[:-1] for e in episodes]), np.concatenate([e.observations[1:] for e in episodes])]
        rows += [np.concatenate([getattr(e, name) for e in episodes]) for name in ("actions", "rewards", "terminations", "truncations")]
        bag = {"units": [e["unit"] for e in minari.load_dataset("bag-v0").storage.get_episode_metadata(range(len(episodes)))],
               "starts": np.cumsum([0] + [len(e) for e in episodes])}""",
    "parquet": """
        import pyarrow.parquet
        table = pyarrow.parquet.read_table(folder / "bag.parquet")
        columns = ("observation", "next_observation", "action", "reward", "terminated", "truncated")
        kinds = [table.schema.field(name).type for name in columns]
        rows = [np.array(table[name].to_pylist(), getattr(kind, "value_type", kind).to_pandas_dtype()) for name, kind in zip(columns, kinds)]
        episode, unit = (table[name].to_numpy() for name in ("episode", "unit"))
        starts = np.flatnonzero(np.diff(episode, prepend=-1))
        bag = {"units": unit[starts], "starts": np.append(starts, len(episode))}
        assert b'"Discrete"' in table.schema.metadata[b"action_space"] or b'"Box"' in table.schema.metadata[b"action_space"]""",
}


@pytest.mark.parametrize("env_id", ["CartPole-v1", pytest.param("Pendulum-v1", marks=pytest.mark.slow)])
def test_a_command_finds_the_same_bag_in_every_format(tmp_path, env_id):
    environment = gymnasium.make(env_id)
    made_up = made_up_bag(environment, "source")
    bag = Recorded.of(recorded(made_up, ["a", "b", "a", "b", "b"]), "source").bag(np.array([1, 0]), environment.observation_space, environment.action_space)
    names = ("observations", "next_observations", "actions", "rewards", "terminated", "truncated")
    policy = tmp_path / "policy.pt"
    torch.jit.script(torch.nn.Linear(*environment.observation_space.shape, 2 if env_id == "CartPole-v1" else 1)).save(policy)
    for bag_format in READ if env_id == "CartPole-v1" else ("parquet",):
        program, seen = tmp_path / f"read_{bag_format}.py", tmp_path / f"{bag_format}.npz"
        program.write_text(textwrap.dedent(f"""
            import shutil
            import sys
            from pathlib import Path
            import numpy as np
            folder, names = Path(sys.argv[1]), {names}
        """) + textwrap.dedent(READ[bag_format]) + textwrap.dedent(f"""
            np.savez({str(seen)!r}, *rows, units=bag["units"], starts=bag["starts"])
            shutil.copy({str(policy)!r}, sys.argv[2])
        """))
        with Nursery(outside("command", f"{sys.executable} {program} {{bag}} {{out}}", bag_format=bag_format), environment, "source") as nursery:
            with nursery.learner(bag, 0) as learner:
                assert not learner.failure, learner.why
                found = np.load(seen)
                for k, name in enumerate(names):
                    assert np.array_equal(found[f"arr_{k}"].reshape(getattr(bag, name).shape), getattr(bag, name)) and found[f"arr_{k}"].dtype == getattr(bag, name).dtype, (bag_format, name)
                assert np.array_equal(found["units"], bag.units) and np.array_equal(found["starts"], bag.starts)
            with nursery.learner(Recorded.of(recorded(bag), "trajectory").bag(np.zeros(0, int), *nursery.spaces), 0) as learner:
                assert FAILURES[learner.failure] == "empty bag"


def test_a_format_is_for_commands_and_the_usual_one_is_not_written_down():
    with pytest.raises(MucdError, match="--bag-format 'csv'"):
        outside("command", "true {bag} {out}", bag_format="csv")
    with pytest.raises(MucdError, match="a function is given arrays"):
        outside("function", f"{FOREIGN}:ridge", bag_format="minari")
    usual, other = (outside("command", "true {bag} {out}", bag_format=name) for name in ("npz", "parquet"))
    assert "bag_format" not in to_values(usual) and [from_values(to_values(trainer)) for trainer in (usual, other)] == [usual, other]
    for values in (to_values(other) | {"bag_format": "npz"}, to_values(other) | {"bag_format": 3}, to_values(other) | {"format": "npz"}):
        with pytest.raises(MucdError):
            from_values(values)


def test_a_file_that_has_changed_is_refused(cartpole, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FOREIGN.read_text())
    trainer = outside("function", f"{path}:ridge")
    path.write_text(FOREIGN.read_text() + "\n")
    with pytest.raises(MucdError, match="not those with which the run began"):
        Nursery(trainer, cartpole, "trajectory")


def test_limits_outside_their_range_are_refused():
    for limits in ({"seconds": 0.0}, {"seconds": float("nan")}, {"memory": 0.1}, {"memory": float("inf")}):
        with pytest.raises(MucdError, match=f"--train-{next(iter(limits))}"):
            outside("function", f"{FOREIGN}:ridge", **limits)


def _archive(line: str, rename=lambda name: name) -> bytes:
    """A module's TorchScript, into whose text a line was put by hand."""
    class Two(torch.nn.Module):
        def forward(self, x):
            y = torch.ones(2)
            return y + x.sum()

    file, changed = io.BytesIO(), io.BytesIO()
    torch.jit.save(torch.jit.script(Two()), file)
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(changed, "w") as target:
        for name in source.namelist():
            text = source.read(name)
            target.writestr(rename(name), text.replace(b"    y = ", f"    {line}\n    y = ".encode()) if name.endswith(".py") else text)
    return changed.getvalue()


class Hooked(torch.nn.Module):
    def forward(self, x):
        return x + 1


def hook(self, given: tuple[torch.Tensor], output: torch.Tensor):
    y = torch.ones(3)
    return output + y.sum()


def test_the_hooks_of_torchscript_are_looked_at_too(tmp_path):
    module, file, changed = Hooked(), io.BytesIO(), io.BytesIO()
    module.register_forward_hook(hook)
    torch.jit.save(torch.jit.script(module), file)
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(changed, "w") as target:
        for name in source.namelist():
            text, line = source.read(name), f'_9 = ops.aten.save(torch.ones([3]), "{tmp_path}/owned")'
            target.writestr(name, text.replace(b"    y = ", f"    {line}\n    y = ".encode()) if name.endswith(".py") else text)
    with pytest.raises(ValueError, match="aten::save, which is not allowed"):
        from_bytes(changed.getvalue(), gymnasium.spaces.Box(-1, 1, (1,)))(np.zeros((1, 1), np.float32))
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("line", ['_9 = torch.save(torch.ones([3]), "{}")', '_9 = torch . save(torch.ones([3]), "{}")', '_9 = ops.aten.save(torch.ones([3]), "{}")', '_9 = torch . from_file("{}", False, 5)', '_9 = ops.aten.from_file("{}", False, 5)'])
@pytest.mark.parametrize("rename", [str, lambda name: name.replace("/code/", "/CODE/")], ids=["code", "CODE"])
def test_torchscript_that_reaches_for_files_is_refused_however_it_is_spelt(tmp_path, line, rename):
    assert from_bytes(_archive("_9 = torch.ones([3])"), gymnasium.spaces.Discrete(2))(np.zeros((1, 4), np.float32)).tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="not allowed in a policy|no TorchScript archive"):
        from_bytes(_archive(line.format(tmp_path / "owned"), rename), gymnasium.spaces.Discrete(2))(np.zeros((1, 4), np.float32))
    assert not (tmp_path / "owned").exists()


def test_nothing_waits_for_what_a_command_leaves_running(tmp_path):
    _run(["sh", "-c", f"sleep 300 & echo $! > {tmp_path}/left"])
    # It holds the output still, and raises where it is gone.
    os.kill(int((tmp_path / "left").read_text()), signal.SIGKILL)
