"""Where COCO's layouts keep annotation files and pictures.

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
    "Export the data set together with its pictures (Label Studio: COCO with images), or write each file_name as seen from the folder of the "
    "pictures."
)


def annotation_files(root: Path) -> dict[str, Path]:
    """The annotation files below a folder by split.

    Raises:
        BadInput: two of them are of one split.
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
        raise BadInput(path, f"a second file of {split_of(word)} (the first is {other})", "one a split", "Remove one.")


def is_coco(path: Path) -> bool:
    """Whether a JSON file begins like COCO's: with an object that has one of its keys."""
    with path.open("rb") as stream:
        head = stream.read(_BEGINNING)
    return (
        re.match(rb'(?:\xef\xbb\xbf)?\s*\{\s*"(?:info|licenses|images|annotations|categories|type)"\s*:', head)
        is not None
    )


def split_folders(root: Path) -> dict[str, Path]:
    """Folders of pictures named like COCO's splits, which need no annotations where there are other tags."""
    folders: dict[str, Path] = {}
    for parent in _PARENTS:
        for folder in sorted((root / parent).glob("*20*")):
            if re.fullmatch(r"(train|val|test)20\d\d", folder.name) and folder.is_dir():
                folders.setdefault(folder.name, folder)
    return folders


class PictureFiles:
    """The pictures that annotations name.

    Args:
        root: of the data set.
        files: annotation files by split.
        folders: folders of pictures by split.
        allow_outside: names may be absolute or lead upwards.
    """

    def __init__(self, root: Path, files: dict[str, Path], folders: dict[str, Path], allow_outside: bool) -> None:
        self.root, self.allow_outside = root, allow_outside
        self._of_2017 = [folder for split, folder in folders.items() if split.endswith("2017")]
        self._own = {split: _own_folders(root, split, path) for split, path in files.items()}
        for split, folder in folders.items():
            self._own.setdefault(split, []).append(folder)
        self._listed: dict[str, frozenset[str]] = {}
        self._bare: dict[Path, dict[str, list[Path]]] = {}

    def find(self, split: str, file_name: str, image_id: int, where: str) -> Path | None:
        """The file of a picture: under its name below the folder of its split, or by its last part if that is unique there.

        Looked at are `SPLIT`, `images/SPLIT`, `JPEGImages/SPLIT`; then, where there is no such folder, those above them. The last part may
        also be ICAM's twelve digits. The folder of another split is never taken, unless the name itself leads there.

        Raises:
            BadInput: the name is no path below a folder.
        """
        if self.allow_outside and (file_name.startswith("/") or ".." in file_name.split("/")):
            return self._outside(split, file_name)
        check_name(file_name, where, _DO)
        own = self._own.get(split, [])
        above = [self.root / parent for parent in _PARENTS]
        for folder in [*own, *above]:
            if self._is_there(folder, file_name):
                return folder / file_name
        bare, digits = file_name.rpartition("/")[2], f"{image_id:012d}.jpg"
        for name in (bare, digits):
            if own:
                found = [path for folder in own for path in self._by_bare_name(folder).get(name, ())]
            else:
                found = [folder / name for folder in above if self._is_there(folder, name)]
            if len(found) == 1:
                return found[0]
        # COCO's ids are the same in 2014 and 2017, whose splits differ
        published = self._of_2017 if re.fullmatch(rf"COCO_(?:train|val)2014_{digits}", bare) else ()
        return next((folder / digits for folder in published if self._is_there(folder, digits)), None)

    def _outside(self, split: str, file_name: str) -> Path | None:
        bases = [*self._own.get(split, []), *(self.root / parent for parent in _PARENTS)]
        paths = [Path(os.path.normpath(base / file_name)) for base in bases]
        return next((path for path in paths if is_regular(path)), None)

    def _is_there(self, folder: Path, name: str) -> bool:
        """Folders are listed once: asking for each of 100,000 pictures takes minutes on a network drive."""
        parent, _, last = f"{folder}/{name}".rpartition("/")
        if parent not in self._listed:
            self._listed[parent] = frozenset(os.listdir(parent)) if os.path.isdir(parent) else frozenset()
        return last in self._listed[parent]

    def _by_bare_name(self, folder: Path) -> dict[str, list[Path]]:
        if folder not in self._bare:
            found: dict[str, list[Path]] = defaultdict(list)
            for parent, _, names in os.walk(folder):
                for name in names:
                    found[name].append(Path(parent, name))
            self._bare[folder] = found
        return self._bare[folder]


def _own_folders(root: Path, split: str, path: Path) -> list[Path]:
    """The folders that hold the pictures of one split alone."""
    if path.name == ROBOFLOW and path.parent != root:
        return [path.parent]
    words = dict.fromkeys((path.stem.removeprefix("instances_"), split))
    folders = [root / parent / word for parent in _PARENTS for word in words]
    return [folder for folder in folders if folder.is_dir()]
