"""The one way of text to the terminal. Names of files and classes reach people there, and none of them may steer it."""

import logging
import sys
from typing import TextIO

from wsss.errors import printable


def show(text: object, *, end: str = "\n", stream: TextIO | None = None) -> None:
    """Print a text at once, with what would steer a terminal escaped (see `printable`).

    Args:
        text: anything that can be written as a text.
        end: what follows it.
        stream: standard output by default.
    """
    print(printable(str(text)), end=end, file=stream or sys.stdout, flush=True)


class Formatter(logging.Formatter):
    """Messages of a log, escaped in the same way."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))
