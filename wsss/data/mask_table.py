"""Tables that turn the pixels of masks, colours or numbers, into labels."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from wsss.data.files import read_mask
from wsss.errors import BadInput, reading

Colour = tuple[int, int, int]

# VOC's colour of what is ignored
VOID: Colour = (224, 224, 192)


@dataclasses.dataclass(frozen=True)
class MaskTable:
    """Labels by pixel value or by colour.

    Attributes:
        labels: pairs of a value 0..255, or of a colour (red, green, blue), and the label 0..255 that it stands for; all keys are of one kind.
        source: where the table stands, for errors.
        others: the label of all other values; None if there must be none.
    """

    labels: tuple[tuple[int | Colour, int], ...]
    source: str
    others: int | None = None

    @classmethod
    def of(cls, labels: Mapping[int, int] | Mapping[Colour, int], source: str, others: int | None = None) -> "MaskTable":
        return cls(tuple(labels.items()), source, others)

    def read(self, path: Path) -> UInt8[np.ndarray, "h w"]:
        """The labels of a mask file.

        Raises:
            BadInput: the file is missing, damaged or lossy, or holds a value or a colour that the table does not name.
        """
        by_colour = any(isinstance(key, tuple) for key, _ in self.labels)
        pixels = _packed(_colours(path)) if by_colour else read_mask(path).astype(np.int32)
        values, inverse, counts = np.unique(pixels, return_inverse=True, return_counts=True)
        known = {_key(key): label for key, label in self.labels}
        unknown = [at for at, value in enumerate(values.tolist()) if value not in known]
        if unknown and self.others is None:
            shown = ", ".join(_shown(int(values[at]), by_colour) for at in unknown[:5])
            raise BadInput(
                path,
                f"the {'colour' if by_colour else 'value'} {shown} ({int(counts[unknown].sum())} pixels)",
                f"those of {self.source}",
                "Write the masks in these colours, or complete the table."
                if by_colour
                else "Write the masks with these values, or complete the table.",
            )
        table = np.array([known.get(value, self.others or 0) for value in values.tolist()], np.uint8)
        return table[inverse].reshape(pixels.shape)

    def stamp(self) -> list[object]:
        """What changes when the labels of a mask do because of the table; JSON can hold it."""
        return [[list(key) if isinstance(key, tuple) else key, label] for key, label in self.labels] + [self.others]


def _colours(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    expected = "a PNG of colours"
    with reading(path, expected, "Write the mask again.", missing="Check that there is a mask for each picture."):
        with Image.open(path) as picture:
            if picture.format == "JPEG":
                raise BadInput(path, "a JPEG, which changes colours", expected, "Write the masks as PNG.")
            if picture.mode not in ("RGB", "P", "L", "1", "RGBA"):
                raise BadInput(path, f"a picture of mode {picture.mode}", expected, "Write the masks as RGB.")
            return np.array(picture.convert("RGB"))


def _packed(colours: UInt8[np.ndarray, "h w 3"]) -> np.ndarray:
    red, green, blue = np.moveaxis(colours.astype(np.int32), 2, 0)
    return red << 16 | green << 8 | blue


def _key(key: int | Colour) -> int:
    return key[0] << 16 | key[1] << 8 | key[2] if isinstance(key, tuple) else key


def _shown(value: int, by_colour: bool) -> str:
    return f"({value >> 16}, {value >> 8 & 255}, {value & 255})" if by_colour else str(value)
