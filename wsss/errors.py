"""The error that bad input raises, and the context in which every file is read."""

import contextlib
import difflib
import errno
import functools
import json
import math
import os
import stat
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

# what paths are expected to be, in errors
PICTURES = "a picture or a folder of pictures"
TRAINED = "a run folder, the folder of a training stage, or a weights file"


class BadInput(ValueError):
    """User input that cannot be used.

    The message names the place (a file, a folder, a setting), what was found there, what was expected, and what
    to do about it. The command line prints it without a traceback and ends with status 2.
    """

    def __init__(self, where: str | os.PathLike[str], found: str, expected: str, do: str) -> None:
        self.where, self.found, self.expected, self.do = os.fspath(where), found, expected, do
        super().__init__(printable(f"{self.where}: found {found}; expected {expected}. {do}"))

    def __reduce__(self) -> tuple[type["BadInput"], tuple[str, str, str, str]]:
        return BadInput, (self.where, self.found, self.expected, self.do)


class NoSuchName(BadInput):
    """A name that does not exist, such as a misspelt flag; reported in one short line.

    Args:
        where: the name as given.
        what: what the name stands for: a flag, a setting, a command.
        do: a suggestion, or the existing names.
    """

    def __init__(self, where: str, what: str, do: str) -> None:
        super().__init__(where, f"no such {what}", f"an existing {what}", do)
        self.what, self.args = what, (printable(f"{where}: {self.found}. {do}"),)

    def __reduce__(self) -> tuple[type["NoSuchName"], tuple[str, ...]]:  # type: ignore[override]
        return NoSuchName, (self.where, self.what, self.do)


class SeveralFaults(BadInput):
    """Several things that cannot be used, reported together.

    Args:
        faults: one error for each; at least two.
    """

    def __init__(self, faults: Sequence[BadInput]) -> None:
        first = faults[0]
        super().__init__(first.where, first.found, first.expected, first.do)
        self.faults = tuple(faults)
        self.args = ("\n".join([f"{len(faults)} things have to be changed:", *(f"  {fault}" for fault in faults)]),)

    def __reduce__(self) -> tuple[type["SeveralFaults"], tuple[tuple[BadInput, ...]]]:  # type: ignore[override]
        return SeveralFaults, (self.faults,)


def count_of(number: int, one: str, several: str | None = None) -> str:
    """A number with its noun: `1 picture`, `3 pictures`."""
    return f"{number} {one if number == 1 else several or f'{one}s'}"


class Faults:
    """Collects the errors of independent checks; `stop` raises them together."""

    def __init__(self) -> None:
        self.found: list[BadInput] = []

    @contextlib.contextmanager
    def collected(self) -> Iterator[None]:
        """Keep the BadInput that this block raises, if it raises one."""
        try:
            yield
        except BadInput as error:
            if str(error) not in map(str, self.found):
                self.found.append(error)

    def stop(self) -> None:
        """Raise what was collected; nothing if all checks passed."""
        if len(self.found) == 1:
            raise self.found[0]
        if self.found:
            raise SeveralFaults(self.found)


class Unreadable(ValueError):
    """Unexpected content that a reader found; `reading` turns it into BadInput with the name of the file."""


def printable(text: str) -> str:
    r"""The text with terminal controls escaped: control characters except newlines and tabs, bidirectional marks, lone surrogates.

    For example, an escape character becomes `\x1b`. Joiners, which some scripts need, are left as they are.
    """
    return "".join(char if _is_harmless(char) else char.encode("unicode_escape").decode() for char in text)


def _is_harmless(char: str) -> bool:
    return char in "\n\t\u200c\u200d" or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


@contextlib.contextmanager
def reading(
    where: str | os.PathLike[str],
    expected: str,
    do: str = "Download or write the file again.",
    *,
    missing: str = "Check the path.",
) -> Iterator[None]:
    """Turn any error that a parser raises in this block into BadInput. Every reader opens and parses its file in such a block.

    A BadInput raised in the block passes through unchanged. If WSSS_STRICT is set, as in the tests, so do errors that only a bug
    in this package can raise, instead of being blamed on the file.

    Args:
        where: the file; a Path must be a regular file, since opening a pipe would block. A str is only used in messages: `a.csv, line 3`.
        expected: what the file should contain.
        do: what the user can do about a damaged file.
        missing: what the user can do about a missing file.

    Raises:
        BadInput: `where` is not a regular file, or the block raised an error.
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
    """Whether a path is a regular file, not a folder, pipe, socket or device. False for texts that cannot be paths."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):  # a name that is too long or contains a zero byte
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


# Reasons why a file cannot be opened
_ERRNOS = {
    errno.ENOENT: "no such file",
    errno.ENOTDIR: "a file in place of a folder",
    errno.EISDIR: "a folder",
    errno.EACCES: "a file without read permission",
    errno.EPERM: "a file without read permission",
    errno.ENAMETOOLONG: "a name that is too long for a file",
    errno.ELOOP: "symbolic links in a circle",
}


@functools.cache
def _descriptions() -> tuple[tuple[type[Exception] | tuple[type[Exception], ...], Callable[..., str]], ...]:
    """Descriptions of what parsers raise; the first match is used."""
    # imported here, because a command line without errors should not wait for them
    import csv
    import gzip
    import struct
    import tarfile
    import xml.etree.ElementTree as ElementTree
    import zipfile
    import zlib

    from PIL import UnidentifiedImageError

    cut_off = (EOFError, zlib.error, struct.error, zipfile.BadZipFile, gzip.BadGzipFile, tarfile.TarError)
    return (
        (Unreadable, str),
        (RecursionError, lambda error: "content nested too deeply"),
        (MemoryError, lambda error: "content that needs more memory than there is"),
        (json.JSONDecodeError, lambda error: f"broken JSON at line {error.lineno}, column {error.colno} ({error.msg})"),
        (UnicodeDecodeError, lambda error: f"bytes that are not {error.encoding.upper()} (at byte {error.start})"),
        (ElementTree.ParseError, lambda error: f"broken XML ({_first_line(error)})"),
        (csv.Error, lambda error: f"a broken line ({_first_line(error)})"),
        (KeyError, lambda error: f"no {_first_line(error)}"),
        (UnidentifiedImageError, lambda error: "no picture"),
        (cut_off, lambda error: f"a file that is cut off or damaged ({_first_line(error)})"),
        (OSError, lambda error: _ERRNOS.get(error.errno) or f"a file that cannot be read ({_first_line(error)})"),
    )


def _found(error: Exception) -> str:
    for kinds, found in _descriptions():
        if isinstance(error, kinds):
            return found(error)
    return f"content that cannot be read ({_first_line(error)})"


def _first_line(error: Exception) -> str:
    """The first line of an error's own message, or its type."""
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (message.strip().splitlines() or [""])[0][:200] or type(error).__name__


def _is_open_error(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in _ERRNOS


def _is_programming_error(error: Exception) -> bool:
    """Whether an error is a bug and not caused by a file: a type check of the tests, or a programming error raised in this package."""
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
        low, high: the range, ends included.
    """
    numbers = [values] if isinstance(values, int | float) else list(values)
    span = f"from {low:g} to {high:g}" if high < math.inf else f"of {low:g} or more"
    if not numbers or not all(low <= number <= high for number in numbers):
        raise BadInput(where, str(values), f"{'a number' if numbers == [values] else 'numbers'} {span}", "Change it.")


def check_pair(where: str, pair: tuple[float, float], low: float) -> None:
    """Raise BadInput unless both numbers are at least `low` and the first is not above the second."""
    check_range(where, pair, low)
    if pair[0] > pair[1]:
        raise BadInput(where, str(pair), "the smaller number first", "Swap them.")


def suggestion(word: str, among: Iterable[str]) -> str:
    """`Did you mean ...? ` if one of the words is similar to this one, otherwise an empty text."""
    near = nearest(word, among)
    return f"Did you mean {near!r}? " if near else ""


def existing(path: Path, expected: str) -> Path:
    """The path; raise BadInput if there is nothing."""
    if not os.path.exists(path):
        raise BadInput(path, "no such file or folder", expected, "Check the path.")
    return path


def nearest(word: str, among: Iterable[str], at_least: float = 0.6) -> str:
    """The most similar of the words, or an empty text if none has that share of letters in common."""
    lower = {other.lower(): other for other in among}
    near = difflib.get_close_matches(word.lower(), lower, 1, at_least)
    return lower[near[0]] if near else ""
