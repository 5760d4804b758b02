"""Masks and activation maps survive a round trip; broken files are refused by name."""

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
    with pytest.raises(BadInput, match=r"a\.png: found a picture of mode RGB; expected an 8-bit .*not their colours"):
        read_mask(tmp_path / "a.png")


def test_bad_masks(tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        read_mask(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(b"text")
    with pytest.raises(BadInput, match="found no picture"):
        read_mask(tmp_path / "a.png")
    write_mask(tmp_path / "a.png", inputs.mask(90, 90, 20))
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:1000])
    with pytest.raises(BadInput, match="cannot be decoded"):
        read_mask(tmp_path / "a.png")


def test_maps_survive_as_half_floats(tmp_path):
    classes, maps, strided = np.array([2, 7]), inputs.array("maps", (2, 9, 11)), inputs.array("strided", (2, 3, 3))
    write_cams(tmp_path / "ä" / "a b.npz", classes, maps, strided)
    read_classes, read = read_cams(tmp_path / "ä" / "a b.npz")
    np.testing.assert_array_equal(read_classes, classes)
    np.testing.assert_array_equal(read, maps.astype(np.float16).astype(np.float32))
    assert (read_classes.dtype, read.dtype) == (np.int16, np.float32)
    np.testing.assert_array_equal(read_cams(tmp_path / "ä" / "a b.npz", "strided")[1], strided.astype(np.float16))


def test_bad_maps(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(BadInput, match="no such file"):
        read_cams(path)
    write_cams(path, np.array([1]), np.ones((1, 4, 4)))
    with pytest.raises(BadInput, match=r"no array .*strided"):
        read_cams(path, "strided")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(BadInput, match=r"a\.npz: found no such archive .*wsss localize"):
        read_cams(path)
    np.savez(path, classes=np.array([1, 2]), maps=np.ones((1, 4, 4)))
    with pytest.raises(BadInput, match=r"`classes` of shape .2,. and `maps` of shape .1, 4, 4."):
        read_cams(path)
    np.savez(path, classes=np.array([{}], object), maps=np.ones((1, 4, 4)))
    with pytest.raises(BadInput, match="no such archive"):
        read_cams(path)


def test_posteriors_survive_as_half_floats(tmp_path):
    path, low, high = tmp_path / "ä" / "a b.npz", inputs.array("low", (3, 9, 11)), inputs.array("high", (3, 9, 11))
    write_posteriors(path, np.array([2, 7]), low, high)
    for ours, theirs in zip(read_posteriors(path), (low, high), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, theirs.astype(np.float16))
    with np.load(path, allow_pickle=False) as file:
        assert sorted(file) == ["classes", "high", "low"]
        assert file["classes"].tolist() == [2, 7]


def test_bad_posteriors(tmp_path):
    path, scores = tmp_path / "a.npz", np.ones((2, 4, 4), np.float32)
    with pytest.raises(BadInput, match="no such file"):
        read_posteriors(path)
    write_cams(path, np.array([1]), np.ones((1, 4, 4)))
    with pytest.raises(BadInput, match=r"a\.npz: found no array .*low.*Make the label sets again"):
        read_posteriors(path)
    for low, high in ((scores, scores[:, :3]), (scores, scores[:1]), (scores[0], scores[0]), (scores[:0], scores[:0])):
        np.savez(path, low=low, high=high)
        with pytest.raises(BadInput, match=r"`low` of shape .* and `high` of shape"):
            read_posteriors(path)
    np.savez(path, low=np.array([{}], object), high=scores)
    with pytest.raises(BadInput, match="no such archive"):
        read_posteriors(path)
    write_posteriors(path, np.array([1]), scores, scores)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(BadInput, match="no such archive"):
        read_posteriors(path)
