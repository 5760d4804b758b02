"""Which names of pictures may become names of outputs: below their folder, alike on every system, each with a file of its own."""

import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from wsss.errors import BadInput

# Bytes in UTF-8; file systems take 255 in a component, of which an output's suffix needs some
LONGEST_PART, LONGEST_NAME = 240, 2000
OUTPUT_SUFFIXES = (".png", ".npz", ".json")
# Stages keep their records beside what they write for each picture
_RECORDS = frozenset(("done", "started", "seconds"))

_EXPECTED = "a path below the data set, such as a/1.jpg, which outputs can be named after"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_DRIVE = re.compile(r"[A-Za-z]:")
# What a harmless name never holds: the rest is looked at closely
_CLOSER = re.compile(r"[\\\x00-\x1f\x7f:]|(?:^|/)\.{0,2}(?:/|$)|\.part(?:/|$)")


def name_problem(name: str) -> tuple[str, str] | None:
    """What is wrong with a name as the name of outputs, and what to do about it; None where nothing is."""
    if len(name) > LONGEST_PART // 4:
        longest = max(len(os.fsencode(part)) for part in name.split("/"))
        if longest > LONGEST_PART or len(name) > LONGEST_NAME:
            return f"a name of {max(longest, len(name))} bytes", f"Shorten it to {LONGEST_PART} bytes a part."
    if name in _RECORDS:
        return (
            "a name under which stages keep their records",
            f"Rename the picture: {name}.json is a record of the stage.",
        )
    if not _CLOSER.search(name):
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
        return "an address", "Fetch the files, and write their paths below the data set."
    if ".." in name.split("/"):
        return "a path that leads upwards (..)", "Write paths below the data set."
    if {"", "."} & set(name.split("/")):
        return "a path with an empty part", "Write the path without `//` and `.`."
    if any(part.endswith(".part") for part in name.split("/")):
        return "a name that ends in .part, as files do that are being written", "Rename it."
    return None


def check_name(name: str, where: str | os.PathLike[str], do: str = "") -> None:
    """Raise BadInput unless outputs can be named after this.

    Args:
        name: path below the data set, with slashes; with or without a suffix.
        where: what to name in the error.
        do: what else can be done about it.

    Raises:
        BadInput: the name is absolute, leads upwards, holds a drive letter, a backslash or control characters, is too long for a
            file system, or is one under which stages keep their own files.
    """
    if found := name_problem(name):
        raise BadInput(where, f"{name[:200]!r}: {found[0]}", _EXPECTED, f"{found[1]} {do}".strip())


def check_names(names: Sequence[str], paths: Sequence[Path] | Sequence[str]) -> None:
    """Raise BadInput unless outputs can be named after each of these, on any system, and no two outputs meet.

    Raises:
        BadInput: as `check_name`, or two names are the same but for letter case or Unicode normal form, or one output's name is that of
            a folder with others in it.
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
                "one picture a name"
                + (
                    ""
                    if same
                    else ", where upper and lower case and Unicode's normal forms count as the same, since files collide elsewhere"
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
                    f"{names[at]!r} beside a folder {folder!r}",
                    "outputs that do not meet: this picture's has the name of the folder",
                    "Rename one of the two.",
                )
            folder = folder.rpartition("/")[0]


def comparison_key(name: str) -> str:
    """The same for names that are one name where letter case or Unicode's normal form do not count."""
    return (
        name.lower() if name.isascii() else unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
    )


def relative_name(path: str) -> str:
    """A path as a name of outputs: without what makes it absolute or leads upwards."""
    return "/".join(part for part in path.split("/") if part not in ("", ".", ".."))
