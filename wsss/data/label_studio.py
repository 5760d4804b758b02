"""Choices of Label Studio: exports as JSON-MIN or CSV, with the pictures anywhere below the folder.

    project-1.json     [{"image": "/data/upload/1/0f3b9c4d-1.jpg", "choice": {"choices": ["cat", "dog"]}, "annotation_id": 3, ...}]
    project-1.csv      image,id,choice,annotator,annotation_id,...

The names of uploaded pictures begin with eight random hexadecimal digits; pictures are found with or without them.
"""

import json
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from wsss.data.entries import Entry, LayoutContents, LayoutOptions, picture_name, split_of
from wsss.data.lists import files_below, is_picture
from wsss.data.names import check_name
from wsss.data.roles import only_classes
from wsss.data.rows import csv_rows, tags_in
from wsss.errors import BadInput, is_regular, reading

_EXPECTED = "an export of Label Studio with choices (JSON-MIN or CSV)"
_DO = "Export the project again as JSON-MIN or CSV."
# Columns of exports in addition to the data of the tasks and the answers
_MARKS = frozenset(("annotation_id", "annotator", "lead_time"))
_OTHERS = _MARKS | {"id", "created_at", "updated_at", "agreement", "predictions", "total_annotations"}
UPLOADED = re.compile(r"[0-9a-f]{8}-(.+)")


# place, tags and URL
_Answer = tuple[str, tuple[str, ...], str]


def find_label_studio(root: Path) -> list[Path]:
    """The exports in a folder."""
    return [
        path
        for path in sorted(root.iterdir())
        if path.suffix.lower() in (".json", ".csv") and is_regular(path) and _is_export(path)
    ]


def _is_export(path: Path) -> bool:
    with path.open("rb") as stream:
        head = stream.read(1 << 16)
    if path.suffix.lower() == ".csv":
        columns = head.split(b"\n", 1)[0].decode("utf-8", "replace").replace('"', "").strip().split(",")
        return {column.strip() for column in columns} >= _MARKS
    return head.lstrip(b"\xef\xbb\xbf \r\n\t")[:1] == b"[" and (b'"annotation_id"' in head or b'"annotations"' in head)


def read_label_studio(root: Path, files: list[Path], options: LayoutOptions) -> LayoutContents:
    """Pictures with the choices of the annotators; pictures without an answer are left out.

    Raises:
        BadInput: there are several exports, one is broken or has no choices, or two annotators disagree.
    """
    if len(files) > 1:
        raise BadInput(
            root, f"the exports {', '.join(path.name for path in files)}", "one", "Keep one, or name it as --data."
        )
    source = files[0]
    tasks = _tasks(source)
    image, choice = _columns(source, [cells for _, cells in tasks], options.tag_column)
    pictures = _by_name(root)
    answers, missing, unanswered = _answers(root, tasks, image, choice, pictures, options)
    notes = [f"{unanswered} tasks without an answer left out"] if unanswered else []
    if missing and (not answers or not options.skip_missing):
        raise BadInput(
            missing[0][0],
            f"{missing[0][1]!r}, for which there is no picture below {root}"
            + (f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""),
            "the pictures of the project below the folder of the export, with their names",
            "Copy them there, or leave them out with --skip-bad.",
        )
    notes += (
        [f"{len(missing)} tasks left out, since their pictures are missing ({missing[0][1]} first)"] if missing else []
    )
    entries = [
        Entry(
            split_of(os.path.relpath(path, root).split(os.sep)[0]) or "train",
            picture_name(path, root),
            path,
            tags,
            where,
        )
        for path, (where, tags, _) in answers.items()
    ]
    unlisted = {path for paths in pictures.values() for path in paths} - answers.keys()
    notes += (
        [f"{len(unlisted)} pictures left out, since {source.name} has no answer for them ({min(unlisted)} first)"]
        if unlisted
        else []
    )
    return LayoutContents("label_studio", entries, options.class_names, notes, tags_by_picture=True)


def _answers(
    root: Path,
    tasks: Sequence[tuple[str, Mapping[str, object]]],
    image: str,
    choice: str,
    pictures: Mapping[str, Sequence[Path]],
    options: LayoutOptions,
) -> tuple[dict[Path, _Answer], list[tuple[str, str]], int]:
    """The answers by picture; the places and URLs of pictures that are missing; and the number of tasks without an answer."""
    answers: dict[Path, _Answer] = {}
    missing: list[tuple[str, str]] = []
    unanswered = 0
    for where, cells in tasks:
        tags = only_classes(_choices(cells.get(choice), where), options.negatives)
        if cells.get(choice) in (None, "", []):
            unanswered += 1
            continue
        path = _picture(root, str(cells[image]), pictures, where)
        if path is None:
            missing.append((where, str(cells[image])))
            continue
        first = answers.setdefault(path, (where, tags, str(cells[image])))
        if first[2] != cells[image]:
            raise BadInput(
                where,
                f"one picture ({path}) for {cells[image]!r} and for {first[2]!r}",
                "a picture for each",
                "Keep the names under which Label Studio stores the pictures.",
            )
        if first[1] != tags:
            raise BadInput(
                where,
                f"other choices for {path.name} ({', '.join(tags) or 'none'}) than in {first[0]} ({', '.join(first[1]) or 'none'})",
                "one answer per picture",
                "Decide in Label Studio which annotation counts, and export again.",
            )
    return answers, missing, unanswered


def _tasks(source: Path) -> list[tuple[str, Mapping[str, object]]]:
    if source.suffix.lower() == ".csv":
        return [(f"{source}, line {line}", cells) for line, cells in csv_rows(source, _EXPECTED)]
    with reading(source, _EXPECTED, _DO):
        content = json.loads(source.read_bytes())
    if not isinstance(content, list) or not content or not all(isinstance(task, dict) for task in content):
        raise BadInput(source, "other content", _EXPECTED, _DO)
    if any("annotations" in task and "data" in task for task in content):
        raise BadInput(
            source, "Label Studio's full JSON", _EXPECTED, "Export the project as JSON-MIN, or as COCO for shapes."
        )
    return [(f"{source}, task {number}", task) for number, task in enumerate(content, 1)]


def _columns(source: Path, tasks: Sequence[Mapping[str, object]], requested: str | None) -> tuple[str, str]:
    """The columns of the picture and of the choices."""
    columns = list(dict.fromkeys(column for cells in tasks for column in cells if column not in _OTHERS))
    images = [column for column in columns if all(_is_picture_name(cells.get(column)) for cells in tasks)]
    choices = [
        column for column in columns if column not in images and any(_is_choice(cells.get(column)) for cells in tasks)
    ]
    if requested is not None:
        choices = [column for column in columns if column == requested]
    if len(images) != 1 or len(choices) != 1:
        raise BadInput(
            source,
            f"the columns {', '.join(columns)}",
            "one with paths of pictures, and one with choices",
            "Name the column of the choices with --tag-column."
            if images
            else "Choose an export of a project with pictures.",
        )
    return images[0], choices[0]


def _is_picture_name(value: object) -> bool:
    return isinstance(value, str) and is_picture(Path(location(value)))


def _is_choice(value: object) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    return isinstance(value, dict) and "choices" in value


def _choices(value: object, where: str) -> tuple[str, ...]:
    if isinstance(value, str) and value.lstrip().startswith("{"):
        with reading(where, _EXPECTED, _DO):
            value = json.loads(value)
    if isinstance(value, dict):
        value = value.get("choices")
    # in JSON a single choice is a string, and several are in an object
    return tuple(dict.fromkeys(tags_in([value] if isinstance(value, str) else value or [], where)))


def location(url: str) -> str:
    """The path in the URL of a task: of an upload, of local storage (`?d=path`), or of another server."""
    parts = urlsplit(url)
    return parse_qs(parts.query).get("d", [""])[0] or unquote(parts.path)


def _by_name(root: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = defaultdict(list)
    for path in files_below(root):
        if is_picture(path):
            found[path.name].append(path)
    return found


def _picture(root: Path, url: str, pictures: Mapping[str, Sequence[Path]], where: str) -> Path | None:
    path = location(url).lstrip("/")
    check_name(path, where)
    parts = path.split("/")
    uploaded = UPLOADED.fullmatch(parts[-1])
    for name in (parts[-1], *([uploaded[1]] if uploaded else [])):
        found = pictures.get(name, ())
        if len(found) > 1:
            # the longest end of the path that only one of them has
            ends = ("/" + "/".join([*parts[at:-1], name]) for at in range(len(parts)))
            matches = [[path for path in found if path.as_posix().endswith(end)] for end in ends]
            found = next((paths for paths in matches if len(paths) == 1), [])
            if not found:
                raise BadInput(where, f"{url!r}, a name of several pictures", "one picture per name", "Rename them.")
        if found:
            return found[0]
    return None
