"""Commands that are run again after they were finished: the cache remembers them, so that no library has to be imported to find nothing to do.

A command is known by its name, options, settings and the folder that it is run in. It has nothing to do if all files below the paths in its options
and settings have the sizes, times and inodes that they had before, and its stages are unchanged (`wsss.outputs`). Everything else is decided by the
command itself, as if nothing were remembered: what has changed, and whether that is an error.
"""

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsss import cache, outputs, watch
from wsss.digests import content_digest, lasting_stamp, tree_stamp
from wsss.errors import BadInput
from wsss.outputs import DONE, LOCK, STARTED
from wsss.storage import read_json
from wsss.terminal import copied, show

if TYPE_CHECKING:  # it imports torch
    from wsss.run import StageInfo

# In an entry of the cache
COMMAND = "command.json.gz"

log = logging.getLogger("wsss")


def run_unless_finished(name: str, options: Any, settings: Mapping[str, Any], run: Callable[[], None]) -> None:
    """Run a command that writes nothing but stages; if it is known to be finished, only print its results and warnings again.

    Nothing is remembered of a command that left bad pictures out, or read files that no option names.

    Args:
        name: of the command.
        options: its options, a dataclass with the output folder `out`.
        settings: its settings by section, as mirrors (`wsss.declared`).
        run: runs it.
    """
    forgets = getattr(options, "skip_bad", False) or getattr(options, "allow_outside", False)
    place = None if forgets else cache.entry("command", name, os.getcwd(), repr(options), repr(dict(settings)))
    before = None if place is None else _files_of(options, settings)
    if place is None or before is None:
        run()
        return
    known = cache.load(place / COMMAND)
    if known.get("files") == before and _are_unchanged(known["stages"]):
        for stage in known["stages"]:
            log.info("%s: finished already", stage)
        for is_warning, text in known["said"]:
            if is_warning:
                log.warning("%s", text)
            else:
                show(text, end="")
        return
    heard = _Heard()
    with watch.listening(heard), copied(heard.printed), heard.of_logger():
        run()
    if heard.stages and _files_of(options, settings) == before:
        stages = {str(folder): content_digest(folder / DONE) for folder in heard.stages}
        cache.save(place / COMMAND, {"files": before, "stages": stages, "said": heard.said})


def _files_of(options: Any, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """What changes when a file below a path in the options or settings does; None if one has just been changed."""
    found: dict[str, Any] = {}
    read = {field.name: getattr(options, field.name) for field in dataclasses.fields(options) if field.name != "out"}
    paths = {os.path.abspath(path) for path in _paths([read, settings])}
    if "data" in read and os.path.isfile(read["data"]):
        paths.add(os.path.dirname(os.path.abspath(read["data"])))  # a table lies in its data set
    for path in sorted(paths):
        if os.path.isdir(path):
            if not any(path.startswith(os.path.join(other, "")) for other in found):
                found[path] = tree_stamp(Path(path), LOCK)
        else:
            # weights are recognised by the record in their folder
            found[path] = lasting_stamp(Path(path))
            record = Path(path).parent / DONE
            if record.exists():
                found[str(record)] = lasting_stamp(record)
    return None if None in found.values() else found


def _paths(value: Any) -> Iterator[str]:
    """All existing files and folders that options or settings name; words of a setting may be paths too."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, str | os.PathLike):
        if os.path.exists(value):
            yield os.fspath(value)
    elif isinstance(value, Mapping):
        yield from _paths([*value.values()])
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _paths(one)


def _are_unchanged(stages: Mapping[str, str]) -> bool:
    """Whether stages have the records that they had, and nothing in their folders was changed."""
    try:
        for folder, record in stages.items():
            out = Path(folder)
            if (out / STARTED).exists() or content_digest(out / DONE) != record:
                return False
            if outputs.changes(out, read_json(out / DONE, "the record of a stage")):
                return False
    except (BadInput, OSError):  # the command itself says what is wrong
        return False
    return True


class _Heard(logging.Handler):
    """What a command makes and says: a listener of `wsss.watch`, a handler of warnings, and a copy of what is printed."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.stages: list[Path] = []
        self.said: list[tuple[bool, str]] = []  # whether it is a warning, and the text

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append((True, record.getMessage()))

    def printed(self, text: str) -> None:
        """Note a printed text."""
        self.said.append((False, text))

    @contextlib.contextmanager
    def of_logger(self) -> Iterator[None]:
        """Hear warnings inside this block."""
        log.addHandler(self)
        try:
            yield
        finally:
            log.removeHandler(self)

    def stage_started(self, folder: Path, info: "StageInfo") -> None:
        """See `wsss.watch.Listener`."""

    def stage_finished(self, folder: Path, info: "StageInfo", made_before: bool) -> None:
        """See `wsss.watch.Listener`."""
        self.stages.append(folder)

    def training(self, folder: Path, trainable: Any, history: Any) -> None:
        """See `wsss.watch.Listener`."""

    def advanced(self, title: str, done: int, total: int) -> None:
        """See `wsss.watch.Listener`."""
