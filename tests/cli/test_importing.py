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
    assert "no environment card is shipped for 'Nothing-v0'" in refusal("import", str(log), "--dataset", "mine/log-v0", "--columns", foreign.COLUMNS, "--environment", "Nothing-v0")
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
