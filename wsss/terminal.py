"""All text for the terminal passes through here. File and class names are printed, and none may control the terminal."""

import contextlib
import contextvars
import logging
import sys
from collections.abc import Callable, Iterator
from typing import TextIO

from wsss.errors import printable

_copy: contextvars.ContextVar[Callable[[str], None] | None] = contextvars.ContextVar("copy", default=None)


def show(text: object, *, end: str = "\n", stream: TextIO | None = None) -> None:
    """Print a text and flush, with terminal control characters escaped (see `printable`).

    Args:
        text: anything that `str` accepts.
        end: printed after it.
        stream: standard output by default.
    """
    print(printable(str(text)), end=end, file=stream or sys.stdout, flush=True)
    if stream is None and (copy := _copy.get()):
        copy(f"{text}{end}")


@contextlib.contextmanager
def copied(copy: Callable[[str], None]) -> Iterator[None]:
    """Inside this block, a function also gets all text that `show` prints to standard output."""
    token = _copy.set(copy)
    try:
        yield
    finally:
        _copy.reset(token)


class Formatter(logging.Formatter):
    """A log formatter that escapes messages in the same way."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))
