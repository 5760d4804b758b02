"""The files of a review: whole after every step, read back by a new review, and by the dataset readers."""

import dataclasses

import numpy as np
import pytest

from tests.review.conftest import CLASSES, NAMES, SIZE_HW, TAGS
from wsss.data.files import read_mask, write_mask
from wsss.data.open import open_dataset
from wsss.errors import BadInput
from wsss.review.decisions import ACCEPTED, CHANGED, OPEN, REJECTED, Decisions


@pytest.fixture
def data(made):
    return open_dataset(made.data)


def decisions(made, data, masks=True):
    return Decisions(data, "train", made.run / "review", made.run / "masks" if masks else None)


def at(review, name):
    return review.images.names.index(name)


def test_a_review_without_a_decision_writes_nothing(made, data):
    review = decisions(made, data)
    assert review.states == [OPEN] * len(NAMES)
    assert not (made.run / "review").exists()


def test_tags_are_read_back_by_a_new_review_and_by_the_readers_of_datasets(made, data):
    review = decisions(made, data)
    one, two, three = (at(review, name) for name in ("a/one", "a/two words", "b/four.png"))
    review.decide(one, [0, 2], ACCEPTED)
    review.decide(two, [3], CHANGED)
    review.decide(three, [0], REJECTED)
    again = decisions(made, data)
    np.testing.assert_array_equal(again.tags, review.tags)
    assert again.states == review.states
    assert (again.states[one], again.states[two], again.states[three]) == (ACCEPTED, CHANGED, REJECTED)
    assert dataclasses.astuple(again.counts()) == (5, 1, 1, 1, 3, 1)
    out = made.run / "review"
    read = open_dataset(made.data, tags=out / "tags.csv", classes=out / "classes.txt", train=str(out / "train.txt"))
    train = read.split(read.train)
    assert read.class_names == CLASSES
    assert sorted(train.names) == sorted(name for name in NAMES if name != "b/four.png")
    assert train.classes(train.names.index("a/one")) == [0, 2]
    assert train.classes(train.names.index("a/two words")) == [3]
    assert train.classes(train.names.index("b/drei ß")) == list(TAGS[2])
    assert read.val == "val"
    assert read.split("val").classes(0) == [0]


def test_without_rejected_pictures_there_is_no_list(made, data):
    review = decisions(made, data)
    review.decide(0, [0], REJECTED)
    assert (made.run / "review" / "train.txt").exists()
    review.decide(0, [0], OPEN)
    assert not (made.run / "review" / "train.txt").exists()
    assert decisions(made, data).states[0] == OPEN


def test_tags_changed_back_are_no_change(made, data):
    review = decisions(made, data)
    first = at(review, "a/one")
    review.decide(first, [0, 1], CHANGED)
    review.decide(first, [0], CHANGED)
    assert review.states[first] == OPEN
    review.decide(first, [1], OPEN)
    assert review.states[first] == CHANGED


def test_corrected_masks_are_exact_and_gone_when_they_are_undone(made, data):
    review = decisions(made, data)
    first = at(review, "b/drei ß")
    pseudo = review.mask(first)
    mask = pseudo.copy()
    mask[0, :5] = (0, 1, 2, 4, 255)
    review.correct(first, mask)
    path = made.run / "review" / "corrected" / "b/drei ß.png"
    np.testing.assert_array_equal(read_mask(path), mask)
    again = decisions(made, data)
    np.testing.assert_array_equal(again.mask(first), mask)
    np.testing.assert_array_equal(again.mask(first, original=True), pseudo)
    assert again.states[first] == CHANGED
    again.correct(first, pseudo)
    assert not path.exists()
    assert again.states[first] == OPEN


def test_an_accepted_mask_counts_as_corrected_until_the_picture_is_reopened(made, data):
    review = decisions(made, data)
    path = review.corrected_path(0)
    review.decide(0, [0], ACCEPTED)
    np.testing.assert_array_equal(read_mask(path), review.mask(0, original=True))
    review.decide(0, [0], CHANGED)
    assert not path.exists()
    edited = np.full(SIZE_HW, 1, np.uint8)
    review.correct(0, edited)
    review.decide(0, [0], ACCEPTED)
    review.decide(0, [0], CHANGED)
    np.testing.assert_array_equal(read_mask(path), edited)


def test_a_kill_between_mask_and_table_loses_nothing(made, data):
    review = decisions(made, data)
    edited = np.full(SIZE_HW, 2, np.uint8)
    write_mask(review.corrected_path(0), edited)  # the table was not written any more
    again = decisions(made, data)
    np.testing.assert_array_equal(again.mask(0), edited)
    assert again.states[0] == CHANGED


@pytest.mark.parametrize(
    ("mask", "found"),
    [(np.zeros((3, 4), np.uint8), "3x4"), (np.full(SIZE_HW, 5, np.uint8), "label 5")],
)
def test_a_mask_that_does_not_fit_is_refused(made, data, mask, found):
    review = decisions(made, data)
    with pytest.raises(BadInput, match=found):
        review.correct(0, mask)
    assert not (made.run / "review").exists()


def test_impossible_decisions_are_refused(made, data):
    review = decisions(made, data)
    for tags, state in (([4], OPEN), ([-1], OPEN), ([0], "perhaps")):
        with pytest.raises(BadInput, match="classes from 0 to 3"):
            review.decide(0, tags, state)
    with pytest.raises(BadInput, match="no mask to correct"):
        decisions(made, data, masks=False).correct(0, np.zeros(SIZE_HW, np.uint8))


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("image,tags,split\na/one,cat,train\n", "the columns image, tags, split"),
        ("image,tags,split,review\nelsewhere,cat,train,\n", "'elsewhere'"),
        ("image,tags,split,review\na/one,cat,train,maybe\n", "'maybe'"),
        ("image,tags,split,review\na/one,cta,train,accepted\n", "Did you mean 'cat'"),
    ],
)
def test_files_of_another_review_are_refused(made, data, line, found):
    out = made.run / "review"
    out.mkdir()
    (out / "tags.csv").write_text(line)
    with pytest.raises(BadInput, match=found):
        decisions(made, data)


def test_a_class_name_with_a_separator_is_refused(made, data):
    images = dataclasses.replace(data.split("train"), class_names=("a;b", *CLASSES[1:]))
    other = dataclasses.replace(data, splits={"train": images})
    with pytest.raises(BadInput, match="a;b"):
        decisions(made, other)
