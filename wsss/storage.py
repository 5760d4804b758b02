"""Atomic writing of files: written to a temporary file, flushed to the disk, then renamed."""

import contextlib
import errno
import gzip
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from wsss.errors import BadInput, reading

TEMPORARY_SUFFIX = ".part"
# The umask can only be read by setting it, which writer threads must not do
os.umask(_UMASK := os.umask(0))

# What has to be flushed to the disk before `whole_file` ends
Sync = Literal["file and name", "file", "nothing"]

# Real lists of files are far smaller; a crafted one must not fill the memory
_MAX_UNPACKED = 512 << 20

_REASONS = {
    errno.ENOSPC: ("a full disk", "free some space, or choose another output folder"),
    errno.EDQUOT: ("an exhausted disk quota", "free some space, or choose another output folder"),
    errno.EFBIG: ("a limit on the size of files", "raise it (ulimit -f), or choose an output folder on another disk"),
    errno.EIO: (
        "a disk that cannot be written (input/output error)",
        "check the disk, or choose another output folder",
    ),
    errno.ENAMETOOLONG: ("a name that is too long for a file", "choose a shorter output folder, or rename the picture"),
    errno.ELOOP: ("symbolic links in a circle", "remove them, or choose another output folder"),
    errno.EROFS: ("a read-only file system", "choose an output folder that can be written"),
    errno.EACCES: ("no permission to write here", "change the permissions, or choose another output folder"),
    errno.EPERM: ("no permission to write here", "change the permissions, or choose another output folder"),
    errno.ENOTDIR: ("a file in place of a folder", "remove it, or choose another output folder"),
    errno.EEXIST: ("a file in place of a folder", "remove it, or choose another output folder"),
    errno.EISDIR: ("a folder in place of a file", "remove it, or choose another output folder"),
}


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of writing `path` that the user can resolve into BadInput.

    Raises:
        BadInput: the disk is full or read-only, permission is missing, or a path is occupied.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _REASONS:
            raise
        found, do = _REASONS[error.errno]
        raise BadInput(path, found, "room and permission to write this file", f"To continue: {do}.") from error


@contextlib.contextmanager
def whole_file(path: Path, sync: Sync = "file and name") -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`, and rename it to `path` if the block ends without an error.

    The folder is created if it is missing. After an error, neither a partial `path` nor the temporary file remains.

    Args:
        path: the file.
        sync: what has to be on the disk at the end. `file` leaves the name to a later `sync_folder`, for stages that write thousands
            of files: after a power failure such a file is complete or missing. `nothing` is for files that are easily made again.

    Raises:
        BadInput: as in `writing`.
    """
    temporary: Path | None = None
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=".", suffix=TEMPORARY_SUFFIX, dir=path.parent)
            os.close(handle)
            temporary = Path(name)
            yield temporary
            os.chmod(temporary, 0o666 & ~_UMASK)
            if sync != "nothing":
                with temporary.open("rb") as stream:
                    os.fsync(stream.fileno())
            os.replace(temporary, path)
            temporary = None
            if sync == "file and name":
                sync_folder(path.parent)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, before: float) -> None:
    """Remove the temporary files of `whole_file` in a folder that a killed process left there before this time (`time.time()`)."""
    for leftover in folder.glob(f".????????{TEMPORARY_SUFFIX}"):
        with contextlib.suppress(OSError):
            if leftover.is_file() and leftover.stat().st_mtime < before:
                leftover.unlink()


def sync_folder(folder: Path) -> None:
    """Flush the names of the files in a folder to the disk, if the file system supports it."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows cannot open folders
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def read_only(folder: Path) -> bool:
    """Whether a folder exists but is not writable."""
    return folder.is_dir() and not os.access(folder, os.W_OK)


def encoded(text: str) -> bytes:
    """A text as UTF-8. File names that are not UTF-8 contain lone surrogates in Python, which are encoded as they are."""
    return text.encode("utf-8", errors="surrogatepass")


def write_text(path: Path, text: str, sync: Sync = "file and name") -> None:
    """Write a text as `encoded`; a file that already has this content is left alone."""
    _write(path, encoded(text), sync)


def _write(path: Path, content: bytes, sync: Sync) -> None:
    if path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content:
        return
    with whole_file(path, sync) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: object, sync: Sync = "file and name") -> None:
    """Write `value` as indented JSON, with non-ASCII characters unescaped."""
    write_text(path, json_text(value), sync)


def json_text(value: object) -> str:
    """The text that `write_json` writes."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def read_json(path: Path, expected: str) -> Any:
    """Read a JSON file; `expected` describes its content in errors.

    Raises:
        BadInput: the file is missing, or is not JSON in UTF-8 (truncated, for example).
    """
    with reading(path, expected, "The file may be truncated: download or write it again."):
        return json.loads(path.read_text(encoding="utf-8", errors="surrogatepass"))


def write_packed(path: Path, value: object) -> None:
    """Write a JSON-serialisable value compressed; equal values give equal bytes, and a file with that content is left alone."""
    # mtime=0 leaves the time out of gzip's header
    _write(path, gzip.compress(json.dumps(value, separators=(",", ":")).encode(), mtime=0), "file and name")


def read_packed(path: Path, expected: str) -> Any:
    """Read a file that `write_packed` wrote.

    Raises:
        BadInput: the file is missing, truncated, damaged, or unpacks to more than 512 MiB.
    """
    do = "It was changed after it was written: restore it, or make the stage again in another folder."
    with reading(path, expected, do, missing=do), gzip.open(path, "rb") as stream:
        content = stream.read(_MAX_UNPACKED + 1)
        if len(content) > _MAX_UNPACKED:
            raise BadInput(path, "more than 512 MiB", expected, do)
        return json.loads(content)


def digest(value: object) -> str:
    """A short, stable digest of a JSON-serialisable value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def cache_folder() -> Path:
    """The cache folder: the environment variable WSSS_CACHE, or `wsss` in the user's cache folder."""
    user = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("WSSS_CACHE", user / "wsss"))
