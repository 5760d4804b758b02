"""Locks, so that only one command at a time writes to a folder.

The lock is a file in the folder with host, process, start time and command; its owner renews the modification time.
It is created with a hard link, which is atomic even on network file systems, where file locks are often unreliable.
"""

import contextlib
import contextvars
import dataclasses
import json
import logging
import os
import platform
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil

from wsss import peers
from wsss.errors import BadInput
from wsss.outputs import LOCK
from wsss.storage import TEMPORARY_SUFFIX, read_json, read_only, writing

T = TypeVar("T")

# Seconds between renewals, and seconds without a renewal after which an owner on another host is assumed dead
RENEW_EVERY, EXPIRES_AFTER = 20.0, 300.0
# Seconds to wait after taking over a lock, for other commands that take it over at the same moment
SETTLE_TIME = 1.0
# Seconds by which the start time of a process may seem to change when the clock is adjusted
_START_TOLERANCE = 5.0
_MAX_COMMAND = 200
# Attempts to take a lock: another command may take it over at the same moment and end at once
_TRIES = 3

_EXPECTED = "a folder that no other command is using"

log = logging.getLogger("wsss")

# Locks that this command holds; other threads of the process do not see them
_locks: contextvars.ContextVar[tuple["_Lock", ...]] = contextvars.ContextVar("locks", default=())


@dataclasses.dataclass(frozen=True)
class Owner:
    """The owner of a lock.

    Attributes:
        host: host name.
        machine: identifies the boot of the machine and the process namespace (container).
        process: process ID.
        started: when the process started, in seconds since 1970.
        since: when it took the lock, as readable text.
        command: its command line.
        token: unique for each lock.
    """

    host: str
    machine: str
    process: int
    started: float
    since: str
    command: str
    token: str

    def __str__(self) -> str:
        return f"`{self.command}` (process {self.process} on {self.host}, since {self.since})"

    @property
    def is_local(self) -> bool:
        """Whether this process could see the owner's process."""
        return (self.host, self.machine) == (platform.node(), _machine())

    @property
    def is_alive(self) -> bool:
        """Whether its process is running; only meaningful for a local owner."""
        try:
            process = psutil.Process(self.process)
            same = abs(process.create_time() - self.started) < _START_TOLERANCE
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.AccessDenied:
            return True
        except psutil.Error:
            return False


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder against other commands inside this block; the processes of one command share the lock.

    A folder that is locked already, or lies in one that is, is not locked again. A read-only folder needs no lock. The lock, and a
    folder that was created for it and stayed empty, are removed at the end.

    Raises:
        BadInput: another command is using the folder or one above it, or the lock cannot be written.
    """
    locks = _locks.get()
    lock: _Lock | None = None
    if _decided_by_first(lambda: _needed(folder, locks)):
        lock = _Lock(folder)
        _decided_by_first(lock.take)
        locks = (*locks, lock)
    token = _locks.set(locks)
    try:
        yield
    finally:
        _locks.reset(token)
        if lock and peers.rank() == 0:
            lock.release()


def _decided_by_first(decide: Callable[[], T]) -> T:
    """As `launch.decided_by_first`, which imports torch, and is therefore used only if there are several processes."""
    if peers.count() == 1:
        return decide()
    from wsss import launch

    return launch.decided_by_first(decide)


def check_locks() -> None:
    """Raise BadInput if another command has taken over a lock of this one, because this process was suspended for too long."""
    for lock in _locks.get():
        lock.check()


def _needed(folder: Path, locks: tuple["_Lock", ...]) -> bool:
    resolved = folder.resolve()
    if any(lock.folder in (resolved, *resolved.parents) for lock in locks):
        check_locks()
        # another command may be using only this folder of the run
        if resolved not in [lock.folder for lock in locks]:
            _refuse_locked(resolved, locks[-1].path.stat().st_mtime)
        return False
    return not read_only(folder)


class _Lock:
    """A lock on one folder."""

    def __init__(self, folder: Path) -> None:
        self.shown, self.folder = folder, folder.resolve()
        self.path = self.folder / LOCK
        self.owner = Owner(
            platform.node(),
            _machine(),
            os.getpid(),
            psutil.Process().create_time(),
            time.strftime("%Y-%m-%d %H:%M:%S"),
            _command(),
            secrets.token_hex(8),
        )
        self._made: list[Path] = []
        self._ended = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="lock", daemon=True)

    def take(self) -> None:
        with writing(self.path):
            self._make_folder()
            try:
                self._take()
                now = self.path.stat().st_mtime  # by the clock of the file system
                for above in self.folder.parents:
                    _refuse_locked(above, now)
            except BaseException:
                self.release()
                raise
        self._renewing.start()

    def check(self) -> None:
        if peers.rank() == 0 and _token(self.path) != self.owner.token:
            other = _owner(self.path)
            raise BadInput(
                self.shown,
                f"that {other} took it over" if other else "that its lock was removed",
                f"the lock of process {self.owner.process}",
                "This process was suspended or disconnected for too long, and stops before it writes a record. Start it again.",
            )

    def release(self) -> None:
        self._ended.set()
        if self._renewing.is_alive():
            self._renewing.join()
        with contextlib.suppress(OSError):  # the folder or the disk may be gone
            if _token(self.path) == self.owner.token:
                self.path.unlink()
            for folder in self._made:
                folder.rmdir()

    def _make_folder(self) -> None:
        missing = []
        for folder in (self.folder, *self.folder.parents):
            if folder.exists():
                break
            missing.append(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._made = missing

    def _take(self) -> None:
        for _ in range(_TRIES):
            temporary = self.folder / f".{self.owner.token}{TEMPORARY_SUFFIX}"
            try:
                with temporary.open("x", encoding="utf-8") as stream:
                    json.dump(dataclasses.asdict(self.owner), stream)
                if self._linked(temporary):
                    return
                found = _owner(self.path)
                _refuse(self.shown, self.path, found, temporary.stat().st_mtime)
                if _owner(self.path) == found:
                    os.replace(temporary, self.path)
            finally:
                temporary.unlink(missing_ok=True)
            # the last process to replace the lock owns it
            time.sleep(SETTLE_TIME)
            if _token(self.path) == self.owner.token:
                log.info("%s: lock taken over from %s, which has ended", self.shown, found or "a command")
                return
        raise BadInput(self.shown, "other commands that start and end here", _EXPECTED, "Start again.")

    def _linked(self, temporary: Path) -> bool:
        try:
            os.link(temporary, self.path)
        except FileExistsError:
            return False
        except OSError:
            # over NFS the link may exist although the reply was lost; some file systems have no links
            return temporary.stat().st_nlink == 2 or self._created(temporary)
        return True

    def _created(self, temporary: Path) -> bool:
        try:
            with self.path.open("x", encoding="utf-8") as stream:
                stream.write(temporary.read_text(encoding="utf-8"))
        except FileExistsError:
            return False
        return True

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_EVERY):
            with contextlib.suppress(OSError):
                if _token(self.path) == self.owner.token:
                    os.utime(self.path)


def _refuse_locked(folder: Path, now: float) -> None:
    path = folder / LOCK
    if path.is_file():
        _refuse(folder, path, _owner(path), now)


def _refuse(folder: Path, path: Path, owner: Owner | None, now: float) -> None:
    """Raise BadInput if the owner of a lock is alive, as far as can be determined.

    Args:
        folder: the folder, for the message.
        path: the lock.
        owner: its content, None if it cannot be read.
        now: seconds since 1970.
    """
    if owner and owner.is_local:
        if owner.is_alive:
            do = "Wait until it ends, stop it, or choose another output folder."
            raise BadInput(folder, f"another command running here: {owner}", _EXPECTED, do)
        return
    try:
        age = now - path.stat().st_mtime
    except OSError:  # it has just ended
        return
    if age < EXPIRES_AFTER:
        raise BadInput(
            folder,
            f"another command running here: {owner or 'an unknown one'}; it renewed its lock {max(age, 0):.0f} s ago",
            _EXPECTED,
            f"Wait until it ends, or choose another output folder. If it has died, start again in {EXPIRES_AFTER / 60:.0f} minutes, "
            f"or remove {path}.",
        )


def _owner(path: Path) -> Owner | None:
    try:
        content: Any = read_json(path, "a lock")
        kinds = {field.name: field.type for field in dataclasses.fields(Owner)}
        values = {name: content[name] for name in kinds}
        if not isinstance(values["process"], int) or not isinstance(values["started"], int | float):
            return None
        return Owner(**values)
    except (BadInput, KeyError, TypeError):
        return None


def _token(path: Path) -> str | None:
    found = _owner(path)
    return found.token if found else None


def _machine() -> str:
    parts = []
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _command() -> str:
    words = ["wsss" if Path(sys.argv[0]).name == "__main__.py" else Path(sys.argv[0]).name, *sys.argv[1:]]
    text = " ".join(words)
    return text if len(text) <= _MAX_COMMAND else f"{text[:_MAX_COMMAND]}..."
