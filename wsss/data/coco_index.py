"""The index of a COCO annotation file, which is read once, object by object.

For each object it holds the position in the file, the class, the picture, and whether there is an outline: about twenty bytes.
"""

import array
import dataclasses
import hashlib
import itertools
import json
import mmap
import os
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from wsss.arrays import Bool
from wsss.data.text import is_text
from wsss.errors import BadInput, Unreadable, reading

# Stand in for the class of objects without a class, which are drawn as background or as ignored pixels
DRAWN_AS_BACKGROUND, DRAWN_AS_IGNORED = -1, -2

EXPECTED = "COCO instance annotations with images, annotations and categories"
_BROKEN = "The file may be truncated: fetch it again."
_SPACE = re.compile(r"[ \t\r\n]*")


@dataclasses.dataclass(frozen=True, eq=False)
class Instances:
    """The index of one annotation file.

    Attributes:
        path: the file.
        categories: names by category id, ascending; the rank of an id is its 0-based class.
        ids: image ids in file order.
        file_names: picture files as the annotations name them.
        sizes_hw: height and width of each picture.
        first: where the objects of each picture begin in the next arrays, which hold them in file order.
        starts: the offset of each object in the file, in bytes.
        lengths: its length in bytes.
        classes: its 0-based class, or DRAWN_AS_BACKGROUND or DRAWN_AS_IGNORED.
        outlined: 0 if it has no outline (only a box), 1 if it has one, 2 if some of its polygons have fewer than three corners.
        crowds: whether it is marked as a crowd.
        supercategories: by category id, if the file names any.
    """

    path: Path
    categories: dict[int, str]
    ids: np.ndarray
    file_names: tuple[str, ...]
    sizes_hw: np.ndarray
    first: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    classes: np.ndarray
    outlined: np.ndarray
    crowds: np.ndarray
    supercategories: dict[int, str] = dataclasses.field(default_factory=dict)

    def among(self, position: int) -> slice:
        """The slice of the object arrays that belongs to the picture at a position."""
        return slice(int(self.first[position]), int(self.first[position + 1]))

    def objects(self, position: int) -> list[tuple[int, dict[str, Any]]]:
        """The 0-based class and the annotation of each object of the picture at a position, in file order."""
        among = self.among(position)
        found = []
        places = zip(self.starts[among], self.lengths[among], self.classes[among], strict=True)
        with (
            reading(self.path, EXPECTED, "If it has changed since the command started, start again."),
            self.path.open("rb") as stream,
        ):
            for start, length, class_ in places:
                stream.seek(start)
                entry = json.loads(stream.read(length))
                if not isinstance(entry, dict):
                    raise Unreadable(f"no object at byte {start}")
                found.append((int(class_), entry))
        return found

    @cached_property
    def digests(self) -> list[str]:
        """A fingerprint of the annotations of each picture, as bytes in the file, and of their classes."""
        found = []
        with self.path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for begin, end in itertools.pairwise(self.first.tolist()):
                among = slice(begin, end)
                hashed = hashlib.sha256(self.classes[among].tobytes())
                for start, length in zip(self.starts[among].tolist(), self.lengths[among].tolist(), strict=True):
                    hashed.update(content[start : start + length])
                found.append(hashed.hexdigest()[:16])
        return found

    def labels(self, position: int) -> Bool[np.ndarray, " c"]:
        """The classes of all objects of a picture, crowds included."""
        labels = np.zeros(len(self.categories), bool)
        classes = self.classes[self.among(position)]
        labels[classes[classes >= 0]] = True
        return labels

    def without(self, category: int, label: int) -> "Instances":
        """The annotations without a category that is no class: its objects are drawn with `label` (0 or 255), and give no tag."""
        if category not in self.categories:
            return self
        rank = list(self.categories).index(category)
        classes = np.where(
            self.classes == rank,
            DRAWN_AS_IGNORED if label else DRAWN_AS_BACKGROUND,
            self.classes - (self.classes > rank),
        )
        categories = {number: name for number, name in self.categories.items() if number != category}
        return dataclasses.replace(self, categories=categories, classes=classes)


def read_instances(path: Path) -> Instances:
    """Index an annotation file. Ids may be integers written as strings.

    Raises:
        BadInput: the file is missing, truncated, or holds no such annotations; or an id or the name of a category occurs twice.
    """
    index = _Index(path)
    with reading(path, EXPECTED, _BROKEN):
        for key, value, start, end in _elements(_text(path)):
            if not isinstance(value, dict):
                raise BadInput(path, f"{value!r:.60} among `{key}`", "JSON objects", "Use an instances file of COCO.")
            index.add(key, value, start, end)
    return index.finished()


class _Index:
    """The index of an annotation file while it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.images: dict[int, tuple[str, int, int]] = {}
        self.categories: dict[int, str] = {}
        self.supercategories: dict[int, str] = {}
        self.ids, self.starts, self.lengths, self.owners, self.kinds = (array.array("q") for _ in range(5))
        self.outlined, self.crowds = array.array("b"), array.array("b")

    def add(self, key: str, value: dict[str, Any], start: int, end: int) -> None:
        """Add an element of one of the three lists."""
        if key == "images":
            number = self._id(value, "id", "an image")
            name = self._name(value, "file_name", f"image {number}")
            if number in self.images:
                raise self._twice("images", number, self.images[number][0], name)
            height, width = (self._side(value, side, f"image {number}") for side in ("height", "width"))
            self.images[number] = (name, height, width)
        elif key == "categories":
            number = self._id(value, "id", "a category")
            name = self._name(value, "name", f"category {number}")
            if number in self.categories:
                raise self._twice("categories", number, self.categories[number], name)
            if name in self.categories.values():
                other = next(known for known, known_name in self.categories.items() if known_name == name)
                raise BadInput(
                    self.path,
                    f"the categories {other} and {number}, both named {name!r}",
                    "a name for each category",
                    "Rename one of them, or give their annotations one id.",
                )
            self.categories[number] = name
            self.supercategories[number] = str(value.get("supercategory", ""))
        else:
            # some tools give annotations no ids; negative ones distinguish them
            self.ids.append(
                self._id(value, "id", "an annotation") if value.get("id") is not None else -len(self.ids) - 1
            )
            self.owners.append(self._id(value, "image_id", "an annotation"))
            self.kinds.append(self._id(value, "category_id", "an annotation"))
            self.outlined.append(_outlined(value.get("segmentation")))
            self.crowds.append(bool(value.get("iscrowd")))
            self.starts.append(start)
            self.lengths.append(end - start)

    def finished(self) -> Instances:
        """The index, with the objects grouped by picture."""
        if not self.images or not self.categories:
            found = f"no {'categories' if self.images else 'images'}"
            raise BadInput(self.path, found, EXPECTED, "Use an instances file of COCO.")
        categories, images = dict(sorted(self.categories.items())), list(self.images.values())
        ids = np.array(list(self.images), np.int64)
        owner = _ranks(np.asarray(self.owners), ids, self.path, "image")
        self._check_annotation_ids(owner)
        order = np.argsort(owner, kind="stable")
        return Instances(
            path=self.path,
            categories=categories,
            ids=ids,
            file_names=tuple(name for name, _, _ in images),
            sizes_hw=np.array([size for _, *size in images], np.int64),
            first=np.searchsorted(owner[order], np.arange(len(ids) + 1)),
            starts=np.asarray(self.starts)[order],
            lengths=np.asarray(self.lengths)[order].astype(np.int32),
            classes=_ranks(np.asarray(self.kinds), np.array(list(categories)), self.path, "category")[order].astype(
                np.int32
            ),
            outlined=np.asarray(self.outlined)[order],
            crowds=np.asarray(self.crowds)[order].astype(bool),
            supercategories=self.supercategories,
        )

    def _check_annotation_ids(self, owner: np.ndarray) -> None:
        order = np.argsort(np.asarray(self.ids), kind="stable")
        same = np.flatnonzero(np.diff(np.asarray(self.ids)[order]) == 0)
        if same.size:
            names = list(self.images.values())
            first, second = (names[owner[order[same[0] + step]]][0] for step in (0, 1))
            raise self._twice("annotations", self.ids[order[same[0]]], f"of {first}", f"of {second}")

    def _twice(self, what: str, number: int, first: str, second: str) -> BadInput:
        do = "Give them new numbers: files that were merged without new numbers confuse pictures and objects."
        return BadInput(self.path, f"the id {number} twice among {what} ({first!r} and {second!r})", "each id once", do)

    def _id(self, entry: Mapping[str, object], key: str, what: str) -> int:
        value = entry.get(key)
        if isinstance(value, str) and re.fullmatch("-?[0-9]{1,18}", value):
            value = int(value)
        if type(value) is not int or abs(value) >= 2**63:
            do = "Number images, categories and annotations with whole numbers."
            raise BadInput(self.path, f"{_shown(entry, key)} as `{key}` of {what}", "a whole number", do)
        return value

    def _side(self, entry: Mapping[str, object], key: str, what: str) -> int:
        value = entry.get(key)
        whole = int(value) if type(value) is float and value.is_integer() else value
        if type(whole) is not int or not 0 < whole < 2**31:
            found = f"{_shown(entry, key)} as `{key}` of {what}"
            raise BadInput(self.path, found, "a number of pixels", "Write the size of the picture.")
        return whole

    def _name(self, entry: Mapping[str, object], key: str, what: str) -> str:
        value = entry.get(key)
        if type(value) is int and key == "name":
            value = str(value)
        if not is_text(value) or not value.strip():
            raise BadInput(
                self.path, f"{_shown(entry, key)} as `{key}` of {what}", "a text", "Use an instances file of COCO."
            )
        return value


def _shown(entry: Mapping[str, object], key: str) -> str:
    return f"{entry[key]!r:.60}" if key in entry else "nothing"


def _outlined(shape: object) -> int:
    """Whether a segmentation has an outline, see `Instances`; invalid ones are reported when they are drawn."""
    if isinstance(shape, dict):
        return 1 if shape.get("counts") else 0
    if isinstance(shape, list):
        long = [
            not isinstance(polygon, list) or len(polygon) > 5 or any(isinstance(one, list) for one in polygon)
            for polygon in shape
        ]
        return int(any(long)) + int(any(long) and not all(long))
    return 0 if shape is None else 1


def _ranks(wanted: np.ndarray, ids: np.ndarray, path: Path, what: str) -> np.ndarray:
    """The position of each wanted id among the ids."""
    order = np.argsort(ids, kind="stable")
    at = np.minimum(np.searchsorted(ids[order], wanted), len(ids) - 1)
    unknown = np.flatnonzero(ids[order][at] != wanted)
    if unknown.size:
        raise BadInput(
            path,
            f"an annotation of {what} {wanted[unknown[0]]}, which is not listed",
            EXPECTED,
            "Use a complete file.",
        )
    return order[at]


def _text(path: Path) -> str:
    """The file with one character per byte, so that positions in the text are offsets in the file."""
    with path.open("rb") as stream:
        if os.fstat(stream.fileno()).st_size == 0:
            raise BadInput(path, "an empty file", EXPECTED, _BROKEN)
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return str(content, "latin-1")


def _elements(text: str) -> Iterator[tuple[str, Any, int, int]]:
    """Key, value, start and end of each element of the lists `images`, `categories` and `annotations`."""
    decode = json.JSONDecoder().raw_decode

    def after(at: int, marks: str) -> int:
        at = _skip(text, at)
        if text[at : at + 1] not in tuple(marks):
            raise json.JSONDecodeError(f"{text[at : at + 1]!r} instead of one of {marks!r}", text, at)
        return at

    at = after(len("ï»¿") if text.startswith("ï»¿") else 0, "{")
    if text[(closed := _skip(text, at + 1)) : closed + 1] == "}":
        return
    while text[at] != "}":
        key, at = decode(text, after(at + 1, '"'))
        at = after(at, ":") + 1
        at = _skip(text, at)
        if key not in ("images", "categories", "annotations"):
            at = after(decode(text, at)[1], ",}")
            continue
        at = after(at, "[")
        if text[(closed := _skip(text, at + 1)) : closed + 1] == "]":
            at = closed
        while text[at] != "]":
            start = _skip(text, at + 1)
            value, end = decode(text, start)
            if key != "annotations" and not text[start:end].isascii():
                value = json.loads(text[start:end].encode("latin-1"))
            yield key, value, start, end
            at = after(end, ",]")
        at = after(at + 1, ",}")


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at
