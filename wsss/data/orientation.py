"""Whether pictures are rotated by their EXIF orientation, so that they match their masks."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from wsss import cache
from wsss.data.images import Images
from wsss.data.pictures import picture_size_hw, read_header
from wsss.data.samples import Header
from wsss.errors import BadInput

Mask = TypeVar("Mask")

_DO = "Rotate the pixels and remove the orientation (exiftran, mogrify -auto-orient), or make the masks again."


def choose_orientation(
    pictures: Mapping[Path, Mask],
    size_hw: Callable[[Mask], tuple[int, int] | None],
    requested: bool | None,
    split: str,
    notes: list[str],
) -> bool:
    """Whether the pictures of a split are rotated by their EXIF orientation; a note says so if it affects masks.

    By default the sizes of the masks decide: they match either the rotated or the stored pictures. If these have the same size
    (upside-down or square pictures), the pictures are rotated, as annotation tools do.

    Args:
        pictures: the files with masks, and their masks; unreadable files are skipped.
        size_hw: height and width of a mask, None for an unreadable one; called only for pictures with an orientation.
        requested: the choice of the user.
        split: its name in notes.
        notes: the list to which a note is added.

    Raises:
        BadInput: some masks match the rotated and others the stored pictures, or they contradict the choice of the user.
    """
    sizes = [(path, header, size_hw(pictures[path])) for path, header in _turned_headers(split, list(pictures))]
    turned = [(path, _fits(header, size)) for path, header, size in sizes if size]
    votes = {fits: path for path, fits in turned if isinstance(fits, bool)}
    if len(votes) == 2:
        raise BadInput(
            votes[False],
            f"a mask with the picture's size before its EXIF orientation is applied, and one with the size after it ({votes[True]})",
            "one of the two for all masks",
            _DO,
        )
    if requested is not None and votes and requested not in votes:
        ((fits, path),) = votes.items()
        when = "after" if fits else "before"
        do = f"Set --upright {str(fits).lower()}."
        raise BadInput(
            path,
            f"a mask with the picture's size {when} its EXIF orientation is applied",
            f"--upright {str(fits).lower()}",
            do,
        )
    upright = next(iter(votes), True) if requested is None else requested
    if turned:
        notes.append(_note(split, [path for path, _ in turned], upright, certain=bool(votes)))
    return upright


def notes_on_orientation(images: Images) -> list[str]:
    """A note on pictures with masks whose EXIF orientation does not change their size, so that masks fit either way."""
    with_masks = [path for path, mask in zip(images.paths, images.masks, strict=True) if mask is not None]
    turned = _turned_headers(images.title, with_masks)
    found = [path for path, header in turned if header.turned_hw(True) == header.turned_hw(False)]
    return [_note(images.title, found, images.upright, certain=False)] if found else []


def _note(split: str, pictures: Sequence[Path], upright: bool, *, certain: bool) -> str:
    what = "are rotated by it" if upright else "are not rotated by it"
    why = "; sizes cannot tell whether their masks are too: check them in the report, or set --upright true or false"
    return f"{split}: {len(pictures)} pictures with masks have an EXIF orientation ({pictures[0].name} first) and {what}{'' if certain else why}"


def _turned_headers(split: str, paths: Sequence[Path]) -> list[tuple[Path, Header]]:
    """The pictures with an orientation, and their headers; orientations are remembered (`wsss.cache`)."""
    folder = str(paths[0].parent.absolute()) if paths else ""
    orientations = cache.of_files(("orientations", split, folder), paths, _orientation)
    return [
        (path, read_header(path)) for path, found in zip(paths, orientations, strict=True) if found not in (None, 1)
    ]


def _orientation(path: Path) -> int | None:
    """The orientation of a picture, 1 for one without; None for an unreadable picture."""
    try:
        return read_header(path).orientation
    except BadInput:  # reported when all pictures are checked
        return None


def _fits(header: Header, size_hw: tuple[int, int]) -> bool | str:
    """Whether a mask has the size of the rotated picture (True), of the stored one (False) or of both."""
    fitting = [upright for upright in (True, False) if header.turned_hw(upright) == size_hw]
    return fitting[0] if len(fitting) == 1 else "either"


def header_size_hw(path: Path) -> tuple[int, int] | None:
    """Height and width of a mask file as stored; None if it cannot be read."""
    try:
        return picture_size_hw(path, upright=False)
    except BadInput:  # reported when all masks are checked
        return None
