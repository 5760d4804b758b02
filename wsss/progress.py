"""Progress bars with rate and time left, on the first process alone."""

import contextlib
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from wsss import peers, stopping
from wsss.errors import printable
from wsss.terminal import show

# How often a log that is no terminal gets a line, in seconds
LINE_EVERY = 30.0


class Progress:
    """A bar on a terminal; a line now and then where the output is a file.

    Args:
        title: what is going on.
        total: how many steps or pictures there are.
        done: how many of them were done before.
        kept: whether what is done stays where the work is stopped.

    Signals are held while it lasts; `advance` raises Stopped where one came.
    """

    def __init__(self, title: str, total: int, done: int = 0, kept: bool = True) -> None:
        self.title, self.total, self.done, self.kept = title, total, done, kept
        self._first = done
        self._began = self._last_line = time.monotonic()
        self._bars: Bars | None = None
        self._held = contextlib.ExitStack()
        self._quiet = peers.rank() > 0
        if not self._quiet and sys.stderr.isatty():
            self._bars = Bars(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=Console(stderr=True),
            )
            self._task = self._bars.add_task(printable(title), total=total, completed=done, rate="", note="")

    def __enter__(self) -> "Progress":
        self._held.enter_context(stopping.held())
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
        self._held.close()
        if error is None:
            stopping.check(self._kept())
        elif isinstance(error, stopping.Stopped) and not error.notes:
            error.notes.append(self._kept())

    def advance(self, note: str = "", stop: bool = True) -> None:
        """Count one more as done.

        Args:
            note: shown beside the bar.
            stop: end here where a signal asks for it; a training, which has to save first, looks for itself.

        Raises:
            Stopped: a signal has asked for it.
        """
        self.done += 1
        if self._bars:
            self._bars.update(self._task, completed=self.done, rate=f"{self._rate():.1f}/s", note=printable(note))
        elif not self._quiet and time.monotonic() - self._last_line > LINE_EVERY:
            self._line(note)
        if stop:
            stopping.check()

    def _kept(self) -> str:
        if not self.kept:
            return f"{self.title} begins anew"
        share = " of process 0's share" if peers.count() > 1 else ""
        # those in work at that moment may be whole too
        return f"{self.title}: at least {self.done} of {self.total}{share} are done"

    def _rate(self) -> float:
        return (self.done - self._first) / max(time.monotonic() - self._began, 1e-9)

    def _line(self, note: str) -> None:
        self._last_line = time.monotonic()
        rate = self._rate()
        left = (self.total - self.done) / rate if rate else 0.0
        show(f"{self.title}: {self.done}/{self.total}, {rate:.1f}/s, {left:.0f} s left {note}", stream=sys.stderr)
