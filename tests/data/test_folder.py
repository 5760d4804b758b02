"""A user's folders: class folders and tag tables, with masks, and everything that people get wrong with them."""

import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import SIZE, write_labels, write_picture, write_text
from wsss.data.entries import LayoutOptions
from wsss.data.folder import find_table, open_folder, open_pictures
from wsss.errors import BadInput


def tags(images):
    return {name: [images.class_names[c] for c in images.classes(i)] for i, name in enumerate(images.names)}


def test_a_folder_a_class(folders):
    data = open_folder(folders)
    assert (data.kind, data.train, data.scored_split, data.val, data.class_names) == (
        "folders",
        "train",
        None,
        None,
        ("cat", "dog"),
    )
    images = data.split("train")
    assert tags(images) == {"cat/1": ["cat"], "cat/more/2": ["cat"], "dog/1": ["dog"]}
    assert images.upright
    assert data.notes == ()


def test_splits_of_class_folders(tmp_path):
    for name in ("train/cat/1.jpg", "train/dog/1.jpg", "validation/cat/1.jpg", "Test/dog/7.jpg"):
        write_picture(tmp_path / name)
    data = open_folder(tmp_path)
    assert (sorted(data.splits), data.val) == (["test", "train", "val"], "val")
    assert tags(data.split("val")) == {"validation/cat/1": ["cat"]}
    assert data.split("test").class_names == ("cat", "dog")


def test_a_class_called_train(tmp_path):
    for name in ("train/1.jpg", "bus/1.jpg"):
        write_picture(tmp_path / name)
    assert open_folder(tmp_path).class_names == ("bus", "train")


def test_splits_beside_classes(tmp_path):
    for name in ("train/cat/1.jpg", "dog/1.jpg"):
        write_picture(tmp_path / name)
    with pytest.raises(BadInput, match=r"found the split train next to dog; .*Put all pictures into splits, or none"):
        open_folder(tmp_path)


def test_class_list(folders):
    write_text(folders / "classes.txt", "dog\ncat\nbird\n")
    data = open_folder(folders)
    assert data.class_names == ("dog", "cat", "bird")
    assert tags(data.split("train"))["dog/1"] == ["dog"]
    assert data.notes == ("classes without a picture: bird",)
    with pytest.raises(BadInput, match=r"pets/dog: found the tag 'dog', which is no class; .*Did you mean 'dogs'\?"):
        open_folder(folders, LayoutOptions(classes=("cat", "dogs")))


def test_one_class_and_other_files(tmp_path):
    write_picture(tmp_path / "cat/1.jpg")
    write_text(tmp_path / "cat/readme", "")
    write_text(tmp_path / "cat/x.heic", "")
    notes = open_folder(tmp_path).notes
    assert notes[0].startswith("one class that all pictures have")
    assert notes[1] == "files that are no pictures, ignored: 1 .heic, 1 readme"


def test_loose_pictures(folders):
    write_picture(folders / "3.jpg")
    with pytest.raises(BadInput, match=r"1 pictures outside any class folder .3\.jpg first. and no table of tags"):
        open_folder(folders)


def test_pictures_that_differ_in_their_suffix_alone(folders):
    write_picture(folders / "cat/1.png")
    with pytest.raises(BadInput, match=r"cat/1\.png: found a second picture named 'cat/1' .the first is .*cat/1\.jpg"):
        open_folder(folders)


def test_masks_in_a_folder(folders):
    write_labels(folders / "masks/cat/1.png", [1, 255])
    data = open_folder(folders)
    images = data.split("train")
    assert len(images) == 3
    assert [mask is not None for mask in images.masks] == [True, False, False]
    assert data.scored_split is None
    for name in ("cat/more/2", "dog/1"):
        write_labels(folders / f"masks/{name}.png", [2])
    data = open_folder(folders)
    assert data.scored_split == "train"
    assert np.unique(data.split("train").read_mask(2, SIZE)).tolist() == [0, 2]


def test_masks_beside_the_pictures(folders):
    write_labels(folders / "dog/1_mask.png", [2])
    write_picture(folders / "dog/face_mask.png")
    images = open_folder(folders).split("train")
    assert images.names == ("cat/1", "cat/more/2", "dog/1", "dog/face_mask")
    assert [mask is not None for mask in images.masks] == [False, False, True, False]


def test_masks_are_upright_like_their_pictures(folders):
    exif = Image.Exif()
    exif[0x0112] = 6
    write_picture(folders / "dog/1.jpeg", (30, 40), exif=exif)
    write_labels(folders / "masks/dog/1.png", [2], (40, 30))
    images = open_folder(folders).split("train")
    assert images.size_hw(2) == (40, 30)
    assert images.read_mask(2, images.read(2).shape[:2]).shape == (40, 30)
    assert open_folder(folders, LayoutOptions(upright=False)).split("train").size_hw(2) == (30, 40)


def test_a_table(table):
    data = open_folder(table)
    assert (data.kind, data.train, data.val, data.class_names) == ("tags", "train", "val", ("cat", "dog"))
    assert tags(data.split("train")) == {"a": ["cat"], "b c": ["cat", "dog"], "deep/ü": []}
    assert tags(data.split("val")) == {"v": ["dog"]}
    assert data.notes == ()


def test_a_table_without_splits_and_pictures_in_images(tmp_path):
    write_picture(tmp_path / "images/a.jpg")
    write_picture(tmp_path / "images/b.jpg")
    write_picture(tmp_path / "images/c/d.jpg")
    write_labels(tmp_path / "masks/a.png", [1])
    write_labels(tmp_path / "elsewhere.png", [2])
    write_text(
        tmp_path / "tags.tsv", "image\ttags\tmask\nimages/a.jpg\tcat\t\n./b\tdog\telsewhere.png\nc\\d.jpg\tdog\t\n"
    )
    data = open_folder(tmp_path)
    images = data.split("train")
    assert images.names == ("a", "b", "c/d")
    assert [mask and mask.path.name for mask in images.masks] == ["a.png", "elsewhere.png", None]
    assert data.val is None


def test_a_table_that_names_a_missing_mask(table):
    write_text(table / "tags.csv", "image,tags,mask\na.jpg,cat,m/a.png\n")
    with pytest.raises(BadInput, match=r"tags\.csv, line 2: found the mask 'm/a.png', which is not in"):
        open_folder(table)


def test_a_table_that_names_a_missing_picture(table):
    write_text(table / "tags.csv", "image,tags\na.jpg,cat\ndep/ü.png,cat\nnowhere,dog\n")
    message = r"tags\.csv, line 3: found 'dep/ü\.png', which is not in .* \(and 1 more\); .*Did you mean 'deep/ü'\?.*--skip-bad"
    with pytest.raises(BadInput, match=message):
        open_folder(table)
    data = open_folder(table, LayoutOptions(skip_missing=True))
    assert data.split("train").names == ("a",)
    assert data.notes[0] == "2 lines of tags.csv left out, since their pictures are missing (dep/ü.png first)"
    write_text(table / "tags.csv", "image,tags\nnowhere,dog\n")
    with pytest.raises(BadInput, match="line 2: found 'nowhere'"):
        open_folder(table, LayoutOptions(skip_missing=True))


def test_pictures_that_the_table_does_not_name(table):
    write_text(table / "tags.csv", "image,tags\na.jpg,cat\nv,dog\n")
    data = open_folder(table)
    assert data.split("train").names == ("a", "v")
    assert data.notes == ("2 pictures left out, since tags.csv does not name them (b c first)",)


def test_a_picture_named_in_two_ways(table):
    write_text(table / "tags.csv", "image,tags\na.jpg,cat\na,dog\n")
    with pytest.raises(BadInput, match=r"line 3: found the picture 'a' again .first at .*line 2"):
        open_folder(table)


def test_a_tag_that_is_no_class(table):
    with pytest.raises(
        BadInput, match=r"tags\.csv, line 2: found the tag 'cat', which is no class; .*Did you mean 'cats'\?"
    ):
        open_folder(table, LayoutOptions(classes=("cats", "dog")))


def test_no_tags(table):
    write_text(table / "tags.csv", "image,tags\na.jpg,\n")
    with pytest.raises(BadInput, match=r"tags\.csv: found no tag in any line"):
        open_folder(table)
    with pytest.raises(BadInput, match="no tag for any of the 1 pictures of train"):
        open_folder(table, LayoutOptions(classes=("cat",)))


def test_a_table_without_train(table):
    write_text(table / "tags.csv", "image,tags,split\na.jpg,cat,part one\nv,dog,val\n")
    with pytest.raises(BadInput, match="the splits part one, val; expected one called train"):
        open_folder(table)
    assert open_folder(table, LayoutOptions(train="part one")).train == "part one"


def test_list_files(table, tmp_path):
    listed = str(write_text(tmp_path / "few.txt", "v.jpg\na\n"))
    data = open_folder(table, LayoutOptions(train=listed))
    assert tags(data.split(listed)) == {"v": ["dog"], "a": ["cat"]}
    write_text(tmp_path / "few.txt", "v.jpg\nb\n")
    with pytest.raises(BadInput, match=r"few\.txt: found 1 of 2 names without a picture .'b' first"):
        open_folder(table, LayoutOptions(train=listed))


def test_two_tables(table):
    write_text(table / "tags.jsonl", "")
    with pytest.raises(BadInput, match=r"the tables tags\.csv and tags\.jsonl; expected one"):
        find_table(table)
    assert len(open_folder(table, LayoutOptions(tags=table / "tags.csv")).split("train")) == 3


def test_pickled_labels(folders):
    np.save(folders / "cls_labels.npy", {"cat/1": np.array([1.0, 0]), "dog/1": np.array([1.0, 1]), "else": np.zeros(2)})
    with pytest.raises(BadInput, match=r"cls_labels\.npy: found class numbers; expected the names of the classes too"):
        open_folder(folders)
    data = open_folder(folders, LayoutOptions(classes=("dog", "cat")))
    assert tags(data.split("train")) == {"cat/1": ["dog"], "dog/1": ["dog", "cat"]}
    assert data.notes == ("1 pictures left out, since cls_labels.npy does not name them (cat/more/2 first)",)
    np.save(folders / "cls_labels.npy", {"else": np.zeros(2)})
    with pytest.raises(BadInput, match="none of the 3 pictures"):
        open_folder(folders, LayoutOptions(classes=("dog", "cat")))


def test_pictures_without_tags(folders):
    images = open_pictures(folders)
    assert (images.names, images.class_names, images.labels.shape) == (("cat/1", "cat/more/2", "dog/1"), (), (3, 0))
    one = open_pictures(folders / "cat/more/2.PNG")
    assert one.names == ("2",)
    assert one.read(0).shape == (*SIZE, 3)
    with pytest.raises(BadInput, match="no such file or folder"):
        open_pictures(folders / "bird")
    (folders / "bird").mkdir()
    with pytest.raises(BadInput, match="an empty folder; expected pictures"):
        open_pictures(folders / "bird")
