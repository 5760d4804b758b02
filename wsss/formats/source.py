"""The pictures and classes of masks: from the record of a stage, from a dataset, or from a folder of pictures."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsss import digests
from wsss.cache import CONTENTS
from wsss.data.folder import open_pictures
from wsss.data.images import Dataset, Images
from wsss.data.lists import files_below, pictures_below, read_classes
from wsss.data.open import class_source, open_dataset
from wsss.errors import BadInput
from wsss.formats.options import SourceOptions
from wsss.outputs import INPUTS, read_verified
from wsss.progress import Progress
from wsss.run import DONE, STARTED, read_record
from wsss.stages.check import DATA, reopen

# Folders above a stage among which its run is looked for
_LEVELS = 3


@dataclasses.dataclass(frozen=True)
class Source:
    """Masks with their pictures.

    Attributes:
        masks: folder of the masks.
        images: the pictures that have a mask, in the order of the dataset, and the classes.
        tagged: whether `images.labels` are tags, and not only unknown.
        notes: what the user should know.
    """

    masks: Path
    images: Images
    tagged: bool
    notes: tuple[str, ...] = ()


def open_source(masks: Path, options: SourceOptions) -> Source:
    """The pictures and classes of a folder of masks.

    The record of a finished stage names both. Its pictures are looked for in `options.data`, `options.pictures`, or else in the dataset of the
    run, and must have the recorded content. For any other folder, the dataset has to be given, or the folder of the pictures and the classes.

    Raises:
        BadInput: pictures or classes are unknown, a mask has no picture, or a picture has changed.
    """
    if options.data is not None and options.pictures is not None:
        raise BadInput("--data and --pictures", "both", "one of them", "Leave one out.")
    if not masks.is_dir():
        raise BadInput(masks, "no such folder", "a folder of masks, such as RUN/masks", "Check the path.")
    if any((masks / marker).exists() for marker in (DONE, STARTED)):
        return _of_stage(masks, options)
    return _of_folder(masks, options)


def open_ours(masks: Path | None, options: SourceOptions) -> Source | Images:
    """The pictures and classes that an import belongs to: those of a folder of masks, of a dataset, or of a folder of pictures.

    Raises:
        BadInput: as `open_source`, or none of them is given.
    """
    if masks is not None:
        return open_source(masks, options)
    if options.data is not None and options.pictures is None:
        data = open_dataset(options.data, skip_missing=options.skip_bad, **options.reading())
        return data.split(options.split or data.train)
    if options.pictures is not None and options.classes is not None and options.data is None:
        return _with_classes(options)
    raise BadInput(
        "--masks, --data and --pictures",
        "neither masks, nor a dataset, nor pictures with --classes",
        "what the corrected masks belong to",
        "Give --masks RUN/masks, or --pictures FOLDER and --classes 'NAME, NAME, ...'.",
    )


def mask_files(masks: Path) -> dict[str, Path]:
    """The mask files of a folder by the name of their picture."""
    return {
        os.path.relpath(path, masks).replace(os.sep, "/").removesuffix(".png"): path
        for path in files_below(masks)
        if path.suffix == ".png"
    }


def _of_stage(masks: Path, options: SourceOptions) -> Source:
    record = read_record(masks)
    if record["makes"] not in ("masks", "predictions"):
        raise BadInput(
            masks, f"a stage that makes {record['makes']}", "masks or predictions", "Give the folder of a run's masks."
        )
    tables = read_verified(masks / INPUTS, record["tables"], "the inputs of a stage")
    table = next((one for one in tables.values() if isinstance(one, dict) and "pictures" in one), None)
    if table is None:
        raise BadInput(masks, "a record without pictures", "masks of pictures", "Give the folder of a run's masks.")
    names = tuple(row[0] for row in table["pictures"])
    # a segmenter has classes of its own, whatever those of the pictures; a plain folder has none
    class_names = tuple(record["result"].get("classes", table["class_names"]))
    if options.classes is not None and read_classes(class_source(options.classes)) != class_names:
        found, expected = f"--classes {options.classes!r:.60}", f"the classes of {masks}: {', '.join(class_names[:8])}"
        raise BadInput("--classes", found, expected, "Leave it out: the record of the masks names the classes.")
    paths = _pictures_of_stage(masks, names, [row[1] for row in table["pictures"]], options)
    labels = np.zeros((len(names), len(class_names)), bool)
    for row, (*_, classes, _, _) in zip(labels, table["pictures"], strict=True):
        row[[class_names.index(name) for k in classes if (name := table["class_names"][k]) in class_names]] = True
    images = Images(masks.name, names, paths, class_names, labels, (None,) * len(names), table["options"]["upright"])
    return Source(masks, images, bool(labels.any()))


def _pictures_of_stage(
    masks: Path, names: Sequence[str], wanted: Sequence[str], options: SourceOptions
) -> tuple[Path, ...]:
    """The files of the pictures of a stage; their content must be the recorded one."""
    run = next((folder for folder in list(masks.resolve().parents)[:_LEVELS] if (folder / DATA).exists()), None)
    places: list[tuple[Path, Mapping[str, Path]]]
    if options.pictures is not None:
        places = [(options.pictures, pictures_below(options.pictures))]
    elif options.data is not None:
        places = _splits(open_dataset(options.data, skip_missing=options.skip_bad, **options.reading()), options.split)
    else:
        data = reopen(run) if run is not None else None
        if data is None:
            do = "Give the dataset with --data, or the folder of the pictures with --pictures."
            raise BadInput(masks, "a stage that does not say where its pictures are", "a dataset", do)
        places = _splits(data, options.split)
    if run is not None:
        digests.load_cache(run / CONTENTS)
    complete = [(place, found) for place, found in places if all(name in found for name in names)]
    if not complete:
        place, found = max(places, key=lambda each: sum(name in each[1] for name in names))
        missing = [name for name in names if name not in found]
        do = "Give the dataset with --data, or the folder to which these names are relative with --pictures."
        expected = f"the {len(names)} pictures of {masks}"
        raise BadInput(place, f"no picture {missing[0]!r} (and {len(missing) - 1} more)", expected, do)
    changed: tuple[Path, str] | None = None
    for _, found in complete:
        paths = tuple(found[name] for name in names)
        with Progress("check pictures", len(paths), resumable=False) as progress:
            now = digests.content_digests(paths, progress.advance)
        other = next((at for at, (digest, old) in enumerate(zip(now, wanted, strict=True)) if digest != old), None)
        if other is None:
            return paths
        changed = changed or (paths[other], names[other])
    assert changed is not None
    do = "Give the pictures that the masks were made from, or make the masks again."
    raise BadInput(
        changed[0], "another picture than the masks were made from", f"the picture {changed[1]!r} of {masks}", do
    )


def _splits(data: Dataset, only: str | None) -> list[tuple[Path, Mapping[str, Path]]]:
    splits = [data.split(only)] if only else list(data.splits.values())
    return [(data.root, dict(zip(images.names, images.paths, strict=True))) for images in splits]


def _of_folder(masks: Path, options: SourceOptions) -> Source:
    files = mask_files(masks)
    if not files:
        raise BadInput(masks, "no mask in it", "masks, NAME.png", "Check the path.")
    if options.data is not None:
        data = open_dataset(options.data, skip_missing=options.skip_bad, **options.reading())
        splits = [data.split(options.split)] if options.split else list(data.splits.values())
        images = max(splits, key=lambda each: len(files.keys() & set(each.names)))
    elif options.pictures is not None and options.classes is not None:
        images = _with_classes(options)
    else:
        lacking = "--classes" if options.pictures is not None else "--pictures and --classes"
        do = f"Give {lacking}, or the dataset with --data."
        raise BadInput(masks, "masks without the record of a stage", "their pictures and classes", do)
    known = set(images.names)
    if strange := [name for name in files if name not in known]:
        found = f"no picture of {len(strange)} of {len(files)} masks ({strange[0]} first)"
        do = "Masks are named after their picture, by its path below the folder. Check the folders."
        raise BadInput(options.data or options.pictures or masks, found, "a picture of each mask", do)
    chosen = images.subset([at for at, name in enumerate(images.names) if name in files], masks.name)
    left = len(images) - len(chosen)
    notes = (f"{left} pictures have no mask, and are left out",) if left else ()
    return Source(masks, chosen, options.data is not None and bool(chosen.labels.any()), notes)


def _with_classes(options: SourceOptions) -> Images:
    assert options.pictures is not None
    assert options.classes is not None
    images = open_pictures(options.pictures, upright=True if options.upright is None else options.upright)
    class_names = read_classes(class_source(options.classes))
    return dataclasses.replace(images, class_names=class_names, labels=np.zeros((len(images), len(class_names)), bool))


def options_of_result(options: Any) -> dict[str, Any]:
    """The options that change what is written, apart from the source of the pictures and masks."""
    names = {field.name for field in dataclasses.fields(SourceOptions)} | {"out", "device", "masks", "file"}
    return {
        field.name: getattr(options, field.name) for field in dataclasses.fields(options) if field.name not in names
    }
