"""Pictures in folders: one folder per class, or a folder and a table of tags.

    ROOT/cat/1.jpg                              one folder per class; all pictures in it and in its sub-folders have that tag
    ROOT/train/cat/1.jpg  ROOT/val/cat/2.jpg    the same in splits (train, val, test)
    ROOT/any/where/1.jpg  ROOT/tags.csv         a table (see `wsss.data.tables`) with the columns image, tags, split, mask
    ROOT/classes.txt                            the classes in the order of their labels; otherwise they are sorted by name

Pictures may also be in `ROOT/images`. True masks are 8-bit PNGs of labels, 255 ignored (TIFF, BMP and GIF are read too): `ROOT/masks/` and
the picture's path with `.png`, or `NAME_mask.png` next to the picture, or the files in the table's column `mask`.
"""

import dataclasses
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from wsss.arrays import Bool, UInt8
from wsss.data.entries import DEFAULT_OPTIONS, LayoutOptions, split_of
from wsss.data.images import Dataset, Images, MaskFile, TrueMask
from wsss.data.lists import (
    choose_split,
    existing_pictures,
    files_below,
    is_hidden,
    is_picture,
    listing,
    pictures_below,
    read_classes,
    read_names,
    suggestion,
    tags_to_labels,
    without_suffix,
)
from wsss.data.lookalikes import check_folders_of_classes, check_other_files
from wsss.data.mask_files import MASKS, check_named_like_masks, check_unmatched_masks, separate_masks
from wsss.data.names import relative_name
from wsss.data.pairs import MASK_FOLDERS
from wsss.data.pictures import picture_size_hw
from wsss.data.roles import check_ambiguous, means_no_class, only_classes
from wsss.data.tables import TABLE_SUFFIXES, Row, labels_by_name, labels_of, read_table
from wsss.errors import PICTURES, BadInput, existing, is_regular

CLASSES = "classes.txt"


def open_folder(root: Path, options: LayoutOptions = DEFAULT_OPTIONS) -> Dataset:
    """Open a folder of pictures whose tags are folder names or come from a table.

    Args:
        root: the folder.
        options: by default, `train` is `train` and `val` is `val` if there is one. `classes` replaces `classes.txt`. `tags`, a table,
            `cls_labels.npy` or a list with class numbers, replaces `tags.csv`, `tags.tsv` or `tags.jsonl`. `upright` is True by default; true
            masks must have the same orientation. Pictures in a folder of `negatives`, or with such a tag, have no tags. With
            `allow_outside`, a table may name files by absolute paths or paths that lead upwards.

    Raises:
        BadInput: there are no pictures or no tags, they do not fit together, or the folders do not look like class folders.
    """
    layout = _Layout(root, options)
    table = options.tags if options.tags is not None else find_table(root)
    class_names = options.class_names
    if class_names is None and (root / CLASSES).is_file():
        class_names = only_classes(read_classes(root / CLASSES), options.negatives)
    if table is None:
        splits = _by_folder(layout, class_names)
    elif table.suffix.lower() in TABLE_SUFFIXES:
        splits = _by_table(layout, table, class_names)
    else:
        splits = _by_vectors(layout, table, class_names)
    everything = _concatenated(layout, splits)
    for requested in (options.train, options.val):
        if requested is not None and requested not in splits and is_regular(requested):
            splits[requested] = _listed(layout, Path(requested), everything)
    train = choose_split(options.train, splits, ("train",), root)
    if train is None:
        raise BadInput(root, f"the splits {', '.join(splits)}", "one called train", "Choose one with --train.")
    if not splits[train].labels.any():
        raise BadInput(
            table or root, f"no tag for any of the {len(splits[train])} pictures of {train}", "tags", "Add them."
        )
    if class_names is None:
        check_ambiguous(splits[train].class_names, table or root)
    scored = train if splits[train].has_masks else None
    val = choose_split(options.val, splits, ("val",), root)
    kind = "folders" if table is None else "tags"
    return Dataset(kind, root, splits, train, scored_split=scored, val=val, notes=tuple(layout.notes))


def open_pictures(path: Path, *, upright: bool = True) -> Images:
    """A picture, or all pictures of a folder and its sub-folders, without tags.

    Raises:
        BadInput: there are none.
    """
    pictures = pictures_below(path) if existing(path, PICTURES).is_dir() else {path.stem: path}
    if not pictures:
        raise BadInput(path, listing(path), "pictures", "Choose a folder with pictures in it.")
    none = np.zeros((len(pictures), 0), bool)
    return Images(path.name, tuple(pictures), tuple(pictures.values()), (), none, (None,) * len(pictures), upright)


def find_table(root: Path) -> Path | None:
    """The table of tags in a folder: `tags.csv`, `tags.tsv`, `tags.jsonl` or `cls_labels*.npy`.

    Raises:
        BadInput: there are several.
    """
    found = [path for suffix in TABLE_SUFFIXES if (path := root / f"tags{suffix}").is_file()]
    found += sorted(root.glob("cls_labels*.npy"))
    if len(found) > 1:
        raise BadInput(
            root, f"the tables {' and '.join(path.name for path in found)}", "one", "Choose one with --tags."
        )
    return found[0] if found else None


@dataclasses.dataclass(frozen=True)
class BackgroundMask:
    """The true mask of a picture without any class: background only."""

    picture: Path
    upright: bool

    @property
    def where(self) -> str:
        return f"{self.picture} (no class present)"

    def read(self) -> UInt8[np.ndarray, "h w"]:
        return np.zeros(picture_size_hw(self.picture, upright=self.upright), np.uint8)

    def stamp(self) -> str:
        return "background"


@dataclasses.dataclass
class _Layout:
    """The pictures and masks of a folder."""

    root: Path
    options: LayoutOptions
    notes: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        images = self.root / "images"
        others = [path for path in _folders(self.root) if path.name not in ("images", MASKS)]
        self.base = images if images.is_dir() and not others else self.root
        found = {
            name: path
            for name, path in pictures_below(self.base).items()
            if self.base == images or not name.startswith(f"{MASKS}/")
        }
        self.upright = self.options.upright is not False
        self.pictures, self.masks = separate_masks(found)
        masks = pictures_below(self.root / MASKS)
        self.masks |= masks if self.base == images else {self._named(name): path for name, path in masks.items()}
        if not self.pictures:
            raise BadInput(self.root, listing(self.root), "pictures", "Choose a folder with pictures in it.")

    def _named(self, name: str) -> str:
        """The name of a mask's picture, which may be in `images` even if other folders hold pictures too."""
        below_images = f"images/{name}"
        return below_images if name not in self.pictures and below_images in self.pictures else name

    def images(
        self,
        split: str,
        names: Sequence[str],
        class_names: tuple[str, ...],
        labels: Bool[np.ndarray, "n c"],
        masks: Mapping[str, TrueMask],
    ) -> Images:
        """The named pictures of a split, with the given masks, or else those found in the folder."""
        found: dict[str, TrueMask] = {name: MaskFile(path) for name, path in self.masks.items()}
        return Images(
            title=f"{self.root.name}/{split}",
            names=tuple(names),
            paths=tuple(self.pictures[name] for name in names),
            class_names=class_names,
            labels=labels,
            masks=tuple(masks.get(name) or found.get(name) for name in names),
            upright=self.upright,
        )


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not is_hidden(path.name))


def _by_folder(layout: _Layout, class_names: tuple[str, ...] | None) -> dict[str, Images]:
    """Splits and labels from the folders of the pictures."""
    check_other_files(layout.root, layout.pictures, (layout.options.train, layout.options.val))
    split_folders = _split_folders(layout)
    depth = 1 if split_folders else 0
    folders = {name: name.split("/")[depth] for name in layout.pictures}
    check_named_like_masks(layout.pictures, layout.masks)
    check_folders_of_classes(layout.base, layout.pictures, folders, class_names)
    layout.notes += check_unmatched_masks(layout.root, layout.base, layout.pictures, layout.masks)
    negative = {
        folder
        for folder in folders.values()
        if means_no_class(folder, layout.options.negatives) and folder not in (class_names or ())
    }
    tags = {name: folder for name, folder in folders.items() if folder not in negative}
    if negative:
        layout.notes.append(f"pictures without any class: {len(folders) - len(tags)} in {', '.join(sorted(negative))}")
    if class_names is None:
        class_names = tuple(sorted(set(tags.values())))
    for name, tag in tags.items():
        if tag not in class_names:
            tags_to_labels([tag], class_names, str(layout.pictures[name].parent))
    layout.notes += _notes_on_classes(class_names, tags, has_negatives=bool(negative))
    layout.notes += _notes_on_other_files(layout, sorted(split_folders))
    unmasked = folders.keys() - tags.keys() - layout.masks.keys() if layout.masks else ()
    masks = {name: BackgroundMask(layout.pictures[name], layout.upright) for name in unmasked}
    members: dict[str, list[str]] = defaultdict(list)
    for name in layout.pictures:
        members[str(split_of(name.partition("/")[0])) if split_folders else "train"].append(name)
    return {
        split: layout.images(
            split,
            names,
            class_names,
            np.array([[tags.get(name) == other for other in class_names] for name in names], bool).reshape(
                len(names), -1
            ),
            masks,
        )
        for split, names in members.items()
    }


def _tagging(options: LayoutOptions) -> str:
    """What has to be given so that pictures without tags are tagged."""
    needed = [] if options.untagged else ["--tags tagclip"]
    needed += [] if options.class_names else ["--classes 'cat, dog'"]
    return f"add {' and '.join(needed)}"


def _split_folders(layout: _Layout) -> set[str]:
    """The folders of splits above the class folders; none if the class folders are at the top.

    Raises:
        BadInput: there are pictures outside the class folders, or only some of them are in folders of splits.
    """
    loose = [name for name in layout.pictures if "/" not in name]
    if loose:
        raise BadInput(
            layout.base,
            f"{len(loose)} pictures outside any class folder ({layout.pictures[loose[0]].name} first) and no table of tags",
            "one folder per class (cat/1.jpg), or a table tags.csv with the columns image and tags",
            f"Move the pictures into folders named after their classes, or write the table. To have them tagged, {_tagging(layout.options)}.",
        )
    tops = {name.partition("/")[0] for name in layout.pictures}
    splits = {
        top
        for top in tops
        if split_of(top) and all(name.count("/") > 1 for name in layout.pictures if name.startswith(f"{top}/"))
    }
    others = sorted(tops - splits)
    if not splits or not others:
        return splits
    names = ", ".join(sorted(splits))
    if masks := [top for top in others if top.lower() in MASK_FOLDERS]:
        raise BadInput(
            layout.base / masks[0],
            f"a folder of masks next to the splits {names}",
            f"masks in a folder `{MASKS}`, under the names of their pictures ({MASKS}/{min(splits)}/cat/1.png)",
            "Rename it and the masks in it, or move it elsewhere.",
        )
    raise BadInput(
        layout.base,
        f"the split {names} next to {', '.join(others)}",
        "folders of classes, or folders of splits with folders of classes in them",
        "Put all pictures into splits, or none.",
    )


def _notes_on_classes(class_names: Sequence[str], tags: Mapping[str, str], *, has_negatives: bool) -> list[str]:
    empty = sorted(set(class_names) - set(tags.values()))
    notes = [f"classes without a picture: {', '.join(empty)}"] if empty else []
    if len(class_names) == 1 and not has_negatives:
        notes.append(
            "one class that all pictures have: a classifier learns nothing from this; add pictures of something else"
        )
    return notes


def _notes_on_other_files(layout: _Layout, splits: Sequence[str]) -> list[str]:
    empty = _without_pictures(layout, splits)
    do = "they are no classes; add pictures to them, or remove them"
    notes = [f"folders without a picture: {', '.join(empty)} ({do})"] if empty else []
    others = Counter(
        path.suffix.lower() or path.name
        for path in files_below(layout.base)
        if not is_picture(path) and path.parent != layout.root
    )
    if others:
        counts = ", ".join(f"{n} {suffix}" for suffix, n in sorted(others.items()))
        notes.append(f"files that are no pictures, ignored: {counts}")
    return notes


def _without_pictures(layout: _Layout, splits: Sequence[str]) -> list[str]:
    """Folders at the level of the class folders that hold no picture."""
    levels = [layout.base / split for split in splits] or [layout.base]
    folders = (path for level in levels for path in _folders(level) if path != layout.root / MASKS)
    names = (os.path.relpath(path, layout.base).replace(os.sep, "/") for path in folders)
    return [name for name in names if not any(picture.startswith(f"{name}/") for picture in layout.pictures)]


def _by_table(layout: _Layout, table: Path, class_names: tuple[str, ...] | None) -> dict[str, Images]:
    """Splits and labels from a table of tags."""
    rows: dict[str, Row] = {}
    missing = []
    for row in read_table(table, class_names, layout.options.negatives):
        # a name may end in blanks, but more often the blanks surround it
        stripped = dataclasses.replace(row, image=row.image.strip())
        name = _picture(layout, row) or _picture(layout, stripped)
        if name is None:
            missing.append(row)
        elif name in rows:
            raise BadInput(
                row.where,
                f"the picture {row.image!r} again (first at {rows[name].where})",
                "one line per picture",
                "Remove one.",
            )
        else:
            rows[name] = _without_negatives(layout, row, class_names)
    if missing and (not rows or not layout.options.skip_missing):
        raise BadInput(
            missing[0].where,
            f"{missing[0].image!r}, which is not in {layout.base}"
            + (f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""),
            "the path of a picture below that folder",
            f"{_nearest(layout, missing[0].image)}Correct the table, add the picture, or use --skip-bad.",
        )
    if missing:
        layout.notes.append(
            f"{len(missing)} lines of {table.name} left out, since their pictures are missing ({missing[0].image} first)"
        )
    if class_names is None:
        class_names = tuple(sorted({tag for row in rows.values() for tag in row.tags}))
    if not class_names:
        raise BadInput(table, "no tag in any line", "tags", "Write the tags of the pictures into the column `tags`.")
    members: dict[str, list[str]] = defaultdict(list)
    for name, row in rows.items():
        members["train" if row.split is None else split_of(row.split) or row.split].append(name)
    masks = {name: MaskFile(_mask(layout, row)) for name, row in rows.items() if row.mask}
    used = {mask.path for mask in masks.values()}
    _note_unnamed(layout, {name for name, path in layout.pictures.items() if name in rows or path in used}, table)
    layout.notes += check_unmatched_masks(layout.root, layout.base, layout.pictures, layout.masks, used)
    return {
        split: layout.images(
            split,
            names,
            class_names,
            np.array([tags_to_labels(rows[name].tags, class_names, rows[name].where) for name in names]),
            masks,
        )
        for split, names in members.items()
    }


def _nearest(layout: _Layout, image: str) -> str:
    """A question that suggests a picture of the same name in another folder, or one of a similar name."""
    name = without_suffix(image.replace("\\", "/"))
    same_name = [other for other in layout.pictures if other.rpartition("/")[2] == name.rpartition("/")[2]]
    return f"Did you mean {same_name[0]!r}? " if len(same_name) == 1 else suggestion(name, layout.pictures)


def _without_negatives(layout: _Layout, row: Row, class_names: tuple[str, ...] | None) -> Row:
    """The row without tags that mean that no class is present."""
    classes = set(only_classes(row.tags, layout.options.negatives)) | set(class_names or ())
    return dataclasses.replace(row, tags=tuple(tag for tag in row.tags if tag in classes))


def _picture(layout: _Layout, row: Row) -> str | None:
    path = row.image.replace("\\", "/").removeprefix("./")
    if _leads_out(path):
        place = _outside(layout, path, row.where)
        if place is None:
            return None
        layout.pictures.setdefault(name := without_suffix(relative_name(path)), place)
        return name
    bare = without_suffix(path)
    forms = (path, bare, bare.removeprefix("images/"), f"images/{bare}")
    return next((form for form in forms if form in layout.pictures), None)


def _mask(layout: _Layout, row: Row) -> Path:
    path = str(row.mask).replace("\\", "/").removeprefix("./")
    place = _outside(layout, path, row.where) if _leads_out(path) else layout.root / path
    if place is None or not is_regular(place):
        raise BadInput(
            row.where, f"the mask {row.mask!r}, which is not in {layout.root}", "a PNG", "Correct the column `mask`."
        )
    return place


def _leads_out(path: str) -> bool:
    return path.startswith("/") or ".." in path.split("/") or path[1:2] == ":"


def _outside(layout: _Layout, path: str, where: str) -> Path | None:
    """The file at an absolute path, or at one that leads upwards; None if it does not exist.

    Raises:
        BadInput: such paths are not allowed.
    """
    if not layout.options.allow_outside:
        raise BadInput(
            where,
            f"{path!r}, a path that is absolute or leads upwards",
            f"paths below {layout.root}",
            "Write the paths relative to that folder, or allow files elsewhere to be read with --allow-outside.",
        )
    place = Path(os.path.normpath(layout.root / path))
    return place if is_regular(place) else None


def _by_vectors(layout: _Layout, source: Path, class_names: tuple[str, ...] | None) -> dict[str, Images]:
    """A single split with the labels of `cls_labels.npy` or of a list with class numbers."""
    if class_names is None:
        raise BadInput(
            source,
            "class numbers",
            "the names of the classes too",
            "Write classes.txt, or give the names with --classes.",
        )
    labels, missing = labels_of(list(layout.pictures), labels_by_name(source, class_names), len(class_names))
    untagged = set(missing)
    named = dict.fromkeys(name for name in layout.pictures if name not in untagged)
    if not named:
        raise BadInput(
            source, f"none of the {len(layout.pictures)} pictures", "their names", "Choose the tags of these pictures."
        )
    _note_unnamed(layout, named, source)
    layout.notes += check_unmatched_masks(layout.root, layout.base, layout.pictures, layout.masks)
    keep = [index for index, name in enumerate(layout.pictures) if name in named]
    return {"train": layout.images("train", list(named), class_names, labels[keep], {})}


def _note_unnamed(layout: _Layout, named: Collection[str], source: Path) -> None:
    unnamed = [name for name in layout.pictures if name not in named]
    masks = [name for name in unnamed if name.partition("/")[0].lower() in MASK_FOLDERS]
    if masks:
        folder, unnamed = masks[0].partition("/")[0], [name for name in unnamed if name not in set(masks)]
        layout.notes.append(
            f"{len(masks)} files in {folder} are not used: put true masks in a folder `{MASKS}`, or name them in a column mask of {source.name}"
        )
    if unnamed:
        layout.notes.append(
            f"{len(unnamed)} pictures left out, since {source.name} does not name them ({unnamed[0]} first)"
        )


def _concatenated(layout: _Layout, splits: Mapping[str, Images]) -> Images:
    first = next(iter(splits.values()))
    return dataclasses.replace(
        first,
        title=layout.root.name,
        names=tuple(name for images in splits.values() for name in images.names),
        paths=tuple(path for images in splits.values() for path in images.paths),
        labels=np.concatenate([images.labels for images in splits.values()]),
        masks=tuple(mask for images in splits.values() for mask in images.masks),
    )


def _listed(layout: _Layout, source: Path, everything: Images) -> Images:
    positions = {name: index for index, name in enumerate(everything.names)}
    pictures = dict(zip(everything.names, everything.paths, strict=True))
    names = existing_pictures(
        list(read_names(source, pictures)),
        pictures,
        source,
        source.stem,
        needed=True,
        skip_missing=layout.options.skip_missing,
        notes=layout.notes,
    )
    return everything.subset((positions[name] for name in names), f"{layout.root.name}/{source.stem}")
