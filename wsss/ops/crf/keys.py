"""Keys of the vertices of the permutohedral lattice (Adams, Baek and Davis, Eurographics 2010): one number per vertex.

The lattice of d features lies in the plane of d + 1 coordinates that sum to 0. A step along axis j adds d to coordinate j and subtracts 1
from all others, so one step along every axis returns to the start.
"""

from typing import NamedTuple

import numpy as np

from wsss.arrays import Float, Float32, Int64
from wsss.errors import BadInput


class Basis(NamedTuple):
    """The conversion of features to lattice coordinates, and of lattice coordinates to keys."""

    scale: Float32[np.ndarray, "d"]
    """factor of each feature before it is embedded in the coordinates"""
    step: Int64[np.ndarray, "d+1"]
    """the amount that one step along each lattice axis adds to a key"""


def basis_of(low: Float[np.ndarray, "d"], high: Float[np.ndarray, "d"]) -> Basis:
    """The basis for features that range from `low` to `high`, and for the feature vector 0.

    With a_i the number of steps along axis i, the differences a_{i-1} - a_i (i = 1..d) identify a vertex. They are the digits of its key;
    the ranges of the features bound each digit, so that no two reachable vertices share a key.

    Raises:
        BadInput: the features exceed the published code's 16-bit coordinates, or the keys exceed 64 bits.
    """
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    d = len(low)
    scale = _scale(d)
    c_low, c_high = low.astype(np.float64) * scale, high.astype(np.float64) * scale
    # the lattice coordinates that the published code stores: E_j = c_j + .. + c_{d-1} - j c_{j-1} for j < d
    j = np.arange(d)
    lows = np.cumsum(c_low[::-1])[::-1] - j * np.roll(c_high, 1)
    highs = np.cumsum(c_high[::-1])[::-1] - j * np.roll(c_low, 1)
    reach = np.abs([lows, highs]).max()
    if not reach + 2 * (d + 1) < 2**15:
        raise BadInput(
            "dense CRF kernel",
            f"features that reach {reach:.0f} in lattice coordinates",
            "less than 32768, the range of the lattice's 16-bit coordinates",
            "Use larger standard deviations: sxy is in pixels, srgb in grey levels of 0..255.",
        )
    spread = c_high - c_low
    steps, stride = [0] * (d + 1), 1
    for i in range(1, d + 1):
        steps[i - 1] += stride
        steps[i] -= stride
        digits = (i + 1) * spread[i - 1] + (i - 1) * spread[i - 2]
        # 16: rounding and ranks change a digit by up to 3, the corners of a simplex by 1 and a blur by 1, in both directions
        stride *= int(digits / (d + 1)) + 16
    if stride >= 2**63:
        raise BadInput(
            "dense CRF kernel",
            f"a range of {stride:.1e} lattice points",
            "less than 2^63, so that a 64-bit number can identify each",
            "Use a larger sxy or srgb.",
        )
    return Basis(scale, np.array(steps, np.int64))


def _scale(d: int) -> Float32[np.ndarray, "d"]:
    """With sqrt(2/3) (d + 1), splat, blur and slice together have the width of the kernel; the rest makes the axes orthonormal."""
    sigma = np.float32(np.sqrt(2 / 3) * (d + 1))
    return np.array([float(sigma) / np.sqrt((i + 1) * (i + 2)) for i in range(d)], np.float32)
