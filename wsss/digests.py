"""Digests of file contents: a file is read only once, until it changes."""

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

# File systems store times in steps of up to two seconds (FAT): a file changed that recently may change again with the same time
_TIME_STEP_NS = 2_000_000_000


class _Stamp(NamedTuple):
    """Properties of which at least one differs after a file was written to or replaced."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


# Known digests by absolute path, which save reading the files again
_known: dict[str, tuple[_Stamp, str]] = {}
# What the files with digests hold, so that they are only written after a change
_saved: dict[Path, dict[str, tuple[_Stamp, str]]] = {}


def content_digest(path: Path) -> str:
    """A short digest of a file's content.

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
    if before == after and _is_settled(after):
        _known[key] = after, content
    else:
        _known.pop(key, None)
    return content


def content_digests(paths: Iterable[Path], advance: Callable[[], None] = lambda: None) -> list[str | None]:
    """Digests of many files, read in threads; None for files that cannot be read.

    Args:
        paths: the files.
        advance: called after each file.
    """
    found = []
    # most are known
    for one in in_threads(_digest_or_none, paths, batch=16):
        found.append(one)
        advance()
    return found


def _digest_or_none(path: Path) -> str | None:
    try:
        return content_digest(path)
    except OSError:
        return None


def folder_digests(folder: Path) -> dict[str, str]:
    """Digests of all files below a folder except hidden ones, by relative name."""
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
    """A short digest of the content of a file or folder."""
    return content_digest(path) if path.is_file() else digest(folder_digests(path))


def lasting_stamp(path: Path) -> list[int] | None:
    """Properties of a file of which one differs after each change from now on; None if it has just been changed, or is missing."""
    try:
        stamp = _stamp(os.stat(path))
    except OSError:
        return None
    return list(stamp) if _is_settled(stamp) else None


def tree_stamp(folder: Path, ignored: str) -> str | None:
    """A text that changes when any file below a folder is changed, added or removed; links are followed.

    Args:
        folder: the folder.
        ignored: files of this name do not count.

    Returns:
        None if a file has just been changed, or a folder cannot be read.
    """
    latest, seen, folders = 0, set[tuple[int, int]](), [os.fspath(folder)]
    content = hashlib.sha256()
    try:
        while folders:
            place = folders.pop()
            content.update(os.fsencode(f"{place}\n"))
            with os.scandir(place) as listed:
                entries = sorted((entry.name, entry) for entry in listed if entry.name != ignored)
            lines = []
            for name, entry in entries:
                if entry.is_symlink() and not os.path.exists(entry):
                    lines.append(f"{name}\n")
                    continue
                status = entry.stat()
                if not stat.S_ISDIR(status.st_mode):
                    latest = max(latest, status.st_mtime_ns, status.st_ctime_ns)
                    lines.append(f"{name}\t{_stamp(status)}\n")
                elif (status.st_dev, status.st_ino) not in seen:
                    seen.add((status.st_dev, status.st_ino))
                    folders.append(entry.path)
            content.update(os.fsencode("".join(lines)))
    except OSError:
        return None
    return content.hexdigest() if time.time_ns() - latest > _TIME_STEP_NS else None


def load_cache(cache: Path) -> None:
    """Load the digests that an earlier command saved; if that file cannot be read, nothing is loaded."""
    try:
        entries = read_packed(cache, "digests of files")
        _saved[cache] = {path: (_Stamp(*map(int, stamp)), str(content)) for path, (stamp, content) in entries.items()}
        _known.update(_saved[cache])
    except (BadInput, TypeError, ValueError, AttributeError):
        return


def save_cache(cache: Path, below: Path) -> None:
    """Save the known digests of the files below a folder for later commands; a read-only folder is left alone."""
    if not read_only(cache.parent):
        inside = os.path.join(os.path.abspath(below), "")
        entries = {key: found for key, found in _known.items() if key.startswith(inside)}
        if entries != _saved.get(cache):
            write_packed(cache, dict(sorted(entries.items())))
            _saved[cache] = entries


def _is_settled(stamp: _Stamp) -> bool:
    return time.time_ns() - max(stamp.mtime_ns, stamp.ctime_ns) > _TIME_STEP_NS


def _stamp(status: os.stat_result) -> _Stamp:
    return _Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
