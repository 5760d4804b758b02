"""Hugging Face's imagefolder: pictures with `metadata.csv` or `metadata.jsonl`, one for all splits or one in each split's folder.

    metadata.jsonl          {"file_name": "train/1.jpg", "tags": ["cat", "dog"], "mask_file_name": "masks/1.png"}
    train/metadata.csv      file_name,label

Paths are relative to the folder of the metadata. True masks are in the column whose name ends in `_file_name`.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from wsss.data.entries import Entry, LayoutContents, LayoutOptions, picture_name, split_of
from wsss.data.images import MaskFile
from wsss.data.lists import files_below, is_picture
from wsss.data.names import check_name
from wsss.data.roles import only_classes
from wsss.data.rows import csv_rows, json_rows, tags_in
from wsss.errors import BadInput, is_regular

_NAMES = ("metadata.csv", "metadata.jsonl")
_EXPECTED = "a table with the columns file_name and tags"
_TAG_COLUMNS = ("tags", "labels", "label")
_FILE, _MASK = "file_name", "_file_name"


def find_imagefolder(root: Path) -> list[Path]:
    """The tables of metadata in a folder and in its folders of splits.

    Raises:
        BadInput: one folder has two, or there is one for all splits and one of a split.
    """
    folders = [root, *(path for path in sorted(root.iterdir()) if path.is_dir() and split_of(path.name))]
    found = [folder / name for folder in folders for name in _NAMES if is_regular(folder / name)]
    parents = [path.parent for path in found]
    if len(set(parents)) < len(parents) or (root in parents and len(parents) > 1):
        raise BadInput(
            root,
            f"the tables {' and '.join(os.path.relpath(path, root) for path in found)}",
            "one per folder",
            "Keep one.",
        )
    return found


def read_imagefolder(root: Path, tables: list[Path], options: LayoutOptions) -> LayoutContents:
    """Pictures, tags and masks from the metadata.

    Raises:
        BadInput: a table lacks a column, or a cell is neither a path below the folder nor tags.
    """
    entries: list[Entry] = []
    notes: list[str] = []
    for table in tables:
        expected_rows = csv_rows(table, _EXPECTED) if table.suffix == ".csv" else json_rows(table, _EXPECTED)
        rows = [(f"{table}, line {line}", cells) for line, cells in expected_rows]
        if not rows:
            raise BadInput(table, "no line with a picture", _EXPECTED, "Fill it.")
        columns = list(dict.fromkeys(column for _, cells in rows for column in cells))
        tags, mask = _tag_column(table, columns, options.tag_column), _mask_column(table, columns)
        for where, cells in rows:
            path = _path(table.parent, cells.get(_FILE), where)
            mask_cell = cells.get(mask) if mask else None
            named = tags_in(cells.get(tags) or [], where)
            split = split_of(os.path.relpath(path, root).split(os.sep)[0]) or "train"
            entries.append(
                Entry(
                    split=split,
                    name=picture_name(path, root),
                    path=path,
                    tags=only_classes(named, options.negatives),
                    where=where,
                    mask=MaskFile(_path(table.parent, mask_cell, where)) if mask_cell else None,
                )
            )
    if any(entry.mask for entry in entries) and options.class_names is None:
        order = sorted({tag for entry in entries for tag in entry.tags})
        numbered = ", ".join(f"{label} {name}" for label, name in enumerate(order, 1))
        notes.append(
            f"labels in masks are assumed to be in the order of the sorted tags ({numbered}); --classes gives another"
        )
    notes += _unlisted(root, tables, entries)
    return LayoutContents("imagefolder", entries, options.class_names, notes, tags_by_picture=True)


def _tag_column(table: Path, columns: Iterable[str], requested: str | None) -> str:
    names = (requested,) if requested else _TAG_COLUMNS
    found = [column for column in columns if column in names]
    if _FILE not in columns or len(found) != 1:
        raise BadInput(
            table,
            f"the columns {', '.join(columns)}",
            f"file_name and one of {', '.join(names)}",
            "Name the column of the tags with --tag-column. With such a table, the names of folders are not used as tags: remove it if they "
            "are the tags.",
        )
    return found[0]


def _mask_column(table: Path, columns: Iterable[str]) -> str | None:
    found = [column for column in columns if column.endswith(_MASK)]
    if len(found) > 1:
        found = [column for column in found if "mask" in column] or found
    if len(found) > 1:
        raise BadInput(table, f"the columns {', '.join(found)}", "one of masks", "Remove or rename the others.")
    return found[0] if found else None


def _path(folder: Path, cell: object, where: str) -> Path:
    if not isinstance(cell, str) or not cell.strip():
        raise BadInput(where, f"{cell!r:.60} as a file's name", "a path below the table's folder", "Correct the line.")
    check_name(cell.strip(), where)
    return folder / cell.strip()


def _unlisted(root: Path, tables: list[Path], entries: list[Entry]) -> list[str]:
    named = {entry.path for entry in entries} | {
        entry.mask.path for entry in entries if isinstance(entry.mask, MaskFile)
    }
    unlisted = [
        path for table in tables for path in files_below(table.parent) if is_picture(path) and path not in named
    ]
    if not unlisted:
        return []
    return [f"{len(unlisted)} pictures left out, since the metadata does not name them ({unlisted[0]} first)"]
