"""Reads activation maps of this program or of others, and checks them against their pictures."""

from pathlib import Path

import numpy as np

from wsss.arrays import Float, Int
from wsss.data.files import read_cams
from wsss.data.images import Images
from wsss.errors import BadInput
from wsss.foreign.npy import read_legacy_cams

# scores of other programs may exceed [0, 1] by this much: SEAM's infer_SEAM.py subtracts the minimum from pixels that it set to 0
_BELOW, _ABOVE = 0.1, 0.001


def read_matching_cams(
    images: Images, cams: Path, index: int, size_hw: tuple[int, int], stride: int = 1
) -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, "k h w"]]:
    """Classes and maps of a picture, at its size or at a quarter of it (`stride` 4).

    Raises:
        BadInput: there are none, they have another size, or a class is unknown.
    """
    classes, maps, path = _stored(cams, images.names[index], stride)
    height, width = (-(-side // stride) for side in size_hw)
    if not len(classes):
        maps = maps.reshape(0, height, width)  # files of other programs without maps do not store a size
    if maps.shape[1:] != (height, width) or (classes >= len(images.class_names)).any():
        raise BadInput(
            path,
            f"maps of {maps.shape[1]}x{maps.shape[2]} (height x width), classes {classes.tolist()}",
            f"{height}x{width} and classes below {len(images.class_names)}",
            "Make the activation maps again for this data set.",
        )
    return classes, maps


def _stored(cams: Path, name: str, stride: int = 1) -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, "k h w"], Path]:
    """Classes (ascending, 0-based) and maps (float32, in [0, 1]) of a picture, and their file.

    The file is `NAME.npz` of `wsss localize`, or `NAME.npy` of another program: see `wsss.foreign.npy.read_legacy_cams`. Scores of the
    latter slightly below 0 or above 1 are clipped.

    Raises:
        BadInput: there is no such file or there are both, or it is damaged, has other content, or lacks maps at a quarter of the size.
    """
    path, other = cams / f"{name}.npz", cams / f"{name}.npy"
    if not other.is_file():
        return *read_cams(path, "maps" if stride == 1 else "maps_stride4"), path
    if path.exists():
        do = "Use a separate folder for the maps of each program."
        raise BadInput(other, f"maps of the picture in {path.name} too", "one file of maps for each picture", do)
    classes, full, quarter = read_legacy_cams(other)
    maps = full if stride == 1 else quarter
    if maps is None:
        do = "Use a refiner that needs none, crf or affinitynet, or make the maps with wsss localize."
        raise BadInput(other, "no `cam`", "maps at a quarter of the picture's size, as IRNet writes them", do)
    # NaN fails this comparison
    if maps.size and not (maps.min() >= -_BELOW and maps.max() <= 1 + _ABOVE):
        found = f"maps from {maps.min():.4g} to {maps.max():.4g}"
        raise BadInput(other, found, "scores in [0, 1]", "Divide each map by its maximum before saving it.")
    return classes, maps.clip(0, 1), other
