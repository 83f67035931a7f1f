"""The job of the width sweep: finished rows are kept, tables written between their marks, bad input one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.formats.test_labelled import write_idx

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_sweep_goes_on_where_it_was_stopped(tmp_path):
    folder = write_idx(tmp_path / "idx", train=400, test=80, classes=8)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    out, table = tmp_path / "out", tmp_path / "results.md"
    table.write_text("before\n<!-- Written by jobs/robust_learning.py -->\nold\n<!-- End of what jobs/robust_learning.py writes -->\nafter\n")

    def job(*options):
        command = [sys.executable, "jobs/robust_learning.py", "--smoke", "--folder", str(folder), "--out", str(out), "--table", str(table), "--figure", str(tmp_path / "width.png"), *options]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)

    refused = job("--finished")
    assert refused.returncode == 2 and "holds no finished row" in refused.stderr and "Traceback" not in refused.stderr
    assert (done := job("--seed", "0")).returncode == 0, done.stderr
    assert done.stdout.count("width 30") == 5 and (tmp_path / "width.png").stat().st_size > 1000
    text = table.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "| 10 |" in text and "old" not in text and "bound against foresight" in text
    row = json.loads((out / "regime-b-30-0.json").read_text())
    assert 0 < row["B"] <= 0.1 and 0 <= row["accuracy"] <= 1
    (out / "regime-b-30-0.json").unlink()
    again = job("--seed", "0")
    assert again.stdout.count("seed 0") == 1 and "regime-b, width 30" in again.stdout
    assert json.loads((out / "regime-b-30-0.json").read_text())["accuracy"] == row["accuracy"]
    missing = job("--folder", str(tmp_path / "none"))
    assert missing.returncode == 2 and missing.stderr.count("\n") == 1
