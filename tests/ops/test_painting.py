"""Polygons painted one over another give the label map back, whatever it looks like."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw

from wsss.ops.painting import polygons


def painted(labels):
    """The polygons drawn by Pillow, as labelme does, and how many there are."""
    canvas = Image.new("L", labels.shape[::-1])
    found = list(polygons(labels))
    for label, points in found:
        ImageDraw.Draw(canvas).polygon(
            [tuple(map(float, point)) for point in points.tolist()], fill=label, outline=label
        )
    return np.asarray(canvas), len(found)


@settings(max_examples=60)
@given(arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.sampled_from([0, 1, 2, 255])))
def test_any_label_map(labels):
    np.testing.assert_array_equal(painted(labels)[0], labels)


def test_large_smooth_maps():
    y, x = np.indices((70, 90))
    for size in (3, 7, 20):
        labels = ((np.hypot(y - 30, x - 50) // size).astype(int) % 3).astype(np.uint8)
        drawn, count = painted(labels)
        np.testing.assert_array_equal(drawn, labels)
        assert count < 60


def test_nothing_is_painted_needlessly():
    """A ring is a disk and a hole; background that no polygon covers is not painted, and neither is a hole filled by another class."""
    assert painted(np.zeros((5, 5), np.uint8))[1] == 0
    ring = np.zeros((9, 9), np.uint8)
    ring[1:8, 1:8] = 1
    assert painted(ring)[1] == 1
    ring[3:6, 3:6] = 0
    assert [label for label, _ in polygons(ring)] == [1, 0]
    ring[3:6, 3:6] = 2
    assert [label for label, _ in polygons(ring)] == [1, 2]
