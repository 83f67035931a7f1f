"""One hostile example of each kind of fault in docs/files.md that a run folder, a certificate or a study may hold; datasets have theirs in tests/data."""

import copy
import functools
import json
import operator
import os
import struct
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
from safetensors.numpy import save

from mucd_ray.certify.file.certificate import read_certificate
from mucd_ray.cli import main
from mucd_ray.data.environments.cards import card_for, load_card
from mucd_ray.learn.learner import Learner
from mucd_ray.learn.trainers.built_in import Fit
from mucd_ray.mechanism.gaussian.mechanism import Mechanism
from mucd_ray.service.runs.session import _states_of_file
from mucd_ray.service.runs.settings import RunSettings
from mucd_ray.service.storage import store as store_module
from mucd_ray.service.storage.store import Block, RunStore
from mucd_ray.service.tuning.trial import Question, begun_points
from mucd_ray.service.tuning.tuned import Origin, Tuned, read_tuned

SETTINGS = RunSettings(
    dataset="d", fingerprint="f", units=100, card=card_for("CartPole-v1"), actions=2, dimensions=0, action_bounds=None, declared_size=100, size_margin=None, states=7,
    mechanism=Mechanism(sample_rate=0.1, noise_multiplier=3.0, clip_norm=1.0, steps=5, normaliser=10.0), learner=Learner(learning_rate=1.0),
)
HOSTILE_JSON = [
    b"[" * 100_000, b'{"a": ' * 5000 + b"1" + b"}" * 5000, b'{"a": ' + b"9" * 5000 + b"}", b'{"a": 1e999}', b'{"a": NaN}', b'{"a": 1, "a": 2}', b"\xff\xfe", b"", b"nul",
    b'{"a": "' + b"x" * (1 << 26) + b'"}',
]
HUGE_NPY = b"\x93NUMPY\x01\x00" + struct.pack("<H", 64) + b"{'descr':'<f8','fortran_order':False,'shape':(1099511627776,)}".ljust(63) + b"\n"


@pytest.fixture
def store(tmp_path):
    return RunStore.create_or_open(tmp_path / "run", SETTINGS)


SEARCH = Question(
    environment="CartPole-v1", mechanism="gaussian", unit="transition", algorithms=("bc",), how=None, card={}, units=1000, fraction=0.01, signal_budget=150.0, certified_units=None, instances=100,
    most_instances=8, seed=0, code="", certified_noise=None, discrete=True, source_key=None, trainer=None,
)


@pytest.mark.parametrize("content", HOSTILE_JSON, ids=range(len(HOSTILE_JSON)))
def test_json_of_another_kind(store, tmp_path, refusal, content):
    for name in ("settings.json", "certificate.json", "summary.json", "live.json", "baselines.json"):
        (store.path / name).write_bytes(content)
    (tmp_path / "trials/a").mkdir(parents=True)
    (tmp_path / "trials/a/point.json").write_bytes(content)
    file = store.path / "certificate.json"
    for call, *arguments in (
        (store.settings,), (store.certificate,), (store.read_json, "summary.json"), (store.read_json, "live.json"), (store.read_json, "baselines.json"),
        (read_certificate, file), (read_tuned, file), (begun_points, tmp_path, SEARCH),
    ):
        assert ".json" in refusal(call, *arguments)
    for command in (["verify", str(file)], ["report", str(store.path)], ["compare", str(store.path)], ["run", "d-v0", "--storage", "x", "--tuned", str(file)]):
        assert main(command) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"card": None}, {"card": {"env_id": ["x"]}}, {"card": card_for("CartPole-v1").to_dict() | {"observation_shape": [1 << 30, 1 << 30]}}, {"mechanism": {"steps": 10}},
        {"mechanism": 5}, {"learner": []}, {"action_bounds": 5}, {"assumptions": 5}, {"unknown": 1},
        {"dataset": None}, {"states": 2.5}, {"states": 10**12}, {"held_out": 10**30}, {"rollouts": 10**9}, {"units": "100"}, {"version": ["x"]}, {"actions": 0, "dimensions": 1, "action_bounds": [[]]},
    ],
)
def test_settings_of_another_kind(store, refusal, change):
    (store.path / "settings.json").write_text(json.dumps(SETTINGS.to_dict() | change))
    assert "settings.json cannot be read" in refusal(store.settings)


TUNED = Tuned(
    environment="CartPole-v1", unit="transition", how=Origin(kind="simulator", name="x", fingerprint="f", units=100, trials=3), learner=Learner(learning_rate=1.0, hidden=(4,)),
    sample_rate=0.1, steps=10, clip_norm=1.0, signal_budget=100.0,
).to_dict()
TUNED_BAG = {name: value for name, value in TUNED.items() if name not in ("sample_rate", "steps", "clip_norm", "signal_budget")}
TUNED_BAG |= {"format": "mucd-tuned-bag/1", "unit": "trajectory", "kind": "bag", "bag_size": 3, "fit": asdict(Fit())}


def places(values, *path):
    """Of every value that is no list or object, where it stands."""
    if isinstance(values, dict | list):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from places(value, *path, key)
    else:
        yield path


@pytest.mark.parametrize("wrong", [True, "1", 10**299, [1], {}], ids=["true", "text", "huge", "list", "object"])
@pytest.mark.parametrize(("values", "read"), [(SETTINGS.card.to_dict(), load_card), (SETTINGS.to_dict(), None), (TUNED, read_tuned), (TUNED_BAG, read_tuned)], ids=["card", "settings", "tuned", "tuned-bag"])
def test_every_field_takes_its_own_type_alone(store, refusal, tmp_path, values, read, wrong):
    """Not true for 1, not "1" for 1, no whole number that no double holds; and what is refused is not quoted at length."""
    file = store.path / "settings.json" if read is None else tmp_path / "values.json"
    for *way, last in places(values):
        changed = copy.deepcopy(values)
        place = functools.reduce(operator.getitem, way, changed)
        # Where there is null, a text may be allowed.
        if type(wrong) is not int and type(place[last]) is type(wrong) or (place[last], wrong) == (None, "1") or way[-1:] == ["make_kwargs"]:
            continue
        place[last] = wrong
        file.write_text(json.dumps(changed))
        words = refusal(*((store.settings,) if read is None else (read, file)))
        assert len(words) < 400, (way, last, words)


def test_states_of_another_kind(store, tmp_path, refusal):
    for content in (HUGE_NPY, b"\x80\x04N.", b"PK\x03\x04", b""):
        (store.path / "states.npy").write_bytes(content)
        assert "states.npy cannot be read" in refusal(store.states)
        (tmp_path / "mine.npy").write_bytes(content)
        assert "mine.npy cannot be read" in refusal(_states_of_file, tmp_path / "mine.npy", SETTINGS.card)
    np.save(tmp_path / "objects.npy", np.array([os.system, 1], object), allow_pickle=True)
    assert "cannot be read" in refusal(_states_of_file, tmp_path / "objects.npy", SETTINGS.card)
    np.savez(tmp_path / "several.npz", np.zeros(4))
    assert "cannot be read" in refusal(_states_of_file, tmp_path / "several.npz", SETTINGS.card)


@pytest.mark.parametrize("states", [np.zeros((3, 4)), np.zeros((7, 2)), np.zeros(7), np.zeros((0, 1 << 40)), np.float64(1)])
def test_states_of_another_shape(store, refusal, states):
    np.save(store.path / "states.npy", states)
    assert "it holds no 7 observations of shape (4,)" in refusal(store.states)


@pytest.mark.parametrize("values", [5, [], {"reference": "x"}, {"reference": {"a": 1}}, {"reference": [[1]]}, {"non_private": "x"}, {"behaviour": [1]}, {"best_constant_action": 5}])
def test_baselines_of_another_kind(store, refusal, values):
    store.write_json("baselines.json", values)
    assert "baselines.json is not as this version writes it" in refusal(store.baselines)


def test_names_that_only_look_like_numbers(store):
    """Of folders as anybody may have filled them: digits of other scripts, more of them than a run has names for, line ends."""
    (store.path / "blocks").mkdir()
    for folder in ("targets", "looks"):
        (store.path / folder).mkdir()
        for name in ("\u00b2", "\u0663", "9" * 30, "9" * 200, "-0000001", "0000_001", "00000000", "00000040", "00000050\n"):
            (store.path / folder / name).touch()
    for name in ("block-00000000-00000\u0662.safetensors", "block-00000000-000002.safetensors\n"):
        (store.path / "blocks" / name).touch()
    assert store.targets() == store.looks() == [40] and store.names() == []


def block(**changes):
    arrays = {"returns": np.zeros(2), "actions": np.zeros((2, 7), np.int16), "levels": np.zeros((2, 7, 2), np.uint8), "weight": np.zeros((2, 4, 2), np.float32)}
    return arrays | changes


@pytest.mark.parametrize(
    "changes",
    [
        {"returns": np.zeros((2, 1))}, {"returns": np.zeros(2, np.int64)}, {"returns": np.array(1.0)}, {"actions": np.zeros((2, 7))}, {"actions": np.zeros((3, 7), np.int16)},
        {"levels": np.zeros((2, 14), np.uint8)}, {"levels": np.zeros((2, 7, 2))}, {"actions": np.zeros((2, 1), np.int16)},
        {"actions": np.zeros((2, 8), np.int16)}, {"levels": np.zeros((2, 7, 3), np.uint8)}, {"levels": np.zeros((2, 8, 2), np.uint8)}, {"levels": np.full((2, 7, 2), 201, np.uint8)},
        {"returns": np.zeros(3)}, {"weight": np.zeros((1, 4, 2), np.float32)}, {"weight": np.zeros((2, 4), np.int64)},
    ],
)
def test_blocks_with_other_arrays_and_a_fitting_digest_are_damaged(store, monkeypatch, changes):
    """The digest finds accidents. An attacker computes it as we do, so what was digested is checked, too."""
    arrays = block(**changes)
    forged = Block(first=0, returns=arrays["returns"], actions=arrays["actions"], levels=arrays["levels"], parameters={"weight": arrays["weight"]})
    name = "block-00000000-000002.safetensors"
    monkeypatch.setattr(store_module, "block_name", lambda instances: name)
    monkeypatch.setattr(Block, "instances", range(2))
    store.commit(forged)
    assert (store.path / "blocks" / name).exists() and store.read(name) is None and not (store.path / "blocks" / name).exists()
    good = block()
    store.commit(Block(first=0, returns=good["returns"], actions=good["actions"], levels=good["levels"], parameters={"weight": good["weight"]}))
    assert store.read(name) is not None


def test_safetensors_of_another_kind_are_damaged(store):
    path = store.path / "blocks/block-00000000-000002.safetensors"
    path.parent.mkdir()
    header = lambda text: struct.pack("<Q", len(text)) + text
    for content in (
        struct.pack("<Q", (1 << 64) - 1) + b"{}", struct.pack("<Q", 1 << 40), b"\0" * 8, header(b"[" * 100_000), header(b"[]"), header(b'{"__metadata__": 5}'),
        header(b'{"__metadata__": {"a": 5}}'), header(b'{"returns": {"dtype": "F64", "shape": [1099511627776], "data_offsets": [0, 8796093022208]}}'),
        header(b'{"returns": {"dtype": "F64", "shape": [4294967296, 4294967296], "data_offsets": [0, 0]}}'),
        header(b'{"returns": {"dtype": "BF16", "shape": [0], "data_offsets": [0, 0]}}'), save({"other": np.zeros(3)}),
    ):
        path.write_bytes(content)
        assert store.read(path.name) is None and not path.exists(), content[:80]


@pytest.mark.parametrize("point", [{}, 5, "x", {"hidden": "linear"}, {"hidden": "nope"}, {"steps": "x"}, {"steps": 2.5}, {"more": 1}])
def test_points_of_another_search(tmp_path, refusal, point):
    good = {"sample_rate": 0.1, "steps": 100, "clip_norm": 0.1, "learning_rate": 30.0, "average": 0.5, "hidden": "linear"}
    (tmp_path / "trials/a").mkdir(parents=True)
    file = tmp_path / "trials/a/point.json"
    file.write_text(json.dumps({"began": 1, "point": good}))
    assert begun_points(tmp_path, SEARCH) == [good]
    changed = good | point if isinstance(point, dict) and point and point != {"hidden": "linear"} else point
    file.write_text(json.dumps({"began": 1, "point": changed}))
    assert "point.json cannot be read" in refusal(begun_points, tmp_path, SEARCH)


def test_files_that_lead_elsewhere_or_never_end(store, tmp_path, refusal):
    good = (store.path / "settings.json").read_bytes()
    (tmp_path / "elsewhere.json").write_bytes(good)
    (store.path / "settings.json").unlink()
    (store.path / "settings.json").symlink_to(tmp_path / "elsewhere.json")
    assert "leads out of" in refusal(store.settings)
    (store.path / "settings.json").unlink()
    (store.path / "settings.json").symlink_to("/dev/zero")
    assert "leads out of" in refusal(store.settings)
    (store.path / "settings.json").unlink()
    os.mkfifo(store.path / "settings.json")
    assert "is not a regular file" in refusal(store.settings)
    for read in (read_certificate, read_tuned):
        assert "is not a regular file" in refusal(read, "/dev/zero")
    for name in ("live.json", "settings.json"):
        (store.path / name).unlink(missing_ok=True)
        (store.path / name).symlink_to(name)
    assert "leads back to itself" in refusal(store.read_json, "live.json") and "leads back to itself" in refusal(store.settings)
    (store.path / "plots").symlink_to("plots")
    assert "leads back to itself" in refusal(store.write_json, "plots/x", 1)
    with open(tmp_path / "large.json", "wb") as file:
        file.truncate(1 << 40)
    for name, read in (("live.json", lambda: store.read_json("live.json")), ("settings.json", store.settings), ("certificate.json", store.certificate)):
        (store.path / name).unlink(missing_ok=True)
        with open(store.path / name, "wb") as file:
            file.truncate((1 << 26) + 1)
        assert "has 67,108,865 bytes" in refusal(read)
    for read in (read_certificate, read_tuned):
        assert "at most 67,108,864 are read" in refusal(read, tmp_path / "large.json")


def test_nothing_is_written_through_a_link_out_of_the_folder(store, tmp_path, refusal):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "return_bound.png").write_text("mine")
    (store.path / "plots").symlink_to(victim)
    (store.path / "targets").symlink_to(victim)
    storage = store.storage
    assert "leads out of" in refusal(storage.replace, "plots/return_bound.png", b"theirs")
    assert "leads out of" in refusal(store.add_target, 5)
    assert "leads out of" in refusal(storage.move, "settings.json", "plots/settings.json")
    assert "leads out of" in refusal(storage.move, "plots/return_bound.png", "settings.json")
    assert "leads out of" in refusal(storage.remove, "plots/return_bound.png")
    assert {path.name: path.read_text() for path in victim.iterdir()} == {"return_bound.png": "mine"}


@pytest.mark.parametrize("values", [{}, [], 5, None, {"inputs": 5}, {"inputs": {}, "results": []}, {"finished": "no", "condition": None, "keeps": 5, "seen": "now", "run": ["x"]}])
def test_json_that_is_not_what_the_package_writes_is_one_line(store, capfd, values):
    for name in ("summary.json", "live.json", "baselines.json"):
        store.write_json(name, values)
    store.write_json("certificate.json", values | {"format": "mucd-certificate/4"} if isinstance(values, dict) else values)
    store.write_json("drivers/one", values)
    for command in (["report"], ["compare"], ["watch", "--once"], ["verify"], ["serve"]):
        name, *more = command
        place = str(store.path / "certificate.json") if name == "verify" else str(store.path)
        status = main([name, place, *more])
        captured = capfd.readouterr()
        assert status == 2 or name == "verify" and status == 1, (name, captured)
        assert "Traceback" not in captured.err and len(captured.err.splitlines()) <= 1, captured.err


@pytest.mark.parametrize("change", [{"env_id": "chosen_by_a_folder:CartPole-v1"}, {"env_id": "GymV21Environment-v0", "make_kwargs": {"env_id": "chosen_by_a_folder:CartPole-v1"}}])
def test_the_card_of_a_run_folder_makes_nothing_unless_the_user_gives_it(tmp_path, monkeypatch, capfd, change):
    """A module that tells when it is imported: by the id itself, and by an environment that makes the one that its arguments name."""
    (tmp_path / "chosen_by_a_folder.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    values = SETTINGS.to_dict()
    RunStore.create_or_open(tmp_path / "run", RunSettings.from_dict(values | {"card": values["card"] | change}))
    (tmp_path / "other.json").write_text(json.dumps(values["card"]))
    (tmp_path / "mine.json").write_text(json.dumps(values["card"] | change))
    run = str(tmp_path / "run")
    for command in (["grow", run, "--instances", "100"], ["certify", run], ["report", run], ["compare", run], ["watch", run, "--once"], ["serve", run], ["run", "d-v0", "--storage", run]):
        assert main(command) == 2
    assert main(["grow", run, "--instances", "100", "--card", str(tmp_path / "other.json")]) == 2
    errors = capfd.readouterr().err.splitlines()
    assert "made only on your word: give the file with which you began the run, --card FILE" in errors[0] and "is not that of" in errors[-1]
    # The user's word: what is refused now comes after it.
    assert main(["grow", run, "--instances", "100", "--card", str(tmp_path / "mine.json")]) == 2
    assert "dataset 'd' is not among" in capfd.readouterr().err
    assert not (tmp_path / "executed").exists()


SPARSE = 1 << 31
# The name of a block says how many instances it has, and is anybody's, too.
SPARSE_NAMES = [
    "secret", "secret.sha256", "encoder", "states.npy", "failures/died", "certificate.json", "drivers/one", "blocks/block-00000000-000002.safetensors", "blocks/block-00000002-999999.safetensors",
    "parts/block-00000000-000002.safetensors", "voted/0123456789abcdef-000000.json",
]
READ_ALL = """
import resource, sys
from mucd_ray.errors import MucdError
from mucd_ray.service.storage.store import RunStore
from mucd_ray.service.watching.live import drivers
store, full = RunStore.open(sys.argv[1]), len(sys.argv) > 2
calls = [store.secret, store.encoder, store.states, store.certificate, store.failure_words, lambda: drivers(store), lambda: store.read_json("voted/0123456789abcdef-000000.json")]
for call in calls:
    try:
        found = call()
        assert not full or call == store.failure_words and "has 2,147,483,648 bytes" in found["died"], call
    except MucdError as error:
        assert not full or "2,147,483,648" in str(error) and "\\n" not in str(error), error
for of in (store, store.of_parts()):
    assert all(of.read(name) is None for name in of.names()) and of.names() == []
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_sparse_files_are_not_read(store, tmp_path):
    """They cost their maker nothing, and would take as much memory as they say they have."""
    def peak(*more):
        result = subprocess.run([sys.executable, "-c", READ_ALL, str(store.path), *more], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return int(result.stdout)

    untouched = peak()
    for name in SPARSE_NAMES:
        (store.path / name).parent.mkdir(exist_ok=True)
        with open(store.path / name, "wb") as file:
            file.truncate(SPARSE)
    assert peak("full") < untouched + 150_000
    assert sorted(path.name for path in (store.path / "blocks").iterdir()) == ["block-00000000-000002.damaged", "block-00000002-999999.damaged"]


def test_sparse_blocks_whose_header_fits_them(store):
    """By the settings a block has as many numbers as its instances, whatever a header says."""
    path = store.path / "blocks/block-00000000-000002.safetensors"
    path.parent.mkdir()
    header = json.dumps({"parameters.0": {"dtype": "F32", "shape": [2, 1 << 28], "data_offsets": [0, 1 << 31]}}).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + (1 << 31))
    assert store.read(path.name) is None and not path.exists()
    path.with_suffix(".damaged").unlink()
    # One of a network larger than what is read at first is whole again.
    wide = RunStore.create_or_open(store.path.with_name("wide"), replace(SETTINGS, states=50_000))
    wide.write_states(np.zeros((50_000, 4), np.float32))
    nothing = {"returns": np.zeros(9), "actions": np.ones((9, 50_000), np.int16), "levels": np.zeros((9, 50_000, 2), np.uint8)}
    assert np.array_equal(wide.read(wide.commit(Block(first=0, **nothing, parameters={}))).actions, nothing["actions"])
