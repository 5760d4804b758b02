"""TIFF files: their properties by their tags, and their samples by Pillow if it reads them correctly, else by tifffile."""

import contextlib
import dataclasses
import io
import logging
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from wsss.data.samples import Header, Kind, Samples, check_size
from wsss.errors import BadInput

# Baseline and extension tags of TIFF 6.0, and GDAL's for missing values
_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_ORIENTATION, _SAMPLES, _PLANAR, _EXTRA, _FORMAT, _NODATA = 274, 277, 284, 338, 339, 42113
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_WANTED = {
    _SUBFILE,
    _WIDTH,
    _HEIGHT,
    _BITS,
    _COMPRESSION,
    _PHOTOMETRIC,
    _ORIENTATION,
    _SAMPLES,
    _PLANAR,
    _EXTRA,
    _FORMAT,
    _NODATA,
    _TILE_WIDTH,
    _TILE_HEIGHT,
}
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 6: 1, 8: 2, 9: 4, 13: 4, 16: 8, 17: 8}
_CODES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q"}
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR, _LAB = 0, 1, 2, 3, 5, 6, 8
_NAMES = {4: "transparency mask", 9: "ICC L*a*b*", 10: "ITU L*a*b*", 32803: "colour filter array", 34892: "linear raw"}
_REDUCED_OR_MASK = 0b101
_MOST_PAGES, _MOST_ENTRIES, _MOST_VALUES = 1 << 16, 4096, 1 << 16
# those that libtiff in Pillow's wheels supports
_PILLOW_COMPRESSIONS = {1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34925, 50000}
_CONVERTED = (_PALETTE, _CMYK, _YCBCR, _LAB)
_ALPHA = {1: True, 2: False}  # kind of an extra sample: whether the colours are multiplied by it


def is_tiff(head: bytes) -> bool:
    """Whether a file with these first bytes is a TIFF or a BigTIFF."""
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclasses.dataclass(frozen=True)
class _Page:
    """A page.

    Attributes:
        index: its position in the file's chain of pages.
        tags: the values of `_WANTED` tags, by number.
        order: the byte order, as in `struct`.
        bigtiff: whether offsets have 64 bits.
        orientation_at: offset of the orientation's value in the file.
    """

    index: int
    tags: Mapping[int, tuple[int, ...] | bytes]
    order: str
    bigtiff: bool
    orientation_at: int | None

    def number(self, tag: int, default: int) -> int:
        return next(iter(self.numbers(tag)), default)

    def numbers(self, tag: int) -> tuple[int, ...]:
        value = self.tags.get(tag, ())
        return value if isinstance(value, tuple) else ()


class Tiff:
    """A TIFF file.

    Args:
        path: the file.
        page: number (from 1) of the page to read; None: the first one.

    Attributes:
        header: the properties of that page.

    Raises:
        BadInput: the samples are of an unsupported kind.
        ValueError, struct.error: the file is damaged.
    """

    def __init__(self, path: Path, page: int | None) -> None:
        self.path = path
        with path.open("rb") as stream:
            pages = [one for one in _pages(stream) if not one.number(_SUBFILE, 0) & _REDUCED_OR_MASK]
        if not pages:
            raise ValueError("no page of full size")
        self.page = pages[min(page or 1, len(pages)) - 1]
        self.header = _header(self.page, len(pages), path)

    def load(self, bands: tuple[int, ...]) -> Image.Image | Samples:
        """The picture as stored, not rotated: 8-bit colours as an image of Pillow, everything else as samples.

        Args:
            bands: the requested bands; empty: the colours.
        """
        height, width = self.header.size_hw
        blob = bytearray(self.path.read_bytes())
        if self.page.orientation_at is not None:
            # Pillow rotates TIFFs while reading them, and does so incorrectly if it maps them into memory
            struct.pack_into(f"{self.page.order}H", blob, self.page.orientation_at, 1)
        if not self._by_pillow(bands):
            return Samples(self.header, self._by_tifffile(blob))
        picture = Image.open(io.BytesIO(blob), formats=["TIFF"])
        picture.seek(self.page.index)
        picture.load()
        if picture.size != (width, height):
            raise ValueError(f"{picture.size} pixels instead of {width, height} as in the tags")
        if self.header.kind == "8-bit":
            beyond = picture.mode == "RGBA" and self.header.alpha is None
            return Image.merge("RGB", picture.split()[:3]) if beyond else picture
        values = np.asarray(picture)
        values = values.view(np.int8) if self.header.dtype == "int8" else values.astype(self.header.dtype)
        return Samples(self.header, values.reshape(height, width, 1))

    def _by_pillow(self, bands: tuple[int, ...]) -> bool:
        """Whether Pillow reads such a page correctly."""
        page, header = self.page, self.header
        photometric, bits, extra = page.number(_PHOTOMETRIC, 0), page.numbers(_BITS), page.numbers(_EXTRA)
        compression, big_endian = page.number(_COMPRESSION, 1), page.order == ">"
        if compression not in _PILLOW_COMPRESSIONS or (big_endian and page.bigtiff):
            return False
        if header.kind != "8-bit":
            # Pillow 13 swaps the bytes of compressed big-endian samples a second time
            swapped = big_endian and compression != 1
            signed_or_float = (
                header.dtype in ("int8", "int16", "int32", "float32") and photometric == _BLACK_IS_ZERO and not swapped
            )
            unsigned = header.dtype == "uint16" and bits == (16,) and not (big_endian and header.inverted)
            return header.bands == 1 and (signed_or_float or unsigned)
        if photometric in _CONVERTED:
            return True
        if photometric != _RGB:
            interleaved = page.number(_PLANAR, 1) == 1 and not (bands and header.associated)
            return header.bands == 1 or (header.alpha == 1 and interleaved)
        beyond = header.bands - 3
        usual = (beyond == len(extra) <= 3 and extra[:1] <= (2,) and not any(extra[1:])) or (beyond == 1 and not extra)
        return (page.number(_PLANAR, 1) == 1 and usual and not (bands and beyond)) or header.bands == 3

    def _by_tifffile(self, blob: bytearray) -> np.ndarray:
        if self.page.number(_PHOTOMETRIC, 0) in _CONVERTED:
            raise _refused(self.path, f"a {self.header}{self._details()}")
        try:
            import tifffile
        except ImportError as error:
            raise BadInput(
                self.path,
                f"a {self.header}{self._details()}, which Pillow does not read",
                "8-bit grey or colours, 16-bit or float grey",
                "Install the extra for it: pip install 'wsss[tiff]'",
            ) from error
        height, width = self.header.size_hw
        with _quiet("tifffile"), tifffile.TiffFile(io.BytesIO(blob)) as file:
            page = file.pages[self.page.index]
            values = page.asarray()
            if page.axes.startswith("S"):
                values = np.moveaxis(values, 0, -1)
        values = values.reshape(height, width, -1)
        deep = self.page.number(_BITS, 1)
        if deep < 8:
            values = values.astype(np.uint8) * (255 // (2**deep - 1))
        if values.shape[2] != self.header.bands or values.dtype != self.header.dtype:
            raise ValueError(f"samples of {values.dtype} {values.shape} instead of {self.header} as in the tags")
        return values

    def _details(self) -> str:
        page = self.page
        parts = [f"compression {page.number(_COMPRESSION, 1)}"]
        parts += ["separate planes for bands"] if page.number(_PLANAR, 1) == 2 else []
        return f" ({', '.join(parts)})"


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Suppresses the log messages of a library about damaged files, which cause an error in any case."""
    log = logging.getLogger(name)
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _pages(stream: IO[bytes]) -> Iterator[_Page]:
    head = stream.read(16)
    order = "<" if head[:2] == b"II" else ">"
    big = struct.unpack_from(f"{order}H", head, 2)[0] == 43
    count, entry, pointer = ("Q", "HHQ", "Q") if big else ("H", "HHI", "I")
    room, start = struct.calcsize(f"={pointer}"), struct.calcsize(f"={entry}")
    at, seen = struct.unpack_from(f"{order}{pointer}", head, 8 if big else 4)[0], set[int]()
    while at and at not in seen and len(seen) < _MOST_PAGES:
        index = len(seen)
        seen.add(at)
        n = struct.unpack(f"{order}{count}", _read(stream, at, struct.calcsize(f"={count}")))[0]
        if n > _MOST_ENTRIES:
            raise ValueError(f"{n} tags in a page")
        first = at + struct.calcsize(f"={count}")
        block = _read(stream, first, n * (start + room) + room)
        tags: dict[int, tuple[int, ...] | bytes] = {}
        orientation_at = None
        for number in range(n):
            offset = number * (start + room)
            tag, kind, length = struct.unpack_from(f"{order}{entry}", block, offset)
            if tag not in _WANTED or kind not in _SIZES or length > _MOST_VALUES:
                continue
            size, within = _SIZES[kind] * length, offset + start
            if size > room:
                raw = _read(stream, struct.unpack_from(f"{order}{pointer}", block, within)[0], size)
            else:
                raw = block[within : within + size]
            tags[tag] = raw if kind == 2 else struct.unpack(f"{order}{length}{_CODES[kind]}", raw)
            if tag == _ORIENTATION and kind == 3 and length == 1:
                orientation_at = first + within
        yield _Page(index, tags, order, big, orientation_at)
        at = struct.unpack_from(f"{order}{pointer}", block, n * (start + room))[0]


def _read(stream: IO[bytes], at: int, length: int) -> bytes:
    stream.seek(at)
    found = stream.read(length)
    if len(found) < length:
        raise ValueError("the file is cut off within its tags")
    return found


def _header(page: _Page, pages: int, path: Path) -> Header:
    height, width = page.number(_HEIGHT, 0), page.number(_WIDTH, 0)
    check_size(height, width, path)
    if min(page.number(_TILE_WIDTH, 1), page.number(_TILE_HEIGHT, 1)) < 1:
        raise ValueError("tiles without pixels")
    check_size(page.number(_TILE_HEIGHT, 1), page.number(_TILE_WIDTH, 1), path)
    photometric = page.number(_PHOTOMETRIC, _WHITE_IS_ZERO)
    compression = page.number(_COMPRESSION, 1)
    jpeg = compression in (6, 7)
    bits, bands = page.numbers(_BITS) or (1,), page.number(_SAMPLES, 3 if jpeg and photometric in (2, 6) else 1)
    kind, dtype = _sample_kind(page, bits, path)
    n_colours = {_RGB: 3, _YCBCR: 3, _LAB: 3, _CMYK: 4}.get(photometric, 1)
    extra = page.numbers(_EXTRA)
    if photometric in _NAMES or (photometric in _CONVERTED and kind != "8-bit"):
        name = _NAMES.get(photometric, {3: "palette", 5: "CMYK", 6: "YCbCr", 8: "L*a*b*"}.get(photometric, ""))
        raise _refused(path, f"a TIFF of {name} in {dtype} with {bands} bands")
    colours: tuple[int, ...] | None = tuple(range(3)) if n_colours == 3 and photometric == _RGB else (0,)
    declared, alpha = True, next((n_colours + i for i, one in enumerate(extra) if one in _ALPHA), None)
    if bands < n_colours:
        raise ValueError(f"{bands} samples per pixel for photometric interpretation {photometric}")
    if photometric in _CONVERTED:
        colours, bands, alpha = (0, 1, 2), 3, None  # after Pillow has converted them
    elif photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO) and bands > 1 and not (bands == 2 and alpha == 1):
        # programs that write many bands declare the first one black-is-zero grey, whatever it is
        colours, declared, alpha = ((0, 1, 2) if bands == 3 else None), False, None
    return Header(
        size_hw=(height, width),
        orientation=page.number(_ORIENTATION, 1) if 1 <= page.number(_ORIENTATION, 1) <= 8 else 1,
        kind=kind,
        dtype=dtype,
        bands=bands,
        colours=colours,
        alpha=alpha,
        associated=alpha is not None and _ALPHA[extra[alpha - n_colours]],
        declared=declared,
        inverted=photometric == _WHITE_IS_ZERO,
        pages=pages,
        nodata=_nodata(page),
        what="TIFF",
    )


def _sample_kind(page: _Page, bits: tuple[int, ...], path: Path) -> tuple[Kind, str]:
    form = page.numbers(_FORMAT) or (1,)
    if len(set(bits)) > 1 or len(set(form)) > 1:
        raise _refused(path, f"a TIFF whose bands differ in type ({bits} bits, sample formats {form})")
    deep, what = bits[0], form[0] if form[0] != 4 else 1  # undefined samples are unsigned, as in libtiff
    if what == 1 and deep <= 8:
        return "8-bit", "uint8"
    if what == 1 and deep <= 32:
        return "integer", "uint16" if deep <= 16 else "uint32"
    if what == 2 and deep in (8, 16, 32):
        return "integer", f"int{deep}"
    if what == 3 and deep in (16, 32, 64):
        return "float", f"float{deep}"
    words = {1: "unsigned", 2: "signed", 3: "float", 5: "complex integer", 6: "complex"}
    raise _refused(path, f"a TIFF of {deep}-bit {words.get(what, f'(sample format {what})')} samples")


def _nodata(page: _Page) -> float | None:
    text = page.tags.get(_NODATA)
    try:
        value = float(bytes(text).rstrip(b"\0 ").decode("ascii")) if isinstance(text, bytes) else None
    except ValueError:
        return None
    return value if value is not None and np.isfinite(value) else None


def _refused(path: Path, found: str) -> BadInput:
    return BadInput(
        path,
        found,
        "integers of 1 to 32 bits or floats, as grey, RGB or bands, or 8-bit palette, CMYK, YCbCr or L*a*b*",
        "Convert it.",
    )
