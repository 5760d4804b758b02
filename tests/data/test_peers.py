"""Data sets that other tools wrote (see `tests/peers`) come out with the classes, tags and masks that went in."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.peers.pictures import SIZE, inside
from wsss.data.open import open_dataset

PEERS = Path(__file__).parent / "peers"
LABELME, DATUMARO, DATASETS = PEERS / "labelme-6.3.1", PEERS / "datumaro-1.13.12", PEERS / "datasets-5.2.0"
LABEL_STUDIO, SUPERVISION = PEERS / "label_studio_sdk-2.1.2", PEERS / "supervision-0.31.2"
ULTRALYTICS = PEERS / "ultralytics-8.4.190"


def tags(images):
    return {Path(name).name: [images.class_names[c] for c in images.classes(i)] for i, name in enumerate(images.names)}


def masks(images):
    return {Path(name).name: images.read_mask(i, images.size_hw(i)) for i, name in enumerate(images.names)}


def check_squares(images, numbers):
    """The pictures of these numbers, even ones with a cat, odd ones with a dog, where the scripts have put them."""
    assert images.class_names == ("cat", "dog")
    assert tags(images) == {str(number): [("cat", "dog")[number % 2]] for number in numbers}
    for name, mask in masks(images).items():
        np.testing.assert_array_equal(mask, inside(int(name)) * np.uint8(1 + int(name) % 2))


def test_shapes_of_labelme_are_drawn_as_labelme_draws_them():
    images = open_dataset(LABELME / "drawn").split("train")
    assert images.class_names == ("bird", "cat", "dog")
    assert tags(images) == {"kinds": ["bird", "cat", "dog"], "none": [], "over": ["cat", "dog"]}
    for name, mask in masks(images).items():
        np.testing.assert_array_equal(mask, np.load(LABELME / f"{name}.npy"), err_msg=name)
    assert {0, 2, 3, 255} == set(np.unique(masks(images)["over"]).tolist())


def test_flags_of_labelme():
    images = open_dataset(LABELME / "flags").split("train")
    assert tags(images) == {"a": ["cat"], "b": ["cat", "dog"], "c": []}
    assert images.masks == (None, None, None)


@pytest.mark.parametrize("form", ["voc", "voc_segmentation", "coco_instances"])
def test_masks_of_datumaro(form):
    data = open_dataset(DATUMARO / form)
    assert (data.train, data.val) == ("train", "val")
    check_squares(data.split("train"), (0, 1))
    check_squares(data.split("val"), (2,))


def test_tags_of_datumaro():
    data = open_dataset(DATUMARO / "voc_classification")
    assert tags(data.split("train")) == {"0": ["cat"], "1": ["dog"]}
    assert tags(data.split("val")) == {"2": ["cat"]}
    assert data.split("train").masks == (None, None)


def test_a_background_of_ones_own_in_datumaro():
    images = open_dataset(DATUMARO / "voc_background").split("default")
    assert (images.class_names, tags(images)) == (("cat", "dog"), {"0": ["dog"]})
    np.testing.assert_array_equal(masks(images)["0"], inside(0) * np.uint8(2))


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_imagefolder_as_datasets_reads_it(form):
    data = open_dataset(DATASETS / form, tag_column="objects_seen")
    check_squares(data.split("train"), (0, 1))
    check_squares(data.split("val"), (2,))
    seen = json.loads((DATASETS / f"{form}.json").read_text())
    for split, theirs in (("train", "train"), ("val", "validation")):
        images = data.split(split)
        assert [images.class_names[c] for i in range(len(images)) for c in images.classes(i)] == [
            tag for row in seen[theirs] for tag in (row["tags"] if form == "jsonl" else [row["tags"]])
        ]
        for index, row in enumerate(seen[theirs]):
            np.testing.assert_array_equal(images.read_mask(index, SIZE), row["mask"])


@pytest.mark.parametrize("form", ["json_min", "csv"])
def test_choices_of_label_studio(form):
    images = open_dataset(LABEL_STUDIO / form).split("train")
    assert tags(images) == {"0": ["cat"], "1": ["cat", "dog"], "2": ["dog"]}
    assert images.masks == (None, None, None)


def test_polygons_of_label_studio_as_coco():
    images = open_dataset(LABEL_STUDIO / "coco").split("train")
    assert images.class_names == ("cat", "dog")
    assert tags(images) == {"00000000-0": ["dog"], "00000001-1": ["cat"], "00000002-2": ["dog"]}
    for mask in masks(images).values():
        np.testing.assert_array_equal(mask > 0, inside(0))


def test_masks_of_supervision_as_coco():
    images = open_dataset(SUPERVISION / "coco").split("train")
    assert tags(images) == {"0": ["cat"], "1": ["dog"], "2": ["cat"]}
    for name, mask in masks(images).items():
        # polygons of pixels' centres lose the last row and column to COCO's rasteriser
        np.testing.assert_array_equal(mask > 0, np.roll(inside(int(name)), (-1, -1), (0, 1)) & inside(int(name)))


def test_masks_of_supervision_as_yolo():
    check_squares(open_dataset(SUPERVISION / "yolo").split("train"), (0, 1, 2))


def every_mask(data):
    return masks(data.split("train")) | masks(data.split("val"))


def every_tag(data):
    return tags(data.split("train")) | tags(data.split("val"))


OBJECTS = {"0": ["cat", "dog"], "1": ["dog"], "2": ["cat"], "3": ["dog"]}


def test_coco_turned_into_texts_by_ultralytics():
    data = open_dataset(ULTRALYTICS / "from_coco")
    assert (data.train, data.val) == ("train", "val")
    assert every_tag(data) == OBJECTS
    drawn, seen, found = np.load(ULTRALYTICS / "drawn.npz"), np.load(ULTRALYTICS / "from_coco.npz"), every_mask(data)
    for name, mask in found.items():
        # theirs has 0, 1 for the classes and 2 for the background
        np.testing.assert_array_equal(mask, (seen[name] + 1) % 3, err_msg=name)
    # borders belong to a shape, so that edges between pixels become a row and a column more
    for name in ("0", "3"):
        ours = np.where(drawn[name] == 255, 0, drawn[name])
        grown = np.maximum.reduce([np.roll(ours, (down, right), (0, 1)) for down in (0, 1) for right in (0, 1)])
        np.testing.assert_array_equal(found[name], grown, err_msg=name)
    # of RLE it keeps the outer contour, and parts are joined by a line
    filled = np.zeros(SIZE, np.uint8)
    filled[3:16, 3:23] = 1
    np.testing.assert_array_equal(found["2"], filled)
    assert (found["1"] >= drawn["1"]).all()
    assert (cv2.connectedComponents(drawn["1"])[0], cv2.connectedComponents(found["1"])[0]) == (3, 2)


def test_masks_turned_into_texts_by_ultralytics():
    data = open_dataset(ULTRALYTICS / "from_masks")
    assert (data.train, data.val) == ("train", "val")
    assert every_tag(data) == OBJECTS
    drawn = dict(np.load(ULTRALYTICS / "drawn.npz"))
    # it leaves out 255 and holes
    drawn["2"][3:16, 3:23] = 1
    drawn["3"][3:18, 3:23] = 2
    drawn["3"][drawn["3"] == 255] = 0
    for name, mask in every_mask(data).items():
        np.testing.assert_array_equal(mask, drawn[name], err_msg=name)


@pytest.mark.parametrize("form", ["semantic", "semantic_mapped", "semantic_single"])
def test_semantic_masks_as_ultralytics_reads_them(form):
    data = open_dataset(ULTRALYTICS / form)
    assert (data.train, data.val) == ("train", "val")
    kept = ("cat",) if form == "semantic_single" else ("cat", "dog")
    assert data.split("train").class_names == kept
    assert every_tag(data) == {name: [tag for tag in held if tag in kept] for name, held in OBJECTS.items()}
    seen, drawn = np.load(ULTRALYTICS / f"{form}.npz"), np.load(ULTRALYTICS / "drawn.npz")
    for name, mask in every_mask(data).items():
        np.testing.assert_array_equal(mask, seen[name], err_msg=name)
        np.testing.assert_array_equal(mask, drawn[name] * (np.isin(drawn[name], (1, 255)) | ("dog" in kept)))
