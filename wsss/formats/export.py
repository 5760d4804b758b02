"""`wsss export masks`: what all formats share when masks are written. See `wsss.formats.format` for what a format adds."""

import dataclasses
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wsss import launch
from wsss.arrays import UInt8
from wsss.data.files import read_mask
from wsss.data.images import IGNORE, Images, check_labels
from wsss.data.lists import EXPORT_RECORD, without_suffix
from wsss.data.pictures import read_header
from wsss.digests import folder_digests
from wsss.errors import BadInput, count_of, reading
from wsss.formats.format import Format, Item, Part, Task
from wsss.formats.job import Job
from wsss.formats.options import UNSURE, ExportOptions, Unsure
from wsss.formats.source import Source, open_source, options_of_result
from wsss.outputs import DONE
from wsss.run import content_of, plain
from wsss.stages.each import as_loaded, for_each_picture
from wsss.storage import digest, read_json, whole_file, writing

# Pictures are copied in pieces of this size
_PIECE = 1 << 20


@dataclasses.dataclass(frozen=True)
class Exported:
    """A finished export.

    Attributes:
        path: the file or folder for the other program.
        summary: what was written, in a few lines.
    """

    path: Path
    summary: str


def export_masks(format: Format, options: ExportOptions) -> Exported:
    """Write masks in a format; a stopped export continues, and a finished one is left alone.

    Raises:
        BadInput: pictures, masks and classes do not fit together, or the output folder is in use for something else. If this is found after the
            first file was written, everything that this call wrote is removed again.
    """
    export = format.export
    source = (export.source or (lambda given: open_source(given.masks, given)))(options)
    _check_places(source, options.out)
    unsure, class_names = _classes(format, options.unsure, source.images.class_names)
    task = Task(options, options.out, class_names, unsure, len(source.images))
    job = Job(options.out, EXPORT_RECORD, _made_from(format, task, source))
    known = launch.decided_by_first(job.finished)
    if known is None:
        with job.discarding():
            _write_parts(format, task, source, job)
            launch.wait()
            known = launch.decided_by_first(lambda: _finish(format, task, source, job))
    return Exported(options.out / known["result"], _summary(known))


def _check_places(source: Source, out: Path) -> None:
    """Raise BadInput if an output would lie among the masks, or the masks in the output."""
    masks, place = source.masks.resolve(), out.resolve()
    if place == masks or masks in place.parents or place in masks.parents:
        expected = "another folder than that of the masks, and not below or above it"
        raise BadInput(out, f"the output folder, with the masks in {source.masks}", expected, "Choose another --out.")


def _classes(format: Format, wanted: Unsure | None, class_names: tuple[str, ...]) -> tuple[Unsure, tuple[str, ...]]:
    """What happens to unsure pixels, and the classes, with `unsure` if it is one."""
    unsure: Unsure = wanted or ("ignore" if format.export.ignores else "exclude")
    if unsure == "ignore" and not format.export.ignores:
        found, expected = "ignore", f"exclude or class: {format.name} cannot mark pixels as ignored"
        raise BadInput("--unsure", found, expected, "Choose one of them.")
    if UNSURE in class_names:
        if unsure == "class":
            raise BadInput("--unsure", f"class, with a class called {UNSURE!r}", "exclude or ignore", "Choose another.")
        return unsure, class_names
    names = (*class_names, UNSURE) if unsure == "class" else class_names
    if len(names) >= IGNORE:
        raise BadInput("classes", f"{len(names)}", f"at most {IGNORE - 1}, unsure included", "Merge some classes.")
    return unsure, names


def _made_from(format: Format, task: Task[Any], source: Source) -> dict[str, Any]:
    if (source.masks / DONE).exists():
        known, _ = content_of(source.masks)
        masks = known["identity"]
    else:
        masks = digest(folder_digests(source.masks))
    return {
        "format": format.name,
        "masks": masks,
        "pictures": source.images.fingerprint(),
        "classes": list(task.class_names),
        **plain(options_of_result(task.options)),
        "unsure": task.unsure,
    }


def _write_parts(format: Format, task: Task[Any], source: Source, job: Job) -> None:
    export, images = format.export, source.images

    def load(index: int) -> bytes:
        item, unsure = _item(task, source, index)
        if export.pictures is not None:
            _place_picture(task.options.copy_pictures, item.picture, task.out / export.pictures / item.file)
        counts = np.bincount(item.labels.ravel(), minlength=IGNORE + 1)
        part = {
            "size_hw": item.size_hw,
            "tags": item.tags,
            "pixels": {int(label): int(counts[label]) for label in np.flatnonzero(counts)},
            "unsure": unsure,
            "turned": read_header(item.picture).orientation > 1,
            "content": export.write(task, item),
        }
        return json.dumps(part, separators=(",", ":")).encode()

    def write(path: Path, part: bytes) -> None:
        with whole_file(path, sync="file") as temporary:
            temporary.write_bytes(part)

    for_each_picture(images, job.parts, ".json", load, as_loaded, write, title=f"export as {format.name}")


def _item(task: Task[Any], source: Source, index: int) -> tuple[Item, int]:
    """A picture with its mask as the format sees it, and the number of pixels that are 255 in our mask."""
    images = source.images
    name, picture = images.names[index], images.paths[index]
    mask = source.masks / f"{name}.png"
    labels = read_mask(mask)
    size_hw = images.size_hw(index)
    if labels.shape != size_hw:
        found = f"a mask of {labels.shape[0]}x{labels.shape[1]} (height x width)"
        expected = f"{size_hw[0]}x{size_hw[1]} like its picture {picture}"
        raise BadInput(mask, found, expected, "Make the masks again for these pictures.")
    check_labels(labels, images.n_labels, str(mask), images.class_names)
    unsure = labels == IGNORE
    if task.unsure == "exclude":
        labels = np.where(unsure, np.uint8(0), labels)
    elif task.unsure == "class":
        labels = np.where(unsure, np.uint8(len(task.class_names)), labels)
    return Item(index, name, file_of(images, index), picture, mask, labels, _tags(source, index, labels)), int(
        unsure.sum()
    )


def _tags(source: Source, index: int, labels: UInt8[np.ndarray, "h w"]) -> tuple[int, ...]:
    if source.tagged:
        return tuple(class_ + 1 for class_ in source.images.classes(index))
    n = len(source.images.class_names)
    return tuple(int(label) for label in np.unique(labels) if 0 < label <= n)


def file_of(images: Images, index: int) -> str:
    """The name of a picture with the suffix of its file."""
    name = images.paths[index].name
    return images.names[index] + name[len(without_suffix(name)) :]


def _place_picture(how: str, picture: Path, place: Path) -> None:
    """Copy a picture, or link to it."""
    if how == "none" or os.path.lexists(place):
        return
    if how == "link":
        with writing(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(picture.resolve())
        return
    with (
        whole_file(place, sync="file") as temporary,
        reading(picture, "a picture"),
        picture.open("rb") as source,
        temporary.open("wb") as target,
    ):
        shutil.copyfileobj(source, target, _PIECE)


@dataclasses.dataclass(frozen=True)
class _Parts:
    """The parts of all pictures in order, read one at a time."""

    folder: Path
    images: Images

    def raw(self) -> Iterator[dict[str, Any]]:
        for name in self.images.names:
            yield read_json(self.folder / f"{name}.json", "the part of a picture")

    def __iter__(self) -> Iterator[Part]:
        for index, part in enumerate(self.raw()):
            size = (part["size_hw"][0], part["size_hw"][1])
            name, file = self.images.names[index], file_of(self.images, index)
            yield Part(index, name, file, size, tuple(part["tags"]), part["content"])


def _finish(format: Format, task: Task[Any], source: Source, job: Job) -> dict[str, Any]:
    parts = _Parts(job.parts, source.images)
    result = format.export.finish(task, parts)
    pixels, pictures, unsure, turned = Counter[str](), Counter[str](), 0, 0
    for part in parts.raw():
        pixels.update(part["pixels"])
        pictures.update(part["pixels"].keys())
        unsure += part["unsure"]
        turned += part["turned"]
    record = {
        "format": format.name,
        "result": result.relative_to(task.out).as_posix(),
        "pictures": task.count,
        "classes": [
            {"id": number, "name": name, "pictures": pictures[str(number)], "pixels": pixels[str(number)]}
            for number, name in enumerate(task.class_names, 1)
        ],
        "unsure": {"pixels": unsure, "are": _UNSURE[task.unsure]},
        "turned": {"pictures": turned, "upright": source.images.upright},
        "notes": [*source.notes, *([format.export.note] if format.export.note else [])],
    }
    job.finish(record)
    return record


_UNSURE: Mapping[Unsure, str] = {
    "exclude": "excluded: written as background",
    "ignore": "ignored: written as 255 or void",
    "class": f"a class of their own, {UNSURE}",
}


def _summary(record: Mapping[str, Any]) -> str:
    lines = [
        f"{count_of(record['pictures'], 'picture')}, {count_of(len(record['classes']), 'class', 'classes')}, as {record['format']}"
    ]
    if record["unsure"]["pixels"]:
        lines.append(f"{record['unsure']['pixels']} unsure pixels (255) are {record['unsure']['are']} (--unsure)")
    if empty := [each["name"] for each in record["classes"] if not each["pixels"]]:
        lines.append(f"classes without pixels: {', '.join(empty)}")
    if record["turned"]["pictures"]:
        how = "as rotated by it" if record["turned"]["upright"] else "as stored"
        lines.append(
            f"{record['turned']['pictures']} pictures have an EXIF orientation: their masks fit the pictures {how}; check that the other "
            "program shows them so"
        )
    return "\n".join([*lines, *record["notes"]])
