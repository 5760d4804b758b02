"""Masks of folders: which files are masks, whose they are, and what fits no picture."""

import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import SIZE, write_labels, write_picture, write_text
from wsss.data.folder import open_folder
from wsss.data.open import open_dataset
from wsss.errors import BadInput


@pytest.fixture
def tagged(tmp_path):
    for seed, name in enumerate("abc"):
        write_picture(tmp_path / f"images/{name}.jpg", seed=seed)
    write_text(tmp_path / "tags.csv", "image,tags\na.jpg,cat\nb.jpg,dog\nc.jpg,dog\n")
    return tmp_path


def write_mask_as(path, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(SIZE, np.uint8)
    mask[:, : len(labels)] = labels
    Image.fromarray(mask).save(path)


def test_masks_that_fit_no_picture_are_counted(tagged):
    for name in ("a", "b", "c", "old/a", "x"):
        write_labels(tagged / f"masks/{name}.png", [1, 2])
    data = open_folder(tagged)
    assert data.scored_split == "train"
    assert data.notes == ("2 files in masks belong to no picture and are not used (masks/x.png first)",)


@pytest.mark.parametrize(
    ("pattern", "remedy"),
    [
        ("{}_mask.png", "Remove '_mask' from their names"),
        ("{}_gt.png", "Remove '_gt' from their names"),
        ("{}.jpg.png", "Rename them"),
        ("train/{}.png", "Rename them"),
        ("{}.npy", "Rename them"),
    ],
)
@pytest.mark.parametrize("folders", [False, True])
def test_masks_none_of_which_fits_stop(tmp_path, pattern, remedy, folders):
    for seed, name in enumerate(("cat/a", "dog/b") if folders else ("images/a", "images/b")):
        write_picture(tmp_path / f"{name}.jpg", seed=seed)
        write_labels(tmp_path / "masks" / f"{name.removeprefix('images/')}.png", [1])
    if not folders:
        write_text(tmp_path / "tags.csv", "image,tags\na.jpg,cat\nb.jpg,dog\n")
    for path in list((tmp_path / "masks").rglob("*.png")):
        target = path.parent / pattern.format(path.stem)
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    with pytest.raises(
        BadInput, match=rf"masks: found 2 files, none of which belongs to a picture .*{remedy}, or move the folder"
    ):
        open_folder(tmp_path)


@pytest.mark.parametrize("suffix", [".tif", ".bmp", ".PNG"])
def test_masks_of_other_suffixes_are_read(tagged, suffix):
    for name in "abc":
        write_mask_as(tagged / f"masks/{name}{suffix}", [1, 2])
    assert open_folder(tagged).split("train").read_mask(0)[0, :3].tolist() == [1, 2, 0]


def test_jpeg_masks_are_refused_with_the_reason(tagged):
    for name in "abc":
        write_mask_as(tagged / f"masks/{name}.jpg", [1, 2])
    with pytest.raises(BadInput, match=r"masks/a\.jpg: found a mask in the format JPEG, which changes values"):
        open_folder(tagged).split("train").read_mask(0)


def test_masks_that_a_table_names_are_no_strangers(tagged):
    write_labels(tagged / "masks/m.png", [1])
    write_text(tagged / "tags.csv", "image,tags,mask\na.jpg,cat,masks/m.png\nb.jpg,dog,\nc.jpg,dog,\n")
    assert open_folder(tagged).notes == ()


def test_pictures_in_images_beside_other_folders(tagged):
    write_labels(tagged / "labels/a.png", [1])
    write_labels(tagged / "masks/a.png", [1, 2])
    data = open_folder(tagged)
    assert data.split("train").names == ("images/a", "images/b", "images/c")
    assert [mask is not None for mask in data.split("train").masks] == [True, False, False]
    assert data.notes == (
        "1 files in labels are not used: put true masks in a folder `masks`, or name them in a column mask of tags.csv",
    )


@pytest.mark.parametrize(
    "name", ["cat/1_gt.png", "cat/1_label.png", "cat/1_seg.tif", "cat/1_mask_1.png", "cat/7_mask.png"]
)
def test_pictures_named_like_masks_of_others(tmp_path, name):
    for picture in ("cat/1.jpg", "dog/2.jpg"):
        write_picture(tmp_path / picture)
        write_labels(tmp_path / picture.replace(".jpg", "_mask.png"), [1, 2])
    write_mask_as(tmp_path / name, [1])
    with pytest.raises(BadInput, match=r"found a file named like the mask of a picture.*NAME_mask\.png"):
        open_folder(tmp_path)


def test_faces_with_masks_are_pictures(tmp_path):
    for picture in ("cat/1_mask.jpg", "dog/2_mask.jpg"):
        write_picture(tmp_path / picture)
    assert len(open_folder(tmp_path).split("train")) == 2


def test_class_folders_without_pictures_are_named(tmp_path):
    for picture in ("train/cat/1.jpg", "train/dog/1.jpg", "val/cat/2.jpg"):
        write_picture(tmp_path / picture)
    (tmp_path / "train/zebra").mkdir()
    assert any(note.startswith("folders without a picture: train/zebra (") for note in open_folder(tmp_path).notes)


def test_masks_of_pictures_upside_down(tagged):
    for name in "abc":
        exif = Image.Exif()
        exif[0x112] = 3
        write_picture(tagged / f"images/{name}.jpg", exif=exif)
        write_labels(tagged / f"masks/{name}.png", [1, 2])
    (note,) = open_dataset(tagged).notes
    assert (
        "3 pictures with masks have an EXIF orientation (a.jpg first) and are rotated by it; sizes cannot tell" in note
    )
