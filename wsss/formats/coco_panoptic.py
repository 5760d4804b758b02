"""COCO's panoptic format (Kirillov et al., CVPR 2019): a PNG of segment ids for each picture, and a JSON file.

    annotations/panoptic_train.json          categories 1..n in the order of our classes, and n + 1 for the background
    annotations/panoptic_train/NAME.png      red + 256 green + 65536 blue is the id of a segment; 0 is void
    images/train/NAME.jpg

With `per component` the classes are things, with `per class` they are stuff. The background is stuff, and a segment too, since scores do not count
void pixels: void are only the pixels that are 255, with `unsure ignore`. Its category is not 0, which Datumaro (1.13.12) takes for no category.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wsss.arrays import UInt8
from wsss.data.images import IGNORE
from wsss.data.labels import voc_palette
from wsss.data.names import check_name
from wsss.data.text import is_text
from wsss.errors import BadInput, Unreadable, reading
from wsss.formats.coco import image, info, write_list
from wsss.formats.format import Corrected, Export, Format, Import, Item, Ours, Part, Task
from wsss.formats.objects import regions
from wsss.formats.options import ImportOptions, ObjectOptions
from wsss.storage import read_json, whole_file

ANNOTATIONS, SEGMENTS = "annotations/panoptic_train.json", "annotations/panoptic_train"
BACKGROUND = "background"
_EXPECTED = "panoptic annotations of COCO with images, annotations with segments_info, and categories"
_DO = "Export it again, with its folder of PNG files."


def write(task: Task[ObjectOptions], item: Item) -> list[dict[str, Any]]:
    """Write the segments of a picture, and return what is known of them."""
    ids = np.zeros(item.size_hw, np.uint32)
    segments = []
    background = item.labels == 0
    if background.any():
        rows, columns = np.flatnonzero(background.any(1)).tolist(), np.flatnonzero(background.any(0)).tolist()
        box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
        ids[background] = 1
        segments.append(_segment(1, len(task.class_names) + 1, int(background.sum()), box))
    for number, region in enumerate(regions(item.labels, task.options.per), 2):
        x, y, width, height = region.box
        ids[y : y + height, x : x + width][region.inside] = number
        segments.append(_segment(number, region.label, region.area, list(region.box)))
    colours = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], 2).astype(np.uint8)
    with whole_file(task.out / SEGMENTS / f"{item.name}.png", sync="file") as temporary:
        Image.fromarray(colours).save(temporary, format="PNG")
    return segments


def _segment(number: int, category: int, area: int, box: list[int]) -> dict[str, Any]:
    return {"id": number, "category_id": category, "area": area, "bbox": box, "iscrowd": 0}


def finish(task: Task[ObjectOptions], parts: Iterable[Part]) -> Path:
    """Write the JSON file, picture by picture."""
    path, things = task.out / ANNOTATIONS, int(task.options.per == "component")
    names = (*task.class_names, BACKGROUND)
    with whole_file(path) as temporary, temporary.open("w", encoding="ascii") as stream:
        stream.write(f'{{"info": {json.dumps(info(task))},\n"licenses": [],\n"categories": ')
        write_list(
            stream,
            (_category(at, name, things if at <= len(task.class_names) else 0) for at, name in enumerate(names, 1)),
        )
        stream.write(',\n"images": ')
        write_list(stream, map(image, parts))
        stream.write(',\n"annotations": ')
        write_list(
            stream,
            (
                {"image_id": part.index + 1, "file_name": f"{part.name}.png", "segments_info": part.content}
                for part in parts
            ),
        )
        stream.write("}\n")
    return path


def _category(number: int, name: str, is_thing: int) -> dict[str, Any]:
    colour = voc_palette()[number].tolist()
    return {"id": number, "name": name, "supercategory": "", "isthing": is_thing, "color": colour}


def read(ours: Ours, options: ImportOptions) -> Iterator[Corrected]:
    """The pictures of a panoptic file. Void pixels are unsure if there is a category for the background, and otherwise the background."""
    path, folder = _place(options.file)
    content = read_json(path, _EXPECTED)
    with reading(path, _EXPECTED, _DO):
        names = {_number(each["id"]): str(each["name"]).strip() for each in content["categories"]}
        images = {_number(each["id"]): each for each in content["images"]}
        annotations = content["annotations"]
    used = {_number(each["category_id"]) for one in annotations for each in one["segments_info"]}
    if unknown := used - names.keys():
        raise BadInput(path, f"the category id {min(unknown)}", "one of its categories", _DO)
    label = {number: ours.label(names[number], str(path)) for number in sorted(used)}
    has_background = any(ours.renamed.get(name, name) in ("", BACKGROUND) for name in names.values())
    for one in annotations:
        with reading(path, _EXPECTED, _DO):
            picture, file = images[_number(one["image_id"])], one["file_name"]
            if not is_text(picture["file_name"]) or not is_text(file):
                raise Unreadable("a file_name that is no text")
            segments = {_number(each["id"]): label[_number(each["category_id"])] for each in one["segments_info"]}
            size_hw = (_number(picture["height"]), _number(picture["width"]))
        check_name(file, path)
        segments.setdefault(0, IGNORE if has_background else 0)
        png = folder / file
        yield Corrected(picture["file_name"], str(png), _reading(png, segments), size_hw, len(one["segments_info"]))


def _number(value: object) -> int:
    if type(value) is not int:
        raise Unreadable(f"{value!r:.40} in place of a whole number")
    return value


def _place(given: Path) -> tuple[Path, Path]:
    """The JSON file, and the folder of the PNG files: the one with its name."""
    files = sorted([*given.glob("annotations/panoptic_*.json"), *given.glob("*.json")]) if given.is_dir() else [given]
    files = [path for path in files if path.with_suffix("").is_dir()] if given.is_dir() else files
    if len(files) != 1:
        found = ", ".join(map(str, files)) if files else "no JSON file with a folder of its name"
        raise BadInput(
            given, found, "annotations/panoptic_NAME.json and the folder annotations/panoptic_NAME", "Give the file."
        )
    folder = files[0].with_suffix("")
    if not folder.is_dir():
        raise BadInput(folder, "no such folder", f"the PNG files of {files[0]}", _DO)
    return files[0], folder


def _reading(png: Path, segments: Mapping[int, int]) -> Callable[[tuple[int, int]], UInt8[np.ndarray, "h w"]]:
    def draw(_: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
        with reading(png, "an RGB PNG of segment ids", _DO), Image.open(png, formats=["PNG"]) as picture:
            if picture.mode not in ("RGB", "RGBA"):
                raise Unreadable(f"a picture of mode {picture.mode}")
            colours = np.asarray(picture.convert("RGB"), np.uint32)
        ids = colours[..., 0] | colours[..., 1] << 8 | colours[..., 2] << 16
        found, where = np.unique(ids, return_inverse=True)
        if unknown := [number for number in found.tolist() if number not in segments]:
            raise BadInput(png, f"the segment id {unknown[0]}", "an id of its segments_info", _DO)
        return np.array([segments[number] for number in found.tolist()], np.uint8)[where].reshape(ids.shape)

    return draw


FORMAT = Format(
    "coco-panoptic",
    "panoptic segments of COCO: a PNG for each picture and one JSON file",
    Export(ObjectOptions, write, finish, pictures="images/train", ignores=True),
    Import(ImportOptions, read),
)
