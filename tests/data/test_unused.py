"""Files that no reader uses are named, and numbers of classes have to agree."""

import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import annotation, write_coco, write_labels, write_picture, write_text
from wsss.cli import main
from wsss.data.coco_index import _outlined
from wsss.data.names import name_problem
from wsss.data.open import open_dataset
from wsss.errors import BadInput


def write_own_voc(root):
    for seed, name in enumerate(("a", "b", "c")):
        write_picture(root / f"JPEGImages/{name}.jpg", seed=seed)
        write_text(root / f"Annotations/{name}.xml", annotation(name, ["cat"]))
        write_labels(root / f"SegmentationClass/{name}.png", [0, 1])
    write_text(root / "classes.txt", "cat\ndog\n")
    write_text(root / "ImageSets/Segmentation/train.txt", "a\nb\n")
    return root


def test_pictures_in_no_list_and_masks_of_no_picture(tmp_path):
    root = write_own_voc(tmp_path)
    write_labels(root / "SegmentationClass/z.png", [0, 1])
    notes = open_dataset(root).notes
    assert "1 pictures are in no list and not used (c first)" in notes
    assert f"1 masks belong to no picture ({root}/SegmentationClass/z.png first)" in notes


def test_masks_of_vocs_layout_in_other_suffixes(tmp_path):
    root = write_own_voc(tmp_path)
    for path in sorted((root / "SegmentationClass").iterdir()):
        Image.open(path).save(path.with_suffix(".tif"))
        path.unlink()
    assert open_dataset(root).split("train").read_mask(0)[0, :3].tolist() == [0, 1, 0]
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(root / "SegmentationClass/a.jpg")
    (root / "SegmentationClass/a.tif").unlink()
    with pytest.raises(BadInput, match=r"a\.jpg: found a mask in the format JPEG"):
        open_dataset(root).split("train").read_mask(0)


@pytest.fixture
def yolo(tmp_path):
    for split in ("train", "val"):
        write_picture(tmp_path / f"images/{split}/{split}.jpg")
        write_text(tmp_path / f"labels/{split}/{split}.txt", "0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    write_text(tmp_path / "data.yaml", "train: images/train\nval: images/val\nnames: [cat, dog]\n")
    return tmp_path


def test_texts_of_objects_without_a_picture(yolo):
    write_text(yolo / "labels/train/gone.txt", "1 0.5 0.5 0.2 0.2\n")
    assert "1 files in labels belong to no picture in use (labels/train/gone.txt first)" in open_dataset(yolo).notes


def test_a_number_of_classes_beside_other_names(yolo):
    write_text(yolo / "data.yaml", "train: images/train\nval: images/val\nnc: 3\nnames: [cat, dog]\n")
    with pytest.raises(BadInput, match=r"found nc: 3 with 2 names"):
        open_dataset(yolo)


def test_pictures_that_roboflows_table_does_not_name(tmp_path):
    for name in ("a", "b", "extra"):
        write_picture(tmp_path / f"train/{name}.jpg")
    write_text(tmp_path / "train/_classes.csv", "filename, cat, dog\na.jpg, 1, 0\nb.jpg, 0, 1\n")
    (note,) = open_dataset(tmp_path).notes
    assert note.startswith("1 pictures left out, since _classes.csv does not name them")


def test_numbers_of_classes_without_names_are_asked_about(tmp_path):
    for name in ("a", "b"):
        write_picture(tmp_path / f"train/{name}.jpg")
    write_text(tmp_path / "train/metadata.csv", "file_name,label\na.jpg,0\nb.jpg,1\n")
    with pytest.raises(BadInput, match=r"metadata\.csv, line 2: found the tag '0', which may mean"):
        open_dataset(tmp_path)
    assert open_dataset(tmp_path, classes=["0", "1"]).class_names == ("0", "1")


def test_a_data_set_in_the_one_folder_of_another(tmp_path):
    write_picture(tmp_path / "data/train/a.jpg")
    write_text(tmp_path / "data/train/metadata.csv", "file_name,label\na.jpg,cat\n")
    with pytest.raises(
        BadInput, match=r"found a data set further down \(.*/data\); .*Give the folder of the data set itself"
    ):
        open_dataset(tmp_path)


def test_corners_in_pairs_are_no_boxes_alone():
    assert _outlined([[[1, 1], [9, 5], [7, 8]]]) == 1
    assert _outlined([[1, 1, 5, 5]]) == 0


def test_addresses_are_no_names():
    assert name_problem("http://x.org/1") == (
        "a URL",
        "Download the files, and write their paths below the data set.",
    )


def test_info_says_what_a_run_stops_at(tmp_path, capsys):
    root = write_coco(tmp_path)
    missing = sorted((root / "train2014").iterdir())[0]
    missing.unlink()
    assert main(["data", "info", str(root)]) == 2
    text, error = capsys.readouterr()
    assert "\nerror: a run stops at this data set, for " in text
    assert f"{root}: found " in error
    assert "to stop a run, listed above" in error
    stops = text.partition("a run stops at:")[2]
    assert "names without a picture" in stops
    assert "--skip-bad" in stops
    assert main(["data", "info", str(root), "--skip-bad"]) == 0
    assert "a run stops at:" not in capsys.readouterr().out
