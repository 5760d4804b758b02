"""Text files, class lists and name lists are read in all their forms; what is wrong is named with its line."""

import os
import socket

import pytest

from tests.data.conftest import write_picture, write_text
from wsss.data.lists import (
    choose_split,
    existing_pictures,
    files_below,
    listing,
    pictures_below,
    read_classes,
    read_names,
    suggestion,
    tags_to_labels,
)
from wsss.data.text import read_lines, read_text
from wsss.errors import BadInput


def test_a_byte_order_mark_is_dropped(tmp_path):
    (tmp_path / "a.txt").write_text("ä", encoding="utf-8-sig")
    assert read_text(tmp_path / "a.txt", "words") == "ä"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("cat\n".encode("utf-16"), "UTF-16 text .line 1 begins with the bytes ff fe."),
        ("cat\n".encode("utf-16-be"), r"a zero byte .0x00. in line 1, at byte 0"),
        ("cat\nküche\n".encode("latin-1"), "a byte that is not UTF-8 .0xfc. in line 2, at byte 5"),
    ],
)
def test_other_encodings_are_named_with_line_and_byte(tmp_path, content, found):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(BadInput, match=rf"a\.txt: found {found}; expected words in UTF-8\. Save the file as UTF-8"):
        read_text(tmp_path / "a.txt", "words")


def test_no_text(tmp_path):
    with pytest.raises(BadInput, match="no such file; expected words"):
        read_text(tmp_path / "a.txt", "words")
    with pytest.raises(BadInput, match="found a folder; expected words"):
        read_text(tmp_path, "words")


def test_names_may_hold_what_ends_lines_elsewhere(tmp_path):
    path = write_text(tmp_path / "a.txt", "a\u2028b\x85c\r\nd\x0ce\rf\n")
    assert list(read_lines(path, "words")) == [(1, "a\u2028b\x85c"), (2, "d\x0ce"), (3, "f")]


def names_below(folder):
    return [str(path.relative_to(folder)) for path in files_below(folder)]


def test_links_are_followed_but_not_in_circles(tmp_path):
    root = tmp_path / "root"
    for name in ("b/2.png", "a/1.png", "0.png"):
        write_text(root / name, "")
    write_text(tmp_path / "elsewhere" / "3.png", "")
    (root / "c").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(root)
    (root / "a" / "up").symlink_to("..")
    (root / "a" / "here").symlink_to(".")
    (root / "b" / "itself").symlink_to("itself")
    (root / "lost.png").symlink_to("nowhere.png")
    # a link that leads to nothing is kept, so that what it names is missed
    assert names_below(root) == ["0.png", "lost.png", "a/1.png", "b/2.png", "b/itself", "c/3.png"]


def test_links_among_many_folders_end(tmp_path):
    folders = [tmp_path / str(number) for number in range(12)]
    for folder in folders:
        folder.mkdir()
        for other in folders:
            (folder / f"to {other.name}").symlink_to(other)
    with pytest.raises(BadInput, match=r"paths to .*without cycles"):
        list(files_below(tmp_path))


def test_pipes_and_sockets_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "b.png"))
    (tmp_path / "c.png").symlink_to("/dev/null")
    write_text(tmp_path / "d.png", "")
    assert names_below(tmp_path) == ["d.png"]
    assert list(pictures_below(tmp_path)) == ["d"]
    for reading in (read_classes, lambda path: read_names(path, {})):
        with pytest.raises(BadInput, match="found a named pipe"):
            reading(tmp_path / "a.png")


def test_classes(tmp_path):
    path = write_text(tmp_path / "classes.txt", "background\ncat\n\n hot dog \n")
    assert read_classes(path) == read_classes(["cat", "hot dog"]) == read_classes(str(path)) == ("cat", "hot dog")


def test_bad_classes(tmp_path):
    with pytest.raises(BadInput, match=r"classes\.txt: found the class 'cat' twice"):
        read_classes(write_text(tmp_path / "classes.txt", "cat\ndog\ncat\n"))
    with pytest.raises(BadInput, match="found no class"):
        read_classes(write_text(tmp_path / "classes.txt", "background\n"))
    with pytest.raises(BadInput, match="found an empty name"):
        read_classes(["cat", " "])


def test_tags():
    assert tags_to_labels(["dog"], ["cat", "dog"], "a").tolist() == [False, True]
    assert not tags_to_labels([], ["cat", "dog"], "a").any()
    with pytest.raises(
        BadInput, match=r"line 3: found the tag 'Dgo', which is no class; expected one of the 2 .*Did you mean 'dog'\?"
    ):
        tags_to_labels(["cat", "Dgo"], ["cat", "dog"], "line 3")
    assert suggestion("zebra", ["cat", "dog"]) == ""


def test_pictures_below(tmp_path):
    for name in ("b.JPG", "a/b.jpg", "a/c d.webp", ".hidden/x.jpg", "__MACOSX/y.jpg"):
        write_text(tmp_path / name, "")
    write_text(tmp_path / "notes.txt", "")
    assert pictures_below(tmp_path) == {
        "b": tmp_path / "b.JPG",
        "a/b": tmp_path / "a/b.jpg",
        "a/c d": tmp_path / "a/c d.webp",
    }
    assert pictures_below(tmp_path / "nowhere") == {}
    write_text(tmp_path / "a/b.png", "")
    with pytest.raises(BadInput, match=r"b\.png: found a second picture named 'a/b' .the first is .*a/b\.jpg"):
        pictures_below(tmp_path)


@pytest.mark.parametrize(
    ("line", "name", "rest"),
    [
        ("2007_000032", "2007_000032", ""),
        ("2007000032", "2007_000032", ""),
        (
            "/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png",
            "2007_000032",
            "/SegmentationClassAug/2007_000032.png",
        ),
        ("JPEGImages/2007_000032.jpg", "2007_000032", ""),
        ("2007_000032 3 5", "2007_000032", "3 5"),
        ("2007_000032\t3", "2007_000032", "3"),
        ("a b", "a b", ""),
        ("a b.png", "a b", ""),
        ("seq/0001", "seq/0001", ""),
        ("new", "new", ""),
        ("new.jpg 7", "new", "7"),
        ("2009000001", "2009000001", ""),
    ],
)
def test_lines_of_lists(tmp_path, line, name, rest):
    known = dict.fromkeys(["2007_000032", "a b", "seq/0001"], tmp_path)
    assert read_names(write_text(tmp_path / "list.txt", f"\n{line}\n\n"), known) == {name: rest}


def test_bad_lists(tmp_path):
    with pytest.raises(BadInput, match=r"list\.txt, line 4: found 'a' again .first in line 1."):
        read_names(write_text(tmp_path / "list.txt", "a\nb\n\na\n"), {})
    with pytest.raises(BadInput, match="an empty list"):
        read_names(write_text(tmp_path / "list.txt", "\n"), {})
    with pytest.raises(BadInput, match=r"none\.txt: found no such file"):
        read_names(tmp_path / "none.txt", {})


def test_missing_pictures(tmp_path):
    pictures = {"first": tmp_path, "second": tmp_path}
    notes: list[str] = []
    names = ["first", "secnd", "x"]
    with pytest.raises(
        BadInput,
        match=r"list: found 2 of 3 names without a picture .'secnd' first.*Did you mean 'second'\? .*--skip-bad",
    ):
        existing_pictures(names, pictures, "list", "train", needed=True, skip_missing=False, notes=notes)
    assert notes == []
    assert existing_pictures(names, pictures, "list", "train", needed=True, skip_missing=True, notes=notes) == ["first"]
    assert existing_pictures(names, pictures, "list", "test", needed=False, skip_missing=False, notes=notes) == [
        "first"
    ]
    assert [note.partition(" names")[0] for note in notes] == ["train: 2 of 3", "test: 2 of 3"]
    with pytest.raises(BadInput, match="1 of 1 names"):
        existing_pictures(["x"], pictures, "list", "train", needed=True, skip_missing=True, notes=notes)


def test_splits(tmp_path):
    assert choose_split(None, ["train", "val"], ("train_aug", "train"), tmp_path) == "train"
    assert choose_split(None, ["val"], ("train",), tmp_path) is None
    assert choose_split("val", ["train", "val"], ("train",), tmp_path) == "val"
    with pytest.raises(
        BadInput, match=r"no split or list file 'test'; expected one of its splits .train, val. or a list file"
    ):
        choose_split("test", ["train", "val"], (), tmp_path)


def test_listing(tmp_path):
    assert listing(tmp_path) == "an empty folder"
    write_picture(tmp_path / "a.jpg")
    write_picture(tmp_path / "b.jpg")
    for index in range(8):
        write_text(tmp_path / f"f{index}/x", "")
    assert listing(tmp_path) == "f0/, f1/, f2/, f3/, f4/, f5/, 2 more, 2 pictures"
