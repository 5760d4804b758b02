"""Masks that are exported and read back are the same pixel for pixel, however hard they are."""

import numpy as np
import pytest

from tests.peers.masks import masks

EXACT = [
    ("coco", {}),
    ("coco", {"polygons": True}),
    ("coco", {"per": "class"}),
    ("coco", {"per": "class", "polygons": True}),
    ("coco-panoptic", {}),
    ("coco-panoptic", {"per": "class"}),
    ("hf", {}),
    ("yolo-seg", {}),
    ("yolo-semantic", {}),
    ("cvat", {}),
    ("cvat", {"per": "class"}),
    ("cvat-masks", {}),
    ("cvat-masks", {"per": "class"}),
    ("labelme", {}),
    ("labelme", {"per": "class"}),
    ("labelme", {"shapes": "polygon"}),
    ("voc", {}),
]


def check_same(found, known):
    assert found.keys() == known.keys()
    for name, mask in known.items():
        np.testing.assert_array_equal(found[name], mask, err_msg=name)


@pytest.mark.parametrize(("format", "options"), EXACT, ids=str)
def test_hard_masks_come_back(format, options, hard_masks, tmp_path):
    out = tmp_path / "out"
    hard_masks.export(format, out, **options)
    check_same(hard_masks.imported(format, out), masks(unsure=False))


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("coco-panoptic", {}),
        ("hf", {}),
        ("labelme", {}),
        ("labelme", {"shapes": "polygon"}),
        ("voc", {}),
        ("yolo-semantic", {}),
    ],
    ids=str,
)
def test_unsure_pixels_come_back_where_they_can_be_ignored(format, options, unsure_masks, tmp_path):
    out = tmp_path / "out"
    unsure_masks.export(format, out, **options)
    check_same(unsure_masks.imported(format, out), masks(unsure=True))


@pytest.mark.parametrize(
    "format", ["coco", "coco-panoptic", "cvat", "cvat-masks", "hf", "labelme", "voc", "yolo-seg", "yolo-semantic"]
)
def test_unsure_pixels_may_be_a_class_of_their_own(format, unsure_masks, tmp_path):
    out = tmp_path / "out"
    unsure_masks.export(format, out, unsure="class")
    check_same(unsure_masks.imported(format, out), masks(unsure=True))


@pytest.mark.parametrize("format", ["coco", "cvat", "cvat-masks", "yolo-seg"])
def test_unsure_pixels_become_background_where_nothing_can_be_ignored(format, unsure_masks, tmp_path):
    out = tmp_path / "out"
    unsure_masks.export(format, out)
    known = {name: np.where(mask == 255, np.uint8(0), mask) for name, mask in masks(unsure=True).items()}
    check_same(unsure_masks.imported(format, out), known)
