"""CVAT for images 1.1: one XML file with the shapes of all pictures.

    <annotations>
      <version>1.1</version>
      <meta><task>...<labels><label><name>cat</name>...</label></labels></task></meta>
      <image id="0" name="a/1.jpg" width="500" height="375">
        <mask label="cat" rle="2, 3, 1" left="10" top="20" width="3" height="2" z_order="0"/>
        <polygon label="dog" points="1.50,2.00;9.00,2.00;9.00,8.25" z_order="1"/>
      </image>
    </annotations>

The run lengths of a mask fill its box by rows, and begin with the outside. CVAT draws shapes in the order of `z_order`, and later ones over
earlier ones; it rasterises polygons with the COCO API.
"""

import dataclasses
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from wsss.arrays import Bool, Int32, UInt8
from wsss.data.coco_shapes import MOST_PIXELS, coco_inside
from wsss.errors import BadInput, Unreadable, reading

_EXPECTED = "an XML file that CVAT exports as `CVAT for images 1.1`"
_DO = "Export the task from CVAT again."
# Shapes without an outline of the object
_NOT_DRAWN = ("box", "polyline", "points", "ellipse", "cuboid", "skeleton")
Box = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class CvatShape:
    """A mask or a polygon.

    Attributes:
        label: name of the label.
        z_order: shapes with a higher number are drawn later.
        runs: run lengths of a mask; None for a polygon.
        box: left, top, width and height of a mask.
        points: x, y, x, y, ... of a polygon.
    """

    label: str
    z_order: int
    runs: Int32[np.ndarray, " n"] | None = None
    box: Box = (0, 0, 0, 0)
    points: tuple[float, ...] = ()

    def inside(self, size_hw: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
        """The pixels inside the shape.

        Raises:
            Unreadable: a mask does not fit its box or the picture, or a polygon is broken.
        """
        if self.runs is None:
            return coco_inside([list(self.points)], size_hw)
        left, top, width, height = self.box
        inside = np.zeros(size_hw, bool)
        if min(left, top) < 0 or min(width, height) < 1 or left + width > size_hw[1] or top + height > size_hw[0]:
            raise Unreadable(f"a mask of {width} x {height} pixels at {left}, {top}, outside its picture")
        if self.runs.min(initial=0) < 0 or self.runs.sum(dtype=np.int64) != width * height:
            raise Unreadable(f"run lengths that do not fill their box of {width} x {height} pixels")
        flat = np.repeat(np.arange(self.runs.size) % 2 == 1, self.runs)
        inside[top : top + height, left : left + width] = flat.reshape(height, width)
        return inside


@dataclasses.dataclass(frozen=True)
class CvatPicture:
    """A picture with its shapes in the order of the file.

    Attributes:
        name: path of the picture in the task.
        size_hw: height and width.
        shapes: masks and polygons.
        where: the place that an error names.
    """

    name: str
    size_hw: tuple[int, int]
    shapes: tuple[CvatShape, ...]
    where: str

    def mask(self, label_of: Callable[[str], int]) -> UInt8[np.ndarray, "h w"]:
        """The labels of the pixels, with shapes drawn in CVAT's order.

        Args:
            label_of: the label in the mask of a name; may raise BadInput.
        """
        mask = np.zeros(self.size_hw, np.uint8)
        for shape in sorted(self.shapes, key=lambda shape: shape.z_order):
            with reading(f"{self.where}, a shape of {shape.label!r}", "a mask or polygon in the picture", _DO):
                mask[shape.inside(self.size_hw)] = label_of(shape.label)
        return mask


def run_lengths(inside: Bool[np.ndarray, "h w"]) -> list[int]:
    """The run lengths of a mask in its box: the first is that of the outside, and 0 if the first pixel is inside."""
    flat = inside.ravel()
    changes = np.flatnonzero(np.diff(flat, prepend=False))
    return np.diff(changes, prepend=0, append=flat.size).tolist()


def read_cvat(path: Path) -> Iterator[CvatPicture]:
    """The pictures of a file, one after another, so that memory stays bounded.

    Raises:
        BadInput: the file is missing, broken or of another kind; a picture has shapes that are neither masks nor polygons.
    """
    with reading(path, _EXPECTED, _DO):
        parser = ElementTree.iterparse(path, events=("start", "end"))
        _, root = next(parser)
        if root.tag != "annotations":
            raise Unreadable(f"the element <{root.tag:.40}> in place of <annotations>")
        for event, element in parser:
            if event == "start" and element.tag == "track":
                do = "Export the task as `CVAT for images 1.1`, and not as `CVAT for video`."
                raise BadInput(path, "a track of a video", _EXPECTED, do)
            if event == "end" and element.tag == "image":
                yield _picture(path, element)
                root.clear()


def _picture(path: Path, element: ElementTree.Element) -> CvatPicture:
    name = element.get("name", "")
    where = f"{path}, picture {name!r}"
    if not name:
        raise BadInput(path, "a picture without a name", _EXPECTED, _DO)
    size_hw = (_number(element.attrib, "height", where), _number(element.attrib, "width", where))
    if min(size_hw) < 1 or math.prod(size_hw) > MOST_PIXELS:
        raise BadInput(where, f"{size_hw[0]} x {size_hw[1]} pixels", f"1 to {MOST_PIXELS} pixels", _DO)
    if other := next((child.tag for child in element if child.tag in _NOT_DRAWN), None):
        raise BadInput(
            where,
            f"a shape <{other}> with the label {next(c for c in element if c.tag == other).get('label')!r}",
            "masks and polygons, which outline objects",
            "Draw the object as a mask or a polygon in CVAT, or remove the shape.",
        )
    shapes = tuple(_shape(child, where) for child in element if child.tag in ("mask", "polygon"))
    return CvatPicture(name, size_hw, shapes, where)


def _shape(element: ElementTree.Element, where: str) -> CvatShape:
    label, values = element.get("label"), element.attrib
    if label is None:
        raise BadInput(where, f"a <{element.tag}> without a label", "a label for each shape", _DO)
    z_order = _number(values, "z_order", where) if "z_order" in values else 0
    if element.tag == "mask":
        with reading(where, f"run lengths of the mask of {label!r}", _DO):
            runs = np.array([int(run) for run in values["rle"].split(",")], np.int32)
        left, top, width, height = (_number(values, side, where) for side in ("left", "top", "width", "height"))
        return CvatShape(label, z_order, runs, (left, top, width, height))
    with reading(where, f"points of the polygon of {label!r}", _DO):
        points = tuple(float(number) for number in re.split("[;,]", values["points"]))
    return CvatShape(label, z_order, points=points)


def _number(values: Mapping[str, str], key: str, where: str) -> int:
    text = values.get(key, "")
    if not re.fullmatch(r"-?\d{1,9}", text):
        raise BadInput(where, f"{key}={text!r:.40}", "a whole number", _DO)
    return int(text)
