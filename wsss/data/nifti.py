"""NIfTI files, by nibabel: one slice of a volume along its third axis, as stored."""

from pathlib import Path
from typing import Any

import numpy as np

from wsss.data.samples import Header, Samples, check_size
from wsss.errors import BadInput

NIFTI_SUFFIXES = (".nii", ".nii.gz")


class Nifti:
    """A NIfTI file; its first axis points to the right, its second one downwards.

    Args:
        path: the file.
        page: number (from 1) of the slice to read; None: the first one.

    Attributes:
        header: the properties of the slice.

    Raises:
        BadInput: nibabel is not installed, or the file holds anything but one volume of numbers.
    """

    def __init__(self, path: Path, page: int | None) -> None:
        try:
            import nibabel
        except ImportError as error:
            raise BadInput(
                path,
                "a NIfTI file",
                "an ordinary picture",
                "Install the extra for it: pip install 'wsss[nifti]'",
            ) from error
        self.path, self.page = path, page or 1
        volume: Any = nibabel.load(path)
        self.data = volume.dataobj
        shape = tuple(self.data.shape)
        shape += (1,) * (2 - len(shape))
        if any(side != 1 for side in shape[3:]):
            raise BadInput(
                path,
                f"{len(shape)} axes of {', '.join(map(str, shape))}",
                "a slice or a volume",
                "Extract single volumes from it.",
            )
        check_size(shape[1], shape[0], path)
        stored = np.dtype(self.data.dtype)
        if stored.kind not in "iuf":
            raise BadInput(path, f"a NIfTI file of {stored}", "integers or floats", "Convert it.")
        scaled = (self.data.slope, self.data.inter) != (1.0, 0.0)
        plain = stored == np.uint8 and not scaled
        self.header = Header(
            size_hw=(shape[1], shape[0]),
            kind="8-bit" if plain else "float" if scaled or stored.kind == "f" else "integer",
            dtype="float64" if scaled else stored.name,
            bands=1,
            colours=(0,),
            pages=shape[2] if len(shape) > 2 else 1,
            what="NIfTI file",
        )

    def load(self, bands: tuple[int, ...]) -> Samples:
        position = (slice(None), slice(None), self.page - 1, *(0,) * (len(self.data.shape) - 3))
        values = np.asarray(self.data[position[: len(self.data.shape)]])
        height, width = self.header.size_hw
        return Samples(self.header, values.reshape(width, height).T[..., None].astype(self.header.dtype))
