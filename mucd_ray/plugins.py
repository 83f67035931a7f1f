"""Plug-ins: what other installed packages add to this one, by entry points of the groups below.

They are found without importing anything, and imported only where the user names one on the command line: never because a dataset or a run folder does. What is hashed of one are the files of
the package that holds it, as they are installed, with its name and version; not what it imports from elsewhere.
"""

import contextlib
import functools
import hashlib
import importlib.util
import re
import sys
from collections.abc import Collection
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from mucd_ray.errors import MucdError
from mucd_ray.files import printable
from mucd_ray.modules import told

GROUPS = {"trainer": "mucd_ray.trainers", "format": "mucd_ray.formats", "card": "mucd_ray.cards", "features": "mucd_ray.features"}
# Certificates repeat these texts: they must not be able to be sentences.
NAME = re.compile(r"[\w./-]{1,200}")
TEXTS = {
    "kind": re.compile("|".join(GROUPS)), "name": NAME, "value": re.compile(r"[\w.]{1,200}:[\w.]{1,200}"), "package": re.compile(r"[\w.-]{1,200}"),
    "version": re.compile(r"[\w.+!-]{1,200}"), "sha256": re.compile("[0-9a-f]{64}"),
}


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """One plug-in, as a certificate names it.

    Attributes:
        kind: one of GROUPS.
        name, value: of its entry point, such as "forest" and "my_package.forest:train".
        package, version: of the distribution that brings it.
        sha256: over these and all files of its top-level Python package, but for compiled and hidden ones.

    Raises:
        MucdError: a field is not what it should be.
    """

    kind: str
    name: str
    value: str
    package: str
    version: str
    sha256: str

    def __post_init__(self):
        for name, wanted in TEXTS.items():
            if not isinstance(value := getattr(self, name), str) or not wanted.fullmatch(value):
                raise MucdError(f"{name} {printable(value)!r:.100} of a plug-in must match {wanted.pattern}")

    def __str__(self) -> str:
        return f"{self.kind} {self.name} of {self.package} {self.version}"

    def load(self):
        """The object itself, imported here, or the path of a JSON file, "package:name.json" beside the modules of that package.

        Raises:
            MucdError: it cannot be imported, or its files have changed since this process did.
        """
        if _loaded.get((self.kind, self.name), self) != self and not self.value.endswith(".json"):
            raise MucdError(f"the plug-in {self} has changed since this process imported it: start anew")
        entry = metadata.EntryPoint(self.name, self.value, GROUPS[self.kind])
        try:
            found = _json_file(entry) or entry.load()
        except (Exception, SystemExit) as error:  # a module may raise anything
            raise MucdError(f"the plug-in {self} cannot be imported ({told(error)}): mend {self.value}, or uninstall {self.package}") from None
        _loaded[self.kind, self.name] = self
        return found


# What this process has imported: Python would not do so again.
_loaded: dict[tuple[str, str], Plugin] = {}


def listed(kind: str) -> list[str]:
    """The installed ones of a kind, for people."""
    return [f"{printable(entry.name)} ({printable(_package(entry).name)} {printable(_package(entry).version)})" for entry in _installed(kind)]


def choices(kind: str, shipped: Collection[str]) -> str:
    """Of what there is to choose from, in words: names of the package's own, then the plug-ins."""
    return ", ".join([*shipped, *(f"the plug-in {text}" for text in listed(kind))])


def find(kind: str, name: str, shipped: Collection[str] = ()) -> Plugin | None:
    """The installed plug-in of this name, or None; nothing is imported.

    Args:
        shipped: names of the package's own.
    Raises:
        MucdError: one of these is the same, two packages have one of this name, or its files are not there.
    """
    entries = [entry for entry in _installed(kind) if entry.name == name and NAME.fullmatch(name)]
    if not entries:
        return None
    brought = " and ".join(f"{_package(entry).name} {_package(entry).version} ({entry.value})" for entry in entries)
    if name in shipped:
        raise MucdError(f"{kind} {name} is mucd_ray's own and also a plug-in of {brought}: a plug-in never takes the place of what is shipped; rename it in that package, or uninstall it")
    if len(entries) > 1:
        raise MucdError(f"{kind} {name} is a plug-in of {brought}: only one of them may be installed")
    return _plugin(kind, entries[0])


def at_hand(kind: str) -> list[tuple[str, object]]:
    """(name, what `load` gives) of the plug-ins for which nothing has to be imported: JSON files, and objects of modules that have been imported already."""
    found: list[tuple[str, object]] = []
    for entry in _installed(kind):
        with contextlib.suppress(Exception):  # nobody has asked for it
            found.append((entry.name, _json_file(entry) or functools.reduce(getattr, entry.attr.split("."), sys.modules[entry.module])))
    return found


def check_same(plugins: Collection[Plugin], run: str) -> None:
    """Raise MucdError unless these plug-ins of a run are installed as they were; nothing is imported. Not those that made the dataset: what they made is there."""
    for plugin in plugins:
        now = find(plugin.kind, plugin.name) if plugin.kind != "format" else plugin
        if now != plugin:
            how = "is not installed here" if now is None else f"has other files now (SHA-256 {now.sha256[:16]}..., then {plugin.sha256[:16]}...)" if str(now) == str(plugin) else f"is now {now}"
            raise MucdError(f"{run} began with the plug-in {plugin}, which {how}: install it as it was, or start a new run folder")


def from_values(values) -> tuple[Plugin, ...]:
    """Plug-ins from their fields as JSON values, which anybody may have written. Raises MucdError."""
    if not isinstance(values, list | tuple) or not all(isinstance(value, dict) and set(value) == set(TEXTS) for value in values):
        raise MucdError(f"plugins must be a list of objects with exactly the fields {', '.join(TEXTS)}")
    return tuple(Plugin(**value) for value in values)


def _installed(kind: str) -> list[metadata.EntryPoint]:
    """By name. Of a package that is installed twice the first on the path counts, and one whose metadata cannot be read has none."""
    entries: dict[str, list[metadata.EntryPoint]] = {}
    for distribution in metadata.distributions():
        with contextlib.suppress(Exception):  # whatever lies on the path
            own = [entry for entry in distribution.entry_points if entry.group == GROUPS[kind]]
            entries.setdefault(re.sub("[-_.]+", "-", distribution.name).lower(), own)
    return sorted((entry for own in entries.values() for entry in own), key=lambda entry: (entry.name, _package(entry).name))


def _package(entry: metadata.EntryPoint) -> metadata.Distribution:
    """The one that it was found in."""
    assert entry.dist is not None
    return entry.dist


def _json_file(entry: metadata.EntryPoint) -> Path | None:
    return dict(_files(entry.module)).get(f"{entry.module.replace('.', '/')}/{entry.attr}") if entry.attr.endswith(".json") else None


def _plugin(kind: str, entry: metadata.EntryPoint) -> Plugin:
    try:
        values = {"kind": kind, "name": entry.name, "value": f"{entry.module}:{entry.attr or ''}", "package": _package(entry).name, "version": _package(entry).version}
        digest = hashlib.sha256("\n".join([*values.values(), ""]).encode())
        for name, path in _files(entry.module):
            digest.update(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}\n".encode())
        return Plugin(**values, sha256=digest.hexdigest())
    except (MucdError, ImportError, ValueError, AttributeError, TypeError, OSError) as error:
        raise MucdError(f"the plug-in {kind} {printable(entry.name)} of {printable(_package(entry).name)}, {printable(entry.value)}, cannot be found ({printable(error)}): mend its entry point, or install that package anew") from None


def _files(module: str) -> list[tuple[str, Path]]:
    """(name relative to where packages lie, path) of the files of the package, or the file, that holds a module. A package by itself is found without being imported; what is above it is no code."""
    name, spec = "", None
    for part in module.split("."):
        name = f"{name}.{part}".lstrip(".")
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise ImportError(f"there is no module {name}")
        if spec.origin is not None:
            break
    assert spec is not None
    if spec.submodule_search_locations is None:
        return [(f"{name.replace('.', '/')}.py", Path(spec.origin or ""))]
    files = []
    for folder in map(Path, spec.submodule_search_locations):
        inside = ((path.relative_to(folder), path) for path in folder.rglob("*"))
        files += [(f"{name.replace('.', '/')}/{place.as_posix()}", path) for place, path in inside if not _is_passing(place) and path.is_file()]
    return sorted(files)


def _is_passing(place: Path) -> bool:
    """Whether Python, or an editor, makes such a file as it goes."""
    return place.suffix in (".pyc", ".pyo") or any(part == "__pycache__" or part.startswith(".") for part in place.parts)
