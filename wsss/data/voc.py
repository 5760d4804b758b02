"""PASCAL VOC 2012 (Everingham et al., IJCV 2010), its extension SBD (Hariharan et al., ICCV 2011), and other data in VOC's layout."""

import dataclasses
import glob
import hashlib
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, cast

import numpy as np

from wsss import cache
from wsss.arrays import Bool, UInt8
from wsss.data.entries import DEFAULT_OPTIONS, LayoutOptions, only_split
from wsss.data.files import read_mask, write_mask
from wsss.data.images import Dataset, Images, MaskFile, check_labels
from wsss.data.labelmap import read_labelmap
from wsss.data.labels import MaskTable, parse_mask_values
from wsss.data.lists import choose_split, existing_pictures, pictures_below, read_classes, read_names, suggestion
from wsss.data.orientation import choose_orientation, header_size_hw
from wsss.data.roles import IGNORED, means_no_class, only_classes
from wsss.data.tables import labels_by_name, labels_of
from wsss.errors import BadInput, is_regular, reading
from wsss.foreign.matlab import read_field
from wsss.storage import whole_file
from wsss.stream import Progress, in_threads

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

TagRule = Literal["irn", "clims-camera-ready", "clip-es"]

# Images per class with the published labels and lists, which the results of PSA, IRNet, CLIMS, VWL, ICAM and CLIP-ES rest on
_IMAGES_PER_CLASS = {
    "train": (88, 65, 105, 78, 87, 78, 128, 131, 148, 64, 82, 121, 68, 81, 442, 82, 63, 93, 83, 84),
    "train_aug": (
        590,
        504,
        705,
        468,
        714,
        393,
        1150,
        1005,
        1228,
        267,
        613,
        1188,
        445,
        492,
        4155,
        522,
        300,
        649,
        503,
        567,
    ),
    "val": (90, 79, 103, 72, 96, 74, 127, 119, 123, 71, 75, 128, 79, 76, 445, 85, 57, 90, 84, 74),
}
_IMAGES = {"train": 1464, "train_aug": 10582, "val": 1449}
_TRAIN_AUG_SHA1 = "68b66c8b01411bb547870f6ab8e04f1f1d97c235"

SEGMENTATION_LISTS, _MAIN = "ImageSets/Segmentation", "ImageSets/Main"
_AUG_MASKS = "SegmentationClassAug"


def find_voc(path: Path) -> Path | None:
    """The root of VOC's layout: the folder itself, or `VOC2012` or `VOCdevkit/VOC2012` in it."""
    roots = (path, path / "VOC2012", path / "VOCdevkit" / "VOC2012")
    return next((root for root in roots if (root / "JPEGImages").is_dir()), None)


def read_annotation(
    path: Path,
    class_names: Sequence[str] = VOC_CLASSES,
    rule: TagRule = "irn",
    negatives: frozenset[str] = frozenset(),
) -> Bool[np.ndarray, " c"]:
    """Image-level labels from an annotation file, including objects marked difficult.

    Args:
        path: the XML file.
        class_names: the classes. Other names outside `object/name`, such as those of body parts, are left out.
        rule: `irn` takes every element `name` anywhere in the file (PSA, SEAM, IRNet, CLIMS, QA-CLIMS, VWL, ICAM);
            `clip-es` only those of objects; `clims-camera-ready` likewise, but drops objects whose box has no width or no height
            after it is clipped to the picture and truncated to integers.
        negatives: names of objects that are no class, in addition to `background`, `_background_` and `__ignore__`.

    Raises:
        BadInput: the file is missing or broken, or an object has a name that is no class.
    """
    tree = _annotation(path)
    labels = np.zeros(len(class_names), bool)
    objects = tree.findall("object")
    for entry in objects:
        name = (entry.findtext("name") or "").strip()
        if name not in class_names:
            if name == IGNORED or means_no_class(name, negatives):
                continue
            raise BadInput(
                path,
                f"an object {name!r}, which is no class",
                f"one of the {len(class_names)} classes ({', '.join(class_names[:8])}{', ...' if len(class_names) > 8 else ''})",
                f"{suggestion(name, class_names)}Give the list of classes (classes.txt in the data set, or --classes).",
            )
        if rule != "clims-camera-ready" or _has_area(entry, tree, path):
            labels[class_names.index(name)] = True
    if rule == "irn":
        names = {(element.text or "").strip() for element in tree.iter("name")}
        labels |= [name in names for name in class_names]
    return labels


def _annotation(path: Path) -> ElementTree.Element:
    expected = "a VOC annotation with object/name"
    with reading(path, expected, missing="Add it, or give the tags in a table (--tags)."):
        return ElementTree.fromstring(path.read_bytes())


def _has_area(entry: ElementTree.Element, tree: ElementTree.Element, path: Path) -> bool:
    with reading(path, "numbers in bndbox and size of each object", "Choose another rule, or correct the file."):
        width, height = (float(tree.findtext(f"size/{side}") or "") for side in ("width", "height"))
        left, right = (float(entry.findtext(f"bndbox/{side}") or "") for side in ("xmin", "xmax"))
        top, bottom = (float(entry.findtext(f"bndbox/{side}") or "") for side in ("ymin", "ymax"))
        corners = [
            int(min(max(at, 0.0), most))
            for at, most in ((left, width), (right, width), (top, height), (bottom, height))
        ]
    return corners[0] != corners[1] and corners[2] != corners[3]


@dataclasses.dataclass
class _Layout:
    """A folder in VOC's layout while it is read."""

    root: Path
    options: LayoutOptions
    class_names: tuple[str, ...]
    pictures: dict[str, Path]
    masks: dict[str, Path]
    notes: list[str]
    table: MaskTable | None

    @property
    def is_published(self) -> bool:
        """Whether this is VOC 2012, which is recognised by its classes and by names such as 2007_000032."""
        return self.class_names == VOC_CLASSES and all(re.fullmatch(r"\d{4}_\d{6}", name) for name in self.pictures)

    def mask(self, name: str) -> MaskFile | None:
        return MaskFile(self.masks[name], self.table) if name in self.masks else None

    def labels(self, names: Sequence[str], tags: Path | None) -> dict[str, Bool[np.ndarray, " c"]]:
        """Labels of the pictures that have any source of labels; `tags` replaces the annotations."""
        if tags is not None:
            found, missing = labels_of(names, labels_by_name(tags, self.class_names), len(self.class_names))
            untagged = set(missing)
            return {name: row for name, row in zip(names, found, strict=True) if name not in untagged}
        if _has_annotations(self.root):
            return self._annotated(names)
        if by_class := self._labels_from_class_lists():
            self.notes.append("tags come from the lists of single classes in ImageSets/Main")
            return {name: row for name, row in by_class.items() if name in set(names)}
        self.notes.append(
            "tags are the classes of the true masks, since there are neither Annotations nor a table of tags"
        )
        return {name: self._mask_labels(mask) for name in names if (mask := self.mask(name))}

    def _annotated(self, names: Sequence[str]) -> dict[str, Bool[np.ndarray, " c"]]:
        """Labels of the pictures that have an annotation; what an unchanged file says is remembered (`wsss.cache`)."""
        # open_dataset has checked the rule
        rule = cast(TagRule, self.options.tag_rule or ("irn" if self.is_published else "clip-es"))
        negatives = self.options.negatives
        annotations = {name: self.root / "Annotations" / f"{name}.xml" for name in names}
        annotations = {name: path for name, path in annotations.items() if path.is_file()}

        def classes(path: Path) -> list[int]:
            return np.flatnonzero(read_annotation(path, self.class_names, rule, negatives)).tolist()

        identity = ("annotations", str(self.root.absolute()), self.class_names, rule, sorted(negatives))
        found = cache.of_files(identity, list(annotations.values()), classes)
        labels = np.zeros((len(found), len(self.class_names)), bool)
        for row, positions in zip(labels, found, strict=True):
            row[positions] = True
        return dict(zip(annotations, labels, strict=True))

    def _labels_from_class_lists(self) -> dict[str, Bool[np.ndarray, " c"]]:
        """Labels from `ImageSets/Main/CLASS_SPLIT.txt`, whose lines hold a name and 1, 0 (difficult) or -1 (absent)."""
        expected = "a name and 1, 0 or -1 per line"
        labels: dict[str, Bool[np.ndarray, " c"]] = {}
        for position, class_ in enumerate(self.class_names):
            for path in sorted((self.root / _MAIN).glob(f"{glob.escape(class_)}_*.txt")):
                if path.stem[len(class_) + 1 :] not in _find_lists(self.root):
                    continue
                for name, rest in read_names(path, self.pictures).items():
                    if rest not in ("1", "0", "-1"):
                        raise BadInput(path, f"{rest!r} after {name!r}", expected, "Write the list again.")
                    row = labels.setdefault(name, np.zeros(len(self.class_names), bool))
                    row[position] |= rest != "-1"
        return labels

    def _mask_labels(self, mask: MaskFile) -> Bool[np.ndarray, " c"]:
        labels = mask.read()
        check_labels(labels, len(self.class_names) + 1, mask.where, self.class_names)
        return np.bincount(labels.ravel(), minlength=256)[1 : len(self.class_names) + 1] > 0


@dataclasses.dataclass
class _Lists:
    """The lists of splits: their files, and the names in them."""

    files: dict[str, Path]
    names: dict[str, list[str]]


def open_voc(root: Path, options: LayoutOptions = DEFAULT_OPTIONS) -> Dataset:
    """Open VOC 2012, or other data in its layout.

    Classes come from `classes.txt` in the root (one name per line), `labelmap.txt` (CVAT, Datumaro; see `wsss.data.labelmap`),
    `class_names.txt` (labelme2voc), or the annotations. They are VOC's 20 only if the annotations use their names, or if all pictures are
    named as in VOC 2012. Splits are the lists of `ImageSets/Segmentation` and `ImageSets/SegmentationAug`, or else of `ImageSets/Main`;
    without any list, all pictures are trained on. Without a list `train_aug`, this split consists of the pictures with masks in
    `SegmentationClassAug` that are not in `val`. The true mask of a picture is that of `SegmentationClass`, or else of
    `SegmentationClassAug`. Tags come from `Annotations`, or else from the lists of single classes in `ImageSets/Main`, or else from the masks.

    Args:
        root: the folder with `JPEGImages`.
        options: by default, `train` is `train_aug` if it exists, or else `train`; `val` is `val`. `tags` replaces `Annotations`; `tag_rule` is
            one of `TagRule`, see `read_annotation`, and by default `irn` for VOC's classes and `clip-es` (names of objects only) for others.
            `upright` None leaves VOC's own pictures as they are, as the published loaders do; see `wsss.data.orientation` for others.
            `mask_values` matters if tags come from masks.

    Raises:
        BadInput: lists, pictures, annotations or classes do not fit together.
    """
    notes: list[str] = []
    tags = options.tags
    if tags is None and not _has_annotations(root):
        tags = next(iter(sorted(root.glob("cls_labels*.npy"))), None)
        notes += [f"tags come from {tags.name}"] if tags else []
    layout = _read_layout(root, options, notes)
    lists = _read_lists(layout)
    train = choose_split(options.train, lists.names, ("train_aug", "train", *only_split(lists.names)), root)
    if train is None:
        raise BadInput(
            root / SEGMENTATION_LISTS / "train.txt",
            f"no such file (lists found: {', '.join(lists.names) or 'none'})",
            "a list with one picture name per line",
            "Add it, or name a split or a list file with --train.",
        )
    val = choose_split(options.val, lists.names, ("val",), root)
    names = {
        split: existing_pictures(
            listed,
            layout.pictures,
            lists.files[split],
            split,
            needed=split in (train, val),
            skip_missing=options.skip_missing,
            notes=notes,
        )
        for split, listed in lists.names.items()
    }
    names = {split: present for split, present in names.items() if present}
    labels = layout.labels(sorted({name for present in names.values() for name in present}), tags)
    splits: dict[str, Images] = {}
    for split, present in names.items():
        is_used = split in (train, val)
        if is_used:
            _check_tagged(split, present, labels, tags or root / "Annotations", all_needed=split == train)
        splits[split] = _images(layout, split, present, labels, is_used=is_used)
    if layout.is_published:
        notes += _compare_with_published(splits)
    else:
        notes += _notes_on_unused(layout.pictures, layout.masks, lists.names)
    return Dataset("voc", root, splits, train, scored_split=_scored_split(splits, train), val=val, notes=tuple(notes))


def _read_layout(root: Path, options: LayoutOptions, notes: list[str]) -> _Layout:
    """The pictures, masks and classes of a folder."""
    pictures = pictures_below(root / "JPEGImages")
    masks = {
        name: path
        for folder in (_AUG_MASKS, "SegmentationClassPNG", "SegmentationClass")
        for name, path in pictures_below(root / folder).items()
    }
    class_names, table = _classes(root, options, pictures, bool(masks), notes)
    if options.mask_values is not None:
        table = parse_mask_values(options.mask_values, class_names)
    elif table is not None:
        notes.append(f"masks are read by the colours of {table.source}")
    return _Layout(root, options, class_names, pictures, masks, notes, table)


def _read_lists(layout: _Layout) -> _Lists:
    """The lists of the folder and of the user, and those that stand in for missing ones."""
    root, options, pictures = layout.root, layout.options, layout.pictures
    files = _find_lists(root)
    names = {split: list(read_names(path, pictures)) for split, path in files.items()}
    for requested in (options.train, options.val):
        if requested is not None and requested not in names and is_regular(requested):
            files[requested], names[requested] = Path(requested), list(read_names(Path(requested), pictures))
    if not names and not (root / "ImageSets").is_dir():
        files["train"], names["train"] = root / "JPEGImages", list(pictures)
        layout.notes.append("there are no lists of splits (ImageSets): all pictures are trained on")
    if "train_aug" not in names and "val" in names and (derived := _derived_train_aug(root, names["val"])):
        files["train_aug"], names["train_aug"] = root / _AUG_MASKS, derived
        layout.notes.append(f"train_aug: the {len(derived)} pictures with masks in {_AUG_MASKS} that are not in val")
    return _Lists(files, names)


def _notes_on_unused(
    pictures: Mapping[str, Path], masks: Mapping[str, Path], lists: Mapping[str, Sequence[str]]
) -> list[str]:
    """Notes on files that no list names."""
    listed = {name for names in lists.values() for name in names}
    unlisted, unmatched = sorted(pictures.keys() - listed), sorted(masks.keys() - pictures.keys())
    notes = [f"{len(unlisted)} pictures are in no list and not used ({unlisted[0]} first)"] if unlisted else []
    return notes + ([f"{len(unmatched)} masks belong to no picture ({masks[unmatched[0]]} first)"] if unmatched else [])


def _has_annotations(root: Path) -> bool:
    """Whether there are annotations; Datumaro writes an empty folder."""
    return next((root / "Annotations").glob("*.xml"), None) is not None


def _classes(
    root: Path, options: LayoutOptions, pictures: Mapping[str, Path], has_masks: bool, notes: list[str]
) -> tuple[tuple[str, ...], MaskTable | None]:
    """The classes, and the table of the masks' colours if there is one."""
    labelmap = root / "labelmap.txt"
    if labelmap.is_file():
        named, table = read_labelmap(labelmap, options.negatives)
        if options.classes not in (None, named):
            raise BadInput(
                labelmap,
                f"the classes {', '.join(named)}",
                ", ".join(options.classes or ()),
                "Leave --classes out, or change the file.",
            )
        return named, table
    if options.class_names is not None:
        return options.class_names, None
    for source in (root / "classes.txt", root / "class_names.txt"):
        if source.is_file():
            return only_classes(read_classes(source), options.negatives), None
    if annotated := _annotated_names(root):
        if annotated & set(VOC_CLASSES):
            if not _named_like_voc(pictures):
                notes.append(
                    "the classes are VOC's 20, since the annotations use their names; --classes or classes.txt gives others"
                )
            return VOC_CLASSES, None
        if not has_masks:
            names = only_classes(sorted(annotated), options.negatives)
            notes.append(f"the classes are the {len(names)} names in Annotations, sorted")
            return names, None
    elif _named_like_voc(pictures):
        return VOC_CLASSES, None
    raise BadInput(
        root / "classes.txt",
        "no such file, and no labelmap.txt or class_names.txt",
        "the names of the classes: they are not those of VOC 2012 here",
        "Write classes.txt, one name per line in the order of the labels 1, 2, ... in the masks, or give the names with --classes.",
    )


def _named_like_voc(pictures: Mapping[str, Path]) -> bool:
    return bool(pictures) and all(re.fullmatch(r"20\d\d_\d{6}", name) for name in pictures)


def _annotated_names(root: Path) -> set[str]:
    names: set[str] = set()
    for path in sorted((root / "Annotations").glob("*.xml")):
        names |= {(entry.findtext("name") or "").strip() for entry in _annotation(path).findall("object")}
    return names


def _find_lists(root: Path) -> dict[str, Path]:
    lists: dict[str, Path] = {}
    for folder in (SEGMENTATION_LISTS, "ImageSets/SegmentationAug"):
        for path in sorted((root / folder).glob("*.txt")):
            lists.setdefault(re.sub(r"(train|trainval)_?aug$", r"\1_aug", path.stem), path)
    if not lists:
        main = {path.stem: path for path in sorted((root / _MAIN).glob("*.txt"))}
        lists = {
            split: path for split, path in main.items() if split.rpartition("_")[2] not in main or "_" not in split
        }
    return lists


def _derived_train_aug(root: Path, val: Sequence[str]) -> list[str]:
    return sorted(set(pictures_below(root / _AUG_MASKS, (".png",))) - set(val))


def _check_tagged(
    split: str,
    names: Sequence[str],
    labels: Mapping[str, Bool[np.ndarray, " c"]],
    source: Path,
    *,
    all_needed: bool,
) -> None:
    """Raise BadInput if only some pictures of a split have tags; if `all_needed`, also if none has."""
    untagged = [name for name in names if name not in labels]
    if untagged and (len(untagged) < len(names) or all_needed):
        raise BadInput(
            source,
            f"no tags for {len(untagged)} of the {len(names)} pictures of {split} ({untagged[0]!r} first)",
            "tags for each picture",
            "Add them, or remove these pictures from the list.",
        )


def _images(
    layout: _Layout, split: str, names: Sequence[str], labels: Mapping[str, Bool[np.ndarray, " c"]], *, is_used: bool
) -> Images:
    untagged = [name for name in names if name not in labels]
    if untagged:
        layout.notes.append(f"{split}: {len(untagged)} of {len(names)} pictures have no tags")
    no_labels = np.zeros(len(layout.class_names), bool)
    masks = tuple(layout.mask(name) for name in names)
    upright = bool(layout.options.upright)
    if not layout.is_published and is_used:
        masks_of = {layout.pictures[name]: mask.path for name, mask in zip(names, masks, strict=True) if mask}
        upright = choose_orientation(masks_of, header_size_hw, layout.options.upright, split, layout.notes)
    return Images(
        title=f"voc/{Path(split).stem}",
        names=tuple(names),
        paths=tuple(layout.pictures[name] for name in names),
        class_names=layout.class_names,
        labels=np.array([labels.get(name, no_labels) for name in names]),
        masks=masks,
        upright=upright,
    )


def _scored_split(splits: Mapping[str, Images], train: str) -> str | None:
    """`train`, whose masks are VOC's own, if the training split contains it; else the training split, if it has masks."""
    trained = set(splits[train].names)
    for split in ("train", train):
        if split in splits and splits[split].has_masks and trained.issuperset(splits[split].names):
            return split
    return None


def _compare_with_published(splits: Mapping[str, Images]) -> list[str]:
    notes = []
    for split, images in splits.items():
        if len(images) != _IMAGES.get(split):
            continue
        counted = tuple(images.labels.sum(0).tolist())
        if counted == _IMAGES_PER_CLASS[split]:
            notes.append(f"{split}: tags per class agree with the published ones")
        else:
            wrong = [name for name, a, b in zip(VOC_CLASSES, counted, _IMAGES_PER_CLASS[split], strict=True) if a != b]
            notes.append(f"{split}: tags differ from the published ones in {', '.join(wrong)}")
        if split == "train_aug":
            same = _TRAIN_AUG_SHA1 in (_sha1(images.names), _sha1(sorted(images.names)))
            notes.append(
                f"train_aug: {'the published list' if same else 'another order or other names than the published list'}"
            )
    return notes


def _sha1(names: Sequence[str]) -> str:
    return hashlib.sha1("".join(f"{name}\n" for name in names).encode()).hexdigest()


def make_segmentation_class_aug(sbd_root: Path, voc_root: Path, *, progress: Progress | None = None) -> Path:
    """Make `SegmentationClassAug` and the list train_aug from Semantic Contours from Inverse Detectors (Hariharan et al., ICCV 2011).

    The masks of VOC's train and val are VOC's own, all others SBD's. The list holds VOC's train and all of SBD, without VOC's
    val: 10,582 names for the complete sets. Existing masks are kept, so after an interruption the same command continues.

    Args:
        sbd_root: the folder with `cls/*.mat`, or `dataset` or `benchmark_RELEASE/dataset` in it.
        voc_root: VOC's root, where the files are written.
        progress: called with the number of masks done and of all masks.

    Returns:
        The list, `ImageSets/Segmentation/train_aug.txt`.

    Raises:
        BadInput: a folder or a file of SBD or VOC is missing or broken.
    """
    mats = _find_sbd(sbd_root)
    pictures = pictures_below(voc_root / "JPEGImages")
    train, val = (
        list(read_names(voc_root / SEGMENTATION_LISTS / f"{split}.txt", pictures)) for split in ("train", "val")
    )
    train_aug = sorted((mats.keys() | set(train)) - set(val))
    missing = [name for name in train_aug if name not in pictures]
    if missing:
        raise BadInput(
            voc_root / "JPEGImages",
            f"no picture for {len(missing)} of {len(train_aug)} names ({missing[0]} first)",
            "the pictures of VOC 2012, which contain those of SBD",
            "Unpack the complete archive of VOC 2012 train and val.",
        )
    official = {*train, *val}
    names = sorted(official | set(train_aug))

    def make(name: str) -> None:
        target = voc_root / _AUG_MASKS / f"{name}.png"
        if not target.is_file():
            write_mask(
                target,
                read_mask(voc_root / "SegmentationClass" / target.name)
                if name in official
                else read_sbd_mask(mats[name]),
            )

    for _ in in_threads(make, names, len(names), progress):
        pass
    listed = voc_root / SEGMENTATION_LISTS / "train_aug.txt"
    with whole_file(listed) as temporary:
        temporary.write_text("".join(f"{name}\n" for name in train_aug), encoding="utf-8")
    return listed


def _find_sbd(root: Path) -> dict[str, Path]:
    for folder in (root, root / "dataset", root / "benchmark_RELEASE" / "dataset"):
        mats = {path.stem: path for path in sorted((folder / "cls").glob("*.mat"))}
        if mats:
            return mats
    raise BadInput(
        root, "no cls/*.mat", "SBD's folder `dataset` with `cls/NAME.mat`", "Unpack benchmark.tgz and give its folder."
    )


def read_sbd_mask(path: Path) -> UInt8[np.ndarray, "h w"]:
    """The class mask of an SBD file: 0 background, 1..20; SBD has no ignored pixels.

    Raises:
        BadInput: the file is broken or holds no `GTcls.Segmentation` of labels 0..20.
    """
    expected = "a MATLAB file with GTcls.Segmentation, labels 0..20"
    with reading(path, expected, "Unpack SBD again."):
        mask = read_field(path.read_bytes(), "GTcls", "Segmentation")
    if (
        mask.ndim != 2
        or mask.dtype.kind not in "iu"
        or mask.max(initial=0) > len(VOC_CLASSES)
        or mask.min(initial=0) < 0
    ):
        raise BadInput(path, f"an array of {mask.dtype} {mask.shape}", expected, "Unpack SBD again.")
    return mask.astype(np.uint8)
