"""Labelled images: a training set whose examples are what an attacker may change, and a test set that the user trusts, whose images are the states (supervised classification as one-step data).

`mucd record --idx DIR` reads the files of MNIST and its relatives (IDX: LeCun, Cortes and Burges, yann.lecun.com/exdb/mnist) or CIFAR-10's binary version (Krizhevsky 2009) and writes
a dataset of four arrays. Every file may be an attacker's.
"""

import gzip
import hashlib
import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import gymnasium as gym
import numpy as np
from minari.storage import get_dataset_path

from mucd_ray.data.dataset import LabelledStates, OfflineDataset
from mucd_ray.data.formats.writing import folder_written_whole, target_folder
from mucd_ray.errors import MucdError
from mucd_ray.files import open_file, read_file, read_json, read_npy

# In the folder of a dataset: what tells it from one of Minari's.
FILE = "labelled.json"
MOST_CLASSES = 1 << 10
MOST_BYTES, MOST_METADATA = 1 << 32, 1 << 16
IDX_PARTS = {"train": "train", "test": "t10k"}
CIFAR_PARTS = {"train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test": ("test_batch.bin",)}
CIFAR_SHAPE, CIFAR_LABEL_BYTES, CIFAR_CLASSES = (3, 32, 32), 1, 10
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Images uint8 [N, *shape] and labels int64 [N], counted from 0.

    Raises:
        MucdError: numbers that do not fit one another.
    """

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self):
        if self.images.dtype != np.uint8 or self.images.ndim not in (3, 4) or not self.images.size:
            raise MucdError(f"images are {self.images.dtype} {self.images.shape}: bytes of shape [N, height, width] or [N, channels, height, width] are wanted, and at least one")
        if self.labels.shape != (len(self.images),) or self.labels.dtype.kind not in "iu" or self.labels.min() < 0 or self.labels.max() >= MOST_CLASSES:
            raise MucdError(f"labels are {self.labels.dtype} {self.labels.shape}: one whole number below {MOST_CLASSES} for each of the {len(self.images)} images is wanted")


def read_idx(path: Path) -> np.ndarray:
    """The array of an IDX file of bytes, or of a gzipped one: uint8 of the shape in its header.

    Raises:
        MucdError: another magic number, or more or fewer bytes than its header says.
    """
    content = _unpacked(path)
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise MucdError(f"{path} begins with {content[:4].hex() or 'nothing'}: an IDX file of bytes begins with 000008, then the number of dimensions")
    dimensions = content[3]
    start = 4 + 4 * dimensions
    shape = np.frombuffer(content[4:start].ljust(4 * dimensions, b"\0"), ">u4").tolist()
    if len(content) < start or not dimensions or len(content) - start != int(np.prod(np.array(shape, object))):
        raise MucdError(f"{path} has {len(content)} bytes, and its header says {' x '.join(map(str, shape)) or 'nothing'}: it is cut or damaged; copy it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_idx_folder(folder: Path) -> dict[str, LabelledImages]:
    """{"train", "test"} of a folder with train-images-idx3-ubyte, train-labels-idx1-ubyte and the same of t10k, each maybe with .gz; with a point instead of "-idx", too.

    Raises:
        MucdError: a file is missing, or is not what its name says.
    """
    found = {}
    for part, prefix in IDX_PARTS.items():
        images, labels = (read_idx(_idx_file(folder, f"{prefix}-{what}", dimensions)) for what, dimensions in (("images", 3), ("labels", 1)))
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            raise MucdError(f"{folder}: {prefix} images of shape {images.shape} and labels of shape {labels.shape} do not belong together: N x height x width and N are wanted")
        found[part] = LabelledImages(images=images, labels=labels.astype(np.int64))
    return found


def _idx_file(folder: Path, name: str, dimensions: int) -> Path:
    names = [f"{name}{point}idx{dimensions}-ubyte{end}" for end in ("", ".gz") for point in ("-", ".")]
    for candidate in names:
        if (folder / candidate).exists():
            return folder / candidate
    raise MucdError(f"{folder} has no {names[0]}, nor a gzipped one: --idx wants a folder with the four files of MNIST or a relative, or CIFAR-10's binary files")


def read_cifar_folder(folder: Path) -> dict[str, LabelledImages]:
    """{"train", "test"} of a folder with CIFAR-10's data_batch_1.bin to data_batch_5.bin and test_batch.bin: records of a label and 3 x 32 x 32 bytes.

    Raises:
        MucdError: a file is missing or cut, or holds a label above 9.
    """
    found = {}
    for part, names in CIFAR_PARTS.items():
        records = []
        for name in names:
            content, size = np.frombuffer(_unpacked(folder / name), np.uint8), CIFAR_LABEL_BYTES + int(np.prod(CIFAR_SHAPE))
            if not len(content) or len(content) % size:
                raise MucdError(f"{folder / name} has {len(content)} bytes, no whole number of records of {size}: it is cut or damaged; copy it again")
            records.append(content.reshape(-1, size))
        rows = np.concatenate(records)
        labels = rows[:, 0].astype(np.int64)
        if labels.max() >= CIFAR_CLASSES:
            raise MucdError(f"{folder}: label {labels.max()} is above {CIFAR_CLASSES - 1}: these are no files of CIFAR-10")
        found[part] = LabelledImages(images=np.ascontiguousarray(rows[:, CIFAR_LABEL_BYTES:]).reshape(-1, *CIFAR_SHAPE), labels=labels)
    return found


def _unpacked(path: Path) -> bytes:
    """The bytes of a file, unpacked where it is gzipped; never more than `MOST_BYTES`. Raises MucdError."""
    try:
        with open_file(path, MOST_BYTES) as file:
            if path.suffix != ".gz":
                return file.read(os.fstat(file.fileno()).st_size)
            with gzip.GzipFile(fileobj=file) as unpacked:
                content = unpacked.read(MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise MucdError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error}): copy it again") from None
    if len(content) > MOST_BYTES:
        raise MucdError(f"{path} holds more than {MOST_BYTES:,} bytes when unpacked: it is not what it should be")
    return content


def record_labelled(folder: str | Path, dataset_id: str, *, overwrite: bool = False, root: Path | None = None) -> dict:
    """Write the dataset of a folder of IDX or CIFAR-10 files; returns what `mucd record` tells. Raises MucdError as the readers, or where it cannot be written."""
    path = target_folder(dataset_id, overwrite, get_dataset_path() if root is None else root)
    folder = Path(folder)
    if not folder.is_dir():
        raise MucdError(f"--idx {folder} is no folder: give the one that holds the files")
    is_cifar = (folder / CIFAR_PARTS["test"][0]).exists()
    parts = (read_cifar_folder if is_cifar else read_idx_folder)(folder)
    train, test = parts["train"], parts["test"]
    if train.images.shape[1:] != test.images.shape[1:]:
        raise MucdError(f"{folder}: images for training of shape {train.images.shape[1:]} and for testing of shape {test.images.shape[1:]} are of two datasets: copy the files again")
    classes = CIFAR_CLASSES if is_cifar else max(2, int(test.labels.max()) + 1)
    if train.labels.max() >= classes:
        raise MucdError(f"{folder}: label {train.labels.max()} of an image for training is above {classes - 1}, the largest of those for testing: which classes there are follows from what is trusted")
    with folder_written_whole(dataset_id, path, overwrite=overwrite, payload=sum(part.images.nbytes + part.labels.nbytes for part in parts.values()) + (1 << 16)) as data:
        data.mkdir()
        for name, part in parts.items():
            np.save(data / f"{name}_images.npy", part.images)
            np.save(data / f"{name}_labels.npy", part.labels)
        (data / FILE).write_text(json.dumps({"format": FORMAT, "dataset_id": dataset_id, "classes": classes}))
    return {"dataset_id": dataset_id, "path": str(path), "images": len(train.images), "test_images": len(test.images), "shape": list(train.images.shape[1:]), "classes": classes}


def is_labelled(path: Path) -> bool:
    """Whether the dataset in this folder is one of labelled images."""
    return (path / "data" / FILE).is_file()


def labelled_metadata(path: Path) -> dict:
    """What `FILE` in this folder holds. Raises MucdError where it is not as this version writes it."""
    file = path / "data" / FILE
    described = read_json(read_file(file, MOST_METADATA, within=path), file)
    classes = described.get("classes") if isinstance(described, dict) else None
    if not isinstance(described, dict) or described.get("format") != FORMAT or type(classes) is not int or not 2 <= classes <= MOST_CLASSES:
        raise MucdError(f"{file} is not as this version writes it: make the dataset again with `mucd record --idx`")
    return described


def load_labelled(path: Path, dataset_id: str) -> OfflineDataset:
    """Every image of the training set as an episode of one step, whose action is the label; the test set beside it.

    Raises:
        MucdError: files that are damaged, or do not fit one another.
    """
    data = path / "data"
    classes = labelled_metadata(path)["classes"]
    train, test = (LabelledImages(images=_array(data / f"{part}_images.npy", path), labels=_array(data / f"{part}_labels.npy", path)) for part in ("train", "test"))
    if train.images.shape[1:] != test.images.shape[1:] or max(train.labels.max(), test.labels.max()) >= classes:
        raise MucdError("its images differ in shape, or a label is above its classes: make it again with `mucd record --idx`")
    count, shape = len(train.images), train.images.shape[1:]
    ends = np.ones(count, bool)
    return OfflineDataset.from_arrays(
        name=dataset_id, observations=train.images, next_observations=train.images, actions=train.labels, rewards=np.zeros(count), terminations=ends, truncations=~ends,
        trajectory_starts=np.arange(count + 1), action_space=gym.spaces.Discrete(classes), observation_space=gym.spaces.Box(0, 255, shape, np.uint8),
        test=LabelledStates(observations=test.images, labels=test.labels),
    )


def report_on(dataset: OfflineDataset) -> dict:
    """What `mucd inspect` tells of labelled images: counts, and copies among them."""
    assert dataset.test is not None
    classes = cast(gym.spaces.Discrete, dataset.action_space).n
    train, test = ([image.tobytes() for image in images] for images in (dataset.observations, dataset.test.observations))
    return {
        "dataset": dataset.name, "images": len(train), "test_images": len(test), "shape": list(dataset.observations.shape[1:]), "classes": int(classes),
        "images_by_class": np.bincount(dataset.actions, minlength=classes).tolist(), "test_images_by_class": np.bincount(dataset.test.labels, minlength=classes).tolist(),
        "copies": len(train) - len(set(train)), "test_images_among_them": len(set(test) & set(train)), "sha256": dataset.fingerprint(), "labels_sha256": content_of_test(dataset.test),
    }


def _array(path: Path, folder: Path) -> np.ndarray:
    try:
        return read_npy(read_file(path, MOST_BYTES, within=folder), path, most_bytes=MOST_BYTES)
    except OSError as error:
        raise MucdError(f"{path} cannot be read ({error.strerror}): make the dataset again with `mucd record --idx`") from None


def content_of_test(test: LabelledStates) -> str:
    """SHA-256 of images and labels."""
    digest = hashlib.sha256()
    for array in (test.observations, test.labels):
        digest.update(f"{array.dtype.str} {array.shape};".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
