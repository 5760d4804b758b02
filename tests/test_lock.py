"""One command at a time in a folder: who is refused, who takes over, and what is left."""

import dataclasses
import json
import os
import platform
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from wsss import lock
from wsss.errors import BadInput
from wsss.outputs import LOCK


@pytest.fixture
def other():
    """Another process that is alive."""
    process = subprocess.Popen(["sleep", "100"])
    yield process
    process.kill()
    process.wait()


def owner(process, **changed):
    """What stands in the lock of a process on this machine."""
    started = psutil.Process(process.pid).create_time()
    who = lock.Owner(
        platform.node(), lock._machine(), process.pid, started, "2026-11-29 14:40:01", "wsss run cam", "other"
    )
    return dataclasses.replace(who, **changed)


def write(folder, who, age=0.0):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    path.write_text(json.dumps(dataclasses.asdict(who)))
    os.utime(path, (time.time() - age, time.time() - age))
    return path


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(lock, "SETTLE_TIME", 0.02)


def test_a_folder_is_held_and_the_lock_vanishes(tmp_path):
    with lock.locked(tmp_path / "a" / "b"):
        found = json.loads((tmp_path / "a" / "b" / LOCK).read_text())
        assert found["process"] == os.getpid()
        assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == [LOCK]
    assert not (tmp_path / "a").exists(), "folders made for the lock alone go with it"
    (tmp_path / "made").touch()
    with pytest.raises(FileNotFoundError), lock.locked(tmp_path / "a"):
        (tmp_path / "made").rename(tmp_path / "a" / "made.txt").rename(tmp_path / "nowhere" / "made")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["made.txt"]


def test_the_second_command_is_refused_by_name(tmp_path, other):
    path = write(tmp_path, owner(other))
    with pytest.raises(BadInput, match=rf"`wsss run cam` \(process {other.pid} on .*, since 2026-11-29 14:40:01\)"):
        lock.locked(tmp_path).__enter__()
    assert lock._owner(path).token == "other"
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def test_a_stage_folder_in_a_run_that_another_works_on(tmp_path, other):
    write(tmp_path / "run", owner(other))
    with pytest.raises(BadInput, match="another command running here") as error:
        lock.locked(tmp_path / "run" / "classifier").__enter__()
    assert error.value.where == str(tmp_path / "run")
    assert not (tmp_path / "run" / "classifier").exists()


def test_a_run_with_a_stage_that_another_works_on(tmp_path, other):
    write(tmp_path / "run" / "classifier", owner(other))
    with lock.locked(tmp_path / "run"):
        with pytest.raises(BadInput, match="another command running here"):
            lock.locked(tmp_path / "run" / "classifier").__enter__()
        with lock.locked(tmp_path / "run" / "cams"):
            pass


@pytest.mark.parametrize("gone", ["killed", "number used again", "unwaited"])
def test_a_killed_owner_on_this_machine_is_followed_at_once(tmp_path, other, caplog, gone):
    who = owner(other)
    if gone == "number used again":
        who = dataclasses.replace(who, started=who.started - 3600)
    else:
        other.kill()
        if gone == "killed":
            other.wait()
        else:  # a zombie
            while psutil.Process(other.pid).status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.01)
    write(tmp_path, who)
    caplog.set_level("INFO", "wsss")
    with lock.locked(tmp_path):
        assert lock._owner(tmp_path / LOCK).process == os.getpid()
    assert "taken over from `wsss run cam`" in caplog.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", [{"host": "elsewhere"}, {"machine": "another container"}], ids=str)
def test_an_owner_elsewhere_is_known_by_its_signs_of_life(tmp_path, other, where):
    path = write(tmp_path, owner(other, **where), age=100)
    with pytest.raises(BadInput, match=r"renewed its lock 100 s ago.*start again in 5 minutes, or remove .*wsss\.lock"):
        lock.locked(tmp_path).__enter__()
    os.utime(path, (0, time.time() - 301))
    with lock.locked(tmp_path):
        assert lock._owner(path).process == os.getpid()


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"[" * 100_000, b'{"host": 1}', b"\xff", b"1" * 5000])
def test_a_broken_lock_is_one_of_a_command_that_does_not_say_which(tmp_path, content):
    (tmp_path / LOCK).write_bytes(content)
    with pytest.raises(BadInput, match="an unknown one"):
        lock.locked(tmp_path).__enter__()
    os.utime(tmp_path / LOCK, (0, 0))
    with lock.locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_is_held_is_not_locked_again(tmp_path):
    with lock.locked(tmp_path):
        before = (tmp_path / LOCK).read_bytes()
        with lock.locked(tmp_path), lock.locked(tmp_path / "stage"):
            assert not (tmp_path / "stage").exists()
        assert (tmp_path / LOCK).read_bytes() == before


def test_other_threads_are_other_commands(tmp_path):
    with lock.locked(tmp_path), ThreadPoolExecutor(1) as pool:
        error = pool.submit(lambda: lock.locked(tmp_path).__enter__()).exception()
    assert isinstance(error, BadInput)


@pytest.mark.parametrize("abandoned", [False, True])
@pytest.mark.parametrize("links", [True, False])
def test_of_many_that_come_at_once_one_wins(tmp_path, other, monkeypatch, abandoned, links):
    monkeypatch.setattr(lock, "SETTLE_TIME", 0.6)
    if not links:
        monkeypatch.setattr(lock.os, "link", lambda *paths: (_ for _ in ()).throw(OSError("no links here")))
    if abandoned:
        write(tmp_path, owner(other, started=0.0))
    together, over = threading.Barrier(6), threading.Barrier(6)

    def come() -> bool:
        together.wait()
        try:
            with lock.locked(tmp_path):
                over.wait()
                return True
        except BadInput:
            over.wait()
            return False

    with ThreadPoolExecutor(6) as pool:
        won = list(pool.map(lambda _: come(), range(6)))
    assert sum(won) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_link_whose_answer_was_lost_counts(tmp_path, monkeypatch):
    link = os.link

    def lost(source, target):
        link(source, target)
        raise OSError("stale file handle")

    monkeypatch.setattr(lock.os, "link", lost)
    with lock.locked(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def test_a_lock_that_was_taken_over_is_noticed(tmp_path, other):
    with lock.locked(tmp_path):
        lock.check_locks()
        write(tmp_path, owner(other))
        with pytest.raises(BadInput, match=rf"process {other.pid}.* took it over"):
            lock.check_locks()
    assert lock._owner(tmp_path / LOCK).token == "other", "the other's lock stays"


def test_the_owner_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "RENEW_EVERY", 0.01)
    with lock.locked(tmp_path):
        os.utime(tmp_path / LOCK, (0, 0))
        until = time.monotonic() + 20
        while (tmp_path / LOCK).stat().st_mtime < time.time() - 60:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_a_read_only_folder_needs_no_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with lock.locked(tmp_path):
        assert list(tmp_path.iterdir()) == []


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(BadInput, match="a file in place of a folder"):
        lock.locked(tmp_path / "out").__enter__()
