"""From what a layout's reader finds to a data set: classes, splits, missing pictures, tags given apart."""

import dataclasses
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from wsss.data.images import Dataset, Images, TrueMask
from wsss.data.labels import IGNORE
from wsss.data.lists import choose_split, existing_pictures, read_names, tags_to_labels
from wsss.data.roles import check_ambiguous
from wsss.data.tables import check_tags, labels_by_name, labels_of
from wsss.errors import BadInput, is_regular
from wsss.stream import in_threads

# Words for splits in people's folders and tables
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
    """`train`, `val` or `test` for a word that is used for it, else None."""
    return SPLITS.get(word.lower())


def only_split(splits: Collection[str]) -> tuple[str, ...]:
    """The only split, where it may be trained on: it is no one for tests."""
    return tuple(splits) if len(splits) == 1 and split_of(next(iter(splits))) in (None, "train") else ()


@dataclasses.dataclass(frozen=True)
class LayoutOptions:
    """How a user wants a data set to be read; see `open_dataset`.

    Attributes:
        classes: the class names given, None where the layout's own are wanted.
        upright: None for the layout's own rule.
    """

    train: str | None = None
    val: str | None = None
    classes: tuple[str, ...] | None = None
    tags: Path | None = None
    tag_column: str | None = None
    negatives: frozenset[str] = frozenset()
    mask_values: str | None = None
    upright: bool | None = None
    skip_missing: bool = False


@dataclasses.dataclass(frozen=True)
class Entry:
    """A picture that a layout names.

    Attributes:
        split: train, val, test or another word.
        name: its path below the root, without its suffix.
        path: its file; it may be missing.
        tags: names of classes.
        where: place to name in an error about the tags.
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
    """All that a layout's reader found.

    Attributes:
        kind: the layout.
        entries: the pictures, those of a split in their order.
        class_names: the classes in the order of their labels; None where the order of the names is to be that of the tags.
        notes: what the user should know.
        tags_by_picture: whether the tags were given picture by picture, so that one may say that nothing is there.
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
    """The labels of classes in each of these masks, ascending.

    Raises:
        BadInput: a mask cannot be read.
    """

    def held(mask: TrueMask) -> list[int]:
        return [
            int(label)
            for label in np.flatnonzero(np.bincount(mask.read().ravel(), minlength=256))
            if 0 < label < IGNORE
        ]

    return list(in_threads(held, masks, len(masks)))


def assemble(root: Path, found: LayoutContents, options: LayoutOptions) -> Dataset:
    """The data set of what a reader found.

    Raises:
        BadInput: pictures are missing, a tag is no class, there is no split to train on, or there are no tags.
    """
    notes = list(found.notes)
    class_names = found.class_names
    if class_names is None:
        class_names = tuple(sorted({tag for entry in found.entries for tag in entry.tags}))
    if not class_names:
        raise BadInput(root, f"no tag for any of {len(found.entries)} pictures", "tags", "Add them.")
    if options.classes is None and found.tags_by_picture:
        check_tags(((entry.where, entry.tags) for entry in found.entries), options.negatives)
        check_ambiguous(class_names, root)
    members: dict[str, dict[str, Entry]] = defaultdict(dict)
    for entry in found.entries:
        if (other := members[entry.split].setdefault(entry.name, entry)) is not entry:
            raise BadInput(
                entry.where,
                f"the picture {entry.name!r} again (first in {other.where})",
                "one entry a picture",
                "Remove one of the two, or put all its tags into one.",
            )
    everything = {entry.name: entry for entries in members.values() for entry in entries.values()}
    for asked in (options.train, options.val):
        if asked is not None and asked not in members and is_regular(asked):
            known = {name: entry.path for name, entry in everything.items()}
            listed = existing_pictures(
                list(read_names(Path(asked), known)),
                known,
                asked,
                Path(asked).stem,
                needed=True,
                skip_missing=options.skip_missing,
                notes=notes,
            )
            members[asked] = {name: everything[name] for name in listed}
    chosen = choose_split(options.train, members, ("train", *only_split(members)), root)
    if chosen is None:
        raise BadInput(root, f"the splits {', '.join(members)}", "one called train", "Choose one with --train.")
    scored = choose_split(options.val, members, ("val",), root)
    given = None if options.tags is None else labels_by_name(options.tags, class_names)
    splits = {}
    for split, entries in members.items():
        there = {name: entry.path for name, entry in entries.items() if is_regular(entry.path)}
        first = next(iter(entries.values()))
        names = existing_pictures(
            list(entries),
            there,
            first.where,
            Path(split).stem,
            needed=split in (chosen, scored),
            skip_missing=options.skip_missing,
            notes=notes,
        )
        splits[split] = _images(root, split, [entries[name] for name in names], class_names, given, options)
        if given is not None and (without := labels_of(names, given, len(class_names))[1]):
            notes.append(f"{split}: {len(without)} pictures left out, since {options.tags} does not name them")
            splits[split] = splits[split].without(without)
    splits = {split: images for split, images in splits.items() if len(images)}
    if chosen not in splits or not splits[chosen].labels.any():
        raise BadInput(
            options.tags or root,
            f"no tag for any of the {len(splits.get(chosen, ()))} pictures of {chosen}",
            "tags",
            "Add them.",
        )
    notes += _about_classes(splits, class_names)
    seed = chosen if splits[chosen].has_masks else None
    return Dataset(
        found.kind,
        root,
        splits,
        chosen,
        scored_split=seed,
        val=scored if scored in splits else None,
        notes=tuple(notes),
    )


def _images(
    root: Path,
    split: str,
    entries: Sequence[Entry],
    class_names: tuple[str, ...],
    given: Mapping[str, np.ndarray] | None,
    options: LayoutOptions,
) -> Images:
    names = tuple(entry.name for entry in entries)
    if given is not None:
        labels = labels_of(names, given, len(class_names))[0]
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


def _about_classes(splits: Mapping[str, Images], class_names: tuple[str, ...]) -> list[str]:
    counts: Counter[str] = Counter()
    for images in splits.values():
        counts.update(dict(zip(class_names, images.labels.sum(0).tolist(), strict=True)))
    empty = [name for name in class_names if not counts[name]]
    return [f"classes without a picture: {', '.join(empty)}"] if empty else []
