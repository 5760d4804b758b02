"""A picture, its mask and a legend in one image, to look at."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from wsss.arrays import UInt8
from wsss.data.labels import IGNORE, voc_palette
from wsss.errors import printable

# longest side of each of the two pictures: smaller ones are enlarged, so that the legend fits
_SMALLEST, _LARGEST = 360, 1024
_OPACITY = 0.5
_GAP, _TEXT, _SWATCH = 8, 14, 12
_WHITE, _BLACK, _PALE = (255, 255, 255), (0, 0, 0), (245, 245, 245)


def overlay(
    picture: UInt8[np.ndarray, "h w 3"], labels: UInt8[np.ndarray, "h w"], classes: Sequence[str]
) -> Image.Image:
    """The picture, next to it the picture with its mask, and below a legend with class names and areas.

    Regions are tinted in VOC's colours, and their outlines are white between two black lines, so that they show on any picture.

    Args:
        picture: RGB.
        labels: 0 background, class + 1, 255 ignored.
        classes: the class names.
    """
    shown = _resized(picture, cv2.INTER_AREA if max(labels.shape) > _LARGEST else cv2.INTER_LINEAR)
    masked = _tinted(shown, _resized(labels, cv2.INTER_NEAREST))
    height, width = shown.shape[:2]
    legend = _legend(labels, classes, max(2 * width + _GAP, _SMALLEST))
    image = Image.new("RGB", (legend.width, height + legend.height), _PALE)
    image.paste(Image.fromarray(shown), (0, 0))
    image.paste(Image.fromarray(masked), (width + _GAP, 0))
    image.paste(legend, (0, height))
    return image


def _resized(array: np.ndarray, interpolation: int) -> np.ndarray:
    side = max(array.shape[:2])
    factor = min(max(side, _SMALLEST), _LARGEST) / side
    height, width = (max(1, round(length * factor)) for length in array.shape[:2])
    return cv2.resize(array, (width, height), interpolation=interpolation)


def _tinted(picture: UInt8[np.ndarray, "h w 3"], labels: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    mixed = np.rint((1 - _OPACITY) * picture + _OPACITY * voc_palette()[labels]).astype(np.uint8)
    drawn = np.where(labels[..., None] > 0, mixed, picture)
    line = np.zeros(labels.shape, np.uint8)
    line[:-1] |= labels[:-1] != labels[1:]
    line[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    drawn[cv2.dilate(line, np.ones((3, 3), np.uint8)) > 0] = _BLACK
    drawn[line > 0] = _WHITE
    return drawn


def _legend(labels: UInt8[np.ndarray, "h w"], classes: Sequence[str], width: int) -> Image.Image:
    """One entry for each label in the mask, largest area first, in as many rows as they need."""
    import matplotlib  # slow to import

    counts = np.bincount(labels.ravel(), minlength=IGNORE + 1)
    present = sorted(np.flatnonzero(counts).tolist(), key=lambda label: (label == 0, label == IGNORE, -counts[label]))
    names = {0: "background", IGNORE: "ignored"} | {i + 1: name for i, name in enumerate(classes)}
    font = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", _TEXT)
    entries = []
    for label in present:
        text = _fitting(names[label], f"  {100 * counts[label] / labels.size:.1f} %", font, width - 4 * _GAP - _SWATCH)
        entries.append((label, text, _SWATCH + 3 * _GAP + int(font.getlength(text))))
    places, left, top, row = [], _GAP, _GAP, _TEXT + _GAP
    for _, _, length in entries:
        if left > _GAP and left + length > width:
            left, top = _GAP, top + row
        places.append((left, top))
        left += length
    legend = Image.new("RGB", (width, top + row), _PALE)
    draw = ImageDraw.Draw(legend)
    for (label, text, _), (left, top) in zip(entries, places, strict=True):
        colour = tuple(voc_palette()[label].tolist()) if label else _PALE
        draw.rectangle((left, top + 1, left + _SWATCH, top + 1 + _SWATCH), fill=colour, outline=_BLACK)
        draw.text((left + _SWATCH + _GAP // 2, top), text, fill=_BLACK, font=font)
    return legend


def _fitting(name: str, area: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Name and area, with the name cut to the width."""
    name = " ".join(printable(name).split())
    for length in range(len(name), -1, -1):
        text = f"{name if length == len(name) else name[:length] + '…'}{area}"
        if font.getlength(text) <= width:
            return text
    return area.strip()
