"""A hierarchy of regions: the two most similar neighbours are merged until one region is left, which fills the picture.

The cost of merging two regions is (b + d) sqrt(m): b is the mean difference of the pixels on both sides of their common outline, d the
difference of their mean colours, and m the number of pixels of the smaller one, so that small regions are merged first. Colours are CIELAB.

A region that stands out is merged late. Its score is x / (1 + x) with x = c (1 - e) / sqrt(p): c is the highest cost of the merges in the
region that it becomes part of, e the share of its outline that is the border of the picture, and p the number of pixels of the picture.
"""

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from wsss.arrays import Float, Int, Int32, UInt8

# of two neighbours: the sum of the differences across their outline, and the number of pairs of pixels there
_Outline = tuple[float, int]


class Hierarchy(NamedTuple):
    """How regions are merged.

    Attributes:
        merges: the pairs of regions that are merged, in order; the k-th merge makes the region n + k.
        scores: how much each region stands out, those of the n first regions first, in [0, 1]; 0 for the region that is left.
    """

    merges: list[tuple[int, int]]
    scores: Float[np.ndarray, " r"]


def hierarchy(image: UInt8[np.ndarray, "h w 3"], regions: Int32[np.ndarray, "h w"]) -> Hierarchy:
    """Merge regions until one is left.

    Args:
        image: RGB.
        regions: numbers from 0 to n - 1; each occurs.
    """
    colours = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    flat = regions.ravel()
    areas = np.bincount(flat).tolist()
    totals = [np.bincount(flat, colours[..., channel].ravel()) for channel in range(3)]
    means = [tuple(mean) for mean in (np.stack(totals, axis=1) / np.array(areas)[:, None]).tolist()]
    outlines = _outlines(colours, regions)
    merges: list[tuple[int, int]] = []
    # of each region: the pairs of pixels on its outline, its sides of pixels at the border of the picture, the highest cost of the merges in it,
    # and that of the merges in the region that it becomes part of
    lengths = [sum(pairs for _, pairs in of.values()) for of in outlines]
    border = np.concatenate([regions[[0, -1]].ravel(), regions[:, [0, -1]].ravel()])
    at_border = np.bincount(border, minlength=len(areas)).tolist()
    within, beyond = [0.0] * len(areas), [0.0] * len(areas)

    def cost(a: int, b: int) -> float:
        (l1, a1, b1), (l2, a2, b2), (total, pairs) = means[a], means[b], outlines[a][b]
        distance = ((l1 - l2) ** 2 + (a1 - a2) ** 2 + (b1 - b2) ** 2) ** 0.5
        return (total / pairs + distance) * min(areas[a], areas[b]) ** 0.5

    queue = [(cost(a, b), a, b) for a, others in enumerate(outlines) for b in others if a < b]
    heapq.heapify(queue)
    merged = [False] * len(areas)
    while queue:
        needed, a, b = heapq.heappop(queue)
        if merged[a] or merged[b]:
            continue
        new = len(areas)
        merges.append((a, b))
        merged[a] = merged[b] = True
        merged.append(False)
        within.append(max(needed, within[a], within[b]))
        beyond[a] = beyond[b] = within[new]
        beyond.append(0.0)
        lengths.append(lengths[a] + lengths[b] - 2 * outlines[a][b][1])
        at_border.append(at_border[a] + at_border[b])
        areas.append(areas[a] + areas[b])
        means.append(tuple((x * areas[a] + y * areas[b]) / areas[new] for x, y in zip(means[a], means[b], strict=True)))
        outlines.append(_joined(outlines, a, b))
        for other, outline in outlines[new].items():
            outlines[other][new] = outline
            heapq.heappush(queue, (cost(other, new), other, new))
    inside = np.array(lengths) / (np.array(lengths) + np.array(at_border))
    standing_out = np.array(beyond) * inside / regions.size**0.5
    return Hierarchy(merges, standing_out / (1 + standing_out))


def _outlines(colours: Float[np.ndarray, "h w 3"], regions: Int32[np.ndarray, "h w"]) -> list[dict[int, _Outline]]:
    """The neighbours of each region, and the outlines between them. Pixels that only touch diagonally are no neighbours."""
    n = int(regions.max()) + 1
    keys, differences = [], []
    for axis in (0, 1):
        difference = np.sqrt((np.diff(colours, axis=axis) ** 2).sum(axis=2)).ravel()
        first, second = (np.delete(regions, end, axis).ravel().astype(np.int64) for end in (-1, 0))
        across = first != second
        keys.append((np.minimum(first, second) * n + np.maximum(first, second))[across])
        differences.append(difference[across])
    pairs, of = np.unique(np.concatenate(keys), return_inverse=True)
    totals, counts = np.bincount(of, np.concatenate(differences)), np.bincount(of)
    outlines: list[dict[int, _Outline]] = [{} for _ in range(n)]
    for pair, total, count in zip(pairs.tolist(), totals.tolist(), counts.tolist(), strict=True):
        a, b = divmod(pair, n)
        outlines[a][b] = outlines[b][a] = (total, count)
    return outlines


def _joined(outlines: list[dict[int, _Outline]], a: int, b: int) -> dict[int, _Outline]:
    """The neighbours of two regions together, which no longer are neighbours of these."""
    new: dict[int, _Outline] = {}
    for one, partner in ((a, b), (b, a)):
        for other, (total, count) in outlines[one].items():
            if other == partner:
                continue
            before = new.get(other, (0.0, 0))
            new[other] = before[0] + total, before[1] + count
            del outlines[other][one]
    return new


def nested(
    regions: Int32[np.ndarray, "h w"], coarser: Sequence[Int32[np.ndarray, "h w"]]
) -> list[Int[np.ndarray, " n"]]:
    """The larger region that most pixels of each region lie in, on each level; regions that are together on one level are so on the next.

    Args:
        regions: numbers from 0 to n - 1; each occurs.
        coarser: larger regions, from 0, the largest ones last.
    """
    part, found = np.arange(int(regions.max()) + 1), []
    for level in coarser:
        count = int(level.max()) + 1
        pairs = (part[regions].astype(np.int64) * count + level).ravel()
        shared = np.bincount(pairs, minlength=(int(part.max()) + 1) * count)
        part = shared.reshape(-1, count).argmax(axis=1)[part]
        found.append(part)
    return found


def cuts(n: int, merges: Sequence[tuple[int, int]], numbers: Sequence[int]) -> list[Int[np.ndarray, " n"]]:
    """The region to which each of the `n` regions belongs when a given number of regions is left, for each of several numbers.

    Args:
        n: regions before the first merge.
        merges: see `Hierarchy`.
        numbers: in descending order.

    Returns:
        Regions as numbered in `merges`.
    """
    region = np.arange(n + len(merges))
    found, done = [], 0
    for number in numbers:
        for a, b in merges[done : n - number]:
            region[[a, b]] = n + done
            done += 1
        # a merge is later than those of its parts, so one pass from the last one to the first is enough
        top = region[: n + done].copy()
        for k in range(n + done - 1, -1, -1):
            top[k] = top[top[k]]
        found.append(top[:n].copy())
    return found
