"""Lets the tests of this folder, and the benchmark, import `attackers`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
