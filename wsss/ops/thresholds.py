"""Background thresholds from the values of activation maps alone, without true masks.

All functions take a histogram of the highest map value of each pixel, summed over pictures (`highest_values`). Histograms are
exact integers, so sums over any division of the pictures are equal.
"""

import math
from typing import NamedTuple

import numpy as np

from wsss.arrays import Float, Int64, UInt8
from wsss.errors import BadInput

BINS = 256
# A valley has to be at least this deep, relative to the lower of the two peaks next to it, to count as one
_DEEP = 0.1
# The separation of a uniform distribution
_UNIFORM = 0.75
# Standard deviation of the Gaussian that smooths a histogram before its peaks are counted, as a share of the range
_SMOOTHING = 0.02

Counts = Int64[np.ndarray, " bins"]


def highest_values(maps: Float[np.ndarray, "k h w"]) -> Counts:
    """The histogram of the highest map value of each pixel, with `BINS` equal bins over [0, 1]; all zeros for no maps.

    Values outside [0, 1] count in the first or last bin.

    Raises:
        BadInput: a value is not a number.
    """
    if len(maps) == 0:
        return np.zeros(BINS, np.int64)
    highest = maps.max(0)
    if np.isnan(highest).any():
        raise BadInput("maps", "values that are not numbers", "values in [0, 1]", "Make the maps again.")
    # the product is exact, since the number of bins is a power of 2
    index = np.clip(highest * BINS, 0, BINS - 1).astype(np.int64)
    return np.bincount(index.ravel(), minlength=BINS)


def highest_label(
    scores: Float[np.ndarray, "k h w"], background: Float[np.ndarray, "..."] | None = None
) -> UInt8[np.ndarray, "h w"]:
    """The number of the highest score of each pixel, of the first one if several are equal; `argmax` in an eighth of its memory.

    Args:
        scores: numbers, at most 255 for each pixel.
        background: a score that comes first, as number 0, of all pixels or of each.
    """
    first, others = (scores[0], scores[1:]) if background is None else (background, scores)
    highest = np.broadcast_to(first.astype(scores.dtype, copy=False), scores.shape[1:]).copy()
    labels = np.zeros(scores.shape[1:], np.uint8)
    for label, one in enumerate(others, 1):
        above = one > highest
        np.copyto(highest, one, where=above)
        labels[above] = label
    return labels


def otsu(counts: Counts, of: Float[np.ndarray, " bins"] | None = None) -> float:
    """The threshold that maximises the variance between the values above and below it (Otsu, IEEE Trans. SMC 1979).

    Args:
        counts: a histogram over [0, 1] with equal bins.
        of: an increasing function of the values, whose variance is meant, in the middle of each bin; None for the values.

    Returns:
        The upper end of a bin, in (0, 1); the lowest if several are equally good. If all values are in one bin, they are above the
        threshold, unless they are close to 0.

    Raises:
        BadInput: the histogram is empty.
    """
    _check_counts(counts)
    filled = np.flatnonzero(counts)
    if len(filled) == 1:
        return max(float(filled[0]), 0.5) / len(counts)
    return float(_between(counts, _middles(len(counts)) if of is None else of).argmax() + 1) / len(counts)


def otsu_of_roots(counts: Counts) -> float:
    """As `otsu`, of the square roots of the values; the threshold is a value again.

    It is lower. Where foreground values vary a lot, as after a random walk, the variance of the high values no longer decides alone.

    Raises:
        BadInput: the histogram is empty.
    """
    return otsu(counts, np.sqrt(_middles(len(counts))))


def otsu_of_background(counts: Counts) -> float:
    """Otsu's threshold of the values below Otsu's threshold: the values below it are most certainly background.

    Raises:
        BadInput: the histogram is empty.
    """
    cut = math.floor(otsu(counts) * len(counts))
    below = np.where(np.arange(len(counts)) < cut, counts, 0)
    return otsu(below) if np.count_nonzero(below) > 1 else cut / len(counts)


def exponent_at(threshold: float) -> float:
    """The exponent alpha at which the background score (1 - highest map)^alpha equals the highest map at this threshold, in (0, 1).

    A pixel is then foreground iff its highest map is above the threshold.
    """
    return math.log(threshold) / math.log1p(-threshold)


class Humps(NamedTuple):
    """The shape of a histogram.

    Attributes:
        separation: share of the variance that lies between the values above and below Otsu's threshold, in [0, 1]: 0.64 for a
            normal and 0.75 for a uniform distribution, 1 for two values. None if all values are in one bin.
        valley: depth of the deepest valley between two peaks of the smoothed histogram, relative to the lower peak, in [0, 1];
            0 if there is one hump only.
    """

    separation: float | None
    valley: float

    @property
    def one_hump(self) -> bool:
        """Whether the values suggest no threshold: no valley to speak of, and separated less than uniform values are.

        Values with a single peak at 0 and a long tail have no valley either, but are separated well.
        """
        return self.valley < _DEEP and (self.separation is None or self.separation < _UNIFORM)


def humps(counts: Counts) -> Humps:
    """How clearly a histogram falls into two parts.

    Raises:
        BadInput: the histogram is empty.
    """
    _check_counts(counts)
    shares = counts / counts.sum()
    middles = _middles(len(counts))
    spread = float((shares * (middles - (shares * middles).sum()) ** 2).sum())
    several = np.count_nonzero(counts) > 1
    separation = min(float(_between(counts, middles).max()) / spread, 1.0) if several else None
    return Humps(separation, _valley(_smoothed(shares)))


class Thresholds(NamedTuple):
    """All that the values of maps say about thresholds.

    Attributes:
        otsu: Otsu's threshold.
        otsu_sqrt: Otsu's threshold of the square roots.
        lower: Otsu's threshold of the values below Otsu's threshold.
        separation, valley: see `Humps`.
        one_hump: whether the values suggest no threshold.
    """

    otsu: float
    otsu_sqrt: float
    lower: float
    separation: float | None
    valley: float
    one_hump: bool


def thresholds(counts: Counts) -> Thresholds:
    """The thresholds and the shape of a histogram.

    Raises:
        BadInput: the histogram is empty.
    """
    shape = humps(counts)
    return Thresholds(otsu(counts), otsu_of_roots(counts), otsu_of_background(counts), *shape, shape.one_hump)


def _middles(bins: int) -> Float[np.ndarray, "{bins}"]:
    return (np.arange(bins) + 0.5) / bins


def _between(counts: Counts, values: Float[np.ndarray, " bins"]) -> Float[np.ndarray, " cuts"]:
    """The variance of the values between the two classes, for a cut after each bin but the last."""
    shares = counts / counts.sum()
    below = shares.cumsum()[:-1]
    sums = (shares * values).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (sums[-1] * below - sums[:-1]) ** 2 / (below * (1 - below))
    two_classes = (counts.cumsum()[:-1] > 0) & (counts[::-1].cumsum()[::-1][1:] > 0)
    return np.where(two_classes, between, 0.0)


def _smoothed(shares: Float[np.ndarray, " bins"]) -> Float[np.ndarray, " bins"]:
    width = _SMOOTHING * len(shares)
    offsets = np.arange(-math.ceil(4 * width), math.ceil(4 * width) + 1)
    kernel = np.exp(-0.5 * (offsets / width) ** 2)
    reach = len(offsets) // 2
    # mirrored at the ends, so that a peak at 0 or 1 stays a peak
    padded = np.pad(shares, reach, mode="symmetric") if reach <= len(shares) else np.pad(shares, reach)
    return np.convolve(padded, kernel / kernel.sum(), mode="valid")


def _valley(heights: Float[np.ndarray, " bins"]) -> float:
    left, right = np.maximum.accumulate(heights), np.maximum.accumulate(heights[::-1])[::-1]
    lower = np.minimum(left, right)
    # where there is nothing on one side, there is no second peak
    depths = 1 - np.divide(heights, lower, out=np.ones_like(heights), where=lower > 0)
    return float(depths.max())


def _check_counts(counts: Counts) -> None:
    if not counts.any():
        raise BadInput("histogram of map values", "no values", "maps of at least one picture", "Check the maps.")
