"""Roboflow's exports with `_classes.csv`: several tags per picture, or semantic masks.

    train/_classes.csv      filename, cat, dog          one column of 0 and 1 per class
    train/_classes.csv      Pixel Value, Class          the values in train/NAME_mask.png next to train/NAME.jpg

The folders are train, valid and test, or there is only one.
"""

from pathlib import Path

from wsss.data.entries import Entry, LayoutContents, LayoutOptions, labels_in_masks, picture_name, split_of
from wsss.data.images import MaskFile
from wsss.data.labels import MaskTable
from wsss.data.lists import is_picture
from wsss.data.names import check_name
from wsss.data.roles import Roles, only_classes
from wsss.data.rows import csv_rows
from wsss.errors import BadInput, is_regular

_TABLE = "_classes.csv"
_EXPECTED = "Roboflow's table: `filename` and one column per class, or `Pixel Value` and `Class`"
_FILE, _VALUE, _CLASS = "filename", "pixel value", "class"
_MASK_ENDING = "_mask.png"


def find_roboflow(root: Path) -> list[Path]:
    """The tables `_classes.csv` in a folder and in its sub-folders."""
    return [path for path in (root / _TABLE, *sorted(root.glob(f"*/{_TABLE}"))) if is_regular(path)]


def read_roboflow(root: Path, tables: list[Path], options: LayoutOptions) -> LayoutContents:
    """Pictures with the tags or the masks of the export.

    Raises:
        BadInput: the tables differ in kind or in their classes, or a cell has invalid content.
    """
    rows = {table: [(f"{table}, line {line}", cells) for line, cells in csv_rows(table, _EXPECTED)] for table in tables}
    headers = {table: tuple(lines[0][1]) if lines else () for table, lines in rows.items()}
    lowered = {tuple(name.lower() for name in header) for header in headers.values() if header}
    if lowered == {(_VALUE, _CLASS)}:
        return _semantic(root, rows, options)
    if len(lowered) != 1 or _FILE not in next(iter(lowered)):
        shown = "; ".join(f"{table}: {', '.join(header) or 'no line'}" for table, header in headers.items())
        raise BadInput(
            root, f"the columns {shown}", f"{_EXPECTED}, the same in all tables", "Export the data set again."
        )
    return _multi_label(root, rows, options)


def _multi_label(
    root: Path, tables: dict[Path, list[tuple[str, dict[str, str]]]], options: LayoutOptions
) -> LayoutContents:
    entries = []
    columns: list[str] = []
    for table, rows in tables.items():
        for where, cells in rows:
            columns = [name for name in cells if name.lower() != _FILE]
            file = next(cell for name, cell in cells.items() if name.lower() == _FILE).strip()
            check_name(file, where)
            tags = [name for name in columns if _marked(cells[name], name, where)]
            path = table.parent / file
            entries.append(
                Entry(
                    split=split_of(table.parent.name) or "train",
                    name=picture_name(path, root),
                    path=path,
                    tags=only_classes(tags, options.negatives),
                    where=where,
                )
            )
    named = {entry.path for entry in entries}
    unlisted = [
        path for table in tables for path in sorted(table.parent.iterdir()) if is_picture(path) and path not in named
    ]
    notes = (
        [f"{len(unlisted)} pictures left out, since {_TABLE} does not name them ({unlisted[0]} first)"]
        if unlisted
        else []
    )
    classes = options.class_names or only_classes(columns, options.negatives)
    return LayoutContents("roboflow", entries, classes, notes, tags_by_picture=True)


def _marked(cell: str, column: str, where: str) -> bool:
    word = cell.strip()
    if word not in ("0", "1"):
        raise BadInput(where, f"{cell!r:.40} in the column {column!r}", "0 or 1", "Export the data set again.")
    return word == "1"


def _semantic(
    root: Path, tables: dict[Path, list[tuple[str, dict[str, str]]]], options: LayoutOptions
) -> LayoutContents:
    named = {table: _values(rows) for table, rows in tables.items() if rows}
    first, values = next(iter(named.items()))
    for table, other in named.items():
        if other != values:
            raise BadInput(table, "other classes", f"those of {first}", "Use one export for all splits.")
    class_names = options.class_names or only_classes(values.values(), options.negatives)
    roles = Roles(class_names, options.negatives)
    label_of = {value: roles.label(name) for value, name in values.items()}
    for value, name in values.items():
        if label_of[value] is None:
            raise BadInput(
                first, f"the class {name!r}", f"one of {', '.join(class_names)}", "Complete the list of classes."
            )
    meaning = MaskTable.of({0: 0} | {value: label or 0 for value, label in label_of.items()}, str(first))
    found: list[tuple[str, Path, MaskFile]] = []
    for folder in (path.parent for path in named):
        files = sorted(path for path in folder.iterdir() if is_picture(path))
        file_names = {path.name for path in files}
        for path in files:
            mask = path.with_name(path.stem + _MASK_ENDING)
            if path.name.endswith(_MASK_ENDING):
                continue
            if mask.name not in file_names:
                raise BadInput(mask, "no such file", f"the mask of {path.name}", "Export the data set again.")
            found.append((split_of(folder.name) or "train", path, MaskFile(mask, meaning)))
    present = labels_in_masks([mask for _, _, mask in found])
    entries = [
        Entry(
            split,
            picture_name(path, root),
            path,
            tuple(class_names[label - 1] for label in labels),
            mask_file.where,
            mask_file,
        )
        for (split, path, mask_file), labels in zip(found, present, strict=True)
    ]
    return LayoutContents("roboflow", entries, class_names, ["tags are the classes in the masks"])


def _values(rows: list[tuple[str, dict[str, str]]]) -> dict[int, str]:
    values: dict[int, str] = {}
    for where, cells in rows:
        lowered = {name.lower(): cell.strip() for name, cell in cells.items()}
        value, name = lowered[_VALUE], lowered[_CLASS]
        if not (value.isdecimal() and len(value) < 4 and int(value) < 256) or int(value) in values or not name:
            raise BadInput(
                where, f"the value {value!r} for {name!r}", "each value 0 to 255 once, and a name", "Correct it."
            )
        values[int(value)] = name
    return values
