"""Masks and activation maps survive a round trip; broken files are refused by name."""

import contextlib
import io
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from tests.parity import inputs
from wsss.data.files import (
    read_cams,
    read_mask,
    read_posteriors,
    voc_palette,
    write_cams,
    write_mask,
    write_posteriors,
)
from wsss.errors import BadInput


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_masks_survive(tmp_path_factory, mask):
    path = tmp_path_factory.getbasetemp() / "sub" / "mask.png"
    write_mask(path, mask)
    np.testing.assert_array_equal(read_mask(path), mask)
    with Image.open(path) as picture:
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), voc_palette()[mask])


def test_palette_of_known_classes():
    palette = voc_palette()
    assert palette[[0, 1, 2, 15, 255]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [192, 128, 128],
        [224, 224, 192],
    ]
    assert len(np.unique(palette, axis=0)) == 256


def test_masks_in_other_ways_of_writing_labels(tmp_path):
    mask = inputs.mask(20, 30, 4)
    Image.fromarray(mask).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "grey.png"), mask)
    few = Image.fromarray(np.minimum(mask, 3)).convert("P")
    few.putpalette(voc_palette()[:4].ravel().tolist())
    few.save(tmp_path / "two bits.png", bits=2)
    np.testing.assert_array_equal(read_mask(tmp_path / "two bits.png"), np.minimum(mask, 3))


def test_colours_instead_of_labels(tmp_path):
    Image.fromarray(voc_palette()[inputs.mask(20, 30, 4)]).save(tmp_path / "a.png")
    with pytest.raises(
        BadInput, match=r"a\.png: found a picture of mode RGB with the colours .*expected an 8-bit .*instead of colours"
    ):
        read_mask(tmp_path / "a.png")


def test_bad_masks(tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        read_mask(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(b"text")
    with pytest.raises(BadInput, match="found no picture"):
        read_mask(tmp_path / "a.png")
    write_mask(tmp_path / "a.png", inputs.mask(90, 90, 20))
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:1000])
    with pytest.raises(BadInput, match=r"cut off|damaged|cannot be read"):
        read_mask(tmp_path / "a.png")


def test_maps_survive_as_half_floats(tmp_path):
    classes, maps, maps_stride4 = (
        np.array([2, 7]),
        inputs.array("maps", (2, 9, 11)),
        inputs.array("maps_stride4", (2, 3, 3)),
    )
    write_cams(tmp_path / "ä" / "a b.npz", classes, maps, maps_stride4)
    read_classes, read = read_cams(tmp_path / "ä" / "a b.npz")
    np.testing.assert_array_equal(read_classes, classes)
    np.testing.assert_array_equal(read, maps.astype(np.float16).astype(np.float32))
    assert (read_classes.dtype, read.dtype) == (np.int16, np.float32)
    np.testing.assert_array_equal(
        read_cams(tmp_path / "ä" / "a b.npz", "maps_stride4")[1], maps_stride4.astype(np.float16)
    )


def test_bad_maps(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(BadInput, match="no such file"):
        read_cams(path)
    write_cams(path, np.array([1]), np.ones((1, 4, 4)))
    with pytest.raises(BadInput, match=r"no .*maps_stride4"):
        read_cams(path, "maps_stride4")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(BadInput, match=r"a\.npz: found a file that is cut off or damaged .*wsss localize"):
        read_cams(path)


ONE = np.ones((1, 4, 4), np.float16)


@pytest.mark.parametrize(
    ("classes", "maps", "found"),
    [
        ([1, 2], ONE, "`maps` of float16 and shape .1, 4, 4. for 2 maps"),
        ([[1]], ONE, "`classes` of int64 and shape .1, 1."),
        ([1.0], ONE, "`classes` of float64"),
        ([1.5], ONE, "`classes` of float64"),
        ([-1], ONE, "`classes` -1"),
        ([2**40], ONE, "`classes` 1099511627776"),
        ([3, 3], np.ones((2, 4, 4)), "`classes` 3, 3"),
        ([3, 1], np.ones((2, 4, 4)), "`classes` 3, 1"),
        ([1], ONE[0], "`maps` of float16 and shape .4, 4."),
        ([1], ONE.astype(int), "`maps` of int64"),
        ([1], ONE * np.nan, "`maps` from nan to nan"),
        ([1], ONE * np.inf, "`maps` from inf to inf"),
        ([1], -ONE, "`maps` from -1.0 to -1.0"),
        ([1], 1.001 * ONE, "`maps` from 1.0"),
        ([{}], ONE, "`classes` of object"),
        (["1"], ONE, "`classes` of <U1"),
    ],
)
def test_maps_that_make_no_sense(tmp_path, classes, maps, found):
    np.savez(tmp_path / "a.npz", classes=np.array(classes), maps=maps)
    with pytest.raises(BadInput, match=rf"a\.npz: found .*{found}"):
        read_cams(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "shape", [(1, 10**6, 10**6), (1, 2**40, 2**40), (-1, 4, 4), (1, 4, 5), (1, 4, 3), (0, 2**62, 8), (True, 4, 4)]
)
def test_a_shape_that_does_not_fit_what_is_stored(tmp_path, shape):
    header, classes = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f2", "fortran_order": False, "shape": shape})
    np.save(classes, np.array([0], np.int16))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("classes.npy", classes.getvalue())
        archive.writestr("maps.npy", header.getvalue() + bytes(32))
    with pytest.raises(BadInput, match=r"a\.npz: found .*(shape|maps)"):
        read_cams(tmp_path / "a.npz")


def test_files_of_earlier_versions(tmp_path):
    maps, quarter = inputs.array("maps", (2, 9, 11)), inputs.array("quarter", (2, 3, 3))
    arrays = {"classes": np.array([0, 4], np.int16), "maps": maps.astype(np.float16)}
    np.savez_compressed(tmp_path / "a.npz", **arrays, maps_stride4=quarter.astype(np.float16))
    np.testing.assert_array_equal(read_cams(tmp_path / "a.npz")[1], maps.astype(np.float16))
    np.testing.assert_array_equal(read_cams(tmp_path / "a.npz", "maps_stride4")[1], quarter.astype(np.float16))


@pytest.mark.parametrize("shape", [[1, 4], [[1, 4, 4]], [1, 4, 5], [-1, -4, 4], [1, 2**15, 2**15], [1.0, 4.0, 4.0]])
def test_a_shape_that_does_not_fit_what_is_packed(tmp_path, shape):
    write_cams(tmp_path / "a.npz", np.array([1]), ONE)
    with np.load(tmp_path / "a.npz") as stored:
        arrays = dict(stored) | {"maps_shape": np.array(shape)}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(BadInput, match=r"a\.npz: found .*(shape|packed)"):
        read_cams(tmp_path / "a.npz")


def test_maps_in_fortran_order(tmp_path):
    maps = np.asfortranarray(inputs.array("maps", (2, 3, 5)).astype(np.float32))
    np.savez(tmp_path / "a.npz", classes=np.array([0, 4]), maps=maps)
    np.testing.assert_array_equal(read_cams(tmp_path / "a.npz")[1], maps)


def test_a_map_file_with_any_damage(tmp_path):
    """One byte or some are changed everywhere: what is read is what was written, or the file is named."""
    path, maps = tmp_path / "a.npz", np.random.default_rng(0).random((1, 8, 9)).astype(np.float16)
    write_cams(path, np.array([3]), maps)
    whole = path.read_bytes()
    for at in range(len(whole)):
        for damage in (b"\xa5", b"\x00\x00\x00\x00", whole[at : at + 1] * 5):
            path.write_bytes(whole[:at] + damage + whole[at + len(damage) :])
            with contextlib.suppress(BadInput):
                classes, read = read_cams(path)
                assert classes.tolist() == [3]
                np.testing.assert_array_equal(read, maps)


def test_posteriors_survive_as_half_floats(tmp_path):
    path, low, high = tmp_path / "ä" / "a b.npz", inputs.array("low", (3, 9, 11)), inputs.array("high", (3, 9, 11))
    write_posteriors(path, np.array([2, 7]), low, high)
    for ours, theirs in zip(read_posteriors(path), (low, high), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, theirs.astype(np.float16))
    with np.load(path, allow_pickle=False) as file:
        assert sorted(file) == ["classes", "high_packed", "high_shape", "low_packed", "low_shape"]
        assert file["classes"].tolist() == [2, 7]


def test_bad_posteriors(tmp_path):
    path, scores = tmp_path / "a.npz", np.ones((2, 4, 4), np.float32)
    with pytest.raises(BadInput, match="no such file"):
        read_posteriors(path)
    write_cams(path, np.array([1]), np.ones((1, 4, 4)))
    with pytest.raises(BadInput, match=r"a\.npz: found no .*low.*Make the label sets again"):
        read_posteriors(path)
    shapes = ((scores, scores[:, :3]), (scores, scores[:1]), (scores[0], scores[0]), (scores[:0], scores[:0]))
    for low, high in shapes:
        np.savez(path, classes=np.array([1]), low=low, high=high)
        with pytest.raises(BadInput, match=r"of (float32 and )?shape"):
            read_posteriors(path)
    for low in (scores * np.nan, -scores, 2 * scores, np.array([{}], object)):
        np.savez(path, classes=np.array([1]), low=low, high=scores)
        with pytest.raises(BadInput, match="`low`"):
            read_posteriors(path)
    np.savez(path, classes=np.array([-1]), low=scores, high=scores)
    with pytest.raises(BadInput, match="`classes` -1"):
        read_posteriors(path)
    write_posteriors(path, np.array([1]), scores, scores)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(BadInput, match="cut off or damaged"):
        read_posteriors(path)
