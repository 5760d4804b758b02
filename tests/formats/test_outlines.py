"""Outlines of objects: along the edges of pixels, and as one line that OpenCV fills again."""

import cv2
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from wsss.formats.objects import outlines, regions, signed_area
from wsss.formats.outline import joined_outline

SIDES = st.tuples(st.integers(1, 9), st.integers(1, 9))
MASKS = SIDES.flatmap(lambda size: arrays(np.uint8, size, elements=st.sampled_from((0, 0, 1, 2, 255))))


@given(MASKS)
def test_regions_are_the_mask(labels):
    for per in ("component", "class"):
        drawn = np.zeros_like(labels)
        for region in regions(labels, per):
            inside = region.filled(labels.shape)
            assert inside.sum() == region.area
            assert not drawn[inside].any()
            drawn[inside] = region.label
        np.testing.assert_array_equal(drawn, np.where(labels == 255, 0, labels))
    count = sum(cv2.connectedComponents((labels == label).astype(np.uint8), connectivity=8)[0] - 1 for label in (1, 2))
    found = list(regions(labels, "component"))
    assert len(found) == count
    first = [(region.label, int(np.flatnonzero(region.filled(labels.shape))[0])) for region in found]
    assert first == sorted(first)


@given(MASKS)
def test_outlines_enclose_the_pixels(labels):
    for region in regions(labels, "class"):
        rings = outlines(region.inside)
        assert sum(map(signed_area, rings)) == region.area
        holes = [ring for ring in rings if signed_area(ring) < 0]
        outer = [ring.ravel().astype(float).tolist() for ring in rings if signed_area(ring) > 0]
        height, width = region.inside.shape
        drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(outer, height, width))) > 0
        assert (drawn | ~region.inside).all()
        if not holes:
            np.testing.assert_array_equal(drawn, region.inside)


@given(MASKS)
def test_joined_outlines_fill_to_the_same_pixels(labels):
    for region in regions(labels, "component"):
        outline = joined_outline(region.inside)
        assert len(outline) >= 3
        drawn = np.zeros(region.inside.shape, np.uint8)
        cv2.fillPoly(drawn, [outline.astype(np.int32)], 1)
        np.testing.assert_array_equal(drawn > 0, region.inside)
    for region in regions(labels, "class"):
        drawn = np.zeros(region.inside.shape, np.uint8)
        cv2.fillPoly(drawn, [joined_outline(region.inside).astype(np.int32)], 1)
        assert (drawn[region.inside] > 0).all()
