"""Reads the rows of CSV, TSV and JSON-lines tables as cells by column name."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from wsss.data.text import is_text, read_lines, read_text
from wsss.errors import BadInput, reading


def distinct_names(cells: Sequence[str], where: str) -> list[str]:
    """The names of the columns in a header, without surrounding blanks.

    Raises:
        BadInput: a name occurs twice.
    """
    names = [cell.strip() for cell in cells]
    if twice := [name for name in names if names.count(name) > 1]:
        raise BadInput(where, f"the column {twice[0]!r} twice", "each column once", "Rename one.")
    return names


def csv_rows(
    path: Path, expected: str, columns: Callable[[Sequence[str], str], list[str]] = distinct_names
) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV or TSV file below its header, each with its line number and its cells by column name.

    The separator is that of the header: `,`, `;` or a tab; or that of a line `sep=;` before it, which spreadsheets write.

    Args:
        path: the file.
        expected: the expected content, for errors.
        columns: returns the names of the columns from the cells of the header and the place that an error names.

    Raises:
        BadInput: the file is missing, not UTF-8 or broken, or a row and the header differ in the number of cells.
    """
    text = read_text(path, expected)
    declared = re.match(r'\s*"?sep=([,;|\t])"?[ ,;]*(?:\r\n|\r|\n)', text, re.IGNORECASE)
    header = re.split("[\r\n]", text[declared.end() :] if declared else text.lstrip(), maxsplit=1)[0]
    separator = declared[1] if declared else "\t" if "\t" in header else max(",;", key=header.count)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    names: list[str] = []
    while True:
        with reading(f"{path}, line {lines.line_num + 1}", "CSV", "Correct the quotes."):
            cells = next(lines, None)
        if cells is None:
            return
        if not "".join(cells).strip() or (declared and lines.line_num <= text.count("\n", 0, declared.end())):
            continue
        where = f"{path}, line {lines.line_num}"
        if not names:
            names = columns(cells, where)
            continue
        if len(cells) != len(names):
            raise BadInput(
                where,
                f"{len(cells)} cells",
                f"{len(names)} as in the header ({', '.join(names)})",
                "Put cells that contain the separator in double quotes, or separate tags by `;` or `|`.",
            )
        yield lines.line_num, dict(zip(names, cells, strict=True))


def json_rows(path: Path, expected: str) -> Iterator[tuple[int, dict[str, object]]]:
    """The objects of a JSON-lines file, each with its line number.

    Raises:
        BadInput: the file is missing or not UTF-8, or a line holds no JSON object.
    """
    for number, line in read_lines(path, expected):
        with reading(f"{path}, line {number}", expected, "Write the line again."):
            cells = json.loads(line)
        if not isinstance(cells, dict):
            raise BadInput(f"{path}, line {number}", f"{line:.60}", expected, "Write the line as an object.")
        yield number, cells


def tags_in(value: object, where: str) -> tuple[str, ...]:
    """The distinct tags in a cell: a text with the separators `;`, `|` or `,`, or a list of texts.

    Raises:
        BadInput: the cell is neither.
    """
    tags = re.split(r"[;|,]", value) if isinstance(value, str) else value
    if not isinstance(tags, list) or not all(map(is_text, tags)):
        raise BadInput(
            where,
            f"{value!r:.60} instead of tags",
            "names of classes separated by `;`, or a list of them",
            "Write the names; class numbers cannot be distinguished from other numbers.",
        )
    return tuple(dict.fromkeys(tag.strip() for tag in tags if tag.strip()))
