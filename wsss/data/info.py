"""A summary of a data set, and checks of all its files."""

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wsss.data.class_names import likely_typos, notes_on_missing_classes
from wsss.data.images import Dataset, Images, MaskSummary
from wsss.data.truth import MaskDoubts, compare_with_tags
from wsss.digests import content_digests
from wsss.errors import BadInput, count_of
from wsss.stream import Progress, in_threads


class PictureCheck(NamedTuple):
    """The result of checking a picture and its true mask.

    Attributes:
        size_hw: height and width of the picture, None if it cannot be read.
        message: what is wrong with either, None if both are correct.
        mask: the content of the true mask, None if there is none, it cannot be read, or it was not decoded.
    """

    size_hw: tuple[int, int] | None
    message: str | None = None
    mask: MaskSummary | None = None


def check_picture(images: Images, index: int) -> PictureCheck:
    """Decode a picture and its true mask."""
    size_hw = None
    try:
        height, width, _ = images.read(index).shape
        size_hw = (height, width)
        mask = images.summarize_mask(index, size_hw)
    except BadInput as error:
        return PictureCheck(size_hw, str(error))
    return PictureCheck(size_hw, mask.message if mask else None, mask)


def check_pictures(images: Images, *, progress: Progress | None = None) -> list[PictureCheck]:
    """Decode all pictures and true masks of a split.

    Args:
        images: the split.
        progress: called with the number of pictures checked and of all pictures.
    """
    return list(in_threads(lambda index: check_picture(images, index), range(len(images)), len(images), progress))


def bad_pictures(images: Images, checks: Sequence[PictureCheck]) -> dict[str, str]:
    """The messages about bad pictures and masks, by name of the picture, in the order of the split."""
    return {name: check.message for name, check in zip(images.names, checks, strict=True) if check.message}


def mask_doubts(images: Images, checks: Sequence[PictureCheck]) -> MaskDoubts:
    """Doubts about the true masks of a split."""
    return compare_with_tags(images, {index: check.mask for index, check in enumerate(checks) if check.mask})


def overview(
    dataset: Dataset, *, decode: bool = False, classes: object = None, progress: Progress | None = None
) -> dict[str, Any]:
    """A summary for JSON.

    Args:
        dataset: the data set.
        decode: decode each picture and mask, and compare files of equal length, instead of reading only headers.
        classes: the class list of the user, if any; then no name is reported as a typo.
        progress: called with the number of pictures checked and of all pictures of all splits.

    Returns:
        `kind`, `root`, `classes`, `train`, `scored_split`, `val`, `notes`, `reading` (how pictures are read, see
        `wsss.data.samples.PictureReading`), `checked` (whether `decode` was set), `identical` (groups of picture files with the same
        content, empty unless `decode`) and `splits`: by name `images`, `images_per_class`,
        `tags_per_image` (mean and max), `without_tags`, `with_masks`, `height` and `width` (min, median, max), `bad` (messages by
        name), `doubts` (notes on true masks) and `stops` (errors that stop a run); the last two are empty unless `decode`. `stops`
        at the top are doubts about the names of classes.
    """
    done, total = 0, sum(map(len, dataset.splits.values()))
    splits = {}
    for title, images in dataset.splits.items():
        offset = done

        def report(done_in_split: int, _: int, offset: int = offset) -> None:
            if progress:
                progress(offset + done_in_split, total)

        splits[title] = _split(images, decode, report)
        done += len(images)
    paths = dict.fromkeys(path for images in dataset.splits.values() for path in images.paths)
    return {
        "kind": dataset.kind,
        "root": str(dataset.root),
        "classes": list(dataset.class_names),
        "train": dataset.train,
        "scored_split": dataset.scored_split,
        "val": dataset.val,
        "reading": next(iter(dataset.splits.values())).reading.plain(),
        "checked": decode,
        "splits": splits,
        "identical": _identical(paths) if decode else [],
        "notes": [*dataset.notes, *notes_on_missing_classes(dataset), *(notes_on_overlap(dataset) if decode else [])],
        "stops": [str(typos)] if (typos := likely_typos(dataset, classes)) else [],
    }


def _split(images: Images, decode: bool, progress: Progress) -> dict[str, Any]:
    checks = list(
        in_threads(
            lambda index: check_picture(images, index) if decode else _header(images, index),
            range(len(images)),
            len(images),
            progress,
        )
    )
    sizes = np.array([check.size_hw for check in checks if check.size_hw]).reshape(-1, 2)
    tags, doubtful = images.labels.sum(1), mask_doubts(images, checks)
    return {
        "images": len(images),
        "images_per_class": dict(zip(images.class_names, images.labels.sum(0).tolist(), strict=True)),
        "tags_per_image": {"mean": round(float(tags.mean()), 3), "max": int(tags.max())} if len(images) else None,
        "without_tags": int((tags == 0).sum()),
        "with_masks": sum(mask is not None for mask in images.masks),
        "height": _range(sizes[:, 0]),
        "width": _range(sizes[:, 1]),
        "bad": bad_pictures(images, checks),
        "doubts": list(doubtful.notes),
        "stops": [str(stop) for stop in doubtful.stops],
    }


def _header(images: Images, index: int) -> PictureCheck:
    try:
        return PictureCheck(images.size_hw(index))
    except BadInput as error:
        return PictureCheck(None, str(error))


def _range(values: np.ndarray) -> dict[str, int] | None:
    if not len(values):
        return None
    return {"min": int(values.min()), "median": int(np.median(values)), "max": int(values.max())}


def notes_on_overlap(dataset: Dataset) -> list[str]:
    """Notes on pictures, by file and by content, that are both in the training split and in the split that is scored on."""
    if dataset.val is None:
        return []
    train, val = (dict.fromkeys(dataset.split(name).paths) for name in (dataset.train, dataset.val))
    both = [path for path in val if path in train]
    same = [group for group in _identical([*train, *(path for path in val if path not in train)]) if len(group) > 1]
    copies = [
        (trained[0], scored[0])
        for group in same
        if (trained := [path for path in map(Path, group) if path in train])
        and (scored := [path for path in map(Path, group) if path not in train])
    ]
    notes = []
    if both:
        notes.append(
            f"{len(both)} of the {len(val)} pictures of {dataset.val} are in {dataset.train} too ({both[0].name} first)"
        )
    if copies:
        first = " = ".join(os.path.relpath(path, dataset.root) for path in copies[0])
        notes.append(
            f"{len(copies)} pictures are in both {dataset.train} and {dataset.val}, under other names ({first} first)"
        )
    return notes


def _identical(paths: Iterable[Path]) -> list[list[str]]:
    """Groups of files with the same content; only files of equal length are read."""
    by_length: dict[int, list[Path]] = defaultdict(list)
    for path in paths:
        if path.is_file():
            by_length[path.stat().st_size].append(path)
    candidates = [path for group in by_length.values() if len(group) > 1 for path in group]
    by_content: dict[str, list[str]] = defaultdict(list)
    for path, content in zip(candidates, content_digests(candidates), strict=True):
        by_content[content or str(path)].append(str(path))
    return [group for group in by_content.values() if len(group) > 1]


def stops_of(summary: dict[str, Any]) -> list[str]:
    """The errors that stop a run on this data set."""
    return [*summary["stops"], *(stop for split in summary["splits"].values() for stop in split["stops"])]


def render(summary: dict[str, Any], most: int = 10) -> str:
    """The summary as text; it names at most `most` bad files and groups of identical files, and at most 30 classes."""
    stops = stops_of(summary)
    lines = [f"{summary['kind']} data set at {summary['root']}"]
    reasons = count_of(len(stops), "reason")
    if stops:
        lines.append(f"error: a run stops at this data set, for {reasons} listed at the end. The first: {stops[0]}")
    lines += [
        f"{count_of(len(summary['classes']), 'class', 'classes')}: {_first_words(summary['classes'], 30)}",
        f"trained on: {summary['train']}",
        f"maps and pseudo masks scored on: {summary['scored_split'] or 'nothing (no true masks)'}",
    ]
    lines.append(f"segmenters scored on: {summary['val'] or 'nothing (no split val)'}")
    for title, split in summary["splits"].items():
        lines += ["", *_rendered_split(title, split, summary["checked"], most)]
    if summary["identical"]:
        lines += ["", f"{len(summary['identical'])} groups of pictures with the same content:"]
        lines += [f"  {' = '.join(group)}" for group in summary["identical"][:most]]
    notes = [*summary["notes"], *(note for split in summary["splits"].values() for note in split["doubts"])]
    if notes:
        lines += ["", "notes:", *(f"  {note}" for note in notes)]
    if stops:
        lines += ["", "a run stops at:", *(f"  {stop}" for stop in stops)]
    return "\n".join(lines) + "\n"


def _rendered_split(title: str, split: dict[str, Any], checked: bool, most: int) -> list[str]:
    lines = [f"{title}: {split['images']} pictures"]
    if split["height"]:
        for side in ("height", "width"):
            lines.append(f"  {side:<8}{split[side]['min']} to {split[side]['max']}, median {split[side]['median']}")
    if split["tags_per_image"]:
        lines.append(
            f"  tags    {split['tags_per_image']['mean']:.2f} per picture, at most {split['tags_per_image']['max']}; {split['without_tags']} without"
        )
    lines.append(f"  masks   {split['with_masks']} with, {split['images'] - split['with_masks']} without")
    counts = [f"{name} {count}" for name, count in split["images_per_class"].items()]
    lines.append(f"  classes {_first_words(counts, 30)}")
    if split["bad"]:
        lines.append(f"  bad     {len(split['bad'])}:")
        lines += [f"    {message}" for message in list(split["bad"].values())[:most]]
        lines += [f"    and {len(split['bad']) - most} more"] if len(split["bad"]) > most else []
    else:
        lines.append(f"  bad     none{'' if checked else ' by their headers (not decoded)'}")
    return lines


def _first_words(words: Sequence[str], most: int) -> str:
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")
