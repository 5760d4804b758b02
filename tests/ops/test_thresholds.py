"""Otsu's thresholds against a search over all cuts, and the shape of histograms."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wsss.errors import BadInput
from wsss.ops.thresholds import (
    BINS,
    exponent_at,
    highest_label,
    highest_values,
    humps,
    otsu,
    otsu_of_background,
    otsu_of_roots,
    thresholds,
)

counts_of = arrays(np.int64, BINS, elements=st.integers(0, 50)).filter(lambda counts: np.count_nonzero(counts) > 1)
sparse = st.dictionaries(st.integers(0, BINS - 1), st.integers(1, 10**9), min_size=2, max_size=6)


def filled(pixels: dict[int, int]) -> np.ndarray:
    counts = np.zeros(BINS, np.int64)
    for index, count in pixels.items():
        counts[index] = count
    return counts


def between(counts, of=lambda value: value):
    """For each cut, the variance between the pixels below and above it; each of the two means is a sum of its own."""
    values = of((np.arange(BINS) + 0.5) / BINS)
    is_below = np.arange(BINS) < np.arange(BINS)[:, None]
    pixels = counts.astype(float)  # the product of two numbers of pixels may not fit into 64 bits
    below, above = is_below @ pixels, ~is_below @ pixels
    with np.errstate(invalid="ignore"):  # no pixels on one side
        means = is_below @ (pixels * values) / below, ~is_below @ (pixels * values) / above
        return np.nan_to_num(below * above / pixels.sum() ** 2 * (means[1] - means[0]) ** 2)


@pytest.mark.parametrize(("found", "of"), [(otsu, lambda value: value), (otsu_of_roots, np.sqrt)])
@given(st.one_of(counts_of, sparse.map(filled)))
def test_no_cut_separates_more(found, of, counts):
    cut = found(counts) * BINS
    assert cut == int(cut)
    found_by_search = between(counts, of)
    assert found_by_search[int(cut)] == pytest.approx(found_by_search.max(), rel=1e-9)


@given(sparse.map(filled), st.integers(2, 1000))
def test_the_number_of_pictures_does_not_matter(counts, times):
    separated = between(counts)
    one, many = (round(otsu(given) * BINS) for given in (counts, counts * times))
    assert separated[many] == pytest.approx(separated[one], rel=1e-9)


@given(sparse.map(filled))
def test_thresholds_are_ordered(counts):
    found = thresholds(counts)
    assert 0 < found.lower <= found.otsu < 1
    assert otsu_of_background(counts) == found.lower
    assert 0 <= found.valley <= 1
    assert 0 < found.separation <= 1


@pytest.mark.parametrize("place", [0, 1, 100, BINS - 1])
def test_one_value(place):
    found = thresholds(filled({place: 7}))
    assert 0 < found.otsu <= (place or 0.5) / BINS
    assert found.separation is None
    assert found.one_hump


@given(arrays(np.float32, (2, 5, 7), elements=st.floats(0, 1, width=32)))
def test_the_highest_value_of_each_pixel_counts(maps):
    expected = np.histogram(maps.max(0), BINS, (0, 1))[0]
    np.testing.assert_array_equal(highest_values(maps), expected)
    half = highest_values(maps.astype(np.float16))
    np.testing.assert_array_equal(half, np.histogram(maps.astype(np.float16).max(0).astype(float), BINS, (0, 1))[0])


def test_no_maps_count_nothing():
    counts = highest_values(np.zeros((0, 4, 4), np.float32))
    assert not counts.any()
    with pytest.raises(BadInput, match="no values"):
        otsu(counts)


def test_values_that_are_not_numbers():
    with pytest.raises(BadInput, match="not numbers"):
        highest_values(np.full((1, 2, 2), np.nan, np.float32))


@given(st.floats(0.001, 0.999), st.floats(0.001, 0.999))
def test_the_exponent_is_where_background_and_map_cross(threshold, value):
    alpha = exponent_at(threshold)
    assert (1 - threshold) ** alpha == pytest.approx(threshold)
    if not math.isclose(value, threshold, rel_tol=1e-9):
        assert (value > (1 - value) ** alpha) == (value > threshold)


def test_humps():
    rng = np.random.default_rng(0)

    def drawn(*parts):
        values = np.concatenate([rng.normal(mean, spread, count) for mean, spread, count in parts])
        return np.histogram(values.clip(0, 1), BINS, (0, 1))[0]

    one, two = drawn((0.4, 0.12, 20000)), drawn((0.2, 0.06, 20000), (0.7, 0.1, 4000))
    assert humps(one).one_hump
    assert not humps(two).one_hump
    assert humps(two).valley > 0.9
    peak_at_zero = (10**9 / (1 + np.arange(BINS)) ** 1.5).astype(np.int64)
    assert humps(peak_at_zero).valley < 0.1
    assert not humps(peak_at_zero).one_hump
    # 2/pi for a normal distribution
    assert humps(one).separation == pytest.approx(2 / math.pi, abs=0.02)
    assert humps(np.ones(BINS, np.int64)).separation == pytest.approx(0.75, abs=0.001)
    assert humps(filled({10: 5, 200: 9})).separation == pytest.approx(1)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_highest_label_is_argmax(dtype):
    scores = np.random.default_rng(0).integers(0, 4, (5, 7, 9)).astype(dtype) / 4
    np.testing.assert_array_equal(highest_label(scores), scores.argmax(0))
    for background in (np.full((), 0.5, dtype), 1 - scores.max(0)):
        everything = np.concatenate([np.broadcast_to(background, (1, 7, 9)), scores])
        np.testing.assert_array_equal(highest_label(scores, background), everything.argmax(0))
    np.testing.assert_array_equal(highest_label(scores[:0], np.full((), 0.5, dtype)), np.zeros((7, 9)))
