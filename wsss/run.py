"""Run folders: records of what each stage was made from, and continuing where a command stopped.

A stage is a function from settings, input stages and pictures to a folder. Its folder contains `started.json` while it is
running and `done.json` once it is finished; both name the settings and the records of all inputs, so a finished stage
is skipped, an unfinished one is continued, and one that was made from something else is refused.
`inputs.json.gz` lists the pictures and files that it was made from, to report what has changed; `files.json.gz` lists what it wrote
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

from wsss import __version__, cache, digests, launch, lock, outputs, watch
from wsss.data.images import Images, table_fingerprint
from wsss.differences import changed_inputs, difference, first_names, identity, outdated, stages_in_run
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
from wsss.supervision import NETWORK, SUPERVISION, UNKNOWN, networks_behind
from wsss.weights import WEIGHTS, weights_in

# Version of the record format; records of other versions are refused
RECORD_VERSION = 3
# Seconds between two updates of `seconds.json`; after a kill, the time since the last update is lost
CLOCK_EVERY = 30.0

# What a stage can make
Makes = Literal[
    "weights", "answers", "tags", "regions", "tokens", "maps", "thresholds", "labels", "masks", "instances", "predictions", "probabilities",
    "descriptions", "scores", "figures", "notes",
]  # fmt: skip

log = logging.getLogger("wsss")

_shared_runs: contextvars.ContextVar[Path | None] = contextvars.ContextVar("shared", default=None)
# Edits that were reported already
_reported_edits: set[tuple[Path, tuple[str, ...], tuple[str, ...]]] = set()


class Stage(Protocol):
    """A stage as its callers see it: its inputs, and the folder that it fills."""

    def __call__(self, *inputs: Any, out: Path, **named: Any) -> Path:
        """Fill the folder `out`, unless it is finished already, and return it."""


def unrecorded(default: Any) -> Any:
    """A settings field that cannot change the result of a stage, so that records leave it out."""
    return dataclasses.field(default=default, metadata={"unrecorded": True})


def maybe_file(default: str) -> Any:
    """A settings field that holds a word or a path; records identify the file or folder by its content."""
    return dataclasses.field(default=default, metadata={"maybe_file": True})


def pretrained(default: str, learned: str = UNKNOWN) -> Any:
    """A settings field that names a network with trained weights: a word, or a path as for `maybe_file`.

    Args:
        default: its default value.
        learned: what such networks are trained on, where the name does not tell; see `wsss.supervision`.
    """
    return dataclasses.field(default=default, metadata={"maybe_file": True, NETWORK: learned})


def plain(settings: Any) -> Any:
    """Settings as JSON-serialisable values, without the unrecorded fields."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        values = {}
        for field in dataclasses.fields(settings):
            value = getattr(settings, field.name)
            if field.metadata.get("maybe_file") and os.path.exists(value):
                # a folder of weights and the file in it are equivalent
                path = weights_in(Path(value))
                path = path if path.exists() else Path(value)
                known, _ = content_of(path)
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
class StageInfo:
    """What a record says about its stage.

    Attributes:
        kind: one word for what the stage does; part of its identity, so it must never change.
        makes: what it makes; part of its identity too.
        title: name shown in reports and comparisons, for example of a paper or a model.
        identity: distinguishes it from stages with equal settings and inputs.
    """

    kind: str
    makes: Makes
    title: str
    identity: tuple[str, ...]


def _stage_info(kind: str, makes: Makes, title: str | None, inputs: Mapping[str, Any]) -> StageInfo:
    if title is not None:
        return StageInfo(kind, makes, title, (kind, makes))
    # two methods may have equal settings
    title = inputs["settings"].title
    if not isinstance(title, str) or not title:
        raise TypeError(f"`title` of {type(inputs['settings']).__name__} is {title!r}, not a name")
    return StageInfo(kind, makes, title, (kind, makes, title))


def stage(*, kind: str, makes: Makes, title: str | None) -> Callable[[Callable[..., dict[str, Any]]], Stage]:
    """Decorate a function that fills the folder `out` and returns the result to record.

    Its arguments may be settings (dataclasses), `Images`, and paths of earlier stages or of files. Records identify the stage by
    `kind` and `makes`, so the function may be renamed.

    Args:
        kind: one word for what the stage does.
        makes: what it makes.
        title: its name in reports; None takes the attribute `title` of its argument `settings`, which is then part of its
            identity.

    The stage raises:
        BadInput: `out` was made from something else, another command is writing there, an input stage is missing, unfinished
            or damaged, or files of the stage itself are missing or damaged.
    """

    def decorate(function: Callable[..., dict[str, Any]]) -> Stage:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def run(*args: Any, out: Path, **kwargs: Any) -> Path:
            out = Path(out)
            arguments = signature.bind(*args, out=out, **kwargs)
            arguments.apply_defaults()
            inputs = {name: value for name, value in arguments.arguments.items() if name != "out"}
            with open_stage(_stage_info(kind, makes, title, inputs), inputs, out) as opened:
                if not opened.finished:
                    opened.result = function(*args, out=out, **kwargs)
            return out

        return run

    return decorate


@dataclasses.dataclass
class OpenStage:
    """A stage whose folder is prepared.

    Attributes:
        finished: whether it was finished before, so that there is nothing to do.
        result: what its record will say about the result, once the block ends.
    """

    finished: bool
    result: dict[str, Any] = dataclasses.field(default_factory=dict)


@contextlib.contextmanager
def open_stage(info: StageInfo, inputs: Mapping[str, Any], out: Path) -> Iterator[OpenStage]:
    """The block that fills the folder of a stage; its record is written when the block ends without an error.

    `stage` is usually what you need. Several stages that are filled by the same loop are opened one inside the other.

    Args:
        info: what the record says about the stage.
        inputs: settings, `Images`, and paths of earlier stages or files, by name.
        out: the stage's folder.

    Raises:
        BadInput: as a stage raises it, see `stage`.
    """
    with lock.locked(out):
        opened = OpenStage(launch.decided_by_first(lambda: _prepare(info, inputs, out)))
        if opened.finished:
            watch.stage_finished(out, info, made_before=True)
            yield opened
            return
        watch.stage_started(out, info)
        with _timed(out) if launch.is_first() else contextlib.nullcontext():
            yield opened
        launch.wait()
        launch.decided_by_first(lambda: _finish(out, opened.result))
        watch.stage_finished(out, info, made_before=False)


@contextlib.contextmanager
def sharing_stages(runs: Path) -> Iterator[None]:
    """Inside this block, a stage that some run in the folder `runs` has finished is linked from there instead of made again."""
    token = _shared_runs.set(runs)
    try:
        yield
    finally:
        _shared_runs.reset(token)


def read_record(out: Path) -> dict[str, Any]:
    """The record of a finished stage.

    Raises:
        BadInput: there is no record, or one of another version.
    """
    expected = "the record of a finished stage"
    if not out.is_dir():
        raise BadInput(out, "no such folder", expected, "Check the path, or run that stage first.")
    if not (out / DONE).exists():
        found = "an unfinished stage" if (out / STARTED).exists() else "a folder that was not made by a stage"
        raise BadInput(out, found, expected, "Run the command that makes it again: it continues where it stopped.")
    return _parse_record(out / DONE)


def _parse_record(path: Path) -> dict[str, Any]:
    content = read_json(path, "the record of a stage")
    if isinstance(content, dict) and "identity" in content and content.get("record") != RECORD_VERSION:
        raise BadInput(
            path,
            f"a record in format {content.get('record', 'unknown')!s:.20}",
            f"format {RECORD_VERSION}, which wsss {__version__} writes",
            f"Make the stage again in another folder, or use the wsss that made it ({content.get('version', 'unknown')!s:.20}).",
        )
    kinds = {"kind": str, "makes": str, "title": str, "identity": str, "inputs": dict, "tables": str}
    if path.name == DONE:
        kinds |= {"result": dict, "files": str}
    missing = (
        [key for key, kind in kinds.items() if not isinstance(content.get(key), kind)]
        if isinstance(content, dict)
        else list(kinds)
    )
    if missing:
        raise BadInput(
            path,
            f"a record without {', '.join(f'`{key}`' for key in missing)}",
            "the record of a stage",
            "It was changed after it was written: restore it, or remove the folder and make the stage again.",
        )
    return content


def read_seconds(out: Path) -> float:
    """How long a stage took, in seconds, over all attempts, killed ones included."""
    path = out / SECONDS
    if not path.exists():
        return 0.0
    content = read_json(path, "the duration of a stage")
    spent = content.get("seconds") if isinstance(content, dict) else None
    if isinstance(spent, bool) or not isinstance(spent, int | float) or not 0 <= spent < 1e12:
        raise BadInput(path, f"{content!s:.50}", '{"seconds": a number}', "Remove it: it will be written again.")
    return float(spent)


@contextlib.contextmanager
def _timed(out: Path) -> Iterator[None]:
    """Measure the time spent in this block. It is not written to done.json, whose bytes depend only on the settings and inputs."""
    earlier, before, ended = read_seconds(out), time.monotonic(), threading.Event()

    def write() -> None:
        spent = round(earlier + time.monotonic() - before, 3)
        write_json(out / SECONDS, {"seconds": spent}, sync="nothing")

    def watch() -> None:
        # often at first, so that short attempts count too
        while not ended.wait(min(CLOCK_EVERY, max(0.5, time.monotonic() - before))):
            with contextlib.suppress(OSError, BadInput):  # a full disk is reported when a result is written
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


# What is made of the pixels of pictures, and used together with them
_OF_PICTURES = ("regions", "maps", "masks", "predictions")


def _check_pictures(folder: Path, images: Images, described: Mapping[str, Any], table: Mapping[str, Any]) -> None:
    """Raise BadInput if an input of a stage lacks pictures of the stage, or was made from others of the same names.

    Masks of other pictures are only reported: predictions for changed copies of pictures may be scored.

    Args:
        folder: the input, made by a finished stage.
        images: the pictures.
        described, table: what the record of the new stage says about them.
    """
    record = read_record(folder)
    inputs, makes = record["inputs"], record["makes"]
    known = next((key for key, made in inputs.items() if isinstance(made, Mapping) and "fingerprint" in made), None)
    if makes not in _OF_PICTURES or known is None or inputs[known]["fingerprint"] == described["fingerprint"]:
        return
    before = outputs.read_verified(folder / INPUTS, record["tables"], "the inputs of a stage")[known]
    old = {row[0]: row for row in before["pictures"]}
    found, do = "", "Make them again for these pictures, or give the data set that they were made from."
    both = [(old[row[0]], row) for row in table["pictures"] if row[0] in old]
    # pictures in memory, without a suffix, have other digests than files
    changed = [f"{was[0]}{row[4]}" for was, row in both if was[1] != row[1] and bool(was[4]) == bool(row[4])]
    if changed:
        found = f"{makes} of other pictures of the same names: {first_names(changed)} had another content"
    if changed and makes in ("masks", "predictions"):
        log.warning("%s: %s", folder, found)
        return
    lacking = [name for name in images.names if name not in old and not (folder / f"{name}.npz").exists()]
    if lacking and makes in ("regions", "maps"):
        found = (
            f"{makes} of only {len(images) - len(lacking)} of {len(images)} pictures; {first_names(lacking)} have none"
        )
        do = "Make them for these pictures too (--split), or choose the split that they were made for."
    if found:
        raise BadInput(folder, found, f"{makes} of the pictures of {images.title}", do)


def _prepare(info: StageInfo, inputs: Mapping[str, Any], out: Path) -> bool:
    """Whether the stage is finished already; if not, its folder is prepared for it."""
    lock.check_locks()
    tables: dict[str, Any] = {}
    described = {key: _describe(value, out, key, tables) for key, value in inputs.items()}
    shown = [key for key, value in inputs.items() if isinstance(value, Images)]
    for value in inputs.values():
        if len(shown) == 1 and isinstance(value, Path) and (value / DONE).is_file():
            _check_pictures(value, inputs[shown[0]], described[shown[0]], tables[shown[0]])
    stage_identity = digest([info.identity, {key: identity(value) for key, value in described.items()}])
    wanted = {
        "record": RECORD_VERSION,
        "kind": info.kind,
        "makes": info.makes,
        "title": info.title,
        "version": __version__,
        "inputs": described,
        "tables": digest(tables),
        "identity": stage_identity,
        SUPERVISION: networks_behind(inputs, read_record),
    }
    for marker in (DONE, STARTED):
        # a stage that stopped before it wrote anything may start again with other settings
        if (out / marker).exists() and (marker == DONE or _made_files(out)):
            found = _parse_record(out / marker)
            if found["identity"] != stage_identity:
                _refuse(out, found, wanted, tables)
            if marker == STARTED:
                log.info("%s: continuing where it stopped", out)
                return False
            _report_edits(out, found["kind"], outputs.changes(out, found))
            if (out / STARTED).exists():
                (out / STARTED).unlink()  # left by a process that was killed between the two records
            log.info("%s: finished already", out)
            return True
    if out.is_file() or _made_files(out):
        raise BadInput(
            out,
            "a file" if out.is_file() else "files that were not made by a stage",
            "an empty or new folder",
            "Choose another output folder.",
        )
    if equal := _find_equal_stage(stage_identity):
        _copy_stage(equal, out, wanted)
        log.info("%s: linked from %s", out, equal)
        return True
    write_packed(out / INPUTS, tables)
    write_json(out / STARTED, wanted)
    return False


def _refuse(out: Path, found: dict[str, Any], wanted: dict[str, Any], tables: Mapping[str, Any]) -> None:
    before = {}
    if (out / INPUTS).exists():
        before = outputs.read_verified(out / INPUTS, found["tables"], "the inputs of a stage")
    stale = outdated([out], changed_inputs(found, wanted), stages_in_run(out))
    raise BadInput(
        out,
        f"a stage (`{found['kind']}`) made from something else: {difference(found, wanted, before, tables)}",
        f"an empty folder, or a stage (`{wanted['kind']}`) made from the same settings and inputs",
        f"To make it from the current inputs, remove {', '.join(map(str, stale))} and run the same command again; to keep it, "
        "undo the change or choose another output folder.",
    )


def _report_edits(folder: Path, stage: str, changed: outputs.Changes) -> None:
    if changed and (folder, changed.edited, changed.added) not in _reported_edits:
        _reported_edits.add((folder, changed.edited, changed.added))
        log.warning("%s. The edited files are used.", changed.describe(str(folder), stage))


def _find_equal_stage(stage_identity: str) -> Path | None:
    """A finished stage of another run with this identity, whose files have not been changed."""
    runs = _shared_runs.get()
    for done in sorted(runs.glob(f"*/*/{DONE}")) if runs else ():
        try:
            record = _parse_record(done)
            if record["identity"] == stage_identity and not outputs.changes(done.parent, record):
                return done.parent
        except BadInput as error:
            log.info("%s cannot be shared: %s", done.parent, error)
    return None


def _copy_stage(source: Path, out: Path, wanted: dict[str, Any]) -> None:
    """Make `out` equal to a finished stage, completely or not at all, with hard links: files are never changed in place."""
    record = read_record(source)
    out.parent.mkdir(parents=True, exist_ok=True)
    for leftover in out.parent.glob(f".*{TEMPORARY_SUFFIX}/"):
        shutil.rmtree(leftover)  # left by a process that was killed here
    with tempfile.TemporaryDirectory(prefix=".", suffix=TEMPORARY_SUFFIX, dir=out.parent) as temporary:
        copy = Path(temporary) / out.name
        ignored = shutil.ignore_patterns(LOCK, f".*{TEMPORARY_SUFFIX}", STARTED)
        shutil.copytree(source, copy, copy_function=_link_or_copy, ignore=ignored)
        # a new record, since the paths of its inputs may differ
        _write_done(copy, {**wanted, **{key: record[key] for key in ("result", "files")}}, _done_time(source))
        sync_folder(copy)
        if (out / LOCK).exists():  # the lock of this process
            _link_or_copy(str(out / LOCK), str(copy / LOCK))
        if out.exists():  # remains of a killed writer, and the duration of an earlier attempt
            out.rename(Path(temporary) / "before")
        copy.rename(out)
        sync_folder(out.parent)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without links
        shutil.copy2(source, target)


def _made_files(out: Path) -> list[Path]:
    """The files that a stage wrote in its folder, without records, remains of killed writers, and the folders of other stages."""
    paths = out.iterdir() if out.is_dir() else ()
    return [
        path
        for path in paths
        if path.name not in RECORDS
        and path.suffix != TEMPORARY_SUFFIX
        and not any((path / marker).exists() for marker in (DONE, STARTED))
    ]


def _finish(out: Path, result: dict[str, Any]) -> None:
    for leftover in out.rglob(f".*{TEMPORARY_SUFFIX}"):
        # left by a process that was killed while writing
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    when = outputs.past_time()
    files = outputs.write_list(out, when)
    lock.check_locks()
    started = _parse_record(out / STARTED)
    _write_done(out, {**started, "result": result, "files": files}, when)
    (out / STARTED).unlink()


def _write_done(out: Path, content: dict[str, Any], when: int) -> None:
    with whole_file(out / DONE) as temporary:
        temporary.write_bytes(encoded(json_text(content)))
        outputs.set_time(temporary, when)


def _done_time(out: Path) -> int:
    return (out / DONE).stat().st_mtime_ns


def _describe(value: Any, out: Path, key: str, tables: dict[str, Any]) -> Any:
    """An input as the record describes it; lists of pictures and files are added to `tables`, under the input's dotted name."""
    if isinstance(value, Images):
        tables[key] = value.table()
        return {"images": value.title, "count": len(value), "fingerprint": table_fingerprint(tables[key])}
    if isinstance(value, Path):
        if value.name == WEIGHTS and (value.parent / DONE).exists():
            value = value.parent  # the file and the folder of a training stage are the same weights
        known, files = content_of(value)
        if files is not None:
            tables[key] = files
        where = os.path.relpath(value.resolve(), out.resolve())
        return {"file" if value.is_file() else "folder": where, **known}
    if isinstance(value, Mapping):
        return {str(name): _describe(item, out, f"{key}.{name}", tables) for name, item in value.items()}
    return plain(value)


def content_of(path: Path) -> tuple[dict[str, Any], Mapping[str, str] | None]:
    """The identity of a file or folder for records, and the digests of a folder's files.

    Raises:
        BadInput: it belongs to an unfinished stage, or was changed although such files are never edited by hand (weights, scores).
    """
    if path.is_file():
        outputs.check_file(path, read_record)
        return {"identity": content_digest(path)}, None
    if path.is_dir() and not any((path / marker).exists() for marker in (DONE, STARTED)):
        files = _foreign_digests(path)
        return {"identity": digest(files)}, files
    done = read_record(path)
    changed = outputs.changes(path, done)
    _report_edits(path, done["kind"], changed)
    edits = {key: list(names) for key, names in (("edited", changed.edited), ("added", changed.added)) if names}
    known = digest([done["identity"], changed.files])
    return {"stage": done["kind"], "of": done["identity"], "identity": known, **edits}, changed.files


def _foreign_digests(folder: Path) -> dict[str, str]:
    """Digests of the files of a folder that another program made, which are remembered for later commands."""
    known = cache.entry("folder", os.path.abspath(folder))
    if known is None:
        return folder_digests(folder)
    digests.load_cache(known / cache.CONTENTS)
    found = folder_digests(folder)
    with cache.writing(known):
        digests.save_cache(known / cache.CONTENTS, below=folder)
    return found
