"""Mask pictures of all kinds give the labels that people meant, or a question; programs that shrink files change nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.parity import inputs
from wsss.data.files import read_labels, read_mask, write_mask
from wsss.data.labels import parse_mask_values, voc_palette
from wsss.errors import BadInput

MASK = inputs.mask(20, 30, 4)
CLASSES = ("cat", "dog", "cow")


def saved(tmp_path, picture: Image.Image, name: str = "a.png", **options):
    picture.save(tmp_path / name, **options)
    return tmp_path / name


def palette_picture(pixels, colours):
    picture = Image.fromarray(pixels.astype(np.uint8)).convert("P")
    picture.putpalette(np.asarray(colours, np.uint8).ravel().tolist())
    return picture


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_a_renumbered_palette_of_voc_is_read_by_colour(tmp_path_factory, data):
    # what oxipng 9.1 does to a palette mask: the colour of each pixel stays, its index does not
    labels = data.draw(
        st.lists(st.sampled_from([0, 1, 2, 3, 15, 20, 128, 254, 255]), min_size=2, max_size=6, unique=True)
    )
    mask = np.array(labels, np.uint8)[inputs.mask(8, 9, len(labels), ignore=0)]
    order = data.draw(st.permutations(range(len(labels))))
    index = np.argsort(order)[np.searchsorted(np.sort(labels), mask)]
    colours = voc_palette()[np.sort(labels)][list(order)]
    path = saved(tmp_path_factory.getbasetemp(), palette_picture(index, colours), "renumbered.png")
    np.testing.assert_array_equal(read_mask(path), mask)


def test_how_a_mask_was_read_is_said(tmp_path):
    write_mask(tmp_path / "ours.png", MASK)
    assert read_labels(tmp_path / "ours.png")[1] == "values"
    turned = palette_picture(np.where(MASK == 2, 0, 1), voc_palette()[[1, 0]])
    labels, reading = read_labels(saved(tmp_path, turned))
    assert reading == "VOC's colours"
    np.testing.assert_array_equal(labels, MASK == 2)


def test_an_ignored_index_may_have_any_colour(tmp_path):
    colours = voc_palette().copy()
    colours[255] = 255
    np.testing.assert_array_equal(read_mask(saved(tmp_path, palette_picture(MASK, colours))), MASK)


@pytest.mark.parametrize("kind", ["L", "RGB", "RGBA", "LA", "I", "I;16", "P"])
def test_grey_of_any_kind_holds_labels(tmp_path, kind):
    picture = Image.fromarray(MASK)
    if kind == "I;16":
        picture = Image.fromarray(MASK.astype(np.uint16))
    elif kind != "L":
        picture = picture.convert(kind)
    labels, reading = read_labels(saved(tmp_path, picture, "a.tif" if kind == "I" else "a.png"))
    np.testing.assert_array_equal(labels, MASK)
    assert labels.dtype == np.uint8
    assert reading == "values"


def test_one_bit_is_0_and_255(tmp_path):
    np.testing.assert_array_equal(read_mask(saved(tmp_path, Image.fromarray(MASK == 2))), (MASK == 2) * 255)


@pytest.mark.parametrize("colours", [[(0, 0, 0), (255, 255, 255)], [(120, 120, 120), (180, 120, 120)]])
def test_another_palette_is_a_question(tmp_path, colours):
    path = saved(tmp_path, palette_picture(MASK == 2, colours))
    with pytest.raises(BadInput, match=r"a\.png: found a palette of colours.*--mask-values index"):
        read_mask(path)
    np.testing.assert_array_equal(read_mask(path, parse_mask_values("index", CLASSES)), MASK == 2)


def test_lossy_formats_are_refused(tmp_path):
    for suffix, options in (("jpg", {}), ("webp", {"lossless": True})):
        path = saved(tmp_path, Image.fromarray(MASK), f"a.{suffix}", **options)
        for values in (None, parse_mask_values("255=1", CLASSES)):
            with pytest.raises(BadInput, match="which changes values when it compresses"):
                read_mask(path, values)


def test_large_values_are_no_labels(tmp_path):
    path = saved(tmp_path, Image.fromarray(MASK.astype(np.uint16) * 257))
    with pytest.raises(BadInput, match="values from 0 to 65535"):
        read_mask(path)


def test_transparency_is_refused(tmp_path):
    picture = Image.fromarray(MASK).convert("RGBA")
    picture.putalpha(Image.fromarray(MASK))
    with pytest.raises(BadInput, match="transparency"):
        read_mask(saved(tmp_path, picture))


def test_colours_are_asked_about_and_named(tmp_path):
    colours = np.array([(0, 0, 0), (48, 112, 32), (200, 0, 0), (1, 2, 3)], np.uint8)
    mask = np.where(MASK == 255, 0, MASK)
    path = saved(tmp_path, Image.fromarray(colours[mask]))
    with pytest.raises(BadInput, match=r"mode RGB with the colours .*--mask-values '.*=NAME"):
        read_mask(path)
    given_all = parse_mask_values("48,112,32=dog; 200,0,0=3 ; 1,2,3=ignore", CLASSES)
    labels, reading = read_labels(path, given_all)
    np.testing.assert_array_equal(labels, np.array([0, 2, 3, 255])[mask])
    assert reading == "table"
    with pytest.raises(BadInput, match=r"pixels of colour 1,2,3; expected those of --mask-values"):
        read_mask(path, parse_mask_values("48,112,32=dog; 200,0,0=3", CLASSES))


def test_values_are_named(tmp_path):
    path = saved(tmp_path, Image.fromarray((MASK == 2) * np.uint8(255)))
    np.testing.assert_array_equal(read_mask(path, parse_mask_values("255=1", CLASSES)), MASK == 2)
    # labels from 0 with 255 as background
    table = parse_mask_values("0=cat;1=dog;2=cow;255=background", CLASSES)
    path = saved(tmp_path, Image.fromarray(MASK - np.uint8(1)))
    np.testing.assert_array_equal(read_mask(path, table), np.where(MASK == 255, 254, MASK))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "found ''"),
        ("255", "found '255'"),
        ("256=1", "found '256=1'"),
        ("1,2=cat", "found '1,2=cat'"),
        ("-1=cat", "found '-1=cat'"),
        ("255=4", "'4' as a meaning"),
        ("255=dgo", "Did you mean 'dog'"),
        ("1=cat; 1=dog", "1 twice"),
        ("1=cat; 1,2,3=dog", "values and colours mixed"),
        ("9" * 5000 + "=cat", "--mask-values"),
    ],
)
def test_wrong_texts(text, words):
    with pytest.raises(BadInput) as error:
        parse_mask_values(text, CLASSES)
    assert words in str(error.value)
