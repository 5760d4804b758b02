"""Recognises the layout of a data set and opens it."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack, get_args

import numpy as np

from wsss.data import coco, voc
from wsss.data.coco import find_coco, open_coco
from wsss.data.entries import LayoutContents, LayoutOptions, assemble
from wsss.data.file_checks import check_files
from wsss.data.folder import find_table, open_folder, open_pictures
from wsss.data.imagefolder import find_imagefolder, read_imagefolder
from wsss.data.images import Dataset
from wsss.data.label_studio import find_label_studio, read_label_studio
from wsss.data.labelme import find_labelme, read_labelme
from wsss.data.lists import files_below, is_hidden, is_picture, listing, notes_on_unreadable, read_classes
from wsss.data.lookalikes import check_no_mask_folder
from wsss.data.orientation import notes_on_orientation
from wsss.data.pairs import MASK_FOLDERS, find_pairs, read_pairs
from wsss.data.roboflow import find_roboflow, read_roboflow
from wsss.data.tables import TABLE_SUFFIXES, TAG_SUFFIXES
from wsss.data.value_range import ReadingRequest, choose_reading
from wsss.data.voc import find_voc, open_voc
from wsss.data.yolo import find_yolo, has_label_files, read_yolo
from wsss.errors import BadInput, is_regular, nearest
from wsss.stream import Progress

__all__ = ["LAYOUTS", "DatasetOptions", "open_dataset", "open_pictures"]

LAYOUTS = (
    "one of: one folder per class (cat/1.jpg, or train/cat/1.jpg and val/cat/2.jpg); a folder of pictures with a table tags.csv, tags.tsv or "
    "tags.jsonl (columns image, tags and, optionally, split and mask); VOC 2012 or its layout (JPEGImages, Annotations, ImageSets), including "
    "exports of CVAT, Datumaro and labelme2voc; COCO (annotations/instances_train2014.json and train2014/), including exports of Roboflow and "
    "Label Studio; pairs of folders (images/1.jpg, masks/1.png); labelme; YOLO (data.yaml); Hugging Face's imagefolder (metadata.csv); Label "
    "Studio's choices. docs/data.md has a table of them"
)


class DatasetOptions(TypedDict, total=False):
    """The keywords of `open_dataset`, which says what they mean."""

    train: str | None
    val: str | None
    classes: str | Path | Sequence[str] | None
    tags: str | Path | None
    tag_rule: str | None
    mask_rule: str | None
    upright: bool | None
    mask_values: str | None
    tag_column: str | None
    negatives: Collection[str]
    allow_outside: bool
    value_range: str | Sequence[float] | None
    bands: str | Sequence[int] | None
    page: int | None
    untagged: bool
    skip_missing: bool
    progress: Progress | None


def open_dataset(path: str | Path, **options: Unpack[DatasetOptions]) -> Dataset:
    """Open a data set in any of the layouts of docs/data.md.

    Args:
        path: the folder, the folder above VOC's, or the file with the tags or annotations of the pictures.
        train: split to train on, or a file that lists pictures.
        val: split to score segmenters on, or such a file.
        classes: class names in the order of their labels, as a sequence or separated by commas, or a file with one name per line.
        tags: a table of tags, `cls_labels.npy` of PSA and IRNet, `train_labels.npy` of CLIMS, or a list of CLIP-ES.
        tag_rule: how tags are derived from annotations; see `open_voc` and `open_coco`.
        mask_rule: how COCO's masks are drawn; see `open_coco`.
        upright: rotate pictures by their EXIF orientation; the default depends on the layout: VOC 2012 and COCO are not rotated, as in the
            published loaders; see `wsss.data.orientation` for the others.
        mask_values: what values or colours of mask files mean; see `wsss.data.labels.GRAMMAR`.
        tag_column: the column of the tags in `metadata.csv` or in an export of choices, if it has an unusual name.
        negatives: names of folders, tags or labels that mean that no class is present, in addition to `background` and `_background_`.
        allow_outside: files may lie outside the folder, by links or by the paths of a table; they are only read.
        value_range: the values that become black and white, `0,4095`; by default found in the pictures, see
            `wsss.data.value_range.choose_reading`.
        bands: numbers (from 1) of the bands used as red, green and blue, `4,3,2`, or of one used as grey; by default as the files say.
        page: number (from 1) of the page, frame or slice to read.
        untagged: pictures in a folder need no tags, since they will be tagged; `classes` lists the classes to find.
        skip_missing: leave out pictures that are listed but missing.
        progress: called during long work with the amount of work done and of all work.

    Raises:
        BadInput: the path does not exist; it has none of the `LAYOUTS`, or more than one; its contents do not fit together; or its files lie
            outside it (see `wsss.data.file_checks`).

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import wsss
        >>> from wsss.data.shapes import make_shapes
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     data = wsss.open_dataset(make_shapes(Path(folder) / "shapes", train=2, val=1, size=48))
        ...     print(data.kind, data.class_names, len(data.split("train")), data.split("val").read(0).dtype)
        voc ('ball', 'boat', 'cross', 'ring', 'star') 2 uint8
    """
    if unknown := options.keys() - DatasetOptions.__annotations__.keys():
        raise TypeError(f"open_dataset() got an unexpected keyword argument {min(unknown)!r}")
    root, tags = _root_and_tags(Path(path), options.get("tags"))
    layout_options = _layout_options(tags, options)
    reading_request = ReadingRequest.of(options.get("value_range"), options.get("bands"), options.get("page"))
    data = _open_layout(root, layout_options).with_mask_values(layout_options.mask_values)
    check_files(data, allow_outside=layout_options.allow_outside)
    pictures = list(dict.fromkeys(picture for images in data.splits.values() for picture in images.paths))
    reading, notes = choose_reading(pictures, data.root, reading_request)
    # the published folders are huge and hold no other pictures, and their readers choose orientations themselves
    if data.kind not in ("voc", "coco"):
        notes += notes_on_unreadable(data.root)
        notes += [note for images in data.splits.values() for note in notes_on_orientation(images)]
    return data.with_reading(reading, notes)


def _root_and_tags(path: Path, tags: str | Path | None) -> tuple[Path, Path | None]:
    """The folder of a data set, and the file of tags if one is given."""
    root, source = path, None if tags is None else Path(tags)
    if (
        is_regular(root)
        and source is None
        and root.suffix.lower() in TABLE_SUFFIXES
        and root.name not in _LAYOUT_TABLES
    ):
        root, source = root.parent, root
    elif is_regular(root) and root.suffix.lower() in (".json", ".jsonl", ".csv", ".yaml", ".yml"):
        root = root.parent
    if not os.path.exists(root):
        near = ""
        with contextlib.suppress(OSError):
            near = nearest(root.name, [path.name for path in root.parent.iterdir()])
        do = f"Did you mean {root.parent / near}?" if near else "Check the path."
        raise BadInput(root, "no such file or folder", "a dataset, in one of the layouts of docs/data.md", do)
    if not root.is_dir():
        raise BadInput(root, "a file", LAYOUTS, "Unpack it if it is an archive, and give the folder.")
    if source is not None and (not is_regular(source) or source.suffix.lower() not in TAG_SUFFIXES):
        found = f"a file of type {source.suffix!r}" if is_regular(source) else "no such file"
        raise BadInput(source, found, f"a file of tags ({', '.join(TAG_SUFFIXES)})", "Check --tags.")
    return root, source


def _layout_options(tags: Path | None, options: DatasetOptions) -> LayoutOptions:
    classes = options.get("classes")
    source = class_source(classes) if isinstance(classes, str) else classes
    return LayoutOptions(
        train=options.get("train"),
        val=options.get("val"),
        classes=None if source is None else read_classes(source),
        tags=tags,
        tag_rule=options.get("tag_rule"),
        mask_rule=options.get("mask_rule"),
        tag_column=options.get("tag_column"),
        negatives=frozenset(options.get("negatives", ())),
        mask_values=options.get("mask_values"),
        upright=options.get("upright"),
        allow_outside=options.get("allow_outside", False),
        untagged=options.get("untagged", False),
        skip_missing=options.get("skip_missing", False),
        progress=options.get("progress"),
    )


_YOLO, _PAIRS = "YOLO's tools", "pairs of folders"
# Layouts that are recognised by their files: a name for messages, the finder of the files, the reader
_READERS: tuple[tuple[str, Callable[[Path], Any], Callable[[Path, Any, LayoutOptions], LayoutContents]], ...] = (
    ("labelme", find_labelme, read_labelme),
    (_YOLO, find_yolo, read_yolo),
    ("Roboflow", find_roboflow, read_roboflow),
    ("Hugging Face's imagefolder", find_imagefolder, read_imagefolder),
    ("Label Studio", find_label_studio, read_label_studio),
    (_PAIRS, find_pairs, read_pairs),
)
# Tables that belong to one of these layouts
_LAYOUT_TABLES = ("metadata.csv", "metadata.jsonl", "_classes.csv")


def _open_layout(root: Path, options: LayoutOptions) -> Dataset:
    """The data set in the one layout that is recognised."""
    _check_no_results(root)
    voc_root, coco_root = find_voc(root), find_coco(root)
    if voc_root and coco_root and (voc_root / "ImageSets").is_dir():
        raise BadInput(
            root, f"both VOC's layout and COCO's ({listing(root)})", LAYOUTS, "Give the folder of one of the two."
        )
    if coco_root:
        _check_rules(options, {"tag_rule": get_args(coco.TagRule), "mask_rule": get_args(coco.MaskRule)}, root)
        return open_coco(root, options)
    if voc_root:
        _check_rules(options, {"tag_rule": get_args(voc.TagRule)}, root)
        return open_voc(voc_root, options)
    _check_rules(options, {}, root)
    table = find_table(root)
    _check_not_above(root, has_tags=table is not None or options.tags is not None)
    untagged_classes = options.classes if options.untagged else None
    if options.tags is None and table is None and untagged_classes is None:
        contents = _read_layout(root, options)
        _check_no_results_in(root, listed=contents is not None)
        if contents is not None:
            return assemble(root, contents, options)
    else:
        _check_no_results_in(root, listed=table is not None or options.tags is not None)
    if not any(is_picture(file) for file in files_below(root)):
        others = notes_on_unreadable(root)
        found = f"no picture in a supported format; {'; '.join(others)}" if others else listing(root)
        do = "Choose another folder, or arrange the pictures in one of these ways."
        raise BadInput(root, found, LAYOUTS, do)
    if untagged_classes is not None and table is None:
        return _open_untagged(root, untagged_classes, upright=True if options.upright is None else options.upright)
    return open_folder(root, options)


def is_plain(root: Path) -> bool:
    """Whether a folder holds pictures, and nothing that tells their tags."""
    if not root.is_dir() or find_voc(root) or find_coco(root) or find_table(root):
        return False
    return any(map(is_picture, root.iterdir())) and not any(find(root) for _, find, _ in _READERS)


def _check_no_results(root: Path) -> None:
    """Raise BadInput for the folder of a stage, of a run, or of several runs."""

    def is_stage(folder: Path) -> bool:
        return (folder / "done.json").is_file() or (folder / "started.json").is_file()

    def is_run(folder: Path) -> bool:
        return (folder / "data.json").is_file() and any(is_stage(inner) for inner in folder.iterdir())

    inner = [path for path in sorted(root.iterdir()) if path.is_dir() and not is_hidden(path.name)]
    found = "the folder of a stage, which `wsss` made" if is_stage(root) else ""
    if not found and is_run(root):
        found = "a run folder, which `wsss` made"
    if not found and any(is_run(path) for path in inner) and all(is_run(path) or is_stage(path) for path in inner):
        found = "a folder of runs, which `wsss` made"
    if found:
        do = "Give the data set that it was made from. `wsss report` and `wsss compare` describe runs."
        raise BadInput(root, found, "a data set in one of the layouts of docs/data.md", do)


def _check_no_results_in(root: Path, *, listed: bool) -> None:
    """Raise BadInput if a folder in the data set was made by a stage, since its files would be read as pictures or true masks.

    Args:
        root: the data set.
        listed: something says which files are pictures, so that only folders with the names of mask folders matter.
    """
    for folder in sorted(root.iterdir()):
        if listed and folder.name.lower() not in MASK_FOLDERS:
            continue
        for marker in (folder / "done.json", folder / "started.json"):
            if is_regular(marker) and b'"record"' in marker.read_bytes()[:64]:
                raise BadInput(
                    folder,
                    "results that `wsss` made, inside the data set",
                    "only pictures, tags and true masks",
                    f"Move it out of {root}. If you corrected these masks and they are true masks now, remove its .json and .gz files.",
                )


def _check_not_above(root: Path, *, has_tags: bool) -> None:
    """Raise BadInput if a folder holds a whole data set in one of its folders."""
    do = "Give the folder of the data set itself."
    for pattern in ("*/JPEGImages", "*/*/JPEGImages", "*/annotations/instances_*.json"):
        if inner := next(iter(sorted(root.glob(pattern))), None):
            raise BadInput(root, f"a data set further down ({inner})", LAYOUTS, do)
    folders = [path for path in root.iterdir() if path.is_dir() and not is_hidden(path.name)]
    if not has_tags and len(folders) == 1 and not any(map(is_picture, root.iterdir())):
        (inner,) = folders
        if (find_coco(inner) or find_table(inner) or find_imagefolder(inner)) and not find_imagefolder(root):
            raise BadInput(root, f"a data set further down ({inner})", LAYOUTS, do)


def _read_layout(root: Path, options: LayoutOptions) -> LayoutContents | None:
    """The contents, from the reader that recognises its files; None if no reader does."""
    readers = {name: (found, read) for name, find, read in _READERS if (found := find(root))}
    if (_PAIRS in readers and _YOLO in readers) and not has_label_files(root):
        del readers[_PAIRS]
    if len(readers) > 1:
        raise BadInput(
            root,
            f"files of {' and '.join(readers)} ({listing(root)})",
            LAYOUTS,
            "Move the files of all but one of them elsewhere, or name the tags with --tags.",
        )
    return next((read(root, found, options) for found, read in readers.values()), None)


def _open_untagged(root: Path, class_names: tuple[str, ...], *, upright: bool) -> Dataset:
    """Pictures without tags, and the classes that they will be tagged with."""
    check_no_mask_folder(root)
    pictures = open_pictures(root, upright=upright)
    labels = np.zeros((len(pictures), len(class_names)), bool)
    images = dataclasses.replace(pictures, class_names=class_names, labels=labels)
    return Dataset("pictures", root, {"train": images}, "train")


def class_source(classes: str) -> Path | list[str]:
    """The file of class names that a text names, or the names in the text itself, separated by commas."""
    words = [name.strip() for name in classes.split(",") if name.strip()]
    is_path = os.path.exists(classes) or ("," not in classes and ("/" in classes or Path(classes).suffix))
    return Path(classes) if is_path else words


def _check_rules(options: LayoutOptions, known: Mapping[str, Sequence[str]], root: Path) -> None:
    for name, rule in (("tag_rule", options.tag_rule), ("mask_rule", options.mask_rule)):
        if rule is not None and rule not in known.get(name, ()):
            expected = f"one of {', '.join(known[name])}" if name in known else "none"
            raise BadInput(name, repr(rule), f"{expected} for {root}", "Choose another rule.")
