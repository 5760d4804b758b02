"""How much memory a command may use, and waiting for it: fewer pictures at once if they are large. No torch here."""

import functools
import math
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from wsss.errors import BadInput

_UNITS = {"": 2**30, "G": 2**30, "M": 2**20, "T": 2**40}
_GROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
# limits of version 1 that are "no limit"
_NO_LIMIT = 2**60

_chosen: list[int] = []


def parsed(text: str) -> int:
    """Bytes of a size such as `8`, `8GB` or `500MB`; a number without a unit is in GB, and GB are 2^30 bytes.

    Raises:
        BadInput: it is no such size, or 0.

    Example:
        >>> parsed("1.5GB") == parsed("1536 mb") == parsed("1.5")
        True
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([GMT]?)(?:I?B)?\s*", text.upper())
    size = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if size == 0:
        raise BadInput(
            "--memory", text, "a size such as 8GB, 500MB, or a number of GB", "Leave it out for half of what is free."
        )
    return size


def choose(text: str | None) -> None:
    """Use this much memory from now on; None: half of what is free."""
    _default.cache_clear()
    _chosen[:] = [] if text is None else [parsed(text)]


def budget() -> int:
    """Bytes that the pictures which this process works on may take together."""
    return _chosen[0] if _chosen else _default()


@functools.cache
def _default() -> int:
    return free() // (2 * int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def free() -> int:
    """Bytes of memory that this process can still take: those of the machine, within the limits of its control groups."""
    import psutil  # takes longer than the rest of this module

    return max(0, min([psutil.virtual_memory().available, *_left_in_groups()]))


def _left_in_groups() -> Iterator[int]:
    """The bytes that are left in each control group of this process, of either version, and in those around it."""
    lines = _MEMBERSHIP.read_text().splitlines() if _MEMBERSHIP.exists() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            roots, names = (_GROUPS, _GROUPS / "unified"), ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            roots = (_GROUPS / "memory", _GROUPS)
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        for root in roots:
            # within a container the path may be that of the host, and only the root is there
            folders = [root / path.lstrip("/"), *(root / path.lstrip("/")).parents]
            for folder in (one for one in folders if one == root or root in one.parents):
                left = _left_in(folder, *names)
                if left is not None:
                    yield left


def _left_in(folder: Path, limit_name: str, usage_name: str, cache_name: str) -> int | None:
    try:
        limit, usage = (folder / limit_name).read_text().strip(), int((folder / usage_name).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    if not limit.isdigit() or int(limit) >= _NO_LIMIT:
        return None
    # cached files are dropped before anything fails
    return int(limit) - usage + int(stat.get(cache_name, 0))


def shown(size: float) -> str:
    """A size for people."""
    for unit, bytes_of in (("GB", 2**30), ("MB", 2**20)):
        if size >= bytes_of:
            return f"{size / bytes_of:.{int(size < 10 * bytes_of)}f} {unit}"
    return f"{math.ceil(size / 2**10)} KB"


def _advised(size: float) -> str:
    """A value of `--memory` that is at least this size."""
    if size > 2**30:
        return f"{math.ceil(10 * size / 2**30) / 10:g}GB"
    return f"{math.ceil(size / 2**20)}MB"


def too_large(where: str, size_hw: tuple[int, int], needed: float, do: str) -> BadInput:
    """The error for a picture that does not fit, even alone.

    Args:
        where: name of the picture.
        size_hw: its height and width.
        needed: bytes.
        do: what to do besides giving more memory.
    """
    found = f"a picture of {size_hw[1]}x{size_hw[0]} pixels, which takes about {shown(needed)}"
    expected = f"at most {shown(budget())}" + ("" if _chosen else ", half of the memory that is free")
    return BadInput(where, found, expected, f"Set --memory to {_advised(needed)} or more if the machine has it{do}.")


class Cancelled(Exception):
    """The loop that waited for memory has ended."""


class Admission:
    """Lets tasks begin in their order, while all that have begun fit into the budget. A task that does not fit even alone begins alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._next, self._used, self._closed = 0, 0, False

    def begin(self, number: int, size: Callable[[], int]) -> int:
        """Wait until the task with this number, counted from 0, may begin; returns its bytes, for `end`.

        If `size` fails, so does this, after all tasks before it have begun; those after it are cancelled.
        """
        try:
            needed = size()
        except BaseException:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._next == number)
            self.close()
            raise
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or (self._next == number and (self._used == 0 or self._used + needed <= budget()))
            )
            if self._closed:
                raise Cancelled
            self._next, self._used = number + 1, self._used + needed
            self._changed.notify_all()
        return needed

    def end(self, needed: int) -> None:
        """The task has given its memory back."""
        with self._changed:
            self._used -= needed
            self._changed.notify_all()

    def close(self) -> None:
        """Wake all that wait; they are cancelled."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
