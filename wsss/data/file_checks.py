"""The files behind a data set lie in it, each behind one picture or one mask alone."""

import os
from collections.abc import Iterable
from pathlib import Path

from wsss.data.images import Dataset, Images, MaskFile
from wsss.data.names import comparison_key
from wsss.errors import BadInput


def check_files(dataset: Dataset, *, allow_outside: bool = False) -> None:
    """Raise BadInput unless all files are the data set's own, and no two entries share one.

    A folder is resolved and listed once, and a file only where it is a link: 120,000 pictures take a second or two.

    Args:
        dataset: any layout's.
        allow_outside: files may lie anywhere; they are only read.

    Raises:
        BadInput: a picture or a mask lies outside of the root (links are followed), two pictures are one file (of one name and
            with the same tags and truth they may be: lists overlap), two pictures of other tags have one mask, a picture is its own or another's
            mask, or two files differ in letter case alone.
    """
    places = _Places()
    root = os.path.realpath(dataset.root)
    pictures: dict[str, tuple[Images, int]] = {}
    masks: dict[str, tuple[Images, int]] = {}
    for images in dataset.splits.values():
        for index, path in enumerate(images.paths):
            file = places.file(path)
            if not allow_outside:
                _check_inside(path, file, root)
            before = pictures.setdefault(file, (images, index))
            if (before[0] is not images or before[1] != index) and (
                before[0] is images or not _same(before, (images, index))
            ):
                _one_file("pictures", path, before, (images, index))
        for index, mask in enumerate(images.masks):
            if not isinstance(mask, MaskFile):
                continue
            file = places.file(mask.path)
            if not allow_outside:
                _check_inside(mask.path, file, root)
            a, i = before = masks.setdefault(file, (images, index))
            if a.names[i] != images.names[index] and (a.labels[i] != images.labels[index]).any():
                _one_file("true masks", mask.path, before, (images, index))
    if both := pictures.keys() & masks.keys():
        file = min(both)
        images, index = masks[file]
        raise BadInput(
            file,
            f"one file as a picture and as the true mask of {images.names[index]!r}",
            "a picture and a mask in a file each",
            "Correct the table or the folders.",
        )
    _check_case(pictures)


def _same(one: tuple[Images, int], other: tuple[Images, int]) -> bool:
    """Whether two entries for one file say the same."""
    (a, i), (b, j) = one, other
    if a.names[i] != b.names[j] or (a.labels[i] != b.labels[j]).any():
        return False
    first, second = a.masks[i], b.masks[j]
    return first == second or (first is not None and second is not None and first.stamp() == second.stamp())


def _one_file(what: str, path: Path, one: tuple[Images, int], other: tuple[Images, int]) -> None:
    (a, i), (b, j) = one, other
    raise BadInput(
        path,
        f"one file behind two {what}: {a.names[i]!r} of {a.title} and {b.names[j]!r} of {b.title}",
        "a file for each",
        "Copy the file that is missing to its place, or remove one of the two entries.",
    )


def _check_inside(path: Path, file: str, root: str) -> None:
    if not file.startswith(root + os.sep) and root != os.sep:
        raise BadInput(
            path,
            f"a file outside of the data set ({file})",
            f"files below {root}",
            "Copy it there, or allow the reading of files elsewhere with --allow-outside.",
        )


def _check_case(files: Iterable[str]) -> None:
    first: dict[str, str] = {}
    for file in files:
        other = first.setdefault(comparison_key(file), file)
        if other != file:
            raise BadInput(
                file,
                f"a name that differs from {os.path.basename(other)!r} in letter case or Unicode's normal form alone",
                "names that are different files on every system",
                "Rename one of the two.",
            )


class _Places:
    """Where files really are."""

    def __init__(self) -> None:
        self.folders: dict[str, tuple[str, frozenset[str]]] = {}

    def file(self, path: Path) -> str:
        folder, _, name = os.fspath(path).rpartition("/")
        if folder not in self.folders:
            self.folders[folder] = (os.path.realpath(folder), _links(folder))
        real, links = self.folders[folder]
        return os.path.realpath(path) if name in links or name == ".." else f"{real}/{name}"


def _links(folder: str) -> frozenset[str]:
    try:
        with os.scandir(folder or ".") as entries:
            return frozenset(entry.name for entry in entries if entry.is_symlink())
    except OSError:
        # a missing folder is told where its files are read
        return frozenset()
