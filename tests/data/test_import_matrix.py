"""Every reader against every kind of damage, by the command line: one line that names the file and the place, exit status 2, nothing written."""

import gzip
import io
import json
import sys
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from minari_datasets import ACTIONS, SPACES, create

from mucd_ray.cli import main

sys.path.insert(0, str(Path(__file__).parent))
import foreign_files as foreign

MADE, DISCRETE = foreign.episodes(), foreign.episodes(discrete=True)
LOG = ("--columns", foreign.COLUMNS)


def minari(data_format):
    def make(folder):
        create("theirs/box-v0", SPACES["box"], ACTIONS["continuous"], data_format)
        return folder / "minari/theirs/box-v0"

    return make


def numbered(folder):
    path, flat = folder / "numbered.npz", foreign.rows(MADE)
    np.savez(path, **{name: flat[name] for name in ("observations", "actions", "rewards", "episode")})
    return path


# Name: (how it is made, what `mucd import` is told).
MAKERS = {
    "lerobot v3": (lambda folder: foreign.lerobot(folder / "l", MADE), ()), "lerobot v2": (lambda folder: foreign.lerobot(folder / "l", MADE, "v2.1"), ()), "rlds": (lambda folder: foreign.rlds(folder, MADE), ()),
    "rllib": (lambda folder: foreign.rllib(folder, MADE), ()), "robomimic": (lambda folder: foreign.robomimic(folder, MADE), ()), "d3rlpy 2": (lambda folder: foreign.d3rlpy2(folder, MADE), ()),
    "d3rlpy 1": (lambda folder: foreign.d3rlpy1(folder, MADE), ()), "d4rl": (lambda folder: foreign.d4rl(folder, MADE), ()), "ogbench": (lambda folder: foreign.ogbench(folder, MADE), ("--format", "ogbench")),
    "dqn-replay": (lambda folder: foreign.dqn_replay(folder, DISCRETE), ()), "npz": (numbered, ("--format", "npz")), "parquet": (lambda folder: foreign.parquet_log(folder, MADE), LOG),
    "csv": (lambda folder: foreign.csv_log(folder, MADE), LOG), "minari hdf5": (minari("hdf5"), ()), "minari arrow": (minari("arrow"), ()), "minari parquet": (minari("parquet"), ()),
}


def hdf5(**changes):
    """A change of an HDF5 file: arrays by path, with __ for a slash; None deletes."""
    def change(path):
        with h5py.File(path if path.is_file() else path / "data/main_data.hdf5", "r+") as file:
            for name, values in changes.items():
                name = name.replace("__", "/")
                if name in file:
                    del file[name]
                if values is not None:
                    file[name] = values

    return change


def npz(**changes):
    def change(path):
        with np.load(path) as found:
            arrays = dict(found)
        np.savez(path, **{name: values for name, values in (arrays | changes).items() if values is not None})

    return change


def table(change, name):
    """A change of the pyarrow table in a parquet file, or in the file of this name in a folder."""
    def changed(path):
        file = path if path.is_file() else path / name
        pyarrow.parquet.write_table(change(pyarrow.parquet.read_table(file)), file)

    return changed


def lines(change):
    return lambda path: path.write_text("\n".join(",".join(row) for row in change([line.split(",") for line in path.read_text().splitlines()])))


def edited(name, **values):
    def change(path):
        file = path / name
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def gzipped(name, array):
    def change(path):
        content = io.BytesIO()
        np.save(content, array)
        (path / name).write_bytes(gzip.compress(content.getvalue()))

    return change


def ragged(name):
    def change(found):
        rows = found[name].to_pylist()
        rows[1] = rows[1][:-1]
        return found.set_column(found.column_names.index(name), name, pa.array(rows, pa.list_(pa.float32())))

    return change


def shuffled(found):
    return found.take([0, len(found) - 1, *range(1, len(found) - 1)])


def features(change):
    def changed(path):
        file = path / "1.0.0/features.json"
        values = json.loads(file.read_text())
        change(values["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"])
        file.write_text(json.dumps(values))

    return changed


def rewritten(**how):
    """The RLDS folder with records that are changed."""
    def change(path):
        import shutil

        shutil.rmtree(path)
        foreign.rlds(path.parent, MADE, **how)

    return change


def largest(path):
    """The data file of a source: itself, or the largest in its folder."""
    return path if path.is_file() else max((file for file in path.rglob("*") if file.suffix != ".json" and file.is_file()), key=lambda file: file.stat().st_size)


def truncated(path):
    file = largest(path)
    content = file.read_bytes()
    # Rows that are whole are a shorter file, of a CSV.
    file.write_bytes(content[: len(content) * 2 // 3].rpartition(b",")[0] if file.suffix == ".csv" else content[: len(content) * 2 // 3])


def other_magic(path):
    file = largest(path)
    file.write_bytes(b"\xff\xfenothing" + file.read_bytes()[10:])


def emptied(path):
    largest(path).write_bytes(b"")


def dropped(name):
    return lambda found: found.drop_columns(name)


# Kind of damage: {reader: (change, words of the line)}. A reader that is missing has no such thing: nothing numbers its rows (d4rl, ogbench, d3rlpy, robomimic, minari, dqn-replay), its columns are
# of one length (parquet, rllib) or of one shape (csv, and arrays that are one for all episodes).
MATRIX = {
    "missing": {
        "lerobot v3": (table(dropped("action"), "data/chunk-000/file-001.parquet"), "file-001.parquet lacks the column action"),
        "lerobot v2": (table(dropped("frame_index"), "data/chunk-000/episode_000001.parquet"), "episode_000001.parquet lacks the column frame_index"),
        "rlds": (features(lambda steps: steps.pop("action")), "declares no action of plain numbers"), "rllib": (table(dropped("t"), "run-1.parquet"), "run-1.parquet lacks the column t"),
        "robomimic": (hdf5(data__demo_1__actions=None), "/data/demo_1/actions is missing"), "d3rlpy 2": (hdf5(rewards_1=None), "/rewards_1 is missing"),
        "d3rlpy 1": (hdf5(rewards=None), "/rewards is missing"), "d4rl": (hdf5(rewards=None), "it lacks rewards"), "ogbench": (npz(actions=None), "it lacks actions"),
        "dqn-replay": (lambda path: (path / "$store$_reward_ckpt.7.gz").unlink(), "$store$_reward_ckpt.7.gz is missing"), "npz": (npz(actions=None), "are the action? Say so with --columns"),
        "parquet": (table(dropped("r"), ""), "reward=r: there is no such column"), "csv": (lines(lambda rows: [row[:-1] for row in rows]), "source=who: there is no such column"),
        "minari hdf5": (hdf5(episode_1__rewards=None), "/episode_1/rewards is missing"), "minari parquet": (table(dropped("rewards"), "data/1/part-0.parquet"), "episode 1: it must have the columns"),
    },
    "interleaved": {
        "lerobot v3": (table(shuffled, "data/chunk-000/file-001.parquet"), "rows of episode 1 are not together: they begin in row 3 and again in row 5"),
        "lerobot v2": (table(lambda found: found.set_column(found.column_names.index("episode_index"), "episode_index", pa.array([1, 0, 1, 1])), "data/chunk-000/episode_000001.parquet"), "holds rows of another episode_index"),
        "npz": (npz(episode=np.repeat([0, 1, 0, 2], 3)), "rows of episode 0 are not together: they begin in row 0 and again in row 6"), "parquet": (table(shuffled, ""), "rows of episode 0 are not together: they begin in row 0 and again in row 2"),
        "csv": (lines(lambda rows: [rows[0], rows[1], rows[-1], *rows[2:-1]]), "rows of episode 0 are not together: they begin in row 0 and again in row 2"),
        "rllib": (lambda path: pyarrow.parquet.write_table(pyarrow.parquet.read_table(path / "run-0.parquet"), path / "run-9.parquet"), "3 of 3 trajectories are invalid (episode "),
        "rlds": (rewritten(change=lambda values, number: values | {"steps/is_first": np.ones(len(values["steps/is_first"]), int)}), "is_first at step 1, inside it"),
        "d4rl": (hdf5(timeouts=np.zeros(12, bool), terminals=np.arange(12) == 11, observations=np.zeros((12, 3), np.float32)), None),
    },
    "counts": {
        "lerobot v3": (edited("meta/info.json", total_frames=999), "declares total_frames 999, its files hold 12"), "lerobot v2": (edited("meta/info.json", total_episodes=4), "declares total_episodes 4, its files hold 3"),
        "rlds": (rewritten(count=4), "declares 4 episodes, its files hold 3"), "robomimic": (hdf5(data__demo_1__rewards=np.zeros(3)), "/data/demo_1: its arrays have different lengths"),
        "d3rlpy 2": (hdf5(num_episodes=4), "num_episodes is 4, and it has the actions of 3 episodes"), "d3rlpy 1": (hdf5(terminals=np.zeros(11)), "its arrays have different lengths"),
        "d4rl": (hdf5(rewards=np.zeros(7)), "its arrays have different lengths"), "ogbench": (npz(terminals=np.ones(4)), "its arrays have different lengths"), "npz": (npz(rewards=np.zeros(5)), "its arrays have different lengths"),
        "dqn-replay": (gzipped("$store$_reward_ckpt.7.gz", np.zeros(5, np.float32)), "checkpoint 7: its arrays have different lengths"), "csv": (lines(lambda rows: [*rows[:4], [*rows[4], "1"], *rows[5:]]), "line 5 has 15 cells, the header 14"),
        "minari hdf5": (edited("data/metadata.json", total_steps=999), "declares 3 episodes of 999 steps, its files hold 3 of 11"), "minari arrow": (edited("data/metadata.json", total_episodes=4), "declares 4 episodes, and 3 are stored"),
        "minari parquet": (edited("data/metadata.json", total_episodes=2), "declares 2 episodes, and 3 are stored"),
    },
    "shapes": {
        "lerobot v3": (table(ragged("observation.state"), "data/chunk-000/file-001.parquet"), "column observation.state has lists of different lengths, or none, first in row 1"),
        "lerobot v2": (table(ragged("action"), "data/chunk-000/episode_000001.parquet"), "column action has lists of different lengths, or none, first in row 1"),
        "rlds": (rewritten(change=lambda values, number: values | {"steps/action": np.zeros(3, np.float32)} if number else values), "record 1 of "), "rllib": (table(ragged("obs"), "run-0.parquet"), "column obs has lists of different lengths, or none, first in row 1"),
        "robomimic": (hdf5(data__demo_1__actions=np.zeros((4, 3), np.float32)), "actions have two shapes or types, float32[2] in demo_0 and float32[3] in demo_1"),
        "d3rlpy 2": (hdf5(observations_1=np.zeros((4, 2), np.float32)), "observations have two shapes or types, float32[3] in episode 0 and float32[2] in episode 1"),
        "d4rl": (hdf5(next_observations=np.zeros((12, 2))), "observations have shape (12, 3), next observations (12, 2)"), "d3rlpy 1": (hdf5(rewards=np.zeros((12, 2))), "rewards have shape (12, 2)"),
        "ogbench": (npz(terminals=np.zeros((15, 2))), "terminals have shape (15, 2)"), "npz": (npz(rewards=np.zeros((12, 2))), "rewards have shape (12, 2)"),
        "dqn-replay": (lambda path: [gzipped(f"$store$_{name}_ckpt.8.gz", np.ones((4, *shape), kind))(path) for name, shape, kind in (("observation", (3, 2), np.uint8), ("action", (), np.int32), ("reward", (), np.float32), ("terminal", (), np.uint8))], "observations have two shapes or types, uint8[2, 2] in checkpoint 7, episode 0 and uint8[3, 2] in checkpoint 8"),
        "parquet": (table(lambda found: found.set_column(2, "f1", pa.array([[1.0], [1.0, 2.0], *[[1.0]] * 10])), ""), "column f1 has lists of different lengths, or none, first in row 1"),
        "minari hdf5": (hdf5(episode_1__actions=np.zeros((1, 3), np.float32)), "actions have two shapes or types, float32[2] in episode 0 and float32[3] in episode 1"),
        "minari parquet": (table(lambda found: found.set_column(found.column_names.index("actions"), "actions", pa.array([[0.0] * 3] * len(found), pa.list_(pa.float32(), 3))), "data/1/part-0.parquet"), "episode 1: its columns declare more values than its rows hold"),
    },
    "packed": {"rllib": (table(lambda found: found.set_column(found.column_names.index("obs"), "obs", pa.array([b"\x04\x22M\x18"] * len(found))), "run-0.parquet"), "column obs of run-0.parquet is packed, or no lists of numbers: write it so (in RLlib: output_compress_columns=[])")},
    "agents": {"rllib": (table(lambda found: found.set_column(found.column_names.index("agent_id"), "agent_id", pa.array(["a", "b"] * 3)[: len(found)]), "run-0.parquet"), "only data of one agent are supported")},
    # The others: test_import_hostile.py.
    **{kind: dict.fromkeys(("lerobot v2", "d3rlpy 1", "minari hdf5", "minari arrow", "minari parquet"), (change, "")) for kind, change in (("truncated", truncated), ("magic", other_magic), ("empty", emptied))},
}
CASES = [(kind, name) for kind, changes in MATRIX.items() for name in changes]


@pytest.mark.parametrize(("kind", "name"), CASES, ids=[f"{kind}-{name}" for kind, name in CASES])
def test_damage_is_one_line(tmp_path, monkeypatch, capfd, kind, name):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    (change, words), (make, told) = MATRIX[kind][name], MAKERS[name]
    path = make(tmp_path)
    change(path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "store"))
    status = main(["import", str(path), "--dataset", "mine/a-v0", *told])
    captured = capfd.readouterr()
    if words is None:
        assert status == 0
        return
    assert status == 2 and captured.out == "" and captured.err.startswith(f"mucd: error: {path}") and captured.err.count("\n") == 1 and words in captured.err, captured.err
    assert len(captured.err) < 1200 and not [file for file in (tmp_path / "store").rglob("*") if file.name not in ("mine", ".mucd-lock", "namespace_metadata.json")], "half-written"
