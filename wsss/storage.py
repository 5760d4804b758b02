"""Files that are whole or not there: written beside their place and renamed into it."""

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wsss.errors import BadInput

TEMPORARY_SUFFIX = ".part"
# The umask can only be read by setting it, which is no business of writer threads
os.umask(_UMASK := os.umask(0))


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path in the folder of `path`; rename it to `path` when the block ends without an error.

    The folder is made if it is missing. Whatever goes wrong, neither a partial `path` nor the temporary file stays.

    Raises:
        BadInput: the disk is full, or the folder cannot be written.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".", suffix=TEMPORARY_SUFFIX, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        os.chmod(temporary, 0o666 & ~_UMASK)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        reasons = {
            errno.ENOSPC: ("a full disk", "free some space, or choose another output folder"),
            errno.EDQUOT: ("a used-up disk quota", "free some space, or choose another output folder"),
            errno.EROFS: ("a read-only file system", "choose an output folder that can be written"),
            errno.EACCES: ("no permission to write here", "change the permissions, or choose another output folder"),
            errno.EPERM: ("no permission to write here", "change the permissions, or choose another output folder"),
            errno.ENOTDIR: ("a file where a folder has to be", "remove it, or choose another output folder"),
            errno.EEXIST: ("a file where a folder has to be", "remove it, or choose another output folder"),
        }
        if error.errno not in reasons:
            raise
        found, do = reasons[error.errno]
        raise BadInput(path, found, "room and permission to write this file", f"To go on: {do}.") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, non-ASCII letters as they are."""
    with whole_file(path) as temporary:
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        # file names may hold bytes that are not UTF-8, which Python keeps as lone surrogates
        temporary.write_text(text, encoding="utf-8", errors="surrogatepass")


def read_json(path: Path, expected: str) -> Any:
    """Read a JSON file; `expected` says in words what it should hold, for the error.

    Raises:
        BadInput: the file is missing, is not UTF-8 or is not JSON (cut off, for example).
    """
    try:
        return json.loads(path.read_text(encoding="utf-8", errors="surrogatepass"))
    except FileNotFoundError as error:
        raise BadInput(path, "no such file", expected, "Check the path.") from error
    except UnicodeDecodeError as error:
        raise BadInput(
            path,
            f"bytes that are not UTF-8 ({error.reason} at byte {error.start})",
            expected,
            "Save the file as UTF-8.",
        ) from error
    except json.JSONDecodeError as error:
        raise BadInput(
            path,
            f"broken JSON at line {error.lineno}, column {error.colno} ({error.msg})",
            expected,
            "The file may be cut off: fetch or write it again.",
        ) from error


def digest(value: Any) -> str:
    """A short, stable fingerprint of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """A short fingerprint of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def path_digest(path: Path) -> str:
    """A short fingerprint of the content of a file, or of a folder but for hidden files and clocks."""
    if path.is_file():
        return file_digest(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    kept = [file for file in files if not file.name.startswith(".") and file.name != "seconds.json"]
    return digest({str(file.relative_to(path)): file_digest(file) for file in kept})


def cache_folder() -> Path:
    """Where things are kept that can be made again: WSSS_CACHE, or wsss in the user's cache folder."""
    user = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("WSSS_CACHE", user / "wsss"))
