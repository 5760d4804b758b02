"""Brush strokes of Label Studio: packed as label-studio-sdk 2.1.2 packs them, and unpacked as it unpacks them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wsss.data.brush import pack_brush, unpack_brush
from wsss.errors import Unreadable

# mask2rle of label-studio-sdk, for a stroke of three pixels and one in the corner
PACKED = [0, 0, 0, 60, 57, 27, 254, 23, 0, 183, 255, 132, 192, 35, 255, 0]
STROKE = np.array([[0, 0, 0, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 1]], bool)


def bytes_of(bits: str) -> np.ndarray:
    bits += "0" * (-len(bits) % 8)
    return np.array([int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)], np.uint8)


def test_a_stroke_is_packed_as_by_label_studio():
    assert pack_brush(STROKE) == PACKED[: len(pack_brush(STROKE))]
    assert set(PACKED[len(pack_brush(STROKE)) :]) <= {0}  # the tool appends a byte of nothing
    np.testing.assert_array_equal(unpack_brush(np.array(PACKED, np.uint8), (3, 5)), STROKE)


@given(arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_packing_loses_nothing(inside):
    packed = np.array(pack_brush(inside), np.uint8)
    np.testing.assert_array_equal(unpack_brush(packed, inside.shape), inside)


def test_runs_longer_than_any_number_are_split():
    inside = np.zeros((300, 400), bool)
    inside[170:] = True
    packed = pack_brush(inside)
    assert len(packed) < 60
    np.testing.assert_array_equal(unpack_brush(np.array(packed, np.uint8), (300, 400)), inside)


def test_values_one_by_one_and_other_widths_of_numbers():
    """A block of single values, as the labelling interface writes them, and a block of a repeated one, with lengths of 5 and 9 bits."""
    values = [0, 0, 0, 0, 9, 9, 9, 1, 9, 9, 9, 0]
    bits = f"{16:032b}{7:05b}{4:04b}{8:04b}{4:04b}{4:04b}"
    bits += f"000{len(values) - 1:05b}" + "".join(f"{value:08b}" for value in values) + f"101{3:09b}{255:08b}"
    np.testing.assert_array_equal(unpack_brush(bytes_of(bits), (2, 2)), [[False, True], [False, True]])


HEADER = f"{16:032b}{7:05b}" + 4 * f"{3:04b}"
BROKEN = {
    "another size": (np.array(PACKED, np.uint8), "60 values of 8 bits"),
    "values of 4 bits": (bytes_of(f"{16:032b}{3:05b}" + 4 * f"{3:04b}"), "16 values of 4 bits"),
    "nothing": (np.zeros(0, np.uint8), "cut off"),
    "cut off after the header": (bytes_of(HEADER), "cut off"),
    "cut off in a block": (bytes_of(HEADER + f"000{15:04b}{0:08b}"), "cut off"),
}


@pytest.mark.parametrize("case", sorted(BROKEN))
def test_broken_strokes(case):
    packed, message = BROKEN[case]
    with pytest.raises(Unreadable, match=message):
        unpack_brush(packed, (2, 2))


def test_a_block_beyond_the_picture():
    packed = bytes_of(f"{4:032b}{7:05b}" + 4 * f"{3:04b}" + f"100{4:04b}{255:08b}")
    with pytest.raises(Unreadable, match="longer than its picture"):
        unpack_brush(packed, (1, 1))
