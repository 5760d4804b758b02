"""What changed in pictures, in words."""

import dataclasses

import numpy as np
import pytest

from tests.conftest import write_squares
from wsss import run
from wsss.data.files import write_mask
from wsss.differences import pictures_changed
from wsss.errors import BadInput

LOOKED_AT = []


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("squares")


@pytest.fixture
def images(folder):
    return write_squares(folder, 6)


def changes(before, images):
    return list(pictures_changed(before, images.table()))


def test_nothing(images):
    assert changes(images.table(), images) == []


def test_tags(images):
    labels = images.labels.copy()
    labels[1] = [True, False]
    before = dataclasses.replace(images, labels=labels).table()
    labels = labels.copy()
    labels[1] = [True, True]
    assert changes(before, dataclasses.replace(images, labels=labels)) == [
        "tags of 1 picture changed: teil 1/bild_1ß.png: red -> red, blue"
    ]
    before = dataclasses.replace(images, labels=np.zeros((6, 2), bool)).table()
    after = dataclasses.replace(images, labels=np.ones((6, 2), bool))
    assert changes(before, after) == [
        "tags of 6 pictures changed: teil 0/bild_0ß.png: none -> red, blue, teil 1/bild_1ß.png: none -> red, blue, "
        "teil 0/bild_2ß.png: none -> red, blue and 3 more"
    ]


def test_new_and_gone_pictures(images):
    fewer = images.subset([0, 2, 3, 4, 5])
    assert changes(fewer.table(), images) == ["1 picture is new: teil 1/bild_1ß.png"]
    assert changes(images.table(), images.subset([4, 5])) == [
        "4 pictures are gone: teil 0/bild_0ß.png, teil 1/bild_1ß.png, teil 0/bild_2ß.png and 1 more"
    ]
    assert changes(images.table(), images.subset([1, 0, 2, 3, 4, 5])) == ["the order of the pictures changed"]


def test_contents_of_pictures_and_masks(images):
    before = images.table()
    content = images.paths[0].read_bytes()
    images.paths[0].write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # as long as before
    assert changes(before, images) == ["the content of 1 picture changed: teil 0/bild_0ß.png"]
    images.paths[0].write_bytes(content)
    for index in (2, 3):
        write_mask(images.masks[index].path, np.ones((32, 36), np.uint8))
    assert changes(before, images) == ["the true masks of 2 pictures changed: teil 0/bild_2ß.png, teil 1/bild_3ß.png"]
    without = dataclasses.replace(images, masks=(None,) * 6)
    assert changes(before, without)[0].startswith("the true masks of 6 pictures changed")


def test_classes_and_options(images):
    other = dataclasses.replace(images, class_names=("red", "green"), upright=False)
    said = changes(images.table(), other)
    assert said[:2] == ["the classes were red, blue and are now red, green", "upright was True and is now False"]
    assert said[2].startswith("tags of ")


@run.stage(kind="look", makes="labels", title="look")
def look(images, *, out):
    (out / "made.txt").write_text("made")
    return {}


def test_a_stage_says_which_pictures_changed(tmp_path, images):
    look(images, out=tmp_path / "a")
    look(images.subset(range(6), title="called otherwise"), out=tmp_path / "a")
    labels = images.labels.copy()
    labels[1] = ~labels[1]
    fewer = dataclasses.replace(images, labels=labels).subset([0, 1, 2, 3])
    with pytest.raises(
        BadInput, match=r"2 pictures are gone: .*; tags of 1 picture changed: teil 1/bild_1ß\.png: "
    ) as error:
        look(fewer, out=tmp_path / "a")
    assert images.fingerprint() not in str(error.value)
