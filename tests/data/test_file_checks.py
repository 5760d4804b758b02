"""Names and files that leave the data set, or that two entries share, are refused in every layout."""

import json
import os

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.data.conftest import SIZE, box, write_labels, write_picture, write_text
from wsss.data.file_checks import check_apart
from wsss.data.names import check_name, check_names, comparison_key, name_problem
from wsss.data.open import open_dataset
from wsss.errors import BadInput


def write_coco_of(root, names, split="train", pictures="images", objects=None):
    """Annotations of one split, an object a picture; pictures are written by the tests."""
    images = [{"id": i + 1, "file_name": name, "height": SIZE[0], "width": SIZE[1]} for i, name in enumerate(names)]
    annotations = [
        {"id": i + 1, "image_id": i + 1, "category_id": 1 + i % 2, "iscrowd": 0, "segmentation": box(2 + i, 2, 9, 9)}
        for i in range(len(names))
    ]
    content = {
        "images": images,
        "annotations": annotations if objects is None else objects,
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    write_text(root / f"annotations/instances_{split}.json", json.dumps(content))
    return root


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../a", "a path that leads upwards"),
        ("a/../../b", "a path that leads upwards"),
        ("..", "a path that leads upwards"),
        ("/etc/a", "an absolute path"),
        ("C:/a", "a path with a drive letter"),
        ("c:a", "a path with a drive letter"),
        ("images\\0", r"a Windows path .*Write it with slashes \(images/0\)"),
        ("a\0b", "a control character"),
        ("a\nb", "a control character"),
        ("a//b", "a path with an empty part"),
        ("./a", "a path with an empty part"),
        ("a/", "a path with an empty part"),
        ("", "a path with an empty part"),
        ("a.part/b", r"a name that ends in \.part"),
        ("done", "a name under which stages keep their records"),
        ("x" * 241, "a name of 241 bytes"),
        ("ü" * 121, "a name of 242 bytes"),
        ("a/" * 1200 + "a", "a name of 2401 bytes"),
    ],
)
def test_names_that_are_no_names_of_outputs(name, message):
    with pytest.raises(BadInput, match=message):
        check_name(name, "here")


@pytest.mark.parametrize(
    "name", ["a", "a/b c", "ü/ß", "a.b/..c", "a...", "teil 1/x:y", "done/1", "x" * 240, "partly.partial"]
)
def test_names_that_are_fine(name):
    check_name(name, "here")


@given(st.text(max_size=40))
@example("a/.")
@example("\x7f")
def test_a_name_without_a_fault_stays_below_its_folder(name):
    if name_problem(name) is None:
        path = os.path.normpath(f"/out/{name}.png")
        assert path == f"/out/{name}.png"
        assert path.startswith("/out/")
        assert "\0" not in path


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a", "b", "a"), "a second picture named 'a'"),
        (("a/B", "a/b"), "a second picture named 'a/b' .*'a/B'.*letter case and Unicode normal form"),
        (("caf\u00e9", "cafe\u0301"), "a second picture named"),
        (("stra\u00dfe", "STRASSE"), "a second picture named"),
        (("a", "a.png/b"), "'a' next to a folder 'a.png'"),
        (("x/a", "x/a.NPZ/c/b"), "next to a folder"),
    ],
)
def test_names_that_meet(tmp_path, names, message):
    with pytest.raises(BadInput, match=message):
        check_names(names, [tmp_path / str(i) for i in range(len(names))])


def test_one_name_on_every_system():
    assert comparison_key("A/b.JPG") == "a/b.jpg"
    assert comparison_key("\u00c9") == comparison_key("e\u0301")


@pytest.mark.parametrize(
    "name", ["../../outside.jpg", "{root}/../outside.jpg", "images\\0.jpg", "C:\\data\\0.jpg", "a\u0000.jpg"]
)
def test_annotations_that_name_other_places(tmp_path, name):
    write_picture(tmp_path / "set/images/0.jpg")
    write_picture(tmp_path / "outside.jpg", seed=1)
    root = write_coco_of(tmp_path / "set", ["0.jpg", name.format(root=tmp_path / "set")])
    with pytest.raises(BadInput, match=r"instances_train\.json, image 2: found .*COCO with images"):
        open_dataset(root)


def test_annotations_may_name_other_places_when_allowed(tmp_path):
    write_picture(tmp_path / "set/images/0.jpg")
    elsewhere = write_picture(tmp_path / "else where/1.jpg", seed=1)
    root = write_coco_of(tmp_path / "set", ["0.jpg", str(elsewhere)])
    images = open_dataset(root, allow_outside=True).split("train")
    assert images.paths[1] == elsewhere
    assert images.names[1] == str(elsewhere.with_suffix("")).lstrip("/")
    root = write_coco_of(tmp_path / "set", ["0.jpg", "../../else where/1.jpg"])
    images = open_dataset(root, allow_outside=True).split("train")
    assert (images.names[1], images.paths[1]) == ("else where/1", elsewhere)


@pytest.mark.parametrize("place", ["{root}/../x.jpg", "../x.jpg", "a/../../x.jpg", "C:/x.jpg"])
@pytest.mark.parametrize("column", ["image", "mask"])
def test_tables_that_name_other_places(tmp_path, place, column):
    write_picture(tmp_path / "set/0.jpg")
    write_picture(tmp_path / "x.jpg")
    place = place.format(root=tmp_path / "set")
    row = f"{place},cat,\n" if column == "image" else f"0.jpg,cat,{place}\n"
    write_text(tmp_path / "set/tags.csv", f"image,tags,mask\n{row}")
    with pytest.raises(BadInput, match=r"tags\.csv, line 2: found .*--allow-outside"):
        open_dataset(tmp_path / "set")


def test_tables_may_name_other_places_when_allowed(tmp_path):
    write_picture(tmp_path / "set/0.jpg")
    write_picture(tmp_path / "x.jpg", seed=1)
    write_labels(tmp_path / "m.png", [1])
    write_text(tmp_path / "set/tags.csv", f"image,tags,mask\n0.jpg,cat,\n{tmp_path}/x.jpg,cat,../m.png\n")
    images = open_dataset(tmp_path / "set", allow_outside=True).split("train")
    assert images.names == ("0", f"{tmp_path}/x".lstrip("/"))
    assert images.read_mask(1, SIZE).max() == 1


def test_links_that_lead_out(folders, tmp_path):
    outside = write_picture(tmp_path / "outside.jpg", seed=8)
    (folders / "cat/3.jpg").symlink_to(outside)
    with pytest.raises(BadInput, match=r"cat/3\.jpg: found a file outside the data set .*--allow-outside"):
        open_dataset(folders)
    assert len(open_dataset(folders, allow_outside=True).split("train")) == 4
    (folders / "cat/3.jpg").unlink()
    (tmp_path / "pool").mkdir()
    write_picture(tmp_path / "pool/9.jpg", seed=9)
    (folders / "bird").symlink_to(tmp_path / "pool", target_is_directory=True)
    with pytest.raises(BadInput, match="a file outside the data set"):
        open_dataset(folders)


def test_links_inside_and_a_root_that_is_one(folders, tmp_path):
    write_picture(folders / ".pool/3.jpg", seed=8)
    (folders / "cat/3.jpg").symlink_to("../.pool/3.jpg")
    (tmp_path / "link").symlink_to(folders, target_is_directory=True)
    assert len(open_dataset(tmp_path / "link").split("train")) == 4


def test_two_entries_with_one_file_behind_them(folders, tmp_path):
    (folders / "dog/again.jpg").symlink_to("../cat/1.jpg")
    with pytest.raises(BadInput, match=r"found one file for two pictures: 'cat/1' of .* and 'dog/again'"):
        open_dataset(folders)
    for i in range(2):
        write_picture(tmp_path / f"video/images/{i}.jpg", seed=i)
    write_coco_of(tmp_path / "video", ["seq0/0.jpg", "seq1/0.jpg", "seq0/1.jpg", "seq1/1.jpg"])
    with pytest.raises(BadInput, match=r"one file for two pictures: 'seq0/0' of coco/train and 'seq1/0'"):
        open_dataset(tmp_path / "video")


def test_one_file_in_two_splits_with_two_truths(tmp_path):
    for i in range(2):
        write_picture(tmp_path / f"images/{i}.jpg", seed=i)
    write_coco_of(tmp_path, ["0.jpg", "1.jpg"])
    write_coco_of(tmp_path, ["1.jpg"], split="val")
    with pytest.raises(BadInput, match=r"one file for two pictures: '1' of coco/train and '1' of coco/val"):
        open_dataset(tmp_path)
    # the same entry in both is a list that overlaps
    content = json.loads((tmp_path / "annotations/instances_train.json").read_text())
    content["images"], content["annotations"] = content["images"][1:], content["annotations"][1:]
    write_text(tmp_path / "annotations/instances_val.json", json.dumps(content))
    assert open_dataset(tmp_path).split("val").names == ("1",)


def test_a_picture_that_is_its_own_mask(table):
    write_text(table / "tags.csv", "image,tags,mask\na.jpg,cat,a.jpg\n")
    with pytest.raises(BadInput, match="one file as a picture and as the true mask of 'a'"):
        open_dataset(table)


def test_one_mask_of_two_pictures(table):
    write_labels(table / "m.bmp.png", [0])
    write_text(table / "tags.csv", "image,tags,mask\na.jpg,cat,m.bmp.png\nv.jpg,dog,m.bmp.png\n")
    with pytest.raises(BadInput, match=r"one file for two true masks: 'a' of .* and 'v'"):
        open_dataset(table)
    write_text(table / "tags.csv", "image,tags,mask\nb c.jpg,dog,\na.jpg,,m.bmp.png\nv.jpg,,m.bmp.png\n")
    assert len(open_dataset(table).split("train")) == 3


def test_names_that_differ_in_case_alone(folders):
    write_picture(folders / "dog/A.jpg", seed=5)
    write_picture(folders / "dog/a.jpg", seed=6)
    with pytest.raises(BadInput, match=r"dog/a\.jpg: found a second picture named 'dog/a'"):
        open_dataset(folders)


def test_a_missing_picture_is_not_replaced_by_another_splits(tmp_path):
    for split, numbers in (("train", (0,)), ("val", (0, 1))):
        for i in numbers:
            write_picture(tmp_path / f"{split}/{i}.jpg", seed=i)
    write_coco_of(tmp_path, ["0.jpg", "1.jpg"])
    write_coco_of(tmp_path, ["0.jpg", "1.jpg"], split="val")
    with pytest.raises(BadInput, match=r"1 of 2 names without a picture \('1' first\)"):
        open_dataset(tmp_path)


def test_a_bare_name_that_is_unique_in_its_split(tmp_path):
    write_picture(tmp_path / "train/deep/0.jpg")
    write_picture(tmp_path / "train/x/1.jpg", seed=1)
    write_picture(tmp_path / "train/y/1.jpg", seed=2)
    write_coco_of(tmp_path, ["gone/0.jpg"])
    assert open_dataset(tmp_path).split("train").paths == (tmp_path / "train/deep/0.jpg",)
    write_coco_of(tmp_path, ["gone/0.jpg", "gone/1.jpg"])
    with pytest.raises(BadInput, match="1 of 2 names without a picture"):
        open_dataset(tmp_path)


def test_pictures_of_many_folders_are_listed_once(tmp_path, monkeypatch):
    for i in range(40):
        write_picture(tmp_path / f"{'cat' if i % 2 else 'dog'}/{i}.jpg", (4, 4), seed=i)
    calls = []
    real = os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda path, **options: calls.append(path) or real(path, **options))
    images = open_dataset(tmp_path).split("train")
    assert len(images) == 40
    assert np.count_nonzero([os.fspath(path).endswith(".jpg") for path in calls]) == 0


def test_outputs_among_the_pictures(folders, table, voc, coco, tmp_path):
    refused = "an output folder inside the data set, where results would be read as pictures or masks"
    for root, inside in (
        (folders, ("", "cat", "cat/new", "masks", "runs/mine")),
        (table, ("", "masks", "masks/new")),
        (voc, ("", "JPEGImages/new", "SegmentationClass")),
        (coco, ("", "train2014/new")),
    ):
        data = open_dataset(root)
        for place in inside:
            with pytest.raises(BadInput, match=f"{refused}; expected a folder outside {data.root}"):
                check_apart(data, root / place)
        check_apart(data, tmp_path)
        check_apart(data, root.parent / f"{root.name}-results")
        assert not (root / "runs").exists()
    for root in (table, voc, coco):
        check_apart(open_dataset(root), root / "runs/mine")
    (tmp_path / "link").symlink_to(folders)
    with pytest.raises(BadInput, match="inside the data set"):
        check_apart(open_dataset(folders), tmp_path / "link" / "new")
