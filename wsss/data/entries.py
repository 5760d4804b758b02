"""What the reader of a layout finds, and the data set that is assembled from it: classes, splits, missing pictures, external tags."""

import dataclasses
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from wsss.arrays import Bool
from wsss.data.images import Dataset, Images, TrueMask
from wsss.data.labels import IGNORE
from wsss.data.lists import choose_split, existing_pictures, read_names, tags_to_labels
from wsss.data.roles import check_ambiguous, only_classes
from wsss.data.tables import check_tags, labels_by_name, labels_of
from wsss.errors import BadInput, is_regular
from wsss.stream import Progress, in_threads

# Names of splits in folders and tables
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


def split_of(word: str) -> str | None:
    """The split that a word names: `train`, `val` or `test`; None for any other word."""
    return SPLITS.get(word.lower())


def only_split(splits: Collection[str]) -> tuple[str, ...]:
    """The only split, if there is just one and it is neither a validation nor a test split; else nothing."""
    return tuple(splits) if len(splits) == 1 and split_of(next(iter(splits))) in (None, "train") else ()


@dataclasses.dataclass(frozen=True)
class LayoutOptions:
    """How a data set is to be read; see `open_dataset`.

    Attributes:
        train: split to train on, or a list file; None for the usual one of the layout.
        val: split to score segmenters on, or a list file; None for the usual one of the layout.
        classes: the class list of the user, in the order of the labels; None for that of the layout.
        tags: file of tags that replaces those of the layout.
        tag_rule: how tags are derived from annotations; None for the rule of the layout.
        mask_rule: how masks are drawn from annotations; None for the rule of the layout.
        tag_column: the column of the tags in a table.
        negatives: names that mean that no class is present, in addition to `background` and `_background_`.
        mask_values: what the values or colours of mask files mean; see `wsss.data.labels.GRAMMAR`.
        upright: whether pictures are rotated by their EXIF orientation; None for the rule of the layout.
        allow_outside: whether files may lie outside the folder.
        untagged: whether pictures need no tags, since they are tagged later.
        skip_missing: whether pictures that are listed but missing are left out.
        progress: called with the amount of work done and of all work.
    """

    train: str | None = None
    val: str | None = None
    classes: tuple[str, ...] | None = None
    tags: Path | None = None
    tag_rule: str | None = None
    mask_rule: str | None = None
    tag_column: str | None = None
    negatives: frozenset[str] = frozenset()
    mask_values: str | None = None
    upright: bool | None = None
    allow_outside: bool = False
    untagged: bool = False
    skip_missing: bool = False
    progress: Progress | None = None

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The class list of the user without names that mean no class."""
        return None if self.classes is None else only_classes(self.classes, self.negatives)


DEFAULT_OPTIONS = LayoutOptions()


@dataclasses.dataclass(frozen=True)
class Entry:
    """A picture of a layout.

    Attributes:
        split: train, val, test or another name.
        name: its path below the root, without its suffix.
        path: its file, which may be missing.
        tags: names of classes.
        where: the place that an error about the tags names.
        mask: its true mask.
    """

    split: str
    name: str
    path: Path
    tags: tuple[str, ...]
    where: str
    mask: TrueMask | None = None


@dataclasses.dataclass
class LayoutContents:
    """What the reader of a layout found.

    Attributes:
        kind: the layout.
        entries: the pictures, those of each split in their order.
        class_names: the classes in the order of their labels; None if they are the sorted names of all tags.
        notes: what the user should know.
        tags_by_picture: whether the tags are those of whole pictures, among which a name may mean that no class is present.
    """

    kind: str
    entries: list[Entry]
    class_names: tuple[str, ...] | None
    notes: list[str] = dataclasses.field(default_factory=list)
    tags_by_picture: bool = False


def picture_name(path: Path, root: Path) -> str:
    """The name of a picture: its path below the root, with slashes and without its suffix."""
    return os.path.splitext(os.path.relpath(path, root))[0].replace(os.sep, "/")


def labels_in_masks(masks: Sequence[TrueMask]) -> list[list[int]]:
    """The class labels in each mask, ascending, without background and ignored pixels.

    Raises:
        BadInput: a mask cannot be read.
    """

    def labels_in(mask: TrueMask) -> list[int]:
        return [
            int(label)
            for label in np.flatnonzero(np.bincount(mask.read().ravel(), minlength=256))
            if 0 < label < IGNORE
        ]

    return list(in_threads(labels_in, masks, len(masks)))


def assemble(root: Path, contents: LayoutContents, options: LayoutOptions) -> Dataset:
    """The data set with the contents of a layout.

    Raises:
        BadInput: pictures are missing, a tag is no class, there is no split to train on, or there are no tags.
    """
    notes = list(contents.notes)
    class_names = _class_names(root, contents, options)
    members = _members(contents.entries)
    _add_list_files(members, options, notes)
    train = choose_split(options.train, members, ("train", *only_split(members)), root)
    if train is None:
        raise BadInput(root, f"the splits {', '.join(members)}", "one called train", "Choose one with --train.")
    val = choose_split(options.val, members, ("val",), root)
    external = None if options.tags is None else labels_by_name(options.tags, class_names)
    splits = {}
    for split, entries in members.items():
        present = {name: entry.path for name, entry in entries.items() if is_regular(entry.path)}
        first = next(iter(entries.values()))
        names = existing_pictures(
            list(entries),
            present,
            first.where,
            Path(split).stem,
            needed=split in (train, val),
            skip_missing=options.skip_missing,
            notes=notes,
        )
        splits[split] = _images(root, split, [entries[name] for name in names], class_names, external, options)
        if external is not None and (untagged := labels_of(names, external, len(class_names))[1]):
            notes.append(f"{split}: {len(untagged)} pictures left out, since {options.tags} does not name them")
            splits[split] = splits[split].without(untagged)
    splits = {split: images for split, images in splits.items() if len(images)}
    if train not in splits or not splits[train].labels.any():
        raise BadInput(
            options.tags or root,
            f"no tag for any of the {len(splits.get(train, ()))} pictures of {train}",
            "tags",
            "Add them.",
        )
    notes += _notes_on_empty_classes(splits, class_names)
    return Dataset(
        contents.kind,
        root,
        splits,
        train,
        scored_split=train if splits[train].has_masks else None,
        val=val if val in splits else None,
        notes=tuple(notes),
    )


def _class_names(root: Path, contents: LayoutContents, options: LayoutOptions) -> tuple[str, ...]:
    class_names = contents.class_names
    if class_names is None:
        class_names = tuple(sorted({tag for entry in contents.entries for tag in entry.tags}))
    if not class_names:
        raise BadInput(root, f"no tag for any of {len(contents.entries)} pictures", "tags", "Add them.")
    if options.classes is None and contents.tags_by_picture:
        check_tags(((entry.where, entry.tags) for entry in contents.entries), options.negatives)
        check_ambiguous(class_names, root)
    return class_names


def _members(entries: Sequence[Entry]) -> dict[str, dict[str, Entry]]:
    """The entries by split and name."""
    members: dict[str, dict[str, Entry]] = defaultdict(dict)
    for entry in entries:
        if (other := members[entry.split].setdefault(entry.name, entry)) is not entry:
            raise BadInput(
                entry.where,
                f"the picture {entry.name!r} again (first in {other.where})",
                "one entry per picture",
                "Remove one of the two, or put all its tags into one.",
            )
    return members


def _add_list_files(members: dict[str, dict[str, Entry]], options: LayoutOptions, notes: list[str]) -> None:
    """Add a split for each list file that the user gave as --train or --val."""
    everything = {entry.name: entry for entries in members.values() for entry in entries.values()}
    for requested in (options.train, options.val):
        if requested is not None and requested not in members and is_regular(requested):
            known = {name: entry.path for name, entry in everything.items()}
            listed = existing_pictures(
                list(read_names(Path(requested), known)),
                known,
                requested,
                Path(requested).stem,
                needed=True,
                skip_missing=options.skip_missing,
                notes=notes,
            )
            members[requested] = {name: everything[name] for name in listed}


def _images(
    root: Path,
    split: str,
    entries: Sequence[Entry],
    class_names: tuple[str, ...],
    external: Mapping[str, Bool[np.ndarray, " c"]] | None,
    options: LayoutOptions,
) -> Images:
    names = tuple(entry.name for entry in entries)
    if external is not None:
        labels = labels_of(names, external, len(class_names))[0]
    else:
        rows = [tags_to_labels(entry.tags, class_names, entry.where) for entry in entries]
        labels = np.array(rows, bool).reshape(len(entries), len(class_names))
    return Images(
        title=f"{root.name}/{Path(split).stem}",
        names=names,
        paths=tuple(entry.path for entry in entries),
        class_names=class_names,
        labels=labels,
        masks=tuple(entry.mask for entry in entries),
        upright=True if options.upright is None else options.upright,
    )


def _notes_on_empty_classes(splits: Mapping[str, Images], class_names: tuple[str, ...]) -> list[str]:
    counts: Counter[str] = Counter()
    for images in splits.values():
        counts.update(dict(zip(class_names, images.labels.sum(0).tolist(), strict=True)))
    empty = [name for name in class_names if not counts[name]]
    return [f"classes without a picture: {', '.join(empty)}"] if empty else []
