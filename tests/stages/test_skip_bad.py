"""Opening a data set for work."""

import json

import pytest

from tests.data.conftest import box, write_picture, write_text
from wsss.errors import BadInput
from wsss.stages.check import open_checked, reopen


def two_splits(root):
    """COCO's format with pictures of the same names in both splits."""
    for split in ("train", "val"):
        entries = [{"id": n, "file_name": f"{n}.png", "height": 30, "width": 40} for n in (1, 2, 3)]
        objects = [
            {"id": n, "image_id": n, "category_id": 1 + n % 2, "segmentation": box(2, 2, 9, 9)} for n in (1, 2, 3)
        ]
        content = {
            "images": entries,
            "annotations": objects,
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        }
        write_text(root / f"annotations/instances_{split}.json", json.dumps(content))
        for n in (1, 2, 3):
            write_picture(root / split / f"{n}.png", seed=n + 10 * (split == "val"))
    return root


def test_a_bad_picture_does_not_take_one_of_its_name_along(tmp_path):
    root = two_splits(tmp_path / "data")
    (root / "train" / "2.png").write_bytes(b"no picture")
    with pytest.raises(BadInput, match="1 bad files"):
        open_checked(root, skip_bad=False)
    run = tmp_path / "run"
    for data in (open_checked(root, skip_bad=True, remember=run), reopen(run)):
        assert data.split("train").names == ("1", "3")
        assert data.split("val").names == ("1", "2", "3")
    assert list(json.loads((run / "data.json").read_text())["bad"]) == ["train/2.png"]


def test_pictures_that_are_trained_on_and_scored_on_are_noted(tmp_path):
    root = two_splits(tmp_path)
    (root / "val" / "2.png").write_bytes((root / "train" / "1.png").read_bytes())
    notes = open_checked(root, skip_bad=False).notes
    assert "1 pictures are in both train and val, under other names (train/1.png = val/2.png first)" in notes
