"""Draws the objects of COCO annotations by the rules of published methods."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image

from wsss.arrays import Bool, Float, UInt8
from wsss.data.coco_index import DRAWN_AS_BACKGROUND, DRAWN_AS_IGNORED
from wsss.data.labels import IGNORE
from wsss.errors import BadInput, Unreadable, reading

MaskRule = Literal["clims", "icam"]

# Pillow opens no larger picture
MOST_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 2**26)
# The COCO API allocates some hundred bytes for each pixel of an outline
_LONGEST_OUTLINE = 4_000_000


def draw_mask(
    objects: Sequence[tuple[int, Mapping[str, Any]]],
    size_hw: tuple[int, int],
    rule: MaskRule,
    where: str,
    *,
    crowds: bool = False,
) -> UInt8[np.ndarray, "h w"]:
    """Draw the objects of a picture, later ones over earlier ones.

    Args:
        objects: 0-based class (or DRAWN_AS_BACKGROUND or DRAWN_AS_IGNORED) and annotation of each, in file order.
        size_hw: height and width.
        rule: `clims` (CLIMS, QA-CLIMS) leaves out crowds and rasterises with the COCO API; `icam` draws crowds too, and fills
            each polygon with OpenCV, with corners truncated to integers and the border included.
        where: the place that an error names.
        crowds: whether the rule `clims` draws crowds too.

    Raises:
        BadInput: the size is out of range, or a polygon or run-length code is broken.
    """
    height, width = size_hw
    if min(size_hw) < 1 or height * width > MOST_PIXELS:
        raise BadInput(
            where, f"a mask of {height}x{width} pixels", f"1 to {MOST_PIXELS} pixels", "Write the size of the picture."
        )
    mask = np.zeros(size_hw, np.uint8)
    for class_, entry in objects:
        expected = f"polygons or a run-length code for {height}x{width} pixels"
        do = "Fetch the annotations again, or leave the picture out with --skip-bad."
        with reading(f"{where}, annotation {entry.get('id')!r:.40}", expected, do):
            label = {DRAWN_AS_BACKGROUND: 0, DRAWN_AS_IGNORED: IGNORE}.get(class_, class_ + 1)
            if rule == "icam":
                _fill(mask, entry.get("segmentation"), label)
            elif crowds or not entry.get("iscrowd"):
                mask[coco_inside(entry.get("segmentation"), size_hw)] = label
    return mask


def _fill(mask: UInt8[np.ndarray, "h w"], shape: object, label: int) -> None:
    import cv2

    if isinstance(shape, dict):
        mask[_runs_inside(shape, mask.shape)] = label
    else:
        for polygon in _polygons(shape):
            cv2.fillPoly(mask, [_corners(polygon).reshape(-1, 2).astype(np.int32)], label)


def coco_inside(shape: object, size_hw: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """The pixels inside polygons or a run-length code, as the COCO API rasterises them.

    Raises:
        Unreadable: the shape is broken, or does not have this size.
    """
    from pycocotools import mask as coco_mask

    if isinstance(shape, dict):
        return _runs_inside(shape, size_hw)
    corners = [_corners(polygon).tolist() for polygon in _polygons(shape)]
    # COCO's tools do the same
    polygons = [polygon for polygon in corners if len(polygon) > 5]
    if len(polygons) < bool(corners):
        raise Unreadable("only polygons with fewer than three corners")
    if not polygons:
        return np.zeros(size_hw, bool)
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *size_hw))) > 0


def _polygons(shape: object) -> list[Any]:
    if not isinstance(shape, list) or not all(isinstance(polygon, list) for polygon in shape):
        raise Unreadable(f"{shape!r:.60}, which is no list of polygons")
    return shape


def _corners(polygon: list[Any]) -> Float[np.ndarray, " n"]:
    """The coordinates of a polygon, checked because the COCO API trusts them and allocates memory for the area that they span."""
    if (
        not polygon
        or len(polygon) % 2
        or not all(type(number) in (int, float) and abs(number) < 1e5 for number in polygon)
    ):
        raise Unreadable(f"a polygon of {len(polygon)} numbers, or with corners far away: {polygon!r:.60}")
    numbers = np.array(polygon, np.float64)
    steps = np.abs(numbers.reshape(-1, 2) - np.roll(numbers.reshape(-1, 2), 1, 0)).max(1).sum()
    if steps > _LONGEST_OUTLINE:
        raise Unreadable(f"a polygon with an outline of {steps:.0f} pixels")
    return numbers


def _runs_inside(code: Mapping[str, object], size_hw: tuple[int, ...]) -> Bool[np.ndarray, "h w"]:
    """The pixels of a run-length code, in column order, starting with the outside; checked because the COCO API trusts it."""
    counts, size = code.get("counts"), code.get("size")
    if not isinstance(counts, list | str) or not isinstance(size, list) or not all(type(side) is int for side in size):
        raise Unreadable(f"a run-length code with `counts` {counts!r:.40} and `size` {size!r:.40}")
    # Python's integers do not overflow
    runs = counts if isinstance(counts, list) else _unpacked(counts)
    if (
        not all(type(run) is int and run >= 0 for run in runs)
        or sum(runs) != math.prod(size_hw)
        or size != list(size_hw)
    ):
        raise Unreadable(f"a run-length code that does not fill its picture: {runs!r:.40}, size {size!r:.40}")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size_hw[::-1]).T


def _unpacked(text: str) -> list[int]:
    """COCO's text form: six bits per character, counted from `0`; five of them are a digit, the lowest first, and the sixth means that more
    follow. From the fourth run on, the numbers are differences to the run two before."""
    runs: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if shift > 60:
            raise Unreadable("a run-length code with a number of more than 60 bits")
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise Unreadable("a run-length code that ends within a number")
    return runs
