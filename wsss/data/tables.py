"""Files of tags: CSV, TSV and JSON-lines tables, `cls_labels.npy`, lists with class numbers.

A table has the columns `image` and `tags`, and may have `split` and `mask`. Several tags of a picture are separated by
`;`, `|` or `,`, so class names must not contain these; in JSON lines they may be a list. In CSV the cell separator is that of the
header: `,`, `;` or a tab; instead of `tags` there may be one column per class, with 1 in the rows of its pictures and 0 elsewhere.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from wsss.arrays import Bool
from wsss.data.lists import tags_to_labels, without_suffix
from wsss.data.pictures import PICTURE_SUFFIXES
from wsss.data.rows import csv_rows, json_rows, tags_in
from wsss.data.text import is_text, read_lines
from wsss.errors import BadInput
from wsss.foreign.npy import read_legacy_labels

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl")
TAG_SUFFIXES = (*TABLE_SUFFIXES, ".npy", ".txt")
_COLUMNS = ("image", "tags", "split", "mask")


@dataclasses.dataclass(frozen=True)
class Row:
    """The row of one picture in a table.

    Attributes:
        where: file and line, for errors.
        image: the picture as written, including blanks at its ends.
        tags: its tags.
        split: its split, None without such a column.
        mask: its true mask as written, None if there is none.
    """

    where: str
    image: str
    tags: tuple[str, ...]
    split: str | None
    mask: str | None


def read_table(path: Path, class_names: Sequence[str] | None = None, negatives: Collection[str] = ()) -> list[Row]:
    """The rows of a tag table.

    Args:
        path: the table.
        class_names: the classes if they are known; then tags are not checked for ambiguity.
        negatives: words that are known to mean no class.

    Raises:
        BadInput: the file is missing, empty, not UTF-8, lacks a column, has a broken line, or names a picture twice; or a tag is
            ambiguous: it consists of other tags, or may mean that there is none.
    """
    rows: list[Row] = []
    lines: dict[str, str] = {}
    for line, cells in _json_lines(path) if path.suffix.lower() == ".jsonl" else _cells(path, class_names or ()):
        where = f"{path}, line {line}"
        image, split, mask = (_text(cells.get(key), key, where) for key in ("image", "split", "mask"))
        if not image or not image.strip():
            raise BadInput(
                where, "no picture", "a name in the column `image`", "Write the picture's name, or remove the line."
            )
        if split is not None and not split.strip():
            raise BadInput(where, "no split", "a name in the column `split`", "Write train or val.")
        if image in lines:
            raise BadInput(
                where, f"{image!r} again (first in {lines[image]})", "one line per picture", "Put all its tags in one."
            )
        lines[image] = f"line {line}"
        rows.append(
            Row(where, image, tags_in(cells.get("tags"), where), split and split.strip(), (mask or "").strip() or None)
        )
    if not rows:
        raise BadInput(path, "no line with a picture", "a table with the columns `image` and `tags`", "Fill it.")
    if class_names is None:
        check_tags(((row.where, row.tags) for row in rows), negatives)
    return rows


# What programs write if a picture has no tag; for words of people see `wsss.data.roles`
_NO_TAG = frozenset((
    "0", "1", "nan", "na", "n/a", "#n/a", "<na>", "none", "null", "nil", "unlabeled", "unlabelled", "untagged", "unknown", "unk", "undefined",
    "missing", "-", "?", "true", "false",
))  # fmt: skip
# Columns of numbers that are no classes, in tables with one column per class
_NO_CLASS = frozenset((
    "label", "labels", "class", "classes", "category", "target", "y", "tag", "id", "index", "fold", "train", "val", "valid", "validation",
    "test", "is_train", "is_val", "is_valid", "is_test",
))  # fmt: skip
_BETWEEN = re.compile(r"\s+and\s+|[\s/+&:_-]+")


def check_tags(rows: Iterable[tuple[str, Sequence[str]]], negatives: Collection[str] = ()) -> None:
    """Raise BadInput for a tag that may mean no tag, or several.

    Args:
        rows: for each picture, the place that an error names, and the tags.
        negatives: words that are known to mean no class.
    """
    where_of: dict[str, str] = {}
    for where, tags in rows:
        for tag in tags:
            where_of.setdefault(tag, where)
    words = Counter(word for tag in where_of for word in dict.fromkeys(tag.split()))
    for tag, where in where_of.items():
        if tag.lower() in _NO_TAG and tag not in negatives:
            raise BadInput(
                where,
                f"the tag {tag!r}, which may mean that the picture has none",
                "names of classes",
                f"If it has none, leave the cell empty or use --negative {tag}; if it is a class, list all classes with --classes.",
            )
        if (tag[0] in "[({'\"" and tag[-1] in "])}'\"") or tag[0] in "[{" or tag[-1] in "]}":
            raise BadInput(
                where,
                f"the tag {tag!r}, with brackets or quotes around it",
                "several tags of a picture separated by `;`, `|` or `,`",
                "Write only the names; if these are the names, list all classes in classes.txt or with --classes.",
            )
        parts = [part for part in _BETWEEN.split(tag) if part]
        apart = tag.split()
        if len(parts) > 1 and all(part in where_of for part in parts):
            found = parts
        elif len(apart) > 1 and all(words[word] > 1 for word in apart):
            found = apart
        else:
            continue
        raise BadInput(
            where,
            f"the tag {tag!r}, whose parts are tags of other pictures",
            "several tags of a picture separated by `;`, `|` or `,`",
            f"Write {';'.join(found)!r}; if it is one class, list all classes in classes.txt or with --classes.",
        )


# Characters that begin a formula in spreadsheets, including the full-width forms that some of them accept
_FORMULA = "=+-@\t\r\n\uff1d\uff0b\uff0d\uff20"
_AT_START = re.escape(f"{_FORMULA}'")


def table_text(rows: Iterable[Sequence[object]]) -> str:
    """Comma-separated CSV without texts that spreadsheets would run as formulas; `read_table` restores the original texts.

    A text that begins like a formula, also after `;` or a line end, gets an apostrophe before it; numbers stay as they are, None is empty.
    """
    return "".join(",".join(map(_cell, row)) + "\n" for row in rows)


def name_in_table(name: str, file: str) -> str:
    """How a table names a picture: without the suffix of its file, unless the name itself ends like a suffix.

    The name of `a.jpg.png` is `a.jpg`, which a reader of the table would take for `a`.
    """
    return name if without_suffix(name) == name else f"{name}{Path(file).suffix}"


def cannot_be_listed(class_names: Iterable[str]) -> str | None:
    """The first class name that contains a separator of tags, so that no table can hold it; None if there is none."""
    return next((name for name in class_names if re.search("[;|,]", name)), None)


def _cell(value: object) -> str:
    if not isinstance(value, str):
        return "" if value is None else str(value)
    text = re.sub(rf"(^|[;\r\n])(?=[{_AT_START}])", r"\1'", value)
    # blanks at an end are quoted because some readers strip them, and `;` because others use it as a separator
    return '"{}"'.format(text.replace('"', '""')) if re.search(r'[",;\0-\x1f]|^\s|\s$', text) else text


def plain_text(text: str) -> str:
    """The text of a cell, without the apostrophes that `table_text` adds."""
    return re.sub(rf"(^|[;\r\n])'(?=[{_AT_START}])", r"\1", text)


def labels_by_name(path: Path, class_names: Sequence[str]) -> dict[str, Bool[np.ndarray, " c"]]:
    """Image-level labels by picture name, from any of the files that `TAG_SUFFIXES` names.

    A `.npy` file is `cls_labels.npy` of PSA and IRNet; a `.txt` file is a list of CLIP-ES, with a name and 0-based class numbers per line.

    Raises:
        BadInput: the file is broken, or has other classes.
    """
    suffix = path.suffix.lower()
    if suffix in TABLE_SUFFIXES:
        rows = read_table(path, class_names)
        labels = {row.where: tags_to_labels(row.tags, class_names, row.where) for row in rows}
        # a name may end in blanks, but more often the blanks surround it
        stripped = {without_suffix(row.image.strip()): labels[row.where] for row in rows}
        return stripped | {without_suffix(row.image): labels[row.where] for row in rows}
    if suffix == ".npy":
        vectors = read_legacy_labels(path)
        if not isinstance(vectors, dict):
            raise BadInput(
                path, "a matrix without names", "a dictionary from names to label vectors", "Give another file."
            )
        length = len(next(iter(vectors.values())))
        if length != len(class_names):
            raise BadInput(
                path, f"vectors of {length} labels", f"{len(class_names)}, one per class", "Give the list of classes."
            )
        return vectors
    if suffix == ".txt":
        return dict(_numbered(path, len(class_names)))
    raise BadInput(
        path, f"a file of type {suffix!r}", f"one of {', '.join(TAG_SUFFIXES)}", "Write the tags as such a table."
    )


def labels_of(
    names: Sequence[str], labels: Mapping[str, Bool[np.ndarray, " c"]], n_classes: int
) -> tuple[Bool[np.ndarray, "n c"], list[str]]:
    """The labels of these pictures, and the names without labels, whose rows are all False."""
    found = np.zeros((len(names), n_classes), bool)
    missing = []
    for row, name in enumerate(names):
        key = next((key for key in spellings(name) if key in labels), None)
        if key is None:
            missing.append(name)
        else:
            found[row] = labels[key]
    return found, missing


def spellings(name: str) -> Iterator[str]:
    """The name, and how PSA, IRNet and CLIMS write it: `2007_000032` as 2007000032, `COCO_train2014_000000000009` as 9."""
    yield name
    yield name.replace("_", "")
    if number := re.search(r"(?:^|_)(\d{12})$", name):
        yield number[1]
        yield str(int(number[1]))


def _numbered(path: Path, n_classes: int) -> Iterator[tuple[str, Bool[np.ndarray, " c"]]]:
    expected = f"a name and class numbers from 0 to {n_classes - 1}, separated by blanks"
    for line, text in read_lines(path, expected):
        name, *numbers = text.split()
        if not all(re.fullmatch("[0-9]{1,9}", number) and int(number) < n_classes for number in numbers):
            raise BadInput(
                f"{path}, line {line}",
                f"{text!r:.80}",
                expected,
                "Correct the line, or give the list of classes that it was made with.",
            )
        labels = np.zeros(n_classes, bool)
        labels[[int(number) for number in numbers]] = True
        yield without_suffix(name.lstrip("/")), labels


def _cells(path: Path, class_names: Sequence[str]) -> Iterator[tuple[int, dict[str, object]]]:
    columns = partial(_columns, class_names=class_names)
    for line, cells in csv_rows(path, "a table with the columns `image` and `tags`", columns):
        texts = {name: plain_text(cell) for name, cell in cells.items()}
        row: dict[str, object] = dict(texts)
        if "tags" not in row:
            where = f"{path}, line {line}"
            row["tags"] = [name for name in cells if name not in _COLUMNS and _marked(texts[name], name, where)]
        yield line, row


def _columns(cells: Sequence[str], where: str, class_names: Sequence[str]) -> list[str]:
    """The names of the columns: known ones in lower case, those of classes as written."""
    stripped = [plain_text(cell.strip()) for cell in cells]
    names = [name.lower() if name.lower() in _COLUMNS else name for name in stripped]
    twice = [name for name in names if names.count(name) > 1]
    if "image" not in names or set(names) <= {"image", "split", "mask"} or twice:
        has_header = not any(name.lower().endswith(PICTURE_SUFFIXES) for name in names)
        raise BadInput(
            where,
            f"the columns {', '.join(names)}",
            "the columns image and tags, or image and one column per class, and optionally split and mask, each once"
            + ("" if "image" in names else " (image missing)"),
            "Call the column of the pictures `image`, and the one of their tags `tags`."
            if has_header
            else "Write a first line that names the columns.",
        )
    strange = [name for name in names if name.lower() in _NO_CLASS and name not in class_names]
    if strange and "tags" not in names:
        raise BadInput(
            where,
            f"the column {strange[0]!r}",
            "a column `tags`, or one column per class, named after it",
            "Call the column of the tags `tags`, write names of classes into it, and remove columns that are no classes; if it is a class, "
            "list all classes with --classes.",
        )
    return names


def _marked(cell: str, column: str, where: str) -> bool:
    """Whether the cell in the column of a class says that the picture has this class."""
    word = cell.strip().lower()
    if word not in ("0", "1", "0.0", "1.0", "", "false", "true"):
        raise BadInput(
            where,
            f"{cell!r:.60} in the column {column!r}",
            "a column `tags`, or one column per class with 0 or 1 in it",
            "Call the column of the tags `tags`, and remove columns that are neither.",
        )
    return word in ("1", "1.0", "true")


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    expected = 'a line like {"image": "a.jpg", "tags": ["cat", "dog"]}'
    for line, cells in json_rows(path, expected):
        if not {"image", "tags"} <= cells.keys():
            found = f"the keys {', '.join(cells)}" if cells else "an empty object"
            raise BadInput(f"{path}, line {line}", f"{found:.80}", expected, "Write `image` and `tags`.")
        yield line, cells


def _text(value: object, column: str, where: str) -> str | None:
    if value is None or is_text(value):
        return value
    raise BadInput(where, f"{value!r:.60} as `{column}`", "text", "Put it in quotes, and write valid Unicode.")
