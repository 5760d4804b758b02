"""Checks that outputs can be named after pictures: inside their folder, on every system, and without collisions."""

import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from wsss.errors import BadInput

# Bytes in UTF-8; file systems allow 255 per component, including the suffix of an output
LONGEST_PART, LONGEST_NAME = 240, 2000
OUTPUT_SUFFIXES = (".png", ".npz", ".json")
# Stages keep their records in the folder of their outputs
_RECORDS = frozenset(("done", "started", "seconds"))

_EXPECTED = "a path below the data set, such as a/1.jpg, after which outputs can be named"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_DRIVE = re.compile(r"[A-Za-z]:")
# A name without any of these is harmless; others are checked in detail
_SUSPICIOUS = re.compile(r"[\\\x00-\x1f\x7f:]|(?:^|/)\.{0,2}(?:/|$)|\.part(?:/|$)")


def name_problem(name: str) -> tuple[str, str] | None:
    """Why outputs cannot be named after this, and what to do about it; None if they can."""
    if len(name) > LONGEST_PART // 4:
        longest = max(len(os.fsencode(part)) for part in name.split("/"))
        if longest > LONGEST_PART or len(name) > LONGEST_NAME:
            return f"a name of {max(longest, len(name))} bytes", f"Shorten it to {LONGEST_PART} bytes per part."
    if name in _RECORDS:
        return (
            "a name under which stages keep their records",
            f"Rename the picture: {name}.json is a record of the stage.",
        )
    if not _SUSPICIOUS.search(name):
        return None
    if _CONTROL.search(name):
        return "a control character in a name", "Rename the file."
    if _DRIVE.match(name):
        return "a path with a drive letter", "Write paths below the data set, without the drive."
    if "\\" in name:
        return (
            "a Windows path (with backslashes)",
            f"Write it with slashes ({name.replace(chr(92), '/')}), and rename a file that has a backslash in its name.",
        )
    if name.startswith("/"):
        return "an absolute path", "Write paths below the data set."
    if "://" in name:
        return "a URL", "Download the files, and write their paths below the data set."
    if ".." in name.split("/"):
        return "a path that leads upwards (..)", "Write paths below the data set."
    if {"", "."} & set(name.split("/")):
        return "a path with an empty part", "Write the path without `//` and `.`."
    if any(part.endswith(".part") for part in name.split("/")):
        return "a name that ends in .part, like files that are still being written", "Rename it."
    return None


def check_name(name: str, where: str | os.PathLike[str], do: str = "") -> None:
    """Raise BadInput unless outputs can be named after this.

    Args:
        name: path below the data set, with slashes; with or without a suffix.
        where: the place that the error names.
        do: more advice for the error.

    Raises:
        BadInput: the name is absolute, leads upwards, contains a drive letter, a backslash or control characters, is too long for a
            file system, or is that of a stage's records.
    """
    if found := name_problem(name):
        raise BadInput(where, f"{name[:200]!r}: {found[0]}", _EXPECTED, f"{found[1]} {do}".strip())


def check_names(names: Sequence[str], paths: Sequence[Path] | Sequence[str]) -> None:
    """Raise BadInput unless outputs can be named after each picture, on any system, and no two outputs collide.

    Raises:
        BadInput: as `check_name`; or two names differ only in letter case or Unicode normal form; or the name of an output is that
            of a folder of other outputs.
    """
    first: dict[str, int] = {}
    folders: set[str] = set()
    for index, name in enumerate(names):
        if found := name_problem(name):
            raise BadInput(paths[index], f"{name[:200]!r}: {found[0]}", _EXPECTED, found[1])
        key = comparison_key(name)
        if key in first:
            other = first[key]
            same = names[other] == name
            raise BadInput(
                paths[index],
                f"a second picture named {name!r} (the first is {paths[other]}{'' if same else f', {names[other]!r}'})",
                "one picture per name"
                + (
                    ""
                    if same
                    else ", where letter case and Unicode normal form do not count, since such files collide on some systems"
                ),
                "Rename or remove one of the two.",
            )
        first[key] = index
        folders.add(key.rpartition("/")[0])
    for folder in folders:
        while folder:
            stem, suffix = os.path.splitext(folder)
            if suffix in OUTPUT_SUFFIXES and stem in first:
                at = first[stem]
                raise BadInput(
                    paths[at],
                    f"{names[at]!r} next to a folder {folder!r}",
                    "outputs that do not collide: that of this picture has the name of the folder",
                    "Rename one of the two.",
                )
            folder = folder.rpartition("/")[0]


def comparison_key(name: str) -> str:
    """The name without differences of letter case and Unicode normal form, for comparison."""
    return (
        name.lower() if name.isascii() else unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
    )


def relative_name(path: str) -> str:
    """A path without the parts that make it absolute or lead upwards, as a name of outputs."""
    return "/".join(part for part in path.split("/") if part not in ("", ".", ".."))
