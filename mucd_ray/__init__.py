"""Offline reinforcement learning that provably withstands poisoned data."""

from importlib.metadata import version

__version__ = version("mucd_ray")
