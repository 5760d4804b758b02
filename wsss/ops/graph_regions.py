"""Efficient graph-based image segmentation (Felzenszwalb and Huttenlocher, IJCV 2004): regions of pixels with similar colours.

Neighbouring pixels are joined in the order of the difference of their colours. Two regions are joined where their difference w is at most
Int(C) + k / |C| for both, with Int(C) the largest difference that was joined in a region so far, |C| its number of pixels, and k the scale:
higher scales give larger regions.
"""

from collections.abc import Sequence

import numpy as np
from numba import njit

from wsss.arrays import Int32, UInt8

# a pixel's neighbours on one side: right, below, and the two diagonals below
_STEPS = ((0, 1), (1, 0), (1, 1), (1, -1))


def graph_regions(
    image: UInt8[np.ndarray, "h w 3"], scales: Sequence[float], sigma: float, smallest: int
) -> list[Int32[np.ndarray, "h w"]]:
    """The region of each pixel, at each scale.

    Args:
        image: RGB.
        scales: k, for colours from 0 to 255.
        sigma: standard deviation of the Gaussian that smooths the picture first, in pixels.
        smallest: regions with fewer pixels are joined with the neighbour of the most similar colour.

    Returns:
        Numbers from 0, in the order of the first pixels of the regions. Regions are connected, some of them only diagonally.
    """
    from scipy import ndimage  # slow to import

    height, width = image.shape[:2]
    smooth = ndimage.gaussian_filter(image.astype(np.float32), (sigma, sigma, 0))
    first, second, difference = _pairs(smooth)
    order = _ascending(difference.view(np.uint32))
    ordered = first[order], second[order], difference[order]
    return [_joined(*ordered, height * width, float(scale), smallest).reshape(height, width) for scale in scales]


@njit(nogil=True, cache=True)
def _pairs(smooth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of neighbouring pixels, one step after the other, and the distances of their colours."""
    height, width = smooth.shape[:2]
    count = 0
    for down, across in _STEPS:
        count += (height - down) * (width - abs(across))
    first = np.empty(count, dtype=np.int32)
    second = np.empty(count, dtype=np.int32)
    distance = np.empty(count, dtype=np.float32)
    at = 0
    for down, across in _STEPS:
        for y in range(height - down):
            for x in range(max(0, -across), width - max(0, across)):
                total = np.float32(0)
                for channel in range(3):
                    difference = smooth[y, x, channel] - smooth[y + down, x + across, channel]
                    total += difference * difference
                first[at] = y * width + x
                second[at] = (y + down) * width + x + across
                distance[at] = np.sqrt(total)
                at += 1
    return first, second, distance


@njit(nogil=True, cache=True)
def _ascending(keys: np.ndarray) -> np.ndarray:
    """A stable order of keys, by 11 bits at a time; the bits of float32 numbers that are not negative ascend as these do."""
    order = np.arange(len(keys), dtype=np.int32)
    other = np.empty_like(order)
    for shift in (0, 11, 22):
        starts = np.zeros(2049, dtype=np.int64)
        for key in keys:
            starts[((key >> shift) & 2047) + 1] += 1
        starts = np.cumsum(starts)
        for at in order:
            digit = (keys[at] >> shift) & 2047
            other[starts[digit]] = at
            starts[digit] += 1
        order, other = other, order
    return order


@njit(nogil=True, cache=True)
def _root(parent: np.ndarray, at: int) -> int:
    while parent[at] != at:
        parent[at] = parent[parent[at]]
        at = parent[at]
    return at


@njit(nogil=True, cache=True)
def _joined(
    first: np.ndarray, second: np.ndarray, difference: np.ndarray, count: int, scale: float, smallest: int
) -> np.ndarray:
    """The region of each of `count` pixels, from pairs of neighbours in ascending order of their differences."""
    parent = np.arange(count, dtype=np.int32)
    size = np.ones(count, dtype=np.int32)
    # Int(C) + k / |C|
    limit = np.full(count, scale, dtype=np.float64)
    for i in range(len(first)):
        a, b = _root(parent, first[i]), _root(parent, second[i])
        if a != b and difference[i] <= limit[a] and difference[i] <= limit[b]:
            parent[b] = a
            size[a] += size[b]
            limit[a] = difference[i] + scale / size[a]
    for i in range(len(first)):
        a, b = _root(parent, first[i]), _root(parent, second[i])
        if a != b and (size[a] < smallest or size[b] < smallest):
            parent[b] = a
            size[a] += size[b]
    number = np.full(count, -1, dtype=np.int32)
    regions = np.empty(count, dtype=np.int32)
    found = 0
    for i in range(count):
        a = _root(parent, i)
        if number[a] < 0:
            number[a] = found
            found += 1
        regions[i] = number[a]
    return regions
