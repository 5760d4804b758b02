"""Activation maps that a person corrected, or masks in their place."""

import json
import shutil

import numpy as np
import pytest

from tests.conftest import finished
from wsss.corrections import correct_cams
from wsss.data.files import read_cams, read_mask, write_cams, write_mask
from wsss.errors import BadInput
from wsss.refiners.crf import CRFSettings
from wsss.refiners.task import RefinementTask


@pytest.fixture
def cams(squares, tmp_path):
    """Maps that are 0.75 everywhere for the tags of each picture."""
    for index, name in enumerate(squares.names):
        classes = np.array(squares.classes(index), np.int16)
        size = (len(classes), *squares.size_hw(index))
        low = np.full((len(classes), 8, 9), 0.75, np.float32)
        write_cams(tmp_path / "cams" / f"{name}.npz", classes, np.full(size, 0.75, np.float32), low)
    return finished(tmp_path / "cams")


def test_corrected_maps_and_masks(squares, cams, tmp_path):
    truth = squares.read_mask(2).copy()
    truth[:4] = 255
    write_mask(tmp_path / "corrected" / f"{squares.names[2]}.png", truth)
    maps = np.zeros((1, 32, 36), np.float32)
    maps[0, 5:9, 10:20] = 1
    write_cams(tmp_path / "corrected" / f"{squares.names[3]}.npz", np.array([1], np.int16), maps)
    out = correct_cams(squares, cams=cams, corrected=tmp_path / "corrected", out=tmp_path / "out")
    result = json.loads((out / "done.json").read_text())["result"]
    assert result == {"images": 12, "corrected": [squares.names[2], squares.names[3]]}
    for index, name in enumerate(squares.names):
        classes, full = read_cams(out / f"{name}.npz")
        _, quarter = read_cams(out / f"{name}.npz", "maps_stride4")
        assert quarter.shape == (len(classes), 8, 9)
        if index == 2:
            for label, plane in zip(classes + 1, full, strict=True):
                np.testing.assert_array_equal(plane[4:], truth[4:] == label)
                np.testing.assert_array_equal(plane[:4], 0.75 if label - 1 in squares.classes(2) else 0)
        elif index == 3:
            np.testing.assert_array_equal(full, maps)
            assert classes.tolist() == [1]
        else:
            np.testing.assert_array_equal(full, 0.75)
            assert classes.tolist() == squares.classes(index)
    masks = CRFSettings(by="threshold", threshold=0.5).refined(RefinementTask(squares, out, tmp_path / "run"))
    np.testing.assert_array_equal(read_mask(masks / f"{squares.names[2]}.png")[4:], truth[4:])
    np.testing.assert_array_equal(read_mask(masks / f"{squares.names[3]}.png"), np.where(maps[0] > 0, 2, 0))


def test_corrected_maps_that_do_not_fit(squares, cams, tmp_path):
    folder = tmp_path / "corrected"

    def correct():
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        correct_cams(squares, cams=cams, corrected=folder, out=tmp_path / "out")

    folder.mkdir()
    with pytest.raises(BadInput, match="found no maps or masks"):
        correct()
    write_cams(folder / "other.npz", np.array([0], np.int16), np.zeros((1, 32, 36), np.float32))
    with pytest.raises(BadInput, match=r"other\.npz: found a file that belongs to no picture"):
        correct()
    (folder / "other.npz").unlink()
    write_cams(folder / f"{squares.names[1]}.npz", np.array([0], np.int16), np.zeros((1, 9, 9), np.float32))
    with pytest.raises(BadInput, match=r"bild_1ß\.npz: found maps of 9x9"):
        correct()
    write_mask(folder / f"{squares.names[1]}.png", np.zeros((32, 36), np.uint8))
    with pytest.raises(BadInput, match="a second corrected file"):
        correct()
    (folder / f"{squares.names[1]}.npz").unlink()
    write_mask(folder / f"{squares.names[1]}.png", np.full((32, 36), 9, np.uint8))
    with pytest.raises(BadInput, match="label 9"):
        correct()
