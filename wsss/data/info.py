"""What a data set holds, and which of its files are bad."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsss.data.images import Dataset, Images
from wsss.errors import BadInput
from wsss.storage import file_digest
from wsss.stream import Progress, in_threads


def find_bad(images: Images, *, progress: Progress | None = None) -> dict[str, str]:
    """Decode all pictures and true masks of a split; the messages about bad ones by picture name, in the order of the split.

    Args:
        images: the split.
        progress: called with the number of pictures that were looked at and of all pictures.
    """
    checked = in_threads(lambda index: _checked(images, index)[0], range(len(images)), len(images), progress)
    return {name: message for name, message in zip(images.names, checked, strict=True) if message}


def _checked(images: Images, index: int) -> tuple[str | None, bool]:
    """What is wrong with a picture or its mask, and whether the mask holds a class that is not among the tags."""
    try:
        height, width, _ = images.read(index).shape
        if images.masks[index] is None:
            return None, False
        present = np.bincount(images.read_mask(index, (height, width)).ravel(), minlength=256)
    except BadInput as error:
        return str(error), False
    return None, bool((present[1 : images.n_labels] > 0)[~images.labels[index]].any())


def overview(dataset: Dataset, *, decode: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """A summary that JSON can hold.

    Args:
        dataset: the data set.
        decode: decode each picture and mask, and compare files of equal length, instead of reading headers alone.
        progress: called with the number of pictures looked at and of all pictures of all splits.

    Returns:
        `kind`, `root`, `classes`, `train`, `seed_split`, `val`, `notes`, `checked` (whether `decode` was set), `identical` (groups of
        picture files with the same content, empty unless `decode`) and `splits`: by name `images`, `images_per_class`,
        `tags_per_image` (mean and max), `without_tags`, `with_masks`, `untagged_in_mask` (pictures whose mask holds a
        class that is not among the tags; None unless `decode`), `height` and `width` (min, median, max), and `bad` (messages by name).
    """
    done, total = 0, sum(map(len, dataset.splits.values()))
    splits = {}
    for title, images in dataset.splits.items():
        before = done

        def report(here: int, _: int, before: int = before) -> None:
            if progress:
                progress(before + here, total)

        splits[title] = _split(images, decode, report)
        done += len(images)
    paths = dict.fromkeys(path for images in dataset.splits.values() for path in images.paths)
    return {
        "kind": dataset.kind,
        "root": str(dataset.root),
        "classes": list(dataset.class_names),
        "train": dataset.train,
        "seed_split": dataset.seed_split,
        "val": dataset.val,
        "checked": decode,
        "splits": splits,
        "identical": _identical(paths) if decode else [],
        "notes": list(dataset.notes),
    }


def _split(images: Images, decode: bool, progress: Progress) -> dict[str, Any]:
    def look(index: int) -> tuple[tuple[int, int] | None, str | None, bool]:
        try:
            size_hw = images.size_hw(index)
        except BadInput as error:
            return None, str(error), False
        return (size_hw, *(_checked(images, index) if decode else (None, False)))

    seen = list(in_threads(look, range(len(images)), len(images), progress))
    sizes = np.array([size for size, _, _ in seen if size]).reshape(-1, 2)
    tags = images.labels.sum(1)
    return {
        "images": len(images),
        "images_per_class": dict(zip(images.class_names, images.labels.sum(0).tolist(), strict=True)),
        "tags_per_image": {"mean": round(float(tags.mean()), 3), "max": int(tags.max())} if len(images) else None,
        "without_tags": int((tags == 0).sum()),
        "with_masks": sum(mask is not None for mask in images.masks),
        "untagged_in_mask": sum(wrong for _, _, wrong in seen) if decode else None,
        "height": _range(sizes[:, 0]),
        "width": _range(sizes[:, 1]),
        "bad": {name: message for name, (_, message, _) in zip(images.names, seen, strict=True) if message},
    }


def _range(values: np.ndarray) -> dict[str, int] | None:
    if not len(values):
        return None
    return {"min": int(values.min()), "median": int(np.median(values)), "max": int(values.max())}


def _identical(paths: Iterable[Path]) -> list[list[str]]:
    """Groups of files with the same content; only files of equal length are read."""
    by_length: dict[int, list[Path]] = defaultdict(list)
    for path in paths:
        if path.is_file():
            by_length[path.stat().st_size].append(path)
    alike = [path for group in by_length.values() if len(group) > 1 for path in group]
    by_content: dict[str, list[str]] = defaultdict(list)
    for path, content in zip(alike, in_threads(file_digest, alike), strict=True):
        by_content[content].append(str(path))
    return [group for group in by_content.values() if len(group) > 1]


def render(summary: dict[str, Any], most: int = 10) -> str:
    """The summary as a text to read; of classes, bad files and identical ones at most so many are named each, all classes up to 30."""
    lines = [
        f"{summary['kind']} data set at {summary['root']}",
        f"{len(summary['classes'])} classes: {_some(summary['classes'], 30)}",
    ]
    lines += [
        f"trained on: {summary['train']}",
        f"maps and pseudo masks scored on: {summary['seed_split'] or 'nothing (no true masks)'}",
    ]
    lines.append(f"segmenters scored on: {summary['val'] or 'nothing (no split val)'}")
    for title, split in summary["splits"].items():
        lines += ["", *_rendered_split(title, split, summary["checked"], most)]
    if summary["identical"]:
        lines += ["", f"{len(summary['identical'])} groups of pictures with the same content:"]
        lines += [f"  {' = '.join(group)}" for group in summary["identical"][:most]]
    if summary["notes"]:
        lines += ["", "notes:", *(f"  {note}" for note in summary["notes"])]
    return "\n".join(lines) + "\n"


def _rendered_split(title: str, split: dict[str, Any], checked: bool, most: int) -> list[str]:
    lines = [f"{title}: {split['images']} pictures"]
    if split["height"]:
        for side in ("height", "width"):
            lines.append(f"  {side:<8}{split[side]['min']} to {split[side]['max']}, median {split[side]['median']}")
    if split["tags_per_image"]:
        lines.append(
            f"  tags    {split['tags_per_image']['mean']:.2f} a picture, at most {split['tags_per_image']['max']}; {split['without_tags']} without"
        )
    lines.append(f"  masks   {split['with_masks']} with, {split['images'] - split['with_masks']} without")
    if split["untagged_in_mask"]:
        lines.append(f"          {split['untagged_in_mask']} hold a class that is not among the picture's tags")
    counts = [f"{name} {count}" for name, count in split["images_per_class"].items()]
    lines.append(f"  classes {_some(counts, 30)}")
    if split["bad"]:
        lines.append(f"  bad     {len(split['bad'])}:")
        lines += [f"    {message}" for message in list(split["bad"].values())[:most]]
        lines += [f"    and {len(split['bad']) - most} more"] if len(split["bad"]) > most else []
    else:
        lines.append(f"  bad     none{'' if checked else ' by their headers (not decoded)'}")
    return lines


def _some(words: Sequence[str], most: int) -> str:
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")
