"""Superpixels by seeded watershed: small connected regions whose outlines follow edges.

One seed per cell of a regular grid, at the pixel with the smallest gradient (Machairas et al., "Waterpixels", TIP 2015), flooded by OpenCV's
watershed, which compares the colours of neighbouring pixels. The grid alone decides the number of regions: a single
bright pixel changes regions only near it.
"""

import cv2
import numpy as np

from wsss.arrays import Int32, UInt8
from wsss.errors import check_range

SMALLEST, LARGEST = 4, 512


def superpixels(image: UInt8[np.ndarray, "h w 3"], side: int) -> Int32[np.ndarray, "h w"]:
    """The superpixel of each pixel.

    Args:
        image: 0 to 255; the order of the channels does not matter.
        side: side of a grid cell in pixels, so that regions have about `side ** 2` pixels; 4 to 512.

    Returns:
        Numbers from 0, one for each region, row by row through the grid. Regions are 4-connected.

    Raises:
        BadInput: `side` is out of range.
    """
    check_range("side", side, SMALLEST, LARGEST)
    smooth = cv2.GaussianBlur(image, (5, 5), 1.0)
    gradient = cv2.morphologyEx(smooth, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)).max(axis=2)
    rows, columns = _seeds(gradient, side)
    # with a frame of one pixel, which OpenCV overwrites
    framed = np.zeros((gradient.shape[0] + 2, gradient.shape[1] + 2), np.int32)
    framed[rows + 1, columns + 1] = np.arange(1, len(rows) + 1)
    cv2.watershed(cv2.copyMakeBorder(smooth, 1, 1, 1, 1, cv2.BORDER_REPLICATE), framed)
    return _without_boundaries(smooth, framed[1:-1, 1:-1]) - 1


def _seeds(gradient: UInt8[np.ndarray, "h w"], side: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of the seed of each cell: the smallest gradient in the cell's inner half, nearest to its centre."""
    height, width = gradient.shape
    down, across = max(1, round(height / side)), max(1, round(width / side))
    # cells of equal size, centred: what is left over at the border belongs to the outer cells
    step_down, step_across = min(side, height), min(side, width)
    top, left = max(0, (height - down * step_down) // 2), max(0, (width - across * step_across) // 2)
    padded = np.full((max(height, top + down * step_down), max(width, left + across * step_across)), 255, np.int64)
    padded[:height, :width] = gradient
    cells = padded[top : top + down * step_down, left : left + across * step_across]
    cells = cells.reshape(down, step_down, across, step_across).swapaxes(1, 2)
    from_centre = np.hypot(*np.ogrid[-(step_down - 1) / 2 : step_down / 2, -(step_across - 1) / 2 : step_across / 2])
    inner = from_centre <= max(1.0, min(step_down, step_across) / 4)
    cost = np.where(inner, cells * 1_000_000 + np.rint(1000 * from_centre).astype(np.int64), np.iinfo(np.int64).max)
    best = cost.reshape(down, across, -1).argmin(axis=2)
    rows = top + np.arange(down)[:, None] * step_down + best // step_across
    columns = left + np.arange(across)[None] * step_across + best % step_across
    inside = (rows < height) & (columns < width)
    return rows[inside], columns[inside]


def _without_boundaries(image: UInt8[np.ndarray, "h w 3"], regions: Int32[np.ndarray, "h w"]) -> np.ndarray:
    """The regions, with each pixel of a boundary (-1) given to the neighbour of the most similar colour."""
    colours = image.astype(np.int32)
    while (regions < 1).any():
        best, nearest = np.full(regions.shape, np.iinfo(np.int32).max), regions.copy()
        for axis, shift in ((0, 1), (0, -1), (1, 1), (1, -1)):
            other = _shifted(regions, axis, shift, fill=-1)
            distance = np.abs(colours - _shifted(colours, axis, shift, fill=0)).max(axis=2)
            closer = (regions < 1) & (other > 0) & (distance < best)
            best[closer], nearest[closer] = distance[closer], other[closer]
        regions = nearest
    return regions


def _shifted(values: np.ndarray, axis: int, shift: int, fill: int) -> np.ndarray:
    moved = np.roll(values, shift, axis)
    edge = [slice(None)] * values.ndim
    edge[axis] = slice(0, 1) if shift > 0 else slice(-1, None)
    moved[tuple(edge)] = fill
    return moved
