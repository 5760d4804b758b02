"""What earlier commands found out about data sets, in the cache folder: commands are quicker with it, and never need it.

Each data set (in one way of opening it), each large annotation file, each folder of maps or masks that no stage made and each finished command has
an entry: a folder in `datasets`, named by a digest. All that an entry holds can be found out again. So reading it never fails: a damaged file is
as good as none. Nor does writing it: with a full disk or a read-only folder, nothing is remembered. Commands that write also remove entries that
were not used for long.
"""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsss import __version__
from wsss.digests import lasting_stamp
from wsss.errors import BadInput, reading
from wsss.storage import cache_folder, digest, read_packed, whole_file, write_packed
from wsss.stream import in_threads

if TYPE_CHECKING:
    import numpy as np

# In an entry or a run folder: digests of files, which are read again only after a change
CONTENTS = "contents.json.gz"
# In an entry: what `of_files` found out
FACTS = "facts.json.gz"
# Part of the names of entries: builds that find out something else, or write it in another way, have others
FORMAT = 2
# Seconds without use after which an entry is removed, and the size of all entries beyond which the least recently used are
UNUSED, MOST_BYTES = 60 * 86400.0, 1 << 30
# Seconds after its last use for which an entry may still be in use
IN_USE = 3600.0
# Begin the names of folders that are being deleted
_GONE = ".gone-"
_EXPECTED = "what was found out about a data set"


def entry(*identity: object) -> Path | None:
    """The folder of an entry, which is marked as used now; None if there is none and none can be made.

    Args:
        identity: plain values that distinguish it.
    """
    folder = cache_folder() / "datasets" / digest([FORMAT, __version__, *identity])
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    with contextlib.suppress(OSError):  # it may be read-only
        os.utime(folder)
    return folder


def load(path: Path) -> dict[str, Any]:
    """A value that `save` wrote; empty if it was not, or is damaged."""
    try:
        content = read_packed(path, _EXPECTED)
    except BadInput:
        return {}
    return content if isinstance(content, dict) else {}


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON-serialisable value into an entry."""
    with writing(path.parent):
        write_packed(path, content)


def load_arrays(path: Path) -> "dict[str, np.ndarray]":
    """Arrays that `save_arrays` wrote; empty if it did not, or if they are damaged."""
    import numpy as np

    try:
        # reading a member compares its checksum
        with reading(path, _EXPECTED), np.load(path, allow_pickle=False) as found:
            return dict(found)
    except BadInput:
        return {}


def save_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays, by name, into an entry."""
    import numpy as np

    with writing(path.parent), whole_file(path, "nothing") as temporary, temporary.open("wb") as stream:
        np.savez(stream, **arrays)


def of_files(identity: Sequence[object], paths: Sequence[Path], find: Callable[[Path], Any]) -> list[Any]:
    """What a function finds out about each file; it is only called for files that are new or were changed.

    Args:
        identity: plain values that distinguish what is found out, and about which data set.
        paths: the files.
        find: gives a JSON-serialisable value; None is not remembered.
    """
    place = entry("files", *identity)
    known = load(place / FACTS) if place else {}
    names, stamps = [os.fspath(path) for path in paths], [lasting_stamp(path) for path in paths]
    found = [
        known[name][1] if stamp and name in known and known[name][0] == stamp else None
        for name, stamp in zip(names, stamps, strict=True)
    ]
    unknown = [at for at, value in enumerate(found) if value is None]
    for at, value in zip(unknown, in_threads(lambda at: find(paths[at]), unknown, batch=16), strict=True):
        found[at] = value
    facts = {
        name: [stamp, value]
        for name, stamp, value in zip(names, stamps, found, strict=True)
        if stamp and value is not None
    }
    if place and facts != known:
        save(place / FACTS, facts)
    return found


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Write files of an entry in this block if possible, and then remove old entries.

    Args:
        folder: the entry.
    """
    with contextlib.suppress(OSError, BadInput):
        yield
        tidy(folder.parent)


def tidy(folder: Path) -> None:
    """Remove entries that were not used for long, or beyond the size that all may have; never one that may be in use.

    Several processes may do this at once: an entry is first given another name, which only one of them can do.

    Args:
        folder: the folder of the entries.
    """
    now, left = time.time(), 0
    entries = [(one.stat().st_mtime, Path(one.path)) for one in os.scandir(folder) if one.is_dir(follow_symlinks=False)]
    for used, path in sorted(entries, reverse=True):
        if path.name.startswith(_GONE):
            # whoever renamed it may have been killed
            shutil.rmtree(path, ignore_errors=True)
            continue
        left += sum(file.stat().st_size for file in os.scandir(path) if file.is_file(follow_symlinks=False))
        if now - used > IN_USE and (now - used > UNUSED or left > MOST_BYTES):
            _remove(path)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        gone = tempfile.mkdtemp(prefix=_GONE, dir=path.parent)
        path.rename(Path(gone) / path.name)
        shutil.rmtree(gone, ignore_errors=True)
