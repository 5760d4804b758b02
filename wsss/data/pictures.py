"""Reads picture files of all supported formats as 8-bit RGB; no other module does."""

import dataclasses
import os
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from wsss.arrays import Shaped, UInt8
from wsss.data.dicom import Dicom, is_dicom
from wsss.data.nifti import NIFTI_SUFFIXES, Nifti
from wsss.data.samples import (
    DEFAULT_READING,
    Header,
    Kind,
    PictureReading,
    Samples,
    apply_orientation,
    check_readable,
    to_rgb,
    too_large,
)
from wsss.data.tiff import Tiff, is_tiff
from wsss.errors import BadInput, reading

if TYPE_CHECKING:
    from torch import Tensor

    PictureArray = np.ndarray | Image.Image | Tensor
    AnyPicture = str | os.PathLike[str] | PictureArray
else:  # torch takes seconds to import, and reading files does not need it
    PictureArray = AnyPicture = Any

PICTURE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"),
    *(".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".dcm", ".dicom", *NIFTI_SUFFIXES),
)
_TO_PNG = "convert them to JPEG or PNG first"
UNREAD_SUFFIXES = {
    **dict.fromkeys((".heic", ".heif", ".jxl", ".psd", ".svg", ".tga", ".pcx", ".ico", ".eps"), _TO_PNG),
    **dict.fromkeys(
        (".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf"), "develop them to JPEG, PNG or TIFF first"
    ),
    **dict.fromkeys(
        (".exr", ".hdr", ".npy", ".npz", ".fits", ".mha", ".nrrd", ".czi", ".lif", ".svs"), "convert them to TIFF first"
    ),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar"), "unpack them first"),
}
_PNG, _JP2, _J2K = b"\x89PNG\r\n\x1a\n", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"
_PLAIN_MODES = ("L", "LA", "RGB", "RGBA")
_DEEP_MODES: dict[str, tuple[Kind, str]] = {
    **dict.fromkeys(("I;16", "I;16B", "I;16L", "I;16N"), ("integer", "uint16")),
    "I": ("integer", "int32"),
    "F": ("float", "float32"),
}
# Chunks of a PNG that may hold an orientation
_METADATA = {b"eXIf", b"tEXt", b"zTXt", b"iTXt"}
_HEAD = 132
_EXPECTED = "a complete picture (JPEG, PNG, ...)"
_DO = "Replace or remove the file, or leave bad pictures out with --skip-bad."
_MISSING = "Check the list of names against the folder of pictures."
_ORIENTATION = 0x0112


@runtime_checkable
class _Source(Protocol):
    """An opened picture file."""

    header: Header

    def load(self, bands: tuple[int, ...]) -> Image.Image | Samples:
        """The picture as stored: 8-bit colours as an image of Pillow, everything else as samples."""


def read_picture(path: Path, *, upright: bool, how: PictureReading = DEFAULT_READING) -> UInt8[np.ndarray, "h w 3"]:
    """A picture file as RGB.

    Grey, palette, CMYK, YCbCr and L*a*b* pictures are converted; transparent pixels are blended with white. Samples of more than
    8 bits are scaled as `how` says.

    Args:
        path: the file.
        upright: rotate the picture by its EXIF orientation.
        how: the values that become black and white, and the bands and the page that are used.

    Raises:
        BadInput: the file is missing, empty, truncated, or no picture, or `how` is for pictures of another kind.
    """
    with reading(path, _EXPECTED, _DO, missing=_MISSING):
        return _rgb(_source(path, how.page), upright, how, path)


def as_rgb(
    picture: AnyPicture, where: str = "picture", how: PictureReading = DEFAULT_READING
) -> UInt8[np.ndarray, "h w 3"]:
    """A picture in any form as RGB; pictures in memory are converted as `read_picture` converts a file with the same samples.

    Grey becomes three equal channels, transparent pixels are blended with white, and files and pictures of Pillow are rotated by
    their EXIF orientation.

    Args:
        picture: a path; a picture of Pillow; an array (h, w), (h, w, 3) RGB or (h, w, 4) RGBA; or a tensor with the channels
            first, (1, h, w), (3, h, w) or (4, h, w). uint8, 0 to 255, unless `how` says otherwise.
        where: the name of a picture in memory in errors.
        how: the values that become black and white, and the bands that are used.

    Returns:
        An array that shares no memory with `picture`.

    Raises:
        BadInput: as `read_picture`; an array or tensor of another shape or type.
    """
    if isinstance(picture, str | os.PathLike):
        return read_picture(Path(picture), upright=True, how=how)
    without_page = dataclasses.replace(how, page=None)
    if isinstance(picture, Image.Image):
        with reading(where, _EXPECTED, _DO):
            return _rgb(_PillowSource(picture.copy(), None), True, without_page, where)
    return _rgb(_ArraySource(channels_last(picture, where), without_page, where), True, without_page, where)


def channels_last(values: PictureArray, where: str) -> Shaped[np.ndarray, "..."]:
    """An array as it is, or a tensor as an array with its channels last.

    Raises:
        BadInput: it is neither.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(values, torch.Tensor):
        tensor: Tensor = values.detach().cpu()
        array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        return np.moveaxis(array, 0, -1) if array.ndim == 3 else array
    if not isinstance(values, np.ndarray):
        expected = "a path, a picture of Pillow, an array (h, w, 3), or a tensor (3, h, w)"
        raise BadInput(where, f"{type(values).__name__}", expected, "Convert it to one of these.")
    return values


def _rgb(source: "_Source", upright: bool, how: PictureReading, where: Path | str) -> UInt8[np.ndarray, "h w 3"]:
    check_readable(source.header, how, where)
    content = source.load(how.bands)
    if isinstance(content, Image.Image) and how.value_range is None and not how.bands:
        image = np.asarray(_to_rgb(content))
    else:
        if isinstance(content, Image.Image):
            content = _samples(content, source.header)
            check_readable(content.header, how, where)
        image = to_rgb(content, how, where)
    return apply_orientation(image, source.header.orientation) if upright and source.header.orientation > 1 else image


def read_samples(path: Path, how: PictureReading) -> Samples:
    """The samples of a picture as stored, neither scaled nor rotated.

    Raises:
        BadInput: as `read_picture`.
    """
    with reading(path, _EXPECTED, _DO, missing=_MISSING):
        source = _source(path, how.page)
        content = source.load(how.bands)
        return _samples(content, source.header) if isinstance(content, Image.Image) else content


def picture_size_hw(path: Path, *, upright: bool, how: PictureReading = DEFAULT_READING) -> tuple[int, int]:
    """Height and width of a picture, without decoding it.

    Raises:
        BadInput: as `read_picture`.
    """
    return read_header(path, how.page).turned_hw(upright)


def read_header(path: Path, page: int | None = None) -> Header:
    """The properties of a page (from 1; None: the first) of a picture file, without decoding it.

    Raises:
        BadInput: as `read_picture`.
    """
    with reading(path, _EXPECTED, _DO, missing=_MISSING):
        source = _source(path, page)
        if isinstance(source, _PillowSource):
            source.close()
        return source.header


def count_frames(path: Path) -> int:
    """The number of frames of an animated GIF, WebP or PNG; 1 for all other pictures.

    Raises:
        BadInput: as `read_picture`.
    """
    with reading(path, _EXPECTED, _DO, missing=_MISSING), path.open("rb") as stream:
        if is_tiff(stream.read(4)):
            return 1
        stream.seek(0)
        with Image.open(stream) as picture:
            return _frames(picture)


def _source(path: Path, page: int | None) -> _Source:
    if path.name.lower().endswith(NIFTI_SUFFIXES):
        return Nifti(path, page)
    with path.open("rb") as stream:
        head = stream.read(_HEAD)
    if is_tiff(head):
        return Tiff(path, page)
    if is_dicom(head):
        return Dicom(path, page)
    if _bits(head) > 8 and (source := _DeepBands(path)).header.bands > 1:
        return source
    return _PillowSource(_open(path), page)


def _bits(head: bytes) -> int:
    """Bits per sample of a PNG (IHDR) or JPEG 2000 (ihdr or SIZ) with these first bytes; 0 for other files."""
    if head.startswith(_PNG):
        return head[24] if len(head) > 24 else 0
    if head.startswith(_JP2) and 0 <= (at := head.find(b"ihdr")) < len(head) - 14:
        return (head[at + 14] & 0x7F) + 1
    return (head[42] & 0x7F) + 1 if head.startswith(_J2K) and len(head) > 42 else 0


class _PillowSource:
    """A picture that Pillow reads correctly."""

    def __init__(self, picture: Image.Image, page: int | None) -> None:
        self.picture = picture
        frames = 1
        if page is not None and (frames := _frames(picture)) >= page:
            picture.seek(page - 1)
        width, height = picture.size
        common = Header((height, width), _orientation(picture), frames=frames, what=picture.format or "picture")
        if picture.mode in _DEEP_MODES:
            kind, dtype = _DEEP_MODES[picture.mode]
            self.header = dataclasses.replace(common, kind=kind, dtype=dtype, bands=1, colours=(0,))
        else:
            bands = len(picture.getbands()) if picture.mode in _PLAIN_MODES else 3
            self.header = dataclasses.replace(common, bands=bands)

    def load(self, bands: tuple[int, ...]) -> Image.Image | Samples:
        with self.picture:
            self.picture.load()
        if self.header.kind == "8-bit":
            return self.picture
        return Samples(self.header, np.asarray(self.picture).astype(self.header.dtype)[..., None])

    def close(self) -> None:
        """Close the file without decoding it."""
        self.picture.close()


class _ArraySource:
    """A picture in an array."""

    def __init__(self, values: Shaped[np.ndarray, "..."], how: PictureReading, where: str) -> None:
        self.values = values[..., None] if values.ndim == 2 else values
        kinds: dict[str, Kind] = {"u": "integer", "i": "integer", "f": "float"}
        kind: Kind | None = "8-bit" if values.dtype == np.uint8 else kinds.get(values.dtype.kind)
        if kind not in how.kinds or self.values.ndim != 3 or 0 in values.shape:
            expected = "uint8 (h, w, 3) RGB, 0 to 255" if how == DEFAULT_READING else f"(h, w, channels), {how}"
            do = "Undo any normalisation, scale it to 0..255, and convert it to uint8."
            raise BadInput(where, f"{values.dtype} of shape {values.shape}", expected, do)
        assert kind is not None
        height, width, bands = self.values.shape
        self.header = Header(
            size_hw=(height, width),
            kind=kind,
            dtype=str(values.dtype),
            bands=bands,
            colours={1: (0,), 2: (0,), 3: (0, 1, 2), 4: (0, 1, 2)}.get(bands),
            alpha=bands - 1 if bands in (2, 4) else None,
            what="array",
        )

    def load(self, bands: tuple[int, ...]) -> Image.Image | Samples:
        if self.header.kind == "8-bit" and self.header.colours is not None:
            grey = self.header.bands == 1
            return Image.fromarray(np.ascontiguousarray(self.values[..., 0] if grey else self.values))
        return Samples(self.header, self.values)


class _DeepBands:
    """A PNG or JPEG 2000 picture with several bands of more than 8 bits, which Pillow would reduce to 8."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with _open(path) as picture:
            mode, size = picture.mode, picture.size
            orientation, what = _orientation(picture), picture.format or "picture"
        self.header = Header(
            size_hw=(size[1], size[0]),
            orientation=orientation,
            kind="integer",
            dtype="uint16",
            bands=len(mode) if mode in _PLAIN_MODES else 1,
            colours=(0,) if mode == "LA" else (0, 1, 2),
            alpha=len(mode) - 1 if mode in ("LA", "RGBA") else None,
            what=what,
        )

    def load(self, bands: tuple[int, ...]) -> Samples:
        import cv2  # slow to import, and rarely needed here

        with Image.open(self.path) as picture:
            picture.load()  # OpenCV fills in what is missing from a truncated file, without an error
        decoded = cv2.imdecode(np.fromfile(self.path, np.uint8), cv2.IMREAD_UNCHANGED)
        if decoded is None or decoded.dtype != np.uint16 or decoded.ndim != 3:
            raise ValueError("bands of more than 8 bits that OpenCV does not decode")
        order = {2: [0, decoded.shape[2] - 1], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[self.header.bands]
        return Samples(self.header, decoded[..., order])


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except UnidentifiedImageError as error:
        with path.open("rb") as stream:
            head = stream.read(16)
        found = f"no picture (it begins with {head!r})" if head else "an empty file"
        raise BadInput(path, found, _EXPECTED, _DO) from error
    except Image.DecompressionBombError as error:
        raise too_large(path, str(error)) from error


def _orientation(picture: Image.Image) -> int:
    """The orientation of EXIF. Pillow decodes a PNG first, since this may stand behind the pixels; here, only one with something there."""
    stream: IO[bytes] | None = getattr(picture, "fp", None)
    if picture.format == "PNG" and stream is not None and not _METADATA & _late_chunks(stream):
        return Image.Image.getexif(picture).get(_ORIENTATION, 1)
    return picture.getexif().get(_ORIENTATION, 1)


def _late_chunks(stream: IO[bytes]) -> set[bytes]:
    """The kinds of the chunks of a PNG from its pixels on."""
    before, kinds = stream.tell(), set[bytes]()
    stream.seek(len(_PNG))
    while len(head := stream.read(8)) == 8:
        if kinds or head[4:] == b"IDAT":
            kinds.add(head[4:])
        # the content, and a checksum of four bytes
        stream.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
    stream.seek(before)
    return kinds


def _frames(picture: Image.Image) -> int:
    # the additional pictures in the JPEGs of phones (MPO) are no animation
    return 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)


def _samples(picture: Image.Image, header: Header) -> Samples:
    """The bands of an 8-bit picture, after conversion to RGB if it has a palette, CMYK or other colours."""
    plain = (
        picture
        if picture.mode in _PLAIN_MODES and not (picture.mode in "LRGB" and picture.has_transparency_data)
        else None
    )
    values = np.asarray(plain if plain is not None else _to_rgb(picture))
    values = values.reshape(*values.shape[:2], -1)
    bands = values.shape[2]
    return Samples(
        dataclasses.replace(
            header,
            bands=bands,
            colours=(0,) if bands < 3 else (0, 1, 2),
            alpha=bands - 1 if bands in (2, 4) else None,
            associated=False,
            inverted=False,
        ),
        values,
    )


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "LAB":
        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(picture, lab, rgb, outputMode="RGB")
        assert converted is not None
        return converted
    if picture.has_transparency_data:
        rgba = (picture.convert("LA") if picture.mode == "La" else picture).convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return picture.convert("RGB")
