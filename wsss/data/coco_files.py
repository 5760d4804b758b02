"""Finds the annotation files and pictures of COCO's layouts.

annotations/instances_train2014.json  train2014/             COCO; pictures also in images/SPLIT, JPEGImages/SPLIT, images
train/_annotations.coco.json          train/1.jpg            Roboflow; also valid and test
result.json                           images/1.jpg           Label Studio
annotations.json, labels.json         images/1.jpg, data/    supervision, FiftyOne
"""

import os
import re
from collections import defaultdict
from pathlib import Path

from wsss.data.entries import split_of
from wsss.data.names import check_name
from wsss.errors import BadInput, is_regular

ROBOFLOW = "_annotations.coco.json"
_SINGLE = (ROBOFLOW, "result.json", "result_coco.json", "annotations.json", "annotations.coco.json", "labels.json")
_PARENTS = ("", "images", "Images", "JPEGImages", "data")
_BEGINNING = 1 << 20
_DO = (
    "Export the data set together with its pictures (Label Studio: COCO with images), or write each file_name relative to the folder of the "
    "pictures."
)


def annotation_files(root: Path) -> dict[str, Path]:
    """The annotation files below a folder by split.

    Raises:
        BadInput: a split has two of them.
    """
    found: dict[str, Path] = {}
    for path in sorted((root / "annotations").glob("instances_*.json")):
        _add(found, path.stem.removeprefix("instances_"), path)
    if not found:
        for path in sorted(root.glob(f"*/{ROBOFLOW}")):
            _add(found, path.parent.name, path)
    if not found and (root / "annotations").is_dir():
        for path in sorted((root / "annotations").glob("*.json")):
            if split_of(path.stem) and is_coco(path):
                _add(found, path.stem, path)
    for name in _SINGLE:
        if not found and is_regular(root / name) and is_coco(root / name):
            found["train"] = root / name
    return found


def _add(found: dict[str, Path], word: str, path: Path) -> None:
    other = found.setdefault(split_of(word) or word, path)
    if other != path:
        raise BadInput(
            path, f"a second file of {split_of(word)} (the first is {other})", "one per split", "Remove one."
        )


def is_coco(path: Path) -> bool:
    """Whether a JSON file begins like COCO's: with an object whose first key is one of COCO's."""
    with path.open("rb") as stream:
        head = stream.read(_BEGINNING)
    return (
        re.match(rb'(?:\xef\xbb\xbf)?\s*\{\s*"(?:info|licenses|images|annotations|categories|type)"\s*:', head)
        is not None
    )


def split_folders(root: Path) -> dict[str, Path]:
    """Folders of pictures named like COCO's splits, which need no annotations if there are other tags."""
    folders: dict[str, Path] = {}
    for parent in _PARENTS:
        for folder in sorted((root / parent).glob("*20*")):
            if re.fullmatch(r"(train|val|test)20\d\d", folder.name) and folder.is_dir():
                folders.setdefault(folder.name, folder)
    return folders


class PictureFiles:
    """The pictures that annotations name.

    Args:
        root: the folder of the data set.
        files: annotation files by split.
        folders: folders of pictures by split.
        allow_outside: names may be absolute or lead upwards.
    """

    def __init__(self, root: Path, files: dict[str, Path], folders: dict[str, Path], allow_outside: bool) -> None:
        self.root, self.allow_outside = root, allow_outside
        self._of_2017 = [folder for split, folder in folders.items() if split.endswith("2017")]
        self._split_folders = {split: _folders_of_split(root, split, path) for split, path in files.items()}
        for split, folder in folders.items():
            self._split_folders.setdefault(split, []).append(folder)
        self._listings: dict[str, frozenset[str]] = {}
        self._by_last_part: dict[Path, dict[str, list[Path]]] = {}

    def find(self, split: str, file_name: str, image_id: int, where: str) -> Path | None:
        """The file of a picture: under its name below the folder of its split, or by its last part if that is unique there.

        The folders searched are `SPLIT`, `images/SPLIT` and `JPEGImages/SPLIT`, and without such folders their parents. The last part may
        also be the twelve digits of ICAM. The folder of another split is not used unless the name itself contains it.

        Raises:
            BadInput: the name is no path below a folder.
        """
        if self.allow_outside and (file_name.startswith("/") or ".." in file_name.split("/")):
            return self._outside(split, file_name)
        check_name(file_name, where, _DO)
        folders = self._split_folders.get(split, [])
        parents = [self.root / parent for parent in _PARENTS]
        for folder in [*folders, *parents]:
            if self._exists(folder, file_name):
                return folder / file_name
        last, digits = file_name.rpartition("/")[2], f"{image_id:012d}.jpg"
        for name in (last, digits):
            if folders:
                found = [path for folder in folders for path in self._files_by_last_part(folder).get(name, ())]
            else:
                found = [folder / name for folder in parents if self._exists(folder, name)]
            if len(found) == 1:
                return found[0]
        # COCO's ids are the same in 2014 and 2017, whose splits differ
        published = self._of_2017 if re.fullmatch(rf"COCO_(?:train|val)2014_{digits}", last) else ()
        return next((folder / digits for folder in published if self._exists(folder, digits)), None)

    def _outside(self, split: str, file_name: str) -> Path | None:
        bases = [*self._split_folders.get(split, []), *(self.root / parent for parent in _PARENTS)]
        paths = [Path(os.path.normpath(base / file_name)) for base in bases]
        return next((path for path in paths if is_regular(path)), None)

    def _exists(self, folder: Path, name: str) -> bool:
        """Whether a file exists; each folder is listed once, since 100,000 queries take minutes on a network drive."""
        parent, _, last = f"{folder}/{name}".rpartition("/")
        if parent not in self._listings:
            self._listings[parent] = frozenset(os.listdir(parent)) if os.path.isdir(parent) else frozenset()
        return last in self._listings[parent]

    def _files_by_last_part(self, folder: Path) -> dict[str, list[Path]]:
        if folder not in self._by_last_part:
            found: dict[str, list[Path]] = defaultdict(list)
            for parent, _, names in os.walk(folder):
                for name in names:
                    found[name].append(Path(parent, name))
            self._by_last_part[folder] = found
        return self._by_last_part[folder]


def _folders_of_split(root: Path, split: str, path: Path) -> list[Path]:
    """The folders that hold only the pictures of one split."""
    if path.name == ROBOFLOW and path.parent != root:
        return [path.parent]
    words = dict.fromkeys((path.stem.removeprefix("instances_"), split))
    folders = [root / parent / word for parent in _PARENTS for word in words]
    return [folder for folder in folders if folder.is_dir()]
