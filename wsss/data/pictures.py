"""The only reader of picture files: whatever they hold becomes 8-bit RGB."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from wsss.errors import BadInput

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


def read_picture(path: Path, *, upright: bool) -> UInt8[np.ndarray, "h w 3"]:
    """A picture file of any common kind as RGB.

    Grey, palette and CMYK pictures are converted; 16-bit grey is scaled to 8 bits; transparent pixels are laid on white.

    Raises:
        BadInput: the file is missing, empty, cut off, or no picture.
    """
    with _opened(path) as picture:
        turned = ImageOps.exif_transpose(picture) if upright else picture
        return np.asarray(_to_rgb(turned))


def picture_size_hw(path: Path, *, upright: bool) -> tuple[int, int]:
    """Height and width of a picture, without decoding it.

    Raises:
        BadInput: as `read_picture`.
    """
    with _opened(path) as picture:
        width, height = picture.size
        turned = upright and picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        return (width, height) if turned else (height, width)


def orientation(path: Path) -> int:
    """How a picture is to be turned, as EXIF numbers it: 1 (not at all) to 8.

    Raises:
        BadInput: as `read_picture`.
    """
    with _opened(path) as picture:
        found = picture.getexif().get(0x0112, 1)
        return found if found in range(1, 9) else 1


class _opened:
    """Open a picture and turn whatever goes wrong while it is read into BadInput."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Image.Image:
        try:
            self.picture = Image.open(self.path)
        except Exception as error:
            raise self._explained(error) from error
        return self.picture

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.picture.close()
        if isinstance(error, Exception):
            raise self._explained(error) from error

    def _explained(self, error: Exception) -> BadInput:
        expected = "a whole picture (JPEG, PNG, ...)"
        do = "Replace or remove the file, or leave bad pictures out with --skip-bad."
        if isinstance(error, FileNotFoundError):
            return BadInput(
                self.path, "no such file", expected, "Check the list of names against the folder of pictures."
            )
        if isinstance(error, IsADirectoryError):
            return BadInput(self.path, "a folder", expected, do)
        if isinstance(error, PermissionError):
            return BadInput(self.path, "a file that may not be read", expected, "Change its permissions.")
        if self.path.exists() and self.path.stat().st_size == 0:
            return BadInput(self.path, "an empty file", expected, do)
        if isinstance(error, UnidentifiedImageError):
            head = self.path.read_bytes()[:16]
            return BadInput(self.path, f"no picture (it begins with {head!r})", expected, do)
        if isinstance(error, Image.DecompressionBombError):
            return BadInput(
                self.path,
                f"a picture of an unlikely size ({error})",
                f"at most {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels",
                "Scale it down.",
            )
        # Pillow's decoders let all kinds of errors out when a file is damaged
        return BadInput(self.path, f"a picture that cannot be decoded ({error!r:.120})", expected, do)


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, dtype=np.float64)
        top = 65535.0 if values.max(initial=0) > 255 else 255.0
        return Image.fromarray(np.clip(np.rint(values * (255.0 / top)), 0, 255).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return picture.convert("RGB")
