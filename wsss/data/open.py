"""Finding out what a path holds."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from wsss.data import coco, voc
from wsss.data.coco import find_coco, open_coco
from wsss.data.folder import find_table, open_folder, open_pictures
from wsss.data.images import Dataset
from wsss.data.lists import files_below, is_picture, listing, read_classes
from wsss.data.tables import TABLE_SUFFIXES, TAG_SUFFIXES
from wsss.data.voc import find_voc, open_voc
from wsss.errors import BadInput, is_regular
from wsss.stream import Progress

__all__ = ["LAYOUTS", "open_dataset", "open_pictures"]

LAYOUTS = (
    "one of: VOC 2012 or its layout (JPEGImages, Annotations, ImageSets/Segmentation/train.txt; classes.txt for classes of your own); "
    "COCO (annotations/instances_train2014.json and train2014/); a folder a class (cat/1.jpg, or train/cat/1.jpg and val/cat/2.jpg); "
    "a folder of pictures with a table tags.csv, tags.tsv or tags.jsonl (columns image, tags and, if you like, split and mask)"
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
    untagged: bool = False,
    skip_missing: bool = False,
    progress: Progress | None = None,
) -> Dataset:
    """Open a data set, whatever its layout.

    Args:
        path: the folder, one above VOC's, or the table of tags in it.
        train: split to train on, or a file that lists pictures.
        val: split to score segmenters on, or such a file.
        classes: class names in the order of their labels, separated by commas in one text, or a file with one a line.
        tags: a table of tags, `cls_labels.npy` of PSA and IRNet, `train_labels.npy` of CLIMS, or a list of CLIP-ES.
        tag_rule: how tags come out of annotations; see `open_voc` and `open_coco`.
        mask_rule: how COCO's masks are drawn; see `open_coco`.
        upright: turn pictures as their EXIF orientation says; by default only folders of one's own are.
        mask_values: what values or colours of mask files mean; see `wsss.data.labels.GRAMMAR`.
        untagged: the pictures of a folder need no tags, since they will be tagged; `classes` says what to look for.
        skip_missing: leave out pictures that are listed but missing.
        progress: called during long work with how much is done and how much there is.

    Raises:
        BadInput: there is no such path, its layout is none or more than one of `LAYOUTS`, or what is in it does not fit together.
    """
    root = Path(path)
    if root.suffix.lower() in TABLE_SUFFIXES and is_regular(root) and tags is None:
        root, tags = root.parent, root
    if not os.path.exists(root):
        raise BadInput(root, "no such file or folder", LAYOUTS, "Check the path.")
    if not root.is_dir():
        raise BadInput(root, "a file", LAYOUTS, "Unpack it if it is an archive, and give the folder.")
    source = None if tags is None else Path(tags)
    if source is not None and (not is_regular(source) or source.suffix.lower() not in TAG_SUFFIXES):
        found = f"a file of kind {source.suffix!r}" if is_regular(source) else "no such file"
        raise BadInput(source, found, f"a file of tags ({', '.join(TAG_SUFFIXES)})", "Check --tags.")
    common: dict[str, Any] = {
        "train": train,
        "val": val,
        "classes": _class_source(classes) if isinstance(classes, str) else classes,
        "tags": source,
        "skip_missing": skip_missing,
    }
    if upright is not None:
        common["upright"] = upright
    rules: dict[str, Any] = {
        name: rule for name, rule in (("tag_rule", tag_rule), ("mask_rule", mask_rule)) if rule is not None
    }
    voc_root, coco_root = find_voc(root), find_coco(root)
    if voc_root and coco_root and (voc_root / "ImageSets").is_dir():
        raise BadInput(
            root, f"both VOC's layout and COCO's ({listing(root)})", LAYOUTS, "Give the folder of one of the two."
        )
    if coco_root:
        _check_rules(rules, {"tag_rule": get_args(coco.TagRule), "mask_rule": get_args(coco.MaskRule)}, root)
        return open_coco(root, progress=progress, **common, **rules).with_mask_values(mask_values)
    if voc_root:
        _check_rules(rules, {"tag_rule": get_args(voc.TagRule)}, root)
        return open_voc(voc_root, **common, **rules).with_mask_values(mask_values)
    _check_rules(rules, {}, root)
    for deeper in ("*/JPEGImages", "*/*/JPEGImages", "*/annotations/instances_*.json"):
        if inner := next(iter(sorted(root.glob(deeper))), None):
            raise BadInput(root, f"a data set further down ({inner})", LAYOUTS, "Give its own folder.")
    if not any(is_picture(file) for file in files_below(root)):
        raise BadInput(
            root, listing(root), LAYOUTS, "Choose another folder, or arrange the pictures in one of these ways."
        )
    if untagged and classes is not None and find_table(root) is None:
        pictures = open_pictures(root) if upright is None else open_pictures(root, upright=upright)
        names = read_classes(common["classes"])
        labels = np.zeros((len(pictures), len(names)), bool)
        images = dataclasses.replace(pictures, class_names=names, labels=labels)
        return Dataset("pictures", root, {"train": images}, "train")
    return open_folder(root, **common).with_mask_values(mask_values)


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
