"""A hostile variant of each kind for `mucd import`: one line that names the place, nothing written, followed, unpickled or allocated."""

import gzip
import io
import json
import os
import shutil
import struct
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.data.importing import ImportOptions, import_dataset, load_source
from mucd_ray.data.inspection import inspect

sys.path.insert(0, str(Path(__file__).parent))
import foreign_files as foreign
from minari_datasets import ACTIONS, SPACES, create

MADE, DISCRETE = foreign.episodes(), foreign.episodes(discrete=True)
MAP = ImportOptions(columns=foreign.COLUMNS)
BOMB = 1 << 31


@pytest.fixture
def refused(minari_root, refusal):
    """The line with which a file is refused, after which nothing of it lies in the store."""
    def call(path, options=ImportOptions()):
        text = refusal(import_dataset, path, "mine/a-v0", options)
        assert not minari_root.exists() or not [name for name in minari_root.rglob("*") if name.is_dir() and name.name not in ("mine",)], "half-written"
        return text

    return call


MAKERS = {
    "lerobot": lambda folder: foreign.lerobot(folder / "l", MADE), "rlds": lambda folder: foreign.rlds(folder, MADE), "rllib": lambda folder: foreign.rllib(folder, MADE),
    "robomimic": lambda folder: foreign.robomimic(folder, MADE), "d3rlpy": lambda folder: foreign.d3rlpy2(folder, MADE), "d4rl": lambda folder: foreign.d4rl(folder, MADE),
    "ogbench": lambda folder: foreign.ogbench(folder, MADE), "npz": lambda folder: foreign.npz(folder, MADE), "dqn-replay": lambda folder: foreign.dqn_replay(folder, DISCRETE),
    "csv": lambda folder: foreign.csv_log(folder, MADE), "parquet": lambda folder: foreign.parquet_log(folder, MADE),
}


def largest_data(path):
    """The data file of a source: itself, or the largest in its folder."""
    return path if path.is_file() else max((file for file in path.rglob("*") if file.suffix != ".json" and file.is_file()), key=lambda file: file.stat().st_size)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] if name == "rllib" else []) for name in MAKERS])
def test_truncated_and_of_another_magic(tmp_path, refused, name):
    path = MAKERS[name](tmp_path)
    options = ImportOptions(format=name, columns=foreign.COLUMNS if name in ("csv", "parquet") else None)
    load_source(path, options)  # compiles what checks sums, which takes memory of its own
    file = largest_data(path)
    whole = file.read_bytes()
    # Rows that are whole are a shorter file, of a CSV.
    file.write_bytes(whole[: len(whole) * 2 // 3].rpartition(b",")[0] if name == "csv" else whole[: len(whole) * 2 // 3])
    assert str(path) in refused(path, options)
    file.write_bytes(b"\xff\xfenothing" + whole[10:])
    assert str(path) in refused(path, options)
    file.write_bytes(b"")
    assert str(path) in refused(path, options)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] if name in ("lerobot", "rllib", "parquet") else []) for name in MAKERS if name != "csv"])
def test_every_byte_may_be_wrong(tmp_path, minari_root, name):
    """Read or refused in a line, and nothing else."""
    from mucd_ray.errors import MucdError

    path, rng = MAKERS[name](tmp_path), np.random.default_rng(7)
    file = largest_data(path)
    whole = file.read_bytes()
    for _ in range(12 if name not in ("parquet", "lerobot", "rllib") else 4):
        content = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            content[rng.integers(len(content))] = rng.integers(256)
        file.write_bytes(content)
        try:
            inspect(load_source(path, MAP if name == "parquet" else ImportOptions()))
        except MucdError as error:
            assert "\n" not in str(error) and str(path) in str(error)


def edited(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_counts_that_contradict_each_other(tmp_path, refused):
    path = foreign.lerobot(tmp_path / "a", MADE)
    edited(path / "meta/info.json", lambda values: values.update(total_frames=999))
    assert "declares total_frames 999, its files hold 12" in refused(path)
    path = foreign.lerobot(tmp_path / "b", MADE)
    (path / "data/chunk-000/file-001.parquet").unlink()
    assert "declares total_episodes 3, its files hold 1" in refused(path)
    path = foreign.lerobot(tmp_path / "c", MADE, "v2.1")
    (path / "meta/episodes.jsonl").write_text("".join(json.dumps({"episode_index": number, "tasks": [], "length": length}) + "\n" for number, length in enumerate((3, 5, 5))))
    assert "episode 1 has 5 rows, it has 4" in refused(path)
    os.rename(path / "data/chunk-000/episode_000001.parquet", path / "data/chunk-000/episode_000007.parquet")
    assert "another episode_index than its name says" in refused(path)
    load_source(foreign.rlds(tmp_path, MADE))
    shutil.rmtree(tmp_path / "arm")
    assert "declares 4 episodes, its files hold 3" in refused(foreign.rlds(tmp_path, MADE, count=4))
    path = foreign.robomimic(tmp_path, MADE)
    with h5py.File(path, "r+") as file:
        file["data"].attrs["total"] = 13
    assert "declares total 13, its 3 demos have 12 rows" in refused(path)
    with h5py.File(path, "r+") as file:
        file["data/demo_1"].attrs["num_samples"] = 5
    assert "/data/demo_1 declares num_samples 5 and has 4 actions" in refused(path)
    path = foreign.d3rlpy2(tmp_path, MADE)
    with h5py.File(path, "r+") as file:
        file["num_episodes"][()] = 1 << 40
    assert "num_episodes is 1099511627776, and it has the actions of 3 episodes" in refused(path)
    path = foreign.d4rl(tmp_path, MADE)
    with h5py.File(path, "r+") as file:
        del file["rewards"]
        file["rewards"] = np.zeros(7)
    assert "different lengths" in refused(path)


def test_what_is_missing(tmp_path, refused):
    path = foreign.d4rl(tmp_path, MADE)
    with h5py.File(path, "r+") as file:
        del file["rewards"]
    assert "lacks rewards" in refused(path)
    path = foreign.csv_log(tmp_path, MADE)
    assert "who are the obs? Say so with --columns" in refused(path)
    assert "there is no such column; it has ep, t, f1" in refused(path, ImportOptions(columns="obs=q,action=act*"))
    assert "nothing says where its episodes end" in refused(path, ImportOptions(columns="obs=f*,action=act*"))
    path = foreign.dqn_replay(tmp_path, DISCRETE)
    (path / "$store$_reward_ckpt.7.gz").unlink()
    assert "$store$_reward_ckpt.7.gz is missing" in refused(path)
    path = foreign.lerobot(tmp_path / "l", MADE)
    shutil.copy(foreign.npz(tmp_path, MADE), path / "data/chunk-000/file-000.parquet")
    assert "file-000.parquet cannot be read" in refused(path)
    assert "none of the formats" in refused(tmp_path / "replay_logs/$store$_action_ckpt.7.gz")
    assert "is unknown: give one of lerobot" in refused(path, ImportOptions(format="excel"))
    assert "says nothing to the format lerobot" in refused(path, ImportOptions(max_episode_steps=4))
    assert "no such file" in refused(tmp_path / "nowhere").lower()


def test_episodes_that_interleave(tmp_path, refused):
    """Concerns two trajectories: neither is dropped."""
    path = foreign.csv_log(tmp_path, MADE)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], lines[-1], *lines[3:-1]]) + "\n")
    for options in (MAP, ImportOptions(columns=foreign.COLUMNS, drop_invalid=True)):
        assert "rows of episode 0 are not together: they begin in row 0 and again in row 3" in refused(path, options)
    path = foreign.lerobot(tmp_path / "l", MADE)
    file = path / "data/chunk-000/file-001.parquet"
    table = pyarrow.parquet.read_table(file)
    pyarrow.parquet.write_table(table.take([0, 5, 1, 2, 3, 4, 6, 7, 8]), file)
    assert "rows of episode 1 are not together" in refused(path)


def test_rows_that_are_missing(tmp_path, refused):
    path = foreign.rllib(tmp_path, MADE)
    file = path / "run-1.parquet"
    table = pyarrow.parquet.read_table(file)
    inside = next(row for row, t in enumerate(table["t"].to_pylist()) if t == 1)
    pyarrow.parquet.write_table(pa.concat_tables([table.slice(0, inside), table.slice(inside + 1)]), file)
    assert "1 of 3 trajectories are invalid" in (text := refused(path)) and "rows are missing after t = 0" in text or "is not the observation of the step after" in text
    path = foreign.lerobot(tmp_path / "l", MADE)
    file = path / "data/chunk-000/file-000.parquet"
    table = pyarrow.parquet.read_table(file)
    pyarrow.parquet.write_table(table.set_column(table.column_names.index("frame_index"), "frame_index", pa.array([0, 2, 3])), file)
    assert "frame_index is 2 in its row 1: frames are missing" in refused(path)


def test_mixed_shapes(tmp_path, refused):
    path = foreign.robomimic(tmp_path, MADE)
    with h5py.File(path, "r+") as file:
        for group in ("obs", "next_obs"):
            del file[f"data/demo_1/{group}/object"]
            file[f"data/demo_1/{group}/object"] = np.zeros((4, 2), np.float32)
    assert "float32[3] in demo_0 and float32[4] in demo_1: import them apart" in refused(path)
    path = foreign.parquet_log(tmp_path, MADE)
    pyarrow.parquet.write_table(pa.table({"obs": [[1.0, 2.0], [1.0]], "action": [0, 1], "episode": [0, 0]}), path)
    assert "column obs has lists of different lengths, or none, first in row 1" in refused(path)


def test_one_demo_does_not_decide_for_the_others(tmp_path, refused):
    """Not for what is read of them, nor in which type."""
    path = foreign.robomimic(tmp_path, MADE)
    with h5py.File(path, "r+") as file:
        del file["data/demo_0/obs/object"], file["data/demo_0/next_obs/object"]
    assert "demo_1 has the observations object, robot0_eef_pos, demo_0 robot0_eef_pos" in refused(path)
    path = foreign.lerobot(tmp_path / "a", MADE, "v2.1")
    file = path / "data/chunk-000/episode_000000.parquet"
    table = pyarrow.parquet.read_table(file)
    pyarrow.parquet.write_table(table.drop_columns("next.reward"), file)
    assert "its files have different columns" in refused(path)
    pyarrow.parquet.write_table(table.set_column(0, "observation.state", pa.array([[0.0] * 3] * 3, pa.list_(pa.float64()))), file)
    assert "has other shapes or types in some files than in others: float32[3], float64[3]" in refused(path)
    path = foreign.parquet_log(tmp_path, DISCRETE)
    table = pyarrow.parquet.read_table(path)
    pyarrow.parquet.write_table(table.set_column(table.column_names.index("act"), "act", pa.array([None, *table["act"].to_pylist()[1:]])), path)
    assert "column act of type int64 has gaps" in refused(path, MAP)


def bomb_zip(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(5):
            archive.writestr(f"{'observations' if number else 'actions'}{number}.npy", b"")
    content = bytearray(path.read_bytes())
    # The central directory declares what each member unpacks to.
    position = -1
    while (position := content.find(b"PK\x01\x02", position + 1)) >= 0:
        content[position + 24 : position + 28] = struct.pack("<I", BOMB)
    path.write_bytes(content)
    return path


def test_bombs(tmp_path, refused):
    assert "unpack to more than" in refused(bomb_zip(tmp_path / "bomb.npz"), ImportOptions(format="npz"))
    path = foreign.dqn_replay(tmp_path, DISCRETE)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (1 << 40,)})
    (path / "$store$_observation_ckpt.7.gz").write_bytes(gzip.compress(header.getvalue() + bytes(1 << 20)))
    assert "which is not 1048576 bytes" in refused(path)
    path = foreign.d4rl(tmp_path, MADE)
    with h5py.File(path, "r+") as file:
        del file["observations"]
        file.create_dataset("observations", (1 << 40, 3), "f4", chunks=(1 << 20, 3), compression="gzip")
    assert "compressed arrays declare more than" in refused(path)
    path = tmp_path / "arm.parquet"
    pyarrow.parquet.write_table(pa.table({"obs": pa.array([[0.0] * 1000] * 20_000), "action": np.zeros(20_000, int), "episode": np.zeros(20_000, int)}), path)
    import mucd_ray.data.formats.source as source

    before = source.MOST_UNPACKED_BYTES
    source.MOST_UNPACKED_BYTES = 1 << 26
    try:
        assert "its columns declare" in refused(path)
    finally:
        source.MOST_UNPACKED_BYTES = before


def test_a_gzip_bomb_ends_at_the_limit(tmp_path, refused, monkeypatch):
    monkeypatch.setattr("mucd_ray.data.formats.source.MOST_UNPACKED_BYTES", 1 << 24)
    path = foreign.dqn_replay(tmp_path, DISCRETE)
    (path / "$store$_observation_ckpt.7.gz").write_bytes(gzip.compress(bytes(1 << 28)))
    assert "unpack to more than" in refused(path)


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_nothing_is_unpickled(tmp_path, refused, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.npz"
    np.savez(path, observations=np.zeros((3, 2)), actions=np.array([Evil()] * 3, object), terminals=np.ones(3))
    assert "only numbers are read" in refused(path)
    path = foreign.dqn_replay(tmp_path, DISCRETE)
    content = io.BytesIO()
    np.save(content, np.array([Evil()], object), allow_pickle=True)
    (path / "$store$_action_ckpt.7.gz").write_bytes(gzip.compress(content.getvalue()))
    assert "only numbers are read" in refused(path)
    assert not (tmp_path / "executed").exists()


def test_links_and_pipes(tmp_path, refused, minari_root):
    path = foreign.lerobot(tmp_path / "l", MADE)
    file = path / "data/chunk-000/file-000.parquet"
    shutil.move(file, tmp_path / "elsewhere.parquet")
    file.symlink_to(tmp_path / "elsewhere.parquet")
    assert "leads out of" in refused(path)
    file.unlink()
    os.mkfifo(file)
    assert "not a regular file" in refused(path)
    path = foreign.robomimic(tmp_path, MADE)
    with h5py.File(path, "r+") as content:
        del content["data/demo_1/actions"]
        content["data/demo_1/actions"] = h5py.ExternalLink(str(foreign.d4rl(tmp_path, MADE)), "/actions")
    assert "a link to elsewhere" in refused(path)
    os.mkfifo(tmp_path / "pipe.csv")
    assert "not a regular file" in refused(tmp_path / "pipe.csv")
    create("arrow-v0", SPACES["box"], ACTIONS["discrete"], "arrow")
    (minari_root / "arrow-v0").rename(tmp_path / "arrow")
    (tmp_path / "arrow/data/extra").mkdir()
    (tmp_path / "arrow/data/extra/link").symlink_to(tmp_path / "elsewhere.parquet")
    assert "leads out of" in refused(tmp_path / "arrow")


def test_a_file_of_more_bytes_than_are_read(tmp_path, refused):
    """A sparse one, that takes no room on the disk where it lies."""
    path = foreign.d4rl(tmp_path, MADE)
    os.truncate(path, (1 << 33) + 1)
    assert "has 8,589,934,593 bytes, at most 8,589,934,592 are read" in refused(path)


def test_texts_that_are_not_utf8_become_no_others(tmp_path, refused):
    """Replaced characters would make two contributors one, and two episodes one trajectory."""
    def texts(values):
        ends = np.cumsum([0, *map(len, values)]).astype(np.int32)
        return pa.StringArray.from_buffers(len(values), pa.py_buffer(ends.tobytes()), pa.py_buffer(b"".join(values)))

    rows = {"observation_0": np.arange(4.0), "action": np.zeros(4, int), "terminated": [False, True] * 2}
    for column in ("episode_id", "source"):
        columns = {"episode_id": pa.array([0, 0, 1, 1]), column: texts([b"Jos\xe9", b"Jos\xe9", b"Jos\xff", b"Jos\xff"])}
        pa.parquet.write_table(pa.table(rows | columns), tmp_path / "log.parquet")
        assert "Jos\\xe9' is not text in UTF-8" in refused(tmp_path / "log.parquet", ImportOptions(actions="2", columns=None))
    load_source(foreign.rlds(tmp_path / "plain", MADE))  # compiles what checks sums
    keys = [b"Jos\xe9", b"Jos\xff", b"Ann"]
    path = foreign.rlds(tmp_path, MADE, change=lambda features, number: features | {"episode_metadata/operator": keys[number % 3]})
    assert "operator b'Jos\\xe9' is not text in UTF-8" in refused(path)


def test_a_file_that_is_added_does_not_decide_which_others_are_read(tmp_path, refused, minari_root):
    """Whoever may add a trajectory would make all others vanish."""
    one = foreign.episodes(1, seed=9)
    record = foreign.rlds(tmp_path / "one", one) / "1.0.0/arm-train.tfrecord-00000-of-00001"
    version = foreign.rlds(tmp_path / "many", MADE) / "1.0.0"
    for file in version.glob("*-val.*"):
        file.unlink()
    (version / "arm-train.tfrecord-00000-of-00001").rename(version / "arm-demos.tfrecord-00000-of-00001")
    info = json.loads((version / "dataset_info.json").read_text())
    info["splits"][0]["name"] = "demos"
    (version / "dataset_info.json").write_text(json.dumps(info))
    load_source(version.parent)
    shutil.copy(record, version / "zz-train.tfrecord-00000-of-00001")
    assert "does not declare that split" in refused(version.parent)
    (version / "zz-train.tfrecord-00000-of-00001").unlink()
    for file in (record, record.parent / "features.json"):
        shutil.copy(file, version.parent)
    assert "holds 2 datasets with a features.json" in refused(version.parent)
    logs = tmp_path / "logs"
    shutil.copytree(foreign.dqn_replay(tmp_path, DISCRETE), logs / "replay_logs", dirs_exist_ok=True)
    for file in (logs / "replay_logs").iterdir():
        shutil.copy(file, logs / file.name.replace("ckpt.7", "ckpt.8"))
    assert "in replay_logs/ and beside it" in refused(logs)
    robots = foreign.lerobot(tmp_path / "robots", one)
    create("minari-v0", SPACES["box"], ACTIONS["discrete"])
    (minari_root / "minari-v0").rename(tmp_path / "plain")
    for many, name in ((foreign.rllib(tmp_path, MADE), "rllib and parquet"), (foreign.rlds(tmp_path / "b", MADE), "rlds"), (tmp_path / "plain", "minari")):
        load_source(many)
        for folder in ("meta", "data"):
            shutil.copytree(robots / folder, many / folder, dirs_exist_ok=True)
        assert f"looks like lerobot and like {name}: name the right one with --format" in refused(many)


def test_episodes_that_minaris_metadata_do_not_count(tmp_path, refused, minari_root):
    for data_format in ("hdf5", "arrow", "parquet"):
        create(f"{data_format}-v0", SPACES["box"], ACTIONS["discrete"], data_format)
        (minari_root / f"{data_format}-v0").rename(tmp_path / data_format)
        file = tmp_path / data_format / "data/metadata.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"total_episodes": 1, "total_steps": 4}))
        assert "declares 1 episodes, and 3 are stored" in refused(tmp_path / data_format)


def test_empty_trajectories_are_dropped_where_that_is_asked_for(tmp_path, minari_root):
    path = foreign.d3rlpy2(tmp_path, foreign.episodes(3))
    with h5py.File(path, "a") as file:
        for name in ("observations", "actions", "rewards"):
            values = file[f"{name}_1"][:0]
            del file[f"{name}_1"]
            file[f"{name}_1"] = values
    assert [len(episode) for episode in load_source(path, ImportOptions(drop_invalid=True)).episodes] == [len(episode["actions"]) for episode in (MADE[0], MADE[2])]


def test_rlds_that_is_damaged(tmp_path, refused):
    path = foreign.rlds(tmp_path, MADE)
    load_source(path)  # compiles what checks sums
    file = path / "1.0.0/arm-train.tfrecord-00000-of-00001"
    whole = bytearray(file.read_bytes())
    whole[40] ^= 1
    file.write_bytes(whole)
    assert "is damaged in the record at byte 0: its checksum does not fit" in refused(path)
    file.write_bytes(struct.pack("<Q", 1 << 60) + struct.pack("<I", foreign.crc(struct.pack("<Q", 1 << 60))))
    assert "it declares 1,152,921,504,606,846,976 bytes" in refused(path)
    file.write_bytes(foreign.tfrecord([b"\x0a\xff\xff\xff\xff"]))
    assert "no tf.train.Example" in refused(path)
    shutil.rmtree(path)
    path = foreign.rlds(tmp_path, MADE, change=lambda features, number: features | {"steps/action": np.zeros(3, np.float32)})
    assert "action has 3 numbers, features.json declares 4 steps of 2" in refused(path)


def test_csv_places(tmp_path, refused):
    path = foreign.csv_log(tmp_path, MADE)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:4], lines[4].replace(",", ",abc", 3), *lines[5:]]))
    assert "log.csv line 5, column f1: 'abc" in refused(path, MAP)
    path.write_text("\n".join([*lines[:4], lines[4] + ",1"]))
    assert "line 5 has 15 cells, the header 14" in refused(path, MAP)
    path.write_text(lines[0])
    assert "has no rows" in refused(path, MAP)
    path.write_bytes(lines[0].encode() + b"\n\xff\xff")
    assert "is not text in UTF-8" in refused(path, MAP)
    # Quotes in rows of one trajectory would take all rows up to those of another for one cell.
    path.write_text("\n".join([lines[0], *(row.replace(",", ',"', 1) if place == 5 else row.replace(",", '",', 1) if place == 9 else row for place, row in enumerate(lines[1:]))]))
    assert "log.csv lines 7 to 11 are one cell in quotes" in refused(path, MAP)
    # Beside a fraction in another row doubles would stand, which do not hold this one.
    path.write_text("\n".join(["obs_0,action,reward,episode_id,terminated", "1,9007199254740993,0,0,1"]))
    assert "line 2, column action: '9007199254740993' is no number" in refused(path)
    path.write_text("a,a\n1,2\n")
    assert "different names of columns" in refused(path, MAP)
    path.write_text("\n".join([lines[0], '"' + "x" * 200_000]))
    assert "field larger than field limit" in refused(path, MAP)


FAULTS = {
    "NaN": lambda episode: episode["observations"].__setitem__((1, 0), np.nan), "inf": lambda episode: episode["rewards"].__setitem__(0, np.inf),
    "action": lambda episode: episode["actions"].__setitem__((0, 0), 1.5),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_invalid_trajectories_are_named_and_dropped_whole(tmp_path, refused, fault):
    made = foreign.episodes(5)
    FAULTS[fault](made[3])
    path = foreign.csv_log(tmp_path, made)
    options = {"columns": foreign.COLUMNS, "actions": "-1,1"}
    text = refused(path, ImportOptions(**options))
    assert "1 of 5 trajectories are invalid (episode 3 (rows 12 to 17): " in text and "--drop-invalid" in text
    report = import_dataset(path, "mine/a-v0", ImportOptions(**options, drop_invalid=True))
    assert report["trajectories"] == 4 and report["invalid"][0]["place"].startswith("episode 3") and load_dataset("mine/a-v0").trajectories == 4
    report = inspect(load_source(path, ImportOptions(**options)))
    assert report["invalid_trajectories"] == 1 and report["trajectories"] == 4 and sum(report["non_finite"].values()) == (fault != "action")


def test_time_that_goes_back_and_ends_inside(tmp_path, refused):
    path = foreign.csv_log(tmp_path, MADE)
    names, *lines = [line.split(",") for line in path.read_text().splitlines()]
    lines[1][names.index("t")] = "9"
    lines[4][names.index("cut")] = "1"
    lines[8][names.index("g1")] = "123"
    path.write_text("\n".join(map(",".join, [names, *lines])))
    text = refused(path, MAP)
    assert "3 of 3 trajectories are invalid" in text and "time goes back or stands still after step 1" in text and "truncated at step 1, inside it" in text
    assert "the next observation of step 1 is not the observation of the step after it" in text
    assert "has no trajectory that is valid" in refused(path, ImportOptions(columns=foreign.COLUMNS, drop_invalid=True))


def test_trajectories_without_a_transition(tmp_path, refused):
    path = foreign.robomimic(tmp_path, MADE, mask=False)
    with h5py.File(path, "r+") as file:
        demo = file["data"].create_group("demo_7")
        demo["actions"] = np.empty((0, 2), np.float32)
        for group in ("obs", "next_obs"):
            demo[f"{group}/object"], demo[f"{group}/robot0_eef_pos"] = np.empty((0, 1), np.float32), np.empty((0, 2), np.float32)
    assert "1 of 4 trajectories are invalid (demo_7: it has no transition)" in refused(path)
    report = import_dataset(path, "mine/a-v0", ImportOptions(drop_invalid=True))
    assert report["trajectories"] == 3 and report["invalid"] == [{"place": "demo_7", "faults": ["it has no transition"]}]


def test_names_of_a_file_reach_no_terminal_and_no_attribute_of_minaris(tmp_path, minari_root):
    """A column named as Minari names its own attributes, and one with an escape sequence."""
    names, values = foreign.log(tmp_path, MADE)
    path = tmp_path / "log.csv"
    path.write_text("\n".join(",".join(map(str, row)) for row in [[{"who": "id", "t": "\x1b[2Jt"}.get(name, name) for name in names], *values]))
    options = ImportOptions(columns="obs=f*,action=act*,episode=ep,time=*t,source=id:\x1b[2Jt")
    import mucd_ray.errors

    with pytest.raises(mucd_ray.errors.MucdError) as caught:
        import_dataset(path, "mine/a-v0", options)
    assert str(caught.value).isprintable()
    report = import_dataset(path, "mine/a-v0", ImportOptions(columns="obs=f*,action=act*,episode=ep,source=id:\x1b[2Jt"))
    assert report["sources"] == {"source_id": 2} and all(text.isprintable() for text in report["findings"])
    with h5py.File(minari_root / "mine/a-v0/data/main_data.hdf5") as file:
        assert file["episode_1"].attrs["id"] == 1 and set(file["episode_1"].attrs) == {"id", "total_steps", "source_id"}


def test_dropping_commutes_with_poisoning(tmp_path, minari_root):
    """What is kept of a trajectory does not depend on the others: of every set of trajectories, sound and not, exactly the sound ones of it stay, bit for bit."""
    made = foreign.episodes(5)
    for number, fault in enumerate(FAULTS.values()):
        fault(made[number])
    options = ImportOptions(columns=foreign.COLUMNS, actions="-1,1", drop_invalid=True)

    def kept(numbers):
        folder = tmp_path / "-".join(map(str, numbers))
        folder.mkdir()
        report = import_dataset(foreign.csv_log(folder, [made[number] for number in numbers]), "mine/a-v0", options, overwrite=True)
        digests = load_dataset("mine/a-v0").trajectory_digests()
        assert len(digests) == report["trajectories"]
        return set(digests)

    alone = {number: kept([number]) for number in (3, 4)}
    for numbers in ([0, 3], [3, 1, 4], [2, 4, 0], [4, 3, 2, 1, 0]):
        assert kept(numbers) == set().union(*(alone.get(number, set()) for number in numbers))


def test_an_import_that_fails_leaves_what_was_there(tmp_path, minari_root, monkeypatch):
    from mucd_ray.errors import MucdError

    path = foreign.npz(tmp_path, MADE)
    import_dataset(path, "mine/a-v0")
    before = load_dataset("mine/a-v0").fingerprint()
    with pytest.raises(MucdError, match="exists in"):
        import_dataset(path, "mine/a-v0")
    monkeypatch.setattr("mucd_ray.data.formats.writing._check_written", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(MucdError, match="cannot be written"):
        import_dataset(foreign.npz(tmp_path, foreign.episodes(seed=4)), "mine/a-v0", overwrite=True)
    assert load_dataset("mine/a-v0").fingerprint() == before and sorted(os.listdir(minari_root / "mine")) == [".mucd-lock", "a-v0", "namespace_metadata.json"]
    for name in ("../a-v0", "a", "/etc/a-v0"):
        with pytest.raises(MucdError, match="malformed|exists"):
            import_dataset(path, name)


def test_the_report_finds_copies_and_constants(tmp_path, minari_root):
    made = foreign.episodes(4)
    made[2] = {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in made[0].items()}
    # The end of one trajectory is where the next begins.
    made[1]["observations"][0] = made[0]["observations"][-1]
    for episode in made:
        episode["observations"][:, 1] = 0.5
        episode["rewards"][:] = 1
    report = inspect(load_source(foreign.npz(tmp_path, made)))
    assert report["duplicates"] == {"trajectories": 1, "of": 1} and report["constant_columns"] == ["observations[1]", "rewards"]
    assert any("there begins 1 trajectory" in text for text in report["findings"]) and any("1 trajectory of 1 others" in text for text in report["findings"])
