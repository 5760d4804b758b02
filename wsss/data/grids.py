"""Predicts the maps of a picture from the small arrays that they were enlarged from, bit by bit the same on every machine.

Most maps are sums of arrays with one value for each cell of a network, which were enlarged bilinearly. Their files hold these arrays in whole
numbers, and how the maps differ from what is predicted by them (`wsss.data.packing`), which is nothing for nearly all pixels. The
prediction adds and multiplies whole numbers below 2^53 in float64, which is exact in any order; only its last two steps round, as IEEE 754
prescribes: a product, and the conversion to float16.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from wsss.arrays import Float, Float16, Int

# the sum of the highest values of all grids, and bilinear weights, are below 2 to these powers; with two weights for each value that is 52 bits
_VALUE_BITS, _WEIGHT_BITS = 22, 15
LARGEST = 2**_VALUE_BITS
_WHOLE_WEIGHT = 2**_WEIGHT_BITS
# values that are computed at a time, while the grids that they need are in the processor's cache, and the fewest rows
_BLOCK, _ROWS = 2**14, 16
# multiplications of a matrix product: OpenBLAS computes this many in the thread that asks, and more in threads of its own, of which
# several pictures at once would have too many
_PRODUCT = 2**18
# the longest side of maps, and values beyond 16 for each of theirs
_LONGEST, _ROOM = 2**16, 2**16
# values of grids that were enlarged along the columns; beyond, maps are predicted one after the other
_ENLARGED = 2**20


class Grids(NamedTuple):
    """The arrays that the maps of a picture are made of: each map is their sum, enlarged bilinearly, times a factor of its class.

    Attributes:
        values: one array for each view of the picture, finite and at least 0.
        enlarged_hw: height and width that they are enlarged to (pixel centres, as with align_corners False), before maps are cropped to the
            picture at the right and bottom.
    """

    values: Sequence[Float[np.ndarray, "k _ _"]]
    enlarged_hw: tuple[int, int]


def fit(sizes_hw: Sequence[tuple[int, int]], size_hw: tuple[int, int]) -> bool:
    """Whether maps of this height and width are predicted by grids of these sizes: not if that would take many times their memory."""
    rows, longest = sum(height for height, _ in sizes_hw), max(size_hw)
    return rows > 0 and 0 < longest <= _LONGEST and rows * longest <= 16 * math.prod(size_hw) + _ROOM


def whole_numbers(grids: Sequence[Float[np.ndarray, "k _ _"]]) -> list[Float[np.ndarray, "k _ _"]]:
    """Grids, multiplied by one number and rounded, so that their highest values add up to `LARGEST` at most.

    All are 0 if a value is not finite; what is below 0 becomes 0.
    """
    highest = sum(float(one.max(initial=0)) for one in grids)
    # each may be rounded up by one half
    factor = (LARGEST - len(grids)) / highest if highest > 0 else 0.0
    if not 0 < factor < np.inf:
        return [np.zeros(one.shape) for one in grids]
    return [np.rint(one.clip(min=0).astype(np.float64) * factor) for one in grids]


def _neighbours(
    pixels: Int[np.ndarray, " n"], cells: int, length: int
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """For some of `length` pixels (int64): the cells before and after each, and the weight of the latter in `_WHOLE_WEIGHT` parts."""
    twice = np.maximum((2 * pixels + 1) * cells - length, 0)
    before, rest = np.divmod(twice, 2 * length)
    return before, np.minimum(before + 1, cells - 1), (rest * _WHOLE_WEIGHT + length) // (2 * length)


@functools.lru_cache(maxsize=64)
def _first_neighbours(count: int, cells: int, length: int) -> tuple[Int[np.ndarray, " n"], ...]:
    """`_neighbours` of the first pixels; most pictures of a data set have the same sizes."""
    return _neighbours(np.arange(count), cells, length)


def _along_columns(grid: Float[np.ndarray, "k r c"], width: int, length: int) -> Float[np.ndarray, "k r w"]:
    before, after, weight = _first_neighbours(width, grid.shape[2], length)
    return grid[:, :, before] * (_WHOLE_WEIGHT - weight) + grid[:, :, after] * weight


def predicted(
    whole: Sequence[Float[np.ndarray, "k _ _"]],
    factors: Float[np.ndarray, " k"],
    size_hw: tuple[int, int],
    enlarged_hw: tuple[int, int],
) -> Float16[np.ndarray, "k h w"]:
    """The maps that grids predict.

    Args:
        whole: the grids, of `whole_numbers`.
        factors: of `fitted`.
        size_hw: height and width of the maps, at most `enlarged_hw`.
        enlarged_hw: see `Grids`.
    """
    height, width = size_hw
    weights = np.zeros((height, sum(grid.shape[1] for grid in whole)))
    pixels, first = np.arange(height), 0
    for grid in whole:
        before, after, weight = _first_neighbours(height, grid.shape[1], enlarged_hw[0])
        weights[pixels, first + before] += _WHOLE_WEIGHT - weight
        weights[pixels, first + after] += weight
        first += grid.shape[1]
    maps = np.empty((len(factors), height, width), np.float16)
    together = max(1, _ENLARGED // max(1, weights.shape[1] * width))
    for start in range(0, len(maps), together):
        some = slice(start, start + together)
        rows = np.concatenate([_along_columns(grid[some], width, enlarged_hw[1]) for grid in whole], 1)
        _fill(maps[some], rows, weights, factors[some])
    return maps


def _fill(
    maps: Float16[np.ndarray, "k h w"],
    rows: Float[np.ndarray, "k r w"],
    weights: Float[np.ndarray, "h r"],
    factors: Float[np.ndarray, " k"],
) -> None:
    """Fill maps with weighted sums of rows."""
    count, height, width = maps.shape
    # beside each other, for one matrix product
    beside = np.ascontiguousarray(rows.swapaxes(0, 1)).reshape(rows.shape[1], -1)
    step = max(_ROWS, _BLOCK // max(1, count * width))
    for top in range(0, height, step):
        part = weights[top : top + step]
        used = np.flatnonzero(part.any(0))
        shares, needed = part[:, used], beside[used]
        sums = np.empty((len(part), count * width))
        columns = max(1, _PRODUCT // max(1, shares.size))
        for left in range(0, count * width, columns):
            np.matmul(shares, needed[:, left : left + columns], out=sums[:, left : left + columns])
        block = sums.reshape(len(part), count, width)
        # a damaged file may hold factors of any size
        with np.errstate(over="ignore", invalid="ignore"):
            block *= factors[:, None]
            maps[:, top : top + step] = block.swapaxes(0, 1)


def fitted(
    whole: Sequence[Float[np.ndarray, "k _ _"]], maps: Float[np.ndarray, "k h w"], enlarged_hw: tuple[int, int]
) -> Float[np.ndarray, " k"]:
    """The factor of each map with which its grids predict its highest value; 0 for one that they do not predict.

    Args:
        whole: the grids, of `whole_numbers`.
        maps: as they were computed, not yet rounded to float16.
        enlarged_hw: see `Grids`.
    """
    factors = np.zeros(len(maps))
    for number, one in enumerate(maps):
        row, column = divmod(int(one.argmax()), one.shape[1])
        total, value = sum(_at(grid[number], (row, column), enlarged_hw) for grid in whole), float(one[row, column])
        if total > 0 and np.isfinite(value):
            factors[number] = value / total
    return factors


def _at(grid: Float[np.ndarray, "r c"], pixel: tuple[int, int], enlarged_hw: tuple[int, int]) -> float:
    """The value of an enlarged grid at one pixel, as `predicted` sums it."""
    (top, bottom, down), (left, right, along) = (
        [int(part[0]) for part in _neighbours(np.array([place]), cells, length)]
        for place, cells, length in zip(pixel, grid.shape, enlarged_hw, strict=True)
    )
    first, second = (
        (_WHOLE_WEIGHT - along) * float(grid[row, left]) + along * float(grid[row, right]) for row in (top, bottom)
    )
    return (_WHOLE_WEIGHT - down) * first + down * second
