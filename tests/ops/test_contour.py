"""Outlines and their matches against pixel-by-pixel definitions."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wsss.errors import BadInput
from wsss.ops.contour import boundary_counts, boundary_matches, tolerance_radius

LABELS = [0, 1, 2, 3, 255]
shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))
thresholds = st.sampled_from([0, 0.008, 0.1, 0.15, 0.3, 0.99, 1, 2, 3, 20])


@st.composite
def two_maps(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Two label maps of one size, in blobs or in noise."""
    height, width = draw(shapes)
    block = draw(st.integers(1, 4))
    coarse = arrays(np.uint8, (-(-height // block), -(-width // block)), elements=st.sampled_from(LABELS))
    one, other = (draw(coarse).repeat(block, 0).repeat(block, 1)[:height, :width] for _ in range(2))
    return one, other


def slow_boundary(mask: np.ndarray) -> np.ndarray:
    height, width = mask.shape
    outline = np.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            right = x + 1 < width and mask[y, x] != mask[y, x + 1]
            lower = y + 1 < height and mask[y, x] != mask[y + 1, x]
            diagonal = y + 1 < height and x + 1 < width and mask[y, x] != mask[y + 1, x + 1]
            outline[y, x] = right or lower or diagonal
    return outline


def slow_matched(mine: np.ndarray, others: np.ndarray, radius: int) -> np.ndarray:
    matched = np.zeros_like(mine)
    for y, x in np.argwhere(mine).tolist():
        matched[y, x] = any((y - v) ** 2 + (x - u) ** 2 <= radius**2 for v, u in np.argwhere(others).tolist())
    return matched


@settings(deadline=None)
@given(arrays(bool, shapes))
def test_the_outline_of_a_mask_and_of_its_opposite(mask: np.ndarray) -> None:
    found = boundary_matches(mask.astype(np.uint8), (~mask).astype(np.uint8), 1)
    assert found.truth_matched.dtype == bool
    np.testing.assert_array_equal(found.truth_matched, slow_boundary(mask))
    np.testing.assert_array_equal(found.prediction_matched, slow_boundary(mask))


@settings(deadline=None, max_examples=200)
@given(two_maps(), thresholds)
def test_counts_and_matches(maps: tuple[np.ndarray, np.ndarray], threshold: float) -> None:
    truth, prediction = maps
    radius = tolerance_radius(truth.shape, threshold)
    counts = boundary_counts(truth, prediction, 3, threshold)
    assert counts.dtype == np.int64
    for label in (1, 2, 3):
        one, other = slow_boundary(truth == label), slow_boundary(prediction == label)
        matched, other_matched = slow_matched(one, other, radius), slow_matched(other, one, radius)
        assert counts[label - 1].tolist() == [matched.sum(), other_matched.sum(), one.sum(), other.sum()]
        found = boundary_matches(truth, prediction, label, threshold)
        np.testing.assert_array_equal(found.truth_matched, matched)
        np.testing.assert_array_equal(found.truth_missed, one & ~matched)
        np.testing.assert_array_equal(found.prediction_matched, other_matched)
        np.testing.assert_array_equal(found.prediction_missed, other & ~other_matched)


@settings(deadline=None)
@given(two_maps(), thresholds)
def test_counts_are_symmetric(maps: tuple[np.ndarray, np.ndarray], threshold: float) -> None:
    one, other = maps
    there, back = boundary_counts(one, other, 3, threshold), boundary_counts(other, one, 3, threshold)
    np.testing.assert_array_equal(there, back[:, [1, 0, 3, 2]])
    same = boundary_counts(one, one, 3, threshold)
    np.testing.assert_array_equal(same, same[:, [3, 3, 3, 3]])


@pytest.mark.parametrize("radius", range(1, 30))
def test_reach_is_a_disk(radius: int) -> None:
    side = 2 * radius + 5
    centre = side // 2
    truth = np.zeros((side, side), np.uint8)
    truth[centre + 1, centre + 1] = 1  # its outline is it and the three pixels above and to the left
    corner = [(centre + dy, centre + dx) for dy in (0, 1) for dx in (0, 1)]
    prediction = np.indices((side, side)).sum(0).astype(np.uint8) % 2  # every pixel but the last is on the outline
    found = boundary_matches(truth, prediction, 1, radius).prediction_matched
    y, x = np.indices((side, side))
    expected = np.logical_or.reduce([(y - v) ** 2 + (x - u) ** 2 <= radius**2 for v, u in corner])
    expected[-1, -1] = False
    np.testing.assert_array_equal(found, expected)


def test_reach_does_not_wrap_around_the_picture() -> None:
    truth, prediction = np.zeros((6, 40), np.uint8), np.zeros((6, 40), np.uint8)
    truth[3, :2] = 1
    prediction[3, 38:] = 1
    prediction[2, 38:] = 1
    assert boundary_counts(truth, prediction, 1, 30)[0, :2].tolist() == [0, 0]
    assert boundary_counts(truth, prediction, 1, 39)[0, 0] > 0


def test_views_of_arrays_are_read_as_they_stand() -> None:
    draw = np.random.default_rng(0)
    one, other = draw.integers(0, 4, (2, 24, 30), np.uint8)
    expected = boundary_counts(one[::2, ::-3].copy(), other[::2, ::-3].copy(), 3)
    np.testing.assert_array_equal(boundary_counts(one[::2, ::-3], other[::2, ::-3], 3), expected)


def test_tolerance() -> None:
    assert tolerance_radius((375, 500)) == 5
    assert tolerance_radius((480, 640)) == 7
    assert tolerance_radius((10, 10), 0.999) == math.ceil(0.999 * math.sqrt(200))
    assert tolerance_radius((10, 10), 1) == 1
    assert tolerance_radius((10, 10), 0) == 0
    for threshold in (-0.1, 1.5, math.nan, math.inf):
        with pytest.raises(BadInput, match="contour tolerance"):
            tolerance_radius((10, 10), threshold)


def test_other_sizes_are_refused() -> None:
    truth = np.zeros((4, 5), np.uint8)
    for prediction in (np.zeros((5, 4), np.uint8), np.zeros((4, 5), np.int64)):
        with pytest.raises(BadInput, match=r"expected uint8 labels of shape \(4, 5\)"):
            boundary_counts(truth, prediction, 3)
        with pytest.raises(BadInput, match=r"expected uint8 labels of shape \(4, 5\)"):
            boundary_matches(truth, prediction, 1)
