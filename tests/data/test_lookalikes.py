"""Folders that are no folders of classes stop the command, and say what to do."""

import json

import numpy as np
import pytest

from tests.data.conftest import SIZE, write_picture, write_text
from tests.data.layouts import write_mask_picture
from wsss.data.entries import LayoutOptions
from wsss.data.folder import open_folder
from wsss.data.open import open_dataset
from wsss.errors import BadInput


def pictures(root, *names):
    for seed, name in enumerate(names):
        write_picture(root / name, seed=seed)
    return root


@pytest.mark.parametrize(
    "names",
    [
        ("train/1.jpg", "val/2.jpg"),
        ("train/1.jpg", "valid/2.jpg", "test/3.jpg"),
        ("Train/1.jpg", "Test/2.jpg"),
        ("train/1.jpg",),
        ("validation/1.jpg", "cat/2.jpg"),
        ("cat/1.jpg", "test/2.jpg"),
    ],
)
def test_splits_without_folders_of_classes(tmp_path, names):
    with pytest.raises(BadInput, match=r"folders of splits \(.*no folders of classes.*tags\.csv|the split .* next to"):
        open_dataset(pictures(tmp_path, *names))


@pytest.mark.parametrize("word", ["images", "img", "image", "imgs", "IMG_DIR", "labels", "mask", "annotations", "gt"])
def test_words_of_the_trade(tmp_path, word):
    pictures(tmp_path, f"{word}/1.jpg", "more/2.jpg")
    with pytest.raises(BadInput, match=rf"folders named like parts of a data set \({word}\).*--classes"):
        open_dataset(tmp_path)
    assert len(open_dataset(tmp_path, classes=[word, "more"]).split("train")) == 2


def test_words_of_the_trade_in_splits(tmp_path):
    pictures(tmp_path, "train/images/1.jpg", "train/other/2.jpg", "val/images/3.jpg")
    with pytest.raises(BadInput, match=r"folders named like parts of a data set \(images\)"):
        open_dataset(tmp_path)


def test_a_class_called_train_or_masks_given_by_name(tmp_path):
    pictures(tmp_path, "train/1.jpg", "bus/2.jpg")
    assert open_dataset(tmp_path).class_names == ("bus", "train")


@pytest.mark.parametrize("depth", ["data/cat", "data/deeper/cat"])
def test_classes_a_level_too_deep(tmp_path, depth):
    pictures(tmp_path, f"{depth}/1.jpg", f"{depth.replace('cat', 'dog')}/2.jpg")
    above = (tmp_path / depth).parent
    with pytest.raises(
        BadInput, match=rf"one folder, data, without pictures, .*Give {above} if its folders .cat, dog. are classes"
    ):
        open_dataset(tmp_path)
    assert open_dataset(above).class_names == ("cat", "dog")


def test_one_class_a_level_too_deep(tmp_path):
    pictures(tmp_path, "dataset/cat/1.jpg")
    with pytest.raises(BadInput, match=rf"Give {tmp_path}/dataset if its folders .cat. are classes"):
        open_dataset(tmp_path)


def test_masks_that_fit_no_picture(tmp_path):
    pictures(tmp_path, "scans/1.jpg")
    write_mask_picture(tmp_path / "masks/1.png", np.ones(SIZE, np.uint8))
    with pytest.raises(
        BadInput, match=r"masks: found 1 files, none of which belongs to a picture \(masks/1\.png first\)"
    ):
        open_dataset(tmp_path)


def test_folders_inside_of_classes_are_fine(tmp_path):
    pictures(tmp_path, "cat/2019/1.jpg", "cat/2020/2.jpg", "dog/2019/3.jpg")
    assert open_dataset(tmp_path).class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("file", "text", "kind"),
    [
        ("annos.json", json.dumps({"images": [], "annotations": [], "categories": []}), "annotations in COCO's format"),
        ("cat/via.json", json.dumps({"_via_img_metadata": {}}), "VGG annotator"),
        ("x/anno.json", json.dumps({"dm_format_version": "1", "items": [], "categories": {}}), "Datumaro"),
        ("set.yaml", "path: .\nnc: 2\nnames: [a, b]\n", "the settings of a YOLO data set"),
        ("labels.csv", "id,label\n1.jpg,cat\n2.jpg,dog\n", "a table about the pictures"),
        ("cat/info.csv", "filename;breed\n1.jpg;siamese\n", "a table about the pictures"),
        ("train.txt", "cat/1.jpg\ndog/2.jpg\n", "a list of pictures"),
        ("train.txt", "cat/1.jpg 0\ndog/2.jpg 1\n", "a list of pictures"),
        ("cat/1.txt", "0 0.5 0.5 0.1 0.1\n", "objects in YOLO's format"),
        ("cat/1.xml", "<annotation><object/></annotation>", "annotations in VOC's format"),
    ],
)
def test_files_that_say_what_the_pictures_hold(tmp_path, file, text, kind):
    pictures(tmp_path, "cat/1.jpg", "dog/2.jpg")
    write_text(tmp_path / file, text)
    with pytest.raises(BadInput, match=rf"{file}: found .*{kind}.*not ignored"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("README.txt", "1 is a cat"),
        ("cat/1.txt", "a photo of a cat on a sofa"),
        ("config.yaml", "lr: 0.1\n"),
        ("dataset-metadata.json", '{"title": "pets", "licenses": [{"name": "CC0"}]}'),
        ("prices.csv", "item,price\nfood,3\n"),
    ],
)
def test_files_about_something_else(tmp_path, file, text):
    pictures(tmp_path, "cat/1.jpg", "dog/2.jpg")
    write_text(tmp_path / file, text)
    assert open_dataset(tmp_path).class_names == ("cat", "dog")


@pytest.mark.parametrize("values", [(0, 1, 2), (0, 255), (0, 1, 255)])
def test_a_class_of_label_images(tmp_path, values):
    pictures(tmp_path, "photos of cats/1.jpg", "photos of cats/2.jpg")
    for name in ("1", "2"):
        mask = np.zeros(SIZE, np.uint8)
        for column, value in enumerate(values):
            mask[5:20, 10 * column : 10 * column + 8] = value
        write_mask_picture(tmp_path / f"outlines/{name}.png", mask)
    with pytest.raises(BadInput, match=r"outlines: found 2 label images \(few small values each\)"):
        open_dataset(tmp_path)
    assert len(open_dataset(tmp_path, classes="photos of cats, outlines").split("train")) == 4


def test_grey_pictures_are_no_label_images(tmp_path):
    random = np.random.default_rng(0)
    for name in ("cat/1", "dog/2"):
        write_mask_picture(tmp_path / f"{name}.png", random.integers(0, 30, SIZE, dtype=np.uint8))
    assert open_dataset(tmp_path).class_names == ("cat", "dog")


@pytest.mark.parametrize("name", ["background", "_background_", "Background"])
def test_folders_of_negatives(tmp_path, name):
    pictures(tmp_path, "crack/1.jpg", f"{name}/2.jpg")
    data = open_dataset(tmp_path)
    images = data.split("train")
    assert images.class_names == ("crack",)
    assert dict(zip(images.names, images.labels.sum(1).tolist(), strict=True)) == {"crack/1": 1, f"{name}/2": 0}
    assert f"pictures without any class: 1 in {name}" in data.notes


@pytest.mark.parametrize(
    "name", ["no_defect", "normal", "None", "no crack", "defect-free", "good", "negative", "not a crack"]
)
def test_folders_that_may_be_negatives(tmp_path, name):
    pictures(tmp_path, "crack/1.jpg", f"{name}/2.jpg")
    with pytest.raises(
        BadInput, match=rf"a class '{name}', which may mean that no class is present.*--negative.*--classes"
    ):
        open_dataset(tmp_path)
    images = open_dataset(tmp_path, negatives=[name]).split("train")
    assert (images.class_names, images.labels.sum()) == (("crack",), 1)
    assert open_dataset(tmp_path, classes=["crack", name]).class_names == ("crack", name)


def test_the_truth_of_negatives_is_known(tmp_path):
    pictures(tmp_path, "crack/1.jpg", "background/2.jpg")
    assert open_dataset(tmp_path).split("train").masks == (None, None)
    write_mask_picture(tmp_path / "masks/crack/1.png", np.ones(SIZE, np.uint8))
    images = open_dataset(tmp_path).split("train")
    assert images.has_masks
    np.testing.assert_array_equal(images.read_mask(images.names.index("background/2"), SIZE), np.zeros(SIZE, np.uint8))


def test_negatives_in_splits_and_in_tables(tmp_path, table):
    pictures(tmp_path / "s", "train/crack/1.jpg", "train/ok/2.jpg", "val/ok/3.jpg")
    data = open_dataset(tmp_path / "s", negatives=["ok"])
    assert (data.split("val").class_names, data.split("val").labels.sum()) == (("crack",), 0)
    write_text(table / "tags.csv", "image,tags\na.jpg,cat\nb c.jpg,_background_\nv.jpg,fine\n")
    images = open_dataset(table, negatives=["fine"]).split("train")
    assert (images.class_names, images.labels.sum(0).tolist()) == (("cat",), [1])


def test_masks_among_pictures_without_tags(tmp_path):
    pictures(tmp_path, "images/1.jpg", "masks/1.png")
    with pytest.raises(BadInput, match="masks: found a folder of masks among the pictures"):
        open_dataset(tmp_path, untagged=True, classes="cat")
    assert len(open_dataset(tmp_path / "images", untagged=True, classes="cat").split("train")) == 1


@pytest.mark.parametrize(
    "names",
    [
        ("train_images", "test_images"),
        ("X_train", "X_val"),
        ("trainA", "trainB"),
        ("imagesTr", "imagesTs"),
        ("train2017", "val2017"),
        ("cat", "thumbnails"),
        ("data",),
    ],
)
def test_names_made_of_words_of_the_trade(tmp_path, names):
    pictures(tmp_path, *(f"{name}/1.jpg" for name in names))
    with pytest.raises(BadInput, match=r"folders named like parts of a data set"):
        open_folder(tmp_path)
    assert open_folder(tmp_path, LayoutOptions(classes=names)).class_names == names


def test_words_of_the_trade_among_others_are_classes(tmp_path):
    names = ("model train", "test tube", "tr", "image 1")
    pictures(tmp_path, *(f"{name}/1.jpg" for name in names))
    assert open_folder(tmp_path).class_names == tuple(sorted(names))


def test_folders_of_folders_of_classes(tmp_path):
    pictures(tmp_path, "animals/cat/1.jpg", "animals/dog/1.jpg", "vehicles/bus/1.jpg", "vehicles/car/1.jpg")
    with pytest.raises(BadInput, match=r"hold only other folders .*use --classes 'animals, vehicles'"):
        open_folder(tmp_path)
    assert open_folder(tmp_path, LayoutOptions(classes=("animals", "vehicles"))).class_names == ("animals", "vehicles")


def test_days_below_classes_are_no_classes(tmp_path):
    pictures(tmp_path, "cat/monday/1.jpg", "cat/tuesday/1.jpg", "dog/monday/1.jpg", "dog/tuesday/1.jpg")
    assert open_folder(tmp_path).class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("names", "remedy"),
    [
        (("pets/train/cat/1.jpg", "pets/val/cat/1.jpg"), r"Give \S+/pets if its folders"),
        (
            ("train/pets/cat/1.jpg", "train/pets/dog/1.jpg", "val/pets/cat/2.jpg"),
            r"Move cat, dog up into train and val",
        ),
        (
            ("train/good/1.png", "test/bad/1.png", "ground_truth/bad/1_mask.png"),
            r"a folder of masks next to the splits",
        ),
    ],
)
def test_remedies_for_folders_too_deep(tmp_path, names, remedy):
    with pytest.raises(BadInput, match=remedy):
        open_folder(pictures(tmp_path, *names))


def test_a_list_that_is_given_is_no_stranger(tmp_path):
    pictures(tmp_path, "cat/a.jpg", "dog/b.jpg", "dog/c.jpg")
    listed = write_text(tmp_path / "mine.txt", "cat/a.jpg\ndog/b.jpg\n")
    with pytest.raises(BadInput, match=r"mine\.txt: found a list of pictures"):
        open_folder(tmp_path)
    assert open_folder(tmp_path, LayoutOptions(train=str(listed))).split(str(listed)).names == ("cat/a", "dog/b")


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("labels.json", '{"classes": ["cat"], "labels": {"a": 0}}', "labels of FiftyOne"),
        ("notes.json", '{"cat/a.jpg": ["dog"]}', "JSON that names the pictures"),
        ("annotations.xml", "<?xml version='1.0'?><annotations><image/></annotations>", "annotations of CVAT"),
    ],
)
def test_other_files_about_pictures(tmp_path, name, text, kind):
    pictures(tmp_path, "cat/a.jpg", "dog/b.jpg")
    write_text(tmp_path / name, text)
    with pytest.raises(BadInput, match=kind):
        open_folder(tmp_path)


def test_archives_are_noted(tmp_path):
    write_text(pictures(tmp_path, "cat/a.jpg", "dog/b.jpg") / "more.zip", "")
    assert open_dataset(tmp_path).notes == ("1 .zip file is not read: unpack them first",)


@pytest.mark.parametrize(
    ("names", "doubtful"),
    [
        (("crack", "NoCrack"), "'NoCrack'"),
        (("cracked", "uncracked"), "'uncracked'"),
        (("a___rust", "a___healthy", "b___healthy"), "'a___healthy', 'b___healthy'"),
        (("0", "1"), "'0'"),
        (("Faces", "BACKGROUND_Google"), "'BACKGROUND_Google'"),
        (("glioma", "notumor"), "'notumor'"),
    ],
)
def test_names_that_may_mean_nothing(tmp_path, names, doubtful):
    pictures(tmp_path, *(f"{name}/1.jpg" for name in names))
    with pytest.raises(BadInput, match=rf"class\w* {doubtful}, which may mean that no class is present"):
        open_folder(tmp_path)


def test_numbers_and_notes_are_classes(tmp_path):
    names = ("0", "1", "2", "north", "unicorn")
    pictures(tmp_path, *(f"{name}/1.jpg" for name in names))
    assert open_folder(tmp_path).class_names == names
