"""COCO (Lin et al., ECCV 2014): tags and masks from the instance annotations, by the rules that published methods used.

An annotation file is read once, object by object; kept are its place in the file, its class and its picture, 14 bytes
an object. A mask is drawn when it is asked for, from the objects of its picture alone.
"""

import array
import dataclasses
import hashlib
import itertools
import json
import mmap
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, UInt8

from wsss.data.coco_files import PictureFiles, annotation_files, split_folders
from wsss.data.entries import sole_split
from wsss.data.images import IGNORE, Dataset, Images, MaskFile, TrueMask
from wsss.data.legacy import read_legacy_labels
from wsss.data.lists import chosen_split, found_alone, pictures_below, read_classes, read_names, without_suffix
from wsss.data.roles import IGNORED, is_nothing
from wsss.data.tables import labels_by_name, labels_of, spellings
from wsss.errors import BadInput, is_regular
from wsss.stream import Progress, in_threads

# Category ids 1..90 leave out 12, 26, 29, 30, 45, 66, 68, 69, 71, 83
COCO_CATEGORIES = {
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train", 8: "truck", 9: "boat",
    10: "traffic light", 11: "fire hydrant", 13: "stop sign", 14: "parking meter", 15: "bench", 16: "bird", 17: "cat",
    18: "dog", 19: "horse", 20: "sheep", 21: "cow", 22: "elephant", 23: "bear", 24: "zebra", 25: "giraffe", 27: "backpack",
    28: "umbrella", 31: "handbag", 32: "tie", 33: "suitcase", 34: "frisbee", 35: "skis", 36: "snowboard", 37: "sports ball",
    38: "kite", 39: "baseball bat", 40: "baseball glove", 41: "skateboard", 42: "surfboard", 43: "tennis racket",
    44: "bottle", 46: "wine glass", 47: "cup", 48: "fork", 49: "knife", 50: "spoon", 51: "bowl", 52: "banana", 53: "apple",
    54: "sandwich", 55: "orange", 56: "broccoli", 57: "carrot", 58: "hot dog", 59: "pizza", 60: "donut", 61: "cake",
    62: "chair", 63: "couch", 64: "potted plant", 65: "bed", 67: "dining table", 70: "toilet", 72: "tv", 73: "laptop",
    74: "mouse", 75: "remote", 76: "keyboard", 77: "cell phone", 78: "microwave", 79: "oven", 80: "toaster", 81: "sink",
    82: "refrigerator", 84: "book", 85: "clock", 86: "vase", 87: "scissors", 88: "teddy bear", 89: "hair drier",
    90: "toothbrush",
}  # fmt: skip

MaskRule = Literal["clims", "icam"]
TagRule = Literal["clims", "icam", "clip-es"]

_EXPECTED = "COCO instance annotations with images, annotations and categories"
_BROKEN = "The file may be cut off: fetch it again."
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
        first: where the objects of each picture begin in the three next arrays, which hold them in file order.
        starts: where an object stands in the file, in bytes.
        lengths: how many bytes it has.
        classes: its 0-based class; -1 for what is drawn as background, 254 for what is ignored.
        supercategories: by category id, where the file names any.
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
    supercategories: dict[int, str] = dataclasses.field(default_factory=dict)

    def objects(self, position: int) -> list[tuple[int, dict[str, Any]]]:
        """The 0-based class and the annotation of each object of the picture at a position, in file order."""
        among = slice(self.first[position], self.first[position + 1])
        found = []
        try:
            with self.path.open("rb") as stream:
                for start, length, class_ in zip(
                    self.starts[among], self.lengths[among], self.classes[among], strict=True
                ):
                    stream.seek(start)
                    found.append((int(class_), json.loads(stream.read(length))))
        except (OSError, ValueError) as error:
            raise BadInput(
                self.path, f"a file that changed while it was used ({error})", _EXPECTED, "Start again."
            ) from error
        return found

    @cached_property
    def digests(self) -> list[str]:
        """A fingerprint of the annotations of each picture, as they stand in the file, and of their classes."""
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
        classes = self.classes[self.first[position] : self.first[position + 1]]
        labels[classes[(classes >= 0) & (classes < len(labels))]] = True
        return labels

    def without(self, category: int, label: int) -> "Instances":
        """The annotations with a category that is no class: its objects are drawn with this label (0 or 255), and give no tag."""
        if category not in self.categories:
            return self
        rank = list(self.categories).index(category)
        classes = np.where(
            self.classes == rank, label - 1, self.classes - ((self.classes > rank) & (self.classes < 254))
        )
        kept = {number: name for number, name in self.categories.items() if number != category}
        return dataclasses.replace(self, categories=kept, classes=classes.astype(np.int16))


def read_instances(path: Path) -> Instances:
    """Index an annotation file.

    Raises:
        BadInput: the file is missing, cut off, or no such annotations.
    """
    images: list[dict[str, Any]] = []
    categories: dict[int, str] = {}
    supercategories: dict[int, str] = {}
    starts, lengths, owners, kinds = (array.array("q") for _ in range(4))
    try:
        for key, value, start, end in _elements(_text(path)):
            if key == "images":
                images.append({name: value[name] for name in ("id", "file_name", "height", "width")})
            elif key == "categories":
                categories[value["id"]] = str(value["name"])
                supercategories[value["id"]] = str(value.get("supercategory", ""))
            else:
                owners.append(value["image_id"])
                kinds.append(value["category_id"])
                starts.append(start)
                lengths.append(end - start)
        sizes = np.array([(image["height"], image["width"]) for image in images], np.int64).reshape(-1, 2)
        ids = np.array([image["id"] for image in images], np.int64)
    except (ValueError, StopIteration, RecursionError) as error:
        raise BadInput(path, f"broken JSON ({error or 'it ends too early'})", _EXPECTED, _BROKEN) from error
    except (KeyError, TypeError, OverflowError) as error:
        raise BadInput(
            path, f"an entry without what it needs ({error!r})", _EXPECTED, "Use an instances file of COCO."
        ) from error
    if not images or not categories:
        raise BadInput(path, f"no {'categories' if images else 'images'}", _EXPECTED, "Use an instances file of COCO.")
    categories = dict(sorted(categories.items()))
    owner = _ranks(np.asarray(owners), ids, path, "image")
    order = np.argsort(owner, kind="stable")
    return Instances(
        path=path,
        categories=categories,
        ids=ids,
        file_names=tuple(str(image["file_name"]) for image in images),
        sizes_hw=sizes,
        first=np.searchsorted(owner[order], np.arange(len(ids) + 1)),
        starts=np.asarray(starts)[order],
        lengths=np.asarray(lengths)[order].astype(np.int32),
        classes=_ranks(np.asarray(kinds), np.array(list(categories)), path, "category")[order].astype(np.int16),
        supercategories=supercategories,
    )


def _ranks(wanted: np.ndarray, ids: np.ndarray, path: Path, what: str) -> np.ndarray:
    """The position of each wanted id among the ids."""
    order = np.argsort(ids, kind="stable")
    at = np.minimum(np.searchsorted(ids[order], wanted), len(ids) - 1)
    unknown = np.flatnonzero(ids[order][at] != wanted)
    if unknown.size:
        raise BadInput(
            path,
            f"an annotation of {what} {wanted[unknown[0]]}, which is not listed",
            _EXPECTED,
            "Use a complete file.",
        )
    return order[at]


def _text(path: Path) -> str:
    """The file with a character a byte, so that places in the text are places in the file."""
    try:
        with path.open("rb") as stream:
            if os.fstat(stream.fileno()).st_size == 0:
                raise BadInput(path, "an empty file", _EXPECTED, _BROKEN)
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return str(content, "latin-1")
    except OSError as error:
        raise BadInput(path, f"no readable file ({error.strerror})", _EXPECTED, "Check the path.") from error


def _elements(text: str) -> Iterator[tuple[str, Any, int, int]]:
    """Key, value, start and end of each element of the lists `images`, `categories` and `annotations`."""
    decode = json.JSONDecoder().raw_decode

    def after(at: int, marks: str) -> int:
        at = _skip(text, at)
        if text[at : at + 1] not in tuple(marks):
            raise ValueError(f"{text[at : at + 1]!r} where one of {marks!r} belongs, at byte {at}")
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


def draw_mask(
    objects: Sequence[tuple[int, Mapping[str, Any]]], size_hw: tuple[int, int], rule: MaskRule, where: str
) -> UInt8[np.ndarray, "h w"]:
    """Draw the objects of a picture, later ones over earlier ones; nothing is ignored.

    Args:
        objects: 0-based class and annotation of each, in file order.
        size_hw: height and width.
        rule: `clims` (CLIMS, QA-CLIMS) leaves crowds out and rasterises with the COCO API; `icam` draws crowds too, and fills
            each polygon by OpenCV with its corners truncated to integers, border included.
        where: what to name in an error.

    Raises:
        BadInput: a polygon or run-length code is broken.
    """
    mask = np.zeros(size_hw, np.uint8)
    for class_, entry in objects:
        try:
            if rule == "icam":
                _fill(mask, entry["segmentation"], class_ + 1)
            elif not entry.get("iscrowd", 0):
                mask[_inside(entry["segmentation"], size_hw)] = class_ + 1
        except Exception as error:  # the COCO API and OpenCV raise errors of all kinds
            raise BadInput(
                where,
                f"annotation {entry.get('id')} that cannot be drawn ({error!r:.120})",
                f"polygons or a run-length code for {size_hw[0]}x{size_hw[1]} pixels",
                "Fetch the annotations again, or leave the picture out with --skip-bad.",
            ) from error
    return mask


def _fill(mask: UInt8[np.ndarray, "h w"], shape: Any, label: int) -> None:
    import cv2

    if isinstance(shape, dict):
        mask[_runs_inside(shape, mask.shape)] = label
    else:
        for polygon in shape:
            cv2.fillPoly(mask, [_corners(polygon).reshape(-1, 2).astype(np.int32)], label)


def _inside(shape: Any, size_hw: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    from pycocotools import mask as coco_mask

    if isinstance(shape, dict):
        return _runs_inside(shape, size_hw)
    polygons = [_corners(polygon).tolist() for polygon in shape]
    if any(len(polygon) < 6 for polygon in polygons):
        raise ValueError("a polygon of less than three corners")
    codes = coco_mask.frPyObjects(polygons, *size_hw) if polygons else []
    return np.any([coco_mask.decode(code) for code in codes], axis=0) if codes else np.zeros(size_hw, bool)


def _corners(polygon: Any) -> Float[np.ndarray, " n"]:
    """The numbers of a polygon, checked: the COCO API takes memory by what they span and trusts them."""
    numbers = np.array(polygon, np.float64)
    if numbers.ndim != 1 or numbers.size % 2 or not numbers.size or not (np.abs(numbers) < 1e5).all():
        raise ValueError(f"a polygon of shape {numbers.shape}, or with corners far away")
    return numbers


def _runs_inside(code: Mapping[str, Any], size_hw: tuple[int, ...]) -> Bool[np.ndarray, "h w"]:
    """A run-length code, column by column, starting with what is outside; the COCO API would trust a broken one."""
    counts = code["counts"]
    runs = np.array(counts if isinstance(counts, list) else _unpacked(counts), np.int64)
    if (
        runs.ndim != 1
        or (runs < 0).any()
        or runs.sum() != size_hw[0] * size_hw[1]
        or list(code["size"]) != list(size_hw)
    ):
        raise ValueError(f"a run-length code of {runs.sum()} pixels and size {code['size']}")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size_hw[::-1]).T


def _unpacked(text: str) -> list[int]:
    """COCO's text form: six bits a letter from `0` on, five of them a digit, lowest first; from the fourth run on differences to two before."""
    runs: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if shift > 60:
            raise ValueError("a run-length code with a number of more than 60 bits")
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("a run-length code that ends within a number")
    return runs


@dataclasses.dataclass(frozen=True, slots=True)
class InstanceMask:
    """A true mask drawn from the annotations of one picture."""

    instances: Instances
    position: int
    rule: MaskRule

    @property
    def where(self) -> str:
        return f"{self.instances.path}, image {self.instances.ids[self.position]}"

    def read(self) -> UInt8[np.ndarray, "h w"]:
        height, width = self.instances.sizes_hw[self.position].tolist()
        return draw_mask(self.instances.objects(self.position), (height, width), self.rule, self.where)

    def stamp(self) -> str:
        """Changes when the rule, the picture's size, its annotations or their classes do."""
        height, width = self.instances.sizes_hw[self.position].tolist()
        return f"{self.rule}:{height}x{width}:{self.instances.digests[self.position]}"


def find_coco(path: Path) -> Path | None:
    """The root of COCO's layout at a path: it has annotations (see `wsss.data.coco_files`), or folders of pictures like `train2014`."""
    if annotation_files(path) or split_folders(path):
        return path
    return None


@dataclasses.dataclass
class _Layout:
    """A folder in one of COCO's layouts as it is read."""

    root: Path
    files: dict[str, Path]
    folders: dict[str, Path]
    tags: Path | None
    tag_rule: TagRule
    mask_rule: MaskRule
    upright: bool
    skip_missing: bool
    progress: Progress | None
    notes: list[str]
    negatives: frozenset[str]
    pictures: PictureFiles
    class_names: tuple[str, ...] = ()
    _read: dict[str, Instances] = dataclasses.field(default_factory=dict)

    def instances(self, split: str) -> Instances:
        """The annotations of a split, read once."""
        if split not in self._read:
            self._read[split] = read_instances(self.files[split])
        return self._read[split]

    def replace(self, split: str, instances: Instances) -> None:
        """Take these annotations of a split from now on."""
        self._read[split] = instances


def open_coco(
    root: Path,
    *,
    train: str | None = None,
    val: str | None = None,
    classes: Path | Sequence[str] | None = None,
    tags: Path | None = None,
    tag_rule: TagRule = "clims",
    mask_rule: MaskRule | None = None,
    upright: bool = False,
    skip_missing: bool = False,
    progress: Progress | None = None,
    negatives: frozenset[str] = frozenset(),
    allow_outside: bool = False,
) -> Dataset:
    """Open COCO 2014 or 2017, or other data with annotations in COCO's form.

    Annotations and pictures lie in one of the layouts of `wsss.data.coco_files`. Only the annotations of the two splits in use are read. Without annotations, tags come from `tags` and true masks from
    `SegmentationClass` or `mask`, as CLIP-ES keeps them.

    Args:
        root: the folder with `annotations`.
        train: split to train on, or a list file; train2014 where there is one, else train2017, else `train`.
        val: split to score segmenters on, or a list file; the one of the same year.
        classes: other names of the classes, in the order of the category ids.
        tags: a table of tags, `train_labels.npy` of CLIMS, or a list of CLIP-ES; pictures without an entry are left out.
        tag_rule: `clims` takes the categories of all objects, crowds included, and orders pictures by id; `clip-es` leaves out pictures without
            any; `icam` takes what can be seen in its masks, with pictures in the order of the file.
        mask_rule: see `draw_mask`; by default `icam` with the tags of `icam`, else `clims`. ICAM draws the 2014 splits too from the
            annotations of 2017 where they are there.
        upright: follow EXIF orientation. The published loaders do not.
        skip_missing: leave out pictures that are missing.
        progress: called while masks are drawn for the tags of `icam`, with the number of masks drawn and of all.
        negatives: names of categories that mean that nothing is there, beside `background` and `_background_`.
        allow_outside: pictures may have absolute names, or names that lead upwards.

    Raises:
        BadInput: annotations, pictures or lists do not fit together.
    """
    files, folders = annotation_files(root), split_folders(root)
    layout = _Layout(
        root,
        files,
        folders,
        tags,
        tag_rule,
        mask_rule or ("icam" if tag_rule == "icam" else "clims"),
        upright,
        skip_missing,
        progress,
        notes=[],
        negatives=negatives,
        pictures=PictureFiles(root, files, folders, allow_outside),
    )
    there = list(layout.files or layout.folders)
    lists = [asked for asked in (train, val) if asked is not None and asked not in there and is_regular(asked)]
    chosen = chosen_split(train, [*there, *lists], ("train2014", "train2017", "train", *sole_split(there)), root)
    if chosen is None:
        raise BadInput(
            root / "annotations" / "instances_train2014.json",
            f"no such file (splits found: {', '.join(there)})",
            "the annotations of a training split",
            "Fetch them, or choose a split with --train.",
        )
    scored = chosen_split(val, [*there, *lists], (chosen.replace("train", "val"),) if "train" in chosen else (), root)
    layout.class_names = _class_names(layout, classes, [split for split in (chosen, scored) if split in layout.files])
    used = dict.fromkeys(split for split in (chosen, scored) if split)
    splits = {
        split: _listed_images(layout, split) if split in lists else _split_images(layout, split) for split in used
    }
    if left := [split for split in there if split not in used]:
        layout.notes.append(f"there are more splits, which --train and --val can choose: {', '.join(left)}")
    if not splits[chosen].labels.any():
        raise BadInput(
            tags or root, f"no tags for {chosen}", "tags of its pictures", "Give a table or a list with --tags."
        )
    seed = chosen if splits[chosen].has_masks else None
    return Dataset("coco", root, splits, chosen, seed_split=seed, val=scored, notes=tuple(layout.notes))


def _class_names(layout: _Layout, classes: Path | Sequence[str] | None, splits: Sequence[str]) -> tuple[str, ...]:
    _leave_out_no_classes(layout, splits)
    categories = [(layout.files[split], layout.instances(split).categories) for split in splits] or [
        (layout.root, COCO_CATEGORIES)
    ]
    where, first = categories[0]
    for other, names in categories[1:]:
        if names != first:
            raise BadInput(
                other, f"{len(names)} other categories", f"those of {where}", "Use annotations that belong together."
            )
    if classes is None:
        return tuple(first.values())
    given = read_classes(classes)
    if len(given) != len(first):
        raise BadInput(
            where, f"{len(first)} categories", f"{len(given)}, one for each class given", "Correct the class list."
        )
    return given


def _leave_out_no_classes(layout: _Layout, splits: Sequence[str]) -> None:
    """Take categories that are no classes out of the annotations read: the background, what is ignored, Roboflow's supercategory."""
    read = [layout.instances(split) for split in splits]
    for number, name in {number: name for instances in read for number, name in instances.categories.items()}.items():
        label = 0 if is_nothing(name, layout.negatives) else IGNORE if name == IGNORED else None
        above = {
            instances.supercategories.get(other)
            for instances in read
            for other in instances.categories
            if other != number
        }
        used = any(
            (instances.classes == list(instances.categories).index(number)).any()
            for instances in read
            if number in instances.categories
        )
        if label is None and number == 0 and not used and name in above:
            layout.notes.append(f"the category {name!r} (id 0), which others are below and no object has, is no class")
            label = 0
        if label is not None:
            for split in splits:
                layout.replace(split, layout.instances(split).without(number, label))


def _split_images(layout: _Layout, split: str) -> Images:
    if split not in layout.files:
        pictures = pictures_below(layout.folders[split])
        return _images(layout, split, [(name, path, None) for name, path in pictures.items()], layout.folders[split])
    instances = layout.instances(split)
    order = np.argsort(instances.ids) if layout.tag_rule != "icam" else np.arange(len(instances.ids))
    places: list[tuple[Instances, int]] = [(instances, position) for position in order.tolist()]
    return _images(layout, split, [_entry(layout, split, *place) for place in places], layout.files[split])


def _listed_images(layout: _Layout, split: str) -> Images:
    """The pictures of a list file, looked up in one annotation file after another."""
    names = list(read_names(Path(split), {}))
    found: dict[str, tuple[str, Path | None, tuple[Instances, int] | None]] = {}
    for candidate in sorted(
        layout.files, key=lambda name: (name not in Path(split).stem and not names[0].startswith(f"COCO_{name}"), name)
    ):
        if len(found) == len(names):
            break
        instances = layout.instances(candidate)
        positions = {
            without_suffix(file.rpartition("/")[2]): position for position, file in enumerate(instances.file_names)
        }
        positions |= {f"{image_id:012d}": position for position, image_id in enumerate(instances.ids.tolist())}
        for name in names:
            position = positions.get(name.rpartition("/")[2])
            if name not in found and position is not None:
                found[name] = _entry(layout, candidate, instances, position)
    unknown = [name for name in names if name not in found]
    if unknown:
        raise BadInput(
            split,
            f"{len(unknown)} of {len(names)} names that no annotation file has ({unknown[0]!r} first)",
            "names of pictures or twelve-digit ids",
            "Correct the list, or fetch the annotations it belongs to.",
        )
    return _images(layout, split, [found[name] for name in names], Path(split))


def _entry(
    layout: _Layout, split: str, instances: Instances, position: int
) -> tuple[str, Path | None, tuple[Instances, int]]:
    file_name = instances.file_names[position]
    image_id = int(instances.ids[position])
    path = layout.pictures.find(split, file_name, image_id, f"{instances.path}, image {image_id}")
    name = without_suffix(path.name if path and "/" not in file_name else file_name)
    inside = "/".join(part for part in name.split("/") if part not in ("", ".."))
    return inside, path, (instances, position)


def _images(
    layout: _Layout, split: str, entries: Sequence[tuple[str, Path | None, tuple[Instances, int] | None]], where: Path
) -> Images:
    pictures = {name: path for name, path, _ in entries if path}
    places = {name: place for name, _, place in entries}
    names = found_alone(
        [name for name, _, _ in entries],
        pictures,
        where,
        split,
        needed=True,
        skip_missing=layout.skip_missing,
        notes=layout.notes,
    )
    masks = _masks(layout, split, [(name, places[name]) for name in names])
    labels, without = _labels(layout, split, names, places, masks)
    keep = [index for index, name in enumerate(names) if name not in without]
    if without:
        layout.notes.append(f"{split}: {len(without)} pictures without a tag left out")
    return Images(
        title=f"coco/{Path(split).stem}",
        names=tuple(names),
        paths=tuple(pictures[name] for name in names),
        class_names=layout.class_names,
        labels=labels,
        masks=tuple(masks),
        upright=layout.upright,
    ).subset(keep)


def _labels(
    layout: _Layout,
    split: str,
    names: Sequence[str],
    places: Mapping[str, tuple[Instances, int] | None],
    masks: Sequence[TrueMask | None],
) -> tuple[Bool[np.ndarray, "n c"], set[str]]:
    """Labels, and the names of pictures to be left out for want of them."""
    n_classes = len(layout.class_names)
    if layout.tags is not None:
        found, missing = labels_of(names, _tag_file(layout, split, layout.tags), n_classes)
        return found, set(missing) if len(missing) < len(names) else set()
    known = [place for place in (places[name] for name in names) if place]
    if len(known) < len(names):
        layout.notes.append(f"{split}: no tags, since there is neither an annotation file nor a table of tags")
        return np.zeros((len(names), n_classes), bool), set()
    if layout.tag_rule == "icam":
        drawn = [mask for mask in masks if mask]
        seen = in_threads(
            lambda mask: np.bincount(mask.read().ravel(), minlength=256)[1 : n_classes + 1] > 0,
            drawn,
            len(drawn),
            layout.progress,
        )
        return np.array(list(seen)), set()
    labels = np.array([instances.labels(position) for instances, position in known])
    if layout.tag_rule == "clip-es":
        return labels, {name for name, row in zip(names, labels, strict=True) if not row.any()}
    return labels, set()


def _tag_file(layout: _Layout, split: str, path: Path) -> dict[str, Bool[np.ndarray, " c"]]:
    if path.suffix.lower() == ".npy" and split in layout.files:
        rows = read_legacy_labels(path)
        if isinstance(rows, np.ndarray):
            ids = np.sort(layout.instances(split).ids).tolist()
            if rows.shape[1] != len(layout.class_names):
                raise BadInput(
                    path, f"rows of {rows.shape[1]} labels", f"{len(layout.class_names)}", "Take another file."
                )
            return (
                {str(image_id): row for image_id, row in zip(ids, rows, strict=True)} if len(rows) == len(ids) else {}
            )
    return labels_by_name(path, layout.class_names)


def _masks(
    layout: _Layout, split: str, entries: Sequence[tuple[str, tuple[Instances, int] | None]]
) -> list[TrueMask | None]:
    if any(place is None for _, place in entries):
        files: dict[str, Path] = {}
        for folder in (
            layout.root / "mask" / split,
            layout.root / "SegmentationClass",
            layout.root / "SegmentationClass" / split,
        ):
            files |= pictures_below(folder, (".png",))
        found = [next((files[key] for key in spellings(name) if key in files), None) for name, _ in entries]
        return [MaskFile(path) if path else None for path in found]
    places = [place for _, place in entries if place]
    if layout.mask_rule == "icam" and any(instances.path.stem.endswith("2014") for instances, _ in places):
        if {"train2017", "val2017"} <= layout.files.keys():
            layout.notes.append(f"{split}: masks are drawn from the annotations of 2017, as ICAM does for 2014 too")
            places = _of_2017(layout, places)
        else:
            layout.notes.append(
                f"{split}: masks are drawn from the annotations of 2014; ICAM took those of 2017, which are not there"
            )
    return [InstanceMask(instances, position, layout.mask_rule) for instances, position in places]


def _of_2017(layout: _Layout, places: Sequence[tuple[Instances, int]]) -> list[tuple[Instances, int]]:
    newer: dict[int, tuple[Instances, int]] = {}
    for split in ("train2017", "val2017"):
        instances = layout.instances(split)
        newer |= {image_id: (instances, position) for position, image_id in enumerate(instances.ids.tolist())}
    wanted = [int(instances.ids[position]) for instances, position in places]
    missing = [image_id for image_id in wanted if image_id not in newer]
    if missing:
        raise BadInput(
            layout.root / "annotations",
            f"{len(missing)} images of 2014 without an entry in 2017 ({missing[0]} first)",
            "all of them, as in the published files",
            "Complete the files of 2017, or remove them.",
        )
    return [newer[image_id] for image_id in wanted]
