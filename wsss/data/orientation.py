"""Whether pictures are to be turned as their EXIF orientation says, so that they lie on their masks."""

from collections.abc import Sequence
from pathlib import Path

from wsss.data.images import Images
from wsss.data.pictures import picture_size_hw, read_header
from wsss.errors import BadInput
from wsss.stream import in_threads

_DO = "Turn the pixels themselves and remove the orientation (exiftran, mogrify -auto-orient), or make the masks anew."


def choose_orientation(
    pictures: Sequence[Path],
    sizes_hw: Sequence[tuple[int, int] | None],
    asked: bool | None,
    split: str,
    notes: list[str],
) -> bool:
    """Whether the pictures of a split are turned; a note says so wherever it matters for their masks.

    Where nothing was asked for, the sizes of the masks decide: they are those of the turned or of the unturned pictures. Upside down
    or square ones have the same size both ways; these are turned, as in the tools that annotate.

    Args:
        pictures: the files; those that cannot be read are passed over.
        sizes_hw: height and width of the mask of each; None where it has no mask.
        asked: what the user said.
        split: to name in notes.
        notes: gets what was decided.

    Raises:
        BadInput: sizes of both kinds, or those of the other kind than was asked for.
    """
    with_masks = [(path, size) for path, size in zip(pictures, sizes_hw, strict=True) if size is not None]
    found = in_threads(lambda one: _fits(*one), with_masks)
    turned = [(path, fits) for (path, _), fits in zip(with_masks, found, strict=True) if fits is not None]
    votes = {fits: path for path, fits in turned if isinstance(fits, bool)}
    if len(votes) == 2:
        raise BadInput(
            votes[False],
            f"a mask of the size before its EXIF orientation is followed, and one of the size after it ({votes[True]})",
            "masks of one kind",
            _DO,
        )
    if asked is not None and votes and asked not in votes:
        ((fits, path),) = votes.items()
        when = "after" if fits else "before"
        do = f"Set --upright {str(fits).lower()}."
        raise BadInput(
            path,
            f"a mask of the picture's size {when} its EXIF orientation is followed",
            f"--upright {str(fits).lower()}",
            do,
        )
    upright = next(iter(votes), True) if asked is None else asked
    if turned:
        notes.append(_note(split, [path for path, _ in turned], upright, certain=bool(votes)))
    return upright


def notes_on_orientation(images: Images) -> list[str]:
    """A note on pictures with masks whose EXIF orientation leaves the size as it is, so that masks fit turned or not."""
    with_masks = [path for path, mask in zip(images.paths, images.masks, strict=True) if mask is not None]
    found = [path for path, same in zip(with_masks, in_threads(_keeps_size, with_masks), strict=True) if same]
    return [_note(images.title, found, images.upright, certain=False)] if found else []


def _note(split: str, pictures: Sequence[Path], upright: bool, *, certain: bool) -> str:
    what = "are turned by it" if upright else "are not turned by it"
    why = "; sizes cannot tell whether their masks are too: look at them in the report, or say --upright true or false"
    return f"{split}: {len(pictures)} pictures with masks have an EXIF orientation ({pictures[0].name} first) and {what}{'' if certain else why}"


def _keeps_size(path: Path) -> bool:
    try:
        header = read_header(path)
    except BadInput:  # found and named where all pictures are looked through
        return False
    return header.orientation != 1 and header.turned_hw(True) == header.turned_hw(False)


def _fits(path: Path, size_hw: tuple[int, int]) -> bool | str | None:
    """Whether a mask has the size of the turned picture (True) or of the unturned one (False); None if there is nothing to turn."""
    try:
        header = read_header(path)
    except BadInput:  # found and named where all pictures are looked through
        return None
    if header.orientation == 1:
        return None
    fitting = [upright for upright in (True, False) if header.turned_hw(upright) == size_hw]
    return fitting[0] if len(fitting) == 1 else "either"


def header_size_hw(path: Path) -> tuple[int, int] | None:
    """Height and width of a mask file, not turned; None where it cannot be read."""
    try:
        return picture_size_hw(path, upright=False)
    except BadInput:  # found and named where all masks are looked through
        return None
