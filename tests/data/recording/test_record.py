import os
import signal
import subprocess
import sys

import minari
import numpy as np
import pytest

from mucd_ray.data.environments.cards import card_for
from mucd_ray.data.formats.minari import load_dataset, local_datasets
from mucd_ray.data.recording.record import record
from mucd_ray.errors import MucdError


def test_recording_is_real_whole_and_reproducible(minari_root):
    seen = []
    first = record("Acrobot-v1", None, 3000, 5, "acrobot/a-v0", progress=lambda done, wanted: seen.append((done, wanted)))
    again = record("Acrobot-v1", "acrobot-swing", 3000, 5, "acrobot/b-v0")
    other = record("Acrobot-v1", None, 3000, 6, "acrobot/c-v0")
    a, b, c = (load_dataset(summary["dataset_id"]) for summary in (first, again, other))
    assert a.fingerprint() == b.fingerprint() != c.fingerprint()
    assert len(a) == first["transitions"] == seen[-1][0] and seen[-2][0] < 3000 <= len(a)
    ends = a.trajectory_starts[1:] - 1
    assert (a.terminations | a.truncations)[ends].all() and not (a.terminations & a.truncations).any()
    assert first["mean_return"] == a.trajectory_returns.mean()
    # The transitions are those of the real environment: replay the first episode from its stored seed.
    source = minari.load_dataset("acrobot/a-v0")
    environment = source.recover_environment()
    seed = next(iter(source.storage.get_episode_metadata([0])))["seed"]
    observation, _ = environment.reset(seed=seed)
    for step in range(a.trajectory_starts[1]):
        np.testing.assert_array_equal(observation, a.observations[step])
        observation, reward, *_ = environment.step(a.actions[step])
        assert reward == a.rewards[step]


def test_noise_levels_are_mixed_and_stored(cartpole):
    source = minari.load_dataset(cartpole["dataset_id"])
    levels = [metadata["noise"] for metadata in source.storage.get_episode_metadata(range(cartpole["trajectories"]))]
    assert sorted(levels[:5]) == [0.0, 0.1, 0.3, 0.6, 1.0]
    assert cartpole["return_by_noise"]["0.0"] == 500 and cartpole["mean_return"] < 450


def test_atari_ram_is_kept_as_bytes(minari_root):
    summary = record("ALE/Freeway-v5", None, 1, 0, "freeway-v0", noise=(0.1,))
    dataset = load_dataset("freeway-v0")
    assert dataset.observations.dtype == np.uint8 and dataset.observations.shape == (2048, 128)
    assert set(summary["return_by_noise"]) == {"0.1"} and summary["mean_return"] > 21
    record("ALE/Freeway-v5", None, 1, 0, "freeway-v1", noise=(0.1,))
    assert load_dataset("freeway-v1").fingerprint() == dataset.fingerprint()


def test_frames_show_the_episode_that_the_ram_controller_plays(minari_root):
    ram, frames = (record("ALE/Breakout-v5", None, 1, 3, f"breakout-v{n}", noise=(0.6,), frames=bool(n)) for n in range(2))
    assert ram["transitions"] == frames["transitions"]
    seen, played = load_dataset("breakout-v1"), load_dataset("breakout-v0")
    np.testing.assert_array_equal(seen.actions, played.actions)
    np.testing.assert_array_equal(seen.rewards, played.rewards)
    assert seen.observations.dtype == np.uint8 and seen.observations.shape[1:] == (4, 42, 42)
    np.testing.assert_array_equal(seen.observations[5, 1:], seen.observations[6, :3])
    np.testing.assert_array_equal(seen.observations[:, 3][1:], seen.next_observations[:-1, 3])
    card = card_for("ALE/Breakout-v5", seen.observations.shape[1:], seen.action_space)
    card.check(seen)
    np.testing.assert_array_equal(card.features(seen.observations[:9]), (seen.observations[:9] / 255).astype(np.float32).reshape(9, -1))
    assert card_for("ALE/Breakout-v5", played.observations.shape[1:], played.action_space).wrapper == "breakout-serve"
    assert minari.load_dataset("breakout-v1").recover_environment().observation_space.shape == (4, 42, 42)
    with pytest.raises(MucdError, match="CartPole-v1 has no recording of frames"):
        record("CartPole-v1", None, 1, 0, "x-v0", frames=True)


def test_nothing_is_written_through_what_a_stranger_left_in_the_folder(minari_root, tmp_path):
    """Links and pipes among the files beside a dataset, as an archive that was unpacked there brings them."""
    (tmp_path / "precious").write_text("mine")
    folder = minari_root / "theirs"
    folder.mkdir(parents=True)
    (folder / ".mucd-lock").symlink_to(tmp_path / "precious")
    (folder / "namespace_metadata.json").symlink_to(tmp_path / "new")
    with pytest.raises(MucdError, match="cannot be written"):
        record("CartPole-v1", None, 50, 1, "theirs/mine-v0")
    (folder / ".mucd-lock").unlink()
    os.mkfifo(folder / ".mucd-lock")
    with pytest.raises(MucdError, match="cannot be written"):
        record("CartPole-v1", None, 50, 1, "theirs/mine-v0")
    assert (tmp_path / "precious").read_text() == "mine" and not (tmp_path / "new").exists() and not (folder / "mine-v0").exists()


def test_existing_id_is_kept_unless_replaced(cartpole):
    before = load_dataset("cartpole/small-v0").fingerprint()
    with pytest.raises(MucdError, match="exists.*--overwrite"):
        record("CartPole-v1", None, 100, 8, "cartpole/small-v0")
    assert load_dataset("cartpole/small-v0").fingerprint() == before
    record("CartPole-v1", None, 100, 8, "cartpole/small-v0", overwrite=True)
    assert load_dataset("cartpole/small-v0").fingerprint() != before
    assert local_datasets() == ["cartpole/small-v0"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("MountainCar-v0", None, 10, 0, "x-v0"), "MountainCar-v0"),
        (("CartPole-v1", "clever", 10, 0, "x-v0"), "clever"),
        (("CartPole-v1", None, 0, 0, "x-v0"), "at least 1 transition"),
        (("CartPole-v1", None, 10, -1, "x-v0"), "seed"),
        (("CartPole-v1", None, 10, 0, "x-v0", (1.5,)), "levels in"),
        (("CartPole-v1", None, 10, 0, "x-v0", ()), "levels in"),
        (("CartPole-v1", None, 10, 0, "no version"), "malformed"),
        (("CartPole-v1", None, 10, 0, "../up-v0"), "malformed"),
        (("CartPole-v1", None, 10, 0, "x" * 201 + "-v0"), "malformed"),
        (("CartPole-v1", None, 10, 0, "unversioned"), "malformed"),
    ],
)
def test_bad_arguments_are_named(minari_root, arguments, message):
    with pytest.raises(MucdError, match=message):
        record(*arguments)
    assert local_datasets() == []


RECORD = "from mucd_ray.data.recording.record import record; record('CartPole-v1', None, 5000, 1, 'killed-v0', progress=lambda done, wanted: {})"


def test_killed_recording_leaves_no_dataset(minari_root):
    script = RECORD.format("os.kill(os.getpid(), 9)")
    assert subprocess.run([sys.executable, "-c", f"import os; {script}"]).returncode == -signal.SIGKILL
    assert local_datasets() == []
    # What a kill during the write leaves is hidden from Minari, and the next recording removes it.
    (minari_root / ".mucd-record-abc" / "data").mkdir(parents=True)
    assert local_datasets() == []
    record("CartPole-v1", None, 100, 1, "killed-v0")
    assert sorted(os.listdir(minari_root)) == [".mucd-lock", "killed-v0"]


def test_full_disk_is_one_clear_line_and_leaves_no_dataset(minari_root):
    """A file size limit stands for a full disk: the write fails in the middle."""
    script = RECORD.format("resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))")
    done = subprocess.run([sys.executable, "-c", f"import resource; {script}"], capture_output=True, text=True)
    assert "MucdError: dataset 'killed-v0' cannot be written" in done.stderr
    assert os.listdir(minari_root) == [".mucd-lock"]


def test_room_needs_neither_torch_nor_ray():
    script = "import sys, mucd_ray.data.recording.record, mucd_ray.data.formats.minari; assert not {'torch', 'ray', 'jax', 'ale_py'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
