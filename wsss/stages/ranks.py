"""What is left of maps after a threshold sweep: enough for the labels at each threshold, so that maps are read once."""

import contextlib
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import zstandard

from wsss.arrays import UInt8
from wsss.metrics import Ranks

# bytes that are kept in memory before a file is used
_IN_MEMORY = 1 << 26


class RankedPicture(NamedTuple):
    """A true mask, and the ranks of its maps."""

    truth: UInt8[np.ndarray, "h w"]
    ranks: Ranks


class Packed(NamedTuple):
    """A `RankedPicture`, compressed."""

    content: bytes
    size_hw: tuple[int, int]
    rank: np.dtype


def packed(picture: RankedPicture) -> Packed:
    """The picture, compressed."""
    truth, (labels, ranks) = picture
    content = truth.tobytes() + labels.tobytes() + ranks.tobytes()
    return Packed(zstandard.ZstdCompressor(level=1).compress(content), (truth.shape[0], truth.shape[1]), ranks.dtype)


class Store:
    """Pictures of a sweep by index, in a file without a name that vanishes with the process; use `opened`."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._lock = file, threading.Lock()
        self._places: dict[int, tuple[int, int, Packed]] = {}

    def add(self, index: int, one: Packed) -> None:
        """Keep the picture with this index."""
        with self._lock:
            start = self._file.seek(0, 2)
            self._file.write(one.content)
        self._places[index] = start, len(one.content), one._replace(content=b"")

    def read(self, index: int) -> RankedPicture:
        """The picture with this index."""
        start, length, one = self._places[index]
        with self._lock:
            self._file.seek(start)
            content = self._file.read(length)
        flat, pixels = np.frombuffer(zstandard.ZstdDecompressor().decompress(content), np.uint8), one.size_hw
        n = pixels[0] * pixels[1]
        ranks = flat[2 * n :].view(one.rank).reshape(pixels)
        return RankedPicture(flat[:n].reshape(pixels), Ranks(flat[n : 2 * n].reshape(pixels), ranks))


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Store]:
    """A store for the duration of a stage; what does not fit into a little memory is written to the disk of its folder."""
    with tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=str(folder)) as file:
        yield Store(file)
