"""Digests of files: read once, and again when they were touched."""

import hashlib
import os
import time

import pytest

from wsss import digests
from wsss.storage import write_packed


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch):
    monkeypatch.setattr(digests, "_known", {})


@pytest.fixture
def reads(monkeypatch):
    """Files that are read."""
    found = []
    digest = hashlib.file_digest
    monkeypatch.setattr(
        digests.hashlib, "file_digest", lambda stream, kind: found.append(stream.name) or digest(stream, kind)
    )
    return found


def old_file(path, content=b"content"):
    """A file that was not touched for an hour, as far as one may look at its times."""
    path.write_bytes(content)
    os.utime(path, (time.time() - 3600, time.time() - 3600))
    return path


@pytest.fixture
def an_hour_later(monkeypatch):
    """The time of the last change of a file's name or rights cannot be set."""
    clock = time.time_ns
    monkeypatch.setattr(digests.time, "time_ns", lambda: clock() + 3600 * 10**9)


def test_a_file_is_read_once(tmp_path, reads, an_hour_later):
    path = old_file(tmp_path / "a")
    assert digests.content_digest(path) == digests.content_digest(path) == hashlib.sha256(b"content").hexdigest()[:16]
    assert len(reads) == 1


def rewritten(path):
    path.write_bytes(b"another")


def with_its_time(path):
    before = path.stat()
    path.write_bytes(b"another")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced(path):
    (path.parent / "new").write_bytes(b"another")
    (path.parent / "new").rename(path)


@pytest.mark.parametrize("change", [rewritten, with_its_time, replaced])
def test_changes_of_the_same_size_are_noticed(tmp_path, an_hour_later, change):
    path = old_file(tmp_path / "a")
    before = digests.content_digest(path)
    time.sleep(0.02)  # more than a step of the file system's clock
    change(path)
    assert digests.content_digest(path) != before


def test_a_young_file_is_read_again(tmp_path, reads):
    (tmp_path / "a").write_bytes(b"content")
    for _ in range(2):
        digests.content_digest(tmp_path / "a")
    assert len(reads) == 2


def test_digests_are_kept_for_later_commands(tmp_path, reads, an_hour_later, monkeypatch):
    for folder in ("data", "run"):
        (tmp_path / folder).mkdir()
    paths = [old_file(tmp_path / "data" / name) for name in "ab"]
    inside = old_file(tmp_path / "run" / "weights")
    found = digests.content_digests([*paths, inside])
    digests.save_cache(tmp_path / "run" / "cache", below=tmp_path / "data")
    before = (tmp_path / "run" / "cache").stat().st_mtime_ns
    digests.save_cache(tmp_path / "run" / "cache", below=tmp_path / "data")
    assert (tmp_path / "run" / "cache").stat().st_mtime_ns == before
    monkeypatch.setattr(digests, "_known", {})
    reads.clear()
    digests.load_cache(tmp_path / "run" / "cache")
    assert digests.content_digests([*paths, inside]) == found
    assert reads == [str(inside)], "what the run made is looked at itself"


@pytest.mark.parametrize(
    "content", [b"", b"cut", [], {"a": 1}, {"a": [[1, 2], "x"]}, {"a": [["x"] * 4, "x"]}, None], ids=str
)
def test_a_broken_cache_is_of_no_harm(tmp_path, content):
    path = tmp_path / "cache"
    path.write_bytes(content) if isinstance(content, bytes) else write_packed(path, content)
    digests.load_cache(path)
    digests.load_cache(tmp_path / "missing")
    assert digests.content_digest(old_file(tmp_path / "a")) == hashlib.sha256(b"content").hexdigest()[:16]


def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert digests.content_digests([tmp_path / "pipe", tmp_path, tmp_path / "missing"]) == [None] * 3


def test_folders_are_known_by_names_and_contents(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "1").write_bytes(b"x")
    (tmp_path / "a" / ".hidden").write_bytes(b"x")
    (tmp_path / "a" / "circle").symlink_to(tmp_path / "a")
    before = digests.path_digest(tmp_path / "a")
    assert set(digests.folder_digests(tmp_path / "a")) == {"b/1"}
    (tmp_path / "a" / ".hidden").unlink()
    assert digests.path_digest(tmp_path / "a") == before
    (tmp_path / "a" / "b" / "1").write_bytes(b"y")
    assert digests.path_digest(tmp_path / "a") != before
