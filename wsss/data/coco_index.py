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
from typing import Any, BinaryIO

import numpy as np

from wsss import cache
from wsss.arrays import Bool
from wsss.data.text import is_text
from wsss.digests import lasting_stamp
from wsss.errors import BadInput, Unreadable, reading

# Stand in for the class of objects without a class, which are drawn as background or as ignored pixels
DRAWN_AS_BACKGROUND, DRAWN_AS_IGNORED = -1, -2

EXPECTED = "COCO instance annotations with images, annotations and categories"
_BROKEN = "The file may be truncated: fetch it again."
# The mark of UTF-8 that a file may begin with, a character for each byte
_MARK = "\xef\xbb\xbf"
# White space, and what is found at the end of the window
_SPACE = (" ", "\n", "\r", "\t", "")
_decode = json.JSONDecoder().raw_decode
# Bytes from which on an index is remembered
_LARGE = 1 << 23
# The attributes of an index that are arrays, and those that are written as JSON
_ARRAYS = ("ids", "sizes_hw", "first", "starts", "lengths", "classes", "outlined", "crowds")
_PLAIN = ("file_names", "categories", "supercategories")
# Bytes that are read at once
_PIECE = 1 << 22
# Characters that begin numbers, which may go on beyond the window, and more characters than Python reads as one
_NUMBER, _LONGEST_NUMBER = tuple("-0123456789"), 5000
# More characters than there are in a word or an escape sequence
_LONGEST_WORD = 64


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
        stamp: of the file, if it is large, so that its index is remembered; see `wsss.digests.lasting_stamp`.
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
    stamp: list[int] | None = None

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
        known = None if self.stamp is None else cache.entry("annotations", os.path.abspath(self.path))
        if known is None:
            return self._digests()
        of = {"stamp": self.stamp, "classes": hashlib.sha256(self.classes.tobytes()).hexdigest()}
        content = cache.load(known / "digests.json.gz")
        if content.get("of") != of:
            content = {"of": of, "digests": self._digests()}
            cache.save(known / "digests.json.gz", content)
        return content["digests"]

    def _digests(self) -> list[str]:
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
    """Index an annotation file; the index of a large one is remembered until the file changes. Ids may be integers written as strings.

    Raises:
        BadInput: the file is missing, truncated, or holds no such annotations; or an id or the name of a category occurs twice.
    """
    with reading(path, EXPECTED, _BROKEN):
        large = path.stat().st_size >= _LARGE
    stamp = lasting_stamp(path) if large else None
    known = None if stamp is None else cache.entry("annotations", os.path.abspath(path))
    if known is None or stamp is None:
        return _indexed(path)
    if (found := _remembered(path, known, stamp)) is not None:
        return found
    found = _indexed(path)
    if lasting_stamp(path) == stamp:
        found = dataclasses.replace(found, stamp=stamp)
        names = {"stamp": stamp, **{name: getattr(found, name) for name in _PLAIN}}
        arrays = {name: getattr(found, name) for name in _ARRAYS}
        content = np.frombuffer(json.dumps(names).encode(), np.uint8)
        cache.save_arrays(known / "index.npz", {"names": content, **arrays})
    return found


def _remembered(path: Path, known: Path, stamp: list[int]) -> Instances | None:
    """The index in an entry of the cache, if it is that of the file with this stamp."""
    content: dict[str, Any] = cache.load_arrays(known / "index.npz")
    if content.keys() != {"names", *_ARRAYS}:
        return None
    names = json.loads(content.pop("names").tobytes())
    if names.pop("stamp") != stamp:
        return None
    for key in ("categories", "supercategories"):
        content[key] = {int(number): name for number, name in names[key].items()}
    return Instances(path=path, stamp=stamp, file_names=tuple(names["file_names"]), **content)


def _indexed(path: Path) -> Instances:
    index = _Index(path)
    with reading(path, EXPECTED, _BROKEN), path.open("rb") as stream:
        for key, value, start, end in _elements(stream):
            if not isinstance(value, dict):
                do = "Use an instances file of COCO."
                raise BadInput(path, f"{value!r:.60} among `{key}`", "JSON objects", do)
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


class _Window:
    """A part of a JSON file with one character per byte, so that positions are offsets in the file; it moves on as values are read.

    Args:
        stream: the file, opened for bytes.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.text, self.at = "", 0
        # what has left the window: bytes, lines, and bytes of the line in which the window begins
        self.passed = self.lines = self.columns = 0
        if not self._grow():
            raise Unreadable("an empty file")
        while len(self.text) < len(_MARK) and self._grow():
            pass
        self.at = len(_MARK) if self.text.startswith(_MARK) else 0

    def next(self, marks: str) -> str:
        """The next character after white space, which stays; one of `marks`."""
        self.skip()
        found = self.text[self.at : self.at + 1]
        if found not in tuple(marks):
            raise self._broken(f"{found!r} instead of one of {marks!r}", self.at)
        return found

    def skip(self) -> None:
        """Move to the next character that is no white space."""
        while self.text[self.at : self.at + 1] in _SPACE:
            if self.at == len(self.text):
                if not self._grow():
                    return
            else:
                self.at += 1

    def value(self) -> tuple[Any, int, int]:
        """The value that comes next, of which the window has to hold all, and where it begins and ends in the file."""
        self.skip()
        while self.text[self.at : self.at + 1] in _NUMBER and len(self.text) - self.at < _LONGEST_NUMBER:
            if not self._grow():
                break
        while True:
            try:
                value, end = _decode(self.text, self.at)
            except json.JSONDecodeError as error:
                # perhaps only the end is missing
                near_end = error.pos > len(self.text) - _LONGEST_WORD or error.msg.startswith("Unterminated")
                if not near_end or not self._grow():
                    raise self._broken(error.msg, error.pos) from error
            else:
                start, self.at = self.at, end
                return value, self.passed + start, self.passed + end

    def _grow(self) -> bool:
        """Read more of the file, and leave behind what was read; False at its end."""
        more = self.stream.read(max(_PIECE, len(self.text) - self.at))
        if not more:
            return False
        gone = self.text[: self.at]
        self.passed += len(gone)
        self.lines += gone.count("\n")
        self.columns = len(gone) - gone.rfind("\n") - 1 if "\n" in gone else self.columns + len(gone)
        self.text, self.at = self.text[self.at :] + more.decode("latin-1"), 0
        return True

    def _broken(self, message: str, at: int) -> json.JSONDecodeError:
        """The error at a position in the window, with the place in the file."""
        error = json.JSONDecodeError(message, self.text, at)
        error.colno += self.columns if error.lineno == 1 else 0
        error.lineno += self.lines
        return error


def _elements(stream: BinaryIO) -> Iterator[tuple[str, Any, int, int]]:
    """Key, value, start and end of each element of the lists `images`, `categories` and `annotations`."""
    window = _Window(stream)
    mark = window.next("{")
    window.at += 1
    window.skip()
    if window.text[window.at : window.at + 1] == "}":
        return
    while mark != "}":
        window.next('"')
        key, _, _ = window.value()
        window.next(":")
        window.at += 1
        if key in ("images", "categories", "annotations"):
            yield from _items(window, key)
        else:
            window.value()
        mark = window.next(",}")
        window.at += 1


def _items(window: _Window, key: str) -> Iterator[tuple[str, Any, int, int]]:
    mark = window.next("[")
    window.at += 1
    window.skip()
    if window.text[window.at : window.at + 1] == "]":
        mark = "]"
        window.at += 1
    while mark != "]":
        value, start, end = window.value()
        if key != "annotations":
            # in annotations, only numbers are looked at
            written = window.text[window.at - (end - start) : window.at]
            value = value if written.isascii() else json.loads(written.encode("latin-1"))
        yield key, value, start, end
        mark = window.next(",]")
        window.at += 1
