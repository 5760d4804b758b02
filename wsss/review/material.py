"""What a review shows: pictures, thumbnails, activation maps and superpixels, each made when it is asked for."""

import gzip
import hashlib
import io
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from wsss.arrays import Float, Shaped, UInt8
from wsss.data.images import Images
from wsss.data.maps import read_matching_cams
from wsss.errors import BadInput
from wsss.ops.superpixels import superpixels
from wsss.storage import whole_file

# Longest side of a thumbnail; most pixels of a picture that is shown, since browsers limit the size of a canvas
THUMBNAIL, MOST_PIXELS = 128, 64_000_000
THUMBNAILS = "thumbnails"
_QUALITY = 92
# Pictures in memory at the same time
_KEPT = 3


class Material:
    """The pictures of a split, and their maps if there are some.

    Args:
        images: the pictures.
        cams: folder of activation maps, None if there is none.
        cache: folder in which thumbnails are stored.
    """

    def __init__(self, images: Images, cams: Path | None, cache: Path) -> None:
        self.images, self.cams, self.cache = images, cams, cache
        self.picture = lru_cache(maxsize=_KEPT)(self._picture)
        self.regions = lru_cache(maxsize=_KEPT)(self._regions)

    def _picture(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        check_shown(self.images.size_hw(index), self.images.where(index))
        return self.images.read(index)

    def _regions(self, index: int, side: int) -> Shaped[np.ndarray, "h w"]:
        return superpixels(self.picture(index), side)

    def thumbnail(self, index: int) -> bytes:
        """A JPEG, from the cache if the picture is unchanged since it was made."""
        path = self.images.paths[index]
        status = path.stat()
        key = f"{self.images.names[index]}\n{status.st_size}\n{status.st_mtime_ns}\n{self.images.reading}"
        name = hashlib.sha256(key.encode("utf-8", errors="surrogateescape")).hexdigest()
        stored = self.cache / THUMBNAILS / name[:2] / f"{name[2:32]}.jpg"
        if stored.is_file():
            return stored.read_bytes()
        small = Image.fromarray(self.images.read(index))
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        content = _encoded(small, "JPEG", quality=80)
        with whole_file(stored, sync="nothing") as temporary:
            temporary.write_bytes(content)
        return content

    def jpeg(self, index: int) -> bytes:
        """The picture, after the value range and bands were applied."""
        return as_jpeg(Image.fromarray(self.picture(index)))

    def mapped_classes(self, index: int) -> list[int]:
        """The 0-based classes that have a map; empty without maps."""
        if self.cams is None or not self._has_maps(index):
            return []
        return read_matching_cams(self.images, self.cams, index, self.images.size_hw(index))[0].tolist()

    def heatmap(self, index: int, cls: int) -> bytes:
        """The activation map of a class as a PNG in the colours of Viridis, whose lightness rises with the score.

        Raises:
            BadInput: there is none.
        """
        classes, maps = self.maps(index)
        if cls not in classes:
            name = self.images.names[index]
            raise BadInput(name, f"no map of class {cls}", f"one of {classes.tolist()}", "Choose another class.")
        score = np.rint(255 * maps[classes.tolist().index(cls)]).astype(np.uint8)
        colours = cv2.applyColorMap(score, cv2.COLORMAP_VIRIDIS)[..., ::-1]
        return _encoded(Image.fromarray(colours), "PNG", compress_level=1)

    def maps(self, index: int) -> tuple[Shaped[np.ndarray, " k"], Float[np.ndarray, "k h w"]]:
        """Classes and maps; none if there are no maps of this picture."""
        if self.cams is None or not self._has_maps(index):
            return np.zeros(0, np.int16), np.zeros((0, *self.images.size_hw(index)), np.float32)
        return read_matching_cams(self.images, self.cams, index, self.images.size_hw(index))

    def _has_maps(self, index: int) -> bool:
        name = self.images.names[index]
        return self.cams is not None and any((self.cams / f"{name}{end}").is_file() for end in (".npz", ".npy"))


def check_shown(size_hw: tuple[int, int], where: str) -> None:
    """Raise BadInput if a picture is too large for a page."""
    height, width = size_hw
    if height * width > MOST_PIXELS:
        found, expected = f"a picture of {height}x{width} pixels", f"at most {MOST_PIXELS} pixels on a page"
        raise BadInput(where, found, expected, "Cut it into tiles, or correct it with another program.")


def as_jpeg(picture: Image.Image) -> bytes:
    """A picture for a page, as a JPEG of high quality."""
    return _encoded(picture, "JPEG", quality=_QUALITY, subsampling=0)


def packed(values: Shaped[np.ndarray, "h w"]) -> bytes:
    """The values in row order, little-endian, compressed with gzip."""
    little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    return gzip.compress(little.tobytes(), compresslevel=1, mtime=0)


def _encoded(picture: Image.Image, form: str, **options: int) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format=form, **options)
    return stream.getvalue()
