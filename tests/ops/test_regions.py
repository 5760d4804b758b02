"""Sets of regions against masks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from wsss.errors import BadInput
from wsss.ops.regions import Regions


@st.composite
def stacks(draw, most=6):
    """Masks of a few regions, some of them empty or equal, and a seed."""
    n, (height, width) = draw(st.integers(0, most)), draw(array_shapes(min_dims=2, max_dims=2, max_side=6))
    return draw(arrays(bool, (n, height, width))), draw(st.integers(0, 1000))


@settings(max_examples=40)
@given(stacks())
def test_masks_come_back(stack):
    masks, _ = stack
    regions = Regions.of_masks(masks)
    np.testing.assert_array_equal(regions.masks(), masks)
    np.testing.assert_array_equal(regions.areas, masks.sum(axis=(1, 2)))
    assert regions.size_hw == masks.shape[1:]


@settings(max_examples=40)
@given(stacks())
def test_atoms_are_the_pixels_of_the_same_regions(stack):
    masks, _ = stack
    regions = Regions.of_masks(masks)
    signatures = masks.reshape(len(masks), np.prod(masks.shape[1:])).T
    atoms = regions.atoms.ravel()
    for pixel, other in np.random.default_rng(0).integers(0, len(atoms), (20, 2)):
        assert (atoms[pixel] == atoms[other]) == (signatures[pixel] == signatures[other]).all()


@settings(max_examples=40)
@given(stacks())
def test_sums_against_masks(stack):
    masks, seed = stack
    regions, rng = Regions.of_masks(masks), np.random.default_rng(seed)
    labels = rng.choice(np.array([0, 1, 4, 255], np.uint8), masks.shape[1:])
    maps = rng.random((2, *masks.shape[1:]), np.float32)
    np.testing.assert_allclose(regions.sums(maps), np.einsum("nhw,khw->nk", masks, maps.astype(float)), atol=1e-12)
    counted = [[(labels[mask] == label).sum() for label in range(6)] for mask in masks]
    np.testing.assert_array_equal(regions.overlaps(labels, 6), np.reshape(counted, (len(masks), 6)))
    shared = [[(a & b).sum() for b in masks] for a in masks]
    np.testing.assert_array_equal(regions.intersections(), np.reshape(shared, (len(masks), len(masks))))


@settings(max_examples=40)
@given(stacks())
def test_painting_and_choosing(stack):
    masks, seed = stack
    order = np.random.default_rng(seed).permutation(len(masks))[1:]
    painted = np.full(masks.shape[1:], -1)
    for index in order:
        painted[masks[index]] = index
    regions = Regions.of_masks(masks, np.linspace(0, 1, len(masks)), np.arange(len(masks)))
    np.testing.assert_array_equal(regions.painted(order), painted)
    chosen = regions.chosen(order)
    np.testing.assert_array_equal(chosen.masks(), masks[order])
    np.testing.assert_array_equal(chosen.levels, order)


def test_levels_that_divide_the_picture():
    atoms = np.array([[0, 0, 1], [2, 2, 3]], np.int32)
    levels = [np.array([0, 1, 2, 3]), np.array([0, 6, 6, 3]), np.array([7, 7, 7, 7])]
    regions = Regions.of_levels(atoms, levels, np.arange(8) / 10)
    expected = [
        atoms == 0,
        atoms == 1,
        atoms == 2,
        atoms == 3,
        atoms == 0,
        atoms == 3,
        (atoms == 1) | (atoms == 2),
        atoms >= 0,
    ]
    np.testing.assert_array_equal(regions.masks(), np.stack(expected))
    np.testing.assert_array_equal(regions.levels, [0] * 4 + [1] * 3 + [2])
    np.testing.assert_array_equal(regions.scores, np.array([0, 1, 2, 3, 0, 3, 6, 7], np.float32) / 10)


def test_repeated_regions_are_left_out():
    masks = np.zeros((4, 2, 3), bool)
    masks[[0, 2], 0] = masks[1, :, 1] = True
    kept = Regions.of_masks(masks, levels=np.arange(4)).without_repeats()
    np.testing.assert_array_equal(kept.levels, [0, 1, 3])
    np.testing.assert_array_equal(kept.masks(), masks[[0, 1, 3]])


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"scores": np.array([0.5, np.nan], np.float32)}, "scores from nan"),
        ({"levels": np.zeros(3, np.uint8)}, "2 regions with 2 scores and 3 levels"),
        ({"members": np.array([1, 0, 1])}, "not in ascending order"),
        ({"members": np.array([0, 2, 1])}, "atoms from 0 to 2 in regions, of 2"),
        ({"counts": np.array([1, 1])}, "3 atoms in regions that have 2"),
        ({"counts": np.array([2**62, 3])}, "3 atoms in regions"),
        ({"atoms": np.array([[0, 2, 2]], np.int32)}, "of which some may be missing"),
        ({"atoms": np.zeros((0, 3), np.int32)}, "a picture of 0x3"),
    ],
)
def test_contradictions_are_found(changes, found):
    fitting = {
        "atoms": np.array([[0, 1, 1]], np.int32),
        "counts": np.array([2, 1]),
        "members": np.array([0, 1, 1]),
        "scores": np.ones(2, np.float32),
        "levels": np.zeros(2, np.uint8),
    }
    Regions(**fitting)
    with pytest.raises(BadInput, match=found):
        Regions(**fitting | changes)


def test_a_level_lies_on_top_of_lower_ones():
    """Equal regions are stored once, on the lowest level, so a level alone would leave holes."""
    left, right = np.zeros((2, 4), bool), np.zeros((2, 4), bool)
    left[:, :2], right[:, 2:] = True, True
    halves = [left, right]
    corner = np.zeros((2, 4), bool)
    corner[0, 0] = True
    # level 0: the corner, the rest of the left half, the right half; level 1: the halves; level 2: the whole
    masks = np.stack([corner, left & ~corner, right, *halves, np.ones((2, 4), bool)])
    regions = Regions.of_masks(masks, np.full(6, 0.5), np.array([0, 0, 0, 1, 1, 2])).without_repeats()
    assert regions.levels.tolist() == [0, 0, 0, 1, 2]
    for top in ("area", "score"):
        np.testing.assert_array_equal(regions.flattened(top=top, level=0), np.where(right, 2, np.where(corner, 0, 1)))
        np.testing.assert_array_equal(regions.flattened(top=top, level=1), np.where(right, 2, 3))
        np.testing.assert_array_equal(regions.flattened(top=top, level=2), np.full((2, 4), 4))
    # regions that are not sure enough are left out
    assert (regions.flattened(0.6, level=2) == -1).all()
