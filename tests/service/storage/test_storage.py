"""Commits to real places: a local folder, an S3-compatible server on loopback."""

import os
import secrets
import stat
import subprocess
import sys
import threading

import pytest

from mucd_ray.errors import MucdError
from mucd_ray.service.storage.storage import LocalStorage, check_commits, open_storage


@pytest.fixture(params=["local", "s3"])
def storage(request, tmp_path):
    places = {"local": lambda: tmp_path / "run", "s3": lambda: f"{request.getfixturevalue('bucket')}/{secrets.token_hex(4)}"}
    return open_storage(places[request.param]())


def test_files_come_back_and_the_first_writer_wins(storage):
    assert storage.names() == [] and storage.names("blocks") == [] and not storage.exists("blocks/a")
    check_commits(storage)
    assert storage.names() == []
    assert storage.create("blocks/a", b"first") and not storage.create("blocks/a", b"second") and storage.read("blocks/a", 1 << 20) == b"first"
    assert storage.create("empty", b"") and not storage.create("empty", b"more") and storage.read("empty", 1 << 20) == b""
    storage.replace("blocks/a", b"third")
    assert storage.read("blocks/a", 1 << 20) == b"third" and storage.exists("blocks/a")
    assert storage.names() == ["blocks", "empty"] and storage.names("blocks") == ["a"]
    storage.move("blocks/a", "blocks/b")
    assert storage.names("blocks") == ["b"] and storage.create("blocks/a", b"again")
    for _ in range(2):
        storage.remove("blocks/a")
    with pytest.raises(FileNotFoundError):
        storage.read("blocks/a", 1 << 20)


def test_of_many_writers_at_once_one_wins_and_all_read_its_content(storage):
    for attempt in range(5):
        won, name, start = [], f"blocks/{attempt}", threading.Barrier(8)

        def write(number):
            start.wait()
            if storage.create(name, bytes([number]) * 70_000):
                won.append(number)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1 and storage.read(name, 1 << 20) == bytes(won) * 70_000


def test_private_files_and_traces_of_a_local_folder(tmp_path):
    storage = open_storage(f"file://{tmp_path}/run")
    assert isinstance(storage, LocalStorage) and storage.absolute == str(tmp_path / "run")
    storage.create("secret", b"s", private=True)
    assert stat.S_IMODE(os.stat(tmp_path / "run/secret").st_mode) == 0o600 and storage.is_private("secret")
    os.chmod(tmp_path / "run/secret", 0o640)
    assert not storage.is_private("secret")
    assert os.listdir(tmp_path / "run") == ["secret"]


@pytest.mark.parametrize("url", ["ftp://host/run", "nonsense://x", "http://host/run", "memory://run"])
def test_places_without_atomic_commits_are_refused(url):
    with pytest.raises(MucdError, match=f"{url}.*not known for atomic.*s3"):
        open_storage(url)


def test_a_store_that_ignores_conditions_is_found_out(storage, monkeypatch):
    """Some S3-compatible servers take every write."""
    def create(name, content, private=False):
        storage.replace(name, content)
        return True

    monkeypatch.setattr(storage, "create", create)
    with pytest.raises(MucdError, match="no atomic commits .4 of 4"):
        check_commits(storage)


def test_a_url_is_one_place_however_its_slashes_are_written(bucket):
    name = secrets.token_hex(4)
    odd, plain = open_storage(f"{bucket}//{name}///run//"), open_storage(f"{bucket}/{name}/run")
    assert odd.create("blocks/a", b"1") and odd.names("blocks") == plain.names("blocks") == ["a"] and odd.location == plain.location == f"{bucket}/{name}/run"
    for url in ("s3://", "s3:///", f"{bucket}/../run", f"{bucket}/./run"):
        with pytest.raises(MucdError, match="must be a bucket and names of folders"):
            open_storage(url)


def test_a_place_that_does_not_list_what_was_written_is_refused(storage, monkeypatch):
    monkeypatch.setattr(storage, "names", lambda folder="": [])
    with pytest.raises(MucdError, match="does not list what was just written"):
        check_commits(storage)


def test_a_folder_made_in_a_console_is_an_empty_folder(bucket):
    """An empty object named like the folder, with a slash."""
    place = open_storage(f"{bucket}/{secrets.token_hex(4)}")
    for marker in ("", "blocks"):
        place.filesystem.pipe_file(f"{place._path(marker)}/", b"")
    assert place.names() == ["blocks"] and place.names("blocks") == []
    check_commits(place)


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_storage("~/run").absolute == str(tmp_path / "run")
    with pytest.raises(MucdError, match="without ~"):
        open_storage("~nobody-of-this-name/run")


def test_a_dead_server_is_one_line(bucket):
    code = (
        "from mucd_ray.service.storage.storage import *; import sys\n"
        "try: check_commits(open_storage('s3://runs/x'))\n"
        "except MucdError as error: sys.exit(str(error))"
    )
    environment = os.environ | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1 and "s3://runs/x cannot be written" in result.stderr and "127.0.0.1:9" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_full_disk_leaves_what_is_there(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        storage = open_storage(folder / "run")
        storage.create("a", b"1" * 1000)
        for write in (storage.create, storage.replace):
            with pytest.raises(OSError, match="No space left"):
                write("b", b"2" * 500_000)
        assert storage.read("a", 1 << 20) == b"1" * 1000 and os.listdir(folder / "run") == ["a"]
    finally:
        subprocess.run(["umount", str(folder)], check=True)
