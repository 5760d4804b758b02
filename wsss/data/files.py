"""The only reader and writer of activation map files and mask files."""

import zipfile
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, UnidentifiedImageError

from wsss.errors import BadInput
from wsss.storage import whole_file


def voc_palette() -> UInt8[np.ndarray, "256 3"]:
    """PASCAL VOC's colours (RGB): the bits of a label, spread from the top bit of red, green and blue downwards."""
    label = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for level in range(8):
        for channel in range(3):
            colours[:, channel] |= ((label >> (3 * level + channel) & 1) << (7 - level)).astype(np.uint8)
    return colours


def write_mask(path: Path, mask: UInt8[np.ndarray, "h w"]) -> None:
    """Write labels as an 8-bit palette PNG in VOC colours; the pixel value is the label, 255 included."""
    picture = Image.fromarray(mask)
    picture.putpalette(voc_palette().ravel().tolist())
    with whole_file(path) as temporary:
        picture.save(temporary, format="PNG")


def read_mask(path: Path) -> UInt8[np.ndarray, "h w"]:
    """Read the labels of a palette or grey 8-bit PNG.

    Raises:
        BadInput: the file is missing, cut off, no picture, or has colours instead of labels.
    """
    expected = "an 8-bit palette or grey PNG whose pixel values are labels"
    try:
        with Image.open(path) as picture:
            mode, mask = picture.mode, np.array(picture)
    except FileNotFoundError as error:
        raise BadInput(path, "no such file", expected, "Check that a mask was made for each picture.") from error
    except UnidentifiedImageError as error:
        raise BadInput(path, "no picture", expected, "Write the mask again.") from error
    except Exception as error:  # Pillow's decoders let all kinds of errors out when a file is damaged
        raise BadInput(
            path, f"a picture that cannot be decoded ({error!r:.120})", expected, "Write the mask again."
        ) from error
    if mode not in ("P", "L"):
        raise BadInput(path, f"a picture of mode {mode}", expected, "Write the labels themselves, not their colours.")
    return mask


def write_cams(
    path: Path,
    classes: Int[np.ndarray, " k"],
    maps: Float[np.ndarray, "k h w"],
    strided: Float[np.ndarray, "k hs ws"] | None = None,
) -> None:
    """Write the activation maps of one picture as a compressed `.npz` that holds no pickles.

    Args:
        path: the file.
        classes: 0-based classes of the maps, ascending.
        maps: in [0, 1] at the picture's size; kept as float16.
        strided: the same at a quarter of the size, which random walks start from; kept as float16.
    """
    arrays = {"classes": np.asarray(classes, np.int16), "maps": np.asarray(maps, np.float16)}
    if strided is not None:
        arrays["strided"] = np.asarray(strided, np.float16)
    with whole_file(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]


def read_cams(path: Path, key: str = "maps") -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, "k h w"]]:
    """Read classes (int16) and maps (float32) that `write_cams` wrote; `key` is `maps` or `strided`.

    Raises:
        BadInput: the file is missing, cut off, or holds something else.
    """
    expected = f"an .npz file of activation maps with `classes` (k) and `{key}` (k, h, w)"
    do = "Make the activation maps again (wsss localize)."
    classes, maps = _read_arrays(path, ("classes", key), expected, do)
    if classes.ndim != 1 or maps.ndim != 3 or len(classes) != len(maps):
        raise BadInput(path, f"`classes` of shape {classes.shape} and `{key}` of shape {maps.shape}", expected, do)
    return classes, maps.astype(np.float32)


def write_posteriors(
    path: Path,
    classes: Int[np.ndarray, " k"],
    low: Float[np.ndarray, "l h w"],
    high: Float[np.ndarray, "l h w"],
) -> None:
    """Write the class probabilities of two dense CRFs as a compressed `.npz` that holds no pickles; kept as float16.

    Args:
        path: the file.
        classes: 0-based classes of the picture, ascending.
        low, high: probabilities of background and classes, l = k + 1, of the CRF with much and with little background.
    """
    arrays = {"classes": np.asarray(classes, np.int16), "low": low.astype(np.float16), "high": high.astype(np.float16)}
    with whole_file(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]


def read_posteriors(path: Path) -> tuple[Float[np.ndarray, "l h w"], Float[np.ndarray, "l h w"]]:
    """Read what `write_posteriors` wrote: `low` and `high`, float32.

    Raises:
        BadInput: the file is missing, cut off, or holds something else.
    """
    expected, do = "an .npz file with `low` and `high` (k + 1, h, w)", "Make the label sets again."
    low, high = _read_arrays(path, ("low", "high"), expected, do)
    if low.ndim != 3 or low.shape != high.shape or len(low) == 0:
        raise BadInput(path, f"`low` of shape {low.shape} and `high` of shape {high.shape}", expected, do)
    return low.astype(np.float32), high.astype(np.float32)


def _read_arrays(path: Path, keys: tuple[str, str], expected: str, do: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays[keys[0]], arrays[keys[1]]
    except FileNotFoundError as error:
        raise BadInput(path, "no such file", expected, do) from error
    except KeyError as error:
        raise BadInput(path, f"no array {error}", expected, do) from error
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise BadInput(path, f"no such archive ({error})", expected, do) from error
