"""A split: its pictures, labels and masks, and what changes its fingerprint."""

import dataclasses

import numpy as np
import pytest

from tests.data.conftest import write_labels, write_picture
from wsss.data.files import write_mask
from wsss.data.images import Dataset, Images, MaskFile
from wsss.data.samples import PictureReading
from wsss.errors import BadInput


def some(tmp_path, count: int = 3) -> Images:
    paths = tuple(write_picture(tmp_path / f"{i}.png", seed=i) for i in range(count))
    masks = tuple(MaskFile(write_labels(tmp_path / f"masks/{i}.png", [1, 2, 255])) for i in range(count))
    names = tuple(f"picture {i}" for i in range(count))
    return Images("some", names, paths, ("cat", "dog"), np.ones((count, 2), bool), masks)


def test_mask_of_another_size(tmp_path):
    images = some(tmp_path)
    write_labels(tmp_path / "masks/1.png", [1], (40, 30))
    assert images.read_mask(0, (30, 40)).shape == (30, 40)
    with pytest.raises(
        BadInput, match=r"masks/1\.png: found a mask of 40x30 .*expected 30x40 like its picture .*1\.png"
    ):
        images.read_mask(1, (30, 40))


def test_mask_with_an_unknown_label(tmp_path):
    images = some(tmp_path)
    write_labels(tmp_path / "masks/2.png", [1, 3, 3])
    with pytest.raises(
        BadInput, match=r"2\.png: found label 3 .60 pixels.; expected 0 .background., 1\.\.2 .cat, dog."
    ):
        images.read_mask(2)


def test_no_mask(tmp_path):
    images = dataclasses.replace(some(tmp_path), masks=(None, None, None))
    assert not images.has_masks
    with pytest.raises(BadInput, match="no true mask"):
        images.read_mask(0)


def test_two_pictures_of_one_name(tmp_path):
    images = some(tmp_path)
    with pytest.raises(BadInput, match=r"1\.png: found a second picture named 'x' .the first is .*0\.png"):
        dataclasses.replace(images, names=("x", "x", "y"))


def test_too_many_classes(tmp_path):
    many = dataclasses.replace(some(tmp_path), class_names=tuple(map(str, range(255))), labels=np.zeros((3, 255), bool))
    with pytest.raises(BadInput, match="255 classes; expected at most 254"):
        many.check_maskable()
    some(tmp_path).check_maskable()


def test_arrays_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match="do not fit"):
        dataclasses.replace(some(tmp_path), labels=np.ones((3, 3), bool))


def test_subset_and_without(tmp_path):
    images = some(tmp_path)
    part = images.subset([2, 0], "part")
    assert (part.title, part.names, len(part)) == ("part", ("picture 2", "picture 0"), 2)
    assert part.paths == (images.paths[2], images.paths[0])
    assert images.without(["picture 1"]).names == ("picture 0", "picture 2")
    assert len(images.subset([])) == 0
    assert not images.subset([]).has_masks
    assert images.classes(0) == [0, 1]


def test_fingerprint_follows_what_it_stands_for(tmp_path):
    images = some(tmp_path)
    prints = {
        images.fingerprint(),
        dataclasses.replace(images, upright=False).fingerprint(),
        dataclasses.replace(images, reading=PictureReading((0, 4095), ("integer",))).fingerprint(),
        dataclasses.replace(images, reading=PictureReading(bands=(1,))).fingerprint(),
        images.subset([0, 1]).fingerprint(),
    }
    labels = images.labels.copy()
    labels[0, 0] = False
    prints.add(dataclasses.replace(images, labels=labels).fingerprint())
    write_picture(images.paths[0], (31, 40))
    prints.add(images.fingerprint())
    write_mask(tmp_path / "masks/0.png", np.zeros((9, 9), np.uint8))
    prints.add(images.fingerprint())
    images.paths[0].unlink()
    prints.add(images.fingerprint())
    assert len(prints) == 9
    assert some(tmp_path / "again").fingerprint() == some(tmp_path / "and again").fingerprint()


def test_unknown_split(tmp_path):
    data = Dataset("folders", tmp_path, {"train": some(tmp_path)}, "train")
    assert data.split("train").class_names == data.class_names
    with pytest.raises(BadInput, match="no split 'val'; expected one of train"):
        data.split("val")
