"""The folder in which a command finds its bag, in the format that it asks for."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from minari.serialization import serialize_space

from mucd_ray.learn.trainers.given import GivenBag

# The id of the one dataset in the folder.
MINARI_ID = "bag-v0"


def write_npz(bag: GivenBag, folder: Path) -> None:
    """`bag.npz`: the flat arrays by their names, and as texts `unit` and the spaces in Minari's JSON."""
    (folder / "bag.npz").write_bytes(bag.to_npz())


def write_minari(bag: GivenBag, folder: Path) -> None:
    """The Minari dataset `bag-v0` (HDF5), an episode for each trajectory, whose metadata say of which of the bag's units it is."""
    # Not where no bag is asked for in this format: they import HDF5.
    import minari
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    data = folder / MINARI_ID / "data"
    data.mkdir(parents=True)
    storage = MinariStorage.new(data, bag.observation_space, bag.action_space, jpeg_encoding=False)
    storage.update_metadata({"dataset_id": MINARI_ID, "minari_version": minari.__version__})
    storage.update_episodes([
        EpisodeBuffer(
            observations=trajectory.observations, actions=trajectory.actions, rewards=trajectory.rewards, terminations=trajectory.terminations,
            truncations=trajectory.truncations,
        )
        for trajectory in bag.trajectories
    ])
    storage.update_episode_metadata([{"unit": unit} for unit in bag.units.tolist()])


def write_parquet(bag: GivenBag, folder: Path) -> None:
    """`bag.parquet`: a row for each transition, observations and continuous actions as flat lists; the texts of `write_npz` among the schema's metadata."""
    import pyarrow
    import pyarrow.parquet

    def column(array: np.ndarray) -> pyarrow.Array:
        if array.ndim == 1:
            return pyarrow.array(array)
        flat = array.reshape(len(array), -1)
        return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(flat.reshape(-1)), flat.shape[1])

    of_row = np.repeat(np.arange(len(bag.starts) - 1), np.diff(bag.starts))
    table = pyarrow.table({
        "observation": column(bag.observations), "action": column(bag.actions), "reward": column(bag.rewards), "next_observation": column(bag.next_observations),
        "terminated": column(bag.terminated), "truncated": column(bag.truncated), "episode": column(of_row), "unit": column(bag.units[of_row]),
    })
    texts = {"unit": bag.unit, "observation_space": serialize_space(bag.observation_space), "action_space": serialize_space(bag.action_space)}
    pyarrow.parquet.write_table(table.replace_schema_metadata(texts), folder / "bag.parquet")


WRITERS: dict[str, Callable[[GivenBag, Path], None]] = {"npz": write_npz, "minari": write_minari, "parquet": write_parquet}
