"""Tables of tags in all their forms, and what is wrong with them by line."""

import csv
import io
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.conftest import write_text
from wsss.data.tables import labels_by_name, labels_of, read_table, table_text
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
        ("a.csv", "file,label\na,cat\n", r"a\.csv, line 1: found the columns file, label; .*\(image missing\)"),
        (
            "a.csv",
            "image,about\na,cat\n",
            "line 2: found 'cat' in the column 'about'; expected a column `tags`, or one column per class",
        ),
        ("a.csv", "image\na\n", "found the columns image"),
        ("a.csv", "image,tags,Tags\na,cat,dog\n", "found the columns image, tags, tags; .*each once"),
        ("a.csv", "image,cat,dog\na,1,0\nb,0.5,1\n", "line 3: found '0.5' in the column 'cat'"),
        ("a.csv", "image,cat,dog\na,1,-1\n", "line 2: found '-1' in the column 'dog'"),
        (
            "a.csv",
            "image,tags\na,cat\nb,dog\nc,cat dog\n",
            "line 4: found the tag 'cat dog', whose parts are tags.*'cat;dog'.*--classes",
        ),
        *[
            ("a.csv", f"image,tags\na,cat\nb,{word}\n", f"line 3: found the tag '{word}', which may mean .*--classes")
            for word in ("0", "1", "none", "NaN", "unlabeled", "-")
        ],
        (
            "a.jsonl",
            '{"image": "a", "tags": [], "x": ' + "9" * 5000 + "}",
            "line 1: found content that cannot be read .*digits",
        ),
        ("a.jsonl", '{"image": "\\ud800", "tags": []}', "line 1: found .* as `image`"),
        ("a.jsonl", '{"image": "a", "tags": ["\\udfff"]}', "line 1: found .* instead of tags"),
        ("a.jsonl", '{"image": "a", "tags": {"cat": 1}}', "line 1: found .* instead of tags"),
        ("a.jsonl", '{"image": "a", "tags": [], "split": true}', "line 1: found True as `split`"),
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
        ("a.jsonl", '{"image": 3, "tags": []}', "found 3 as `image`; expected text"),
        ("a.jsonl", '{"image": "a", "tags": [1]}', "instead of tags; expected names"),
        ("a.jsonl", '{"image": "a", "tags": null}', "found None instead of tags"),
        ("a.jsonl", "[" * 100000, "line 1: found content nested too deeply"),
    ],
)
def test_bad_tables(tmp_path, name, text, message):
    with pytest.raises(BadInput, match=message):
        read_table(write_text(tmp_path / name, text))


def test_doubtful_tags_are_classes_where_a_list_says_so(tmp_path):
    path = write_text(tmp_path / "a.csv", "image,tags\na,none\nb,0;cat\nc,dog\nd,cat dog\n")
    classes = ("none", "0", "cat", "dog", "cat dog")
    assert [row.tags for row in read_table(path, classes)] == [("none",), ("0", "cat"), ("dog",), ("cat dog",)]
    assert as_sets(labels_by_name(path, classes)) == {"a": [0], "b": [1, 2], "c": [3], "d": [4]}


def test_words_that_the_user_declared_to_mean_nothing(tmp_path):
    path = write_text(tmp_path / "a.csv", "image,tags\na,nan\nb,cat\n")
    assert [row.tags for row in read_table(path, negatives=["nan"])] == [("nan",), ("cat",)]
    with pytest.raises(BadInput, match="--negative nan"):
        read_table(path)


def test_a_column_a_class(tmp_path):
    text = "image,Hot dog,split,cat\nx.jpg,1,train,0\ny.jpg,1.0,val,TRUE\nz.jpg,,val,false\n"
    assert [(row.image, row.tags, row.split) for row in read_table(write_text(tmp_path / "a.csv", text))] == [
        ("x.jpg", ("Hot dog",), "train"),
        ("y.jpg", ("Hot dog", "cat"), "val"),
        ("z.jpg", (), "val"),
    ]


# any letters that a file's name may have, with those often that mean something to CSV and to spreadsheets
NAMES = st.text(
    st.one_of(
        st.sampled_from("=+-@\t\r\n'\";,| .\u2028\x85\uff1d"), st.characters(codec="utf-8", exclude_characters="\0")
    ),
    min_size=1,
)


@given(st.lists(NAMES.filter(str.strip), min_size=1, unique=True), st.data())
def test_a_written_table_reads_back_and_starts_no_formula(tmp_path_factory, names, data):
    path = tmp_path_factory.getbasetemp() / "written.csv"
    tags = NAMES.map(lambda text: re.sub("[;|,]", "", text).strip()).filter(bool)
    rows = [(name, tuple(dict.fromkeys(data.draw(st.lists(tags, max_size=3))))) for name in names]
    text = table_text([("image", "tags"), *((name, ";".join(tagged)) for name, tagged in rows)])
    path.write_bytes(text.encode())
    classes = [tag for _, tagged in rows for tag in tagged]
    assert [(row.image, row.tags) for row in read_table(path, classes)] == rows
    for separator in ",;":
        for cells in csv.reader(io.StringIO(text, newline=""), delimiter=separator):
            assert not [cell for cell in cells if cell[:1] in tuple("=+-@\t\r\n\uff1d")]


def test_numbers_and_nothing_in_a_written_table():
    assert table_text([("a", -0.5, None, "-0.5", 7)]) == "a,-0.5,,'-0.5,7\n"


def test_blanks_around_names_and_in_them(tmp_path):
    path = write_text(tmp_path / "a.csv", "image, tags\n x.jpg ,cat\ny .jpg,dog\n")
    read = as_sets(labels_by_name(path, CLASSES))
    assert (read["x"], read["y "]) == ([0], [1])


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
    np.save(tmp_path / "a.npy", {"x.jpg": np.array([1.0, 1.0]), "d/y": np.zeros(2)})
    assert as_sets(labels_by_name(tmp_path / "a.npy", CLASSES)) == wanted
    assert as_sets(labels_by_name(write_text(tmp_path / "a.txt", "x 1 0\nd/y\n"), CLASSES)) == wanted


def test_bad_labels_by_name(tmp_path):
    with pytest.raises(BadInput, match=r"a\.csv, line 2: found the tag 'cta'.*Did you mean 'cat'"):
        labels_by_name(write_text(tmp_path / "a.csv", "image,tags\nx.jpg,cta\n"), CLASSES)
    for line in ("x 2", "x -1", "x cat", "x " + "9" * 5000, "x ²", "x 1.0"):
        with pytest.raises(BadInput, match=r"a\.txt, line 1: found .*class numbers from 0 to 1"):
            labels_by_name(write_text(tmp_path / "a.txt", line), CLASSES)
    for values in ([0.9, 0.2], [1, 2], [-1, 1], [np.nan, 1]):
        np.save(tmp_path / "a.npy", {"x": np.array(values)})
        with pytest.raises(BadInput, match=r"a\.npy: found .* under 'x'; expected .*0 and 1"):
            labels_by_name(tmp_path / "a.npy", CLASSES)
    np.save(tmp_path / "a.npy", {"x": np.zeros(2), "x.jpg": np.zeros(2)})
    with pytest.raises(BadInput, match=r"'x\.jpg' twice"):
        labels_by_name(tmp_path / "a.npy", CLASSES)
    np.save(tmp_path / "a.npy", {"x": np.zeros(3)})
    with pytest.raises(BadInput, match="vectors of 3 labels; expected 2"):
        labels_by_name(tmp_path / "a.npy", CLASSES)
    np.save(tmp_path / "a.npy", np.zeros((3, 2)))
    with pytest.raises(BadInput, match="a matrix without names"):
        labels_by_name(tmp_path / "a.npy", CLASSES)
    with pytest.raises(BadInput, match=r"a file of type '\.json'"):
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


@pytest.mark.parametrize("between", [" ", "/", "+", " & ", " and ", ":"])
def test_tags_that_hold_others_are_asked_about(tmp_path, between):
    path = write_text(tmp_path / "a.csv", f"image,tags\n1,cat\n2,dog\n3,cat{between}dog\n")
    with pytest.raises(
        BadInput, match=r"line 4: found the tag .*whose parts are tags of other pictures.*Write 'cat;dog'"
    ):
        read_table(path)
    assert read_table(path, ("cat", "dog", f"cat{between}dog"))[2].tags == (f"cat{between}dog",)


def test_blanks_between_tags_that_never_stand_alone(tmp_path):
    with pytest.raises(BadInput, match=r"the tag 'cat dog', whose parts are tags"):
        read_table(write_text(tmp_path / "a.csv", "image,tags\n1,cat dog\n2,dog bird\n3,bird cat\n"))
    assert len(read_table(write_text(tmp_path / "b.csv", "image,tags\n1,polar bear\n2,brown bear\n"))) == 2


@pytest.mark.parametrize("cell", ["\"['cat', 'dog']\"", '"[""cat""]"', "[]", "'cat'", "{cat}"])
def test_lists_of_programs_in_cells(tmp_path, cell):
    with pytest.raises(BadInput, match=r"line 2: found the tag .*, with brackets or quotes around it"):
        read_table(write_text(tmp_path / "a.csv", f"image,tags\n1,{cell}\n"))


@pytest.mark.parametrize("column", ["label", "Class", "target", "fold", "is_val"])
def test_columns_of_numbers_that_are_no_classes(tmp_path, column):
    path = write_text(tmp_path / "a.csv", f"image,cat,{column}\n1,1,0\n2,0,1\n")
    with pytest.raises(BadInput, match=rf"line 1: found the column '{column}'; .*Call the column of the tags `tags`"):
        read_table(path)
    assert read_table(path, ("cat", column))[1].tags == (column,)


@pytest.mark.parametrize(("said", "separator"), [("sep=;", ";"), ('"sep=,"', ","), ("SEP=;\r", ";"), ("sep=|", "|")])
def test_the_separator_that_a_spreadsheet_names(tmp_path, said, separator):
    table = separator.join(("image", "tags")) + "\n" + separator.join(("x.jpg", "cat")) + "\n"
    assert rows(write_text(tmp_path / "a.csv", f"{said}\n{table}")) == [("x.jpg", ("cat",), None, None)]


def test_columns_of_other_names(tmp_path):
    with pytest.raises(BadInput, match=r"image missing.*Call the column of the pictures `image`"):
        read_table(write_text(tmp_path / "a.csv", "id,label\n1,cat\n"))
    with pytest.raises(BadInput, match=r"image missing.*Write a first line"):
        read_table(write_text(tmp_path / "b.csv", "1.jpg,cat\n2.jpg,dog\n"))
