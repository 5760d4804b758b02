"""Digests of the contents of files: each file is read once, as long as nobody touches it."""

import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from wsss.errors import BadInput
from wsss.storage import digest, read_only, read_packed, write_packed
from wsss.stream import in_threads

# File systems keep times in steps of up to two seconds (FAT): a file as young as that may change without a trace
_SETTLED_NS = 2_000_000_000


class _Stamp(NamedTuple):
    """What is different after a file was written to or replaced."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


# By absolute path. What a command knows, it need not read again
_known: dict[str, tuple[_Stamp, str]] = {}


def content_digest(path: Path) -> str:
    """A short fingerprint of a file's content.

    Raises:
        OSError: the file is missing or cannot be read.
    """
    key, status = os.path.abspath(path), os.stat(path)
    found = _known.get(key)
    if found and found[0] == _stamp(status):
        return found[1]
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "no regular file", str(path))
    with path.open("rb") as stream:
        before = _stamp(os.fstat(stream.fileno()))
        content = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
        after = _stamp(os.fstat(stream.fileno()))
    if before == after and time.time_ns() - max(after.mtime_ns, after.ctime_ns) > _SETTLED_NS:
        _known[key] = after, content
    else:
        _known.pop(key, None)
    return content


def content_digests(paths: Iterable[Path], advance: Callable[[], None] = lambda: None) -> list[str | None]:
    """Fingerprints of many files, read in threads; None of those that cannot be read.

    Args:
        paths: the files.
        advance: called after each.
    """
    found = []
    for one in in_threads(_digest_or_none, paths):
        found.append(one)
        advance()
    return found


def _digest_or_none(path: Path) -> str | None:
    try:
        return content_digest(path)
    except OSError:
        return None


def folder_digests(folder: Path) -> dict[str, str]:
    """Fingerprints of all files below a folder but hidden ones, by relative name."""
    found = []
    for place, inner, names in os.walk(folder):
        inner[:] = [name for name in inner if not name.startswith(".")]
        found += [Path(place, name) for name in names if not name.startswith(".")]
    files = sorted(path for path in found if path.is_file())
    contents = content_digests(files)
    return {
        path.relative_to(folder).as_posix(): content or "unreadable"
        for path, content in zip(files, contents, strict=True)
    }


def path_digest(path: Path) -> str:
    """A short fingerprint of the content of a file or a folder."""
    return content_digest(path) if path.is_file() else digest(folder_digests(path))


def remember(cache: Path) -> None:
    """Take over the digests that an earlier command kept in a file; where that cannot be read, files are read instead."""
    try:
        entries = read_packed(cache, "digests of files")
        _known.update({path: (_Stamp(*map(int, stamp)), str(content)) for path, (stamp, content) in entries.items()})
    except (BadInput, TypeError, ValueError, AttributeError):
        return


def keep(cache: Path, below: Path) -> None:
    """Write what is known of the files below a folder for later commands; nothing is written to a read-only place."""
    if not read_only(cache.parent):
        inside = os.path.join(os.path.abspath(below), "")
        write_packed(cache, {key: _known[key] for key in sorted(_known) if key.startswith(inside)})


def _stamp(status: os.stat_result) -> _Stamp:
    return _Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
