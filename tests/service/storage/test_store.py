import os
import stat
import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mucd_ray.data.environments.cards import card_for
from mucd_ray.errors import MucdError
from mucd_ray.learn.learner import Learner
from mucd_ray.mechanism.gaussian.mechanism import Mechanism
from mucd_ray.service.runs.settings import RunSettings, check_code
from mucd_ray.service.runs.tally import Tally
from mucd_ray.service.storage.policies import stored_parameters
from mucd_ray.service.storage.store import Block, RunStore

SETTINGS = RunSettings(
    dataset="d", fingerprint="f", units=100, card=card_for("CartPole-v1"), actions=2, dimensions=0, action_bounds=None, declared_size=100, size_margin=None, states=7,
    mechanism=Mechanism(sample_rate=0.1, noise_multiplier=3.0, clip_norm=1.0, steps=5, normaliser=10.0), learner=Learner(learning_rate=1.0),
)


def block(first, count):
    rng = np.random.default_rng(first)
    return Block(
        first=first, returns=rng.random(count), actions=rng.integers(0, 2, (count, 7)).astype(np.int16),
        levels=rng.integers(0, 201, (count, 7, 2)).astype(np.uint8),
        parameters={"0.weight": rng.random((count, 4, 2)).astype(np.float32)},
    )


@pytest.fixture
def store(tmp_path):
    return RunStore.create_or_open(tmp_path / "run", SETTINGS)


def test_settings_and_secret_come_back(store):
    again = RunStore.create_or_open(store.path, SETTINGS)
    assert again.settings() == SETTINGS and again.secret() == store.secret() and len(store.secret()) == 32
    assert stat.S_IMODE(os.stat(store.path / "secret").st_mode) == 0o600


def test_values_come_back_whatever_their_texts_look_like_and_rows_of_numbers_take_a_line(store):
    values = {"[\n1,\n 2]": [[], [1, 2], [-1.5e300, None, True], [[3], []], ["[\n 1,\n 2\n]", "a,  b"], {"x": [0.1]}], "y": "[\\n1 ,  2]"}
    store.write_json("values.json", values)
    assert store.read_json("values.json") == values and "[1, 2]" in (store.path / "values.json").read_text()


def test_a_block_comes_back_bit_for_bit_and_the_first_commit_wins(store):
    written = block(3, 4)
    name = store.commit(written)
    before = (store.path / "blocks" / name).read_bytes()
    store.commit(Block(first=3, returns=np.zeros(4), actions=written.actions, levels=written.levels, parameters=written.parameters))
    assert (store.path / "blocks" / name).read_bytes() == before
    read = store.read(name)
    assert read.instances == range(3, 7)
    assert np.array_equal(read.returns, written.returns) and np.array_equal(read.actions, written.actions)
    assert np.array_equal(read.levels, written.levels) and read.levels.dtype == np.uint8
    assert np.array_equal(read.parameters["0.weight"], written.parameters["0.weight"])
    assert not [name for name in os.listdir(store.path / "blocks") if name.startswith(".tmp")]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "text"])
def test_a_damaged_block_is_moved_aside_and_only_its_instances_are_missing(store, damage):
    names = [store.commit(block(first, 5)) for first in (0, 5, 10)]
    path = store.path / "blocks" / names[1]
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-3] ^= 1
    path.write_bytes({"flip": content, "cut": content[: len(content) // 2], "empty": b"", "text": b"hello" * 100}[damage])
    assert store.missing(15, 100) == [range(5, 10)]
    assert store.names() == [names[0], names[2]]
    store.commit(block(5, 5))
    assert store.missing(15, 100) == []


@settings(max_examples=50, deadline=None)
@given(done=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=8), size=st.integers(1, 20), wanted=st.integers(1, 50))
def test_missing_blocks_cover_exactly_what_is_not_stored(tmp_path_factory, done, size, wanted):
    store = RunStore.create_or_open(tmp_path_factory.mktemp("run") / "r", SETTINGS)
    stored = set()
    for first, count in done:
        store.commit(block(first, count))
        stored |= set(range(first, first + count))
    missing = store.missing(wanted, size)
    assert all(1 <= len(part) <= size for part in missing)
    assert sorted(i for part in missing for i in part) == [i for i in range(wanted) if i not in stored]


@pytest.mark.parametrize("attempt", range(10))
def test_writers_at_the_same_moment_agree(tmp_path, attempt):
    results = []

    def write():
        store = RunStore.create_or_open(tmp_path / "run", SETTINGS)
        store.commit(block(0, 3))
        results.append((store.secret(), store.write_states(np.random.default_rng().random((7, 4))).tobytes()))

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8 and len(set(results)) == 1


def test_foreign_and_different_folders_are_refused_untouched(store, tmp_path):
    other = replace(SETTINGS, units=101)
    with pytest.raises(MucdError, match="units: 100 there, 101 now"):
        RunStore.create_or_open(store.path, other)
    with pytest.raises(MucdError, match="seed"):
        RunStore.create_or_open(store.path, SETTINGS, secret=b"1" * 32)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(MucdError, match="not a run folder"):
        RunStore.create_or_open(tmp_path / "mine", SETTINGS)
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]
    with pytest.raises(MucdError, match="cannot be written"):
        RunStore.create_or_open("/proc/run", SETTINGS)
    with pytest.raises(MucdError, match="not a run folder"):
        RunStore.open(tmp_path)


def test_a_new_run_takes_no_secret_or_block_that_was_there_before(tmp_path, monkeypatch):
    monkeypatch.setattr("mucd_ray.service.storage.store.SECONDS_TO_SETTINGS", 0.2)
    planted, blocks, markers = (tmp_path / name for name in ("planted", "blocks", "markers"))
    planted.mkdir()
    planted.joinpath("secret").write_text("07" * 32)
    planted.joinpath("secret").chmod(0o600)
    planted.joinpath("secret.sha256").write_text("whatever")
    assert RunStore.create_or_open(planted, SETTINGS).secret() != bytes.fromhex("07" * 32)
    (blocks / "blocks").mkdir(parents=True)
    (blocks / "blocks" / "block-00000000-000004.safetensors").write_bytes(b"votes of a stranger")
    with pytest.raises(MucdError, match="not empty and not a run folder"):
        RunStore.create_or_open(blocks, SETTINGS)
    (markers / "blocks").mkdir(parents=True)
    assert RunStore.create_or_open(markers, SETTINGS).settings() == SETTINGS


def test_a_secret_that_others_can_read_is_refused(store):
    (store.path / "secret").chmod(0o644)
    with pytest.raises(MucdError, match="not private"):
        store.secret()


def test_a_block_of_another_run_is_refused(store, tmp_path):
    other = RunStore.create_or_open(tmp_path / "other", replace(SETTINGS, units=101))
    name = other.commit(block(0, 2))
    (store.path / "blocks").mkdir()
    (store.path / "blocks" / name).write_bytes((other.path / "blocks" / name).read_bytes())
    with pytest.raises(MucdError, match="another run"):
        store.read(name)


def test_any_flipped_bit_makes_a_block_damaged_and_nothing_else(store):
    name = store.commit(block(0, 1))
    path = store.path / "blocks" / name
    content = path.read_bytes()
    for place in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        assert store.read(name) is None and not path.exists(), place


def test_a_block_of_an_earlier_version_is_named_and_stays(store):
    name = store.commit(block(0, 4))
    path = store.path / "blocks" / name
    path.write_bytes(path.read_bytes().replace(b'"digest"', b'"sha256"'))
    with pytest.raises(MucdError, match=f"{name} was written by an earlier version"):
        store.read(name)
    assert path.exists()


def test_a_block_that_another_reader_has_mended_meanwhile_stays(store, monkeypatch):
    name = store.commit(block(0, 4))
    good, read = (store.path / "blocks" / name).read_bytes(), store.storage.beginning
    contents = [good[:-1] + b"?"]
    monkeypatch.setattr(store.storage, "beginning", lambda file, most: (len(good), contents.pop()) if contents else read(file, most))
    assert store.read(name) is None and store.names() == [name]
    contents.append(good[:-1] + b"?")
    (store.path / "blocks" / name).unlink()
    assert store.read(name) is None


def test_a_block_copied_to_other_instances_is_damaged(store):
    """Otherwise the same instances would count twice as independent ones."""
    name = store.commit(block(0, 4))
    os.link(store.path / "blocks" / name, store.path / "blocks" / "block-00000004-000004.safetensors")
    assert [list(part) for part in store.missing(8, 8)] == [[4, 5, 6, 7]]


def test_another_secret_is_refused(store):
    (store.path / "secret").write_text("07" * 32)
    with pytest.raises(MucdError, match="not the one with which the run began"):
        store.secret()


@pytest.mark.parametrize("name, content, message", [("baselines.json", b'{"reference": [', "delete it"), ("baselines.json", b'{"a": NaN}', "NaN"), ("states.npy", b"", "restore it")])
def test_damaged_side_files_are_named(store, name, content, message):
    (store.path / name).write_bytes(content)
    with pytest.raises(MucdError, match=f"{name}.*{message}"):
        store.states() if name == "states.npy" else store.read_json(name)


def test_a_folder_that_file_systems_and_desktops_have_been_in_is_empty(tmp_path):
    (tmp_path / "lost+found").mkdir()
    (tmp_path / ".DS_Store").write_bytes(b"")
    assert RunStore.create_or_open(tmp_path, SETTINGS).exists()


def test_a_run_of_other_code_names_its_version(store):
    began = replace(SETTINGS, version="0.9 (commit abc)", code="0123")
    assert began.identity() == replace(began, version="1.0").identity() and began.differences(replace(began, version="1.0")) == []
    with pytest.raises(MucdError, match=r"of version 0.9 .commit abc. .0123.*prints 0123"):
        check_code(began)
    with pytest.raises(MucdError, match="of an earlier version, which did not write down its number .0123.*code_digest.*prints 0123"):
        check_code(replace(began, version=""))
    path = store.path / "settings.json"
    path.write_text(path.read_text().replace('"version": ""', '"version": "0.9", "field_of_later": 1'))
    with pytest.raises(MucdError, match="go on with version 0.9 of the package"):
        RunStore.open(store.path).settings()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)])
def test_of_copies_that_differ_the_same_one_counts_for_everything(tmp_path, order):
    """As two kinds of processors make them, of overlapping blocks, in whatever order they come."""
    store = RunStore.create_or_open(tmp_path / "run", replace(SETTINGS, states=7, held_out=2))
    blocks = [replace(block(first, count), returns=np.full(count, float(first))) for first, count in ((0, 4), (2, 6), (5, 3))]
    tally = Tally(store, 8)
    for place in order:
        tally.add([store.commit(blocks[place])])
    # The block whose name comes first.
    rows = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (1, 4), (1, 5)]
    for found in (tally.evidence(), Tally(store, 8).evidence()):
        assert found.returns.tolist() == [blocks[b].returns[k] for b, k in rows]
        assert np.array_equal(found.votes, sum(np.eye(2, dtype=int)[blocks[b].actions[k]] for b, k in rows))
        assert found.histogram.sum() == 8 * 7 * 2 and np.array_equal(found.histogram.sum(2), np.full((7, 2), 8))
        levels = sum(np.eye(201, dtype=int)[blocks[b].levels[k]] for b, k in rows)
        assert np.array_equal(found.histogram, levels)
    parameters = stored_parameters(store, range(8))["0.weight"].numpy()
    assert np.array_equal(parameters, np.stack([blocks[b].parameters["0.weight"][k] for b, k in rows]))
