"""The files of a finished stage: the list of what it wrote, and which files have changed since.

`files.json.gz` lists size and digest of each. All of them, and the record, get the same modification time, which lies in the
past: a file that still has it is unchanged, a file with another one is read and compared. So no times have to be stored
next to the record, whose bytes depend only on the content, and links and copies that preserve times are recognised too.
"""

import contextlib
import dataclasses
import os
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from wsss.digests import content_digest, content_digests
from wsss.errors import BadInput, Unreadable, reading
from wsss.storage import TEMPORARY_SUFFIX, digest, read_json, read_packed, sync_folder, write_packed
from wsss.stream import in_threads

DONE, STARTED, SECONDS = "done.json", "started.json", "seconds.json"
FILES, INPUTS, LOCK = "files.json.gz", "inputs.json.gz", "wsss.lock"
# Files in a stage's folder that its function did not write
RECORDS = (DONE, STARTED, SECONDS, FILES, INPUTS, LOCK)
# Folder of TensorBoard's files, which have a time in their names
TENSORBOARD = "tensorboard"

# Results that are measured or trained, so that an edit can only be a mistake
_NEVER_EDITED = ("weights", "scores")


@dataclasses.dataclass(frozen=True)
class Changes:
    """Changes in a finished stage's folder.

    Attributes:
        files: current digests of its files, by relative name.
        edited: names of files that were changed.
        added: names of files with the same suffixes that the stage did not write.
    """

    files: Mapping[str, str]
    edited: tuple[str, ...] = ()
    added: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.edited or self.added)

    def describe(self, folder: str, stage: str) -> str:
        """The changes as a clause."""
        parts = []
        if self.edited:
            parts.append(f"{count_phrase(self.edited, 'file')} edited after `{stage}` wrote {_pronoun(self.edited)}")
        if self.added:
            parts.append(f"{count_phrase(self.added, 'file')} added that `{stage}` did not write")
        return f"{folder}: {'; '.join(parts)}"


def count_phrase(names: Sequence[str], what: str) -> str:
    """For example `3 files (a, b, c) were`; at most three are named."""
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{len(names)} {what}{'s' if len(names) > 1 else ''} ({shown}) {'were' if len(names) > 1 else 'was'}"


def _pronoun(names: Sequence[str]) -> str:
    return "them" if len(names) > 1 else "it"


def past_time() -> int:
    """A time (ns) in the past that no later write can produce; file systems store times in steps of up to two seconds."""
    return (int(time.time()) // 2 * 2 - 2) * 1_000_000_000


def set_time(path: Path, when: int) -> None:
    """Set the modification time (ns) of a file, if the file system allows it; otherwise the file is read again later."""
    with contextlib.suppress(OSError):
        os.utime(path, ns=(when, when))


def write_list(out: Path, when: int) -> str:
    """List the files that a stage wrote, and flush their names to the disk.

    Args:
        out: the stage's folder.
        when: modification time (ns) that all of its files get; the record has to get the same.

    Returns:
        The digest of the list.
    """
    names = sorted(name for name, _ in _walk(out))
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
    """Changes in the files of a finished stage.

    Args:
        out: its folder.
        record: content of its `done.json`.

    Raises:
        BadInput: files are missing or unreadable, or were changed although such files are never edited by hand (weights,
            scores); or the list is damaged, or is not the one that the record names.
    """
    listed = _listed(out, record)
    when = (out / DONE).stat().st_mtime_ns
    found = dict(_walk(out))
    missing, touched = [], []
    for name, (size, _) in listed.items():
        try:
            status = found[name].stat() if name in found else (out / name).stat()
        except OSError:
            missing.append(name)
            continue
        # weights are always read: all later stages depend on this one file
        is_weights = record["makes"] == "weights" and name.endswith(".safetensors")
        if status.st_size != size or status.st_mtime_ns != when or is_weights:
            touched.append(name)
    stage = record["kind"]
    if missing:
        raise BadInput(
            out,
            f"a finished `{stage}` stage, from which {count_phrase(missing, 'file')} removed",
            "all files that it wrote",
            f"Restore {_pronoun(missing)}, or remove {out} and run the command that made it again.",
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
        for name in sorted(found.keys() - listed.keys())
        if not Path(name).name.startswith(".") and Path(name).suffix in suffixes
    ]
    for name, content in zip(added, content_digests([out / name for name in added]), strict=True):
        now[name] = content or "unreadable"
    return Changes(now, tuple(edited), tuple(added))


def edited_files(out: Path) -> dict[str, str]:
    """Digests of the files that were edited or added after the stage in the folder `out` had finished, by name; see `changes`."""
    record = read_json(out / DONE, "the record of a stage")
    found = changes(out, record)
    return {name: found.files[name] for name in (*found.edited, *found.added)}


def check_file(path: Path, record: Callable[[Path], Mapping[str, Any]]) -> None:
    """Raise BadInput if a file belongs to a finished stage, and was changed although such files are never edited by hand.

    Args:
        path: any file.
        record: function that reads the record of a stage's folder.
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
            f"a file with digest {content}, changed after `{stage}` wrote it",
            f"digest {listed}, as in the record",
            f"Restore the file, or remove {out} and make it again; keep files from elsewhere in another folder.",
        )


def _walk(out: Path) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
    """The files below a stage's folder that its function may have written, by relative name."""
    folders = [""]
    while folders:
        prefix = folders.pop()
        try:
            with os.scandir(out / prefix) as listed:
                entries = {entry.name: entry for entry in listed}
        except OSError:
            continue  # what it lists will be missed
        if prefix and (DONE in entries or STARTED in entries):
            continue  # the folder of another stage
        for name, entry in entries.items():
            if entry.is_dir():
                if not entry.is_symlink() and (prefix or name != TENSORBOARD):
                    folders.append(f"{prefix}{name}/")
            elif (prefix or name not in RECORDS) and not name.endswith(TEMPORARY_SUFFIX):
                yield f"{prefix}{name}", entry


def _listed(out: Path, record: Mapping[str, Any]) -> dict[str, tuple[int, str]]:
    """Size and digest of each file that a stage wrote."""
    content = read_verified(out / FILES, record["files"], "the list of the files of a finished stage")
    return {name: (size, found) for name, (size, found) in content.items()}


def read_verified(path: Path, known: str, expected: str) -> Any:
    """Read a file that `write_packed` wrote next to a record, and compare it with the digest in the record.

    Raises:
        BadInput: it is missing, damaged, or does not have this digest.
    """
    content = read_packed(path, expected)
    if digest(content) != known:
        do = f"It was changed after it was written: restore it, or remove {path.parent} and make it again."
        raise BadInput(path, f"digest {digest(content)}", f"digest {known}, as in the record", do)
    return content


def _check_readable(path: Path, stage: str) -> None:
    """Raise BadInput if an edited file is damaged."""
    do = "Restore the file, or remove the folder and run the command that made it again."
    with reading(path, f"a readable file, even after it was edited (`{stage}` wrote it)", do):
        if path.suffix == ".png":
            with Image.open(path) as picture:
                picture.verify()  # checks all checksums
            with Image.open(path) as picture:
                picture.load()
        elif path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                if (damaged := archive.testzip()) is not None:
                    raise Unreadable(f"`{damaged}` with a wrong checksum")
        elif path.suffix == ".json":
            read_json(path, "JSON")
        elif path.suffix in (".csv", ".jsonl"):
            path.read_text(encoding="utf-8", errors="surrogatepass")
