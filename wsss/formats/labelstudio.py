"""Label Studio: `tasks.json` with pre-annotations as brush strokes, `config.xml` for the labelling interface, and the pictures in `images/`.

Exports of Label Studio are read as JSON or JSON-MIN. The annotation of a task counts, and not its predictions, which nobody has looked at.
Regions are drawn in their order, later ones over earlier ones; polygons as the COCO API draws those of Label Studio's COCO export.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np

from wsss.arrays import Bool, UInt8
from wsss.data.brush import pack_brush, unpack_brush
from wsss.data.coco_shapes import MOST_PIXELS, coco_inside
from wsss.data.json_list import json_list
from wsss.data.label_studio import UPLOADED, location
from wsss.data.labels import web_colours
from wsss.data.lists import is_picture, without_suffix
from wsss.errors import BadInput, Unreadable, reading
from wsss.formats.files import only_file
from wsss.formats.format import Corrected, Export, Format, Import, Item, Ours, Part, Task
from wsss.formats.objects import regions
from wsss.formats.options import ImportOptions, ObjectOptions
from wsss.formats.xml_text import check_xml
from wsss.storage import whole_file

_TASKS, _CONFIG, _PICTURES = "tasks.json", "config.xml", "images"
_CONTROL, _IMAGE = "label", "image"
_EXPECTED = "an export of Label Studio with brush strokes or polygons (JSON or JSON-MIN)"
_DO = "Export the project from Label Studio again as JSON."
# Keys of the labels of regions
_LABEL_KEYS = (
    "brushlabels", "polygonlabels", "labels", "rectanglelabels", "ellipselabels", "keypointlabels", "bitmasklabels", "vectorlabels",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class LabelStudioOptions(ObjectOptions):
    """Options of the export for Label Studio."""

    per: Literal["component", "class"] = "class"
    """what a region is: all pixels of a class in a picture, or each connected component"""
    url: str | None = None
    """where Label Studio finds the folder of the pictures; by default its local files: /data/local-files/?d=OUT/images, with the folder above OUT
    as LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT"""


def _write(task: Task[LabelStudioOptions], item: Item) -> dict[str, Any]:
    """The task of the picture."""
    for name in task.class_names:
        check_xml(name, "classes")
    height, width = item.size_hw
    regions_of_item = [
        {
            "id": f"{item.index}-{number}",
            "from_name": _CONTROL,
            "to_name": _IMAGE,
            "type": "brushlabels",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {
                "format": "rle",
                "rle": pack_brush(one.filled(item.size_hw)),
                "brushlabels": [task.class_names[one.label - 1]],
            },
        }
        for number, one in enumerate(regions(item.labels, task.options.per), 1)
    ]
    folder = task.options.url
    if folder is None:
        folder = f"/data/local-files/?d={quote(task.out.resolve().name)}/{_PICTURES}"
    data = {_IMAGE: f"{folder.rstrip('/')}/{quote(item.file)}"}
    return {"data": data, "predictions": [{"model_version": "wsss", "result": regions_of_item}]}


def _finish(task: Task[LabelStudioOptions], parts: Iterable[Part]) -> Path:
    colours = web_colours(len(task.class_names))
    labels = "".join(
        f'    <Label value={quoteattr(name)} background="{colour}"/>\n'
        for name, colour in zip(task.class_names, colours, strict=True)
    )
    with whole_file(task.out / _CONFIG) as temporary:
        temporary.write_text(
            f'<View>\n  <Image name="{_IMAGE}" value="${_IMAGE}" zoom="true"/>\n'
            f'  <BrushLabels name="{_CONTROL}" toName="{_IMAGE}">\n{labels}  </BrushLabels>\n</View>\n',
            encoding="utf-8",
        )
    with whole_file(task.out / _TASKS) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write("[")
        for part in parts:
            stream.write(",\n" if part.index else "\n")
            stream.write(json.dumps(part.content, ensure_ascii=False, separators=(",", ":")))
        stream.write("\n]\n")
    return task.out / _TASKS


@dataclasses.dataclass(frozen=True, eq=False)
class _Region:
    """A region of an annotation: a brush stroke, or a polygon with its corners in percent of the picture's sides."""

    label: str
    packed: UInt8[np.ndarray, " n"] | None
    corners: tuple[tuple[float, float], ...]

    def inside(self, size_hw: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
        if self.packed is not None:
            return unpack_brush(self.packed, size_hw)
        height, width = size_hw
        return coco_inside([[side for x, y in self.corners for side in (x * width / 100, y * height / 100)]], size_hw)


def _read(ours: Ours, options: ImportOptions) -> Iterator[Corrected]:
    path = only_file(options.file, ".json")
    names = {name.rpartition("/")[2] for name in ours.names}
    answered = total = 0
    for total, task in enumerate(json_list(path, _EXPECTED, _DO), 1):
        where = f"{path}, task {total}"
        results = _results(task, where)
        if results is None:
            continue
        answered += 1
        found, size_hw = _regions(results, where)
        labels = {region.label: ours.label(region.label, where) for region in found}
        draw = partial(_draw, found, labels, where)
        yield Corrected(_picture(task, names, where), where, draw, size_hw, len(found))
    if total and not answered:
        do = "Correct tasks in Label Studio, submit them, and export the project as JSON."
        raise BadInput(path, f"{total} tasks, none of which has an annotation", "submitted annotations", do)


def _draw(
    found: Sequence[_Region], labels: Mapping[str, int], where: str, size_hw: tuple[int, int]
) -> UInt8[np.ndarray, "h w"]:
    mask = np.zeros(size_hw, np.uint8)
    for region in found:
        with reading(f"{where}, a region of {region.label!r}", "a brush stroke or polygon on the picture", _DO):
            mask[region.inside(size_hw)] = labels[region.label]
    return mask


def _results(task: object, where: str) -> list[Any] | None:
    """The regions and choices of a task's annotation; None if it has no annotation."""
    if isinstance(task, dict) and isinstance(task.get("annotations"), list):
        answers = [one for one in task["annotations"] if isinstance(one, dict) and not one.get("was_cancelled")]
        if len(answers) > 1:
            do = "Keep the one that counts, and export again."
            raise BadInput(where, f"{len(answers)} annotations", "one annotation per task", do)
        results = answers[0].get("result") if answers else []
        if isinstance(results, list):
            return results if answers else None
    elif isinstance(task, dict) and "annotation_id" in task:
        return [one for values in task.values() if isinstance(values, list) for one in values]
    elif isinstance(task, dict) and "data" in task:
        return None
    raise BadInput(where, "other content", _EXPECTED, _DO)


def _regions(results: Sequence[Any], where: str) -> tuple[tuple[_Region, ...], tuple[int, int] | None]:
    """The regions of an annotation, and height and width of its picture; None without regions.

    Raises:
        BadInput: a region outlines nothing, has no label or several, or belongs to a rotated picture.
    """
    sizes: set[tuple[int, int]] = set()
    found: list[_Region] = []
    # with separate tags for tool and label, a stroke occurs twice, once without its label
    labelled = {one.get("id") for one in results if isinstance(one, dict) and _label_key(one)}
    for number, one in enumerate(results, 1):
        if not isinstance(one, dict):
            continue
        place, value = f"{where}, result {number}", one.get("value", one)
        key = _label_key(one)
        is_stroke = isinstance(value, dict) and "rle" in value
        if key is None:
            if is_stroke and one.get("id") not in labelled:
                raise BadInput(place, "a brush stroke without a label", "a label for each region", "Label it.")
            continue
        names = value[key]
        if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
            raise BadInput(place, f"the labels {names!r:.60}", "one label for each region", "Choose one.")
        if not is_stroke and not (key != "labels" and "points" in value):
            found_text = f"a region with {key} and the label {names[0]!r}"
            do = "Outline the object with the brush or a polygon in Label Studio, or remove the region."
            raise BadInput(place, found_text, "brush strokes and polygons, which outline objects", do)
        with reading(place, "original_height, original_width and rle or points", _DO):
            size_hw = one["original_height"], one["original_width"]
            if not all(type(side) is int and side > 0 for side in size_hw) or math.prod(size_hw) > MOST_PIXELS:
                raise Unreadable(f"a picture of {size_hw[0]!r:.20} x {size_hw[1]!r:.20} pixels")
            if one.get("image_rotation"):
                raise Unreadable(f"a picture that is rotated by {one['image_rotation']!r:.20} degrees")
            sizes.add(size_hw)
            if is_stroke:
                found.append(_Region(names[0], np.array(_bytes(value["rle"]), np.uint8), ()))
            else:
                found.append(_Region(names[0], None, tuple((float(x), float(y)) for x, y in value["points"])))
    if len(sizes) > 1:
        raise BadInput(where, "regions for pictures of several sizes", "one size", _DO)
    return tuple(found), sizes.pop() if sizes else None


def _bytes(values: Any) -> list[int]:
    if not isinstance(values, list) or not all(type(value) is int and 0 <= value < 256 for value in values):
        raise Unreadable("a brush stroke with something else than bytes")
    return values


def _label_key(result: Mapping[str, Any]) -> str | None:
    """The key of a region's labels; None for other results, such as choices."""
    value = result.get("value", result)
    return next((key for key in _LABEL_KEYS if isinstance(value, dict) and key in value), None)


def _picture(task: Mapping[str, Any], names: Set[str], where: str) -> str:
    """The path of a task's picture, without the digits that uploads get."""
    data = task["data"] if isinstance(task.get("data"), dict) else task
    paths = [location(value) for value in data.values() if isinstance(value, str) and is_picture(Path(location(value)))]
    if len(paths) != 1:
        raise BadInput(where, f"{len(paths)} pictures", "one picture per task", _DO)
    folder, slash, last = paths[0].rpartition("/")
    uploaded = UPLOADED.fullmatch(last)
    if uploaded and without_suffix(last) not in names:
        last = uploaded[1]
    return folder + slash + last


FORMAT = Format(
    "labelstudio",
    "Label Studio's tasks with brush strokes, and its labelling interface",
    Export(LabelStudioOptions, _write, _finish, pictures=_PICTURES),
    Import(ImportOptions, _read),
)
