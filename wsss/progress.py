"""Progress bars with rate and time left, on process 0 only."""

import contextlib
import contextvars
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

from wsss import peers, stopping, watch
from wsss.errors import printable
from wsss.terminal import show

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

# Seconds between two lines where the output is not a terminal
LINE_EVERY = 30.0


_stage: contextvars.ContextVar[str] = contextvars.ContextVar("stage", default="")


def set_stage(number: int, count: int) -> None:
    """Let the titles of later bars begin with the number of the stage."""
    _stage.set(f"{number}/{count} ")


def unset_stage() -> None:
    """Let the titles of later bars begin without a number."""
    _stage.set("")


class Progress:
    """A progress bar on a terminal; a line every 30 seconds elsewhere.

    Args:
        title: name of the work.
        total: how many steps or pictures there are.
        done: how many of them an earlier command has done.
        resumable: whether finished steps are saved when the work is stopped.

    Signals are deferred inside this block; `advance` raises Stopped if one has arrived.
    """

    def __init__(self, title: str, total: int, done: int = 0, resumable: bool = True) -> None:
        title = f"{_stage.get()}{title}"
        self.title, self.total, self.done, self.resumable = title, total, done, resumable
        self._first = done
        self._started = self._last_line = time.monotonic()
        self._bars: Bars | None = None
        self._signals = contextlib.ExitStack()
        self._quiet = peers.rank() > 0
        if not self._quiet and sys.stderr.isatty():
            self._bars = _bars()
            self._task = self._bars.add_task(printable(title), total=total, completed=done, rate="", note="")

    def __enter__(self) -> "Progress":
        self._signals.enter_context(stopping.deferring_signals())
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()
        elif not self._quiet and error is None and self.done > self._first:
            self._line("")
        self._signals.close()
        if error is None:
            stopping.check(self._saved())
        elif isinstance(error, stopping.Stopped) and not error.notes:
            error.notes.append(self._saved())

    def advance(self, note: str = "", stop: bool = True) -> None:
        """Count one more as done.

        Args:
            note: shown next to the bar.
            stop: raise Stopped here after a signal; training passes False, since it saves a checkpoint first.

        Raises:
            Stopped: a signal has arrived.
        """
        self.done += 1
        if self._bars:
            self._bars.update(self._task, completed=self.done, rate=f"{self._rate():.1f}/s", note=printable(note))
        elif not self._quiet and time.monotonic() - self._last_line > LINE_EVERY:
            self._line(note)
        watch.advanced(self.title, self.done, self.total)
        if stop:
            stopping.check()

    def _saved(self) -> str:
        if not self.resumable:
            return f"{self.title} starts over"
        share = " of process 0's share" if peers.count() > 1 else ""
        # pictures in progress may be written as well
        return f"{self.title}: at least {self.done} of {self.total}{share} are done"

    def _rate(self) -> float:
        return (self.done - self._first) / max(time.monotonic() - self._started, 1e-9)

    def _line(self, note: str) -> None:
        self._last_line = time.monotonic()
        rate = self._rate()
        left = (self.total - self.done) / rate if rate else 0.0
        show(f"{self.title}: {self.done}/{self.total}, {rate:.1f}/s, {left:.0f} s left {note}", stream=sys.stderr)


def _bars() -> "Bars":
    # slow to import, and only needed on a terminal
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(stderr=True),
    )
