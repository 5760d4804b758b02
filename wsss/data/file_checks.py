"""Checks that the files of a data set are inside it, and that each belongs to only one picture or mask."""

import os
from collections.abc import Iterable
from pathlib import Path

from wsss.data.images import Dataset, Images, MaskFile
from wsss.data.mask_files import MASKS
from wsss.data.names import comparison_key
from wsss.data.pairs import MASK_FOLDERS
from wsss.errors import BadInput


def check_files(dataset: Dataset, *, allow_outside: bool = False) -> None:
    """Raise BadInput unless all files are inside the data set, and no two entries share one.

    Each folder is resolved and listed once, and files are resolved only if they are links: 120,000 pictures take a second or two.

    Args:
        dataset: of any layout.
        allow_outside: files may be anywhere; they are only read.

    Raises:
        BadInput: a picture or a mask is outside the root (links are followed); two pictures share a file (allowed with the same name,
            tags and true mask, since lists overlap); two pictures with different tags share a mask; a file is both a picture and a
            mask; or two files differ only in letter case.
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
            first = pictures.setdefault(file, (images, index))
            if (first[0] is not images or first[1] != index) and (
                first[0] is images or not _same(first, (images, index))
            ):
                _refuse_shared("pictures", path, first, (images, index))
        for index, mask in enumerate(images.masks):
            if not isinstance(mask, MaskFile):
                continue
            file = places.file(mask.path)
            if not allow_outside:
                _check_inside(mask.path, file, root)
            a, i = first = masks.setdefault(file, (images, index))
            if a.names[i] != images.names[index] and (a.labels[i] != images.labels[index]).any():
                _refuse_shared("true masks", mask.path, first, (images, index))
    if both := pictures.keys() & masks.keys():
        file = min(both)
        images, index = masks[file]
        raise BadInput(
            file,
            f"one file as a picture and as the true mask of {images.names[index]!r}",
            "different files for pictures and masks",
            "Correct the table or the folders.",
        )
    _check_case(pictures)


def check_apart(dataset: Dataset, out: Path) -> None:
    """Raise BadInput for an output folder whose files would be read as pictures or masks when the data set is opened again.

    Where folders are the tags, or there are none, every picture below the data set is read. Tables and all other layouts say where pictures
    and masks are, so results may be in other folders next to theirs.

    Args:
        dataset: of any layout.
        out: the output folder, which need not exist.
    """
    root, place = os.path.realpath(dataset.root), os.path.realpath(out)
    if place == root or dataset.kind in ("folders", "pictures"):
        taken = {root}
    else:
        splits = dataset.splits.values()
        files = [path for images in splits for path in images.paths]
        files += [mask.path for images in splits for mask in images.masks if isinstance(mask, MaskFile)]
        taken = {os.path.realpath(folder) for folder in {path.parent for path in files}} - {root}
        taken |= {os.path.join(root, name) for name in os.listdir(root) if name.lower() in MASK_FOLDERS}
        taken.add(os.path.join(root, MASKS))
    if any(f"{place}/".startswith(f"{folder}/") for folder in taken):
        raise BadInput(
            out,
            "an output folder inside the data set, where results would be read as pictures or masks",
            f"a folder outside {root}",
            f"Choose another output folder, such as {root}-results.",
        )


def _same(one: tuple[Images, int], other: tuple[Images, int]) -> bool:
    """Whether two entries of one file have the same name, tags and true mask."""
    (a, i), (b, j) = one, other
    if a.names[i] != b.names[j] or (a.labels[i] != b.labels[j]).any():
        return False
    first, second = a.masks[i], b.masks[j]
    return first == second or (first is not None and second is not None and first.stamp() == second.stamp())


def _refuse_shared(what: str, path: Path, one: tuple[Images, int], other: tuple[Images, int]) -> None:
    (a, i), (b, j) = one, other
    raise BadInput(
        path,
        f"one file for two {what}: {a.names[i]!r} of {a.title} and {b.names[j]!r} of {b.title}",
        "a file for each",
        "Add the missing file, or remove one of the two entries.",
    )


def _check_inside(path: Path, file: str, root: str) -> None:
    if not file.startswith(root + os.sep) and root != os.sep:
        raise BadInput(
            path,
            f"a file outside the data set ({file})",
            f"files below {root}",
            "Copy it there, or allow files elsewhere to be read with --allow-outside.",
        )


def _check_case(files: Iterable[str]) -> None:
    first: dict[str, str] = {}
    for file in files:
        other = first.setdefault(comparison_key(file), file)
        if other != file:
            raise BadInput(
                file,
                f"a name that differs from {os.path.basename(other)!r} only in letter case or Unicode normal form",
                "names that are different on every system",
                "Rename one of the two.",
            )


class _Places:
    """Resolves the paths of files."""

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
        # a missing folder is reported when its files are read
        return frozenset()
