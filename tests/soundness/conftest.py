"""Lets the tests of this folder, and the benchmark, import `attackers`, and `problems` of the learn room's tests."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "learn")]
