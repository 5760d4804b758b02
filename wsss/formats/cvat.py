"""CVAT for images 1.1: `annotations.xml` with a mask per object, the pictures in `images/`, and `labels.json` for the set-up of a task."""

import dataclasses
import json
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from wsss.arrays import UInt8
from wsss.data.cvat import CvatPicture, read_cvat, run_lengths
from wsss.data.labels import web_colours
from wsss.formats.files import only_file
from wsss.formats.format import Corrected, Export, Format, Import, Item, Ours, Part, Task
from wsss.formats.objects import regions
from wsss.formats.options import ImportOptions, ObjectOptions
from wsss.formats.xml_text import check_xml
from wsss.storage import whole_file

_XML, _LABELS = "annotations.xml", "labels.json"


@dataclasses.dataclass(frozen=True)
class CvatOptions(ObjectOptions):
    """Options of the export as CVAT for images."""


def _write(task: Task[CvatOptions], item: Item) -> list[str]:
    """The elements of the objects."""
    for name in task.class_names:
        check_xml(name, "classes")
    check_xml(item.file, str(item.picture))
    lines = []
    for one in regions(item.labels, task.options.per):
        left, top, width, height = one.box
        name, text = quoteattr(task.class_names[one.label - 1]), ", ".join(map(str, run_lengths(one.inside)))
        box = f'left="{left}" top="{top}" width="{width}" height="{height}"'
        lines.append(f'    <mask label={name} source="auto" occluded="0" rle="{text}" {box} z_order="0"></mask>\n')
    return lines


def _finish(task: Task[CvatOptions], parts: Iterable[Part]) -> Path:
    colours = web_colours(len(task.class_names))
    labels: list[dict[str, Any]] = [
        {"name": name, "color": colour, "type": "any", "attributes": []}
        for name, colour in zip(task.class_names, colours, strict=True)
    ]
    with whole_file(task.out / _LABELS) as temporary:
        temporary.write_text(json.dumps(labels, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    with whole_file(task.out / _XML) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write(
            '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n  <meta>\n    <task>\n'
        )
        stream.write(f"      <size>{task.count}</size>\n      <mode>annotation</mode>\n      <labels>\n")
        for label in labels:
            stream.write(
                f"        <label>\n          <name>{escape(label['name'])}</name>\n          <color>{label['color']}</color>\n"
                "          <type>any</type>\n          <attributes></attributes>\n        </label>\n"
            )
        stream.write("      </labels>\n    </task>\n  </meta>\n")
        for part in parts:
            height, width = part.size_hw
            stream.write(f'  <image id="{part.index}" name={quoteattr(part.file)} width="{width}" height="{height}">\n')
            stream.writelines(part.content)
            stream.write("  </image>\n")
        stream.write("</annotations>\n")
    return task.out / _XML


def _read(ours: Ours, options: ImportOptions) -> Iterator[Corrected]:
    for picture in read_cvat(only_file(options.file, ".xml")):
        labels = {shape.label: ours.label(shape.label, picture.where) for shape in picture.shapes}
        draw = partial(_draw, picture, labels)
        yield Corrected(picture.name, picture.where, draw, picture.size_hw, len(picture.shapes))


def _draw(picture: CvatPicture, labels: dict[str, int], size_hw: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    return picture.mask(labels.__getitem__)


FORMAT = Format(
    "cvat",
    "CVAT for images 1.1, masks as run lengths",
    Export(CvatOptions, _write, _finish),
    Import(ImportOptions, _read),
)
