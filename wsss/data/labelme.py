"""labelme: a JSON file next to each picture, with shapes and with flags of the whole picture.

Flags that are set and labels of shapes are tags. Shapes become a true mask as drawn by labelme's rasteriser (6.3.1): in their
order, later ones over earlier ones, with their outlines, lines 10 pixels wide, points as disks of radius 5.
"""

import base64
import dataclasses
import io
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from wsss.arrays import Bool, UInt8
from wsss.data.entries import Entry, LayoutContents, LayoutOptions, picture_name, split_of
from wsss.data.lists import EXPORT_RECORD, files_below, is_picture
from wsss.data.roles import IGNORED, Roles, only_classes
from wsss.data.text import read_lines
from wsss.digests import content_digest
from wsss.errors import BadInput, is_regular, reading

_EXPECTED = "a JSON file of labelme with `shapes`, `flags` and `imagePath`"
_DO = "Open the picture in labelme and save it again."
_LINE_WIDTH, _POINT_RADIUS = 10, 5
_MOST = 100_000_000
# Bytes that are read to recognise a file of labelme
_BEGINNING = 1 << 22
# The smallest and largest number of points of each kind of shape
_POINTS = {
    "polygon": (3, None),
    "oriented_rectangle": (4, 4),
    "rectangle": (2, 2),
    "circle": (2, 2),
    "line": (2, 2),
    "linestrip": (2, None),
    "point": (1, 1),
    "mask": (2, 2),
}


@dataclasses.dataclass(frozen=True)
class LabelmeFile:
    """The content of a file of labelme.

    Attributes:
        picture: the path of the picture, relative to the folder of the file.
        size_hw: height and width.
        flags: the flags that are set.
        shapes: label, kind, points (x, y) and, for a mask, the PNG of the box between its two corners.
    """

    picture: str
    size_hw: tuple[int, int]
    flags: tuple[str, ...]
    shapes: tuple[tuple[str, str, tuple[tuple[float, float], ...], bytes | None], ...]


@dataclasses.dataclass(frozen=True)
class ShapesMask:
    """A true mask drawn from the shapes in a file."""

    path: Path
    roles: Roles

    @property
    def where(self) -> str:
        return str(self.path)

    def read(self) -> UInt8[np.ndarray, "h w"]:
        def label_of(name: str) -> int:
            value = self.roles.label(name)
            if value is None:
                raise BadInput(self.path, f"the label {name!r}", "a class", "Start again: the file has changed.")
            return value

        return draw_shapes(read_labelme_file(self.path), label_of, self.where)

    def stamp(self) -> str:
        return f"{content_digest(self.path)}:{':'.join(self.roles.class_names)}:{sorted(self.roles.negatives)}"


def read_labelme_file(path: Path) -> LabelmeFile:
    """The content of a file of labelme.

    Raises:
        BadInput: the file is missing, broken, or not a file of labelme.
    """
    with reading(path, _EXPECTED, _DO):
        content = json.loads(path.read_bytes())
    if not is_labelme(content):
        raise BadInput(path, "other content", _EXPECTED, f"{_DO} If the file is not from labelme, move it elsewhere.")
    picture, flags = content["imagePath"], content.get("flags") or {}
    height, width = content.get("imageHeight"), content.get("imageWidth")
    if not isinstance(picture, str) or not isinstance(flags, dict):
        raise BadInput(path, "an imagePath or flags of another type", _EXPECTED, _DO)
    if not all(type(side) is int and side > 0 for side in (height, width)) or height * width > _MOST:
        raise BadInput(path, f"the size {height!r:.20} x {width!r:.20}", "imageHeight and imageWidth in pixels", _DO)
    shapes = tuple(_shape(entry, f"{path}, shape {number}") for number, entry in enumerate(content["shapes"], 1))
    return LabelmeFile(
        picture, (height, width), tuple(name for name, is_set in flags.items() if is_set is True), shapes
    )


def is_labelme(content: object) -> bool:
    """Whether the content of a JSON file has the keys of labelme."""
    return isinstance(content, dict) and "imagePath" in content and isinstance(content.get("shapes"), list)


def _shape(entry: object, where: str) -> tuple[str, str, tuple[tuple[float, float], ...], bytes | None]:
    expected = "a label, a shape_type and points [x, y]"
    if not isinstance(entry, dict) or not isinstance(entry.get("label"), str) or not entry["label"].strip():
        raise BadInput(where, "no label", expected, _DO)
    kind = entry.get("shape_type") or "polygon"
    least, most = _POINTS.get(kind, (0, 0)) if isinstance(kind, str) else (0, 0)
    if not least:
        raise BadInput(where, f"a shape of type {kind!r:.40}", f"one of {', '.join(_POINTS)}", _DO)
    points = entry.get("points")
    if not isinstance(points, list) or not all(_is_point(point) for point in points):
        raise BadInput(where, "points of another type, or out of range", expected, _DO)
    if len(points) < least or len(points) > (most or len(points)):
        raise BadInput(
            where, f"a {kind} of {len(points)} points", f"{least}{'' if most else ' or more'} for such a shape", _DO
        )
    patch = None
    if kind == "mask":
        with reading(where, "a mask as base64 of a PNG", _DO):
            if not isinstance(entry.get("mask"), str):
                raise BadInput(where, "no mask", "a mask as base64 of a PNG", _DO)
            patch = base64.b64decode(entry["mask"], validate=True)
    return entry["label"].strip(), kind, tuple((point[0], point[1]) for point in points), patch


def _is_point(point: object) -> bool:
    return (
        isinstance(point, list)
        and len(point) == 2
        and all(isinstance(at, int | float) and not isinstance(at, bool) and abs(at) < 1e6 for at in point)
    )


def draw_shapes(drawing: LabelmeFile, label_of: Callable[[str], int], where: str) -> UInt8[np.ndarray, "h w"]:
    """The label of each pixel; later shapes are drawn over earlier ones.

    Args:
        drawing: the content of a file.
        label_of: the label in the mask of a name; may raise BadInput.
        where: the place that an error names.

    Raises:
        BadInput: see `shape_inside`.
    """
    mask = np.zeros(drawing.size_hw, np.uint8)
    for label, kind, points, patch in drawing.shapes:
        mask[shape_inside(drawing.size_hw, kind, points, patch, where)] = label_of(label)
    return mask


def shape_inside(
    size_hw: tuple[int, int],
    kind: str,
    points: Sequence[tuple[float, float]],
    patch: bytes | None,
    where: str,
) -> Bool[np.ndarray, "h w"]:
    """The pixels of a shape, as labelme 6.3.1 rasterises it.

    Args:
        size_hw: height and width of the picture.
        kind: the `shape_type` of labelme.
        points: (x, y) in pixels.
        patch: the PNG of a mask, whose nonzero pixels are inside the shape. It fills the box between the two points, inclusive.
        where: the place that an error names.

    Raises:
        BadInput: a patch is no picture, or does not have the size of its box.
    """
    if patch is not None:
        return _patched(size_hw, points, patch, where)
    canvas = Image.new("L", (size_hw[1], size_hw[0]))
    draw = ImageDraw.Draw(canvas)
    corners = [(x, y) for x, y in points]
    if kind == "circle":
        (x, y), (on_x, on_y) = corners
        radius = math.hypot(x - on_x, y - on_y)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1, outline=1)
    elif kind == "rectangle":
        (left, right), (top, bottom) = (sorted(side) for side in zip(*corners, strict=True))
        draw.rectangle((left, top, right, bottom), fill=1, outline=1)
    elif kind in ("line", "linestrip"):
        draw.line(corners, fill=1, width=_LINE_WIDTH)
    elif kind == "point":
        (x, y), r = corners[0], _POINT_RADIUS
        draw.ellipse((x - r, y - r, x + r, y + r), fill=1, outline=1)
    else:
        draw.polygon(corners, fill=1, outline=1)
    return np.array(canvas, bool)


def _patched(
    size_hw: tuple[int, int], points: Sequence[tuple[float, float]], patch: bytes, where: str
) -> Bool[np.ndarray, "h w"]:
    (left, top), (right, bottom) = ((int(x), int(y)) for x, y in points)
    with reading(where, "a mask as base64 of a PNG", _DO), Image.open(io.BytesIO(patch), formats=("PNG",)) as picture:
        part = np.asarray(picture).astype(bool)
    inside = np.zeros(size_hw, bool)
    box = (bottom - top + 1, right - left + 1)
    if part.shape != box or min(left, top) < 0 or right >= size_hw[1] or bottom >= size_hw[0]:
        raise BadInput(where, f"a mask of {part.shape}", f"{box}, the box of its points, in the picture", _DO)
    inside[top : bottom + 1, left : right + 1] = part
    return inside


def json_files(root: Path) -> list[Path]:
    """The JSON files below a folder, without the record of an export."""
    return [path for path in files_below(root) if path.suffix.lower() == ".json" and path.name != EXPORT_RECORD]


def find_labelme(root: Path) -> list[Path]:
    """The JSON files below a folder, if one of the first is a file of labelme."""
    files = json_files(root)
    first = next((path for path in files if is_regular(path)), None)
    if first is None:
        return []
    return files if any(_looks_like_one(path) for path in files[:20]) else []


def _looks_like_one(path: Path) -> bool:
    if not is_regular(path):
        return False
    with path.open("rb") as stream:
        blob = stream.read(_BEGINNING)
    return b'"imagePath"' in blob and b'"shapes"' in blob


def read_labelme(root: Path, files: list[Path], options: LayoutOptions) -> LayoutContents:
    """Pictures with their flags and shapes.

    Raises:
        BadInput: a file is broken or not from labelme, names a picture outside the data set, or has a label that is no class.
    """
    drawings = {path: read_labelme_file(path) for path in files}
    labels = {path: [label for label, *_ in drawing.shapes] for path, drawing in drawings.items()}
    occurring = sorted({name for path, drawing in drawings.items() for name in (*drawing.flags, *labels[path])})
    class_names = options.class_names or _listed(root, options) or only_classes(occurring, options.negatives)
    roles = Roles(class_names, options.negatives)
    has_shapes = any(labels.values())
    entries, kinds, notes = [], Counter[str](), []
    skipped = [path for path, drawing in drawings.items() if IGNORED in drawing.flags]
    for path, drawing in drawings.items():
        if path in skipped:
            continue
        kinds.update(kind for _, kind, _, _ in drawing.shapes)
        entries.append(_entry(root, path, drawing, roles, has_shapes=has_shapes))
    if skipped:
        notes.append(f"{len(skipped)} pictures with the flag {IGNORED} are left out ({skipped[0].name} first)")
    if has_shapes:
        notes.append(
            f"true masks are drawn from shapes: {', '.join(f'{n} {kind}' for kind, n in sorted(kinds.items()))}"
        )
    named = {entry.path for entry in entries} | {_picture(path, drawings[path]) for path in skipped}
    unlisted = [path for path in files_below(root) if is_picture(path) and path not in named]
    if unlisted:
        notes.append(
            f"{len(unlisted)} pictures left out, since no file of labelme names them ({os.path.relpath(unlisted[0], root)} first)"
        )
    return LayoutContents("labelme", entries, class_names, notes, tags_by_picture=not has_shapes)


def _picture(path: Path, drawing: LabelmeFile) -> Path:
    """The picture of a file, which may have been written on Windows."""
    return Path(os.path.normpath(path.parent / drawing.picture.replace("\\", "/")))


def _entry(root: Path, path: Path, drawing: LabelmeFile, roles: Roles, *, has_shapes: bool) -> Entry:
    """The picture of a file, with its tags and, if all tags have shapes, a mask."""
    shape_labels = [label for label, *_ in drawing.shapes]
    for label in (*drawing.flags, *shape_labels):
        if roles.label(label) is None:
            expected = f"one of {', '.join(roles.class_names[:8])}"
            raise BadInput(path, f"the label {label!r}", expected, "Complete the list of classes.")
    picture = _picture(path, drawing)
    if not picture.is_relative_to(root):
        raise BadInput(
            path,
            f"the picture {drawing.picture!r}, which is outside {root}",
            "a picture of the data set",
            "Move it there, and save it again in labelme.",
        )
    drawn = only_classes(shape_labels, roles.negatives)
    tags = only_classes((*drawing.flags, *shape_labels), roles.negatives)
    return Entry(
        split=split_of(os.path.relpath(picture, root).split(os.sep)[0]) or "train",
        name=picture_name(picture, root),
        path=picture,
        tags=tags,
        where=str(path),
        # with a tag that has no shape, the rest of the picture is unknown, not background
        mask=ShapesMask(path, roles) if has_shapes and set(tags) <= set(drawn) else None,
    )


def _listed(root: Path, options: LayoutOptions) -> tuple[str, ...] | None:
    """The classes in a list in the root, if there is one."""
    for name in ("labels.txt", "classes.txt"):
        if is_regular(root / name):
            return only_classes((line for _, line in read_lines(root / name, "one label per line")), options.negatives)
    return None
