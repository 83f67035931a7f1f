"""Sorting units into the parts of a partition: a unit's own content decides, and nothing else."""

import hashlib

import numpy as np

from mucd_ray.learn import streams as purposes
from mucd_ray.learn.streams import Streams
from mucd_ray.learn.trainers.recorded import Recorded
from mucd_ray.learn.units import Units
from mucd_ray.mechanism.partition import Partition

# Everything of a transition that a learner reads, and where the trajectories of a source end.
CONTENT = ("features", "next_features", "actions", "rewards", "keeps", "ends")


def units_by_part(partition: Partition, units: Units | Recorded) -> list[np.ndarray]:
    """Indices of the units in every part [u], each in as many as it is spread over: their order within a part, too, follows from their content alone.

    Units of equal content are in one part, where it does not matter which is first.
    """
    digests = [content_digest(units, start, length) for start, length in zip(units.starts.tolist(), units.lengths.tolist())]
    parts: list[list[int]] = [[] for _ in range(partition.parts)]
    reached = partition.reached().tolist()
    for index in sorted(range(len(digests)), key=digests.__getitem__):
        # The remainder of 256 random bits is uniform to 2^-200.
        for part in reached[int.from_bytes(digests[index], "big") % partition.parts]:
            parts[part].append(index)
    return [np.array(part, np.int64) for part in parts]


def content_digest(units: Units | Recorded, start: int, length: int) -> bytes:
    """Hash of everything that a learner reads of a unit, the rows start ... start + length - 1."""
    digest = hashlib.sha256(f"{length};".encode())
    for name in getattr(units, "CONTENT", CONTENT):
        array = getattr(units, name)
        if len(array):
            rows = np.ascontiguousarray(array[start : start + length])
            digest.update(rows.astype(rows.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.digest()


def draw_part(partition: Partition, instance: int, streams: Streams) -> int:
    """The part whose policy this instance is: uniform, whatever the data are."""
    return int(streams.generator(instance, 0, purposes.BAG).integers(partition.parts))
