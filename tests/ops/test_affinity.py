"""Pairs, paths and affinities against slow loops over cells, with their gradients."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.irnet_order import by_path_length
from wsss.errors import BadInput
from wsss.ops import affinity

RADII = st.integers(2, 6)


@st.composite
def maps(draw, levels=4):
    """A radius and a batch of maps of few levels, so that many cells are equal, as large as the radius needs or larger."""
    radius = draw(RADII)
    rows, columns = draw(st.integers(radius, radius + 6)), draw(st.integers(2 * radius - 1, 2 * radius + 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return radius, rng.integers(0, levels, (draw(st.integers(1, 3)), rows, columns))


def pairs(radius, rows, columns, directions):
    """(direction's position, source's position, source, destination) of each pair of training."""
    f = radius - 1
    sources = [(y, x) for y in range(rows - f) for x in range(f, columns - f)]
    for d, (dy, dx) in enumerate(directions):
        for s, (y, x) in enumerate(sources):
            yield d, s, (y, x), (y + dy, x + dx)


def from_destination(source, destination):
    """The cells of a path by their distance from the line, in the order in which one of them is taken of equals."""
    a, b = np.array(source), np.array(destination)
    lows, highs = np.minimum(a, b), np.maximum(a, b)
    cells = [(y, x) for y in range(lows[0], highs[0] + 1) for x in range(lows[1], highs[1] + 1)]
    length = np.hypot(*(b - a))
    near = [c for c in cells if abs((b - a)[0] * (c[1] - a[1]) - (b - a)[1] * (c[0] - a[0])) / length < 1 - 1e-9]
    return sorted(near, key=lambda cell: (-np.abs(np.array(cell) - a).sum(), cell))


@given(RADII)
def test_directions_reach_each_neighbour_once(radius):
    found = affinity.directions(radius)
    around = [(dy, dx) for dy in range(-9, 10) for dx in range(-9, 10) if 0 < np.hypot(dy, dx) < radius]
    assert sorted([*found, *((-dy, -dx) for dy, dx in found)]) == around
    assert all(direction > (0, 0) for direction in found)


@settings(deadline=None)
@given(st.integers(2, 12))
def test_paths_are_the_cells_along_the_line(radius):
    for direction, path in zip(affinity.directions(radius), affinity.paths(radius), strict=True):
        assert path[0] == direction
        assert path[-1] == (0, 0)
        assert list(path) == from_destination((0, 0), direction)


@settings(max_examples=40, deadline=None)
@given(maps(), st.randoms())
def test_path_affinity_and_its_gradient(case, random):
    radius, levels = case
    some = random.sample(affinity.directions(radius), random.randint(1, len(affinity.directions(radius))))
    edge = torch.from_numpy(levels / 3).requires_grad_()
    ours = affinity.path_affinity(edge, radius, some)
    weights = torch.randn(ours.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted, gradient = np.full(ours.shape, np.nan), np.zeros(levels.shape)
    for b in range(len(levels)):
        for d, s, source, destination in pairs(radius, *levels.shape[1:], some):
            cells = from_destination(source, destination)
            first = max(cells, key=lambda cell: levels[(b, *cell)])
            wanted[b, d, s] = 1 - levels[(b, *first)] / 3
            gradient[(b, *first)] -= weights[b, d, s]
    np.testing.assert_array_equal(ours.detach(), wanted)
    ours.backward(weights)
    np.testing.assert_allclose(edge.grad, gradient, rtol=0, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(RADII, st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32))
def test_planes_of_paths_hold_all_pairs_of_a_map_of_any_size(radius, rows, columns, seed):
    edge = np.random.default_rng(seed).random((rows, columns))
    ours = affinity.path_affinity_planes(torch.from_numpy(edge), radius)
    wanted = np.zeros((len(affinity.directions(radius)), rows, columns))
    for plane, (dy, dx) in zip(wanted, affinity.directions(radius), strict=True):
        for y in range(rows - dy):
            for x in range(max(0, -dx), columns - max(0, dx)):
                plane[y, x] = 1 - max(edge[cell] for cell in from_destination((y, x), (y + dy, x + dx)))
    np.testing.assert_array_equal(ours, wanted)


@settings(max_examples=40, deadline=None)
@given(maps(levels=3))
def test_feature_affinity_and_its_gradient(case):
    radius, levels = case
    rng = np.random.default_rng(levels.sum())
    # some features are equal, where the gradient of their distance is 0
    features = torch.from_numpy(rng.integers(0, 3, (2, 5, *levels.shape[1:])) * 0.7).requires_grad_()
    ours = affinity.feature_affinity(features, radius)
    weights = torch.from_numpy(rng.normal(size=ours.shape))
    ours.backward(weights)
    ends = zip(*[(a, b) for _, _, a, b in pairs(radius, *levels.shape[1:], affinity.directions(radius))], strict=True)
    (sy, sx), (ty, tx) = (torch.tensor(cells).T for cells in ends)
    oracle = features.detach().clone().requires_grad_()
    distance = (oracle[:, :, sy, sx] - oracle[:, :, ty, tx]).abs().mean(1)
    wanted = torch.exp(-distance).view(ours.shape)
    wanted.backward(weights)
    torch.testing.assert_close(ours, wanted, rtol=1e-14, atol=0)
    torch.testing.assert_close(features.grad, oracle.grad, rtol=0, atol=1e-13)


@settings(max_examples=40, deadline=None)
@given(RADII, st.integers(1, 14), st.integers(1, 14), st.integers(0, 2**32))
def test_planes_of_features(radius, rows, columns, seed):
    features = np.random.default_rng(seed).random((3, rows, columns))
    every, published = (np.zeros((len(affinity.directions(radius)), rows, columns)) for _ in range(2))
    for d, (dy, dx) in enumerate(affinity.directions(radius)):
        for y in range(rows - dy):
            for x in range(max(0, -dx), columns - max(0, dx)):
                distance = np.abs(features[:, y, x] - features[:, y + dy, x + dx]).mean()
                every[d, y, x] = np.exp(-distance)
                if y < rows - radius + 1 and radius - 1 <= x < columns - radius + 1:
                    published[d, y, x] = every[d, y, x]
    ours = affinity.feature_affinity_planes(torch.from_numpy(features), radius, pad_border=True)
    np.testing.assert_allclose(ours, every, rtol=1e-14)
    if rows < radius or columns < 2 * radius - 1:
        with pytest.raises(BadInput, match="smaller radius"):
            affinity.feature_affinity_planes(torch.from_numpy(features), radius)
        return
    ours = affinity.feature_affinity_planes(torch.from_numpy(features), radius)
    np.testing.assert_allclose(ours, published, rtol=1e-14)


@settings(max_examples=40, deadline=None)
@given(maps(levels=6), st.sampled_from([np.uint8, np.int64]))
def test_pair_labels(case, dtype):
    radius, levels = case
    labels = np.array([0, 1, 2, 3, 4, 255], dtype)[levels]
    order = by_path_length(radius)
    ours = affinity.pair_labels(torch.from_numpy(labels), radius, order, n_labels=4)
    wanted = np.zeros((3, *ours.neg.shape), bool)
    for b in range(len(labels)):
        for d, s, source, destination in pairs(radius, *labels.shape[1:], order):
            here, there = labels[(b, *source)], labels[(b, *destination)]
            if here < 4 and there < 4:
                wanted[2 if here != there else 1 if here else 0, b, d, s] = True
    np.testing.assert_array_equal(torch.stack(list(ours)), wanted)


def test_what_a_map_holds_at_both_ends_of_its_pairs():
    rng = np.random.default_rng(0)
    radius, order, values = 3, affinity.directions(3), rng.random((2, 4, 6, 9))
    sources = affinity.at_sources(torch.from_numpy(values), radius)
    destinations = affinity.at_destinations(torch.from_numpy(values), radius, order)
    for d, s, source, destination in pairs(radius, 6, 9, order):
        np.testing.assert_array_equal(sources[..., s], values[..., source[0], source[1]])
        np.testing.assert_array_equal(destinations[..., d, s], values[..., destination[0], destination[1]])


@pytest.mark.parametrize(("rows", "columns"), [(4, 9), (5, 8)])
def test_maps_too_small_for_the_radius(rows, columns):
    small, order = torch.zeros(1, rows, columns), affinity.directions(5)
    for call in (
        lambda: affinity.path_affinity(small, 5, order),
        lambda: affinity.pair_labels(small.long(), 5, order, 2),
        lambda: affinity.at_destinations(small, 5, order),
        lambda: affinity.feature_affinity(small[None], 5),
    ):
        with pytest.raises(BadInput, match="at least 5 x 9 for radius 5"):
            call()
    with pytest.raises(BadInput, match="radius"):
        affinity.directions(1)
