"""COCO: what the COCO API makes of the file, and the file's own rules."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.peers.masks import CLASSES, masks
from wsss.errors import BadInput


def opened(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


@pytest.mark.parametrize(
    "options", [{}, {"polygons": True}, {"per": "class"}, {"per": "class", "polygons": True}], ids=str
)
def test_the_coco_api_draws_the_masks(options, hard_masks, tmp_path):
    path = hard_masks.export("coco", tmp_path / "out", **options)
    data = opened(path)
    assert {each["id"]: each["name"] for each in data.dataset["categories"]} == dict(enumerate(CLASSES, 1))
    known, seen = masks(unsure=False), set()
    for image in data.dataset["images"]:
        name = image["file_name"].removesuffix(".png")
        assert (tmp_path / "out/images/train" / image["file_name"]).exists()
        truth, drawn = known[name], np.zeros((image["height"], image["width"]), np.uint8)
        for annotation in data.loadAnns(data.getAnnIds(image["id"])):
            inside = data.annToMask(annotation) > 0
            assert not drawn[inside].any(), "objects overlap"
            drawn[inside] = annotation["category_id"]
            rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
            box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
            assert annotation["bbox"] == box
            assert annotation["area"] == inside.sum()
            assert annotation["iscrowd"] == 0
        np.testing.assert_array_equal(drawn, truth, err_msg=name)
        seen.add(name)
    assert seen == known.keys()
    assert [each["id"] for each in data.dataset["annotations"]] == list(range(1, len(data.anns) + 1))
    assert {"info", "licenses"} < data.dataset.keys()


def test_polygons_stand_where_they_are_exact(hard_masks, tmp_path):
    data = opened(hard_masks.export("coco", tmp_path / "out", polygons=True))
    for annotation in data.dataset["annotations"]:
        inside = data.annToMask(annotation) > 0
        outside = np.pad(~inside, 1, constant_values=True)
        has_hole = not reachable(outside).all()
        assert isinstance(annotation["segmentation"], dict) == has_hole


def reachable(outside: np.ndarray) -> np.ndarray:
    """The pixels that are inside, or that a king reaches from the border."""
    found, grown = np.zeros_like(outside), np.zeros_like(outside)
    grown[0, 0] = True
    while (grown != found).any():
        found = grown
        padded = np.pad(found, 1)
        height, width = found.shape
        grown = outside & np.any([padded[y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)
    return found | ~outside


def test_the_masks_score_1_against_themselves(hard_masks, tmp_path):
    path = hard_masks.export("coco", tmp_path / "out")
    data = opened(path)
    found = [
        {key: each[key] for key in ("image_id", "category_id", "segmentation")} | {"score": 1.0}
        for each in data.dataset["annotations"]
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        scores = COCOeval(data, data.loadRes(found), "segm")
        scores.params.maxDets = [1, 10, 1000]
        scores.evaluate()
        scores.accumulate()
    precision = scores.eval["precision"]  # of thresholds, recalls, classes, sizes and numbers of objects
    assert np.all(precision[:, :, :3, 0, -1] == 1)
    assert np.all(precision[:, :, 3] == -1)  # no pixel of this class


def test_objects_without_an_outline_are_refused(two, tmp_path):
    path = two.export("coco", tmp_path / "out")
    content = json.loads(path.read_text())
    content["annotations"][0]["segmentation"] = []
    path.write_text(json.dumps(content))
    with pytest.raises(BadInput, match="found 1 objects without an outline"):
        two.imported("coco", path)


def test_crowds_are_drawn_and_later_objects_win(two, tmp_path):
    path = two.export("coco", tmp_path / "out", per="class")
    content = json.loads(path.read_text())
    first, second = content["annotations"][:2]
    second["segmentation"], second["iscrowd"] = [[0, 0, 6, 0, 6, 4, 0, 4]], 1
    path.write_text(json.dumps(content))
    assert (two.imported("coco", path)["a"] == second["category_id"]).all()
    content["annotations"][:2] = second, first
    (tmp_path / "swapped.json").write_text(json.dumps(content))
    assert set(np.unique(two.imported("coco", tmp_path / "swapped.json")["a"])) == {1, 2}
