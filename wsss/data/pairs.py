"""Pairs of folders, one of pictures and one of masks, as used by OpenMMLab, Ultralytics and others.

    img_dir/train/1.jpg   ann_dir/train/1.png       also images/annotations, images/masks, image/label, and the like
    train/images/1.jpg    train/masks/1.png         folders of splits at the top
    images/1.jpg          masks/1_mask.png          no splits, and a suffix of all masks

Tags are the classes in the masks.
"""

import dataclasses
import os
from pathlib import Path

from wsss.data.entries import Entry, LayoutContents, LayoutOptions, labels_in_masks, picture_name, split_of
from wsss.data.images import MaskFile
from wsss.data.labels import parse_mask_values
from wsss.data.lists import files_below, is_hidden, is_picture, read_classes
from wsss.data.roles import only_classes
from wsss.errors import BadInput, is_regular

PICTURE_FOLDERS = frozenset(
    [
        "images",
        "image",
        "img",
        "imgs",
        "img_dir",
        "image_dir",
        "jpegimages",
        "leftimg8bit",
        "pictures",
        "photos",
        "input",
        "inputs",
        "rgb",
    ]
)
MASK_FOLDERS = frozenset((
    "masks", "mask", "labels", "label", "ann_dir", "mask_dir", "label_dir", "annotations", "annotation", "anns", "ann", "gt", "gts", "gtfine",
    "groundtruth", "ground_truth", "seg", "segs", "segmentation", "segmentations", "segmentationclass", "semantic", "labelids", "target",
    "targets",
))  # fmt: skip
# Endings that tools add to the name of a picture
ENDINGS = ("", "_mask", "-mask", "_label", "_labels", "_seg", "_gt", "_labelTrainIds", "_labelIds", "_segmentation")


@dataclasses.dataclass(frozen=True)
class Pair:
    """A folder of pictures and the folder of their masks; `split` if they are in the folder of a split."""

    pictures: Path
    masks: Path
    split: str | None = None


def find_pairs(root: Path) -> list[Pair]:
    """The pairs of folders in a folder or in its folders of splits; none if the pictures are in folders of classes.

    Raises:
        BadInput: there are several folders of pictures or of masks.
    """
    tops = _folders(root)
    splits = {split: path for path in tops if (split := split_of(path.name))}
    candidates = [_pair(root, None), *(_pair(path, split) for split, path in splits.items())]
    return [pair for pair in candidates if pair and _is_flat(pair)]


def _pair(folder: Path, split: str | None) -> Pair | None:
    tops = _folders(folder)
    pictures = [path for path in tops if path.name.lower() in PICTURE_FOLDERS and _has_pictures(path)]
    masks = [path for path in tops if path.name.lower() in MASK_FOLDERS and _has_pictures(path)]
    if not pictures or not masks:
        return None
    if len(pictures) > 1 or len(masks) > 1:
        raise BadInput(
            folder,
            f"the folders {', '.join(path.name for path in (*pictures, *masks))}",
            "one folder of pictures and one of masks",
            "Move the others elsewhere.",
        )
    return Pair(pictures[0], masks[0], split)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))


def _has_pictures(folder: Path) -> bool:
    return any(is_picture(path) for path in files_below(folder))


def _is_flat(pair: Pair) -> bool:
    """Whether the folder of pictures holds only pictures or folders of splits, and no folders of classes."""
    loose = any(is_picture(path) for path in pair.pictures.iterdir() if path.is_file())
    inside = [path for path in _folders(pair.pictures) if _has_pictures(path)]
    if pair.split is not None:
        return loose
    return loose or all(split_of(path.name) and _holds_loose(path) for path in inside)


def _holds_loose(folder: Path) -> bool:
    return any(is_picture(path) for path in folder.iterdir())


def read_pairs(root: Path, pairs: list[Pair], options: LayoutOptions) -> LayoutContents:
    """Pictures with the classes in their masks as tags.

    Raises:
        BadInput: no mask belongs to a picture, or the masks contain no class.
    """
    notes: list[str] = []
    listed = root / "classes.txt"
    names = options.class_names or (
        only_classes(read_classes(listed), options.negatives) if is_regular(listed) else None
    )
    found = [entry for pair in pairs for entry in _files(root, pair, notes)]
    if not found:
        raise BadInput(
            pairs[0].masks,
            "no mask that is named like a picture",
            f"masks under the names of the pictures in {pairs[0].pictures}",
            "Rename them: a mask has the name of its picture, without the suffix.",
        )
    table = parse_mask_values(options.mask_values, names or ()) if options.mask_values else None
    masks = [MaskFile(path, table) for _, _, path in found]
    present = labels_in_masks(masks)
    highest = max((label for labels in present for label in labels), default=0)
    if highest == 0:
        ignored = " and 255" if any(MaskFile(path, table).read().max() == 255 for _, _, path in found[:20]) else ""
        raise BadInput(
            pairs[0].masks,
            f"masks that contain only 0{ignored}",
            "labels 1, 2, ... of classes",
            "If 255 is the only class, use --mask-values 255=1." if ignored else "Choose the masks of these pictures.",
        )
    if names is None:
        names = tuple(f"class {label}" for label in range(1, highest + 1))
        notes.append(
            f"the {highest} classes have no names: write them into classes.txt in the order of their labels, or give them with --classes"
        )
    if highest > len(names):
        raise BadInput(
            pairs[0].masks,
            f"the label {highest}",
            f"labels up to {len(names)} ({', '.join(names[:8])})",
            "Complete the list of classes.",
        )
    notes.append(f"tags are the classes in the masks of {os.path.relpath(pairs[0].masks, root)}")
    entries = [
        Entry(
            split, picture_name(picture, root), picture, tuple(names[label - 1] for label in labels), mask.where, mask
        )
        for (split, picture, _), labels, mask in zip(found, present, masks, strict=True)
    ]
    return LayoutContents("pairs", entries, names, notes)


def _files(root: Path, pair: Pair, notes: list[str]) -> list[tuple[str, Path, Path]]:
    """Split, picture and mask of each picture that has one."""
    pictures = {_key(path, pair.pictures): path for path in files_below(pair.pictures) if is_picture(path)}
    masks: dict[str, Path] = {}
    for path in files_below(pair.masks):
        if is_picture(path):
            key = _key(path, pair.masks)
            if key in masks:
                raise BadInput(
                    path, f"a second mask {key!r} (the first is {masks[key]})", "one per picture", "Remove one."
                )
            masks[key] = path
    if not any(len(key.split("/")) > 1 for key in masks):
        # only the pictures are in splits
        pictures_of = {key: key.rpartition("/")[2] for key in pictures}
    else:
        pictures_of = {key: key for key in pictures}
    ending = max(ENDINGS, key=lambda end: sum(key + end in masks for key in pictures_of.values()))
    matched = {key: masks[name + ending] for key, name in pictures_of.items() if name + ending in masks}
    unmasked = [path for key, path in pictures.items() if key not in matched]
    if unmasked and matched:
        notes.append(
            f"{len(unmasked)} pictures left out, since they have no mask ({os.path.relpath(unmasked[0], root)} first)"
        )
    unmatched = masks.keys() - {name + ending for name in pictures_of.values()}
    if unmatched:
        notes.append(f"{len(unmatched)} masks belong to no picture ({min(unmatched)} first)")
    return [
        (pair.split or split_of(key.partition("/")[0]) or "train", pictures[key], mask) for key, mask in matched.items()
    ]


def _key(path: Path, folder: Path) -> str:
    return picture_name(path, folder)
