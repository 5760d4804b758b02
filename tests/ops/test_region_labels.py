"""Labels and maps that follow regions, against loops over regions and pixels; pictures without regions, classes or certain pixels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from wsss.ops.region_labels import level_means, most_frequent, sams, sepl, with_values_of
from wsss.ops.regions import Regions

LABELS = np.array([0, 0, 1, 2, 7, 255], np.uint8)


@st.composite
def pictures(draw, most=6):
    """A mask, masks of regions that may overlap, be empty or equal, their levels, and a generator."""
    height, width = draw(array_shapes(min_dims=2, max_dims=2, max_side=6))
    masks = draw(arrays(bool, (draw(st.integers(0, most)), height, width)))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    return rng.choice(LABELS, (height, width)), masks, rng.integers(0, 3, len(masks)), rng


def slow_sepl(mask, masks, *, half=False):
    painted, given_away = np.zeros_like(mask), set()
    for label in sorted(set(mask.ravel().tolist()) - {0, 255}):
        pixels, before, joined = mask == label, set(given_away), set()
        for region, inside in enumerate(masks):
            both, area = int((inside & pixels).sum()), int(inside.sum())
            enough = 2 * both >= area if half else 2 * both > area
            if region not in before and area and (enough or 20 * both >= 17 * int(pixels.sum())):
                joined.add(region)
        covering = [inside for region, inside in enumerate(masks) if half or region not in before]
        for y, x in np.ndindex(mask.shape):
            uncovered = pixels[y, x] and not any(inside[y, x] for inside in covering)
            if uncovered or any(masks[region][y, x] for region in joined):
                painted[y, x] = label
        given_away |= joined
    return painted


@settings(max_examples=60)
@given(pictures(), st.booleans())
def test_sepl(picture, half):
    mask, masks, _, _ = picture
    found = sepl(Regions.of_masks(masks), mask, at_least_half=half)
    np.testing.assert_array_equal(found, slow_sepl(mask, masks, half=half))
    kept = sepl(Regions.of_masks(masks), mask, at_least_half=half, keep_ignored=True)
    np.testing.assert_array_equal(kept, np.where((mask == 255) & (found == 0), 255, found))


def test_sepl_counts_the_share_of_a_class_exactly():
    # 17 of 20 pixels of the class, and far less than half of the region
    mask, region = np.zeros((10, 10), np.uint8), np.zeros((1, 10, 10), bool)
    mask[0], mask[1], region[0, :, :9] = 3, 3, True
    region[0, 1, 8] = False
    assert (region[0] & (mask == 3)).sum() == 17
    np.testing.assert_array_equal(sepl(Regions.of_masks(region), mask) == 3, region[0] | (mask == 3))
    region[0, 1, 7] = False
    assert not sepl(Regions.of_masks(region), mask)[2:].any()


def slow_sams(masks, levels, classes, maps, power):
    filled = [region for region, mask in enumerate(masks) if mask.any()]
    painted = np.zeros(maps.shape[1:], np.uint8)
    if not filled or not len(classes):
        return painted
    means = np.array([[np.maximum(one, 0)[masks[region]].mean(dtype=np.float64) for region in filled] for one in maps])
    least, most = means.min(axis=1), means.max(axis=1)
    scores = (means - least[:, None]) / (most - least + 1e-7)[:, None]
    scores = np.concatenate([[(1 - scores.max(axis=0)) ** power], scores])
    order = sorted(range(len(filled)), key=lambda n: (levels[filled[n]], scores[:, n].max()))
    for n in order:
        painted[masks[filled[n]]] = [0, *(classes + 1)][int(scores[:, n].argmax())]
    return painted


@settings(max_examples=60)
@given(pictures(), st.integers(0, 3), st.sampled_from([0.3, 1.0]))
def test_sams(picture, count, power):
    _, masks, levels, rng = picture
    classes = np.sort(rng.permutation(9)[:count])
    # numbers whose means are exact, so that equal ones are equal
    maps = rng.integers(-4, 9, (count, *masks.shape[1:])) / 8
    found = sams(Regions.of_masks(masks, levels=levels), classes, maps, power)
    np.testing.assert_array_equal(found.mask, slow_sams(masks, levels, classes, maps, power))
    assert found.scores.shape == (count + 1, len(found.regions))
    assert sorted(found.order.tolist()) == list(range(len(found.regions)))


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_sams_of_flat_maps_is_background(value):
    masks = np.random.default_rng(0).random((4, 5, 6)) < 0.5
    assert not sams(Regions.of_masks(masks), np.array([1]), np.full((1, 5, 6), value, np.float32)).mask.any()


@settings(max_examples=40)
@given(pictures(), st.sampled_from([None, -1]))
def test_most_frequent(picture, unsegmented):
    mask, _, _, rng = picture
    regions = rng.integers(-1, 4, mask.shape)
    expected = mask.copy()
    smallest = regions.min() if unsegmented is None else -1
    for number in set(regions.ravel().tolist()) - {smallest}:
        inside = mask[(regions == number) & (mask < 255)]
        expected[regions == number] = np.bincount(inside).argmax() if len(inside) else 255
    np.testing.assert_array_equal(most_frequent(mask, regions, unsegmented), expected)


@settings(max_examples=40)
@given(pictures(), st.integers(0, 2), st.sampled_from([None, 1, 2]))
def test_level_means(picture, count, used):
    mask, masks, levels, rng = picture
    maps = rng.random((count, *mask.shape), np.float32)
    found = level_means(Regions.of_masks(masks, levels=levels), maps, used)
    chosen = sorted(set(levels.tolist()))[:used]
    for y, x in np.ndindex(mask.shape):
        current, steps = maps[:, y, x], []
        for level in chosen:
            covering = [m for m, of in zip(masks, levels, strict=True) if of == level and m[y, x]]
            if covering:
                current = np.mean([maps[:, m].mean(axis=1) for m in covering], axis=0)
            steps.append(current)
        expected = np.mean(steps, axis=0) if steps else maps[:, y, x]
        np.testing.assert_allclose(found[:, y, x], expected, rtol=1e-5, atol=1e-6)
    assert found.dtype == np.float32


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_averages_take_the_values_of_the_maps_in_their_order(seed, kinds):
    rng = np.random.default_rng(seed)
    maps, averages = rng.random((2, 3, 5), np.float32), rng.integers(0, kinds, (2, 3, 5)).astype(np.float32)
    found = with_values_of(averages, maps)
    for one, of_class, before in zip(found, averages, maps, strict=True):
        places = np.argsort(np.argsort(of_class, axis=None, kind="stable")).reshape(of_class.shape)
        for value in np.unique(of_class):
            taken = np.sort(places[of_class == value])
            middle = np.sort(before, axis=None)[taken[(len(taken) - 1) // 2]]
            np.testing.assert_array_equal(one[of_class == value], middle)
    assert found.dtype == np.float32
    # in another order, each value is there once
    order = rng.permutation(30).reshape(2, 3, 5).astype(np.float32)
    np.testing.assert_array_equal(np.sort(with_values_of(order, maps), axis=None), np.sort(maps, axis=None))
    assert with_values_of(maps[:0], maps[:0]).shape == (0, 3, 5)
