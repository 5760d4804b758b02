"""The drawn data set is what its settings say, whole, the same each time, and made once."""

import numpy as np
import pytest

from tests.conftest import tree
from wsss.data import shapes
from wsss.data.info import bad_pictures, check_pictures
from wsss.data.shapes import SHAPES, draw, make_shapes
from wsss.data.voc import open_voc
from wsss.errors import BadInput

FEW = {"train": 10, "val": 5, "size": 64}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp("shapes") / "set", **FEW)


def test_layout(made):
    data = open_voc(made)
    assert (data.train, data.scored_split, data.val, data.class_names) == ("train", "train", "val", SHAPES)
    assert (len(data.split("train")), len(data.split("val"))) == (10, 5)
    assert data.notes == ()
    for images in data.splits.values():
        assert bad_pictures(images, check_pictures(images)) == {}
        assert images.has_masks
        for index in range(len(images)):
            height, width = images.size_hw(index)
            assert max(height, width) == 64
            assert min(height, width) >= 48
            present = np.unique(images.read_mask(index, (height, width)))
            assert images.classes(index) == [label - 1 for label in present.tolist() if 0 < label < 255]


def test_each_class_is_drawn_in_turn(made):
    labels = open_voc(made).split("train").labels
    for index, row in enumerate(labels):
        assert row[index % 5]
    assert labels.sum(1).max() > 1


def test_it_is_the_same_each_time(made, tmp_path):
    again = make_shapes(tmp_path / "again", **FEW)
    assert tree(again) == tree(made)
    other = make_shapes(tmp_path / "other", **FEW, seed=1)
    assert (other / "JPEGImages/train_00000.jpg").read_bytes() != (made / "JPEGImages/train_00000.jpg").read_bytes()


def test_a_picture_depends_on_its_place_alone(made):
    picture, mask, _ = draw("train", 3, size=64, classes=SHAPES, seed=0)
    images = open_voc(made).split("train")
    np.testing.assert_array_equal(images.read_mask(3), mask)
    assert np.abs(images.read(3).astype(int) - picture).mean() < 6
    assert not np.array_equal(draw("val", 3, size=64, classes=SHAPES, seed=0)[1], mask)


def test_boats_alone_have_water():
    def blue(index):
        picture, mask, _ = draw("train", index, size=96, classes=SHAPES, seed=0)
        red, _, level = picture[mask == 0].mean(0)
        return level > red + 60

    for index in range(40):
        tags = {tag for tag, _ in draw("train", index, size=96, classes=SHAPES, seed=0)[2]}
        assert blue(index) == ("boat" in tags)


def test_objects_stand_out_at_their_borders():
    for index in range(25):
        picture, mask, boxes = draw("train", index, size=96, classes=SHAPES, seed=0)
        assert 1 <= len(boxes) <= 3
        for tag, (left, top, right, bottom) in boxes:
            around = np.s_[top - 1 : bottom, left - 1 : right]
            inside = mask[around] == SHAPES.index(tag) + 1
            difference = picture[around][inside].mean(0) - picture[mask == 0].mean(0)
            assert np.abs(difference).max() > 15


def test_the_same_command_again_makes_nothing(made, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    calls = []
    make_shapes(made, **FEW, progress=lambda done, total: calls.append((done, total)))
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before
    assert calls[-1] == (15, 15)


def test_it_goes_on_after_an_interruption(made, tmp_path, monkeypatch):
    whole_file, calls = shapes.whole_file, []

    def broken(path):
        calls.append(path)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return whole_file(path)

    monkeypatch.setattr(shapes, "whole_file", broken)
    with pytest.raises(KeyboardInterrupt):
        make_shapes(tmp_path / "set", **FEW)
    monkeypatch.undo()
    assert not (tmp_path / "set/classes.txt").exists()
    make_shapes(tmp_path / "set", **FEW)
    assert tree(tmp_path / "set") == tree(made)


def test_other_settings_need_another_folder(made, tmp_path):
    with pytest.raises(
        BadInput, match=r"set: found pictures made with train 10, seed 0; expected the same settings or a new folder"
    ):
        make_shapes(made, **{**FEW, "train": 11}, seed=4)
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(BadInput, match=r"found mine\.txt; expected an empty or new folder"):
        make_shapes(tmp_path, **FEW)


def test_some_classes(tmp_path):
    data = open_voc(make_shapes(tmp_path / "a", train=4, val=1, size=48, classes=["star", "boat"]))
    assert data.class_names == ("star", "boat")
    assert open_voc(make_shapes(tmp_path / "b", train=2, val=1, size=48, classes=["boat"])).class_names == ("boat",)


def test_bad_settings(tmp_path):
    with pytest.raises(BadInput, match=r"classes: found cube; expected some of ball, boat, cross, ring, star"):
        make_shapes(tmp_path, classes=["ball", "cube"])
    with pytest.raises(BadInput, match="classes: found none"):
        make_shapes(tmp_path, classes=[])
    for settings in ({"train": 0}, {"val": 0}, {"size": 47}, {"seed": -1}):
        with pytest.raises(BadInput, match="expected at least 1, 1, 48 and 0"):
            make_shapes(tmp_path, **settings)
    assert list(tmp_path.iterdir()) == []
