"""Masks and activation maps that a person corrected, for some of the pictures of a data set."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from wsss.arrays import Float, Int, UInt8
from wsss.data.files import read_mask, write_cams
from wsss.data.images import IGNORE, Images, check_labels
from wsss.data.lists import IMPORT_RECORD, files_below
from wsss.data.maps import read_matching_cams
from wsss.errors import BadInput
from wsss.outputs import RECORDS
from wsss.run import stage
from wsss.stages.each import as_loaded, for_each_picture
from wsss.stream import in_threads

# classes and maps of a picture
_Maps = tuple[Int[np.ndarray, " k"], Float[np.ndarray, "k h w"]]


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


@stage(kind="correct", makes="maps", title="corrected maps")
def correct_cams(images: Images, *, cams: Path, corrected: Path, out: Path) -> dict[str, Any]:
    """Write the activation maps of all pictures, with corrected ones in place of the others.

    A corrected mask becomes maps that are 1 inside each class and 0 outside; pixels with 255 keep the values of the uncorrected maps.

    Args:
        images: the pictures.
        cams: folder of their activation maps.
        corrected: folder with maps NAME.npz or NAME.npy, or masks NAME.png, of some of the pictures; it is only read.
        out: the stage's folder.

    Raises:
        BadInput: there is no corrected file; or one of them belongs to no picture, is there in two formats, or does not fit its picture.
    """
    files = _corrected_files(images, corrected)

    def load(index: int) -> _Maps:
        height, width, _ = images.read(index).shape
        path = files.get(index)
        if path is None or path.suffix == ".png":
            classes, maps = read_matching_cams(images, cams, index, (height, width))
            if path is None:
                return classes, maps
            if (error := _check(images, index, path)) is not None:
                raise error
            return _from_mask(read_mask(path), classes, maps)
        return read_matching_cams(images, corrected, index, (height, width))

    def write(path: Path, made: _Maps) -> None:
        classes, maps = made
        quarter = [-(-side // 4) for side in maps.shape[1:]]
        low = [cv2.resize(one, quarter[::-1], interpolation=cv2.INTER_AREA) for one in maps]
        write_cams(path, classes, maps, np.array(low, np.float32).reshape(len(maps), *quarter))

    for_each_picture(images, out, ".npz", load, as_loaded, write, title=f"correct {out.name}")
    return {"images": len(images), "corrected": [images.names[index] for index in sorted(files)]}


def _corrected_files(images: Images, folder: Path) -> dict[int, Path]:
    """The corrected file of each picture that has one, by index."""
    expected = f"maps NAME.npz or NAME.npy, or masks NAME.png, of pictures of {images.title}"
    if not folder.is_dir():
        found = "a file" if folder.exists() else "no such folder"
        raise BadInput(folder, found, f"a folder of {expected}", "Check --corrected.")
    positions, files = {name: index for index, name in enumerate(images.names)}, dict[int, Path]()
    for path in files_below(folder):
        if path.parent == folder and path.name in (*RECORDS, IMPORT_RECORD):
            continue
        name = _name(path.with_suffix(""), folder)
        if path.suffix not in (".npz", ".npy", ".png") or name not in positions:
            do = "Name corrected files like their pictures, and move other files elsewhere."
            raise BadInput(path, "a file that belongs to no picture", expected, do)
        if (other := files.setdefault(positions[name], path)) != path:
            raise BadInput(path, f"a second corrected file of {name} ({other.name})", "one", "Remove one of the two.")
    if not files:
        raise BadInput(folder, "no maps or masks", expected, "Check --corrected.")
    return files


def _from_mask(
    mask: UInt8[np.ndarray, "h w"], classes: Int[np.ndarray, " k"], maps: Float[np.ndarray, "k h w"]
) -> _Maps:
    """Maps of the classes in a mask or in the uncorrected maps."""
    drawn = np.setdiff1d(mask[mask != IGNORE], [0]).astype(np.int16) - 1
    every = np.union1d(classes, drawn).astype(np.int16)
    before = {int(one): plane for one, plane in zip(classes, maps, strict=True)}
    planes = [
        np.where(mask == IGNORE, before.get(int(one), np.float32(0)), np.float32(mask == one + 1)) for one in every
    ]
    return every, np.array(planes, np.float32).reshape(len(every), *mask.shape)


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
