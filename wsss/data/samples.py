"""Converts the samples of picture files to 8-bit RGB by one rule for the whole data set."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from wsss.arrays import Shaped, UInt8
from wsss.errors import BadInput

Kind = Literal["8-bit", "integer", "float"]

# float pictures may exceed the range of a sample by this share of it, since resizing overshoots
_OVERSHOOT = 0.25


@dataclasses.dataclass(frozen=True)
class PictureReading:
    """How the pictures of a data set are read. The default is for 8-bit pictures, which stay as they are.

    Attributes:
        value_range: the values that become 0 and 255; None leaves 8-bit pictures as they are.
        kinds: the kinds of samples that are accepted; pictures of other kinds are refused.
        strict: whether values beyond the range are refused, because it was found in a sample of the pictures; else they are clipped.
        bands: numbers (from 1) of the band used as grey, of those used as red, green and blue, or of these and alpha;
            empty: as the file says.
        page: number (from 1) of the page, frame or slice; None: files with one page, and the first frame of animations.
    """

    value_range: tuple[float, float] | None = None
    kinds: tuple[Kind, ...] = ("8-bit",)
    strict: bool = False
    bands: tuple[int, ...] = ()
    page: int | None = None

    @staticmethod
    def of(values: Mapping[str, Any] | None) -> "PictureReading":
        """The reading from the value that `plain` returned; None gives the default.

        Raises:
            ValueError: it is no such value.
        """
        if values is None:
            return DEFAULT_READING
        wanted: list[Any] = [values.get(key) for key in ("value_range", "kinds", "bands", "page")]
        span, kinds, bands, page = wanted
        ordered = span is None or (_all(span, int | float) and len(span) == 2 and span[0] < span[1])
        numbered = _all(bands, int) and (page is None or isinstance(page, int))
        if not (ordered and numbered and _all(kinds, str) and all(kind in get_args(Kind) for kind in kinds)):
            raise ValueError(f"not a picture reading: {values}")
        low_high = (float(span[0]), float(span[1])) if span else None
        return PictureReading(low_high, tuple(kinds), bool(values.get("strict")), tuple(bands), page)

    def plain(self) -> dict[str, Any]:
        """A value for JSON."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(self).items()
        }

    def flags(self) -> str:
        """The flags that select this reading."""
        span = self.value_range
        parts = [f"--value-range={span[0]:g},{span[1]:g}"] if span else []
        parts += [f"--bands {','.join(map(str, self.bands))}"] if self.bands else []
        return " ".join(parts + ([f"--page {self.page}"] if self.page else []))

    def __str__(self) -> str:
        low, high = self.value_range or (0, 255)
        parts = [f"values {low:g} to {high:g}"]
        parts += [f"bands {', '.join(map(str, self.bands))}"] if self.bands else []
        parts += [f"page {self.page}"] if self.page else []
        return ", ".join(parts)


DEFAULT_READING = PictureReading()


def _all(values: object, kind: type | UnionType) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


@dataclasses.dataclass(frozen=True)
class Header:
    """The properties of a picture according to its file.

    Attributes:
        size_hw: height and width as stored, before any rotation.
        orientation: that of EXIF, 1 to 8.
        kind: the kind of the samples.
        dtype: the NumPy type of the samples.
        bands: the number of samples per pixel.
        colours: positions (from 0) of the grey band, or of red, green and blue; None if the file does not say which they are.
        alpha: position of the band with the opacity.
        associated: whether the colours are already multiplied by alpha.
        declared: whether `colours` come from the file; else they are assumed.
        inverted: whether large values are dark.
        pages: the number of full pages or slices.
        frames: the number of frames of an animation.
        nodata: the value that marks missing data, in addition to NaN.
        window: low and high of the display window that the file proposes.
        what: the format of the file.
    """

    size_hw: tuple[int, int]
    orientation: int = 1
    kind: Kind = "8-bit"
    dtype: str = "uint8"
    bands: int = 3
    colours: tuple[int, ...] | None = (0, 1, 2)
    alpha: int | None = None
    associated: bool = False
    declared: bool = True
    inverted: bool = False
    pages: int = 1
    frames: int = 1
    nodata: float | None = None
    window: tuple[float, float] | None = None
    what: str = "picture"

    def __str__(self) -> str:
        return f"{self.what} of {self.dtype} with {self.bands} band{'s' * (self.bands != 1)}"

    def turned_hw(self, upright: bool) -> tuple[int, int]:
        """Height and width, after rotation by the orientation if `upright`."""
        height, width = self.size_hw
        return (width, height) if upright and self.orientation in (5, 6, 7, 8) else (height, width)


@dataclasses.dataclass(frozen=True)
class Samples:
    """A decoded picture that is not just 8-bit colours, with its samples as stored.

    Attributes:
        header: its properties.
        values: all bands.
    """

    header: Header
    values: Shaped[np.ndarray, "h w b"]


def check_readable(header: Header, reading: PictureReading, path: Path | str) -> None:
    """Raise BadInput if a picture cannot be read in this way."""
    if header.pages > 1 and reading.page is None:
        raise BadInput(
            path,
            f"{header.pages} pages ({header})",
            "a picture of one page",
            "Choose one with --page N, or save each page as a separate file.",
        )
    if reading.page is not None and reading.page > max(header.pages, header.frames):
        found = f"{max(header.pages, header.frames)} page{'s' * (max(header.pages, header.frames) > 1)}"
        raise BadInput(path, found, f"page {reading.page}", "Change --page, or leave the file out.")
    if reading.bands and max(reading.bands) > header.bands:
        raise BadInput(
            path, f"a {header}", f"band {max(reading.bands)} (--bands)", "Choose other bands, or leave the file out."
        )
    if not reading.bands and header.colours is None:
        raise BadInput(
            path,
            f"a {header}, which does not say which bands are colours",
            "grey, or red, green and blue",
            "Choose with --bands: `--bands 3,2,1` uses the third band as red, `--bands 1` the first as grey.",
        )
    if header.kind not in reading.kinds:
        low, high = reading.value_range or (0, 255)
        expected = "8-bit pictures" if reading.value_range is None else f"{' or '.join(reading.kinds)} samples"
        raise BadInput(
            path,
            f"a {header}",
            f"{expected}, values {low:g} to {high:g}, like the other pictures or those that the network was trained on",
            "Convert it to their kind, leave it out, or set the values that are black and white in all with --value-range LOW,HIGH.",
        )


def to_rgb(samples: Samples, reading: PictureReading, path: Path | str) -> UInt8[np.ndarray, "h w 3"]:
    """The picture with the values of the range scaled to 0 to 255, and transparent pixels blended with white.

    Missing values (NaN, or the file's value for missing data) are black.

    Raises:
        BadInput: all values are missing, or one is beyond the range and the reading is strict.
    """
    header = samples.header
    chosen = tuple(band - 1 for band in reading.bands) or header.colours or ()
    colours, alpha = chosen[:3], chosen[3] if len(chosen) == 4 else None if reading.bands else header.alpha
    values = samples.values[..., list(colours)]
    if reading.value_range is None:
        scaled = values.astype(np.uint8)
        scaled = 255 - scaled if header.inverted else scaled
    else:
        low, high = reading.value_range
        valid = valid_mask(values, header.nodata)
        if not valid.any():
            raise BadInput(
                path, f"no value at all ({header})", "a picture", "Remove it, or leave it out with --skip-bad."
            )
        if reading.strict:
            _check_within(values[valid], header, reading.value_range, path)
        with np.errstate(over="ignore"):
            levels = (values.astype(np.float64) - low) * (255.0 / (high - low))
        scaled = np.rint(np.clip(np.where(valid, levels, 0), 0, 255)).astype(np.uint8)
        scaled = np.where(valid, 255 - scaled, 0).astype(np.uint8) if header.inverted else scaled
    if alpha is not None:
        opaque = np.clip(samples.values[..., [alpha]].astype(np.float64) / _full(header), 0, 1)
        colour = scaled if header.associated and not reading.bands else scaled * opaque
        scaled = np.rint(np.clip(colour + 255 * (1 - opaque), 0, 255)).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(scaled, (*scaled.shape[:2], 3)))


def valid_mask(values: Shaped[np.ndarray, "..."], nodata: float | None) -> np.ndarray:
    """Which values are present: neither NaN nor `nodata`."""
    valid = ~np.isnan(values)
    return valid if nodata is None else valid & (values != nodata)


def apply_orientation(image: Shaped[np.ndarray, "h w ..."], orientation: int) -> np.ndarray:
    """A stored picture, rotated and mirrored for display by its EXIF orientation (1 to 8)."""
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    down = -1 if orientation in (3, 4, 7, 8) else 1
    right = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(image[::down, ::right])


def check_size(height: int, width: int, path: Path) -> None:
    """Raise BadInput for pictures without pixels, or with more pixels than Pillow opens."""
    if height < 1 or width < 1:
        raise BadInput(path, f"a picture of {height}x{width} pixels", "at least one pixel", "Replace or remove it.")
    if Image.MAX_IMAGE_PIXELS and height * width > 2 * Image.MAX_IMAGE_PIXELS:
        raise too_large(path, f"{height}x{width} pixels")


def too_large(path: Path, size: str) -> BadInput:
    """The error for a picture that would not fit into memory."""
    most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
    return BadInput(path, f"a picture of an unlikely size ({size})", f"at most {most} pixels", "Scale it down.")


def _check_within(values: np.ndarray, header: Header, value_range: tuple[float, float], path: Path | str) -> None:
    low, high = value_range
    slack = _OVERSHOOT * (high - low) if header.kind == "float" else 0.0
    least, most = float(values.min()), float(values.max())
    if least < low - slack or most > high + slack:
        raise BadInput(
            path,
            f"the value {most if most > high + slack else least:g} in a {header}",
            f"values {low:g} to {high:g}, the range of a sample of the pictures or of those that the network was trained on",
            "Set the intended range with --value-range LOW,HIGH.",
        )


def _full(header: Header) -> float:
    return 1.0 if header.kind == "float" else float(np.iinfo(header.dtype).max)
