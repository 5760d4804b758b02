"""COCO (Lin et al., ECCV 2014): tags and masks from the instance annotations, by the rules that published methods used.

A mask is drawn when it is read, from the objects of its picture only.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, cast

import numpy as np

from wsss.arrays import Bool, UInt8
from wsss.data.coco_files import PictureFiles, annotation_files, split_folders
from wsss.data.coco_index import Instances, read_instances
from wsss.data.coco_shapes import MaskRule, draw_mask
from wsss.data.entries import DEFAULT_OPTIONS, LayoutOptions, only_split
from wsss.data.images import IGNORE, MOST_CLASSES, Dataset, Images, MaskFile, TrueMask
from wsss.data.lists import choose_split, existing_pictures, pictures_below, read_names, without_suffix
from wsss.data.names import relative_name
from wsss.data.orientation import choose_orientation, header_size_hw
from wsss.data.pictures import picture_size_hw
from wsss.data.roles import IGNORED, means_no_class
from wsss.data.tables import labels_by_name, labels_of, spellings
from wsss.errors import BadInput, is_regular
from wsss.foreign.npy import read_legacy_labels
from wsss.stream import in_threads

# Category ids 1..90 leave out 12, 26, 29, 30, 45, 66, 68, 69, 71, 83
COCO_CATEGORIES = {
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train", 8: "truck", 9: "boat",
    10: "traffic light", 11: "fire hydrant", 13: "stop sign", 14: "parking meter", 15: "bench", 16: "bird", 17: "cat",
    18: "dog", 19: "horse", 20: "sheep", 21: "cow", 22: "elephant", 23: "bear", 24: "zebra", 25: "giraffe", 27: "backpack",
    28: "umbrella", 31: "handbag", 32: "tie", 33: "suitcase", 34: "frisbee", 35: "skis", 36: "snowboard", 37: "sports ball",
    38: "kite", 39: "baseball bat", 40: "baseball glove", 41: "skateboard", 42: "surfboard", 43: "tennis racket",
    44: "bottle", 46: "wine glass", 47: "cup", 48: "fork", 49: "knife", 50: "spoon", 51: "bowl", 52: "banana", 53: "apple",
    54: "sandwich", 55: "orange", 56: "broccoli", 57: "carrot", 58: "hot dog", 59: "pizza", 60: "donut", 61: "cake",
    62: "chair", 63: "couch", 64: "potted plant", 65: "bed", 67: "dining table", 70: "toilet", 72: "tv", 73: "laptop",
    74: "mouse", 75: "remote", 76: "keyboard", 77: "cell phone", 78: "microwave", 79: "oven", 80: "toaster", 81: "sink",
    82: "refrigerator", 84: "book", 85: "clock", 86: "vase", 87: "scissors", 88: "teddy bear", 89: "hair drier",
    90: "toothbrush",
}  # fmt: skip

TagRule = Literal["clims", "icam", "clip-es"]


@dataclasses.dataclass(frozen=True, slots=True)
class InstanceMask:
    """A true mask drawn from the annotations of one picture."""

    instances: Instances
    position: int
    rule: MaskRule
    picture: Path | None = None
    """the annotated file; the mask must have its size"""
    upright: bool = False
    """whether the picture is rotated by its EXIF orientation"""
    crowds: bool = False
    """whether the rule `clims` draws crowds too"""

    @property
    def where(self) -> str:
        return f"{self.instances.path}, image {self.instances.ids[self.position]}"

    def read(self) -> UInt8[np.ndarray, "h w"]:
        height, width = self.size_hw
        # the size in the annotations is used only if the picture has it
        found = (height, width) if self.picture is None else picture_size_hw(self.picture, upright=self.upright)
        if self.picture is not None and found != (height, width):
            otherwise = picture_size_hw(self.picture, upright=not self.upright)
            raise BadInput(
                self.where,
                f"a size of {height}x{width} (height x width)",
                f"{found[0]}x{found[1]} like its picture {self.picture}",
                "Correct `height` and `width`"
                + (f", or set --upright {str(not self.upright).lower()}." if otherwise == (height, width) else "."),
            )
        objects = self.instances.objects(self.position)
        return draw_mask(objects, (height, width), self.rule, self.where, crowds=self.crowds)

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width according to the annotations."""
        height, width = self.instances.sizes_hw[self.position].tolist()
        return height, width

    def stamp(self) -> str:
        """Changes when the rule, the picture's size, its annotations or their classes do."""
        height, width = self.size_hw
        rule = f"{self.rule} with crowds" if self.crowds else self.rule
        return f"{rule}:{height}x{width}:{self.instances.digests[self.position]}"


def find_coco(path: Path) -> Path | None:
    """The root of COCO's layout: the path, if it has annotations (see `wsss.data.coco_files`) or folders such as `train2014`."""
    if annotation_files(path) or split_folders(path):
        return path
    return None


@dataclasses.dataclass
class _Layout:
    """A folder in one of COCO's layouts while it is read."""

    root: Path
    options: LayoutOptions
    files: dict[str, Path]
    folders: dict[str, Path]
    pictures: PictureFiles
    class_names: tuple[str, ...] = ()
    notes: list[str] = dataclasses.field(default_factory=list)
    _read: dict[str, Instances] = dataclasses.field(default_factory=dict)

    @property
    def tag_rule(self) -> TagRule:
        return cast(TagRule, self.options.tag_rule or "clims")  # open_dataset has checked the rule

    @property
    def mask_rule(self) -> MaskRule:
        return cast(MaskRule, self.options.mask_rule or ("icam" if self.tag_rule == "icam" else "clims"))

    def instances(self, split: str) -> Instances:
        """The annotations of a split, which are read once."""
        if split not in self._read:
            self._read[split] = read_instances(self.files[split])
        return self._read[split]

    def replace(self, split: str, instances: Instances) -> None:
        """Use other annotations for a split from now on."""
        self._read[split] = instances


def open_coco(root: Path, options: LayoutOptions = DEFAULT_OPTIONS) -> Dataset:
    """Open COCO 2014 or 2017, or other data with annotations in COCO's format.

    Annotations and pictures are in one of the layouts of `wsss.data.coco_files`. Only the annotations of the two splits in use
    are read. Without annotations, tags come from `tags` and true masks from `SegmentationClass` or `mask`, where CLIP-ES keeps them.

    Args:
        root: the folder with `annotations`.
        options: by default, `train` is the first of train2014, train2017 and `train` that exists, and `val` the split of the same year.
            `classes` renames the classes, in the order of the category ids. With `tags`, a table, `train_labels.npy` of CLIMS or a list of
            CLIP-ES, pictures without an entry are left out.
            `tag_rule` is `clims` by default: the categories of all objects, including crowds, with pictures ordered by id; `clip-es` leaves out
            pictures without any; `icam` takes the classes that are visible in its masks, with pictures in the order of the file.
            `mask_rule`, see `draw_mask`, is `icam` by default if the tags follow `icam`, else `clims`. ICAM draws the 2014 splits from the
            annotations of 2017 too if they exist. By default, crowds are treated as objects in data that is not COCO's own, since tools
            mark ordinary objects as crowds.
            `upright` None leaves COCO's own pictures as they are, as the published loaders do; see `wsss.data.orientation` for others.
            `progress` is called while masks are drawn for the tags of `icam`, with the number of masks drawn and of all.

    Raises:
        BadInput: annotations, pictures or lists do not fit together.
    """
    files, folders = annotation_files(root), split_folders(root)
    layout = _Layout(root, options, files, folders, PictureFiles(root, files, folders, options.allow_outside))
    available = list(files or folders)
    lists = [
        name for name in (options.train, options.val) if name is not None and name not in available and is_regular(name)
    ]
    usual = ("train2014", "train2017", "train", *only_split(available))
    train = choose_split(options.train, [*available, *lists], usual, root)
    if train is None:
        raise BadInput(
            root / "annotations" / "instances_train2014.json",
            f"no such file (splits found: {', '.join(available)})",
            "the annotations of a training split",
            "Fetch them, or choose a split with --train.",
        )
    same_year = (train.replace("train", "val"),) if "train" in train else ()
    val = choose_split(options.val, [*available, *lists], same_year, root)
    used = list(dict.fromkeys(split for split in (train, val) if split))
    layout.class_names = _class_names(layout, [split for split in used if split in files])
    splits = {
        split: _listed_images(layout, split) if split in lists else _split_images(layout, split) for split in used
    }
    if unused := [split for split in available if split not in used]:
        layout.notes.append(f"there are more splits, which --train and --val can choose: {', '.join(unused)}")
    if not splits[train].labels.any():
        raise BadInput(
            options.tags or root,
            f"no tags for {train}",
            "tags of its pictures",
            "Give a table or a list with --tags.",
        )
    scored = train if splits[train].has_masks else None
    return Dataset("coco", root, splits, train, scored_split=scored, val=val, notes=tuple(layout.notes))


def _class_names(layout: _Layout, splits: Sequence[str]) -> tuple[str, ...]:
    _remove_non_classes(layout, splits)
    categories = [(layout.files[split], layout.instances(split).categories) for split in splits] or [
        (layout.root, COCO_CATEGORIES)
    ]
    where, first = categories[0]
    for other, names in categories[1:]:
        if names != first:
            raise BadInput(
                other, f"{len(names)} other categories", f"those of {where}", "Use annotations that belong together."
            )
    given = layout.options.classes
    if given is None:
        return tuple(first.values())
    if len(given) != len(first):
        raise BadInput(
            where, f"{len(first)} categories", f"{len(given)}, one for each class given", "Correct the list of classes."
        )
    return given


def _remove_non_classes(layout: _Layout, splits: Sequence[str]) -> None:
    """Remove categories that are no classes from the annotations: the background, ignored regions, Roboflow's supercategory."""
    read = [layout.instances(split) for split in splits]
    for number, name in {number: name for instances in read for number, name in instances.categories.items()}.items():
        label = 0 if means_no_class(name, layout.options.negatives) else IGNORE if name == IGNORED else None
        supercategories = {
            instances.supercategories.get(other)
            for instances in read
            for other in instances.categories
            if other != number
        }
        used = any(
            (instances.classes == list(instances.categories).index(number)).any()
            for instances in read
            if number in instances.categories
        )
        if label is None and number == 0 and not used and name in supercategories:
            layout.notes.append(
                f"the category {name!r} (id 0) is no class: it is the supercategory of others, and no object has it"
            )
            label = 0
        if label is not None:
            for split in splits:
                layout.replace(split, layout.instances(split).without(number, label))


def _split_images(layout: _Layout, split: str) -> Images:
    if split not in layout.files:
        pictures = pictures_below(layout.folders[split])
        return _images(layout, split, [(name, path, None) for name, path in pictures.items()], layout.folders[split])
    instances = layout.instances(split)
    order = np.argsort(instances.ids) if layout.tag_rule != "icam" else np.arange(len(instances.ids))
    places: list[tuple[Instances, int]] = [(instances, position) for position in order.tolist()]
    return _images(layout, split, [_entry(layout, split, *place) for place in places], layout.files[split])


def _listed_images(layout: _Layout, split: str) -> Images:
    """The pictures of a list file, found in one annotation file after another."""
    names = list(read_names(Path(split), {}))
    found: dict[str, tuple[str, Path | None, tuple[Instances, int] | None]] = {}
    for candidate in sorted(
        layout.files, key=lambda name: (name not in Path(split).stem and not names[0].startswith(f"COCO_{name}"), name)
    ):
        if len(found) == len(names):
            break
        instances = layout.instances(candidate)
        positions = {
            without_suffix(file.rpartition("/")[2]): position for position, file in enumerate(instances.file_names)
        }
        positions |= {f"{image_id:012d}": position for position, image_id in enumerate(instances.ids.tolist())}
        for name in names:
            position = positions.get(name.rpartition("/")[2])
            if name not in found and position is not None:
                found[name] = _entry(layout, candidate, instances, position)
    unknown = [name for name in names if name not in found]
    if unknown:
        raise BadInput(
            split,
            f"{len(unknown)} of {len(names)} names that are in no annotation file ({unknown[0]!r} first)",
            "names of pictures or twelve-digit ids",
            "Correct the list, or fetch the annotations that it belongs to.",
        )
    return _images(layout, split, [found[name] for name in names], Path(split))


def _entry(
    layout: _Layout, split: str, instances: Instances, position: int
) -> tuple[str, Path | None, tuple[Instances, int]]:
    file_name = instances.file_names[position]
    image_id = int(instances.ids[position])
    path = layout.pictures.find(split, file_name, image_id, f"{instances.path}, image {image_id}")
    name = without_suffix(path.name if path and "/" not in file_name else file_name)
    return relative_name(name), path, (instances, position)


def _images(
    layout: _Layout, split: str, entries: Sequence[tuple[str, Path | None, tuple[Instances, int] | None]], where: Path
) -> Images:
    pictures = {name: path for name, path, _ in entries if path}
    places = {name: place for name, _, place in entries}
    names = existing_pictures(
        [name for name, _, _ in entries],
        pictures,
        where,
        split,
        needed=True,
        skip_missing=layout.options.skip_missing,
        notes=layout.notes,
    )
    published = _is_published(names, [places[name] for name in names])
    masks = _masks(layout, split, [(name, pictures[name], places[name]) for name in names], published)
    upright = bool(layout.options.upright)
    if not published:
        masks_of = {pictures[name]: mask for name, mask in zip(names, masks, strict=True) if mask}
        upright = choose_orientation(masks_of, _mask_size_hw, layout.options.upright, split, layout.notes)
    masks = [dataclasses.replace(mask, upright=upright) if isinstance(mask, InstanceMask) else mask for mask in masks]
    labels, untagged = _labels(layout, split, names, places, masks)
    keep = [index for index, name in enumerate(names) if name not in untagged]
    if untagged:
        layout.notes.append(f"{split}: {len(untagged)} pictures without a tag left out")
    return Images(
        title=f"coco/{Path(split).stem}",
        names=tuple(names),
        paths=tuple(pictures[name] for name in names),
        class_names=layout.class_names,
        labels=labels,
        masks=tuple(masks),
        upright=upright,
    ).subset(keep)


def _labels(
    layout: _Layout,
    split: str,
    names: Sequence[str],
    places: Mapping[str, tuple[Instances, int] | None],
    masks: Sequence[TrueMask | None],
) -> tuple[Bool[np.ndarray, "n c"], set[str]]:
    """Labels, and the names of the pictures that are left out because they have none."""
    n_classes = len(layout.class_names)
    if layout.options.tags is not None:
        found, missing = labels_of(names, _tag_file(layout, split, layout.options.tags), n_classes)
        return found, set(missing) if len(missing) < len(names) else set()
    known = [place for place in (places[name] for name in names) if place]
    if len(known) < len(names):
        layout.notes.append(f"{split}: no tags, since there is neither an annotation file nor a table of tags")
        return np.zeros((len(names), n_classes), bool), set()
    if layout.tag_rule == "icam":
        drawn = [mask for mask in masks if mask]
        if len(drawn) < len(names):
            found_without = f"{len(names) - len(drawn)} pictures of {split} whose objects have no outlines"
            expected = "outlines of all objects, since `icam` takes the classes visible in masks"
            raise BadInput("tag_rule", found_without, expected, "Choose another rule.")
        visible = in_threads(
            lambda mask: np.bincount(mask.read().ravel(), minlength=256)[1 : n_classes + 1] > 0,
            drawn,
            len(drawn),
            layout.options.progress,
        )
        return np.array(list(visible)), set()
    labels = np.array([instances.labels(position) for instances, position in known])
    if layout.tag_rule == "clip-es":
        return labels, {name for name, row in zip(names, labels, strict=True) if not row.any()}
    return labels, set()


def _tag_file(layout: _Layout, split: str, path: Path) -> dict[str, Bool[np.ndarray, " c"]]:
    if path.suffix.lower() == ".npy" and split in layout.files:
        rows = read_legacy_labels(path)
        if isinstance(rows, np.ndarray):
            ids = np.sort(layout.instances(split).ids).tolist()
            if rows.shape[1] != len(layout.class_names):
                raise BadInput(
                    path, f"rows of {rows.shape[1]} labels", f"{len(layout.class_names)}", "Give another file."
                )
            return (
                {str(image_id): row for image_id, row in zip(ids, rows, strict=True)} if len(rows) == len(ids) else {}
            )
    return labels_by_name(path, layout.class_names)


def _is_published(names: Sequence[str], places: Sequence[tuple[Instances, int] | None]) -> bool:
    """Whether the pictures are COCO's own: they are named by its ids, and have its categories."""
    for name, place in zip(names, places, strict=True):
        number = re.fullmatch(r"(?:.*/)?(?:COCO_(?:train|val|test)20\d\d_)?(\d{12})", name)
        if number is None or (place is not None and place[0].ids[place[1]] != int(number[1])):
            return False
    return all(instances.categories == COCO_CATEGORIES for instances in _files(places))


def _files(places: Sequence[tuple[Instances, int] | None]) -> list[Instances]:
    return list({id(place[0]): place[0] for place in places if place}.values())


def _mask_size_hw(mask: TrueMask) -> tuple[int, int] | None:
    if isinstance(mask, InstanceMask):
        return mask.size_hw
    return header_size_hw(mask.path) if isinstance(mask, MaskFile) else None


def _masks(
    layout: _Layout, split: str, entries: Sequence[tuple[str, Path, tuple[Instances, int] | None]], published: bool
) -> list[TrueMask | None]:
    if any(place is None for _, _, place in entries):
        files: dict[str, Path] = {}
        for folder in (
            layout.root / "mask" / split,
            layout.root / "SegmentationClass",
            layout.root / "SegmentationClass" / split,
        ):
            files |= pictures_below(folder, (".png",))
        found = [next((files[key] for key in spellings(name) if key in files), None) for name, _, _ in entries]
        return [MaskFile(path) if path else None for path in found]
    if len(layout.class_names) > MOST_CLASSES:
        layout.notes.append(f"{split}: no true masks, since {len(layout.class_names)} classes are too many for 8 bits")
        return [None] * len(entries)
    rule = layout.mask_rule
    places = [place for _, _, place in entries if place]
    if rule == "icam" and any(instances.path.stem.endswith("2014") for instances, _ in places):
        if {"train2017", "val2017"} <= layout.files.keys():
            layout.notes.append(f"{split}: masks are drawn from the annotations of 2017, as ICAM does for 2014 too")
            places = _of_2017(layout, places)
        else:
            layout.notes.append(
                f"{split}: masks are drawn from the annotations of 2014; ICAM took those of 2017, which do not exist here"
            )
    crowds = rule == "clims" and layout.options.mask_rule is None and not published
    if crowds:
        layout.notes += _notes_on_crowds(split, places)
    outlined, notes = _outlined(split, places)
    layout.notes += notes
    return [
        InstanceMask(instances, position, rule, path, crowds=crowds) if complete else None
        for (_, path, _), (instances, position), complete in zip(entries, places, outlined, strict=True)
    ]


def _notes_on_crowds(split: str, places: Sequence[tuple[Instances, int]]) -> list[str]:
    marked = sum(int(instances.crowds[instances.among(position)].sum()) for instances, position in places)
    if not marked:
        return []
    return [
        f"{split}: {marked} objects are marked as crowds (`iscrowd`) and treated as ordinary objects, since some tools mark ordinary "
        "masks so; --mask-rule clims leaves them out of the true masks"
    ]


def _outlined(split: str, places: Sequence[tuple[Instances, int]]) -> tuple[list[bool], list[str]]:
    """Whether all objects of each picture have outlines, so that it has a true mask; and notes on the others.

    If no object of the split has an outline, pictures without objects have no true mask either.
    """
    found = [instances.outlined[instances.among(position)] for instances, position in places]
    boxes = sum(int((outlined == 0).sum()) for outlined in found)
    cut = sum(int((outlined == 2).sum()) for outlined in found)
    any_outline = boxes == 0 or any((outlined > 0).any() for outlined in found)
    complete = [any_outline and bool((outlined > 0).all()) for outlined in found]
    notes = []
    if boxes:
        notes.append(
            f"{split}: {boxes} objects have no outline (only boxes); for this reason, {len(complete) - sum(complete)} of {len(complete)} "
            "pictures have tags but no true mask"
        )
    if cut:
        notes.append(f"{split}: polygons with fewer than three corners are left out of {cut} objects")
    return complete, notes


def _of_2017(layout: _Layout, places: Sequence[tuple[Instances, int]]) -> list[tuple[Instances, int]]:
    newer: dict[int, tuple[Instances, int]] = {}
    for split in ("train2017", "val2017"):
        instances = layout.instances(split)
        newer |= {image_id: (instances, position) for position, image_id in enumerate(instances.ids.tolist())}
    wanted = [int(instances.ids[position]) for instances, position in places]
    missing = [image_id for image_id in wanted if image_id not in newer]
    if missing:
        raise BadInput(
            layout.root / "annotations",
            f"{len(missing)} images of 2014 without an entry in 2017 ({missing[0]} first)",
            "an entry for each, as in the published files",
            "Complete the files of 2017, or remove them.",
        )
    return [newer[image_id] for image_id in wanted]
