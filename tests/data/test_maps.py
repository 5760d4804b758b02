"""Maps that other programs saved are scored and refined like our own, and doubtful ones are refused."""

import json

import numpy as np
import pytest

from tests.conftest import finished
from wsss.data.files import read_mask, write_cams
from wsss.data.maps import read_matching_cams
from wsss.errors import BadInput
from wsss.refiners.crf import MaskSettings, refine
from wsss.stages.evaluate import ScoreSettings, evaluate_cams


def truth_maps(squares, index):
    truth, classes = squares.read_mask(index), np.array(squares.classes(index))
    return classes, np.stack([0.9 * (truth == label + 1) for label in classes]).astype(np.float32)


def irnets(classes, maps):
    return {"keys": classes, "cam": maps[:, ::4, ::4], "high_res": maps}


def clip_ess(classes, maps):
    return {"keys": classes[::-1], "attn_highres": maps[::-1].astype(np.float16)}


def seams(classes, maps):
    return {int(label): one - 1e-5 for label, one in zip(classes, maps, strict=True)}


def write(squares, folder, content):
    for index, name in enumerate(squares.names):
        path = folder / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, content(*truth_maps(squares, index)))
    return folder


@pytest.mark.parametrize("content", [irnets, clip_ess, seams])
def test_maps_of_other_programs_become_masks_and_scores(tmp_path, squares, content):
    maps = write(squares, tmp_path / "maps", content)
    refine(MaskSettings("threshold", 0.5), squares, cams=maps, out=tmp_path / "masks")
    for index, name in enumerate(squares.names):
        np.testing.assert_array_equal(read_mask(tmp_path / "masks" / f"{name}.png"), squares.read_mask(index))
    evaluate_cams(ScoreSettings(contour=False), squares, cams=maps, out=tmp_path / "scores")
    assert json.loads((tmp_path / "scores" / "scores.json").read_text())["scores"]["miou"] == 1


def test_maps_at_a_quarter_of_the_size(tmp_path, squares):
    maps = write(squares, tmp_path / "maps", irnets)
    classes, expected = truth_maps(squares, 0)
    found, quarter = read_matching_cams(squares, maps, 0, (32, 36), stride=4)
    assert found.tolist() == classes.tolist()
    np.testing.assert_array_equal(quarter, expected[:, ::4, ::4])
    maps = write(squares, tmp_path / "others", clip_ess)
    with pytest.raises(BadInput, match=r"bild_0ß\.npy: found no `cam`"):
        read_matching_cams(squares, maps, 0, (32, 36), stride=4)


def test_a_picture_without_classes(tmp_path, squares):
    maps = write(squares, tmp_path / "maps", lambda classes, maps: {})
    classes, found = read_matching_cams(squares, maps, 0, (32, 36))
    assert (classes.tolist(), found.shape) == ([], (0, 32, 36))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda maps: 3 * maps, "maps from 0 to 2.7; expected scores in"),
        (lambda maps: maps - 0.2, "maps from -0.2 to"),
        (lambda maps: maps * np.nan, "maps from nan to nan"),
        (lambda maps: maps[:, :9], "maps of 9x36"),
    ],
)
def test_doubtful_maps_are_refused(tmp_path, squares, change, found):
    maps = write(squares, tmp_path / "maps", lambda classes, maps: irnets(classes, change(maps)))
    with pytest.raises(BadInput, match=rf"bild_0ß\.npy: found {found}"):
        read_matching_cams(squares, maps, 0, (32, 36))


def test_one_program_in_a_folder(tmp_path, squares):
    maps = write(squares, tmp_path / "maps", irnets)
    write_cams(maps / f"{squares.names[0]}.npz", *truth_maps(squares, 0))
    with pytest.raises(BadInput, match=r"bild_0ß\.npy: found maps of the picture in bild_0ß\.npz too"):
        read_matching_cams(squares, finished(maps), 0, (32, 36))
