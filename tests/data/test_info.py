"""The overview counts what is there, and bad files are found by decoding, each with its message."""

import json
import shutil

from tests.data.conftest import write_labels, write_picture, write_text
from wsss.data.info import bad_pictures, check_pictures, notes_on_overlap, overview, render
from wsss.data.open import open_dataset


def test_overview(table):
    write_picture(table / "v.jpg", (50, 20))
    write_labels(table / "masks/v.png", [2], (50, 20))
    summary = overview(open_dataset(table))
    assert json.loads(json.dumps(summary)) == summary
    assert summary == {
        "kind": "tags",
        "root": str(table),
        "classes": ["cat", "dog"],
        "train": "train",
        "scored_split": None,
        "val": "val",
        "checked": False,
        "splits": {
            "train": {
                "images": 3,
                "images_per_class": {"cat": 2, "dog": 1},
                "tags_per_image": {"mean": 1.0, "max": 2},
                "without_tags": 1,
                "with_masks": 0,
                "height": {"min": 30, "median": 30, "max": 30},
                "width": {"min": 40, "median": 40, "max": 40},
                "bad": {},
                "doubts": [],
                "stops": [],
            },
            "val": {
                "images": 1,
                "images_per_class": {"cat": 0, "dog": 1},
                "tags_per_image": {"mean": 1.0, "max": 1},
                "without_tags": 0,
                "with_masks": 1,
                "height": {"min": 50, "median": 50, "max": 50},
                "width": {"min": 20, "median": 20, "max": 20},
                "bad": {},
                "doubts": [],
                "stops": [],
            },
        },
        "identical": [],
        "notes": ["album/val has no picture of cat: not scored"],
        "stops": [],
        "reading": {"value_range": None, "kinds": ["8-bit"], "strict": False, "bands": [], "page": None},
    }


def spoil(table):
    """One bad picture and one bad mask in train, a mask with a class that is no tag, and a copy of a picture in val."""
    (table / "a.jpg").write_bytes((table / "a.jpg").read_bytes()[:-300])
    write_labels(table / "masks/b c.png", [1], (9, 9))
    write_labels(table / "masks/deep/ü.png", [1])
    write_labels(table / "masks/v.png", [2])
    shutil.copy(table / "deep/ü.png", table / "copy.png")
    with (table / "tags.csv").open("a", encoding="utf-8") as stream:
        stream.write("copy.png,dog,val\n")
    return open_dataset(table)


def test_find_bad(table):
    images = spoil(table).split("train")
    calls = []
    bad = bad_pictures(images, check_pictures(images, progress=lambda done, total: calls.append((done, total))))
    assert list(bad) == ["a", "b c"]
    assert "truncated" in bad["a"]
    assert str(table / "masks/b c.png") in bad["b c"]
    assert "a mask of 9x9" in bad["b c"]
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert images.without(bad).names == ("deep/ü",)
    rest = images.without(bad)
    assert bad_pictures(rest, check_pictures(rest)) == {}


def test_decoding_finds_more(table):
    data = spoil(table)
    calls = []
    summary = overview(data, decode=True, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(index, 5) for index in range(1, 6)]
    assert list(summary["splits"]["train"]["bad"]) == ["a", "b c"]
    assert summary["splits"]["train"]["doubts"] == [
        "album/train: 2 of 3 pictures have a true mask: nothing is scored on this split",
        "album/train: 1 of 2 pictures have a tag whose class is not in their mask (dog 1)",
        "album/train: 1 of 2 pictures have a class in their mask that is not among their tags (cat 1)",
    ]
    assert summary["identical"] == [[str(table / "deep/ü.png"), str(table / "copy.png")]]
    assert overview(data)["splits"]["train"]["bad"] == {}


def test_headers_alone_find_what_is_no_picture(folders):
    (folders / "cat/1.jpg").write_bytes(b"")
    write_text(folders / "dog/1.jpeg", "text")
    bad = overview(open_dataset(folders))["splits"]["train"]["bad"]
    assert "an empty file" in bad["cat/1"]
    assert "no picture" in bad["dog/1"]
    for name in ("cat/1.jpg", "cat/more/2.PNG", "dog/1.jpeg"):
        (folders / name).write_bytes(b"")
    assert overview(open_dataset(folders))["splits"]["train"]["height"] is None


def test_text(table):
    data = spoil(table)
    text = render(overview(data, decode=True))
    for part in (
        f"tags data set at {table}",
        "2 classes: cat, dog",
        "maps and pseudo masks scored on: nothing (no true masks)",
        "segmenters scored on: val",
        "train: 3 pictures",
        "  height  30 to 30, median 30",
        "  tags    1.00 per picture, at most 2; 1 without",
        "  masks   2 with, 1 without",
        "have a class in their mask that is not among their tags",
        "  classes cat 2, dog 1",
        "  bad     2:",
        "truncated",
        "1 groups of pictures with the same content:",
    ):
        assert part in text
    headers = render(overview(data), most=0)
    assert "bad     none by their headers (not decoded)" in headers
    short = render(overview(data, decode=True), most=1)
    assert "and 1 more" in short


def test_notes_are_shown(table):
    write_text(table / "tags.csv", "image,tags\na.jpg,cat\n")
    text = render(overview(open_dataset(table)))
    assert "notes:\n  3 pictures left out, since tags.csv does not name them" in text
    assert "segmenters scored on: nothing (no split val)" in text


def test_coco_and_voc(coco, voc):
    summary = overview(open_dataset(coco), decode=True)
    assert summary["splits"]["train2014"]["images_per_class"]["bus"] == 1
    assert summary["splits"]["train2014"]["with_masks"] == 4
    assert len(render(summary)) < 3000  # of 80 classes, 30 are named
    assert overview(open_dataset(voc), decode=True)["splits"]["train"]["doubts"] == []


def test_pictures_to_train_on_and_to_score_on_are_compared(tmp_path):
    for path in ("train/cat/0.png", "train/dog/1.png", "val/cat/2.png", "val/dog/3.png"):
        write_picture(tmp_path / path, seed=int(path[-5]))
    assert notes_on_overlap(open_dataset(tmp_path)) == []
    shutil.copy(tmp_path / "train/cat/0.png", tmp_path / "val/cat/copy.png")
    assert notes_on_overlap(open_dataset(tmp_path)) == [
        "1 pictures are in both train and val, under other names (train/cat/0.png = val/cat/copy.png first)"
    ]
    listed = tmp_path / "some.txt"
    listed.write_text("train/cat/0\nval/dog/3\n")
    (note,) = notes_on_overlap(open_dataset(tmp_path, val=str(listed)))
    assert note.startswith("1 of the 2 pictures of ")
    assert "are in train too (0.png first)" in note
