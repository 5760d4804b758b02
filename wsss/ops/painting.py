"""A label map as filled polygons, painted one over another: exact, and without polygons that have holes."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from wsss.arrays import Int32, UInt8


class Polygon(NamedTuple):
    """A filled polygon of a label map."""

    label: int
    points: Int32[np.ndarray, "n 2"]
    """x and y of pixels on the outline, which belongs to the polygon; three or more, some of them equal for one or two pixels"""


def polygons(labels: UInt8[np.ndarray, "h w"]) -> Iterator[Polygon]:
    """Polygons that give the label map if they are painted in this order on a canvas of zeros, each filled and with its outline.

    A polygon is the outline of a component of equal, 4-connected labels, and fills the holes of the component. Components do not cross,
    so whatever lies in such a hole comes later, in a smaller box; background in it is a polygon of label 0.
    """
    import cv2

    components = _components(labels)
    boxes = ndimage.find_objects(components)
    sizes = [(box[0].stop - box[0].start) * (box[1].stop - box[1].start) for box in boxes]
    canvas = np.zeros_like(labels)
    for index in sorted(range(len(boxes)), key=lambda index: -sizes[index]):
        box = boxes[index]
        inside = components[box] == index + 1
        first = np.unravel_index(inside.argmax(), inside.shape)
        label = labels[box][first]
        if canvas[box][first] == label:
            continue
        canvas[box][ndimage.binary_fill_holes(inside)] = label
        (outline, *_), _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        points = outline[:, 0] + np.array([box[1].start, box[0].start], np.int32)
        yield Polygon(int(label), points if len(points) > 2 else np.resize(points, (3, 2)))


def _components(labels: UInt8[np.ndarray, "h w"]) -> Int32[np.ndarray, "h w"]:
    """The number, from 1, of each pixel's component."""
    components = np.zeros(labels.shape, np.int32)
    count = 0
    for label in np.unique(labels):
        found, n = ndimage.label(labels == label)
        components += np.where(found > 0, found + count, 0).astype(np.int32)
        count += n
    return components
