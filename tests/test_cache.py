"""What is remembered about data sets: it never fails, and does not grow without end."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from wsss import cache, digests

DAY = 86400


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The cache folder of a test."""
    monkeypatch.setenv("WSSS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "datasets"


def written(name, *, used=0.0, size=1):
    """An entry of this size in bytes, last used `used` seconds ago."""
    one = cache.entry(name)
    (one / "a").write_bytes(b"x" * size)
    os.utime(one, (time.time() - used, time.time() - used))
    return one


def test_values_and_arrays_come_back():
    one = cache.entry("data set", {"split": None})
    assert one == cache.entry("data set", {"split": None})
    assert one != cache.entry("data set", {"split": "val"})
    cache.save(one / "a.json.gz", {"x": [1, "é"]})
    cache.save_arrays(one / "a.npz", {"x": np.arange(3), "y": np.zeros((0, 2), bool)})
    assert cache.load(one / "a.json.gz") == {"x": [1, "é"]}
    arrays = cache.load_arrays(one / "a.npz")
    np.testing.assert_array_equal(arrays["x"], [0, 1, 2])
    assert arrays["y"].shape == (0, 2)


def test_other_versions_have_other_entries(monkeypatch):
    ours = cache.entry("a")
    monkeypatch.setattr(cache, "FORMAT", cache.FORMAT + 1)
    later = cache.entry("a")
    monkeypatch.setattr(cache, "__version__", "99")
    assert len({ours, later, cache.entry("a")}) == 3


@pytest.mark.parametrize("at", [0.0, 0.1, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_file_is_as_good_as_none(at, damage):
    one = cache.entry("a")
    cache.save(one / "a.json.gz", {"x": list(range(50))})
    cache.save_arrays(one / "a.npz", {"x": np.arange(50)})
    for path, load in ((one / "a.json.gz", cache.load), (one / "a.npz", cache.load_arrays)):
        whole, before = path.read_bytes(), load(path)
        place = int(at * len(whole))
        path.write_bytes(
            whole[:place] if damage == "cut" else whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :]
        )
        found = load(path)
        assert found == {} or (damage == "changed" and repr(found) == repr(before))


def test_nothing_there_is_as_good_as_damaged(tmp_path):
    assert cache.load(tmp_path / "a.json.gz") == cache.load_arrays(tmp_path / "a.npz") == {}
    (tmp_path / "list.json.gz").write_bytes(b"")
    assert cache.load(tmp_path / "list.json.gz") == {}


def test_a_full_disk_or_a_read_only_folder_is_no_error(monkeypatch):
    one = cache.entry("a")

    def full(*arguments, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkstemp", full)
    monkeypatch.setattr(os, "utime", full)
    cache.save(one / "a.json.gz", {"x": 1})
    cache.save_arrays(one / "a.npz", {"x": np.arange(3)})
    assert list(one.iterdir()) == []
    assert cache.entry("a") == one


def test_no_folder_can_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WSSS_CACHE", str(tmp_path / "file"))
    assert cache.entry("a") is None


def test_entries_that_were_not_used_for_long_are_removed_when_something_is_written(folder):
    old, recent = written("old", used=100 * DAY), written("recent", used=DAY)
    assert {path.name for path in folder.iterdir()} == {old.name, recent.name}
    new = cache.entry("new")
    cache.save(new / "a.json.gz", {})
    assert {path.name for path in folder.iterdir()} == {recent.name, new.name}


def test_the_use_of_an_entry_counts_as_time(folder):
    old = written("old", used=100 * DAY)
    assert cache.entry("old") == old
    cache.tidy(folder)
    assert old.is_dir()


def test_beyond_their_size_the_entries_not_used_for_longest_are_removed(folder, monkeypatch):
    monkeypatch.setattr(cache, "MOST_BYTES", 250)
    entries = [written(f"{days}", used=days * DAY, size=100) for days in (3, 1, 2)]
    cache.tidy(folder)
    assert {path.name for path in folder.iterdir()} == {entries[1].name, entries[2].name}


def test_an_entry_that_may_be_in_use_stays_however_large_it_is(folder, monkeypatch):
    monkeypatch.setattr(cache, "MOST_BYTES", 50)
    used, unused = written("used", used=60, size=100), written("unused", used=2 * cache.IN_USE, size=10)
    cache.tidy(folder)
    assert list(folder.iterdir()) == [used]
    assert not unused.exists()


def test_what_a_killed_process_left_is_removed(folder):
    one = written("old", used=100 * DAY)
    (folder / ".gone-x").mkdir()
    one.rename(folder / ".gone-x" / one.name)
    cache.tidy(folder)
    assert list(folder.iterdir()) == []


def test_an_entry_that_another_process_removes_can_be_written_again():
    one = cache.entry("a")
    one.rmdir()
    cache.save(one / "a.json.gz", {"x": 1})
    assert cache.load(one / "a.json.gz") == {"x": 1}


def test_what_is_known_of_files_is_found_out_once_until_they_change(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "_TIME_STEP_NS", -(10**12))  # no file is too young
    paths = [tmp_path / name for name in "abc"]
    asked = []

    def first_letter(path):
        asked.append(path.name)
        return path.read_text()[:1] or None

    for path in paths:
        path.write_text(path.name if path.name != "c" else "")

    def found():
        asked.clear()
        return cache.of_files(("letters",), paths, first_letter), list(asked)

    assert found() == (["a", "b", None], ["a", "b", "c"])
    assert found() == (["a", "b", None], ["c"])
    status = paths[0].stat()
    time.sleep(0.02)  # times of files have a resolution
    paths[0].write_text("x")
    os.utime(paths[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert found() == (["x", "b", None], ["a", "c"])
    paths[1].unlink()
    with pytest.raises(FileNotFoundError):
        found()


def test_a_young_file_is_looked_at_again(tmp_path):
    (tmp_path / "a").write_text("a")
    for content in "ab":
        (tmp_path / "a").write_text(content)
        assert cache.of_files(("letters",), [tmp_path / "a"], Path.read_text) == [content]


WRITES = """
import sys, time
from wsss import cache
cache.MOST_BYTES, cache.IN_USE = 20000, 0.3
until, name, turns = time.monotonic() + 3, sys.argv[1], 0
while time.monotonic() < until or turns < 20:
    turns += 1
    own, both = cache.entry(name), cache.entry("both")
    cache.save(own / "a.json.gz", {"x": name, "y": [turns] * 2000})
    assert cache.load(own / "a.json.gz") == {"x": name, "y": [turns] * 2000}
    cache.save(both / "a.json.gz", {"x": name * 2000})
    assert cache.load(both / "a.json.gz") in ({"x": "p" * 2000}, {"x": "q" * 2000})
    old = cache.entry(name, turns)
    cache.save(old / "a.json.gz", {"x": "z" * turns})
"""


@pytest.mark.whole
def test_two_processes_that_write_and_remove_at_once_lose_nothing_in_use(folder):
    processes = [subprocess.Popen([sys.executable, "-c", WRITES, name], stderr=subprocess.PIPE) for name in "pq"]
    errors = [process.communicate()[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    left = {path.name: path for path in folder.iterdir()}
    assert cache.entry("both").name in left
    assert not any(name.startswith(".gone-") for name in left)
