"""Files of regions: what is written comes back, and what is damaged is named."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from wsss.errors import BadInput
from wsss.ops.regions import Regions
from wsss.regions.files import read_regions, write_regions


@settings(max_examples=20)
@given(array_shapes(min_dims=3, max_dims=3, max_side=7).flatmap(lambda shape: arrays(bool, shape)), st.integers(0, 9))
def test_regions_come_back(tmp_path_factory, masks, seed):
    rng = np.random.default_rng(seed)
    regions = Regions.of_masks(masks, rng.random(len(masks)), rng.integers(0, 256, len(masks)))
    path = tmp_path_factory.mktemp("regions") / "a.npz"
    write_regions(path, regions)
    found = read_regions(path, masks.shape[1:])
    np.testing.assert_array_equal(found.masks(), masks)
    np.testing.assert_array_equal(found.scores, regions.scores)
    np.testing.assert_array_equal(found.levels, regions.levels)


def test_no_regions(tmp_path):
    write_regions(tmp_path / "a.npz", Regions.of_masks(np.zeros((0, 4, 5), bool)))
    assert len(read_regions(tmp_path / "a.npz", (4, 5))) == 0


def arrays_of(path):
    with np.load(path) as stored:
        return dict(stored)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"size": np.array([5, 4], np.int32)}, "regions of a picture of 5x4 .height x width.; expected 4x5"),
        ({"lengths": np.array([6, 9, 6], np.uint8)}, "3 runs, 3 lengths of 21 pixels; expected 20 pixels"),
        ({"lengths": np.array([2**64 - 1, 9, 12], np.uint64)}, "3 runs, 3 lengths"),
        ({"atoms": np.array([0, 200, 0], np.uint8)}, "atoms up to 200 in 3 runs"),
        ({"atoms": np.array([0, 2, 0], np.uint8)}, "of which some may be missing"),
        ({"members": np.array([9], np.uint8)}, "atoms from 9 to 9 in regions"),
        ({"members": np.zeros(500, np.uint8)}, "500 atoms in 1 regions; expected at most 2 in each"),
        ({"counts": np.array([7], np.uint8)}, "1 atoms in regions that have 7"),
        ({"scores": np.array([2.0], np.float32)}, "scores from 2.0"),
        ({"areas": np.array([8], np.int32)}, "`areas` that differ"),
        ({"levels": np.array([300], np.uint16)}, "levels up to 300"),
        ({"levels": np.zeros((1, 1), np.uint8)}, r"`levels` of uint8 and shape \(1, 1\)"),
        ({"counts": np.array([-1], np.int8)}, "`counts` of int8"),
    ],
)
def test_damaged_files_are_named(tmp_path, changes, found):
    masks = np.zeros((1, 4, 5), bool)
    masks[0].ravel()[5:14] = True
    write_regions(tmp_path / "a.npz", Regions.of_masks(masks))
    np.savez_compressed(tmp_path / "a.npz", **arrays_of(tmp_path / "a.npz") | changes)
    with pytest.raises(BadInput, match=rf"a\.npz: found .*{found}"):
        read_regions(tmp_path / "a.npz", (4, 5))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"not an archive"])
def test_files_that_are_no_archives_are_named(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(BadInput, match=r"a\.npz: found a file that is cut off or damaged"):
        read_regions(tmp_path / "a.npz", (4, 5))
