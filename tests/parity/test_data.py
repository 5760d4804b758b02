"""Palette, tags and true masks equal those of the published repositories exactly."""

import json

import numpy as np
import pytest

from tests.parity import fixtures
from wsss.data.coco import COCO_CATEGORIES, InstanceMask, draw_mask, read_instances
from wsss.data.files import voc_palette
from wsss.data.voc import VOC_CLASSES, read_annotation


def test_palette():
    published = fixtures.arrays("metrics/palette")
    np.testing.assert_array_equal(voc_palette(), published["voc_palette"])
    # CLIMS' submission script colours the labels that exist alike
    np.testing.assert_array_equal(voc_palette()[:21], published["clims_submission_palette"][:21])


@pytest.mark.parametrize("rule", ["irn", "clip-es", "clims-camera-ready"])
def test_tags_of_an_annotation_with_body_parts_and_a_difficult_object(rule):
    labels = read_annotation(fixtures.path("metrics/annotation.xml"), VOC_CLASSES, rule)
    np.testing.assert_array_equal(labels, fixtures.arrays("metrics/labels")["xml_label"] > 0)


def test_coco_categories():
    np.testing.assert_array_equal(list(COCO_CATEGORIES), fixtures.arrays("metrics/coco-mask")["category_ids"])


@pytest.mark.parametrize("rule", ["clims", "icam"])
def test_coco_mask(rule):
    instances = read_instances(fixtures.path("metrics/coco-instances.json"))
    mask = InstanceMask(instances, 0, rule).read()
    np.testing.assert_array_equal(mask, fixtures.arrays("metrics/coco-mask")[f"{rule}_mask"])


def test_coco_tags():
    published = fixtures.arrays("metrics/coco-mask")
    instances = read_instances(fixtures.path("metrics/coco-instances.json"))
    np.testing.assert_array_equal(instances.labels(0), published["clims_label"] > 0)
    visible = np.bincount(InstanceMask(instances, 0, "icam").read().ravel(), minlength=81)[1:] > 0
    np.testing.assert_array_equal(visible, published["icam_label"] > 0)


def test_coco_mask_with_a_run_length_code_and_a_flat_polygon():
    published = fixtures.arrays("icam/coco_mask")
    objects = [(entry["color"] - 1, entry) for entry in json.loads(str(published["annotations_json"]))]
    mask = draw_mask(objects, published["mask"].shape, "icam", "coco_mask.npz")
    np.testing.assert_array_equal(mask, published["mask"])
    np.testing.assert_array_equal(np.flatnonzero(np.bincount(mask.ravel())[1:]), published["labels80"])
