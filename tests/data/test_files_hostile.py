"""One hostile example of each kind of fault in docs/files.md that a dataset may hold: refused in one line, with nothing executed, followed or allocated.

Run folders, certificates and requests have theirs in tests/service/test_files_hostile.py.
"""

import base64
import json
import os
import shutil
import signal
import struct
import zlib

import gymnasium as gym
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from minari_datasets import ACTIONS, SPACES, create

from mucd_ray.cli import main
from mucd_ray.data.environments.cards import card_for, load_card
from mucd_ray.data.formats.metadata import read_metadata
from mucd_ray.data.formats.minari import load_dataset, local_datasets
from mucd_ray.data.formats.tables import Tables
from mucd_ray.data.spaces import Part
from mucd_ray.errors import MucdError
from mucd_ray.files import MOST_DEPTH, read_file, read_json, read_npy

BOMB = 1 << 28


@pytest.fixture
def root(minari_root):
    """A Minari folder with the dataset "mine-v0": three episodes, observations float32 [2]."""
    create("mine-v0", SPACES["box"], ACTIONS["discrete"])
    return minari_root


def edit(root, change, name="mine-v0"):
    path = root / name / "data/metadata.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


# metadata


def command(tmp_path):
    return {"entry_point": "os:system", "kwargs": {"command": f"touch {tmp_path}/executed"}, "additional_wrappers": [], "max_episode_steps": None}


@pytest.mark.parametrize("lacking", ["observation_space", "action_space"])
def test_a_lacking_space_is_refused_and_no_command_runs(root, tmp_path, lacking, capfd, refusal):
    spec = {"id": "Anything-v0", **command(tmp_path)}
    edit(root, lambda values: (values.pop(lacking), values.update(env_spec=json.dumps(spec))))
    assert f"{lacking} must be given" in refusal(load_dataset, "mine-v0")
    assert main(["run", "mine-v0", "--storage", str(tmp_path / "run")]) == 2 and lacking in capfd.readouterr().err
    assert not (tmp_path / "executed").exists()


def test_what_a_dataset_names_is_text(root, tmp_path):
    """The id of a shipped environment with somebody's command behind it, in a module and a wrapper that do not exist."""
    wrapper = {"name": "TimeLimit", "entry_point": "os:system", "kwargs": {"command": f"touch {tmp_path}/executed"}}
    spec = {**command(tmp_path), "id": "no_such_module:CartPole-v1", "kwargs": {}, "additional_wrappers": [wrapper]}
    edit(root, lambda values: values.update(env_spec=json.dumps(spec), eval_env_spec=json.dumps(spec), requirements=["os"]))
    dataset = load_dataset("mine-v0")
    card = card_for(dataset.env_id)
    assert card.env_id == "CartPole-v1" and dataset.env_wrappers == ("TimeLimit",)
    with pytest.raises(MucdError, match="observations of shape"):  # the environment itself was accepted, by its name
        card.check(dataset)
    assert not (tmp_path / "executed").exists()


BOX = {"type": "Box", "dtype": "float32", "shape": [2], "low": [0, 0], "high": [1, 1]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observation_space": json.dumps({**BOX, "shape": [1 << 40, 1 << 40]})}, "a Box space"),
        ({"observation_space": json.dumps({**BOX, "shape": [1 << 12, 1 << 13]})}, "more than 16,777,216 entries"),
        ({"observation_space": json.dumps({**BOX, "shape": [3]})}, "no numbers of shape"),
        ({"observation_space": json.dumps({**BOX, "low": ["0", "0"]})}, "something else than numbers"),
        # 100 kilobytes, of which numpy would make an array of 640 megabytes.
        ({"observation_space": json.dumps({**BOX, "low": ["x" * 8000] + [""] * 20_000})}, "something else than numbers"),
        ({"action_space": json.dumps({"type": "MultiDiscrete", "dtype": "int64", "nvec": ["x" * 8000] + [""] * 20_000, "start": [0]})}, "something else than numbers"),
        ({"observation_space": json.dumps({**BOX, "low": [[0], [0, 1]]})}, "a Box space"),
        ({"observation_space": json.dumps({**BOX, "low": [float("nan"), 0]})}, "NaN is not a number"),
        ({"observation_space": json.dumps({**BOX, "high": [1e300, 0]})}, "float32 does not hold"),
        ({"observation_space": json.dumps({**BOX, "dtype": "uint8", "high": [256, 0]})}, "uint8 does not hold"),
        ({"observation_space": json.dumps({**BOX, "dtype": "object"})}, "dtype"),
        ({"observation_space": json.dumps({**BOX, "dtype": "f4,(99999999,)f4"})}, "dtype"),
        ({"observation_space": json.dumps({"type": "MultiBinary", "n": [1 << 20, 1 << 20]})}, "entries"),
        ({"observation_space": json.dumps({"type": "MultiDiscrete", "dtype": "int64", "nvec": [0], "start": [0]})}, "a MultiDiscrete space"),
        ({"observation_space": json.dumps({"type": "os:system"})}, "a space of type Box"),
        ({"observation_space": json.dumps({"type": ["Box"]})}, "a space of type Box"),
        ({"observation_space": json.dumps({"type": "Dict", "subspaces": {"a": BOX}})}, "/episode_0/observations is no group"),
        ({"observation_space": json.dumps({"type": "Dict", "subspaces": ["a"]})}, "a Dict space as Minari writes it"),
        ({"observation_space": json.dumps({"type": "Tuple", "subspaces": [BOX, 7]})}, "a space of type Box"),
        ({"observation_space": json.dumps({"type": "Dict", "subspaces": {"a/../b": BOX}})}, "without a slash"),
        ({"observation_space": json.dumps({"type": "Dict", "subspaces": {"\x1b[2J": BOX}})}, "keys of observations must be printable"),
        ({"observation_space": json.dumps({"type": "Dict", "subspaces": {"a": {"type": "Text"}, "b": BOX}})}, "observations of key a are in a space of type Text"),
        ({"observation_space": json.dumps({"type": "Sequence"})}, "observations are in a space of type Sequence"),
        ({"observation_space": json.dumps({"type": "Tuple", "subspaces": [{"type": "Discrete", "n": 1 << 30, "start": 0}]})}, "key 0 would become more than 16,777,216 numbers"),
        ({"observation_space": json.dumps({"type": "Tuple", "subspaces": [BOX] * 2000})}, "more than 1,024 parts"),
        ({"observation_space": json.dumps({"type": "Tuple", "subspaces": [{"type": "Discrete", "n": 1 << 20, "start": 0}]}), "total_steps": 10**6}, "bytes, at most"),
        ({"action_space": json.dumps({"type": "MultiBinary", "n": 1 << 20})}, "more than 4,096 values in all"),
        ({"action_space": json.dumps({"type": "MultiDiscrete", "dtype": "uint64", "nvec": [(1 << 64) - 1] * 99, "start": [0] * 99})}, "has whole numbers beyond"),
        ({"action_space": json.dumps({"type": "Dict", "subspaces": {"a": BOX}})}, "actions in a space of type Dict"),
        ({"action_space": json.dumps({"type": "Discrete", "dtype": "int64", "n": 1 << 62, "start": 1 << 62})}, "a Discrete space"),
        ({"observation_space": "[" * 100_000}, f"more than {MOST_DEPTH} deep"),
        ({"observation_space": "null"}, "as the JSON text of an object"),
        ({"observation_space": BOX}, "as the JSON text of an object"),
        ({"env_spec": json.dumps({"id": "x" * 1000})}, "id must be a printable text"),
        ({"env_spec": json.dumps({"id": "\x1b[2Jgone"})}, "id must be a printable text"),
        ({"env_spec": json.dumps({"id": "A-v0", "kwargs": [1]})}, "kwargs of env_spec"),
        ({"env_spec": json.dumps({"id": "A-v0", "kwargs": {"a" * 500: 1}})}, "kwargs of env_spec"),
        ({"env_spec": json.dumps({"id": "A-v0", "max_episode_steps": "9"})}, "max_episode_steps of env_spec"),
        ({"env_spec": json.dumps({"id": "A-v0", "additional_wrappers": ["x"]})}, "additional_wrappers"),
        ({"env_spec": 5}, "env_spec must be"),
        ({"total_episodes": 10**18}, "total_episodes must be"),
        ({"total_episodes": 10**9}, "declares 1000000000 episodes, and 3 are stored"),
        ({"total_steps": 10**9}, "its 3 episodes have 11 steps, the metadata declare 1000000000"),
        ({"total_steps": 5}, "more steps than the 5"),
        ({"total_steps": True}, "total_steps must be"),
        ({"data_format": "../../hdf5"}, "data format '../../hdf5' is unknown"),
        ({"minari_version": "\x1b[2J"}, "minari_version must be"),
        ({"minari_version": "9.9.9"}, "written by Minari 9.9.9"),
        ({"jpeg_encoding": "yes"}, "jpeg_encoding must be"),
    ],
)
def test_metadata_of_another_kind(root, change, message, refusal):
    edit(root, lambda values: values.update(change))
    assert message in refusal(load_dataset, "mine-v0")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.__setitem__("episode_1/observations/b", h5py.SoftLink("/episode_0/observations/b")), "b is missing, or a link to elsewhere"),
        (lambda file: file.__setitem__("episode_1/observations", h5py.ExternalLink("other.hdf5", "/")), "observations is missing, or a link to elsewhere"),
        (lambda file: file.__setitem__("episode_1/observations/b", np.zeros(3)), "b is no group"),
        (lambda file: file.__setitem__("episode_1/observations/b/_index_0", np.array([7, 5])), "1 of 2 observations of key b/0 are outside their space, first in row 0"),
        (lambda file: file.__setitem__("episode_1/observations/b/_index_0", np.array([5])), "there are 2 observations of key a and 1 observations of key b/0"),
        (lambda file: file.__setitem__("episode_1/observations/a", np.zeros((2, 3))), "observations of key a have shape (3,)"),
        (lambda file: file.__setitem__("episode_1/observations/a", np.full((2, 2), np.nan)), "observations are NaN or inf in 1 of 11 rows, first in row 4"),
        (lambda file: file.__setitem__("episode_1/observations/a", h5py.Empty("f4")), "is no array"),
    ],
)
def test_dictionaries_of_another_kind(minari_root, change, message, refusal):
    space = gym.spaces.Dict(a=gym.spaces.Box(-1, 1, (2,)), b=gym.spaces.Tuple([gym.spaces.Discrete(2, start=5)]), c=gym.spaces.Text(2))
    create("mine-v0", space, ACTIONS["discrete"])
    assert load_dataset("mine-v0", observation_keys=("a", "b")).observations.shape == (11, 4)
    with h5py.File(minari_root / "mine-v0/data/main_data.hdf5", "a") as file:
        change(_Replaced(file))
    assert message in refusal(lambda: load_dataset("mine-v0", observation_keys=("a", "b")))


class _Replaced:
    """An HDF5 file in which what is set takes the place of what is there."""

    def __init__(self, file):
        self.file = file

    def __setitem__(self, name, value):
        del self.file[name]
        self.file[name] = value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": ' * 100_000, "deep"),
        (b"[" * 100_000 + b"]" * 100_000, "deep"),
        (b'{"total_steps": ' + b"9" * 5000 + b"}", "a number of 5000 digits"),
        (b'{"total_steps": 1e400}', "1e400 is too large"),
        (b'{"total_steps": NaN}', "NaN is not a number"),
        (b'{"a": 1, "a": 2}', "duplicate key"),
        # A text that never ends, each of whose quotation marks could be taken for a beginning: a minute by a careless search.
        (b'{"a": "' + b'\\"' * (1 << 20), "Unterminated string"),
        (b'{"a": [' + b"[]," * (1 << 22) + b"[]]}", "more than 1,048,576 lists and objects"),
        (b"\xff\xfe{\x00}\x00", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"", "not JSON"),
        (b'{"a": "' + b"x" * (1 << 25) + b'"}', "at most 16,777,216 are read"),
    ],
)
def test_json_of_another_kind(root, content, message, refusal):
    (root / "mine-v0/data/metadata.json").write_bytes(content)
    assert message in refusal(load_dataset, "mine-v0")
    assert local_datasets() == []


# paths


@pytest.mark.parametrize("dataset_id", ["../mine-v0", "a/../../mine-v0", "/etc", "", ".", "mine-v0/../mine-v0", "a\x00b-v0", "x" * 300])
def test_ids_that_are_paths(root, dataset_id, refusal):
    assert "is malformed" in refusal(load_dataset, dataset_id)
    assert "is malformed" in refusal(load_dataset, str(root / "mine-v0"))


def test_links_out_of_the_dataset(root, tmp_path, refusal):
    data = root / "mine-v0/data"
    shutil.copytree(data, tmp_path / "elsewhere")
    for name in ("metadata.json", "main_data.hdf5"):
        os.rename(data / name, data / "aside")
        (data / name).symlink_to(tmp_path / "elsewhere" / name)
        assert "leads out of" in refusal(load_dataset, "mine-v0")
        os.replace(data / "aside", data / name)
    load_dataset("mine-v0")
    shutil.rmtree(data)
    data.symlink_to(tmp_path / "elsewhere")
    assert "leads out of" in refusal(load_dataset, "mine-v0")
    # The user's own link to a whole dataset is his to make.
    data.unlink()
    shutil.copytree(tmp_path / "elsewhere", tmp_path / "disk/data")
    shutil.rmtree(root / "mine-v0")
    (root / "mine-v0").symlink_to(tmp_path / "disk")
    assert len(load_dataset("mine-v0")) == 11 and local_datasets() == ["mine-v0"]


def test_pipes_and_devices(root, refusal):
    data = root / "mine-v0/data"
    for name in ("metadata.json", "main_data.hdf5"):
        os.rename(data / name, data / "aside")
        os.mkfifo(data / name)
        assert "regular file" in refusal(load_dataset, "mine-v0")
        os.replace(data / "aside", data / name)
    assert "is not a regular file" in refusal(load_card, "/dev/zero")


def test_stray_folders_are_no_datasets(root, capfd):
    for name in ("stray/data", "tuning/stray-folder/data", "a b-v0/data", ".hidden-v0/data", "empty", "no-version/data", "liar-v0/data"):
        (root / name).mkdir(parents=True)
    shutil.copy(root / "mine-v0/data/metadata.json", root / "liar-v0/data")
    (root / "file").write_text("x")
    (root / "circle").symlink_to(root)
    (root / "unreadable-v0/data").mkdir(parents=True)
    (root / "unreadable-v0/data/metadata.json").mkdir()
    assert local_datasets() == ["mine-v0"]
    assert main(["run", "other-v0", "--storage", str(root / "run")]) == 2
    assert "'other-v0' is not among the local Minari datasets (mine-v0)" in capfd.readouterr().err


# HDF5


def other_file(folder):
    with h5py.File(folder / "other.hdf5", "w") as file:
        file["rewards"] = np.arange(4.0)
    return file_path(folder / "other.hdf5")


def file_path(path):
    return str(path)


def external_link(group, folder):
    group["rewards"] = h5py.ExternalLink(other_file(folder), "/rewards")


def soft_link(group, folder):
    group["rewards"] = h5py.SoftLink("/episode_2/rewards")


def external_storage(group, folder):
    group.create_dataset("rewards", (4,), "f8", external=[("/etc/passwd", 0, 32)])


def virtual(group, folder):
    layout = h5py.VirtualLayout((4,), "f8")
    layout[:] = h5py.VirtualSource(other_file(folder), "rewards", (4,))
    group.create_virtual_dataset("rewards", layout)


def region_references(group, folder):
    group.create_dataset("rewards", (4,), h5py.regionref_dtype)


def object_references(group, folder):
    group["rewards"] = np.array([group.ref] * 4, h5py.ref_dtype)


def texts_of_any_length(group, folder):
    group["rewards"] = ["a", "b", "c", "d"]


def compound(group, folder):
    group["rewards"] = np.zeros(4, [("a", "f8"), ("b", "f8")])


def numbers_of_many_numbers(group, folder):
    group.create_dataset("rewards", (4,), np.dtype(("f8", (1000,))))


def opaque(group, folder):
    group["rewards"] = np.zeros(4, "V8")


def a_group(group, folder):
    group.create_group("rewards")


def one_number(group, folder):
    group["rewards"] = 1.0


def nothing(group, folder):
    group["rewards"] = h5py.Empty("f8")


def declared_only(group, folder):
    group.create_dataset("rewards", (1 << 40,), "f8")


def declared_chunks_only(group, folder):
    group.create_dataset("rewards", (1 << 33,), "f8", chunks=(1 << 20,))


def large_chunk(group, folder):
    group.create_dataset("rewards", (4,), "f8", chunks=(1 << 28,), maxshape=(None,))


def many_chunks(group, folder):
    group.create_dataset("rewards", (1 << 22,), "f8", chunks=(1,), compression="gzip")


def gzip_bomb(group, folder):
    """A chunk of 32 bytes that unpacks to 256 megabytes."""
    import zlib

    dataset = group.create_dataset("rewards", (4,), "f8", chunks=(4,), compression="gzip")
    packer = zlib.compressobj(9)
    content = b"".join([*(packer.compress(bytes(1 << 20)) for _ in range(BOMB >> 20)), packer.flush()])
    dataset.id.write_direct_chunk((0,), content)


def gzip_bomb_declared(group, folder):
    dataset = group.create_dataset("rewards", (1 << 42,), "f8", chunks=(1 << 24,), compression="gzip")
    dataset[:4] = 0


def library_filter(group, folder):
    group.create_dataset("rewards", (4,), "f8", chunks=(4,), compression="lzf")[:] = 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (external_link, "a link to elsewhere"), (soft_link, "a link to elsewhere"), (external_storage, "in other files"), (virtual, "in other files"),
        (region_references, "has dtype"), (object_references, "has dtype"), (texts_of_any_length, "has dtype"), (compound, "has dtype"),
        (numbers_of_many_numbers, "has dtype"), (opaque, "has dtype"), (a_group, "is no dataset"), (one_number, "is no array"), (nothing, "is no array"),
        (declared_only, "declares 8,796,093,022,208 bytes and holds 0"), (declared_chunks_only, "bytes and holds 0"), (large_chunk, "has chunks of shape"),
        (many_chunks, "chunks"), (gzip_bomb, "unpacks to more than its size"), (gzip_bomb_declared, "compressed arrays declare more than"),
        (library_filter, "HDF5 filters"),
    ],
)
def test_hdf5_that_is_no_plain_array(root, tmp_path, make, message, refusal):
    with h5py.File(root / "mine-v0/data/main_data.hdf5", "r+") as file:
        del file["episode_0/rewards"]
        make(file["episode_0"], tmp_path)
    assert message in refusal(load_dataset, "mine-v0")


def test_one_episode_under_many_names_is_no_more_than_its_file(root, refusal):
    length = 1 << 14
    with h5py.File(root / "mine-v0/data/main_data.hdf5", "r+") as file:
        for number in range(3):
            del file[f"episode_{number}"]
        for name, values in {"observations": np.zeros((length + 1, 2)), "actions": np.full(length, 2), "rewards": np.zeros(length), "terminations": np.zeros(length), "truncations": np.zeros(length)}.items():
            file[f"episode_0/{name}"] = values
        file["episode_1"] = file["episode_2"] = file["episode_0"]
    edit(root, lambda values: values.update(total_steps=3 * length))
    assert "declare more bytes than the file has" in refusal(load_dataset, "mine-v0")


def test_an_episode_that_is_a_link(root, tmp_path, refusal):
    with h5py.File(root / "mine-v0/data/main_data.hdf5", "r+") as file:
        del file["episode_1"]
        file["episode_1"] = h5py.ExternalLink(other_file(tmp_path), "/")
    assert "a link to elsewhere" in refusal(load_dataset, "mine-v0")


@pytest.mark.parametrize(("name", "values"), [("actions", np.full(4, 2)[:3]), ("observations", np.zeros((4, 2))), ("terminations", np.zeros((4, 4))), ("rewards", np.zeros((4, 4)))])
def test_arrays_that_do_not_fit_each_other(root, name, values, refusal):
    with h5py.File(root / "mine-v0/data/main_data.hdf5", "r+") as file:
        del file[f"episode_0/{name}"]
        file[f"episode_0/{name}"] = values
    refusal(load_dataset, "mine-v0")


def test_booleans_are_true_or_false_whatever_their_bytes(root):
    with h5py.File(root / "mine-v0/data/main_data.hdf5", "r+") as file:
        kind = file["episode_0/terminations"].id.get_type()
        raw = h5py.h5d.create(file["episode_0"].id, b"forged", kind, h5py.h5s.create_simple((4,)))
        raw.write(h5py.h5s.ALL, h5py.h5s.ALL, np.array([0, 0, 0, 7], np.int8).view(bool), mtype=kind)
        del file["episode_0/terminations"]
        file["episode_0/terminations"] = file["episode_0/forged"]
    assert load_dataset("mine-v0").terminations.view(np.uint8).max() == 1


# images


def jpeg_dataset(root, content):
    create("seen-v0", SPACES["grey"], ACTIONS["discrete"])
    with h5py.File(root / "seen-v0/data/main_data.hdf5", "r+") as file:
        row = np.frombuffer(content, np.uint8)
        del file["episode_0/observations"]
        file["episode_0/observations"] = np.stack([row] * 5)


def test_images_that_declare_another_size(minari_root, refusal):
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("L", (48, 32)).save(file, "JPEG")
    good = file.getvalue()
    jpeg_dataset(minari_root, good)
    assert not load_dataset("seen-v0").observations[:4].any()
    place = good.index(b"\xff\xc0") + 5
    bomb = good[:place] + struct.pack(">HH", 60000, 60000) + good[place + 4 :]
    png = io.BytesIO()
    Image.new("L", (48, 32)).save(png, "PNG")
    for content in (bomb, png.getvalue(), good[:60], b"\0" * 50):
        shutil.rmtree(minari_root / "seen-v0")
        jpeg_dataset(minari_root, content)
        assert "cannot be read" in refusal(load_dataset, "seen-v0")


# arrow and parquet


def columns():
    fill = np.zeros(5)
    return {
        "observations": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(10, np.float32)), 2), "actions": pa.array(np.full(5, 2)), "rewards": pa.array(fill),
        "terminations": pa.array(fill == 1), "truncations": pa.array(fill == 1),
    }


def write_arrow(path, table, compression=None):
    with pa.ipc.new_file(path, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as file:
        file.write_table(table)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"rewards": pa.array(np.zeros(5)).dictionary_encode()}, "without compression and dictionaries"),
        ({"rewards": pa.array(["a"] * 5)}, "only numbers are read"),
        ({"rewards": pa.nulls(5)}, "only numbers are read"),
        ({"rewards": pa.array([1.0, None, 1, 1, 1])}, "only numbers are read"),
        ({"observations": pa.array([[0.0, 0.0]] * 5)}, "where Box"),
        ({"observations": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(15, np.float32)), 3)}, "where Box"),
    ],
)
def test_arrow_of_another_kind(minari_root, change, message, refusal):
    create("table-v0", SPACES["box"], ACTIONS["discrete"], "arrow")
    write_arrow(minari_root / "table-v0/data/0/part-0.arrow", pa.table(columns() | change))
    if message is None:
        assert load_dataset("table-v0").rewards[:4].tolist() == [0.0] * 4
    else:
        assert message in refusal(load_dataset, "table-v0")


def test_arrow_whose_first_message_is_no_schema(minari_root, refusal):
    """A segmentation fault in pyarrow, if it is asked for the schema."""
    create("arrow-v0", SPACES["box"], ACTIONS["discrete"], data_format="arrow")
    path = minari_root / "arrow-v0/data/0/part-0.arrow"
    content, found = path.read_bytes(), 0
    for position in (position for position in range(16, 80) if content[position] == 1):
        for kind in (0, 3, 255):
            changed = content[:position] + bytes([kind]) + content[position + 1 :]
            try:
                first = pa.ipc.MessageReader.open_stream(pa.py_buffer(changed)[8:]).read_next_message().type
            except (pa.ArrowException, OSError):
                continue
            if first != "schema":
                path.write_bytes(changed)
                assert "its first message is of type" in refusal(load_dataset, "arrow-v0")
                found += 1
    assert found


def test_arrow_bombs_and_links(minari_root, tmp_path, refusal):
    create("table-v0", SPACES["box"], ACTIONS["discrete"], "arrow")
    path = minari_root / "table-v0/data/0/part-0.arrow"
    write_arrow(path, pa.table({"rewards": pa.array(np.zeros(BOMB // 8))}), "zstd")
    assert path.stat().st_size < BOMB // 100
    assert "without compression" in refusal(load_dataset, "table-v0")
    (path.parent / "part-1.arrow").write_bytes(b"x")
    assert "holds 'part-1.arrow'" in refusal(load_dataset, "table-v0")
    (path.parent / "part-1.arrow").unlink()
    path.unlink()
    (tmp_path / "elsewhere.arrow").write_bytes(b"x")
    path.symlink_to(tmp_path / "elsewhere.arrow")
    assert "leads out of" in refusal(load_dataset, "table-v0")
    path.unlink()
    path.write_bytes(b"ARROW1\0\0" + b"\xff\xff\xff\xff\xff\xff\xff\x7f" + bytes(100))
    refusal(load_dataset, "table-v0")


def test_parquet_that_unpacks_to_more(minari_root, refusal):
    create("table-v0", SPACES["box"], ACTIONS["discrete"], "parquet")
    path = minari_root / "table-v0/data/0/part-0.parquet"
    bomb = {name: pa.array(np.zeros(1 << 21)) for name in columns()}
    pa.parquet.write_table(pa.table(bomb), path, compression="zstd")
    assert path.stat().st_size < 1 << 20
    assert "it declares 2,097,152 rows, the dataset 11 steps" in refusal(load_dataset, "table-v0")
    lists = columns() | {"observations": pa.array([np.zeros(1 << 20, np.float32)] * 5)}
    pa.parquet.write_table(pa.table(lists), path, compression="zstd")
    assert "more values than its rows hold" in refusal(load_dataset, "table-v0")
    path.write_bytes(b"PAR1" + bytes(100) + struct.pack("<I", 1 << 31) + b"PAR1")
    refusal(load_dataset, "table-v0")


def repeated(rows):
    """A table of equal rows, which parquet stores in a few bytes, and declares as few."""
    bools = pa.array(np.zeros(rows, bool))
    observations = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(2 * rows, np.float32)), 2)
    return pa.table({"observations": observations, "actions": pa.array(np.full(rows, 2)), "rewards": pa.array(np.zeros(rows)), "terminations": bools, "truncations": bools})


def test_parquet_of_rows_that_are_stored_once(minari_root, monkeypatch, refusal):
    """Every episode within the limit, together above it: what they unpack to is counted over all of them."""
    create("table-v0", SPACES["box"], ACTIONS["discrete"], "parquet")
    rows = 1 << 17
    for number in range(3):
        path = minari_root / f"table-v0/data/{number}/part-0.parquet"
        pa.parquet.write_table(repeated(rows), path)
    assert path.stat().st_size < rows
    edit(minari_root, lambda values: values.update(total_steps=3 * (rows - 1)), "table-v0")
    assert len(load_dataset("table-v0")) == 3 * (rows - 1)
    monkeypatch.setattr("mucd_ray.data.formats.tables.MOST_UNPACKED_BYTES", 2 * rows * 26)
    assert "its episodes unpack to more than" in refusal(load_dataset, "table-v0")


# source keys


def key_file(root):
    return h5py.File(root / "mine-v0/data/main_data.hdf5", "r+")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.5, "neither a text nor a whole number"),
        (np.arange(2), "neither a text nor a whole number"),
        (np.zeros((1 << 12,), "S9"), "neither a text nor a whole number"),
        (np.array(b"x" * 5000), "neither a text nor a whole number"),
        (np.array((1, 2), [("a", int), ("b", int)]), "neither a text nor a whole number"),
        (h5py.Empty("i8"), "neither a text nor a whole number"),
        ("x" * 60_000, "is no source key"),
        ("\x1b[2J", "is no source key"),
        (b"\xff\xfe", "is no source key"),
        (np.uint64(2**64 - 1), None),
        (np.array(["ann"], h5py.string_dtype()), None),
    ],
)
def test_attributes_that_are_no_keys(root, value, message, refusal):
    with key_file(root) as file:
        file["episode_1"].attrs["who"] = value
    if message is None:
        assert load_dataset("mine-v0", source_key="who").sources.tolist() == [0, 1, 2]
    else:
        assert message in refusal(lambda: load_dataset("mine-v0", source_key="who"))
    assert load_dataset("mine-v0").sources is None


def long_text_stored_once(infos):
    """4096 references to one text of 8 MB, which would take 32 GB."""
    dataset = infos.create_dataset("who", data=["x" * (1 << 23)] + [""] * 4095, dtype=h5py.string_dtype(), chunks=(4096,))
    dataset.file.flush()
    _, content = dataset.id.read_direct_chunk((0,))
    dataset.id.write_direct_chunk((0,), content[:16] * 4096)


def test_infos_that_are_no_keys(root, tmp_path, refusal):
    def asked(change, message):
        with key_file(root) as file:
            file["episode_0"].pop("infos", None)
            change(file["episode_0"].create_group("infos"))
        assert message in refusal(lambda: load_dataset("mine-v0", source_key="who"))

    text = h5py.string_dtype()
    with h5py.File(tmp_path / "elsewhere.hdf5", "w") as file:
        file["who"] = ["ann"] * 5
    asked(lambda infos: infos.__setitem__("who", h5py.ExternalLink(str(tmp_path / "elsewhere.hdf5"), "who")), "a link to elsewhere")
    asked(lambda infos: infos.__setitem__("who", h5py.SoftLink("/episode_0/actions")), "a link to elsewhere")
    asked(lambda infos: infos.create_group("who"), "is no dataset")
    asked(lambda infos: infos.create_dataset("who", data=np.arange(5)), "changes within the episode")
    asked(lambda infos: infos.create_dataset("who", data=["ann"] * 4 + ["bob"], dtype=text), "changes within the episode")
    asked(lambda infos: infos.create_dataset("who", data=np.ones((5, 2), int)), "neither a list of texts nor of whole numbers")
    asked(lambda infos: infos.create_dataset("who", data=np.ones(5)), "neither a list of texts nor of whole numbers")
    asked(lambda infos: infos.create_dataset("who", data=["ann"] * 5, dtype=text, compression="gzip"), "compressed texts")
    asked(lambda infos: infos.create_dataset("who", shape=(1 << 40,), dtype=text, chunks=(1 << 20,)), "more than 1,048,576 chunks")
    asked(lambda infos: infos.create_dataset("who", shape=(1 << 34,), dtype=text, chunks=(1 << 20,)), "more bytes than the file has")
    asked(lambda infos: infos.create_dataset("who", shape=(1 << 34,), dtype="i8", chunks=(1 << 20,)), "and holds 0")
    asked(long_text_stored_once, "is no source key")
    asked(lambda infos: infos.create_dataset("who", data=["x" * 60_000] * 5, dtype=text), "is no source key")
    with key_file(root) as file:
        del file["episode_0/infos"]
        file["episode_0/infos"] = h5py.ExternalLink(str(tmp_path / "elsewhere.hdf5"), "/")
    assert "a link to elsewhere" in refusal(lambda: load_dataset("mine-v0", source_key="who"))
    # Nothing of it is looked at where no key is asked for.
    assert len(load_dataset("mine-v0")) == 11


def test_names_of_keys_that_are_hostile_are_told_harmlessly(root, refusal):
    with key_file(root) as file:
        for number in range(40):
            file["episode_0"].attrs["\x1b[2J" + "x" * 3000 + str(number)] = "ann"
    assert "its episodes have the keys \\x1b[2Jxxx" in refusal(lambda: load_dataset("mine-v0", source_key="who"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1]", "is not a JSON object"), (b"{", "not JSON"), (b'{"who": [1]}', "is no source key"), (b'{"who": 0.5}', "is no source key"),
        (b'{"who": "' + b"x" * 300 + b'"}', "is no source key"), (b'{"who": "' + b"x" * (1 << 16) + b'"}', "at most 65,536 are read"), (b'{"who": "a", "who": "b"}', "duplicate key"),
    ],
)
def test_metadata_of_an_episode_of_another_kind(minari_root, tmp_path, content, message, refusal):
    create("table-v0", SPACES["box"], ACTIONS["discrete"], "parquet")
    path = minari_root / "table-v0/data/1/metadata.json"
    path.write_bytes(content)
    assert message in refusal(lambda: load_dataset("table-v0", source_key="who"))
    path.unlink()
    (tmp_path / "elsewhere.json").write_text('{"who": "ann"}')
    path.symlink_to(tmp_path / "elsewhere.json")
    assert "leads out of" in refusal(lambda: load_dataset("table-v0", source_key="who"))


# A parquet file whose footer has a histogram of another size: an exception in a destructor of pyarrow, which ends the process.
ENDS_PYARROW = zlib.decompress(base64.b85decode(
    "c-oa!O-~a+7=F85mSt%SU}xPm959g$%2%mk)YQUYKdh8UD_=ES%CcE%+Jf7biYN5M!Mhy%0}$iK)eFX`@t_w^hJ!JB@ra2BPsW+)?oufsanjE0yz{)z^SrZf(@C5jLOhy8Q%U4U&;ii%"
    "IJfsa{3vyN)Hk>lezDszYQ8l`e*KJw-&9(548JcN+Iks&_x;5V0yKbveI&092}tNvc$%f~^h}1Hx?Oua0GycflDTP{<H+Lo@=a~Qsnt#LO!Nb2AW1l=zQXg+;t5eu{UBm~r1T-l5fgd)"
    "L=hbf5j`Zz#HG`eQ1WozDbA@^vg?&w@0%ZQ!szxn@c~%;t7lKgw@<y^9eGk5IosR&ZKuwHj84{Da55Fq$)y$=qs&5UPtAhYyAh*Y$5035f*O~{qj+cmY-RXnrG^(9v0!82AeP*v`fwN&"
    "p`<Svg)EX_m{WYq3njx^&6ab^#S-F>kPH#<Ft70WT&avWKw>wiG#h!NU=+)Qg6^_9g9DQ2&N8Z5Ymw}L?0jXzD&&e;8vxy)w3e+(QMV(qq;{(F8gwF29R{IIz4(s<rs}96PWH>cJ@PuI"
    "-POdSTS)CAZw{zmAa8(!&>2mV)EMn1@}+uwP0w{t*d_UkNB-*3K5^Ox*U&ZVM|Dl3o}g+V*;<mLW#0|cTIb{qPW#MjKfM3f9!G0|+AV<k@5M8{DS1xYYYH`Vk4kbF-Jv}7Z_A~5FN7Kz"
    ">ku0Gk048$C~r2CQ^kkV=^L|`Yu%=7@`H4oH^(r>DO?-l7+3L_iDMX>_^QcbV+1fkAFg7YV1fOWjA`<XWav|oPVp+81N-L@B65+e(Rh>v*?APZqeO!Ny*N|J1Y?2h?4^ocjijix<RqCW"
    "Je6Vot}}ef&5Y3LS~{;6hE^5|PA<0jQ#Jj#s~@T9n+NoD8eF?Ix45Ji()VyIY2y?4wyU3DqKO0gtdw}{_F_E0x=@^;_cKB7jl>f!Xqq{V(t2o0bd2RM@83_<y)RZz{8CO2&a5rg)k7>N"
    "SUslef^1S$FHZeOY%;f~)C3c`cF-^5&j)VJQn`$spRrG!>?>D5=~~HJcPd7?Utd}2&sx@UwQJR|N~8t5f)@q?14HV3CqVrNK9FDKB>8{(3v#|)n*"
))


def test_a_file_that_ends_the_process_that_reads_it(minari_root, refusal):
    create("table-v0", SPACES["box"], ACTIONS["discrete"], "parquet")
    (minari_root / "table-v0/data/0/part-0.parquet").write_bytes(ENDS_PYARROW)
    assert "the process that read it with pyarrow ended by SIGABRT" in refusal(load_dataset, "table-v0")


@pytest.mark.parametrize("number,message", [(signal.SIGXCPU, "took more than 60 seconds"), (signal.SIGKILL, "ended by SIGKILL")])
def test_a_reader_that_is_stopped_is_one_line(minari_root, monkeypatch, refusal, number, message):
    """For its time, or by the system for its memory."""
    create("table-v0", SPACES["box"], ACTIONS["discrete"], "parquet")
    episode = Tables.episode

    def stopped(tables, which):
        os.kill(tables.child.pid, number)
        return episode(tables, which)

    monkeypatch.setattr(Tables, "episode", stopped)
    assert message in refusal(load_dataset, "table-v0")


def mutated(content, rng):
    """Bytes that are changed, cut out, repeated or cut off; most faults lie in the footer."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        start = int(rng.integers(len(content) // 2, len(content)) if rng.random() < 0.7 else rng.integers(len(content)))
        end = start + int(rng.integers(1, 9))
        kind = rng.integers(4)
        if kind == 0:
            content[start:end] = rng.bytes(end - start)
        elif kind == 1:
            content[start] = rng.choice([0, 1, 127, 128, 255])
        elif kind == 2:
            content[start:end] = b""
        else:
            content[start:start] = content[start:end]
    return bytes(content)


@pytest.mark.parametrize("count", [40, pytest.param(600, marks=pytest.mark.slow)])
@pytest.mark.parametrize("data_format", ["parquet", "arrow"])
def test_mutated_files_are_read_or_refused(minari_root, data_format, count):
    create("table-v0", SPACES["box"], ACTIONS["discrete"], data_format)
    folder, rng, ended = minari_root / "table-v0/data", np.random.default_rng(236), 0
    path, metadata = folder / f"0/part-0.{data_format}", read_metadata(folder)
    parts = (Part(path=(), space=metadata.observation_space),)
    whole, tables = path.read_bytes(), Tables(folder, metadata, parts, [False])
    for _ in range(count):
        path.write_bytes(mutated(whole, rng))
        try:
            assert set(tables.episode(0)) == set(columns())
        except (ValueError, OSError) as error:
            if "the process that read it" in str(error):
                tables.__exit__()
                tables, ended = Tables(folder, metadata, parts, [False]), ended + 1
    path.write_bytes(whole)
    assert len(tables.episode(0)["rewards"]) == 4
    tables.__exit__()
    print(f"{ended} of {count} ended the process")


# .npy and JSON in general


def npy(header, payload=b"", version=1):
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + payload


@pytest.mark.parametrize(
    "content",
    [
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (4294967296, 4294967296), }"),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }", bytes(8)),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"cos\nsystem\n(S'true'\ntR."),
        npy("{'descr': '<U4', 'fortran_order': False, 'shape': (1,), }", bytes(16)),
        npy("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (1,), }", bytes(8)),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': " + "(" * 3000 + ")" * 3000 + ", }"),
        npy("x" * (1 << 16), version=2),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (4,"),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }", bytes(8), version=3),
        b"\x93NUMPY\x02\x00" + struct.pack("<I", (1 << 32) - 1), b"PK\x03\x04" + bytes(100), b"\x80\x04N.", b"", b"\x93NUMPY",
    ],
)
def test_npy_of_another_kind(content, refusal):
    assert "cannot be read" in refusal(read_npy, content, "states.npy")


def test_npy_is_what_numpy_wrote(tmp_path):
    for array in (np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3)), np.zeros((0, 4), np.uint8), np.array([True, False]), np.float32(3)):
        np.save(tmp_path / "a.npy", array)
        found = read_npy((tmp_path / "a.npy").read_bytes(), "a.npy")
        np.testing.assert_array_equal(found, array)
        assert found.dtype == array.dtype and found.flags.writeable


def test_files_are_read_up_to_a_size(tmp_path, refusal):
    with open(tmp_path / "large", "wb") as file:
        file.truncate(1 << 40)
    assert "at most 10 are read" in refusal(read_file, tmp_path / "large", 10)
    assert read_json(json.dumps({"a": [1, 2.5, "]]", None], "b": {"\\": '"['}}).encode(), "x") == {"a": [1, 2.5, "]]", None], "b": {"\\": '"['}}
    assert gym.spaces.Box(*json.loads(json.dumps([-np.inf, np.inf]))) == gym.spaces.Box(*read_json("[-Infinity, Infinity]", "x", infinities=True))


def test_texts_that_never_end_take_no_longer_than_their_length(refusal):
    """Were each of a million escaped quotes tried as the beginning of a text, this would take hours."""
    for content in ('"' + '\\"' * 10**6, '["' + '\\"' * 10**6 + "\\", '{"a": "' + '[\\"' * 10**6):
        assert "Unterminated string" in refusal(read_json, content, "x")
    deep = "[" * 65 + '"' + '\\"' * 10**6 + '"' + "]" * 65
    assert "deep" in refusal(read_json, deep, "x") and read_json(deep[1:-1], "x")


def test_a_card_that_declares_a_huge_observation(tmp_path, refusal):
    values = card_for("CartPole-v1").to_dict() | {"observation_shape": [1 << 30, 1 << 30], "indices": [0, 1, 2, 3]}
    (tmp_path / "card.json").write_text(json.dumps(values))
    assert "more than 16,777,216 entries" in refusal(load_card, tmp_path / "card.json")
