"""`wsss import masks`: what all formats share when corrected masks are read. See `wsss.formats.format` for what a format adds."""

import dataclasses
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsss import launch
from wsss.arrays import UInt8
from wsss.data.files import read_mask, write_mask
from wsss.data.images import Images, check_labels
from wsss.data.lists import IMPORT_RECORD, without_suffix
from wsss.digests import path_digest
from wsss.errors import BadInput, is_regular, suggestion
from wsss.formats.format import Corrected, Format, Ours
from wsss.formats.job import Job
from wsss.formats.options import UNSURE, ImportOptions
from wsss.formats.source import Source, open_ours, options_of_result
from wsss.run import plain
from wsss.stages.each import as_loaded, for_each_picture
from wsss.storage import digest
from wsss.stream import in_threads


@dataclasses.dataclass(frozen=True)
class Imported:
    """A finished import.

    Attributes:
        path: the folder of the corrected masks.
        summary: what was read, in a few lines.
    """

    path: Path
    summary: str


def import_masks(format: Format, options: ImportOptions) -> Imported:
    """Read the file of another program as corrected masks, `NAME.png`; a stopped import continues, and a finished one is left alone.

    Raises:
        BadInput: a class or a picture is not ours, a size differs, the file is broken, or the output folder is in use for something else.
    """
    if format.imports is None:
        raise BadInput("--format", format.name, "a format that can be read", f"{format.name} is only written.")
    if not options.file.exists():
        raise BadInput(options.file, "no such file or folder", format.about, "Check the path.")
    if is_regular(options.file) and zipfile.is_zipfile(options.file):
        do = "Unpack it, and give the folder or the file in it."
        raise BadInput(options.file, "a ZIP archive", format.about, do)
    _check_places(options)
    opened = open_ours(options.masks, options)
    images = opened.images if isinstance(opened, Source) else opened
    ours = Ours(images.names, images.class_names, _renamed(options.rename, images.class_names))
    corrected = _matched(list(format.imports.read(ours, options)), images, options.file)
    made_from = {
        "format": format.name,
        "file": path_digest(options.file),
        "classes": list(ours.class_names),
        "pictures": digest([images.names[index] for index in corrected]),
        **plain(options_of_result(options)),
    }
    job = Job(options.out, IMPORT_RECORD, made_from)
    known = launch.decided_by_first(job.finished)
    if known is None:
        with job.discarding():
            _write(format, options.out, images, corrected)
            launch.wait()
            known = launch.decided_by_first(lambda: _finish(format, options, images, corrected, job))
    return Imported(options.out, _summary(known))


def _check_places(options: ImportOptions) -> None:
    out = options.out.resolve()
    for place in (options.file, options.masks, options.pictures):
        if place is not None and (place.resolve() == out or out in place.resolve().parents):
            raise BadInput(
                options.out, f"the output folder, with {place} in it", "a folder of its own", "Choose another --out."
            )
    if options.masks is not None and options.masks.resolve() in out.parents:
        raise BadInput(options.out, f"a folder in {options.masks}", "a folder elsewhere", "Choose another --out.")


def _renamed(text: str | None, class_names: Sequence[str]) -> dict[str, str]:
    """Our names by the names in a file.

    Raises:
        BadInput: the text is not `old=new, old=new`, or a new name is no class.
    """
    renamed: dict[str, str] = {}
    for entry in (text or "").split(",") if text else ():
        old, equals, new = (word.strip() for word in entry.partition("="))
        if not equals or not old or old in renamed:
            do = "Name each class of the file once."
            raise BadInput("--rename", f"{entry.strip()!r:.60}", "'name in the file=our name, ...'", do)
        if new and new not in class_names and new not in ("background", UNSURE):
            expected = f"one of {', '.join(class_names[:8])}, background or {UNSURE}"
            raise BadInput("--rename", f"the class {new!r}", expected, f"{suggestion(new, class_names)}Correct it.")
        renamed[old] = new
    return renamed


def _matched(found: Iterable[Corrected], images: Images, file: Path) -> dict[int, Corrected]:
    """What was found, by the position of its picture among ours, ascending; sizes are checked.

    Raises:
        BadInput: a picture is not ours, could be several of ours, or occurs twice; or its size differs.
    """
    index = _Index(images.names)
    matched: dict[int, Corrected] = {}
    for one in found:
        at = index.find(one.picture, one.where)
        if at in matched:
            other = matched[at]
            found_text = (
                f"{one.picture!r}, which is our picture {images.names[at]!r}, as {other.picture!r} in {other.where}"
            )
            raise BadInput(one.where, found_text, "each picture once", "Remove one of the two.")
        if one.size_hw is not None and one.size_hw != (size_hw := images.size_hw(at)):
            raise BadInput(
                one.where,
                f"{one.picture!r} of {one.size_hw[0]}x{one.size_hw[1]} (height x width)",
                f"{size_hw[0]}x{size_hw[1]} like our picture {images.where(at)}",
                "Correct masks on the pictures that were exported, without resizing or rotating them.",
            )
        matched[at] = one
    if not matched:
        raise BadInput(file, "no picture in it", "at least one corrected picture", "Check the file.")
    return dict(sorted(matched.items()))


class _Index:
    """Finds our picture by the path that another program gives."""

    def __init__(self, names: Sequence[str]) -> None:
        self._at = {name: at for at, name in enumerate(names)}
        self._by_last: dict[str, list[str]] = defaultdict(list)
        for name in names:
            self._by_last[name.rpartition("/")[2]].append(name)

    def find(self, picture: str, where: str) -> int:
        """The position of our picture: the longest end of the path that is one of our names, or else the one with that last part.

        Raises:
            BadInput: there is none, or several.
        """
        path = without_suffix(picture.replace("\\", "/"))
        parts = [part for part in path.split("/") if part not in ("", ".")]
        for start in range(len(parts)):
            if (name := "/".join(parts[start:])) in self._at:
                return self._at[name]
        same = self._by_last.get(parts[-1], []) if parts else []
        if len(same) == 1:
            return self._at[same[0]]
        if same:
            expected = "a path that tells which one"
            raise BadInput(
                where, f"{picture!r:.200}, which may be {' or '.join(same[:3])}", expected, "Keep the folders."
            )
        do = f"{suggestion(parts[-1] if parts else '', self._by_last)}Remove it from the file, or give its picture too."
        raise BadInput(where, f"the picture {picture!r:.200}", f"one of our {len(self._at)} pictures", do)


def _write(format: Format, out: Path, images: Images, corrected: Mapping[int, Corrected]) -> None:
    def load(index: int) -> UInt8[np.ndarray, "h w"]:
        one, size_hw = corrected[index], images.size_hw(index)
        mask = one.draw(size_hw)
        if mask.shape != size_hw:
            found = f"a mask of {mask.shape[0]}x{mask.shape[1]} (height x width)"
            expected = f"{size_hw[0]}x{size_hw[1]} like our picture {images.where(index)}"
            raise BadInput(one.where, found, expected, "Correct masks without resizing or rotating them.")
        check_labels(mask, images.n_labels, one.where, images.class_names)
        return mask

    for_each_picture(
        images, out, ".png", load, as_loaded, write_mask, title=f"import {format.name}", chosen=list(corrected)
    )


def _finish(
    format: Format, options: ImportOptions, images: Images, corrected: Mapping[int, Corrected], job: Job
) -> dict[str, Any]:
    record: dict[str, Any] = {
        "format": format.name,
        "pictures": len(corrected),
        "of": len(images),
        "without_objects": sum(one.objects == 0 for one in corrected.values()),
    }
    if options.masks is not None:
        paths = [
            (options.out / f"{images.names[at]}.png", options.masks / f"{images.names[at]}.png") for at in corrected
        ]
        changed = list(in_threads(_changed, paths))
        record["changed"] = {"pictures": int(np.count_nonzero(changed)), "pixels": int(sum(changed))}
    job.finish(record)
    return record


def _changed(paths: tuple[Path, Path]) -> int:
    """The number of pixels in which two masks differ."""
    now, before = read_mask(paths[0]), read_mask(paths[1])
    return now.size if now.shape != before.shape else int((now != before).sum())


def _summary(record: Mapping[str, Any]) -> str:
    lines = [f"{record['pictures']} of {record['of']} pictures have a corrected mask"]
    if "changed" in record:
        changed = record["changed"]
        lines.append(f"{changed['pictures']} of them differ from the masks before, in {changed['pixels']} pixels")
    if record["without_objects"]:
        lines.append(f"{record['without_objects']} of them have no object in the file: their masks are background only")
    return "\n".join(lines)
