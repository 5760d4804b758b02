"""The readers of other tools' layouts on random bytes and on random edits of valid files: a result that makes sense, or BadInput."""

import base64
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.layouts import LAYOUTS
from tests.fuzz.hostile import as_json, files, fuzz, json_files
from wsss.data.labelmap import read_labelmap
from wsss.data.labelme import ShapesMask, read_labelme_file
from wsss.data.open import open_dataset
from wsss.data.roles import Roles
from wsss.data.rows import csv_rows, json_rows
from wsss.data.yolo import read_objects
from wsss.errors import BadInput

pytestmark = pytest.mark.fuzz


def png(values: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


DRAWING = {
    "version": "6.3.1",
    "flags": {"cat": True},
    "shapes": [
        {"label": "cat", "points": [[1.5, 2], [7, 3], [4, 6]], "shape_type": "polygon", "flags": {}, "group_id": None},
        {"label": "dog", "points": [[1, 1], [4, 3]], "shape_type": "circle"},
        {"label": "cat", "points": [[2, 2], [4, 5]], "shape_type": "mask", "mask": png(np.eye(4, 3, dtype=np.uint8))},
        {"label": "dog", "points": [[1, 1], [4, 3], [6, 1]], "shape_type": "linestrip"},
        {"label": "__ignore__", "points": [[3, 3]], "shape_type": "point"},
    ],
    "imagePath": "a.jpg",
    "imageData": None,
    "imageHeight": 8,
    "imageWidth": 9,
}


def test_drawings(tmp_path):
    def read(path):
        drawing = read_labelme_file(path)
        if drawing.size_hw[0] * drawing.size_hw[1] < 1_000_000:
            assert ShapesMask(path, Roles(("cat", "dog"))).read().shape == drawing.size_hw

    print(fuzz(json_files(DRAWING), tmp_path / "a.json", read), "inputs")


def test_label_maps(tmp_path):
    text = b"# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:48,112,32::\ndog:176,112,32:head:\n"
    print(fuzz(files(text, b"background:::\ncat:::\n"), tmp_path / "labelmap.txt", read_labelmap), "inputs")


def test_objects(tmp_path):
    def read(path):
        for class_, points in read_objects(path, 2):
            assert class_ in (0, 1)
            assert points.shape[1] == 2
            assert np.isfinite(points).all()

    print(fuzz(files(b"0 0.5 0.5 0.2 0.1\n1 0.1 0.1 0.4 0.1 0.4 1e-1\n"), tmp_path / "a.txt", read), "inputs")


def test_rows(tmp_path):
    table = b'filename, cat, dog\n"a, b.jpg", 1, 0\r\nc.jpg, 0, 1\n'
    print(fuzz(files(table), tmp_path / "a.csv", lambda path: list(csv_rows(path, "a table"))), "inputs")
    lines = as_json({"file_name": "a.jpg", "tags": ["cat"]})
    print(fuzz(files(lines), tmp_path / "a.jsonl", lambda path: list(json_rows(path, "a table"))), "inputs")


@pytest.mark.parametrize(
    ("layout", "file"),
    [
        ("yolo", "data.yaml"),
        ("yolo_masks", "data.yaml"),
        ("label_studio", "project-1.json"),
        ("imagefolder", "train/metadata.jsonl"),
        ("roboflow_masks", "train/_classes.csv"),
        ("roboflow_multi_label", "train/_classes.csv"),
        ("labelme", "train/0.json"),
        ("coco", "annotations/instances_train.json"),
        ("voc_of_cvat", "ImageSets/Segmentation/train.txt"),
    ],
)
def test_files_that_name_others(tmp_path, layout, file):
    root = LAYOUTS[layout][0](tmp_path / "set")
    whole = (root / file).read_bytes()

    def read(path: Path) -> None:
        shutil.copy(path, root / file)
        try:
            data = open_dataset(root)
        except BadInput:
            return
        for images in data.splits.values():
            assert all(path.resolve().is_relative_to(root.resolve()) for path in images.paths)

    contents = json_files(json.loads(whole)) if file.endswith(".json") else files(whole)
    print(fuzz(contents, tmp_path / Path(file).name, read), "inputs")
