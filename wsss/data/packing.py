"""Lossless packing of activation maps: a third to a twentieth of the bytes of a compressed `.npz`, in less time (docs/performance.md).

What is compressed, by Zstandard, all high bytes before all low bytes, are differences of the 16-bit patterns of the numbers (modulo 2^16,
which is exact): from a prediction (`wsss.data.grids`), or else second differences along rows, of differences between rows, which are almost
0 in maps that were interpolated.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import zstandard

from wsss.arrays import Float, Float16, Shaped, UInt8
from wsss.data.grids import LARGEST
from wsss.errors import Unreadable

# added to the differences, so that the high bytes of small ones are the same
_MIDDLE = 128
_LEVEL = 1
# Zstandard compresses no better: blocks of 128 KiB take at least 4 bytes
_MOST_PER_BYTE = 2**15


def pack(
    values: Float16[np.ndarray, "k h w"], predicted: Float16[np.ndarray, "k h w"] | None = None
) -> UInt8[np.ndarray, " n"]:
    """The packed values; with a prediction, what differs from it."""
    bits = np.ascontiguousarray(values).view(np.uint16)
    if predicted is not None:
        return _compressed(bits - predicted.view(np.uint16) + np.uint16(_MIDDLE))
    rows = bits.copy()
    rows[:, 1:] -= bits[:, :-1]
    first = rows.copy()
    first[:, :, 1:] -= rows[:, :, :-1]
    second = first.copy()
    second[:, :, 1:] -= first[:, :, :-1]
    second += _MIDDLE
    return _compressed(second)


def unpack(
    packed: UInt8[np.ndarray, " n"],
    shape: tuple[int, int, int],
    predict: Callable[[], Float16[np.ndarray, "k h w"]] | None = None,
) -> Float16[np.ndarray, "k h w"]:
    """The values of `pack`.

    Args:
        packed: result of `pack`.
        shape: of the values. Memory is taken only if the packed bytes promise as many.
        predict: makes the prediction that they were packed with.

    Raises:
        Unreadable: the bytes are damaged, or of another number of values.
    """
    bits = _decompressed(packed, shape, np.uint16)
    bits -= np.uint16(_MIDDLE)
    if predict is not None:
        bits += predict().view(np.uint16)
        return bits.view(np.float16)
    for axis in (2, 2, 1):
        np.cumsum(bits, axis=axis, dtype=np.uint16, out=bits)
    return bits.view(np.float16)


def pack_whole(grids: Sequence[Float[np.ndarray, "k _ _"]]) -> UInt8[np.ndarray, " n"]:
    """Packed whole numbers of `wsss.data.grids.whole_numbers`."""
    return _compressed(np.concatenate([one.reshape(len(one), -1) for one in grids], 1).astype(np.uint32))


def unpack_whole(
    packed: UInt8[np.ndarray, " n"], count: int, sizes_hw: Sequence[tuple[int, int]]
) -> list[Float[np.ndarray, "k _ _"]]:
    """The whole numbers of `pack_whole`, as float64.

    Args:
        packed: its result.
        count: number of maps.
        sizes_hw: rows and columns of each grid.

    Raises:
        Unreadable: the bytes are damaged, of another number of values, or numbers are so large that predictions by them are not exact.
    """
    ends = np.cumsum([rows * columns for rows, columns in sizes_hw])
    numbers = _decompressed(packed, (count, int(ends[-1])), np.uint32).astype(np.float64)
    parts = np.split(numbers, ends[:-1], 1)
    if sum(float(part.max(initial=0)) for part in parts) > LARGEST:
        raise Unreadable("grids with larger numbers than any that are written")
    return [part.reshape(count, *size) for part, size in zip(parts, sizes_hw, strict=True)]


def _compressed(numbers: Shaped[np.ndarray, "..."]) -> UInt8[np.ndarray, " n"]:
    """Unsigned numbers, compressed, all high bytes before all low bytes."""
    width = numbers.dtype.itemsize
    planes = np.empty((width, *numbers.shape), np.uint8)
    for place, plane in enumerate(planes):
        np.right_shift(numbers, 8 * (width - 1 - place), out=plane, casting="unsafe")
    return np.frombuffer(zstandard.ZstdCompressor(level=_LEVEL).compress(planes.data), np.uint8)


def _decompressed(
    packed: UInt8[np.ndarray, " n"], shape: tuple[int, ...], dtype: type[np.unsignedinteger]
) -> Shaped[np.ndarray, "..."]:
    content, width = packed.tobytes(), np.dtype(dtype).itemsize
    length = width * math.prod(shape)
    try:
        promised = zstandard.frame_content_size(content)
        if promised != length or promised > _MOST_PER_BYTE * len(content):
            raise Unreadable(f"{promised} bytes packed into {len(content)}, for values of shape {shape}")
        planes = np.frombuffer(zstandard.ZstdDecompressor().decompress(content), np.uint8).reshape(width, *shape)
    except zstandard.ZstdError as error:
        raise Unreadable(str(error)) from error
    numbers = planes[0].astype(dtype)
    for plane in planes[1:]:
        numbers <<= dtype(8)
        numbers |= plane
    return numbers
