"""Labelled images: files of MNIST and CIFAR-10 as their makers describe them, the dataset made of them, and files that are not what they say."""

import gzip
import json
import os
import re
import struct

import gymnasium
import numpy as np
import pytest

from mucd_ray.cli import main
from mucd_ray.data.formats import labelled
from mucd_ray.data.formats.labelled import FILE, content_of_test, read_cifar_folder, read_idx, read_idx_folder, record_labelled
from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.errors import MucdError

pytestmark = pytest.mark.usefixtures("minari_root")


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_idx(folder, train=30, test=8, side=6, classes=3, seed=0):
    """The four files; labels follow from the brightness of an image's first row."""
    rng = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    for prefix, count in (("train", train), ("t10k", test)):
        labels = np.arange(count) % classes
        images = rng.integers(0, 60, (count, side, side))
        images[:, 0] += (labels * 60)[:, None]
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return folder


def test_images_and_labels_are_those_of_the_files(tmp_path, capfd):
    folder = write_idx(tmp_path / "idx")
    parts = read_idx_folder(folder)
    assert parts["train"].images.shape == (30, 6, 6) and parts["test"].labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert main(["record", "--idx", str(folder), "--dataset", "images/idx-v0", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert (told["images"], told["test_images"], told["shape"], told["classes"]) == (30, 8, [6, 6], 3)
    dataset = load_dataset("images/idx-v0")
    assert (dataset.observations == parts["train"].images).all() and (dataset.actions == parts["train"].labels).all() and dataset.trajectories == len(dataset) == 30
    assert dataset.action_space == gymnasium.spaces.Discrete(3) and dataset.observation_space == gymnasium.spaces.Box(0, 255, (6, 6), np.uint8)
    assert (dataset.test.observations == parts["test"].images).all() and (dataset.test.labels == parts["test"].labels).all()
    assert main(["inspect", "images/idx-v0", "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["images_by_class"] == [10, 10, 10] and report["copies"] == 0 and report["labels_sha256"] == content_of_test(dataset.test)
    # What an attacker may change is the training set alone, and another test set is another run.
    record_labelled(write_idx(tmp_path / "other", test=9), "images/other-v0")
    assert load_dataset("images/other-v0").fingerprint() == dataset.fingerprint()
    assert content_of_test(load_dataset("images/other-v0").test) != content_of_test(dataset.test)


def test_cifar_10s_binary_files(tmp_path):
    rng = np.random.default_rng(1)
    names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    records = {name: (rng.integers(0, 10, 4, np.uint8), rng.integers(0, 256, (4, 3, 32, 32), np.uint8)) for name in names}
    for name, (labels, images) in records.items():
        (tmp_path / name).write_bytes(b"".join(bytes([label]) + image.tobytes() for label, image in zip(labels, images)))
    record_labelled(tmp_path, "images/cifar-v0")
    dataset = load_dataset("images/cifar-v0")
    assert (dataset.observations == np.concatenate([records[name][1] for name in names[:5]])).all() and (dataset.actions == np.concatenate([records[name][0] for name in names[:5]])).all()
    assert (dataset.test.observations == records["test_batch.bin"][1]).all()
    (tmp_path / "data_batch_3.bin").write_bytes((tmp_path / "data_batch_3.bin").read_bytes()[:-1])
    with pytest.raises(MucdError, match="12291 bytes, no whole number of records of 3073: it is cut or damaged"):
        read_cifar_folder(tmp_path)


@pytest.mark.parametrize("name, content, words", [
    ("train-images-idx3-ubyte", idx(np.zeros((30, 6, 6)))[:-1], "1095 bytes, and its header says 30 x 6 x 6: it is cut or damaged"),
    ("train-images-idx3-ubyte", b"\0\0\x0d\x03" + idx(np.zeros((30, 6, 6)))[4:], "begins with 00000d03: an IDX file of bytes begins with 000008"),
    ("train-images-idx3-ubyte", b"", "begins with nothing"),
    ("train-images-idx3-ubyte", b"\0\0\x08\xff" + b"\xff" * 64, "it is cut or damaged"),
    ("train-images-idx3-ubyte", idx(np.zeros((29, 6, 6))), r"of shape \(29, 6, 6\) and labels of shape \(30,\) do not belong together"),
    ("train-images-idx3-ubyte", idx(np.zeros((30, 7, 6))), r"of shape \(7, 6\) and for testing of shape \(6, 6\) are of two datasets"),
    ("train-labels-idx1-ubyte.gz", gzip.compress(idx(np.full(30, 9)), mtime=0), "label 9 of an image for training is above 2, the largest of those for testing"),
    ("t10k-labels-idx1-ubyte.gz", gzip.compress(idx(np.zeros(8)))[:-9], "cannot be read .*: copy it again"),
    ("t10k-labels-idx1-ubyte.gz", b"not gzip", "cannot be read"),
], ids=["cut", "reals", "empty", "255 dimensions", "one image less", "other shape", "label too large", "cut gzip", "no gzip"])  # fmt: skip
def test_files_that_are_not_what_they_say(tmp_path, name, content, words, capfd):
    folder = write_idx(tmp_path / "idx")
    (folder / name).write_bytes(content)
    assert main(["record", "--idx", str(folder), "--dataset", "images/bad-v0"]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and re.search(words, lines[0]), lines
    with pytest.raises(MucdError, match="unknown|no dataset|not"):
        load_dataset("images/bad-v0")


def test_a_file_that_unpacks_to_too_much_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(labelled, "MOST_BYTES", 1 << 16)
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bytes(1 << 24)))
    with pytest.raises(MucdError, match="more than 65,536 bytes when unpacked"):
        read_idx(tmp_path / "bomb.gz")


@pytest.mark.parametrize("damage, words", [
    (lambda data: (data / FILE).write_text('{"format": 1}'), "labelled.json"),
    (lambda data: (data / FILE).write_text('{"format": 1, "dataset_id": "x", "classes": 1e9}'), "labelled.json"),
    (lambda data: (data / "train_images.npy").unlink(), "cannot be read"),
    (lambda data: np.save(data / "train_labels.npy", np.full(30, 3)), "a label is above its classes"),
    (lambda data: np.save(data / "train_labels.npy", np.full(30, -1)), "labels are int64"),
    (lambda data: np.save(data / "train_images.npy", np.zeros((30, 6, 6))), "images are float64"),
    (lambda data: np.save(data / "test_images.npy", np.zeros((8, 6, 7), np.uint8)), "differ in shape"),
    (lambda data: np.save(data / "test_labels.npy", np.array([object()] * 8), allow_pickle=True), "test_labels.npy"),
    (lambda data: ((data / "test_labels.npy").unlink(), os.symlink("/etc/passwd", data / "test_labels.npy")), "test_labels.npy"),
])
def test_a_damaged_dataset_is_one_line(tmp_path, minari_root, damage, words):
    record_labelled(write_idx(tmp_path / "idx"), "images/idx-v0")
    damage(minari_root / "images" / "idx-v0" / "data")
    with pytest.raises(MucdError, match=words) as caught:
        load_dataset("images/idx-v0")
    assert "\n" not in str(caught.value)


def test_what_does_not_go_with_images_is_said(tmp_path, capfd):
    folder = write_idx(tmp_path / "idx")
    for arguments, words in (
        (["record", "--idx", str(folder)], "--idx DIR takes --dataset ID"),
        (["record", "CartPole-v1", "--idx", str(folder), "--dataset", "images/idx-v1"], "nothing about environments"),
        (["record", "--idx", str(tmp_path / "none"), "--dataset", "images/idx-v1"], "is no folder"),
        (["record", "--idx", str(tmp_path), "--dataset", "images/idx-v1"], "has no train-images-idx3-ubyte"),
    ):
        assert main(arguments) == 2
        line, = capfd.readouterr().err.splitlines()
        assert words in line, line
