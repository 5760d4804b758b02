"""Separates masks from pictures, and matches them."""

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from wsss.data.lists import files_below
from wsss.data.lookalikes import is_label_image
from wsss.data.pairs import ENDINGS
from wsss.errors import BadInput

MASKS = "masks"
_MASK_ENDING = "_mask"
_NUMBERED = re.compile(r"[_-]mask[_ -]?\d+$", re.IGNORECASE)


def separate_masks(found: Mapping[str, Path]) -> tuple[dict[str, Path], dict[str, Path]]:
    """Pictures by name, and masks (`NAME_mask.png` next to `NAME.jpg`) by the name of their picture."""
    masks = {
        name.removesuffix(_MASK_ENDING): path
        for name, path in found.items()
        if name.endswith(_MASK_ENDING) and name.removesuffix(_MASK_ENDING) in found
    }
    mask_paths = set(masks.values())
    return {name: path for name, path in found.items() if path not in mask_paths}, masks


def check_named_like_masks(pictures: Mapping[str, Path], masks: Mapping[str, Path]) -> None:
    """Raise BadInput if a picture is named like the mask of another one, or is named like a mask and looks like one.

    Args:
        pictures: by name.
        masks: those that were recognised, by the name of their picture.
    """
    suspect: list[str] = []
    for name in pictures:
        end = next(
            (end for end in sorted(ENDINGS, key=len, reverse=True) if end and name.lower().endswith(end.lower())), ""
        )
        numbered = _NUMBERED.search(name)
        bare = name[: len(name) - len(end)] if end else name[: numbered.start()] if numbered else name
        is_among_masks = bool(masks) and (numbered or end == _MASK_ENDING)
        if bare != name and (bare in pictures or (is_among_masks and is_label_image(pictures[name]))):
            suspect.append(name)
    if suspect:
        raise BadInput(
            pictures[suspect[0]],
            f"a file named like the mask of a picture (and {len(suspect) - 1} more)"
            if suspect[1:]
            else "a file named like the mask of a picture",
            "pictures, and one mask for each, named NAME_mask.png",
            "Rename the masks, merge several masks of a picture into one, and move other files elsewhere.",
        )


def check_unmatched_masks(
    root: Path, base: Path, pictures: Mapping[str, Path], masks: Mapping[str, Path], used: Collection[Path] = ()
) -> list[str]:
    """A note on the files in `ROOT/masks` that belong to no picture.

    Args:
        root: the folder of the data set.
        base: the folder to which the names of pictures are relative.
        pictures: by name.
        masks: by name of the picture that they are named after.
        used: masks that a table names.

    Raises:
        BadInput: none of the files belongs to a picture.
    """
    folder = root / MASKS
    files = list(files_below(folder)) if folder.is_dir() else []
    matched = {path for name, path in masks.items() if name in pictures}.union(used)
    unmatched = [path for path in files if path not in matched]
    if not unmatched:
        return []
    first = os.path.relpath(unmatched[0], root)
    if len(unmatched) == len(files):
        names = {os.path.splitext(os.path.relpath(path, folder))[0].replace(os.sep, "/") for path in files}
        end = next((end for end in ENDINGS if end and any(name + end in names for name in pictures)), None)
        raise BadInput(
            folder,
            f"{len(files)} files, none of which belongs to a picture ({first} first)",
            f"masks under the names of the pictures below {base} ({MASKS}/{min(pictures)}.png)",
            (f"Remove {end!r} from their names" if end else "Rename them")
            + ", or move the folder elsewhere if these are no true masks.",
        )
    return [f"{len(unmatched)} files in {MASKS} belong to no picture and are not used ({first} first)"]
