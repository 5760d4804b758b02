"""The layout of PASCAL VOC 2012: palette masks, annotations with tags and boxes, lists, and `labelmap.txt` with the colours.

JPEGImages/NAME.jpg
SegmentationClass/NAME.png     indices are the labels, in VOC's colours; unsure pixels are void (255)
Annotations/NAME.xml           an object with its box for each component or class; a tag without pixels has the box of the whole picture and is
                               marked difficult
ImageSets/Segmentation/train.txt
labelmap.txt
"""

import dataclasses
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from wsss.arrays import UInt8
from wsss.data.files import write_mask
from wsss.data.images import MOST_CLASSES, MaskFile
from wsss.data.labelmap import LABELMAP, check_names, read_labelmap, write_labelmap
from wsss.data.labels import IGNORE
from wsss.data.lists import pictures_below, read_names
from wsss.data.voc import SEGMENTATION_LISTS
from wsss.errors import BadInput
from wsss.formats.format import Corrected, Export, Format, Import, Item, Ours, Part, Task
from wsss.formats.objects import regions
from wsss.formats.options import ImportOptions, ObjectOptions
from wsss.formats.xml_text import check_xml
from wsss.storage import whole_file

MASKS = "SegmentationClass"


@dataclasses.dataclass(frozen=True)
class VOCOptions(ObjectOptions):
    """Options of the export in VOC's layout."""


def _write(task: Task[VOCOptions], item: Item) -> None:
    check_names(task.class_names)
    check_xml(item.file, str(item.picture))
    write_mask(task.out / MASKS / f"{item.name}.png", item.labels)
    height, width = item.size_hw
    annotation = ElementTree.Element("annotation")
    _add(annotation, "folder", "JPEGImages")
    _add(annotation, "filename", item.file)
    size = _add(annotation, "size")
    for side, pixels in (("width", width), ("height", height), ("depth", 3)):
        _add(size, side, str(pixels))
    _add(annotation, "segmented", "1")
    found = [(one.label, one.box, False) for one in regions(item.labels, task.options.per)]
    seen = {label for label, _, _ in found}
    whole = (0, 0, width, height)
    for label, box, difficult in (*found, *((tag, whole, True) for tag in item.tags if tag not in seen)):
        entry = _add(annotation, "object")
        _add(entry, "name", task.class_names[label - 1])
        for key, text in (("pose", "Unspecified"), ("truncated", "0"), ("difficult", str(int(difficult)))):
            _add(entry, key, text)
        corners = _add(entry, "bndbox")
        left, top, across, down = box
        # VOC counts pixels from 1, and the last ones belong to the box
        for key, at in (("xmin", left + 1), ("ymin", top + 1), ("xmax", left + across), ("ymax", top + down)):
            _add(corners, key, str(at))
    ElementTree.indent(annotation)
    with whole_file(task.out / "Annotations" / f"{item.name}.xml", sync="file") as temporary:
        temporary.write_bytes(ElementTree.tostring(annotation, encoding="utf-8") + b"\n")


def _add(parent: ElementTree.Element, tag: str, text: str | None = None) -> ElementTree.Element:
    child = ElementTree.SubElement(parent, tag)
    child.text = text
    return child


def _finish(task: Task[VOCOptions], parts: Iterable[Part]) -> Path:
    write_labelmap(task.out / LABELMAP, task.class_names, with_void=task.unsure == "ignore")
    write_list(task.out, Path(task.options.split or "train").stem, parts)
    return task.out


def write_list(out: Path, split: str, parts: Iterable[Part]) -> None:
    """Write the list of the pictures."""
    with (
        whole_file(out / SEGMENTATION_LISTS / f"{split}.txt") as temporary,
        temporary.open("w", encoding="utf-8", newline="\n") as stream,
    ):
        stream.writelines(f"{part.name}\n" for part in parts)


def read_label_images(ours: Ours, options: ImportOptions) -> Iterator[Corrected]:
    """The masks in `SegmentationClass`; a picture in a list that has none there has no object, as Datumaro and CVAT write it.

    Raises:
        BadInput: there is no label map or no mask, or a list is broken.
    """
    root = options.file
    folder, labelmap = root / MASKS, root / LABELMAP
    if not folder.is_dir():
        raise BadInput(
            root,
            f"no folder {MASKS}",
            f"a folder with {LABELMAP} and {MASKS}",
            "Unpack the archive, and give its folder.",
        )
    class_names, table = read_labelmap(labelmap)
    if len(class_names) > MOST_CLASSES:
        raise BadInput(
            labelmap, f"{len(class_names)} classes", f"at most {MOST_CLASSES}", "Remove those without pixels."
        )
    masks = pictures_below(folder, (".png",))
    yield from (
        Corrected(f"{name}.png", str(path), partial(_draw, ours, MaskFile(path, table), class_names))
        for name, path in masks.items()
    )
    known = {**dict.fromkeys(ours.names, folder), **masks}
    for path in sorted((root / SEGMENTATION_LISTS).glob("*.txt")):
        for name in read_names(path, known):
            if name not in masks:
                masks[name] = path
                yield Corrected(f"{name}.png", f"{path}, {name}", partial(np.zeros, dtype=np.uint8), objects=0)


def _draw(ours: Ours, file: MaskFile, class_names: Sequence[str], size_hw: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    mask = file.read()
    table = np.arange(256, dtype=np.uint8)
    for label in np.unique(mask[(mask > 0) & (mask < IGNORE)]).tolist():
        table[label] = ours.label(class_names[label - 1], file.where)
    return table[mask]


FORMAT = Format(
    "voc",
    "the layout of PASCAL VOC: palette masks, annotations with tags and boxes, lists",
    Export(VOCOptions, _write, _finish, pictures="JPEGImages", ignores=True),
    Import(ImportOptions, read_label_images),
)
