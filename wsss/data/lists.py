"""Class lists, lists of pictures, folders of pictures, and tags as labels."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from wsss.arrays import Bool
from wsss.data.pictures import PICTURE_SUFFIXES, UNREAD_SUFFIXES
from wsss.data.text import read_lines
from wsss.errors import BadInput, reading, suggestion

# The records that `wsss export masks` and `wsss import masks` leave with their files
EXPORT_RECORD, IMPORT_RECORD = "wsss-export.json", "wsss-import.json"


def read_classes(source: Path | str | Sequence[str]) -> tuple[str, ...]:
    """Class names in the order of their labels, from a sequence, or from a text file with one name per line.

    A leading `background` is left out, since its label is always 0.

    Raises:
        BadInput: there are no names, or a name occurs twice.
    """
    expected = "one class name per line, in the order of the labels 1, 2, ..."
    if isinstance(source, str | Path):
        where, names = str(source), [line for _, line in read_lines(Path(source), expected)]
    else:
        where, names = "classes", [str(name).strip() for name in source]
    if names and names[0].lower() == "background":
        names = names[1:]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise BadInput(where, f"the class {twice[0]!r} twice", expected, "Remove one of the two.")
    if not names or "" in names:
        raise BadInput(where, "an empty name" if names else "no class", expected, "Write the names of the classes.")
    return tuple(names)


def tags_to_labels(tags: Iterable[str], class_names: Sequence[str], where: str) -> Bool[np.ndarray, " c"]:
    """Image-level labels of one picture.

    Raises:
        BadInput: a tag is no class; the message names `where`.
    """
    labels = np.zeros(len(class_names), bool)
    for tag in tags:
        if tag not in class_names:
            raise BadInput(
                where,
                f"the tag {tag!r}, which is no class",
                f"one of the {len(class_names)} classes ({', '.join(class_names[:8])}{', ...' if len(class_names) > 8 else ''})",
                f"{suggestion(tag, class_names)}Correct the tag, or add it to the list of classes.",
            )
        labels[class_names.index(tag)] = True
    return labels


# Links may lead to the same folder several times, but not without end
_MOST_PATHS = 16


def files_below(folder: Path) -> Iterator[Path]:
    """All files of a folder and its sub-folders, ordered by path, without hidden files and those of macOS archives.

    Links are followed, but not back to a parent folder; their targets may be missing. Pipes, sockets and devices are left out.

    Raises:
        BadInput: a folder cannot be read, or links lead to the same folder too often.
    """
    yield from _files_below(folder, (), Counter())


def _files_below(folder: Path, parents: tuple[str, ...], paths: "Counter[str]") -> Iterator[Path]:
    with reading(str(folder), "a folder that can be read", "Change its permissions, or check its disk."):
        place = os.path.realpath(folder)
        entries = sorted(
            (entry for entry in os.scandir(folder) if not is_hidden(entry.name)), key=lambda entry: entry.name
        )
        folders = [entry for entry in entries if (os.path.isdir(entry) if entry.is_symlink() else entry.is_dir())]
        files = [entry for entry in entries if (_is_linked(entry) if entry.is_symlink() else entry.is_file())]
    if place in parents:
        return
    paths[place] += 1
    if paths[place] > _MOST_PATHS:
        do = "Remove links until each folder can be reached by only a few paths."
        raise BadInput(folder, f"one of more than {_MOST_PATHS} paths to {place}", "links without cycles", do)
    yield from (folder / entry.name for entry in files)
    for entry in folders:
        yield from _files_below(folder / entry.name, (*parents, place), paths)


def _is_linked(entry: "os.DirEntry[str]") -> bool:
    """Whether a link leads to a file, or is broken."""
    return os.path.isfile(entry) or not os.path.exists(entry)


def is_hidden(name: str) -> bool:
    """Whether a file or folder belongs to the system: `.cache`, `__MACOSX`."""
    return name.startswith(".") or name == "__MACOSX"


def is_picture(path: Path) -> bool:
    """Whether a file has the suffix of a picture."""
    return path.name.lower().endswith(PICTURE_SUFFIXES)


def notes_on_unreadable(folder: Path) -> list[str]:
    """Notes on the files below a folder that are archives, or pictures in formats that are not supported."""
    files = (path for path in files_below(folder) if not is_picture(path) and not path.name.startswith("cls_labels"))
    found = Counter(path.suffix.lower() for path in files)
    return [
        f"{count} {suffix} file{'s are' if count > 1 else ' is'} not read: {UNREAD_SUFFIXES[suffix]}"
        for suffix, count in sorted(found.items())
        if suffix in UNREAD_SUFFIXES
    ]


def without_suffix(path: str) -> str:
    """A relative path, with `/` between folders and without the suffix of a picture."""
    path = path.replace(os.sep, "/")
    suffix = next((suffix for suffix in PICTURE_SUFFIXES if path.lower().endswith(suffix)), "")
    return path[: len(path) - len(suffix)]


def pictures_below(folder: Path, suffixes: Sequence[str] = PICTURE_SUFFIXES) -> dict[str, Path]:
    """The pictures of a folder and its sub-folders by name: the path below the folder, without the suffix.

    Raises:
        BadInput: two pictures differ only in their suffix.
    """
    found: dict[str, Path] = {}
    above = os.path.join(folder, "")
    for path in files_below(folder) if folder.is_dir() else ():
        if path.name.lower().endswith(tuple(suffixes)):
            name = without_suffix(os.fspath(path).removeprefix(above))
            if name in found:
                raise BadInput(
                    path,
                    f"a second picture named {name!r} (the first is {found[name]})",
                    "one picture per name, since outputs are named without the suffix",
                    "Rename or remove one of the two.",
                )
            found[name] = path
    return found


def read_names(path: Path, known: Mapping[str, Path]) -> dict[str, str]:
    """The picture names in a list, each with the rest of its line.

    A line is a name, a picture path below the data set (`/JPEGImages/NAME.jpg`), either of them followed by more
    (a mask path, or labels), or VOC's `2007_000032` as the integer 2007000032.

    Args:
        path: the list.
        known: the pictures that exist. Other names are returned as they are.

    Raises:
        BadInput: the list is missing, empty, or names a picture twice.
    """
    expected = "a list with one picture name per line"
    names: dict[str, str] = {}
    lines: dict[str, int] = {}
    for number, line in read_lines(path, expected):
        name, rest = _name_and_rest(line, known)
        if name in names:
            raise BadInput(
                f"{path}, line {number}",
                f"{name!r} again (first in line {lines[name]})",
                "each name once",
                "Remove one.",
            )
        names[name], lines[name] = rest, number
    if not names:
        raise BadInput(path, "an empty list", expected, "Write the names into it, or remove the file.")
    return names


def _name_and_rest(line: str, known: Mapping[str, Path]) -> tuple[str, str]:
    first, _, rest = line.partition("\t") if "\t" in line else line.partition(" ")
    # The whole line comes first, because names may contain blanks
    for text, remainder in ((line, ""), (first, rest.strip())):
        for name in _forms(text):
            if name in known:
                return name, remainder
    return without_suffix(first.lstrip("/")), rest.strip()


def _forms(text: str) -> Iterator[str]:
    path = text.lstrip("/")
    yield path
    yield without_suffix(path)
    yield without_suffix(path.partition("/")[2])
    if path.isdecimal() and len(path) == 10:
        yield f"{path[:4]}_{path[4:]}"


def existing_pictures(
    names: Sequence[str],
    pictures: Mapping[str, Path],
    where: str | os.PathLike[str],
    split: str,
    *,
    needed: bool,
    skip_missing: bool,
    notes: list[str],
) -> list[str]:
    """The names whose pictures exist; a note gives the number of those left out.

    Raises:
        BadInput: the split is needed, and all its pictures are missing, or some are and `skip_missing` is not set.
    """
    missing = [name for name in names if name not in pictures]
    if missing and needed and (len(missing) == len(names) or not skip_missing):
        raise BadInput(
            where,
            f"{len(missing)} of {len(names)} names without a picture ({missing[0]!r} first)",
            "a picture for each name",
            f"{suggestion(missing[0], pictures)}Add the pictures, correct the names, or leave them out with --skip-bad.",
        )
    if missing:
        notes.append(
            f"{split}: {len(missing)} of {len(names)} names left out, since their pictures are missing ({missing[0]} first)"
        )
    return [name for name in names if name in pictures]


def choose_split(requested: str | None, available: Iterable[str], preferred: Sequence[str], root: Path) -> str | None:
    """The requested split, or else the first preferred one that exists.

    Raises:
        BadInput: the requested split does not exist.
    """
    splits = list(available)
    if requested is None:
        return next((name for name in preferred if name in splits), None)
    if requested not in splits:
        found = ", ".join(splits) or "none"
        raise BadInput(
            root, f"no split or list file {requested!r}", f"one of its splits ({found}) or a list file", "Choose one."
        )
    return requested


def listing(folder: Path, most: int = 6) -> str:
    """A short description of a folder's content for errors."""
    entries = sorted(
        entry.name + "/" * os.path.isdir(entry) for entry in os.scandir(folder) if not is_hidden(entry.name)
    )
    if not entries:
        return "an empty folder"
    pictures = [name for name in entries if is_picture(Path(name))]
    others = [name for name in entries if not is_picture(Path(name))]
    parts = others[:most] + ([f"{len(others) - most} more"] if len(others) > most else [])
    return ", ".join(parts + ([f"{len(pictures)} pictures"] if pictures else []))
