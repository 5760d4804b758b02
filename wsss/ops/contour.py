"""Contour F-score: how well the outlines of two label maps agree within a tolerance ("F", Perazzi et al., CVPR 2016).

The outline of a class is stored as sorted pixel positions, not as a mask. A pixel of one outline is matched if
the other outline has a pixel in the disk around it; this is decided by one pass over both sorted lists for each row of the
disk. No mask is dilated, and classes that occur in neither map take no time.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from wsss.arrays import Bool, Int64, Shaped, UInt8
from wsss.errors import BadInput


class BoundaryMatches(NamedTuple):
    """The outlines of one class in two label maps, split into matched and missed pixels."""

    truth_matched: Bool[np.ndarray, "h w"]
    truth_missed: Bool[np.ndarray, "h w"]
    prediction_matched: Bool[np.ndarray, "h w"]
    prediction_missed: Bool[np.ndarray, "h w"]


def tolerance_radius(size_hw: tuple[int, int], threshold: float = 0.008) -> int:
    """The tolerance in pixels: a fraction of the picture's diagonal, rounded up; a `threshold` of 1 or more is the number of pixels.

    Raises:
        BadInput: `threshold` is negative, not finite, or a fractional number of pixels.
    """
    if not 0 <= threshold < math.inf or (threshold >= 1 and threshold != int(threshold)):
        raise BadInput(
            "contour tolerance",
            f"{threshold}",
            "a fraction of the diagonal in [0, 1), or a whole number of pixels",
            "Use 0.008, the published value, or a number of pixels such as 3.",
        )
    return int(threshold) if threshold >= 1 else math.ceil(threshold * math.sqrt(size_hw[0] ** 2 + size_hw[1] ** 2))


def boundary_counts(
    truth: UInt8[np.ndarray, "h w"],
    prediction: Shaped[np.ndarray, "..."],
    n_classes: int,
    threshold: float = 0.008,
) -> Int64[np.ndarray, "{n_classes} 4"]:
    """Outline pixels of each foreground class 1..n_classes, counted for the contour F-score.

    Args:
        truth: label map; 255 is not a class, so an ignored band counts as background and the outline is its inner edge.
        prediction: uint8 label map of the same size.
        n_classes: without the background.
        threshold: see `tolerance_radius`.

    Returns:
        A row for each class: number of matched outline pixels of the truth, of matched outline pixels of the prediction, of all outline
        pixels of the truth, and of all outline pixels of the prediction. Zeros for a class that occurs in neither.

    Raises:
        BadInput: the two maps differ in size, or `threshold` is invalid.
    """
    return _counts(*_prepared(truth, prediction), n_classes, *_disk(truth, threshold))


def boundary_matches(
    truth: UInt8[np.ndarray, "h w"],
    prediction: Shaped[np.ndarray, "..."],
    label: int,
    threshold: float = 0.008,
) -> BoundaryMatches:
    """Where the outlines of the class `label` agree and where they differ; arguments and errors as in `boundary_counts`.

    A pixel belongs to an outline, which is one pixel wide and shifted half a pixel toward the origin, if its right, lower or lower-right
    neighbour has another value. The border of the picture is not an outline, and its lower right corner never belongs to one.
    The sums of the four maps are the class's row in `boundary_counts`: matched, matched, matched + missed of each.
    """
    one, other = ((labels == label).astype(np.uint8) for labels in _prepared(truth, prediction))
    stride, widths = _disk(truth, threshold)
    positions = [_outlines(mask, 1, stride)[0] for mask in (one, other)]
    maps = []
    for outline, reference in (positions, positions[::-1]):
        matched = _matched(outline, reference, stride, widths)
        maps += [_as_mask(outline[flags], stride, truth.shape) for flags in (matched, ~matched)]
    return BoundaryMatches(*maps)


def _prepared(truth: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if prediction.shape != truth.shape or prediction.dtype != np.uint8:
        raise BadInput(
            "contour of a prediction",
            f"{prediction.dtype} labels of shape {prediction.shape}",
            f"uint8 labels of shape {truth.shape}, like the true mask",
            "Predict at the size of the picture.",
        )
    return np.ascontiguousarray(truth), np.ascontiguousarray(prediction)


def _disk(truth: np.ndarray, threshold: float) -> tuple[int, np.ndarray]:
    """Row stride of the positions, and half the width of the disk {dx² + dy² <= r²} in its rows |dy| = 0..r.

    Rows are r pixels longer than the picture, so that a run that leaves the picture on one side does not reach pixels on the other.
    """
    radius = tolerance_radius(truth.shape, threshold)
    widths = [math.isqrt(radius**2 - dy**2) for dy in range(radius + 1)]
    return truth.shape[1] + radius, np.array(widths, np.int64)


def _as_mask(positions: np.ndarray, stride: int, size_hw: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(size_hw, bool)
    mask[np.divmod(positions, stride)] = True
    return mask


@njit(nogil=True, cache=True)
def _outlines(labels: np.ndarray, n_classes: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions y * stride + x of the outlines of labels 1..n_classes, and the index of the first position of each class.

    A pixel is on the outline of every class that occurs in it and its three neighbours, if these are not all equal.
    """
    height, width = labels.shape
    mixed = np.empty(height * width, np.int64)
    n_mixed = 0
    for y in range(height):
        below = min(y + 1, height - 1)
        for x in range(width - 1):
            label = labels[y, x]
            if labels[y, x + 1] != label or labels[below, x] != label or labels[below, x + 1] != label:
                mixed[n_mixed] = y * width + x
                n_mixed += 1
        if labels[below, width - 1] != labels[y, width - 1]:
            mixed[n_mixed] = y * width + width - 1
            n_mixed += 1

    found = np.empty((n_mixed, 4), np.uint8)
    starts = np.zeros(n_classes + 2, np.int64)
    for i in range(n_mixed):
        y, x = mixed[i] // width, mixed[i] % width
        below, right = min(y + 1, height - 1), min(x + 1, width - 1)
        found[i] = 0
        for k, label in enumerate((labels[y, x], labels[y, right], labels[below, x], labels[below, right])):
            if 1 <= label <= n_classes and label not in (found[i, 0], found[i, 1], found[i, 2]):
                found[i, k] = label
                starts[label + 1] += 1
    starts = starts.cumsum()

    positions = np.empty(starts[-1], np.int64)
    filled = starts.copy()
    for i in range(n_mixed):
        for k in range(4):
            label = found[i, k]
            if label:
                positions[filled[label]] = mixed[i] // width * stride + mixed[i] % width
                filled[label] += 1
    return positions, starts


@njit(nogil=True, cache=True)
def _matched(positions: np.ndarray, reference: np.ndarray, stride: int, widths: np.ndarray) -> np.ndarray:
    """Which of the ascending positions have one of the ascending `reference` positions in the disk around them."""
    matched = np.zeros(positions.size, np.bool_)
    for row in range(2 * widths.size - 1):
        dy = (row + 1) // 2 * (1 if row % 2 else -1)
        offset, reach, k = dy * stride, widths[abs(dy)], 0
        for i in range(positions.size):
            if matched[i]:
                continue
            while k < reference.size and reference[k] < positions[i] + offset - reach:
                k += 1
            if k == reference.size:
                break
            matched[i] = reference[k] <= positions[i] + offset + reach
    return matched


@njit(nogil=True, cache=True)
def _counts(truth: np.ndarray, prediction: np.ndarray, n_classes: int, stride: int, widths: np.ndarray) -> np.ndarray:
    truth_positions, truth_starts = _outlines(truth, n_classes, stride)
    positions, starts = _outlines(prediction, n_classes, stride)
    counts = np.zeros((n_classes, 4), np.int64)
    for label in range(1, n_classes + 1):
        of_truth = truth_positions[truth_starts[label] : truth_starts[label + 1]]
        of_prediction = positions[starts[label] : starts[label + 1]]
        counts[label - 1, 2], counts[label - 1, 3] = of_truth.size, of_prediction.size
        if of_truth.size and of_prediction.size:
            counts[label - 1, 0] = _matched(of_truth, of_prediction, stride, widths).sum()
            counts[label - 1, 1] = _matched(of_prediction, of_truth, stride, widths).sum()
    return counts
