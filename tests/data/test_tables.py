"""Tables of tags in all their forms, and what is wrong with them by line."""

import json

import numpy as np
import pytest

from tests.data.conftest import write_text
from wsss.data.tables import labels_by_name, labels_of, read_table
from wsss.errors import BadInput

CLASSES = ("cat", "dog")


def rows(path):
    return [(row.image, row.tags, row.split, row.mask) for row in read_table(path)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'image,tags\nx.jpg,cat;dog\n"y, z.jpg",\n'),
        ("a.csv", 'Image, TAGS\r\nx.jpg,"cat, dog"\r\n"y, z.jpg",\r\n\r\n'),
        ("a.csv", "\ufeffimage;tags\nx.jpg;cat|dog\ny, z.jpg;\n"),
        ("a.tsv", "tags\timage\ncat,dog,cat\tx.jpg\n\ty, z.jpg\n"),
        ("a.jsonl", '{"image": "x.jpg", "tags": ["cat", "dog"]}\n\n{"image": "y, z.jpg", "tags": []}\n'),
        ("a.jsonl", '{"image": "x.jpg", "tags": "cat; dog"}\n{"image": "y, z.jpg", "tags": "", "other": 3}\n'),
    ],
)
def test_forms(tmp_path, name, text):
    assert rows(write_text(tmp_path / name, text)) == [
        ("x.jpg", ("cat", "dog"), None, None),
        ("y, z.jpg", (), None, None),
    ]


def test_split_and_mask(tmp_path):
    text = "image,split,mask,tags,who\na,train,m/a.png,cat,me\nb,val,,dog,you\n"
    assert rows(write_text(tmp_path / "a.csv", text)) == [
        ("a", ("cat",), "train", "m/a.png"),
        ("b", ("dog",), "val", None),
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "file,label\na,cat\n", r"a\.csv: found the columns file, label; .*\(image and tags missing\)"),
        ("a.csv", "image,label\na,cat\n", r"\(tags missing\)"),
        (
            "a.csv",
            "image,tags\na,cat,dog\n",
            r"a\.csv, line 2: found 3 cells; expected 2 as in the header .*double quotes",
        ),
        ("a.csv", "image,tags,split\na,cat\n", "line 2: found 2 cells; expected 3"),
        ("a.csv", 'image,tags\na,"cat\n', "line 2: found a broken line"),
        ("a.csv", "image,tags\n,cat\n", "line 2: found no picture"),
        ("a.csv", "image,tags,split\na,cat,\n", "line 2: found no split"),
        ("a.csv", "image,tags\na,cat\nb,cat\na,dog\n", r"line 4: found 'a' again .first in line 2."),
        ("a.csv", "image,tags\n", "no line with a picture"),
        ("a.csv", "", "no line with a picture"),
        ("a.jsonl", '{"image": "a", "tags": "cat"}\n{"image": "b"', "line 2: found broken JSON"),
        ("a.jsonl", '{"image": "a"}', "line 1: found .*expected a line like"),
        ("a.jsonl", '{"image": 3, "tags": []}', "found 3 as `image`; expected a text"),
        ("a.jsonl", '{"image": "a", "tags": [1]}', "as `tags`; expected tags separated"),
        ("a.jsonl", '{"image": "a", "tags": null}', "found None as `tags`"),
        ("a.jsonl", "[" * 100000, "line 1: found broken JSON"),
    ],
)
def test_bad_tables(tmp_path, name, text, message):
    with pytest.raises(BadInput, match=message):
        read_table(write_text(tmp_path / name, text))


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_other_encodings(tmp_path, encoding):
    (tmp_path / "a.csv").write_bytes("image,tags\nküche,cat\n".encode(encoding))
    with pytest.raises(BadInput, match=r"a\.csv: found (UTF-16|a byte that is not UTF-8 .0xfc. in line 2, at byte 12)"):
        read_table(tmp_path / "a.csv")


def as_sets(labels):
    return {name: np.flatnonzero(row).tolist() for name, row in labels.items()}


def test_labels_by_name(tmp_path):
    wanted = {"x": [0, 1], "d/y": []}
    table = write_text(tmp_path / "a.csv", "image,tags\nx.jpg,cat;dog\nd/y.png,\n")
    assert as_sets(labels_by_name(table, CLASSES)) == wanted
    np.save(tmp_path / "a.npy", {"x": np.array([1.0, 2.0]), "d/y": np.zeros(2)})
    assert as_sets(labels_by_name(tmp_path / "a.npy", CLASSES)) == wanted
    assert as_sets(labels_by_name(write_text(tmp_path / "a.txt", "x 1 0\nd/y\n"), CLASSES)) == wanted


def test_bad_labels_by_name(tmp_path):
    with pytest.raises(BadInput, match=r"a\.csv, line 2: found the tag 'cta'.*Did you mean 'cat'"):
        labels_by_name(write_text(tmp_path / "a.csv", "image,tags\nx.jpg,cta\n"), CLASSES)
    for line in ("x 2", "x -1", "x cat"):
        with pytest.raises(BadInput, match=r"a\.txt, line 1: found .*class numbers from 0 to 1"):
            labels_by_name(write_text(tmp_path / "a.txt", line), CLASSES)
    np.save(tmp_path / "a.npy", {"x": np.zeros(3)})
    with pytest.raises(BadInput, match="vectors of 3 labels; expected 2"):
        labels_by_name(tmp_path / "a.npy", CLASSES)
    np.save(tmp_path / "a.npy", np.zeros((3, 2)))
    with pytest.raises(BadInput, match="a matrix without names"):
        labels_by_name(tmp_path / "a.npy", CLASSES)
    with pytest.raises(BadInput, match=r"a file of kind '\.json'"):
        labels_by_name(write_text(tmp_path / "a.json", json.dumps({})), CLASSES)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("2007_000032", "2007000032"),
        ("2007_000032", "2007_000032"),
        ("COCO_train2014_000000000009", "9"),
        ("000000000009", "9"),
        ("COCO_train2014_000000000009", "000000000009"),
    ],
)
def test_spellings(name, key):
    labels, missing = labels_of([name, "other"], {key: np.array([False, True])}, 2)
    assert labels.tolist() == [[False, True], [False, False]]
    assert missing == ["other"]
