"""Packages of others with plug-ins: the one of docs/plugins.md, installed by pip, and ones that are written by hand as pip leaves them."""

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "plugins.md"


def install_documented(folder: Path) -> Path:
    """The package of the page, as a user installs it; returns where."""
    source, site = folder / "source", folder / "site"
    for name, content in re.findall(r"`([\w./]+)`[^`\n]*(?:`[^`\n]*`[^`\n]*)?:\n\n```\w+\n(.*?)```", PAGE.read_text(), re.DOTALL):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(content)
    (source / "corridor_plugins" / "__init__.py").write_text("")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(site), str(source)]
    subprocess.run(pip, check=True, capture_output=True)
    return site


def write_package(site: Path, name: str, groups: dict[str, dict[str, str]], files: dict[str, str]) -> None:
    """A package `name` 1.0 in the folder `site`, with entry points {group: {name: value}} and files by their names below its own folder."""
    info = site / f"{name}-1.0.dist-info"
    for folder in (info, site / name):
        folder.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("".join(f"[mucd_ray.{group}]\n" + "".join(f"{key} = {value}\n" for key, value in entries.items()) for group, entries in groups.items()))
    for file, content in ({"__init__.py": ""} | files).items():
        (site / name / file).write_text(content)
