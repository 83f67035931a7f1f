import sys
from pathlib import Path

import numpy as np
import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from mucd_ray.data.recording.record import record


@pytest.fixture
def minari_root(tmp_path, monkeypatch):
    """An empty folder as the local Minari store."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


@pytest.fixture
def cartpole(minari_root):
    """A small real CartPole dataset: its summary from the recorder."""
    return record("CartPole-v1", None, 1500, 7, "cartpole/small-v0")


@pytest.fixture
def arrays():
    """Valid arrays for `OfflineDataset.from_arrays`: 6 transitions in 2 trajectories, the second truncated."""
    import gymnasium as gym

    observations = np.arange(12, dtype=np.float32).reshape(6, 2)
    return {
        "observations": observations,
        "next_observations": observations + 2,
        "actions": np.array([1, 2, 3, 1, 2, 3]),
        "rewards": np.array([1.0, 1, 1, 2, 2, 2]),
        "terminations": np.array([0, 0, 1, 0, 0, 0], bool),
        "truncations": np.array([0, 0, 0, 0, 0, 1], bool),
        "action_space": gym.spaces.Discrete(3, start=1),
        "observation_space": gym.spaces.Box(-100, 100, (2,), np.float32),
    }
