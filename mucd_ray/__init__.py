"""Offline reinforcement learning that provably withstands poisoned data. The Python API (`mucd_ray/api.py`): run, load, certify, verify."""

import importlib
from importlib.metadata import version

__version__ = version("mucd_ray")
__all__ = ["MucdError", "certify", "load", "run", "verify"]


def __getattr__(name: str):
    """What a script needs is imported when it is used: `verify` needs neither torch nor Ray."""
    if name == "certify":
        return importlib.import_module("mucd_ray.certify")
    if name == "MucdError":
        return importlib.import_module("mucd_ray.errors").MucdError
    if name in __all__:
        return getattr(importlib.import_module("mucd_ray.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
