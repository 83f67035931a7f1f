"""RLDS as TensorFlow Datasets stores it: features.json, dataset_info.json and files NAME-SPLIT.tfrecord-00000-of-00001, whose records are episodes.

Traps: the action and reward of the step that is_last are invalid, its observation is the final one; is_terminal says whether it terminated; TFDS keeps doubles as floats. Images and texts are skipped.
Where there is a split `train`, only that is read.
"""

import functools
import math
import struct

import numpy as np

from mucd_ray.data.formats.episodes import Episode, Recording
from mucd_ray.data.formats.keys import SEVERAL
from mucd_ray.data.formats.metadata import MOST_ENTRIES
from mucd_ray.data.formats.source import Source
from mucd_ray.errors import MucdError
from mucd_ray.files import printable

MOST_RECORD_BYTES = 1 << 30
MOST_FEATURES = 1 << 10
MOST_KEYS = 16
_INTEGERS = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_FLOATS = ("float16", "float32", "float64", "bfloat16")


def recognised(source: Source) -> bool:
    return source.is_folder and bool(_features_files(source))


def _features_files(source: Source) -> list[str]:
    """Of this folder, and of versions in it."""
    return source.names("features.json") + source.names("*/features.json")


def read(source: Source, options) -> Recording:
    files = _features_files(source)
    if len(files) != 1:
        raise MucdError(f"{source.path} holds {len(files)} datasets with a features.json: give the folder of one version")
    folder = files[0].removesuffix("features.json")
    root = _features(source.json(files[0]), ("featuresDict", "features"))
    steps = _leaves(_features(root.get("steps"), ("sequence", "feature", "featuresDict", "features")))
    observed, acted = _chosen(steps, "observation", options.observation_keys), _chosen(steps, "action", None)
    if "is_last" not in steps:
        raise MucdError("its steps have no is_last: RLDS needs it")
    names = source.names(f"{folder}*.tfrecord-*")
    train = [name for name in names if "-train.tfrecord-" in name]
    if not names:
        raise MucdError(f"{source.path} holds features.json and no files NAME-SPLIT.tfrecord-00000-of-00001")
    keys = [name for name, leaf in _leaves(_features(root.get("episode_metadata"), ("featuresDict", "features"))).items() if leaf is not None and not leaf[0]][:MOST_KEYS]
    texts = _texts_of(_features(root.get("episode_metadata"), ("featuresDict", "features")))[:MOST_KEYS]
    episodes = []
    for name in train or names:
        for number, record in enumerate(_records(source.read(name), name)):
            source.take(8 * len(record), name)
            episodes.append(_episode(record, f"record {number} of {name}", steps, observed, acted, keys, texts))
    _check_count(source, folder, names, train, len(episodes))
    notes = [f"observations are {', '.join(observed)}; actions {', '.join(acted)}", "the step that is_last gives its observation alone"]
    if "reward" not in steps:
        notes.append("it has no rewards: all are 0")
    if train and len(train) < len(names):
        notes.append("only the split train is read")
    return Recording(episodes=episodes, notes=tuple(notes))


def _features(values, path: tuple[str, ...]) -> dict:
    for name in path:
        values = values.get(name) if isinstance(values, dict) else None
    if values is None:
        return {}
    if not isinstance(values, dict) or len(values) > MOST_FEATURES:
        raise MucdError(f"features.json: {'/'.join(path)} is not an object of at most {MOST_FEATURES:,} features")
    return values


def _leaves(features: dict, prefix: str = "") -> dict[str, tuple[tuple[int, ...], str] | None]:
    """{path: (shape, dtype) of a plain tensor of numbers, or None for anything else}."""
    found: dict[str, tuple[tuple[int, ...], str] | None] = {}
    for name, feature in features.items():
        inner = _features(feature, ("featuresDict", "features"))
        if inner:
            found |= _leaves(inner, f"{prefix}{name}/")
            continue
        tensor = feature.get("tensor") if isinstance(feature, dict) else None
        found[f"{prefix}{name}"] = _tensor(tensor) if isinstance(tensor, dict) else None
    return found


def _tensor(tensor: dict) -> tuple[tuple[int, ...], str] | None:
    shape, dtype = tensor.get("shape", {}), tensor.get("dtype")
    dimensions = shape.get("dimensions", []) if isinstance(shape, dict) else None
    if dtype not in _INTEGERS + _FLOATS or tensor.get("encoding", "none") not in ("none", "") or not isinstance(dimensions, list):
        return None
    if len(dimensions) > 8 or not all(str(length).isascii() and str(length).isdigit() and len(str(length)) < 9 for length in dimensions):
        return None
    lengths = tuple(map(int, dimensions))
    return (lengths, dtype) if 0 < math.prod(lengths) <= MOST_ENTRIES else None


def _texts_of(features: dict) -> list[str]:
    return [name for name, feature in features.items() if isinstance(feature, dict) and ("text" in feature or isinstance(feature.get("tensor"), dict) and feature["tensor"].get("dtype") == "string")]


def _chosen(steps: dict, what: str, wanted: tuple[str, ...] | None) -> list[str]:
    """Paths of the numbers that are the observation or action: itself, or its keys, sorted or as they were named; of several only vectors."""
    keys = {path.removeprefix(f"{what}/"): path for path, leaf in steps.items() if leaf is not None and path.startswith(f"{what}/") and len(leaf[0]) <= 1}
    if wanted is not None:
        missing = [name for name in wanted if steps.get(f"{what}/{name}") is None]
        if missing:
            raise MucdError(f"--observation-keys {printable(missing[0])}: its observations have {', '.join(printable(name)[:60] for name in sorted(keys)) or 'no vectors'}")
        return [f"{what}/{name}" for name in wanted]
    found = [what] if steps.get(what) is not None else [keys[name] for name in sorted(keys)]
    if not found:
        raise MucdError(f"features.json declares no {what} of plain numbers")
    return found


def _records(content: bytes, name: str):
    """The records of a TFRecord file: length, its checksum, the data, their checksum."""
    position = 0
    while position < len(content):
        header = content[position : position + 12]
        if len(header) < 12:
            raise MucdError(f"{name} is cut off at byte {position}: fetch it again")
        length, check = struct.unpack("<QI", header)
        if _masked_crc(header[:8]) != check:
            raise MucdError(f"{name} is no TFRecord file, or damaged, at byte {position}: the checksum of a length does not fit")
        if length > MOST_RECORD_BYTES or position + 16 + length > len(content):
            raise MucdError(f"{name} is cut off in the record at byte {position}: it declares {length:,} bytes")
        record = content[position + 12 : position + 12 + length]
        if _masked_crc(record) != struct.unpack_from("<I", content, position + 12 + length)[0]:
            raise MucdError(f"{name} is damaged in the record at byte {position}: its checksum does not fit")
        yield record
        position += 16 + length


def _masked_crc(content: bytes) -> int:
    crc = int(_crc_loop()(np.frombuffer(content, np.uint8), _CRC_TABLE))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _crc_table() -> np.ndarray:
    """Of CRC-32C (Castagnoli), reflected."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(0x82F63B78), table >> 1).astype(np.uint32)
    return table


_CRC_TABLE = _crc_table()


@functools.cache
def _crc_loop():
    import numba

    @numba.njit
    def crc_of(content, table):
        crc = np.uint32(0xFFFFFFFF)
        for byte in content:
            crc = table[(crc ^ byte) & 0xFF] ^ (crc >> np.uint32(8))
        return crc ^ np.uint32(0xFFFFFFFF)

    return crc_of


@functools.cache
def _example_class():
    """tf.train.Example, whose description TensorFlow would bring."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="mucd_example.proto", package="mucd", syntax="proto3")

    def message(name, *fields, within=file.message_type):
        described = within.add(name=name)
        for number, (field, kind, repeated, of) in enumerate(fields, 1):
            described.field.add(name=field, number=number, type=kind, label=kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL, type_name=of and f".mucd.{of}")
        return described

    message("BytesList", ("value", kinds.TYPE_BYTES, True, None))
    message("FloatList", ("value", kinds.TYPE_FLOAT, True, None))
    message("Int64List", ("value", kinds.TYPE_INT64, True, None))
    message("Feature", *((name, kinds.TYPE_MESSAGE, False, of) for name, of in (("bytes_list", "BytesList"), ("float_list", "FloatList"), ("int64_list", "Int64List"))))
    features = message("Features", ("feature", kinds.TYPE_MESSAGE, True, "Features.FeatureEntry"))
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    entry.field.add(name="value", number=2, type=kinds.TYPE_MESSAGE, label=kinds.LABEL_OPTIONAL, type_name=".mucd.Feature")
    message("Example", ("features", kinds.TYPE_MESSAGE, False, "Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("mucd.Example"))


def _episode(record: bytes, place: str, steps: dict, observed: list[str], acted: list[str], keys: list[str], texts: list[str]) -> Episode:
    from google.protobuf.message import DecodeError

    try:
        features = _example_class().FromString(record).features.feature
    except DecodeError as error:
        raise MucdError(f"{place} is no tf.train.Example ({printable(error)})") from None
    length = len(features["steps/is_last"].int64_list.value) if "steps/is_last" in features else 0

    def values(path):
        shape, dtype = steps[path]
        kept = features[f"steps/{path}"] if f"steps/{path}" in features else None
        numbers = None if kept is None else kept.float_list.value if dtype in _FLOATS else kept.int64_list.value
        if numbers is None or len(numbers) != length * math.prod(shape):
            raise MucdError(f"{place}: {path} has {0 if numbers is None else len(numbers)} numbers, features.json declares {length} steps of {math.prod(shape)}")
        found = np.fromiter(numbers, np.float32 if dtype in _FLOATS else np.int64, len(numbers)).reshape(length, *shape)
        return found.astype(dtype) if dtype in _INTEGERS else found

    def joined(paths):
        parts = [values(path) for path in paths]
        return parts[0] if len(parts) == 1 else np.concatenate([part.reshape(length, math.prod(part.shape[1:])) for part in parts], axis=1)

    observations, actions, last = joined(observed), joined(acted), values("is_last").reshape(length)
    terminal = values("is_terminal").reshape(length) if steps.get("is_terminal") else np.zeros(length, bool)
    rewards = values("reward").reshape(length, math.prod(steps["reward"][0]))[:, 0] if steps.get("reward") else np.zeros(length)
    first = values("is_first").reshape(length) if steps.get("is_first") else np.zeros(length, bool)
    faults, ended = [], bool(length and last[-1])
    if first[1:].any():
        faults.append(f"is_first at step {1 + int(np.argmax(first[1:]))}, inside it")
    if last[:-1].any():
        faults.append(f"is_last at step {int(np.argmax(last[:-1]))}, inside it")
    if terminal[:-1].any():
        faults.append(f"is_terminal at step {int(np.argmax(terminal[:-1]))}, inside it")
    if length and not ended:
        faults.append("its last step is not is_last: it is cut off")
    count = max(length - 1, 0)
    terminated = bool(ended and terminal[-1])
    return Episode(
        observations=observations, actions=actions[:count], rewards=rewards[:count], terminated=terminated, truncated=not terminated, place=place, faults=tuple(faults),
        keys=_keys(features, keys, texts),
    )


def _keys(features, numbers: list[str], texts: list[str]) -> dict:
    found: dict[str, int | str] = {}
    for name in numbers:
        kept = features[f"episode_metadata/{name}"].int64_list.value if f"episode_metadata/{name}" in features else []
        if f"episode_metadata/{name}" in features:
            found[name] = int(kept[0]) if len(kept) == 1 else SEVERAL
    for name in texts:
        kept = features[f"episode_metadata/{name}"].bytes_list.value if f"episode_metadata/{name}" in features else []
        try:
            text = kept[0].decode() if len(kept) == 1 else SEVERAL if f"episode_metadata/{name}" in features else ""
        except UnicodeDecodeError:
            raise MucdError(f"{name} {printable(kept[0])[:60]} is not text in UTF-8: write it anew, since two of them might become one") from None
        if text:
            found[name] = text
    return found


def _check_count(source: Source, folder: str, names: list[str], train: list[str], episodes: int) -> None:
    """Raise MucdError where dataset_info.json declares another number of episodes, or nothing says that one of the files is the split `train`: then somebody may have added it, and the others would not be read."""
    declared = source.json(f"{folder}dataset_info.json").get("splits") if source.has(f"{folder}dataset_info.json") else None
    splits = [split for split in declared if isinstance(split, dict)] if isinstance(declared, list) else []
    train_only = bool(train)
    if train_only and len(train) < len(names) and "train" not in [split.get("name") for split in splits]:
        raise MucdError(f"it holds files of the split train beside others, and dataset_info.json does not declare that split: take {train[0]} away, or the others")
    lengths = [length for split in splits if not train_only or split.get("name") == "train" for length in (split.get("shardLengths") or [])]
    if lengths and all(str(length).isascii() and str(length).isdigit() for length in lengths) and sum(map(int, lengths)) != episodes:
        raise MucdError(f"dataset_info.json declares {sum(map(int, lengths))} episodes, its files hold {episodes}: some are missing, or were changed")
