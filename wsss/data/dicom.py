"""DICOM files, by pydicom: the stored values with the file's rescale slope and intercept (Hounsfield units in CT), without windowing."""

import warnings
from pathlib import Path
from typing import Any

from wsss.data.samples import Header, Samples, check_size
from wsss.errors import BadInput

_GREY = {"MONOCHROME1": True, "MONOCHROME2": False}
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


def is_dicom(head: bytes) -> bool:
    """Whether a file with these first 132 bytes is a DICOM file."""
    return head[128:132] == b"DICM"


class Dicom:
    """A DICOM file.

    Args:
        path: the file.
        page: number (from 1) of the frame to read; None: the first one.

    Attributes:
        header: the properties of the frame.

    Raises:
        BadInput: pydicom is not installed, or the pixels are of an unsupported kind.
    """

    def __init__(self, path: Path, page: int | None) -> None:
        try:
            import pydicom
        except ImportError as error:
            raise BadInput(
                path,
                "a DICOM file",
                "an ordinary picture",
                "Install the extra for it: pip install 'wsss[dicom]'",
            ) from error
        self.path, self.page = path, page or 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.data = data = pydicom.dcmread(path)
        height, width = int(data.get("Rows", 0)), int(data.get("Columns", 0))
        check_size(height, width, path)
        meaning = str(data.get("PhotometricInterpretation", ""))
        if meaning not in (*_GREY, *_COLOURS):
            raise BadInput(
                path,
                f"a DICOM file of {meaning or 'no photometric interpretation'}",
                f"one of {', '.join((*_GREY, *_COLOURS))}",
                "Convert it to one of them.",
            )
        grey, stored, signed = (
            meaning in _GREY,
            int(data.get("BitsAllocated", 0)),
            bool(data.get("PixelRepresentation", 0)),
        )
        self.scale = (
            (float(data.get("RescaleSlope", 1) or 1), float(data.get("RescaleIntercept", 0) or 0))
            if grey
            else (1.0, 0.0)
        )
        plain = stored == 8 and not signed and self.scale == (1.0, 0.0)
        whole = all(number.is_integer() for number in self.scale)
        self.header = Header(
            size_hw=(height, width),
            kind="8-bit" if plain else "integer",
            dtype="uint8" if plain else "int32" if whole else "float64",
            bands=1 if grey else 3,
            colours=(0,) if grey else (0, 1, 2),
            inverted=_GREY.get(meaning, False),
            pages=int(data.get("NumberOfFrames", 1) or 1),
            window=_window(data),
            what="DICOM file",
        )

    def load(self, bands: tuple[int, ...]) -> Samples:
        from pydicom.pixels import pixel_array

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = pixel_array(self.data, index=self.page - 1 if self.header.pages > 1 else None)
        slope, intercept = self.scale
        if self.scale != (1.0, 0.0):
            values = values * slope + intercept
        height, width = self.header.size_hw
        return Samples(self.header, values.reshape(height, width, -1).astype(self.header.dtype))


def _window(data: Any) -> tuple[float, float] | None:
    """The first display window that the file proposes (PS3.3, C.11.2.1.2)."""
    first = []
    for name in ("WindowCenter", "WindowWidth"):
        value = data.get(name)
        if value is None or value == "":
            return None
        first.append(float(value if isinstance(value, int | float | str) else value[0]))
    centre, width = first
    return (centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2) if width > 1 else None
