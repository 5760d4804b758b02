"""Finding out what a path holds."""

import dataclasses
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

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
from wsss.data.pairs import find_pairs, read_pairs
from wsss.data.roboflow import find_roboflow, read_roboflow
from wsss.data.roles import only_classes
from wsss.data.tables import TABLE_SUFFIXES, TAG_SUFFIXES
from wsss.data.value_range import ReadingRequest, choose_reading
from wsss.data.voc import find_voc, open_voc
from wsss.data.yolo import find_yolo, has_label_files, read_yolo
from wsss.errors import BadInput, is_regular
from wsss.stream import Progress

__all__ = ["LAYOUTS", "open_dataset", "open_pictures"]

LAYOUTS = (
    "one of: a folder a class (cat/1.jpg, or train/cat/1.jpg and val/cat/2.jpg); a folder of pictures with a table tags.csv, tags.tsv or "
    "tags.jsonl (columns image, tags and, if you like, split and mask); VOC 2012 or its layout (JPEGImages, Annotations, ImageSets), CVAT, "
    "Datumaro and labelme2voc included; COCO (annotations/instances_train2014.json and train2014/), Roboflow and Label Studio included; pairs of "
    "folders (images/1.jpg, masks/1.png); labelme; YOLO (data.yaml); Hugging Face's imagefolder (metadata.csv); Label Studio's choices. "
    "docs/data.md has a table of them"
)


def open_dataset(
    path: str | Path,
    *,
    train: str | None = None,
    val: str | None = None,
    classes: str | Path | Sequence[str] | None = None,
    tags: str | Path | None = None,
    tag_rule: str | None = None,
    mask_rule: str | None = None,
    upright: bool | None = None,
    mask_values: str | None = None,
    tag_column: str | None = None,
    negatives: Collection[str] = (),
    allow_outside: bool = False,
    value_range: str | Sequence[float] | None = None,
    bands: str | Sequence[int] | None = None,
    page: int | None = None,
    untagged: bool = False,
    skip_missing: bool = False,
    progress: Progress | None = None,
) -> Dataset:
    """Open a data set, whatever its layout.

    Args:
        path: the folder, one above VOC's, or the file in it that says what the pictures hold.
        train: split to train on, or a file that lists pictures.
        val: split to score segmenters on, or such a file.
        classes: class names in the order of their labels, separated by commas in one text, or a file with one a line.
        tags: a table of tags, `cls_labels.npy` of PSA and IRNet, `train_labels.npy` of CLIMS, or a list of CLIP-ES.
        tag_rule: how tags come out of annotations; see `open_voc` and `open_coco`.
        mask_rule: how COCO's masks are drawn; see `open_coco`.
        upright: turn pictures as their EXIF orientation says; by default only folders of one's own are.
        mask_values: what values or colours of mask files mean; see `wsss.data.labels.GRAMMAR`.
        tag_column: the column of the tags in `metadata.csv` or in an export of choices, where it has an unusual name.
        negatives: names of folders, tags or labels that mean that no class is there; `background` and `_background_` do anyway.
        allow_outside: files may lie outside of the folder, by links or by the paths of a table; they are only read.
        value_range: the values that become black and white, `0,4095`; by default found in the pictures, see `choose_reading`.
        bands: numbers (from 1) of the bands taken as red, green and blue, `4,3,2`, or of one as grey; by default as the files say.
        page: number (from 1) of the page, frame or slice to read.
        untagged: the pictures of a folder need no tags, since they will be tagged; `classes` says what to look for.
        skip_missing: leave out pictures that are listed but missing.
        progress: called during long work with how much is done and how much there is.

    Raises:
        BadInput: there is no such path, its layout is none or more than one of `LAYOUTS`, what is in it does not fit together, or files
            are not its own (see `wsss.data.file_checks`).

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
    root, source = Path(path), None if tags is None else Path(tags)
    if is_regular(root) and source is None and root.suffix.lower() in TABLE_SUFFIXES and root.name not in _OWN_TABLES:
        root, source = root.parent, root
    elif is_regular(root) and root.suffix.lower() in (".json", ".jsonl", ".csv", ".yaml", ".yml"):
        root = root.parent
    if not os.path.exists(root):
        raise BadInput(root, "no such file or folder", LAYOUTS, "Check the path.")
    if not root.is_dir():
        raise BadInput(root, "a file", LAYOUTS, "Unpack it if it is an archive, and give the folder.")
    if source is not None and (not is_regular(source) or source.suffix.lower() not in TAG_SUFFIXES):
        found = f"a file of kind {source.suffix!r}" if is_regular(source) else "no such file"
        raise BadInput(source, found, f"a file of tags ({', '.join(TAG_SUFFIXES)})", "Check --tags.")
    given = _class_source(classes) if isinstance(classes, str) else classes
    options = LayoutOptions(
        train=train,
        val=val,
        classes=None if given is None else only_classes(read_classes(given), negatives),
        tags=source,
        tag_column=tag_column,
        negatives=frozenset(negatives),
        mask_values=mask_values,
        upright=upright,
        skip_missing=skip_missing,
    )
    asked = ReadingRequest.of(value_range, bands, page)
    rules = {name: rule for name, rule in (("tag_rule", tag_rule), ("mask_rule", mask_rule)) if rule is not None}
    untagged_of = given if untagged else None
    opened = _opened(root, given, options, rules, untagged_of, allow_outside, progress).with_mask_values(mask_values)
    check_files(opened, allow_outside=allow_outside)
    pictures = list(dict.fromkeys(picture for images in opened.splits.values() for picture in images.paths))
    reading, notes = choose_reading(pictures, opened.root, asked)
    if opened.kind not in (
        "voc",
        "coco",
    ):  # these are huge folders, in which nobody keeps other pictures, and see to orientations themselves
        notes += notes_on_unreadable(opened.root)
        notes += [note for images in opened.splits.values() for note in notes_on_orientation(images)]
    return opened.with_reading(reading, notes)


_YOLO, _PAIRS = "YOLO's tools", "pairs of folders"
# Layouts that are found out by their files: what to call them, what finds the files, what reads them
_READERS: tuple[tuple[str, Callable[[Path], Any], Callable[[Path, Any, LayoutOptions], LayoutContents]], ...] = (
    ("labelme", find_labelme, read_labelme),
    (_YOLO, find_yolo, read_yolo),
    ("Roboflow", find_roboflow, read_roboflow),
    ("Hugging Face's imagefolder", find_imagefolder, read_imagefolder),
    ("Label Studio", find_label_studio, read_label_studio),
    (_PAIRS, find_pairs, read_pairs),
)
# Tables that readers of their own take
_OWN_TABLES = ("metadata.csv", "metadata.jsonl", "_classes.csv")


def _opened(
    root: Path,
    classes: Path | Sequence[str] | None,
    options: LayoutOptions,
    rules: Mapping[str, Any],
    untagged: Path | Sequence[str] | None,
    allow_outside: bool,
    progress: Progress | None,
) -> Dataset:
    """The data set in the one layout that is recognised."""
    common: dict[str, Any] = {
        "train": options.train,
        "val": options.val,
        "classes": classes,
        "tags": options.tags,
        "skip_missing": options.skip_missing,
        "negatives": options.negatives,
    }
    if options.upright is not None:
        common["upright"] = options.upright
    voc_root, coco_root = find_voc(root), find_coco(root)
    if voc_root and coco_root and (voc_root / "ImageSets").is_dir():
        raise BadInput(
            root, f"both VOC's layout and COCO's ({listing(root)})", LAYOUTS, "Give the folder of one of the two."
        )
    if coco_root:
        _check_rules(rules, {"tag_rule": get_args(coco.TagRule), "mask_rule": get_args(coco.MaskRule)}, root)
        return open_coco(root, progress=progress, allow_outside=allow_outside, **common, **rules)
    if voc_root:
        _check_rules(rules, {"tag_rule": get_args(voc.TagRule)}, root)
        return open_voc(voc_root, mask_values=options.mask_values, **common, **rules)
    _check_rules(rules, {}, root)
    for deeper in ("*/JPEGImages", "*/*/JPEGImages", "*/annotations/instances_*.json"):
        if inner := next(iter(sorted(root.glob(deeper))), None):
            raise BadInput(root, f"a data set further down ({inner})", LAYOUTS, "Give its own folder.")
    table = find_table(root)
    folders = [path for path in root.iterdir() if path.is_dir() and not is_hidden(path.name)]
    if table is None and options.tags is None and len(folders) == 1 and not any(map(is_picture, root.iterdir())):
        (inner,) = folders
        if (find_coco(inner) or find_table(inner) or find_imagefolder(inner)) and not find_imagefolder(root):
            raise BadInput(root, f"a data set further down ({inner})", LAYOUTS, "Give its own folder.")
    if options.tags is None and table is None and untagged is None:
        readers = {name: (found, read) for name, find, read in _READERS if (found := find(root))}
        if (_PAIRS in readers and _YOLO in readers) and not has_label_files(root):
            del readers[_PAIRS]
        if len(readers) > 1:
            raise BadInput(
                root,
                f"what {' and '.join(readers)} write ({listing(root)})",
                LAYOUTS,
                "Move the files of all but one of them elsewhere, or name the tags with --tags.",
            )
        for found, read in readers.values():
            return assemble(root, read(root, found, options), options)
    if not any(is_picture(file) for file in files_below(root)):
        others = notes_on_unreadable(root)
        found = f"no picture that is read; {'; '.join(others)}" if others else listing(root)
        do = "Choose another folder, or arrange the pictures in one of these ways."
        raise BadInput(root, found, LAYOUTS, do)
    if untagged is not None and table is None:
        check_no_mask_folder(root)
        pictures = open_pictures(root) if options.upright is None else open_pictures(root, upright=options.upright)
        names = read_classes(untagged)
        labels = np.zeros((len(pictures), len(names)), bool)
        images = dataclasses.replace(pictures, class_names=names, labels=labels)
        return Dataset("pictures", root, {"train": images}, "train")
    return open_folder(root, allow_outside=allow_outside, **common)


def _class_source(classes: str) -> Path | list[str]:
    """A file of class names, or the names that stand in the text itself, separated by commas."""
    words = [name.strip() for name in classes.split(",") if name.strip()]
    is_path = os.path.exists(classes) or ("," not in classes and ("/" in classes or Path(classes).suffix))
    return Path(classes) if is_path else words


def _check_rules(rules: Mapping[str, str], known: Mapping[str, Sequence[str]], root: Path) -> None:
    for name, rule in rules.items():
        if rule not in known.get(name, ()):
            expected = f"one of {', '.join(known[name])}" if name in known else "none"
            raise BadInput(name, repr(rule), f"{expected} for {root}", "Choose another rule.")
