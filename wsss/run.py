"""The run folder: what each stage was made from, and going on where one stopped.

A stage is a function from settings, input stages and pictures to a folder. Its folder holds `started.json` while it is
being made and `done.json` once it is whole; both name the settings and the records of all inputs, so a stage that
is done is skipped, one that is half done goes on, and one that was made from something else is refused.
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
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from wsss import __version__, launch
from wsss.data.images import Images
from wsss.errors import BadInput
from wsss.storage import TEMPORARY_SUFFIX, digest, file_digest, path_digest, read_json, write_json

DONE, STARTED, SECONDS = "done.json", "started.json", "seconds.json"
# Later stages look at the content of these outputs too; of the others, at what they were made from
KNOWN_BY_CONTENT = ("weights.safetensors", "model.safetensors", "tags.csv", "scores.json")

log = logging.getLogger("wsss")

_shared: contextvars.ContextVar[Path | None] = contextvars.ContextVar("shared", default=None)


class Stage(Protocol):
    """A stage as its callers see it: whatever it needs, and the folder that it fills."""

    def __call__(self, *inputs: Any, out: Path, **named: Any) -> Path:
        """Make the folder `out` unless it is made already, and give it back."""


def neutral(default: Any) -> Any:
    """A settings field that cannot change what a stage makes: it is left out of records."""
    return dataclasses.field(default=default, metadata={"neutral": True})


def maybe_file(default: str) -> Any:
    """A settings field that holds a word or a path: records name the file or folder by its content."""
    return dataclasses.field(default=default, metadata={"maybe_file": True})


def plain(settings: Any) -> Any:
    """Settings as JSON-able values, without the neutral fields."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        values = {}
        for field in dataclasses.fields(settings):
            value = getattr(settings, field.name)
            if field.metadata.get("maybe_file") and os.path.exists(value):
                values[field.name] = {"file": Path(value).name, "identity": path_digest(Path(value))}
            elif not field.metadata.get("neutral"):
                values[field.name] = plain(value)
        return values
    if isinstance(settings, Mapping):
        return {str(key): plain(value) for key, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [plain(value) for value in settings]
    return str(settings) if isinstance(settings, os.PathLike) else settings


def stage(function: Callable[..., dict[str, Any]]) -> Stage:
    """Make a stage of a function that fills the folder `out` and returns what is worth recording about it.

    Its arguments may be settings (dataclasses), `Images`, and paths of earlier stages or of files.

    The stage raises:
        BadInput: `out` was made from something else, or an input stage is missing or unfinished.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def run(*args: Any, out: Path, **kwargs: Any) -> Path:
        out = Path(out)
        arguments = signature.bind(*args, out=out, **kwargs)
        arguments.apply_defaults()
        inputs = {name: value for name, value in arguments.arguments.items() if name != "out"}
        if launch.decided_by_first(lambda: _prepare(function.__name__, inputs, out)):
            return out
        before = time.monotonic()
        try:
            result = function(*args, out=out, **kwargs)
        finally:
            if launch.is_first():
                _add_seconds(out, time.monotonic() - before)
        launch.wait()
        launch.decided_by_first(lambda: _finish(out, result))
        return out

    return run


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
        BadInput: there is none.
    """
    expected = "the record of a finished stage"
    if not out.is_dir():
        raise BadInput(out, "no such folder", expected, "Check the path, or run that stage first.")
    if not (out / DONE).exists():
        found = "a stage that has not finished" if (out / STARTED).exists() else "a folder that no stage made"
        raise BadInput(out, found, expected, "Run the command that makes it again: it goes on where it stopped.")
    return read_json(out / DONE, expected)


def seconds(out: Path) -> float:
    """How long a stage took, all tries together."""
    path = out / SECONDS
    return float(read_json(path, "the seconds of a stage")["seconds"]) if path.exists() else 0.0


def _add_seconds(out: Path, spent: float) -> None:
    # not in done.json, whose bytes depend on the settings and inputs alone
    write_json(out / SECONDS, {"seconds": round(seconds(out) + spent, 3)})


def _prepare(name: str, inputs: Mapping[str, Any], out: Path) -> bool:
    """Whether the stage is done already; otherwise its folder is made ready for it."""
    described = {key: _describe(value, out) for key, value in inputs.items()}
    identity = digest([name, {key: _identity(value) for key, value in described.items()}])
    asked = {"stage": name, "version": __version__, "inputs": described, "identity": identity}
    for marker in (DONE, STARTED):
        # a stage that stopped before it made anything may start again from other settings
        if (out / marker).exists() and (marker == DONE or _content(out)):
            found = read_json(out / marker, "the record of a stage")
            if found.get("identity") != asked["identity"]:
                raise BadInput(
                    out,
                    f"a `{found.get('stage')}` stage made from something else: {_difference(found, asked)}",
                    f"an empty folder, or a `{name}` stage made from the same settings and inputs",
                    f"Choose another output folder, or remove {out} and what was made from it.",
                )
            if marker == DONE:
                (out / STARTED).unlink(missing_ok=True)  # of a process that was killed between the two records
                log.info("%s: done already", out)
                return True
            log.info("%s: going on where it stopped", out)
            return False
    if out.is_file() or _content(out):
        raise BadInput(
            out,
            "a file" if out.is_file() else "files that no stage recorded",
            "an empty or a new folder",
            "Choose another output folder.",
        )
    if twin := _twin(str(asked["identity"])):
        _take(twin, out, asked)
        log.info("%s: taken from %s", out, twin)
        return True
    write_json(out / STARTED, asked)
    return False


def _twin(identity: str) -> Path | None:
    """A stage of another run that is the same one and whole."""
    runs = _shared.get()
    for done in sorted(runs.glob(f"*/*/{DONE}")) if runs else ():
        if read_json(done, "the record of a stage").get("identity") == identity:
            return done.parent
    return None


def _take(twin: Path, out: Path, asked: dict[str, Any]) -> None:
    """Make `out` the same as a finished stage, whole or not at all; files are never changed in place, so links will do."""
    theirs = record(twin)
    out.parent.mkdir(parents=True, exist_ok=True)
    for leftover in out.parent.glob(f".*{TEMPORARY_SUFFIX}/"):
        shutil.rmtree(leftover)  # of a process that was killed here
    with tempfile.TemporaryDirectory(prefix=".", suffix=TEMPORARY_SUFFIX, dir=out.parent) as temporary:
        copy = Path(temporary) / out.name
        shutil.copytree(twin, copy, copy_function=_link_or_copy)
        # its own record: the stages that it was made from may lie elsewhere
        write_json(copy / DONE, {**asked, "result": theirs["result"], "made": theirs["made"]})
        if out.exists():  # what a killed writer left, and an earlier try's seconds
            shutil.rmtree(out)
        copy.rename(out)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copy2(source, target)


def _content(out: Path) -> list[Path]:
    """What a stage made in its folder: neither records nor what a killed writer left."""
    paths = out.iterdir() if out.is_dir() else ()
    return [path for path in paths if path.name not in (STARTED, SECONDS) and path.suffix != TEMPORARY_SUFFIX]


def _finish(out: Path, result: dict[str, Any]) -> None:
    for leftover in out.rglob(f".*{TEMPORARY_SUFFIX}"):
        # of a process that was killed while it wrote
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    made = {path.name: file_digest(path) for path in sorted(out.iterdir()) if path.name in KNOWN_BY_CONTENT}
    write_json(out / DONE, {**read_json(out / STARTED, "the record of a stage"), "result": result, "made": made})
    (out / STARTED).unlink()


def _describe(value: Any, out: Path) -> Any:
    if isinstance(value, Images):
        return {"images": value.title, "count": len(value), "fingerprint": value.fingerprint()}
    if isinstance(value, Path):
        where = os.path.relpath(value.resolve(), out.resolve())
        if value.is_file():
            return {"file": where, "identity": file_digest(value)}
        if value.is_dir() and not any((value / marker).exists() for marker in (DONE, STARTED)):
            sizes = {
                str(path.relative_to(value)): path.stat().st_size for path in sorted(value.rglob("*")) if path.is_file()
            }
            return {"folder": where, "identity": digest(sizes)}  # made by other programs
        done = record(value)
        return {"folder": where, "identity": digest([done["identity"], done["made"]])}
    if isinstance(value, Mapping):
        return {str(key): _describe(item, out) for key, item in value.items()}
    return plain(value)


def _identity(described: Any) -> Any:
    """What of a described input decides whether it is the same one: not where it lies, nor what it is called."""
    if isinstance(described, dict):
        for key in ("fingerprint", "identity"):
            if key in described:
                return described[key]
        return {key: _identity(value) for key, value in described.items()}
    return described


def _difference(found: dict[str, Any], asked: dict[str, Any]) -> str:
    if found.get("stage") != asked["stage"]:
        return f"it is no `{asked['stage']}` stage"
    old, new = _flat(found.get("inputs", {})), _flat(asked["inputs"])
    names = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    parts = [f"{key} was {old.get(key, 'not there')} and is {new.get(key, 'not there')} now" for key in names[:5]]
    return "; ".join(parts) + (f"; and {len(names) - 5} more" if len(names) > 5 else "")


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Values as records tell them apart (1 is not 1.0), by dotted name."""
    if isinstance(value, dict) and value:
        return {key: item for name, inner in value.items() for key, item in _flat(inner, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): repr(value)}
