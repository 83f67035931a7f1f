"""How Sphinx builds the documentation (`make docs`). The page of the command line is made of the parsers themselves."""

import os
from pathlib import Path

from mucd_ray import __version__

project, version, release = "mucd_ray", __version__, __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["soundness/*"]
html_theme, html_title = "furo", "mucd_ray"
myst_enable_extensions, myst_heading_anchors = ["colon_fence"], 3
autodoc_member_order, autodoc_typehints = "bysource", "signature"
# argparse breaks lines where the terminal ends.
os.environ["COLUMNS"] = "110"


def setup(app) -> None:
    app.connect("autodoc-process-docstring", _plain)
    app.connect("builder-inited", lambda app: _write_command_line(Path(app.srcdir) / "reference" / "command-line.md"))


def _plain(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings are plain text with `code` in it: as reStructuredText."""
    for number, line in enumerate(lines):
        words = line.replace("``", "`").split("`")
        lines[number] = "``".join(word if at % 2 else word.replace("*", r"\*") for at, word in enumerate(words))


def _write_command_line(page: Path) -> None:
    """`mucd --help`, and each command's."""
    from mucd_ray.cli import build_parser

    parser = build_parser()
    (commands,) = (action.choices for action in parser._actions if isinstance(action.choices, dict))
    helps = {"mucd": parser} | {f"mucd {name}": command for name, command in commands.items()}
    text = "# Command line\n\n" + "\n\n".join(f"## {name}\n\n```text\n{command.format_help().strip()}\n```" for name, command in helps.items()) + "\n"
    if not page.exists() or page.read_text() != text:
        page.write_text(text)
