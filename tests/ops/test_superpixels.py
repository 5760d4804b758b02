"""Superpixels: connected, numbered, along edges, and changed only nearby by a single pixel."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from wsss.errors import BadInput
from wsss.ops.superpixels import superpixels


def noisy(height, width, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3)).astype(np.uint8)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(4, 20), st.integers(0, 5))
def test_regions_are_numbered_from_zero_and_4_connected(height, width, side, seed):
    regions = superpixels(noisy(height, width, seed), side)
    assert regions.shape == (height, width)
    assert regions.dtype == np.int32
    numbers = np.unique(regions)
    np.testing.assert_array_equal(numbers, np.arange(len(numbers)))
    assert all(ndimage.label(regions == number)[1] == 1 for number in numbers)


def test_no_region_crosses_a_clear_edge():
    image = np.full((60, 80, 3), 40, np.uint8)
    image[13:47, 21:61] = (200, 60, 90)
    regions = superpixels(image, 10)
    crossing = np.intersect1d(regions[13:47, 21:61], regions[(image == 40).all(2)])
    # smoothing before the watershed may move an outline by a pixel
    inner, outer = regions[15:45, 23:59], np.concatenate([regions[:11].ravel(), regions[49:].ravel()])
    assert not np.intersect1d(inner, outer).size
    assert len(crossing) <= len(np.unique(regions)) // 3


def test_one_white_pixel_changes_regions_only_near_it():
    image = np.rint(ndimage.gaussian_filter(noisy(80, 80, 0).astype(float), (3, 3, 0))).astype(np.uint8)
    changed = image.copy()
    changed[40, 40] = 255
    rows, columns = np.nonzero(superpixels(image, 8) != superpixels(changed, 8))
    assert np.abs(rows - 40).max(initial=0) < 24
    assert np.abs(columns - 40).max(initial=0) < 24


def test_the_number_of_regions_follows_the_side():
    image = noisy(64, 96, 1)
    assert len(np.unique(superpixels(image, 8))) == 8 * 12
    assert len(np.unique(superpixels(image, 16))) == 4 * 6
    assert not superpixels(image[:3, :3], 16).any()


@pytest.mark.parametrize("side", [3, 513])
def test_a_side_out_of_range_is_refused(side):
    with pytest.raises(BadInput, match="side"):
        superpixels(noisy(8, 8, 0), side)
