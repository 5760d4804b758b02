"""Tags that stand apart from the pictures: CSV, TSV and JSON-lines tables, `cls_labels.npy`, lists with class numbers.

A table has the columns `image` and `tags`, and may have `split` and `mask`. Several tags of a picture are separated by
`;`, `|` or `,`, so class names hold none of these; in JSON lines they may be a list. In CSV the cell separator is the one that
the header uses: `,`, `;` or a tab.
"""

import csv
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from wsss.data.legacy import read_legacy_labels
from wsss.data.lists import read_lines, read_text, tags_to_labels, without_suffix
from wsss.errors import BadInput

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl")
TAG_SUFFIXES = (*TABLE_SUFFIXES, ".npy", ".txt")
_COLUMNS = ("image", "tags", "split", "mask")


@dataclasses.dataclass(frozen=True)
class Row:
    """What a table says about one picture.

    Attributes:
        where: file and line, for errors.
        image: the picture as written.
        tags: its tags.
        split: the split that it is in, None where the table has no such column.
        mask: its true mask as written, None where there is none.
    """

    where: str
    image: str
    tags: tuple[str, ...]
    split: str | None
    mask: str | None


def read_table(path: Path) -> list[Row]:
    """The rows of a tag table.

    Raises:
        BadInput: the file is missing, empty, not UTF-8, lacks a column, has a broken line, or names a picture twice.
    """
    rows: list[Row] = []
    lines: dict[str, str] = {}
    for line, cells in _json_lines(path) if path.suffix.lower() == ".jsonl" else _cells(path):
        where = f"{path}, line {line}"
        image, split, mask = (_text(cells.get(key), key, where) for key in ("image", "split", "mask"))
        if not image:
            raise BadInput(
                where, "no picture", "a name in the column `image`", "Write the picture's name, or remove the line."
            )
        if split == "":
            raise BadInput(where, "no split", "a word in the column `split`", "Write train or val.")
        if image in lines:
            raise BadInput(
                where, f"{image!r} again (first in {lines[image]})", "one line a picture", "Put all its tags in one."
            )
        lines[image] = f"line {line}"
        rows.append(Row(where, image, _tags(cells.get("tags"), where), split, mask or None))
    if not rows:
        raise BadInput(path, "no line with a picture", "a table with the columns `image` and `tags`", "Fill it.")
    return rows


def labels_by_name(path: Path, class_names: Sequence[str]) -> dict[str, Bool[np.ndarray, " c"]]:
    """Image-level labels by picture name, from any of the files that `TAG_SUFFIXES` names.

    A `.npy` file is PSA's and IRNet's `cls_labels.npy`; a `.txt` file is CLIP-ES's list, a name and 0-based class numbers a line.

    Raises:
        BadInput: the file is broken, or its classes are not these.
    """
    suffix = path.suffix.lower()
    if suffix in TABLE_SUFFIXES:
        return {without_suffix(row.image): tags_to_labels(row.tags, class_names, row.where) for row in read_table(path)}
    if suffix == ".npy":
        vectors = read_legacy_labels(path)
        if not isinstance(vectors, dict):
            raise BadInput(
                path, "a matrix without names", "a dictionary from names to label vectors", "Take another file."
            )
        length = len(next(iter(vectors.values())))
        if length != len(class_names):
            raise BadInput(
                path, f"vectors of {length} labels", f"{len(class_names)}, one a class", "Give the class list."
            )
        return vectors
    if suffix == ".txt":
        return dict(_numbered(path, len(class_names)))
    raise BadInput(
        path, f"a file of kind {suffix!r}", f"one of {', '.join(TAG_SUFFIXES)}", "Write the tags as such a table."
    )


def labels_of(
    names: Sequence[str], labels: Mapping[str, Bool[np.ndarray, " c"]], n_classes: int
) -> tuple[Bool[np.ndarray, "n c"], list[str]]:
    """The labels of these pictures, all False where there are none, and the names for which there are none."""
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
        if not all(number.isdecimal() and int(number) < n_classes for number in numbers):
            raise BadInput(
                f"{path}, line {line}",
                repr(text),
                expected,
                "Correct the line, or give the class list it is made with.",
            )
        labels = np.zeros(n_classes, bool)
        labels[[int(number) for number in numbers]] = True
        yield without_suffix(name.lstrip("/")), labels


def _cells(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    text = read_text(path, "a table with the columns `image` and `tags`")
    header = text.partition("\n")[0]
    separator = "\t" if "\t" in header else max(",;", key=header.count)
    reader = csv.reader(text.splitlines(keepends=True), delimiter=separator, strict=True)
    names: list[str] = []
    try:
        for cells in reader:
            if not "".join(cells).strip():
                continue
            if not names:
                names = [cell.strip().lower() for cell in cells]
                _check_columns(names, path)
                continue
            if len(cells) != len(names):
                raise BadInput(
                    f"{path}, line {reader.line_num}",
                    f"{len(cells)} cells",
                    f"{len(names)} as in the header ({', '.join(names)})",
                    "Put cells that hold the separator in double quotes, or separate tags by `;` or `|`.",
                )
            yield reader.line_num, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise BadInput(
            f"{path}, line {reader.line_num}", f"a broken line ({error})", "CSV", "Correct the quotes."
        ) from error


def _check_columns(names: Sequence[str], path: Path) -> None:
    missing = [column for column in ("image", "tags") if column not in names]
    if missing:
        raise BadInput(
            path,
            f"the columns {', '.join(names)}",
            f"the columns image and tags, and split and mask if you like ({' and '.join(missing)} missing)",
            "Write a first line that names the columns.",
        )


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    expected = 'a line like {"image": "a.jpg", "tags": ["cat", "dog"]}'
    for line, text in read_lines(path, expected):
        try:
            cells = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise BadInput(
                f"{path}, line {line}", f"broken JSON ({error})", expected, "Write the line again."
            ) from error
        if not isinstance(cells, dict) or not {"image", "tags"} <= cells.keys():
            raise BadInput(f"{path}, line {line}", f"{text[:60]}", expected, "Write `image` and `tags`.")
        yield line, cells


def _text(value: Any, column: str, where: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise BadInput(where, f"{value!r:.60} as `{column}`", "a text", "Put it in quotes.")
    return None if value is None else value.strip()


def _tags(value: Any, where: str) -> tuple[str, ...]:
    tags = re.split(r"[;|,]", value) if isinstance(value, str) else value
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise BadInput(
            where, f"{value!r:.60} as `tags`", "tags separated by `;`, or a list of texts", "Correct the line."
        )
    return tuple(dict.fromkeys(tag.strip() for tag in tags if tag.strip()))
