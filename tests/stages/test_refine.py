"""Pseudo masks: thresholds, the CRF's two seeds, pictures without classes, maps that do not fit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.conftest import finished
from wsss.data.files import read_mask, write_cams
from wsss.errors import BadInput
from wsss.refiners.crf import MaskSettings, pseudo_mask, refine


@given(
    arrays(np.float32, (2, 4, 5), elements=st.floats(0, 1, width=32)),
    st.floats(0.125, 0.75, width=32),
    st.sampled_from([None, 0.0625, 0.125]),
)
def test_thresholds_against_a_loop_over_pixels(maps, threshold, lower):
    image = np.zeros((4, 5, 3), np.uint8)
    mask = pseudo_mask(image, np.array([3, 7]), maps, MaskSettings("threshold", threshold, lower))
    for (y, x), label in np.ndenumerate(mask):
        best = maps[:, y, x].max()
        named = [4, 8][maps[:, y, x].argmax()]
        if best > np.float32(threshold):
            assert label == named
        elif best > np.float32(threshold if lower is None else lower):
            assert label == 255
        else:
            assert label == 0


def test_a_picture_without_classes_is_background():
    mask = pseudo_mask(
        np.zeros((6, 7, 3), np.uint8), np.zeros(0, np.int16), np.zeros((0, 6, 7), np.float32), MaskSettings("crf", 0.2)
    )
    assert mask.shape == (6, 7)
    assert not mask.any()


def write_maps(squares, folder):
    for index, name in enumerate(squares.names):
        truth, classes = squares.read_mask(index), squares.classes(index)
        maps = np.stack([(truth == label + 1).astype(np.float32) for label in classes])
        write_cams(folder / f"{name}.npz", np.array(classes), maps)


def test_the_stage_writes_one_mask_a_picture(tmp_path, squares):
    write_maps(squares, tmp_path / "cams")
    refine(MaskSettings("threshold", 0.5), squares, cams=finished(tmp_path / "cams"), out=tmp_path / "masks")
    for index, name in enumerate(squares.names):
        np.testing.assert_array_equal(read_mask(tmp_path / "masks" / f"{name}.png"), squares.read_mask(index))


def test_a_threshold_has_to_be_there(tmp_path, squares):
    write_maps(squares, tmp_path / "cams")
    with pytest.raises(BadInput, match=r"refiner\.threshold: found no number"):
        refine(MaskSettings(), squares, cams=finished(tmp_path / "cams"), out=tmp_path / "masks")


def test_maps_of_another_size_are_named(tmp_path, squares):
    write_maps(squares, tmp_path / "cams")
    name = squares.names[5]
    write_cams(tmp_path / "cams" / f"{name}.npz", np.array([0]), np.zeros((1, 9, 9), np.float32))
    with pytest.raises(BadInput, match=r"bild_5ß\.npz: found maps of 9x9") as error:
        refine(MaskSettings("threshold", 0.5), squares, cams=finished(tmp_path / "cams"), out=tmp_path / "masks")
    assert "32x36" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"not an archive"])
def test_broken_map_files_are_named(tmp_path, squares, content):
    write_maps(squares, tmp_path / "cams")
    (tmp_path / "cams" / f"{squares.names[0]}.npz").write_bytes(content)
    with pytest.raises(BadInput, match=r"bild_0ß\.npz: found a file that is cut off or damaged"):
        refine(MaskSettings("threshold", 0.5), squares, cams=finished(tmp_path / "cams"), out=tmp_path / "masks")


def test_refinement_with_the_colours_of_the_picture():
    image = np.zeros((40, 50, 3), np.uint8)
    image[10:30, 10:35] = (200, 120, 40)
    maps = np.zeros((1, 40, 50), np.float32)
    maps[0, 11:27, 11:38] = 0.9  # a part of the object, and some pixels outside it
    truth = np.where(image[..., 0] > 0, 4, 0)
    results = {
        name: pseudo_mask(image, np.array([3]), maps, settings)
        for name, settings in (
            ("threshold", MaskSettings("threshold", 0.5)),
            ("par", MaskSettings("par", exponent=1.0)),
            ("confident", MaskSettings("par", exponent=1.0, confidence=0.8)),
        )
    }
    wrong = {name: np.count_nonzero(mask != truth) for name, mask in results.items()}
    assert wrong["par"] < wrong["threshold"] / 2
    sure = results["confident"] != 255
    assert 0 < np.count_nonzero(sure) < sure.size
    np.testing.assert_array_equal(results["confident"][sure], results["par"][sure])
