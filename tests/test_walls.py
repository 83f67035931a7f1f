"""Imports run downwards only (docs/layout in the README): checked in the sources, and for `verify` in a real process."""

import ast
import graphlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mucd_ray"
HEAVY = {"torch", "opacus", "ray", "gymnasium", "minari", "ale_py", "matplotlib"}
FORBIDDEN = {
    "data": {"torch", "opacus", "ray"},
    "mechanism": HEAVY,
    "certify": HEAVY,
    "learn": {"ray"},
    "evaluate": {"ray"},
    "attack": {"ray"},
    "robust": {"ray"},
    "report": {"torch", "opacus", "ray", "gymnasium", "minari"},
}
ROOMS_BELOW = {
    "data": set(),
    "mechanism": set(),
    "certify": {"mechanism"},
    "learn": {"data", "mechanism"},
    "evaluate": {"data", "mechanism", "learn"},
    "attack": {"data", "mechanism", "certify", "learn"},
    "robust": {"data", "mechanism", "certify", "learn", "attack"},
    "report": {"mechanism", "certify"},
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


@pytest.mark.parametrize("room", FORBIDDEN)
def test_a_room_imports_only_what_lies_below_it(room):
    for path in (PACKAGE / room).rglob("*.py"):
        for name in imports(path):
            top, *rest = name.split(".")
            assert top not in FORBIDDEN[room], f"{path} imports {name}"
            if top == "mucd_ray" and len(rest) > 1:
                assert rest[0] == room or rest[0] in ROOMS_BELOW[room], f"{path} imports {name}"


def test_no_circle_anywhere():
    """Of all imports, those inside functions too: what a file needs lies below it."""
    files = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path for path in PACKAGE.rglob("*.py")}
    needs = {}
    for name, path in files.items():
        needs[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                needs[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path} imports relative to itself"
                # A module of a package, or a name that the package itself defines.
                needs[name] |= {whole if (whole := f"{node.module}.{alias.name}") in files else node.module for alias in node.names}
    assert "mucd_ray.learn.engines.modules" in needs["mucd_ray.learn.ensemble"], "imports inside functions count"
    graphlib.TopologicalSorter({name: of & (files.keys() - {name}) for name, of in needs.items()}).prepare()


def test_what_is_imported_is_there():
    """Also by functions that only a worker, or one command, calls."""
    for path in [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "jobs").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("mucd_ray"):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}"), f"{path}:{node.lineno} {alias.name}"


def test_nothing_is_unpickled():
    """But states of environments, which the process has pickled itself and keeps to itself: that file reads and writes nothing."""
    kept = PACKAGE / "evaluate" / "snapshots.py"
    assert not re.search(r"open|read_|write_|storage", kept.read_text())
    for path in PACKAGE.rglob("*.py"):
        names = set(imports(path)) - ({"pickle"} if path == kept else set())
        assert not names & {"pickle", "cloudpickle", "joblib", "dill"}, path
        assert "allow_pickle=True" not in path.read_text() and "weights_only=False" not in path.read_text(), path


def test_certificates_are_checked_without_the_heavy_packages():
    code = (
        "import sys; import mucd_ray.cli; import mucd_ray.certify.file.certificate; import mucd_ray.certify.planning.plan; "
        f"sys.exit(' '.join(sorted(set(sys.modules) & {HEAVY!r})) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
