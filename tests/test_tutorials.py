"""Tutorials and notebooks do what they say: every block of code runs, in the order of the page, in an empty folder."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
FENCED = re.compile(r"^```(python|sh)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def walked(folder: Path, script: str) -> subprocess.CompletedProcess:
    """A script of bash that stops at the first command that fails, in an empty folder, where `mucd`, `python` and `ray` are this environment's. What it leaves behind is ended."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "MINARI_DATASETS_PATH": str(folder / "datasets"), "PYTHONPATH": f"{DOCS.parent}:{folder}", "WALKED": str(folder),
    }
    (folder / "datasets").mkdir()
    with open(folder / "out", "w+") as out, open(folder / "err", "w+") as err:  # no pipes: a cluster that is left behind would keep them open
        status = subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=folder, env=environment, stdout=out, stderr=err).returncode
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"WALKED={folder}\0".encode() in (process / "environ").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)
    return subprocess.CompletedProcess(script, status, (folder / "out").read_text(), (folder / "err").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted(path.stem for path in (DOCS / "tutorials").glob("*.md")))
def test_a_tutorial_ends_in_a_valid_certificate(tmp_path, page):
    script = []
    for kind, block in FENCED.findall((DOCS / "tutorials" / f"{page}.md").read_text()):
        if kind == "python":
            (tmp_path / block.splitlines()[0].removeprefix("# ")).write_text(block)
        else:
            script.append(block)
    result = walked(tmp_path, "\n".join(script))
    assert result.returncode == 0, result.stderr[-2000:]
    assert re.search(r"^VALID", result.stdout, re.MULTILINE) and "Traceback" not in result.stderr


def cells(name: str) -> list[str]:
    notebook = json.loads((DOCS / "notebooks" / f"{name}.ipynb").read_text())
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("name", ["certify-your-own-votes", pytest.param("train-certify-act", marks=pytest.mark.slow)])
def test_a_notebook_runs_and_ends_without_an_error(tmp_path, name):
    (tmp_path / "notebook.py").write_text("\n".join(cells(name)))
    result = walked(tmp_path, "python notebook.py")
    assert result.returncode == 0, result.stderr[-2000:]
