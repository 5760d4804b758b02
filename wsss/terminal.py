"""All text for the terminal passes through here. File and class names are printed, and none may control the terminal."""

import logging
import sys
from typing import TextIO

from wsss.errors import printable


def show(text: object, *, end: str = "\n", stream: TextIO | None = None) -> None:
    """Print a text and flush, with terminal control characters escaped (see `printable`).

    Args:
        text: anything that `str` accepts.
        end: printed after it.
        stream: standard output by default.
    """
    print(printable(str(text)), end=end, file=stream or sys.stdout, flush=True)


class Formatter(logging.Formatter):
    """A log formatter that escapes messages in the same way."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))
