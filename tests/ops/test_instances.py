"""Centroids, clusters and detections against slow loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from wsss.ops import instances

SIDES = st.integers(1, 12)


def towards(centres, rows, columns):
    """The field that leads each cell to the nearest of some places."""
    y, x = np.mgrid[:rows, :columns]
    steps = np.array([[cy - y, cx - x] for cy, cx in centres], np.float32)
    nearest = np.hypot(steps[:, 0], steps[:, 1]).argmin(0)
    return np.take_along_axis(steps, nearest[None, None], 0)[0], nearest


def components(mask):
    """4-connected components, numbered from 1 in the order of their first cells."""
    found, count = np.zeros(mask.shape, int), 0
    for start in np.argwhere(mask):
        if found[tuple(start)]:
            continue
        count += 1
        waiting = [tuple(start)]
        while waiting:
            y, x = waiting.pop()
            if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and mask[y, x] and not found[y, x]:
                found[y, x] = count
                waiting += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
    return found, count


@settings(deadline=None)
@given(SIDES, SIDES, st.integers(0, 12), st.integers(0, 2**32))
def test_centroids_follow_the_field(rows, columns, steps, seed):
    rng = np.random.default_rng(seed)
    field = rng.normal(0, 0.4, (2, rows, columns)).astype(np.float32)
    position = np.indices((rows, columns)).astype(float)
    for _ in range(steps):
        position += np.stack([map_coordinates(part, position, order=1, output=float) for part in field])
        position = np.clip(position, 0, [[[rows - 1]], [[columns - 1]]])
    ours = instances.centroids(field, steps)
    assert ours.dtype == np.int32
    assert np.abs(ours - position).max() <= 0.5 + 1e-3


def test_half_a_cell_goes_to_the_even_one():
    field = np.zeros((2, 1, 6), np.float32)
    field[1, 0] = [0.5, 0.5, 0.5, 0.5, -0.5, -0.5]
    np.testing.assert_array_equal(instances.centroids(field, 1)[1, 0], [0, 2, 2, 4, 4, 4])


@pytest.mark.parametrize("field_type", [np.float16, np.float32, np.float64])
def test_a_field_of_two_centres_has_two_instances(field_type):
    field, nearest = towards([(6, 5), (9, 24)], 20, 30)
    found = instances.instance_map(field.astype(field_type))
    # cells whose first steps cross the border between both are led astray for a while, no others
    assert (found == nearest).mean() > 0.97
    assert sorted(np.unique(found)) == [0, 1]


@settings(deadline=None)
@given(SIDES, SIDES, st.integers(0, 2**32))
def test_instances_are_the_seeds_at_the_centroids(rows, columns, seed):
    field = np.random.default_rng(seed).normal(0, 2, (2, rows, columns))
    row, column = instances.centroids(field, 30)
    seeds, _ = components(np.hypot(*field) < 2.5)
    found = instances.instance_map(field, 30)
    here = seeds[row, column]
    assert found.dtype == np.int32
    np.testing.assert_array_equal(np.searchsorted(np.unique(here), here), found)


def test_split_maps_add_up_to_the_whole():
    rng = np.random.default_rng(0)
    cams, found = rng.random((2, 7, 9)).astype(np.float32), rng.integers(0, 3, (7, 9))
    split = instances.split_cams(cams, found)
    assert split.shape == (2, 3, 7, 9)
    assert split.dtype == cams.dtype
    np.testing.assert_array_equal(split.sum(1), cams)
    assert not split[:, 1, found != 1].any()


@settings(deadline=None)
@given(st.integers(0, 3), SIDES, SIDES, st.integers(0, 6), st.integers(0, 2**32))
def test_each_fragment_is_a_detection(m, rows, columns, smallest, seed):
    rng = np.random.default_rng(seed)
    scores, masks = rng.random((m, rows, columns)).astype(np.float32), rng.random((m, rows, columns)) < 0.6
    classes = rng.integers(0, 20, m)
    found = instances.detections(scores, masks, classes, smallest)
    wanted = []
    for score, mask, label in zip(scores, masks, classes, strict=True):
        fragments, count = components(mask)
        for number in range(1, count + 1):
            fragment = fragments == number
            wanted.append((score[fragment].max() if fragment.sum() >= smallest else 0, fragment, label))
    assert found.masks.shape == (len(wanted), rows, columns)
    for ours, theirs in zip(zip(*found, strict=True), wanted, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)
