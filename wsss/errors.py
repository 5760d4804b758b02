"""The one error that a user's input can cause, and the door through which all files come in."""

import contextlib
import csv
import difflib
import errno
import gzip
import json
import math
import os
import stat
import struct
import tarfile
import unicodedata
import xml.etree.ElementTree as ElementTree
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from PIL import UnidentifiedImageError


class BadInput(ValueError):
    """Something that the user gave cannot be used.

    The message names the place (a file, a folder, a setting), what was found there, what was expected and what
    to do about it. The command line prints it without a traceback and ends with status 2.
    """

    def __init__(self, where: str | os.PathLike[str], found: str, expected: str, do: str) -> None:
        self.where, self.found, self.expected, self.do = os.fspath(where), found, expected, do
        super().__init__(printable(f"{self.where}: found {found}; expected {expected}. {do}"))

    def __reduce__(self) -> tuple[type["BadInput"], tuple[str, str, str, str]]:
        return BadInput, (self.where, self.found, self.expected, self.do)


class NoSuchName(BadInput):
    """A name of something that does not exist, such as a misspelt flag; one short line says so.

    Args:
        where: the name, as it was given.
        what: a flag, a setting, a command.
        do: what may have been meant, or what there is.
    """

    def __init__(self, where: str, what: str, do: str) -> None:
        super().__init__(where, f"no such {what}", f"a {what} that there is", do)
        self.what, self.args = what, (printable(f"{where}: {self.found}. {do}"),)

    def __reduce__(self) -> tuple[type["NoSuchName"], tuple[str, ...]]:  # type: ignore[override]
        return NoSuchName, (self.where, self.what, self.do)


class Unreadable(ValueError):
    """What a reader found in a file where something else should be; `reading` makes BadInput of it, with the name of the file."""


def printable(text: str) -> str:
    r"""The text with everything escaped that would steer a terminal: controls but line ends and tabs, bidirectional marks, lone surrogates.

    `\x1b` takes the place of an escape character, for example. What joins letters in some scripts stays.
    """
    return "".join(letter if _harmless(letter) else letter.encode("unicode_escape").decode() for letter in text)


def _harmless(letter: str) -> bool:
    return letter in "\n\t\u200c\u200d" or unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


@contextlib.contextmanager
def reading(
    where: str | os.PathLike[str],
    expected: str,
    do: str = "Fetch or write the file again.",
    *,
    missing: str = "Check the path.",
) -> Iterator[None]:
    """Turn whatever a parser raises in this block into BadInput. Every reader opens and parses its file in such a block.

    Checks of the content that raise BadInput themselves pass through unchanged. While WSSS_STRICT is set, as in the tests, what only a
    slip of this package can raise passes through too, instead of hiding behind the file.

    Args:
        where: the file; a Path must lead to a regular one, since to open a pipe waits for ever. A text is only named: `a.csv, line 3`.
        expected: what the file should hold.
        do: what to do about a damaged file.
        missing: what to do about a missing one.

    Raises:
        BadInput: where is no regular file, or the block raised any error.
    """
    try:
        if isinstance(where, Path):
            _check_regular(where, expected)
        yield
    except BadInput:
        raise
    except Exception as error:
        if os.environ.get("WSSS_STRICT") and _is_programming_error(error):
            raise
        raise BadInput(where, _found(error), expected, missing if _is_open_error(error) else do) from error


def is_regular(path: str | os.PathLike[str]) -> bool:
    """Whether a path leads to a regular file: no folder, pipe, socket or device. False too for texts that can be no path."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):  # a name that is too long, or holds a zero byte
        return False


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def _check_regular(path: Path, expected: str) -> None:
    kind = stat.S_IFMT(os.stat(path).st_mode)
    if kind != stat.S_IFREG:
        raise BadInput(path, _KINDS.get(kind, "no regular file"), expected, "Give a file.")


# What the system says about a file that cannot be opened
_ERRNOS = {
    errno.ENOENT: "no such file",
    errno.ENOTDIR: "a file where a folder has to be",
    errno.EISDIR: "a folder",
    errno.EACCES: "a file that may not be read",
    errno.EPERM: "a file that may not be read",
    errno.ENAMETOOLONG: "a name that is too long for a file",
    errno.ELOOP: "links that lead in a circle",
}

# What parsers raise, the first that fits
_FOUND: tuple[tuple[type[Exception] | tuple[type[Exception], ...], Callable[..., str]], ...] = (
    (Unreadable, str),
    (RecursionError, lambda error: "something nested too deeply"),
    (MemoryError, lambda error: "something that asks for more memory than there is"),
    (json.JSONDecodeError, lambda error: f"broken JSON at line {error.lineno}, column {error.colno} ({error.msg})"),
    (UnicodeDecodeError, lambda error: f"bytes that are not {error.encoding.upper()} (at byte {error.start})"),
    (ElementTree.ParseError, lambda error: f"broken XML ({_first_line(error)})"),
    (csv.Error, lambda error: f"a broken line ({_first_line(error)})"),
    (KeyError, lambda error: f"no {_first_line(error)}"),
    (UnidentifiedImageError, lambda error: "no picture"),
    (
        (EOFError, zlib.error, struct.error, zipfile.BadZipFile, gzip.BadGzipFile, tarfile.TarError),
        lambda error: f"a file that is cut off or damaged ({_first_line(error)})",
    ),
    (OSError, lambda error: _ERRNOS.get(error.errno) or f"a file that cannot be read ({_first_line(error)})"),
)


def _found(error: Exception) -> str:
    for kinds, found in _FOUND:
        if isinstance(error, kinds):
            return found(error)
    return f"something that cannot be read ({_first_line(error)})"


def _first_line(error: Exception) -> str:
    """The first line of an error's own message, or its type."""
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (message.strip().splitlines() or [""])[0][:200] or type(error).__name__


def _is_open_error(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in _ERRNOS


def _is_programming_error(error: Exception) -> bool:
    """Whether an error is none that a file can cause: a check of types in the tests, or an odd kind that this package's own code raised."""
    if type(error).__module__.partition(".")[0] in ("jaxtyping", "beartype"):
        return True
    return isinstance(error, AssertionError | AttributeError | NameError | TypeError) and _raised_here(
        error.__traceback__
    )


def _raised_here(traceback: TracebackType | None) -> bool:
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and str(traceback.tb_frame.f_globals.get("__name__")).startswith("wsss.")


def check_range(where: str, values: float | Sequence[float], low: float, high: float = math.inf) -> None:
    """Raise BadInput unless there are values and all of them are in [low, high].

    Args:
        where: name of the setting.
        values: one number or several.
        low, high: both allowed.
    """
    numbers = [values] if isinstance(values, int | float) else list(values)
    span = f"from {low:g} to {high:g}" if high < math.inf else f"of {low:g} or more"
    if not numbers or not all(low <= number <= high for number in numbers):
        raise BadInput(where, str(values), f"{'a number' if numbers == [values] else 'numbers'} {span}", "Change it.")


def check_pair(where: str, pair: tuple[float, float], low: float) -> None:
    """Raise BadInput unless both numbers are at least `low` and the first is not above the second."""
    check_range(where, pair, low)
    if pair[0] > pair[1]:
        raise BadInput(where, str(pair), "the smaller number first", "Exchange them.")


def suggestion(word: str, among: Iterable[str]) -> str:
    """`Did you mean ...? ` if one of the words is much like this one, else nothing."""
    near = nearest(word, among)
    return f"Did you mean {near!r}? " if near else ""


def nearest(word: str, among: Iterable[str]) -> str:
    """The one of the words that is much like this one, or nothing."""
    lower = {other.lower(): other for other in among}
    near = difflib.get_close_matches(word.lower(), lower, 1, 0.6)
    return lower[near[0]] if near else ""
