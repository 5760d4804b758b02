"""CVAT for images 1.1: run lengths as cvat-sdk 2.80.0 writes them, shapes in CVAT's order, and files that are refused."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wsss.data.cvat import CvatShape, read_cvat, run_lengths
from wsss.errors import BadInput, Unreadable

NAMES = {"cat": 1, "dog": 2}


def written(folder: Path, shapes: str, image: str = 'id="0" name="a/1.jpg" width="7" height="6"') -> Path:
    path = folder / "annotations.xml"
    path.write_text(
        f"<annotations><version>1.1</version><meta><task/></meta><image {image}>{shapes}</image></annotations>"
    )
    return path


def mask_of(path: Path) -> np.ndarray:
    (picture,) = read_cvat(path)
    assert (picture.name, picture.size_hw) == ("a/1.jpg", (6, 7))
    return picture.mask(NAMES.__getitem__)


def test_run_lengths_are_those_of_cvat_sdk():
    inside = np.zeros((6, 7), bool)
    inside[1, 2:5] = inside[2, 2] = inside[2, 4] = inside[4, 1] = True
    assert run_lengths(inside[1:5, 1:5]) == [1, 3, 1, 1, 1, 1, 4, 1, 3]
    assert run_lengths(np.ones((2, 3), bool)) == [0, 6]


@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))), st.integers(0, 3), st.integers(0, 3))
def test_run_lengths_give_the_mask_back(inside, left, top):
    height, width = inside.shape
    shape = CvatShape("cat", 0, np.array(run_lengths(inside), np.int32), (left, top, width, height))
    whole = np.pad(inside, ((top, 1), (left, 2)))
    np.testing.assert_array_equal(shape.inside(whole.shape), whole)


def test_shapes_are_drawn_by_z_order_and_then_in_their_order(tmp_path):
    shapes = """
      <tag label="cat"/>
      <mask label="dog" rle="0, 4" left="1" top="1" width="2" height="2" z_order="1"><attribute name="x">1</attribute></mask>
      <mask label="cat" rle="0,42" left="0" top="0" width="7" height="6" z_order="0"/>
      <mask label="cat" rle="1, 1" left="2" top="2" width="2" height="1" z_order="1"/>
      <mask label="dog" rle="0, 1" left="6" top="5" width="1" height="1"/>"""
    truth = np.ones((6, 7))
    truth[1:3, 1:3] = truth[5, 6] = 2
    truth[2, 3] = 1
    np.testing.assert_array_equal(mask_of(written(tmp_path, shapes)), truth)


def test_polygons_are_drawn_by_the_coco_api(tmp_path):
    """Corners at whole pixels enclose those pixels that the API gives: right and lower edges are outside."""
    shapes = '<polygon label="dog" points="1.00,1.00;5.00,1.00;5.00,4.00;1.00,4.00" z_order="0"/>'
    truth = np.zeros((6, 7))
    truth[1:4, 1:5] = 2
    np.testing.assert_array_equal(mask_of(written(tmp_path, shapes)), truth)


def test_a_long_file_is_read_picture_by_picture(tmp_path):
    path = tmp_path / "a.xml"
    images = "".join(f'<image id="{n}" name="{n}.jpg" width="3" height="2"/>' for n in range(3))
    path.write_text(f"<annotations>{images}<image")
    pictures = read_cvat(path)
    assert [next(pictures).name for _ in range(3)] == ["0.jpg", "1.jpg", "2.jpg"]
    with pytest.raises(BadInput, match="broken XML"):
        next(pictures)


BROKEN = {
    '<box label="cat" xtl="1" ytl="1" xbr="2" ybr="2"/>': r"a shape <box> with the label 'cat'; expected masks and polygons",
    '<polyline label="cat" points="1,1;2,2"/>': "a shape <polyline>",
    '<mask label="cat" rle="0, 3" left="0" top="0" width="2" height="2"/>': "run lengths that do not fill their box",
    '<mask label="cat" rle="0, -3, 7" left="0" top="0" width="2" height="2"/>': "run lengths that do not fill their box",
    '<mask label="cat" rle="0, 4" left="6" top="0" width="2" height="2"/>': "outside its picture",
    '<mask label="cat" rle="0, 4" left="-1" top="0" width="2" height="2"/>': "outside its picture",
    '<mask label="cat" rle="0, x" left="0" top="0" width="2" height="2"/>': "run lengths of the mask of 'cat'",
    '<mask label="cat" rle="0, 99999999999" left="0" top="0" width="2" height="2"/>': "run lengths of the mask of 'cat'",
    '<mask label="cat" rle="0, 4" left="0" top="0" width="2"/>': "height=''",
    '<mask label="cat" left="0" top="0" width="2" height="2"/>': "no 'rle'",
    '<mask rle="0, 4" left="0" top="0" width="2" height="2"/>': "a <mask> without a label",
    '<polygon label="cat" points="1,1;2,2"/>': "fewer than three corners",
    '<polygon label="cat" points="1,1;2,nan;3,3"/>': "corners far away",
    '<polygon label="cat" points="1;2;a"/>': "points of the polygon of 'cat'",
    '<polygon label="cat" points="1,1;2,2;3,3" z_order="top"/>': "z_order='top'",
}


@pytest.mark.parametrize("shapes", BROKEN)
def test_broken_shapes(shapes, tmp_path):
    with pytest.raises(BadInput, match=r"annotations\.xml, picture 'a/1\.jpg'") as error:
        mask_of(written(tmp_path, shapes))
    assert BROKEN[shapes] in str(error.value).replace("\\'", "'")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation/>", "the element <annotation>"),
        ('<annotations><track id="0" label="cat"/></annotations>', "a track of a video"),
        ('<annotations><image width="3" height="2"/></annotations>', "a picture without a name"),
        ('<annotations><image name="a" width="3" height="0"/></annotations>', "0 x 3 pixels"),
        (
            '<annotations><image name="a" width="99999999" height="99999999"/></annotations>',
            "99999999 x 99999999 pixels",
        ),
        ('<annotations><image name="a" width="3"/></annotations>', "height=''"),
        ("", "broken XML"),
    ],
)
def test_broken_files(text, message, tmp_path):
    path = tmp_path / "a.xml"
    path.write_text(text)
    with pytest.raises(BadInput, match=message):
        list(read_cvat(path))


def test_a_shape_outside_is_no_crash():
    with pytest.raises(Unreadable):
        CvatShape("cat", 0, np.array([0, 4], np.int32), (0, 0, 0, 4)).inside((4, 4))
