"""COCO (Lin et al., ECCV 2014): instances in one JSON file.

    annotations/instances_train.json     categories 1..n in the order of our classes; images and annotations with ids from 1
    images/train/NAME.jpg                file_name is NAME.jpg

`segmentation` is a run-length code; with `polygons`, a list of polygons wherever pycocotools draws it back to the same pixels, which it
cannot for an object with a hole. `iscrowd` is always 0: COCOeval counts no other objects, and many loaders drop them. `area` is the number of pixels.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from wsss import __version__
from wsss.arguments import switch
from wsss.arrays import Bool, UInt8
from wsss.data.coco_files import annotation_files
from wsss.data.coco_index import DRAWN_AS_BACKGROUND, DRAWN_AS_IGNORED, Instances, read_instances
from wsss.data.coco_shapes import draw_mask
from wsss.data.images import IGNORE
from wsss.errors import BadInput
from wsss.formats.format import Corrected, Export, Format, Import, Item, Ours, Part, Task
from wsss.formats.objects import Region, outlines, regions, signed_area
from wsss.formats.options import ImportOptions, ObjectOptions
from wsss.storage import whole_file

ANNOTATIONS = "annotations/instances_train.json"


@dataclasses.dataclass(frozen=True)
class COCOOptions(ObjectOptions):
    """Options of the COCO export."""

    polygons: bool = switch()
    """write polygons in place of run-length codes where they are exact"""


def write(task: Task[COCOOptions], item: Item) -> list[dict[str, Any]]:
    """The annotations of a picture, without ids."""
    return [
        {
            "category_id": region.label,
            "segmentation": _segmentation(region, item.size_hw, task.options.polygons),
            "area": region.area,
            "bbox": list(region.box),
            "iscrowd": 0,
        }
        for region in regions(item.labels, task.options.per)
    ]


def finish(task: Task[COCOOptions], parts: Iterable[Part]) -> Path:
    """Write the file, object by object."""
    path = task.out / ANNOTATIONS
    with whole_file(path) as temporary, temporary.open("w", encoding="ascii") as stream:
        stream.write(f'{{"info": {json.dumps(info(task))},\n"licenses": [],\n"categories": ')
        write_list(
            stream, ({"id": at, "name": name, "supercategory": ""} for at, name in enumerate(task.class_names, 1))
        )
        stream.write(',\n"images": ')
        write_list(stream, map(image, parts))
        stream.write(',\n"annotations": ')
        write_list(stream, _numbered(parts))
        stream.write("}\n")
    return path


def _numbered(parts: Iterable[Part]) -> Iterator[dict[str, Any]]:
    number = 0
    for part in parts:
        for annotation in part.content:
            number += 1  # COCOeval counts a match with id 0 as none
            yield {"id": number, "image_id": part.index + 1, **annotation}


def info(task: Task[Any]) -> dict[str, str]:
    """The section `info`, without the time, so that equal masks give equal files."""
    return {
        "description": f"masks of {task.count} pictures, {task.unsure} unsure pixels",
        "version": f"wsss {__version__}",
    }


def image(part: Part) -> dict[str, Any]:
    """The entry of a picture."""
    height, width = part.size_hw
    return {"id": part.index + 1, "file_name": part.file, "height": height, "width": width, "license": 0}


def write_list(stream: IO[str], values: Iterable[object]) -> None:
    """Write a JSON array, one value per line, without holding it in memory."""
    stream.write("[")
    for at, value in enumerate(values):
        stream.write(",\n" if at else "\n")
        json.dump(value, stream, separators=(",", ":"))
    stream.write("]")


def _segmentation(region: Region, size_hw: tuple[int, int], polygons: bool) -> object:
    from pycocotools import mask as coco_mask

    whole = region.filled(size_hw)
    if polygons:
        rings = outlines(region.inside)
        corners = [(ring + np.array([region.left, region.top])).ravel().astype(float).tolist() for ring in rings]
        if all(signed_area(ring) > 0 for ring in rings) and (_drawn(corners, size_hw) == whole).all():
            return corners
    code = coco_mask.encode(np.asfortranarray(whole, np.uint8))
    return {"size": list(size_hw), "counts": code["counts"].decode("ascii")}


def _drawn(corners: list[list[float]], size_hw: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    from pycocotools import mask as coco_mask

    drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(corners, *size_hw)))
    return np.asarray(drawn, bool)


def read(ours: Ours, options: ImportOptions) -> Iterator[Corrected]:
    """The pictures of an annotation file, drawn by the COCO API's rule, later objects over earlier ones.

    Crowds are objects: tools mark ordinary masks so.
    """
    path = _annotations(options.file)
    instances = read_instances(path)
    if (boxes := np.flatnonzero(instances.outlined == 0)).size:
        found = f"{boxes.size} objects without an outline (only a box, or an empty one)"
        raise BadInput(
            path, found, "a polygon or a run-length code for each object", "Export masks, or remove these objects."
        )
    names = list(instances.categories.values())
    label = {rank: ours.label(names[rank], str(path)) for rank in np.unique(instances.classes).tolist()}
    for position, file_name in enumerate(instances.file_names):
        height, width = instances.sizes_hw[position].tolist()
        where = f"{path}, image {instances.ids[position]}"
        objects = instances.among(position)
        yield Corrected(
            file_name, where, _drawing(instances, position, label, where), (height, width), objects.stop - objects.start
        )


def _annotations(place: Path) -> Path:
    if not place.is_dir():
        return place
    files = annotation_files(place)
    if len(files) != 1:
        found = (
            f"the annotation files {', '.join(str(file) for file in files.values())}" if files else "no annotation file"
        )
        raise BadInput(place, found, "one, such as annotations/instances_train.json", "Give the file itself.")
    return next(iter(files.values()))


def _drawing(
    instances: Instances, position: int, label: dict[int, int], where: str
) -> Callable[[tuple[int, int]], UInt8[np.ndarray, "h w"]]:
    def draw(size_hw: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
        stands_for = {0: DRAWN_AS_BACKGROUND, IGNORE: DRAWN_AS_IGNORED}
        objects = [
            (stands_for.get(label[class_], label[class_] - 1), entry) for class_, entry in instances.objects(position)
        ]
        return draw_mask(objects, size_hw, "clims", where, crowds=True)

    return draw


FORMAT = Format(
    "coco",
    "instances of COCO: one JSON file with run-length codes or polygons",
    Export(COCOOptions, write, finish, pictures="images/train"),
    Import(ImportOptions, read),
)
