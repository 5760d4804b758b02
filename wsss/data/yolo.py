"""YOLO's layout, as written by Ultralytics, Roboflow, Label Studio and others: a text file of objects for each picture.

    data.yaml            names: [cat, dog]; train: images/train; val: images/val
    images/train/1.jpg   labels/train/1.txt       a class and a box (x, y, width, height), or a class and the corners of a polygon; all from 0 to 1
    classes.txt          one name per line, instead of data.yaml (Label Studio)
    images/train/1.jpg   masks/train/1.png        Ultralytics' semantic masks: values are class numbers from 0, 255 is ignored

All objects give tags. Polygons give true masks, drawn as by Ultralytics (8.4.190): corners truncated to whole pixels, borders included, large
objects first.
"""

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsss.arrays import Float, UInt8
from wsss.data.documents import read_document
from wsss.data.entries import Entry, LayoutContents, LayoutOptions, labels_in_masks, picture_name, split_of
from wsss.data.images import MaskFile
from wsss.data.labels import IGNORE, MaskTable
from wsss.data.lists import files_below, is_picture
from wsss.data.names import check_name
from wsss.data.pictures import picture_size_hw
from wsss.data.roles import Roles, only_classes
from wsss.data.text import read_lines
from wsss.digests import content_digest
from wsss.errors import BadInput, is_regular, reading

_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_LISTS = ("classes.txt", "obj.names")
_PICTURES, _LABELS, _MASKS = "images", "labels", "masks"
_EXPECTED = "a YAML file with `names` and the folders `train` and `val`"
_LINE = "a class number and a box (4 numbers) or a polygon (6 or more), from 0 to 1"
# Tools write five digits: 11 of 24 pixels is read as 10.99992
_ROUNDING = 0.05
# Ultralytics tolerates this much beyond the border, for rounding
_SLACK = 0.01


@dataclasses.dataclass(frozen=True)
class PolygonMask:
    """A true mask drawn from the polygons in a file.

    Attributes:
        path: the file of objects.
        picture: the picture, whose size the mask has.
        upright: whether the picture is rotated by its EXIF orientation.
        labels: the label of each class number.
    """

    path: Path
    picture: Path
    upright: bool
    labels: tuple[int, ...]

    @property
    def where(self) -> str:
        return str(self.path)

    def read(self) -> UInt8[np.ndarray, "h w"]:
        size_hw = picture_size_hw(self.picture, upright=self.upright)
        return draw_objects(read_objects(self.path, len(self.labels)), self.labels, size_hw)

    def stamp(self) -> str:
        return f"{content_digest(self.path) if is_regular(self.path) else 'missing'}:{self.labels}:{self.upright}"


def draw_objects(
    objects: Sequence[tuple[int, Float[np.ndarray, "_ 2"]]], labels: Sequence[int], size_hw: tuple[int, int]
) -> UInt8[np.ndarray, "h w"]:
    """Draw polygons as Ultralytics does: corners truncated to whole pixels, borders included, large objects first.

    Args:
        objects: class numbers and points, from 0 to 1, as `read_objects` gives them.
        labels: the label of each class number.
        size_hw: height and width of the picture.
    """
    import cv2

    height, width = size_hw
    shapes = []
    for class_, points in objects:
        shape = np.zeros(size_hw, np.uint8)
        cv2.fillPoly(shape, [np.floor(points * (width, height) + _ROUNDING).astype(np.int32)], 1)
        shapes.append((int(shape.sum()), shape.astype(bool), labels[class_]))
    mask = np.zeros(size_hw, np.uint8)
    for _, inside, label in sorted(shapes, key=lambda shape: -shape[0]):
        mask[inside] = label
    return mask


def read_objects(path: Path, n_classes: int) -> list[tuple[int, Float[np.ndarray, "k 2"]]]:
    """Class numbers and points of the objects of a file: k = 2 (centre, then width and height) for a box, more for a polygon.

    Raises:
        BadInput: a line has another form, or an unknown class number.
    """
    objects = []
    for number, line in read_lines(path, _LINE) if is_regular(path) else ():
        where, words = f"{path}, line {number}", line.split()
        with reading(where, _LINE, "Export the data set again."):
            values = np.array([float(word) for word in words[1:]])
        if not words[0].isdecimal() or len(words[0]) > 6 or values.size < 4 or not np.isfinite(values).all():
            raise BadInput(where, f"{line!r:.60}", _LINE, "Export the data set again.")
        if int(words[0]) >= n_classes:
            raise BadInput(
                where,
                f"the class number {words[0]}",
                f"0 to {n_classes - 1}",
                "Complete `names` in the data's YAML file.",
            )
        if values.min() < -_SLACK or values.max() > 1 + _SLACK:
            raise BadInput(
                where,
                f"{line!r:.60}, with a number beyond 0 to 1",
                _LINE,
                "Divide pixels by the picture's width and height.",
            )
        objects.append((int(words[0]), values[: values.size // 2 * 2].reshape(-1, 2)))
    return objects


def has_label_files(root: Path) -> bool:
    """Whether there are text files in a folder `labels`."""
    return any(file.suffix == ".txt" for path in label_folders(root) for file in files_below(path))


def find_yolo(root: Path) -> Path | None:
    """The YAML file of a data set, or the list of names next to folders `images` and `labels` with text files.

    Raises:
        BadInput: there are such folders, but no names.
    """
    for name in _NAMES:
        if is_regular(root / name):
            return root / name
    if not has_label_files(root):
        return None
    found = next((root / name for name in _LISTS if is_regular(root / name)), None)
    if found is None:
        raise BadInput(
            root / _NAMES[0],
            f"no such file next to a folder {_LABELS} with class numbers",
            f"{_EXPECTED}, or classes.txt",
            "Copy it from the data set's source, or write the names into classes.txt, one per line.",
        )
    return found


def label_folders(root: Path) -> list[Path]:
    """The folders of text files below a data set."""
    return [path for pattern in (_LABELS, f"*/{_LABELS}") for path in sorted(root.glob(pattern)) if path.is_dir()]


def read_yolo(root: Path, source: Path, options: LayoutOptions) -> LayoutContents:
    """Pictures with their objects.

    Raises:
        BadInput: the YAML file or a file of objects is broken, or names folders that are not in the data set.
    """
    content, numbered = read_class_names(source)
    class_names = options.class_names or only_classes(numbered, options.negatives)
    roles = Roles(class_names, options.negatives)
    labels = [roles.label(name) for name in numbered]
    if None in labels:
        name = numbered[labels.index(None)]
        raise BadInput(
            source, f"the class {name!r}", f"one of {', '.join(class_names[:8])}", "Complete the list of classes."
        )
    known = tuple(label or 0 for label in labels)
    pictures = _pictures(root, source, content)
    if not pictures:
        raise BadInput(
            source,
            "no pictures in the folders that it names",
            "pictures in images/train, or in train/images",
            "Check the paths.",
        )
    if content.get("masks_dir") or (content and not has_label_files(root) and (root / _MASKS).is_dir()):
        return _semantic(root, pictures, content, known, class_names, source)
    upright = True if options.upright is None else options.upright
    return _found(root, pictures, numbered, known, class_names, "kpt_shape" in content, upright)


def read_class_names(source: Path) -> tuple[Mapping[str, object], tuple[str, ...]]:
    """The content of a data set's YAML file, empty for a list of names, and the names of the classes in the order of their numbers.

    Raises:
        BadInput: the file is broken, or its names are not numbered from 0 without gaps.
    """
    if source.suffix not in (".yaml", ".yml"):
        return {}, tuple(line for _, line in read_lines(source, "one class per line"))
    content = read_document(source, _EXPECTED)
    if not isinstance(content, dict):
        raise BadInput(source, "other content", _EXPECTED, "Copy it from the data set's source.")
    numbered = _numbered(content.get("names"), source)
    if content.get("nc", len(numbered)) != len(numbered):
        raise BadInput(
            source,
            f"nc: {content['nc']!r:.20} with {len(numbered)} names",
            "a name for each class",
            "Correct one of them.",
        )
    return content, numbered


def _found(
    root: Path,
    pictures: Sequence[tuple[str, Path]],
    numbered: tuple[str, ...],
    labels: tuple[int, ...],
    class_names: tuple[str, ...],
    has_keypoints: bool,
    upright: bool,
) -> LayoutContents:
    objects = {path: read_objects(_text_of(path), len(labels)) for _, path in pictures}
    sizes = Counter(len(points) for found in objects.values() for _, points in found)
    has_polygons = not has_keypoints and any(size > 2 for size in sizes)
    entries, boxed, missing = [], 0, 0
    for split, path in pictures:
        text, found = _text_of(path), objects[path]
        missing += not is_regular(text)
        has_box = any(len(points) == 2 for _, points in found)
        boxed += has_box and has_polygons
        tags = [class_names[labels[class_] - 1] for class_, _ in found if 0 < labels[class_] < IGNORE]
        drawn = PolygonMask(text, path, upright, labels) if has_polygons and not has_box else None
        entries.append(Entry(split, picture_name(path, root), path, tuple(dict.fromkeys(tags)), str(text), drawn))
    notes = []
    if missing == len(pictures):
        raise BadInput(
            _text_of(pictures[0][1]),
            "no such file, nor one for any other picture",
            "files of objects in `labels`",
            "Add the labels.",
        )
    if missing:
        notes.append(f"{missing} pictures have no file in {_LABELS}: as in Ultralytics, they contain no objects")
    used = {os.path.realpath(_text_of(path)) for _, path in pictures}
    texts = [file for folder in label_folders(root) for file in files_below(folder) if file.suffix == ".txt"]
    unmatched = [file for file in texts if os.path.realpath(file) not in used and file.name not in _LISTS]
    if unmatched:
        notes.append(
            f"{len(unmatched)} files in {_LABELS} belong to no picture in use ({os.path.relpath(unmatched[0], root)} first)"
        )
    if has_polygons:
        notes.append(
            "true masks are drawn from polygons" + (f"; {boxed} pictures with boxes have none" if boxed else "")
        )
        if set(sizes) == {4}:
            notes.append(
                "all polygons have four corners: if they are rotated boxes, the masks are boxes too, and scores mean little"
            )
    else:
        what = "keypoints" if has_keypoints else "boxes"
        notes.append(f"objects are {what}: they give tags, but no true masks")
    return LayoutContents("yolo", entries, class_names, notes)


def _semantic(
    root: Path,
    pictures: Sequence[tuple[str, Path]],
    content: Mapping[str, object],
    labels: tuple[int, ...],
    class_names: tuple[str, ...],
    source: Path,
) -> LayoutContents:
    """Pictures with masks of class numbers; `label_mapping` maps the values of the files to class numbers."""
    folder, mapping = content.get("masks_dir") or _MASKS, content.get("label_mapping") or {}
    if not isinstance(folder, str) or not isinstance(mapping, dict):
        raise BadInput(
            source,
            "masks_dir or label_mapping of another type",
            "a folder, and a mapping of numbers to numbers",
            "Correct the file.",
        )
    check_name(folder, source)
    # the value of a single class is 1
    meaning = {0: 0, 1: labels[0]} if len(labels) == 1 else dict(enumerate(labels))
    table = dict(meaning) | {IGNORE: IGNORE}
    for value, number in mapping.items():
        ignored = number in ("ignore_label", IGNORE)
        if not re.fullmatch(r"-?\d{1,9}", value) or not (ignored or (type(number) is int and number in meaning)):
            raise BadInput(
                source, f"{value!r:.20} in label_mapping", "values and numbers of classes", "Correct the file."
            )
        table[int(value)] = IGNORE if ignored else meaning[number]
    table = {value: label for value, label in table.items() if 0 <= value <= 255}
    files = [(split, path, matching_path(path, folder, ".png")) for split, path in pictures]
    masked = [
        (split, path, MaskFile(mask, MaskTable.of(table, source.name)))
        for split, path, mask in files
        if is_regular(mask)
    ]
    if not masked:
        raise BadInput(files[0][2], "no such file, nor any other mask", f"masks in {folder}", "Add the masks.")
    present = labels_in_masks([mask for _, _, mask in masked])
    notes = ["tags are the classes in the masks"]
    if len(masked) < len(files):
        notes.append(f"{len(files) - len(masked)} pictures left out, since they have no mask")
    entries = [
        Entry(split, picture_name(path, root), path, tuple(class_names[label - 1] for label in of), mask.where, mask)
        for (split, path, mask), of in zip(masked, present, strict=True)
    ]
    return LayoutContents("yolo", entries, class_names, notes)


def _numbered(names: object, source: Path) -> tuple[str, ...]:
    """The names in the order of their numbers."""
    if isinstance(names, dict) and set(names) == {str(number) for number in range(len(names))}:
        names = [names[str(number)] for number in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str | int) for name in names):
        raise BadInput(
            source,
            f"{type(names).__name__} as names",
            "a list of names, or names by the numbers 0, 1, ...",
            "Correct `names`.",
        )
    texts = tuple(str(name).strip() for name in names)
    if "" in texts or len(set(texts)) < len(texts):
        raise BadInput(source, "an empty name, or one twice", "one name per class", "Correct `names`.")
    return texts


def _pictures(root: Path, source: Path, content: Mapping[str, object]) -> list[tuple[str, Path]]:
    """Split and file of each picture in the folders that the YAML file names, or else in the usual folders."""
    found: list[tuple[str, Path]] = []
    for key in ("train", "val", "valid", "test"):
        for text in _listed(content.get(key), source):
            place = _place(root, text, content.get("path"))
            if place is None and key == "test":
                continue
            if place is None:
                raise BadInput(
                    source,
                    f"the path {text!r}, which is not below {root}",
                    "folders of the data set",
                    "Correct the path, relative to the folder of this file.",
                )
            found += [
                (split_of(key) or key, path) for path in (_in_list(root, place) if is_regular(place) else _below(place))
            ]
    if not content.get("train"):
        folders = [
            path for pattern in (_PICTURES, f"*/{_PICTURES}") for path in sorted(root.glob(pattern)) if path.is_dir()
        ]
        for folder in folders:
            for path in _below(folder):
                word = os.path.relpath(path, root).replace(os.sep, "/").split("/")
                found.append((next((split for part in word[:-1] if (split := split_of(part))), "train"), path))
    return list(dict.fromkeys(found))


def _listed(value: Any, source: Path) -> list[str]:
    values = [] if value in (None, "") else value if isinstance(value, list) else [value]
    if not all(isinstance(one, str) for one in values):
        raise BadInput(source, f"{type(value).__name__} as a folder", "a path, or a list of paths", "Correct the file.")
    return values


def _place(root: Path, text: str, base: object) -> Path | None:
    """The file or folder of a path in the YAML file; if the data set was moved, the path's last parts are looked up below the root."""
    parts = [part for part in text.replace("\\", "/").split("/") if part not in ("", ".")]
    # Roboflow writes ../train/images for train/images, others ../NAME/images from a neighbouring folder; absolute paths are those of another
    # machine
    while parts and parts[0] == "..":
        parts = parts[1:]
    bases = [
        root,
        *([root / base] if isinstance(base, str) and not base.startswith("/") and ".." not in base.split("/") else []),
    ]
    for folder in bases:
        for start in range(len(parts)):
            place = folder.joinpath(*parts[start:])
            if (
                ".." not in parts
                and os.path.exists(place)
                and (start == 0 or text.startswith(("/", "..")) or ":" in text)
            ):
                return place
    return None


def _below(folder: Path) -> list[Path]:
    return [path for path in files_below(folder) if is_picture(path)]


def _in_list(root: Path, source: Path) -> list[Path]:
    """The pictures of a list file, with paths relative to the root or to the list."""
    found = []
    for number, line in read_lines(source, "one path of a picture per line"):
        parts = [part for part in line.replace("\\", "/").split("/") if part not in ("", ".")]
        candidates = (parent.joinpath(*parts) for parent in (root, source.parent))
        path = next((file for file in candidates if ".." not in parts and is_regular(file)), None)
        if path is None:
            raise BadInput(f"{source}, line {number}", f"{line:.80}", f"a picture below {root}", "Correct the list.")
        found.append(path)
    return found


def _text_of(picture: Path) -> Path:
    """The file of a picture's objects."""
    return matching_path(picture, _LABELS, ".txt")


def matching_path(picture: Path, folder: str, suffix: str) -> Path:
    """A picture's path with the last `images` in it replaced by another folder; without one, a file next to the picture."""
    parts = list(picture.parts)
    for at in range(len(parts) - 2, -1, -1):
        if parts[at] == _PICTURES:
            parts[at] = folder
            return Path(*parts).with_suffix(suffix)
    return picture.with_suffix(suffix)
