"""The files of a finished stage: a list of what it wrote, and what has become of them since.

`files.json.gz` holds size and digest of each. All of them get one time of modification, the record's too, which lies in the
past: a file that still has it was not touched, one that has another is read and compared. So no times have to be kept
beside the record, whose bytes depend on what was made alone, and links and copies with their times are known as well.
"""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wsss.digests import content_digest, content_digests
from wsss.errors import BadInput, reading
from wsss.storage import TEMPORARY_SUFFIX, digest, read_json, read_packed, sync_folder, write_packed
from wsss.stream import in_threads

DONE, STARTED, SECONDS = "done.json", "started.json", "seconds.json"
FILES, INPUTS, LOCK = "files.json.gz", "inputs.json.gz", "wsss.lock"
# In a stage's folder, but not made by its function
RECORDS = (DONE, STARTED, SECONDS, FILES, INPUTS, LOCK)
# Curves with a time in their names, for people who watch a training
WATCHED = "tensorboard"

# What stages make that nobody corrects by hand: it is measured or learned
_NEVER_EDITED = ("weights", "scores")


@dataclasses.dataclass(frozen=True)
class Changes:
    """What is different in a finished stage's folder.

    Attributes:
        files: digests of its files as they are now, by relative name.
        edited: names of those that are not as the stage wrote them.
        added: names of those that it did not write, though it wrote such files.
    """

    files: Mapping[str, str]
    edited: tuple[str, ...] = ()
    added: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.edited or self.added)

    def told(self, folder: str, stage: str) -> str:
        """The changes as a clause."""
        parts = []
        if self.edited:
            parts.append(f"{counted(self.edited, 'file')} edited after `{stage}` wrote {_them(self.edited)}")
        if self.added:
            parts.append(f"{counted(self.added, 'file')} added that `{stage}` did not write")
        return f"{folder}: {'; '.join(parts)}"


def counted(names: Sequence[str], what: str) -> str:
    """`3 files (a, b, c) were`, the first few of them named."""
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{len(names)} {what}{'s' if len(names) > 1 else ''} ({shown}) {'were' if len(names) > 1 else 'was'}"


def _them(names: Sequence[str]) -> str:
    return "them" if len(names) > 1 else "it"


def past() -> int:
    """A time that no file gets by being written to after now, in ns: file systems keep steps of up to two seconds."""
    return (int(time.time()) // 2 * 2 - 2) * 1_000_000_000


def set_time(path: Path, when: int) -> None:
    """Give a file a time of modification (ns), where the file system lets us; files without it are read to be known."""
    with contextlib.suppress(OSError):
        os.utime(path, ns=(when, when))


def write_list(out: Path, when: int) -> str:
    """List what a stage wrote, and bring its names to the disk.

    Args:
        out: the stage's folder.
        when: the time (ns) that all of its files get, and the record has to get too.

    Returns:
        The digest of the list.
    """
    names = sorted(_walk(out))
    paths = [out / name for name in names]
    contents = list(in_threads(content_digest, paths))
    for path in paths:
        set_time(path, when)
    for folder in sorted({out, *(path.parent for path in paths)}):
        sync_folder(folder)
    listed = {name: [path.stat().st_size, found] for name, path, found in zip(names, paths, contents, strict=True)}
    write_packed(out / FILES, listed)
    return digest(listed)


def changes(out: Path, record: Mapping[str, Any]) -> Changes:
    """What has become of the files of a finished stage.

    Args:
        out: its folder.
        record: what its `done.json` says.

    Raises:
        BadInput: files are missing, cannot be read any more, or are others though nobody corrects such by hand (weights,
            scores); or the list is broken, or not the one that the record names.
    """
    listed = _listed(out, record)
    when = (out / DONE).stat().st_mtime_ns
    missing, touched = [], []
    for name, (size, _) in listed.items():
        try:
            status = (out / name).stat()
        except OSError:
            missing.append(name)
            continue
        # weights decide about all that follows, and there is one file of them
        if status.st_size != size or status.st_mtime_ns != when or name.endswith(".safetensors"):
            touched.append(name)
    stage = record["kind"]
    if missing:
        raise BadInput(
            out,
            f"a finished `{stage}` stage, of which {counted(missing, 'file')} removed",
            "all that it wrote",
            f"Put {_them(missing)} back, or remove {out} and start the command that made it again.",
        )
    now = {name: content for name, (_, content) in listed.items()}
    edited = []
    for name, content in zip(touched, content_digests([out / name for name in touched]), strict=True):
        if content == now[name]:
            continue
        if record["makes"] in _NEVER_EDITED:
            _check_same(out / name, content, now[name], stage, out)
        _check_readable(out / name, stage)
        now[name] = str(content)
        edited.append(name)
    suffixes = {Path(name).suffix for name in listed}
    added = [
        name
        for name in sorted(_walk(out))
        if name not in listed and not Path(name).name.startswith(".") and Path(name).suffix in suffixes
    ]
    for name, content in zip(added, content_digests([out / name for name in added]), strict=True):
        now[name] = content or "unreadable"
    return Changes(now, tuple(edited), tuple(added))


def check_file(path: Path, record: Callable[[Path], Mapping[str, Any]]) -> None:
    """Raise BadInput if a finished stage wrote a file, and it has become another one though nobody corrects such by hand.

    Args:
        path: any file.
        record: reads the record of a stage's folder.
    """
    for folder in path.resolve().parents:
        if (folder / DONE).is_file():
            done = record(folder)
            name = path.resolve().relative_to(folder).as_posix()
            _, listed = _listed(folder, done).get(name, (0, None))
            if listed and done["makes"] in _NEVER_EDITED:
                _check_same(path, content_digest(path), listed, done["kind"], folder)
            return


def _check_same(path: Path, content: str | None, listed: str, stage: str, out: Path) -> None:
    if content != listed:
        raise BadInput(
            path,
            f"a file of digest {content}, changed after `{stage}` wrote it",
            f"digest {listed}, as the record says",
            f"Put the file back, or remove {out} and make it again; a file of another origin has to lie elsewhere.",
        )


def _walk(out: Path) -> Iterator[str]:
    """Files below a stage's folder that its function may have written, by relative name."""
    for place, inner, names in os.walk(out):
        here = Path(place)
        if here != out and (DONE in names or STARTED in names):
            inner.clear()  # another stage's
            continue
        if here == out:
            inner[:] = [name for name in inner if name != WATCHED]
            names = [name for name in names if name not in RECORDS]
        yield from ((here / name).relative_to(out).as_posix() for name in names if not name.endswith(TEMPORARY_SUFFIX))


def _listed(out: Path, record: Mapping[str, Any]) -> dict[str, tuple[int, str]]:
    """Size and digest of each file that a stage wrote."""
    content = read_known(out / FILES, record["files"], "the list of the files of a finished stage")
    return {name: (size, found) for name, (size, found) in content.items()}


def read_known(path: Path, known: str, expected: str) -> Any:
    """Read what `write_packed` wrote beside a record, which holds its digest; so it is what this package wrote.

    Raises:
        BadInput: it is missing, damaged, or another one.
    """
    content = read_packed(path, expected)
    if digest(content) != known:
        do = f"It was changed after it was written: put it back, or remove {path.parent} and make it again."
        raise BadInput(path, f"digest {digest(content)}", f"digest {known}, as the record beside it says", do)
    return content


def _check_readable(path: Path, stage: str) -> None:
    """Raise BadInput for a file that was changed and is damaged: nobody meant that."""
    do = "Put the file back, or remove the folder and start the command that made it again."
    with reading(path, f"a whole file, as one that was edited after `{stage}` wrote it is", do):
        if path.suffix == ".png":
            with Image.open(path) as picture:
                picture.verify()  # all checksums, to the end
            with Image.open(path) as picture:
                picture.load()
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                for name in arrays.files:
                    arrays[name]
        elif path.suffix == ".json":
            read_json(path, "JSON")
        elif path.suffix in (".csv", ".jsonl"):
            path.read_text(encoding="utf-8", errors="surrogatepass")
