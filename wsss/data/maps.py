"""Activation maps of a data set's pictures."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from wsss.data.files import read_cams
from wsss.data.images import Images
from wsss.errors import BadInput


def fitting_cams(
    images: Images, cams: Path, index: int, size_hw: tuple[int, int], stride: int = 1
) -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, "k h w"]]:
    """Classes and maps of a picture, at its size or at a quarter of it (`stride` 4).

    Raises:
        BadInput: there are none, they are of another size, or of a class that the pictures do not have.
    """
    path = cams / f"{images.names[index]}.npz"
    classes, maps = read_cams(path, "maps" if stride == 1 else "maps_stride4")
    height, width = (-(-side // stride) for side in size_hw)
    if maps.shape[1:] != (height, width) or (classes >= len(images.class_names)).any():
        raise BadInput(
            path,
            f"maps of {maps.shape[1]}x{maps.shape[2]} (height x width), classes {classes.tolist()}",
            f"{height}x{width} and classes below {len(images.class_names)}",
            "Make the activation maps again for this data set.",
        )
    return classes, maps
