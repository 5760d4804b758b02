"""CVAT's Segmentation mask 1.1: colour PNGs of classes and of objects, `labelmap.txt` with the colours, and a list."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from wsss.arrays import UInt8
from wsss.data.images import MOST_CLASSES
from wsss.data.labelmap import LABELMAP, check_names, write_labelmap
from wsss.data.labels import voc_palette
from wsss.formats.format import Export, Format, Import, Item, Part, Task
from wsss.formats.objects import regions
from wsss.formats.options import ImportOptions, ObjectOptions
from wsss.formats.voc import MASKS, read_label_images, write_list
from wsss.storage import whole_file

_OBJECTS = "SegmentationObject"


@dataclasses.dataclass(frozen=True)
class CvatMasksOptions(ObjectOptions):
    """Options of the export as Segmentation mask 1.1."""


def _write(task: Task[CvatMasksOptions], item: Item) -> None:
    check_names(task.class_names)
    _save(task.out / MASKS / f"{item.name}.png", item.labels)
    _save(task.out / _OBJECTS / f"{item.name}.png", _numbered(item.labels, task.options.per == "component"))


def _numbered(labels: UInt8[np.ndarray, "h w"], by_component: bool) -> UInt8[np.ndarray, "h w"]:
    """The number of each pixel's object; objects are classes if there are more components than colours."""
    found = list(regions(labels, "component")) if by_component else []
    if not found or len(found) > MOST_CLASSES:
        return labels
    numbers = np.zeros_like(labels)
    for number, one in enumerate(found, 1):
        numbers[one.filled(labels.shape)] = number
    return numbers


def _save(path: Path, labels: UInt8[np.ndarray, "h w"]) -> None:
    with whole_file(path, sync="file") as temporary:
        Image.fromarray(voc_palette()[labels]).save(temporary, format="PNG")


def _finish(task: Task[CvatMasksOptions], parts: Iterable[Part]) -> Path:
    write_labelmap(task.out / LABELMAP, task.class_names, with_void=False)
    # the name that CVAT gives the list of a task without subsets
    write_list(task.out, "default", parts)
    return task.out


FORMAT = Format(
    "cvat-masks",
    "CVAT's Segmentation mask 1.1: colour PNGs and labelmap.txt",
    Export(CvatMasksOptions, _write, _finish, pictures="JPEGImages"),
    Import(ImportOptions, read_label_images),
)
