"""Objects in a mask: connected components or classes, and their outlines."""

import dataclasses
from collections.abc import Iterator
from typing import Literal

import cv2
import numpy as np

from wsss.arrays import Bool, Int, UInt8
from wsss.data.images import IGNORE


@dataclasses.dataclass(frozen=True, eq=False)
class Region:
    """The pixels of one object.

    Attributes:
        label: its class, 1..n.
        left, top: the first column and row of its bounding box.
        inside: its pixels within the bounding box.
    """

    label: int
    left: int
    top: int
    inside: Bool[np.ndarray, "h w"]

    @property
    def area(self) -> int:
        """The number of pixels."""
        return int(self.inside.sum())

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, width and height in pixels."""
        return self.left, self.top, self.inside.shape[1], self.inside.shape[0]

    def filled(self, size_hw: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
        """Its pixels in a picture of this size."""
        whole = np.zeros(size_hw, bool)
        whole[self.top : self.top + self.inside.shape[0], self.left : self.left + self.inside.shape[1]] = self.inside
        return whole


def regions(labels: UInt8[np.ndarray, "h w"], per: Literal["component", "class"]) -> Iterator[Region]:
    """The objects of a mask: by class, and within a class in the order of their first pixels, row by row.

    Args:
        labels: 0 background, 255 ignored.
        per: an object is a component, whose pixels touch at least at corners, or all pixels of a class.
    """
    counts = np.bincount(labels.ravel(), minlength=IGNORE + 1)
    for label in np.flatnonzero(counts[1:IGNORE]) + 1:
        whole = _cropped(int(label), labels == label, 0, 0)
        yield from (whole,) if per == "class" else _components(whole)


def _cropped(label: int, inside: Bool[np.ndarray, "h w"], left: int, top: int) -> Region:
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    part = inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Region(label, left + int(columns[0]), top + int(rows[0]), part)


def _components(whole: Region) -> Iterator[Region]:
    _, numbers, stats, _ = cv2.connectedComponentsWithStats(whole.inside.astype(np.uint8), connectivity=8)
    # OpenCV's numbers depend on its version and threads
    present, first = np.unique(numbers, return_index=True)
    for number in present[np.argsort(first)].tolist():
        if number:
            x, y, width, height, _ = stats[number].tolist()
            inside = numbers[y : y + height, x : x + width] == number
            yield Region(whole.label, whole.left + x, whole.top + y, inside)


def outlines(inside: Bool[np.ndarray, "h w"]) -> list[Int[np.ndarray, "k 2"]]:
    """The outlines of an object along the edges of its pixels, as corners (x, y); a pixel reaches from x to x + 1.

    Outer ones run clockwise on the screen, those of holes counterclockwise; see `signed_area`. Pixels that touch only at a corner
    are separated there.
    """
    horizontal, vertical = _segments(inside), _segments(inside.T)
    # a segment from its start to its end, with the inside to the right of the direction on the screen
    onward: dict[tuple[int, int], list[tuple[int, int]]] = {}
    downward: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for y, start, end, first_inside in horizontal.tolist():
        one, other = ((start, y), (end, y)) if first_inside else ((end, y), (start, y))
        onward.setdefault(one, []).append(other)
    for x, start, end, first_inside in vertical.tolist():
        one, other = ((x, end), (x, start)) if first_inside else ((x, start), (x, end))
        downward.setdefault(one, []).append(other)
    found = []
    while onward:
        start = next(iter(onward))
        ring, at, before = [], start, None
        while True:
            # along a horizontal segment, then along a vertical one
            ring.append(at)
            corner = _next(onward, at, before)
            ring.append(corner)
            at, before = _next(downward, corner, at), corner
            if at == start:
                break
        found.append(np.array(ring, np.int64))
    return found


def _segments(inside: Bool[np.ndarray, "h w"]) -> Int[np.ndarray, "n 4"]:
    """The horizontal edges between inside and outside, joined to the longest segments: row, first and last column, and whether the row below the edge
    is inside."""
    padded = np.pad(inside.astype(np.int8), 1)
    step = np.diff(padded, axis=0)[:, 1:-1]
    rows = []
    for value in (1, -1):
        is_edge = np.pad(step == value, ((0, 0), (1, 1))).astype(np.int8)
        change = np.diff(is_edge, axis=1)
        row, start = np.nonzero(change == 1)
        _, end = np.nonzero(change == -1)
        rows.append(np.stack([row, start, end, np.full_like(row, value == 1)], 1))
    joined = np.concatenate(rows)
    return joined[np.lexsort((joined[:, 1], joined[:, 0]))]


def _next(
    segments: dict[tuple[int, int], list[tuple[int, int]]], at: tuple[int, int], before: tuple[int, int] | None
) -> tuple[int, int]:
    """Take the segment that begins here; where two do, the one that turns right, which keeps to the same pixel."""
    choices = segments[at]
    pick = 0
    if len(choices) > 1 and before is not None:
        ahead = (at[0] - before[0], at[1] - before[1])
        turns = [ahead[0] * (y - at[1]) - ahead[1] * (x - at[0]) for x, y in choices]
        pick = turns.index(max(turns))
    found = choices.pop(pick)
    if not choices:
        del segments[at]
    return found


def signed_area(ring: Int[np.ndarray, "k 2"]) -> int:
    """The number of pixels that an outline encloses; negative for a hole."""
    x, y = ring[:, 0], ring[:, 1]
    return int(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) // 2
