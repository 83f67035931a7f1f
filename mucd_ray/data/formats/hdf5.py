"""Arrays of an HDF5 file that may be hostile: plain numbers that lie in this very file, no larger than it.

HDF5 can point elsewhere (external and soft links, external storage, virtual datasets, references), load libraries (filters) and
declare arrays that the file does not hold. Whatever is not a plain array is refused before anything of it is read.
"""

import math
import zlib

import h5py
import numpy as np

from mucd_ray.data.formats.jpeg import decoded
from mucd_ray.data.formats.metadata import MOST_TEXT
from mucd_ray.errors import MucdError
from mucd_ray.files import printable

DEFLATE, SHUFFLE, FLETCHER32 = 1, 2, 3
MOST_CHUNK_BYTES = 1 << 28
MOST_CHUNKS = 1 << 20
TEXT_BYTES_AT_A_TIME = 1 << 25
# Of what is stored compressed, in all: beyond it a small file could fill the memory.
MOST_UNPACKED_BYTES = 1 << 33


class Hdf5File:
    """An open file and what was read of it; all reads raise ValueError for what is not a plain array, MucdError for what is no source key, or whatever h5py raises on damage.

    Args:
        content_bytes: size of the file: arrays stored as they are may take as much in all, and each byte counts every time that it is read.
    """

    def __init__(self, file: h5py.File, content_bytes: int):
        self.file, self.content_bytes, self.plain_left, self.unpacked_left = file, content_bytes, content_bytes, MOST_UNPACKED_BYTES
        self.chunks_left = MOST_CHUNKS

    def group(self, parent: h5py.Group, name: str) -> h5py.Group:
        return self._member(parent, name, h5py.Group)

    def array(self, parent: h5py.Group, name: str) -> np.ndarray:
        """An array of numbers."""
        dataset = self._member(parent, name, h5py.Dataset)
        if dataset.dtype.kind not in "fiub" or dataset.dtype.itemsize > 8 or dataset.dtype.subdtype:
            raise ValueError(f"{dataset.name} has dtype {str(dataset.dtype)[:100]}: only numbers are read")
        self._check_layout(dataset)
        filters = _filters(dataset)
        array = self._unpacked(dataset, filters) if filters else self._plain(dataset)
        # The bytes of a file may make a boolean that is neither 0 nor 1.
        return array.view(np.uint8) != 0 if array.dtype.kind == "b" else array

    def names(self, group: h5py.Group) -> set[str]:
        """Of its members; more than MOST_CHUNKS are refused."""
        if len(group) > MOST_CHUNKS:
            raise ValueError(f"{group.name} has more than {MOST_CHUNKS:,} members")
        return set(group.keys())

    def has(self, parent: h5py.Group, name: str) -> bool:
        return name in parent.keys()

    def rank(self, parent: h5py.Group, name: str) -> int:
        """How many axes an array has; of what is no array more than any."""
        member = parent[name] if type(parent.get(name, getlink=True)) is h5py.HardLink else None
        return len(member.shape) if isinstance(member, h5py.Dataset) and member.shape is not None else 100

    def number(self, parent: h5py.Group, name: str):
        """One number that is stored by itself."""
        dataset = self._member(parent, name, h5py.Dataset)
        if dataset.shape != () or dataset.dtype.kind not in "fiub" or dataset.dtype.itemsize > 8 or dataset.dtype.subdtype or dataset.is_virtual or dataset.external:
            raise ValueError(f"{dataset.name} is not one number")
        return dataset[()]

    def texts(self, parent: h5py.Group, name: str) -> list[str]:
        """A list of texts, stored plainly."""
        dataset = self._member(parent, name, h5py.Dataset)
        if dataset.ndim != 1 or h5py.check_string_dtype(dataset.dtype) is None or not _is_key(dataset.dtype) or _filters(dataset):
            raise ValueError(f"{dataset.name} is no list of texts")
        self._check_layout(dataset)
        self._take_plain(dataset, dataset.nbytes)
        found, at_a_time = [], max(1, TEXT_BYTES_AT_A_TIME // self.content_bytes)
        for start in range(0, len(dataset), at_a_time):
            for text in dataset[start : start + at_a_time]:
                if len(text) > 4 * MOST_TEXT:
                    raise ValueError(f"{dataset.name} holds texts of more than {MOST_TEXT} characters")
                found.append(text.decode("utf-8", "replace"))
        return found

    def attribute(self, group: h5py.Group, name: str):
        """An attribute that is one text or number; None if there is none, or something else."""
        if name not in group.attrs:
            return None
        of = group.attrs.get_id(name)
        text = h5py.check_string_dtype(of.dtype)
        if of.shape != () or text is None and (of.dtype.kind not in "fiub" or of.dtype.itemsize > 8):
            return None
        value = group.attrs[name]
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else value

    def _plain(self, dataset: h5py.Dataset) -> np.ndarray:
        if dataset.id.get_storage_size() < dataset.nbytes:
            raise ValueError(f"{dataset.name} declares {dataset.nbytes:,} bytes and holds {dataset.id.get_storage_size():,}")
        self._take_plain(dataset, dataset.nbytes)
        return dataset[()]

    def images(self, parent: h5py.Group, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """uint8 [T, *shape] of T images stored as JPEG files, each a row of bytes."""
        dataset = self._member(parent, name, h5py.Dataset)
        self._check_layout(dataset)
        varying = h5py.check_vlen_dtype(dataset.dtype)
        plain = dataset.dtype == np.uint8 and dataset.ndim == 2
        if not (plain or varying is not None and np.dtype(varying) == np.uint8 and dataset.ndim == 1) or _filters(dataset):
            raise ValueError(f"{dataset.name} is no list of JPEG files")
        self._take_plain(dataset, dataset.shape[0] * (dataset.shape[1] if plain else 16))
        self._take_unpacked(dataset, dataset.shape[0] * math.prod(shape))
        images = np.empty((dataset.shape[0], *shape), np.uint8)
        for row in range(dataset.shape[0]):
            images[row] = decoded(np.asarray(dataset[row], np.uint8).tobytes(), shape)
        return images

    def keys(self, episode: h5py.Group, name: str) -> list:
        """What is recorded of an episode under this name: its attribute, and the one value that infos/NAME has at all steps; each a text (bytes or str) or a whole number."""
        found = []
        if name in episode.attrs:
            attribute = episode.attrs.get_id(name)
            if attribute.shape not in ((), (1,)) or not _is_key(attribute.dtype):
                raise MucdError(f"attribute {printable(name)!r} of {episode.name} is neither a text nor a whole number: give another source key")
            found.append(episode.attrs[name][0] if attribute.shape else episode.attrs[name])
        # A path would be followed through links.
        if "/" not in name and name in (infos := self._infos(episode)):
            found.append(self._constant(infos, name))
        return found

    def key_names(self, episode: h5py.Group) -> set[str]:
        """Names that `keys` reads, by their type."""
        infos = self._infos(episode)
        plain = {name for name in infos if type(infos.get(name, getlink=True)) is h5py.HardLink and isinstance(infos[name], h5py.Dataset)}
        return {name for name in episode.attrs if _is_key(episode.attrs.get_id(name).dtype)} | {name for name in plain if _is_key(infos[name].dtype)}

    def all_names(self, episode: h5py.Group) -> set[str]:
        """Everything that is recorded beside an episode's arrays, of whatever type."""
        return {*episode.attrs, *self._infos(episode)}

    def _infos(self, episode: h5py.Group):
        return self.group(episode, "infos") if "infos" in episode else {}

    def _constant(self, infos: h5py.Group, name: str):
        dataset = self._member(infos, name, h5py.Dataset)
        if dataset.ndim != 1 or not len(dataset) or not _is_key(dataset.dtype):
            raise MucdError(f"{printable(dataset.name)} is neither a list of texts nor of whole numbers: give another source key")
        if dataset.dtype.kind in "iub":
            values = iter(self.array(infos, name))
        else:
            self._check_layout(dataset)
            if _filters(dataset):
                raise MucdError(f"{printable(dataset.name)} holds compressed texts: store them plainly, such as by h5repack -f NONE, or give another source key")
            self._take_plain(dataset, dataset.nbytes)
            # All of them may be one text as long as the file, stored once.
            at_a_time = max(1, TEXT_BYTES_AT_A_TIME // self.content_bytes)
            values = (text for start in range(0, len(dataset), at_a_time) for text in dataset[start : start + at_a_time])
        first = next(values)
        if isinstance(first, bytes) and len(first) > 4 * MOST_TEXT:
            raise MucdError(f"{printable(dataset.name)} is no source key: it holds texts of more than {MOST_TEXT} characters")
        if any(value != first for value in values):
            raise MucdError(f"{printable(dataset.name)} changes within the episode: give another source key, which has one value all through it")
        return first

    def _member(self, parent: h5py.Group, name: str, kind: type):
        # The link first: opening what a soft or external one points to would already follow it.
        if name not in parent.keys() or type(parent.get(name, getlink=True)) is not h5py.HardLink:
            raise ValueError(f"{parent.name.rstrip('/')}/{name} is missing, or a link to elsewhere")
        member = parent[name]
        if not isinstance(member, kind):
            raise ValueError(f"{parent.name.rstrip('/')}/{name} is no {kind.__name__.lower()}")
        return member

    def _check_layout(self, dataset: h5py.Dataset) -> None:
        if dataset.is_virtual or dataset.external:
            raise ValueError(f"{dataset.name} keeps its data in other files")
        if dataset.shape is None or not dataset.ndim:
            raise ValueError(f"{dataset.name} is no array")
        if dataset.chunks:
            # HDF5 reads whole chunks, which may be larger than what is read of them.
            if math.prod(dataset.chunks) * dataset.dtype.itemsize > MOST_CHUNK_BYTES:
                raise ValueError(f"{dataset.name} has chunks of shape {dataset.chunks}: larger than {MOST_CHUNK_BYTES:,} bytes")
            self.chunks_left -= math.prod(-(-length // chunk) for length, chunk in zip(dataset.shape, dataset.chunks))
            if self.chunks_left < 0:
                raise ValueError(f"it has more than {MOST_CHUNKS:,} chunks")

    def _take_plain(self, dataset: h5py.Dataset, size: int) -> None:
        self.plain_left -= size
        if self.plain_left < 0:
            raise ValueError(f"up to {dataset.name} its arrays declare more bytes than the file has")

    def _take_unpacked(self, dataset: h5py.Dataset, size: int) -> None:
        self.unpacked_left -= size
        if self.unpacked_left < 0:
            raise ValueError(f"up to {dataset.name} its compressed arrays declare more than {MOST_UNPACKED_BYTES:,} bytes")

    def _unpacked(self, dataset: h5py.Dataset, filters: list[int]) -> np.ndarray:
        """A compressed array, chunk by chunk: HDF5 itself would unpack a chunk to whatever size it has."""
        self._take_unpacked(dataset, dataset.nbytes)
        if dataset.id.get_num_chunks() != math.prod(-(-length // chunk) for length, chunk in zip(dataset.shape, dataset.chunks)):
            raise ValueError(f"{dataset.name} lacks chunks")
        array, size = np.empty(dataset.shape, dataset.dtype), math.prod(dataset.chunks) * dataset.dtype.itemsize
        for part in dataset.iter_chunks():
            offset = tuple(piece.start for piece in part)
            stored = dataset.id.get_chunk_info_by_coord(offset).size
            self._take_plain(dataset, stored)
            skipped, content = dataset.id.read_direct_chunk(offset)
            for position, number in reversed(list(enumerate(filters))):
                if not skipped >> position & 1:
                    content = _UNDO[number](content, size, dataset.dtype.itemsize)
            chunk = np.frombuffer(content, dataset.dtype).reshape(dataset.chunks)
            array[part] = chunk[tuple(slice(piece.stop - piece.start) for piece in part)]
        return array


def _is_key(dtype: np.dtype) -> bool:
    """Of whole numbers, or of texts that are short or whose length varies."""
    text = h5py.check_string_dtype(dtype)
    return dtype.kind in "iub" and dtype.itemsize <= 8 if text is None else text.length is None or text.length <= 4 * MOST_TEXT


def _filters(dataset: h5py.Dataset) -> list[int]:
    """Numbers of its filters, in the order in which they were applied. Raises ValueError for others than are undone here: HDF5 would look for a library."""
    properties = dataset.id.get_create_plist()
    numbers = [properties.get_filter(position)[0] for position in range(properties.get_nfilters())]
    if set(numbers) - set(_UNDO):
        raise ValueError(f"{dataset.name} is stored with HDF5 filters {numbers}: store it with gzip and shuffle or without, such as by h5repack -f NONE")
    return numbers


def _inflate(content: bytes, size: int, itemsize: int) -> bytes:
    worker = zlib.decompressobj()
    # A few bytes more for a checksum.
    found = worker.decompress(content, size + 8)
    if not worker.eof:
        raise ValueError("a chunk unpacks to more than its size, or is cut off")
    return found


def _unshuffle(content: bytes, size: int, itemsize: int) -> bytes:
    whole = len(content) // itemsize * itemsize
    return np.frombuffer(content[:whole], np.uint8).reshape(itemsize, -1).T.tobytes() + content[whole:]


def _without_checksum(content: bytes, size: int, itemsize: int) -> bytes:
    return content[:-4]


_UNDO = {DEFLATE: _inflate, SHUFFLE: _unshuffle, FLETCHER32: _without_checksum}
