"""Pictures and masks of class numbers, as Ultralytics (8.4.190) reads them for its task `semantic`, and LightlyTrain.

    data.yaml                    names: {0: background, 1: cat, 2: dog}; masks_dir: masks
    images/train/NAME.jpg        masks/train/NAME.png: grey, the values are our labels, 255 is ignored

With `background ignore`, for programs that know no background: class i has the number i - 1, and the background is 255 like unsure pixels.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from wsss.arrays import UInt8
from wsss.data.files import read_mask, write_values
from wsss.data.images import IGNORE
from wsss.data.labels import MaskTable
from wsss.data.lists import files_below
from wsss.data.yolo import matching_path, read_class_names
from wsss.errors import BadInput
from wsss.formats.format import Corrected, Export, Format, Import, Item, Ours, Part, Task
from wsss.formats.options import ExportOptions, ImportOptions
from wsss.formats.yolo_seg import NOTE, PICTURES, data_file, write_data

MASKS = "masks"
Background = Literal["class", "ignore"]


@dataclasses.dataclass(frozen=True)
class SemanticOptions(ExportOptions):
    """Options of the export of class numbers."""

    background: Background = "class"
    """class: number 0, so that numbers are our labels; ignore: 255, with classes from 0"""


@dataclasses.dataclass(frozen=True)
class SemanticImportOptions(ImportOptions):
    """Options of the import of class numbers."""

    ignored: Literal["unsure", "background"] = "unsure"
    """what pixels of 255 are in our masks"""


def write(task: Task[SemanticOptions], item: Item) -> None:
    """Write the mask of a picture."""
    values = item.labels
    if task.options.background == "ignore":
        if len(task.class_names) == 1:
            found, do = "ignore, with a single class", "Leave it out."
            raise BadInput("--background", found, "class: Ultralytics takes 0 for background if there is one class", do)
        values = np.where((values == 0) | (values == IGNORE), IGNORE, values - 1).astype(np.uint8)
    write_values(task.out / matching_path(Path(PICTURES, item.file), MASKS, ".png"), values)


def finish(task: Task[SemanticOptions], parts: Iterable[Part]) -> Path:
    """Write `data.yaml`."""
    names = task.class_names if task.options.background == "ignore" else ("background", *task.class_names)
    return write_data(task.out, names, f"masks_dir: {MASKS}\n")


def read(ours: Ours, options: SemanticImportOptions) -> Iterator[Corrected]:
    """The masks in the folder that the YAML file names."""
    source = data_file(options.file)
    content, names = read_class_names(source)
    folder = source.parent / str(content.get("masks_dir") or MASKS)
    if not folder.is_dir() or source.parent.resolve() not in folder.resolve().parents:
        raise BadInput(folder, "no such folder in the data set", "masks", "Give the folder with data.yaml and masks.")
    ignored = IGNORE if options.ignored == "unsure" else 0
    table = {number: ours.label(name, str(source)) for number, name in enumerate(names)} | {IGNORE: ignored}
    for path in files_below(folder):
        if path.suffix.lower() == ".png":
            name = os.path.relpath(path, folder).replace(os.sep, "/")
            yield Corrected(name, str(path), _reading(path, MaskTable.of(table, source.name)))


def _reading(path: Path, table: MaskTable) -> Callable[[tuple[int, int]], UInt8[np.ndarray, "h w"]]:
    return lambda _: read_mask(path, table)


FORMAT = Format(
    "yolo-semantic",
    "pictures and grey masks of class numbers, for Ultralytics and LightlyTrain",
    Export(SemanticOptions, write, finish, pictures=PICTURES, ignores=True, note=NOTE),
    Import(SemanticImportOptions, read),
)
