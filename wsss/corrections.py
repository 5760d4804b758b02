"""Masks that a person corrected, for some of the pictures of a data set."""

from pathlib import Path

from wsss.data.files import read_mask
from wsss.data.images import Images, check_labels
from wsss.data.lists import IMPORT_RECORD, files_below
from wsss.errors import BadInput
from wsss.outputs import RECORDS
from wsss.stream import in_threads


def corrected_pictures(images: Images, folder: Path) -> list[int]:
    """The indices of the pictures with a mask `NAME.png` in a folder of corrected masks, ascending.

    Args:
        images: the pictures.
        folder: the folder; it may contain the records of a stage or an import besides the masks.

    Raises:
        BadInput: there is no such folder or no mask in it; or files in it are no masks, belong to none of the pictures, have
            another size than their picture, or contain labels that are no class.
    """
    expected = f"masks NAME.png of pictures of {images.title}"
    if not folder.is_dir():
        raise BadInput(
            folder, "a file" if folder.exists() else "no such folder", f"a folder of {expected}", "Check --corrected."
        )
    positions = {name: index for index, name in enumerate(images.names)}
    records = (*RECORDS, IMPORT_RECORD)
    files = {
        _name(path, folder): path for path in files_below(folder) if path.parent != folder or path.name not in records
    }
    unknown = [name for name in files if name.removesuffix(".png") not in positions or not name.endswith(".png")]
    if unknown or not files:
        found = (
            f"{_first(unknown)}, which {'belongs' if len(unknown) == 1 else 'belong'} to no picture"
            if unknown
            else "no masks"
        )
        do = f"Name masks like their pictures ({images.names[0]}.png), and move other files elsewhere."
        raise BadInput(folder, found, expected, do)
    checks = list(in_threads(lambda one: _check(images, positions[one[0].removesuffix(".png")], one[1]), files.items()))
    wrong = [error for error in checks if error is not None]
    if wrong:
        more = f" (and {len(wrong) - 1} more masks of {folder} that do not fit)" if wrong[1:] else ""
        raise BadInput(wrong[0].where, f"{wrong[0].found}{more}", wrong[0].expected, wrong[0].do)
    return sorted(positions[name.removesuffix(".png")] for name in files)


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _first(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more files" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def _check(images: Images, index: int, path: Path) -> BadInput | None:
    """What is wrong with a mask."""
    try:
        mask, (height, width) = read_mask(path), images.size_hw(index)
        if mask.shape != (height, width):
            found, expected = (
                f"a mask of {mask.shape[0]}x{mask.shape[1]} (height x width)",
                f"{height}x{width} like its picture",
            )
            return BadInput(
                path, found, f"{expected} {images.where(index)}", "Write the mask at the size of the picture."
            )
        check_labels(mask, images.n_labels, str(path), images.class_names)
    except BadInput as error:
        return error
    return None
