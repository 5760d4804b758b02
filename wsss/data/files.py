"""Reads and writes the files of activation maps, masks and CRF posteriors."""

import math
import zipfile
from collections.abc import Container, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from wsss.arrays import Float, Float16, Int, UInt8
from wsss.data.grids import Grids, fit, fitted, predicted, whole_numbers
from wsss.data.labels import EXPECTED, LabelSource, MaskTable, decode_labels, voc_palette
from wsss.data.packing import pack, pack_whole, unpack, unpack_whole
from wsss.errors import BadInput, Unreadable, reading
from wsss.foreign.npy_header import read_header
from wsss.storage import whole_file

# files of no more values hardly become smaller by grids, and take longer to read
_SMALL = 2**13


def write_mask(path: Path, mask: UInt8[np.ndarray, "h w"]) -> None:
    """Write labels as an 8-bit palette PNG in VOC colours; the pixel value is the label, 255 included."""
    picture = Image.fromarray(mask)
    picture.putpalette(voc_palette().ravel().tolist())
    with whole_file(path, sync="file") as temporary:
        picture.save(temporary, format="PNG")


def write_picture(path: Path, picture: Image.Image) -> None:
    """Write an RGB picture to look at, as a JPEG."""
    with whole_file(path, sync="file") as temporary:
        picture.save(temporary, format="JPEG", quality=92, subsampling=0)


def write_values(path: Path, values: UInt8[np.ndarray, "h w"]) -> None:
    """Write a grey 8-bit PNG, for programs that take the colours of a palette for the values, as OpenCV does."""
    with whole_file(path, sync="file") as temporary:
        Image.fromarray(values).save(temporary, format="PNG")


def read_mask(path: Path, table: MaskTable | None = None) -> UInt8[np.ndarray, "h w"]:
    """Read the labels of a mask file; see `wsss.data.labels.decode_labels` for the supported kinds.

    Raises:
        BadInput: the file is missing, truncated, no picture, or has colours of unknown meaning.
    """
    return read_labels(path, table)[0]


def read_labels(path: Path, table: MaskTable | None = None) -> tuple[UInt8[np.ndarray, "h w"], LabelSource]:
    """As `read_mask`, and also how the labels were found."""
    missing = "Check that a mask was made for each picture."
    with reading(path, EXPECTED, "Write the mask again.", missing=missing), Image.open(path) as picture:
        return decode_labels(picture, str(path), table)


def write_cams(
    path: Path,
    classes: Int[np.ndarray, " k"],
    maps: Float[np.ndarray, "k h w"],
    maps_stride4: Float[np.ndarray, "k hs ws"] | None = None,
    grids: Grids | None = None,
) -> None:
    """Write the activation maps of one picture as an `.npz` of packed arrays, without pickles; see `wsss.data.packing`.

    Args:
        path: the file.
        classes: 0-based classes of the maps, ascending.
        maps: in [0, 1] at the picture's size; stored as float16.
        maps_stride4: the same at a quarter of the size, where random walks start; stored as float16.
        grids: what the maps were enlarged from, which makes the file smaller; what is read from it is the same.
    """
    arrays = {"maps": maps} | ({} if maps_stride4 is None else {"maps_stride4": maps_stride4})
    _write_packed(path, classes, arrays, grids if maps.size > _SMALL else None)


def read_cams(path: Path, key: str = "maps") -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, "k h w"]]:
    """Read classes (int16) and maps (float32) from a file of `write_cams`; `key` is `maps` or `maps_stride4`.

    Raises:
        BadInput: the file is missing or damaged, or does not hold ascending classes and maps in [0, 1].
    """
    expected = f"an .npz file of activation maps with `classes` (k, ascending) and `{key}` (k, h, w) in [0, 1]"
    do = "Make the activation maps again (wsss localize)."
    classes, (maps,) = _read_packed(path, (key,), expected, do)
    _check_classes(path, classes, expected, do)
    return classes.astype(np.int16), _scores(path, key, maps, len(classes), expected, do)


def write_posteriors(
    path: Path,
    classes: Int[np.ndarray, " k"],
    low: Float[np.ndarray, "l h w"],
    high: Float[np.ndarray, "l h w"],
) -> None:
    """Write the class probabilities of two dense CRFs as an `.npz` of packed arrays; stored as float16.

    Args:
        path: the file.
        classes: 0-based classes of the picture, ascending.
        low, high: probabilities of background and classes, l = k + 1, of the CRFs with much and with little background.
    """
    _write_packed(path, classes, {"low": low, "high": high})


def read_posteriors(path: Path) -> tuple[Float[np.ndarray, "l h w"], Float[np.ndarray, "l h w"]]:
    """Read `low` and `high` (float32) from a file of `write_posteriors`.

    Raises:
        BadInput: the file is missing or damaged, or does not hold ascending classes and two sets of probabilities.
    """
    expected = "an .npz file with `classes` (k, ascending), `low` and `high` (k + 1, h, w) in [0, 1]"
    do = "Make the label sets again."
    classes, (low, high) = _read_packed(path, ("low", "high"), expected, do)
    _check_classes(path, classes, expected, do)
    low, high = (
        _scores(path, key, scores, len(classes) + 1, expected, do) for key, scores in (("low", low), ("high", high))
    )
    if low.shape != high.shape:
        raise BadInput(path, f"`low` of shape {low.shape} and `high` of shape {high.shape}", expected, do)
    return low, high


def _write_packed(
    path: Path,
    classes: Int[np.ndarray, " k"],
    arrays: Mapping[str, Float[np.ndarray, "n h w"]],
    grids: Grids | None = None,
) -> None:
    contents = {"classes": np.asarray(classes, np.int16)}
    whole = [] if grids is None else whole_numbers(grids.values)
    sizes_hw = [(one.shape[1], one.shape[2]) for one in whole]
    for key, values in arrays.items():
        shape, prediction = values.shape, None
        if grids is not None and fit(sizes_hw, (values.shape[1], values.shape[2])):
            # maps are cropped, those at a quarter of the size are not
            enlarged_hw = grids.enlarged_hw if key == "maps" else (values.shape[1], values.shape[2])
            factors = fitted(whole, values, enlarged_hw)
            prediction = predicted(whole, factors, (values.shape[1], values.shape[2]), enlarged_hw)
            contents[f"{key}_factors"], shape = factors, (*shape, *enlarged_hw)
        contents[f"{key}_packed"] = pack(np.asarray(values, np.float16), prediction)
        contents[f"{key}_shape"] = np.array(shape, np.int32)
    if any(f"{key}_factors" in contents for key in arrays):
        contents |= {"grids": np.array(sizes_hw, np.int32), "grids_packed": pack_whole(whole)}
    with whole_file(path, sync="file") as temporary, temporary.open("wb") as stream:
        np.savez(stream, **contents)  # type: ignore[arg-type]


def _read_packed(path: Path, keys: tuple[str, ...], expected: str, do: str) -> tuple[np.ndarray, list[np.ndarray]]:
    """Classes and arrays; files of earlier versions hold the arrays themselves."""
    missing = "Check the path, and that it was made for each picture."
    with reading(path, expected, do, missing=missing), zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        arrays = [
            _unpacked(archive, key, names) if f"{key}_packed.npy" in names else _array(archive, key) for key in keys
        ]
        return _array(archive, "classes"), arrays


def _unpacked(archive: zipfile.ZipFile, key: str, names: Container[str]) -> Float16[np.ndarray, "n h w"]:
    """One array; its shape is followed by the size that grids are enlarged to if it was packed with their prediction."""
    with_grids = f"{key}_factors.npy" in names
    numbers = _array(archive, f"{key}_shape")
    if numbers.shape != (5 if with_grids else 3,) or numbers.dtype.kind != "i" or (numbers < 0).any():
        raise Unreadable(f"`{key}_shape` {numbers[:10].tolist()!s}")
    count, height, width, *enlarged = (int(number) for number in numbers)
    predict = partial(_predicted, archive, key, (count, height, width), enlarged) if with_grids else None
    return unpack(_array(archive, f"{key}_packed"), (count, height, width), predict)


def _predicted(
    archive: zipfile.ZipFile, key: str, shape: tuple[int, int, int], enlarged: Sequence[int]
) -> Float16[np.ndarray, "n h w"]:
    sizes, factors = _array(archive, "grids"), _array(archive, f"{key}_factors")
    if sizes.ndim != 2 or sizes.shape[1] != 2 or sizes.dtype.kind != "i" or not len(sizes) or (sizes < 1).any():
        raise Unreadable(f"`grids` {sizes.ravel()[:10].tolist()!s}")
    sizes_hw = [(int(rows), int(columns)) for rows, columns in sizes]
    if 0 in shape or factors.dtype != np.float64 or factors.shape != shape[:1] or not fit(sizes_hw, shape[1:]):
        raise Unreadable(
            f"`{key}_factors` of {factors.dtype} and shape {factors.shape}, grids {sizes_hw[:5]}, maps {shape}"
        )
    if enlarged[0] < shape[1] or enlarged[1] < shape[2]:
        raise Unreadable(f"grids enlarged to {enlarged}, maps {shape}")
    whole = unpack_whole(_array(archive, "grids_packed"), shape[0], sizes_hw)
    return predicted(whole, factors, shape[1:], (enlarged[0], enlarged[1]))


def _check_classes(path: Path, classes: np.ndarray, expected: str, do: str) -> None:
    if classes.ndim != 1 or classes.dtype.kind not in "iu":
        raise BadInput(path, f"`classes` of {classes.dtype} and shape {classes.shape}", expected, do)
    fit = classes.size == 0 or (int(classes[0]) >= 0 and int(classes[-1]) <= np.iinfo(np.int16).max)
    if not fit or (classes[1:] <= classes[:-1]).any():
        raise BadInput(path, f"`classes` {str(classes[:20].tolist())[1:-1]}", expected, do)


def _scores(path: Path, key: str, scores: np.ndarray, count: int, expected: str, do: str) -> Float[np.ndarray, "k h w"]:
    """As float32, which is faster to compare than float16."""
    if scores.ndim != 3 or scores.dtype.kind != "f" or len(scores) != count:
        raise BadInput(path, f"`{key}` of {scores.dtype} and shape {scores.shape} for {count} maps", expected, do)
    single = scores.astype(np.float32)
    # NaN fails this comparison
    if single.size and not (single.min() >= 0 and single.max() <= 1):
        raise BadInput(path, f"`{key}` from {scores.min()} to {scores.max()}", expected, do)
    return single


# Deflate compresses no better than this
_MOST_PER_BYTE = 1100


def read_arrays(
    path: Path, keys: tuple[str, ...], expected: str, do: str, missing: str = "Check the path."
) -> list[np.ndarray]:
    with reading(path, expected, do, missing=missing), zipfile.ZipFile(path) as archive:
        return [_array(archive, key) for key in keys]


def _array(archive: zipfile.ZipFile, key: str) -> np.ndarray:
    """One array of an `.npz` file; its header is compared with the stored length before memory is allocated."""
    if f"{key}.npy" not in archive.namelist():
        raise Unreadable(f"no array `{key}`")
    entry = archive.getinfo(f"{key}.npy")
    if entry.file_size > _MOST_PER_BYTE * (entry.compress_size + 1):
        raise Unreadable(f"`{key}` of {entry.file_size} bytes packed into {entry.compress_size}")
    with archive.open(entry) as stream:
        shape, fortran, dtype = read_header(stream)
        begin = stream.tell()
        if dtype.kind not in "fiu":
            raise Unreadable(f"`{key}` of {dtype} and shape {shape}")
        if begin + math.prod(shape) * dtype.itemsize != entry.file_size:
            raise Unreadable(f"`{key}` of {dtype} and shape {shape} in {entry.file_size} bytes")
        # reading to the end verifies the checksum
        values = np.frombuffer(stream.read(), dtype)
    return values.reshape(shape, order="F" if fortran else "C")
