"""Lets the tests of this folder import `loopback`, and stops what they start."""

import shutil
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from loopback import Nodes


@pytest.fixture
def nodes(request):
    """Nodes without TLS, or what the test's parameter says."""
    # Ray's sockets need a short path.
    folder = Path(tempfile.mkdtemp(prefix="mucd-"))
    found = Nodes(folder, **getattr(request, "param", {}))
    try:
        yield found
    finally:
        found.stop()
        shutil.rmtree(folder, ignore_errors=True)
