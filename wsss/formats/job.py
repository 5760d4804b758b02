"""The folder that an export or an import fills: what it was made from, and what is done already."""

import contextlib
import dataclasses
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from wsss import __version__, launch, lock
from wsss.errors import BadInput
from wsss.outputs import LOCK
from wsss.storage import TEMPORARY_SUFFIX, digest, read_json, write_json

# While the work is going on: what it is made from, and the parts of finished pictures
PARTS = ".wsss-parts"
_STARTED = "started.json"

log = logging.getLogger("wsss")


@dataclasses.dataclass(frozen=True)
class Job:
    """The output folder of an export or import.

    Attributes:
        out: the folder.
        record: name of the record that a finished one has.
        made_from: what it is made from, as JSON values by name; paths are not part of it.
    """

    out: Path
    record: str
    made_from: Mapping[str, Any]

    @property
    def parts(self) -> Path:
        """The folder for the parts of finished pictures."""
        return self.out / PARTS

    def finished(self) -> dict[str, Any] | None:
        """The record if it is finished already; otherwise None, and the folder is prepared.

        Raises:
            BadInput: the folder has other files, or was made from something else.
        """
        lock.check_locks()
        for path in (self.out / self.record, self.parts / _STARTED):
            if not path.exists():
                continue
            known = read_json(path, "the record of an export or import")
            self._check_same(known)
            if path.parent == self.out:
                shutil.rmtree(self.parts, ignore_errors=True)  # left by a process that was killed at the very end
                log.info("%s: finished already; nothing was written", self.out)
                return dict(known)
            log.info("%s: continuing where it stopped", self.out)
            return None
        if self.out.is_file() or (self.out.is_dir() and any(_content(self.out))):
            found = "a file" if self.out.is_file() else "files that this command did not write"
            raise BadInput(self.out, found, "an empty or new folder", "Choose another output folder.")
        write_json(self.parts / _STARTED, self._identity())
        return None

    def _identity(self) -> dict[str, Any]:
        return {"version": __version__, "made_from": dict(self.made_from)}

    def _check_same(self, known: Any) -> None:
        before = known.get("made_from") if isinstance(known, dict) else None
        if not isinstance(before, dict):
            raise BadInput(
                self.out, "a record without `made_from`", "one that this command wrote", "Choose another folder."
            )
        now = self._identity()["made_from"]
        if digest(before) != digest(now):
            changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
            found = f"an output that was made with other {', '.join(changed)}"
            do = "Remove the folder to make it again, or choose another output folder."
            raise BadInput(
                self.out, found, "an empty folder, or one made from the same input with the same options", do
            )

    @contextlib.contextmanager
    def discarding(self) -> Iterator[None]:
        """Remove what was written inside this block if it raises BadInput, unless an earlier command or another process wrote files too."""
        alone = launch.processes() == 1 and [path.name for path in _content(self.out)] == [PARTS]
        alone = alone and len(list(self.parts.iterdir())) == 1
        try:
            yield
        except BadInput:
            for path in _content(self.out) if alone else ():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            raise

    def finish(self, content: Mapping[str, Any]) -> None:
        """Write the record, and remove the parts."""
        for leftover in self.out.rglob(f".*{TEMPORARY_SUFFIX}"):
            leftover.unlink()  # left by a process that was killed while writing
        lock.check_locks()
        write_json(self.out / self.record, {**self._identity(), **content})
        shutil.rmtree(self.parts)


def _content(folder: Path) -> list[Path]:
    paths = folder.iterdir() if folder.is_dir() else ()
    return [path for path in paths if path.name != LOCK and path.suffix != TEMPORARY_SUFFIX]
