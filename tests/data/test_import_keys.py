"""A source stays one source through an import, whatever its name is: each of its trajectories as a source of its own would count an attacker as many."""

import hashlib
import sys
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.data.importing import ImportOptions, import_dataset, load_source
from mucd_ray.errors import MucdError

sys.path.insert(0, str(Path(__file__).parent))
import foreign_files as foreign
from minari_datasets import ACTIONS, SPACES, create

MADE = foreign.episodes(8)
# Not printable in Python, too long, longer than that in bytes alone, and plain.
NAMES = ["Ann\xa0Lee", "\U0001f469\u200d\U0001f680 Ann", "x" * 500, "\u5c0f" * 150, "Ann Lee"]


def sources(path, key, options=ImportOptions(actions="-9,9")):
    import_dataset(path, "mine/a-v0", options, overwrite=True)
    return load_dataset("mine/a-v0", source_key=key).sources.tolist()


def with_operators(path, of_episodes):
    """Every row of a LeRobot dataset gets one, by the number of its episode."""
    for file in (path / "data").rglob("*.parquet"):
        table = pa.parquet.read_table(file)
        if "operator" in table.column_names:
            table = table.drop_columns("operator")
        pa.parquet.write_table(table.append_column("operator", pa.array(of_episodes(table["episode_index"].to_numpy()))), file)


@pytest.mark.parametrize("name", NAMES, ids=["space", "joined", "long", "wide", "plain"])
def test_names_of_any_kind(minari_root, tmp_path, name):
    given = [name, "Bob", name, "Eve", name, "Bob", "Eve", name]
    expected = [given.index(text) for text in given]

    def same(found):
        return [found.index(number) for number in found] == expected

    assert same(sources(foreign.rlds(tmp_path, MADE, change=lambda features, number: features | {"episode_metadata/operator": given[number].encode()}), "operator"))
    path = foreign.lerobot(tmp_path / "l", MADE)
    if len(name) < 200 and len(name.encode()) <= 800:
        with_operators(path, lambda episodes: [given[number] for number in episodes])
        assert same(sources(path, "operator"))
    create("theirs-v0", SPACES["box"], ACTIONS["discrete"], lengths=(2,) * 8)
    with h5py.File(minari_root / "theirs-v0/data/main_data.hdf5", "a") as file:
        for number, text in enumerate(given):
            file[f"episode_{number}"].attrs["operator"] = text
    assert same(sources(minari_root / "theirs-v0", "operator", ImportOptions()))


def test_numbers_of_any_kind(minari_root, tmp_path):
    path = foreign.lerobot(tmp_path / "l", MADE)
    for accounts in ([1e16, 3e16], [1.5, 2.5], [3.0, 4.0]):
        with_operators(path, lambda episodes, accounts=accounts: np.array(accounts)[episodes % 2])
        assert sources(path, "operator") == [0, 1] * 4
    # Of one of whose steps the last is somebody else's, nothing says whose it is.
    with_operators(path, lambda episodes: np.where((episodes == 0) & (np.append(episodes[1:], 1) == 1), 7, episodes % 2))
    with pytest.raises(MucdError, match="operator of episode 0 is not the same in all its steps"):
        sources(path, "operator")
    assert import_dataset(path, "mine/a-v0", ImportOptions(actions="-9,9"), overwrite=True)  # for whom needs no sources


def test_what_is_no_key_in_one_trajectory_is_one_in_the_others(minari_root, tmp_path):
    """His trajectory would be without it, and so a source of its own."""
    create("theirs-v0", SPACES["box"], ACTIONS["discrete"], lengths=(2,) * 4)
    plain = (minari_root / "theirs-v0/data/main_data.hdf5").read_bytes()

    def attribute(group):
        group.attrs["operator"] = 3.0

    def infos(group):
        group["infos/operator"] = np.zeros(3)

    for change in (attribute, infos):
        (minari_root / "theirs-v0/data/main_data.hdf5").write_bytes(plain)
        with h5py.File(minari_root / "theirs-v0/data/main_data.hdf5", "a") as file:
            for number in range(3):
                file[f"episode_{number}"].attrs["operator"] = "Ann"
                file[f"episode_{number}/infos/speed"] = np.ones(3)  # never a key
            change(file["episode_3"])
        with pytest.raises(MucdError, match="operator of episode 3 is not the same in all its steps"):
            sources(minari_root / "theirs-v0", "operator", ImportOptions())
        assert {name for episode in load_source(minari_root / "theirs-v0", ImportOptions()).episodes for name in episode.keys} == {"operator"}
    # A hash in the place of a text, and that text itself.
    long = "v" * 300
    given = [long, f"sha256 {hashlib.sha256(long.encode()).hexdigest()}", long]
    path = foreign.rlds(tmp_path, MADE[:3], change=lambda features, number: features | {"episode_metadata/operator": given[number].encode()})
    assert sources(path, "operator") == [0, 1, 0]
    path = foreign.rlds(tmp_path / "typed", MADE[:3], change=lambda features, number: features | {"episode_metadata/operator": b"Ann" if number else np.ones(1, np.int64)})
    with pytest.raises(MucdError, match="operator of episode 0 is not the same in all its steps"):
        sources(path, "operator")


def test_nobodys_keys_crowd_out_others(minari_root):
    create("theirs-v0", SPACES["box"], ACTIONS["discrete"])
    with h5py.File(minari_root / "theirs-v0/data/main_data.hdf5", "a") as file:
        for number in range(3):
            file[f"episode_{number}"].attrs["operator"] = "Ann"
        for number in range(64):
            file["episode_1"].attrs[f"a{number:02d}"] = number
    with pytest.raises(MucdError, match="have 65 keys in all, at most 64 are taken"):
        load_source(minari_root / "theirs-v0", ImportOptions())
