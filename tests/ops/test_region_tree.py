"""Graph-based segmentation and merging against slow computations of their definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from wsss.ops.graph_regions import graph_regions
from wsss.ops.region_tree import cuts, hierarchy, nested

# few colours, so that there are regions
pictures = array_shapes(min_dims=2, max_dims=2, max_side=7).flatmap(
    lambda size: arrays(np.uint8, (*size, 3), elements=st.sampled_from([0, 3, 90, 255]))
)


def slow_regions(image: np.ndarray, scale: float, smallest: int) -> np.ndarray:
    """Felzenszwalb and Huttenlocher's algorithm without smoothing, with sets of pixels."""
    height, width = image.shape[:2]
    colours = image.astype(np.float32)
    edges = []
    for down, across in ((0, 1), (1, 0), (1, 1), (1, -1)):
        for y, x in np.ndindex(height, width):
            if 0 <= y + down < height and 0 <= x + across < width:
                difference = np.sqrt(((colours[y, x] - colours[y + down, x + across]) ** 2).sum())
                edges.append((float(difference), (y, x), (y + down, x + across)))
    edges.sort(key=lambda edge: edge[0])
    region = {pixel: frozenset([pixel]) for pixel in np.ndindex(height, width)}
    internal = dict.fromkeys(region.values(), 0.0)

    def join(a, b, difference):
        both = a | b
        internal[both] = difference
        region.update(dict.fromkeys(both, both))

    for difference, first, second in edges:
        a, b = region[first], region[second]
        if a != b and difference <= min(internal[a] + scale / len(a), internal[b] + scale / len(b)):
            join(a, b, difference)
    for difference, first, second in edges:
        a, b = region[first], region[second]
        if a != b and min(len(a), len(b)) < smallest:
            join(a, b, difference)
    numbers = {one: n for n, one in enumerate(dict.fromkeys(region[pixel] for pixel in np.ndindex(height, width)))}
    return np.array([[numbers[region[y, x]] for x in range(width)] for y in range(height)])


@settings(max_examples=40)
@given(pictures, st.sampled_from([1.0, 40.0, 700.0]), st.sampled_from([1, 4]))
def test_graph_regions(image, scale, smallest):
    np.testing.assert_array_equal(graph_regions(image, [scale], 0.0, smallest)[0], slow_regions(image, scale, smallest))


def test_a_bright_pixel_changes_regions_only_near_it():
    image = np.full((40, 60, 3), 100, np.uint8)
    image[:, 30:] = 140
    (before,) = graph_regions(image, [30.0], 0.0, 1)
    image[5, 5] = 255
    (after,) = graph_regions(image, [30.0], 0.0, 1)
    assert before.max() == 1
    assert len(np.unique(after[12:, :])) == 2


def colours_of(image: np.ndarray) -> np.ndarray:
    import cv2

    return cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)


def slow_cost(colours: np.ndarray, a: np.ndarray, b: np.ndarray) -> float | None:
    """The cost of merging two masks, None if they are no neighbours."""
    across = []
    for axis in (0, 1):
        size = a.shape[axis]
        here, there = (np.take(np.arange(size), range(*ends)) for ends in ((0, size - 1), (1, size)))
        for one, other in ((a, b), (b, a)):
            touching = np.take(one, here, axis) & np.take(other, there, axis)
            distance = np.sqrt(((np.take(colours, here, axis) - np.take(colours, there, axis)) ** 2).sum(axis=2))
            across.extend(distance[touching].tolist())
    if not across:
        return None
    means = np.linalg.norm(colours[a].astype(float).mean(axis=0) - colours[b].astype(float).mean(axis=0))
    return (np.mean(across) + means) * min(a.sum(), b.sum()) ** 0.5


@pytest.mark.parametrize("seed", range(3))
def test_the_cheapest_pair_is_merged(seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (6, 7, 3)).astype(np.uint8)
    regions = np.arange(12).reshape(3, 4).repeat(2, axis=0).repeat(2, axis=1)[:, :7].astype(np.int32)
    masks, colours = [regions == number for number in range(12)], colours_of(image)
    left, within, beyond = set(range(12)), [0.0] * 12, {}
    found = hierarchy(image, regions)
    for a, b in found.merges:
        costs = {
            (i, j): cost
            for i in left
            for j in left
            if i < j and (cost := slow_cost(colours, masks[i], masks[j])) is not None
        }
        assert costs[a, b] == pytest.approx(min(costs.values()), rel=1e-5)
        left = (left - {a, b}) | {len(masks)}
        masks.append(masks[a] | masks[b])
        within.append(max(costs[a, b], within[a], within[b]))
        beyond[a] = beyond[b] = within[-1]
    assert len(left) == 1
    for number, mask in enumerate(masks[:-1]):
        padded = np.pad(mask, 1)
        sides = [padded != np.roll(padded, 1, axis) for axis in (0, 1)]
        inner = sum(np.count_nonzero(side[ends]) for side, ends in zip(sides, (np.s_[2:-1, 1:-1], np.s_[1:-1, 2:-1])))
        x = beyond[number] * inner / sum(map(np.count_nonzero, sides)) / mask.size**0.5
        assert found.scores[number] == pytest.approx(x / (1 + x), rel=1e-5)
    assert found.scores[-1] == 0


def test_cuts_of_a_hierarchy():
    # 0 1 2 3 4 -> 5 = (1, 2), 6 = (0, 5), 7 = (3, 4), 8 = all
    merges = [(1, 2), (0, 5), (3, 4), (6, 7)]
    found = cuts(5, merges, [5, 4, 2, 1])
    expected = [[0, 1, 2, 3, 4], [0, 5, 5, 3, 4], [6, 6, 6, 7, 7], [8] * 5]
    np.testing.assert_array_equal(found, expected)


def test_regions_lie_where_most_of_their_pixels_are():
    regions = np.array([[0, 0, 0, 1, 1, 2, 2, 3]], np.int32)
    first = np.array([[0, 0, 1, 1, 1, 2, 2, 2]], np.int32)
    second = np.array([[0, 0, 0, 1, 1, 1, 0, 0]], np.int32)
    found = nested(regions, [first, second])
    np.testing.assert_array_equal(found, [[0, 1, 2, 2], [0, 1, 0, 0]])
