"""Slips in tags are asked about before they become classes; numbers and well-known names are none."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.conftest import write_picture, write_text
from wsss.data.class_names import _differ_by_one_typo, likely_typos, notes_on_missing_classes
from wsss.data.images import Dataset, Images
from wsss.data.open import open_dataset
from wsss.errors import BadInput
from wsss.stages.check import open_checked


def tagged(root, counts):
    """A data set without pictures on disk: the number of pictures of each tag."""
    labels = np.repeat(np.eye(len(counts), dtype=bool), list(counts.values()), 0)
    names = tuple(str(index) for index in range(len(labels)))
    images = Images(
        "mine/train", names, tuple(root / f"{name}.png" for name in names), tuple(counts), labels, (None,) * len(names)
    )
    return Dataset("tags", root, {"train": images}, "train")


@pytest.mark.parametrize(
    ("counts", "asked"),
    [
        ({"bird": 300, "brid": 1}, "'brid' (1 picture) next to 'bird' (300 pictures)"),
        ({"bird": 30, "birds": 3}, "'birds' (3 pictures) next to 'bird' (30 pictures)"),
        ({"tiger": 10, "tigr": 1}, "'tigr' (1 picture)"),
        ({"tiger": 10, "Tigre": 1}, "'Tigre' (1 picture)"),
        ({"cat": 5, "Cat": 5}, "'Cat' (5 pictures) next to 'cat' (5 pictures)"),
        ({"CAT": 5, "cat": 1}, "'cat' (1 picture) next to 'CAT' (5 pictures)"),
        ({"garden gnome": 5, "garden_gnome": 4}, "'garden_gnome' (4 pictures)"),
        ({"bird": 300, "bride": 200}, None),
        ({"bird": 29, "brid": 3}, None),
        ({"grade 1": 300, "grade 2": 2}, None),
        ({"cat": 300, "car": 2}, None),
        ({"cow": 300, "cod": 2}, None),
        ({"moat": 300, "boat": 2}, None),
        ({"scratch": 300, "crack": 2}, None),
    ],
)
def test_slips(tmp_path, counts, asked):
    question = likely_typos(tagged(tmp_path, counts))
    if asked is None:
        assert question is None
    else:
        assert asked in str(question)
        assert "--classes" in str(question)
        assert likely_typos(tagged(tmp_path, counts), tuple(counts)) is None


@given(st.text("abc", min_size=1, max_size=6), st.text("abc", min_size=1, max_size=6))
def test_one_slip_is_an_edit_or_an_exchange(one, other):
    edits = {one[:at] + one[at + 1 :] for at in range(len(one))}
    edits |= {one[:at] + letter + one[at + 1 :] for at in range(len(one)) for letter in "abc"}
    edits |= {one[:at] + letter + one[at:] for at in range(len(one) + 1) for letter in "abc"}
    edits |= {one[:at] + one[at + 1] + one[at] + one[at + 2 :] for at in range(len(one) - 1)}
    if one != other:
        assert _differ_by_one_typo(one, other) == (other in edits)


def test_a_class_list_answers_the_question(tmp_path):
    for index in range(12):
        write_picture(tmp_path / f"{index}.png", (8, 8))
    rows = [f"{index}.png,{'tiger' if index else 'tigre'}" for index in range(12)]
    write_text(tmp_path / "tags.csv", "\n".join(["image,tags", *rows]) + "\n")
    with pytest.raises(BadInput, match=r"'tigre' .1 picture. next to 'tiger'"):
        open_checked(tmp_path, skip_bad=False)
    write_text(tmp_path / "classes.txt", "tiger\ntigre\n")
    assert open_checked(tmp_path, skip_bad=False).class_names == ("tiger", "tigre")


def test_splits_without_a_class_are_named(folders):
    for picture in ("train/cat/1.png", "train/dog/1.png", "val/dog/2.png"):
        write_picture(folders / "split" / picture)
    assert notes_on_missing_classes(open_dataset(folders / "split")) == ["split/val has no picture of cat: not scored"]
