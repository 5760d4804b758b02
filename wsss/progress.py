"""Progress bars with rate and time left, on the first process alone."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from wsss import launch

# How often a log that is no terminal gets a line, in seconds
LINE_EVERY = 30.0


class Progress:
    """A bar on a terminal; a line now and then where the output is a file.

    Args:
        title: what is going on.
        total: how many steps or pictures there are.
        done: how many of them were done before.
    """

    def __init__(self, title: str, total: int, done: int = 0) -> None:
        self.title, self.total, self.done = title, total, done
        self._first = done
        self._began = self._last_line = time.monotonic()
        self._bars: Bars | None = None
        self._quiet = not launch.is_first()
        if not self._quiet and sys.stderr.isatty():
            self._bars = Bars(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._task = self._bars.add_task(title, total=total, completed=done, rate="", note="")

    def __enter__(self) -> "Progress":
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

    def advance(self, note: str = "") -> None:
        """Count one more as done; `note` is shown beside the bar."""
        self.done += 1
        if self._bars:
            self._bars.update(self._task, completed=self.done, rate=f"{self._rate():.1f}/s", note=note)
        elif not self._quiet and time.monotonic() - self._last_line > LINE_EVERY:
            self._line(note)

    def _rate(self) -> float:
        return (self.done - self._first) / max(time.monotonic() - self._began, 1e-9)

    def _line(self, note: str) -> None:
        self._last_line = time.monotonic()
        rate = self._rate()
        left = (self.total - self.done) / rate if rate else 0.0
        print(
            f"{self.title}: {self.done}/{self.total}, {rate:.1f}/s, {left:.0f} s left {note}",
            file=sys.stderr,
            flush=True,
        )
