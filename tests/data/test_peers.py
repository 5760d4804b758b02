"""Data sets that other tools wrote (see `tests/peers`) come out with the classes, tags and masks that went in."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.peers.pictures import SIZE, inside
from wsss.data.open import open_dataset

PEERS = Path(__file__).parent / "peers"
LABELME, DATUMARO, DATASETS = PEERS / "labelme-6.3.1", PEERS / "datumaro-1.13.12", PEERS / "datasets-5.2.0"
LABEL_STUDIO, SUPERVISION = PEERS / "label_studio_sdk-2.1.2", PEERS / "supervision-0.31.2"


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
