"""labelme: a JSON file next to each picture, with masks or polygons; and `labels.txt`.

Later shapes lie over earlier ones. Masks are one shape each, and are exact. Polygons are exact too: those of `wsss.ops.painting`, in its order, as
labelme rasterises them; holes are polygons of `_background_`. Unsure pixels are shapes of `__ignore__`.
"""

import base64
import dataclasses
import io
import json
import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from wsss.arrays import Bool, UInt8
from wsss.data.labelme import LabelmeFile, draw_shapes, json_files, read_labelme_file
from wsss.data.labels import IGNORE
from wsss.data.lists import EXPORT_RECORD
from wsss.data.roles import IGNORED
from wsss.errors import BadInput
from wsss.formats.format import Corrected, Export, Format, Import, Item, Ours, Part, Task
from wsss.formats.objects import regions
from wsss.formats.options import ImportOptions, ObjectOptions
from wsss.ops.painting import polygons
from wsss.storage import whole_file

# The version whose rules `wsss.data.labelme` follows
_VERSION = "6.3.1"
_BACKGROUND = "_background_"
_LABELS = "labels.txt"
# Shapes that outline no object: labelme draws boxes as full and lines 10 pixels wide
_NO_OUTLINE = ("rectangle", "oriented_rectangle", "line", "linestrip", "point")


@dataclasses.dataclass(frozen=True)
class LabelmeOptions(ObjectOptions):
    """Options of the export for labelme."""

    shapes: Literal["mask", "polygon"] = "mask"
    """masks, or polygons that labelme draws as the same masks; polygons outline components, whatever --per says"""


def _write(task: Task[LabelmeOptions], item: Item) -> None:
    names = (_BACKGROUND, *task.class_names)
    shapes: list[dict[str, Any]] = []
    if task.options.shapes == "polygon":
        for polygon in polygons(item.labels):
            name = IGNORED if polygon.label == IGNORE else names[polygon.label]
            shapes.append(_shape(name, "polygon", polygon.points.tolist()))
    else:
        found = [(names[one.label], one) for one in regions(item.labels, task.options.per)]
        unsure = (item.labels == IGNORE).astype(np.uint8)
        for name, one in (*found, *((IGNORED, one) for one in regions(unsure, task.options.per))):
            left, top, width, height = one.box
            corners = [[left, top], [left + width - 1, top + height - 1]]
            shapes.append(_shape(name, "mask", corners, _packed(one.inside)))
    place = task.out / f"{item.name}.json"
    if place.relative_to(task.out) == Path(EXPORT_RECORD):
        raise BadInput(
            item.picture, "a picture whose file for labelme would be that of the record", "another name", "Rename it."
        )
    copied = task.options.copy_pictures != "none"
    picture = os.path.basename(item.file) if copied else os.path.relpath(item.picture.resolve(), place.parent.resolve())
    content: dict[str, Any] = {
        "version": _VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": picture.replace(os.sep, "/"),
        "imageData": None,
        "imageHeight": item.size_hw[0],
        "imageWidth": item.size_hw[1],
    }
    with whole_file(place, sync="file") as temporary:
        temporary.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def _shape(label: str, kind: str, points: list[list[int]], mask: str | None = None) -> dict[str, Any]:
    return {
        "label": label,
        "points": points,
        "group_id": None,
        "description": "",
        "shape_type": kind,
        "flags": {},
        "mask": mask,
    }


def _packed(inside: Bool[np.ndarray, "h w"]) -> str:
    stream = io.BytesIO()
    Image.fromarray(inside.astype(np.uint8) * np.uint8(255)).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def _finish(task: Task[LabelmeOptions], parts: Iterable[Part]) -> Path:
    with whole_file(task.out / _LABELS) as temporary:
        lines = (IGNORED, _BACKGROUND, *task.class_names)
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return task.out


def _read(ours: Ours, options: ImportOptions) -> Iterator[Corrected]:
    root = options.file
    files = json_files(root) if root.is_dir() else [root]
    if not files:
        raise BadInput(root, "no JSON file", "the folder with the files that labelme saved", "Check the path.")
    for path in files:
        drawing = read_labelme_file(path)
        _check_shapes(path, drawing)
        labels = {name: _label(ours, name, path) for name in {shape[0] for shape in drawing.shapes}}
        picture = os.path.normpath(path.parent / drawing.picture.replace("\\", "/"))
        yield Corrected(picture, str(path), partial(_draw, path, labels), drawing.size_hw, len(drawing.shapes))


def _label(ours: Ours, name: str, path: Path) -> int:
    return IGNORE if name == IGNORED and name not in ours.renamed else ours.label(name, str(path))


def _check_shapes(path: Path, drawing: LabelmeFile) -> None:
    odd = [(label, kind) for label, kind, _, _ in drawing.shapes if kind in _NO_OUTLINE]
    if odd:
        label, kind = odd[0]
        raise BadInput(
            path,
            f"a {kind} with the label {label!r}" + (f" (and {len(odd) - 1} more such shapes)" if odd[1:] else ""),
            "polygons, masks and circles, which outline objects",
            "Outline the object in labelme, or remove the shape.",
        )


def _draw(path: Path, labels: dict[str, int], size_hw: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    return draw_shapes(read_labelme_file(path), labels.__getitem__, str(path))


FORMAT = Format(
    "labelme",
    "labelme's JSON files, masks or polygons",
    Export(LabelmeOptions, _write, _finish, pictures="", ignores=True),
    Import(ImportOptions, _read),
)
