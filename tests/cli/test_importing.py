"""`mucd import`, `mucd inspect`, and `mucd run` of a file, in this process."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from mucd_ray.cli import main

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
import foreign_files as foreign


@pytest.fixture
def log(tmp_path, monkeypatch):
    """A CSV file that no dataset is made of yet."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return foreign.csv_log(tmp_path, foreign.episodes(discrete=True))


def test_a_file_becomes_a_dataset_and_both_give_one_report(log, tmp_path, answer, capfd):
    written = answer("import", str(log), "--dataset", "mine/log-v0", "--columns", foreign.COLUMNS, "--actions", "3")
    assert {"transitions": 12, "trajectories": 3, "terminated": 2, "truncated": 1, "sources": {"who": 2}, "dataset_id": "mine/log-v0"}.items() <= written.items()
    assert written["spaces"] == {"observations": "Box(-inf, inf, (3,), float64)", "actions": "Discrete(3)", "actions_declared": True} and isinstance(written["findings"], list)
    of_file = answer("inspect", str(log), "--columns", foreign.COLUMNS, "--actions", "3")
    of_dataset = answer("inspect", "mine/log-v0", "--plot", str(tmp_path / "plot.png"))
    differ = {"dataset_id", "path", "format", "sha256", "findings", "files"}
    for report in (of_file, of_dataset):
        assert {name: value for name, value in written.items() if name not in differ} == {name: value for name, value in report.items() if name not in differ}
    assert of_dataset["format"] == "minari" and (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
    assert main(["inspect", "mine/log-v0"]) == 0 and "12 transitions in 3 trajectories" in capfd.readouterr().out


def test_what_is_wrong_is_one_line(log, tmp_path, refusal):
    assert f"{log} is a file: mucd import {log} --dataset NAME first" in refusal("run", str(log), "--storage", str(tmp_path / "run"))
    assert "not among the local Minari datasets" in refusal("inspect", "mine/other-v0")
    assert "--format csv is of a file" in refusal("inspect", "mine/log-v0", "--format", "csv")
    assert "--columns obs=f* is of a file" in refusal("inspect", "mine/log-v0", "--columns", "obs=f*")
    assert "is malformed" in refusal("import", str(log), "--dataset", "nothing", "--columns", foreign.COLUMNS)
    assert "environment 'Nothing-v0' cannot be made" in refusal("import", str(log), "--dataset", "mine/log-v0", "--columns", foreign.COLUMNS, "--environment", "Nothing-v0")
    assert "observations have shape [3], CartPole-v1 has" in refusal("import", str(log), "--dataset", "mine/log-v0", "--columns", foreign.COLUMNS, "--environment", "CartPole-v1")
    assert "give one of them" in refusal("import", str(log), "--dataset", "mine/log-v0", "--actions", "3", "--environment", "CartPole-v1")
    assert "--actions 'many'" in refusal("import", str(log), "--dataset", "mine/log-v0", "--columns", foreign.COLUMNS, "--actions", "many")
    assert "--actions '-1e300,1e300'" in refusal("import", str(log), "--dataset", "mine/log-v0", "--columns", foreign.COLUMNS, "--actions=-1e300,1e300")
    assert not list((tmp_path / "minari").rglob("*")) and not (tmp_path / "run").exists()


def test_inspect_lists_what_import_refuses(log, tmp_path, answer, refusal):
    made = foreign.episodes(discrete=True)
    made[1]["observations"][1] = np.nan
    log = foreign.csv_log(tmp_path, made)
    arguments = [str(log), "--columns", foreign.COLUMNS, "--actions", "3"]
    assert "1 of 3 trajectories are invalid (episode 1 (rows 3 to 6): observations are NaN" in refusal("import", *arguments, "--dataset", "mine/log-v0")
    report = answer("inspect", *arguments)
    assert report["invalid_trajectories"] == 1 and report["trajectories"] == 2 and json.dumps(report["invalid"]).count("observations are NaN") == 1
    assert answer("import", *arguments, "--dataset", "mine/log-v0", "--drop-invalid")["trajectories"] == 2


@pytest.mark.parametrize("parquet", [False, True])
def test_actions_that_are_texts_are_counted_as_they_are_named(tmp_path, monkeypatch, answer, refusal, parquet):
    import pyarrow.csv
    import pyarrow.parquet

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    log = tmp_path / "heating.csv"
    log.write_text("day,indoor,setting,comfort\n" + "\n".join(f"{row // 4},{row}.5,{('off', ' low', 'high', 'low')[row % 4]},{-row}" for row in range(12)))
    if parquet:
        pyarrow.parquet.write_table(pyarrow.csv.read_csv(log), tmp_path / "heating.parquet")
        log = tmp_path / "heating.parquet"
    arguments = ["import", str(log), "--dataset", "mine/heating-v0", "--columns", "obs=indoor,action=setting,reward=comfort,episode=day"]
    assert "such as --actions off,low,high" in refusal(*arguments)
    assert "column setting: 'high' in row 2 is none of the actions off, low" in refusal(*arguments, "--actions", "off,low")
    for wrong in ("off,off", "off,1", "off"):
        assert f"--actions {wrong!r}" in refusal(*arguments, "--actions", wrong)
    report = answer(*arguments, "--actions", "off,low,high")
    assert report["spaces"]["actions"] == "Discrete(3)" and report["spaces"]["actions_declared"] and "actions are counted from 0: off, low, high" in report["findings"]
    from mucd_ray.data.formats.minari import load_dataset

    assert load_dataset("mine/heating-v0").actions.tolist() == [0, 1, 2, 1] * 3
    assert "--actions with names says nothing to the format npz" in refusal("import", str(foreign.npz(tmp_path, foreign.episodes())), "--dataset", "mine/a-v0", "--actions", "off,low")
