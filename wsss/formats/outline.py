"""One closed outline through the centres of border pixels, for formats in which an object is a single polygon.

Holes and further parts are joined to it by bridges, lines that the outline follows there and back. OpenCV's `fillPoly`, which draws the border too,
gives the same pixels again, except for bridges between parts, which add lines one pixel wide.
"""

import cv2
import numpy as np
from scipy.spatial import KDTree

from wsss.arrays import Bool, Int

# fewer points are no polygon for most programs
_FEWEST = 3


def joined_outline(inside: Bool[np.ndarray, "h w"]) -> Int[np.ndarray, "k 2"]:
    """The outline of an object as pixels (x, y), at least three.

    A bridge leads from the leftmost pixel of a hole straight to the left, and between parts from a pixel to the nearest one.

    Args:
        inside: the pixels of the object; pixels that touch at a corner are one part.
    """
    found, hierarchy = cv2.findContours(inside.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    rings = [ring.reshape(-1, 2) for ring in found]
    parents = hierarchy[0, :, 3].tolist()
    outline = _Outline(rings)
    holes = [ring for ring, parent in enumerate(parents) if parent >= 0]
    outer = sorted((ring for ring, parent in enumerate(parents) if parent < 0), key=outline.first_pixel)
    for ring in outer:
        outline.take(ring)
    # what lies to the left of a hole was joined before it
    for ring in sorted(holes, key=lambda ring: int(rings[ring][:, 0].min())):
        outline.join_hole(ring, inside)
    outline.join_parts(outer)
    simple = _without_straight_points(outline.points(outer[0]))
    return simple if len(simple) >= _FEWEST else np.resize(simple, (_FEWEST, 2))


class _Outline:
    """Rings as linked lists of pixels, which bridges merge."""

    def __init__(self, rings: list[np.ndarray]) -> None:
        self._rings = rings
        self._pixels: list[tuple[int, int]] = []
        self._after: list[int] = []
        self._before: list[int] = []
        self._first: list[int] = []
        self._at: dict[tuple[int, int], int] = {}
        for ring in rings:
            start, count = len(self._pixels), len(ring)
            self._first.append(start)
            self._pixels += [(x, y) for x, y in ring.tolist()]
            self._after += [*range(start + 1, start + count), start]
            self._before += [start + count - 1, *range(start, start + count - 1)]

    def first_pixel(self, ring: int) -> tuple[int, int]:
        """The row and column of its first pixel, row by row."""
        return min((y, x) for x, y in self._rings[ring].tolist())

    def _nodes(self, ring: int) -> range:
        return range(self._first[ring], self._first[ring] + len(self._rings[ring]))

    def take(self, ring: int) -> None:
        """Let bridges of holes end at this ring."""
        for node in self._nodes(ring):
            self._at.setdefault(self._pixels[node], node)

    def join_hole(self, ring: int, inside: Bool[np.ndarray, "h w"]) -> None:
        """Join a hole to what lies to its left."""
        leftmost = int(self._rings[ring][:, 0].min())
        node = next(
            node
            for node in self._nodes(ring)
            if self._pixels[node][0] == leftmost and not inside[self._pixels[node][1], leftmost + 1]
        )
        row = self._pixels[node][1]
        outside = np.flatnonzero(~inside[row, :leftmost])
        end = int(outside[-1]) + 1 if outside.size else 0
        self._bridge(self._at[end, row], node)
        self.take(ring)

    def join_parts(self, rings: list[int]) -> None:
        """Join all other rings to the first, the nearest one first."""
        nodes = [np.arange(part.start, part.stop) for part in map(self._nodes, rings)]
        tree, owner = KDTree(self._rings[rings[0]]), np.repeat(np.arange(len(rings)), [len(part) for part in nodes])
        every, pixels = np.concatenate(nodes), np.concatenate([self._rings[ring] for ring in rings])
        distance, place = tree.query(pixels)
        target = nodes[0][place]
        distance[owner == 0] = np.inf
        for _ in rings[1:]:
            nearest = int(distance.argmin())
            part = int(owner[nearest])
            self._bridge(int(target[nearest]), int(every[nearest]))
            distance[owner == part] = np.inf
            waiting = np.flatnonzero(np.isfinite(distance))
            if waiting.size:
                nearer, place = KDTree(self._rings[rings[part]]).query(pixels[waiting])
                better = nearer < distance[waiting]
                distance[waiting[better]] = nearer[better]
                target[waiting[better]] = nodes[part][place[better]]

    def _bridge(self, at: int, begin: int) -> None:
        """Make a detour at a node: to a node of another ring, around that ring, and back."""
        again, back = len(self._pixels), len(self._pixels) + 1
        self._pixels += [self._pixels[begin], self._pixels[at]]
        last, onward = self._before[begin], self._after[at]
        self._after += [back, onward]
        self._before += [last, again]
        self._after[last], self._before[onward] = again, back
        self._after[at], self._before[begin] = begin, at

    def points(self, ring: int) -> Int[np.ndarray, "k 2"]:
        """The pixels of the outline that a ring is part of."""
        node = start = self._first[ring]
        found = []
        while True:
            found.append(self._pixels[node])
            node = self._after[node]
            if node == start:
                return np.array(found, np.int64)


def _without_straight_points(outline: Int[np.ndarray, "k 2"]) -> Int[np.ndarray, "n 2"]:
    """The outline without the points inside runs of equal steps, which draw the same line."""
    before = outline - np.roll(outline, 1, axis=0)
    after = np.roll(outline, -1, axis=0) - outline
    turns = (before != after).any(1)
    return outline[turns] if turns.any() else outline[:1]
