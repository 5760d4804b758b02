"""Brush strokes of Label Studio: the four channels of a picture, packed into bytes.

The bits of the bytes, the highest first, are a header and blocks, until all values are there:

    32 bits   the number of values: height x width x 4, by row, column and channel
     5 bits   the width of a value, less 1; Label Studio writes 8-bit values
    4 x 4     four widths of numbers, less 1
    blocks    1 bit: whether one value is repeated; 2 bits: which of the four widths; a number of that width: how many values, less 1;
              then that value, or all the values
"""

from collections.abc import Iterator

import numpy as np

from wsss.arrays import Bool, UInt8
from wsss.errors import Unreadable

CHANNELS = 4
_VALUE_BITS = 8
_LENGTH_BITS = (3, 4, 8, 16)
_HEADER_BITS = 32 + 5 + 4 * len(_LENGTH_BITS)


def pack_brush(inside: Bool[np.ndarray, "h w"]) -> list[int]:
    """The bytes of a stroke: 255 in all four channels inside, 0 outside."""
    flat = inside.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=not flat[0])).tolist()
    bits = [f"{flat.size * CHANNELS:032b}{_VALUE_BITS - 1:05b}", *(f"{width - 1:04b}" for width in _LENGTH_BITS)]
    for start, end in zip(starts, [*starts[1:], flat.size], strict=True):
        value = "1" * _VALUE_BITS if flat[start] else "0" * _VALUE_BITS
        for length in _at_most((end - start) * CHANNELS, 1 << _LENGTH_BITS[-1]):
            which, width = next((at, width) for at, width in enumerate(_LENGTH_BITS) if length <= 1 << width)
            bits.append(f"1{which:02b}{length - 1:0{width}b}{value}")
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def _at_most(length: int, most: int) -> Iterator[int]:
    """Lengths of at most `most` that add up to `length`."""
    yield from [most] * (length // most)
    if length % most:
        yield length % most


def unpack_brush(packed: UInt8[np.ndarray, " n"], size_hw: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """The marked pixels of a stroke: those whose fourth channel, the opacity, is not 0, as in Label Studio's own exports of outlines.

    Args:
        packed: the bytes.
        size_hw: height and width of the picture.

    Raises:
        Unreadable: the bytes do not hold the four channels of a picture of this size.
    """
    bits = np.unpackbits(packed)
    numbers = _Numbers(packed.tobytes())
    count, width = numbers.read(32), numbers.read(5) + 1
    widths = [numbers.read(4) + 1 for _ in _LENGTH_BITS]
    height_px, width_px = size_hw
    if count != height_px * width_px * CHANNELS or width != _VALUE_BITS:
        raise Unreadable(
            f"a brush stroke of {count} values of {width} bits, and not {CHANNELS} of 8 bits for each of {height_px} x {width_px} pixels"
        )
    values = np.empty(count, np.uint8)
    at = 0
    while at < count:
        is_repeated = numbers.read(1)
        length = numbers.read(widths[numbers.read(2)]) + 1
        if at + length > count:
            raise Unreadable("a brush stroke whose blocks are longer than its picture")
        if is_repeated:
            values[at : at + length] = numbers.read(_VALUE_BITS)
        else:
            begin = numbers.skip(length * _VALUE_BITS)
            values[at : at + length] = np.packbits(bits[begin : begin + length * _VALUE_BITS])
        at += length
    return values.reshape(height_px, width_px, CHANNELS)[..., -1] > 0


class _Numbers:
    """Reads numbers of any width from bytes."""

    def __init__(self, blob: bytes) -> None:
        self._blob, self._at = blob, 0

    def skip(self, width: int) -> int:
        """Advance by a number of bits; returns where they begin."""
        begin = self._at
        self._at += width
        if self._at > 8 * len(self._blob):
            raise Unreadable("a brush stroke that is cut off")
        return begin

    def read(self, width: int) -> int:
        begin = self.skip(width)
        first, last = begin // 8, (self._at + 7) // 8
        return int.from_bytes(self._blob[first:last], "big") >> (8 * last - self._at) & ((1 << width) - 1)
