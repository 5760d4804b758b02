"""The run folder: what each stage was made from, and going on where one stopped.

A stage is a function from settings, input stages and pictures to a folder. Its folder holds `started.json` while it is
being made and `done.json` once it is whole; both name the settings and the records of all inputs, so a stage that
is done is skipped, one that is half done goes on, and one that was made from something else is refused.
`inputs.json.gz` holds what pictures and folders it was made from, to say what has changed, and `files.json.gz` what it wrote
(see `wsss.outputs`).
"""

import contextlib
import contextvars
import dataclasses
import functools
import inspect
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from wsss import __version__, launch, lock, outputs
from wsss.data.images import Images
from wsss.differences import beside, difference, identity, not_the_same, outdated
from wsss.digests import content_digest, folder_digests
from wsss.errors import BadInput
from wsss.outputs import DONE, INPUTS, LOCK, RECORDS, SECONDS, STARTED
from wsss.storage import (
    TEMPORARY_SUFFIX,
    digest,
    encoded,
    json_text,
    read_json,
    sync_folder,
    whole_file,
    write_json,
    write_packed,
)
from wsss.weights import weights_in

# What records of this version hold; those of others are not understood
RECORD = 3
# Seconds between two looks at the clock; a killed try counts up to the last one
CLOCK_EVERY = 30.0

# What a stage can make
Makes = Literal[
    "weights", "answers", "tags", "maps", "labels", "masks", "instances", "predictions", "scores", "figures"
]

log = logging.getLogger("wsss")

_shared: contextvars.ContextVar[Path | None] = contextvars.ContextVar("shared", default=None)
# What was said already of files that were edited
_noted: set[tuple[Path, tuple[str, ...], tuple[str, ...]]] = set()


class Stage(Protocol):
    """A stage as its callers see it: whatever it needs, and the folder that it fills."""

    def __call__(self, *inputs: Any, out: Path, **named: Any) -> Path:
        """Make the folder `out` unless it is made already, and give it back."""


def unrecorded(default: Any) -> Any:
    """A settings field that cannot change what a stage makes: it is left out of records."""
    return dataclasses.field(default=default, metadata={"unrecorded": True})


def maybe_file(default: str) -> Any:
    """A settings field that holds a word or a path: records name the file or folder by its content."""
    return dataclasses.field(default=default, metadata={"maybe_file": True})


def plain(settings: Any) -> Any:
    """Settings as JSON-able values, without the unrecorded fields."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        values = {}
        for field in dataclasses.fields(settings):
            value = getattr(settings, field.name)
            if field.metadata.get("maybe_file") and os.path.exists(value):
                # a folder of weights and the file in it are one and the same
                path = weights_in(Path(value))
                path = path if path.exists() else Path(value)
                known, _ = _known(path)
                values[field.name] = {"file": path.name, "identity": known["identity"]}
            elif not field.metadata.get("unrecorded"):
                values[field.name] = plain(value)
        return values
    if isinstance(settings, Mapping):
        return {str(key): plain(value) for key, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [plain(value) for value in settings]
    return str(settings) if isinstance(settings, os.PathLike) else settings


@dataclasses.dataclass(frozen=True)
class Called:
    """What a stage says of itself in its record.

    Attributes:
        kind: one word for what it does. It is part of the stage's identity, so it never changes.
        makes: what it makes, which is part of its identity too.
        title: the name that people read in reports and comparisons: of a paper, a model, a way.
        identity: what tells it apart from stages with equal settings and inputs.
    """

    kind: str
    makes: Makes
    title: str
    identity: tuple[str, ...]


def _called(kind: str, makes: Makes, title: str | None, inputs: Mapping[str, Any]) -> Called:
    if title is not None:
        return Called(kind, makes, title, (kind, makes))
    # two methods may have equal settings
    title = inputs["settings"].title
    if not isinstance(title, str) or not title:
        raise TypeError(f"`title` of {type(inputs['settings']).__name__} is {title!r}, not a name")
    return Called(kind, makes, title, (kind, makes, title))


def stage(*, kind: str, makes: Makes, title: str | None) -> Callable[[Callable[..., dict[str, Any]]], Stage]:
    """Make a stage of a function that fills the folder `out` and returns what is worth recording about it.

    Its arguments may be settings (dataclasses), `Images`, and paths of earlier stages or of files. Records know the stage by
    `kind` and `makes`, so the function may be renamed.

    Args:
        kind: one word for what the stage does.
        makes: what it makes.
        title: its name for people, None to take the attribute `title` of its argument `settings`; then that is part of its
            identity as well.

    The stage raises:
        BadInput: `out` was made from something else, another command works there, an input stage is missing, unfinished
            or damaged, or files that the stage wrote are.
    """

    def made_of(function: Callable[..., dict[str, Any]]) -> Stage:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def run(*args: Any, out: Path, **kwargs: Any) -> Path:
            out = Path(out)
            arguments = signature.bind(*args, out=out, **kwargs)
            arguments.apply_defaults()
            inputs = {name: value for name, value in arguments.arguments.items() if name != "out"}
            called = _called(kind, makes, title, inputs)
            with lock.held(out):
                if launch.decided_by_first(lambda: _prepare(called, inputs, out)):
                    return out
                with _timed(out) if launch.is_first() else contextlib.nullcontext():
                    result = function(*args, out=out, **kwargs)
                launch.wait()
                launch.decided_by_first(lambda: _finish(out, result))
            return out

        return run

    return made_of


@contextlib.contextmanager
def sharing(runs: Path) -> Iterator[None]:
    """While this lasts, a stage that one of the runs in the folder `runs` has finished is taken from there, not made again."""
    token = _shared.set(runs)
    try:
        yield
    finally:
        _shared.reset(token)


def record(out: Path) -> dict[str, Any]:
    """The record of a finished stage.

    Raises:
        BadInput: there is none, or none that this version understands.
    """
    expected = "the record of a finished stage"
    if not out.is_dir():
        raise BadInput(out, "no such folder", expected, "Check the path, or run that stage first.")
    if not (out / DONE).exists():
        found = "a stage that has not finished" if (out / STARTED).exists() else "a folder that no stage made"
        raise BadInput(out, found, expected, "Run the command that makes it again: it goes on where it stopped.")
    return _read_record(out / DONE)


def _read_record(path: Path) -> dict[str, Any]:
    content = read_json(path, "the record of a stage")
    if isinstance(content, dict) and "identity" in content and content.get("record") != RECORD:
        raise BadInput(
            path,
            f"a record of another kind, written by wsss {content.get('version', 'of an unknown version')!s:.20}",
            f"one of kind {RECORD}, which wsss {__version__} writes",
            "Make the stage again in another folder, or use the version that made it.",
        )
    kinds = {"kind": str, "makes": str, "title": str, "identity": str, "inputs": dict, "tables": str}
    if path.name == DONE:
        kinds |= {"result": dict, "files": str}
    lacking = (
        [key for key, kind in kinds.items() if not isinstance(content.get(key), kind)]
        if isinstance(content, dict)
        else list(kinds)
    )
    if lacking:
        raise BadInput(
            path,
            f"something without {', '.join(f'`{key}`' for key in lacking)}",
            "the record of a stage",
            "It was changed after it was written: put it back, or remove the folder and make the stage again.",
        )
    return content


def seconds(out: Path) -> float:
    """How long a stage took, all tries together, killed ones too."""
    path = out / SECONDS
    if not path.exists():
        return 0.0
    content = read_json(path, "the seconds of a stage")
    spent = content.get("seconds") if isinstance(content, dict) else None
    if isinstance(spent, bool) or not isinstance(spent, int | float) or not 0 <= spent < 1e12:
        raise BadInput(path, f"{content!s:.50}", '{"seconds": a number}', "Remove it: a new one is written.")
    return float(spent)


@contextlib.contextmanager
def _timed(out: Path) -> Iterator[None]:
    """Count the time that this takes; not in done.json, whose bytes depend on the settings and inputs alone."""
    earlier, before, ended = seconds(out), time.monotonic(), threading.Event()

    def write() -> None:
        spent = round(earlier + time.monotonic() - before, 3)
        write_json(out / SECONDS, {"seconds": spent}, sync="nothing")

    def watch() -> None:
        # soon at first, so that short tries count too
        while not ended.wait(min(CLOCK_EVERY, max(0.5, time.monotonic() - before))):
            with contextlib.suppress(OSError, BadInput):  # a full disk is told by what has to be written
                write()

    clock = threading.Thread(target=watch, name="clock", daemon=True)
    clock.start()
    try:
        yield
    except BaseException:
        ended.set()
        clock.join()
        with contextlib.suppress(OSError, BadInput):
            write()
        raise
    ended.set()
    clock.join()
    write()


def _prepare(called: Called, inputs: Mapping[str, Any], out: Path) -> bool:
    """Whether the stage is done already; otherwise its folder is made ready for it."""
    lock.check_held()
    tables: dict[str, Any] = {}
    described = {key: _describe(value, out, key, tables) for key, value in inputs.items()}
    made_of = digest([called.identity, {key: identity(value) for key, value in described.items()}])
    asked = {
        "record": RECORD,
        "kind": called.kind,
        "makes": called.makes,
        "title": called.title,
        "version": __version__,
        "inputs": described,
        "tables": digest(tables),
        "identity": made_of,
    }
    for marker in (DONE, STARTED):
        # a stage that stopped before it made anything may start again from other settings
        if (out / marker).exists() and (marker == DONE or _content(out)):
            found = _read_record(out / marker)
            if found["identity"] != made_of:
                _refuse(out, found, asked, tables)
            if marker == STARTED:
                log.info("%s: going on where it stopped", out)
                return False
            _note(out, found["kind"], outputs.changes(out, found))
            if (out / STARTED).exists():
                (out / STARTED).unlink()  # of a process that was killed between the two records
            log.info("%s: done already", out)
            return True
    if out.is_file() or _content(out):
        raise BadInput(
            out,
            "a file" if out.is_file() else "files that no stage recorded",
            "an empty or a new folder",
            "Choose another output folder.",
        )
    if twin := _twin(made_of):
        _take(twin, out, asked)
        log.info("%s: taken from %s", out, twin)
        return True
    write_packed(out / INPUTS, tables)
    write_json(out / STARTED, asked)
    return False


def _refuse(out: Path, found: dict[str, Any], asked: dict[str, Any], tables: Mapping[str, Any]) -> None:
    before = {}
    if (out / INPUTS).exists():
        before = outputs.read_known(out / INPUTS, found["tables"], "what a stage was made from")
    stale = outdated([out], not_the_same(found, asked), beside(out))
    raise BadInput(
        out,
        f"a stage (`{found['kind']}`) made from something else: {difference(found, asked, before, tables)}",
        f"an empty folder, or a stage (`{asked['kind']}`) made from the same settings and inputs",
        f"To make it from what is there now, remove {', '.join(map(str, stale))} and start the same command again; to keep it, "
        "undo the change or choose another output folder.",
    )


def _note(folder: Path, stage: str, changed: outputs.Changes) -> None:
    if changed and (folder, changed.edited, changed.added) not in _noted:
        _noted.add((folder, changed.edited, changed.added))
        log.warning("%s. They are used as they are now.", changed.told(str(folder), stage))


def _twin(made_of: str) -> Path | None:
    """A stage of another run that is the same one, whole and as it was made."""
    runs = _shared.get()
    for done in sorted(runs.glob(f"*/*/{DONE}")) if runs else ():
        try:
            theirs = _read_record(done)
            if theirs["identity"] == made_of and not outputs.changes(done.parent, theirs):
                return done.parent
        except BadInput as error:
            log.info("%s is not shared: %s", done.parent, error)
    return None


def _take(twin: Path, out: Path, asked: dict[str, Any]) -> None:
    """Make `out` the same as a finished stage, whole or not at all; files are never changed in place, so links will do."""
    theirs = record(twin)
    out.parent.mkdir(parents=True, exist_ok=True)
    for leftover in out.parent.glob(f".*{TEMPORARY_SUFFIX}/"):
        shutil.rmtree(leftover)  # of a process that was killed here
    with tempfile.TemporaryDirectory(prefix=".", suffix=TEMPORARY_SUFFIX, dir=out.parent) as temporary:
        copy = Path(temporary) / out.name
        ignored = shutil.ignore_patterns(LOCK, f".*{TEMPORARY_SUFFIX}", STARTED)
        shutil.copytree(twin, copy, copy_function=_link_or_copy, ignore=ignored)
        # its own record: the stages that it was made from may lie elsewhere
        _write_done(copy, {**asked, **{key: theirs[key] for key in ("result", "files")}}, _time_of(twin))
        sync_folder(copy)
        if (out / LOCK).exists():  # this process's
            _link_or_copy(str(out / LOCK), str(copy / LOCK))
        if out.exists():  # what a killed writer left, and an earlier try's seconds
            out.rename(Path(temporary) / "before")
        copy.rename(out)
        sync_folder(out.parent)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copy2(source, target)


def _content(out: Path) -> list[Path]:
    """What a stage made in its folder: neither records nor what a killed writer left."""
    paths = out.iterdir() if out.is_dir() else ()
    return [path for path in paths if path.name not in RECORDS and path.suffix != TEMPORARY_SUFFIX]


def _finish(out: Path, result: dict[str, Any]) -> None:
    for leftover in out.rglob(f".*{TEMPORARY_SUFFIX}"):
        # of a process that was killed while it wrote
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    when = outputs.past()
    files = outputs.write_list(out, when)
    lock.check_held()
    asked = _read_record(out / STARTED)
    _write_done(out, {**asked, "result": result, "files": files}, when)
    (out / STARTED).unlink()


def _write_done(out: Path, content: dict[str, Any], when: int) -> None:
    with whole_file(out / DONE) as temporary:
        temporary.write_bytes(encoded(json_text(content)))
        outputs.set_time(temporary, when)


def _time_of(out: Path) -> int:
    return (out / DONE).stat().st_mtime_ns


def _describe(value: Any, out: Path, key: str, tables: dict[str, Any]) -> Any:
    """An input as a record holds it; what is in pictures and folders goes to `tables`, by the input's dotted name."""
    if isinstance(value, Images):
        tables[key] = value.table()
        return {"images": value.title, "count": len(value), "fingerprint": value.fingerprint()}
    if isinstance(value, Path):
        known, files = _known(value)
        if files is not None:
            tables[key] = files
        where = os.path.relpath(value.resolve(), out.resolve())
        return {"file" if value.is_file() else "folder": where, **known}
    if isinstance(value, Mapping):
        return {str(name): _describe(item, out, f"{key}.{name}", tables) for name, item in value.items()}
    return plain(value)


def _known(path: Path) -> tuple[dict[str, Any], Mapping[str, str] | None]:
    """What a file or folder is known by, and the digests of a folder's files.

    Raises:
        BadInput: it belongs to a stage that is not finished, or not as it was made, though nobody edits such by hand.
    """
    if path.is_file():
        outputs.check_file(path, record)
        return {"identity": content_digest(path)}, None
    if path.is_dir() and not any((path / marker).exists() for marker in (DONE, STARTED)):
        files = folder_digests(path)  # of other programs
        return {"identity": digest(files)}, files
    done = record(path)
    changed = outputs.changes(path, done)
    _note(path, done["kind"], changed)
    edits = {key: list(names) for key, names in (("edited", changed.edited), ("added", changed.added)) if names}
    known = digest([done["identity"], changed.files])
    return {"stage": done["kind"], "of": done["identity"], "identity": known, **edits}, changed.files
