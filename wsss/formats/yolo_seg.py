"""YOLO's instance segmentation: a text file of polygons for each picture, as Ultralytics reads it (8.4.190).

    data.yaml                    names: {0: cat, 1: dog}; Ultralytics counts classes from 0: our class i has the number i - 1
    images/train/NAME.jpg        labels/train/NAME.txt: a class number and the corners of a polygon, from 0 to 1

A line is one polygon. Holes, and with `per class` the parts of a class, are joined to it by bridges. Corners are the centres of border pixels:
Ultralytics, which truncates them to whole pixels and draws the border, gets the same pixels back, except for bridges between parts. There are no
unsure pixels.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from wsss.arrays import UInt8
from wsss.data.lists import files_below
from wsss.data.yolo import draw_objects, find_yolo, label_folders, matching_path, read_class_names, read_objects
from wsss.errors import BadInput
from wsss.formats.format import Corrected, Export, Format, Import, Item, Ours, Part, Task
from wsss.formats.objects import regions
from wsss.formats.options import ImportOptions, ObjectOptions
from wsss.formats.outline import joined_outline
from wsss.storage import write_text

PICTURES, DATA = "images/train", "data.yaml"
NOTE = "`val` in data.yaml names the training pictures, since no others were exported: replace it before you trust validation scores"
_DECIMALS = 6


def write(task: Task[ObjectOptions], item: Item) -> None:
    """Write the text file of a picture; it is empty without objects."""
    height, width = item.size_hw
    lines = []
    for region in regions(item.labels, task.options.per):
        pixels = joined_outline(region.inside) + np.array([region.left, region.top])
        points = (pixels + 0.5) / np.array([width, height])
        numbers = " ".join(f"{value:.{_DECIMALS}f}" for value in points.ravel().tolist())
        lines.append(f"{region.label - 1} {numbers}\n")
    write_text(task.out / matching_path(Path(PICTURES, item.file), "labels", ".txt"), "".join(lines), sync="file")


def finish(task: Task[Any], parts: Iterable[Part]) -> Path:
    """Write `data.yaml`."""
    return write_data(task.out, task.class_names)


def write_data(out: Path, names: Iterable[str], more: str = "") -> Path:
    """Write `data.yaml` with names numbered from 0; Ultralytics takes its folder for the root, as it has no `path`."""
    numbered = "".join(f"  {number}: {json.dumps(name)}\n" for number, name in enumerate(names))
    text = f"train: {PICTURES}\nval: {PICTURES}  # the same pictures: replace it by pictures to validate on\n{more}names:\n{numbered}"
    write_text(out / DATA, text)
    return out / DATA


def data_file(place: Path) -> Path:
    """The file with the names of a data set in YOLO's layout.

    Raises:
        BadInput: there is none.
    """
    source = find_yolo(place) if place.is_dir() else place
    if source is None:
        raise BadInput(place, "no data.yaml or classes.txt in it", "a data set in YOLO's layout", "Give its folder.")
    return source


def read(ours: Ours, options: ImportOptions) -> Iterator[Corrected]:
    """The pictures with a text file, drawn as by Ultralytics: large objects first.

    Raises:
        BadInput: a file has boxes in place of polygons.
    """
    source = data_file(options.file)
    _, names = read_class_names(source)
    labels: dict[int, int] = {}
    for folder in label_folders(source.parent):
        for path in files_below(folder):
            if path.suffix != ".txt":
                continue
            objects = read_objects(path, len(names))
            if any(len(points) == 2 for _, points in objects):
                raise BadInput(path, "a box in place of a polygon", "polygons", "Export the outlines of the objects.")
            for class_ in {class_ for class_, _ in objects} - labels.keys():
                labels[class_] = ours.label(names[class_], str(source))
            name = os.path.relpath(path, folder).replace(os.sep, "/").removesuffix(".txt")
            yield Corrected(name, str(path), _drawing(path, len(names), labels), objects=len(objects))


def _drawing(
    path: Path, n_classes: int, labels: dict[int, int]
) -> Callable[[tuple[int, int]], UInt8[np.ndarray, "h w"]]:
    def draw(size_hw: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
        by_number = [labels.get(class_, 0) for class_ in range(n_classes)]
        return draw_objects(read_objects(path, n_classes), by_number, size_hw)

    return draw


FORMAT = Format(
    "yolo-seg",
    "polygons of YOLO: data.yaml, pictures, and a text file for each",
    Export(ObjectOptions, write, finish, pictures=PICTURES, note=NOTE),
    Import(ImportOptions, read),
)
