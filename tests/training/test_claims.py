"""Of all who would write one folder, one does; and no dead process keeps it from others."""

import concurrent.futures
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

import pytest
from etils import epath

from t5lite.errors import InputError
from t5lite.training import claims
from t5lite.training.claims import ClaimLost, claimed


@pytest.fixture(params=["local", "object store"])
def folder(request, tmp_path, monkeypatch):
    """A folder on a disk, or one on a store without renaming, locking and folders."""
    if request.param == "local":
        return epath.Path(tmp_path) / "run" / ".claims"
    pytest.importorskip("fsspec")
    from fsspec.implementations.memory import MemoryFileSystem

    class Store(MemoryFileSystem):
        cachable = False
        store, pseudo_dirs = {}, [""]

        @classmethod
        def _strip_protocol(cls, path):
            return "/" + path.removeprefix("gs://").strip("/")

    from etils.epath import backend, gpath

    remote = backend._FileSystemSpecBackend()
    monkeypatch.setattr(remote, "fs", lambda path: Store())
    monkeypatch.setattr(remote, "glob", lambda path: [f"gs:/{p}" for p in Store().glob(path)])
    monkeypatch.setattr(gpath.PosixGPath, "_backend", remote)
    return epath.Path("gs://bucket/run/.claims")


def claim(folder):
    return claimed(folder, name="runs/a", say=lambda text: None)


def leave(folder, **changes):
    """Leaves a claim as a process would that was killed."""
    content = {"host": "far", "machine": "far", "pid": 7, "pid_started": "1", "started": 1e9}
    path = folder / f"{1e9:017.6f}-dead.json"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content | {"beat": time.time()} | changes))
    return path


def here():
    return {key: value for key, value in claims._this_process().items() if key != "host"}


def test_a_second_writer_is_refused_with_process_host_and_time(folder):
    with claim(folder):
        with pytest.raises(InputError) as error, claim(folder):
            pytest.fail("two writers")
        message = str(error.value)
        assert f"runs/a is being written by process {os.getpid()} on {socket.gethostname()}" in (
            message
        )
        assert time.strftime("since %Y-%m-%d %H:") in message
        assert len(message.splitlines()) <= 5
        assert len([*folder.glob("*")]) == 1  # the refused one leaves nothing
    with claim(folder) as later:
        later.check()
    assert not [*folder.glob("*")]


def test_of_simultaneous_writers_exactly_one_stays(tmp_path):
    inside, most = 0, 0
    guard, start, finished = threading.Lock(), threading.Barrier(6), threading.Event()

    def write(_):
        nonlocal inside, most
        start.wait()
        try:
            with claim(tmp_path / ".claims"):
                with guard:
                    inside += 1
                    most = max(most, inside)
                finished.wait(10)
            return True
        except InputError:
            return False

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(write, each) for each in range(6)]
        while sum(future.done() for future in futures) < 5:
            time.sleep(0.01)
        finished.set()
        assert sorted(future.result() for future in futures) == [False] * 5 + [True]
    assert most == 1


def test_a_dead_process_of_this_machine_is_passed_over_at_once(folder):
    process = subprocess.Popen([sys.executable, "-c", ""])
    began = claims._start_of(process.pid)
    while claims._start_of(process.pid):  # it has ended, and nobody has asked how
        time.sleep(0.01)
    left = [leave(folder, **here() | {"pid": process.pid, "pid_started": began})]
    with claim(folder):
        assert not left[0].exists()
    process.wait()
    leave(folder, **here() | {"pid": process.pid, "pid_started": began})
    with claim(folder):
        pass
    # Another process may have its number by now.
    leave(folder, **here() | {"pid_started": "an earlier one"})
    with claim(folder):
        pass


def test_another_machine_is_watched_for_a_beat(folder, monkeypatch):
    monkeypatch.setattr(claims, "STALE_SECONDS", 0.3)
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.02)
    messages = []
    left = leave(folder, beat=time.time() + 3000)  # its clock is fast
    with claimed(folder, name="runs/a", say=messages.append):
        assert not left.exists()
    assert "process 7 on far" in messages[0]

    left = leave(folder)
    beats = threading.Timer(0.1, lambda: leave(folder, beat=3.0))
    beats.start()
    with pytest.raises(InputError, match="process 7 on far"), claim(folder):
        pytest.fail("two writers")
    assert left.exists()
    left.write_text("")  # its disk was full
    with claim(folder):
        assert not left.exists()


def test_a_claim_of_long_ago_is_not_watched(folder, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waited"))
    leave(folder, beat=time.time() - 1e5)
    with claim(folder):
        pass


def test_a_claim_beats_until_it_is_lost(folder, monkeypatch):
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.05)
    with claim(folder) as mine:
        first = json.loads(mine.path.read_text())["beat"]
        while json.loads(mine.path.read_text())["beat"] == first:
            time.sleep(0.01)
        mine.path.unlink()
        leave(folder)
        with pytest.raises(ClaimLost, match="by process 7 on far"):
            mine.check()
        time.sleep(0.1)
        assert not mine.path.exists()


def test_new_folders_are_removed_if_they_are_empty(tmp_path):
    with claim(tmp_path / "a" / "b" / ".claims"):
        pass
    assert not [*tmp_path.iterdir()]
    with claim(tmp_path / "a" / "b" / ".claims"):
        (tmp_path / "a" / "kept").write_text("")
    assert [path.name for path in pathlib.Path(tmp_path).rglob("*")] == ["a", "kept"]
