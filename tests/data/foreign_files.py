"""Files of other formats as their own writers make them, of the same few episodes; each function takes a folder and the episodes, and gives the path."""

import csv
import gzip
import io
import json
import struct

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet


def episodes(count=3, *, discrete=False, seed=0, lengths=None):
    """[{observations [T + 1, 3] float32, actions [T, 2] float32 or [T] int64, rewards [T], terminated}], every other one terminated."""
    rng, made = np.random.default_rng(seed), []
    for number in range(count):
        length = lengths[number] if lengths else 3 + number
        actions = rng.integers(0, 3, length) if discrete else rng.uniform(-1, 1, (length, 2)).astype(np.float32)
        made.append({
            "observations": rng.normal(size=(length + 1, 3)).astype(np.float32), "actions": actions, "rewards": rng.normal(size=length).astype(np.float32), "terminated": number % 2 == 0,
        })
    if discrete:
        made[0]["actions"][0] = 2
    return made


def rows(made):
    """Flat arrays without the final observations."""
    lengths = [len(episode["rewards"]) for episode in made]
    last = np.concatenate([np.arange(length) == length - 1 for length in lengths])
    ended = np.repeat([episode["terminated"] for episode in made], lengths)
    flat = {name: np.concatenate([episode[name] for episode in made]) for name in ("actions", "rewards")}
    return flat | {
        "observations": np.concatenate([episode["observations"][:-1] for episode in made]), "next_observations": np.concatenate([episode["observations"][1:] for episode in made]),
        "terminals": last & ended, "timeouts": last & ~ended, "episode": np.repeat(np.arange(len(made)), lengths), "t": np.concatenate([np.arange(length) for length in lengths]),
    }


def lerobot(folder, made, version="v3.0", *, reward=True, done=True, stats=True):
    """v3: many episodes in a file; v2.1: a file an episode. Normalisation statistics lie beside."""
    flat, second = rows(made), version.startswith("v2")
    columns = {
        "observation.state": pa.array(list(flat["observations"]), pa.list_(pa.float32())), "action": pa.array(list(flat["actions"]), pa.list_(pa.float32())),
        "timestamp": pa.array(flat["t"] / 10, pa.float32()), "frame_index": flat["t"], "episode_index": flat["episode"], "index": np.arange(len(flat["t"])),
        "task_index": np.zeros(len(flat["t"]), np.int64), "observation.images.top": pa.array([{"bytes": b"x", "path": None}] * len(flat["t"])),
    }
    if reward:
        columns["next.reward"] = flat["rewards"]
    if done:
        columns |= {"next.done": flat["terminals"] | flat["timeouts"], "next.truncated": flat["timeouts"]}
    table = pa.table(columns)
    (folder / "data/chunk-000").mkdir(parents=True)
    (folder / "meta").mkdir()
    lengths = [len(episode["rewards"]) for episode in made]
    if second:
        for number in range(len(made)):
            pyarrow.parquet.write_table(table.filter(pa.array(flat["episode"] == number)), folder / f"data/chunk-000/episode_{number:06d}.parquet")
        lines = [json.dumps({"episode_index": number, "tasks": ["push"], "length": length}) for number, length in enumerate(lengths)]
        (folder / "meta/episodes.jsonl").write_text("\n".join(lines) + "\n")
        (folder / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "push"}\n')
    else:
        cut = lengths[0]
        for number, part in enumerate((table.slice(0, cut), table.slice(cut))):
            pyarrow.parquet.write_table(part, folder / f"data/chunk-000/file-{number:03d}.parquet")
        (folder / "meta/episodes/chunk-000").mkdir(parents=True)
        starts = np.cumsum([0, *lengths])
        pyarrow.parquet.write_table(
            pa.table({
                "episode_index": np.arange(len(made)), "tasks": [["push"]] * len(made), "length": lengths, "data/chunk_index": np.zeros(len(made), int),
                "data/file_index": [0] + [1] * (len(made) - 1), "dataset_from_index": starts[:-1], "dataset_to_index": starts[1:],
            }), folder / "meta/episodes/chunk-000/file-000.parquet",
        )
    if stats:
        (folder / "meta/stats.json").write_text("not even JSON: nobody reads it")
    pattern = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet" if second else "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    (folder / "meta/info.json").write_text(json.dumps({
        "codebase_version": version, "robot_type": "arm", "fps": 10, "total_episodes": len(made), "total_frames": len(flat["t"]), "total_tasks": 1, "chunks_size": 1000, "data_path": pattern,
        "splits": {"train": f"0:{len(made)}"}, "features": {"observation.state": {"dtype": "float32", "shape": [flat["observations"].shape[1]], "names": None}, "action": {"dtype": "float32", "shape": [made[0]["actions"].shape[1]], "names": None}},
    }))
    return folder


def d4rl(folder, made, *, timeouts=True, next_observations=True, columns=False):
    path, flat = folder / "hopper-medium.hdf5", rows(made)
    names = ["observations", "actions", "rewards", "terminals", *(["timeouts"] if timeouts else []), *(["next_observations"] if next_observations else [])]
    with h5py.File(path, "w") as file:
        for name in names:
            values = flat[name][:, None] if columns and flat[name].ndim == 1 else flat[name]
            file.create_dataset(name, data=values, compression="gzip")
        file["infos/qpos"] = np.zeros((len(flat["t"]), 2))
        file["metadata/algorithm"] = "SAC"
    return path


def robomimic(folder, made, *, next_obs=True, mask=True):
    """Two keys and an image; demos are written in the order of their names, not numbers."""
    path = folder / "low_dim.hdf5"
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "os:system", "type": 1, "env_kwargs": {}})
        data.attrs["total"] = sum(len(episode["rewards"]) for episode in made)
        for number in sorted(range(len(made)), key=str):
            episode, demo = made[number], data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = len(episode["rewards"])
            demo["actions"], demo["rewards"] = episode["actions"], episode["rewards"]
            demo["states"] = np.zeros((len(episode["rewards"]), 9))
            dones = np.zeros(len(episode["rewards"]), np.int64)
            if episode["terminated"]:
                dones[-2:] = 1
            demo["dones"] = dones
            for group, part in (("obs", slice(None, -1)), *([("next_obs", slice(1, None))] if next_obs else [])):
                seen = episode["observations"][part]
                demo[f"{group}/robot0_eef_pos"], demo[f"{group}/object"] = seen[:, 1:], seen[:, :1]
                demo[f"{group}/agentview_image"] = np.zeros((len(seen), 4, 4, 3), np.uint8)
        if mask:
            names = [f"demo_{number}" for number in range(len(made))]
            file["mask/train"] = np.array(names[1:], "S8")
            file["mask/better_operator_1"] = np.array(names[:1], "S8")
            file["mask/worse"] = np.array(names[1:], h5py.string_dtype())
    return path


def d3rlpy2(folder, made):
    """Without final observations: the last row of an episode that did not terminate has no next one."""
    path = folder / "replay.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("columns", data=["observations", "actions", "rewards", "terminated"])
        file.create_dataset("num_episodes", data=len(made))
        for number, episode in enumerate(made):
            length = len(episode["rewards"])
            file[f"observations_{number}"] = episode["observations"][:length]
            file[f"actions_{number}"] = episode["actions"] if episode["actions"].ndim > 1 else episode["actions"][:, None]
            file[f"rewards_{number}"], file[f"terminated_{number}"] = episode["rewards"][:, None], episode["terminated"]
        file.create_dataset("version", data="2.1")
    return path


def d3rlpy1(folder, made):
    path, flat = folder / "mdp.h5", rows(made)
    with h5py.File(path, "w") as file:
        for name in ("observations", "actions", "rewards", "terminals"):
            file[name] = flat[name]
        file["episode_terminals"] = (flat["terminals"] | flat["timeouts"]).astype(np.float32)
        file["discrete_action"], file["version"] = False, "1.0"
    return path


def ogbench(folder, made, *, rewards=False):
    """T + 1 rows; the action of the last is a dummy."""
    path = folder / "cube-single-play-v0.npz"
    arrays = {
        "observations": np.concatenate([episode["observations"] for episode in made]),
        "actions": np.concatenate([np.concatenate([episode["actions"], np.full((1, episode["actions"].shape[1]), 9, np.float32)]) for episode in made]),
        "terminals": np.concatenate([np.arange(len(episode["rewards"]) + 1) == len(episode["rewards"]) for episode in made]).astype(np.float32),
        "qpos": np.zeros((sum(len(episode["rewards"]) + 1 for episode in made), 2)),
    }
    if rewards:
        arrays["rewards"] = np.concatenate([np.append(episode["rewards"], 7) for episode in made])
        # A goal that was passed, and a trajectory that goes on.
        arrays["masks"] = np.ones(len(arrays["rewards"]))
        arrays["masks"][0] = 0
    np.savez_compressed(path, **arrays)
    return path


def rllib(folder, made, *, discrete=False):
    """Rows in no order, spread over two files."""
    flat = rows(made)
    order = np.random.default_rng(5).permutation(len(flat["t"]))
    ids = np.array([f"{1000 - number:x}" for number in flat["episode"]])[order]
    actions = flat["actions"][order]
    table = pa.table({
        "eps_id": ids, "agent_id": pa.array([None] * len(ids), pa.string()), "module_id": pa.array([None] * len(ids), pa.string()), "obs": list(flat["observations"][order]),
        "actions": actions if actions.ndim == 1 else list(actions), "rewards": flat["rewards"][order], "new_obs": list(flat["next_observations"][order]),
        "terminateds": flat["terminals"][order], "truncateds": flat["timeouts"][order], "t": flat["t"][order],
    })
    out = folder / "rllib"
    out.mkdir()
    for number, part in enumerate((table.slice(0, 5), table.slice(5))):
        pyarrow.parquet.write_table(part, out / f"run-{number}.parquet")
    return out


def crc(content):
    """CRC-32C bit by bit, masked as TFRecord does."""
    value = 0xFFFFFFFF
    for byte in content:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    value ^= 0xFFFFFFFF
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def tfrecord(records):
    return b"".join(struct.pack("<Q", len(record)) + struct.pack("<I", crc(struct.pack("<Q", len(record)))) + record + struct.pack("<I", crc(record)) for record in records)


def _varint(number):
    number, out = number & (1 << 64) - 1, bytearray()
    while True:
        out.append(number & 127 | (128 if number > 127 else 0))
        number >>= 7
        if not number:
            return bytes(out)


def _field(number, content):
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def example(features):
    """tf.train.Example by hand: floats, whole numbers or bytes."""
    entries = b""
    for name, values in features.items():
        if isinstance(values, bytes):
            kind = _field(1, _field(1, values))
        elif np.asarray(values).dtype.kind == "f":
            kind = _field(2, _field(1, np.asarray(values, "<f4").tobytes()))
        else:
            kind = _field(3, _field(1, b"".join(_varint(int(value)) for value in np.asarray(values).reshape(-1))))
        entries += _field(1, _field(1, name.encode()) + _field(2, kind))
    return _field(1, entries)


def rlds(folder, made, *, count=None, change=lambda features, number: features):
    def tensor(dtype, *dimensions):
        return {"pythonClassName": "tensorflow_datasets.core.features.tensor_feature.Tensor", "tensor": {"shape": {"dimensions": [str(length) for length in dimensions]} if dimensions else {}, "dtype": dtype, "encoding": "none"}}

    def group(**features):
        return {"pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict", "featuresDict": {"features": features}}

    out, width = folder / "arm/1.0.0", made[0]["actions"].shape[1]
    out.mkdir(parents=True)
    flags = {name: tensor("bool") for name in ("is_first", "is_last", "is_terminal")}
    image = {"pythonClassName": "tensorflow_datasets.core.features.image_feature.Image", "image": {"shape": {"dimensions": ["4", "4", "3"]}, "dtype": "uint8", "encodingFormat": "jpeg"}}
    step = group(observation=group(image=image, state=tensor("float32", made[0]["observations"].shape[1] - 1), effort=tensor("float32")), action=tensor("float32", width), reward=tensor("float32"), discount=tensor("float32"), **flags)
    features = group(steps={"pythonClassName": "tensorflow_datasets.core.features.dataset_feature.Dataset", "sequence": {"feature": step, "length": "-1"}}, episode_metadata=group(operator={"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text", "text": {}}))
    (out / "features.json").write_text(json.dumps(features))
    shards = [count if count is not None else len(made)]
    (out / "dataset_info.json").write_text(json.dumps({"name": "arm", "version": "1.0.0", "splits": [{"name": "train", "shardLengths": [str(length) for length in shards]}]}))
    records = []
    for number, episode in enumerate(made):
        length = len(episode["rewards"]) + 1
        seen = episode["observations"]
        records.append(example(change({
            "steps/observation/effort": seen[:, 0], "steps/observation/state": seen[:, 1:].reshape(-1), "steps/action": np.append(episode["actions"], np.full((1, width), 9.0)).astype(np.float32),
            "steps/reward": np.append(episode["rewards"], 99).astype(np.float32), "steps/discount": np.ones(length, np.float32), "steps/is_first": np.arange(length) == 0,
            "steps/is_last": np.arange(length) == length - 1, "steps/is_terminal": (np.arange(length) == length - 1) & episode["terminated"], "episode_metadata/operator": f"op-{number % 2}".encode(),
        }, number)))
    (out / "arm-train.tfrecord-00000-of-00001").write_bytes(tfrecord(records))
    (out / "arm-val.tfrecord-00000-of-00001").write_bytes(b"")
    return folder / "arm"


def dqn_replay(folder, made, *, padding=3):
    """The frames of each episode [T, h, w], by default 2 x 2; three rows of zeros before each episode; terminal marks the last row."""
    out = folder / "replay_logs"
    out.mkdir()
    parts = {"observation": [], "action": [], "reward": [], "terminal": []}
    for number, episode in enumerate(made):
        length = len(episode["rewards"])
        frames = episode.get("frames", np.random.default_rng(number).integers(1, 255, (length, 2, 2)).astype(np.uint8))
        parts["observation"] += [np.zeros((padding, *frames.shape[1:]), np.uint8), frames]
        parts["action"] += [np.zeros(padding, np.int32), episode["actions"].astype(np.int32)]
        parts["reward"] += [np.zeros(padding, np.float32), episode["rewards"]]
        parts["terminal"] += [np.zeros(padding, np.uint8), (np.arange(length) == length - 1).astype(np.uint8)]
    for name, arrays in parts.items():
        content = io.BytesIO()
        np.save(content, np.concatenate(arrays))
        (out / f"$store$_{name}_ckpt.7.gz").write_bytes(gzip.compress(content.getvalue()))
    return out


def npz(folder, made):
    path, flat = folder / "mine.npz", rows(made)
    np.savez(path, **{name: flat[name] for name in ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")})
    return path


def log(folder, made):
    """(names, rows) of a table with final observations in columns of their own."""
    flat = rows(made)
    wide = flat["actions"].reshape(len(flat["t"]), -1)
    seen = range(1, flat["observations"].shape[1] + 1)
    names = ["ep", "t", *(f"f{number}" for number in seen), *(f"g{number}" for number in seen), *(["act"] if wide.shape[1] == 1 else ["act_x", "act_y"]), "r", "done", "cut", "who"]
    values = zip(flat["episode"], flat["t"], *flat["observations"].T, *flat["next_observations"].T, *wide.T, flat["rewards"], flat["terminals"].astype(int), flat["timeouts"].astype(int), strict=True)
    return names, [[*(value.item() for value in row), f"op-{row[0] % 2}"] for row in values]


def csv_log(folder, made):
    names, values = log(folder, made)
    path = folder / "log.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(values)
    return path


def parquet_log(folder, made):
    names, values = log(folder, made)
    path = folder / "log.parquet"
    pyarrow.parquet.write_table(pa.table({name: list(column) for name, column in zip(names, zip(*values))}), path)
    return path


COLUMNS = "obs=f*,next_obs=g*,action=act*,reward=r,episode=ep,time=t,terminated=done,truncated=cut,source=who"
