"""Python modules that the user names on the command line: code, run because he says so, never because a file does."""

import contextlib
import importlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from mucd_ray.errors import MucdError
from mucd_ray.files import printable

MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
LONGEST_NAME = 1000


def named_module(where: str) -> ModuleType:
    """The module `package.module`, found from the working folder, too, or that of `path/to/file.py`. Raises whatever its import raises."""
    if not where.endswith(".py"):
        look_in_working_folder()
        return importlib.import_module(where)
    path = Path(where).resolve()
    loaded = sys.modules.get(path.stem)
    if loaded is not None and getattr(loaded, "__file__", None) == str(path):
        return loaded
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # of every name that ends in .py
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module


def import_modules(names: Iterable[str]) -> None:
    """Import the modules of `--import`, such as register environments.

    Raises:
        MucdError: one cannot be imported; says where it fails.
    """
    for name in names:
        try:
            named_module(name)
        except (Exception, SystemExit) as error:  # a module may raise anything
            raise MucdError(f"--import {name} cannot be imported ({told(error)}): give a module that Python finds here or on PYTHONPATH, or the path of a file, on every machine") from None


def check_module_name(name: str, option: str) -> None:
    """Raise MucdError unless `name` is that of a module, or the path of a file."""
    if not (isinstance(name, str) and name.isprintable() and 0 < len(name) <= LONGEST_NAME and (name.endswith(".py") or MODULE.fullmatch(name))):
        raise MucdError(f"{option} {printable(name)!r:.100} is no name of a module: use package.module or path/to/file.py")


def told(error: BaseException) -> str:
    """What was raised, and in which line of the user's code, if it got so far."""
    ours = (Path(__file__).parent, Path(importlib.__file__).parent)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<") and not any(Path(frame.filename).is_relative_to(folder) for folder in ours)]
    place = f" in {frames[-1].filename}, line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {printable(error)}{place}" if str(error) else f"{type(error).__name__}{place}"


def look_in_working_folder() -> None:
    """For modules, as `python -m` does; the console script of a package looks beside itself instead."""
    with contextlib.suppress(OSError):
        if not {"", os.getcwd()} & set(sys.path):
            sys.path.append(os.getcwd())
